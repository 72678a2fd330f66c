//! JSON schemas: what is checked before llguidance sees them, so that an error names the keyword.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::GrammarError;

/// Levels of subschemas, counted through references.
const DEPTH: usize = 100;
/// Subschemas in all.
const SUBSCHEMAS: usize = 10_000;
/// Largest number in a keyword that counts characters, elements or properties.
const COUNT: u64 = 100_000;
/// Compilations of a part to find out what is wrong in it.
const TRIALS: usize = 200;

/// Between JSON's tokens: nothing, one space, or one line break with an indentation. What models write,
/// and no more: a model cannot go on with white space for ever.
const WHITE_SPACE: &str = r"\x20|\x0A[\x20\x09]{0,32}";

const TYPES: [&str; 7] = [
    "null", "boolean", "number", "integer", "string", "array", "object",
];
/// Keywords of JSON Schema that restrict values and are not enforced.
const NOT_ENFORCED: [&str; 18] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
    "$dynamicRef",
    "$recursiveRef",
    "$dynamicAnchor",
];
const FORMATS: [&str; 10] = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
];

/// Checks a schema that stands in `field` and makes it ready for llguidance.
///
/// # Errors
/// The first thing that is malformed or, if `strict`, cannot be enforced.
pub(super) fn prepare(schema: &Value, field: &str, strict: bool) -> Result<Value, GrammarError> {
    let mut check = Check {
        root: schema,
        field,
        strict,
        count: 0,
        referenced: HashSet::new(),
    };
    check.schema(schema, field.to_owned(), 0)?;
    let mut prepared = match schema {
        Value::Object(map) => map.clone(),
        // Both boolean schemas were let through above; false fails in llguidance as "unsatisfiable".
        Value::Bool(false) => Map::from_iter([("enum".to_owned(), json!([]))]),
        _ => Map::new(),
    };
    prepared.remove("$schema");
    prepared.insert(
        "x-guidance".to_owned(),
        json!({"whitespace_pattern": WHITE_SPACE, "lenient": !strict, "coerce_one_of": !strict}),
    );
    let mut prepared = Value::Object(prepared);
    drop_without_effect(&mut prepared);
    if check.referenced.iter().all(|reference| {
        reference.starts_with("#/$defs/") || reference.starts_with("#/definitions/")
    }) {
        close(&mut prepared);
    }
    Ok(prepared)
}

/// `uniqueItems: false` restricts nothing, and is common.
fn drop_without_effect(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("uniqueItems") == Some(&Value::Bool(false)) {
                map.remove("uniqueItems");
            }
            // Values are no schemas.
            let schemas = map
                .iter_mut()
                .filter(|(keyword, _)| !["const", "enum"].contains(&keyword.as_str()));
            schemas.for_each(|(_, value)| drop_without_effect(value));
        }
        Value::Array(items) => items.iter_mut().for_each(drop_without_effect),
        _ => {}
    }
}

/// An object whose properties are listed, and nothing said about others, gets no others: a model that is
/// free to invent properties does. What remains is valid all the same. Not below keywords that combine
/// schemas: there one of them may list what another leaves out.
fn close(schema: &mut Value) {
    let Value::Object(map) = schema else {
        return;
    };
    let combines = ["allOf", "anyOf", "oneOf", "$ref", "enum", "const"];
    if combines.iter().any(|keyword| map.contains_key(*keyword)) {
        return;
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(close);
    }
    match map.get_mut("items") {
        Some(Value::Array(items)) => items.iter_mut().for_each(close),
        Some(items) => close(items),
        None => {}
    }
    let Some(Value::Object(properties)) = map.get("properties") else {
        return;
    };
    let open = ["additionalProperties", "patternProperties", "minProperties"];
    let required = map.get("required").and_then(Value::as_array);
    let lists_all = required.into_iter().flatten().all(|name| {
        name.as_str()
            .is_some_and(|name| properties.contains_key(name))
    });
    if lists_all && !open.iter().any(|keyword| map.contains_key(*keyword)) {
        map.insert("additionalProperties".to_owned(), Value::Bool(false));
    }
}

struct Check<'a> {
    root: &'a Value,
    field: &'a str,
    strict: bool,
    count: usize,
    /// References that were followed.
    referenced: HashSet<String>,
}

impl Check<'_> {
    fn schema(&mut self, schema: &Value, path: String, depth: usize) -> Result<(), GrammarError> {
        self.count += 1;
        if self.count > SUBSCHEMAS {
            let message = format!("has more than {SUBSCHEMAS} subschemas");
            return Err(GrammarError::invalid(self.field, message));
        }
        if depth > DEPTH {
            let message = format!("is nested more than {DEPTH} levels deep");
            return Err(GrammarError::invalid(path, message));
        }
        let map = match schema {
            Value::Object(map) => map,
            Value::Bool(_) => return Ok(()),
            _ => {
                return Err(GrammarError::invalid(
                    path,
                    "must be an object or a boolean",
                ));
            }
        };
        for (keyword, value) in map {
            let at = format!("{path}.{keyword}");
            self.keyword(map, keyword, value, at, depth + 1)?;
        }
        Ok(())
    }

    fn keyword(
        &mut self,
        schema: &Map<String, Value>,
        keyword: &str,
        value: &Value,
        at: String,
        depth: usize,
    ) -> Result<(), GrammarError> {
        let must = |expected: &str| {
            Err(GrammarError::invalid(
                at.clone(),
                format!("must be {expected}"),
            ))
        };
        match keyword {
            "type" => match value {
                Value::String(_) => check_type(value, at),
                Value::Array(types) if !types.is_empty() => types
                    .iter()
                    .enumerate()
                    .try_for_each(|(index, kind)| check_type(kind, format!("{at}[{index}]"))),
                _ => must("a type's name or an array of them"),
            },
            "properties" | "patternProperties" => match value {
                Value::Object(members) => members.iter().try_for_each(|(name, value)| {
                    self.schema(value, format!("{at}.{name}"), depth)
                }),
                _ => must("an object"),
            },
            "items" if value.is_array() => self.schemas(value, at, depth),
            "items" | "additionalItems" | "additionalProperties" => self.schema(value, at, depth),
            "prefixItems" => match value {
                Value::Array(_) => self.schemas(value, at, depth),
                _ => must("an array of schemas"),
            },
            "anyOf" | "oneOf" | "allOf" => match value {
                Value::Array(items) if !items.is_empty() => self.schemas(value, at, depth),
                _ => must("an array of at least one schema"),
            },
            "enum" => match value {
                Value::Array(items) if !items.is_empty() => Ok(()),
                _ => must("an array of at least one value"),
            },
            "required" => match value {
                Value::Array(items) if items.iter().all(Value::is_string) => Ok(()),
                _ => must("an array of strings"),
            },
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
            | "maxProperties" => {
                // 3.0 is an integer, too.
                let whole = value.as_u64().or_else(|| {
                    let number = value.as_f64()?;
                    (number.fract() == 0.0 && number >= 0.0).then_some(number as u64)
                });
                match whole {
                    Some(count) if count <= COUNT => Ok(()),
                    Some(_) => must(&format!("at most {COUNT}")),
                    None => must("an integer of at least 0"),
                }
            }
            "minimum" | "maximum" | "multipleOf" if !value.is_number() => must("a number"),
            "exclusiveMinimum" | "exclusiveMaximum"
                if !value.is_number() && !value.is_boolean() =>
            {
                must("a number")
            }
            "pattern" if !value.is_string() => must("a string"),
            "format" => match value.as_str() {
                None => must("a string"),
                Some(format)
                    if self.strict && may_be_string(schema) && !FORMATS.contains(&format) =>
                {
                    let known = FORMATS.join(", ");
                    let message =
                        format!("is {format:?}, which cannot be enforced; known: {known}");
                    Err(GrammarError::invalid(at, message))
                }
                Some(_) => Ok(()),
            },
            "$ref" => self.reference(value, at, depth),
            "uniqueItems" if value == &Value::Bool(false) => Ok(()),
            _ if self.strict && NOT_ENFORCED.contains(&keyword) => Err(GrammarError::invalid(
                at,
                "is not supported: it cannot be enforced; remove it",
            )),
            _ => Ok(()),
        }
    }

    fn schemas(&mut self, value: &Value, at: String, depth: usize) -> Result<(), GrammarError> {
        let items = value.as_array().into_iter().flatten();
        items
            .enumerate()
            .try_for_each(|(index, item)| self.schema(item, format!("{at}[{index}]"), depth))
    }

    fn reference(&mut self, value: &Value, at: String, depth: usize) -> Result<(), GrammarError> {
        let Some(reference) = value.as_str() else {
            return Err(GrammarError::invalid(at, "must be a string"));
        };
        if !self.referenced.insert(reference.to_owned()) {
            return Ok(());
        }
        let pointer = match reference.strip_prefix('#') {
            // The root itself: it is being checked.
            Some("" | "/") => return Ok(()),
            Some(pointer) if pointer.starts_with('/') => pointer,
            _ => {
                let message = format!(
                    "is {reference:?}; only references into the schema itself (`#/$defs/…`) are followed"
                );
                return Err(GrammarError::invalid(at, message));
            }
        };
        // As llguidance resolves it: segments are taken as they are written.
        let mut target = self.root;
        let mut path = self.field.to_owned();
        for segment in pointer[1..].split('/') {
            let next = match target {
                Value::Array(items) => segment
                    .parse()
                    .ok()
                    .and_then(|index: usize| items.get(index)),
                other => other.get(segment),
            };
            let Some(next) = next else {
                let message = format!("is {reference:?}, which the schema does not have");
                return Err(GrammarError::invalid(at, message));
            };
            path = format!("{path}.{segment}");
            target = next;
        }
        self.schema(target, path, depth)
    }
}

fn check_type(kind: &Value, at: String) -> Result<(), GrammarError> {
    match kind.as_str() {
        Some(name) if TYPES.contains(&name) => Ok(()),
        _ => Err(GrammarError::invalid(
            at,
            format!("must be one of {}", TYPES.join(", ")),
        )),
    }
}

/// Formats restrict strings only.
fn may_be_string(schema: &Map<String, Value>) -> bool {
    match schema.get("type") {
        Some(Value::String(kind)) => kind == "string",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "string"),
        _ => true,
    }
}

/// The place in a schema at fault, when llguidance refuses it as a whole with `message`: the innermost
/// subschema that is refused by itself, and its first keyword that is. `refuses` gives the message.
pub(super) fn locate(
    schema: &Value,
    field: &str,
    message: &str,
    refuses: &dyn Fn(&Value) -> Option<String>,
) -> GrammarError {
    let definitions: Map<String, Value> = ["$defs", "definitions"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), schema.get(name)?.clone())))
        .collect();
    let mut search = Search {
        definitions,
        refuses,
        trials: TRIALS,
    };
    search
        .within(schema, field.to_owned())
        .unwrap_or_else(|| cannot(field, message))
}

fn cannot(path: impl Into<String>, message: &str) -> GrammarError {
    GrammarError::invalid(path, format!("cannot be enforced: {message}"))
}

struct Search<'a> {
    definitions: Map<String, Value>,
    refuses: &'a dyn Fn(&Value) -> Option<String>,
    trials: usize,
}

impl Search<'_> {
    /// The message with which a schema is refused for itself.
    fn refused(&mut self, schema: &Map<String, Value>) -> Option<String> {
        self.trials = self.trials.checked_sub(1)?;
        let mut alone = schema.clone();
        for (name, value) in &self.definitions {
            alone.entry(name.clone()).or_insert_with(|| value.clone());
        }
        (self.refuses)(&Value::Object(alone))
    }

    fn within(&mut self, schema: &Value, path: String) -> Option<GrammarError> {
        let map = schema.as_object()?;
        for (child, at) in children(map, &path) {
            let refused = match child {
                Value::Object(map) => self.refused(map).is_some(),
                _ => false,
            };
            if refused && let Some(found) = self.within(child, at) {
                return Some(found);
            }
        }
        // Nothing inside: one of its own keywords, with the type, or the schema as a whole.
        for (keyword, value) in map {
            if keyword == "type" || keyword.starts_with("$d") || keyword == "definitions" {
                continue;
            }
            let mut alone = Map::from_iter([(keyword.clone(), value.clone())]);
            if let Some(kind) = map.get("type") {
                alone.insert("type".to_owned(), kind.clone());
            }
            if let Some(message) = self.refused(&alone) {
                return Some(cannot(format!("{path}.{keyword}"), &message));
            }
        }
        let message = self.refused(map)?;
        Some(cannot(path, &message))
    }
}

/// All subschemas of a schema and where they stand, definitions included.
fn children<'a>(schema: &'a Map<String, Value>, path: &str) -> Vec<(&'a Value, String)> {
    let mut found = Vec::new();
    for (keyword, value) in schema {
        let at = format!("{path}.{keyword}");
        match (keyword.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions",
                Value::Object(members),
            ) => {
                found.extend(
                    members
                        .iter()
                        .map(|(name, value)| (value, format!("{at}.{name}"))),
                );
            }
            ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(items)) => {
                let items = items.iter().enumerate();
                found.extend(items.map(|(index, value)| (value, format!("{at}[{index}]"))));
            }
            ("items" | "additionalItems" | "additionalProperties", Value::Object(_)) => {
                found.push((value, at));
            }
            _ => {}
        }
    }
    found
}
