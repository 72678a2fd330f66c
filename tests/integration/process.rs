//! The binary itself: what it prints, how it reacts to signals, its exit codes, and what its log holds.

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{EventStream, Response, exchange, open_request, wait_until};

/// The binary, away from the caller's own settings and files.
pub fn trunkline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TRUNKLINE_") {
            command.env_remove(name);
        }
    }
    command.current_dir(std::env::temp_dir()).args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    trunkline(arguments).output().expect("the binary runs")
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running binary; it is killed if a test ends early.
struct Process {
    child: Child,
    ready_line: String,
    address: SocketAddr,
}

impl Process {
    fn start(arguments: &[&str]) -> Self {
        let mut all = vec!["--port", "0", "--kv-blocks", "1024", "--threads", "1"];
        // Whatever accelerator the build is for: these tests are of the process.
        all.extend(["--device", "cpu"]);
        all.extend(arguments);
        let mut child = trunkline(&all)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let stdout = child.stdout.take().expect("it is piped");
        let mut ready_line = String::new();
        BufReader::new(stdout)
            .read_line(&mut ready_line)
            .expect("a line comes");
        let url = ready_line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("http://"));
        let address = url.and_then(|url| url.parse().ok());
        let address = address.unwrap_or_else(|| panic!("no address in {ready_line:?}"));
        Process {
            child,
            ready_line,
            address,
        }
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(kill.success());
    }

    fn chat(&self, body: &Value) -> Response {
        let headers = [("Authorization", "Bearer a-secret-key")];
        let body = body.to_string();
        exchange(
            self.address,
            "POST",
            "/v1/chat/completions",
            &headers,
            body.as_bytes(),
        )
    }

    /// A stream that does not end by itself, after its first event.
    fn endless_stream(&self) -> EventStream {
        let body = json!({
            "messages": [{"role": "user", "content": "Count."}],
            "stream": true, "ignore_eos": true, "max_tokens": 30_000,
        })
        .to_string();
        let mut stream = EventStream::new(open_request(
            self.address,
            "POST",
            "/v1/chat/completions",
            &[],
            body.as_bytes(),
        ));
        assert!(stream.next().is_some());
        stream
    }

    /// The exit code, once it has ended, and all of its log.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        let stderr = self.child.stderr.as_mut().expect("it is piped");
        stderr.read_to_string(&mut log).expect("the log is text");
        let status = self.child.wait().expect("it ends");
        (status.code(), log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_first_line_tells_what_is_served_and_a_signal_ends_it_well() {
    let process = Process::start(&[]);
    for part in [
        "model trunkline-demo",
        "device cpu",
        "1024 KV blocks hold 32768 tokens of context",
    ] {
        assert!(
            process.ready_line.contains(part),
            "{:?}",
            process.ready_line
        );
    }
    process.signal("TERM");
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let process = Process::start(&["--drain-timeout", "1h"]);
    let stream = process.endless_stream();
    process.signal("INT");
    wait_until("the server drains", || {
        exchange(process.address, "GET", "/health", &[], b"").status == 503
    });
    process.signal("INT");
    assert_eq!(process.end().0, Some(130));
    drop(stream);
}

#[test]
fn a_stream_that_outlasts_the_drain_is_cut_and_the_exit_code_is_0() {
    let process = Process::start(&["--drain-timeout", "100ms"]);
    let stream = process.endless_stream();
    process.signal("TERM");
    let last = stream.last().expect("an end");
    assert!(last.data.contains("\"error\""), "{}", last.data);
    assert_eq!(process.end().0, Some(0));
}

#[test]
fn mistakes_are_one_clear_line_and_an_exit_code() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let quiet = ["--log-level", "off"];
    for (arguments, code, said) in [
        (vec!["--port", &port], 1, port.as_str()),
        (vec!["--model", "no-such-model"], 1, "no-such-model"),
        (vec!["--model", "/nonexistent"], 1, "/nonexistent"),
        (
            vec!["--kv-blocks", "9", "--kv-memory", "1GiB"],
            2,
            "kv_memory",
        ),
        (
            vec!["--config", "/nonexistent.toml"],
            2,
            "/nonexistent.toml",
        ),
    ] {
        let output = run(&[arguments.as_slice(), &quiet].concat());
        let error = error_of(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        assert!(output.stdout.is_empty());
    }
    let output = run(&["--prot", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        error_of(&output).contains("--port"),
        "{}",
        error_of(&output)
    );
}

#[test]
fn help_and_version_go_to_stdout() {
    for (flag, said) in [
        ("--help", "TRUNKLINE_"),
        ("--version", env!("CARGO_PKG_VERSION")),
    ] {
        let output = run(&[flag]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains(said));
    }
}

#[test]
fn the_log_holds_no_prompt_completion_or_key_unless_asked_to() {
    let question = json!({
        "messages": [{"role": "user", "content": "Repeat after me: zebra"}],
        "temperature": 0, "max_tokens": 16,
    });
    let log_of = |flags: &[&str]| {
        let mut all = vec!["--api-key", "a-secret-key"];
        all.extend(flags);
        let process = Process::start(&all);
        let answer = process.chat(&question);
        assert_eq!(answer.status, 200, "{}", answer.text());
        process.signal("TERM");
        let (code, log) = process.end();
        assert_eq!(code, Some(0));
        log
    };
    let log = log_of(&["--log-level", "debug"]);
    assert!(log.contains("prompt_tokens"), "{log}");
    assert!(
        !log.contains("zebra") && !log.contains("a-secret-key"),
        "{log}"
    );
    let log = log_of(&["--log-level", "info", "--log-content"]);
    assert!(
        log.contains("zebra") && !log.contains("a-secret-key"),
        "{log}"
    );
}

#[test]
fn a_quantized_model_answers_alike_in_place_from_the_cache_and_from_a_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (cache, file) = (path("cache"), path("demo-q8_0.gguf"));
    let output = run(&["quantize", "demo", &file, "--type", "q8_0"]);
    assert!(output.status.success(), "{}", error_of(&output));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        printed.contains(&file) && printed.contains("Q8_0"),
        "{printed}"
    );

    let question = json!({"messages": [{"role": "user", "content": "Repeat after me: zebra"}]});
    let answer_of = |flags: &[&str]| {
        let process = Process::start(flags);
        let answer = process.chat(&question);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let content = answer.json()["choices"][0]["message"]["content"].clone();
        process.signal("TERM");
        (content, process.end().1)
    };
    let in_place = ["--quantize", "q8_0", "--quantize-cache", &cache];
    let (first, log) = answer_of(&in_place);
    assert!(
        first.as_str().is_some_and(|text| text.contains("zebra")),
        "{first}"
    );
    assert!(log.contains("into the cache"), "{log}");
    let (second, log) = answer_of(&in_place);
    assert!(log.contains("from the cache"), "{log}");
    let (third, _) = answer_of(&["--model", &file]);
    assert_eq!((&first, &first), (&second, &third));

    let output = run(&["--model", &file, "--quantize", "q4_k", "--log-level", "off"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error_of(&output).contains("trunkline quantize"),
        "{}",
        error_of(&output)
    );
    let output = run(&["--quantize", "q3_k"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(error_of(&output).contains("q4_k"), "{}", error_of(&output));
}
