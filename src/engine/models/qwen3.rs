//! Qwen3 (dense): RMS norms on each head of queries and keys; biases only if the configuration says so.

use crate::engine::layers::DecoderDescription;
use crate::engine::loader::ModelConfig;

pub(super) fn describe(config: &ModelConfig) -> DecoderDescription {
    DecoderDescription {
        head_norms: true,
        qkv_bias: config.qkv_bias,
        output_bias: config.output_bias,
        ..super::plain(config)
    }
}
