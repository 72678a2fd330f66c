use serde_json::{Value, json};

use super::{assert_colour, colour_schema, rounds, two_tools, types};
use crate::support::{Event, TestServer, exchange, wait_until};

const PATH: &str = "/v1/messages";

fn tools() -> Value {
    two_tools(
        |name, description, schema| json!({"name": name, "description": description, "input_schema": schema}),
    )
}

fn ask(content: Value) -> Value {
    json!({"model": "trunkline-demo", "max_tokens": 100, "temperature": 0,
        "messages": [{"role": "user", "content": content}]})
}

fn create(server: &TestServer, body: &Value) -> Value {
    let response = server.post(PATH, body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(response.header("request-id").is_some());
    response.json()
}

fn prompt_tokens(usage: &Value) -> u64 {
    let count = |name: &str| usage[name].as_u64().expect("a count");
    count("input_tokens") + count("cache_read_input_tokens")
}

#[test]
fn a_stream_has_its_events_in_order_and_says_what_the_whole_says() {
    let server = TestServer::start();
    let mut body = ask(json!("What colour is the sky?"));
    let whole = create(&server, &body);
    assert_eq!(whole["type"], "message");
    assert_eq!(whole["stop_reason"], "end_turn");
    assert_eq!(whole["stop_sequence"], Value::Null);
    assert_eq!(whole["usage"]["cache_read_input_tokens"], 0);
    let text = whole["content"][0]["text"].as_str().expect("text");
    assert!(text.contains("blue"), "{whole}");
    body["stream"] = json!(true);
    let events: Vec<Event> = server.stream(PATH, &body).collect();
    assert_eq!(
        types(&events),
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    let data: Vec<Value> = events.iter().map(Event::json).collect();
    let told: String = data
        .iter()
        .filter_map(|data| data["delta"]["text"].as_str())
        .collect();
    assert_eq!(told, text);
    let start = &data[0]["message"];
    assert_eq!(start["content"], json!([]));
    assert_eq!(start["stop_reason"], Value::Null);
    let last = &data[data.len() - 2];
    assert_eq!(last["delta"]["stop_reason"], "end_turn");
    let usage = &last["usage"];
    assert_eq!(prompt_tokens(usage), prompt_tokens(&whole["usage"]));
    assert_eq!(prompt_tokens(&start["usage"]), prompt_tokens(usage));
    assert_eq!(usage["input_tokens"], 1, "all but one were in the cache");
    assert_eq!(usage["output_tokens"], whole["usage"]["output_tokens"]);
    let counted = server.post(
        "/v1/messages/count_tokens",
        &ask(json!("What colour is the sky?")),
    );
    assert_eq!(counted.json()["input_tokens"], json!(prompt_tokens(usage)));
}

#[test]
fn an_agent_loop_calls_two_tools_and_reuses_the_cache() {
    let server = TestServer::start();
    let mut messages: Vec<Value> = Vec::new();
    let mut before = 0;
    for (question, tool, city, result, expected) in rounds() {
        messages.push(json!({"role": "user", "content": question}));
        let mut body = json!({"model": "trunkline-demo", "max_tokens": 100, "temperature": 0,
            "tools": tools(), "messages": messages, "stream": true});
        let events: Vec<Event> = server.stream(PATH, &body).collect();
        let data: Vec<Value> = events.iter().map(Event::json).collect();
        let block = &data[2]["content_block"];
        assert_eq!(block["type"], "tool_use");
        assert_eq!(block["name"], tool);
        assert_eq!(block["input"], json!({}));
        let input: String = data
            .iter()
            .filter_map(|data| data["delta"]["partial_json"].as_str())
            .collect();
        let input: Value = serde_json::from_str(&input).expect("JSON");
        assert_eq!(input, json!({"city": city}));
        let end = &data[data.len() - 2];
        assert_eq!(end["delta"]["stop_reason"], "tool_use");
        let called = &end["usage"];
        assert!(called["cache_read_input_tokens"].as_u64().expect("usage") >= before);

        let id = &block["id"];
        assert!(id.as_str().expect("an id").starts_with("toolu_"));
        messages.push(json!({"role": "assistant", "content": [
            {"type": "tool_use", "id": id, "name": tool, "input": input}]}));
        messages.push(json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": id, "content": result.to_string()}]}));
        body["messages"] = json!(messages);
        body["stream"] = json!(false);
        let answer = create(&server, &body);
        let text = answer["content"][0]["text"].as_str().expect("text");
        assert!(text.contains(expected), "{answer}");
        assert_eq!(answer["stop_reason"], "end_turn");
        let cached = answer["usage"]["cache_read_input_tokens"]
            .as_u64()
            .expect("usage");
        let reused = prompt_tokens(called) + called["output_tokens"].as_u64().expect("usage") - 1;
        assert!(cached >= reused, "{answer} reuses less than {reused}");
        before = cached;
        messages.push(json!({"role": "assistant", "content": text}));
    }
}

#[test]
fn stop_reasons_tell_why() {
    let server = TestServer::start();
    let mut body = ask(json!("Count from one to ten."));
    body["stop_sequences"] = json!(["never", "four"]);
    let stopped = create(&server, &body);
    assert_eq!(stopped["stop_reason"], "stop_sequence");
    assert_eq!(stopped["stop_sequence"], "four");
    assert!(
        !stopped["content"][0]["text"]
            .as_str()
            .expect("text")
            .contains("four")
    );
    body["stream"] = json!(true);
    let events: Vec<Event> = server.stream(PATH, &body).collect();
    let end = events[events.len() - 2].json();
    assert_eq!(
        end["delta"],
        json!({"stop_reason": "stop_sequence", "stop_sequence": "four"})
    );
    let mut body = ask(json!("Count from one to ten."));
    body["max_tokens"] = json!(3);
    let cut = create(&server, &body);
    assert_eq!(cut["stop_reason"], "max_tokens");
    assert_eq!(cut["usage"]["output_tokens"], 3);
}

#[test]
fn thinking_is_a_block_of_its_own() {
    let server = TestServer::start();
    let mut body = ask(json!("What colour is the sky?"));
    body["thinking"] = json!({"type": "enabled", "budget_tokens": 50});
    let whole = create(&server, &body);
    assert_eq!(whole["content"][0]["type"], "thinking", "{whole}");
    assert!(
        !whole["content"][0]["thinking"]
            .as_str()
            .expect("text")
            .is_empty()
    );
    assert_eq!(whole["content"][1]["type"], "text", "{whole}");
    body["stream"] = json!(true);
    let events: Vec<Event> = server.stream(PATH, &body).collect();
    let kinds: Vec<Value> = events
        .iter()
        .map(Event::json)
        .filter(|data| data["type"] == "content_block_delta")
        .map(|data| data["delta"]["type"].clone())
        .collect();
    let position = |kind: &str| kinds.iter().position(|known| known == kind);
    assert!(
        position("thinking_delta") < position("signature_delta"),
        "{kinds:?}"
    );
    assert!(
        position("signature_delta") < position("text_delta"),
        "{kinds:?}"
    );
}

#[test]
fn a_client_that_leaves_is_noticed() {
    let server = TestServer::start();
    let mut body = ask(json!("What colour is the sea?"));
    body["stream"] = json!(true);
    body["ignore_eos"] = json!(true);
    body["max_tokens"] = json!(30000);
    let mut stream = server.stream(PATH, &body);
    stream
        .by_ref()
        .find(|event| event.json()["type"] == "content_block_delta")
        .expect("it began");
    stream.leave();
    wait_until("the slot is free", || {
        server.metric("trunkline_requests_running") == 0.0
    });
    server.wait_idle();
    assert_eq!(server.metric("trunkline_client_disconnects_total"), 1.0);
}

#[test]
fn errors_have_anthropics_shape() {
    let server = TestServer::with(|config| {
        config.api_key = vec!["secret".parse().expect("a key")];
        config.body_limit = "4KiB".parse().expect("a size");
    });
    let send = |method: &str, path: &str, key: (&str, &str), body: &Value| {
        let headers = [
            ("Content-Type", "application/json"),
            key,
            ("anthropic-version", "2023-06-01"),
        ];
        let body = body.to_string();
        exchange(server.address(), method, path, &headers, body.as_bytes())
    };
    let right = ("x-api-key", "secret");
    let hello = ask(json!("Hello!"));
    for (method, path, key, body, status, kind, part) in [
        (
            "POST",
            PATH,
            right,
            json!({}),
            400,
            "invalid_request_error",
            "`max_tokens`",
        ),
        (
            "POST",
            PATH,
            right,
            json!({"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            400,
            "invalid_request_error",
            "`messages[0].content[0]` is an image",
        ),
        (
            "POST",
            PATH,
            ("x-api-key", "wrong"),
            hello.clone(),
            401,
            "authentication_error",
            "not valid",
        ),
        (
            "POST",
            PATH,
            ("x-other", "secret"),
            hello.clone(),
            401,
            "authentication_error",
            "required",
        ),
        (
            "POST",
            "/v1/messages/batches",
            right,
            hello.clone(),
            404,
            "not_found_error",
            "no route",
        ),
        (
            "GET",
            PATH,
            right,
            hello.clone(),
            405,
            "invalid_request_error",
            "not allowed",
        ),
        (
            "POST",
            PATH,
            right,
            ask(json!("x".repeat(5000))),
            413,
            "request_too_large",
            "4096",
        ),
        (
            "POST",
            PATH,
            right,
            json!({"model": "none", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}),
            404,
            "not_found_error",
            "none",
        ),
        (
            "POST",
            "/v1/messages/count_tokens",
            right,
            json!({}),
            400,
            "invalid_request_error",
            "`messages`",
        ),
    ] {
        let refused = send(method, path, key, &body);
        assert_eq!(refused.status, status, "{}", refused.text());
        let told = refused.json();
        assert_eq!(told["type"], "error");
        assert_eq!(told["error"]["type"], kind, "{told}");
        assert!(
            told["error"]["message"]
                .as_str()
                .expect("a message")
                .contains(part),
            "{told}"
        );
        assert_eq!(told["request_id"].as_str(), refused.header("request-id"));
    }
    let served = send("POST", PATH, right, &hello);
    assert_eq!(served.json()["type"], "message", "{}", served.text());
    let served = send("POST", PATH, ("Authorization", "Bearer secret"), &hello);
    assert_eq!(served.status, 200);
}

#[test]
fn a_schema_and_a_choice_of_tools_are_enforced() {
    let server = TestServer::start();
    let mut body = ask(json!("What colour is the sky? Answer in JSON."));
    body["output_config"] = json!({"format": {"type": "json_schema", "schema": colour_schema()}});
    assert_colour(
        create(&server, &body)["content"][0]["text"]
            .as_str()
            .expect("text"),
    );
    let mut body = ask(json!("What is the weather in Berlin?"));
    body["tools"] = tools();
    body["tool_choice"] = json!({"type": "any"});
    let called = create(&server, &body);
    assert_eq!(called["stop_reason"], "tool_use", "{called}");
    body["tool_choice"] =
        json!({"type": "tool", "name": "time", "disable_parallel_tool_use": true});
    let called = create(&server, &body);
    assert_eq!(called["content"][0]["name"], "time", "{called}");
    body["tool_choice"] = json!({"type": "tool", "name": "none"});
    let refused = server.post(PATH, &body);
    assert_eq!(refused.status, 400);
    assert!(
        refused.text().contains("`tool_choice.name`"),
        "{}",
        refused.text()
    );
}
