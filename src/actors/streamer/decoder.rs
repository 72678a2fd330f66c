//! One sequence's way out: tokens to characters, up to a stop string, to content, reasoning and tool calls.

use super::alignment::LogprobQueue;
use crate::actors::messages::GeneratedToken;
use crate::engine::sampler::TokenLogprobs;
use crate::http::wire::TokenLogprob;
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
    logprobs: LogprobQueue,
}

/// What a token made certain.
#[derive(Debug, Default, PartialEq)]
pub struct Decoded {
    pub deltas: Vec<OutputDelta>,
    /// Log probabilities of the tokens whose text is in the deltas, if the sequence asks for them.
    /// Without deltas there are some only at the end of the output.
    pub logprobs: Vec<TokenLogprob>,
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
            logprobs: LogprobQueue::default(),
        }
    }

    /// The output ends where a second tool call would begin.
    pub fn with_single_call(self, single_call: bool) -> Self {
        Self {
            single_call,
            ..self
        }
    }

    /// For a text that so many characters come before: offsets count from their beginning.
    pub fn behind(self, characters: usize) -> Self {
        Self {
            logprobs: LogprobQueue::new(characters),
            ..self
        }
    }

    /// Takes the next token. After a stop string it must not be called again.
    pub fn push(&mut self, token: &GeneratedToken) -> Decoded {
        let text = self.detokenizer.push(token.id);
        if let Some(logprobs) = &token.logprobs {
            let logprobs = token_logprob(&self.detokenizer, token.id, logprobs);
            self.logprobs.push(logprobs, &text);
        }
        let outcome = self.stop.push(&text);
        self.logprobs.release(outcome.text.len());
        let mut deltas = self.parse(&outcome.text);
        if outcome.stopped {
            self.logprobs.stop();
            deltas.extend(self.finish_parser());
        }
        let stopped = self.cut_second_call(&mut deltas) || outcome.stopped;
        for delta in &deltas {
            self.in_reasoning = matches!(delta, OutputDelta::Reasoning(_));
        }
        self.reasoning_tokens += usize::from(self.in_reasoning);
        let logprobs = if deltas.is_empty() && !stopped {
            // The parser holds the text back.
            Vec::new()
        } else {
            self.logprobs.take()
        };
        Decoded {
            deltas,
            logprobs,
            stopped,
        }
    }

    /// The output is complete: gives what was held back.
    pub fn finish(&mut self) -> Decoded {
        let text = self.detokenizer.finish();
        self.logprobs.produce(&text);
        let outcome = self.stop.push(&text);
        self.logprobs.release(outcome.text.len());
        let mut deltas = self.parse(&outcome.text);
        if outcome.stopped {
            self.logprobs.stop();
        } else {
            let held = self.stop.finish();
            deltas.extend(self.parse(&held));
            self.logprobs.finish();
        }
        deltas.extend(self.finish_parser());
        self.cut_second_call(&mut deltas);
        Decoded {
            deltas,
            logprobs: self.logprobs.take(),
            stopped: outcome.stopped,
        }
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

/// Log probabilities with tokens as bytes.
fn token_logprob(
    detokenizer: &Detokenizer,
    token: TokenId,
    logprobs: &TokenLogprobs,
) -> TokenLogprob {
    let top = logprobs.top.iter();
    TokenLogprob {
        bytes: detokenizer.token_bytes(token),
        logprob: Some(logprobs.logprob),
        top: top
            .map(|(token, logprob)| (detokenizer.token_bytes(*token), *logprob))
            .collect(),
        offset: 0,
        echoed: false,
    }
}

/// A prompt that is told with its log probabilities before the output.
#[derive(Debug)]
pub struct EchoedPrompt {
    text: String,
    detokenizer: Detokenizer,
    tokens: std::vec::IntoIter<TokenId>,
    queue: LogprobQueue,
}

impl EchoedPrompt {
    /// `detokenizer`: for a text of its own. `text`: what the tokens were made of.
    pub fn new(text: String, tokens: Vec<TokenId>, detokenizer: Detokenizer) -> Self {
        let mut echoed = Self {
            text,
            detokenizer,
            tokens: tokens.into_iter(),
            queue: LogprobQueue::default(),
        };
        if let Some(first) = echoed.tokens.next() {
            let unpredicted = TokenLogprob {
                bytes: echoed.detokenizer.token_bytes(first),
                logprob: None,
                top: Vec::new(),
                offset: 0,
                echoed: true,
            };
            echoed.push(first, unpredicted);
        }
        echoed
    }

    /// Takes the log probabilities of its next tokens.
    pub fn take(&mut self, logprobs: &[TokenLogprobs]) {
        for logprobs in logprobs {
            if let Some(token) = self.tokens.next() {
                let mut logprob = token_logprob(&self.detokenizer, token, logprobs);
                logprob.echoed = true;
                self.push(token, logprob);
            }
        }
    }

    fn push(&mut self, token: TokenId, logprob: TokenLogprob) {
        let text = self.detokenizer.push(token);
        self.queue.push(logprob, &text);
    }

    /// The text, and the log probabilities of all its tokens.
    pub fn finish(mut self) -> (String, Vec<TokenLogprob>) {
        self.queue.finish();
        (self.text, self.queue.take())
    }
}
