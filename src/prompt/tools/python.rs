//! Calls as Python writes them: `name(key=value, …)`.

use super::call::{CallOutput, MAX_NAME, Progress, push_escaped};
use super::declared::DeclaredTools;
use super::json::Step;
use super::literal::{Dialect, Literal};

/// Reads one call with keyword arguments, or with arguments by position where the declared tool says
/// what they are.
#[derive(Debug, Clone, Default)]
pub(super) struct PythonReader {
    place: Place,
    name: String,
    /// Arguments so far.
    count: usize,
}

#[derive(Debug, Clone, Default)]
enum Place {
    /// The name, with dots.
    #[default]
    Name,
    /// Before an argument or the end.
    Argument,
    /// A key, or a value without one that is a word.
    Word(String),
    /// Behind a key.
    Equals(String),
    Value(Box<Literal>),
    AfterValue,
}

impl PythonReader {
    pub(super) fn step(
        &mut self,
        character: char,
        declared: &DeclaredTools,
        output: &mut CallOutput,
    ) -> Progress {
        let begins_word = character.is_alphabetic() || character == '_';
        match &mut self.place {
            Place::Name if character == '(' && !self.name.is_empty() => {
                // A namespace may precede the name.
                let last = self.name.rsplit('.').next().unwrap_or_default();
                if !declared.knows(&self.name) && !last.is_empty() {
                    self.name = last.to_owned();
                }
                output.name = Some(self.name.clone());
                self.go(Place::Argument)
            }
            Place::Name => {
                let inside =
                    !self.name.is_empty() && (character.is_numeric() || ".-".contains(character));
                if !(begins_word || inside) || self.name.len() > MAX_NAME {
                    return Progress::Failed;
                }
                self.name.push(character);
                Progress::Going
            }
            Place::Argument | Place::Equals(_) | Place::AfterValue if character.is_whitespace() => {
                Progress::Going
            }
            Place::Argument | Place::AfterValue if character == ')' => {
                output.certain = true;
                output
                    .pending
                    .push_str(if self.count == 0 { "{}" } else { "}" });
                Progress::Complete
            }
            Place::Argument if begins_word => self.go(Place::Word(character.to_string())),
            Place::Argument => match self.begin_positional(declared, output) {
                true => self.in_value(character, output),
                false => Progress::Failed,
            },
            Place::Word(word) => {
                if begins_word || character.is_numeric() {
                    word.push(character);
                    return if word.len() > MAX_NAME {
                        Progress::Failed
                    } else {
                        Progress::Going
                    };
                }
                let word = std::mem::take(word);
                self.place = Place::Equals(word);
                self.step(character, declared, output)
            }
            Place::Equals(word) if character == '=' => {
                let word = std::mem::take(word);
                self.begin_value(&word, output);
                output.certain = true;
                Progress::Going
            }
            Place::Equals(word) => {
                // `True` by position, for example.
                let word = std::mem::take(word);
                if !self.begin_positional(declared, output) {
                    return Progress::Failed;
                }
                for character in word.chars() {
                    if self.in_value(character, output) == Progress::Failed {
                        return Progress::Failed;
                    }
                }
                self.in_value(character, output)
            }
            Place::Value(_) => self.in_value(character, output),
            Place::AfterValue if character == ',' => self.go(Place::Argument),
            Place::AfterValue => Progress::Failed,
        }
    }

    fn go(&mut self, place: Place) -> Progress {
        self.place = place;
        Progress::Going
    }

    fn begin_positional(&mut self, declared: &DeclaredTools, output: &mut CallOutput) -> bool {
        match declared.parameter(&self.name, self.count) {
            Some(key) => {
                self.begin_value(key, output);
                true
            }
            None => false,
        }
    }

    fn begin_value(&mut self, key: &str, output: &mut CallOutput) {
        output
            .pending
            .push_str(if self.count == 0 { "{\"" } else { ", \"" });
        key.chars()
            .for_each(|character| push_escaped(character, &mut output.pending));
        output.pending.push_str("\": ");
        self.count += 1;
        self.place = Place::Value(Box::new(Literal::new(Dialect::Python)));
    }

    fn in_value(&mut self, character: char, output: &mut CallOutput) -> Progress {
        let Place::Value(literal) = &mut self.place else {
            return Progress::Failed;
        };
        match literal.step(character, &mut output.pending) {
            Step::Inside => Progress::Going,
            Step::Last => self.go(Place::AfterValue),
            Step::Before => {
                self.place = Place::AfterValue;
                match character {
                    ',' => self.go(Place::Argument),
                    ')' => {
                        output.certain = true;
                        output.pending.push('}');
                        Progress::Complete
                    }
                    _ if character.is_whitespace() => Progress::Going,
                    _ => Progress::Failed,
                }
            }
            Step::Invalid => Progress::Failed,
        }
    }
}
