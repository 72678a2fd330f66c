//! Schemas taken apart, where arguments are not written as one JSON text.

use serde_json::{Map, Value, json};

/// References and combinations that are followed in each other, at most.
const MAX_DEPTH: usize = 16;
/// Alternatives of one schema, at most.
const MAX_ALTERNATIVES: usize = 32;

/// A JSON type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    Number,
    Boolean,
    Null,
    Array,
    Object,
}

impl Kind {
    const ALL: [Kind; 6] = [
        Kind::String,
        Kind::Number,
        Kind::Boolean,
        Kind::Null,
        Kind::Array,
        Kind::Object,
    ];

    /// As a schema names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::String => "string",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
            Kind::Null => "null",
            Kind::Array => "array",
            Kind::Object => "object",
        }
    }

    fn of(value: &Value) -> Kind {
        match value {
            Value::Null => Kind::Null,
            Value::Bool(_) => Kind::Boolean,
            Value::Number(_) => Kind::Number,
            Value::String(_) => Kind::String,
            Value::Array(_) => Kind::Array,
            Value::Object(_) => Kind::Object,
        }
    }

    /// Keywords that restrict values of this type only.
    fn keywords(self) -> &'static [&'static str] {
        match self {
            Kind::String => &["minLength", "maxLength", "pattern", "format"],
            Kind::Number => &[
                "minimum",
                "maximum",
                "exclusiveMinimum",
                "exclusiveMaximum",
                "multipleOf",
            ],
            Kind::Boolean | Kind::Null => &[],
            Kind::Array => &[
                "items",
                "prefixItems",
                "additionalItems",
                "minItems",
                "maxItems",
                "uniqueItems",
            ],
            Kind::Object => &[
                "properties",
                "required",
                "additionalProperties",
                "patternProperties",
                "minProperties",
                "maxProperties",
            ],
        }
    }
}

/// Values of one type that a schema allows.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Alternative {
    pub(super) kind: Kind,
    /// With its `type`; without references and combinations at its top.
    pub(super) schema: Map<String, Value>,
}

impl Alternative {
    /// The values that are listed, if they are.
    pub(super) fn values(&self) -> Option<&Vec<Value>> {
        self.schema.get("enum").and_then(Value::as_array)
    }

    /// Nothing but the type is said.
    pub(super) fn is_any_of_its_kind(&self) -> bool {
        let restricts = |keyword: &String| {
            keyword == "enum" || self.kind.keywords().contains(&keyword.as_str())
        };
        !self.schema.keys().any(restricts)
    }
}

/// A schema's values by type. None: it cannot be taken apart.
pub(super) fn alternatives(schema: &Value, root: &Value) -> Option<Vec<Alternative>> {
    let mut found = Vec::new();
    for flat in flatten(schema, root, 0)? {
        by_type(&flat, &mut found);
    }
    (found.len() <= MAX_ALTERNATIVES).then_some(found)
}

fn by_type(schema: &Map<String, Value>, found: &mut Vec<Alternative>) {
    let mut schema = schema.clone();
    if let Some(value) = schema.remove("const") {
        // Both at once are rare: what is not in the list is not allowed.
        let listed = match schema.get("enum").and_then(Value::as_array) {
            Some(values) => values.contains(&value),
            None => true,
        };
        schema.insert(
            "enum".to_owned(),
            json!(if listed { vec![value] } else { Vec::new() }),
        );
    }
    let named: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    // Keywords for one type only say that it is meant, where no type is named.
    let implied = Kind::ALL.into_iter().find(|kind| {
        kind.keywords()
            .iter()
            .any(|name| schema.contains_key(*name))
    });
    let listed = schema.get("enum").and_then(Value::as_array).cloned();
    for kind in Kind::ALL {
        let integer = kind == Kind::Number && named.contains(&"integer");
        let meant = match (&listed, implied) {
            _ if !named.is_empty() => integer || named.contains(&kind.name()),
            (None, Some(implied)) => kind == implied,
            _ => true,
        };
        if !meant {
            continue;
        }
        let mut alone = schema.clone();
        let only_integers = integer && !named.contains(&"number");
        let name = if only_integers {
            "integer"
        } else {
            kind.name()
        };
        alone.insert("type".to_owned(), json!(name));
        for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
            other.keywords().iter().for_each(|keyword| {
                alone.remove(*keyword);
            });
        }
        if let Some(values) = &listed {
            let is_it =
                |value: &&Value| Kind::of(value) == kind && (!only_integers || !value.is_f64());
            let values: Vec<&Value> = values.iter().filter(is_it).collect();
            if values.is_empty() {
                continue;
            }
            alone.insert("enum".to_owned(), json!(values));
        }
        found.push(Alternative {
            kind,
            schema: alone,
        });
    }
}

/// Schemas without references and combinations, of which a value must satisfy one.
fn flatten(schema: &Value, root: &Value, depth: usize) -> Option<Vec<Map<String, Value>>> {
    let map = match schema {
        Value::Object(map) => map,
        Value::Bool(true) => return Some(vec![Map::new()]),
        Value::Bool(false) => return Some(Vec::new()),
        _ => return None,
    };
    if depth > MAX_DEPTH {
        return None;
    }
    let mut own = map.clone();
    let mut found = vec![Map::new()];
    let both = |left: Vec<Map<String, Value>>, right: Vec<Map<String, Value>>| {
        let mut merged = Vec::new();
        for left in &left {
            for right in &right {
                if let Some(both) = merge(left, right)? {
                    merged.push(both);
                }
            }
        }
        (merged.len() <= MAX_ALTERNATIVES).then_some(merged)
    };
    if let Some(reference) = own.remove("$ref") {
        let target = root.pointer(reference.as_str()?.strip_prefix('#')?.trim_end_matches('/'))?;
        found = both(found, flatten(target, root, depth + 1)?)?;
    }
    if let Some(all) = own.remove("allOf") {
        for schema in all.as_array()? {
            found = both(found, flatten(schema, root, depth + 1)?)?;
        }
    }
    for keyword in ["anyOf", "oneOf"] {
        if let Some(any) = own.remove(keyword) {
            let mut ways = Vec::new();
            for schema in any.as_array()? {
                ways.extend(flatten(schema, root, depth + 1)?);
            }
            found = both(found, ways)?;
        }
    }
    for keyword in ["$defs", "definitions", "$schema", "$id"] {
        own.remove(keyword);
    }
    both(found, vec![own])
}

/// A schema for what both allow, or None within where that is nothing. None: it takes more than a merge.
fn merge(
    left: &Map<String, Value>,
    right: &Map<String, Value>,
) -> Option<Option<Map<String, Value>>> {
    let mut merged = left.clone();
    for (keyword, value) in right {
        let Some(known) = merged.get(keyword) else {
            merged.insert(keyword.clone(), value.clone());
            continue;
        };
        if known == value {
            continue;
        }
        let both = match keyword.as_str() {
            "title" | "description" | "default" | "examples" | "deprecated" | "$comment" => {
                value.clone()
            }
            "type" => match intersect_types(known, value) {
                Some(types) => types,
                None => return Some(None),
            },
            "enum" => {
                let (known, value) = (known.as_array()?, value.as_array()?);
                let common: Vec<&Value> = known.iter().filter(|it| value.contains(it)).collect();
                match common.is_empty() {
                    true => return Some(None),
                    false => json!(common),
                }
            }
            "required" => {
                let mut names = known.as_array()?.clone();
                let more = value.as_array()?;
                names.extend(
                    more.iter()
                        .filter(|name| !known.as_array().is_some_and(|known| known.contains(name)))
                        .cloned(),
                );
                Value::Array(names)
            }
            "properties" => {
                let mut properties = known.as_object()?.clone();
                for (name, schema) in value.as_object()? {
                    let both = match properties.get(name) {
                        Some(known) if known != schema => json!({"allOf": [known, schema]}),
                        _ => schema.clone(),
                    };
                    properties.insert(name.clone(), both);
                }
                Value::Object(properties)
            }
            "minimum" | "minLength" | "minItems" | "minProperties" => {
                match known.as_f64()? < value.as_f64()? {
                    true => value.clone(),
                    false => known.clone(),
                }
            }
            "maximum" | "maxLength" | "maxItems" | "maxProperties" => {
                match known.as_f64()? > value.as_f64()? {
                    true => value.clone(),
                    false => known.clone(),
                }
            }
            _ => return None,
        };
        merged.insert(keyword.clone(), both);
    }
    Some(Some(merged))
}

fn intersect_types(left: &Value, right: &Value) -> Option<Value> {
    let names = |value: &Value| -> Vec<String> {
        match value {
            Value::Array(names) => names
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            _ => value.as_str().map(str::to_owned).into_iter().collect(),
        }
    };
    let (left, right) = (names(left), names(right));
    let has = |names: &[String], name: &str| {
        names
            .iter()
            .any(|known| known == name || (known == "number" && name == "integer"))
    };
    let common: Vec<&String> = left
        .iter()
        .filter(|name| has(&right, name))
        .chain(
            right
                .iter()
                .filter(|name| has(&left, name) && !left.contains(name)),
        )
        .collect();
    (!common.is_empty()).then(|| json!(common))
}

/// A property of an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Property {
    pub(super) key: String,
    pub(super) schema: Value,
    pub(super) required: bool,
}

/// An object's properties in their order, those that are required but not declared behind them.
pub(super) fn properties(schema: &Map<String, Value>) -> Vec<Property> {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let declared = schema.get("properties").and_then(Value::as_object);
    let mut found: Vec<Property> = declared
        .into_iter()
        .flatten()
        .map(|(key, schema)| Property {
            key: key.clone(),
            schema: schema.clone(),
            required: required.contains(&key.as_str()),
        })
        .collect();
    for key in required {
        if !found.iter().any(|property| property.key == key) {
            let others = schema.get("additionalProperties");
            found.push(Property {
                key: key.to_owned(),
                schema: others.cloned().unwrap_or(Value::Bool(true)),
                required: true,
            });
        }
    }
    found
}
