//! From a model's name or path to its files, and from the files to weights, tokenizer and template.
//!
//! [`ModelSource::parse`] reads what the user wrote, [`resolve`] finds (or downloads) the files, [`load`]
//! opens them. Weight files are memory-mapped; a tensor is copied out when the engine asks for it.

mod bytes;
pub mod config;
mod config_json;
mod embedded;
mod error;
mod files;
mod generation;
mod gguf;
pub mod hub;
mod json;
pub mod quantize;
mod safetensors;
mod source;
mod text;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::QTensor;

pub use config::{Architecture, ModelConfig, RopeScaling};
pub use embedded::EmbeddedModel;
pub use error::LoadError;
pub use files::{FileLocation, ModelFiles};
pub use generation::RecommendedSampling;
pub use hub::{HubError, HubOptions};
pub use quantize::QuantizeOptions;
pub use source::EMBEDDED_NAME;
pub use text::TextAssets;

use files::{Folder, SMALL_FILE, id_of_path};
use json::JsonObject;
use safetensors::SafetensorsWeights;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The demo model inside the binary.
    Embedded,
    /// A folder with `config.json`, `tokenizer.json` and `*.safetensors`.
    Directory(PathBuf),
    /// One GGUF file that holds everything.
    Gguf(PathBuf),
    /// `org/name` (optionally `org/name@revision`) on the Hugging Face hub.
    Hub {
        repository: String,
        revision: Option<String>,
    },
}

/// One weight tensor: its shape is `[out, in]` for a linear layer, `[vocabulary, hidden]` for embeddings.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32, f16 or bf16, on the CPU.
    Dense(Tensor),
    /// GGUF block-quantized, on the CPU.
    Quantized(Arc<QTensor>),
}

impl Weight {
    /// Sizes, outermost first.
    pub fn dims(&self) -> &[usize] {
        match self {
            Weight::Dense(tensor) => tensor.dims(),
            Weight::Quantized(tensor) => tensor.shape().dims(),
        }
    }
}

/// The weight tensors of a model by their Hugging Face names (`model.layers.0.self_attn.q_proj.weight`, …),
/// whatever the file calls them.
pub trait Weights: Send + Sync {
    /// Copies a tensor out of the file.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`], or what is wrong with its bytes.
    fn get(&self, name: &str) -> Result<Weight, LoadError>;

    fn contains(&self, name: &str) -> bool;

    /// [`Weights::get`], refusing any other shape than `expected`.
    fn get_shaped(&self, name: &str, expected: &[usize]) -> Result<Weight, LoadError> {
        let weight = self.get(name)?;
        if weight.dims() == expected {
            return Ok(weight);
        }
        Err(LoadError::WrongShape {
            name: name.to_owned(),
            expected: expected.to_vec(),
            found: weight.dims().to_vec(),
        })
    }
}

/// A model ready for the engine.
pub struct LoadedModel {
    /// The model's id for clients.
    pub id: String,
    pub config: ModelConfig,
    pub weights: Box<dyn Weights>,
    pub text: TextAssets,
    /// For requests that leave sampling open.
    pub sampling: RecommendedSampling,
}

/// Finds the files of a model; downloads those that a hub model still lacks. Blocks; not for async workers.
///
/// # Errors
/// What is missing or what failed; see [`LoadError`] and [`HubError`].
pub fn resolve(
    source: &ModelSource,
    options: &HubOptions,
    progress: &dyn hub::DownloadProgress,
) -> Result<ModelFiles, LoadError> {
    match source {
        ModelSource::Embedded => {
            let demo = embedded::demo();
            Ok(ModelFiles {
                id: demo.id.to_owned(),
                location: FileLocation::Embedded(demo),
            })
        }
        ModelSource::Directory(path) => Ok(ModelFiles {
            id: id_of_path(path),
            location: FileLocation::Directory(path.clone()),
        }),
        ModelSource::Gguf(path) => Ok(ModelFiles {
            id: id_of_path(path),
            location: FileLocation::Gguf(path.clone()),
        }),
        ModelSource::Hub {
            repository,
            revision,
        } => Ok(ModelFiles {
            id: repository.clone(),
            location: hub::fetch(repository, revision.as_deref(), options, progress)?,
        }),
    }
}

/// Opens a resolved model: reads its configuration, tokenizer and template, and maps its weights. Blocks.
///
/// # Errors
/// Which file, field or tensor is wrong, and how.
pub fn load(files: &ModelFiles) -> Result<LoadedModel, LoadError> {
    load_quantized(files, &QuantizeOptions::default())
}

/// [`load`] with the weights quantized as `options` ask for it.
///
/// # Errors
/// As [`load`]; a GGUF file that is to be quantized; a tensor that cannot be.
pub fn load_quantized(
    files: &ModelFiles,
    options: &QuantizeOptions,
) -> Result<LoadedModel, LoadError> {
    let folder = match &files.location {
        FileLocation::Embedded(model) => Folder::Embedded(model),
        FileLocation::Directory(path) => Folder::Disk(path),
        FileLocation::Gguf(path) => {
            quantize::refuse_gguf(path, options)?;
            let (config, weights, text, sampling) = gguf::load(path)?;
            return Ok(LoadedModel {
                id: files.id.clone(),
                config,
                weights,
                text,
                sampling,
            });
        }
    };
    let model = open_folder(folder)?;
    Ok(LoadedModel {
        id: files.id.clone(),
        weights: quantize::weights(&files.id, &model.config, model.weights, options)?,
        config: model.config,
        text: model.text,
        sampling: model.sampling,
    })
}

type Parts = (
    ModelConfig,
    Box<dyn Weights>,
    TextAssets,
    RecommendedSampling,
);

/// A model from a folder as Hugging Face transformers writes it.
struct FolderModel {
    config: ModelConfig,
    weights: SafetensorsWeights,
    text: TextAssets,
    sampling: RecommendedSampling,
}

fn open_folder(folder: Folder<'_>) -> Result<FolderModel, LoadError> {
    const CONFIG: &str = "config.json";
    const GENERATION_CONFIG: &str = "generation_config.json";
    let bytes = folder.read_required(CONFIG, SMALL_FILE, "it holds the model's hyperparameters")?;
    let mut config = ModelConfig::from_json(&JsonObject::parse(CONFIG, &bytes)?)?;
    let mut sampling = RecommendedSampling::default();
    if let Some(bytes) = folder.read(GENERATION_CONFIG, SMALL_FILE)? {
        let json = JsonObject::parse(GENERATION_CONFIG, &bytes)?;
        config.add_end_tokens(config_json::end_tokens(&json)?);
        sampling = RecommendedSampling::from_json(&json)?;
        config.validate(GENERATION_CONFIG)?;
    }
    let text = TextAssets::read(folder)?;
    config.add_end_tokens(text.end_token());
    config.validate("tokenizer_config.json")?;
    Ok(FolderModel {
        config,
        weights: SafetensorsWeights::open(folder)?,
        text,
        sampling,
    })
}
