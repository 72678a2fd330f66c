//! Quantized weights kept on disk, so that the next load need not quantize again.
//!
//! An entry is a GGUF file of the tensors (without tokenizer) under the hash of all that it was made from, and
//! ends with a hash of itself, by which a damaged one is noticed. Entries appear complete or not at all; the
//! folder's size is bounded, and those that were not used for the longest time go first.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::partial::{self, PartialFile};
use crate::engine::loader::bytes::FileBytes;

/// Bytes of the hash at the end of an entry.
const HASH: usize = blake3::OUT_LEN;
const EXTENSION: &str = "gguf";
/// A temporary file that is older was left by a process that died.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// Where quantized weights are kept, and how much of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    pub folder: PathBuf,
    /// Most bytes of all entries together.
    pub limit: u64,
}

impl CacheOptions {
    /// `$XDG_CACHE_HOME/trunkline/quantized`, or the same under `~/.cache`; `None` without a home.
    pub fn default_folder() -> Option<PathBuf> {
        // An empty or relative path counts as not set, by the XDG specification.
        let absolute = |name: &str| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        absolute("XDG_CACHE_HOME")
            .or_else(|| Some(absolute("HOME")?.join(".cache")))
            .map(|root| root.join("trunkline").join("quantized"))
    }

    fn path(&self, key: &blake3::Hash) -> PathBuf {
        self.folder.join(format!("{key}.{EXTENSION}"))
    }

    /// The entry's bytes, if there is one. A damaged one is removed, with a warning.
    pub(super) fn open(&self, key: &blake3::Hash) -> Option<(PathBuf, FileBytes)> {
        let path = self.path(key);
        if !path.is_file() {
            return None;
        }
        match FileBytes::open(&path) {
            Ok(bytes) if is_whole(&bytes) => {
                // Entries are removed by age of use. One that cannot be touched is only older.
                let _ = File::options()
                    .append(true)
                    .open(&path)
                    .and_then(|file| file.set_modified(SystemTime::now()));
                Some((path, bytes))
            }
            Ok(_) => {
                tracing::warn!(file = %path.display(), "damaged quantized weights in the cache; they are made anew");
                self.remove(&path);
                None
            }
            Err(error) => {
                tracing::warn!(%error, "unreadable quantized weights in the cache; they are made anew");
                None
            }
        }
    }

    /// Writes an entry of about `size` bytes, after removing older ones if it would not fit otherwise.
    ///
    /// # Errors
    /// What `write` returns, or why there can be no such file.
    pub(super) fn store<E: From<io::Error>>(
        &self,
        key: &blake3::Hash,
        size: u64,
        write: impl FnOnce(&mut HashingWriter<PartialFile>) -> Result<(), E>,
    ) -> Result<(), E> {
        fs::create_dir_all(&self.folder)?;
        self.make_room(size)?;
        let mut writer = HashingWriter {
            inner: PartialFile::create(&self.path(key))?,
            hasher: blake3::Hasher::new(),
        };
        write(&mut writer)?;
        let hash = writer.hasher.finalize();
        let mut file = writer.inner;
        file.write_all(hash.as_bytes())?;
        Ok(file.keep()?)
    }

    /// Whether an entry of this size may be kept at all.
    pub(super) fn has_place_for(&self, size: u64) -> bool {
        size <= self.limit
    }

    /// Removes the entries that were not used for the longest time until `size` bytes more are within the
    /// limit, and temporary files that nobody writes any more.
    fn make_room(&self, size: u64) -> io::Result<()> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let path = entry.path();
            // Another process may have removed it by now.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let extension = path.extension().and_then(|extension| extension.to_str());
            if extension == Some(EXTENSION) {
                entries.push((used, metadata.len(), path));
            } else if extension == Some(partial::EXTENSION)
                && used.elapsed().is_ok_and(|age| age > ABANDONED)
            {
                self.remove(&path);
            }
        }
        entries.sort();
        let mut total: u64 = entries.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in entries {
            if total + size <= self.limit {
                break;
            }
            tracing::info!(file = %path.display(), "removed from the cache of quantized weights to make room");
            self.remove(&path);
            total -= bytes;
        }
        Ok(())
    }

    fn remove(&self, path: &Path) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %path.display(), %error, "cannot remove a file of the cache");
        }
    }
}

/// Whether the bytes end with the hash of what stands before it.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(length) = bytes.len().checked_sub(HASH) else {
        return false;
    };
    let (content, hash) = bytes.split_at(length);
    blake3::hash(content).as_bytes().as_slice() == hash
}

/// Hashes all that it writes.
pub(super) struct HashingWriter<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(folder: &Path, limit: u64) -> CacheOptions {
        CacheOptions {
            folder: folder.join("quantized"),
            limit,
        }
    }

    fn key(name: &str) -> blake3::Hash {
        blake3::hash(name.as_bytes())
    }

    fn store(cache: &CacheOptions, name: &str, bytes: usize) -> io::Result<()> {
        cache.store(&key(name), bytes as u64, |writer| {
            writer.write_all(&vec![7; bytes])
        })
    }

    fn set_age(cache: &CacheOptions, name: &str, seconds: u64) {
        let file = File::options()
            .append(true)
            .open(cache.path(&key(name)))
            .expect("an entry");
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .expect("a file of ours");
    }

    #[test]
    fn what_was_stored_is_found_and_damage_is_noticed() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(folder.path(), 1000);
        assert!(cache.open(&key("a")).is_none());
        store(&cache, "a", 100).expect("a writable folder");
        let (path, bytes) = cache.open(&key("a")).expect("it was stored");
        assert_eq!(bytes[..100], [7; 100]);
        let whole = fs::read(&path).expect("the entry");
        for damage in [0, 50, 99, 120] {
            let mut damaged = whole.clone();
            damaged[damage] ^= 1;
            fs::write(&path, damaged).expect("a writable folder");
            assert!(cache.open(&key("a")).is_none(), "byte {damage}");
            assert!(!path.exists());
        }
        for length in [0, 1, 31, 32, 131] {
            fs::write(&path, &whole[..length]).expect("a writable folder");
            assert!(cache.open(&key("a")).is_none(), "{length} bytes");
        }
    }

    #[test]
    fn the_entries_used_longest_ago_make_room() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(folder.path(), 300);
        for (name, age) in [("a", 30), ("b", 20), ("c", 10)] {
            store(&cache, name, 50).expect("a writable folder");
            set_age(&cache, name, age);
        }
        assert!(
            cache.open(&key("a")).is_some(),
            "used again: now the youngest"
        );
        store(&cache, "d", 100).expect("a writable folder");
        let there = |name| cache.open(&key(name)).is_some();
        assert!(there("a") && !there("b") && there("c") && there("d"));
        assert!(cache.has_place_for(300) && !cache.has_place_for(301));
    }

    #[test]
    fn an_entry_that_fails_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let cache = cache(folder.path(), 1000);
        let result: io::Result<()> = cache.store(&key("a"), 10, |writer| {
            writer.write_all(b"half")?;
            Err(io::Error::other("no more"))
        });
        assert!(result.is_err());
        assert_eq!(fs::read_dir(&cache.folder).expect("the folder").count(), 0);
    }
}
