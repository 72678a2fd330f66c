//! The dense decoder that all supported architectures share: its description, and its weights as one
//! executor wants them.
//!
//! An architecture (`models/*.rs`) says in a [`DecoderDescription`] where it differs: biases, norms on
//! each head, rotary frequencies, tied embeddings. [`Decoder::build`] reads the weights by their
//! Hugging Face names and hands them to a [`WeightBackend`], which packs them for its device.

use candle_core::{DType, Device};

use super::error::EngineError;
use super::loader::{Weight, Weights};

/// What a decoder looks like. Sizes are in numbers, not bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderDescription {
    pub vocabulary: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    /// Heads of keys and values; `heads` is a multiple of it.
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    /// Epsilon of every RMS norm.
    pub norm_epsilon: f32,
    /// Most positions of one sequence.
    pub context_window: usize,
    /// Rotary frequency of each pair of a head's numbers (`head_dim / 2` of them, pair *i* being numbers
    /// *i* and *i + head_dim / 2*).
    pub inverse_frequencies: Vec<f32>,
    /// Query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// The attention output projection has a bias.
    pub output_bias: bool,
    /// Queries and keys pass an RMS norm for each head before the rotation.
    pub head_norms: bool,
    /// The LM head is the embedding matrix.
    pub tied_head: bool,
}

impl DecoderDescription {
    /// Numbers in one row of all query heads.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Numbers in one row of all key (or value) heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Numbers in one row of the fused query, key and value projection.
    pub fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }

    /// Refuses sizes that no forward pass could work with.
    pub fn validate(&self) -> Result<(), EngineError> {
        let positive = [
            ("vocab_size", self.vocabulary),
            ("hidden_size", self.hidden),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("intermediate_size", self.intermediate),
            ("max_position_embeddings", self.context_window),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(EngineError::InvalidOption(format!(
                "the model's configuration has {name} = 0"
            )));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(EngineError::InvalidOption(format!(
                "the model has {} attention heads, not a multiple of its {} key-value heads",
                self.heads, self.kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) || self.inverse_frequencies.len() != self.head_dim / 2 {
            return Err(EngineError::InvalidOption(format!(
                "the model's head dimension {} does not fit its {} rotary frequencies",
                self.head_dim,
                self.inverse_frequencies.len()
            )));
        }
        Ok(())
    }
}

/// Packs weights for one executor.
pub trait WeightBackend {
    /// What rows of activations `[rows, in]` become rows `[rows, out]` with.
    type Linear;
    /// A matrix whose rows are looked up.
    type Embedding;
    /// A vector of f32, e.g. a norm's weight.
    type Vector;

    /// Projections `[out, in]` of the same input, whose outputs come to stand side by side, with one bias
    /// over all of them. There is at least one.
    fn linear(
        &self,
        parts: Vec<Weight>,
        bias: Option<Vec<f32>>,
    ) -> Result<Self::Linear, EngineError>;

    fn embedding(&self, weight: Weight) -> Result<Self::Embedding, EngineError>;

    /// The embedding matrix as the LM head, sharing its memory.
    fn tied_head(&self, embedding: &Self::Embedding) -> Result<Self::Linear, EngineError>;

    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector, EngineError>;
}

/// One layer's weights.
pub struct DecoderLayer<B: WeightBackend> {
    pub attention_norm: B::Vector,
    /// Queries, then keys, then values.
    pub qkv: B::Linear,
    /// The norms of query and key heads, each of `head_dim`.
    pub head_norms: Option<(B::Vector, B::Vector)>,
    pub output: B::Linear,
    pub mlp_norm: B::Vector,
    /// Gate, then up.
    pub gate_up: B::Linear,
    pub down: B::Linear,
}

/// A decoder's weights.
pub struct Decoder<B: WeightBackend> {
    pub description: DecoderDescription,
    pub embedding: B::Embedding,
    pub layers: Vec<DecoderLayer<B>>,
    pub final_norm: B::Vector,
    pub head: B::Linear,
}

impl<B: WeightBackend> Decoder<B> {
    /// Reads and packs all weights that `description` asks for.
    ///
    /// # Errors
    /// A missing or damaged tensor, or one whose shape the description contradicts; each names the tensor.
    pub fn build(
        description: DecoderDescription,
        weights: &dyn Weights,
        backend: &B,
    ) -> Result<Self, EngineError> {
        description.validate()?;
        let builder = Builder { weights, backend };
        let d = &description;
        let embedding_name = "model.embed_tokens.weight";
        let embedding = weights.get_shaped(embedding_name, &[d.vocabulary, d.hidden])?;
        let embedding = backend.embedding(embedding)?;
        let head = if d.tied_head {
            backend.tied_head(&embedding)?
        } else {
            builder.linear("", &[("lm_head", d.vocabulary)], d.hidden, false)?
        };
        let layers = (0..d.layers)
            .map(|index| builder.layer(d, index))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            embedding,
            layers,
            final_norm: builder.vector("model.norm.weight", d.hidden)?,
            head,
            description,
        })
    }
}

struct Builder<'a, B> {
    weights: &'a dyn Weights,
    backend: &'a B,
}

impl<B: WeightBackend> Builder<'_, B> {
    fn layer(&self, d: &DecoderDescription, index: usize) -> Result<DecoderLayer<B>, EngineError> {
        let prefix = format!("model.layers.{index}.");
        let vector = |name: &str, length| self.vector(&format!("{prefix}{name}"), length);
        let linear =
            |parts: &[(&str, usize)], input, bias| self.linear(&prefix, parts, input, bias);
        Ok(DecoderLayer {
            attention_norm: vector("input_layernorm.weight", d.hidden)?,
            qkv: linear(
                &[
                    ("self_attn.q_proj", d.query_width()),
                    ("self_attn.k_proj", d.kv_width()),
                    ("self_attn.v_proj", d.kv_width()),
                ],
                d.hidden,
                d.qkv_bias,
            )?,
            head_norms: if d.head_norms {
                Some((
                    vector("self_attn.q_norm.weight", d.head_dim)?,
                    vector("self_attn.k_norm.weight", d.head_dim)?,
                ))
            } else {
                None
            },
            output: linear(
                &[("self_attn.o_proj", d.hidden)],
                d.query_width(),
                d.output_bias,
            )?,
            mlp_norm: vector("post_attention_layernorm.weight", d.hidden)?,
            gate_up: linear(
                &[
                    ("mlp.gate_proj", d.intermediate),
                    ("mlp.up_proj", d.intermediate),
                ],
                d.hidden,
                false,
            )?,
            down: linear(&[("mlp.down_proj", d.hidden)], d.intermediate, false)?,
        })
    }

    /// Several projections of the same input as one. `parts` are names and outputs.
    fn linear(
        &self,
        prefix: &str,
        parts: &[(&str, usize)],
        input: usize,
        bias: bool,
    ) -> Result<B::Linear, EngineError> {
        let mut weights = Vec::with_capacity(parts.len());
        let mut biases = Vec::new();
        for &(name, out) in parts {
            let weight_name = format!("{prefix}{name}.weight");
            weights.push(self.weights.get_shaped(&weight_name, &[out, input])?);
            if bias {
                biases.extend(self.values(&format!("{prefix}{name}.bias"), out)?);
            }
        }
        self.backend.linear(weights, bias.then_some(biases))
    }

    fn vector(&self, name: &str, length: usize) -> Result<B::Vector, EngineError> {
        self.backend.vector(self.values(name, length)?)
    }

    fn values(&self, name: &str, length: usize) -> Result<Vec<f32>, EngineError> {
        let tensor = match self.weights.get_shaped(name, &[length])? {
            Weight::Dense(tensor) => tensor,
            Weight::Quantized(tensor) => tensor.dequantize(&Device::Cpu)?,
        };
        Ok(tensor.to_dtype(DType::F32)?.to_vec1()?)
    }
}
