//! Llama 3.x: the plain decoder. Its long context is in the rotary frequencies, which
//! [`ModelConfig::inverse_frequencies`] scales; biases only if the configuration says so.

use crate::engine::layers::DecoderDescription;
use crate::engine::loader::ModelConfig;

pub(super) fn describe(config: &ModelConfig) -> DecoderDescription {
    DecoderDescription {
        qkv_bias: config.qkv_bias,
        output_bias: config.output_bias,
        ..super::plain(config)
    }
}
