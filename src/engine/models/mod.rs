//! One file per architecture: how it differs from the shared decoder in [`super::layers`].

mod llama;
mod qwen2;
mod qwen3;

use super::layers::DecoderDescription;
use super::loader::{Architecture, ModelConfig};

/// The decoder that a model's configuration describes.
pub fn describe(config: &ModelConfig) -> DecoderDescription {
    match config.architecture {
        Architecture::Qwen3 => qwen3::describe(config),
        Architecture::Qwen2 => qwen2::describe(config),
        Architecture::Llama => llama::describe(config),
    }
}

/// What all architectures take from their configuration alike: no biases, no norms on heads.
fn plain(config: &ModelConfig) -> DecoderDescription {
    DecoderDescription {
        vocabulary: config.vocabulary,
        hidden: config.hidden_size,
        layers: config.layers,
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        intermediate: config.intermediate_size,
        norm_epsilon: config.rms_norm_epsilon as f32,
        context_window: config.context_window,
        inverse_frequencies: config.inverse_frequencies(),
        qkv_bias: false,
        output_bias: false,
        head_norms: false,
        tied_head: config.tied_embeddings,
    }
}
