//! Arguments in notations that are nearly JSON: Python's and Gemma's.
//!
//! What the reader of a notation also takes as JSON is left to JSON's grammar where a schema says more than
//! the rules here can.

use serde_json::{Map, Value};

use super::parts::{Parts, Place, in_order, literal};
use super::shape::{self, Alternative, Kind, Property};
use super::tagged::only_for_strings;
use crate::grammar::{GrammarPart, GrammarSource, PlainText};
use crate::prompt::tools::literal::GEMMA_QUOTE;
use crate::prompt::tools::written::python;

/// Rules of one answer's grammar; what goes beyond is written as JSON.
const MAX_RULES: usize = 4000;

/// A notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notation {
    Python,
    Gemma,
}

impl Notation {
    fn comma(self) -> &'static str {
        match self {
            Notation::Python => ", ",
            Notation::Gemma => ",",
        }
    }

    /// An argument with its key; None: the key cannot be written.
    pub(super) fn argument(
        self,
        property: &Property,
        place: &Place<'_>,
        parts: &mut Parts,
    ) -> Option<String> {
        let key = property.key.as_str();
        let head = match self {
            Notation::Python if is_identifier(key) => format!("{key}="),
            Notation::Python => return None,
            Notation::Gemma => format!("{}:", gemma_key(key)?),
        };
        let place = place.at(&format!("properties.{key}"));
        let value = self.value(&property.schema, &place, parts);
        Some(format!("{} {value}", literal(&head)))
    }

    /// Arguments, with commas between them.
    pub(super) fn arguments(self, items: &[(String, bool)], parts: &mut Parts) -> Option<String> {
        in_order(items, self.comma(), parts)
    }

    /// The name of the rule for values of a schema.
    fn value(self, schema: &Value, place: &Place<'_>, parts: &mut Parts) -> String {
        let meaning = format!("{self:?} {} {schema}", place.strict);
        if let Some(name) = parts.known(&meaning) {
            return name;
        }
        let alternatives = shape::alternatives(schema, place.root).filter(|all| {
            !all.is_empty() && all.iter().all(|alternative| self.covers(alternative))
        });
        let Some(alternatives) = alternatives.filter(|_| parts.rules() < MAX_RULES) else {
            return parts.json(schema.clone(), place);
        };
        // Named before it is written: it may be found in itself.
        let name = parts.name(meaning);
        let bodies: Vec<String> = alternatives
            .iter()
            .map(|alternative| self.alternative(alternative, place, parts))
            .collect();
        parts.rule(&name, &bodies.join(" | "));
        name
    }

    /// The rules here say all that the schema says.
    fn covers(self, alternative: &Alternative) -> bool {
        let schema = &alternative.schema;
        let says = |keywords: &[&str]| keywords.iter().any(|keyword| schema.contains_key(*keyword));
        match alternative.kind {
            _ if alternative.values().is_some() => match (self, alternative.values()) {
                (Notation::Gemma, Some(values)) => values.iter().all(|it| gemma(it).is_some()),
                _ => true,
            },
            Kind::Array => {
                let count = |keyword: &str| schema.get(keyword).map(Value::as_u64);
                let (least, most) = (count("minItems"), count("maxItems"));
                !says(&["prefixItems", "additionalItems", "uniqueItems"])
                    && !schema.get("items").is_some_and(Value::is_array)
                    && least != Some(None)
                    && most != Some(None)
                    && most.is_none_or(|most| most >= least.flatten())
            }
            Kind::Object => {
                let properties = schema.get("properties").and_then(Value::as_object);
                let others = schema.get("additionalProperties");
                let listed = shape::properties(schema);
                let declared = properties.map_or(0, Map::len);
                let closed = matches!(others, None | Some(Value::Bool(false)));
                let writable = |property: &Property| match self {
                    Notation::Python => true,
                    Notation::Gemma => gemma_key(&property.key).is_some(),
                };
                !says(&["patternProperties", "minProperties", "maxProperties"])
                    && listed.len() == declared
                    && (declared == 0 || closed)
                    && listed.iter().all(writable)
            }
            _ => true,
        }
    }

    fn alternative(
        self,
        alternative: &Alternative,
        place: &Place<'_>,
        parts: &mut Parts,
    ) -> String {
        let schema = &alternative.schema;
        match (alternative.kind, alternative.values()) {
            (Kind::String, _) => self.text(schema, place, parts),
            (_, Some(values)) => {
                let texts: Vec<String> = values
                    .iter()
                    .filter_map(|value| match self {
                        Notation::Python => Some(python(value)),
                        Notation::Gemma => gemma(value),
                    })
                    .map(|text| literal(&text))
                    .collect();
                format!("({})", texts.join(" | "))
            }
            (Kind::Number, _) => parts.json(Value::Object(schema.clone()), place),
            (Kind::Boolean, _) => match self {
                Notation::Python => "(\"True\" | \"False\")".to_owned(),
                Notation::Gemma => "(\"true\" | \"false\")".to_owned(),
            },
            (Kind::Null, _) => match self {
                Notation::Python => "\"None\"".to_owned(),
                Notation::Gemma => "\"null\"".to_owned(),
            },
            (Kind::Array, _) => self.array(schema, place, parts),
            (Kind::Object, _) => self.object(schema, place, parts),
        }
    }

    fn text(self, schema: &Map<String, Value>, place: &Place<'_>, parts: &mut Parts) -> String {
        // JSON's strings are Python's, too.
        if self == Notation::Python {
            return parts.json(only_for_strings(schema), place);
        }
        let text = parts.add(GrammarPart {
            field: place.field.clone(),
            source: GrammarSource::Text(PlainText {
                schema: only_for_strings(schema),
                strict: place.strict,
                except: Vec::new(),
                also: Vec::new(),
                mark: GEMMA_QUOTE.to_owned(),
                end: GEMMA_QUOTE.to_owned(),
            }),
        });
        format!("{} {text}", literal(GEMMA_QUOTE))
    }

    fn array(self, schema: &Map<String, Value>, place: &Place<'_>, parts: &mut Parts) -> String {
        let item = match schema.get("items") {
            Some(items) => self.value(items, &place.at("items"), parts),
            None => self.value(&Value::Bool(true), place, parts),
        };
        let count = |keyword: &str| schema.get(keyword).and_then(Value::as_u64);
        let (least, most) = (count("minItems").unwrap_or(0), count("maxItems"));
        let comma = literal(self.comma());
        let more = match most {
            Some(0) => return "\"[\" \"]\"".to_owned(),
            Some(most) => format!(
                "({comma} {item}){{{},{}}}",
                least.saturating_sub(1),
                most - 1
            ),
            None if least > 1 => format!(
                "({comma} {item}){{{},{}}} ({comma} {item})*",
                least - 1,
                least - 1
            ),
            None => format!("({comma} {item})*"),
        };
        match least {
            0 => format!("\"[\" ({item} {more})? \"]\""),
            _ => format!("\"[\" {item} {more} \"]\""),
        }
    }

    fn object(self, schema: &Map<String, Value>, place: &Place<'_>, parts: &mut Parts) -> String {
        let properties = shape::properties(schema);
        let others = schema.get("additionalProperties");
        if properties.is_empty() {
            if others == Some(&Value::Bool(false)) {
                return "\"{\" \"}\"".to_owned();
            }
            let place = place.at("additionalProperties");
            let any = Value::Bool(true);
            let value = self.value(others.unwrap_or(&any), &place, parts);
            let key = match self {
                Notation::Python => {
                    let text = serde_json::json!({"type": "string"});
                    format!("{} \": \"", parts.json(text, &place))
                }
                Notation::Gemma => "/[A-Za-z_][A-Za-z0-9_]{0,99}/ \":\"".to_owned(),
            };
            let comma = literal(self.comma());
            return format!("\"{{\" ({key} {value} ({comma} {key} {value})*)? \"}}\"");
        }
        let items: Vec<(String, bool)> = properties
            .iter()
            .filter_map(|property| {
                let key = match self {
                    Notation::Python => format!("{}: ", Value::from(property.key.as_str())),
                    Notation::Gemma => format!("{}:", gemma_key(&property.key)?),
                };
                let place = place.at(&format!("properties.{}", property.key));
                let value = self.value(&property.schema, &place, parts);
                Some((format!("{} {value}", literal(&key)), property.required))
            })
            .collect();
        let members = in_order(&items, self.comma(), parts).unwrap_or_default();
        format!("\"{{\" {members} \"}}\"")
    }
}

/// As Python's reader takes names.
pub(super) fn is_identifier(text: &str) -> bool {
    let mut characters = text.chars();
    let begins = |character: char| character.is_alphabetic() || character == '_';
    characters.next().is_some_and(begins)
        && characters.all(|character| begins(character) || character.is_numeric())
}

/// A key in Gemma's notation.
fn gemma_key(key: &str) -> Option<String> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
    match key {
        "" => None,
        key if key.chars().all(plain) => Some(key.to_owned()),
        key if key.contains(GEMMA_QUOTE) => None,
        key => Some(format!("{GEMMA_QUOTE}{key}{GEMMA_QUOTE}")),
    }
}

/// A value in Gemma's notation.
fn gemma(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(text) if text.contains(GEMMA_QUOTE) => return None,
        Value::String(text) => format!("{GEMMA_QUOTE}{text}{GEMMA_QUOTE}"),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(gemma).collect::<Option<_>>()?;
            format!("[{}]", items.join(","))
        }
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(key, value)| Some(format!("{}:{}", gemma_key(key)?, gemma(value)?)))
                .collect::<Option<_>>()?;
            format!("{{{}}}", members.join(","))
        }
        other => other.to_string(),
    })
}
