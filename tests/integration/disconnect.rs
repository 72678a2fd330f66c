//! Clients that leave at every stage of a request: it ends, its blocks stay as cache, a counter records it.

use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{EventStream, TestServer, open_request, wait_until};

const CHAT: &str = "/v1/chat/completions";

/// A request that ends only when it is cancelled, with a prompt of some blocks.
fn endless(seed: &str) -> Value {
    let words: String = (0..60).map(|word| format!("{seed}{word} ")).collect();
    json!({
        "messages": [{"role": "user", "content": words}],
        "max_tokens": 30_000, "ignore_eos": true, "temperature": 0,
    })
}

fn disconnects(server: &TestServer) -> f64 {
    server.metric("trunkline_client_disconnects_total")
}

fn send(server: &TestServer, body: &Value) -> TcpStream {
    open_request(
        server.address(),
        "POST",
        CHAT,
        &[],
        body.to_string().as_bytes(),
    )
}

/// The first content of a stream has come.
fn wait_for_content(stream: &mut EventStream) {
    assert!(stream.any(|event| event.json()["choices"][0]["delta"]["content"].is_string()));
}

/// The prompt of `body` is found in the cache by a new request.
fn assert_cached(server: &TestServer, body: &Value) {
    let mut again = body.clone();
    again["max_tokens"] = json!(1);
    let usage = server.chat(&again)["usage"].clone();
    let cached = usage["prompt_tokens_details"]["cached_tokens"]
        .as_u64()
        .expect("a count");
    let prompt = usage["prompt_tokens"].as_u64().expect("a count");
    assert!(cached > 0 && prompt - cached <= 32, "{usage}");
}

#[test]
fn in_the_middle_of_a_stream() {
    let server = TestServer::start();
    let body = endless("stream");
    let mut stream = server.stream_chat(&body);
    wait_for_content(&mut stream);
    stream.leave();
    server.wait_idle();
    assert_eq!(disconnects(&server), 1.0);
    assert_eq!(
        server.metric_with("trunkline_requests_total", "cancelled"),
        1.0
    );
    assert_cached(&server, &body);
}

#[test]
fn while_waiting_for_a_whole_answer() {
    let server = TestServer::start();
    let body = endless("whole");
    let socket = send(&server, &body);
    wait_until("it is computed", || {
        server.metric("trunkline_generation_tokens_total") > 0.0
    });
    drop(socket);
    server.wait_idle();
    assert_eq!(disconnects(&server), 1.0);
    assert_cached(&server, &body);
}

#[test]
fn while_queued() {
    let server = TestServer::with(|config| config.max_running = 1);
    let mut running = server.stream_chat(&endless("first"));
    wait_for_content(&mut running);
    // One that waits for a whole answer, and one that has had the head of its stream.
    let whole = send(&server, &endless("second"));
    let stream = server.stream_chat(&endless("third"));
    wait_until("both are queued", || {
        server.metric("trunkline_requests_waiting") == 2.0
    });
    drop(whole);
    wait_until("the first has left the queue", || {
        server.metric("trunkline_requests_waiting") == 1.0
    });
    stream.leave();
    wait_until("the second has left the queue", || {
        server.metric("trunkline_requests_waiting") == 0.0
    });
    assert_eq!(disconnects(&server), 2.0);
    // The running one never noticed.
    wait_for_content(&mut running);
    running.leave();
    server.wait_idle();
    assert_eq!(disconnects(&server), 3.0);
}

#[test]
fn in_prefill() {
    // Small steps make prefill long: about a thousand tokens, sixteen at a time.
    let server = TestServer::with(|config| config.max_batch_tokens = 16);
    for streamed in [false, true] {
        let mut body = endless(if streamed { "streamed" } else { "plain" });
        let words: String = (0..400).map(|word| format!("{streamed}{word} ")).collect();
        body["messages"][0]["content"] = words.into();
        body["stream"] = json!(streamed);
        let before = disconnects(&server);
        let socket = send(&server, &body);
        wait_until("prefill has begun", || {
            server.metric("trunkline_requests_running") == 1.0
        });
        drop(socket);
        server.wait_idle();
        assert_eq!(disconnects(&server), before + 1.0);
    }
    assert_eq!(
        server.metric_with("trunkline_requests_total", "cancelled"),
        2.0
    );
}

#[test]
fn a_reset_is_noticed_as_well() {
    let server = TestServer::start();
    let socket = send(&server, &endless("reset"));
    wait_until("it is computed", || {
        server.metric("trunkline_generation_tokens_total") > 0.0
    });
    socket2::SockRef::from(&socket)
        .set_linger(Some(std::time::Duration::ZERO))
        .expect("an option");
    drop(socket);
    server.wait_idle();
    assert_eq!(disconnects(&server), 1.0);
}

#[test]
fn many_leave_at_once_and_the_others_are_served() {
    let server = TestServer::start();
    let ask = json!({
        "messages": [{"role": "user", "content": "Count from one to twenty."}], "max_tokens": 24, "temperature": 0,
    });
    let alone = server.chat(&ask)["choices"][0]["message"]["content"].clone();
    let streams: Vec<_> = (0..12)
        .map(|number| server.stream_chat(&endless(&format!("n{number}x"))))
        .collect();
    let sockets: Vec<_> = (0..12)
        .map(|number| send(&server, &endless(&format!("m{number}x"))))
        .collect();
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| server.chat(&ask)["choices"][0]["message"]["content"].clone()))
            .collect();
        drop(sockets);
        for stream in streams {
            stream.leave();
        }
        for other in others {
            assert_eq!(other.join().expect("an answer"), alone);
        }
    });
    server.wait_idle();
    assert_eq!(disconnects(&server), 24.0);
}
