//! Qwen2 and Qwen2.5 (dense): biases on the query, key and value projections, and on no other.

use crate::engine::layers::DecoderDescription;
use crate::engine::loader::ModelConfig;

pub(super) fn describe(config: &ModelConfig) -> DecoderDescription {
    DecoderDescription {
        qkv_bias: true,
        ..super::plain(config)
    }
}
