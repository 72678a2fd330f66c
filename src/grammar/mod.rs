//! Structured output: grammars that an output must follow, compiled for a model's vocabulary, and the
//! mask of allowed tokens at each step.
//!
//! In the order of a request's life: [`GrammarSource`]s say what is wanted, [`schema`] checks JSON schemas
//! and names what cannot be enforced, [`GrammarCompiler`] turns a [`GrammarSpec`] into a [`Grammar`] (on a
//! blocking thread, bounded, remembered), and each sequence follows it with a [`Constraint`], whose masks
//! are computed by [`workers`] while the model's forward pass runs.
//!
//! The grammars themselves are understood by the `llguidance` crate; nothing outside this module knows it.

mod compiler;
mod constraint;
mod schema;
#[cfg(test)]
mod tests;
mod text;
mod vocabulary;
mod workers;

use serde_json::Value;

pub use compiler::GrammarCompiler;
pub use constraint::{Constraint, Grammar, TokenMask};
pub use text::{PlainText, escaped};
pub use vocabulary::TokenBytes;

/// What (a part of) an output must look like.
#[derive(Debug, Clone, PartialEq)]
pub enum GrammarSource {
    /// JSON that this schema accepts.
    JsonSchema {
        schema: Value,
        /// Keywords that cannot be enforced are an error; otherwise they are passed over.
        strict: bool,
    },
    /// Text that a regular expression matches as a whole, in the syntax of Rust's `regex` crate.
    Regex(String),
    /// Text of a grammar in llguidance's variant of Lark, from its rule `start` on.
    Lark(String),
    /// One of these texts. At least one, none empty.
    Choice(Vec<String>),
    /// A string without quotes, up to its end.
    Text(PlainText),
}

/// A source and the field of the request that holds it, for errors.
#[derive(Debug, Clone, PartialEq)]
pub struct GrammarPart {
    /// Where it stands in the request: `response_format.json_schema.schema`.
    pub field: String,
    pub source: GrammarSource,
}

/// A whole grammar.
#[derive(Debug, Clone, PartialEq)]
pub struct GrammarSpec {
    /// Lark whose rules refer to part *i* as `@part_i`. None: the output is the only part.
    pub root: Option<String>,
    pub parts: Vec<GrammarPart>,
    /// What is only checked: the schemas that the parts and the root were made from.
    pub checked: Vec<GrammarPart>,
}

impl GrammarSpec {
    /// The output is this part and nothing else.
    pub fn only(part: GrammarPart) -> Self {
        Self {
            root: None,
            parts: vec![part],
            checked: Vec::new(),
        }
    }

    /// The name by which a root refers to a part.
    pub fn reference(index: usize) -> String {
        format!("@part_{index}")
    }
}

/// Why there is no grammar for a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// The client's fault: something in the named field cannot be understood or enforced.
    #[error("`{field}` {message}")]
    Invalid { field: String, message: String },
    /// This model's outputs cannot be constrained.
    #[error("structured output is not available with this model: {0}")]
    Unavailable(String),
}

impl GrammarError {
    fn invalid(field: impl Into<String>, message: impl Into<String>) -> Self {
        GrammarError::Invalid {
            field: field.into(),
            message: message.into(),
        }
    }
}
