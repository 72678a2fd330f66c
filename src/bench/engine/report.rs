//! Times beside their limits and targets: as a table, or as JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::{Value, json};

use super::EngineRound;
use super::cases::{Case, LONG_PREFIX, SHORT_PREFIX};
use super::work::{ModelWork, Rows};
use crate::bench::statistics::median;
use crate::engine::EngineInfo;
use crate::kernels::Isa;

/// Least share of bandwidth when a sequence decodes alone.
const ALONE_TARGET: f64 = 0.85;
/// Least share of peak in prefill.
const PREFILL_TARGET: f64 = 0.80;
/// Least share of the nearer limit when many decode.
const BATCH_TARGET: f64 = 0.60;
/// Most time behind a long shared prefix over that behind a short one.
const PREFIX_TARGET: f64 = 1.35;

/// The swarm whose ideal time is worked out: agents, turns, tokens out a turn, as `trunkline bench swarm`.
const SWARM_AGENTS: usize = 16;
const SWARM_TURNS: usize = 2;
const SWARM_OUTPUT: usize = 48;
/// Tokens of 1,200 and of 40 words with what a chat template adds, in common vocabularies.
const SWARM_SYSTEM_TOKENS: usize = 1280;
const SWARM_TURN_TOKENS: usize = 52;

/// Everything that was measured.
pub struct EngineReport {
    pub model: String,
    pub threads: usize,
    pub info: EngineInfo,
    pub work: ModelWork,
    /// Load, packing and warm-up, with the files in the page cache.
    pub start_seconds: f64,
    pub(super) rounds: Vec<EngineRound>,
}

/// A time beside its limit.
struct Row {
    key: &'static str,
    title: String,
    seconds: f64,
    limit_seconds: f64,
    /// Share of the limit, or with `at_most` the ratio.
    achieved: f64,
    target: f64,
    at_most: bool,
}

impl Row {
    fn met(&self) -> bool {
        if self.at_most {
            self.achieved <= self.target
        } else {
            self.achieved >= self.target
        }
    }
}

/// The least time of the workload *swarm* on this machine.
struct SwarmIdeal {
    prefill_seconds: f64,
    decode_step_seconds: f64,
    decode_steps: usize,
}

impl SwarmIdeal {
    fn seconds(&self) -> f64 {
        self.prefill_seconds + self.decode_steps as f64 * self.decode_step_seconds
    }
}

impl EngineReport {
    /// The format that most weights of the layers have: its peak is the one that counts.
    fn format(&self) -> &str {
        let shares = self.work.layer_projections.shares();
        shares
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map_or("", |(format, _)| format)
    }

    fn median_over_rounds(&self, value: impl Fn(&EngineRound) -> f64) -> f64 {
        let values: Vec<f64> = self.rounds.iter().map(value).collect();
        median(&values).unwrap_or_default()
    }

    fn bandwidth(&self) -> f64 {
        self.median_over_rounds(|round| round.bandwidth)
    }

    fn peak(&self) -> f64 {
        self.median_over_rounds(|round| round.peak(self.format()))
    }

    fn flops(&self, case: Case) -> f64 {
        case.steps()
            .iter()
            .map(|batch| self.work.flops(batch))
            .sum()
    }

    /// The least time of a case by what it computes, in this round.
    fn compute_limit(&self, case: Case, round: &EngineRound) -> f64 {
        self.flops(case) / round.peak(self.format())
    }

    /// The least time of a case by what it reads: weights once a step, keys and values once.
    fn read_limit(&self, case: Case, round: &EngineRound) -> f64 {
        let weights = case.steps().len() as u64 * self.work.weight_bytes();
        let kv = self
            .work
            .kv_bytes(case.positions_read(), self.info.kv_dtype);
        (weights + kv) as f64 / round.bandwidth
    }

    fn seconds(round: &EngineRound, case: Case) -> f64 {
        round.seconds.get(&case).copied().unwrap_or(f64::NAN)
    }

    fn row(&self, case: Case, target: f64, limit: impl Fn(&EngineRound) -> f64) -> Row {
        Row {
            key: case.key(),
            title: case.title(),
            seconds: self.median_over_rounds(|round| Self::seconds(round, case)),
            limit_seconds: self.median_over_rounds(&limit),
            achieved: self.median_over_rounds(|round| limit(round) / Self::seconds(round, case)),
            target,
            at_most: false,
        }
    }

    fn rows(&self) -> Vec<Row> {
        let weights = self.work.weight_bytes() as f64;
        let long = |round: &EngineRound| Self::seconds(round, Case::LongPrefix);
        let short = |round: &EngineRound| Self::seconds(round, Case::ShortPrefix);
        vec![
            // Weights alone, as the target says it.
            self.row(Case::Alone, ALONE_TARGET, |round| weights / round.bandwidth),
            self.row(Case::Prefill, PREFILL_TARGET, |round| {
                self.compute_limit(Case::Prefill, round)
            }),
            self.row(Case::Batch, BATCH_TARGET, |round| {
                self.compute_limit(Case::Batch, round)
                    .max(self.read_limit(Case::Batch, round))
            }),
            Row {
                key: Case::LongPrefix.key(),
                title: Case::LongPrefix.title(),
                seconds: self.median_over_rounds(long),
                limit_seconds: self.median_over_rounds(short),
                achieved: self.median_over_rounds(|round| long(round) / short(round)),
                target: PREFIX_TARGET,
                at_most: true,
            },
        ]
    }

    /// Unique tokens at peak, and each decode step at its nearer limit.
    fn swarm_ideal(&self) -> SwarmIdeal {
        let (peak, bandwidth) = (self.peak(), self.bandwidth());
        let mut prefill = self.work.flops(&[Rows {
            start: 0,
            count: SWARM_SYSTEM_TOKENS,
            sample: false,
        }]);
        let mut context = SWARM_SYSTEM_TOKENS;
        let mut own = 0;
        for _ in 0..SWARM_TURNS {
            let turn = Rows {
                start: context,
                count: SWARM_TURN_TOKENS,
                sample: true,
            };
            prefill += self.work.flops(&[turn; SWARM_AGENTS]);
            context += SWARM_TURN_TOKENS + SWARM_OUTPUT;
            own += SWARM_TURN_TOKENS + SWARM_OUTPUT;
        }
        // In the mean, half of what an agent has of its own at the end is there.
        let context = SWARM_SYSTEM_TOKENS + own / 2;
        let positions = SWARM_SYSTEM_TOKENS + SWARM_AGENTS * own / 2;
        let bytes = self.work.weight_bytes() + self.work.kv_bytes(positions, self.info.kv_dtype);
        let compute = self.work.flops(&[Rows::decode(context); SWARM_AGENTS]) / peak;
        SwarmIdeal {
            prefill_seconds: prefill / peak,
            decode_step_seconds: compute.max(bytes as f64 / bandwidth),
            // The first token of a turn comes from its prefill.
            decode_steps: SWARM_TURNS * (SWARM_OUTPUT - 1),
        }
    }

    /// Median rates of a format's products, by implementation.
    fn rates(&self, format: &str) -> Vec<(&'static str, f64)> {
        let Some(first) = self
            .rounds
            .first()
            .and_then(|round| round.peaks.get(format))
        else {
            return Vec::new();
        };
        let rate = |who| {
            self.median_over_rounds(|round| {
                let rates = round.peaks.get(format);
                rates
                    .and_then(|rates| rates.get(who))
                    .copied()
                    .unwrap_or_default()
            })
        };
        first.keys().map(|&who| (who, rate(who))).collect()
    }

    fn formats(&self) -> Vec<&str> {
        let formats = self
            .rounds
            .first()
            .into_iter()
            .flat_map(|round| round.peaks.keys());
        formats.map(String::as_str).collect()
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

    pub fn to_json(&self) -> Value {
        let rates = |format: &&str| {
            let rates = self.rates(format).into_iter();
            let rates = rates.map(|(who, rate)| (who.to_owned(), json!(rate)));
            ((*format).to_owned(), Value::Object(rates.collect()))
        };
        let cases = self.rows().into_iter().map(|row| {
            json!({
                "case": row.key,
                "title": row.title,
                "seconds": row.seconds,
                "limit_seconds": row.limit_seconds,
                "achieved": row.achieved,
                "target": row.target,
                "target_is": if row.at_most { "at most" } else { "at least" },
                "met": row.met(),
            })
        });
        let rounds = self.rounds.iter().map(|round| {
            let seconds = round.seconds.iter();
            let seconds = seconds.map(|(case, seconds)| (case.key().to_owned(), json!(seconds)));
            json!({
                "bandwidth_bytes_per_s": round.bandwidth,
                "peak_flops_per_s": round.peak(self.format()),
                "seconds": Value::Object(seconds.collect()),
            })
        });
        let weights = self.work.projections.shares();
        let weights = weights.map(|(format, share)| (format.to_owned(), json!(share)));
        let swarm = self.swarm_ideal();
        json!({
            "trunkline_version": env!("CARGO_PKG_VERSION"),
            "model": self.model,
            "threads": self.threads,
            "instruction_set": format!("{:?}", Isa::detected()),
            "attention": self.info.attention.to_string(),
            "kv_dtype": self.info.kv_dtype.to_string(),
            "weight_formats": Value::Object(weights.collect()),
            "weight_bytes_per_token": self.work.weight_bytes(),
            "limits": {
                "bandwidth_bytes_per_s": self.bandwidth(),
                "peak_format": self.format(),
                "peak_flops_per_s": self.peak(),
                "products": Value::Object(self.formats().iter().map(rates).collect()),
            },
            "cases": cases.collect::<Vec<_>>(),
            "swarm_ideal": {
                "seconds": swarm.seconds(),
                "prefill_seconds": swarm.prefill_seconds,
                "decode_step_seconds": swarm.decode_step_seconds,
                "decode_steps": swarm.decode_steps,
            },
            "start_seconds": self.start_seconds,
            "rounds": rounds.collect::<Vec<_>>(),
        })
    }

    pub fn to_table(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        let shares = self.work.projections.shares();
        let shares: Vec<String> = shares
            .map(|(format, share)| format!("{format} {:.0} %", share * 100.0))
            .collect();
        line(format!(
            "{}: {} weights, {:.1} MB read for a token; {} threads, {:?}, {} attention, {} KV; medians of {} \
             rounds",
            self.model,
            shares.join(", "),
            self.work.weight_bytes() as f64 / 1e6,
            self.threads,
            Isa::detected(),
            self.info.attention,
            self.info.kv_dtype,
            self.rounds.len(),
        ));
        line(format!("bw    {:.1} GB/s", self.bandwidth() / 1e9));
        for format in self.formats() {
            let mut text = String::new();
            for (who, rate) in self.rates(format) {
                let _ = write!(text, "{}{who} {:.1}", separator(&text), rate / 1e9);
            }
            let which = if format == self.format() { "peak" } else { "" };
            line(format!("{which:5} {format} GFLOP/s at 512 rows: {text}"));
        }
        line(format!(
            "{:48}{:>12}{:>12}{:>9}{:>11}",
            "", "measured", "limit", "share", "target"
        ));
        for row in self.rows() {
            let (achieved, target) = if row.at_most {
                (
                    format!("{:.2} ×", row.achieved),
                    format!("<= {:.2} ×", row.target),
                )
            } else {
                (
                    format!("{:.0} %", row.achieved * 100.0),
                    format!(">= {:.0} %", row.target * 100.0),
                )
            };
            let met = if row.met() { "met" } else { "not met" };
            line(format!(
                "{:48}{:>12}{:>12}{achieved:>9}{target:>11}  {met}",
                row.title,
                milliseconds(row.seconds),
                milliseconds(row.limit_seconds),
            ));
        }
        let swarm = self.swarm_ideal();
        line(format!(
            "swarm at these limits: {:.2} s ({:.2} s of prefill, {} decode steps of {})",
            swarm.seconds(),
            swarm.prefill_seconds,
            swarm.decode_steps,
            milliseconds(swarm.decode_step_seconds),
        ));
        line(format!(
            "start with files in the page cache (load, pack, warm up): {:.2} s",
            self.start_seconds
        ));
        line(format!(
            "the last row's limit is the same behind {SHORT_PREFIX} shared tokens instead of {LONG_PREFIX}"
        ));
        text
    }
}

fn separator(before: &str) -> &'static str {
    if before.is_empty() { "" } else { ", " }
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}
