//! A decoder's hyperparameters, whatever file they came from.

use std::f64::consts::PI;
use std::fmt;

use super::error::LoadError;
use crate::ids::TokenId;

/// A model family that the engine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Qwen3,
    Qwen2,
    Llama,
}

impl Architecture {
    const ALL: [Architecture; 3] = [
        Architecture::Qwen3,
        Architecture::Qwen2,
        Architecture::Llama,
    ];

    /// The class name in `config.json`.
    pub fn class_name(self) -> &'static str {
        match self {
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Llama => "LlamaForCausalLM",
        }
    }

    /// The name in `model_type` of `config.json` and in `general.architecture` of a GGUF file.
    pub fn short_name(self) -> &'static str {
        match self {
            Architecture::Qwen3 => "qwen3",
            Architecture::Qwen2 => "qwen2",
            Architecture::Llama => "llama",
        }
    }

    /// Finds an architecture by its class name or short name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|architecture| {
            name == architecture.class_name() || name == architecture.short_name()
        })
    }

    /// All supported names, for messages.
    pub fn supported() -> String {
        Self::ALL
            .map(|architecture| {
                format!(
                    "{} ({})",
                    architecture.class_name(),
                    architecture.short_name()
                )
            })
            .join(", ")
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

/// How the rotary frequencies are stretched beyond the context of the first training.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Positions are divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths are divided by `factor`, short ones kept, the ones between interpolated.
    Llama3 {
        factor: f64,
        low_frequency_factor: f64,
        high_frequency_factor: f64,
        original_context: usize,
    },
    /// One divisor for each inverse frequency (a GGUF file's `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

/// All hyperparameters of a dense decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub architecture: Architecture,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Even.
    pub head_dim: usize,
    /// Rows of the embedding and of the LM head. The tokenizer may know fewer tokens.
    pub vocabulary: usize,
    pub rms_norm_epsilon: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    /// The LM head is the embedding matrix.
    pub tied_embeddings: bool,
    /// `q_proj`, `k_proj` and `v_proj` have a bias.
    pub qkv_bias: bool,
    /// `o_proj` has a bias.
    pub output_bias: bool,
    /// Queries and keys are normalized per head (`q_norm`, `k_norm`).
    pub qk_norm: bool,
    /// Positions the model was made for.
    pub context_window: usize,
    /// Tokens that end an answer, ascending, without repetition.
    pub end_tokens: Vec<TokenId>,
}

/// The largest values taken seriously: far beyond any dense model, small enough that products fit in `usize`.
mod limit {
    pub const WIDTH: usize = 1 << 18;
    pub const LAYERS: usize = 1 << 10;
    pub const HEADS: usize = 1 << 12;
    pub const HEAD_DIM: usize = 1 << 11;
    pub const VOCABULARY: usize = 1 << 23;
    pub const CONTEXT: usize = 1 << 28;
}

impl ModelConfig {
    /// Refuses values that no model can have. `file` is named in the error.
    pub(crate) fn validate(&self, file: &str) -> Result<(), LoadError> {
        let sizes = [
            ("hidden_size", self.hidden_size, limit::WIDTH),
            ("intermediate_size", self.intermediate_size, limit::WIDTH),
            ("num_hidden_layers", self.layers, limit::LAYERS),
            ("num_attention_heads", self.heads, limit::HEADS),
            ("num_key_value_heads", self.kv_heads, limit::HEADS),
            ("head_dim", self.head_dim, limit::HEAD_DIM),
            ("vocab_size", self.vocabulary, limit::VOCABULARY),
            (
                "max_position_embeddings",
                self.context_window,
                limit::CONTEXT,
            ),
        ];
        for (field, value, limit) in sizes {
            if value == 0 || value > limit {
                return Err(LoadError::field(
                    file,
                    field,
                    format!("is {value}; it must be from 1 to {limit}"),
                ));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(LoadError::field(
                file,
                "num_attention_heads",
                format!(
                    "is {}, which is not a multiple of num_key_value_heads ({})",
                    self.heads, self.kv_heads
                ),
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(LoadError::field(
                file,
                "head_dim",
                format!(
                    "is {}; rotary embedding needs an even number",
                    self.head_dim
                ),
            ));
        }
        if !(self.rms_norm_epsilon > 0.0 && self.rms_norm_epsilon < 1.0) {
            return Err(LoadError::field(
                file,
                "rms_norm_eps",
                format!(
                    "is {}; it must be above 0 and below 1",
                    self.rms_norm_epsilon
                ),
            ));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return Err(LoadError::field(
                file,
                "rope_theta",
                format!(
                    "is {}; it must be a finite number of at least 1",
                    self.rope_theta
                ),
            ));
        }
        self.validate_scaling(file)?;
        if let Some(token) = self
            .end_tokens
            .iter()
            .find(|token| token.0 as usize >= self.vocabulary)
        {
            return Err(LoadError::field(
                file,
                "eos_token_id",
                format!(
                    "names token {}, but the vocabulary has {} entries",
                    token.0, self.vocabulary
                ),
            ));
        }
        Ok(())
    }

    fn validate_scaling(&self, file: &str) -> Result<(), LoadError> {
        let positive = |field: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                return Ok(());
            }
            Err(LoadError::field(
                file,
                format!("rope_scaling.{field}"),
                format!("is {value}; it must be a finite number above 0"),
            ))
        };
        match &self.rope_scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => positive("factor", *factor),
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_frequency_factor)?;
                positive("high_freq_factor", *high_frequency_factor)?;
                positive("original_max_position_embeddings", *original_context as f64)?;
                if low_frequency_factor < high_frequency_factor {
                    return Ok(());
                }
                Err(LoadError::field(
                    file,
                    "rope_scaling.high_freq_factor",
                    format!(
                        "is {high_frequency_factor}; it must be above low_freq_factor ({low_frequency_factor})"
                    ),
                ))
            }
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != self.head_dim / 2 {
                    return Err(LoadError::WrongShape {
                        name: "rope_freqs.weight".to_owned(),
                        expected: vec![self.head_dim / 2],
                        found: vec![divisors.len()],
                    });
                }
                divisors
                    .iter()
                    .try_for_each(|divisor| positive("factors", f64::from(*divisor)))
            }
        }
    }

    /// The rotary angle of dimension pair *i* at position *p* is *p* times element *i*; `head_dim / 2` elements.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        (0..self.head_dim / 2)
            .map(|pair| self.scaled_frequency(pair) as f32)
            .collect()
    }

    /// By what the scaling divides each of the unscaled [`Self::inverse_frequencies`].
    pub(crate) fn frequency_divisors(&self) -> Vec<f32> {
        (0..self.head_dim / 2)
            .map(|pair| (self.plain_frequency(pair) / self.scaled_frequency(pair)) as f32)
            .collect()
    }

    fn plain_frequency(&self, pair: usize) -> f64 {
        self.rope_theta
            .powf(-((2 * pair) as f64) / self.head_dim as f64)
    }

    /// Scaling by Llama 3.1's rule, as in Hugging Face transformers (`_compute_llama3_parameters`).
    fn scaled_frequency(&self, pair: usize) -> f64 {
        let plain = self.plain_frequency(pair);
        match &self.rope_scaling {
            RopeScaling::None => plain,
            RopeScaling::Linear { factor } => plain / factor,
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => {
                let wavelength = 2.0 * PI / plain;
                let original_context = *original_context as f64;
                if wavelength < original_context / high_frequency_factor {
                    plain
                } else if wavelength > original_context / low_frequency_factor {
                    plain / factor
                } else {
                    let smooth = (original_context / wavelength - low_frequency_factor)
                        / (high_frequency_factor - low_frequency_factor);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
            }
            RopeScaling::Divisors(divisors) => plain / f64::from(divisors[pair]),
        }
    }

    /// Adds end tokens that another file names, and keeps the list sorted.
    pub(crate) fn add_end_tokens(&mut self, tokens: impl IntoIterator<Item = TokenId>) {
        self.end_tokens.extend(tokens);
        self.end_tokens.sort_unstable();
        self.end_tokens.dedup();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            hidden_size: 2048,
            intermediate_size: 8192,
            layers: 16,
            heads: 32,
            kv_heads: 8,
            head_dim: 64,
            vocabulary: 128_256,
            rms_norm_epsilon: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::Llama3 {
                factor: 32.0,
                low_frequency_factor: 1.0,
                high_frequency_factor: 4.0,
                original_context: 8192,
            },
            tied_embeddings: true,
            qkv_bias: false,
            output_bias: false,
            qk_norm: false,
            context_window: 131_072,
            end_tokens: vec![TokenId(128_001)],
        }
    }

    #[test]
    fn llama3_scaling_keeps_short_waves_and_divides_long_ones() {
        let mut config = config();
        let scaled = config.inverse_frequencies();
        config.rope_scaling = RopeScaling::None;
        let plain = config.inverse_frequencies();
        assert_eq!(scaled.len(), 32);
        assert_eq!(scaled[0], 1.0);
        assert_eq!(scaled[5], plain[5]);
        assert!((scaled[31] * 32.0 / plain[31] - 1.0).abs() < 1e-6);
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
        config.rope_scaling = RopeScaling::Linear { factor: 4.0 };
        assert_eq!(config.inverse_frequencies()[7], plain[7] / 4.0);
        config.rope_scaling = RopeScaling::Divisors(vec![2.0; 32]);
        assert_eq!(config.inverse_frequencies()[9], plain[9] / 2.0);
    }

    #[test]
    fn impossible_values_name_their_field() {
        type Change = fn(&mut ModelConfig);
        let cases: [(Change, &str); 11] = [
            (|c| c.heads = 0, "num_attention_heads"),
            (|c| c.kv_heads = 0, "num_key_value_heads"),
            (|c| c.kv_heads = 5, "num_attention_heads"),
            (|c| c.head_dim = 63, "head_dim"),
            (|c| c.vocabulary = usize::MAX, "vocab_size"),
            (|c| c.layers = 1 << 40, "num_hidden_layers"),
            (|c| c.rms_norm_epsilon = f64::NAN, "rms_norm_eps"),
            (|c| c.rope_theta = 0.0, "rope_theta"),
            (
                |c| c.rope_scaling = RopeScaling::Linear { factor: 0.0 },
                "rope_scaling.factor",
            ),
            (|c| c.end_tokens = vec![TokenId(200_000)], "eos_token_id"),
            (
                |c| c.rope_scaling = RopeScaling::Divisors(vec![1.0; 3]),
                "rope_freqs.weight",
            ),
        ];
        assert!(config().validate("config.json").is_ok());
        for (change, field) in cases {
            let mut config = config();
            change(&mut config);
            let message = config
                .validate("config.json")
                .expect_err("must be refused")
                .to_string();
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn the_list_of_supported_architectures_names_all() {
        let message = LoadError::UnsupportedArchitecture {
            found: "GemmaForCausalLM".to_owned(),
        }
        .to_string();
        for name in [
            "GemmaForCausalLM",
            "Qwen3ForCausalLM",
            "Qwen2ForCausalLM",
            "LlamaForCausalLM",
        ] {
            assert!(message.contains(name), "{message}");
        }
    }
}
