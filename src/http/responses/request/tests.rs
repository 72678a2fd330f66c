use super::*;
use crate::http::prepare::GenerationRequest;
use crate::http::responses::store::{StoreLimits, StoredResponse};

fn store() -> ResponseStore {
    let store = ResponseStore::new(StoreLimits {
        entries: 4,
        bytes: 100_000,
    });
    let stored = StoredResponse {
        response: json!({"output": [{"id": "msg_9", "type": "message", "role": "assistant",
            "content": [{"type": "output_text", "text": "old answer"}]}]}),
        input_items: Vec::new(),
        messages: vec![
            json!({"role": "user", "content": "old"}),
            json!({"role": "assistant", "content": "old answer"}),
        ],
    };
    store.keep("resp_1", stored);
    store
}

fn request(body: Value) -> ChatRequest {
    match responses(&body, &store()).map(|translated| translated.request) {
        Ok(GenerationRequest::Chat(request)) => request,
        Ok(other) => panic!("{other:?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn items_become_messages() {
    let request = request(json!({
        "instructions": "Be brief.", "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "q"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\": 1}"},
            {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
            {"role": "developer", "content": "More."},
            {"type": "item_reference", "id": "msg_9"},
        ],
    }));
    assert_eq!(
        Value::Array(request.messages),
        json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
            {"role": "tool", "content": "one", "tool_call_id": "c1"},
            {"role": "tool", "content": "two", "tool_call_id": "c2"},
            {"role": "system", "content": "More."},
            {"role": "assistant", "content": "old answer"},
        ])
    );
}

#[test]
fn a_chain_goes_on_without_the_old_instructions() {
    let request =
        request(json!({"previous_response_id": "resp_1", "instructions": "New.", "input": "next"}));
    assert_eq!(
        Value::Array(request.messages),
        json!([
            {"role": "system", "content": "New."},
            {"role": "user", "content": "old"},
            {"role": "assistant", "content": "old answer"},
            {"role": "user", "content": "next"},
        ])
    );
}

#[test]
fn options_have_their_own_names() {
    let request = request(json!({
        "input": "x", "max_output_tokens": 7, "temperature": 0, "stream": true, "store": false,
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": true}],
        "tool_choice": "none", "text": {"format": {"type": "text"}, "verbosity": "low"},
        "include": ["reasoning.encrypted_content"], "truncation": "auto", "stream_options": {"include_obfuscation": false},
    }));
    assert_eq!(request.options.max_tokens, Some(7));
    assert!(request.options.stream);
    assert_eq!(
        request.tools,
        [json!({"type": "function", "function":
            {"name": "f", "description": "d", "parameters": {"type": "object"}}})]
    );
}

#[test]
fn bad_input_names_the_fields_of_responses() {
    let with = |members: Value| {
        let mut body = json!({"input": "x"});
        for (name, value) in members.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let item = |item: Value| json!({"input": [item]});
    for (body, parameter, part) in [
        (json!([]), None, "must be a JSON object"),
        (json!({}), Some("input"), "is required"),
        (json!({"input": 1}), Some("input"), "a string or an array"),
        (json!({"input": []}), Some("input"), "at least one"),
        (item(json!("x")), Some("input[0]"), "must be an object"),
        (
            item(json!({"role": "robot", "content": "x"})),
            Some("input[0].role"),
            "got \"robot\"",
        ),
        (
            item(json!({"role": "user"})),
            Some("input[0].content"),
            "is required",
        ),
        (
            item(json!({"role": "user", "content": [{"type": "input_image"}]})),
            Some("input[0].content[0]"),
            "is an image",
        ),
        (
            item(json!({"role": "user", "content": [{"type": "smell"}]})),
            Some("input[0].content[0].type"),
            "smell",
        ),
        (
            item(json!({"type": "web_search_call"})),
            Some("input[0].type"),
            "web_search_call",
        ),
        (
            item(json!({"type": "function_call", "call_id": "c", "arguments": "{}"})),
            Some("input[0].name"),
            "is required",
        ),
        (
            item(json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": {}})),
            Some("input[0].arguments"),
            "must be a string",
        ),
        (
            item(json!({"type": "function_call_output", "output": "x"})),
            Some("input[0].call_id"),
            "is required",
        ),
        (
            item(json!({"type": "function_call_output", "call_id": "", "output": "x"})),
            Some("input[0].call_id"),
            "must not be empty",
        ),
        (
            item(json!({"type": "item_reference", "id": "msg_none"})),
            Some("input[0].id"),
            "no stored item",
        ),
        (
            with(json!({"previous_response_id": "resp_none"})),
            Some("previous_response_id"),
            "not found",
        ),
        (
            with(json!({"previous_response_id": 4})),
            Some("previous_response_id"),
            "a string",
        ),
        (
            with(json!({"max_output_tokens": 0})),
            Some("max_output_tokens"),
            "at least 1",
        ),
        (
            with(json!({"temperature": "x"})),
            Some("temperature"),
            "a number",
        ),
        (
            with(json!({"store": "yes"})),
            Some("store"),
            "true or false",
        ),
        (
            with(json!({"background": true})),
            Some("background"),
            "not supported",
        ),
        (
            with(json!({"truncation": "some"})),
            Some("truncation"),
            "must be `auto`",
        ),
        (
            with(json!({"tools": [{"type": "web_search"}]})),
            Some("tools[0].type"),
            "web_search",
        ),
        (
            with(json!({"tools": [{"type": "function"}]})),
            Some("tools[0].name"),
            "is required",
        ),
        (
            with(json!({"tools": [{"type": "function", "name": ""}]})),
            Some("tools[0].name"),
            "must not be empty",
        ),
        (
            with(json!({"tools": [{"type": "function", "name": "f", "parameters": 1}]})),
            Some("tools[0].parameters"),
            "must be an object",
        ),
        (
            with(json!({"tool_choice": "required"})),
            Some("tool_choice"),
            "needs `tools`",
        ),
        (
            with(json!({"tool_choice": {"type": "web_search"}})),
            Some("tool_choice.type"),
            "web_search",
        ),
        (
            with(json!({"text": {"format": {}}})),
            Some("text.format.type"),
            "is required",
        ),
        (
            with(json!({"text": {"format": {"type": "xml"}}})),
            Some("text.format.type"),
            "must be",
        ),
        (
            with(json!({"include": ["message.output_text.logprobs"]})),
            Some("include[0]"),
            "not supported",
        ),
        (
            with(json!({"instructions": 3})),
            Some("instructions"),
            "a string",
        ),
    ] {
        let error = responses(&body, &store())
            .err()
            .unwrap_or_else(|| panic!("{body} is refused"));
        assert_eq!(error.status(), 400);
        assert_eq!(
            error.body()["error"]["param"].as_str(),
            parameter,
            "{body}: {error}"
        );
        assert!(error.to_string().contains(part), "{body}: {error}");
    }
}
