//! `trunkline bench engine`: the engine without HTTP, beside what the machine can do.
//!
//! [`limits`] measures bandwidth and peak, [`work`] says what a pass must read and compute, [`cases`] times
//! passes, and [`report`] prints each beside its limit. All are measured in turn in each round, so that a
//! noisy machine disturbs time and limit alike; shares are medians over rounds.

mod cases;
mod limits;
mod report;
mod work;

pub use limits::Bandwidth;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

use clap::Args;

use super::arguments::between;
use super::error::BenchError;
use crate::config::values::{Auto, at_least_one, parse_non_empty};
use crate::engine::loader::{self, HubOptions, LoadedModel, ModelSource, hub};
use crate::engine::{
    AttentionKind, DeviceChoice, Engine, EngineOptions, KvDtype, KvSize, MatmulPrecision, models,
};
use crate::kernels::ThreadPool;
use cases::{Case, Driver};
use limits::Peak;
use report::EngineReport;
use work::ModelWork;

/// candle sizes its threads by this variable, when it first needs them.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// `trunkline bench engine`.
#[derive(Debug, Clone, Args)]
#[command(after_help = HELP)]
pub struct Arguments {
    /// The model: a folder, a .gguf file, a hub name, or `demo`.
    #[arg(long, short, default_value = "demo", value_name = "MODEL", value_parser = parse_non_empty)]
    pub model: String,

    /// CPU threads. `auto` = one for each physical core.
    #[arg(long, default_value = "auto", value_name = "N", value_parser = Auto::parse_with(at_least_one))]
    pub threads: Auto<usize>,

    /// How attention is computed: fused or portable.
    #[arg(long, default_value = "fused", value_name = "KIND")]
    pub attention: AttentionKind,

    /// Number type of cached keys and values.
    #[arg(long, default_value = "auto", value_name = "TYPE")]
    pub kv_dtype: KvDtype,

    /// Rounds; figures are medians over them.
    #[arg(long, default_value = "5", value_name = "N", value_parser = between(1, 100))]
    pub rounds: usize,

    /// Fewer passes in each round: a first impression.
    #[arg(long)]
    pub quick: bool,

    /// Print one JSON object instead of a table.
    #[arg(long)]
    pub json: bool,

    /// Use only files that are already in the hub cache.
    #[arg(long)]
    pub offline: bool,
}

const HELP: &str = "\
Limits: `bw` is the bandwidth with which all threads together read memory. `peak` is the best rate of a
matrix product with 512 rows, by our kernels or candle's, of the format that most weights have. A pass cannot
take less than its bytes at bw, nor less than its operations (projections, attention, LM head) at peak.";

/// Measures and prints. Blocks.
///
/// # Errors
/// See [`BenchError`].
pub fn run(arguments: &Arguments) -> Result<(), BenchError> {
    let threads = threads(arguments);
    let wanted = threads.to_string();
    if std::env::var(CANDLE_THREADS).as_deref() != Ok(&wanted) {
        return Err(BenchError::Restart(restart_with_candle_threads(&wanted)));
    }
    let report = measure(arguments)?;
    report.print(arguments.json).map_err(BenchError::Output)
}

/// Begins again with candle told how many threads it may use: there is no other way to tell it. Returns
/// only if that fails.
fn restart_with_candle_threads(threads: &str) -> std::io::Error {
    match std::env::current_exe() {
        Ok(program) => Command::new(program)
            .args(std::env::args_os().skip(1))
            .env(CANDLE_THREADS, threads)
            .env("RAYON_NUM_THREADS", threads)
            .exec(),
        Err(error) => error,
    }
}

fn threads(arguments: &Arguments) -> usize {
    arguments
        .threads
        .set()
        .unwrap_or_else(ThreadPool::physical_cores)
}

fn measure(arguments: &Arguments) -> Result<EngineReport, BenchError> {
    let threads = threads(arguments);
    let model = load(arguments)?;
    let description = models::describe(&model.config);
    eprintln!("{}: counting its weights", model.id);
    let work = ModelWork::of(&description, model.weights.as_ref())?;
    let mut peaks = Peak::all(&description, model.weights.as_ref())?;
    drop(model);

    // Again, now that its files are in the page cache.
    eprintln!("starting the engine");
    let started = Instant::now();
    let model = load(arguments)?;
    let options = EngineOptions {
        device: DeviceChoice::Cpu,
        kv_dtype: arguments.kv_dtype,
        attention: arguments.attention,
        precision: MatmulPrecision::Auto,
        kv_size: KvSize::Blocks(cases::blocks()),
        block_size: cases::BLOCK_SIZE,
        threads,
        context_window: None,
    };
    let engine = Engine::new(&model.config, model.weights.as_ref(), &options)?;
    let start_seconds = started.elapsed().as_secs_f64();
    let id = model.id.clone();
    drop(model);
    let info = engine.info().clone();
    if info.context_window < cases::LONGEST_CONTEXT {
        return Err(BenchError::Context {
            context: info.context_window,
            needed: cases::LONGEST_CONTEXT,
        });
    }

    let pool = ThreadPool::new(threads)?;
    let bandwidth = Bandwidth::default();
    let mut driver = Driver::new(engine)?;
    let mut rounds = Vec::with_capacity(arguments.rounds);
    for number in 0..arguments.rounds {
        let round = measure_round(arguments, &pool, &bandwidth, &mut peaks, &mut driver)?;
        eprintln!(
            "round {}/{}: bw {:.1} GB/s, {}",
            number + 1,
            arguments.rounds,
            round.bandwidth / 1e9,
            round.tell(),
        );
        rounds.push(round);
    }
    Ok(EngineReport {
        model: id,
        threads,
        info,
        work,
        start_seconds,
        rounds,
    })
}

fn load(arguments: &Arguments) -> Result<LoadedModel, BenchError> {
    let from_env = HubOptions::from_env();
    let options = HubOptions {
        offline: from_env.offline || arguments.offline,
        ..from_env
    };
    let source = ModelSource::parse(&arguments.model)?;
    let files = loader::resolve(&source, &options, &hub::Console::default())?;
    Ok(loader::load(&files)?)
}

/// Limits and times of one round.
#[derive(Debug)]
struct EngineRound {
    /// Bytes a second.
    bandwidth: f64,
    /// FLOP a second, by weight format and implementation.
    peaks: BTreeMap<String, BTreeMap<&'static str, f64>>,
    /// Seconds of one pass (of all chunks of the prompt) of each case.
    seconds: BTreeMap<Case, f64>,
}

impl EngineRound {
    /// The best rate of a format's products.
    fn peak(&self, format: &str) -> f64 {
        let rates = self.peaks.get(format).into_iter().flatten();
        rates
            .map(|(_, rate)| *rate)
            .fold(f64::MIN_POSITIVE, f64::max)
    }

    fn tell(&self) -> String {
        let cases = self.seconds.iter();
        let cases = cases.map(|(case, seconds)| format!("{} {:.1} ms", case.key(), seconds * 1e3));
        cases.collect::<Vec<_>>().join(", ")
    }
}

fn measure_round(
    arguments: &Arguments,
    pool: &ThreadPool,
    bandwidth: &Bandwidth,
    peaks: &mut [Peak],
    driver: &mut Driver,
) -> Result<EngineRound, BenchError> {
    let runs = if arguments.quick { 2 } else { 4 };
    let mut round = EngineRound {
        bandwidth: bandwidth.measure(pool, runs)?,
        peaks: BTreeMap::new(),
        seconds: BTreeMap::new(),
    };
    for peak in peaks {
        let rates = peak.measure(pool, runs)?;
        round.peaks.insert(peak.format().to_owned(), rates);
    }
    for case in Case::ALL {
        let passes = if arguments.quick { 1 } else { case.passes() };
        round.seconds.insert(case, driver.time(case, passes)?);
    }
    Ok(round)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Command, FromArgMatches};

    #[test]
    fn the_demo_model_gives_every_figure() {
        let command = Arguments::augment_args(Command::new("engine").no_binary_name(true));
        let matches = command.get_matches_from(["--quick", "--rounds", "1", "--threads", "1"]);
        let arguments = Arguments::from_arg_matches(&matches).unwrap();
        let report = measure(&arguments).unwrap();
        let json = report.to_json();
        let cases = json["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 4, "{json:#}");
        for case in cases {
            for key in ["seconds", "target", "achieved"] {
                assert!(case[key].as_f64().unwrap() > 0.0, "{key} in {case:#}");
            }
            assert!(case["met"].is_boolean());
        }
        assert!(json["limits"]["bandwidth_bytes_per_s"].as_f64().unwrap() > 0.0);
        assert!(json["limits"]["peak_flops_per_s"].as_f64().unwrap() > 0.0);
        assert!(json["swarm_ideal"]["seconds"].as_f64().unwrap() > 0.0);
        let table = report.to_table();
        for part in ["bw", "peak", "decode alone", "prefill", "4,096", "swarm"] {
            assert!(table.contains(part), "{part} is missing from\n{table}");
        }
    }
}
