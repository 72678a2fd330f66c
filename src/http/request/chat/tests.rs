use serde_json::json;

use super::*;
use crate::http::request::tool_choice::ToolChoice;
use crate::ids::TokenId;

fn parse(body: Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(&body)
}

fn user() -> Value {
    json!([{"role": "user", "content": "hi"}])
}

/// A valid request with some members replaced.
fn with(members: Value) -> Value {
    let mut body = json!({"messages": user()});
    for (name, value) in members.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn full_request_is_understood() {
    let request = parse(json!({
        "model": "demo", "messages": user(), "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
        "frequency_penalty": -1, "presence_penalty": 1.5, "repetition_penalty": 1.1, "seed": -7,
        "stop": ["a", "b"], "max_tokens": 5, "max_completion_tokens": 6, "n": 1, "logprobs": false,
        "logit_bias": {"17": -100, "3": 2.5}, "response_format": {"type": "text"}, "stream": true,
        "stream_options": {"include_usage": true}, "user": "u", "metadata": {"k": "v"},
        "chat_template_kwargs": {"enable_thinking": false}, "ignore_eos": true, "return_progress": true,
        "session_id": "s", "unknown": [1, 2], "tool_choice": "none", "parallel_tool_calls": false,
    }))
    .unwrap();
    let options = &request.options;
    assert_eq!(options.model.as_deref(), Some("demo"));
    assert_eq!(options.max_tokens, Some(6));
    assert_eq!(options.stop, ["a", "b"]);
    assert!(
        options.stream && options.include_usage && options.ignore_eos && options.return_progress
    );
    assert_eq!(options.sampling.seed, Some(-7_i64 as u64));
    assert_eq!(options.sampling.top_k, Some(40));
    assert_eq!(options.sampling.logit_bias[&TokenId(17)], -100.0);
    assert_eq!(request.template_arguments["enable_thinking"], false);
    assert_eq!(request.tool_rules.choice, ToolChoice::None);
    assert!(!request.tool_rules.parallel);
}

#[test]
fn what_changes_nothing_is_accepted() {
    let request = parse(with(json!({
        "prediction": {"type": "content", "content": "x"}, "store": true, "service_tier": "auto",
        "metadata": {"k": "v"}, "user": "u", "prompt_cache_key": "k", "safety_identifier": "s",
        "verbosity": "low", "modalities": ["text"], "stream": true, "best_of": 1, "echo": false,
        "top_logprobs": 0, "stream_options": {"include_obfuscation": false}, "functions": [],
    })));
    let plain = parse(with(json!({"stream": true})));
    assert_eq!(request.unwrap(), plain.unwrap());
}

#[test]
fn log_probabilities_choices_and_timings() {
    let options = |members| parse(with(members)).unwrap().options;
    assert_eq!(options(json!({})).logprobs, None);
    assert_eq!(options(json!({"logprobs": true})).logprobs, Some(0));
    let asked = options(json!({"logprobs": true, "top_logprobs": 20, "n": 128}));
    assert_eq!(
        (asked.logprobs, asked.choices.n, asked.choices.best_of),
        (Some(20), 128, 128)
    );
    assert!(options(json!({"timings": true})).timings);
    assert!(options(json!({"timings_per_token": true})).timings);
    assert!(!options(json!({"timings": false})).timings);
}

#[test]
fn reasoning_effort_is_a_template_argument() {
    let arguments = |members| Value::Object(parse(with(members)).unwrap().template_arguments);
    for (effort, thinks) in [
        ("none", false),
        ("minimal", false),
        ("low", true),
        ("high", true),
    ] {
        let expected = json!({"reasoning_effort": effort, "enable_thinking": thinks});
        assert_eq!(arguments(json!({"reasoning_effort": effort})), expected);
    }
    let both =
        json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}});
    assert_eq!(arguments(both)["enable_thinking"], false);
    assert_eq!(arguments(json!({"reasoning_effort": null})), json!({}));
}

#[test]
fn the_last_message_is_continued_when_asked_for_in_either_way() {
    let continued = |members: Value, prefix: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]});
        for (name, value) in members.as_object().unwrap() {
            body[name] = value.clone();
        }
        body["messages"][1]["prefix"] = prefix;
        parse(body).map(|request| request.continue_final_message)
    };
    assert!(!continued(json!({}), Value::Null).unwrap());
    assert!(continued(json!({"continue_final_message": true}), Value::Null).unwrap());
    let spelled = json!({"continue_final_message": true, "add_generation_prompt": false});
    assert!(continued(spelled, Value::Null).unwrap());
    assert!(continued(json!({}), json!(true)).unwrap());
    let error = continued(json!({"continue_final_message": false}), json!(true)).unwrap_err();
    assert_eq!(error.body()["error"]["param"], "continue_final_message");
}

#[test]
fn null_is_absent() {
    let request = parse(with(json!({
        "temperature": null, "stop": null, "tools": null, "tool_choice": null, "max_tokens": null,
        "stream": null, "stream_options": null, "logprobs": null, "response_format": null, "n": null,
    })));
    assert_eq!(
        request.unwrap(),
        parse(json!({"messages": user()})).unwrap()
    );
}

#[test]
fn messages_are_brought_into_one_form() {
    let request = parse(json!({"messages": [
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "q", "name": "ann", "extra": 1},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "assistant", "content": "done", "reasoning_content": "hm", "tool_calls": []},
    ]}))
    .unwrap();
    assert_eq!(
        Value::Array(request.messages),
        json!([
            {"role": "system", "content": "a\nb"},
            {"role": "user", "content": "q", "name": "ann"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "content": "42", "tool_call_id": "call_1"},
            {"role": "assistant", "content": "done", "reasoning_content": "hm"},
        ])
    );
}

#[test]
fn bad_input_names_the_field_and_the_fix() {
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let message = |message: Value| json!({"messages": [{"role": "user", "content": "x"}, message]});
    let table = [
        (json!([1]), None, "must be a JSON object, not an array"),
        (json!({}), Some("messages"), "is required"),
        (
            json!({"messages": []}),
            Some("messages"),
            "at least one message",
        ),
        (
            json!({"messages": "hi"}),
            Some("messages"),
            "must be an array, not a string",
        ),
        (
            json!({"messages": ["hi"]}),
            Some("messages[0]"),
            "must be an object, not a string",
        ),
        (
            json!({"messages": [{"content": "x"}]}),
            Some("messages[0].role"),
            "is required",
        ),
        (
            message(json!({"role": "robot", "content": "x"})),
            Some("messages[1].role"),
            "got \"robot\"",
        ),
        (
            message(json!({"role": 7, "content": "x"})),
            Some("messages[1].role"),
            "must be a string, not a number",
        ),
        (
            message(json!({"role": "user"})),
            Some("messages[1].content"),
            "is required",
        ),
        (
            message(json!({"role": "user", "content": null})),
            Some("messages[1].content"),
            "is required",
        ),
        (
            message(json!({"role": "user", "content": 5})),
            Some("messages[1].content"),
            "a string or an array of parts",
        ),
        (
            message(json!({"role": "user", "content": []})),
            Some("messages[1].content"),
            "at least one part",
        ),
        (
            message(json!({"role": "user", "content": ["x"]})),
            Some("messages[1].content[0]"),
            "must be an object",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "text"}]})),
            Some("messages[1].content[0].text"),
            "is required",
        ),
        (
            message(json!({"role": "user", "content": [
                {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:"}}]})),
            Some("messages[1].content[1]"),
            "is an image; this model reads text only",
        ),
        (
            message(json!({"role": "user", "content": [{"type": "smell"}]})),
            Some("messages[1].content[0].type"),
            "must be `text`",
        ),
        (
            message(json!({"role": "tool", "content": "x"})),
            Some("messages[1].tool_call_id"),
            "is required",
        ),
        (
            message(json!({"role": "tool", "content": "x", "tool_call_id": ""})),
            Some("messages[1].tool_call_id"),
            "must not be empty",
        ),
        (
            message(json!({"role": "assistant", "tool_calls": {"id": "x"}})),
            Some("messages[1].tool_calls"),
            "must be an array, not an object",
        ),
        (
            message(json!({"role": "assistant", "tool_calls": [{"id": "x"}]})),
            Some("messages[1].tool_calls[0].function"),
            "is required",
        ),
        (
            message(
                json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}),
            ),
            Some("messages[1].tool_calls[0].function.arguments"),
            "must be a string, not an object",
        ),
        (
            with(json!({"temperature": -0.1})),
            Some("temperature"),
            "between 0 and 2, got -0.1",
        ),
        (
            with(json!({"temperature": 2.1})),
            Some("temperature"),
            "between 0 and 2, got 2.1",
        ),
        (
            with(json!({"temperature": "hot"})),
            Some("temperature"),
            "must be a number, not a string",
        ),
        (
            with(json!({"temperature": "NaN"})),
            Some("temperature"),
            "must be a number, not a string",
        ),
        (
            with(json!({"top_p": 1.5})),
            Some("top_p"),
            "between 0 and 1",
        ),
        (with(json!({"top_p": -1})), Some("top_p"), "between 0 and 1"),
        (with(json!({"top_k": -2})), Some("top_k"), "at least -1"),
        (
            with(json!({"top_k": 1.5})),
            Some("top_k"),
            "must be an integer",
        ),
        (with(json!({"min_p": 2})), Some("min_p"), "between 0 and 1"),
        (
            with(json!({"frequency_penalty": 3})),
            Some("frequency_penalty"),
            "between -2 and 2",
        ),
        (
            with(json!({"presence_penalty": -3})),
            Some("presence_penalty"),
            "between -2 and 2",
        ),
        (
            with(json!({"repetition_penalty": 0})),
            Some("repetition_penalty"),
            "greater than 0",
        ),
        (
            with(json!({"repetition_penalty": -1})),
            Some("repetition_penalty"),
            "between 0 and 10",
        ),
        (
            with(json!({"seed": 1.5})),
            Some("seed"),
            "must be an integer",
        ),
        (
            with(json!({"seed": "x"})),
            Some("seed"),
            "must be an integer",
        ),
        (
            with(json!({"max_tokens": 0})),
            Some("max_tokens"),
            "at least 1, got 0",
        ),
        (
            with(json!({"max_tokens": -5})),
            Some("max_tokens"),
            "at least 1, got -5",
        ),
        (
            with(json!({"max_tokens": "5"})),
            Some("max_tokens"),
            "must be an integer",
        ),
        (
            with(json!({"max_completion_tokens": 0})),
            Some("max_completion_tokens"),
            "at least 1",
        ),
        (
            with(json!({"stop": 5})),
            Some("stop"),
            "a string or an array of strings",
        ),
        (
            with(json!({"stop": ["a", ""]})),
            Some("stop[1]"),
            "must not be empty",
        ),
        (
            with(json!({"stop": ["a", 1]})),
            Some("stop[1]"),
            "must be a string",
        ),
        (
            with(json!({"stop": vec!["x"; 17]})),
            Some("stop"),
            "at most 16",
        ),
        (
            with(json!({"logit_bias": [1]})),
            Some("logit_bias"),
            "must be an object",
        ),
        (
            with(json!({"logit_bias": {"x": 1}})),
            Some("logit_bias"),
            "token ids",
        ),
        (
            with(json!({"logit_bias": {"-1": 1}})),
            Some("logit_bias"),
            "token ids",
        ),
        (
            with(json!({"logit_bias": {"5": 101}})),
            Some("logit_bias.5"),
            "between -100 and 100",
        ),
        (with(json!({"n": 0})), Some("n"), "from 1 to 128"),
        (with(json!({"n": 129})), Some("n"), "from 1 to 128"),
        (with(json!({"n": 1.5})), Some("n"), "from 1 to 128"),
        (with(json!({"n": "2"})), Some("n"), "must be an integer"),
        (
            with(json!({"best_of": 2})),
            Some("best_of"),
            "/v1/completions",
        ),
        (with(json!({"echo": true})), Some("echo"), "/v1/completions"),
        (with(json!({"echo": "no"})), Some("echo"), "true or false"),
        (
            with(json!({"functions": [{"name": "f"}]})),
            Some("functions"),
            "send `tools`",
        ),
        (
            with(json!({"function_call": "auto"})),
            Some("function_call"),
            "`tool_choice`",
        ),
        (
            with(json!({"modalities": ["text", "audio"]})),
            Some("modalities[1]"),
            "text only",
        ),
        (
            with(json!({"modalities": "text"})),
            Some("modalities"),
            "must be an array",
        ),
        (
            with(json!({"reasoning_effort": "extreme"})),
            Some("reasoning_effort"),
            "got \"extreme\"",
        ),
        (
            with(json!({"reasoning_effort": 3})),
            Some("reasoning_effort"),
            "must be a string",
        ),
        (
            with(json!({"store": "yes"})),
            Some("store"),
            "true or false",
        ),
        (
            with(json!({"prediction": "text"})),
            Some("prediction"),
            "must be an object",
        ),
        (
            with(json!({"service_tier": 1})),
            Some("service_tier"),
            "must be a string",
        ),
        (
            with(json!({"prompt_cache_key": 1})),
            Some("prompt_cache_key"),
            "must be a string",
        ),
        (
            with(json!({"safety_identifier": []})),
            Some("safety_identifier"),
            "must be a string",
        ),
        (
            with(json!({"verbosity": 1})),
            Some("verbosity"),
            "must be a string",
        ),
        (
            with(json!({"stream": true, "stream_options": {"include_obfuscation": 1}})),
            Some("stream_options.include_obfuscation"),
            "true or false",
        ),
        (
            with(json!({"timings": 1})),
            Some("timings"),
            "true or false",
        ),
        (
            with(json!({"timings_per_token": "all"})),
            Some("timings_per_token"),
            "true or false",
        ),
        (
            with(json!({"continue_final_message": "yes"})),
            Some("continue_final_message"),
            "true or false",
        ),
        (
            with(json!({"continue_final_message": true})),
            Some("messages[0]"),
            "must be the assistant's",
        ),
        (
            with(json!({"add_generation_prompt": false})),
            Some("add_generation_prompt"),
            "`continue_final_message`",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
                "continue_final_message": true, "add_generation_prompt": true}),
            Some("add_generation_prompt"),
            "must not be true",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}],
                "continue_final_message": true}),
            Some("messages[1]"),
            "must not be empty",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [
                {"function": {"name": "f"}}]}], "continue_final_message": true}),
            Some("messages[1]"),
            "calls tools",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "x", "prefix": true},
                {"role": "user", "content": "y"}]}),
            Some("messages[0].prefix"),
            "last message",
        ),
        (
            with(json!({"logprobs": 1})),
            Some("logprobs"),
            "true or false",
        ),
        (
            with(json!({"top_logprobs": 5})),
            Some("top_logprobs"),
            "`logprobs` is true",
        ),
        (
            with(json!({"logprobs": false, "top_logprobs": 1})),
            Some("top_logprobs"),
            "`logprobs` is true",
        ),
        (
            with(json!({"logprobs": true, "top_logprobs": 21})),
            Some("top_logprobs"),
            "from 0 to 20",
        ),
        (
            with(json!({"logprobs": true, "top_logprobs": -1})),
            Some("top_logprobs"),
            "from 0 to 20",
        ),
        (
            with(json!({"logprobs": true, "top_logprobs": true})),
            Some("top_logprobs"),
            "must be an integer",
        ),
        (
            with(json!({"top_logprobs": 50})),
            Some("top_logprobs"),
            "from 0 to 20",
        ),
        (
            with(json!({"response_format": {"type": "xml"}})),
            Some("response_format.type"),
            "must be `text`",
        ),
        (
            with(json!({"response_format": "json"})),
            Some("response_format"),
            "must be an object",
        ),
        (
            with(json!({"response_format": {}})),
            Some("response_format.type"),
            "is required",
        ),
        (
            with(json!({"stream": "yes"})),
            Some("stream"),
            "true or false",
        ),
        (
            with(json!({"stream_options": {"include_usage": true}})),
            Some("stream_options"),
            "`stream` is true",
        ),
        (
            with(json!({"stream": true, "stream_options": {"include_usage": 1}})),
            Some("stream_options.include_usage"),
            "true or false",
        ),
        (with(json!({"model": 5})), Some("model"), "must be a string"),
        (
            with(json!({"chat_template_kwargs": [1]})),
            Some("chat_template_kwargs"),
            "must be an object",
        ),
        (
            with(json!({"ignore_eos": "no"})),
            Some("ignore_eos"),
            "true or false",
        ),
        (
            with(json!({"parallel_tool_calls": "no"})),
            Some("parallel_tool_calls"),
            "true or false",
        ),
        (
            with(json!({"tools": {}})),
            Some("tools"),
            "must be an array",
        ),
        (
            with(json!({"tools": [{"type": "function"}]})),
            Some("tools[0].function"),
            "is required",
        ),
        (
            with(json!({"tools": [{"type": "web"}]})),
            Some("tools[0].type"),
            "must be `function`",
        ),
        (
            with(tool(json!({}))),
            Some("tools[0].function.name"),
            "is required",
        ),
        (
            with(tool(json!({"name": ""}))),
            Some("tools[0].function.name"),
            "must not be empty",
        ),
        (
            with(tool(json!({"name": "f", "parameters": "x"}))),
            Some("tools[0].function.parameters"),
            "must be an object, not a string",
        ),
        (
            with(json!({"tool_choice": "required"})),
            Some("tool_choice"),
            "needs `tools`",
        ),
        (
            with(json!({"parallel_tool_calls": "no"})),
            Some("parallel_tool_calls"),
            "true or false",
        ),
        (with(json!({"user": 1})), Some("user"), "must be a string"),
        (
            with(json!({"metadata": 1})),
            Some("metadata"),
            "must be an object",
        ),
    ];
    for (body, parameter, part) in table {
        let error = parse(body.clone()).expect_err(&body.to_string());
        assert_eq!(error.status(), 400, "{body}");
        let object = error.body();
        assert_eq!(object["error"]["param"].as_str(), parameter, "{body}");
        assert_eq!(object["error"]["type"], "invalid_request_error");
        let message = error.to_string();
        assert!(message.contains(part), "{body}: {message}");
        if let Some(parameter) = parameter {
            assert!(message.contains(parameter), "{body}: {message}");
        }
    }
}
