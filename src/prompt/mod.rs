//! Chat templates, and the tool and reasoning formats of model families; tokens to text and back.

/// A piece of a model's parsed output, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputDelta {
    /// Text for the user. Whole characters, no markup.
    Content(String),
    /// Text between `<think>` and `</think>`.
    Reasoning(String),
    /// A tool call begins; `index` counts from 0.
    ToolCallStart { index: usize, name: String },
    /// More of the JSON text of the arguments of call `index`.
    ToolCallArguments { index: usize, text: String },
}
