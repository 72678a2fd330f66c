//! Separating reasoning from the answer.

use super::tools::Until;

/// A family's way of setting reasoning off.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ReasoningFormat {
    /// Its name in the configuration.
    pub(super) name: &'static str,
    pub(super) open: &'static str,
    pub(super) close: &'static str,
    /// The closing tag is found in no other kind of template.
    pub(super) close_tells: bool,
}

/// All of them. The last one is the most general.
pub(super) const FORMATS: &[&ReasoningFormat] = &[
    &ReasoningFormat {
        name: "mistral",
        open: "[THINK]",
        close: "[/THINK]",
        close_tells: true,
    },
    &ReasoningFormat {
        name: "cohere",
        open: "<|START_THINKING|>",
        close: "<|END_THINKING|>",
        close_tells: true,
    },
    &ReasoningFormat {
        name: "gemma4",
        open: "<|channel>thought\n",
        close: "<channel|>",
        close_tells: true,
    },
    &ReasoningFormat {
        name: "kimi_k3",
        open: "<|open|>think<|sep|>",
        close: "<|close|>think<|sep|>",
        close_tells: true,
    },
    &ReasoningFormat {
        name: "solar",
        open: "<|think|>",
        close: "<|end|>",
        close_tells: false,
    },
    &ReasoningFormat {
        name: "seed",
        open: "<seed:think>",
        close: "</seed:think>",
        close_tells: true,
    },
    &ReasoningFormat {
        name: "granite",
        open: "Here is my thought process:",
        close: "Here is my response:",
        close_tells: true,
    },
    &ReasoningFormat {
        name: "apriel",
        open: "Here are my reasoning steps:",
        close: "[BEGIN FINAL RESPONSE]",
        close_tells: true,
    },
    THINK,
];

/// `<think>…</think>`: most models.
pub(super) const THINK: &ReasoningFormat = &ReasoningFormat {
    name: "think",
    open: "<think>",
    close: "</think>",
    close_tells: true,
};

impl ReasoningFormat {
    /// The prompt ends inside reasoning.
    pub(super) fn is_open_in(&self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open.trim_end())
    }
}

/// Newlines held back at the borders of reasoning, at most.
const MAX_HELD_NEWLINES: usize = 256;
/// White space that may come before the opening tag, at most.
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
/// Reasoning is opened by the prompt or by a tag that nothing but white space precedes (also by both); any
/// other opening tag is text. Newlines next to the tags belong to the markup: templates write them again
/// when the conversation is rendered. Reasoning that is never closed lasts to the end of the output.
#[derive(Debug, Clone)]
pub(super) struct ReasoningSplitter {
    format: &'static ReasoningFormat,
    state: State,
    /// The beginning of the closing tag.
    until: Until,
    /// Text whose meaning is not known yet: white space and the beginning of the opening tag.
    held: String,
    /// Newlines at the end of the reasoning so far.
    newlines: usize,
    /// Reasoning text has been given out.
    begun: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// At the start of reasoning that the prompt opened: the model may open it once more.
    Opened,
    Inside,
    /// Newlines between the closing tag and the answer.
    Gap,
    Answer,
}

impl ReasoningSplitter {
    /// `open`: the prompt ends inside reasoning.
    pub(super) fn new(format: &'static ReasoningFormat, open: bool) -> Self {
        ReasoningSplitter {
            format,
            state: if open { State::Opened } else { State::Start },
            until: Until::default(),
            held: String::new(),
            newlines: 0,
            begun: false,
        }
    }

    /// For output without reasoning: all is answer.
    pub(super) fn off() -> Self {
        ReasoningSplitter {
            state: State::Answer,
            ..ReasoningSplitter::new(THINK, false)
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
            State::Start | State::Opened => {
                self.held.push(character);
                let tag = self.held.trim_start();
                if tag == self.format.open {
                    self.held.clear();
                    self.state = State::Inside;
                } else if !self.format.open.starts_with(tag) || self.held.len() > MAX_LEADING_SPACE
                {
                    self.release(out);
                }
            }
            State::Inside => self.inside(character, out),
        }
    }

    /// What is held back at the start is no opening tag.
    fn release(&mut self, out: &mut impl FnMut(Side, char)) {
        let opened = self.state == State::Opened;
        self.state = if opened { State::Inside } else { State::Answer };
        for character in std::mem::take(&mut self.held).chars() {
            self.step(character, out);
        }
    }

    fn inside(&mut self, character: char, out: &mut impl FnMut(Side, char)) {
        let mut certain = String::new();
        let close = [self.format.close];
        let closed = self
            .until
            .step(character, &close, |character| certain.push(character));
        for character in certain.chars() {
            self.reason(character, out);
        }
        if closed.is_some() {
            self.newlines = 0;
            self.state = State::Gap;
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
        if matches!(self.state, State::Start | State::Opened) {
            self.release(out);
        }
        for character in self.until.take().chars() {
            self.reason(character, out);
        }
    }
}
