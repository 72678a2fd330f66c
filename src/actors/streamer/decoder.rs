//! One sequence's way out: tokens to characters, up to a stop string, to content, reasoning and tool calls.

use crate::ids::TokenId;
use crate::prompt::{Detokenizer, OutputDelta, OutputParser, StopMatcher};

/// The incremental state of one sequence's text.
#[derive(Debug)]
pub struct OutputDecoder {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    /// None: all text is content (text completions).
    parser: Option<OutputParser>,
    reasoning_tokens: usize,
    /// The last delta was reasoning, so what is held back is taken for reasoning, too.
    in_reasoning: bool,
    /// The output ends where a second tool call would begin.
    single_call: bool,
    /// It has.
    cut: bool,
}

/// What a token made certain.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    pub deltas: Vec<OutputDelta>,
    /// A stop string is complete: there is no further output.
    pub stopped: bool,
}

impl OutputDecoder {
    /// `in_reasoning`: the prompt ends inside reasoning.
    pub fn new(
        detokenizer: Detokenizer,
        stop: StopMatcher,
        parser: Option<OutputParser>,
        in_reasoning: bool,
    ) -> Self {
        Self {
            detokenizer,
            stop,
            parser,
            reasoning_tokens: 0,
            in_reasoning,
            single_call: false,
            cut: false,
        }
    }

    /// The output ends where a second tool call would begin.
    pub fn with_single_call(self, single_call: bool) -> Self {
        Self {
            single_call,
            ..self
        }
    }

    /// Takes the next token. After a stop string it must not be called again.
    pub fn push(&mut self, token: TokenId) -> Decoded {
        let text = self.detokenizer.push(token);
        let outcome = self.stop.push(&text);
        let mut deltas = self.parse(&outcome.text);
        if outcome.stopped {
            deltas.extend(self.finish_parser());
        }
        let stopped = self.cut_second_call(&mut deltas) || outcome.stopped;
        for delta in &deltas {
            self.in_reasoning = matches!(delta, OutputDelta::Reasoning(_));
        }
        self.reasoning_tokens += usize::from(self.in_reasoning);
        Decoded { deltas, stopped }
    }

    /// The output is complete: gives what was held back.
    pub fn finish(&mut self) -> Vec<OutputDelta> {
        let text = self.detokenizer.finish();
        let outcome = self.stop.push(&text);
        let mut deltas = self.parse(&outcome.text);
        if !outcome.stopped {
            let held = self.stop.finish();
            deltas.extend(self.parse(&held));
        }
        deltas.extend(self.finish_parser());
        self.cut_second_call(&mut deltas);
        deltas
    }

    /// The stop string that ended the output, if one did.
    pub fn stop_string(&self) -> Option<&str> {
        self.stop.found()
    }

    /// A second tool call ended the output.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// Drops a second call and what follows, where there may be one only. Whether there was any.
    fn cut_second_call(&mut self, deltas: &mut Vec<OutputDelta>) -> bool {
        let is_second = |delta: &OutputDelta| matches!(delta, OutputDelta::ToolCallStart { index, .. } if *index > 0);
        match deltas.iter().position(is_second) {
            Some(at) if self.single_call => {
                deltas.truncate(at);
                self.cut = true;
                true
            }
            _ => false,
        }
    }

    /// Tool calls begun so far.
    pub fn tool_calls(&self) -> usize {
        self.parser.as_ref().map_or(0, OutputParser::tool_calls)
    }

    /// Tokens that were reasoning, as far as text tells.
    pub fn reasoning_tokens(&self) -> usize {
        self.reasoning_tokens
    }

    fn parse(&mut self, text: &str) -> Vec<OutputDelta> {
        match &mut self.parser {
            _ if text.is_empty() => Vec::new(),
            Some(parser) => parser.push(text),
            None => vec![OutputDelta::Content(text.to_owned())],
        }
    }

    fn finish_parser(&mut self) -> Vec<OutputDelta> {
        self.parser
            .as_mut()
            .map(OutputParser::finish)
            .unwrap_or_default()
    }
}
