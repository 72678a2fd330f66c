//! What the process is asked to do: serve, which needs no word for it, or one of the subcommands.

pub mod quantize;

use std::ffi::OsString;

use clap::{Command, FromArgMatches};

use crate::bench;
use crate::config::layers::{self, ConfigError, Loaded};

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// The default: `trunkline [OPTIONS]`.
    Serve(Box<Loaded>),
    /// `trunkline bench …`. Reads neither configuration file nor `TRUNKLINE_*`.
    Bench(Box<bench::Arguments>),
    /// `trunkline quantize …`. Reads neither configuration file nor `TRUNKLINE_*`.
    Quantize(Box<quantize::Arguments>),
}

/// The whole command line: the server's flags, and the subcommands, which take none of these.
pub fn command() -> Command {
    layers::command()
        .args_conflicts_with_subcommands(true)
        .subcommand(bench::Arguments::command())
        .subcommand(quantize::Arguments::command())
}

/// Reads a command line, the program's name first, and what else the command needs.
///
/// # Errors
/// See [`ConfigError`]; `--help` and `--version` are among them.
pub fn read(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Invocation, ConfigError> {
    let matches = command().try_get_matches_from(arguments)?;
    match matches.subcommand() {
        Some((bench::COMMAND, matches)) => {
            let arguments = bench::Arguments::from_arg_matches(matches)?;
            Ok(Invocation::Bench(Box::new(arguments)))
        }
        Some((quantize::COMMAND, matches)) => {
            let arguments = quantize::Arguments::from_matches(matches)?;
            Ok(Invocation::Quantize(Box::new(arguments)))
        }
        _ => {
            let loaded = layers::load_matches(&matches, environment)?;
            Ok(Invocation::Serve(Box::new(loaded)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_words(words: &str) -> Result<Invocation, ConfigError> {
        read(words.split(' ').map(OsString::from), [])
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn without_a_subcommand_it_serves() {
        let Invocation::Serve(loaded) = read_words("trunkline --model some/model").unwrap() else {
            panic!("not the server");
        };
        assert_eq!(loaded.config.model, "some/model");
    }

    #[test]
    fn subcommands_keep_their_flags_apart() {
        let read = |words| read_words(words).map(|invocation| format!("{invocation:?}"));
        assert!(
            read("trunkline bench swarm --rounds 2")
                .unwrap()
                .starts_with("Bench")
        );
        assert!(
            read("trunkline bench engine --model x --quick")
                .unwrap()
                .contains("quick: true")
        );
        assert!(
            read("trunkline quantize demo out.gguf")
                .unwrap()
                .starts_with("Quantize")
        );
        let error = read("trunkline --port 1 bench swarm")
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot be used with"), "{error}");
        let error = read("trunkline bench swarn").unwrap_err().to_string();
        assert!(error.contains("swarm"), "{error}");
        assert!(read("trunkline benhc").is_err());
    }

    #[test]
    fn help_names_the_subcommands() {
        let help = read_words("trunkline --help").unwrap_err().to_string();
        assert!(
            ["Commands:", "bench", "quantize"]
                .iter()
                .all(|part| help.contains(part)),
            "{help}"
        );
        let help = read_words("trunkline bench --help")
            .unwrap_err()
            .to_string();
        for part in ["swarm", "--compare", "Examples:", "engine"] {
            assert!(help.contains(part), "{part} is missing from\n{help}");
        }
        let help = read_words("trunkline quantize --help")
            .unwrap_err()
            .to_string();
        for part in ["q4_k_m", "--force", "Examples:", "OUT.gguf"] {
            assert!(help.contains(part), "{part} is missing from\n{help}");
        }
    }
}
