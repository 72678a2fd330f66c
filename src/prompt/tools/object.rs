//! Reading `{"name": …, "arguments": {…}}`.

use super::call::{CallOutput, MAX_HELD, MAX_NAME, Progress, step_json};
use super::json::{JsonValue, Step};

/// Reads a JSON object that is a call.
#[derive(Debug, Clone)]
pub(super) struct Object {
    /// Only an object that has arguments is a call.
    needs_arguments: bool,
    place: Place,
    arguments: Arguments,
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

impl Object {
    /// `needs_arguments`: without them it is no call.
    pub(super) fn new(needs_arguments: bool) -> Self {
        Object {
            needs_arguments,
            place: Place::Object,
            arguments: Arguments::Missing,
        }
    }

    /// Takes the next character.
    pub(super) fn step(&mut self, character: char, output: &mut CallOutput) -> Progress {
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
                '}' if *may_close => complete(output),
                _ => Progress::Failed,
            },
            Place::InKey { value, text } => {
                text.push(character);
                match value.step(character) {
                    Step::Inside if text.len() <= MAX_NAME => Progress::Going,
                    Step::Last => {
                        let field = match serde_json::from_str::<String>(text).as_deref() {
                            Ok("name" | "tool_name") if output.name.is_none() => Field::Name,
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
            Place::Value { .. } => self.in_value(character, output),
            Place::AfterValue => match character {
                ',' => self.go(Place::Key { may_close: false }),
                '}' => complete(output),
                _ => Progress::Failed,
            },
            Place::Object | Place::Colon { .. } => Progress::Failed,
        }
    }

    fn go(&mut self, place: Place) -> Progress {
        self.place = place;
        Progress::Going
    }

    fn in_value(&mut self, character: char, output: &mut CallOutput) -> Progress {
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
        let streams = field == Field::Arguments && self.arguments == Arguments::Streaming;
        let step = if streams {
            step_json(value, character, &mut output.pending)
        } else {
            step_json(value, character, text)
        };
        if field == Field::Other {
            text.clear();
        } else if text.len()
            > if field == Field::Name {
                MAX_NAME
            } else {
                MAX_HELD
            }
        {
            return Progress::Failed;
        }
        match step {
            Step::Invalid => return Progress::Failed,
            Step::Inside => {}
            Step::Last | Step::Before => {
                let text = std::mem::take(text);
                self.place = Place::AfterValue;
                if !self.take_field(field, &text, output) {
                    return Progress::Failed;
                }
            }
        }
        let ready = !self.needs_arguments || !output.pending.is_empty();
        output.certain |= ready && output.name.is_some();
        if step == Step::Before {
            self.step(character, output)
        } else {
            Progress::Going
        }
    }

    /// A field's value is complete; false if it cannot be what the field must be.
    fn take_field(&mut self, field: Field, text: &str, output: &mut CallOutput) -> bool {
        match field {
            Field::Other => true,
            Field::Name => match serde_json::from_str::<String>(text) {
                Ok(name) if !name.is_empty() => {
                    output.name = Some(name);
                    true
                }
                _ => false,
            },
            Field::Arguments if self.arguments == Arguments::Whole => match object_in(text) {
                Some(object) => {
                    output.pending = object;
                    true
                }
                None => false,
            },
            Field::Arguments => true,
        }
    }
}

/// At the object's end: without a name, or without arguments where they are needed, it was no call.
fn complete(output: &CallOutput) -> Progress {
    if output.certain {
        Progress::Complete
    } else {
        Progress::Failed
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
