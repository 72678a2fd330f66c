//! The cache folder that all Hugging Face libraries share: `models--org--name/{blobs,refs,snapshots}`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::error::HubError;

/// One repository's part of the cache.
pub(super) struct RepositoryCache {
    root: PathBuf,
    revision: String,
    repository: CacheRepo,
}

impl RepositoryCache {
    pub fn new(cache: &Path, repository: &str, revision: &str) -> Self {
        let description =
            Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
        Self {
            root: cache.join(description.folder_name()),
            revision: revision.to_owned(),
            repository: Cache::new(cache.to_path_buf()).repo(description),
        }
    }

    /// The folder of the revision that was fetched last, if there is one.
    pub fn snapshot(&self) -> Option<PathBuf> {
        let reference = fs::read_to_string(self.root.join("refs").join(&self.revision));
        let commit = match reference {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) if is_commit(&self.revision) => self.revision.clone(),
            Err(_) => return None,
        };
        is_commit(&commit)
            .then(|| self.repository.pointer_path(&commit))
            .filter(|path| path.is_dir())
    }

    /// The folder of a commit; its files are links to blobs.
    pub fn snapshot_of(&self, commit: &str) -> PathBuf {
        self.repository.pointer_path(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.repository.blob_path(etag)
    }

    /// Makes the folders for blobs and for a commit.
    pub fn prepare(&self, commit: &str) -> Result<(), HubError> {
        for folder in [self.root.join("blobs"), self.snapshot_of(commit)] {
            fs::create_dir_all(&folder).map_err(|cause| disk(&folder, 0, cause))?;
        }
        Ok(())
    }

    /// Puts a finished blob into a commit's folder.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), HubError> {
        let link = self.snapshot_of(commit).join(file);
        if let Some(folder) = link.parent() {
            fs::create_dir_all(folder).map_err(|cause| disk(folder, 0, cause))?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        match link_blob(
            &self.blob(etag),
            Path::new(&format!("{up}blobs/{etag}")),
            &link,
        ) {
            Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|cause| disk(&link, 0, cause)),
        }
    }

    /// Notes that the revision is this commit.
    pub fn set_reference(&self, commit: &str) -> Result<(), HubError> {
        self.repository
            .create_ref(commit)
            .map_err(|cause| disk(&self.root.join("refs"), 0, cause))
    }
}

#[cfg(unix)]
fn link_blob(_blob: &Path, relative: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, link)
}

#[cfg(not(unix))]
fn link_blob(blob: &Path, _relative: &Path, link: &Path) -> io::Result<()> {
    fs::hard_link(blob, link)
}

/// A commit hash, and thereby a safe name of a folder.
pub(super) fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(super) fn disk(path: &Path, needed: u64, cause: io::Error) -> HubError {
    HubError::Disk {
        path: path.to_path_buf(),
        needed,
        cause,
    }
}
