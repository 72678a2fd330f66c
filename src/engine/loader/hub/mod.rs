//! Models from the Hugging Face hub: the files the loader needs, in the cache that all its libraries share.

mod cache;
mod client;
mod download;
mod error;
mod options;
mod progress;
mod select;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

pub use error::HubError;
pub use options::{HubOptions, HubToken};
pub use progress::{Console, DownloadProgress, Silent};

use super::FileLocation;
use super::error::LoadError;
use super::json::JsonObject;
use super::safetensors::shard_names;
use cache::RepositoryCache;
use client::{HubClient, RequestError};
use download::Downloader;
use select::{INDEX_FILE, SINGLE_FILE, Selection, is_plain_name, select};

const DEFAULT_REVISION: &str = "main";

/// Makes sure that all needed files of a repository are in the cache, and says where.
///
/// A hub that cannot be reached is no error when the cache holds a complete snapshot.
pub(crate) fn fetch(
    repository: &str,
    revision: Option<&str>,
    options: &HubOptions,
    progress: &dyn DownloadProgress,
) -> Result<FileLocation, LoadError> {
    let revision = revision.unwrap_or(DEFAULT_REVISION);
    let downloader = Downloader {
        options,
        repository,
        client: HubClient::new(options, repository, revision),
        cache: RepositoryCache::new(&options.cache, repository, revision),
        progress,
    };
    let cached = || {
        downloader
            .cache
            .snapshot()
            .and_then(|folder| complete(&folder))
    };
    if options.offline {
        return cached().ok_or_else(|| {
            HubError::NotCached {
                repository: repository.to_owned(),
                cache: options.cache.clone(),
            }
            .into()
        });
    }
    let info = match downloader.client.repository_info() {
        Ok(info) => info,
        Err(RequestError::Final(error)) => return Err(error.into()),
        Err(RequestError::Transient(cause)) => {
            let Some(location) = cached() else {
                return Err(HubError::Unreachable {
                    endpoint: options.endpoint.clone(),
                    repository: repository.to_owned(),
                    cause,
                }
                .into());
            };
            tracing::warn!(
                repository,
                cause,
                "the hub cannot be reached; using the cached model"
            );
            return Ok(location);
        }
    };
    let folder = downloader.cache.snapshot_of(&info.commit);
    downloader.cache.prepare(&info.commit)?;
    let location = match select(repository, &info.files)? {
        Selection::Gguf { file } => {
            downloader.fetch(&info.commit, &file)?;
            FileLocation::Gguf(folder.join(file))
        }
        Selection::Single { files } => {
            files
                .iter()
                .try_for_each(|file| downloader.fetch(&info.commit, file))?;
            FileLocation::Directory(folder)
        }
        Selection::Sharded { files } => {
            files
                .iter()
                .try_for_each(|file| downloader.fetch(&info.commit, file))?;
            shards(&folder)?
                .iter()
                .try_for_each(|file| downloader.fetch(&info.commit, file))?;
            FileLocation::Directory(folder)
        }
    };
    downloader.cache.set_reference(&info.commit)?;
    Ok(location)
}

/// The shards that a folder's index names.
fn shards(folder: &Path) -> Result<Vec<String>, LoadError> {
    let path = folder.join(INDEX_FILE);
    let bytes = fs::read(&path).map_err(|cause| LoadError::io("read", &path, cause))?;
    shard_names(&JsonObject::parse(INDEX_FILE, &bytes)?)
}

/// What a cached snapshot holds, if nothing is missing.
fn complete(folder: &Path) -> Option<FileLocation> {
    let has = |file: &str| folder.join(file).exists();
    let whole = has("config.json")
        && has("tokenizer.json")
        && (has(SINGLE_FILE)
            || shards(folder).is_ok_and(|shards| shards.iter().all(|shard| has(shard))));
    if whole {
        return Some(FileLocation::Directory(folder.to_path_buf()));
    }
    let names: Vec<String> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_plain_name(name) && has(name))
        .collect();
    match select("", &names) {
        Ok(Selection::Gguf { file }) => Some(FileLocation::Gguf(PathBuf::from(folder).join(file))),
        _ => None,
    }
}
