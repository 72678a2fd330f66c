//! Weights of a GGUF file under their Hugging Face names.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{Device, Tensor};

use super::element::ElementType;
use super::reader::GgufFile;
use crate::engine::loader::config::{Architecture, ModelConfig};
use crate::engine::loader::error::LoadError;
use crate::engine::loader::{Weight, Weights};

/// A GGUF file's tensors.
pub(crate) struct GgufWeights {
    file: GgufFile,
    /// Query and key rows of `llama` files have their rotary pairs interleaved: undo that for these heads.
    interleaved: Option<Heads>,
}

#[derive(Debug, Clone, Copy)]
struct Heads {
    query: usize,
    key: usize,
}

impl GgufWeights {
    pub fn new(file: GgufFile, config: &ModelConfig) -> Self {
        let interleaved = (config.architecture == Architecture::Llama).then_some(Heads {
            query: config.heads,
            key: config.kv_heads,
        });
        Self { file, interleaved }
    }

    /// Tensors as they are in the file.
    #[cfg(test)]
    pub fn plain(file: GgufFile) -> Self {
        Self {
            file,
            interleaved: None,
        }
    }

    /// How many heads' rows must be put back in order in this tensor.
    fn interleaved_heads(&self, gguf_name: &str) -> Option<usize> {
        let heads = self.interleaved?;
        if gguf_name.contains(".attn_q.") {
            Some(heads.query)
        } else if gguf_name.contains(".attn_k.") {
            Some(heads.key)
        } else {
            None
        }
    }
}

impl Weights for GgufWeights {
    fn get(&self, name: &str) -> Result<Weight, LoadError> {
        let missing = || LoadError::MissingTensor {
            name: name.to_owned(),
        };
        let gguf_name = gguf_name(name).ok_or_else(missing)?;
        let entry = self.file.tensor(&gguf_name).ok_or_else(missing)?;
        let mut bytes = Cow::Borrowed(self.file.tensor_bytes(&gguf_name, entry)?);
        if let Some(heads) = self.interleaved_heads(&gguf_name) {
            bytes = Cow::Owned(deinterleave_rows(
                &bytes,
                entry.dims.first().copied().unwrap_or(0),
                heads,
                name,
            )?);
        }
        let unreadable = |cause: candle_core::Error| LoadError::Tensor {
            name: name.to_owned(),
            message: cause.to_string(),
        };
        match entry.element {
            ElementType::Dense(element) => {
                Tensor::from_raw_buffer(&bytes, element, &entry.dims, &Device::Cpu)
                    .map(Weight::Dense)
                    .map_err(unreadable)
            }
            ElementType::Quantized(element) => {
                qtensor_from_ggml(element, &bytes, entry.dims.clone(), &Device::Cpu)
                    .map(|tensor| Weight::Quantized(Arc::new(tensor)))
                    .map_err(unreadable)
            }
            ElementType::Unsupported(_) => Err(LoadError::UnsupportedElementType {
                name: name.to_owned(),
                found: entry.element.to_string(),
                supported: ElementType::SUPPORTED,
            }),
        }
    }

    fn contains(&self, name: &str) -> bool {
        gguf_name(name).is_some_and(|name| self.file.tensor(&name).is_some())
    }
}

/// Undoes the row order of `llama` GGUF files: within a head of *2n* rows, row *2j + k* becomes row *kn + j*,
/// so that the rotary pair (*j*, *j + n*) is split in halves again, as Hugging Face models have it.
fn deinterleave_rows(
    bytes: &[u8],
    rows: usize,
    heads: usize,
    name: &str,
) -> Result<Vec<u8>, LoadError> {
    if rows == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(LoadError::Tensor {
            name: name.to_owned(),
            message: format!("{rows} rows cannot be split into {heads} heads of an even size"),
        });
    }
    let row_bytes = bytes.len() / rows;
    let head_rows = rows / heads;
    let mut ordered = Vec::with_capacity(bytes.len());
    for head in 0..heads {
        for half in 0..2 {
            for pair in 0..head_rows / 2 {
                let row = head * head_rows + 2 * pair + half;
                ordered.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
            }
        }
    }
    Ok(ordered)
}

/// The GGUF name of a tensor with a Hugging Face name.
pub(crate) fn gguf_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (module, kind) = rest.rsplit_once('.')?;
    let part = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    matches!(kind, "weight" | "bias").then(|| format!("blk.{layer}.{part}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_translated() {
        assert_eq!(
            gguf_name("lm_head.weight").as_deref(),
            Some("output.weight")
        );
        assert_eq!(
            gguf_name("model.layers.11.self_attn.k_proj.bias").as_deref(),
            Some("blk.11.attn_k.bias")
        );
        assert_eq!(
            gguf_name("model.layers.0.mlp.down_proj.weight").as_deref(),
            Some("blk.0.ffn_down.weight")
        );
        assert_eq!(gguf_name("model.layers.x.mlp.down_proj.weight"), None);
        assert_eq!(gguf_name("model.layers.0.rotary.inv_freq"), None);
    }

    #[test]
    fn rows_of_each_head_return_to_halves() {
        // Two heads of four rows of one byte; stored as (0,2),(1,3) pairs.
        let stored = [0, 2, 1, 3, 4, 6, 5, 7];
        assert_eq!(
            deinterleave_rows(&stored, 8, 2, "q").expect("divisible"),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
        assert!(deinterleave_rows(&stored, 8, 3, "q").is_err());
        assert!(deinterleave_rows(&[], 0, 2, "q").is_err());
    }
}
