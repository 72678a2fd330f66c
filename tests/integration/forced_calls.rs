//! Calls that must be made, in each form that models write them in, with the demo model.

use serde_json::{Value, json};

use crate::support::{Answer, TestServer};

const FORMATS: [&str; 25] = [
    "hermes",
    "qwen3_coder",
    "glm4",
    "llama3",
    "pythonic",
    "mistral",
    "deepseek_v3",
    "deepseek_v31",
    "dsml",
    "kimi_k2",
    "kimi_k3",
    "minimax_m2",
    "gemma3",
    "gemma4",
    "granite",
    "phi4",
    "cohere",
    "nemotron",
    "lfm2",
    "tool_calls",
    "functionary",
    "gigachat",
    "minicpm",
    "solar",
    "harmony",
];

/// Strings with an end of their own, numbers, words and lists.
fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "get_time", "parameters": {
            "type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}}},
        {"type": "function", "function": {"name": "book", "parameters": {
            "type": "object", "required": ["seats", "city", "window"], "properties": {
                "seats": {"type": "integer", "minimum": 1, "maximum": 9},
                "city": {"type": "string", "minLength": 1, "maxLength": 12},
                "window": {"type": "boolean"},
                "stops": {"type": "array", "items": {"enum": ["Rome", "Oslo"]}, "maxItems": 2},
                "note": {"type": ["string", "null"], "maxLength": 8}}}}},
    ])
}

fn is_booking(arguments: &Value) -> bool {
    let known = ["seats", "city", "window", "stops", "note"];
    let members = arguments.as_object().expect("an object");
    let text = |value: &Value, most: usize| {
        value
            .as_str()
            .is_some_and(|text| text.chars().count() <= most)
    };
    members.keys().all(|key| known.contains(&key.as_str()))
        && arguments["seats"]
            .as_i64()
            .is_some_and(|seats| (1..=9).contains(&seats))
        && text(&arguments["city"], 12)
        && arguments["window"].is_boolean()
        && members.get("stops").is_none_or(|stops| {
            let stops = stops.as_array().expect("a list");
            stops.len() <= 2 && stops.iter().all(|stop| stop == "Rome" || stop == "Oslo")
        })
        && members
            .get("note")
            .is_none_or(|note| note.is_null() || text(note, 8))
}

fn is_valid(name: &str, arguments: &str) -> bool {
    let arguments: Value = serde_json::from_str(arguments).expect("JSON arguments");
    match name {
        "book" => is_booking(&arguments),
        "get_time" => arguments == json!({"zone": "UTC"}) || arguments == json!({"zone": "CET"}),
        _ => false,
    }
}

#[test]
fn in_every_format_a_call_can_be_forced() {
    for format in FORMATS {
        let server = TestServer::with(|config| {
            config.tool_format = format.parse().expect("a known format");
        });
        for (choice, temperature) in [
            (
                json!({"type": "function", "function": {"name": "book"}}),
                0.0,
            ),
            (
                json!({"type": "function", "function": {"name": "book"}}),
                1.0,
            ),
            (json!("required"), 1.0),
        ] {
            let parallel = choice != "required";
            // Some formats are long, and their special tokens are many ones to the demo model.
            let body = json!({"messages": [{"role": "user", "content": "Hello!"}],
                "tools": tools(), "tool_choice": choice, "parallel_tool_calls": parallel,
                "max_tokens": 1000, "temperature": temperature, "seed": 7});
            let answer = server.chat(&body);
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{format}: {answer}");
            assert!(choice["message"]["content"].is_null(), "{format}: {answer}");
            let calls = choice["message"]["tool_calls"].as_array().expect("calls");
            assert_eq!(calls.len(), 1, "{format}: {answer}");
            let function = &calls[0]["function"];
            let name = function["name"].as_str().expect("a name");
            let arguments = function["arguments"].as_str().expect("arguments");
            assert!(is_valid(name, arguments), "{format}: {answer}");
            assert!(name == "book" || !parallel, "{format}: {answer}");

            let streamed = Answer::of(server.stream_chat(&body));
            assert_eq!(streamed.finish_reason, "tool_calls", "{format}");
            assert_eq!(streamed.content, "", "{format}");
            let expected = vec![(name.to_owned(), arguments.to_owned())];
            assert_eq!(streamed.calls, expected, "{format}");
        }
        server.wait_idle();
    }
}

/// What a form cannot hold is said, and which tool it is.
#[test]
fn arguments_that_a_form_cannot_hold_are_400() {
    let server = TestServer::with(|config| {
        config.tool_format = "pythonic".parse().expect("a known format");
    });
    let tool = |key: &str| {
        json!({"type": "function", "function": {"name": "f", "parameters": {
            "type": "object", "properties": {key: {"enum": ["x"]}}, "required": [key]}}})
    };
    let ask = |key: &str| {
        json!({"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 40,
            "tools": [tool(key)], "tool_choice": "required", "parallel_tool_calls": false})
    };
    let response = server.post("/v1/chat/completions", &ask("no identifier"));
    assert_eq!(response.status, 400);
    let error = response.error();
    assert_eq!(error["param"], "tool_choice", "{error}");
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.contains("pythonic") && message.contains("\"f\""),
        "{message}"
    );
    let answer = server.chat(&ask("identifier"));
    let function = &answer["choices"][0]["message"]["tool_calls"][0]["function"];
    assert_eq!(function["arguments"], "{\"identifier\": \"x\"}", "{answer}");
}
