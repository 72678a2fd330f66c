//! A server in this process.

use std::future::Future;
use std::net::SocketAddr;

use serde_json::{Value, json};
use trunkline::actors::messages::SchedulerSnapshot;
use trunkline::actors::model_manager::AuditModel;
use trunkline::config::Config;
use trunkline::engine::DeviceChoice;
use trunkline::server::{self, RunningServer};

use super::{EventStream, Response, exchange, open_request, wait_until};

/// A server of its own for one test, on a free port. It stops when it is dropped.
pub struct TestServer {
    pub running: RunningServer,
}

impl TestServer {
    /// With the defaults, and the demo model.
    pub fn start() -> Self {
        Self::with(|_| {})
    }

    /// With some settings changed. `TRUNKLINE_TEST_MODEL` replaces the demo model, `TRUNKLINE_TEST_DEVICE` the CPU.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Self::config();
        change(&mut config);
        let starting = server::start(config).expect("the server starts");
        let (running, _) = starting.wait_ready().expect("the model loads");
        TestServer { running }
    }

    /// The settings of [`TestServer::start`].
    pub fn config() -> Config {
        Config {
            port: 0,
            model: std::env::var("TRUNKLINE_TEST_MODEL").unwrap_or_else(|_| "demo".to_owned()),
            device: std::env::var("TRUNKLINE_TEST_DEVICE")
                .map_or(DeviceChoice::Cpu, |name| name.parse().expect("a device")),
            // Room for 32,768 tokens: enough for any story, and quick to allocate.
            kv_blocks: trunkline::config::Auto::Set(1024),
            threads: trunkline::config::Auto::Set(1),
            ..Config::default()
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.running.address()
    }

    pub fn get(&self, path: &str) -> Response {
        exchange(self.address(), "GET", path, &[], b"")
    }

    /// Sends JSON and reads the whole answer.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.post_with(path, &[], body)
    }

    /// The same with further headers.
    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Response {
        let mut all = vec![("Content-Type", "application/json")];
        all.extend(headers);
        exchange(
            self.address(),
            "POST",
            path,
            &all,
            body.to_string().as_bytes(),
        )
    }

    /// A chat request that must succeed.
    pub fn chat(&self, body: &Value) -> Value {
        let response = self.post("/v1/chat/completions", body);
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// Sends JSON and reads the answer event by event.
    pub fn stream(&self, path: &str, body: &Value) -> EventStream {
        self.stream_with(path, &[], body)
    }

    /// The same with further headers.
    pub fn stream_with(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> EventStream {
        let mut all = vec![("Content-Type", "application/json")];
        all.extend(headers);
        let socket = open_request(
            self.address(),
            "POST",
            path,
            &all,
            body.to_string().as_bytes(),
        );
        EventStream::new(socket)
    }

    /// A streamed chat request; `stream` and `include_usage` are added.
    pub fn stream_chat(&self, body: &Value) -> EventStream {
        let mut body = body.clone();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        self.stream("/v1/chat/completions", &body)
    }

    /// The sum over all series of a metric, whose labels contain `labels`.
    pub fn metric_with(&self, name: &str, labels: &str) -> f64 {
        let scrape = self.running.metrics().render();
        scrape
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name) && series.contains(labels))
            .map(|(_, value)| value.parse::<f64>().expect("a number"))
            .sum()
    }

    /// The sum over all series of a metric.
    pub fn metric(&self, name: &str) -> f64 {
        self.metric_with(name, "")
    }

    /// The scheduler's books, checked against the prefix cache's.
    pub fn audit(&self) -> SchedulerSnapshot {
        let report = block_on(self.running.manager().send(AuditModel)).expect("the manager lives");
        report.expect("a model is loaded").expect("the books agree")
    }

    /// Waits until nothing runs, waits or streams, and checks that nothing leaked.
    pub fn wait_idle(&self) -> SchedulerSnapshot {
        wait_until("the server is idle", || {
            let quiet = ["requests_running", "requests_waiting", "streams_active"]
                .iter()
                .all(|name| self.metric(&format!("trunkline_{name}")) == 0.0);
            quiet && self.audit().idle
        });
        let snapshot = self.audit();
        assert_eq!(snapshot.blocks.leased, 0);
        snapshot
    }
}

/// Waits for a future on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
}
