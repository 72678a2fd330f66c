//! Parameters between tags, each value as its reader would read it.

use serde_json::{Map, Value, json};

use super::Tool;
use super::form::{Gap, Tagged};
use super::parts::{Parts, Place, literal};
use super::shape::{self, Alternative, Kind, Property};
use crate::grammar::{GrammarPart, GrammarSource, PlainText, escaped};
use crate::prompt::tools::declared::Kinds;
use crate::prompt::tools::parameters::Typing;

const INTEGER: &str = "-?(?:0|[1-9][0-9]*)";
const NUMBER: &str = "-?(?:0|[1-9][0-9]*)(?:\\.[0-9]+)?(?:[eE][+-]?[0-9]+)?";

/// One parameter; None: it cannot be written so that it is read back.
pub(super) fn parameter(
    tagged: &Tagged,
    property: &Property,
    tool: &Tool<'_>,
    parts: &mut Parts,
) -> Option<String> {
    let key = property.key.as_str();
    let odd = |character: char| character.is_control() || "\"<>".contains(character);
    if key.is_empty() || key.trim() != key || key.contains(odd) {
        return None;
    }
    let place = tool.place.at(&format!("properties.{key}"));
    let writer = Writer {
        tagged,
        place: &place,
        read_as: tool.declared.kinds(tool.name, key),
    };
    let ways: Vec<String> = writer
        .ways(&property.schema, parts)?
        .into_iter()
        .map(|(key_end, value)| {
            let newline = if tagged.tags.newlines { "\n" } else { "" };
            let mut pieces = gap_before(
                tagged.before,
                &format!("{}{key}{key_end}", tagged.tags.open),
            );
            let value_open = format!("{}{newline}", tagged.tags.value_open);
            if !value_open.is_empty() {
                pieces.extend(gap_before(tagged.between, &value_open));
            }
            pieces.push(value);
            pieces.join(" ")
        })
        .collect();
    match ways.as_slice() {
        [] => None,
        [way] => Some(way.clone()),
        ways => Some(format!("({})", ways.join(" | "))),
    }
}

/// A gap and the text behind it. No literal may be the beginning of another one that could stand in its place:
/// the longer one is taken for meant.
fn gap_before(gap: Gap, text: &str) -> Vec<String> {
    match gap {
        Gap::Nothing => vec![literal(text)],
        Gap::Newline => vec![literal(&format!("\n{text}"))],
        Gap::MaybeNewline => vec!["\"\\n\"?".to_owned(), literal(text)],
    }
}

struct Writer<'a> {
    tagged: &'a Tagged,
    place: &'a Place<'a>,
    /// What the reader takes the value for where its tags do not say it.
    read_as: Kinds,
}

impl Writer<'_> {
    /// What ends the key, and the value with its closing tag.
    fn ways(&self, schema: &Value, parts: &mut Parts) -> Option<Vec<(&'static str, String)>> {
        let typed = self.key_end(|typing| matches!(typing, Typing::Text));
        let Some(alternatives) = shape::alternatives(schema, self.place.root) else {
            // Only as JSON it can be left to its grammar as a whole.
            let is_json = !self.read_as.allow_strings();
            let end = self.json_end(None).filter(|_| is_json)?;
            return Some(vec![(end, self.json(schema.clone(), parts))]);
        };
        let (texts, others): (Vec<Alternative>, Vec<Alternative>) = alternatives
            .into_iter()
            .partition(|alternative| alternative.kind == Kind::String);
        let mut ways = Vec::new();
        if let Some(text_end) = typed {
            for text in &texts {
                for value in self.text(text, Vec::new(), Vec::new(), parts) {
                    ways.push((text_end, value));
                }
            }
            let mut groups: Vec<(&'static str, Vec<Alternative>)> = Vec::new();
            for other in others {
                let end = self.json_end(Some(other.kind))?;
                match groups.iter_mut().find(|(known, _)| *known == end) {
                    Some((_, group)) => group.push(other),
                    None => groups.push((end, vec![other])),
                }
            }
            for (end, group) in groups {
                ways.push((end, self.json(any_of(group), parts)));
            }
            return Some(ways);
        }
        let end = self.json_end(None)?;
        if texts.is_empty() {
            return Some(match others.is_empty() {
                true => Vec::new(),
                false => vec![(end, self.json(schema.clone(), parts))],
            });
        }
        // Text and JSON without a mark that tells them apart: words and numbers are one lexeme with the
        // text, lists and objects show at their first character.
        let (containers, scalars): (Vec<Alternative>, Vec<Alternative>) = others
            .into_iter()
            .partition(|other| matches!(other.kind, Kind::Array | Kind::Object));
        let mut also: Vec<String> = scalars.iter().flat_map(scalar).collect();
        for text in &texts {
            let also = std::mem::take(&mut also);
            for value in self.text(text, self.except(), also, parts) {
                ways.push((end, value));
            }
        }
        if !containers.is_empty() {
            ways.push((end, self.json(any_of(containers), parts)));
        }
        Some(ways)
    }

    fn key_end(&self, fits: impl Fn(Typing) -> bool) -> Option<&'static str> {
        let ends = self.tagged.tags.key_ends.iter();
        ends.copied()
            .find(|(_, typing)| fits(*typing))
            .map(|(end, _)| end)
    }

    /// What ends the key before JSON of this type.
    fn json_end(&self, kind: Option<Kind>) -> Option<&'static str> {
        kind.and_then(|kind| self.key_end(|typing| typing == Typing::Typed(kind.name())))
            .or_else(|| self.key_end(|typing| typing == Typing::Json))
            .or_else(|| self.key_end(|typing| typing == Typing::Schema))
    }

    fn value_end(&self) -> String {
        let newline = if self.tagged.tags.newlines { "\n" } else { "" };
        format!("{newline}{}", self.tagged.tags.value_end)
    }

    fn json(&self, schema: Value, parts: &mut Parts) -> String {
        let value = parts.json(schema, self.place);
        format!("{value} {}", literal(&self.value_end()))
    }

    /// A string, in each way in which it can be set off.
    fn text(
        &self,
        text: &Alternative,
        mut except: Vec<String>,
        also: Vec<String>,
        parts: &mut Parts,
    ) -> Vec<String> {
        let tags = self.tagged.tags;
        let mut add = |except: Vec<String>, also: Vec<String>, mark: &str, end: String| {
            parts.add(GrammarPart {
                field: self.place.field.clone(),
                source: GrammarSource::Text(PlainText {
                    schema: only_for_strings(&text.schema),
                    strict: self.place.strict,
                    except,
                    also,
                    mark: mark.to_owned(),
                    end,
                }),
            })
        };
        let mut ways = Vec::new();
        if let Some((open, close)) = tags.quoted {
            let value = add(except.clone(), Vec::new(), close, close.to_owned());
            ways.push(format!("{} {value}", literal(open)));
            except.push(format!("{}(?s:.*)", escaped(open)));
        }
        ways.push(add(except, also, tags.value_end, self.value_end()));
        ways
    }

    /// Texts that are not read as strings.
    fn except(&self) -> Vec<String> {
        if self.read_as == Kinds::STRING {
            return Vec::new();
        }
        let mut found = Vec::new();
        for (value, text) in [
            (Value::Null, "null|None"),
            (json!(true), "true|false|True|False"),
            (json!(1), NUMBER),
            (json!([]), "\\[(?s:.*)"),
            (json!({}), "\\{(?s:.*)"),
        ] {
            if self.read_as.allow(&value) || !self.read_as.allow_strings() {
                found.push(format!("(?s:\\s*)(?:{text})(?s:\\s*)"));
            }
        }
        if !self.read_as.allow_strings() {
            found.push("(?s:\\s*)\"(?s:.*)".to_owned());
        }
        found
    }
}

/// Words and numbers as expressions. A restricted number among strings is left out.
fn scalar(alternative: &Alternative) -> Vec<String> {
    if let Some(values) = alternative.values() {
        return values
            .iter()
            .map(|value| escaped(&value.to_string()))
            .collect();
    }
    let any = alternative.is_any_of_its_kind();
    match alternative.kind {
        Kind::Null => vec!["null".to_owned()],
        Kind::Boolean => vec!["true|false".to_owned()],
        Kind::Number if any && alternative.schema["type"] == "integer" => vec![INTEGER.to_owned()],
        Kind::Number if any => vec![NUMBER.to_owned()],
        _ => Vec::new(),
    }
}

fn any_of(alternatives: Vec<Alternative>) -> Value {
    let mut schemas: Vec<Value> = alternatives
        .into_iter()
        .map(|alternative| Value::Object(alternative.schema))
        .collect();
    match schemas.len() {
        1 => schemas.remove(0),
        _ => json!({ "anyOf": schemas }),
    }
}

/// What a schema says of strings: the same text is the same grammar, whatever else is said of it.
pub(super) fn only_for_strings(schema: &Map<String, Value>) -> Value {
    let says = [
        "type",
        "enum",
        "minLength",
        "maxLength",
        "pattern",
        "format",
    ];
    let kept = schema
        .iter()
        .filter(|(keyword, _)| says.contains(&keyword.as_str()));
    Value::Object(
        kept.map(|(keyword, value)| (keyword.clone(), value.clone()))
            .collect(),
    )
}
