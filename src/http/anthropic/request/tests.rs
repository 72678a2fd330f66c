use super::*;
use crate::http::prepare::GenerationRequest;

fn request(body: Value) -> ChatRequest {
    match messages(&body).map(|translated| translated.request) {
        Ok(GenerationRequest::Chat(request)) => request,
        Ok(other) => panic!("{other:?}"),
        Err(error) => panic!("{error}"),
    }
}

/// A valid request with some members replaced.
fn with(members: Value) -> Value {
    let mut body = json!({"max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in members.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn blocks_become_messages() {
    let request = request(with(json!({
        "system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1, "b": "c"}},
                {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "one"}]},
                {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no", "is_error": true},
                {"type": "text", "text": "Go on."}]},
        ],
    })));
    assert_eq!(
        Value::Array(request.messages),
        json!([
            {"role": "system", "content": "a\nb"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
                {"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1, \"b\": \"c\"}"}},
                {"id": "toolu_2", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
            {"role": "tool", "content": "one", "tool_call_id": "toolu_1"},
            {"role": "tool", "content": "Error: no", "tool_call_id": "toolu_2"},
            {"role": "user", "content": "Go on."},
        ])
    );
    assert_eq!(request.template_arguments["enable_thinking"], false);
}

#[test]
fn options_have_their_own_names() {
    let request = request(with(json!({
        "model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 4, "stop_sequences": ["x", "y"], "stream": true,
        "thinking": {"type": "enabled", "budget_tokens": 50}, "metadata": {"user_id": "u"},
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": false},
    })));
    let options = &request.options;
    assert_eq!(options.max_tokens, Some(100));
    assert_eq!(options.stop, ["x", "y"]);
    assert_eq!(options.sampling.top_k, Some(4));
    assert!(options.stream);
    assert_eq!(request.template_arguments["enable_thinking"], true);
    assert_eq!(
        request.tools,
        [json!({"type": "function", "function":
            {"name": "f", "description": "d", "parameters": {"type": "object"}}})]
    );
}

#[test]
fn bad_input_names_anthropics_fields() {
    let message =
        |content: Value| with(json!({"messages": [{"role": "user", "content": content}]}));
    let tool = |tool: Value| with(json!({"tools": [tool]}));
    for (body, parameter, part) in [
        (json!([]), None, "must be a JSON object"),
        (json!({"messages": []}), Some("max_tokens"), "is required"),
        (
            with(json!({"max_tokens": 0})),
            Some("max_tokens"),
            "at least 1",
        ),
        (
            with(json!({"max_tokens": "9"})),
            Some("max_tokens"),
            "an integer",
        ),
        (json!({"max_tokens": 1}), Some("messages"), "is required"),
        (
            with(json!({"messages": []})),
            Some("messages"),
            "at least one",
        ),
        (
            with(json!({"messages": [{"role": "system", "content": "x"}]})),
            Some("messages[0].role"),
            "`system`",
        ),
        (
            with(json!({"messages": [{"role": "user"}]})),
            Some("messages[0].content"),
            "is required",
        ),
        (
            message(json!(5)),
            Some("messages[0].content"),
            "array of blocks",
        ),
        (
            message(json!([])),
            Some("messages[0].content"),
            "at least one block",
        ),
        (
            message(json!([{"type": "image", "source": {}}])),
            Some("messages[0].content[0]"),
            "is an image",
        ),
        (
            message(json!([{"type": "smell"}])),
            Some("messages[0].content[0].type"),
            "smell",
        ),
        (
            message(json!([{"type": "tool_result", "tool_use_id": "t", "content": "x"}])),
            Some("messages[0].content[0].tool_use_id"),
            "no earlier `tool_use`",
        ),
        (with(json!({"system": 1})), Some("system"), "a string or"),
        (
            with(json!({"stop_sequences": "x"})),
            Some("stop_sequences"),
            "must be an array",
        ),
        (
            with(json!({"stop_sequences": ["x", ""]})),
            Some("stop_sequences[1]"),
            "must not be empty",
        ),
        (
            with(json!({"temperature": 3})),
            Some("temperature"),
            "between 0 and 2",
        ),
        (with(json!({"top_k": "x"})), Some("top_k"), "an integer"),
        (
            tool(json!({"name": "f"})),
            Some("tools[0].input_schema"),
            "is required",
        ),
        (
            tool(json!({"input_schema": {}})),
            Some("tools[0].name"),
            "is required",
        ),
        (
            tool(json!({"name": "", "input_schema": {}})),
            Some("tools[0].name"),
            "must not be empty",
        ),
        (
            tool(json!({"type": "web_search_20250305", "name": "web_search"})),
            Some("tools[0].type"),
            "Anthropic's servers",
        ),
        (
            with(json!({"tool_choice": {"type": "any"}})),
            Some("tool_choice"),
            "needs `tools`",
        ),
        (
            with(json!({"tool_choice": {"type": "must"}})),
            Some("tool_choice.type"),
            "must be `auto`",
        ),
        (
            with(json!({"thinking": {"type": "enabled"}})),
            Some("thinking.budget_tokens"),
            "is required",
        ),
        (
            with(json!({"thinking": {"type": "enabled", "budget_tokens": 100}})),
            Some("thinking.budget_tokens"),
            "less than `max_tokens`",
        ),
        (
            with(json!({"thread": {"type": "create"}})),
            Some("thread"),
            "whole conversation",
        ),
        (
            with(json!({"mcp_servers": [{}]})),
            Some("mcp_servers"),
            "not supported",
        ),
        (
            with(json!({"output_config": {"format": {"type": "json_schema"}}})),
            Some("output_config.format.schema"),
            "is required",
        ),
        (
            with(json!({"thinking": {"type": "deep"}})),
            Some("thinking.type"),
            "must be `enabled`",
        ),
    ] {
        let error = messages(&body)
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
