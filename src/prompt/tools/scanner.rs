//! Finding calls in a model's output.

use super::call::{Call, Progress};
use super::declared::DeclaredTools;
use super::item::{Format, Mark, Program};
use crate::prompt::OutputDelta;

/// White space held back before the first text of the answer or between calls, at most, in bytes.
const MAX_HELD_SPACE: usize = 1024;
/// How often a character may be read again, on average, after marks turned out to begin nothing.
const REREADS: usize = 8;
/// Closing marks up to this length, in bytes, count right after a call only: they are common in text.
const PUNCTUATION: usize = 3;
/// Calls in each other that may turn out to be none.
const MAX_DEPTH: usize = 8;

/// Finds tool calls in a model's output as it comes, character by character (so that the result cannot
/// depend on how the output is cut into pieces).
///
/// - The name is given out as soon as it is certain that a call is meant, the arguments as they come: JSON
///   byte for byte as the model wrote it, other notations as the JSON they stand for. (Two repairs: a raw
///   control character in a JSON string is escaped, and an object that the model wrote into a string is
///   taken out of it.)
/// - Text before, between and after calls is content. White space alone between calls is not, nor is the
///   one newline with which formats set off a call from text before it: templates write it again.
/// - What looks like a call and is none is given back as content, marks included, as far as nothing of it
///   was given out as a call.
/// - A call that the end of the output cuts off keeps what was given out of it, or is text if that was
///   nothing.
#[derive(Debug, Clone)]
pub(in crate::prompt) struct ToolCallParser {
    format: &'static Format,
    declared: DeclaredTools,
    may_call: bool,
    /// The call being read; None: in text.
    call: Option<Box<Call>>,
    /// Calls begun so far.
    calls: usize,
    /// The beginning of a mark.
    held: String,
    /// White space that is content only if other text follows.
    space: String,
    /// No text other than white space since the start or the last call.
    fresh: bool,
    /// How many of the format's closing marks have passed since the last call.
    closed: usize,
    /// Something that looked like a call was none.
    gave_back: bool,
    /// Characters that may still be read again.
    credit: usize,
    /// How many failed calls are being read again, in each other.
    depth: usize,
}

/// What a mark means where it stands.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    Begins {
        then: Program,
        kept: bool,
    },
    /// The closing marks up to here have passed.
    Closes(usize),
    Noise,
}

impl ToolCallParser {
    pub(in crate::prompt) fn new(format: &'static Format, declared: DeclaredTools) -> Self {
        ToolCallParser {
            format,
            declared,
            may_call: true,
            call: None,
            calls: 0,
            held: String::new(),
            space: String::new(),
            fresh: true,
            closed: 0,
            gave_back: false,
            credit: 0,
            depth: 0,
        }
    }

    /// For answers that may not call tools: only the markup around text is taken out. None if the format
    /// has none.
    pub(in crate::prompt) fn without_calls(format: &'static Format) -> Option<Self> {
        let parser = ToolCallParser::new(format, DeclaredTools::default());
        (!format.noise.is_empty()).then_some(ToolCallParser {
            may_call: false,
            ..parser
        })
    }

    /// Takes the next character and tells of all that is now certain.
    pub(in crate::prompt) fn step(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        self.credit += REREADS;
        self.advance(character, out);
    }

    /// The output is complete.
    pub(in crate::prompt) fn finish(&mut self, out: &mut impl FnMut(OutputDelta)) {
        while let Some(call) = self.call.take() {
            if call.is_given_out() {
                // Cut off: what was given out stays, and the rest of it is no text.
                self.calls += 1;
                self.space.clear();
                return;
            }
            self.reread(&call, out);
        }
        let held = std::mem::take(&mut self.held);
        let closes = self.is_after_call()
            && self.format.closes[self.closed..]
                .iter()
                .any(|close| close.starts_with(held.as_str()));
        for character in held.chars().filter(|_| !closes) {
            self.text(character, out);
        }
        if !self.is_after_call() {
            emit(&self.space, out);
        }
        self.space.clear();
    }

    /// Nothing but white space since the last call.
    fn is_after_call(&self) -> bool {
        self.fresh && self.calls > 0
    }

    fn advance(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        let Some(call) = &mut self.call else {
            return self.in_text(character, out);
        };
        match call.step(character, self.calls, out) {
            Progress::Going => {}
            Progress::Complete => {
                self.call = None;
                self.end_call();
            }
            Progress::Failed => {
                let Some(call) = self.call.take() else {
                    return;
                };
                if call.is_given_out() {
                    // Its beginning is given out: it stays a call, and what follows is text.
                    self.end_call();
                    self.in_text(character, out);
                } else {
                    self.reread(&call, out);
                }
            }
        }
    }

    fn end_call(&mut self) {
        self.calls += 1;
        self.space.clear();
        self.fresh = true;
        self.closed = 0;
    }

    /// The marks that count where the parser stands.
    fn marks(&self) -> impl Iterator<Item = (&'static str, Meaning)> {
        let format = self.format;
        let begins = |mark: &'static Mark| {
            let (then, kept) = (mark.then, mark.kept);
            (mark.text, Meaning::Begins { then, kept })
        };
        let at_start = self.fresh && self.calls == 0 && !self.gave_back;
        let may_call = self.may_call;
        let opens = format
            .opens
            .iter()
            .filter(move |mark| may_call && (at_start || !mark.at_start));
        let noise = format.noise.iter().map(|text| (*text, Meaning::Noise));
        let after = self.is_after_call();
        let again = if after { format.again } else { &[] };
        let (called, closed) = (self.calls > 0, self.closed);
        let closes = format
            .closes
            .iter()
            .enumerate()
            .skip(closed)
            .filter(move |(_, text)| after || (called && text.len() > PUNCTUATION))
            .map(|(index, text)| (*text, Meaning::Closes(index + 1)));
        closes
            .chain(again.iter().map(begins))
            .chain(opens.map(begins))
            .chain(noise)
    }

    fn in_text(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        if let Some(program) = self.format.again_word
            && self.is_after_call()
            && self.closed == 0
            && self.held.is_empty()
            && character.is_alphabetic()
        {
            self.begin("", program);
            return self.advance(character, out);
        }
        self.held.push(character);
        while let Some(first) = self.held.chars().next() {
            let found = self.marks().find(|(text, _)| *text == self.held);
            if let Some((text, meaning)) = found {
                self.held.clear();
                return self.mark(text, meaning, out);
            }
            if self.marks().any(|(text, _)| text.starts_with(&self.held)) {
                return;
            }
            self.held.drain(..first.len_utf8());
            self.text(first, out);
        }
    }

    /// A mark is complete.
    fn mark(&mut self, text: &'static str, meaning: Meaning, out: &mut impl FnMut(OutputDelta)) {
        match meaning {
            Meaning::Begins { then, kept: false } => self.begin(text, then),
            Meaning::Begins { then, kept: true } => {
                self.begin("", then);
                for character in text.chars() {
                    self.advance(character, out);
                }
            }
            Meaning::Closes(closed) => {
                self.space.clear();
                self.fresh = true;
                self.closed = closed;
            }
            Meaning::Noise => {}
        }
    }

    fn begin(&mut self, mark: &str, program: Program) {
        let call = Call::new(
            mark,
            program,
            self.declared.clone(),
            self.format.declared_only,
        );
        self.call = Some(Box::new(call));
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

    /// Takes the text of what is no call as content; there may be a call in it.
    fn reread(&mut self, call: &Call, out: &mut impl FnMut(OutputDelta)) {
        let (mark, rest) = call.give_back();
        self.gave_back = true;
        for character in mark.chars() {
            self.text(character, out);
        }
        let again = self.depth < MAX_DEPTH && self.credit >= rest.len();
        self.depth += 1;
        let mut rest = rest.chars();
        if again {
            self.credit -= rest.as_str().len();
        }
        if let Some(first) = rest.next() {
            // A mark that is itself the beginning of a call must not begin the same one again.
            if again && !mark.is_empty() {
                self.advance(first, out);
            } else {
                self.text(first, out);
            }
        }
        for character in rest {
            if again {
                self.advance(character, out);
            } else {
                self.text(character, out);
            }
        }
        self.depth -= 1;
    }
}

fn emit(text: &str, out: &mut impl FnMut(OutputDelta)) {
    if !text.is_empty() {
        out(OutputDelta::Content(text.to_string()));
    }
}
