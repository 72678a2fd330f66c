//! Merges file, environment and flags.
//!
//! All three are brought into the form of command line arguments, so that one parser (clap's, from
//! the fields of [`Config`]) reads every value, and one table of keys knows every name.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::Config;
use super::validate::validate;

/// Read when it exists and neither `--config` nor `TRUNKLINE_CONFIG` names another.
pub const DEFAULT_FILE: &str = "config/trunkline.toml";
const PREFIX: &str = "TRUNKLINE_";

/// The configuration, and where it came from.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What works but is likely not meant, for the log.
    pub warnings: Vec<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A wrong flag; also `--help` and `--version`, which clap treats alike.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the configuration file {} is not TOML: {message}", path.display())]
    Syntax { path: PathBuf, message: String },
    #[error("unknown key {key} in {origin}{}", suggestion.as_ref().map(|s| format!("; did you mean {s}?")).unwrap_or_default())]
    UnknownKey {
        key: String,
        origin: Layer,
        suggestion: Option<String>,
    },
    #[error("{key} = {value:?} in {origin}: {reason}")]
    Value {
        key: String,
        value: String,
        origin: Layer,
        reason: String,
    },
    /// Values that are fine alone and wrong together.
    #[error("{0}")]
    Conflict(String),
}

/// One of the two sources that are not the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    File(PathBuf),
    Environment,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::File(path) => write!(f, "the configuration file {}", path.display()),
            Layer::Environment => f.write_str("the environment"),
        }
    }
}

/// The server's command line: [`Config`] and the file to read. `cli` adds the other commands.
pub fn command() -> Command {
    let command = Command::new("trunkline")
        .version(env!("CARGO_PKG_VERSION"))
        .before_help(
            "Without any flag, the embedded demo model answers on http://127.0.0.1:8080/v1.",
        )
        .after_help(HELP_FOOTER)
        .arg(
            clap::Arg::new("config")
                .long("config")
                .short('c')
                .value_name("FILE")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Configuration file [default: config/trunkline.toml, if there is one]"),
        );
    // Last, because the fields' own documentation would take its place.
    Config::augment_args(command)
        .about(
            "An OpenAI-compatible inference server for many parallel agent clients on one machine.",
        )
        .long_about(None)
}

const HELP_FOOTER: &str = "\
Every flag is also a key of the configuration file (--max-running is max_running) and an environment
variable (TRUNKLINE_MAX_RUNNING; lists are separated by commas). Flags win over the environment, the
environment over the file. config/trunkline.toml shows every key with its default.

Examples:
  trunkline                                         the demo model
  trunkline --model ~/models/Qwen3-0.6B             a folder with safetensors
  trunkline --model qwen2.5-1.5b-q4_k_m.gguf        one GGUF file
  trunkline --model Qwen/Qwen3-0.6B                 from the Hugging Face hub
  trunkline --models small=Qwen/Qwen3-0.6B --models large=Qwen/Qwen3-4B \\
            --model small --allow-swap --idle-unload 15m
  TRUNKLINE_API_KEY=secret trunkline --host 0.0.0.0";

/// Reads the configuration of this process or of a test: `arguments` with the program's name first.
///
/// # Errors
/// See [`ConfigError`]; each names key, value and source.
pub fn load(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigError> {
    load_matches(&command().try_get_matches_from(arguments)?, environment)
}

/// [`load`] for a command line that has been parsed, by [`command`] or one that was made of it.
///
/// # Errors
/// See [`ConfigError`].
pub fn load_matches(
    flags: &ArgMatches,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Loaded, ConfigError> {
    let keys = Keys::new();
    let (environment, file_from_environment) = read_environment(&keys, environment)?;

    let file = flags
        .get_one::<PathBuf>("config")
        .cloned()
        .or(file_from_environment)
        .or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.is_file()));
    let from_file = match &file {
        Some(path) => read_file(&keys, path)?,
        None => Settings::new(),
    };

    let config = merge(&keys, flags, environment, from_file)?;
    let mut loaded = Loaded {
        config,
        file,
        warnings: Vec::new(),
    };
    loaded.warnings = validate(&mut loaded.config)?;
    Ok(loaded)
}

/// Values by key, as texts.
type Settings = BTreeMap<String, Vec<String>>;

/// What the fields of [`Config`] say about their keys.
struct Keys(BTreeMap<String, Shape>);

#[derive(Clone, Copy, PartialEq)]
enum Shape {
    One,
    List,
    /// A list of `NAME=VALUE`, a table in the file.
    Table,
}

impl Keys {
    fn new() -> Self {
        let command = Config::augment_args(Command::new("trunkline"));
        let shape = |arg: &clap::Arg| match (arg.get_action(), arg.get_value_names()) {
            (ArgAction::Append, Some([name])) if name.contains('=') => Shape::Table,
            (ArgAction::Append, _) => Shape::List,
            _ => Shape::One,
        };
        Keys(
            command
                .get_arguments()
                .map(|arg| (arg.get_id().to_string(), shape(arg)))
                .collect(),
        )
    }

    /// The most similar key, if one is similar at all.
    fn suggestion(&self, unknown: &str) -> Option<&str> {
        self.0
            .keys()
            .map(|key| (strsim::jaro_winkler(unknown, key), key.as_str()))
            .filter(|(similarity, _)| *similarity > 0.8)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, key)| key)
    }

    fn unknown(&self, key: &str, layer: &Layer) -> ConfigError {
        let shown = |key: &str| match layer {
            Layer::File(_) => key.to_owned(),
            Layer::Environment => format!("{PREFIX}{}", key.to_ascii_uppercase()),
        };
        ConfigError::UnknownKey {
            key: shown(key),
            origin: layer.clone(),
            suggestion: self.suggestion(key).map(shown),
        }
    }
}

fn read_environment(
    keys: &Keys,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(Settings, Option<PathBuf>), ConfigError> {
    let mut settings = Settings::new();
    let mut file = None;
    for (name, value) in environment {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let key = key.to_ascii_lowercase();
        if key == "config" {
            file = Some(PathBuf::from(value)).filter(|path| !path.as_os_str().is_empty());
            continue;
        }
        let Some(shape) = keys.0.get(&key) else {
            return Err(keys.unknown(&key, &Layer::Environment));
        };
        let value = value.to_str().ok_or_else(|| ConfigError::Value {
            key: key.clone(),
            value: value.to_string_lossy().into_owned(),
            origin: Layer::Environment,
            reason: "not UTF-8".to_owned(),
        })?;
        let values: Vec<String> = match shape {
            Shape::One => vec![value.to_owned()],
            Shape::List | Shape::Table => value
                .split(',')
                .map(|item| item.trim().to_owned())
                .filter(|item| !item.is_empty())
                .collect(),
        };
        check(&key, &values, &Layer::Environment)?;
        settings.insert(key, values);
    }
    Ok((settings, file))
}

fn read_file(keys: &Keys, path: &Path) -> Result<Settings, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let table: toml::Table =
        text.parse()
            .map_err(|error: toml::de::Error| ConfigError::Syntax {
                path: path.to_owned(),
                message: error.to_string().trim_end().to_owned(),
            })?;
    let layer = Layer::File(path.to_owned());
    let mut settings = Settings::new();
    for (key, value) in table {
        let Some(shape) = keys.0.get(&key) else {
            return Err(keys.unknown(&key, &layer));
        };
        let values = file_values(*shape, &value).ok_or_else(|| ConfigError::Value {
            key: key.clone(),
            value: value.to_string(),
            origin: layer.clone(),
            reason: match shape {
                Shape::One => "expected one value",
                Shape::List => "expected a list of texts",
                Shape::Table => "expected a table of texts",
            }
            .to_owned(),
        })?;
        check(&key, &values, &layer)?;
        settings.insert(key, values);
    }
    Ok(settings)
}

/// A TOML value as argument texts, if it has the shape.
fn file_values(shape: Shape, value: &toml::Value) -> Option<Vec<String>> {
    match (shape, value) {
        (Shape::One, value) => Some(vec![scalar(value)?]),
        (Shape::List, toml::Value::Array(items)) => items.iter().map(scalar).collect(),
        (Shape::Table, toml::Value::Table(entries)) => entries
            .iter()
            .map(|(name, value)| Some(format!("{name}={}", scalar(value)?)))
            .collect(),
        _ => None,
    }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    }
}

/// Parses the values of one key alone, so that an error can name its source, also when a stronger
/// source overrides the value.
fn check(key: &str, values: &[String], layer: &Layer) -> Result<(), ConfigError> {
    let arguments = values.iter().map(|value| argument(key, value));
    let Err(error) = parse(arguments) else {
        return Ok(());
    };
    let value = if key == "api_key" {
        "…".to_owned()
    } else {
        values.join(", ")
    };
    Err(ConfigError::Value {
        key: key.to_owned(),
        value,
        origin: layer.clone(),
        reason: reason(&error),
    })
}

/// The part of clap's error that does not speak of flags.
fn reason(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(valid)) => format!("expected {}", valid.join(", ")),
        _ => error.kind().to_string(),
    }
}

fn argument(key: &str, value: &str) -> OsString {
    format!("--{}={value}", key.replace('_', "-")).into()
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Config, clap::Error> {
    let command = Config::augment_args(Command::new("trunkline").no_binary_name(true));
    Config::from_arg_matches(&command.try_get_matches_from(arguments)?)
}

/// For each key, the values of the strongest source that has it.
fn merge(
    keys: &Keys,
    flags: &ArgMatches,
    mut environment: Settings,
    mut file: Settings,
) -> Result<Config, ConfigError> {
    let mut arguments = Vec::new();
    for key in keys.0.keys() {
        let from_flag = flags.value_source(key) == Some(ValueSource::CommandLine);
        let values = match from_flag {
            true => flags
                .get_raw(key)
                .into_iter()
                .flatten()
                .map(|value| value.to_string_lossy().into_owned())
                .collect(),
            false => environment
                .remove(key)
                .or_else(|| file.remove(key))
                .unwrap_or_default(),
        };
        arguments.extend(values.iter().map(|value| argument(key, value)));
    }
    Ok(parse(arguments.into_iter())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::{Auto, NamedValue};
    use std::collections::BTreeSet;

    fn load_with(
        arguments: &[&str],
        environment: &[(&str, &str)],
        file: &str,
    ) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.toml");
        std::fs::write(&path, file).unwrap();
        let mut all = vec!["trunkline".into(), "--config".into(), path.into_os_string()];
        all.extend(arguments.iter().map(OsString::from));
        let environment = environment
            .iter()
            .map(|(name, value)| (name.into(), value.into()));
        load(all, environment).map(|loaded| loaded.config)
    }

    fn message(result: Result<Config, ConfigError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn the_committed_file_has_every_key_at_its_default() {
        let text = include_str!("../../config/trunkline.toml");
        let table: toml::Table = text.parse().unwrap();
        let keys = Keys::new();
        let in_file: BTreeSet<_> = table.keys().collect();
        assert_eq!(in_file, keys.0.keys().collect::<BTreeSet<_>>());
        assert_eq!(load_with(&[], &[], text).unwrap(), Config::default());
        for key in table.keys() {
            let line = text.lines().position(|line| {
                line.starts_with(&format!("{key} =")) || line == format!("[{key}]")
            });
            let above = text.lines().nth(line.unwrap() - 1).unwrap();
            assert!(
                above.starts_with('#') || ["port", "kv_blocks"].contains(&key.as_str()),
                "{key} has no comment"
            );
        }
    }

    #[test]
    fn flags_win_over_environment_and_environment_over_file() {
        let file = "port = 1\nmax_running = 1\nmax_waiting = 1\napi_key = ['a', 'b']";
        let environment = [("TRUNKLINE_PORT", "2"), ("TRUNKLINE_MAX_RUNNING", "2")];
        let config = load_with(&["--port", "3"], &environment, file).unwrap();
        assert_eq!(
            (config.port, config.max_running, config.max_waiting),
            (3, 2, 1)
        );
        assert_eq!(config.api_key.len(), 2);
    }

    #[test]
    fn truth_values_can_be_switched_off_again() {
        let file = "allow_swap = true";
        assert!(load_with(&[], &[], file).unwrap().allow_swap);
        assert!(
            !load_with(&["--allow-swap=false"], &[], file)
                .unwrap()
                .allow_swap
        );
        let environment = [("TRUNKLINE_ALLOW_SWAP", "false")];
        assert!(
            load_with(&["--allow-swap"], &environment, "")
                .unwrap()
                .allow_swap
        );
    }

    #[test]
    fn lists_and_tables() {
        let file = "[models]\nsmall = 'org/small'\n[aliases]\ns = 'small'";
        let config = load_with(&[], &[("TRUNKLINE_API_KEY", "one, two")], file).unwrap();
        assert_eq!(config.api_key.len(), 2);
        assert_eq!(
            config.models,
            [NamedValue {
                name: "small".into(),
                value: "org/small".into()
            }]
        );
        let config = load_with(&["--kv-blocks", "64", "--models", "a=b"], &[], file).unwrap();
        assert_eq!(config.kv_blocks, Auto::Set(64));
        assert_eq!(config.models.len(), 1);
    }

    #[test]
    fn unknown_keys_come_with_a_suggestion() {
        let error = message(load_with(&[], &[], "max_runing = 3"));
        assert!(
            error.contains("unknown key max_runing in the configuration file"),
            "{error}"
        );
        assert!(error.contains("did you mean max_running?"), "{error}");
        let error = message(load_with(&[], &[("TRUNKLINE_APIKEY", "x")], ""));
        assert!(
            error.contains("unknown key TRUNKLINE_APIKEY in the environment"),
            "{error}"
        );
        assert!(error.contains("did you mean TRUNKLINE_API_KEY?"), "{error}");
        let error = message(load_with(&["--max-runing", "3"], &[], ""));
        assert!(error.contains("--max-running"), "{error}");
    }

    #[test]
    fn wrong_values_name_key_value_and_source() {
        let error = message(load_with(&[], &[], "port = 'eighty'"));
        assert!(
            error.contains("port = \"eighty\" in the configuration file"),
            "{error}"
        );
        let error = message(load_with(
            &["--port", "5"],
            &[("TRUNKLINE_PORT", "70000")],
            "",
        ));
        assert!(
            error.contains("port = \"70000\" in the environment"),
            "{error}"
        );
        let error = message(load_with(&[], &[("TRUNKLINE_KV_DTYPE", "f8")], ""));
        assert!(error.contains("f8") && error.contains("bf16"), "{error}");
        let error = message(load_with(&["--block-size", "33"], &[], ""));
        assert!(
            error.contains("--block-size") && error.contains("power of two"),
            "{error}"
        );
        let error = message(load_with(&[], &[], "api_key = 'one'"));
        assert!(error.contains("expected a list"), "{error}");
        let error = message(load_with(&[], &[], "port = "));
        assert!(error.contains("is not TOML"), "{error}");
    }

    #[test]
    fn a_wrong_key_is_not_repeated_in_the_error() {
        let error = message(load_with(&[], &[], "api_key = ['my secret']"));
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_named_file_must_exist() {
        let arguments = ["trunkline", "--config", "/nonexistent.toml"].map(OsString::from);
        let error = load(arguments, []).unwrap_err();
        assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn help_names_every_group_and_the_other_sources() {
        let error = load(["trunkline", "--help"].map(OsString::from), []).unwrap_err();
        let help = error.to_string();
        for part in [
            "Model:",
            "Server:",
            "Scheduling:",
            "Engine:",
            "Logging:",
            "OpenAI-compatible",
            "TRUNKLINE_",
            "Examples:",
        ] {
            assert!(help.contains(part), "{part} is missing from\n{help}");
        }
    }

    #[test]
    fn the_readme_has_every_option_with_its_default() {
        let readme = include_str!("../../README.md");
        let command = Config::augment_args(Command::new("trunkline"));
        for argument in command.get_arguments() {
            let name = argument.get_id().as_str().replace('_', "-");
            let row = readme
                .lines()
                .find(|line| line.starts_with(&format!("| `--{name}` |")));
            let row = row.unwrap_or_else(|| panic!("README.md has no row for --{name}"));
            for default in argument
                .get_default_values()
                .iter()
                .filter(|value| !value.is_empty())
            {
                let default = default.to_str().unwrap();
                assert!(
                    row.contains(&format!("`{default}`")),
                    "{row} does not say {default}"
                );
            }
        }
    }
}
