//! How model families write tool calls.

mod call;
pub(in crate::prompt) mod constraint;
mod json;
mod parser;

pub(super) use parser::{CLOSE, OPEN, ToolCallParser};

/// A family's way of writing calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen2.5, Qwen3, the demo model; and
    /// models whose template declares no tools, which are told so.
    Tagged,
    /// `{"name": …, "parameters": {…}}` as the whole answer: Llama 3.1 to 3.3.
    Bare,
}
