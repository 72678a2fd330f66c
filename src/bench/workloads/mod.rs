//! What servers are driven with. Each workload says its sizes, runs one round, and tells its own figures.

mod burst;
mod interference;
mod long_prefix;
mod mixed;
mod single;
mod streams;
mod swarm;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::arguments::{Sizes, WorkloadName};
use super::client::{Answer, RequestError};
use super::error::BenchError;
use super::prompts::Prompts;
use super::statistics::{E2E, ITL, Metrics, TPOT, TTFT};
use super::target::{Target, metric};

/// Most errors that a round repeats in words.
const ERRORS_TOLD: usize = 3;
/// Less than this share of what a cold round must compute was computed: it was not cold.
const COLD: f64 = 0.9;

/// A workload with its sizes.
pub trait Workload {
    fn name(&self) -> WorkloadName;

    /// One line for people.
    fn describe(&self) -> String;

    /// The sizes by name, for JSON.
    fn parameters(&self) -> Value;

    /// What the workload's own figures mean: names in [`Metrics`], and words.
    fn figures(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// One round, with new prompts.
    ///
    /// # Errors
    /// When the round as a whole is without meaning. Single requests that fail are counted instead.
    fn run(&self, target: &Target, prompts: &mut Prompts) -> Result<Round, RoundError>;
}

/// Why a round has no figures.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{0}")]
    Meaningless(String),
}

/// The workload of a name, with the defaults changed by `sizes`.
pub fn workload(name: WorkloadName, sizes: &Sizes) -> Box<dyn Workload> {
    match name {
        WorkloadName::Single => Box::new(single::Single::new(sizes)),
        WorkloadName::Swarm => Box::new(swarm::Swarm::new(sizes)),
        WorkloadName::Burst => Box::new(burst::Burst::new(sizes)),
        WorkloadName::PrefillInterference => Box::new(interference::Interference::new(sizes)),
        WorkloadName::LongPrefix => Box::new(long_prefix::LongPrefix::new(sizes)),
        WorkloadName::Mixed => Box::new(mixed::Mixed::new(sizes)),
        WorkloadName::Streams => Box::new(streams::Streams::new(sizes)),
    }
}

/// What one round brought.
#[derive(Debug, Default)]
pub struct Round {
    pub metrics: Metrics,
    /// The first few errors of requests.
    pub errors: Vec<String>,
    /// What the reader should know about it.
    pub notes: Vec<String>,
}

impl Round {
    /// The figures that all workloads have: of `results`, which were asked for from `started` on.
    ///
    /// `unique_tokens` is what a server must compute at least if its cache knew nothing before, as far as
    /// that is known.
    pub fn of(
        started: Instant,
        results: Vec<Result<Answer, RequestError>>,
        unique_tokens: Option<u64>,
    ) -> Self {
        let mut round = Round::default();
        let mut answers = Vec::with_capacity(results.len());
        let mut failed = 0;
        for result in results {
            match result {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    failed += 1;
                    if round.errors.len() < ERRORS_TOLD {
                        round.errors.push(error.to_string());
                    }
                }
            }
        }
        let wall = answers
            .iter()
            .map(|answer| answer.ended.saturating_duration_since(started))
            .max()
            .unwrap_or_else(|| started.elapsed());
        round.metrics.insert("wall_s", wall.as_secs_f64());
        round
            .metrics
            .insert("requests", (answers.len() + failed) as f64);
        round.metrics.insert("errors", failed as f64);
        round.count_tokens(&answers, wall, unique_tokens);
        round.distribute(&answers);
        round
    }

    fn count_tokens(&mut self, answers: &[Answer], wall: Duration, unique_tokens: Option<u64>) {
        let seconds = wall.as_secs_f64().max(f64::MIN_POSITIVE);
        let output: u64 = answers.iter().map(Answer::output_tokens).sum();
        self.metrics.insert("output_tokens", output as f64);
        self.metrics
            .insert("output_tokens_per_s", output as f64 / seconds);
        let usages: Option<Vec<_>> = answers.iter().map(|answer| answer.usage).collect();
        let Some(usages) = usages else {
            return;
        };
        let input: u64 = usages.iter().map(|usage| usage.prompt_tokens).sum();
        self.metrics.insert("input_tokens", input as f64);
        self.metrics
            .insert("input_tokens_per_s", input as f64 / seconds);
        let Some(cached) = usages
            .iter()
            .map(|usage| usage.cached_tokens())
            .sum::<Option<u64>>()
        else {
            return;
        };
        self.metrics.insert("cached_tokens", cached as f64);
        if input > 0 {
            self.metrics
                .insert("cached_share", cached as f64 / input as f64);
        }
        let computed = input.saturating_sub(cached);
        if let Some(unique) = unique_tokens
            && (computed as f64) < COLD * unique as f64
        {
            self.notes.push(format!(
                "not cold: {computed} prompt tokens were computed where a cold server must compute {unique}; \
                 restart the server or choose another --seed"
            ));
        }
    }

    fn distribute(&mut self, answers: &[Answer]) {
        let seconds = |duration: Duration| duration.as_secs_f64();
        let first: Vec<f64> = answers
            .iter()
            .map(|answer| seconds(answer.time_to_first_token()))
            .collect();
        let whole: Vec<f64> = answers
            .iter()
            .map(|answer| seconds(answer.end_to_end()))
            .collect();
        let gaps: Vec<f64> = answers
            .iter()
            .flat_map(gaps)
            .map(|gap| gap.seconds())
            .collect();
        let per_token: Vec<f64> = answers
            .iter()
            .filter(|answer| answer.output_tokens() > 1)
            .map(|answer| {
                let after_first = answer
                    .end_to_end()
                    .saturating_sub(answer.time_to_first_token());
                seconds(after_first) / (answer.output_tokens() - 1) as f64
            })
            .collect();
        self.metrics.insert_distribution(TTFT, &first);
        self.metrics.insert_distribution(ITL, &gaps);
        self.metrics.insert_distribution(TPOT, &per_token);
        self.metrics.insert_distribution(E2E, &whole);
    }

    /// Takes over the errors and notes of a round that was measured beside this one.
    fn add_beside(&mut self, other: Round) {
        let errors = |round: &Round| round.metrics.get("errors").unwrap_or_default();
        let sum = errors(self) + errors(&other);
        self.metrics.insert("errors", sum);
        self.errors.extend(other.errors);
        self.errors.truncate(ERRORS_TOLD);
        self.notes.extend(other.notes);
    }
}

/// The time between two pieces of text.
#[derive(Debug, Clone, Copy)]
struct Gap {
    from: Instant,
    to: Instant,
}

impl Gap {
    fn seconds(self) -> f64 {
        self.to.duration_since(self.from).as_secs_f64()
    }
}

fn gaps(answer: &Answer) -> impl Iterator<Item = Gap> + '_ {
    answer.pieces.windows(2).map(|pair| Gap {
        from: pair[0],
        to: pair[1],
    })
}

/// Tokens of an answer's prompt that no other prompt begins with, if the server counts them: all but what the
/// chat template puts around.
fn unique_tokens(target: &Target, answer: &Result<Answer, RequestError>) -> Option<u64> {
    let tokens = answer.as_ref().ok()?.usage?.prompt_tokens;
    Some(tokens.saturating_sub(target.scale.template.ceil() as u64))
}

/// Runs a round, and adds what the server's own metrics say about it, if it has Trunkline's.
pub fn run_round(
    workload: &dyn Workload,
    target: &Target,
    prompts: &mut Prompts,
) -> Result<Round, RoundError> {
    const STEPS: &str = "trunkline_step_duration_seconds_sum";
    let before = target.metrics().and_then(|scrape| metric(&scrape, STEPS));
    let began = Instant::now();
    let mut round = workload.run(target, prompts)?;
    let elapsed = began.elapsed().as_secs_f64();
    if let Some(before) = before
        && let Some(scrape) = target.metrics()
    {
        if let Some(after) = metric(&scrape, STEPS) {
            round
                .metrics
                .insert("engine_busy_share", (after - before) / elapsed);
        }
        if let Some(bytes) = metric(&scrape, "process_resident_memory_bytes") {
            round.metrics.insert("server_memory_bytes", bytes);
        }
    }
    Ok(round)
}

fn sizes_json(pairs: &[(&str, usize)]) -> Value {
    let mut object = json!({});
    for (name, value) in pairs {
        object[name] = json!(value);
    }
    object
}
