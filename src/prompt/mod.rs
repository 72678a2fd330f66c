//! Chat templates, and the tool and reasoning formats of model families; tokens to text and back.
//!
//! The way in: [`PromptFormat::render`] turns a conversation into the model's own text,
//! [`PromptFormat::encode`] turns that into tokens. The way out, token by token: [`Detokenizer`] makes
//! whole characters, [`StopMatcher`] looks for the request's stop strings in them, [`OutputParser`]
//! separates reasoning, content and tool calls.
//!
//! Nothing here knows tensors, actors or the wire.

mod capabilities;
mod choice;
mod conversation;
mod detokenizer;
mod format;
mod harmony;
mod output;
mod reasoning;
mod rules;
mod stop;
mod template;
#[cfg(test)]
mod tests;
mod tools;

pub use choice::{FormatChoice, ReasoningChoice, ToolFormat};
pub use detokenizer::Detokenizer;
pub use format::{ChatInput, PromptAssets, PromptFormat};
pub use output::{OutputParser, ParserOptions};
pub use rules::{AnswerRules, ContentRule, PromptEnd};
pub use stop::{StopMatcher, StopOutcome};
pub use template::ChatTemplate;
pub use tools::DeclaredTools;
pub use tools::constraint::NoRulesForCalls;

/// A piece of a model's parsed output, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputDelta {
    /// Text for the user. Whole characters, no markup.
    Content(String),
    /// Text between `<think>` and `</think>`, or whatever marks it in the model's format.
    Reasoning(String),
    /// A tool call begins; `index` counts from 0.
    ToolCallStart { index: usize, name: String },
    /// More of the JSON text of the arguments of call `index`.
    ToolCallArguments { index: usize, text: String },
}

/// Why a conversation could not be made into tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// The model's files hold a template that is not valid Jinja. Found when the model is loaded.
    #[error("the model's chat template is not valid: {0}")]
    InvalidTemplate(String),
    /// The model has no chat template, so it cannot take messages.
    #[error("this model has no chat template; use /v1/completions")]
    NoTemplate,
    /// The template refused the conversation (`raise_exception`): its own message.
    #[error("the model's chat template refused the messages: {0}")]
    Template(String),
    /// The template failed on the conversation, for example by using something that is missing.
    #[error("the model's chat template failed: {0}")]
    TemplateFailed(String),
    /// The template ran too long or wrote too much.
    #[error("the model's chat template exceeded its limit: {0}")]
    TemplateLimit(String),
    /// `chat_template_kwargs` holds a variable that is not the request's to set.
    #[error("chat_template_kwargs cannot set {0}")]
    ReservedVariable(String),
    /// The last message cannot be continued.
    #[error("the final message cannot be continued: {0}")]
    NotContinuable(String),
    /// The tokenizer could not encode the text.
    #[error("the tokenizer could not encode the text: {0}")]
    Encode(String),
}
