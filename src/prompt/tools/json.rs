//! Following one JSON value, character by character.

/// Arrays and objects in each other, at most (as serde_json, which clients of this kind use, allows).
const MAX_DEPTH: usize = 127;

/// A checker for one JSON value (RFC 8259) that arrives character by character.
///
/// White space before the value is part of it here; what follows it is not.
#[derive(Debug, Clone)]
pub(super) struct JsonValue {
    state: State,
    /// The open arrays and objects.
    open: Vec<Container>,
}

/// What a character did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It belongs to the value, which goes on.
    Inside,
    /// It is the value's last character.
    Last,
    /// The value was complete before it (only a number can end so).
    Before,
    /// No JSON value continues with it.
    Invalid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A value must begin. In an array's first place it may also end.
    Value {
        may_close: bool,
    },
    /// A key must begin. In an object's first place it may also end.
    Key {
        may_close: bool,
    },
    Colon,
    /// A value in a container is complete: comma or end.
    AfterValue,
    Text(TextState),
    /// In `true`, `false` or `null`: what must still come.
    Literal(&'static str),
    Number(NumberState),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TextState {
    is_key: bool,
    escape: Escape,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    /// After a backslash.
    Begun,
    /// In `\u`: digits that must still come.
    Hex(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NumberState {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl JsonValue {
    pub(super) fn new() -> Self {
        JsonValue {
            state: State::Value { may_close: false },
            open: Vec::new(),
        }
    }

    /// The value is complete.
    pub(super) fn is_done(&self) -> bool {
        self.open.is_empty() && matches!(self.state, State::AfterValue)
    }

    /// The next character is in a string, where control characters must be escaped.
    pub(super) fn in_string(&self) -> bool {
        matches!(
            self.state,
            State::Text(TextState {
                escape: Escape::None,
                ..
            })
        )
    }

    /// The next character is in a string that is a part of the value.
    pub(super) fn in_inner_string(&self) -> bool {
        !self.open.is_empty() && self.in_string()
    }

    /// Takes the next character. After anything but [`Step::Inside`] the checker is used up.
    pub(super) fn step(&mut self, character: char) -> Step {
        let space = matches!(character, ' ' | '\t' | '\n' | '\r');
        match self.state {
            State::Value { .. } | State::Key { .. } | State::Colon | State::AfterValue if space => {
                Step::Inside
            }
            State::Value { may_close } => self.begin_value(character, may_close),
            State::Key { may_close } => match character {
                '"' => self.text(true, Escape::None),
                '}' if may_close => self.close(Container::Object),
                _ => Step::Invalid,
            },
            State::Colon if character == ':' => self.go(State::Value { may_close: false }),
            State::Colon => Step::Invalid,
            State::AfterValue => match (character, self.open.last()) {
                (',', Some(Container::Array)) => self.go(State::Value { may_close: false }),
                (',', Some(Container::Object)) => self.go(State::Key { may_close: false }),
                (']', _) => self.close(Container::Array),
                ('}', _) => self.close(Container::Object),
                _ => Step::Invalid,
            },
            State::Text(text) => self.in_text(text, character),
            State::Literal(rest) => match rest.strip_prefix(character) {
                Some("") => self.value_done(),
                Some(rest) => self.go(State::Literal(rest)),
                None => Step::Invalid,
            },
            State::Number(number) => self.in_number(number, character),
        }
    }

    fn go(&mut self, state: State) -> Step {
        self.state = state;
        Step::Inside
    }

    fn text(&mut self, is_key: bool, escape: Escape) -> Step {
        self.go(State::Text(TextState { is_key, escape }))
    }

    fn begin_value(&mut self, character: char, may_close: bool) -> Step {
        match character {
            '{' | '[' if self.open.len() >= MAX_DEPTH => Step::Invalid,
            '{' => {
                self.open.push(Container::Object);
                self.go(State::Key { may_close: true })
            }
            '[' => {
                self.open.push(Container::Array);
                self.go(State::Value { may_close: true })
            }
            ']' if may_close => self.close(Container::Array),
            '"' => self.text(false, Escape::None),
            't' => self.go(State::Literal("rue")),
            'f' => self.go(State::Literal("alse")),
            'n' => self.go(State::Literal("ull")),
            '-' => self.go(State::Number(NumberState::Minus)),
            '0' => self.go(State::Number(NumberState::Zero)),
            '1'..='9' => self.go(State::Number(NumberState::Integer)),
            _ => Step::Invalid,
        }
    }

    fn close(&mut self, container: Container) -> Step {
        if self.open.pop() == Some(container) {
            self.value_done()
        } else {
            Step::Invalid
        }
    }

    /// A value's last character was taken.
    fn value_done(&mut self) -> Step {
        self.state = State::AfterValue;
        if self.open.is_empty() {
            Step::Last
        } else {
            Step::Inside
        }
    }

    fn in_text(&mut self, text: TextState, character: char) -> Step {
        match (text.escape, character) {
            (Escape::None, '"') if text.is_key => self.go(State::Colon),
            (Escape::None, '"') => self.value_done(),
            (Escape::None, '\\') => self.text(text.is_key, Escape::Begun),
            (Escape::None, '\0'..='\x1f') => Step::Invalid,
            (Escape::None, _) => Step::Inside,
            (Escape::Begun, 'u') => self.text(text.is_key, Escape::Hex(4)),
            (Escape::Begun, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => {
                self.text(text.is_key, Escape::None)
            }
            (Escape::Begun, _) => Step::Invalid,
            (Escape::Hex(left), _) if character.is_ascii_hexdigit() => {
                let escape = if left > 1 {
                    Escape::Hex(left - 1)
                } else {
                    Escape::None
                };
                self.text(text.is_key, escape)
            }
            (Escape::Hex(_), _) => Step::Invalid,
        }
    }

    fn in_number(&mut self, number: NumberState, character: char) -> Step {
        use NumberState::*;
        let next = match (number, character) {
            (Minus, '0') => Zero,
            (Minus, '1'..='9') | (Integer, '0'..='9') => Integer,
            (Zero | Integer, '.') => Point,
            (Point | Fraction, '0'..='9') => Fraction,
            (Zero | Integer | Fraction, 'e' | 'E') => Exponent,
            (Exponent, '+' | '-') => ExponentSign,
            (Exponent | ExponentSign | ExponentDigits, '0'..='9') => ExponentDigits,
            (Zero | Integer | Fraction | ExponentDigits, _) => {
                // The number was complete before this character, which belongs to what is around it.
                if self.open.is_empty() {
                    return Step::Before;
                }
                self.state = State::AfterValue;
                return self.step(character);
            }
            _ => return Step::Invalid,
        };
        self.go(State::Number(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The value at the front of a text, if there is a complete one.
    fn value(text: &str) -> Option<&str> {
        let mut checker = JsonValue::new();
        for (position, character) in text.char_indices() {
            match checker.step(character) {
                Step::Inside => {}
                Step::Last => return Some(&text[..position + character.len_utf8()]),
                Step::Before => return Some(&text[..position]),
                Step::Invalid => return None,
            }
        }
        None
    }

    #[test]
    fn values_end_where_they_end() {
        assert_eq!(
            value(r#" {"a": [1, {"b": "\u00e9\"}"}], "c": null} x"#),
            Some(r#" {"a": [1, {"b": "\u00e9\"}"}], "c": null}"#)
        );
        assert_eq!(value("12.5e-3,"), Some("12.5e-3"));
        assert_eq!(value("[]]"), Some("[]"));
        assert_eq!(value("{}}"), Some("{}"));
        assert_eq!(value("true false"), Some("true"));
        assert_eq!(value("\"\u{1f600}\""), Some("\"\u{1f600}\""));
    }

    #[test]
    fn what_is_no_value_is_found_out() {
        for text in [
            "{'a':1}",
            "{a:1}",
            "[1,]",
            "{\"a\":1,}",
            "[01]",
            "1. ",
            "-x",
            "tru ",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "[1 2]",
            "{\"a\" 1}",
            "[}",
            "]",
            "nul}",
        ] {
            assert_eq!(value(text), None, "{text}");
        }
        assert_eq!(value(&"[".repeat(1000)), None);
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in r#"[{}\[\],:"a1e.+\- \\nulltrue0]{0,16}"#) {
            // A delimiter after the text ends numbers; serde_json is asked for the whole text.
            let accepted = value(&format!("{text},")).is_some_and(|found| text[found.len()..].trim().is_empty());
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(accepted, is_json, "{}", text);
        }
    }
}
