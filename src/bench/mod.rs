//! `trunkline bench`: drives any OpenAI-compatible server with named workloads, and measures our engine
//! without one ([`engine`]).
//!
//! A [`target`] is a server that has answered; a [`workloads::Workload`] runs rounds on it with new
//! [`prompts`], many agents at once ([`crowd`]), each through the [`client`]; [`statistics`] brings the
//! rounds together, and [`report`] prints them.

mod arguments;
mod client;
mod crowd;
pub mod engine;
mod error;
mod events;
mod prompts;
mod report;
mod statistics;
mod target;
mod workloads;

use std::time::{SystemTime, UNIX_EPOCH};

pub use arguments::{Arguments, BenchSubcommand, COMMAND};
pub use error::BenchError;

use prompts::Prompts;
use report::{Report, WorkloadReport};
use target::Target;
use workloads::{Round, Workload};

/// How a measurement went that could be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every request was answered.
    Clean,
    /// Some requests failed, or a workload could not be measured; the report says which.
    Failed,
}

/// Measures what `arguments` say and prints the report on standard output; progress goes to standard error.
/// Blocks.
///
/// # Errors
/// See [`BenchError`].
pub fn run(arguments: &Arguments) -> Result<Verdict, BenchError> {
    match &arguments.subcommand {
        Some(BenchSubcommand::Engine(arguments)) => {
            engine::run(arguments)?;
            Ok(Verdict::Clean)
        }
        None => {
            let report = measure(arguments)?;
            report.print(arguments.json).map_err(BenchError::Output)?;
            Ok(report.verdict())
        }
    }
}

fn measure(arguments: &Arguments) -> Result<Report, BenchError> {
    let seed = arguments.seed.unwrap_or_else(seed_of_the_clock);
    let mut targets = vec![Target::connect(
        arguments,
        &arguments.url,
        arguments.model.as_deref(),
        seed,
        0,
    )?];
    if let Some(url) = &arguments.compare {
        let model = arguments.compare_model.as_deref();
        targets.push(Target::connect(arguments, url, model, seed, 1)?);
    }
    let mut report = Report::new(seed, arguments.rounds, &targets);
    for name in arguments.workloads() {
        let workload = workloads::workload(name, &arguments.sizes);
        let measured = run_workload(workload.as_ref(), &targets, seed, arguments.rounds);
        report.workloads.push(measured);
    }
    Ok(report)
}

/// All rounds of a workload, the servers in turn: each round begins with the other one, so that a drift
/// of the machine falls on both. With a round that has no figures the workload ends for all: what was measured of
/// it, and the other workloads, are worth telling.
fn run_workload(
    workload: &dyn Workload,
    targets: &[Target],
    seed: u64,
    rounds: usize,
) -> WorkloadReport {
    let mut report = WorkloadReport::new(workload, targets.len());
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..targets.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for side in order {
            let target = &targets[side];
            let mut prompts = Prompts::new(seed, workload.name(), round, side);
            match workloads::run_round(workload, target, &mut prompts) {
                Ok(result) => {
                    tell_progress(workload, target, round, rounds, &result);
                    report.add(side, result);
                }
                Err(error) => {
                    let (name, url) = (report::name_of(workload.name()), target.client.url());
                    eprintln!("{name} {}/{rounds} {url}: {error}", round + 1);
                    report.fail(side, round, &error);
                    return report;
                }
            }
        }
    }
    report
}

fn tell_progress(
    workload: &dyn Workload,
    target: &Target,
    round: usize,
    rounds: usize,
    result: &Round,
) {
    eprintln!(
        "{} {}/{rounds} {}: {:.3} s, {} errors",
        report::name_of(workload.name()),
        round + 1,
        target.client.url(),
        result.metrics.get("wall_s").unwrap_or_default(),
        result.metrics.get("errors").unwrap_or_default(),
    );
}

/// A seed that no earlier run had.
fn seed_of_the_clock() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // Milliseconds are enough to tell runs apart, and short enough to be typed again.
    now.map_or(0, |now| now.as_millis() as u64)
}
