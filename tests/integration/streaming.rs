//! What a stream looks like on the wire, end to end.

use std::io::Write;
use std::net::Shutdown;

use serde_json::{Value, json};

use crate::support::{Event, EventStream, TestServer, open_request};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn count() -> Value {
    json!({
        "messages": [{"role": "user", "content": "Count from one to twenty."}],
        "max_tokens": 48,
        "temperature": 0,
    })
}

fn delta(event: &Event) -> Value {
    event.json()["choices"][0]["delta"].clone()
}

fn content(events: &[Event]) -> String {
    events
        .iter()
        .filter_map(|event| delta(event)["content"].as_str().map(str::to_owned))
        .collect()
}

/// A prompt whose prefill takes several steps; `seed` makes it new to the cache.
fn long_prompt(seed: &str, words: usize) -> String {
    (0..words).map(|word| format!("{seed}{word} ")).collect()
}

#[test]
fn chunks_come_in_their_order_and_say_what_the_whole_answer_says() {
    let server = TestServer::start();
    let whole = server.chat(&count());
    let stream = server.stream_chat(&count());
    assert_eq!(stream.status, 200);
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.header("cache-control"), Some("no-cache"));
    assert_eq!(stream.header("content-encoding"), None);
    let events = stream.into_done();
    assert!(
        events.iter().all(|event| event.name.is_none()),
        "only standard chunks"
    );

    let chunks: Vec<Value> = events.iter().map(Event::json).collect();
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        for shared in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(chunk[shared], chunks[0][shared]);
        }
    }
    assert!(
        chunks[0]["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("chatcmpl-"))
    );
    let [first, middle @ .., finish, usage] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(delta(first), json!({"role": "assistant", "content": null}));
    assert!(
        middle
            .iter()
            .all(|event| event.json()["choices"][0]["finish_reason"].is_null())
    );
    assert_eq!(delta(finish), json!({}));
    assert_eq!(
        finish.json()["choices"][0]["finish_reason"],
        whole["choices"][0]["finish_reason"]
    );
    assert!(finish.json().get("usage").is_none());
    assert_eq!(usage.json()["choices"], json!([]));
    assert_eq!(
        content(middle),
        whole["choices"][0]["message"]["content"]
            .as_str()
            .expect("text")
    );

    let of = |usage: &Value, name: &str| usage[name].as_u64().expect("a count");
    let (streamed, whole) = (&usage.json()["usage"], &whole["usage"]);
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(of(streamed, name), of(whole, name));
    }
    assert_eq!(
        of(streamed, "total_tokens"),
        of(streamed, "prompt_tokens") + of(streamed, "completion_tokens")
    );
    assert_eq!(whole["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(of(&streamed["prompt_tokens_details"], "cached_tokens") > 0);
    assert!(streamed["completion_tokens_details"]["reasoning_tokens"].is_u64());
    server.wait_idle();
}

#[test]
fn usage_rides_on_the_final_chunk_where_the_configuration_says_so() {
    let server = TestServer::with(|config| config.usage_on_final_chunk = true);
    let mut body = count();
    body["stream"] = json!(true);
    let events = server.stream(CHAT, &body).into_done();
    let last = events.last().expect("a chunk").json();
    assert!(last["choices"][0]["finish_reason"].is_string());
    assert!(
        last["usage"]["completion_tokens"]
            .as_u64()
            .is_some_and(|tokens| tokens > 0)
    );
}

#[test]
fn stop_strings_are_found_across_tokens_and_left_out() {
    let server = TestServer::start();
    let whole = server.chat(&count());
    let text = whole["choices"][0]["message"]["content"]
        .as_str()
        .expect("text")
        .to_owned();
    // A piece from the middle, cut without regard to tokens.
    let middle: String = text
        .chars()
        .skip(text.chars().count() / 3)
        .take(5)
        .collect();
    let before = text.split(&middle).next().expect("text before");
    for stop in [json!(middle), json!(["never said", middle])] {
        let mut body = count();
        body["stop"] = stop;
        let answer = server.chat(&body);
        assert_eq!(answer["choices"][0]["message"]["content"], before);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let events = server.stream_chat(&body).into_done();
        assert_eq!(content(&events[..events.len() - 1]), before);
    }
    server.wait_idle();
}

#[test]
fn text_completions_in_all_their_forms() {
    let server = TestServer::start();
    let body = json!({"prompt": ["One, two,", "The sky is"], "max_tokens": 6, "temperature": 0, "ignore_eos": true});
    let answer = server.post(TEXT, &body).json();
    assert!(
        answer["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("cmpl-")),
        "{answer}"
    );
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let texts: Vec<&str> = (0..2)
        .map(|index| answer["choices"][index]["text"].as_str().expect("text"))
        .collect();
    for (index, prompt) in ["One, two,", "The sky is"].iter().enumerate() {
        assert_eq!(answer["choices"][index]["index"], index);
        let alone = server.post(
            TEXT,
            &json!({"prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": true}),
        );
        assert_eq!(alone.json()["choices"][0]["text"], texts[index]);
        let echoed = server.post(
            TEXT,
            &json!({"prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": true, "echo": true}),
        );
        assert_eq!(
            echoed.json()["choices"][0]["text"],
            format!("{prompt}{}", texts[index])
        );
    }

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let events = server.stream(TEXT, &streamed).into_done();
    let mut parts = [String::new(), String::new()];
    let mut finished = [0, 0];
    for event in &events {
        let choice = &event.json()["choices"][0];
        let index = choice["index"].as_u64().expect("an index") as usize;
        assert_eq!(finished[index], 0, "text after the end");
        parts[index] += choice["text"].as_str().expect("text");
        finished[index] += usize::from(choice["finish_reason"].is_string());
    }
    assert_eq!(parts, texts[..]);
    assert_eq!(finished, [1, 1]);

    let tokens = server
        .post(
            TEXT,
            &json!({"prompt": [65, 66, 67], "max_tokens": 2, "ignore_eos": true}),
        )
        .json();
    assert_eq!(tokens["usage"]["prompt_tokens"], 3);
    let several = server
        .post(
            TEXT,
            &json!({"prompt": [[65, 66], [67]], "max_tokens": 2, "ignore_eos": true}),
        )
        .json();
    assert_eq!(several["choices"].as_array().map(Vec::len), Some(2));
    server.wait_idle();
}

#[test]
fn progress_on_chunks_as_llama_server_has_it() {
    let server = TestServer::start();
    let mut body = count();
    body["messages"][0]["content"] = long_prompt("violet", 60).into();
    body["return_progress"] = json!(true);
    let events = server.stream_chat(&body).into_done();
    assert!(events.iter().all(|event| event.name.is_none()));
    let progress: Vec<Value> = events
        .iter()
        .map(|event| event.json()["prompt_progress"].clone())
        .filter(Value::is_object)
        .collect();
    let usage = events.last().expect("a usage chunk").json()["usage"].clone();
    let last = progress.last().expect("progress");
    assert_eq!(
        (&last["total"], &last["processed"]),
        (&usage["prompt_tokens"], &usage["prompt_tokens"])
    );
    assert!(last["cache"].is_u64() && last["time_ms"].is_u64());
}

#[test]
fn headers_and_role_come_before_prefill() {
    // One request computes and does not end, so the next one can only wait.
    let server = TestServer::with(|config| config.max_running = 1);
    let mut endless = count();
    endless["ignore_eos"] = json!(true);
    endless["max_tokens"] = json!(30_000);
    let mut first = server.stream_chat(&endless);
    assert!(first.any(|event| delta(&event)["content"].is_string()));
    let mut second = server.stream_chat(&count());
    assert_eq!(second.status, 200);
    assert_eq!(delta(&second.next().expect("a chunk"))["role"], "assistant");
    assert_eq!(server.metric("trunkline_requests_waiting"), 1.0);
    first.leave();
    assert!(content(&second.into_done()).starts_with("one, two, three"));
    server.wait_idle();
}

#[test]
fn a_half_closed_client_is_served() {
    let server = TestServer::start();
    let alone = server.chat(&count())["choices"][0]["message"]["content"].clone();
    let mut body = count();
    for streamed in [false, true] {
        body["stream"] = json!(streamed);
        let mut socket = open_request(
            server.address(),
            "POST",
            CHAT,
            &[],
            body.to_string().as_bytes(),
        );
        socket.flush().expect("all is sent");
        socket.shutdown(Shutdown::Write).expect("half closed");
        if streamed {
            assert_eq!(
                content(&EventStream::new(socket).into_done()),
                alone.as_str().expect("text")
            );
        } else {
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut socket, &mut answer).expect("an answer");
            let (head, json) = answer.split_once("\r\n\r\n").expect("a head");
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            let json: Value = serde_json::from_str(json).expect("JSON");
            assert_eq!(json["choices"][0]["message"]["content"], alone);
        }
    }
    assert_eq!(server.metric("trunkline_client_disconnects_total"), 0.0);
    server.wait_idle();
}
