//! What a user may write as a model's name.

use std::path::Path;

use super::ModelSource;
use super::error::LoadError;

/// The name of the demo model on the command line.
pub const EMBEDDED_NAME: &str = "demo";

impl ModelSource {
    /// Reads a `--model` value: an existing folder, a `.gguf` file, `demo`, or `org/name[@revision]`.
    ///
    /// What exists on disk wins over a hub model of the same name, but not over `demo`: a folder of that name
    /// is `./demo`.
    ///
    /// # Errors
    /// [`LoadError::UnknownSource`] when it is none of these, [`LoadError::UnusableSource`] when the path
    /// exists but cannot be a model, or when it looks like a path and nothing is there.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let text = text.trim();
        let unusable = |reason: &str| LoadError::UnusableSource {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        if text.is_empty() {
            return Err(unusable("the name is empty"));
        }
        // Before any path: a folder of this name must not change what the plain command serves.
        if text == EMBEDDED_NAME {
            return Ok(ModelSource::Embedded);
        }
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(ModelSource::Directory(path.to_path_buf()));
        }
        if has_gguf_extension(path) {
            return match path.try_exists() {
                Ok(true) => Ok(ModelSource::Gguf(path.to_path_buf())),
                Ok(false) => Err(unusable("there is no such .gguf file")),
                Err(cause) => Err(LoadError::io("open", path, cause)),
            };
        }
        if path.exists() {
            return Err(unusable(
                "it is a file, but not a .gguf one; give the folder that holds config.json and the weights",
            ));
        }
        if let Some((repository, revision)) = hub_name(text) {
            return Ok(ModelSource::Hub {
                repository: repository.to_owned(),
                revision: revision.map(str::to_owned),
            });
        }
        if text.starts_with(['.', '/', '~']) || text.contains('\\') {
            return Err(unusable("there is no such file or folder"));
        }
        Err(LoadError::UnknownSource {
            text: text.to_owned(),
        })
    }
}

pub(crate) fn has_gguf_extension(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Splits `org/name[@revision]`, if it is of that form.
fn hub_name(text: &str) -> Option<(&str, Option<&str>)> {
    let (repository, revision) = match text.split_once('@') {
        Some((repository, revision)) => (repository, Some(revision)),
        None => (text, None),
    };
    let (organisation, name) = repository.split_once('/')?;
    let part = |part: &str| {
        part.len() <= 96
            && part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
            && !part.contains("..")
            && !part.contains("--")
    };
    let revision_is_sound = revision.is_none_or(|revision| {
        !revision.is_empty()
            && revision.len() <= 255
            && revision
                .split('/')
                .all(|part| !part.is_empty() && !part.chars().all(|c| c == '.'))
            && revision
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
    });
    (part(organisation) && part(name) && revision_is_sound).then_some((repository, revision))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_win_over_names() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = folder.path().to_str().expect("a UTF-8 path");
        assert_eq!(
            ModelSource::parse(text).expect("a folder"),
            ModelSource::Directory(folder.path().into())
        );
        let file = folder.path().join("m.GGUF");
        std::fs::write(&file, b"GGUF").expect("a writable folder");
        let text = file.to_str().expect("a UTF-8 path");
        assert_eq!(
            ModelSource::parse(text).expect("a file"),
            ModelSource::Gguf(file.clone())
        );
        let other = folder.path().join("model.bin");
        std::fs::write(&other, b"x").expect("a writable folder");
        let message = ModelSource::parse(other.to_str().expect("UTF-8"))
            .expect_err("not a model")
            .to_string();
        assert!(message.contains("not a .gguf"), "{message}");
    }

    #[test]
    fn hub_names_and_the_demo() {
        assert_eq!(
            ModelSource::parse(" demo ").expect("the demo"),
            ModelSource::Embedded
        );
        assert_eq!(
            ModelSource::parse("Qwen/Qwen3-0.6B").expect("a hub name"),
            ModelSource::Hub {
                repository: "Qwen/Qwen3-0.6B".into(),
                revision: None
            }
        );
        assert_eq!(
            ModelSource::parse("meta-llama/Llama-3.2-1B@refs/pr/5").expect("a hub name"),
            ModelSource::Hub {
                repository: "meta-llama/Llama-3.2-1B".into(),
                revision: Some("refs/pr/5".into())
            }
        );
    }

    #[test]
    fn everything_else_is_a_clear_error() {
        for text in [
            "",
            "no-such-model",
            "a/b/c",
            "a/b@",
            "a/../b",
            "./missing",
            "/no/such/dir",
            "x.gguf",
            "a b/c",
            "a/b@../c",
        ] {
            let message = ModelSource::parse(text).expect_err(text).to_string();
            assert!(message.contains(text.trim()), "{message}");
        }
        let message = ModelSource::parse("no-such-model")
            .expect_err("unknown")
            .to_string();
        assert!(
            message.contains("no file or folder") && message.contains("org/name"),
            "{message}"
        );
    }
}
