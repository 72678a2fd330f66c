//! Reading one call, character by character, as its format's program says.

use super::declared::DeclaredTools;
use super::item::{Item, NameRule, Program};
use super::json::{JsonValue, Step};
use super::literal::{Dialect, Literal};
use super::matching::Until;
use super::object::Object;
use super::parameters::ParametersReader;
use super::python::PythonReader;
use crate::prompt::OutputDelta;

/// Text of a call that is held back while it is not certain to be one, or until a value is complete, at
/// most, in bytes.
pub(super) const MAX_HELD: usize = 256 * 1024;
/// A name or a key, at most, in bytes.
pub(super) const MAX_NAME: usize = 1024;

/// What a character did to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Going,
    Complete,
    /// It is no call after all.
    Failed,
}

/// What is known of a call so far. Readers write into it.
#[derive(Debug, Clone, Default)]
pub(super) struct CallOutput {
    pub(super) name: Option<String>,
    /// It is a call, whatever follows.
    pub(super) certain: bool,
    /// JSON text of the arguments that is not given out yet.
    pub(super) pending: String,
    /// Arguments have begun.
    begun: bool,
    /// The name is given out.
    named: bool,
}

impl CallOutput {
    /// Gives out what is known, once it is certain: first the name, then arguments.
    fn give_out(&mut self, index: usize, out: &mut impl FnMut(OutputDelta)) {
        self.begun |= !self.pending.is_empty();
        let Some(name) = self.name.as_ref().filter(|_| self.certain) else {
            return;
        };
        if !self.named {
            self.named = true;
            let name = name.clone();
            out(OutputDelta::ToolCallStart { index, name });
        }
        if !self.pending.is_empty() {
            let text = std::mem::take(&mut self.pending);
            out(OutputDelta::ToolCallArguments { index, text });
        }
    }
}

/// One call being read.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// All its text until something is given out, from its mark on, to give it back.
    raw: String,
    /// How much of `raw` is the mark.
    opening: usize,
    declared: DeclaredTools,
    declared_only: bool,
    program: Program,
    reader: Reader,
    output: CallOutput,
}

/// The item being read.
#[derive(Debug, Clone)]
enum Reader {
    /// The next item begins.
    Next,
    Space,
    Text(&'static str),
    Name(&'static NameRule, Until, String),
    Skip(&'static [(&'static str, Program)], Until, usize),
    Object(Box<Object>),
    Arguments(JsonValue, bool),
    Parameters(Box<ParametersReader>),
    Python(Box<PythonReader>),
    Gemma(Box<Literal>, bool),
}

impl Call {
    /// A call that begins behind this mark.
    pub(super) fn new(
        mark: &str,
        program: Program,
        declared: DeclaredTools,
        declared_only: bool,
    ) -> Self {
        Call {
            raw: mark.to_string(),
            opening: mark.len(),
            declared,
            declared_only,
            program,
            reader: Reader::Next,
            output: CallOutput::default(),
        }
    }

    /// Something of it is given out, so that it stays a call.
    pub(super) fn is_given_out(&self) -> bool {
        self.output.named
    }

    /// The mark and the text behind it, of a call that turned out to be none.
    pub(super) fn give_back(&self) -> (&str, &str) {
        self.raw.split_at(self.opening)
    }

    /// Takes the next character; `index` is the call's number.
    pub(super) fn step(
        &mut self,
        character: char,
        index: usize,
        out: &mut impl FnMut(OutputDelta),
    ) -> Progress {
        // Until something is given out the call may have to be given back.
        if !self.output.named {
            self.raw.push(character);
            if self.raw.len() > MAX_HELD {
                return Progress::Failed;
            }
        }
        let progress = self.advance(character);
        if progress == Progress::Failed {
            return progress;
        }
        if progress == Progress::Complete {
            if !self.output.begun && self.output.pending.is_empty() {
                self.output.pending.push_str("{}");
            }
            self.output.certain = true;
        }
        if self.output.certain && !self.output.named && !self.name_is_fine() {
            return Progress::Failed;
        }
        self.output.give_out(index, out);
        if self.output.named {
            self.raw = String::new();
        }
        progress
    }

    fn name_is_fine(&self) -> bool {
        let name = self.output.name.as_deref();
        name.is_some_and(|name| !self.declared_only || self.declared.knows(name))
    }

    fn advance(&mut self, character: char) -> Progress {
        loop {
            let progress = match &mut self.reader {
                Reader::Next => {
                    let Some((item, rest)) = self.program.split_first() else {
                        return Progress::Failed;
                    };
                    self.program = rest;
                    if let Item::When(ways) = item {
                        let way = ways.iter().find(|(first, _)| *first == character);
                        self.program = way.map_or(rest, |(_, then)| then);
                    } else {
                        self.reader = Reader::of(item);
                    }
                    continue;
                }
                Reader::Space if character.is_whitespace() => Progress::Going,
                Reader::Space => {
                    self.reader = Reader::Next;
                    continue;
                }
                Reader::Text(rest) => match rest.strip_prefix(character) {
                    Some("") => Progress::Complete,
                    Some(remaining) => {
                        *rest = remaining;
                        Progress::Going
                    }
                    None => Progress::Failed,
                },
                Reader::Name(rule, until, text) => {
                    let marks: Vec<&str> = rule.ends.iter().map(|(end, _)| *end).collect();
                    let found = until.step(character, &marks, |character| text.push(character));
                    if let Some(index) = found {
                        let Some(name) = name_in(text, rule) else {
                            return Progress::Failed;
                        };
                        self.output.name = Some(name.to_owned());
                        self.program = rule.ends[index].1;
                        Progress::Complete
                    } else if text.len() > MAX_NAME || !may_be_name(text) {
                        Progress::Failed
                    } else {
                        Progress::Going
                    }
                }
                Reader::Skip(ends, until, length) => {
                    *length += 1;
                    let marks: Vec<&str> = ends.iter().map(|(end, _)| *end).collect();
                    match until.step(character, &marks, |_| ()) {
                        Some(index) => {
                            self.program = ends[index].1;
                            Progress::Complete
                        }
                        None if *length > MAX_NAME => Progress::Failed,
                        None => Progress::Going,
                    }
                }
                Reader::Object(object) => object.step(character, &mut self.output),
                Reader::Arguments(value, begun) => {
                    arguments(value, begun, character, &mut self.output)
                }
                Reader::Parameters(parameters) => {
                    parameters.step(character, &self.declared, &mut self.output)
                }
                Reader::Python(python) => python.step(character, &self.declared, &mut self.output),
                Reader::Gemma(literal, begun) => {
                    if !std::mem::replace(begun, true) {
                        literal.step('{', &mut self.output.pending);
                    }
                    self.output.certain = true;
                    match literal.step(character, &mut self.output.pending) {
                        Step::Inside => Progress::Going,
                        Step::Last => Progress::Complete,
                        Step::Before | Step::Invalid => Progress::Failed,
                    }
                }
            };
            if progress == Progress::Complete {
                self.reader = Reader::Next;
                if !self.program.is_empty() {
                    return Progress::Going;
                }
            }
            return progress;
        }
    }
}

impl Reader {
    fn of(item: &'static Item) -> Self {
        match item {
            // `When` is decided where it stands.
            Item::Space | Item::When(_) => Reader::Space,
            Item::Text(text) => Reader::Text(text),
            Item::Name(rule) => Reader::Name(rule, Until::default(), String::new()),
            Item::Skip(ends) => Reader::Skip(ends, Until::default(), 0),
            Item::Object { needs_arguments } => {
                Reader::Object(Box::new(Object::new(*needs_arguments)))
            }
            Item::Arguments => Reader::Arguments(JsonValue::new(), false),
            Item::Parameters(parameters) => {
                Reader::Parameters(Box::new(ParametersReader::new(parameters, false)))
            }
            Item::ParametersAtKey(parameters) => {
                Reader::Parameters(Box::new(ParametersReader::new(parameters, true)))
            }
            Item::Python => Reader::Python(Box::default()),
            Item::Gemma => Reader::Gemma(Box::new(Literal::new(Dialect::Gemma)), false),
        }
    }
}

/// A name so far: no white space but at its borders, no brackets or quotes.
pub(super) fn may_be_name(text: &str) -> bool {
    let outside = |character: char| {
        character.is_whitespace() || character.is_control() || "<>{}[]\"'`".contains(character)
    };
    !text.trim().contains(outside)
}

/// The function's name in what stands at its place.
fn name_in<'a>(text: &'a str, rule: &NameRule) -> Option<&'a str> {
    let text = text.trim();
    let mut name = text.strip_prefix(rule.prefix).unwrap_or(text);
    if rule.numbered
        && let Some((before, number)) = name.rsplit_once(':')
        && number.bytes().all(|byte| byte.is_ascii_digit())
    {
        name = before;
    }
    (!name.is_empty() && may_be_name(name)).then_some(name)
}

/// The arguments of a call whose name is given out already.
#[derive(Debug, Clone)]
pub(in crate::prompt) struct ArgumentsStream {
    index: usize,
    value: JsonValue,
    begun: bool,
    done: bool,
    output: CallOutput,
}

impl ArgumentsStream {
    /// For the call with this number.
    pub(in crate::prompt) fn new(index: usize) -> Self {
        ArgumentsStream {
            index,
            value: JsonValue::new(),
            begun: false,
            done: false,
            output: CallOutput::default(),
        }
    }

    /// Takes the next character; false if it does not belong to the arguments.
    pub(in crate::prompt) fn step(
        &mut self,
        character: char,
        out: &mut impl FnMut(OutputDelta),
    ) -> bool {
        if self.done {
            return character.is_whitespace();
        }
        match arguments(
            &mut self.value,
            &mut self.begun,
            character,
            &mut self.output,
        ) {
            Progress::Going => {}
            Progress::Complete => self.done = true,
            Progress::Failed => return false,
        }
        self.give_out(out);
        true
    }

    /// Nothing more comes.
    pub(in crate::prompt) fn end(&mut self, out: &mut impl FnMut(OutputDelta)) {
        if !self.begun {
            self.output.pending.push_str("{}");
            self.give_out(out);
        }
    }

    fn give_out(&mut self, out: &mut impl FnMut(OutputDelta)) {
        if !self.output.pending.is_empty() {
            let text = std::mem::take(&mut self.output.pending);
            out(OutputDelta::ToolCallArguments {
                index: self.index,
                text,
            });
        }
    }
}

/// Reads the arguments as a JSON object, which is given out as it comes.
fn arguments(
    value: &mut JsonValue,
    begun: &mut bool,
    character: char,
    output: &mut CallOutput,
) -> Progress {
    if !*begun {
        match character {
            _ if character.is_whitespace() => return Progress::Going,
            '{' => *begun = true,
            _ => return Progress::Failed,
        }
    }
    output.certain = true;
    match step_json(value, character, &mut output.pending) {
        Step::Inside => Progress::Going,
        Step::Last => Progress::Complete,
        Step::Before | Step::Invalid => Progress::Failed,
    }
}

/// Follows a JSON value and writes what belongs to it.
///
/// Models write newlines and tabs into strings as they are; JSON wants them escaped.
pub(super) fn step_json(value: &mut JsonValue, character: char, written: &mut String) -> Step {
    let length = written.len();
    if value.in_string() && character < ' ' {
        push_escaped(character, written);
        let escaped = written[length..].to_owned();
        let mut step = Step::Inside;
        for character in escaped.chars() {
            step = value.step(character);
        }
        return step;
    }
    let step = value.step(character);
    if matches!(step, Step::Inside | Step::Last) {
        written.push(character);
    }
    step
}

/// Writes a character as it stands in a JSON string.
pub(super) fn push_escaped(character: char, written: &mut String) {
    match character {
        '"' => written.push_str("\\\""),
        '\\' => written.push_str("\\\\"),
        '\n' => written.push_str("\\n"),
        '\r' => written.push_str("\\r"),
        '\t' => written.push_str("\\t"),
        '\0'..='\x1f' => written.push_str(&format!("\\u{:04x}", u32::from(character))),
        _ => written.push(character),
    }
}
