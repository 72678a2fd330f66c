//! Starting, stopping, and what a server says of itself meanwhile.

use serde_json::json;
use trunkline::config::NamedValue;
use trunkline::server::{self, StartError};

use crate::support::{TestServer, exchange, wait_until};

fn question() -> serde_json::Value {
    json!({"messages": [{"role": "user", "content": "What color is the sky?"}], "temperature": 0})
}

/// A request that goes on until it is stopped.
fn endless() -> serde_json::Value {
    json!({"messages": [{"role": "user", "content": "Count."}], "ignore_eos": true, "max_tokens": 30000})
}

#[test]
fn a_ready_server_is_healthy_and_answers() {
    let server = TestServer::start();
    let health = server.get("/health");
    assert_eq!(health.status, 200);
    assert_eq!(health.json()["status"], "ok");
    let answer = server.chat(&question());
    assert_ne!(answer["choices"][0]["message"]["content"], "");
    assert!(
        server
            .get("/metrics")
            .text()
            .contains("trunkline_model_info{")
    );
    server.wait_idle();
}

#[test]
fn two_servers_in_one_process_share_nothing() {
    let (first, second) = (TestServer::start(), TestServer::start());
    first.chat(&question());
    assert_eq!(first.metric("trunkline_requests_total"), 1.0);
    assert_eq!(second.metric("trunkline_requests_total"), 0.0);
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let first = TestServer::start();
    let mut config = TestServer::config();
    config.port = first.address().port();
    let error = server::start(config).expect_err("the port is taken");
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
    assert!(
        error.to_string().contains(&first.address().to_string()),
        "{error}"
    );
}

#[test]
fn while_the_first_model_loads_everybody_is_told_to_come_back() {
    // The demo model in a folder whose configuration is a pipe: loading goes on when somebody writes to it.
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ] {
        std::os::unix::fs::symlink(demo.join(file), folder.path().join(file)).expect("a link");
    }
    let pipe = folder.path().join("config.json");
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .expect("mkfifo runs");
    assert!(made.success());
    let mut config = TestServer::config();
    config.model = folder.path().to_str().expect("UTF-8").to_owned();
    let starting = server::start(config).expect("it begins to load");

    let get = |path| exchange(starting.address(), "GET", path, &[], b"");
    assert_eq!(get("/health").status, 503);
    assert_eq!(get("/health").json()["status"], "loading");
    assert_eq!(get("/metrics").status, 200);
    let body = question().to_string();
    let refused = exchange(
        starting.address(),
        "POST",
        "/v1/chat/completions",
        &[],
        body.as_bytes(),
    );
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.header("retry-after").is_some());

    let real = std::fs::read(demo.join("config.json")).expect("the demo model is there");
    std::fs::write(&pipe, real).expect("the loader reads");
    let (running, _) = starting.wait_ready().expect("the model loads");
    let server = TestServer { running };
    assert_eq!(server.get("/health").status, 200);
    server.chat(&question());
}

#[test]
fn a_folder_that_holds_no_model_is_a_clear_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = TestServer::config();
    config.model = folder.path().to_str().expect("UTF-8").to_owned();
    let error = server::start(config)
        .expect("it begins to load")
        .wait_ready();
    let error = error.expect_err("there is no model").to_string();
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn a_drained_server_finishes_what_runs_and_refuses_what_comes() {
    let server = TestServer::with(|config| config.max_running = 1);
    let mut running = server.stream_chat(&json!({
        "messages": [{"role": "user", "content": "Count."}], "ignore_eos": true, "max_tokens": 200,
    }));
    assert!(running.next().is_some());
    server.running.stopper().drain();
    wait_until("the server drains", || server.get("/health").status == 503);
    assert_eq!(server.get("/health").json()["status"], "draining");
    let refused = server.post("/v1/chat/completions", &question());
    assert_eq!(refused.status, 503);
    assert!(refused.header("retry-after").is_some());
    let events = running.into_done();
    let finish = events.iter().find_map(|event| {
        event.json()["choices"][0]["finish_reason"]
            .as_str()
            .map(str::to_owned)
    });
    assert_eq!(finish.as_deref(), Some("length"));
    server.running.wait();
}

#[test]
fn what_outlasts_the_drain_is_cut_with_an_error_event() {
    let server =
        TestServer::with(|config| config.drain_timeout = std::time::Duration::from_millis(50));
    let mut running = server.stream_chat(&endless());
    assert!(running.next().is_some());
    server.running.stopper().drain();
    let events: Vec<_> = running.collect();
    let last = events.last().expect("an end").json();
    assert!(
        last["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("shutting down")),
        "{last}"
    );
    assert!(events.iter().all(|event| event.data != "[DONE]"));
    server.running.wait();
}

#[test]
fn an_idle_model_leaves_memory_and_comes_back() {
    let server =
        TestServer::with(|config| config.idle_unload = std::time::Duration::from_millis(100));
    let first = server.chat(&question());
    wait_until("the model is unloaded", || {
        server.metric("trunkline_model_unloads_total") >= 1.0
    });
    wait_until("its blocks are gone", || {
        server.metric("trunkline_kv_blocks") == 0.0
    });
    assert_eq!(server.get("/health").status, 200);
    let again = server.chat(&question());
    assert_eq!(
        again["choices"][0]["message"]["content"],
        first["choices"][0]["message"]["content"]
    );
    assert_eq!(
        again["usage"]["prompt_tokens_details"]["cached_tokens"], 0,
        "the cache went with it"
    );
    assert!(server.metric_with("trunkline_model_loads_total", "ok") >= 2.0);
}

/// Two ids for the demo model: a swap is a swap, whatever is loaded.
fn with_two_models(allow_swap: bool) -> TestServer {
    TestServer::with(|config| {
        let source = std::mem::replace(&mut config.model, "first".to_owned());
        config.models = ["first", "second"]
            .map(|name| NamedValue {
                name: name.to_owned(),
                value: source.clone(),
            })
            .into();
        config.allow_swap = allow_swap;
    })
}

#[test]
fn a_configured_model_is_swapped_in_after_running_requests_finish() {
    let server = with_two_models(true);
    let mut body = question();
    body["model"] = json!("first");
    assert_eq!(server.chat(&body)["model"], "first");
    assert!(
        server.chat(&body)["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0)
    );

    let mut long = endless();
    long["model"] = json!("first");
    long["max_tokens"] = json!(300);
    let mut running = server.stream_chat(&long);
    assert!(running.next().is_some());
    body["model"] = json!("second");
    assert_eq!(server.chat(&body)["model"], "second");
    let events = running.into_done();
    assert_eq!(
        events.last().expect("a usage chunk").json()["usage"]["completion_tokens"],
        300
    );

    body["model"] = json!("first");
    let back = server.chat(&body);
    assert_eq!(
        back["usage"]["prompt_tokens_details"]["cached_tokens"], 0,
        "the cache did not survive"
    );
    assert_eq!(server.metric("trunkline_model_unloads_total"), 2.0);
    server.wait_idle();
}

#[test]
fn without_the_setting_the_other_model_does_not_exist() {
    let server = with_two_models(false);
    let mut body = question();
    body["model"] = json!("second");
    let refused = server.post("/v1/chat/completions", &body);
    assert_eq!(refused.status, 404);
    assert!(
        refused.error()["message"]
            .as_str()
            .is_some_and(|text| text.contains("first"))
    );
}

#[test]
fn a_model_that_cannot_be_loaded_is_reported_and_the_other_comes_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = TestServer::with(|config| {
        let source = std::mem::replace(&mut config.model, "good".to_owned());
        let broken = folder.path().to_str().expect("UTF-8").to_owned();
        config.models = [("good", source), ("broken", broken)]
            .map(|(name, value)| NamedValue {
                name: name.to_owned(),
                value,
            })
            .into();
        config.allow_swap = true;
    });
    let mut body = question();
    for _ in 0..2 {
        body["model"] = json!("broken");
        let refused = server.post("/v1/chat/completions", &body);
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(
            refused.error()["message"]
                .as_str()
                .is_some_and(|text| text.contains("config.json"))
        );
    }
    body["model"] = json!("good");
    server.chat(&body);
    assert_eq!(server.get("/health").status, 200);
}
