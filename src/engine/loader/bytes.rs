//! A file's contents without a copy: mapped from disk, part of the binary, or made in memory.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::error::LoadError;
use crate::kernels::mmap::map_file;

/// Read-only bytes of a weight file; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) enum FileBytes {
    Mapped(Arc<Mmap>),
    Static(&'static [u8]),
    Owned(Arc<[u8]>),
}

impl FileBytes {
    /// Maps a file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        match map_file(path) {
            Ok(map) => Ok(FileBytes::Mapped(Arc::new(map))),
            Err(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => Err(
                LoadError::corrupt(path.display().to_string(), "the file is empty"),
            ),
            Err(cause) => Err(LoadError::io("map", path, cause)),
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Static(bytes) => bytes,
            FileBytes::Owned(bytes) => bytes,
        }
    }
}
