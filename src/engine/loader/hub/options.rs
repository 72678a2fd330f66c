//! How the hub is reached, and where its files are kept.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// The hub's address, access and cache.
#[derive(Debug, Clone)]
pub struct HubOptions {
    /// Without a slash at the end.
    pub endpoint: String,
    /// The folder of the cache, in the layout that all Hugging Face libraries share (`$HF_HOME/hub`).
    pub cache: PathBuf,
    pub token: Option<HubToken>,
    /// Never ask the hub; use what the cache holds.
    pub offline: bool,
    /// For a connection, and for the first byte of an answer.
    pub response_timeout: Duration,
    /// A download that brings nothing for this long is tried again.
    pub stall_timeout: Duration,
    /// Tries in a row that bring nothing before a download fails.
    pub attempts: u32,
    /// The pause before the second try; it doubles with each.
    pub retry_pause: Duration,
}

/// A secret that does not show in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct HubToken(String);

impl HubToken {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(…)")
    }
}

impl HubOptions {
    /// From the variables that all Hugging Face libraries read: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN` (or the
    /// file `$HF_HOME/token`), `HF_ENDPOINT`, `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_variables(
            |name| std::env::var(name).ok(),
            std::env::home_dir().as_deref(),
        )
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>, home: Option<&Path>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let root = match (set("HF_HOME"), set("XDG_CACHE_HOME")) {
            (Some(root), _) => PathBuf::from(root),
            (None, Some(cache)) => PathBuf::from(cache).join("huggingface"),
            (None, None) => home
                .unwrap_or(Path::new("."))
                .join(".cache")
                .join("huggingface"),
        };
        let token = set("HF_TOKEN").or_else(|| {
            let text = std::fs::read_to_string(root.join("token")).ok()?;
            Some(text).filter(|text| !text.trim().is_empty())
        });
        let offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
            matches!(
                value.trim().to_ascii_lowercase().as_str(),
                "1" | "true" | "yes" | "on"
            )
        });
        Self {
            endpoint: set("HF_ENDPOINT").map_or_else(
                || DEFAULT_ENDPOINT.to_owned(),
                |endpoint| endpoint.trim().trim_end_matches('/').to_owned(),
            ),
            cache: set("HF_HUB_CACHE").map_or_else(|| root.join("hub"), PathBuf::from),
            token: token.map(|token| HubToken::new(token.trim())),
            offline,
            ..Self::offline(PathBuf::new())
        }
    }

    /// Only what a cache folder holds.
    pub fn offline(cache: PathBuf) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            cache,
            token: None,
            offline: true,
            response_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            attempts: 5,
            retry_pause: Duration::from_millis(500),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> HubOptions {
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        };
        HubOptions::from_variables(variable, Some(Path::new("/home/u")))
    }

    #[test]
    fn reads_the_variables_of_the_hub() {
        let plain = options(&[]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/home/u/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        let all = options(&[
            ("HF_HOME", "/data/hf"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_ENDPOINT", "http://127.0.0.1:9/"),
            ("HF_HUB_OFFLINE", "1"),
        ]);
        assert_eq!(
            (all.endpoint.as_str(), all.cache.as_path()),
            ("http://127.0.0.1:9", Path::new("/data/hf/hub"))
        );
        assert!(all.offline);
        assert_eq!(all.token, Some(HubToken::new("hf_secret")));
        assert!(!format!("{all:?}").contains("secret"));
        assert!(!options(&[("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", "")]).offline);
        assert_eq!(options(&[("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
        assert_eq!(
            options(&[("XDG_CACHE_HOME", "/x")]).cache,
            Path::new("/x/huggingface/hub")
        );
    }

    #[test]
    fn takes_the_token_that_a_login_left() {
        let home = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(home.path().join("token"), "hf_file\n").expect("a writable folder");
        let root = home.path().to_str().expect("UTF-8");
        assert_eq!(
            options(&[("HF_HOME", root)]).token,
            Some(HubToken::new("hf_file"))
        );
    }
}
