//! What concerns more than one field, or a file outside the configuration.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::layers::ConfigError;
use super::{ApiKey, Auto, Config};

/// Checks the configuration as a whole and takes in the key file. Returns warnings.
///
/// # Errors
/// Values that exclude each other, names that mean two things, an unreadable key file.
pub fn validate(config: &mut Config) -> Result<Vec<String>, ConfigError> {
    if config.kv_memory != Auto::Auto && config.kv_blocks != Auto::Auto {
        return Err(conflict(
            "kv_memory and kv_blocks are two ways to say one thing; set one of them",
        ));
    }
    if config.progress_interval.is_zero() {
        return Err(conflict(
            "progress_interval = 0 would send events without end; use at least 1ms",
        ));
    }
    for (name, timeout) in [
        ("request_timeout", config.request_timeout),
        ("head_timeout", config.head_timeout),
        ("body_timeout", config.body_timeout),
        ("write_timeout", config.write_timeout),
    ] {
        if timeout.is_zero() {
            return Err(conflict(format!(
                "{name} = 0 would fail every request; use at least 1ms"
            )));
        }
    }
    check_names(config)?;
    read_key_file(config)?;

    let mut warnings = Vec::new();
    if config.api_key.is_empty() && !is_loopback(&config.host) {
        warnings.push(format!(
            "listening on {} without an API key: anyone who reaches this address can use the server (set TRUNKLINE_API_KEY or --api-key-file)",
            config.host
        ));
    }
    if !config.models.is_empty()
        && !config.allow_swap
        && config.models.len() > usize::from(is_configured(config))
    {
        warnings.push(
            "more than one model is configured, and allow_swap is off: only the first is served"
                .to_owned(),
        );
    }
    Ok(warnings)
}

/// Whether `model` is one of the ids in `models`.
fn is_configured(config: &Config) -> bool {
    config.models.iter().any(|entry| entry.name == config.model)
}

/// Every name means one model.
fn check_names(config: &Config) -> Result<(), ConfigError> {
    let mut names = BTreeSet::new();
    for entry in &config.models {
        if !names.insert(entry.name.as_str()) {
            return Err(conflict(format!("models has {} twice", entry.name)));
        }
    }
    for alias in &config.aliases {
        if !names.insert(alias.name.as_str()) {
            return Err(conflict(format!(
                "the alias {} is also the id of a model or another alias",
                alias.name
            )));
        }
    }
    Ok(())
}

fn read_key_file(config: &mut Config) -> Result<(), ConfigError> {
    let path = &config.api_key_file;
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let failed = |reason: String| conflict(format!("api_key_file {}: {reason}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
    let before = config.api_key.len();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key: ApiKey = line
            .parse()
            .map_err(|reason| failed(format!("line {}: {reason}", number + 1)))?;
        config.api_key.push(key);
    }
    if config.api_key.len() == before {
        // An empty file would otherwise open the server to everyone.
        return Err(failed("holds no key".to_owned()));
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn conflict(message: impl Into<String>) -> ConfigError {
    ConfigError::Conflict(message.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ByteSize, NamedValue};

    fn error(config: Config) -> String {
        validate(&mut { config }).unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_valid_and_without_warning() {
        assert!(validate(&mut Config::default()).unwrap().is_empty());
    }

    #[test]
    fn exclusive_values() {
        let config = Config {
            kv_memory: Auto::Set(ByteSize(1 << 30)),
            kv_blocks: Auto::Set(10),
            ..Config::default()
        };
        assert!(error(config).contains("kv_memory and kv_blocks"));
    }

    #[test]
    fn a_timeout_that_fails_everything_is_named() {
        let config = Config {
            body_timeout: std::time::Duration::ZERO,
            ..Config::default()
        };
        assert!(error(config).contains("body_timeout = 0"));
    }

    #[test]
    fn a_name_means_one_model() {
        let named = |name: &str| NamedValue {
            name: name.into(),
            value: "org/model".into(),
        };
        let config = Config {
            models: vec![named("a")],
            aliases: vec![named("a")],
            ..Config::default()
        };
        assert!(error(config).contains("the alias a"));
    }

    #[test]
    fn an_open_address_without_a_key_is_warned_of() {
        let mut config = Config {
            host: "0.0.0.0".into(),
            ..Config::default()
        };
        assert_eq!(validate(&mut config).unwrap().len(), 1);
        config.api_key = vec!["secret".parse().unwrap()];
        assert!(validate(&mut config).unwrap().is_empty());
        config.api_key.clear();
        for host in ["localhost", "127.0.0.2", "::1"] {
            config.host = host.into();
            assert!(validate(&mut config).unwrap().is_empty(), "{host}");
        }
    }

    #[test]
    fn keys_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# team\nfirst\n\n second \n").unwrap();
        let mut config = Config {
            api_key_file: path.clone(),
            ..Config::default()
        };
        validate(&mut config).unwrap();
        let keys: Vec<_> = config.api_key.iter().map(ApiKey::reveal).collect();
        assert_eq!(keys, ["first", "second"]);

        std::fs::write(&path, "# none\n").unwrap();
        config.api_key.clear();
        assert!(error(config).contains("holds no key"));
    }
}
