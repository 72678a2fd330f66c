//! Tiny models with random weights.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};

use crate::engine::loader::{Architecture, LoadError, ModelConfig, RopeScaling, Weight, Weights};
use crate::engine::{AttentionKind, DeviceChoice, EngineOptions, KvDtype, KvSize, MatmulPrecision};
use crate::ids::TokenId;

/// Numbers from a seed, for weights and for random plans.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number from 0 to `end - 1`.
    pub fn below(&mut self, end: usize) -> usize {
        ((self.bits() >> 33) % end as u64) as usize
    }

    /// A number between -1 and 1.
    pub fn signed(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn tokens(&mut self, count: usize) -> Vec<TokenId> {
        (0..count)
            .map(|_| TokenId(self.below(VOCABULARY) as u32))
            .collect()
    }
}

pub const VOCABULARY: usize = 320;

/// What the matrices are stored as. Norms and biases are always f32.
#[derive(Debug, Clone, Copy)]
pub enum Format {
    Dense(DType),
    Quantized(GgmlDType),
    /// Types as llama.cpp's `Q4_K_M` mixes them: more bits for embeddings, and in every other layer for values and the
    /// projections back.
    Q4KM,
}

impl Format {
    /// A matrix as it is stored.
    fn weight(self, name: &str, matrix: &Tensor) -> Weight {
        let dtype = match self {
            Self::Dense(dtype) => {
                return Weight::Dense(matrix.to_dtype(dtype).expect("a float type"));
            }
            Self::Quantized(dtype) => dtype,
            Self::Q4KM => {
                let more = ["layers.0.self_attn.v_proj", "layers.0.mlp.down_proj"];
                let more_bits = name.contains("embed_tokens")
                    || name.contains("lm_head")
                    || more.iter().any(|part| name.ends_with(part));
                if more_bits {
                    GgmlDType::Q6K
                } else {
                    GgmlDType::Q4K
                }
            }
        };
        let quantized = QTensor::quantize(matrix, dtype).expect("whole blocks");
        Weight::Quantized(Arc::new(quantized))
    }
}

pub struct RandomWeights {
    tensors: HashMap<String, Weight>,
}

impl Weights for RandomWeights {
    fn get(&self, name: &str) -> Result<Weight, LoadError> {
        let weight = self.tensors.get(name).cloned();
        weight.ok_or_else(|| LoadError::MissingTensor {
            name: name.to_owned(),
        })
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}

impl RandomWeights {
    pub fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    pub fn spoil(&mut self, name: &str, token: usize) {
        let Some(Weight::Dense(tensor)) = self.tensors.get_mut(name) else {
            panic!("no dense {name}")
        };
        let mut rows: Vec<Vec<f32>> = tensor.to_vec2().expect("f32");
        rows[token].fill(f32::NAN);
        *tensor = Tensor::new(rows, &Device::Cpu).expect("a matrix");
    }
}

pub fn config(architecture: Architecture) -> ModelConfig {
    ModelConfig {
        architecture,
        hidden_size: 256,
        intermediate_size: 512,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: VOCABULARY,
        rms_norm_epsilon: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tied_embeddings: architecture == Architecture::Qwen3,
        qkv_bias: architecture == Architecture::Qwen2,
        output_bias: false,
        qk_norm: architecture == Architecture::Qwen3,
        context_window: 4096,
        end_tokens: vec![TokenId(1)],
    }
}

pub fn weights(config: &ModelConfig, format: Format) -> RandomWeights {
    let mut random = Random::new(42);
    let mut tensors = HashMap::new();
    let mut vector = |name: String, length: usize, centre: f32, spread: f32| {
        let values: Vec<f32> = (0..length)
            .map(|_| centre + spread * random.signed())
            .collect();
        let tensor = Tensor::from_vec(values, length, &Device::Cpu).expect("a vector");
        (name, Weight::Dense(tensor))
    };
    let mut all = Vec::new();
    let mut shapes = vec![(
        "model.embed_tokens".to_owned(),
        config.vocabulary,
        config.hidden_size,
    )];
    if !config.tied_embeddings {
        shapes.push(("lm_head".to_owned(), config.vocabulary, config.hidden_size));
    }
    let (query, kv) = (
        config.heads * config.head_dim,
        config.kv_heads * config.head_dim,
    );
    for layer in 0..config.layers {
        let prefix = format!("model.layers.{layer}.");
        for (name, out, input) in [
            ("self_attn.q_proj", query, config.hidden_size),
            ("self_attn.k_proj", kv, config.hidden_size),
            ("self_attn.v_proj", kv, config.hidden_size),
            ("self_attn.o_proj", config.hidden_size, query),
            (
                "mlp.gate_proj",
                config.intermediate_size,
                config.hidden_size,
            ),
            ("mlp.up_proj", config.intermediate_size, config.hidden_size),
            (
                "mlp.down_proj",
                config.hidden_size,
                config.intermediate_size,
            ),
        ] {
            shapes.push((format!("{prefix}{name}"), out, input));
            if config.qkv_bias
                && ["q_proj", "k_proj", "v_proj"]
                    .iter()
                    .any(|part| name.ends_with(part))
            {
                all.push(vector(format!("{prefix}{name}.bias"), out, 0.0, 0.5));
            }
        }
        all.push(vector(
            format!("{prefix}input_layernorm.weight"),
            config.hidden_size,
            1.0,
            0.3,
        ));
        all.push(vector(
            format!("{prefix}post_attention_layernorm.weight"),
            config.hidden_size,
            1.0,
            0.3,
        ));
        if config.qk_norm {
            all.push(vector(
                format!("{prefix}self_attn.q_norm.weight"),
                config.head_dim,
                1.5,
                0.3,
            ));
            all.push(vector(
                format!("{prefix}self_attn.k_norm.weight"),
                config.head_dim,
                1.5,
                0.3,
            ));
        }
    }
    all.push(vector(
        "model.norm.weight".to_owned(),
        config.hidden_size,
        1.0,
        0.3,
    ));
    tensors.extend(all);
    let mut random = Random::new(43);
    for (name, out, input) in shapes {
        let spread = 2.0 / (input as f32).sqrt();
        let values: Vec<f32> = (0..out * input).map(|_| spread * random.signed()).collect();
        let matrix = Tensor::from_vec(values, (out, input), &Device::Cpu).expect("a matrix");
        let weight = format.weight(&name, &matrix);
        tensors.insert(format!("{name}.weight"), weight);
    }
    RandomWeights { tensors }
}

/// Small blocks and few threads, on the CPU.
pub fn options(attention: AttentionKind, kv_dtype: KvDtype) -> EngineOptions {
    EngineOptions {
        device: DeviceChoice::Cpu,
        kv_dtype,
        attention,
        precision: MatmulPrecision::Exact,
        kv_size: KvSize::Blocks(1000),
        block_size: 16,
        threads: 2,
        context_window: None,
    }
}
