//! What can go wrong when a quantized file is written.

use std::io;
use std::path::{Path, PathBuf};

use crate::engine::loader::error::LoadError;

/// Why `trunkline quantize` wrote no file.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("{} exists; give --force to replace it, or another name", path.display())]
    OutputExists { path: PathBuf },
    #[error("{} is the model that is read; give the output another name", path.display())]
    OutputIsInput { path: PathBuf },
    #[error("{} is a folder; name the file to write", path.display())]
    OutputIsFolder { path: PathBuf },
    #[error(
        "{file} is quantized already (tensor '{tensor}' is {element}): quantizing it again would add to its \
         errors; start from the model in f32, f16 or bf16"
    )]
    AlreadyQuantized {
        file: String,
        tensor: String,
        element: String,
    },
    #[error("cannot write {}: {cause}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
}

impl QuantizeError {
    pub(super) fn write(path: &Path, cause: io::Error) -> Self {
        QuantizeError::Write {
            path: path.to_path_buf(),
            cause,
        }
    }
}
