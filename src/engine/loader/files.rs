//! A resolved model: where its files are, and how to read the small ones.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::embedded::EmbeddedModel;
use super::error::LoadError;

/// Small JSON and template files may have up to this many bytes.
pub(crate) const SMALL_FILE: u64 = 16 << 20;
/// `tokenizer.json` and the index of shards may have up to this many bytes.
pub(crate) const LARGE_FILE: u64 = 512 << 20;

/// A model whose files are all on this machine.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    /// The model's id for clients: the folder's or file's name, or the hub's `org/name`.
    pub id: String,
    pub location: FileLocation,
}

/// Where the files are.
#[derive(Debug, Clone)]
pub enum FileLocation {
    /// In the binary.
    Embedded(&'static EmbeddedModel),
    /// A folder as Hugging Face transformers writes it.
    Directory(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
}

/// A folder of model files, on disk or in the binary.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Folder<'a> {
    Embedded(&'static EmbeddedModel),
    Disk(&'a Path),
}

impl Folder<'_> {
    /// The file's bytes, or `None` if there is no such file.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        match self {
            Folder::Embedded(model) => Ok(model.file(name).map(Cow::Borrowed)),
            Folder::Disk(root) => Ok(read_file(&root.join(name), limit)?.map(Cow::Owned)),
        }
    }

    /// The file's bytes; its absence is an error that says what it is needed for.
    pub fn read_required(
        &self,
        name: &str,
        limit: u64,
        need: &str,
    ) -> Result<Cow<'static, [u8]>, LoadError> {
        self.read(name, limit)?
            .ok_or_else(|| LoadError::MissingFile {
                path: match self {
                    Folder::Embedded(_) => PathBuf::from(name),
                    Folder::Disk(root) => root.join(name),
                },
                need: need.to_owned(),
            })
    }
}

/// Reads a file of at most `limit` bytes; `None` if it does not exist.
fn read_file(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, LoadError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(cause) => return Err(LoadError::io("open", path, cause)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| LoadError::io("read", path, cause))?;
    if bytes.len() as u64 > limit {
        return Err(LoadError::corrupt(
            path.display().to_string(),
            format!("it has more than {limit} bytes"),
        ));
    }
    Ok(Some(bytes))
}

/// The name by which clients know a folder or file: its last path component, without the extension of a file.
pub(crate) fn id_of_path(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let name = if path.is_dir() {
        absolute.file_name()
    } else {
        absolute.file_stem()
    };
    name.map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
