//! The form of calls, as rules of a grammar (llguidance's Lark) that output can be made to follow.
//!
//! The rules are one family's markup, as its table says it ([`form`]), around names and arguments. Where
//! arguments are one JSON text they are a grammar of their own; elsewhere each parameter is, as far as it is
//! written as JSON ([`tagged`], [`notation`]).

pub(super) mod form;
mod notation;
mod parts;
mod shape;
mod tagged;

use serde_json::{Value, json};

use self::form::{Piece, Way};
use self::notation::{Notation, is_identifier};
pub(in crate::prompt) use self::parts::Parts;
use self::parts::{Place, containing, expression, in_order, literal};
use self::shape::{Kind, Property};
use super::Format;
use super::call::may_be_name;
use super::declared::DeclaredTools;
use crate::grammar::{GrammarPart, GrammarSource, escaped};
use crate::prompt::harmony;

/// Most calls in one answer that must follow the rules: a model that only repeats itself comes to an end.
const MOST_CALLS: usize = 16;

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::prompt) struct CallableTool {
    pub(in crate::prompt) name: String,
    /// A JSON schema of its arguments, an object.
    pub(in crate::prompt) arguments: GrammarPart,
}

/// What an answer may be besides calls.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::prompt) enum Otherwise {
    Nothing,
    /// Text without calls; also before a call, where the format has that.
    Text,
    /// What this part says.
    Grammar(GrammarPart),
}

/// Why calls cannot be put into rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRulesForCalls {
    /// None of the tools has a name and arguments that the model's form of calls can hold.
    #[error(
        "this model's form of tool calls ({format}) cannot hold the names or the arguments of {tool:?}"
    )]
    Tool { format: &'static str, tool: String },
    /// The format has no form for calls that must be made.
    #[error("this model's form of tool calls ({0}) cannot be enforced")]
    Format(&'static str),
}

/// A tool whose call is being written.
struct Tool<'a> {
    name: &'a str,
    part: &'a GrammarPart,
    /// As the reader of calls will see it.
    declared: DeclaredTools,
    place: Place<'a>,
}

impl<'a> Tool<'a> {
    fn new(tool: &'a CallableTool) -> Self {
        static NOTHING: Value = Value::Null;
        let (schema, strict) = match &tool.arguments.source {
            GrammarSource::JsonSchema { schema, strict } => (schema, *strict),
            _ => (&NOTHING, false),
        };
        Tool {
            name: &tool.name,
            part: &tool.arguments,
            declared: DeclaredTools::new(&[json!({"name": tool.name, "parameters": schema})]),
            place: Place {
                field: tool.arguments.field.clone(),
                root: schema,
                strict,
            },
        }
    }

    /// The arguments one by one, in each of the shapes that their schema has. `write` gives one of them, or
    /// None where it cannot be written: what is optional is left out then. None: no shape is left.
    fn arguments(
        &self,
        parts: &mut Parts,
        mut write: impl FnMut(&Property, &mut Parts) -> Option<String>,
        join: impl Fn(&[(String, bool)], &mut Parts) -> Option<String>,
    ) -> Option<String> {
        parts.check(self.part);
        let mut shapes = Vec::new();
        for alternative in shape::alternatives(self.place.root, self.place.root)? {
            if alternative.kind != Kind::Object {
                continue;
            }
            let items: Option<Vec<(String, bool)>> = shape::properties(&alternative.schema)
                .iter()
                .filter_map(|property| match write(property, parts) {
                    Some(text) => Some(Some((text, property.required))),
                    None if property.required => Some(None),
                    None => None,
                })
                .collect();
            if let Some(items) = items {
                shapes.push(join(&items, parts));
            }
        }
        let empty = shapes.iter().any(Option::is_none);
        let shapes: Vec<String> = shapes.into_iter().flatten().collect();
        match (shapes.as_slice(), empty) {
            ([], false) => None,
            ([], true) => Some(String::new()),
            (shapes, empty) => {
                let optional = if empty { "?" } else { "" };
                Some(format!("({}){optional}", shapes.join(" | ")))
            }
        }
    }
}

/// Rules for `answer`: one call of one of `tools`, or several where the format has them and `several` says
/// so, or what `otherwise` says. What the rules refer to goes to `parts`.
///
/// # Errors
/// Such calls cannot be written.
pub(in crate::prompt) fn answer(
    format: &Format,
    tools: &[CallableTool],
    several: bool,
    otherwise: &Otherwise,
    parts: &mut Parts,
) -> Result<String, NoRulesForCalls> {
    if format.ways.is_empty() {
        return Err(NoRulesForCalls::Format(format.name));
    }
    let tools: Vec<Tool<'_>> = tools.iter().map(Tool::new).collect();
    let mut answers = Vec::new();
    let mut rules = String::new();
    for (number, way) in format.ways.iter().enumerate() {
        let calls: Vec<String> = tools
            .iter()
            .filter_map(|tool| call(way, tool, parts))
            .collect();
        if calls.is_empty() {
            continue;
        }
        rules.push_str(&format!("call_{number}: {}\n", calls.join("\n    | ")));
        let more = match way.between.filter(|_| several) {
            Some("") => format!(" call_{number}{{0,{}}}", MOST_CALLS - 1),
            Some(between) => {
                let between = literal(between);
                format!(" ({between} call_{number}){{0,{}}}", MOST_CALLS - 1)
            }
            None => String::new(),
        };
        let open = match way.open {
            "" => String::new(),
            open => literal(open),
        };
        let close = match way.close {
            "" => String::new(),
            close => literal(close),
        };
        let head = match otherwise {
            Otherwise::Text if way.anywhere && !format.channels => {
                let before = before(format);
                rules.push_str(&format!("BEFORE_{number}: ({before}) {open}\n"));
                format!("BEFORE_{number}")
            }
            _ => open,
        };
        answers.push(format!("{head} call_{number}{more} {close}"));
    }
    if answers.is_empty() {
        let tool = tools.first().map(|tool| tool.name.to_owned());
        return Err(NoRulesForCalls::Tool {
            format: format.name,
            tool: tool.unwrap_or_default(),
        });
    }
    let [_, message] = harmony::BEFORE_ANSWER;
    match otherwise {
        Otherwise::Nothing => {}
        Otherwise::Grammar(part) => {
            let name = parts.add(part.clone());
            answers.push(match format.channels {
                true => format!("{} {name}", literal(message)),
                false => name,
            });
        }
        Otherwise::Text => {
            answers.push(match format.channels {
                true => format!("{} TEXT?", literal(message)),
                false => "TEXT?".to_owned(),
            });
            rules.push_str(&format!("TEXT: {}\n", text(format)));
        }
    }
    Ok(format!("answer: {}\n{rules}", answers.join(" | ")))
}

/// Rules for what comes before `answer` where answers are written in channels: thoughts, or nothing.
pub(in crate::prompt) fn thoughts() -> String {
    let ends = containing(&harmony::BODY_ENDS);
    format!(
        "thoughts: \"<|channel|>analysis<|message|>\" THOUGHTS \"<|start|>assistant\"\n\
         THOUGHT: /(?s:.*)/ & ~{ends}\n\
         THOUGHTS: THOUGHT \"<|end|>\"\n"
    )
}

/// A terminal for text in which no call begins.
fn text(format: &Format) -> String {
    let first = first(format);
    format!("/{first}(?s:.*)/{}", no_mark(format))
}

/// A terminal for text before a call.
fn before(format: &Format) -> String {
    let first = first(format);
    format!("/({first}(?s:.*))?/{}", no_mark(format))
}

/// Where a call may begin with the answer and without a mark, text must begin with something else.
fn first(format: &Format) -> String {
    let starts = format.opens.iter().filter(|mark| mark.at_start);
    let starts: String = starts.map(|mark| escaped(mark.text)).collect();
    match starts.is_empty() {
        true => "(?s:.)".to_owned(),
        false => format!("[^{starts}\\s]"),
    }
}

fn no_mark(format: &Format) -> String {
    if format.channels {
        return format!(" & ~{}", containing(&harmony::BODY_ENDS));
    }
    let marks: Vec<&str> = format
        .opens
        .iter()
        .filter(|mark| !mark.at_start)
        .map(|mark| mark.text)
        .collect();
    match marks.is_empty() {
        true => String::new(),
        false => format!(" & ~{}", containing(&marks)),
    }
}

/// One call of this tool; None: it cannot be written in this way.
fn call(way: &Way, tool: &Tool<'_>, parts: &mut Parts) -> Option<String> {
    let (mut rule, mut text) = (String::new(), String::new());
    let python = way.call.iter().any(|piece| matches!(piece, Piece::Python));
    for piece in way.call {
        let symbol = match piece {
            Piece::Text(piece) => {
                text.push_str(piece);
                continue;
            }
            Piece::QuotedName => {
                text.push_str(&Value::from(tool.name).to_string());
                continue;
            }
            Piece::Name if !fits(tool.name, python) => return None,
            Piece::Name => {
                text.push_str(tool.name);
                continue;
            }
            Piece::Maybe(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
                format!("({})?", texts.join(" | "))
            }
            Piece::Expression(text) => expression(text),
            Piece::Json => parts.add(tool.part.clone()),
            Piece::Tagged(tagged) => tool.arguments(
                parts,
                |property, parts| tagged::parameter(tagged, property, tool, parts),
                |items, parts| in_order(items, "", parts),
            )?,
            Piece::Python => notated(Notation::Python, tool, parts)?,
            Piece::Gemma => notated(Notation::Gemma, tool, parts)?,
        };
        if !text.is_empty() {
            rule.push_str(&literal(&std::mem::take(&mut text)));
            rule.push(' ');
        }
        rule.push_str(&symbol);
        rule.push(' ');
    }
    if !text.is_empty() {
        rule.push_str(&literal(&text));
    }
    Some(rule.trim_end().to_owned())
}

/// The name is read as it is written, where it stands without quotes.
fn fits(name: &str, python: bool) -> bool {
    let in_python =
        || is_identifier(&name.replace(['.', '-'], "_")) && !name.starts_with(['.', '-']);
    !name.is_empty() && name.trim() == name && may_be_name(name) && (!python || in_python())
}

fn notated(notation: Notation, tool: &Tool<'_>, parts: &mut Parts) -> Option<String> {
    tool.arguments(
        parts,
        |property, parts| notation.argument(property, &tool.place, parts),
        |items, parts| notation.arguments(items, parts),
    )
}
