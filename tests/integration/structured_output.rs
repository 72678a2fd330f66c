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
