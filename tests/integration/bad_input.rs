//! What is wrong with a request is told with the right status and by name, and the server goes on serving.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};
use trunkline::config::ApiKey;

use crate::support::{PATIENCE, Response, TestServer, exchange, open_request};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4, "temperature": 0})
}

/// `hello` with some members replaced.
fn with(members: Value) -> Value {
    let mut body = hello();
    for (name, value) in members.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

/// The error has its four members, and these values.
fn assert_refused(response: &Response, status: u16, code: &str, parameter: Option<&str>) {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert!(response.header("x-request-id").is_some());
    let error = response.error();
    let members: Vec<&str> = error
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(members, ["message", "type", "param", "code"]);
    assert_eq!(error["code"], code, "{error}");
    assert_eq!(error["param"].as_str(), parameter, "{error}");
    assert!(!error["message"].as_str().expect("a message").is_empty());
    assert!(error["type"].is_string());
}

fn assert_serves(server: &TestServer) {
    assert_eq!(server.chat(&hello())["object"], "chat.completion");
}

#[test]
fn malformed_bodies_are_400() {
    let server = TestServer::start();
    let post = |path: &str, body: &[u8]| exchange(server.address(), "POST", path, &[], body);
    for path in [CHAT, TEXT] {
        for body in [
            &b"{"[..],
            b"not json",
            b"{\"messages\": [}",
            b"\xff\xfe\x00",
            b"{\"temperature\": NaN}",
        ] {
            assert_refused(&post(path, body), 400, "invalid_json", None);
        }
        assert_refused(&post(path, b"[]"), 400, "invalid_request", None);
        assert_refused(&post(path, b"\"text\""), 400, "invalid_request", None);
        assert_refused(&post(path, b""), 400, "invalid_request", None);
        let nested = [vec![b'['; 200_000], vec![b']'; 200_000]].concat();
        assert_refused(&post(path, &nested), 400, "invalid_json", None);
    }
    assert_serves(&server);
}

#[test]
fn wrong_fields_are_named() {
    let server = TestServer::start();
    let image =
        json!([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]);
    let call = json!({"type": "function", "function": {"name": "f"}});
    for (body, code, parameter) in [
        (json!({}), "missing_required_parameter", "messages"),
        (json!({"messages": []}), "invalid_value", "messages"),
        (json!({"messages": 1}), "invalid_type", "messages"),
        (
            json!({"messages": [{"role": "robot", "content": "x"}]}),
            "invalid_value",
            "messages[0].role",
        ),
        (
            json!({"messages": [{"role": "user", "content": 1}]}),
            "invalid_type",
            "messages[0].content",
        ),
        (
            json!({"messages": [{"role": "user", "content": image}]}),
            "unsupported_parameter",
            "messages[0].content[1]",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "1"}]}),
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        (
            with(json!({"temperature": -1})),
            "invalid_value",
            "temperature",
        ),
        (
            with(json!({"temperature": "NaN"})),
            "invalid_type",
            "temperature",
        ),
        (with(json!({"top_p": 1.1})), "invalid_value", "top_p"),
        (
            with(json!({"max_tokens": -1})),
            "invalid_value",
            "max_tokens",
        ),
        (
            with(json!({"max_tokens": 0})),
            "invalid_value",
            "max_tokens",
        ),
        (with(json!({"stop": [""]})), "invalid_value", "stop[0]"),
        (
            with(json!({"logit_bias": {"99999999": 1}})),
            "invalid_value",
            "logit_bias.99999999",
        ),
        (with(json!({"n": 0})), "invalid_value", "n"),
        (with(json!({"n": 129})), "invalid_value", "n"),
        (with(json!({"n": "two"})), "invalid_type", "n"),
        (with(json!({"logprobs": 50})), "invalid_type", "logprobs"),
        (
            with(json!({"top_logprobs": 5})),
            "invalid_value",
            "top_logprobs",
        ),
        (
            with(json!({"logprobs": true, "top_logprobs": 50})),
            "invalid_value",
            "top_logprobs",
        ),
        (
            with(json!({"logprobs": true, "top_logprobs": "all"})),
            "invalid_type",
            "top_logprobs",
        ),
        (
            with(json!({"best_of": 2})),
            "unsupported_parameter",
            "best_of",
        ),
        (with(json!({"echo": true})), "unsupported_parameter", "echo"),
        (
            with(json!({"functions": [{"name": "f"}]})),
            "unsupported_parameter",
            "functions",
        ),
        (
            with(json!({"modalities": ["text", "audio"]})),
            "unsupported_parameter",
            "modalities[1]",
        ),
        (
            with(json!({"reasoning_effort": "extreme"})),
            "invalid_value",
            "reasoning_effort",
        ),
        (
            with(json!({"max_completion_tokens": 0})),
            "invalid_value",
            "max_completion_tokens",
        ),
        (with(json!({"store": 1})), "invalid_type", "store"),
        (
            with(json!({"prediction": "x"})),
            "invalid_type",
            "prediction",
        ),
        (
            with(json!({"service_tier": 1})),
            "invalid_type",
            "service_tier",
        ),
        (with(json!({"timings": "yes"})), "invalid_type", "timings"),
        (
            with(json!({"continue_final_message": true})),
            "invalid_value",
            "messages[0]",
        ),
        (
            with(json!({"add_generation_prompt": false})),
            "unsupported_parameter",
            "add_generation_prompt",
        ),
        (
            with(json!({"stop": vec!["x"; 17]})),
            "invalid_value",
            "stop",
        ),
        (
            with(json!({"response_format": {"type": "json"}})),
            "invalid_value",
            "response_format.type",
        ),
        (
            with(json!({"tools": [call], "tool_choice": "sometimes"})),
            "invalid_value",
            "tool_choice",
        ),
        (
            with(json!({"tools": [{"type": "function", "function": {}}]})),
            "missing_required_parameter",
            "tools[0].function.name",
        ),
        (
            with(json!({"chat_template_kwargs": {"messages": []}})),
            "invalid_value",
            "chat_template_kwargs",
        ),
    ] {
        assert_refused(&server.post(CHAT, &body), 400, code, Some(parameter));
        let mut streamed = body;
        streamed["stream"] = json!(true);
        assert_refused(&server.post(CHAT, &streamed), 400, code, Some(parameter));
    }
    for (body, code, parameter) in [
        (json!({}), "missing_required_parameter", "prompt"),
        (json!({"prompt": []}), "invalid_value", "prompt"),
        (
            json!({"prompt": [1, 99_999_999]}),
            "invalid_value",
            "prompt",
        ),
        (
            json!({"prompt": "a", "suffix": "b"}),
            "unsupported_parameter",
            "suffix",
        ),
        (
            json!({"prompt": "a", "logprobs": 6}),
            "invalid_value",
            "logprobs",
        ),
        (
            json!({"prompt": "a", "logprobs": true}),
            "invalid_type",
            "logprobs",
        ),
        (
            json!({"prompt": "a", "best_of": 21}),
            "invalid_value",
            "best_of",
        ),
        (
            json!({"prompt": "a", "best_of": 2, "n": 3}),
            "invalid_value",
            "best_of",
        ),
        (
            json!({"prompt": "a", "best_of": 2, "stream": true}),
            "invalid_value",
            "best_of",
        ),
        (
            json!({"prompt": vec!["a"; 64], "n": 3}),
            "invalid_value",
            "n",
        ),
        (
            json!({"prompt": "a", "max_tokens": 0}),
            "invalid_value",
            "max_tokens",
        ),
        (
            json!({"prompt": "a", "echo": "yes"}),
            "invalid_type",
            "echo",
        ),
    ] {
        assert_refused(&server.post(TEXT, &body), 400, code, Some(parameter));
    }
    assert_serves(&server);
    assert!(server.metric_with("trunkline_requests_rejected_total", "invalid") > 40.0);
    server.wait_idle();
}

#[test]
fn routes_and_methods_that_do_not_exist() {
    let server = TestServer::start();
    for path in [
        "/",
        "/v1",
        "/v1/chat",
        "/v1/unknown?x=%zz",
        "/%2e%2e/etc/passwd",
    ] {
        assert_refused(&server.get(path), 404, "unknown_url", None);
    }
    for (method, path) in [
        ("GET", CHAT),
        ("DELETE", TEXT),
        ("PUT", CHAT),
        ("POST", "/health"),
        ("POST", "/metrics"),
        ("POST", "/v1/models"),
    ] {
        let response = exchange(server.address(), method, path, &[], b"");
        assert_refused(&response, 405, "method_not_allowed", None);
        assert!(response.header("allow").is_some());
    }
    let mut socket = TcpStream::connect(server.address()).expect("the server listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
        .write_all(b"this is no request\r\n\r\n")
        .expect("bytes are sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains("\"error\""),
        "{answer}"
    );
    assert_serves(&server);
}

#[test]
fn large_bodies_are_413() {
    let server = TestServer::start();
    let body = with(json!({"messages": [{"role": "user", "content": "x".repeat(10_000_000)}]}))
        .to_string();
    assert_refused(
        &exchange(server.address(), "POST", CHAT, &[], body.as_bytes()),
        413,
        "request_too_large",
        None,
    );
    // The same without saying how much will come.
    let headers = [("Transfer-Encoding", "chunked")];
    let mut socket = open_request(server.address(), "POST", CHAT, &headers, b"");
    for piece in body.as_bytes().chunks(65_536) {
        // The server may answer and close before it has read all.
        let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
        if socket.write_all(&chunk).is_err() {
            break;
        }
    }
    let _ = socket.write_all(b"0\r\n\r\n");
    let mut answer = Vec::new();
    // A reset after the answer is no matter.
    let _ = socket.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("request_too_large"),
        "{answer}"
    );
    assert_serves(&server);
}

#[test]
fn unknown_models_are_404_with_what_there_is() {
    let server = TestServer::start();
    let models = server.get("/v1/models").json();
    let id = models["data"][0]["id"].as_str().expect("an id").to_owned();
    for response in [
        server.post(CHAT, &with(json!({"model": "gpt-9"}))),
        server.post(TEXT, &json!({"model": "gpt-9", "prompt": "a"})),
        server.get("/v1/models/gpt-9"),
        server.get("/v1/models/org%2Fgpt-9"),
    ] {
        assert_refused(&response, 404, "model_not_found", Some("model"));
        assert!(response.text().contains(&id), "{}", response.text());
    }
    let card = server.get(&format!("/v1/models/{id}")).json();
    assert_eq!(
        (&card["id"], &card["object"]),
        (&id.as_str().into(), &"model".into())
    );
    assert!(
        card["context_window"]
            .as_u64()
            .is_some_and(|window| window > 0)
            && card["created"].is_u64()
    );
    assert_eq!(
        server.chat(&with(json!({"model": id})))["model"],
        id.as_str()
    );
}

#[test]
fn keys_are_asked_for() {
    let server = TestServer::with(|config| {
        config.api_key = ["first-key", "second-key"]
            .map(|key| key.parse::<ApiKey>().expect("a key"))
            .to_vec();
    });
    for headers in [
        &[][..],
        &[("Authorization", "Bearer wrong")],
        &[("Authorization", "Basic first-key")],
    ] {
        let response = server.post_with(CHAT, headers, &hello());
        assert_refused(&response, 401, "invalid_api_key", None);
        assert!(!response.text().contains("first-key"));
        let response = exchange(server.address(), "GET", "/v1/models", headers, b"");
        assert_refused(&response, 401, "invalid_api_key", None);
    }
    for key in ["first-key", "second-key"] {
        let header = format!("Bearer {key}");
        let response = server.post_with(CHAT, &[("Authorization", &header)], &hello());
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/metrics").status, 200);
    assert_eq!(
        server.metric_with("trunkline_requests_rejected_total", "unauthorized"),
        6.0
    );
}

#[test]
fn prompts_over_the_context_are_400_with_the_real_counts() {
    let server =
        TestServer::with(|config| config.context_length = trunkline::config::Auto::Set(256));
    let fits = server.chat(&with(json!({"max_tokens": 100_000, "ignore_eos": true})));
    let usage = &fits["usage"];
    assert_eq!(fits["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["total_tokens"], 256, "as much as fits");

    let long = with(
        json!({"messages": [{"role": "user", "content": "word ".repeat(600)}], "max_tokens": 7}),
    );
    let response = server.post(CHAT, &long);
    assert_refused(&response, 400, "context_length_exceeded", Some("messages"));
    let error = response.error();
    assert_eq!(error["type"], "invalid_request_error");
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.contains("256") && message.contains(" 7 "),
        "{message}"
    );

    // The count in the message is the tokenizer's.
    let prompt: Vec<u32> = vec![65; 300];
    let response = server.post(TEXT, &json!({"prompt": prompt}));
    assert_refused(&response, 400, "context_length_exceeded", Some("prompt"));
    assert!(response.text().contains("300"), "{}", response.text());
    assert_eq!(
        server.metric_with("trunkline_requests_rejected_total", "context_length"),
        2.0
    );
    assert_serves(&server);
}

/// A copy of the demo model with some files replaced.
fn changed_demo(files: &[(&str, &str)]) -> tempfile::TempDir {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let folder = tempfile::tempdir().expect("a folder");
    for name in [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    ] {
        fs::copy(demo.join(name), folder.path().join(name)).expect(name);
    }
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect(name);
    }
    folder
}

#[test]
fn a_template_that_raises_tells_why() {
    let template = "{% for message in messages %}\
        {% if message.content == 'forbidden' %}{{ raise_exception('that word is forbidden') }}{% endif %}\
        {% if message.content == 'broken' %}{{ message.content.missing.attribute }}{% endif %}\
        {% if message.content == 'endless' %}{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}{% endif %}\
        <|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
    let folder = changed_demo(&[("chat_template.jinja", template)]);
    let server = TestServer::with(|config| config.model = folder.path().display().to_string());
    let ask = |word: &str| {
        server.post(
            CHAT,
            &with(json!({"messages": [{"role": "user", "content": word}]})),
        )
    };
    for word in ["forbidden", "broken", "endless"] {
        let response = ask(word);
        assert_refused(&response, 400, "template_error", Some("messages"));
        if word == "forbidden" {
            assert!(
                response.text().contains("that word is forbidden"),
                "{}",
                response.text()
            );
        }
    }
    assert_eq!(ask("fine").status, 200);
}

#[test]
fn a_text_that_cannot_be_encoded_is_400() {
    // A tokenizer of whole words, without a token for unknown ones.
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"hello": 0, "world": 1}, "unk_token": "<unknown>"},
    });
    let folder = changed_demo(&[("tokenizer.json", &tokenizer.to_string())]);
    let server = TestServer::with(|config| config.model = folder.path().display().to_string());
    let ask = |prompt: &str| server.post(TEXT, &json!({"prompt": prompt, "max_tokens": 1}));
    assert_refused(&ask("hello stranger"), 400, "not_encodable", None);
    assert_eq!(ask("hello world").status, 200);
}

#[test]
fn connections_above_the_limit_are_told_so() {
    let server = TestServer::with(|config| config.connection_limit = 2);
    let held: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut socket = TcpStream::connect(server.address()).expect("the server listens");
            let patience = Some(PATIENCE);
            socket
                .set_read_timeout(patience)
                .expect("a timeout can be set");
            // Workers accept side by side, so only an answer shows that a connection has been counted.
            socket
                .write_all(b"GET /health HTTP/1.1\r\nHost: here\r\n\r\n")
                .expect("the request is sent");
            socket.read_exact(&mut [0; 12]).expect("the answer begins");
            socket
        })
        .collect();
    let response = server.post(CHAT, &hello());
    assert_refused(&response, 503, "too_many_connections", None);
    assert!(response.header("retry-after").is_some());
    assert_eq!(server.get("/health").status, 200);
    drop(held);
    crate::support::wait_until("the connections are gone", || {
        server.post(CHAT, &hello()).status == 200
    });
}

#[test]
fn cors_only_for_those_who_are_named() {
    let page = [
        ("Origin", "https://page.example"),
        ("Access-Control-Request-Method", "POST"),
    ];
    let server = TestServer::start();
    let response = exchange(server.address(), "OPTIONS", CHAT, &page, b"");
    assert_eq!(response.status, 204);
    assert!(
        response
            .headers
            .iter()
            .all(|(name, _)| !name.starts_with("access-control"))
    );
    drop(server);

    for (origin, allowed) in [
        ("*", Some("*")),
        ("https://page.example", Some("https://page.example")),
        ("https://other.example", None),
    ] {
        let server = TestServer::with(|config| {
            config.cors = vec![origin.parse().expect("an origin")];
            config.api_key = vec!["key".parse().expect("a key")];
        });
        let response = exchange(server.address(), "OPTIONS", CHAT, &page, b"");
        assert_eq!(response.status, 204);
        assert_eq!(response.header("access-control-allow-origin"), allowed);
        if allowed.is_some() {
            assert_eq!(
                response.header("access-control-allow-headers"),
                Some(
                    "Content-Type, Authorization, X-Prefill-Progress, X-SwiftLM-Prefill-Progress, X-Api-Key, \
                     Anthropic-Version, Anthropic-Beta, Anthropic-Dangerous-Direct-Browser-Access"
                )
            );
            assert!(
                response
                    .header("access-control-allow-methods")
                    .is_some_and(|methods| methods.contains("POST"))
            );
        }
        // Errors, too, must be readable for the page.
        let response = server.post_with(CHAT, &page[..1], &hello());
        assert_eq!(response.status, 401);
        assert_eq!(response.header("access-control-allow-origin"), allowed);
    }
}
