//! From a model's text to reasoning, content and tool calls.

use super::OutputDelta;
use super::harmony::{self, ChannelParser};
use super::reasoning::{ReasoningFormat, ReasoningSplitter, Side, THINK};
use super::tools::{DeclaredTools, Format, ToolCallParser};

/// What to look for in one request's output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParserOptions {
    /// The request declared tools (and lets the model call them). Without, call markup is content.
    pub tools: bool,
    /// The prompt ends inside reasoning: the output begins with it.
    pub reasoning_open: bool,
    /// The tools: their parameters' types say what values mean in formats that do not.
    pub declared: DeclaredTools,
    /// Where answers are written in channels: what the prompt already has of the answer.
    pub begun: String,
}

/// How a model writes.
#[derive(Debug, Clone, Copy)]
pub(super) struct OutputFormat {
    /// None: the model does not reason, or its format has channels.
    pub(super) reasoning: Option<&'static ReasoningFormat>,
    pub(super) tools: &'static Format,
}

impl OutputFormat {
    /// For the output that follows this prompt. Without tools none may be called.
    pub(super) fn options(&self, prompt: &str, tools: &[serde_json::Value]) -> ParserOptions {
        ParserOptions {
            tools: !tools.is_empty(),
            reasoning_open: self
                .reasoning
                .is_some_and(|reasoning| reasoning.is_open_in(prompt)),
            declared: DeclaredTools::new(tools),
            begun: if self.tools.channels {
                harmony::begun_in(prompt).to_owned()
            } else {
                String::new()
            },
        }
    }

    /// What opens and closes reasoning, for models that reason.
    pub(super) fn reasoning_marks(&self) -> [&'static str; 2] {
        match self.reasoning {
            Some(reasoning) => [reasoning.open, reasoning.close],
            None if self.tools.channels => harmony::BEFORE_ANSWER,
            None => [THINK.open, THINK.close],
        }
    }

    /// All text by which the parser finds its way, and that the detokenizer must not leave out.
    pub(super) fn marks(&self) -> Vec<&'static str> {
        let mut marks = self.tools.marks();
        if self.tools.channels {
            marks.extend(harmony::MARKS);
        }
        if let Some(reasoning) = self.reasoning {
            marks.extend([reasoning.open, reasoning.close]);
        }
        marks
    }
}

/// Separates one request's output into [`OutputDelta`]s as it comes. The concatenated deltas do not depend
/// on how the text is cut into pieces.
#[derive(Debug, Clone)]
pub struct OutputParser {
    parts: Parts,
    tool_calls: usize,
}

#[derive(Debug, Clone)]
enum Parts {
    /// First reasoning, then content and tool calls.
    InOrder {
        reasoning: Box<ReasoningSplitter>,
        tools: Option<Box<ToolCallParser>>,
    },
    Channels(Box<ChannelParser>),
}

impl OutputParser {
    pub(super) fn new(options: &ParserOptions, format: OutputFormat) -> Self {
        let declared = options.declared.clone();
        let parts = if format.tools.channels {
            let mut channels = ChannelParser::new(options.tools, declared);
            for character in options.begun.chars() {
                channels.step(character, &mut |_| ());
            }
            Parts::Channels(Box::new(channels))
        } else {
            let reasoning = match format.reasoning {
                Some(reasoning) => ReasoningSplitter::new(reasoning, options.reasoning_open),
                None => ReasoningSplitter::off(),
            };
            let tools = if options.tools {
                Some(ToolCallParser::new(format.tools, declared))
            } else {
                ToolCallParser::without_calls(format.tools)
            };
            Parts::InOrder {
                reasoning: Box::new(reasoning),
                tools: tools.map(Box::new),
            }
        };
        OutputParser {
            parts,
            tool_calls: 0,
        }
    }

    /// Takes the next piece of text and gives what is now certain.
    pub fn push(&mut self, text: &str) -> Vec<OutputDelta> {
        let mut deltas = Vec::new();
        for character in text.chars() {
            match &mut self.parts {
                Parts::InOrder { reasoning, tools } => {
                    reasoning.step(character, &mut |side, character| {
                        pass_on(side, character, tools.as_deref_mut(), &mut deltas)
                    });
                }
                Parts::Channels(channels) => {
                    channels.step(character, &mut |delta| append(&mut deltas, delta));
                }
            }
        }
        self.count(deltas)
    }

    /// The output is complete: gives what was held back.
    pub fn finish(&mut self) -> Vec<OutputDelta> {
        let mut deltas = Vec::new();
        match &mut self.parts {
            Parts::InOrder { reasoning, tools } => {
                reasoning.finish(&mut |side, character| {
                    pass_on(side, character, tools.as_deref_mut(), &mut deltas)
                });
                if let Some(tools) = tools {
                    tools.finish(&mut |delta| append(&mut deltas, delta));
                }
            }
            Parts::Channels(channels) => {
                channels.finish(&mut |delta| append(&mut deltas, delta));
            }
        }
        self.count(deltas)
    }

    /// Tool calls begun so far: with any, an output that stops of itself has finish reason `tool_calls`.
    pub fn tool_calls(&self) -> usize {
        self.tool_calls
    }

    fn count(&mut self, deltas: Vec<OutputDelta>) -> Vec<OutputDelta> {
        self.tool_calls += deltas
            .iter()
            .filter(|delta| matches!(delta, OutputDelta::ToolCallStart { .. }))
            .count();
        deltas
    }
}
/// Passes reasoning on, and the answer through the tool parser if there is one.
fn pass_on(
    side: Side,
    character: char,
    tools: Option<&mut ToolCallParser>,
    deltas: &mut Vec<OutputDelta>,
) {
    match (side, tools) {
        (Side::Reasoning, _) => append(deltas, OutputDelta::Reasoning(character.to_string())),
        (Side::Answer, Some(tools)) => tools.step(character, &mut |delta| append(deltas, delta)),
        (Side::Answer, None) => append(deltas, OutputDelta::Content(character.to_string())),
    }
}

/// Adds a delta, to the last one where that is of the same kind.
fn append(deltas: &mut Vec<OutputDelta>, delta: OutputDelta) {
    match (deltas.last_mut(), delta) {
        (Some(OutputDelta::Content(text)), OutputDelta::Content(more))
        | (Some(OutputDelta::Reasoning(text)), OutputDelta::Reasoning(more)) => {
            text.push_str(&more)
        }
        (
            Some(OutputDelta::ToolCallArguments { index, text }),
            OutputDelta::ToolCallArguments {
                index: same,
                text: more,
            },
        ) if *index == same => text.push_str(&more),
        (_, delta) => deltas.push(delta),
    }
}
