//! One file: into the cache, resuming what an earlier try left.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::DownloadProgress;
use super::cache::{RepositoryCache, disk};
use super::client::{FileInfo, HubClient, RequestError};
use super::error::HubError;
use super::options::HubOptions;

const BUFFER: usize = 1 << 18;

/// Where a repository's files come from and go to.
pub(super) struct Downloader<'a> {
    pub options: &'a HubOptions,
    pub repository: &'a str,
    pub client: HubClient<'a>,
    pub cache: RepositoryCache,
    pub progress: &'a dyn DownloadProgress,
}

impl Downloader<'_> {
    /// Makes sure that a file of a commit is in the cache.
    pub fn fetch(&self, commit: &str, file: &str) -> Result<(), HubError> {
        if self.cache.snapshot_of(commit).join(file).exists() {
            return Ok(());
        }
        let info = self.retry(file, 0, || self.client.file_info(commit, file))?;
        let blob = self.cache.blob(&info.etag);
        if !blob.exists() {
            let _lock = lock(&blob.with_extension("lock"))?;
            if !blob.exists() {
                self.download(commit, file, &info, &blob)?;
            }
        }
        self.cache.link(commit, file, &info.etag)
    }

    /// Tries again after transient errors, with growing pauses.
    pub fn retry<T>(
        &self,
        file: &str,
        total: u64,
        request: impl Fn() -> Result<T, RequestError>,
    ) -> Result<T, HubError> {
        let mut attempt = 1;
        loop {
            match request() {
                Ok(answer) => return Ok(answer),
                Err(RequestError::Final(error)) => return Err(error),
                Err(RequestError::Transient(cause)) if attempt >= self.options.attempts => {
                    return Err(self.interrupted(file, 0, total, cause));
                }
                Err(RequestError::Transient(cause)) => self.pause(file, attempt, &cause),
            }
            attempt += 1;
        }
    }

    fn pause(&self, file: &str, attempt: u32, cause: &str) {
        tracing::warn!(file, attempt, cause, "download interrupted; trying again");
        std::thread::sleep(self.options.retry_pause * (1 << (attempt.max(1) - 1).min(6)));
    }

    fn interrupted(&self, file: &str, received: u64, total: u64, cause: String) -> HubError {
        HubError::Interrupted {
            repository: self.repository.to_owned(),
            file: file.to_owned(),
            received,
            total,
            cause,
        }
    }

    /// Fills `BLOB.part`, and moves it into place when it is complete.
    fn download(
        &self,
        commit: &str,
        file: &str,
        info: &FileInfo,
        blob: &Path,
    ) -> Result<(), HubError> {
        let path = blob.with_extension("part");
        let failed = |received: u64, cause: io::Error| {
            disk(&path, info.size.saturating_sub(received), cause)
        };
        let mut part = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|cause| failed(0, cause))?;
        let mut received = part.metadata().map_err(|cause| failed(0, cause))?.len();
        if received > info.size {
            part.set_len(0).map_err(|cause| failed(0, cause))?;
            received = 0;
        }
        self.progress.begin(file, info.size, received);
        let mut attempt = 1;
        while received < info.size {
            let before = received;
            let cause = match self.client.open(commit, file, received) {
                Ok(stream) => {
                    if stream.start != received {
                        part.set_len(0).map_err(|cause| failed(0, cause))?;
                        received = 0;
                    }
                    let reader = stream.reader.take(info.size - received);
                    match self.copy(reader, &mut part, &mut received) {
                        Ok(()) => "the connection was closed".to_owned(),
                        Err(CopyError::Network(cause)) => cause.to_string(),
                        Err(CopyError::Disk(cause)) => return Err(failed(received, cause)),
                    }
                }
                Err(RequestError::Final(error)) => return Err(error),
                Err(RequestError::Transient(cause)) => cause,
            };
            if received == info.size {
                break;
            }
            attempt = if received > before { 1 } else { attempt + 1 };
            if attempt > self.options.attempts {
                return Err(self.interrupted(file, received, info.size, cause));
            }
            self.pause(file, attempt, &cause);
        }
        part.sync_all().map_err(|cause| failed(received, cause))?;
        fs::rename(&path, blob).map_err(|cause| disk(blob, 0, cause))?;
        self.progress.finish(file);
        Ok(())
    }

    fn copy(
        &self,
        mut reader: impl Read,
        part: &mut File,
        received: &mut u64,
    ) -> Result<(), CopyError> {
        part.seek(SeekFrom::End(0)).map_err(CopyError::Disk)?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
                Err(cause) => return Err(CopyError::Network(cause)),
            };
            part.write_all(&buffer[..length]).map_err(CopyError::Disk)?;
            *received += length as u64;
            self.progress.advance(length as u64);
        }
    }
}

enum CopyError {
    Network(io::Error),
    Disk(io::Error),
}

/// Keeps a second process from writing the same file; released when dropped.
fn lock(path: &Path) -> Result<File, HubError> {
    let file = File::create(path).map_err(|cause| disk(path, 0, cause))?;
    if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
        tracing::info!(lock = %path.display(), "waiting for another process that downloads this file");
        file.lock().map_err(|cause| disk(path, 0, cause))?;
    }
    Ok(file)
}
