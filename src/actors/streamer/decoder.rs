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
        for delta in &deltas {
            self.in_reasoning = matches!(delta, OutputDelta::Reasoning(_));
        }
        self.reasoning_tokens += usize::from(self.in_reasoning);
        Decoded {
            deltas,
            stopped: outcome.stopped,
        }
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
        deltas
    }

    /// The stop string that ended the output, if one did.
    pub fn stop_string(&self) -> Option<&str> {
        self.stop.found()
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
