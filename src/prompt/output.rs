//! From a model's text to reasoning, content and tool calls.

use super::OutputDelta;
use super::reasoning::{self, ReasoningSplitter, Side};
use super::tools::{ToolCallParser, ToolFormat};

/// What to look for in one request's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ParserOptions {
    /// The request declared tools (and lets the model call them). Without, call markup is content.
    pub tools: bool,
    /// The prompt ends inside reasoning: the output begins with it.
    pub reasoning_open: bool,
}

impl ParserOptions {
    /// For the output that follows this prompt.
    pub fn for_prompt(prompt: &str, tools: bool) -> Self {
        ParserOptions {
            tools,
            reasoning_open: prompt.trim_end().ends_with(reasoning::OPEN),
        }
    }
}

/// Separates one request's output into [`OutputDelta`]s as it comes: first reasoning, then content and
/// tool calls. The concatenated deltas do not depend on how the text is cut into pieces.
#[derive(Debug, Clone)]
pub struct OutputParser {
    reasoning: ReasoningSplitter,
    tools: Option<ToolCallParser>,
    tool_calls: usize,
}

impl OutputParser {
    /// `thinks`: the model's format knows `<think>`. `format`: how it writes calls.
    pub(super) fn new(options: &ParserOptions, thinks: bool, format: ToolFormat) -> Self {
        let reasoning = if thinks {
            ReasoningSplitter::new(options.reasoning_open)
        } else {
            ReasoningSplitter::off()
        };
        OutputParser {
            reasoning,
            tools: options.tools.then(|| ToolCallParser::new(format)),
            tool_calls: 0,
        }
    }

    /// Takes the next piece of text and gives what is now certain.
    pub fn push(&mut self, text: &str) -> Vec<OutputDelta> {
        let mut deltas = Vec::new();
        let OutputParser {
            reasoning, tools, ..
        } = self;
        for character in text.chars() {
            reasoning.step(character, &mut |side, character| {
                pass_on(side, character, tools.as_mut(), &mut deltas)
            });
        }
        self.count(deltas)
    }

    /// The output is complete: gives what was held back.
    pub fn finish(&mut self) -> Vec<OutputDelta> {
        let mut deltas = Vec::new();
        let OutputParser {
            reasoning, tools, ..
        } = self;
        reasoning
            .finish(&mut |side, character| pass_on(side, character, tools.as_mut(), &mut deltas));
        if let Some(tools) = tools {
            tools.finish(&mut |delta| append(&mut deltas, delta));
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
