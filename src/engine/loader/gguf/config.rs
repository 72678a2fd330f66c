//! Hyperparameters from GGUF metadata.

use candle_core::{DType, Device, Tensor};

use super::element::ElementType;
use super::reader::GgufFile;
use crate::engine::loader::config::{Architecture, ModelConfig, RopeScaling};
use crate::engine::loader::error::LoadError;

const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const ROPE_DIVISORS: &str = "rope_freqs.weight";

impl ModelConfig {
    /// Reads and checks the metadata. End tokens are the tokenizer's business and still empty.
    ///
    /// # Errors
    /// As for `config.json`, with GGUF's names for the fields.
    pub(crate) fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        const ARCHITECTURE: &str = "general.architecture";
        let name = file
            .text(ARCHITECTURE)?
            .ok_or_else(|| file.error(ARCHITECTURE, "is missing"))?;
        let architecture =
            Architecture::from_name(name).ok_or_else(|| LoadError::UnsupportedArchitecture {
                found: name.to_owned(),
            })?;
        let metadata = ArchitectureMetadata {
            file,
            prefix: architecture.short_name(),
        };
        metadata.refuse_unsupported()?;
        let hidden_size = metadata.count("embedding_length")?;
        let heads = metadata.count("attention.head_count")?;
        if heads == 0 {
            return Err(file.error(
                &metadata.key("attention.head_count"),
                "is 0; it must be at least 1",
            ));
        }
        let head_dim = metadata
            .optional_count("attention.key_length")?
            .unwrap_or(hidden_size / heads);
        let embedding =
            file.tensor("token_embd.weight")
                .ok_or_else(|| LoadError::MissingTensor {
                    name: "token_embd.weight".to_owned(),
                })?;
        let config = ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: metadata.count("feed_forward_length")?,
            layers: metadata.count("block_count")?,
            heads,
            kv_heads: metadata
                .optional_count("attention.head_count_kv")?
                .unwrap_or(heads),
            head_dim,
            vocabulary: embedding.dims.first().copied().unwrap_or(0),
            rms_norm_epsilon: metadata
                .number("attention.layer_norm_rms_epsilon")?
                .ok_or_else(|| {
                    file.error(
                        &metadata.key("attention.layer_norm_rms_epsilon"),
                        "is missing",
                    )
                })?,
            rope_theta: metadata
                .number("rope.freq_base")?
                .unwrap_or(DEFAULT_ROPE_THETA),
            rope_scaling: metadata.rope_scaling()?,
            tied_embeddings: file.tensor("output.weight").is_none(),
            qkv_bias: file.tensor("blk.0.attn_q.bias").is_some(),
            output_bias: file.tensor("blk.0.attn_output.bias").is_some(),
            qk_norm: architecture == Architecture::Qwen3,
            context_window: metadata.count("context_length")?,
            end_tokens: Vec::new(),
        };
        config.validate(file.file())?;
        metadata.require_equal("attention.value_length", head_dim)?;
        metadata.require_equal("rope.dimension_count", head_dim)?;
        Ok(config)
    }
}

/// Metadata keys that begin with the architecture's name.
struct ArchitectureMetadata<'a> {
    file: &'a GgufFile,
    prefix: &'static str,
}

impl ArchitectureMetadata<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn optional_count(&self, name: &str) -> Result<Option<usize>, LoadError> {
        self.file.count(&self.key(name))
    }

    fn count(&self, name: &str) -> Result<usize, LoadError> {
        self.optional_count(name)?
            .ok_or_else(|| self.file.error(&self.key(name), "is missing"))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, LoadError> {
        self.file.number(&self.key(name))
    }

    fn require_equal(&self, name: &str, head_dim: usize) -> Result<(), LoadError> {
        match self.optional_count(name)? {
            Some(value) if value != head_dim => Err(self.file.error(
                &self.key(name),
                format!("is {value}, but heads have {head_dim} dimensions; that is not supported"),
            )),
            _ => Ok(()),
        }
    }

    fn refuse_unsupported(&self) -> Result<(), LoadError> {
        let refuse = |feature: &str| Err(LoadError::unsupported(self.file.file(), feature));
        if self
            .optional_count("expert_count")?
            .is_some_and(|experts| experts > 0)
        {
            return refuse("a mixture of experts (expert_count)");
        }
        if self
            .file
            .count("split.count")?
            .is_some_and(|parts| parts > 1)
        {
            return refuse("a GGUF file split in parts (split.count); merge them into one");
        }
        let window = self
            .optional_count("attention.sliding_window")?
            .unwrap_or(0);
        if window > 0 && window < self.count("context_length")? {
            return refuse("sliding-window attention (attention.sliding_window)");
        }
        Ok(())
    }

    /// Divisors in a tensor (Llama 3), or `rope.scaling.*`.
    fn rope_scaling(&self) -> Result<RopeScaling, LoadError> {
        if let Some(divisors) = self.rope_divisors()? {
            return Ok(RopeScaling::Divisors(divisors));
        }
        let kind = self.key("rope.scaling.type");
        match self.file.text(&kind)? {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => {
                let key = self.key("rope.scaling.factor");
                let factor = self
                    .file
                    .number(&key)?
                    .ok_or_else(|| self.file.error(&key, "is missing"))?;
                Ok(RopeScaling::Linear { factor })
            }
            Some(other) => Err(LoadError::unsupported(
                self.file.file(),
                format!("{kind} '{other}' (only none, linear, and {ROPE_DIVISORS})"),
            )),
        }
    }

    fn rope_divisors(&self) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(entry) = self.file.tensor(ROPE_DIVISORS) else {
            return Ok(None);
        };
        let ElementType::Dense(element) = entry.element else {
            return Err(LoadError::UnsupportedElementType {
                name: ROPE_DIVISORS.to_owned(),
                found: entry.element.to_string(),
                supported: "F32, F16, BF16",
            });
        };
        let bytes = self.file.tensor_bytes(ROPE_DIVISORS, entry)?;
        Tensor::from_raw_buffer(bytes, element, &entry.dims, &Device::Cpu)
            .and_then(|tensor| tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>())
            .map(Some)
            .map_err(|cause| LoadError::Tensor {
                name: ROPE_DIVISORS.to_owned(),
                message: cause.to_string(),
            })
    }
}
