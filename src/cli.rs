//! What the process is asked to do: serve, which needs no word for it, or one of the subcommands.

pub mod quantize;

use std::ffi::OsString;

use clap::Command;

use crate::config::layers::{self, ConfigError, Loaded};

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// The default: `trunkline [OPTIONS]`.
    Serve(Box<Loaded>),
    /// `trunkline quantize …`. Reads neither configuration file nor `TRUNKLINE_*`.
    Quantize(Box<quantize::Arguments>),
}

/// The whole command line: the server's flags, and the subcommands, which take none of these.
pub fn command() -> Command {
    layers::command()
        .args_conflicts_with_subcommands(true)
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
            read("trunkline quantize demo out.gguf")
                .unwrap()
                .starts_with("Quantize")
        );
        let error = read("trunkline --port 1 quantize demo out.gguf")
            .unwrap_err()
            .to_string();
        assert!(error.contains("cannot be used with"), "{error}");
        assert!(read("trunkline quantise demo out.gguf").is_err());
    }

    #[test]
    fn help_names_the_subcommands() {
        let help = read_words("trunkline --help").unwrap_err().to_string();
        assert!(
            help.contains("Commands:") && help.contains("quantize"),
            "{help}"
        );
        let help = read_words("trunkline quantize --help")
            .unwrap_err()
            .to_string();
        for part in ["q4_k_m", "--force", "Examples:", "OUT.gguf"] {
            assert!(help.contains(part), "{part} is missing from\n{help}");
        }
    }
}
