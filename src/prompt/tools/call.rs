//! Reading one call: `{"name": …, "arguments": {…}}`, character by character.

use super::json::{JsonValue, Step};
use crate::prompt::OutputDelta;

/// Text of a call that is held back while its name is not known, at most, in bytes. A longer one is text.
const MAX_HELD_CALL: usize = 256 * 1024;
/// A name or a key, at most, in bytes of JSON.
const MAX_NAME: usize = 1024;

/// One call being read.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// All its text (from the opening tag on, where this is the tag's first object), to give it back.
    raw: String,
    /// How much of `raw` is the opening tag.
    opening: usize,
    /// Only an object that has arguments is a call.
    needs_arguments: bool,
    place: Place,
    name: Option<String>,
    /// The name is given out.
    named: bool,
    arguments: Arguments,
    /// Text of the arguments that is not given out yet.
    pending: String,
}

#[derive(Debug, Clone)]
enum Place {
    /// Before the object's brace.
    Object,
    /// Before a key or, at first, the closing brace.
    Key {
        may_close: bool,
    },
    InKey {
        value: JsonValue,
        text: String,
    },
    Colon {
        field: Field,
    },
    Value {
        field: Field,
        value: JsonValue,
        begun: bool,
        text: String,
    },
    AfterValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Arguments,
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arguments {
    Missing,
    /// An object: given out as it comes.
    Streaming,
    /// A string or null: understood when it is complete.
    Whole,
}

/// What a character did to a call.
pub(super) enum Progress {
    Going,
    Complete,
    /// It is no call after all.
    Failed,
}

impl Call {
    /// A call that begins behind this tag. `needs_arguments`: without them it is no call.
    pub(super) fn new(opening: &str, needs_arguments: bool) -> Self {
        Call {
            raw: opening.to_string(),
            opening: opening.len(),
            needs_arguments,
            place: Place::Object,
            name: None,
            named: false,
            arguments: Arguments::Missing,
            pending: String::new(),
        }
    }

    /// Something of it is given out, so that it stays a call.
    pub(super) fn is_given_out(&self) -> bool {
        self.named
    }

    /// The tag and the text behind it, of a call that turned out to be none.
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
        if !self.named {
            if self.raw.len() >= MAX_HELD_CALL {
                self.raw.push(character);
                return Progress::Failed;
            }
            self.raw.push(character);
        }
        self.advance(character, index, out)
    }

    fn advance(
        &mut self,
        character: char,
        index: usize,
        out: &mut impl FnMut(OutputDelta),
    ) -> Progress {
        let space = matches!(character, ' ' | '\t' | '\n' | '\r');
        match &mut self.place {
            Place::Object | Place::Key { .. } | Place::Colon { .. } | Place::AfterValue
                if space =>
            {
                Progress::Going
            }
            Place::Object if character == '{' => self.go(Place::Key { may_close: true }),
            Place::Key { may_close } => match character {
                '"' => {
                    let mut value = JsonValue::new();
                    value.step(character);
                    self.go(Place::InKey {
                        value,
                        text: "\"".to_string(),
                    })
                }
                '}' if *may_close => self.complete(index, out),
                _ => Progress::Failed,
            },
            Place::InKey { value, text } => {
                text.push(character);
                match value.step(character) {
                    Step::Inside if text.len() <= MAX_NAME => Progress::Going,
                    Step::Last => {
                        let field = match serde_json::from_str::<String>(text).as_deref() {
                            Ok("name") if self.name.is_none() => Field::Name,
                            Ok("arguments" | "parameters")
                                if self.arguments == Arguments::Missing =>
                            {
                                Field::Arguments
                            }
                            _ => Field::Other,
                        };
                        self.go(Place::Colon { field })
                    }
                    _ => Progress::Failed,
                }
            }
            Place::Colon { field } if character == ':' => {
                let field = *field;
                self.go(Place::Value {
                    field,
                    value: JsonValue::new(),
                    begun: false,
                    text: String::new(),
                })
            }
            Place::Value { .. } => self.in_value(character, index, out),
            Place::AfterValue => match character {
                ',' => self.go(Place::Key { may_close: false }),
                '}' => self.complete(index, out),
                _ => Progress::Failed,
            },
            Place::Object | Place::Colon { .. } => Progress::Failed,
        }
    }

    fn go(&mut self, place: Place) -> Progress {
        self.place = place;
        Progress::Going
    }

    fn in_value(
        &mut self,
        character: char,
        index: usize,
        out: &mut impl FnMut(OutputDelta),
    ) -> Progress {
        let Place::Value {
            field,
            value,
            begun,
            text,
        } = &mut self.place
        else {
            return Progress::Failed;
        };
        let field = *field;
        if !*begun {
            if matches!(character, ' ' | '\t' | '\n' | '\r') {
                return Progress::Going;
            }
            *begun = true;
            if field == Field::Arguments {
                self.arguments = match character {
                    '{' => Arguments::Streaming,
                    '"' | 'n' => Arguments::Whole,
                    _ => return Progress::Failed,
                };
            }
        }
        let mut written = String::new();
        let step = if value.in_string() && character < ' ' {
            // Models write newlines and tabs into strings as they are. JSON wants them escaped.
            written = escaped_control(character);
            written
                .chars()
                .map(|character| value.step(character))
                .last()
                .unwrap_or(Step::Invalid)
        } else {
            written.push(character);
            value.step(character)
        };
        match step {
            Step::Invalid => return Progress::Failed,
            Step::Inside | Step::Last
                if field == Field::Arguments && self.arguments == Arguments::Streaming =>
            {
                self.pending.push_str(&written);
            }
            Step::Inside | Step::Last if field != Field::Other => {
                let limit = if field == Field::Name {
                    MAX_NAME
                } else {
                    MAX_HELD_CALL
                };
                if text.len() >= limit {
                    return Progress::Failed;
                }
                text.push_str(&written);
            }
            Step::Inside | Step::Last | Step::Before => {}
        }
        if step != Step::Inside {
            let text = std::mem::take(text);
            self.place = Place::AfterValue;
            if !self.take_field(field, &text) {
                return Progress::Failed;
            }
        }
        self.give_out(index, out);
        if step == Step::Before {
            self.advance(character, index, out)
        } else {
            Progress::Going
        }
    }

    /// A field's value is complete; false if it cannot be what the field must be.
    fn take_field(&mut self, field: Field, text: &str) -> bool {
        match field {
            Field::Other => true,
            Field::Name => match serde_json::from_str::<String>(text) {
                Ok(name) if !name.is_empty() => {
                    self.name = Some(name);
                    true
                }
                _ => false,
            },
            Field::Arguments if self.arguments == Arguments::Whole => match object_in(text) {
                Some(object) => {
                    self.pending = object;
                    true
                }
                None => false,
            },
            Field::Arguments => true,
        }
    }

    /// Gives out what is known: first the name, then arguments.
    fn give_out(&mut self, index: usize, out: &mut impl FnMut(OutputDelta)) {
        let ready = !self.needs_arguments || !self.pending.is_empty();
        if ready
            && !self.named
            && let Some(name) = &self.name
        {
            out(OutputDelta::ToolCallStart {
                index,
                name: name.clone(),
            });
            self.named = true;
            self.raw = String::new();
        }
        if self.named && !self.pending.is_empty() {
            out(OutputDelta::ToolCallArguments {
                index,
                text: std::mem::take(&mut self.pending),
            });
        }
    }

    fn complete(&mut self, index: usize, out: &mut impl FnMut(OutputDelta)) -> Progress {
        if !self.named {
            return Progress::Failed;
        }
        if self.arguments == Arguments::Missing {
            self.pending.push_str("{}");
            self.give_out(index, out);
        }
        Progress::Complete
    }
}

/// The JSON escape of a control character.
fn escaped_control(character: char) -> String {
    match character {
        '\n' => "\\n".to_string(),
        '\r' => "\\r".to_string(),
        '\t' => "\\t".to_string(),
        _ => format!("\\u{:04x}", u32::from(character)),
    }
}

/// The arguments in a value that is not an object: an object written into a string, or none for null.
fn object_in(value: &str) -> Option<String> {
    match serde_json::from_str::<Option<String>>(value).ok()? {
        None => Some("{}".to_string()),
        Some(text) => serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text)
            .is_ok()
            .then_some(text),
    }
}
