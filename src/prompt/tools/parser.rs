//! Finding calls in a model's output.

use super::ToolFormat;
use super::call::{Call, Progress};
use crate::prompt::OutputDelta;

/// The tag that opens a call.
pub(in crate::prompt) const OPEN: &str = "<tool_call>";
/// The tag that closes it.
pub(in crate::prompt) const CLOSE: &str = "</tool_call>";

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
pub(in crate::prompt) struct ToolCallParser {
    format: ToolFormat,
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

impl ToolCallParser {
    pub(in crate::prompt) fn new(format: ToolFormat) -> Self {
        ToolCallParser {
            format,
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
                State::Call(call) if !call.is_given_out() => self.reread(&call, out),
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
        if self.format == ToolFormat::Bare {
            // Only the very beginning can be a call, and only once.
            if character == '{' && self.fresh && self.calls == 0 && self.rescans == 0 {
                self.begin_call("");
                self.step(character, out);
            } else {
                self.text(character, out);
            }
            return;
        }
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
        let needs_arguments = self.format == ToolFormat::Bare;
        self.state = State::Call(Box::new(Call::new(opening, needs_arguments)));
    }

    fn after_object(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        if character.is_whitespace() && self.space.len() < MAX_HELD_SPACE {
            self.space.push(character);
        } else if character == '{' {
            self.begin_call("");
            self.step(character, out);
        } else if self.format == ToolFormat::Tagged || character != ';' {
            self.state = State::Text;
            self.in_text(character, out);
        }
    }

    /// The call being read failed at this character.
    fn give_back(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        if let State::Call(call) = std::mem::replace(&mut self.state, State::Text) {
            if call.is_given_out() {
                // Its beginning is given out: it stays a call, and what follows is text.
                self.calls += 1;
                self.space.clear();
                self.fresh = true;
                self.close_due = true;
                self.in_text(character, out);
            } else {
                self.reread(&call, out);
            }
        }
    }

    /// Takes the text of what is no call as content; there may be a call in it.
    fn reread(&mut self, call: &Call, out: &mut impl FnMut(OutputDelta)) {
        let (opening, rest) = call.give_back();
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

fn emit(text: &str, out: &mut impl FnMut(OutputDelta)) {
    if !text.is_empty() {
        out(OutputDelta::Content(text.to_string()));
    }
}
