//! What can go wrong between a model's name and its weights.

use std::io;
use std::path::{Path, PathBuf};

use super::config::Architecture;
use super::hub::HubError;
use super::quantize::FileType;

/// Why a model could not be resolved or loaded. Each message says which file or tensor, and why.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "model '{text}' not found: there is no file or folder of that name, and it is not a hub model id \
         (org/name or org/name@revision), a .gguf file or 'demo'"
    )]
    UnknownSource { text: String },
    #[error("model '{text}' cannot be used: {reason}")]
    UnusableSource { text: String, reason: String },
    #[error("model file {} is missing: {need}", path.display())]
    MissingFile { path: PathBuf, need: String },
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("{file} is not valid JSON: {message}")]
    Json { file: String, message: String },
    #[error("{file}: {field} {message}")]
    Field {
        file: String,
        field: String,
        message: String,
    },
    #[error(
        "architecture '{found}' is not supported; supported are {}",
        Architecture::supported()
    )]
    UnsupportedArchitecture { found: String },
    #[error("{file}: {feature} is not supported")]
    UnsupportedFeature { file: String, feature: String },
    #[error("tensor '{name}' is missing from the model's weights")]
    MissingTensor { name: String },
    #[error("tensor '{name}' has shape {found:?}, but the configuration asks for {expected:?}")]
    WrongShape {
        name: String,
        expected: Vec<usize>,
        found: Vec<usize>,
    },
    #[error("tensor '{name}' has element type {found}; supported are {supported}")]
    UnsupportedElementType {
        name: String,
        found: String,
        supported: &'static str,
    },
    #[error("{file} is damaged or incomplete: {message}")]
    Corrupt { file: String, message: String },
    #[error("{file}: the tokenizer cannot be read: {message}")]
    Tokenizer { file: String, message: String },
    #[error("tensor '{name}' could not be read: {message}")]
    Tensor { name: String, message: String },
    #[error(
        "--quantize {file_type} is for models in safetensors; {} is a GGUF file, whose types are fixed: leave \
         it out (or set it to none or auto), or write another file with 'trunkline quantize'",
        path.display()
    )]
    QuantizeGguf { path: PathBuf, file_type: FileType },
    #[error(transparent)]
    Hub(#[from] HubError),
}

impl LoadError {
    /// An I/O error on a path. A missing file says so; a missing right says which operation lacked it.
    pub(crate) fn io(action: &'static str, path: &Path, cause: io::Error) -> Self {
        if cause.kind() == io::ErrorKind::NotFound {
            return LoadError::MissingFile {
                path: path.to_path_buf(),
                need: "no such file".to_owned(),
            };
        }
        LoadError::Io {
            action,
            path: path.to_path_buf(),
            cause,
        }
    }

    pub(crate) fn field(file: &str, field: impl Into<String>, message: impl Into<String>) -> Self {
        LoadError::Field {
            file: file.to_owned(),
            field: field.into(),
            message: message.into(),
        }
    }

    pub(crate) fn corrupt(file: impl Into<String>, message: impl Into<String>) -> Self {
        LoadError::Corrupt {
            file: file.into(),
            message: message.into(),
        }
    }

    pub(crate) fn unsupported(file: &str, feature: impl Into<String>) -> Self {
        LoadError::UnsupportedFeature {
            file: file.to_owned(),
            feature: feature.into(),
        }
    }
}
