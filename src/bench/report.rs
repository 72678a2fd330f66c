//! What a run on servers brought: as a table, or as JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::{Value, json};

use super::Verdict;
use super::arguments::WorkloadName;
use super::statistics::{Distribution, E2E, ITL, Metrics, TPOT, TTFT};
use super::target::Target;
use super::workloads::{Round, Workload};

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
    rounds: Vec<Vec<Round>>,
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
        let mut rounds = self
            .workloads
            .iter()
            .flat_map(|workload| workload.rounds.iter().flatten());
        if rounds.any(|round| round.metrics.get("errors") != Some(0.0)) {
            Verdict::RequestsFailed
        } else {
            Verdict::Clean
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
            rounds: std::iter::repeat_with(Vec::new).take(servers).collect(),
        }
    }

    pub fn add(&mut self, server: usize, round: Round) {
        self.rounds[server].push(round);
    }

    fn medians(&self) -> Vec<Metrics> {
        let of_server = |rounds: &Vec<Round>| {
            let metrics: Vec<Metrics> = rounds.iter().map(|round| round.metrics.clone()).collect();
            Metrics::median_of(&metrics)
        };
        self.rounds.iter().map(of_server).collect()
    }

    fn to_json(&self, servers: &[ServerReport]) -> Value {
        let medians = self.medians();
        let results =
            servers
                .iter()
                .zip(&self.rounds)
                .zip(&medians)
                .map(|((server, rounds), median)| {
                    let per_round = rounds.iter().map(|round| round.metrics.to_json());
                    json!({
                        "url": server.url,
                        "median": median.to_json(),
                        "rounds": per_round.collect::<Vec<_>>(),
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
        if let [first, second] = &medians[..] {
            json["ratios"] = first.over(second).to_json();
        }
        json
    }

    fn write_table(&self, servers: &[ServerReport], text: &mut String) {
        line(
            text,
            &format!("\n{}: {}", name_of(self.name), self.description),
        );
        let medians = self.medians();
        for (((label, _), rounds), median) in labels(servers).zip(&self.rounds).zip(&medians) {
            line(text, &format!("{label}{}", self.summary(rounds, median)));
            write_distributions(median, milliseconds, text);
            for error in distinct(rounds.iter().flat_map(|round| &round.errors)) {
                line(text, &format!("  error: {error}"));
            }
            for note in distinct(rounds.iter().flat_map(|round| &round.notes)) {
                line(text, &format!("  note: {note}"));
            }
        }
        if let [first, second] = &medians[..] {
            let ratio = first.over(second);
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

    #[test]
    fn names_are_those_of_the_command_line() {
        for name in WorkloadName::value_variants() {
            let value = name.to_possible_value().unwrap();
            assert_eq!(value.get_name(), name_of(*name));
        }
    }
}
