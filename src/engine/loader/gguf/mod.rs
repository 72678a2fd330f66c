//! Models in one GGUF file.

use std::path::Path;

use super::Parts;
use super::error::LoadError;

/// Opens a GGUF file.
pub(crate) fn load(path: &Path) -> Result<Parts, LoadError> {
    Err(LoadError::unsupported(&path.display().to_string(), "GGUF"))
}
