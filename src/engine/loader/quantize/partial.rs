//! A file that appears under its name only when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What temporary names end in.
pub(super) const EXTENSION: &str = "partial";

/// Written under a temporary name in the folder of its target; removed unless it is kept.
pub(super) struct PartialFile {
    target: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    kept: bool,
}

impl PartialFile {
    pub fn create(target: &Path) -> io::Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let name = target
            .file_name()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))?;
        // Not the name of another process's, nor of another thread's of this one.
        let unique = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = target.with_file_name(format!(
            ".{}.{}-{unique}.{EXTENSION}",
            name.to_string_lossy(),
            std::process::id()
        ));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)?;
        Ok(Self {
            target: target.to_path_buf(),
            temporary,
            file: BufWriter::with_capacity(1 << 20, file),
            kept: false,
        })
    }

    /// Gives the file its name, in place of what has it, once its bytes are on the disk.
    pub fn keep(mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.temporary, &self.target)?;
        self.kept = true;
        Ok(())
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if !self.kept {
            // There is nobody to tell; what stays is a hidden file that says what it is.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("the folder");
        entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }

    #[test]
    fn it_appears_when_it_is_kept_and_leaves_nothing_when_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = folder.path().join("out");
        let mut dropped = PartialFile::create(&target).expect("a writable folder");
        dropped.write_all(b"half").expect("space");
        assert!(!target.exists() && names(folder.path()).len() == 1);
        drop(dropped);
        assert_eq!(names(folder.path()), [""; 0]);

        fs::write(&target, b"old").expect("space");
        let mut kept = PartialFile::create(&target).expect("a writable folder");
        kept.write_all(b"new").expect("space");
        assert_eq!(fs::read(&target).expect("the old file"), b"old");
        kept.keep().expect("a writable folder");
        assert_eq!(fs::read(&target).expect("the new file"), b"new");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn a_missing_folder_is_an_error() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(PartialFile::create(&folder.path().join("none/out")).is_err());
        assert!(PartialFile::create(Path::new("/")).is_err());
    }
}
