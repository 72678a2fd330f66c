//! `--quantize`: the weights of a safetensors model, quantized while it is loaded.

use std::path::Path;
use std::sync::Arc;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::{Device, Tensor};

use super::blocks::{convert, thread_count};
use super::cache::CacheOptions;
use super::file_type::{FileType, Quantize};
use super::mix::Mix;
use super::progress::Progress;
use super::source::{self, SourceTensor, tensor_shapes};
use super::write::{StreamError, set_tensors, write_stream};
use crate::engine::loader::config::ModelConfig;
use crate::engine::loader::error::LoadError;
use crate::engine::loader::gguf::{
    ElementType, GgufFile, GgufHeader, GgufWeights, gguf_name, set_hyperparameters,
};
use crate::engine::loader::safetensors::SafetensorsWeights;
use crate::engine::loader::{Weight, Weights};
use crate::engine::memory;
use crate::engine::options::DeviceChoice;

/// How models are quantized when they are loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QuantizeOptions {
    pub quantize: Quantize,
    /// Where results are kept; `None` quantizes at every load.
    pub cache: Option<CacheOptions>,
    /// Threads that quantize; 0 is one for each CPU.
    pub threads: usize,
    /// Where the model will run: on other devices than the CPU, [`Quantize::Auto`] leaves weights as they are.
    pub device: DeviceChoice,
}

/// A GGUF file has its types already: anything but `none` and `auto` is an error.
pub(in crate::engine::loader) fn refuse_gguf(
    path: &Path,
    options: &QuantizeOptions,
) -> Result<(), LoadError> {
    match options.quantize {
        Quantize::None | Quantize::Auto => Ok(()),
        Quantize::Type(file_type) => Err(LoadError::QuantizeGguf {
            path: path.to_path_buf(),
            file_type,
        }),
    }
}

/// A model's weights as `options` ask for them: these, or quantized ones from the cache, or ones that are
/// quantized as the engine asks for them.
///
/// # Errors
/// A tensor that is missing, or cannot be quantized.
pub(in crate::engine::loader) fn weights(
    name: &str,
    config: &ModelConfig,
    weights: SafetensorsWeights,
    options: &QuantizeOptions,
) -> Result<Box<dyn Weights>, LoadError> {
    let file_type = match options.quantize {
        Quantize::None => return Ok(Box::new(weights)),
        Quantize::Type(file_type) => file_type,
        Quantize::Auto => {
            let bytes = total_bytes(&weights, config)?;
            let on_cpu = options.device.open().is_ok_and(|device| device.is_cpu());
            match choose(bytes, on_cpu, memory::available()) {
                Some(file_type) => file_type,
                None => return Ok(Box::new(weights)),
            }
        }
    };
    let mix = Mix::new(file_type, config);
    if let Some(cache) = &options.cache
        && let Some(quantized) = from_cache(name, config, &weights, mix, cache, options.threads)?
    {
        return Ok(Box::new(quantized));
    }
    tracing::info!(model = name, %file_type, "quantizing the weights");
    let total = total_bytes(&weights, config)?;
    Ok(Box::new(QuantizingWeights {
        progress: Progress::new(label(name, file_type), total),
        mix,
        threads: thread_count(options.threads),
        weights,
    }))
}

fn label(name: &str, file_type: FileType) -> String {
    format!("quantizing {name} to {file_type}")
}

fn total_bytes(weights: &SafetensorsWeights, config: &ModelConfig) -> Result<u64, LoadError> {
    tensor_shapes(config)
        .iter()
        .map(|(name, _)| Ok(weights.raw(name)?.bytes.len() as u64))
        .sum()
}

/// `auto`: as they are if the weights leave half of the free memory for everything else, else Q8_0.
fn choose(bytes: u64, on_cpu: bool, available: Option<u64>) -> Option<FileType> {
    let available = available.filter(|_| on_cpu)?;
    if bytes <= available / 2 {
        return None;
    }
    tracing::info!(
        weights_bytes = bytes,
        available_bytes = available,
        "the weights take more than half of the free memory: quantizing them to q8_0"
    );
    Some(FileType::Q8_0)
}

/// Changes with everything that makes old entries of the cache wrong.
const CACHE_FORMAT: &str = "trunkline quantized weights 1";

/// The quantized weights by a file of the cache, which is made if it is not there. `None` if it cannot be
/// made: the reason is logged, and the model is loaded without.
fn from_cache(
    name: &str,
    config: &ModelConfig,
    weights: &SafetensorsWeights,
    mix: Mix,
    cache: &CacheOptions,
    threads: usize,
) -> Result<Option<GgufWeights>, LoadError> {
    let tensors = source::of_safetensors(weights, config)?;
    let mut header = GgufHeader::default();
    // Whoever finds the file shall know what it is. A scaling that has no name there is in our configuration.
    let _ = set_hyperparameters(&mut header, name, config);
    set_tensors(&mut header, &tensors, |tensor| {
        mix.element_type(&tensor.name, &tensor.dims)
    });
    let key = key(&header, &tensors);
    let file_type = mix.file_type;
    let open = || {
        let (path, bytes) = cache.open(&key)?;
        let file = GgufFile::parse(path.display().to_string(), bytes).ok()?;
        Some((path, GgufWeights::new(file, config)))
    };
    if let Some((path, quantized)) = open() {
        tracing::info!(model = name, %file_type, file = %path.display(), "quantized weights from the cache");
        return Ok(Some(quantized));
    }
    let size = header.file_size().unwrap_or(u64::MAX);
    if !cache.has_place_for(size) {
        tracing::warn!(
            size,
            limit = cache.limit,
            "the quantized weights are larger than the whole cache (quantize_cache_size); they are not kept"
        );
        return Ok(None);
    }
    tracing::info!(model = name, %file_type, folder = %cache.folder.display(), "quantizing the weights into the cache");
    let total: usize = tensors.iter().map(SourceTensor::bytes).sum();
    let progress = Progress::new(label(name, file_type), total as u64);
    let threads = thread_count(threads);
    let stored = cache.store(&key, size, |writer| {
        write_stream(writer, &header, &tensors, threads, &progress)
    });
    match stored {
        Ok(()) => Ok(open().map(|(_, quantized)| quantized)),
        Err(StreamError::Source(error)) => Err(error),
        Err(StreamError::Write(error)) => {
            tracing::warn!(
                folder = %cache.folder.display(),
                %error,
                "cannot keep quantized weights in the cache; they are made at every load"
            );
            Ok(None)
        }
    }
}

/// The hash of all that the quantized file is made from: names, shapes and types of both sides, and every
/// byte of the weights.
fn key(header: &GgufHeader, tensors: &[SourceTensor<'_>]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(CACHE_FORMAT.as_bytes());
    for (tensor, target) in tensors.iter().zip(&header.tensors) {
        hasher.update(format!("\n{} ", target.element).as_bytes());
        tensor.hash_into(&mut hasher);
    }
    hasher.finalize()
}

/// Quantizes a tensor whenever it is asked for.
struct QuantizingWeights {
    weights: SafetensorsWeights,
    mix: Mix,
    threads: usize,
    progress: Progress,
}

impl Weights for QuantizingWeights {
    fn get(&self, name: &str) -> Result<Weight, LoadError> {
        let dims = self.weights.raw(name)?.dims.to_vec();
        let tensor = SourceTensor::from_safetensors(&self.weights, name, &dims)?;
        let target = match gguf_name(name) {
            Some(known) if dims.len() > 1 => self.mix.element_type(&known, &dims),
            _ => {
                self.progress.advance(&tensor);
                return self.weights.get(name);
            }
        };
        let mut bytes = Vec::new();
        convert(&tensor, target, self.threads, |converted| {
            bytes.extend_from_slice(converted);
            Ok::<(), LoadError>(())
        })?;
        self.progress.advance(&tensor);
        let weight = match target {
            ElementType::Quantized(kind) => qtensor_from_ggml(kind, &bytes, dims, &Device::Cpu)
                .map(|tensor| Weight::Quantized(Arc::new(tensor))),
            ElementType::Dense(kind) => {
                Tensor::from_raw_buffer(&bytes, kind, &dims, &Device::Cpu).map(Weight::Dense)
            }
            ElementType::Unsupported(_) => return self.weights.get(name),
        };
        weight.map_err(|cause| LoadError::Tensor {
            name: name.to_owned(),
            message: cause.to_string(),
        })
    }

    fn contains(&self, name: &str) -> bool {
        self.weights.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_quantizes_only_what_would_not_fit_beside_the_rest() {
        let q8_0 = Some(FileType::Q8_0);
        assert_eq!(choose(50, true, Some(100)), None);
        assert_eq!(choose(51, true, Some(100)), q8_0);
        assert_eq!(choose(51, false, Some(100)), None, "not on other devices");
        assert_eq!(choose(51, true, None), None, "when nothing is known");
    }
}
