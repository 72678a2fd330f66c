//! What `trunkline bench` takes.

use std::time::Duration;

use clap::{Args, Command, Subcommand, ValueEnum};

use super::engine;
use crate::config::ApiKey;
use crate::config::values::{parse_duration, parse_non_empty};

/// The subcommand's name.
pub const COMMAND: &str = "bench";

/// Workloads that a server is driven with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum WorkloadName {
    /// One client alone: a short prompt, 128 tokens out.
    Single,
    /// 16 agents start together, cold; 2 turns each, one system prompt, 48 tokens out a turn.
    Swarm,
    /// 16 agents send the same cold prompt at once, 1 token out; over the time of one agent.
    Burst,
    /// 15 running streams while a long prompt is prefilled; their latency over that without it.
    PrefillInterference,
    /// 16 agents ask behind the same long prompt, which is in the cache; over the first, cold one.
    LongPrefix,
    /// Short and long requests that arrive at random (Poisson).
    Mixed,
    /// 64 streams at once; tokens a second over those of one.
    Streams,
}

/// `trunkline bench`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Arguments {
    #[command(subcommand)]
    pub subcommand: Option<BenchSubcommand>,

    /// What to measure; all of them if none is named.
    #[arg(value_name = "WORKLOAD", value_enum)]
    pub workloads: Vec<WorkloadName>,

    /// The server: any that speaks OpenAI's chat completions. With or without /v1 at the end.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", value_parser = parse_non_empty, help_heading = "Servers")]
    pub url: String,

    /// A second server, measured in turn with the first; the ratios are printed.
    #[arg(long, value_name = "URL", value_parser = parse_non_empty, help_heading = "Servers")]
    pub compare: Option<String>,

    /// The model to ask for; else the first that the server lists.
    #[arg(long, short, value_name = "NAME", value_parser = parse_non_empty, help_heading = "Servers")]
    pub model: Option<String>,

    /// The same for the second server.
    #[arg(long, value_name = "NAME", requires = "compare", value_parser = parse_non_empty, help_heading = "Servers")]
    pub compare_model: Option<String>,

    /// A key to send as `Authorization: Bearer KEY` to both servers.
    #[arg(
        long,
        value_name = "KEY",
        env = "OPENAI_API_KEY",
        hide_env_values = true,
        help_heading = "Servers"
    )]
    pub api_key: Option<ApiKey>,

    /// A request that takes longer counts as an error.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration, help_heading = "Servers")]
    pub timeout: Duration,

    /// Rounds of each workload; figures are medians over them.
    #[arg(long, value_name = "N", default_value = "5", value_parser = between(1, 100), help_heading = "Measurement")]
    pub rounds: usize,

    /// Chooses the prompts. Without it they differ from run to run, so that no cache knows them.
    #[arg(long, value_name = "N", help_heading = "Measurement")]
    pub seed: Option<u64>,

    /// Print one JSON object instead of tables.
    #[arg(long, help_heading = "Measurement")]
    pub json: bool,

    #[command(flatten)]
    pub sizes: Sizes,
}

/// Changes to the workloads' sizes. What is left out is what the workload's name stands for.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Sizes (each workload has its own defaults)")]
pub struct Sizes {
    /// Agents at once; in `mixed`, requests in all.
    #[arg(long, value_name = "N", value_parser = between(1, 1024))]
    pub agents: Option<usize>,

    /// Turns of each agent in `swarm`.
    #[arg(long, value_name = "N", value_parser = between(1, 100))]
    pub turns: Option<usize>,

    /// Words of the system prompt in `swarm`.
    #[arg(long, value_name = "N", value_parser = between(1, 100_000))]
    pub system_words: Option<usize>,

    /// Length of the long prompt in the other workloads.
    #[arg(long, value_name = "TOKENS", value_parser = between(16, 100_000))]
    pub prompt_tokens: Option<usize>,

    /// Tokens out for each request.
    #[arg(long, value_name = "TOKENS", value_parser = between(1, 100_000))]
    pub output_tokens: Option<usize>,

    /// Mean arrivals a second in `mixed`.
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub rate: Option<f64>,
}

#[derive(Debug, Clone, Subcommand)]
pub enum BenchSubcommand {
    /// Measure the engine alone, without HTTP, against the limits of this machine.
    Engine(engine::Arguments),
}

impl Arguments {
    /// The subcommand as a part of the whole command line.
    pub fn command() -> Command {
        Self::augment_args(Command::new(COMMAND))
            .about("Measure a server, this one or any other that is OpenAI-compatible.")
            .long_about(LONG_ABOUT)
    }

    /// The workloads to run, in the order they were named, each once.
    pub fn workloads(&self) -> Vec<WorkloadName> {
        if self.workloads.is_empty() {
            return WorkloadName::value_variants().to_vec();
        }
        let mut named = Vec::new();
        for &workload in &self.workloads {
            if !named.contains(&workload) {
                named.push(workload);
            }
        }
        named
    }
}

const LONG_ABOUT: &str = "\
Measure a server, this one or any other that is OpenAI-compatible.

Prompts are random English words, new ones in each round, so that a prefix cache helps only
where the workload means it to. Requests are streamed and greedy, and ask for exactly as many
tokens as the workload says (`ignore_eos`, where the server knows it). Token counts are those
that the server reports (`stream_options`).

  TTFT   from sending the request to the first token
  ITL    between one piece of text and the next, as the client sees them
  TPOT   time for each token after the first, one value a request
  E2E    from sending the request to the end of the answer";

const EXAMPLES: &str = "\
Examples:
  trunkline bench                                        everything, on http://127.0.0.1:8080
  trunkline bench swarm burst --url http://10.0.0.2:8000
  trunkline bench swarm --compare http://127.0.0.1:8081  two servers, in turn
  trunkline bench streams --agents 1000 --rounds 1
  trunkline bench engine --model model-q4_k_m.gguf       kernels and memory bandwidth, no server";

/// A parser of whole numbers from `least` to `most`.
pub(super) fn between(
    least: usize,
    most: usize,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("expected a whole number from {least} to {most}")),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=10_000.0).contains(&rate) => Ok(rate),
        _ => Err("expected a number from 0.001 to 10000".to_owned()),
    }
}
