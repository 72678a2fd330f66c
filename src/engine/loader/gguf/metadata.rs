//! Hyperparameters and recommended sampling as GGUF metadata, by the names of llama.cpp's converter.

use super::reader::GgufFile;
use super::writer::{GgufHeader, MetadataValue};
use crate::engine::loader::RecommendedSampling;
use crate::engine::loader::config::{Architecture, ModelConfig, RopeScaling};
use crate::engine::loader::error::LoadError;

/// Keys of `general.sampling.*`.
mod sampling {
    pub const TEMPERATURE: &str = "general.sampling.temp";
    pub const TOP_K: &str = "general.sampling.top_k";
    pub const TOP_P: &str = "general.sampling.top_p";
    pub const MIN_P: &str = "general.sampling.min_p";
    pub const REPETITION: &str = "general.sampling.penalty_repeat";
}

/// Writes what [`ModelConfig::from_gguf`] and other GGUF loaders read.
///
/// # Errors
/// A rotary scaling that GGUF files of this architecture cannot express.
pub(crate) fn set_hyperparameters(
    header: &mut GgufHeader,
    name: &str,
    config: &ModelConfig,
) -> Result<(), LoadError> {
    let prefix = config.architecture.short_name();
    header.set_text("general.architecture", prefix);
    header.set_text("general.type", "model");
    header.set_text("general.name", name);
    let counts = [
        ("block_count", config.layers),
        ("context_length", config.context_window),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.heads),
        ("attention.head_count_kv", config.kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
        ("vocab_size", config.vocabulary),
    ];
    for (key, count) in counts {
        // The configuration is checked: every size is far below 2³².
        header.set(format!("{prefix}.{key}"), MetadataValue::U32(count as u32));
    }
    let numbers = [
        ("rope.freq_base", config.rope_theta),
        ("attention.layer_norm_rms_epsilon", config.rms_norm_epsilon),
    ];
    for (key, number) in numbers {
        header.set(format!("{prefix}.{key}"), MetadataValue::F32(number as f32));
    }
    match &config.rope_scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            header.set_text(format!("{prefix}.rope.scaling.type"), "linear");
            header.set(
                format!("{prefix}.rope.scaling.factor"),
                MetadataValue::F32(*factor as f32),
            );
        }
        // In a tensor of their own, which loaders expect in these files only.
        RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_)
            if config.architecture == Architecture::Llama => {}
        RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => {
            return Err(LoadError::unsupported(
                name,
                format!("rope scaling by Llama 3's rule in a GGUF file of a {prefix} model"),
            ));
        }
    }
    Ok(())
}

/// Writes what the model recommends.
pub(crate) fn set_sampling(header: &mut GgufHeader, recommended: &RecommendedSampling) {
    let numbers = [
        (sampling::TEMPERATURE, recommended.temperature),
        (sampling::TOP_P, recommended.top_p),
        (sampling::MIN_P, recommended.min_p),
        (sampling::REPETITION, recommended.repetition_penalty),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            header.set(key, MetadataValue::F32(number));
        }
    }
    if let Some(top_k) = recommended.top_k {
        let top_k = i32::try_from(top_k).unwrap_or(i32::MAX);
        header.set(sampling::TOP_K, MetadataValue::I32(top_k));
    }
}

impl RecommendedSampling {
    /// Reads `general.sampling.*`. A number outside its range recommends nothing: other programs write these.
    pub(crate) fn from_gguf(file: &GgufFile) -> Result<Self, LoadError> {
        let number = |key: &str, least: f32, most: f32| -> Result<Option<f32>, LoadError> {
            let number = file.number(key)?.map(|number| number as f32);
            Ok(number.filter(|number| (least..=most).contains(number)))
        };
        Ok(Self {
            temperature: number(sampling::TEMPERATURE, 0.0, 2.0)?,
            top_p: number(sampling::TOP_P, 0.0, 1.0)?,
            top_k: number(sampling::TOP_K, 0.0, 1e9)?.map(|top_k| top_k as usize),
            min_p: number(sampling::MIN_P, 0.0, 1.0)?,
            repetition_penalty: number(sampling::REPETITION, 0.01, 10.0)?,
        })
    }
}
