//! The tensors of a model that is not quantized, as a GGUF file names, orders and shapes them.

use std::borrow::Cow;
use std::ops::Range;

use candle_core::DType;
use half::{bf16, f16};

use crate::engine::loader::config::{Architecture, ModelConfig, RopeScaling};
use crate::engine::loader::error::LoadError;
use crate::engine::loader::gguf::{ElementType, GgufFile, gguf_name};
use crate::engine::loader::safetensors::SafetensorsWeights;

/// One tensor: rows of f32, f16 or bf16 where they lie in the file.
pub(super) struct SourceTensor<'a> {
    /// The name in a GGUF file.
    pub name: String,
    /// The name where it comes from, for messages.
    pub original: String,
    /// Outermost first.
    pub dims: Vec<usize>,
    element: DType,
    bytes: Cow<'a, [u8]>,
    /// The rows of each of so many heads are to be read as pairs of a rotation, side by side.
    interleaved_heads: Option<usize>,
}

impl<'a> SourceTensor<'a> {
    /// A tensor of a safetensors file in its own order of rows, with its Hugging Face name.
    pub fn from_safetensors(
        weights: &'a SafetensorsWeights,
        name: &str,
        dims: &[usize],
    ) -> Result<Self, LoadError> {
        let raw = weights.raw(name)?;
        if raw.dims != dims {
            return Err(LoadError::WrongShape {
                name: name.to_owned(),
                expected: dims.to_vec(),
                found: raw.dims.to_vec(),
            });
        }
        Ok(Self {
            name: gguf_name(name).unwrap_or_else(|| name.to_owned()),
            original: name.to_owned(),
            dims: raw.dims.to_vec(),
            element: raw.element,
            bytes: Cow::Borrowed(raw.bytes),
            interleaved_heads: None,
        })
    }

    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes in the file.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Numbers of a row. A vector is a column: rows of one.
    pub fn row_elements(&self) -> usize {
        match self.dims.as_slice() {
            [] | [_] => 1,
            [.., last] => *last,
        }
    }

    pub fn rows(&self) -> usize {
        self.elements() / self.row_elements().max(1)
    }

    /// Rows as f32, one after the other.
    pub fn read_rows(&self, rows: Range<usize>) -> Vec<f32> {
        let row_bytes = self.row_elements() * self.element.size_in_bytes();
        let mut values = Vec::with_capacity(rows.len() * self.row_elements());
        match self.interleaved_heads {
            None => self.widen(rows.start * row_bytes..rows.end * row_bytes, &mut values),
            Some(heads) => {
                let head_rows = self.rows() / heads;
                for row in rows {
                    let (head, within) = (row / head_rows, row % head_rows);
                    let from = head * head_rows + within % 2 * (head_rows / 2) + within / 2;
                    self.widen(from * row_bytes..(from + 1) * row_bytes, &mut values);
                }
            }
        }
        values
    }

    fn widen(&self, range: Range<usize>, values: &mut Vec<f32>) {
        let bytes = &self.bytes[range];
        let halves = || {
            bytes
                .chunks_exact(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]))
        };
        match self.element {
            DType::F16 => values.extend(halves().map(|bits| f16::from_bits(bits).to_f32())),
            DType::BF16 => values.extend(halves().map(|bits| bf16::from_bits(bits).to_f32())),
            _ => values.extend(
                bytes
                    .chunks_exact(4)
                    .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            ),
        }
    }

    /// Feeds all that decides what becomes of this tensor.
    pub fn hash_into(&self, hasher: &mut blake3::Hasher) {
        let shape = format!(
            "{} {:?} {} {:?}\n",
            self.name,
            self.dims,
            self.element.as_str(),
            self.interleaved_heads
        );
        hasher.update(shape.as_bytes());
        hasher.update(&self.bytes);
    }
}

/// Names (Hugging Face's) and shapes of all tensors of a model, in the order in which they are written.
pub(super) fn tensor_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let (query, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    let embedding = vec![config.vocabulary, hidden];
    let mut shapes = Vec::new();
    let mut add = |name: String, dims: &[usize]| shapes.push((name, dims.to_vec()));
    if !config.tied_embeddings {
        add("lm_head.weight".to_owned(), &embedding);
    }
    add("model.norm.weight".to_owned(), &[hidden]);
    add("model.embed_tokens.weight".to_owned(), &embedding);
    for layer in 0..config.layers {
        let mut add =
            |name: &str, dims: &[usize]| add(format!("model.layers.{layer}.{name}"), dims);
        add("input_layernorm.weight", &[hidden]);
        let projections = [
            ("q_proj", query, config.qkv_bias),
            ("k_proj", kv, config.qkv_bias),
            ("v_proj", kv, config.qkv_bias),
        ];
        for (name, out, bias) in projections {
            add(&format!("self_attn.{name}.weight"), &[out, hidden]);
            if bias {
                add(&format!("self_attn.{name}.bias"), &[out]);
            }
        }
        if config.qk_norm {
            add("self_attn.q_norm.weight", &[config.head_dim]);
            add("self_attn.k_norm.weight", &[config.head_dim]);
        }
        add("self_attn.o_proj.weight", &[hidden, query]);
        if config.output_bias {
            add("self_attn.o_proj.bias", &[hidden]);
        }
        add("post_attention_layernorm.weight", &[hidden]);
        add("mlp.gate_proj.weight", &[config.intermediate_size, hidden]);
        add("mlp.up_proj.weight", &[config.intermediate_size, hidden]);
        add("mlp.down_proj.weight", &[hidden, config.intermediate_size]);
    }
    shapes
}

/// All tensors that a GGUF file of this safetensors model holds.
pub(super) fn of_safetensors<'a>(
    weights: &'a SafetensorsWeights,
    config: &ModelConfig,
) -> Result<Vec<SourceTensor<'a>>, LoadError> {
    let mut tensors = tensor_shapes(config)
        .into_iter()
        .map(|(name, dims)| {
            let mut tensor = SourceTensor::from_safetensors(weights, &name, &dims)?;
            // Llama's GGUF convention: the two numbers that a rotation turns lie side by side.
            if config.architecture == Architecture::Llama {
                tensor.interleaved_heads = match name.rsplit_once('.') {
                    Some((module, _)) if module.ends_with("q_proj") => Some(config.heads),
                    Some((module, _)) if module.ends_with("k_proj") => Some(config.kv_heads),
                    _ => None,
                };
            }
            Ok(tensor)
        })
        .collect::<Result<Vec<_>, LoadError>>()?;
    if let RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) = config.rope_scaling {
        let divisors = config.frequency_divisors();
        tensors.push(SourceTensor {
            name: "rope_freqs.weight".to_owned(),
            original: "rope_freqs.weight".to_owned(),
            dims: vec![divisors.len()],
            element: DType::F32,
            bytes: divisors.into_iter().flat_map(f32::to_le_bytes).collect(),
            interleaved_heads: None,
        });
    }
    Ok(tensors)
}

/// All tensors of a GGUF file; refuses one that is quantized, by `refuse(name, type)`.
pub(super) fn of_gguf<E: From<LoadError>>(
    file: &GgufFile,
    refuse: impl Fn(&str, ElementType) -> E,
) -> Result<Vec<SourceTensor<'_>>, E> {
    file.tensors()
        .into_iter()
        .map(|(name, entry)| match entry.element {
            ElementType::Dense(element) => Ok(SourceTensor {
                name: name.to_owned(),
                original: name.to_owned(),
                dims: entry.dims.clone(),
                element,
                bytes: Cow::Borrowed(file.tensor_bytes(name, entry)?),
                interleaved_heads: None,
            }),
            other => Err(refuse(name, other)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_interleaved_by_pairs() {
        // Two heads of four rows of one number: halves (0, 1), (2, 3) become pairs (0, 2), (1, 3).
        let tensor = SourceTensor {
            name: "blk.0.attn_q.weight".to_owned(),
            original: "model.layers.0.self_attn.q_proj.weight".to_owned(),
            dims: vec![8, 1],
            element: DType::F32,
            bytes: (0..8u8).flat_map(|v| f32::from(v).to_le_bytes()).collect(),
            interleaved_heads: Some(2),
        };
        assert_eq!(
            tensor.read_rows(0..8),
            [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]
        );
        assert_eq!(tensor.read_rows(5..7), [6.0, 5.0]);
    }
}
