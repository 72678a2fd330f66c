use std::io::{BufRead, BufReader, Read};

use serde_json::{Value, json};

use super::{assert_colour, colour_schema, rounds, two_tools};
use crate::support::{TestServer, exchange, open_request, wait_until};

const CHAT: &str = "/api/chat";

fn tools() -> Value {
    two_tools(|name, description, schema| {
        json!({"type": "function", "function":
            {"name": name, "description": description, "parameters": schema}})
    })
}

fn ask(content: &str) -> Value {
    json!({"model": "trunkline-demo:latest", "messages": [{"role": "user", "content": content}],
        "options": {"temperature": 0, "num_predict": 100, "num_ctx": 4096}})
}

/// The objects of a streamed answer, one a line.
fn lines(server: &TestServer, path: &str, body: &Value) -> Vec<Value> {
    let response = server.post(path, body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(
        response.header("content-type"),
        Some("application/x-ndjson")
    );
    let text = response.text();
    assert!(text.ends_with('\n'));
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn whole(server: &TestServer, path: &str, mut body: Value) -> Value {
    body["stream"] = json!(false);
    let response = server.post(path, &body);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()
}

#[test]
fn lines_come_by_default_and_say_what_the_whole_says() {
    let server = TestServer::start();
    let one = whole(&server, CHAT, ask("What colour is the sky?"));
    assert!(
        one["message"]["content"]
            .as_str()
            .expect("text")
            .contains("blue"),
        "{one}"
    );
    let lines = lines(&server, CHAT, &ask("What colour is the sky?"));
    let told: String = lines
        .iter()
        .filter_map(|line| line["message"]["content"].as_str())
        .collect();
    assert_eq!(json!(told), one["message"]["content"]);
    let (last, others) = lines.split_last().expect("lines");
    assert!(
        others
            .iter()
            .all(|line| line["done"] == false && line.get("done_reason").is_none())
    );
    for object in [last, &one] {
        assert_eq!(object["done"], true);
        assert_eq!(object["done_reason"], "stop");
        assert_eq!(object["model"], "trunkline-demo");
        assert!(
            object["created_at"]
                .as_str()
                .expect("a time")
                .ends_with('Z')
        );
        for name in ["total_duration", "prompt_eval_duration", "eval_duration"] {
            assert!(
                object[name].as_u64().expect("nanoseconds") > 0,
                "{name} in {object}"
            );
        }
    }
    assert_eq!(last["prompt_eval_count"], one["prompt_eval_count"]);
    assert_eq!(last["eval_count"], one["eval_count"]);
    let mut short = ask("Count from one to ten.");
    short["options"]["num_predict"] = json!(3);
    let cut = whole(&server, CHAT, short);
    assert_eq!(
        (&cut["done_reason"], &cut["eval_count"]),
        (&json!("length"), &json!(3))
    );
}

#[test]
fn generate_takes_a_prompt_plain_or_raw() {
    let server = TestServer::start();
    let body = json!({"prompt": "What colour is the sky?", "system": "You are a helpful assistant.",
        "options": {"temperature": 0}});
    let one = whole(&server, "/api/generate", body.clone());
    assert!(
        one["response"].as_str().expect("text").contains("blue"),
        "{one}"
    );
    let lines = lines(&server, "/api/generate", &body);
    let told: String = lines
        .iter()
        .filter_map(|line| line["response"].as_str())
        .collect();
    assert_eq!(json!(told), one["response"]);
    let raw = json!({"prompt": "One, two, three", "raw": true, "options": {"num_predict": 4}});
    let raw = whole(&server, "/api/generate", raw);
    let plain = json!({"content": "One, two, three"});
    let plain = server.post("/tokenize", &plain).json()["tokens"]
        .as_array()
        .expect("tokens")
        .len();
    assert_eq!(
        raw["prompt_eval_count"],
        json!(plain),
        "nothing is put around a raw prompt"
    );
}

#[test]
fn an_agent_loop_calls_two_tools_and_reuses_the_cache() {
    let server = TestServer::start();
    let mut messages: Vec<Value> = Vec::new();
    for (question, tool, city, result, expected) in rounds() {
        messages.push(json!({"role": "user", "content": question}));
        let mut body = ask("");
        body["messages"] = json!(messages);
        body["tools"] = tools();
        let lines = lines(&server, CHAT, &body);
        let calls: Vec<&Value> = lines
            .iter()
            .filter_map(|line| line["message"].get("tool_calls"))
            .collect();
        assert_eq!(calls.len(), 1, "{lines:?}");
        let function = &calls[0][0]["function"];
        assert_eq!(function["name"], tool);
        assert_eq!(function["arguments"], json!({"city": city}));
        messages.push(json!({"role": "assistant", "content": "", "tool_calls": calls[0]}));
        messages.push(json!({"role": "tool", "tool_name": tool, "content": result.to_string()}));
        body["messages"] = json!(messages);
        let hits = server.metric("trunkline_prefix_cache_hit_tokens_total");
        let answer = whole(&server, CHAT, body);
        let text = answer["message"]["content"].as_str().expect("text");
        assert!(text.contains(expected), "{answer}");
        let last = lines.last().expect("lines");
        let count = |name: &str| last[name].as_f64().expect("a count");
        let reused = server.metric("trunkline_prefix_cache_hit_tokens_total") - hits;
        assert!(
            reused >= count("prompt_eval_count") + count("eval_count") - 1.0,
            "{reused}"
        );
        messages.push(json!({"role": "assistant", "content": text}));
    }
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let server = TestServer::start();
    let mut body = ask("What colour is the sea?");
    body["options"]["num_predict"] = json!(-1);
    body["ignore_eos"] = json!(true);
    let body = body.to_string();
    let socket = open_request(server.address(), "POST", CHAT, &[], body.as_bytes());
    let mut reader = BufReader::new(&socket);
    let mut line = String::new();
    while !line.contains("\"content\"") {
        line.clear();
        assert!(reader.read_line(&mut line).expect("a line") > 0);
    }
    socket
        .shutdown(std::net::Shutdown::Both)
        .expect("it closes");
    wait_until("the slot is free", || {
        server.metric("trunkline_requests_running") == 0.0
    });
    server.wait_idle();
    assert_eq!(server.metric("trunkline_client_disconnects_total"), 1.0);
    let mut rest = Vec::new();
    // What was already on its way may still be read.
    let _ = reader.read_to_end(&mut rest);
}

#[test]
fn models_are_listed_and_shown() {
    let server = TestServer::start();
    let tags = server.get("/api/tags").json();
    assert_eq!(tags["models"][0]["model"], "trunkline-demo");
    assert_eq!(server.get("/api/ps").json()["models"], tags["models"]);
    let shown = server
        .post("/api/show", &json!({"model": "trunkline-demo"}))
        .json();
    assert!(
        shown["capabilities"]
            .as_array()
            .expect("a list")
            .contains(&json!("tools"))
    );
    let context = shown["model_info"]["trunkline.context_length"].as_u64();
    assert_eq!(context, tags["models"][0]["context_length"].as_u64());
    assert!(server.get("/api/version").json()["version"].is_string());
}

#[test]
fn errors_have_ollamas_shape() {
    let server = TestServer::start();
    for (method, path, body, status, part) in [
        ("POST", CHAT, json!({}), 400, "`messages` is required"),
        (
            "POST",
            CHAT,
            json!({"messages": [{"role": "robot"}]}),
            400,
            "`messages[0].role`",
        ),
        (
            "POST",
            CHAT,
            json!({"model": "none", "messages": [{"role": "user", "content": "x"}]}),
            404,
            "none",
        ),
        (
            "POST",
            "/api/generate",
            json!({"prompt": "x", "options": {"top_p": 7}}),
            400,
            "`options.top_p`",
        ),
        ("POST", "/api/show", json!({"model": "none"}), 404, "none"),
        ("POST", "/api/show", json!({}), 400, "`model` is required"),
        ("POST", "/api/pull", json!({"model": "x"}), 404, "no route"),
        ("GET", CHAT, json!({}), 405, "not allowed"),
    ] {
        let refused = exchange(
            server.address(),
            method,
            path,
            &[],
            body.to_string().as_bytes(),
        );
        assert_eq!(refused.status, status, "{}", refused.text());
        let told = refused.json();
        assert_eq!(told.as_object().expect("an object").len(), 1);
        assert!(
            told["error"].as_str().expect("a message").contains(part),
            "{told}"
        );
    }
    assert_eq!(whole(&server, CHAT, ask("Hello!"))["done"], true);
}

#[test]
fn a_schema_is_enforced() {
    let server = TestServer::start();
    let mut body = ask("What colour is the sky? Answer in JSON.");
    body["format"] = colour_schema();
    let answer = whole(&server, CHAT, body);
    assert_colour(answer["message"]["content"].as_str().expect("text"));
}
