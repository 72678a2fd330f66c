//! Separating `<think>…</think>` from the answer.

/// The tag that opens reasoning.
pub(super) const OPEN: &str = "<think>";
/// The tag that closes it.
pub(super) const CLOSE: &str = "</think>";

/// Newlines held back at the borders of reasoning, at most.
const MAX_HELD_NEWLINES: usize = 256;
/// White space that may come before `<think>`, at most.
const MAX_LEADING_SPACE: usize = 64;

/// Which side of the tags a character is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Reasoning,
    Answer,
}

/// Splits a model's output into reasoning and answer, character by character (so that the result cannot
/// depend on how the output is cut into pieces).
///
/// Reasoning is opened by the prompt or by a `<think>` that nothing but white space precedes; any other
/// `<think>` is text. Newlines next to the tags belong to the markup: templates write them again when
/// the conversation is rendered. Reasoning that is never closed lasts to the end of the output.
#[derive(Debug, Clone)]
pub(super) struct ReasoningSplitter {
    state: State,
    /// Text whose meaning is not known yet: white space and the beginning of a tag.
    held: String,
    /// Newlines at the end of the reasoning so far.
    newlines: usize,
    /// Reasoning text has been given out.
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Inside,
    /// Newlines between `</think>` and the answer.
    Gap,
    Answer,
}

impl ReasoningSplitter {
    /// `open`: the prompt ends inside reasoning.
    pub(super) fn new(open: bool) -> Self {
        let state = if open { State::Inside } else { State::Start };
        ReasoningSplitter {
            state,
            held: String::new(),
            newlines: 0,
            begun: false,
        }
    }

    /// For output without reasoning: all is answer.
    pub(super) fn off() -> Self {
        ReasoningSplitter {
            state: State::Answer,
            held: String::new(),
            newlines: 0,
            begun: false,
        }
    }

    /// Takes the next character and tells of all text that is now certain.
    pub(super) fn step(&mut self, character: char, out: &mut impl FnMut(Side, char)) {
        match self.state {
            State::Answer => out(Side::Answer, character),
            State::Gap => {
                if character != '\n' {
                    self.state = State::Answer;
                    out(Side::Answer, character);
                }
            }
            State::Start => {
                self.held.push(character);
                let tag = self.held.trim_start();
                if tag == OPEN {
                    self.held.clear();
                    self.state = State::Inside;
                } else if !OPEN.starts_with(tag) || self.held.len() > MAX_LEADING_SPACE {
                    self.state = State::Answer;
                    for character in std::mem::take(&mut self.held).chars() {
                        out(Side::Answer, character);
                    }
                }
            }
            State::Inside => self.inside(character, out),
        }
    }

    fn inside(&mut self, character: char, out: &mut impl FnMut(Side, char)) {
        self.held.push(character);
        if self.held == CLOSE {
            self.held.clear();
            self.newlines = 0;
            self.state = State::Gap;
            return;
        }
        if CLOSE.starts_with(self.held.as_str()) {
            return;
        }
        // The tag begins with `<` and has no other: only the last character can begin it anew.
        let mut held = std::mem::take(&mut self.held);
        if held.len() > 1 && character == '<' {
            held.pop();
            self.held.push('<');
        }
        for character in held.chars() {
            self.reason(character, out);
        }
    }

    fn reason(&mut self, character: char, out: &mut impl FnMut(Side, char)) {
        if character == '\n' {
            if self.begun {
                self.newlines += 1;
                if self.newlines > MAX_HELD_NEWLINES {
                    self.newlines -= 1;
                    out(Side::Reasoning, '\n');
                }
            }
            return;
        }
        for _ in 0..std::mem::take(&mut self.newlines) {
            out(Side::Reasoning, '\n');
        }
        self.begun = true;
        out(Side::Reasoning, character);
    }

    /// The output is complete: text that was held back is what it looks like.
    pub(super) fn finish(&mut self, out: &mut impl FnMut(Side, char)) {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Inside => {
                for character in held.chars() {
                    self.reason(character, out);
                }
            }
            State::Start | State::Gap | State::Answer => {
                for character in held.chars() {
                    out(Side::Answer, character);
                }
            }
        }
    }
}
