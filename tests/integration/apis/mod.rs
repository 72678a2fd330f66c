//! The other APIs over real sockets: the same engine, cache, tools and cancellation, in their words.

mod anthropic;
mod ollama;
mod responses;
mod tokens;

use serde_json::{Value, json};

use crate::support::Event;

/// Two tools with these schemas, each made into an API's shape by `shape(name, description, schema)`.
fn two_tools(shape: impl Fn(&str, &str, Value) -> Value) -> Value {
    let city =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    json!([
        shape(
            "weather",
            "Get the current weather of a city.",
            city.clone()
        ),
        shape("time", "Get the current time of a city.", city),
    ])
}

/// What the user asks, in two rounds, which tool is to be called for which city, the tool's result, and what
/// the answer must say.
fn rounds() -> [(
    &'static str,
    &'static str,
    &'static str,
    Value,
    &'static str,
); 2] {
    [
        (
            "What is the weather in Berlin?",
            "weather",
            "Berlin",
            json!({"city": "Berlin", "temperature": 18, "condition": "sunny"}),
            "18",
        ),
        (
            "What time is it in Paris?",
            "time",
            "Paris",
            json!({"city": "Paris", "time": "14:05"}),
            "14:05",
        ),
    ]
}

/// The types of events, repetitions of the same one told once.
fn types(events: &[Event]) -> Vec<String> {
    let mut types: Vec<String> = Vec::new();
    for event in events {
        let data = event.json();
        let kind = data["type"].as_str().expect("a type");
        assert_eq!(
            event.name.as_deref(),
            Some(kind),
            "the event's name is its type"
        );
        if types.last().map(String::as_str) != Some(kind) {
            types.push(kind.to_owned());
        }
    }
    types
}

/// A schema that only two short texts follow.
fn colour_schema() -> Value {
    json!({"type": "object", "properties": {"colour": {"enum": ["blue", "green"]}}, "required": ["colour"],
        "additionalProperties": false})
}

/// The text follows [`colour_schema`].
fn assert_colour(text: &str) {
    let value: Value =
        serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text:?}"));
    assert!(
        value == json!({"colour": "blue"}) || value == json!({"colour": "green"}),
        "{value}"
    );
}
