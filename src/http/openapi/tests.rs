use serde_json::{Value, json};

use super::description;
use crate::http::error::ApiError;
use crate::http::request::chat::ChatRequest;
use crate::http::request::completion::CompletionRequest;

fn schemas() -> Value {
    let description = serde_json::to_value(description()).unwrap();
    description["components"]["schemas"].clone()
}

/// A value of a type that the schema does not allow. None: it allows anything.
fn wrong_for(schema: &Value) -> Option<Value> {
    let mut allowed = Vec::new();
    types(schema, &mut allowed);
    if allowed.is_empty() {
        return None;
    }
    [
        ("string", json!("x")),
        ("boolean", json!(true)),
        ("number", json!(0.25)),
        ("object", json!({"x": 1})),
    ]
    .into_iter()
    .find(|(kind, _)| {
        !allowed
            .iter()
            .any(|allowed| allowed == kind || (*kind == "number" && allowed == "integer"))
    })
    .map(|(_, value)| value)
}

/// The types that a schema names; those of references are objects or strings.
fn types(schema: &Value, found: &mut Vec<String>) {
    match &schema["type"] {
        Value::String(kind) => found.push(kind.clone()),
        Value::Array(kinds) => {
            found.extend(kinds.iter().filter_map(Value::as_str).map(str::to_owned))
        }
        _ => {}
    }
    for keyword in ["oneOf", "anyOf", "allOf"] {
        for part in schema[keyword].as_array().into_iter().flatten() {
            types(part, found);
        }
    }
    if let Some(name) = schema["$ref"]
        .as_str()
        .and_then(|path| path.rsplit('/').next())
    {
        types(&schemas()[name], found);
    }
}

/// Every described field is one that the parser knows: a wrong value is refused under its name.
fn check(schema: &str, base: Value, parse: impl Fn(&Value) -> Option<ApiError>) {
    let schemas = schemas();
    let properties = schemas[schema]["properties"].as_object().unwrap();
    assert!(properties.len() > 20, "{schema}");
    assert_eq!(parse(&base), None, "{schema}");
    let mut checked = 0;
    for (name, described) in properties {
        let Some(wrong) = wrong_for(described) else {
            continue;
        };
        let mut body = base.clone();
        body[name] = wrong.clone();
        let error = parse(&body).unwrap_or_else(|| panic!("{schema}.{name} accepts {wrong}"));
        let parameter = error.body()["error"]["param"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        assert!(
            parameter.starts_with(name.as_str()),
            "{schema}.{name} = {wrong}: {error}"
        );
        checked += 1;
    }
    assert!(
        checked * 10 >= properties.len() * 9,
        "{schema}: only {checked} are checked"
    );
}

#[test]
fn described_chat_fields_are_parsed() {
    let base =
        json!({"messages": [{"role": "user", "content": "hi"}], "stream": true, "logprobs": true});
    check("ChatCompletionRequest", base, |body| {
        ChatRequest::parse(body).err()
    });
}

#[test]
fn described_completion_fields_are_parsed() {
    let base = json!({"prompt": "hi", "stream": true});
    check("CompletionRequest", base, |body| {
        CompletionRequest::parse(body).err()
    });
}

#[test]
fn every_operation_tells_what_it_does_and_how_it_fails() {
    let description = serde_json::to_value(description()).unwrap();
    let mut operations = 0;
    for (path, methods) in description["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            operations += 1;
            let described = operation["summary"].as_str().unwrap_or_default();
            assert!(!described.is_empty(), "{method} {path}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("200"), "{method} {path}");
            assert!(responses.contains_key("405"), "{method} {path}");
            if path.starts_with("/v1") || path.starts_with("/api") {
                assert!(responses.contains_key("401"), "{method} {path}");
            }
        }
    }
    assert!(operations >= 20);
}
