//! Random schemas, and values for them.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use serde_json::{Map, Value, json};

use super::Tools;
use super::written::json_type;

const PIECES: [&str; 26] = [
    "a", "Berlin", " ", "\n", "\"", "'", "\\", "<", "</", ">", "{", "}", "[", "]", ",", ":", "<b>",
    "&", "ü", "🙂", "3", "null", "True", "|", "```", "<|",
];

fn text(random: &mut StdRng, most: usize) -> String {
    let count = random.random_range(0..=4);
    let text: String = (0..count)
        .map(|_| *PIECES.choose(random).unwrap())
        .collect();
    text.chars().take(most).collect()
}

/// A schema of a parameter, and what may stand for it.
fn schema(random: &mut StdRng, depth: usize) -> Value {
    match random.random_range(0..if depth > 0 { 14 } else { 10 }) {
        0 | 1 => json!({"type": "string", "maxLength": 12}),
        2 => json!({"enum": ["red", "dark green", "x<y", "3"]}),
        3 => json!({"type": "integer", "minimum": -5, "maximum": 120}),
        4 => json!({"type": "number", "minimum": 0, "maximum": 9}),
        5 => json!({"type": "boolean"}),
        6 => json!({"type": ["string", "null"], "maxLength": 6}),
        7 => json!({"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 6}]}),
        8 => json!({"$ref": "#/$defs/level"}),
        9 => json!({"type": "string", "const": "fixed"}),
        10 => {
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": random.random_range(0..2), "maxItems": 3})
        }
        11 => json!({"type": "object", "additionalProperties": false,
            "properties": {"x": schema(random, depth - 1), "y": schema(random, depth - 1)},
            "required": if random.random_bool(0.5) { json!(["x"]) } else { json!([]) }}),
        12 => {
            json!({"anyOf": [{"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
            {"type": "string", "maxLength": 5}]})
        }
        _ => json!({"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2}),
    }
}

/// Arguments: some parameters, in an order that is not the alphabet's, some required.
pub(super) fn arguments_schema(random: &mut StdRng) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for key in ["size", "name", "at", "flag_2"]
        .iter()
        .take(random.random_range(0..=4))
    {
        properties.insert((*key).to_owned(), schema(random, 2));
        if random.random_bool(0.5) {
            required.push(*key);
        }
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false,
        "$defs": {"level": {"enum": ["low", "high"]}}})
}

fn value(schema: &Value, root: &Value, random: &mut StdRng) -> Value {
    let schema = match schema["$ref"].as_str() {
        Some(reference) => root.pointer(&reference[1..]).expect("a definition"),
        None => schema,
    };
    if let Some(values) = schema["enum"].as_array() {
        return values.choose(random).unwrap().clone();
    }
    if schema.get("const").is_some() {
        return schema["const"].clone();
    }
    if let Some(ways) = schema["anyOf"].as_array() {
        return value(ways.choose(random).unwrap(), root, random);
    }
    let name = match &schema["type"] {
        Value::Array(names) => names.choose(random).unwrap().as_str().unwrap(),
        name => name.as_str().unwrap(),
    };
    let most = |keyword: &str| schema[keyword].as_u64().unwrap_or(3) as usize;
    match name {
        "string" => json!(text(random, most("maxLength"))),
        "integer" => json!(random.random_range(
            schema["minimum"].as_i64().unwrap()..=schema["maximum"].as_i64().unwrap()
        )),
        "number" => json!(f64::from(random.random_range(0..=36)) / 4.0),
        "boolean" => json!(random.random_bool(0.5)),
        "null" => Value::Null,
        "array" => {
            let least = schema["minItems"].as_u64().unwrap_or(0) as usize;
            let count = random.random_range(least..=most("maxItems"));
            (0..count)
                .map(|_| value(&schema["items"], root, random))
                .collect()
        }
        "object" => object_of(schema, root, random),
        other => panic!("{other}"),
    }
}

pub(super) fn object_of(schema: &Value, root: &Value, random: &mut StdRng) -> Value {
    let mut members = Map::new();
    for (key, property) in schema["properties"].as_object().unwrap() {
        let required = schema["required"].as_array().unwrap().contains(&json!(key));
        if required || random.random_bool(0.5) {
            members.insert(key.clone(), value(property, root, random));
        }
    }
    Value::Object(members)
}

/// The schema allows the value. For the keywords of [`schema`].
pub(super) fn is_valid(schema: &Value, root: &Value, value: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        return is_valid(
            root.pointer(&reference[1..]).expect("a definition"),
            root,
            value,
        );
    }
    if let Some(ways) = schema["anyOf"].as_array() {
        return ways.iter().any(|way| is_valid(way, root, value));
    }
    let names: Vec<&str> = match &schema["type"] {
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        name => name.as_str().into_iter().collect(),
    };
    let is = |name: &&str| match *name {
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        name => json_type(value) == name,
    };
    let count = |keyword: &str, default: f64| schema[keyword].as_f64().unwrap_or(default);
    let within = |number: f64, least: &str, most: &str| {
        number >= count(least, f64::NEG_INFINITY) && number <= count(most, f64::INFINITY)
    };
    (names.is_empty() || names.iter().any(is))
        && schema["enum"]
            .as_array()
            .is_none_or(|values| values.contains(value))
        && schema.get("const").is_none_or(|only| only == value)
        && match value {
            Value::String(text) => within(text.chars().count() as f64, "minLength", "maxLength"),
            Value::Number(number) => within(number.as_f64().unwrap(), "minimum", "maximum"),
            Value::Array(items) => {
                within(items.len() as f64, "minItems", "maxItems")
                    && items
                        .iter()
                        .all(|item| is_valid(&schema["items"], root, item))
            }
            Value::Object(members) => {
                members.iter().all(|(key, value)| {
                    let known = schema["properties"].get(key);
                    known.is_some_and(|known| is_valid(known, root, value))
                }) && schema["required"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .all(|key| members.contains_key(key.as_str().unwrap()))
            }
            _ => true,
        }
}

pub(super) fn tools(random: &mut StdRng) -> Tools {
    ["get_it", "get", "put-2"]
        .map(|name| (name.to_owned(), arguments_schema(random)))
        .to_vec()
}
