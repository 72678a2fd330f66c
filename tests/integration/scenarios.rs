//! The nine scenarios that clients rely on, end to end, on the demo model.

use std::io::Read;
use std::net::TcpStream;
use std::thread;

use serde_json::{Value, json};

use crate::support::{Answer, EventStream, TestServer, wait_until};

const HITS: &str = "trunkline_prefix_cache_hit_tokens_total";

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn weather_tool() -> Value {
    json!([{"type": "function", "function": {
        "name": "weather",
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"]
        }
    }}])
}

/// Streams one turn of a conversation and appends the answer to it.
fn turn(
    server: &TestServer,
    messages: &mut Vec<Value>,
    message: Value,
    tools: Option<&Value>,
) -> Answer {
    messages.push(message);
    let mut body = json!({"model": "trunkline-demo", "messages": messages, "temperature": 0, "max_tokens": 200});
    if let Some(tools) = tools {
        body["tools"] = tools.clone();
    }
    let answer = Answer::of(server.stream_chat(&body));
    messages.push(answer.message());
    answer
}

/// A tool's result for the only call of `answer`.
fn result(answer: &Answer, content: Value) -> Value {
    json!({"role": "tool", "tool_call_id": answer.call_ids[0], "content": content.to_string()})
}

/// Reads until the first content arrives.
fn first_content(stream: &mut EventStream) -> String {
    stream
        .by_ref()
        .find_map(|event| {
            let content = event.json()["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned);
            content.filter(|content| !content.is_empty())
        })
        .expect("the stream has content")
}

#[test]
fn one_the_same_request_twice_hits_the_cache() {
    let server = TestServer::start();
    let body = json!({"model": "trunkline-demo", "temperature": 0, "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        user("What colour is the sky?"),
    ]});
    let first = server.chat(&body);
    let hits = server.metric(HITS);
    let second = server.chat(&body);
    let cached =
        |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert_eq!(cached(&first), Some(0));
    let prompt = first["usage"]["prompt_tokens"].as_u64().expect("usage");
    assert_eq!(
        cached(&second),
        Some(prompt - 1),
        "all but the one token that must be computed"
    );
    assert_eq!(server.metric(HITS), hits + (prompt - 1) as f64);
    assert_eq!(first["choices"], second["choices"]);
}

#[test]
fn two_each_turn_reuses_all_tokens_of_the_turns_before() {
    let server = TestServer::start();
    let mut messages = vec![json!({"role": "system", "content": "You are a helpful assistant."})];
    let mut before = 0;
    for question in [
        "Hello, my name is Ada.",
        "What colour is grass?",
        "Count from one to five.",
    ] {
        let hits = server.metric(HITS);
        let answer = turn(&server, &mut messages, user(question), None);
        assert_eq!(answer.finish_reason, "stop", "{answer:?}");
        assert!(!answer.content.is_empty());
        assert!(
            answer.cached_tokens() >= before,
            "{answer:?} reuses less than {before} tokens"
        );
        assert_eq!(server.metric(HITS), hits + answer.cached_tokens() as f64);
        // The end token was sampled and never computed.
        before = answer.prompt_tokens() + answer.completion_tokens() - 1;
    }
}

#[test]
fn three_a_forced_tool_call_its_result_and_a_follow_up() {
    let server = TestServer::start();
    let tools = weather_tool();
    let mut messages = Vec::new();
    let ask = user("You must call the weather tool for Berlin. Do not answer directly.");
    let called = turn(&server, &mut messages, ask, Some(&tools));
    assert_eq!(called.finish_reason, "tool_calls", "{called:?}");
    assert_eq!(called.content, "");
    assert_eq!(called.calls.len(), 1);
    assert_eq!(called.calls[0].0, "weather");
    let arguments: Value = serde_json::from_str(&called.calls[0].1).expect("valid JSON");
    assert_eq!(arguments, json!({"city": "Berlin"}));

    let weather = json!({"city": "Berlin", "temperature": 18, "condition": "sunny"});
    let answer = turn(
        &server,
        &mut messages,
        result(&called, weather),
        Some(&tools),
    );
    assert_eq!(answer.finish_reason, "stop", "{answer:?}");
    assert!(
        answer.content.contains("Berlin") && answer.content.contains("18"),
        "{answer:?}"
    );
    assert!(answer.cached_tokens() > called.cached_tokens());
    assert!(answer.cached_tokens() >= called.prompt_tokens() + called.completion_tokens() - 1);

    let shorter = turn(
        &server,
        &mut messages,
        user("Shorter, please."),
        Some(&tools),
    );
    assert_eq!(shorter.finish_reason, "stop", "{shorter:?}");
    assert!(shorter.content.len() < answer.content.len(), "{shorter:?}");
    assert!(shorter.cached_tokens() > answer.cached_tokens());
}

#[test]
fn four_two_calls_in_two_rounds_of_one_conversation() {
    let server = TestServer::start();
    let tools = weather_tool();
    let mut messages = Vec::new();
    let mut cached = 0;
    for (city, temperature) in [("Berlin", 18), ("Paris", 21)] {
        let ask = user(&format!(
            "You must call the weather tool for {city}. Do not answer directly."
        ));
        let called = turn(&server, &mut messages, ask, Some(&tools));
        assert_eq!(called.finish_reason, "tool_calls", "{called:?}");
        let arguments: Value = serde_json::from_str(&called.calls[0].1).expect("valid JSON");
        assert_eq!(arguments, json!({"city": city}));
        assert!(called.cached_tokens() > cached || cached == 0, "{called:?}");

        let weather = json!({"city": city, "temperature": temperature, "condition": "cloudy"});
        let answer = turn(
            &server,
            &mut messages,
            result(&called, weather),
            Some(&tools),
        );
        assert_eq!(answer.finish_reason, "stop", "{answer:?}");
        assert!(answer.content.contains(city), "{answer:?}");
        assert!(
            answer.content.contains(&temperature.to_string()),
            "{answer:?}"
        );
        assert!(answer.cached_tokens() > called.cached_tokens());
        cached = answer.cached_tokens();
    }
}

#[test]
fn five_a_cancelled_stream_leaves_its_prompt_in_the_cache() {
    let server = TestServer::start();
    let body = json!({"model": "trunkline-demo", "messages": [user("Repeat after me: river stone lantern")],
        "ignore_eos": true, "max_tokens": 20000});
    let mut stream = server.stream_chat(&body);
    first_content(&mut stream);
    stream.leave();
    server.wait_idle();
    assert_eq!(server.metric("trunkline_client_disconnects_total"), 1.0);

    let again = server
        .chat(&json!({"model": "trunkline-demo", "messages": body["messages"], "max_tokens": 4}));
    let usage = &again["usage"];
    let prompt = usage["prompt_tokens"].as_u64().expect("usage");
    assert_eq!(
        usage["prompt_tokens_details"]["cached_tokens"],
        json!(prompt - 1)
    );
}

#[test]
fn six_concurrent_streams_see_only_their_own_progress() {
    // Small steps, so that each prompt takes many of them.
    let server = TestServer::with(|config| {
        config.max_batch_tokens = 64;
        config.progress_interval = std::time::Duration::from_millis(1);
    });
    let answers: Vec<Answer> = thread::scope(|scope| {
        let clients: Vec<_> = (1..=5)
            .zip([
                ("X-Prefill-Progress", "Yes"),
                ("x-swiftlm-prefill-progress", "true"),
                ("X-Prefill-Progress", "1"),
                ("X-SwiftLM-Prefill-Progress", "On"),
                ("x-prefill-progress", "TRUE"),
            ])
            .map(|(number, header)| {
                let server = &server;
                scope.spawn(move || {
                    // Prompts of five lengths, none a prefix of another.
                    let words =
                        format!("{number} ").repeat(150 * number) + "What colour is the sky?";
                    let body = json!({"model": "trunkline-demo", "stream": true, "max_tokens": 20,
                        "stream_options": {"include_usage": true}, "messages": [user(&words)]});
                    Answer::of(server.stream_with("/v1/chat/completions", &[header], &body))
                })
            })
            .collect();
        // One that has not asked sees nothing.
        let plain = json!({"model": "trunkline-demo", "max_tokens": 20,
            "messages": [user("Count from one to ten.")]});
        assert!(Answer::of(server.stream_chat(&plain)).progress.is_empty());
        clients
            .into_iter()
            .map(|client| client.join().expect("the client ends"))
            .collect()
    });
    for answer in &answers {
        assert!(!answer.finish_reason.is_empty());
        assert!(answer.progress.len() >= 2, "{:?}", answer.progress);
        let mut past = 0;
        for progress in &answer.progress {
            assert_eq!(progress["object"], "prefill_progress");
            assert_eq!(progress["id"], json!(answer.id));
            assert_eq!(progress["choices"], json!([]));
            assert_eq!(progress["n_prompt_tokens"], json!(answer.prompt_tokens()));
            let now = progress["n_past"].as_u64().expect("a number");
            assert!(
                now >= past,
                "progress never goes back: {:?}",
                answer.progress
            );
            past = now;
            let counted = [&progress["elapsed_seconds"], &progress["fraction"]];
            assert!(
                counted.iter().all(|number| number.is_number()),
                "{progress}"
            );
        }
        assert_eq!(answer.progress[0]["status"], "queued");
        let last = answer.progress.last().expect("checked above");
        assert_eq!(last["status"], "done");
        assert_eq!(last["n_past"], json!(answer.prompt_tokens()));
        assert_eq!(last["cached_tokens"], json!(answer.cached_tokens()));
        let done = answer
            .progress
            .iter()
            .filter(|progress| progress["status"] == "done")
            .count();
        assert_eq!(done, 1);
    }
    let mut lengths: Vec<u64> = answers.iter().map(Answer::prompt_tokens).collect();
    lengths.dedup();
    assert_eq!(
        lengths.len(),
        5,
        "the prompts differ, so the test can tell them apart"
    );
}

#[test]
fn seven_a_client_that_stops_reading_holds_nobody_up() {
    let server = TestServer::start();
    let question = json!({"model": "trunkline-demo", "temperature": 0, "max_tokens": 60,
        "messages": [user("Count from one to ten.")]});
    let solo = Answer::of(server.stream_chat(&question)).content;

    // It reads the head and then nothing, while far more is generated than its socket holds.
    let endless = json!({"model": "trunkline-demo", "messages": [user("What colour is snow?")],
        "temperature": 0, "ignore_eos": true, "max_tokens": 6000});
    let expected = server.chat(&endless)["choices"][0]["message"]["content"].clone();
    let stalled = server.stream_chat(&endless);
    for _ in 0..8 {
        assert_eq!(Answer::of(server.stream_chat(&question)).content, solo);
    }
    // The scheduler is done with it although nobody has read a byte.
    wait_until("the stalled request has been generated", || {
        server.metric("trunkline_requests_running") == 0.0
    });
    let late = Answer::of(stalled);
    assert_eq!(json!(late.content), expected, "nothing was lost or doubled");
    assert_eq!(late.finish_reason, "length");
    assert_eq!(late.completion_tokens(), 6000);
    server.wait_idle();
}

#[test]
fn eight_unknown_fields_and_headers_do_no_harm() {
    let server = TestServer::start();
    let mut body = json!({"model": "trunkline-demo", "temperature": 0, "messages": [user("What colour is grass?")]});
    let plain = server.chat(&body);
    body["session_id"] = json!("abc-123");
    body["store"] = json!(true);
    body["user"] = json!("u");
    body["some_future_field"] = json!({"nested": [1, 2, {"deep": null}]});
    let headers = [
        ("X-Session-Id", "abc"),
        ("X-Unheard-Of", "1"),
        ("Accept-Encoding", "gzip, br"),
    ];
    let response = server.post_with("/v1/chat/completions", &headers, &body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.json()["choices"], plain["choices"]);
    assert_eq!(response.header("content-encoding"), None);
}

#[test]
fn nine_endless_generation_ends_when_its_client_leaves() {
    let server = TestServer::start();
    let body = json!({"model": "trunkline-demo", "messages": [user("What colour is the sea?")],
        "ignore_eos": true, "max_tokens": 30000});
    let mut stream = server.stream_chat(&body);
    first_content(&mut stream);
    assert_eq!(server.metric("trunkline_requests_running"), 1.0);
    stream.leave();
    wait_until("the slot is free", || {
        server.metric("trunkline_requests_running") == 0.0
    });
    let snapshot = server.wait_idle();
    assert_eq!(snapshot.running, 0);
    assert_eq!(server.metric("trunkline_client_disconnects_total"), 1.0);
    let generated = server.metric("trunkline_generation_tokens_total");
    assert!(
        generated < 30000.0,
        "it was cut short after {generated} tokens"
    );
}

/// The raw bytes of a whole answer, for the one check that needs them.
fn raw(server: &TestServer, body: &Value) -> String {
    let text = body.to_string();
    let mut socket: TcpStream = crate::support::open_request(
        server.address(),
        "POST",
        "/v1/chat/completions",
        &[("Content-Type", "application/json")],
        text.as_bytes(),
    );
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).expect("the answer arrives");
    String::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn a_plain_stream_holds_nothing_but_standard_chunks() {
    let server = TestServer::start();
    let answer = raw(
        &server,
        &json!({"model": "trunkline-demo", "stream": true, "messages": [user(&"word ".repeat(400))], "max_tokens": 5}),
    );
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let lower = head.to_ascii_lowercase();
    assert!(lower.contains("content-type: text/event-stream"), "{head}");
    assert!(lower.contains("cache-control: no-cache"), "{head}");
    // Chunk sizes aside, every line is empty or a data line.
    for line in body.lines().filter(|line| !line.is_empty()) {
        let size = line.chars().all(|c| c.is_ascii_hexdigit());
        assert!(size || line.starts_with("data: "), "{line:?}");
    }
}
