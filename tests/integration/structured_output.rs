//! Outputs that follow a schema, an expression, a grammar or a choice, with the demo model.

use std::thread;

use serde_json::{Value, json};

use crate::support::{Answer, TestServer};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// A request with further members.
fn with(mut body: Value, members: Value) -> Value {
    for (name, value) in members.as_object().expect("an object") {
        body[name] = value.clone();
    }
    body
}

fn ask(question: &str) -> Value {
    json!({"messages": [{"role": "user", "content": question}], "max_tokens": 80, "temperature": 0})
}

fn person() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["name", "city"],
        "properties": {"name": {"type": "string"}, "city": {"type": "string"}},
    })
}

fn schema_format(schema: &Value) -> Value {
    json!({"response_format": {"type": "json_schema",
        "json_schema": {"name": "person", "strict": true, "schema": schema}}})
}

fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"]
        .as_str()
        .unwrap_or_else(|| panic!("no content in {answer}"))
        .to_owned()
}

#[test]
fn an_extraction_follows_its_schema() {
    let server = TestServer::start();
    let question = ask("Extract the name and city as JSON: Anna lives in Berlin.");
    let expected = json!({"name": "Anna", "city": "Berlin"});
    for members in [
        schema_format(&person()),
        json!({"guided_json": person()}),
        json!({"guided_json": person().to_string()}),
        json!({"structured_outputs": {"json": person()}}),
        json!({"response_format": {"type": "json_object"}}),
    ] {
        let answer = server.chat(&with(question.clone(), members.clone()));
        let value: Value = serde_json::from_str(&content(&answer)).expect("JSON");
        assert_eq!(value, expected, "{members}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");

        let streamed = Answer::of(server.stream_chat(&with(question.clone(), members)));
        assert_eq!(streamed.content, content(&answer));
        assert_eq!(streamed.finish_reason, "stop");
        assert_eq!(
            streamed.usage["completion_tokens"],
            answer["usage"]["completion_tokens"]
        );
    }
    server.wait_idle();
}

/// What the model would never say by itself is said all the same: the constraint does it, not the training.
#[test]
fn the_constraint_rules_not_the_model() {
    let server = TestServer::start();
    let greeting = ask("Hello!");
    let free = content(&server.chat(&greeting));
    assert!(serde_json::from_str::<Value>(&free).is_err(), "{free}");
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["mood", "age"],
        "properties": {"mood": {"enum": ["glad", "sad"]}, "age": {"type": "integer", "minimum": 5, "maximum": 99}}});
    for temperature in [0.0, 1.0] {
        let members = with(
            schema_format(&schema),
            json!({"temperature": temperature, "seed": 3}),
        );
        let answer = server.chat(&with(greeting.clone(), members));
        let value: Value = serde_json::from_str(&content(&answer)).expect("JSON");
        assert!(
            ["glad", "sad"].contains(&value["mood"].as_str().expect("a mood")),
            "{value}"
        );
        assert!(
            (5..=99).contains(&value["age"].as_i64().expect("an age")),
            "{value}"
        );
    }
    for (members, fits) in [
        (
            json!({"guided_choice": ["Paris", "Rome"]}),
            (|text| ["Paris", "Rome"].contains(&text)) as fn(&str) -> bool,
        ),
        (
            json!({"structured_outputs": {"choice": ["Oslo"]}}),
            |text| text == "Oslo",
        ),
        (json!({"guided_regex": "[0-9]{3}-[a-c]{2}"}), |text| {
            text.len() == 6 && text[..3].parse::<u16>().is_ok() && text[3..4] == *"-"
        }),
        (
            json!({"guided_grammar": "start: \"<\" WORD \" \" WORD \">\"\nWORD: /[a-z]{3}/"}),
            |text| text.len() == 9 && text.starts_with('<') && text.ends_with('>'),
        ),
    ] {
        let answer = server.chat(&with(greeting.clone(), members.clone()));
        assert!(fits(&content(&answer)), "{members}: {answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let prompt = json!({"prompt": "Hello", "max_tokens": 60, "temperature": 0});
        let response = server.post(TEXT, &with(prompt, members.clone()));
        assert_eq!(response.status, 200, "{}", response.text());
        let text = response.json()["choices"][0]["text"]
            .as_str()
            .expect("text")
            .to_owned();
        assert!(fits(&text), "{members}: {text}");
    }
}

#[test]
fn max_tokens_cuts_and_says_so_and_ignore_eos_ends_all_the_same() {
    let server = TestServer::start();
    let question = ask("Extract the name and city as JSON: Anna lives in Berlin.");
    let cut = server.chat(&with(
        with(question.clone(), schema_format(&person())),
        json!({"max_tokens": 4}),
    ));
    assert_eq!(cut["choices"][0]["finish_reason"], "length");
    assert_eq!(cut["usage"]["completion_tokens"], 4);
    let endless = json!({"ignore_eos": true, "guided_choice": ["Paris"]});
    let answer = server.chat(&with(question, endless));
    assert_eq!(content(&answer), "Paris");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

/// Constrained and free answers are the same together as alone.
#[test]
fn constrained_and_free_share_a_batch_and_change_nothing() {
    let server = TestServer::start();
    let bodies: Vec<Value> = (0..12)
        .map(|index| {
            let name = ["Anna", "Boris", "Clara", "Dmitri"][index % 4];
            let city = ["Berlin", "Paris", "Oslo"][index % 3];
            let question = ask(&format!(
                "Extract the name and city as JSON: {name} lives in {city}."
            ));
            let sampled =
                json!({"temperature": if index % 2 == 0 { 0.0 } else { 0.9 }, "seed": index});
            let constraint = match index % 3 {
                0 => json!({}),
                1 => schema_format(&person()),
                _ => json!({"guided_regex": "[A-Z][a-z]{2,12}( [a-z]{1,9}){3}"}),
            };
            with(with(question, sampled), constraint)
        })
        .collect();
    let alone: Vec<String> = bodies
        .iter()
        .map(|body| content(&server.chat(body)))
        .collect();
    let together: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(|| Answer::of(server.stream_chat(body)).content))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect()
    });
    assert_eq!(alone, together);
    server.wait_idle();
}

#[test]
fn what_cannot_be_enforced_is_400_and_named() {
    let server = TestServer::start();
    let schema =
        |property: Value| schema_format(&json!({"type": "object", "properties": {"x": property}}));
    let path = |keyword: &str| format!("response_format.json_schema.schema.properties.x.{keyword}");
    let mut deep = json!({"type": "string"});
    for _ in 0..50 {
        deep = json!({"type": "array", "items": deep});
    }
    for (members, parameter) in [
        (
            schema(json!({"type": "string", "minLength": -1})),
            path("minLength"),
        ),
        (schema(json!({"not": {}})), path("not")),
        (
            schema(json!({"$ref": "https://example.com/x.json"})),
            path("$ref"),
        ),
        (
            schema(json!({"type": "string", "pattern": "(?<=a)b"})),
            path("pattern"),
        ),
        (schema(json!({"type": "date"})), path("type")),
        (json!({"guided_regex": "("}), "guided_regex".to_owned()),
        (
            json!({"guided_regex": "a".repeat(100_000)}),
            "guided_regex".to_owned(),
        ),
        (
            json!({"guided_grammar": "start: nothing"}),
            "guided_grammar".to_owned(),
        ),
        (
            json!({"guided_json": {"type": "thing"}}),
            "guided_json.type".to_owned(),
        ),
        (
            json!({"guided_json": [], "stream": true}),
            "guided_json".to_owned(),
        ),
        (json!({"guided_choice": []}), "guided_choice".to_owned()),
        (
            json!({"structured_outputs": {"regex": "["}}),
            "structured_outputs.regex".to_owned(),
        ),
        (
            json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
            "guided_regex".to_owned(),
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "no spaces", "schema": {}}}}),
            "response_format.json_schema.name".to_owned(),
        ),
    ] {
        for (route, body) in [
            (CHAT, ask("Hello!")),
            (TEXT, json!({"prompt": "Hello", "max_tokens": 5})),
        ] {
            let response = server.post(route, &with(body, members.clone()));
            assert_eq!(response.status, 400, "{members}: {}", response.text());
            let error = response.error();
            assert_eq!(error["param"], parameter, "{error}");
            assert_eq!(error["type"], "invalid_request_error");
            assert!(
                error["message"]
                    .as_str()
                    .expect("a message")
                    .contains(&parameter),
                "{error}"
            );
        }
    }
    // Deep, and within the limits.
    assert_eq!(
        server.chat(&with(ask("Hello!"), schema(deep)))["object"],
        "chat.completion"
    );
    assert_eq!(server.chat(&ask("Hello!"))["object"], "chat.completion");
    server.wait_idle();
}

fn weather() -> Value {
    json!({"type": "function", "function": {
        "name": "get_weather", "description": "Tells the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city."}},
            "required": ["city"]}}})
}

fn clock() -> Value {
    json!({"type": "function", "function": {
        "name": "get_time", "description": "Tells the time in a zone.",
        "parameters": {"type": "object", "additionalProperties": false, "required": ["zone"],
            "properties": {"zone": {"enum": ["UTC", "CET"]}}}}})
}

/// Name and arguments of the calls of a whole answer.
fn calls(answer: &Value) -> Vec<(String, Value)> {
    let message = &answer["choices"][0]["message"];
    assert!(message["content"].is_null(), "{answer}");
    assert_eq!(
        answer["choices"][0]["finish_reason"], "tool_calls",
        "{answer}"
    );
    let call = |call: &Value| {
        let function = &call["function"];
        let arguments = function["arguments"].as_str().expect("arguments");
        (
            function["name"].as_str().expect("a name").to_owned(),
            serde_json::from_str(arguments).expect("JSON arguments"),
        )
    };
    message["tool_calls"]
        .as_array()
        .expect("calls")
        .iter()
        .map(call)
        .collect()
}

#[test]
fn a_required_call_is_made() {
    let server = TestServer::start();
    let question = ask("What is the weather in Berlin?");
    let expected = vec![("get_weather".to_owned(), json!({"city": "Berlin"}))];
    for choice in [
        json!("required"),
        json!({"type": "function", "function": {"name": "get_weather"}}),
        json!({"type": "function", "name": "get_weather"}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "required",
            "tools": [{"type": "function", "function": {"name": "get_weather"}}]}}),
        json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}),
    ] {
        let members = json!({"tools": [clock(), weather()], "tool_choice": choice});
        let body = with(question.clone(), members);
        assert_eq!(calls(&server.chat(&body)), expected, "{choice}");
        let streamed = Answer::of(server.stream_chat(&body));
        assert_eq!(streamed.finish_reason, "tool_calls");
        assert_eq!(streamed.content, "");
        assert_eq!(streamed.calls.len(), 1);
        assert_eq!(streamed.calls[0].0, "get_weather");
        assert_eq!(
            serde_json::from_str::<Value>(&streamed.calls[0].1).expect("JSON"),
            expected[0].1
        );
    }
    server.wait_idle();
}

/// Against what the model would do: small talk makes a call, a question about the weather asks the clock.
#[test]
fn a_choice_overrules_the_model() {
    let server = TestServer::start();
    let tools = json!([weather(), clock()]);
    for question in ["Hello!", "What is the weather in Berlin?"] {
        for temperature in [0.0, 1.0] {
            let members = json!({"tools": tools, "temperature": temperature, "seed": 5,
                "tool_choice": {"type": "function", "function": {"name": "get_time"}}});
            let made = calls(&server.chat(&with(ask(question), members)));
            assert_eq!(made.len(), 1);
            assert_eq!(made[0].0, "get_time");
            assert!(
                ["UTC", "CET"].contains(&made[0].1["zone"].as_str().expect("a zone")),
                "{made:?}"
            );
        }
    }
    // Nothing in the question says what to write, so the schema has to end it.
    let mut bounded = weather();
    bounded["function"]["parameters"]["properties"]["city"]["maxLength"] = 20.into();
    let tools_with_an_end = json!([bounded, clock()]);
    let members =
        json!({"tools": tools_with_an_end, "tool_choice": "required", "max_tokens": 1000});
    let made = calls(&server.chat(&with(ask("Hello!"), members)));
    assert!(
        !made.is_empty()
            && made
                .iter()
                .all(|(name, _)| name == "get_weather" || name == "get_time")
    );
    // Only the clock is allowed, and none is needed: an answer in words, or the clock's call.
    let allowed = json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_time"}]});
    for question in ["Hello!", "What is the weather in Berlin?"] {
        let members = json!({"tools": tools, "tool_choice": allowed});
        let answer = server.chat(&with(ask(question), members));
        match answer["choices"][0]["finish_reason"].as_str() {
            Some("tool_calls") => {
                assert!(calls(&answer).iter().all(|(name, _)| name == "get_time"))
            }
            _ => assert!(!content(&answer).contains("get_weather"), "{answer}"),
        }
    }
}

#[test]
fn parallel_calls_can_be_forbidden() {
    let server = TestServer::start();
    let question = ask("What is the weather in Berlin and Paris?");
    let tools = json!({"tools": [weather()]});
    let free = calls(&server.chat(&with(question.clone(), tools.clone())));
    assert_eq!(
        free.len(),
        2,
        "the model makes two calls by itself: {free:?}"
    );
    for choice in ["auto", "required"] {
        let members =
            json!({"tools": [weather()], "tool_choice": choice, "parallel_tool_calls": false});
        let body = with(question.clone(), members);
        let one = calls(&server.chat(&body));
        assert_eq!(one, free[..1], "{choice}");
        let streamed = Answer::of(server.stream_chat(&body));
        assert_eq!(streamed.calls.len(), 1);
        assert_eq!(streamed.finish_reason, "tool_calls");
    }
    let members = json!({"tools": [weather()], "tool_choice": "required"});
    assert_eq!(calls(&server.chat(&with(question, members))), free);
    server.wait_idle();
}

#[test]
fn a_schema_and_tools_go_together() {
    let server = TestServer::start();
    let tools = json!({"tools": [weather()]});
    let extraction = with(
        ask("Extract the name and city as JSON: Anna lives in Berlin."),
        tools.clone(),
    );
    let answer = server.chat(&with(extraction, schema_format(&person())));
    let value: Value = serde_json::from_str(&content(&answer)).expect("JSON");
    assert_eq!(value, json!({"name": "Anna", "city": "Berlin"}));
    let question = with(ask("What is the weather in Berlin?"), tools);
    let made = calls(&server.chat(&with(question, schema_format(&person()))));
    assert_eq!(
        made,
        [("get_weather".to_owned(), json!({"city": "Berlin"}))]
    );
}

/// Reasoning is free; what follows it is not.
#[test]
fn rules_begin_after_reasoning() {
    let server = TestServer::start();
    let thinking = json!({"chat_template_kwargs": {"enable_thinking": true}, "max_tokens": 200});
    let question = with(ask("What is the weather in Berlin?"), thinking.clone());
    let members = json!({"tools": [weather()], "tool_choice": "required"});
    let answer = server.chat(&with(question, members));
    let reasoning = answer["choices"][0]["message"]["reasoning_content"]
        .as_str()
        .expect("reasoning");
    assert!(!reasoning.is_empty());
    assert_eq!(
        calls(&answer),
        [("get_weather".to_owned(), json!({"city": "Berlin"}))]
    );
    let greeting = with(ask("Hello!"), thinking);
    let answer = server.chat(&with(greeting, json!({"guided_choice": ["Paris"]})));
    assert_eq!(content(&answer), "Paris");
    assert!(
        !answer["choices"][0]["message"]["reasoning_content"]
            .as_str()
            .expect("reasoning")
            .is_empty()
    );
}

#[test]
fn impossible_choices_are_400_and_named() {
    let server = TestServer::start();
    let strict = json!({"type": "function", "function": {"name": "f", "strict": true,
        "parameters": {"type": "object", "properties": {"x": {"not": {}}}}}});
    let remote = json!({"type": "function", "function": {"name": "f",
        "parameters": {"type": "object", "properties": {"x": {"$ref": "https://example.com"}}}}});
    for (members, parameter) in [
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "auto"}), "tool_choice"),
        (
            json!({"tools": [], "tool_choice": "required"}),
            "tool_choice",
        ),
        (
            json!({"tools": [weather()], "tool_choice": "always"}),
            "tool_choice",
        ),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "function"}}),
            "tool_choice.function",
        ),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "function", "function": {"name": "other"}}}),
            "tool_choice.function.name",
        ),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "allowed_tools",
                "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "other"}}]}}}),
            "tool_choice.allowed_tools.tools[0].function.name",
        ),
        (
            json!({"tools": [weather()], "parallel_tool_calls": 0}),
            "parallel_tool_calls",
        ),
        (
            json!({"tools": [strict], "tool_choice": "required"}),
            "tools[0].function.parameters.properties.x.not",
        ),
        (
            json!({"tools": [weather(), remote], "tool_choice": "required"}),
            "tools[1].function.parameters.properties.x.$ref",
        ),
    ] {
        let response = server.post(CHAT, &with(ask("Hello!"), members.clone()));
        assert_eq!(response.status, 400, "{members}: {}", response.text());
        let error = response.error();
        assert_eq!(error["param"], parameter, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    // Without a demand, what cannot be enforced is only read by the model.
    let remote = json!({"type": "function", "function": {"name": "f", "parameters": {"$ref": "https://example.com"}}});
    assert_eq!(
        server.chat(&with(ask("Hello!"), json!({"tools": [remote]})))["object"],
        "chat.completion"
    );
    server.wait_idle();
}

/// A grammar outlives the loss of a sequence's blocks.
#[test]
fn preempted_answers_keep_to_their_schema() {
    let crowded = TestServer::with(|config| {
        // 12 blocks of 32 tokens, for six answers of up to 200 tokens.
        config.kv_blocks = trunkline::config::Auto::Set(12);
    });
    let roomy = TestServer::start();
    let list = json!({"type": "array", "minItems": 100, "items": {"type": "object", "additionalProperties": false,
        "required": ["name", "age"], "properties": {
            "name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}}}});
    let bodies: Vec<Value> = (0..6)
        .map(|index| {
            let question = ask(&format!("Tell me about number {index}."));
            let sampled = json!({"temperature": 0.8, "seed": index, "max_tokens": 200});
            with(with(question, sampled), schema_format(&list))
        })
        .collect();
    let alone: Vec<String> = bodies
        .iter()
        .map(|body| content(&roomy.chat(body)))
        .collect();
    let together: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(|| Answer::of(crowded.stream_chat(body)).content))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect()
    });
    assert!(crowded.metric("trunkline_preemptions_total") > 0.0);
    assert_eq!(alone, together);
    assert!(alone.iter().all(|text| text.starts_with('[')), "{alone:?}");
    crowded.wait_idle();
}
