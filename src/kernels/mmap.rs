//! Memory-mapped files.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a whole file, read-only. An empty file is an error of kind [`io::ErrorKind::UnexpectedEof`].
pub fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the file is empty",
        ));
    }
    // SAFETY: the map is private to this process and read-only. What remains is that another process shortens
    // or rewrites a model's weights while they are loaded, which every program that maps files excludes by
    // convention; downloads never do, since finished files are moved into place and not written again.
    unsafe { Mmap::map(&file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_what_is_there_and_refuses_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("weights");
        assert_eq!(
            map_file(&path).expect_err("missing").kind(),
            io::ErrorKind::NotFound
        );
        std::fs::write(&path, b"").expect("a writable folder");
        assert_eq!(
            map_file(&path).expect_err("empty").kind(),
            io::ErrorKind::UnexpectedEof
        );
        std::fs::write(&path, b"abc").expect("a writable folder");
        assert_eq!(&map_file(&path).expect("a map")[..], b"abc");
    }
}
