//! Random load: answers stay what they are alone, and nothing leaks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use trunkline::config::Auto;

use crate::support::{EventStream, TestServer, open_request};

/// A small generator of repeatable choices (splitmix64), so that a failing run can be run again.
struct Choices(u64);

impl Choices {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }

    fn one_of<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len() as u64) as usize]
    }
}

const SYSTEMS: [&str; 4] = [
    "You are a helpful assistant.",
    "You are a coding agent that runs in a terminal. Be concise. Never guess file names.",
    "Answer briefly. The user is in a hurry and reads on a small screen, so every word counts.",
    "",
];
const QUESTIONS: [&str; 6] = [
    "What colour is the sky?",
    "Count from one to twelve.",
    "Hello, my name is Grace.",
    "Repeat after me: lantern river stone",
    "Why is the moon so quiet?",
    "What is the capital of France?",
];

/// One of a bounded set of requests, so that each has to be answered alone only once.
fn request(choices: &mut Choices) -> Value {
    let system = choices.one_of(&SYSTEMS);
    let question = choices.one_of(&QUESTIONS);
    let filler = "The quick brown fox jumps over the lazy dog. "
        .repeat([0, 0, 3, 12][choices.below(4) as usize]);
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(json!({"role": "system", "content": format!("{system}{filler}")}));
    }
    messages.push(json!({"role": "user", "content": question}));
    let seeded = choices.below(3) == 0;
    let max_tokens = [1, 5, 20, 60, 120][choices.below(5) as usize];
    json!({
        "model": "trunkline-demo",
        "messages": messages,
        "max_tokens": max_tokens,
        "ignore_eos": choices.below(2) == 0,
        "temperature": if seeded { 0.9 } else { 0.0 },
        "seed": choices.below(3),
    })
}

/// Content and finish reason of a stream that runs to its end.
fn read(stream: EventStream) -> (String, String) {
    assert_eq!(stream.status, 200);
    let (mut content, mut reason) = (String::new(), String::new());
    for event in stream.into_done() {
        let choice = &event.json()["choices"][0];
        content += choice["delta"]["content"].as_str().unwrap_or("");
        if let Some(text) = choice["finish_reason"].as_str() {
            reason = text.to_owned();
        }
    }
    (content, reason)
}

/// The same from a whole answer.
fn whole(answer: &Value) -> (String, String) {
    let choice = &answer["choices"][0];
    let content = choice["message"]["content"]
        .as_str()
        .unwrap_or("")
        .to_owned();
    (
        content,
        choice["finish_reason"]
            .as_str()
            .expect("a reason")
            .to_owned(),
    )
}

#[test]
fn sixty_four_concurrent_streams_equal_their_solo_runs() {
    let server = TestServer::start();
    let requests: Vec<Value> = (0..64)
        .map(|number| {
            let mut choices = Choices(number);
            let mut body = request(&mut choices);
            body["max_tokens"] = json!(40);
            // A question of its own, so that no two prompts are equal.
            body["messages"].as_array_mut().expect("messages").push(
                json!({"role": "user", "content": format!("Repeat after me: word {number}")}),
            );
            body
        })
        .collect();
    let together: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = requests
            .iter()
            .map(|body| scope.spawn(|| read(server.stream_chat(body))))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("the client ends"))
            .collect()
    });
    server.wait_idle();
    drop(server);
    // Alone: a server that has seen none of it, one request after another.
    let alone = TestServer::start();
    for (body, answer) in requests.iter().zip(&together) {
        assert_eq!(&whole(&alone.chat(body)), answer, "{body}");
    }
}

#[test]
fn random_load_on_a_tiny_pool_ends_idle_and_every_answer_is_the_solo_answer() {
    const REQUESTS: usize = 360;
    const CLIENTS: usize = 24;
    let server = TestServer::with(|config| {
        config.block_size = 16;
        config.kv_blocks = Auto::Set(64);
        config.max_batch_tokens = 48;
    });
    let next = AtomicUsize::new(0);
    let finished = thread::scope(|scope| {
        let next = &next;
        let server = &server;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(move || {
                    let mut finished = Vec::new();
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= REQUESTS {
                            return finished;
                        }
                        let mut choices = Choices(1000 + number as u64);
                        let body = request(&mut choices);
                        match choices.below(6) {
                            // Leaves before the first byte.
                            0 => {
                                let bytes = body.to_string();
                                let headers = [("Content-Type", "application/json")];
                                let path = "/v1/chat/completions";
                                drop(open_request(
                                    server.address(),
                                    "POST",
                                    path,
                                    &headers,
                                    bytes.as_bytes(),
                                ));
                            }
                            // Leaves in the middle.
                            1 => {
                                let mut stream = server.stream_chat(&body);
                                for _ in 0..choices.below(8) {
                                    stream.next();
                                }
                                stream.leave();
                            }
                            // Reads slowly: asks for others' answers between its own events.
                            2 => {
                                let slow = server.stream_chat(&body);
                                server.get("/health");
                                server.get("/metrics");
                                finished.push((body, read(slow)));
                            }
                            3 => {
                                let answer = whole(&server.chat(&body));
                                finished.push((body, answer));
                            }
                            _ => {
                                let answer = read(server.stream_chat(&body));
                                finished.push((body, answer));
                            }
                        }
                    }
                })
            })
            .collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().expect("the client ends"))
            .collect::<Vec<_>>()
    });
    let snapshot = server.wait_idle();
    assert_eq!(snapshot.running + snapshot.waiting, 0);
    assert_eq!(snapshot.blocks.free + snapshot.blocks.cached, 64);
    assert!(
        server.metric("trunkline_preemptions_total") > 0.0,
        "the pool was meant to be too small"
    );
    assert!(server.metric("trunkline_prefix_cache_evicted_blocks_total") > 0.0);
    assert!(server.metric("trunkline_client_disconnects_total") > 0.0);
    assert!(finished.len() > REQUESTS / 2);
    drop(server);

    let alone = TestServer::start();
    let mut known = std::collections::HashMap::new();
    for (body, answer) in finished {
        let expected = known
            .entry(body.to_string())
            .or_insert_with(|| whole(&alone.chat(&body)));
        assert_eq!(*expected, answer, "{body}");
    }
}
