//! `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: the format of Hermes, Qwen2.5, Qwen3 and the
//! demo model.

use super::json::{JsonValue, Step};
use crate::prompt::OutputDelta;

/// The tag that opens a call.
pub(in crate::prompt) const OPEN: &str = "<tool_call>";
/// The tag that closes it.
pub(in crate::prompt) const CLOSE: &str = "</tool_call>";

/// Text of a call that is held back while its name is not known, at most, in bytes. A longer one is text.
const MAX_HELD_CALL: usize = 256 * 1024;
/// A name or a key, at most, in bytes of JSON.
const MAX_NAME: usize = 1024;
/// White space held back before the first text of the answer or between calls, at most, in bytes.
const MAX_HELD_SPACE: usize = 1024;
/// How many times in a row text may be read again after an opening tag turned out to open nothing.
const MAX_RESCANS: usize = 8;

/// Finds tool calls in a model's output as it comes, character by character (so that the result cannot
/// depend on how the output is cut into pieces).
///
/// - The name is given out as soon as it is complete, the arguments as raw JSON, byte for byte as the
///   model wrote them. (Two repairs: a raw control character in a string is escaped, and an object that
///   the model wrote into a string is taken out of it.)
/// - Text before, between and after calls is content. White space alone between calls is not, nor is the
///   one newline with which the format sets off a call from text before it: templates write it again.
/// - What looks like a call and is none is given back as content, tags included, as far as nothing of it
///   was given out as a call.
/// - A call that the end of the output cuts off keeps what was given out of it, or is text if its name
///   was not known.
#[derive(Debug, Clone)]
pub(in crate::prompt) struct HermesParser {
    state: State,
    /// Calls begun so far.
    calls: usize,
    /// The beginning of a tag.
    tag: String,
    /// White space that is content only if other text follows.
    space: String,
    /// No text other than white space since the start or the last call.
    fresh: bool,
    /// A call is complete whose closing tag was not seen yet.
    close_due: bool,
    rescans: usize,
}

#[derive(Debug, Clone)]
enum State {
    Text,
    Call(Box<Call>),
    /// After a call's object: its closing tag, another object, or text.
    AfterObject,
}

/// One call being read.
#[derive(Debug, Clone)]
struct Call {
    /// All its text (from the opening tag on, where this is the tag's first object), to give it back.
    raw: String,
    /// Where `raw` is read again after a failure: behind the opening tag.
    rescan_from: usize,
    place: Place,
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
enum Progress {
    Going,
    Complete,
    /// It is no call after all.
    Failed,
}

impl HermesParser {
    pub(in crate::prompt) fn new() -> Self {
        HermesParser {
            state: State::Text,
            calls: 0,
            tag: String::new(),
            space: String::new(),
            fresh: true,
            close_due: false,
            rescans: 0,
        }
    }

    /// Takes the next character and tells of all that is now certain.
    pub(in crate::prompt) fn step(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        match &mut self.state {
            State::Text => self.in_text(character, out),
            State::AfterObject => self.after_object(character, out),
            State::Call(call) => match call.step(character, self.calls, out) {
                Progress::Going => {}
                Progress::Complete => {
                    self.calls += 1;
                    self.rescans = 0;
                    self.space.clear();
                    self.fresh = true;
                    self.close_due = true;
                    self.state = State::AfterObject;
                }
                Progress::Failed => self.give_back(character, out),
            },
        }
    }

    /// The output is complete.
    pub(in crate::prompt) fn finish(&mut self, out: &mut impl FnMut(OutputDelta)) {
        loop {
            match std::mem::replace(&mut self.state, State::Text) {
                State::Call(call) if !call.named => self.reread(*call, out),
                State::Call(_) => {
                    // Cut off: what was given out stays, and the rest of it is no text.
                    self.space.clear();
                    return;
                }
                State::Text | State::AfterObject => break,
            }
        }
        let tag = std::mem::take(&mut self.tag);
        let closes = self.close_due && self.fresh && CLOSE.starts_with(tag.as_str());
        for character in tag.chars().filter(|_| !closes) {
            self.text(character, out);
        }
        if !(self.fresh && self.calls > 0) {
            emit(&std::mem::take(&mut self.space), out);
        }
        self.space.clear();
    }

    fn in_text(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        self.tag.push(character);
        if self.tag == OPEN {
            self.tag.clear();
            self.begin_call(OPEN);
            return;
        }
        if self.close_due && self.tag == CLOSE {
            self.tag.clear();
            self.space.clear();
            self.close_due = false;
            self.fresh = true;
            return;
        }
        if OPEN.starts_with(self.tag.as_str())
            || (self.close_due && CLOSE.starts_with(self.tag.as_str()))
        {
            return;
        }
        // The tags begin with `<` and have no other: only the last character can begin one anew.
        let mut tag = std::mem::take(&mut self.tag);
        if tag.len() > 1 && character == '<' {
            tag.pop();
            self.tag.push('<');
        }
        for character in tag.chars() {
            self.text(character, out);
        }
    }

    /// A character of content.
    fn text(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        if self.fresh && character.is_whitespace() && self.space.len() < MAX_HELD_SPACE {
            self.space.push(character);
            return;
        }
        self.fresh = false;
        emit(&std::mem::take(&mut self.space), out);
        if character == '\n' {
            self.space.push(character);
        } else {
            emit(character.encode_utf8(&mut [0; 4]), out);
        }
    }

    fn begin_call(&mut self, opening: &str) {
        self.state = State::Call(Box::new(Call {
            raw: opening.to_string(),
            rescan_from: opening.len(),
            place: Place::Object,
            named: false,
            arguments: Arguments::Missing,
            pending: String::new(),
        }));
    }

    fn after_object(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        if character.is_whitespace() && self.space.len() < MAX_HELD_SPACE {
            self.space.push(character);
        } else if character == '{' {
            self.begin_call("");
            self.step(character, out);
        } else {
            self.state = State::Text;
            self.in_text(character, out);
        }
    }

    /// The call being read failed at this character.
    fn give_back(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        if let State::Call(mut call) = std::mem::replace(&mut self.state, State::Text) {
            if call.named {
                // Its beginning is given out: it stays a call, and what follows is text.
                self.calls += 1;
                self.space.clear();
                self.fresh = true;
                self.close_due = true;
                self.in_text(character, out);
            } else {
                call.raw.push(character);
                self.reread(*call, out);
            }
        }
    }

    /// Takes the text of what is no call as content; there may be a call in it.
    fn reread(&mut self, call: Call, out: &mut impl FnMut(OutputDelta)) {
        let (opening, rest) = call.raw.split_at(call.rescan_from);
        for character in opening.chars() {
            self.text(character, out);
        }
        self.rescans += 1;
        for character in rest.chars() {
            if self.rescans <= MAX_RESCANS {
                self.step(character, out);
            } else {
                self.text(character, out);
            }
        }
    }
}

impl Call {
    fn step(
        &mut self,
        character: char,
        index: usize,
        out: &mut impl FnMut(OutputDelta),
    ) -> Progress {
        // Until the name is known the call may have to be given back.
        if !self.named {
            if self.raw.len() >= MAX_HELD_CALL {
                return Progress::Failed;
            }
            let progress = self.advance(character, index, out);
            if !matches!(progress, Progress::Failed) && !self.named {
                self.raw.push(character);
            }
            return progress;
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
                            Ok("name") if !self.named => Field::Name,
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
            if !self.take_field(field, &text, index, out) {
                return Progress::Failed;
            }
        }
        self.give_out_arguments(index, out);
        if step == Step::Before {
            self.advance(character, index, out)
        } else {
            Progress::Going
        }
    }

    /// A field's value is complete; false if it cannot be what the field must be.
    fn take_field(
        &mut self,
        field: Field,
        text: &str,
        index: usize,
        out: &mut impl FnMut(OutputDelta),
    ) -> bool {
        match field {
            Field::Other => true,
            Field::Name => match serde_json::from_str::<String>(text) {
                Ok(name) if !name.is_empty() => {
                    out(OutputDelta::ToolCallStart { index, name });
                    self.named = true;
                    self.raw = String::new();
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

    fn give_out_arguments(&mut self, index: usize, out: &mut impl FnMut(OutputDelta)) {
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
            self.give_out_arguments(index, out);
        }
        Progress::Complete
    }
}

fn emit(text: &str, out: &mut impl FnMut(OutputDelta)) {
    if !text.is_empty() {
        out(OutputDelta::Content(text.to_string()));
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
