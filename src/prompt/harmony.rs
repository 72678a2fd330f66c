//! Output in channels, as gpt-oss writes it (OpenAI's "harmony" format).
//!
//! A message is a header, `<|message|>`, a body, and `<|end|>`, `<|call|>` or `<|return|>`. The header names a
//! channel (`<|channel|>analysis`) and, before or behind it, who the message is for
//! (` to=functions.weather`).

use super::OutputDelta;
use super::tools::{ArgumentsStream, DeclaredTools, Until};

/// What begins a message of the assistant; prompts end with it.
const START: &str = "<|start|>assistant";
const MESSAGE: &str = "<|message|>";
const CHANNEL: &str = "<|channel|>";
const NAMESPACE: &str = "functions.";
/// What ends a body: the first three end the message, the others begin another header.
pub(super) const BODY_ENDS: [&str; 5] = ["<|end|>", "<|call|>", "<|return|>", "<|start|>", CHANNEL];
/// A header, at most, in bytes. A longer one is text.
const MAX_HEADER: usize = 512;

/// All of its special tokens.
pub(super) const MARKS: [&str; 7] = [
    "<|start|>",
    "<|end|>",
    MESSAGE,
    CHANNEL,
    "<|constrain|>",
    "<|call|>",
    "<|return|>",
];

/// What a channel begins with, and the one for the user.
pub(super) const BEFORE_ANSWER: [&str; 2] = [CHANNEL, "<|channel|>final<|message|>"];

/// The beginning of the answer that is in the prompt already.
pub(super) fn begun_in(prompt: &str) -> &str {
    prompt
        .rfind(START)
        .map_or("", |position| &prompt[position + START.len()..])
}

/// Separates the channels of one output, character by character.
///
/// The channel `analysis` is reasoning. A message to a function is a call (where calls are allowed); all
/// others are content. Text outside messages is content, too.
#[derive(Debug, Clone)]
pub(super) struct ChannelParser {
    declared: DeclaredTools,
    may_call: bool,
    state: State,
    until: Until,
    calls: usize,
    /// A message has ended: white space alone behind it is no text.
    ended: bool,
}

#[derive(Debug, Clone)]
enum State {
    Header(String),
    Body(Body),
}

#[derive(Debug, Clone)]
enum Body {
    Reasoning,
    Content,
    Call(Box<ArgumentsStream>),
}

impl ChannelParser {
    pub(super) fn new(may_call: bool, declared: DeclaredTools) -> Self {
        ChannelParser {
            declared,
            may_call,
            state: State::Header(String::new()),
            until: Until::default(),
            calls: 0,
            ended: false,
        }
    }

    /// Takes the next character and tells of all that is now certain.
    pub(super) fn step(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        let mut certain = String::new();
        if let State::Header(header) = &mut self.state {
            header.push(character);
            if header.ends_with(MESSAGE) {
                let header = std::mem::take(header);
                self.begin_body(&header, out);
            } else if !may_be_header(header) {
                let header = std::mem::take(header);
                self.state = State::Body(Body::Content);
                let mut characters = header.chars();
                // Where a header is too long, its beginning must not begin the same header again.
                if header.len() > MAX_HEADER
                    && let Some(first) = characters.next()
                {
                    self.in_body(first, out);
                }
                for character in characters {
                    self.step(character, out);
                }
            }
            return;
        }
        let end = self
            .until
            .step(character, &BODY_ENDS, |character| certain.push(character));
        for character in certain.chars() {
            self.in_body(character, out);
        }
        if let Some(index) = end {
            self.end_body(out);
            self.ended = true;
            let begun = if index < 3 { "" } else { BODY_ENDS[index] };
            self.state = State::Header(begun.to_owned());
        }
    }

    /// The output is complete.
    pub(super) fn finish(&mut self, out: &mut impl FnMut(OutputDelta)) {
        for character in self.until.take().chars() {
            self.in_body(character, out);
        }
        if let State::Header(header) = &mut self.state {
            let header = std::mem::take(header);
            // The output ended behind a message, or in a header without a body.
            let is_text = !self.ended || !header.trim().is_empty();
            if is_text && !header.is_empty() && !header.contains("<|") {
                out(OutputDelta::Content(header));
            }
        }
    }

    fn begin_body(&mut self, header: &str, out: &mut impl FnMut(OutputDelta)) {
        let word_behind = |mark: &str| {
            let behind = &header[header.find(mark)? + mark.len()..];
            behind
                .split(|character: char| character.is_whitespace() || character == '<')
                .next()
        };
        let recipient = word_behind(" to=").unwrap_or_default();
        let name = recipient.strip_prefix(NAMESPACE).unwrap_or(recipient);
        let is_function = recipient != name || self.declared.declares(name);
        let body = if self.may_call && is_function && !name.is_empty() {
            let index = self.calls;
            self.calls += 1;
            let name = name.to_owned();
            out(OutputDelta::ToolCallStart { index, name });
            Body::Call(Box::new(ArgumentsStream::new(index)))
        } else if word_behind(CHANNEL) == Some("analysis") {
            Body::Reasoning
        } else {
            Body::Content
        };
        self.state = State::Body(body);
    }

    fn in_body(&mut self, character: char, out: &mut impl FnMut(OutputDelta)) {
        match &mut self.state {
            State::Body(Body::Reasoning) => out(OutputDelta::Reasoning(character.to_string())),
            State::Body(Body::Call(arguments)) => {
                if !arguments.step(character, out) {
                    self.state = State::Body(Body::Content);
                    self.in_body(character, out);
                }
            }
            _ => out(OutputDelta::Content(character.to_string())),
        }
    }

    fn end_body(&mut self, out: &mut impl FnMut(OutputDelta)) {
        if let State::Body(Body::Call(arguments)) = &mut self.state {
            arguments.end(out);
        }
    }
}

/// The text so far can be a header's beginning.
fn may_be_header(text: &str) -> bool {
    const BEGINNINGS: [&str; 4] = [CHANNEL, "<|start|>", "<|constrain|>", "to="];
    let text = text.trim_start();
    text.len() <= MAX_HEADER
        && BEGINNINGS
            .iter()
            .any(|beginning| beginning.starts_with(text) || text.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(text: &str) -> String {
        let mut parser = ChannelParser::new(true, DeclaredTools::default());
        let mut content = String::new();
        let mut out = |delta| match delta {
            OutputDelta::Content(text) => content.push_str(&text),
            other => panic!("{other:?}"),
        };
        text.chars()
            .for_each(|character| parser.step(character, &mut out));
        parser.finish(&mut out);
        content
    }

    #[test]
    fn white_space_alone_is_text_but_behind_a_message() {
        assert_eq!(content(" \n"), " \n");
        assert_eq!(content("<|channel|>final<|message|>Hi<|end|> \n"), "Hi");
        assert_eq!(content("Hi<|end|> to"), "Hi to");
    }

    #[test]
    fn a_header_that_never_ends_is_text() {
        for beginning in [
            "<|channel|>analysis ",
            "<|start|>assistant",
            "  <|channel|>",
            " to=functions.f ",
        ] {
            let text = format!("{beginning}{}", "x".repeat(5000));
            assert_eq!(content(&text), text);
            let twice = format!("{beginning}{text}");
            assert_eq!(content(&twice), twice);
        }
    }
}
