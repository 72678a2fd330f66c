//! What a run on servers brought: as a table, or as JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::{Value, json};

use super::Verdict;
use super::arguments::WorkloadName;
use super::statistics::{Distribution, E2E, ITL, Metrics, TPOT, TTFT};
use super::target::Target;
use super::workloads::{Round, RoundError, Workload};

const DISTRIBUTIONS: [(&str, Distribution); 4] =
    [("TTFT", TTFT), ("ITL", ITL), ("TPOT", TPOT), ("E2E", E2E)];

/// Everything that was measured.
pub struct Report {
    seed: u64,
    rounds: usize,
    servers: Vec<ServerReport>,
    pub workloads: Vec<WorkloadReport>,
}

struct ServerReport {
    url: String,
    model: String,
    tokens_per_word: f64,
    notes: Vec<String>,
}

/// All rounds of one workload, for each server.
pub struct WorkloadReport {
    name: WorkloadName,
    description: String,
    parameters: Value,
    figures: &'static [(&'static str, &'static str)],
    /// In the order of the servers.
    sides: Vec<Side>,
}

/// A workload on one server.
#[derive(Default)]
struct Side {
    rounds: Vec<Round>,
    /// Why it has no more rounds.
    failure: Option<String>,
}

impl Side {
    /// Medians over the rounds in which every request was answered; over all if there is no such round. Answers that did
    /// not come cost no time.
    fn median(&self) -> Metrics {
        let metrics = |round: &Round| round.metrics.clone();
        let mut counted: Vec<Metrics> = self.clean().map(metrics).collect();
        if counted.is_empty() {
            counted = self.rounds.iter().map(metrics).collect();
        }
        Metrics::median_of(&counted)
    }

    fn clean(&self) -> impl Iterator<Item = &Round> {
        let is_clean = |round: &&Round| round.metrics.get("errors") == Some(0.0);
        self.rounds.iter().filter(is_clean)
    }

    /// Rounds in which a request failed.
    fn failed_rounds(&self) -> usize {
        self.rounds.len() - self.clean().count()
    }

    fn is_clean(&self) -> bool {
        self.failure.is_none() && self.failed_rounds() == 0
    }

    /// What the reader should know of what is missing in the medians.
    fn reservations(&self) -> Vec<String> {
        let (failed, all) = (self.failed_rounds(), self.rounds.len());
        let failed = match failed {
            0 => None,
            _ if failed == all => Some(format!(
                "in each of {all} rounds requests failed: these are not times of whole answers"
            )),
            _ => Some(format!(
                "in {failed} of {all} rounds requests failed: these are left out of the medians"
            )),
        };
        let failure = self.failure.iter();
        let failure = failure.map(|reason| format!("not measured to the end: {reason}"));
        failed.into_iter().chain(failure).collect()
    }
}

/// The name on the command line.
pub fn name_of(name: WorkloadName) -> &'static str {
    match name {
        WorkloadName::Single => "single",
        WorkloadName::Swarm => "swarm",
        WorkloadName::Burst => "burst",
        WorkloadName::PrefillInterference => "prefill-interference",
        WorkloadName::LongPrefix => "long-prefix",
        WorkloadName::Mixed => "mixed",
        WorkloadName::Streams => "streams",
    }
}

impl Report {
    pub fn new(seed: u64, rounds: usize, targets: &[Target]) -> Self {
        let servers = targets.iter().map(|target| ServerReport {
            url: target.client.url().to_owned(),
            model: target.client.model().to_owned(),
            tokens_per_word: target.scale.per_word,
            notes: target.notes.clone(),
        });
        Self {
            seed,
            rounds,
            servers: servers.collect(),
            workloads: Vec::new(),
        }
    }

    pub fn verdict(&self) -> Verdict {
        let mut sides = self.workloads.iter().flat_map(|workload| &workload.sides);
        if sides.all(Side::is_clean) {
            Verdict::Clean
        } else {
            Verdict::Failed
        }
    }

    /// # Errors
    /// When standard output takes no more.
    pub fn print(&self, as_json: bool) -> io::Result<()> {
        let text = if as_json {
            format!("{:#}\n", self.to_json())
        } else {
            self.to_table()
        };
        let mut output = io::stdout().lock();
        output.write_all(text.as_bytes())?;
        output.flush()
    }

    fn to_json(&self) -> Value {
        let servers = self.servers.iter().map(|server| {
            json!({
                "url": server.url,
                "model": server.model,
                "tokens_per_word": server.tokens_per_word,
                "notes": server.notes,
            })
        });
        let workloads = self
            .workloads
            .iter()
            .map(|workload| workload.to_json(&self.servers));
        json!({
            "trunkline_version": env!("CARGO_PKG_VERSION"),
            "seed": self.seed,
            "rounds": self.rounds,
            "servers": servers.collect::<Vec<_>>(),
            "workloads": workloads.collect::<Vec<_>>(),
        })
    }

    fn to_table(&self) -> String {
        let mut text = format!("seed {}, medians of {} rounds\n", self.seed, self.rounds);
        for (label, server) in labels(&self.servers) {
            line(
                &mut text,
                &format!("{label}{}  model {}", server.url, server.model),
            );
            for note in &server.notes {
                line(&mut text, &format!("  note: {note}"));
            }
        }
        for workload in &self.workloads {
            workload.write_table(&self.servers, &mut text);
        }
        text
    }
}

impl WorkloadReport {
    pub fn new(workload: &dyn Workload, servers: usize) -> Self {
        Self {
            name: workload.name(),
            description: workload.describe(),
            parameters: workload.parameters(),
            figures: workload.figures(),
            sides: std::iter::repeat_with(Side::default)
                .take(servers)
                .collect(),
        }
    }

    pub fn add(&mut self, server: usize, round: Round) {
        self.sides[server].rounds.push(round);
    }

    /// A round on a server brought no figures.
    pub fn fail(&mut self, server: usize, round: usize, error: &RoundError) {
        self.sides[server].failure = Some(format!("round {}: {error}", round + 1));
    }

    fn medians(&self) -> Vec<Metrics> {
        self.sides.iter().map(Side::median).collect()
    }

    /// The first server's medians over the second's, if both have rounds in which every request was answered.
    fn ratios(&self, medians: &[Metrics]) -> Option<Metrics> {
        let all_have = self.sides.iter().all(|side| side.clean().next().is_some());
        match medians {
            [first, second] if all_have => Some(first.over(second)),
            _ => None,
        }
    }

    fn to_json(&self, servers: &[ServerReport]) -> Value {
        let medians = self.medians();
        let results =
            servers
                .iter()
                .zip(&self.sides)
                .zip(&medians)
                .map(|((server, side), median)| {
                    let rounds = &side.rounds;
                    let per_round = rounds.iter().map(|round| round.metrics.to_json());
                    json!({
                        "url": server.url,
                        "median": median.to_json(),
                        "rounds": per_round.collect::<Vec<_>>(),
                        "failed_rounds": side.failed_rounds(),
                        "failure": side.failure,
                        "errors": distinct(rounds.iter().flat_map(|round| &round.errors)),
                        "notes": distinct(rounds.iter().flat_map(|round| &round.notes)),
                    })
                });
        let mut json = json!({
            "workload": name_of(self.name),
            "description": self.description,
            "parameters": self.parameters,
            "results": results.collect::<Vec<_>>(),
        });
        if let Some(ratios) = self.ratios(&medians) {
            json["ratios"] = ratios.to_json();
        }
        json
    }

    fn write_table(&self, servers: &[ServerReport], text: &mut String) {
        line(
            text,
            &format!("\n{}: {}", name_of(self.name), self.description),
        );
        let medians = self.medians();
        for (((label, _), side), median) in labels(servers).zip(&self.sides).zip(&medians) {
            let rounds = &side.rounds;
            if rounds.is_empty() {
                line(text, &format!("{label}no figures"));
            } else {
                line(text, &format!("{label}{}", self.summary(rounds, median)));
                write_distributions(median, milliseconds, text);
            }
            for reservation in side.reservations() {
                line(text, &format!("  {reservation}"));
            }
            for error in distinct(rounds.iter().flat_map(|round| &round.errors)) {
                line(text, &format!("  error: {error}"));
            }
            for note in distinct(rounds.iter().flat_map(|round| &round.notes)) {
                line(text, &format!("  note: {note}"));
            }
        }
        if let Some(ratio) = self.ratios(&medians) {
            let show = |name| {
                ratio
                    .get(name)
                    .map_or("-".to_owned(), |value| format!("{value:.2}"))
            };
            line(
                text,
                &format!(
                    "A / B  wall {} · tokens/s in {} · tokens/s out {}",
                    show("wall_s"),
                    show("input_tokens_per_s"),
                    show("output_tokens_per_s"),
                ),
            );
            write_distributions(&ratio, |ratio| format!("{ratio:.2}"), text);
        } else if medians.len() > 1 {
            line(
                text,
                "A / B  left out: a server answered no round as a whole",
            );
        }
    }

    /// Everything but the distributions.
    fn summary(&self, rounds: &[Round], median: &Metrics) -> String {
        let walls: Vec<f64> = rounds
            .iter()
            .filter_map(|round| round.metrics.get("wall_s"))
            .collect();
        let least = walls.iter().copied().fold(f64::INFINITY, f64::min);
        let most = walls.iter().copied().fold(0.0, f64::max);
        let count = |name| {
            median
                .get(name)
                .map_or("?".to_owned(), |value| format!("{value:.0}"))
        };
        let wall = median.get("wall_s").unwrap_or_default();
        let mut text = format!(
            "wall {wall:.3} s ({least:.3} to {most:.3}) · {} requests, {} errors\n  in {} tokens, {}/s · out {} \
             tokens, {}/s",
            count("requests"),
            count("errors"),
            count("input_tokens"),
            count("input_tokens_per_s"),
            count("output_tokens"),
            count("output_tokens_per_s"),
        );
        if let Some(share) = median.get("cached_share") {
            let _ = write!(
                text,
                " · {:.1} % of the input from the cache",
                share * 100.0
            );
        }
        if let Some(share) = median.get("engine_busy_share") {
            let _ = write!(text, "\n  engine busy {:.1} % of the time", share * 100.0);
        }
        if let Some(bytes) = median.get("server_memory_bytes") {
            let _ = write!(text, " · server memory {:.0} MB", bytes / 1e6);
        }
        for (name, meaning) in self.figures {
            if let Some(value) = median.get(name) {
                let _ = write!(text, "\n  {meaning}: {value:.3}");
            }
        }
        text
    }
}

fn write_distributions(metrics: &Metrics, show: impl Fn(f64) -> String, text: &mut String) {
    let rows: Vec<_> = DISTRIBUTIONS
        .iter()
        .filter(|(_, names)| metrics.get(names.p50).is_some())
        .collect();
    if rows.is_empty() {
        return;
    }
    line(
        text,
        &format!(
            "  {:6}{:>12}{:>12}{:>12}{:>12}",
            "", "p50", "p95", "p99", "max"
        ),
    );
    for (label, names) in rows {
        let cell = |name| metrics.get(name).map_or("-".to_owned(), &show);
        let cells = [
            cell(names.p50),
            cell(names.p95),
            cell(names.p99),
            cell(names.max),
        ];
        let [p50, p95, p99, max] = cells;
        line(
            text,
            &format!("  {label:6}{p50:>12}{p95:>12}{p99:>12}{max:>12}"),
        );
    }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

/// What each server is called in tables: nothing if there is one, else a letter.
fn labels(servers: &[ServerReport]) -> impl Iterator<Item = (&'static str, &ServerReport)> {
    let names: &[&str] = if servers.len() == 1 {
        &[""]
    } else {
        &["A: ", "B: "]
    };
    names.iter().copied().zip(servers)
}

/// Each once, in the order of the first.
fn distinct<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for text in texts {
        if !found.contains(&text.as_str()) {
            found.push(text);
        }
    }
    found
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    fn side(walls_and_errors: &[(f64, f64)]) -> Side {
        let round = |&(wall, errors): &(f64, f64)| {
            let mut metrics = Metrics::default();
            metrics.insert("wall_s", wall);
            metrics.insert("errors", errors);
            Round {
                metrics,
                ..Round::default()
            }
        };
        Side {
            rounds: walls_and_errors.iter().map(round).collect(),
            failure: None,
        }
    }

    #[test]
    fn rounds_with_errors_are_left_out_of_medians_and_ratios() {
        let workload = |sides| WorkloadReport {
            name: WorkloadName::Single,
            description: String::new(),
            parameters: Value::Null,
            figures: &[],
            sides,
        };
        // A server that dies is done at once from then on.
        let dying = side(&[(2.0, 0.0), (4.0, 0.0), (0.1, 1.0), (0.0, 1.0), (0.0, 1.0)]);
        assert_eq!(dying.median().get("wall_s"), Some(3.0));
        assert_eq!(dying.failed_rounds(), 3);
        assert!(dying.reservations()[0].contains("3 of 5"));
        let both = workload(vec![side(&[(6.0, 0.0)]), dying]);
        let ratios = both
            .ratios(&both.medians())
            .expect("both have whole rounds");
        assert_eq!(ratios.get("wall_s"), Some(2.0));

        let dead = side(&[(0.1, 2.0), (0.3, 2.0)]);
        assert_eq!(dead.median().get("wall_s"), Some(0.2));
        let both = workload(vec![side(&[(6.0, 0.0)]), dead]);
        assert!(both.ratios(&both.medians()).is_none());
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for name in WorkloadName::value_variants() {
            let value = name.to_possible_value().unwrap();
            assert_eq!(value.get_name(), name_of(*name));
        }
    }
}
