//! Values in notations that are nearly JSON, rewritten as JSON while they come.

use super::call::{MAX_NAME, push_escaped};
use super::json::Step;
use super::matching::Until;

/// Lists and objects in each other, at most: as many as in JSON.
const MAX_DEPTH: usize = 127;
/// What opens and closes a string in Gemma's notation.
pub(super) const GEMMA_QUOTE: &str = "<|\"|>";

/// A notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Python's literals: lists, dictionaries, strings in either quotes, numbers, `True`, `None`; JSON's
    /// words, too.
    Python,
    /// Gemma 4: keys are bare words, strings stand between `<|"|>`, without escapes.
    Gemma,
}

/// One value that arrives character by character.
#[derive(Debug, Clone)]
pub(super) struct Literal {
    dialect: Dialect,
    state: State,
    /// The open lists and objects, by what closes them.
    open: Vec<char>,
    /// A comma was read; it is written when another element follows.
    comma_due: bool,
}

#[derive(Debug, Clone)]
enum State {
    /// A value must begin, or its list may end.
    Value,
    /// A key must begin, or its object may end.
    Key,
    Colon,
    AfterValue,
    Word {
        text: String,
        is_key: bool,
    },
    /// In the mark that opens a string: what must still come of it.
    Opening {
        rest: &'static str,
        is_key: bool,
    },
    Text {
        form: Form,
        is_key: bool,
    },
}

/// How a string is written.
#[derive(Debug, Clone)]
enum Form {
    /// After the first quotes: a second one ends the string, a third one opens a long string.
    Quote {
        quote: char,
        seen: u8,
    },
    Python(PythonText),
    Gemma(Until),
}

/// Inside a string of Python's.
#[derive(Debug, Clone)]
struct PythonText {
    quote: char,
    /// Three quotes end it.
    long: bool,
    /// Quotes in a row in a long string.
    quotes: u8,
    escape: Escape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    /// Hexadecimal digits that must still come, and the number so far.
    Hex {
        left: u8,
        code: u32,
    },
}

impl Literal {
    pub(super) fn new(dialect: Dialect) -> Self {
        Literal {
            dialect,
            state: State::Value,
            open: Vec::new(),
            comma_due: false,
        }
    }

    /// Takes the next character and writes what is certain as JSON. White space before the value is
    /// part of it.
    pub(super) fn step(&mut self, character: char, written: &mut String) -> Step {
        match &mut self.state {
            State::Value | State::Key | State::Colon | State::AfterValue
                if character.is_whitespace() =>
            {
                Step::Inside
            }
            State::Value => self.begin_value(character, written),
            State::Key => match character {
                '}' => self.close(character, written),
                _ => self.begin_text(character, true, written),
            },
            State::Colon if character == ':' => {
                written.push_str(": ");
                self.go(State::Value)
            }
            State::Colon => Step::Invalid,
            State::AfterValue => match (character, self.open.last()) {
                (',', Some(closing)) => {
                    let next = if *closing == '}' {
                        State::Key
                    } else {
                        State::Value
                    };
                    self.comma_due = true;
                    self.go(next)
                }
                _ => self.close(character, written),
            },
            State::Word { .. } => self.in_word(character, written),
            State::Opening { rest, is_key } => {
                let is_key = *is_key;
                match rest.strip_prefix(character) {
                    Some("") => {
                        self.separate(written);
                        written.push('"');
                        let form = Form::Gemma(Until::default());
                        self.go(State::Text { form, is_key })
                    }
                    Some(rest) => self.go(State::Opening { rest, is_key }),
                    None => Step::Invalid,
                }
            }
            State::Text { .. } => self.in_text(character, written),
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::Inside
    }

    fn begin_value(&mut self, character: char, written: &mut String) -> Step {
        let closing = match character {
            '[' => ']',
            '{' => '}',
            ']' if self.open.last() == Some(&']') => return self.close(character, written),
            _ => return self.begin_text(character, false, written),
        };
        if self.open.len() >= MAX_DEPTH {
            return Step::Invalid;
        }
        self.separate(written);
        written.push(character);
        self.open.push(closing);
        self.go(if closing == '}' {
            State::Key
        } else {
            State::Value
        })
    }

    /// A string or a word begins.
    fn begin_text(&mut self, character: char, is_key: bool, written: &mut String) -> Step {
        let form = match (self.dialect, character) {
            // Gemma's own strings stand in marks; JSON's are taken, too.
            (_, '"') | (Dialect::Python, '\'') => Form::Quote {
                quote: character,
                seen: 1,
            },
            (Dialect::Gemma, '<') => {
                let rest = GEMMA_QUOTE;
                self.state = State::Opening { rest, is_key };
                return self.step(character, written);
            }
            _ => {
                self.separate(written);
                self.state = State::Word {
                    text: String::new(),
                    is_key,
                };
                return self.in_word(character, written);
            }
        };
        self.separate(written);
        written.push('"');
        self.go(State::Text { form, is_key })
    }

    fn separate(&mut self, written: &mut String) {
        if std::mem::take(&mut self.comma_due) {
            written.push_str(", ");
        }
    }

    fn close(&mut self, character: char, written: &mut String) -> Step {
        if self.open.last() != Some(&character) {
            return Step::Invalid;
        }
        self.open.pop();
        self.comma_due = false;
        written.push(character);
        self.value_done()
    }

    fn value_done(&mut self) -> Step {
        self.state = State::AfterValue;
        if self.open.is_empty() {
            Step::Last
        } else {
            Step::Inside
        }
    }

    fn in_word(&mut self, character: char, written: &mut String) -> Step {
        let State::Word { text, is_key } = &mut self.state else {
            return Step::Invalid;
        };
        let goes_on = match self.dialect {
            Dialect::Python => character.is_alphanumeric() || "_.+-".contains(character),
            Dialect::Gemma if *is_key => !":{}[]<\n".contains(character),
            Dialect::Gemma => !",{}[]<\n".contains(character),
        };
        if goes_on {
            text.push(character);
            return if text.len() <= MAX_NAME {
                Step::Inside
            } else {
                Step::Invalid
            };
        }
        let is_key = *is_key;
        let Some(json) = self.dialect.word(text.trim(), is_key) else {
            return Step::Invalid;
        };
        written.push_str(&json);
        if is_key {
            self.state = State::Colon;
            return self.step(character, written);
        }
        if self.value_done() == Step::Last {
            return Step::Before;
        }
        self.step(character, written)
    }

    fn in_text(&mut self, character: char, written: &mut String) -> Step {
        let State::Text { form, is_key } = &mut self.state else {
            return Step::Invalid;
        };
        let is_key = *is_key;
        let done = match form {
            Form::Quote { quote, seen } if character == *quote => {
                *seen += 1;
                if *seen == 3 {
                    *form = Form::Python(PythonText::new(character, true));
                }
                return Step::Inside;
            }
            Form::Quote { seen: 2, .. } => {
                // It was the empty string, and this character is behind it.
                written.push('"');
                if is_key {
                    self.state = State::Colon;
                } else if self.value_done() == Step::Last {
                    return Step::Before;
                }
                return self.step(character, written);
            }
            Form::Quote { quote, .. } => {
                let mut text = PythonText::new(*quote, false);
                let done = text.step(character, written);
                *form = Form::Python(text);
                done
            }
            Form::Python(text) => text.step(character, written),
            Form::Gemma(until) => {
                let write = |character| push_escaped(character, written);
                Some(until.step(character, &[GEMMA_QUOTE], write).is_some())
            }
        };
        match done {
            None => Step::Invalid,
            Some(false) => Step::Inside,
            Some(true) => {
                written.push('"');
                if is_key {
                    self.go(State::Colon)
                } else {
                    self.value_done()
                }
            }
        }
    }
}

impl PythonText {
    fn new(quote: char, long: bool) -> Self {
        PythonText {
            quote,
            long,
            quotes: 0,
            escape: Escape::None,
        }
    }

    /// Takes the next character; true at the end of the string, None if there is no such string.
    fn step(&mut self, character: char, written: &mut String) -> Option<bool> {
        match (self.escape, character) {
            (Escape::None, '\\') => {
                self.give_quotes(written);
                self.escape = Escape::Begun;
            }
            (Escape::None, _) if character == self.quote => {
                self.quotes += 1;
                if !self.long || self.quotes == 3 {
                    return Some(true);
                }
            }
            (Escape::None, _) => {
                self.give_quotes(written);
                push_escaped(character, written);
            }
            (Escape::Begun, _) => {
                self.escape = Escape::None;
                match character {
                    'n' | 't' | 'r' | 'b' | 'f' | '\\' | '"' => {
                        written.push('\\');
                        written.push(character);
                    }
                    '\'' | '/' => written.push(character),
                    // A line that goes on.
                    '\n' => {}
                    '0' => written.push_str("\\u0000"),
                    'x' => self.escape = Escape::Hex { left: 2, code: 0 },
                    'u' => self.escape = Escape::Hex { left: 4, code: 0 },
                    'U' => self.escape = Escape::Hex { left: 8, code: 0 },
                    // Python keeps the backslash of what is no escape.
                    _ => {
                        written.push_str("\\\\");
                        push_escaped(character, written);
                    }
                }
            }
            (Escape::Hex { left, code }, _) => {
                let code = code.checked_mul(16)? + character.to_digit(16)?;
                self.escape = Escape::Hex {
                    left: left - 1,
                    code,
                };
                if left == 1 {
                    self.escape = Escape::None;
                    match char::from_u32(code) {
                        Some(character) => push_escaped(character, written),
                        // Half of a pair, as JSON writes characters beyond U+FFFF.
                        None if code <= 0xffff => written.push_str(&format!("\\u{code:04x}")),
                        None => return None,
                    }
                }
            }
        }
        Some(false)
    }

    fn give_quotes(&mut self, written: &mut String) {
        for _ in 0..std::mem::take(&mut self.quotes) {
            push_escaped(self.quote, written);
        }
    }
}

impl Dialect {
    /// A word as JSON; None if it is none.
    fn word(self, word: &str, is_key: bool) -> Option<String> {
        let json = match word {
            "True" | "true" => "true",
            "False" | "false" => "false",
            "None" | "null" => "null",
            _ => word,
        };
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(json).is_ok();
        match self {
            _ if word.is_empty() => None,
            _ if is_json && !is_key => Some(json.to_owned()),
            Dialect::Python if !is_json => None,
            _ => Some(serde_json::Value::from(word).to_string()),
        }
    }
}

/// A whole value in Python's notation as JSON.
pub(super) fn python_to_json(text: &str) -> Option<String> {
    let (mut literal, mut written) = (Literal::new(Dialect::Python), String::new());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        match literal.step(character, &mut written) {
            Step::Inside => {}
            Step::Last => return rest.as_str().trim().is_empty().then_some(written),
            Step::Before | Step::Invalid => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(dialect: Dialect, text: &str) -> Option<String> {
        let (mut literal, mut written) = (Literal::new(dialect), String::new());
        for character in format!("{text}\n").chars() {
            match literal.step(character, &mut written) {
                Step::Inside => {}
                Step::Last | Step::Before => return Some(written),
                Step::Invalid => return None,
            }
        }
        None
    }

    #[test]
    fn python() {
        for (python, expected) in [
            ("'a'", r#""a""#),
            ("''", r#""""#),
            (r#""it's""#, r#""it's""#),
            (r#"'say "hi"'"#, r#""say \"hi\"""#),
            ("'''a'b''c'''", r#""a'b''c""#),
            ("\"\"\"two\nlines\"\"\"", r#""two\nlines""#),
            (r"'\n\t\\\'\x41\u00fc\U0001f642\d'", r#""\n\t\\'Aü🙂\\d""#),
            (r"'\ud83d\ude42'", r#""\ud83d\ude42""#),
            ("-1.5e3", "-1.5e3"),
            ("True", "true"),
            ("[1, None, [],]", "[1, null, []]"),
            (
                "{'a': {'b': [False]}, 1: 2}",
                r#"{"a": {"b": [false]}, "1": 2}"#,
            ),
            ("{}", "{}"),
        ] {
            assert_eq!(
                json(Dialect::Python, python).as_deref(),
                Some(expected),
                "{python}"
            );
            assert!(serde_json::from_str::<serde_json::Value>(expected).is_ok());
        }
        for text in [
            "word",
            "1.",
            "[1 2]",
            "{1}",
            "]",
            "f'a'",
            r"'\xzz'",
            r"'\Uffffffff'",
            "'open",
        ] {
            assert_eq!(json(Dialect::Python, text), None, "{text}");
        }
        assert_eq!(json(Dialect::Python, &"[".repeat(200)), None);
    }

    #[test]
    fn gemma() {
        for (gemma, expected) in [
            ("{}", "{}"),
            (r#"{a:<|"|>x "y"<|"|>,b:3}"#, r#"{"a": "x \"y\"", "b": 3}"#),
            (r#"{a:<|"|><|"|>}"#, r#"{"a": ""}"#),
            (
                r#"{l:[<|"|>a<|"|>,{b:1.5}],t:true,n:null}"#,
                r#"{"l": ["a", {"b": 1.5}], "t": true, "n": null}"#,
            ),
            ("{kind:word two}", r#"{"kind": "word two"}"#),
            (r#"{<|"|>a b<|"|>:1}"#, r#"{"a b": 1}"#),
        ] {
            assert_eq!(
                json(Dialect::Gemma, gemma).as_deref(),
                Some(expected),
                "{gemma}"
            );
        }
        for text in ["{a}", "{:1}", "{a:<x>}", "}"] {
            assert_eq!(json(Dialect::Gemma, text), None, "{text}");
        }
    }
}
