//! How model families write tool calls.
//!
//! A [`Format`] is a table: which marks begin calls, what a call consists of, and what may follow it. The
//! [`scanner`] finds the marks in a model's output, a [`call::Call`] reads what is behind one by following
//! the table's program. To add a format: a file in [`formats`] with its table and its cases, and a line in
//! [`FORMATS`].

mod call;
pub(in crate::prompt) mod constraint;
mod declared;
mod formats;
mod item;
mod json;
mod literal;
mod matching;
mod object;
mod parameters;
mod python;
mod scanner;
mod written;

pub(super) use call::ArgumentsStream;
pub use declared::DeclaredTools;
pub(super) use formats::FORMATS;
#[cfg(test)]
pub(super) use item::DECLARED;
pub(super) use item::Format;
pub(super) use matching::Until;
pub(super) use scanner::ToolCallParser;
pub(super) use written::Written;

/// The form in which models are told to write calls if their template does not know tools.
pub(super) const GENERIC: &Format = &formats::hermes::FORMAT;
