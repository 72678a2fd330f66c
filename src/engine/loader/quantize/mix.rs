//! Which element type each tensor of a file type gets: llama.cpp's choice (`llama-quant.cpp`, without an
//! importance matrix), for the dense architectures that Trunkline knows.
//!
//! In a K-quant mix of *n* layers, `attn_v` and `ffn_down` of some layers get more bits. "Sensitive" layers are
//! the first and the last eighth, and every third one between them.
//!
//! | | `output`, or the embedding that stands in for it | `attn_v` | `ffn_down` |
//! |---|---|---|---|
//! | `q4_k_m` | Q6_K | Q6_K in sensitive layers | Q6_K in sensitive layers |
//! | `q4_k_s` | Q6_K | Q5_K in the first 4 layers | Q5_K in the first eighth |
//! | `q5_k_m` | Q6_K | Q6_K in sensitive layers | Q6_K in sensitive layers |
//! | `q5_k_s`, `q6_k`, `q4_0` | Q6_K | | |
//! | `q8_0` | Q8_0 | | |

use candle_core::DType;
use candle_core::quantized::GgmlDType;

use super::FileType;
use crate::engine::loader::config::{Architecture, ModelConfig};
use crate::engine::loader::gguf::ElementType;

/// What the choice depends on beside the tensor itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mix {
    pub file_type: FileType,
    pub architecture: Architecture,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    /// There is no `output.weight`: the embedding is the LM head too.
    pub tied_embeddings: bool,
}

impl Mix {
    pub fn new(file_type: FileType, config: &ModelConfig) -> Self {
        Self {
            file_type,
            architecture: config.architecture,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            tied_embeddings: config.tied_embeddings,
        }
    }

    /// The element type of the tensor with this GGUF name; `dims` outermost first.
    pub fn element_type(&self, name: &str, dims: &[usize]) -> ElementType {
        let row = dims.last().copied().unwrap_or(1);
        match self.wanted(name, dims) {
            ElementType::Quantized(wanted) => that_fits(wanted, row),
            dense => dense,
        }
    }

    /// Whether a tensor's rows are too short for the type that it should have.
    pub fn falls_back(&self, name: &str, dims: &[usize]) -> bool {
        self.wanted(name, dims) != self.element_type(name, dims)
    }

    fn wanted(&self, name: &str, dims: &[usize]) -> ElementType {
        if dims.len() < 2 || !name.ends_with(".weight") || name.ends_with("_norm.weight") {
            return ElementType::Dense(DType::F32);
        }
        match self.file_type.base() {
            ElementType::Quantized(base) => ElementType::Quantized(self.quantized_type(name, base)),
            dense => dense,
        }
    }

    fn quantized_type(&self, name: &str, base: GgmlDType) -> GgmlDType {
        match name {
            "output.weight" => return output_type(base),
            "token_embd.weight" if self.tied_embeddings => return output_type(base),
            _ => {}
        }
        let Some((layer, part)) = layer_and_part(name) else {
            return base;
        };
        match part {
            "attn_v.weight" => {
                let chosen = match self.file_type {
                    FileType::Q4_K_M | FileType::Q5_K_M if self.is_sensitive(layer) => {
                        GgmlDType::Q6K
                    }
                    FileType::Q4_K_S if layer < 4 => GgmlDType::Q5K,
                    _ => base,
                };
                // Eight heads share these rows in models of this size: more bits cost next to nothing.
                match chosen {
                    GgmlDType::Q4K if self.is_70b() => GgmlDType::Q5K,
                    other => other,
                }
            }
            "ffn_down.weight" => match self.file_type {
                FileType::Q4_K_M | FileType::Q5_K_M if self.is_sensitive(layer) => GgmlDType::Q6K,
                FileType::Q4_K_S if layer < self.layers / 8 => GgmlDType::Q5K,
                _ => base,
            },
            _ => base,
        }
    }

    fn is_sensitive(&self, layer: usize) -> bool {
        let eighth = self.layers / 8;
        layer < eighth || layer >= 7 * self.layers / 8 || (layer - eighth) % 3 == 2
    }

    /// As llama.cpp recognizes Llama 70B and Qwen2 72B.
    fn is_70b(&self) -> bool {
        self.layers == 80
            && match self.architecture {
                Architecture::Llama => self.heads != self.kv_heads,
                Architecture::Qwen2 => true,
                Architecture::Qwen3 => false,
            }
    }
}

fn output_type(base: GgmlDType) -> GgmlDType {
    match base {
        GgmlDType::Q8_0 => GgmlDType::Q8_0,
        _ => GgmlDType::Q6K,
    }
}

/// `blk.7.attn_v.weight` into 7 and `attn_v.weight`.
fn layer_and_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// The type itself, or one with smaller blocks of which rows of this length hold a whole number.
fn that_fits(wanted: GgmlDType, row: usize) -> ElementType {
    let fits = |kind: GgmlDType| row.is_multiple_of(kind.block_size());
    if fits(wanted) {
        return ElementType::Quantized(wanted);
    }
    let smaller = match wanted {
        GgmlDType::Q4K => GgmlDType::Q5_0,
        GgmlDType::Q5K => GgmlDType::Q5_1,
        _ => GgmlDType::Q8_0,
    };
    if fits(smaller) {
        ElementType::Quantized(smaller)
    } else {
        ElementType::Dense(DType::F16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use GgmlDType::{Q4_0, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

    fn mix(file_type: FileType) -> Mix {
        Mix {
            file_type,
            architecture: Architecture::Qwen3,
            layers: 28,
            heads: 16,
            kv_heads: 8,
            tied_embeddings: true,
        }
    }

    fn quantized(mix: Mix, name: &str) -> GgmlDType {
        match mix.element_type(name, &[1024, 1024]) {
            ElementType::Quantized(kind) => kind,
            other => panic!("{name}: {other}"),
        }
    }

    /// The layers (of 28) whose tensor `part` has the type `kind`.
    fn layers_with(file_type: FileType, part: &str, kind: GgmlDType) -> Vec<usize> {
        (0..28)
            .filter(|layer| {
                quantized(mix(file_type), &format!("blk.{layer}.{part}.weight")) == kind
            })
            .collect()
    }

    /// By the rule, worked out by hand.
    const SENSITIVE: [usize; 14] = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27];

    #[test]
    fn medium_mixes_give_sensitive_layers_six_bits() {
        for kind in [FileType::Q4_K_M, FileType::Q5_K_M] {
            assert_eq!(layers_with(kind, "attn_v", Q6K), SENSITIVE);
            assert_eq!(layers_with(kind, "ffn_down", Q6K), SENSITIVE);
            assert_eq!(layers_with(kind, "attn_q", Q6K), [0; 0]);
        }
        assert_eq!(layers_with(FileType::Q4_K_M, "attn_k", Q4K).len(), 28);
        assert_eq!(layers_with(FileType::Q5_K_M, "ffn_up", Q5K).len(), 28);
    }

    #[test]
    fn the_small_mix_gives_the_first_layers_five_bits() {
        assert_eq!(layers_with(FileType::Q4_K_S, "attn_v", Q5K), [0, 1, 2, 3]);
        assert_eq!(layers_with(FileType::Q4_K_S, "ffn_down", Q5K), [0, 1, 2]);
        assert_eq!(layers_with(FileType::Q4_0, "ffn_down", Q4_0).len(), 28);
    }

    #[test]
    fn the_lm_head_gets_six_bits_and_the_embedding_only_in_its_place() {
        let tied = mix(FileType::Q4_K_M);
        let untied = Mix {
            tied_embeddings: false,
            ..tied
        };
        assert_eq!(quantized(tied, "token_embd.weight"), Q6K);
        assert_eq!(quantized(untied, "token_embd.weight"), Q4K);
        assert_eq!(quantized(untied, "output.weight"), Q6K);
        assert_eq!(quantized(mix(FileType::Q4_0), "output.weight"), Q6K);
        assert_eq!(quantized(mix(FileType::Q8_0), "output.weight"), Q8_0);
    }

    #[test]
    fn vectors_and_norms_stay_as_they_are() {
        let f32 = ElementType::Dense(DType::F32);
        for kind in [FileType::Q4_K_M, FileType::F16] {
            let mix = mix(kind);
            assert_eq!(mix.element_type("blk.0.attn_norm.weight", &[1024]), f32);
            assert_eq!(mix.element_type("blk.0.attn_q.bias", &[1024]), f32);
            assert_eq!(mix.element_type("rope_freqs.weight", &[64]), f32);
        }
        let f16 = mix(FileType::F16).element_type("blk.0.attn_q.weight", &[8, 1024]);
        assert_eq!(f16, ElementType::Dense(DType::F16));
    }

    #[test]
    fn rows_that_hold_no_whole_blocks_get_smaller_ones() {
        let kind = |file_type, name, row| mix(file_type).element_type(name, &[64, row]);
        let is = ElementType::Quantized;
        assert_eq!(kind(FileType::Q4_K_M, "blk.9.attn_q.weight", 896), is(Q5_0));
        assert_eq!(kind(FileType::Q4_K_M, "blk.0.attn_v.weight", 896), is(Q8_0));
        assert_eq!(kind(FileType::Q5_K_M, "blk.9.ffn_up.weight", 896), is(Q5_1));
        assert_eq!(kind(FileType::Q6_K, "token_embd.weight", 896), is(Q8_0));
        assert_eq!(
            kind(FileType::Q4_K_M, "blk.9.attn_q.weight", 100),
            ElementType::Dense(DType::F16)
        );
    }

    #[test]
    fn models_of_eighty_layers_get_more_bits_for_values() {
        let large = Mix {
            architecture: Architecture::Llama,
            layers: 80,
            heads: 64,
            kv_heads: 8,
            ..mix(FileType::Q4_K_M)
        };
        assert_eq!(quantized(large, "blk.10.attn_v.weight"), Q5K);
        assert_eq!(quantized(large, "blk.0.attn_v.weight"), Q6K);
        assert_eq!(quantized(large, "blk.10.ffn_down.weight"), Q4K);
    }
}
