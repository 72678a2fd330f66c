//! `trunkline quantize IN OUT.gguf`.

use std::path::PathBuf;

use clap::{Args, Command, FromArgMatches};

use crate::engine::loader::quantize::{
    FileType, QuantizeError, QuantizeJob, QuantizeReport, write_gguf,
};

/// The subcommand's name.
pub const COMMAND: &str = "quantize";

/// What the subcommand is told.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The model: a folder with safetensors, a GGUF file in f32, f16 or bf16, a hub name that is already in
    /// the cache, or `demo`.
    #[arg(value_name = "IN")]
    input: String,

    /// The file to write.
    #[arg(value_name = "OUT.gguf", value_parser = parse_output)]
    output: PathBuf,

    /// What the matrices become; see below.
    #[arg(
        long = "type",
        short = 't',
        value_name = "TYPE",
        default_value = "q4_k_m"
    )]
    file_type: FileType,

    /// Replace OUT.gguf if it exists.
    #[arg(long)]
    force: bool,

    /// Threads that quantize; 0 = one for each CPU.
    #[arg(long, value_name = "N", default_value = "0")]
    threads: usize,
}

/// A name by which `--model` and other programs know what the file is.
fn parse_output(name: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(name);
    let ending = path.extension().unwrap_or_default();
    if ending.eq_ignore_ascii_case("gguf") {
        Ok(path)
    } else {
        Err("the name must end in .gguf, by which programs know such a file".to_owned())
    }
}

const HELP_FOOTER: &str = "\
Types, with the bits a weight takes in most matrices:
  q4_0              4.5   blocks of 32 with one scale
  q4_k_s            4.5   superblocks of 256; 5.5 in the values and down projections of the first layers
  q4_k_m            4.5   the same, but 6.6 in half of the values and down projections: the usual choice
  q5_k_s, q5_k_m    5.5
  q6_k              6.6
  q8_0              8.5   hardly distinguishable from the original
  f16, bf16, f32          not quantized

Which tensor gets which type is llama.cpp's choice, and so are all names in the file: other GGUF loaders read
it too. Rows that are no multiple of 256 get a type with blocks of 32 instead (q5_0, q5_1, q8_0).

Examples:
  trunkline quantize ~/models/Qwen3-0.6B qwen3-0.6b-q4_k_m.gguf
  trunkline quantize Qwen/Qwen3-0.6B qwen3-0.6b-q8_0.gguf --type q8_0
  trunkline --model qwen3-0.6b-q8_0.gguf";

impl Arguments {
    /// The subcommand as clap knows it.
    pub fn command() -> Command {
        Self::augment_args(Command::new(COMMAND))
            .about("Write a model as one GGUF file, quantized, with tokenizer and chat template.")
            .long_about(None)
            .after_help(HELP_FOOTER)
    }

    /// Reads what clap has parsed by [`Arguments::command`].
    ///
    /// # Errors
    /// clap's own.
    pub fn from_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        Self::from_arg_matches(matches)
    }
}

/// Writes the file.
///
/// # Errors
/// See [`QuantizeError`].
pub fn run(arguments: &Arguments) -> Result<QuantizeReport, QuantizeError> {
    write_gguf(&QuantizeJob {
        input: arguments.input.clone(),
        output: arguments.output.clone(),
        file_type: arguments.file_type,
        force: arguments.force,
        threads: arguments.threads,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Arguments, clap::Error> {
        let words = format!("{COMMAND} {words}");
        Arguments::from_matches(&Arguments::command().try_get_matches_from(words.split(' '))?)
    }

    #[test]
    fn types_are_read_in_either_case_and_have_a_default() {
        let arguments = parse("demo out.gguf --type Q8_0 --force").unwrap();
        assert_eq!(arguments.file_type, FileType::Q8_0);
        assert!(arguments.force);
        assert_eq!(parse("demo out.gguf").unwrap().file_type, FileType::Q4_K_M);
    }

    #[test]
    fn an_unknown_type_names_the_choices() {
        let message = parse("demo out.gguf --type q3_k_m")
            .unwrap_err()
            .to_string();
        for part in ["q3_k_m", "q4_k_m", "q8_0", "bf16"] {
            assert!(message.contains(part), "{part} is missing from {message}");
        }
        assert!(parse("demo").is_err(), "no output");
        let message = parse("demo out.txt").unwrap_err().to_string();
        assert!(message.contains(".gguf"), "{message}");
    }
}
