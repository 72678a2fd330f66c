//! The demo model that is part of the binary.

use super::error::LoadError;
use super::source::EMBEDDED_NAME;

/// Model files as bytes of the binary.
#[derive(Debug)]
pub struct EmbeddedModel {
    pub id: &'static str,
    files: &'static [(&'static str, &'static [u8])],
}

impl EmbeddedModel {
    /// A model of the given files, by their names in a model folder.
    pub const fn new(id: &'static str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { id, files }
    }

    /// The bytes of a file.
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        self.files
            .iter()
            .find(|(file, _)| *file == name)
            .map(|(_, bytes)| *bytes)
    }
}

/// The demo model.
pub(crate) fn demo() -> Result<&'static EmbeddedModel, LoadError> {
    Err(LoadError::UnusableSource {
        text: EMBEDDED_NAME.to_owned(),
        reason: "this build does not hold it".to_owned(),
    })
}
