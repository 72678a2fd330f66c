//! Arguments between tags, a pair of them for each parameter, as Qwen3-Coder, GLM and MiniMax write them.

use super::call::{CallOutput, MAX_HELD, MAX_NAME, Progress, push_escaped};
use super::declared::{DeclaredTools, Kinds};
use super::json::{JsonValue, Step};
use super::literal::python_to_json;
use super::matching::Until;

/// The tags of a format.
#[derive(Debug)]
pub(super) struct Parameters {
    /// Opens a parameter; its key follows.
    pub(super) open: &'static str,
    /// What may follow the key, and what it says of the value.
    pub(super) key_ends: &'static [(&'static str, Typing)],
    /// Opens the value, after white space. Empty: it follows the key at once.
    pub(super) value_open: &'static str,
    pub(super) value_end: &'static str,
    /// Another pair of marks around a value: the opening one, and the closing one with `value_end`.
    pub(super) quoted: Option<(&'static str, &'static str)>,
    /// A newline at a value's beginning or end is markup.
    pub(super) newlines: bool,
    /// Follows the last parameter.
    pub(super) end: &'static str,
}

impl Parameters {
    pub(super) fn marks(&self) -> impl Iterator<Item = &'static str> {
        let keys = self.key_ends.iter().map(|(end, _)| *end);
        let quotes = self
            .quoted
            .into_iter()
            .flat_map(|(open, close)| [open, close]);
        keys.chain(quotes)
            .chain([self.open, self.value_open, self.value_end, self.end])
    }
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Typing {
    /// What the tool's schema says.
    Schema,
    /// A string.
    Text,
    /// JSON.
    Json,
    /// JSON of the type of this name.
    Typed(&'static str),
}

/// Reads the parameters of one call and writes them as one JSON object.
#[derive(Debug, Clone)]
pub(super) struct ParametersReader {
    tags: &'static Parameters,
    place: Place,
    count: usize,
}

#[derive(Debug, Clone)]
enum Place {
    /// Before a parameter or the end; the beginning of a tag.
    Between(String),
    Key(Until, String),
    /// What must still come of the tag that opens the value.
    ValueTag(&'static str, Kinds),
    /// The beginning of what may be the quoting mark.
    MaybeQuoted(String, Kinds),
    Value(Box<ValueReader>),
}

impl ParametersReader {
    /// `at_key`: the first parameter's opening tag was read already.
    pub(super) fn new(tags: &'static Parameters, at_key: bool) -> Self {
        let place = if at_key {
            Place::Key(Until::default(), String::new())
        } else {
            Place::Between(String::new())
        };
        ParametersReader {
            tags,
            place,
            count: 0,
        }
    }

    pub(super) fn step(
        &mut self,
        character: char,
        declared: &DeclaredTools,
        output: &mut CallOutput,
    ) -> Progress {
        let tags = self.tags;
        match &mut self.place {
            Place::Between(tag) => {
                if tag.is_empty() && character.is_whitespace() {
                    return Progress::Going;
                }
                tag.push(character);
                if tag == tags.open {
                    self.go(Place::Key(Until::default(), String::new()))
                } else if tag == tags.end {
                    output
                        .pending
                        .push_str(if self.count == 0 { "{}" } else { "}" });
                    Progress::Complete
                } else if tags.open.starts_with(tag.as_str()) || tags.end.starts_with(tag.as_str())
                {
                    Progress::Going
                } else {
                    Progress::Failed
                }
            }
            Place::Key(until, key) => {
                let ends: Vec<&str> = tags.key_ends.iter().map(|(end, _)| *end).collect();
                let found = until.step(character, &ends, |character| key.push(character));
                let Some(index) = found else {
                    return if key.len() > MAX_NAME || key.contains('\n') {
                        Progress::Failed
                    } else {
                        Progress::Going
                    };
                };
                let key = key.trim();
                let kinds = match tags.key_ends[index].1 {
                    Typing::Schema => {
                        declared.kinds(output.name.as_deref().unwrap_or_default(), key)
                    }
                    Typing::Text => Kinds::STRING,
                    Typing::Json | Typing::Typed(_) => Kinds::JSON,
                };
                if key.is_empty() {
                    return Progress::Failed;
                }
                output.certain = true;
                output
                    .pending
                    .push_str(if self.count == 0 { "{\"" } else { ", \"" });
                key.chars()
                    .for_each(|character| push_escaped(character, &mut output.pending));
                output.pending.push_str("\": ");
                self.count += 1;
                if tags.value_open.is_empty() {
                    self.begin_value(kinds, output)
                } else {
                    self.go(Place::ValueTag(tags.value_open, kinds))
                }
            }
            Place::ValueTag(rest, _) if *rest == tags.value_open && character.is_whitespace() => {
                Progress::Going
            }
            Place::ValueTag(rest, kinds) => match rest.strip_prefix(character) {
                Some("") => {
                    let kinds = *kinds;
                    self.begin_value(kinds, output)
                }
                Some(remaining) => {
                    *rest = remaining;
                    Progress::Going
                }
                None => Progress::Failed,
            },
            Place::MaybeQuoted(text, kinds) => {
                text.push(character);
                let (text, kinds) = (text.clone(), *kinds);
                let (open, close) = tags.quoted.unwrap_or_default();
                if text == open {
                    let value = ValueReader::new(kinds, close, false, output);
                    return self.go(Place::Value(Box::new(value)));
                }
                if open.starts_with(text.as_str()) {
                    return Progress::Going;
                }
                let value = ValueReader::new(kinds, tags.value_end, tags.newlines, output);
                self.place = Place::Value(Box::new(value));
                let mut progress = Progress::Going;
                for character in text.chars() {
                    progress = self.step(character, declared, output);
                }
                progress
            }
            Place::Value(value) => {
                if value.step(character, output) {
                    self.go(Place::Between(String::new()))
                } else {
                    Progress::Going
                }
            }
        }
    }

    fn go(&mut self, place: Place) -> Progress {
        self.place = place;
        Progress::Going
    }

    fn begin_value(&mut self, kinds: Kinds, output: &mut CallOutput) -> Progress {
        let place = if self.tags.quoted.is_some() {
            Place::MaybeQuoted(String::new(), kinds)
        } else {
            let (end, newlines) = (self.tags.value_end, self.tags.newlines);
            Place::Value(Box::new(ValueReader::new(kinds, end, newlines, output)))
        };
        self.go(place)
    }
}

/// Reads one value up to its closing tag.
#[derive(Debug, Clone)]
struct ValueReader {
    end: &'static str,
    until: Until,
    newlines: bool,
    /// Nothing of it was read yet.
    fresh: bool,
    /// A newline that belongs to the value only if the value goes on.
    newline_due: bool,
    content: Content,
}

/// What the value turns out to be.
#[derive(Debug, Clone)]
enum Content {
    /// A string, which is given out as it comes.
    Text,
    /// Not known before its end, or before it shows that it can only be a string.
    Held {
        kinds: Kinds,
        text: String,
        /// As JSON, as long as it can be some.
        json: Option<JsonValue>,
    },
}

impl ValueReader {
    fn new(kinds: Kinds, end: &'static str, newlines: bool, output: &mut CallOutput) -> Self {
        let content = if kinds == Kinds::STRING {
            output.pending.push('"');
            Content::Text
        } else {
            Content::Held {
                kinds,
                text: String::new(),
                json: Some(JsonValue::new()),
            }
        };
        ValueReader {
            end,
            until: Until::default(),
            newlines,
            fresh: true,
            newline_due: false,
            content,
        }
    }

    /// Takes the next character; true if the value is complete.
    fn step(&mut self, character: char, output: &mut CallOutput) -> bool {
        let ValueReader {
            end,
            until,
            newlines,
            fresh,
            newline_due,
            content,
        } = self;
        let mut take = |character: char, content: &mut Content, output: &mut CallOutput| {
            let first = std::mem::take(fresh);
            if *newlines && character == '\n' {
                if first {
                    return;
                }
                if !*newline_due {
                    *newline_due = true;
                    return;
                }
            } else if std::mem::take(newline_due) {
                content.take('\n', output);
            }
            content.take(character, output);
        };
        // In a string of JSON's the closing tag is a part of the string.
        if until.is_empty() && content.in_inner_string() {
            take(character, content, output);
            return false;
        }
        let found = until.step(character, &[end], |character| {
            take(character, content, output);
        });
        if found.is_some() {
            content.finish(output);
        }
        found.is_some()
    }
}

impl Content {
    /// In a list or an object as JSON, in one of its strings.
    fn in_inner_string(&self) -> bool {
        let Content::Held {
            json: Some(json), ..
        } = self
        else {
            return false;
        };
        json.in_inner_string()
    }

    fn take(&mut self, character: char, output: &mut CallOutput) {
        let Content::Held { kinds, text, json } = self else {
            push_escaped(character, &mut output.pending);
            return;
        };
        text.push(character);
        let blank = character.is_whitespace();
        let may_be_json = match json {
            // Behind a complete value only white space may follow.
            Some(value) if !(value.is_done() && blank) => match value.step(character) {
                Step::Inside | Step::Last => true,
                // The end of a number.
                Step::Before => blank,
                Step::Invalid => false,
            },
            Some(_) => true,
            None => false,
        };
        if !may_be_json {
            *json = None;
        }
        let is_string = kinds.allow_strings()
            && (text.trim_start().starts_with('"')
                || (!may_be_json && !WORDS.iter().any(|word| word.starts_with(text.trim()))));
        if is_string || text.len() > MAX_HELD {
            output.pending.push('"');
            text.chars()
                .for_each(|character| push_escaped(character, &mut output.pending));
            *self = Content::Text;
        }
    }

    /// The value is complete.
    fn finish(&mut self, output: &mut CallOutput) {
        let Content::Held { kinds, text, .. } = self else {
            output.pending.push('"');
            return;
        };
        match json_of(text.trim(), *kinds) {
            Some(json) => output.pending.push_str(&json),
            None => {
                output.pending.push('"');
                text.chars()
                    .for_each(|character| push_escaped(character, &mut output.pending));
                output.pending.push('"');
            }
        }
    }
}

/// Python's words, which models write for JSON's.
const WORDS: [&str; 3] = ["True", "False", "None"];

/// A value that is no string, as JSON; None if it is a string after all.
fn json_of(text: &str, kinds: Kinds) -> Option<String> {
    let allowed = |json: &str| {
        serde_json::from_str::<serde_json::Value>(json)
            .is_ok_and(|value| !kinds.allow_strings() || kinds.allow(&value))
    };
    if allowed(text) {
        return Some(text.to_owned());
    }
    python_to_json(text)
        .or_else(|| {
            let word = WORDS.iter().position(|word| *word == text)?;
            Some(["true", "false", "null"][word].to_owned())
        })
        .filter(|json| allowed(json))
}
