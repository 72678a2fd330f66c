//! Every metric of the server, and the logging setup.
//!
//! A [`Metrics`] belongs to one server: several servers in one process do not share counts. Field
//! names are the metric names without the `trunkline_` prefix and the `_total` suffix; the help
//! texts below say what each counts, and `docs/operations.md` how to read them.

use std::io::IsTerminal;
use std::time::Instant;

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// Handles to all metrics, and the registry that `/metrics` renders.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    started: Instant,

    /// Sequences that hold KV blocks. Written by the scheduler.
    pub requests_running: IntGauge,
    /// Sequences in the waiting queue. Written by the scheduler.
    pub requests_waiting: IntGauge,
    /// Streamer actors alive. Written by the streamers.
    pub streams_active: IntGauge,
    /// Requests answered, by endpoint (`chat_completions`, `completions`) and outcome (`stop`,
    /// `length`, `tool_calls`, `cancelled`, `failed`, `deadline`). Written by the streamers.
    pub requests: IntCounterVec,
    /// Requests refused before a sequence was queued, by [`Rejection`]. Written by the handlers.
    pub requests_rejected: IntCounterVec,
    /// Clients that left before their answer was complete.
    pub client_disconnects: IntCounter,

    /// Prompt tokens of admitted requests, cached ones included.
    pub prompt_tokens: IntCounter,
    /// Sampled tokens, end tokens included.
    pub generation_tokens: IntCounter,

    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_query_tokens: IntCounter,
    /// Of these, the tokens that were found and reused.
    pub prefix_cache_hit_tokens: IntCounter,
    /// Blocks that left the prefix cache to make room.
    pub prefix_cache_evicted_blocks: IntCounter,
    /// Blocks of the pool by state; set them with [`Metrics::set_kv_blocks`].
    pub kv_blocks: IntGaugeVec,
    /// Leased blocks over all blocks; set it with [`Metrics::set_kv_blocks`].
    pub kv_cache_usage_ratio: Gauge,
    /// Sequences that lost their blocks to older ones.
    pub preemptions: IntCounter,

    /// From the arrival of a request to its first sampled token.
    pub time_to_first_token_seconds: Histogram,
    /// Between two sampled tokens of one request.
    pub inter_token_latency_seconds: Histogram,
    /// From submission to the first admission.
    pub request_queue_seconds: Histogram,
    /// From arrival to the end of the answer, by endpoint.
    pub request_duration_seconds: HistogramVec,

    /// One forward pass with sampling, as the engine measured it.
    pub step_duration_seconds: Histogram,
    /// Time in which the engine had no plan although a sequence of its last one went on: what scheduler,
    /// messages and a busy machine cost between steps.
    pub engine_wait_seconds: Counter,
    /// Sequences in a step's batch.
    pub step_rows: Histogram,
    /// Token rows (prefill and decode) in a step's batch.
    pub step_tokens: Histogram,

    /// Model loads by outcome (`ok`, `failed`). Written by the model manager.
    pub model_loads: IntCounterVec,
    /// Time of successful loads, warm-up included.
    pub model_load_seconds: Histogram,
    /// Models unloaded because they were idle or swapped out.
    pub model_unloads: IntCounter,
    /// 1 for each model in memory, with its facts as labels; set it with [`Metrics::set_model`].
    model_info: IntGaugeVec,
}

/// Why a request was refused before it was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Malformed or impossible (400, 413).
    Invalid,
    /// No or a wrong API key (401).
    Unauthorized,
    /// Unknown model (404).
    UnknownModel,
    /// The prompt and its completion do not fit the context (400).
    ContextLength,
    /// The waiting queue, or another bound, is full (429).
    QueueFull,
    /// The model is loading, swapping or could not be loaded (503).
    NotReady,
    /// The server is shutting down (503).
    Draining,
}

impl Rejection {
    /// All reasons, so that each has a series from the start.
    pub const ALL: [Rejection; 7] = [
        Rejection::Invalid,
        Rejection::Unauthorized,
        Rejection::UnknownModel,
        Rejection::ContextLength,
        Rejection::QueueFull,
        Rejection::NotReady,
        Rejection::Draining,
    ];

    /// The value of the `reason` label.
    pub fn as_str(self) -> &'static str {
        match self {
            Rejection::Invalid => "invalid",
            Rejection::Unauthorized => "unauthorized",
            Rejection::UnknownModel => "unknown_model",
            Rejection::ContextLength => "context_length",
            Rejection::QueueFull => "queue_full",
            Rejection::NotReady => "not_ready",
            Rejection::Draining => "draining",
        }
    }
}

/// The labels of `trunkline_model_info`.
#[derive(Debug, Clone)]
pub struct ModelFacts<'a> {
    pub model: &'a str,
    pub device: &'a str,
    pub kv_dtype: &'a str,
    pub attention: &'a str,
    /// Tokens in one KV block.
    pub block_size: usize,
    /// Tokens a sequence may hold.
    pub context_window: usize,
}

/// From half a millisecond (a decode step of the demo model) to a long prompt of a large model.
const STEP_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];
/// From an empty server with a warm cache to a long queue of long prompts.
const WAIT_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];
/// Whole answers: from one word to an agent's long file.
const DURATION_BUCKETS: &[f64] = &[
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0,
];
const LOAD_BUCKETS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];
const ROW_BUCKETS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
const TOKEN_BUCKETS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
];

impl Metrics {
    /// All metrics at zero, in a registry of their own.
    pub fn new() -> Self {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Metrics {
            started: Instant::now(),
            requests_running: gauge(r, "requests_running", "Requests that are being computed."),
            requests_waiting: gauge(r, "requests_waiting", "Requests in the waiting queue."),
            streams_active: gauge(
                r,
                "streams_active",
                "Answers that are open towards a client, streamed or whole.",
            ),
            requests: counters(
                r,
                "requests_total",
                "Requests answered, by endpoint and outcome (stop, length, tool_calls, cancelled, failed, deadline).",
                &["endpoint", "outcome"],
            ),
            requests_rejected: counters(
                r,
                "requests_rejected_total",
                "Requests refused before they were queued, by reason.",
                &["reason"],
            ),
            client_disconnects: counter(
                r,
                "client_disconnects_total",
                "Clients that left before their answer was complete.",
            ),
            prompt_tokens: counter(
                r,
                "prompt_tokens_total",
                "Prompt tokens of admitted requests, cached ones included.",
            ),
            generation_tokens: counter(r, "generation_tokens_total", "Tokens sampled."),
            prefix_cache_query_tokens: counter(
                r,
                "prefix_cache_query_tokens_total",
                "Prompt tokens looked up in the prefix cache.",
            ),
            prefix_cache_hit_tokens: counter(
                r,
                "prefix_cache_hit_tokens_total",
                "Prompt tokens found in the prefix cache and not computed again.",
            ),
            prefix_cache_evicted_blocks: counter(
                r,
                "prefix_cache_evicted_blocks_total",
                "KV blocks evicted from the prefix cache to make room.",
            ),
            kv_blocks: gauges(
                r,
                "kv_blocks",
                "KV blocks by state: free, leased (used by a running request) or cached (kept for reuse).",
                &["state"],
            ),
            kv_cache_usage_ratio: register(
                r,
                Gauge::new(
                    "trunkline_kv_cache_usage_ratio",
                    "Leased KV blocks over all KV blocks, from 0 to 1.",
                ),
            ),
            preemptions: counter(
                r,
                "preemptions_total",
                "Requests set back to the queue because KV blocks ran out.",
            ),
            time_to_first_token_seconds: histogram(
                r,
                "time_to_first_token_seconds",
                "From the arrival of a request to its first token.",
                WAIT_BUCKETS,
            ),
            inter_token_latency_seconds: histogram(
                r,
                "inter_token_latency_seconds",
                "Between two tokens of one request.",
                STEP_BUCKETS,
            ),
            request_queue_seconds: histogram(
                r,
                "request_queue_seconds",
                "From submission to the start of prefill.",
                WAIT_BUCKETS,
            ),
            request_duration_seconds: register(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "trunkline_request_duration_seconds",
                        "From the arrival of a request to the end of its answer, by endpoint.",
                    )
                    .buckets(DURATION_BUCKETS.to_vec()),
                    &["endpoint"],
                ),
            ),
            step_duration_seconds: histogram(
                r,
                "step_duration_seconds",
                "One forward pass over the batch, with sampling.",
                STEP_BUCKETS,
            ),
            engine_wait_seconds: register(
                r,
                Counter::new(
                    "trunkline_engine_wait_seconds_total",
                    "Time the engine waited for its next step while requests were running.",
                ),
            ),
            step_rows: histogram(r, "step_rows", "Sequences in one step.", ROW_BUCKETS),
            step_tokens: histogram(
                r,
                "step_tokens",
                "Tokens (prefill and decode) computed in one step.",
                TOKEN_BUCKETS,
            ),
            model_loads: counters(
                r,
                "model_loads_total",
                "Model loads by outcome (ok, failed).",
                &["outcome"],
            ),
            model_load_seconds: histogram(
                r,
                "model_load_seconds",
                "Time of successful model loads, warm-up included.",
                LOAD_BUCKETS,
            ),
            model_unloads: counter(
                r,
                "model_unloads_total",
                "Models unloaded because they were idle or made room for another.",
            ),
            model_info: gauges(
                r,
                "model_info",
                "1 for the model in memory; its facts are the labels.",
                &[
                    "model",
                    "device",
                    "kv_dtype",
                    "attention",
                    "block_size",
                    "context_window",
                ],
            ),
            registry,
        };
        metrics.create_known_series();
        register_process_metrics(&metrics.registry);
        metrics
    }

    /// Series that dashboards and alerts read exist from the start, at zero.
    fn create_known_series(&self) {
        for state in ["free", "leased", "cached"] {
            self.kv_blocks.with_label_values(&[state]).set(0);
        }
        for reason in Rejection::ALL {
            self.requests_rejected
                .with_label_values(&[reason.as_str()])
                .inc_by(0);
        }
        for outcome in ["ok", "failed"] {
            self.model_loads.with_label_values(&[outcome]).inc_by(0);
        }
        let build = gauges(
            &self.registry,
            "build_info",
            "1; the build's version and targets are the labels.",
            &["version", "os", "architecture", "backends"],
        );
        build
            .with_label_values(&[
                env!("CARGO_PKG_VERSION"),
                std::env::consts::OS,
                std::env::consts::ARCH,
                compiled_backends(),
            ])
            .set(1);
    }

    /// Counts a refused request.
    pub fn reject(&self, reason: Rejection) {
        self.requests_rejected
            .with_label_values(&[reason.as_str()])
            .inc();
    }

    /// Sets the block gauges and the usage ratio, which is leased over all.
    pub fn set_kv_blocks(&self, free: usize, leased: usize, cached: usize) {
        for (state, blocks) in [("free", free), ("leased", leased), ("cached", cached)] {
            self.kv_blocks
                .with_label_values(&[state])
                .set(blocks as i64);
        }
        let all = free + leased + cached;
        self.kv_cache_usage_ratio.set(if all == 0 {
            0.0
        } else {
            leased as f64 / all as f64
        });
    }

    /// Replaces the series of `trunkline_model_info`; `None` when no model is in memory.
    pub fn set_model(&self, facts: Option<ModelFacts<'_>>) {
        self.model_info.reset();
        if let Some(facts) = facts {
            self.model_info
                .with_label_values(&[
                    facts.model,
                    facts.device,
                    facts.kv_dtype,
                    facts.attention,
                    &facts.block_size.to_string(),
                    &facts.context_window.to_string(),
                ])
                .set(1);
        }
    }

    /// Seconds since this server started.
    pub fn uptime_seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// The scrape in Prometheus' text format (content type [`prometheus::TEXT_FORMAT`]).
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Families are gathered whole from our own registry, so encoding has no reason to fail;
        // should it, a scrape that stops short is better than none.
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be rendered whole");
        }
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The candle backends in this build, as `build_info` names them.
pub fn compiled_backends() -> &'static str {
    match (cfg!(feature = "metal"), cfg!(feature = "cuda")) {
        (false, false) => "cpu",
        (true, false) => "cpu,metal",
        (false, true) => "cpu,cuda",
        (true, true) => "cpu,metal,cuda",
    }
}

/// Resident memory of this process in bytes, where the system tells it (Linux).
pub fn resident_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(target_os = "linux")]
fn register_process_metrics(registry: &Registry) {
    let collector = prometheus::process_collector::ProcessCollector::for_self();
    registry
        .register(Box::new(collector))
        .expect("process metrics are registered once");
}

/// The `prometheus` crate reads process metrics from /proc only; elsewhere there is the start time,
/// so that restarts can be seen.
#[cfg(not(target_os = "linux"))]
fn register_process_metrics(registry: &Registry) {
    let started = register(
        registry,
        IntGauge::new(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
        ),
    );
    if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        started.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    }
}

/// Registers a metric and returns its handle. Names and labels are constants of this file, each used
/// once, so creation and registration fail only by a mistake in this file, which every test finds.
fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<C>,
) -> C {
    let metric = metric.expect("metric names and labels are valid constants");
    registry
        .register(Box::new(metric.clone()))
        .expect("each metric is registered once");
    metric
}

fn full_name(name: &str) -> String {
    format!("trunkline_{name}")
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(full_name(name), help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(
        registry,
        IntCounterVec::new(Opts::new(full_name(name), help), labels),
    )
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(full_name(name), help))
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(
        registry,
        IntGaugeVec::new(Opts::new(full_name(name), help), labels),
    )
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    register(
        registry,
        Histogram::with_opts(HistogramOpts::new(full_name(name), help).buckets(buckets.to_vec())),
    )
}

/// How log lines look.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
    serde::Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("{filter:?} is not a log filter: {source}")]
    Filter {
        filter: String,
        source: tracing_subscriber::filter::ParseError,
    },
    #[error("logging is set up already")]
    Installed,
}

/// Sends the process's logs to stderr. `filter` is a level (`info`) or a list of
/// `target=level` directives (`info,trunkline::actors=debug`). Only `main` calls this: a server
/// inside another program (a test) logs wherever that program says.
///
/// # Errors
/// A filter that does not parse, or a second call in one process.
pub fn init_logging(filter: &str, format: LogFormat) -> Result<(), LoggingError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let builder = tracing_subscriber::fmt()
        .with_env_filter(parse_log_filter(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let installed = match format {
        LogFormat::Text => builder.finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    installed.map_err(|_| LoggingError::Installed)
}

/// Reads a filter as [`init_logging`] does.
///
/// # Errors
/// The directive that does not parse.
pub fn parse_log_filter(filter: &str) -> Result<tracing_subscriber::EnvFilter, LoggingError> {
    tracing_subscriber::EnvFilter::builder()
        .parse(filter)
        .map_err(|source| LoggingError::Filter {
            filter: filter.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_scrape_holds_the_series_that_alerts_read() {
        let metrics = Metrics::new();
        let scrape = metrics.render();
        for line in [
            "trunkline_requests_running 0",
            "trunkline_kv_blocks{state=\"leased\"} 0",
            "trunkline_requests_rejected_total{reason=\"queue_full\"} 0",
            "trunkline_prefix_cache_hit_tokens_total 0",
        ] {
            assert!(
                scrape.lines().any(|l| l == line),
                "{line} is missing from\n{scrape}"
            );
        }
        assert!(scrape.contains("trunkline_build_info{"));
        assert!(scrape.contains("process_start_time_seconds"));
    }

    #[test]
    fn two_servers_in_one_process_count_apart() {
        let (first, second) = (Metrics::new(), Metrics::new());
        first.preemptions.inc();
        assert!(first.render().contains("trunkline_preemptions_total 1"));
        assert!(second.render().contains("trunkline_preemptions_total 0"));
    }

    #[test]
    fn the_usage_ratio_follows_the_blocks() {
        let metrics = Metrics::new();
        metrics.set_kv_blocks(6, 1, 1);
        assert!(
            metrics
                .render()
                .contains("trunkline_kv_cache_usage_ratio 0.125")
        );
        metrics.set_kv_blocks(0, 0, 0);
        assert!(
            metrics
                .render()
                .contains("trunkline_kv_cache_usage_ratio 0\n")
        );
    }

    #[test]
    fn only_the_model_in_memory_is_listed() {
        let metrics = Metrics::new();
        let facts = |model| ModelFacts {
            model,
            device: "cpu",
            kv_dtype: "f32",
            attention: "fused",
            block_size: 32,
            context_window: 1024,
        };
        metrics.set_model(Some(facts("first")));
        metrics.set_model(Some(facts("second")));
        let scrape = metrics.render();
        assert!(!scrape.contains("model=\"first\"") && scrape.contains("model=\"second\""));
        metrics.set_model(None);
        assert!(!metrics.render().contains("trunkline_model_info{"));
    }

    #[test]
    fn a_bad_filter_is_named() {
        let error = parse_log_filter("trunkline=loud").unwrap_err();
        assert!(error.to_string().contains("trunkline=loud"), "{error}");
    }

    #[test]
    fn the_readme_has_every_metric() {
        let readme = include_str!("../README.md");
        let metrics = Metrics::new();
        for family in metrics.registry.gather() {
            let name = family.name();
            let listed = readme.contains(&format!("| `{name}` |"));
            assert!(
                listed || name.starts_with("process_"),
                "README.md has no row for {name}"
            );
        }
    }
}
