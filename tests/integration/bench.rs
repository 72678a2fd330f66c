//! `trunkline bench` against the real server, and against servers that are different from it. Never about
//! times: sizes are tiny, and what is checked is that everything is there and counted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

use crate::process::trunkline;
use crate::support::TestServer;

/// Runs the bench on `address`.
fn bench(address: SocketAddr, arguments: &[&str]) -> Output {
    let url = format!("http://{address}");
    let mut all = vec!["bench", "--url", &url, "--timeout", "2m"];
    all.extend(arguments);
    trunkline(&all)
        .env_remove("OPENAI_API_KEY")
        .output()
        .expect("the binary runs")
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The report of a run that must succeed.
fn report(address: SocketAddr, arguments: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(arguments);
    let output = bench(address, &all);
    assert!(output.status.success(), "{}", error_of(&output));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// The first server's medians for a workload.
fn median(report: &Value, workload: &str) -> Value {
    let mut all = report["workloads"].as_array().expect("workloads").iter();
    let found = all.find(|entry| entry["workload"] == workload);
    found.unwrap_or_else(|| panic!("no {workload} in {report:#}"))["results"][0]["median"].clone()
}

fn number(value: &Value) -> f64 {
    value
        .as_f64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

const TINY: [&str; 12] = [
    "--agents",
    "3",
    "--turns",
    "2",
    "--system-words",
    "60",
    "--prompt-tokens",
    "200",
    "--output-tokens",
    "4",
    "--rate",
    "50",
];

#[test]
fn every_workload_counts_its_tokens() {
    let server = TestServer::start();
    let names = [
        "single",
        "swarm",
        "burst",
        "long-prefix",
        "mixed",
        "streams",
    ];
    let arguments = [&names[..], &TINY, &["--rounds", "2", "--seed", "7"]].concat();
    let report = report(server.address(), &arguments);
    assert_eq!((&report["seed"], &report["rounds"]), (&7.into(), &2.into()));
    assert_eq!(report["servers"][0]["model"], "trunkline-demo");
    assert!(number(&report["servers"][0]["tokens_per_word"]) > 0.5);
    assert_eq!(
        report["workloads"].as_array().expect("workloads").len(),
        names.len()
    );
    for (name, requests, output) in [
        ("single", 1, 4),
        ("swarm", 6, 24),
        ("burst", 3, 12),
        ("long-prefix", 3, 12),
        ("streams", 3, 12),
    ] {
        let median = median(&report, name);
        assert_eq!(median["requests"], requests, "{name}: {median:#}");
        assert_eq!(median["errors"], 0, "{name}");
        assert_eq!(median["output_tokens"], output, "{name}");
        for distribution in ["ttft_s", "itl_s", "tpot_s", "e2e_s"] {
            for part in ["p50", "p95", "p99", "max"] {
                assert!(
                    number(&median[distribution][part]) >= 0.0,
                    "{name} {distribution} {part}"
                );
            }
        }
        assert!(number(&median["wall_s"]) > 0.0);
        assert!(number(&median["input_tokens_per_s"]) > 0.0);
        // Trunkline's own metrics are read where they are.
        assert!(number(&median["engine_busy_share"]) > 0.0);
    }
    // Long requests have all the tokens out, short ones half.
    let mixed = median(&report, "mixed");
    assert!(
        (6..=12).contains(&mixed["output_tokens"].as_u64().expect("a number")),
        "{mixed:#}"
    );
    for (name, figure) in [
        ("burst", "burst_ratio"),
        ("long-prefix", "warm_ratio"),
        ("streams", "streams_ratio"),
    ] {
        assert!(
            number(&median(&report, name)["figures"][figure]) > 0.0,
            "{name}"
        );
    }
    // What is shared comes from the cache, and what is cold does not.
    let cached = |name| number(&median(&report, name)["cached_share"]);
    assert!(cached("single") < 0.1, "{}", cached("single"));
    assert!(cached("streams") < 0.2, "{}", cached("streams"));
    assert!(cached("swarm") > 0.3, "{}", cached("swarm"));
    assert!(cached("long-prefix") > 0.5, "{}", cached("long-prefix"));
    for workload in report["workloads"].as_array().expect("workloads") {
        assert_eq!(
            workload["results"][0]["notes"],
            Value::Array(Vec::new()),
            "{workload:#}"
        );
        assert_eq!(
            workload["results"][0]["rounds"]
                .as_array()
                .expect("rounds")
                .len(),
            2
        );
    }
    server.wait_idle();
}

#[test]
fn streams_are_left_once_the_long_prompt_is_there() {
    let server = TestServer::start();
    let arguments = [
        "prefill-interference",
        "--agents",
        "3",
        "--prompt-tokens",
        "600",
        "--rounds",
        "1",
    ];
    let report = report(server.address(), &arguments);
    let median = median(&report, "prefill-interference");
    assert_eq!(
        (&median["requests"], &median["errors"]),
        (&3.into(), &0.into())
    );
    assert!(
        number(&median["figures"]["interference_ratio"]) > 0.0,
        "{median:#}"
    );
    server.wait_idle();
}

#[test]
fn the_table_has_two_servers_and_their_ratios() {
    let (first, second) = (TestServer::start(), TestServer::start());
    let url = format!("http://{}/v1/", second.address());
    let arguments = [&["swarm", "--compare", &url, "--rounds", "2"], &TINY[..]].concat();
    let output = bench(first.address(), &arguments);
    assert!(output.status.success(), "{}", error_of(&output));
    let table = String::from_utf8(output.stdout).expect("text");
    for part in [
        "A: http://",
        "B: http://",
        "swarm: 3 agents",
        "TTFT",
        "p95",
        "A / B",
        "from the cache",
    ] {
        assert!(table.contains(part), "{part} is missing from\n{table}");
    }
    for server in [first, second] {
        // Two probes for the fields, two for the scale, and what the workload asks for.
        assert!(server.metric("trunkline_requests_total") >= 12.0);
        server.wait_idle();
    }
}

#[test]
fn a_seed_that_was_used_before_is_noticed() {
    let server = TestServer::start();
    let arguments = [
        "single",
        "--seed",
        "5",
        "--rounds",
        "1",
        "--output-tokens",
        "2",
    ];
    let notes = |report: &Value| report["workloads"][0]["results"][0]["notes"].to_string();
    assert_eq!(notes(&report(server.address(), &arguments)), "[]");
    let again = notes(&report(server.address(), &arguments));
    assert!(again.contains("not cold"), "{again}");
}

#[test]
fn what_cannot_be_measured_is_told() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = free.local_addr().expect("an address");
    drop(free);
    let output = bench(closed, &["single"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error_of(&output).contains("is the server running"),
        "{}",
        error_of(&output)
    );

    // A second --url would be refused, so the host is named by the second server of a comparison.
    let server = TestServer::start();
    for url in [
        "http://no-such-host.invalid",
        &format!("https://{}", server.address()),
    ] {
        let output = bench(server.address(), &["single", "--compare", url]);
        assert_eq!(output.status.code(), Some(1));
        let said = error_of(&output);
        assert!(
            said.contains("cannot connect to it") && said.contains(url),
            "{said}"
        );
    }

    let server = TestServer::with(|config| {
        config.api_key.push("a-key".parse().expect("a key"));
    });
    let output = bench(server.address(), &["single"]);
    assert!(
        error_of(&output).contains("OPENAI_API_KEY"),
        "{}",
        error_of(&output)
    );
    let output = bench(
        server.address(),
        &["single", "--api-key", "a-key", "--model", "nonsense"],
    );
    assert!(
        error_of(&output).contains("trunkline-demo"),
        "{}",
        error_of(&output)
    );
    assert!(
        !error_of(&output).contains("a-key"),
        "{}",
        error_of(&output)
    );

    let output = bench(server.address(), &["single", "--rounds", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        error_of(&output).contains("from 1 to 100"),
        "{}",
        error_of(&output)
    );
}

#[test]
fn requests_that_fail_are_counted_and_fail_the_run() {
    let server =
        TestServer::with(|config| config.context_length = "2048".parse().expect("a length"));
    let arguments = [
        "burst",
        "--prompt-tokens",
        "5000",
        "--agents",
        "2",
        "--rounds",
        "1",
        "--json",
    ];
    let output = bench(server.address(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let result = &report["workloads"][0]["results"][0];
    assert_eq!(result["median"]["errors"], 3, "{result:#}");
    assert!(
        result["errors"][0]
            .as_str()
            .expect("a text")
            .contains("context"),
        "{result:#}"
    );
    assert!(
        result["median"]["figures"].is_null(),
        "no ratio of nothing: {result:#}"
    );
}

#[test]
fn what_cannot_be_measured_keeps_nothing_else_from_being_told() {
    let server = TestServer::start();
    // Streams as short as these end before the long prompt is there.
    let names = ["single", "prefill-interference", "burst"];
    let sizes = [
        "--agents",
        "2",
        "--prompt-tokens",
        "300",
        "--output-tokens",
        "1",
    ];
    let arguments = [&names[..], &sizes, &["--rounds", "2", "--json"]].concat();
    let output = bench(server.address(), &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let results = |index: usize| &report["workloads"][index]["results"][0];
    let reason = results(1)["failure"].as_str().expect("a reason");
    assert!(reason.contains("stream ended"), "{reason}");
    assert!(error_of(&output).contains(reason.split_once(": ").expect("a round").1));
    for index in [0, 2] {
        let result = results(index);
        assert!(result["failure"].is_null(), "{result:#}");
        assert_eq!(result["rounds"].as_array().expect("rounds").len(), 2);
        assert_eq!(
            (&result["failed_rounds"], &result["median"]["errors"]),
            (&0.into(), &0.into())
        );
    }
    server.wait_idle();
}

#[test]
fn a_server_that_is_loading_is_waited_for() {
    let other = PlainServer::start(2);
    let arguments = ["single", "--rounds", "1", "--output-tokens", "3"];
    let report = report(other.address, &arguments);
    assert_eq!(median(&report, "single")["errors"], 0);
    assert_eq!(other.loading.load(Ordering::Relaxed), 0);
}

#[test]
fn a_server_that_does_not_listen_yet_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let url = format!("http://{address}");
    let mut bench = trunkline(&["bench", "single", "--url", &url, "--rounds", "1"])
        .env_remove("OPENAI_API_KEY")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut said = BufReader::new(bench.stderr.take().expect("a pipe"));
    let mut line = String::new();
    said.read_line(&mut line).expect("text");
    assert!(line.contains("does not listen"), "{line}");
    let _other = PlainServer::listen(TcpListener::bind(address).expect("the same port"), 0);
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("text");
    assert!(bench.wait().expect("an end").success(), "{rest}");
}

#[test]
fn a_server_without_extensions_is_measured_by_its_pieces() {
    let other = PlainServer::start(0);
    let arguments = ["single", "--rounds", "2", "--output-tokens", "3"];
    let report = report(other.address, &arguments);
    let notes = report["servers"][0]["notes"].to_string();
    for part in ["ignore_eos", "stream_options", "usage"] {
        assert!(notes.contains(part), "{part} is missing from {notes}");
    }
    let median = median(&report, "single");
    assert_eq!(median["output_tokens"], 3);
    assert!(
        median["input_tokens"].is_null() && median["cached_share"].is_null(),
        "{median:#}"
    );
    assert!(median["engine_busy_share"].is_null());
}

/// Another server, of the plainest kind: refuses what it does not know, and counts nothing.
struct PlainServer {
    address: SocketAddr,
    /// How many more requests find it loading its model.
    loading: Arc<AtomicUsize>,
}

impl PlainServer {
    fn start(loading: usize) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").expect("a port"), loading)
    }

    fn listen(listener: TcpListener, loading: usize) -> Self {
        let loading = Arc::new(AtomicUsize::new(loading));
        let is_loading = Arc::clone(&loading);
        let address = listener.local_addr().expect("an address");
        // Ends with the test process.
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let less = |count: usize| count.checked_sub(1);
                let loading = is_loading.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                std::thread::spawn(move || answer(socket, loading.is_ok()));
            }
        });
        Self { address, loading }
    }
}

/// Answers one request and closes. A client that leaves ends the thread.
fn answer(mut socket: TcpStream, is_loading: bool) -> Option<()> {
    let mut reader = BufReader::new(socket.try_clone().ok()?);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).ok()?;
    let (status, kind, text) = if is_loading {
        (
            "503 Service Unavailable",
            "application/json",
            r#"{"error":{"code":503,"message":"Loading model"}}"#.to_owned(),
        )
    } else if head.starts_with("GET /v1/models") {
        (
            "200 OK",
            "application/json",
            r#"{"data":[{"id":"plain"}]}"#.to_owned(),
        )
    } else if head.starts_with("GET") {
        ("404 Not Found", "text/plain", "nothing here".to_owned())
    } else if ["ignore_eos", "stream_options"]
        .iter()
        .any(|field| body.contains(field))
    {
        (
            "400 Bad Request",
            "application/json",
            r#"{"detail":"unknown field"}"#.to_owned(),
        )
    } else {
        let piece =
            r#"data: {"choices":[{"index":0,"delta":{"content":"word "},"finish_reason":null}]}"#;
        let last = r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#;
        let stream = format!("{piece}\n\n{piece}\n\n{piece}\n\n{last}\n\ndata: [DONE]\n\n");
        ("200 OK", "text/event-stream", stream)
    };
    write!(
        socket,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        text.len()
    )
    .ok()
}
