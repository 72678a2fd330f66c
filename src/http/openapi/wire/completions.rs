//! `POST /v1/completions`.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use super::chat::{Stop, StreamOptions, Usage};

/// Unknown fields are ignored, null is absent.
#[derive(ToSchema)]
pub struct CompletionRequest {
    /// A model's id or alias; without it, the model that is loaded.
    pub model: Option<String>,
    pub prompt: Prompt,
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    #[schema(minimum = -1)]
    pub top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f64>,
    #[schema(exclusive_minimum = 0, maximum = 10)]
    pub repetition_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f64>,
    #[schema(value_type = Option<BTreeMap<String, f64>>)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub seed: Option<i64>,
    /// 0 only with `echo`.
    #[schema(minimum = 0)]
    pub max_tokens: Option<u64>,
    #[schema(value_type = Option<Stop>)]
    pub stop: Option<Stop>,
    pub ignore_eos: Option<bool>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub return_progress: Option<bool>,
    /// Choices for each prompt.
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<u32>,
    /// Sequences of which the `n` most likely are the choices.
    #[schema(minimum = 1)]
    pub best_of: Option<u32>,
    /// The answer begins with the prompt.
    pub echo: Option<bool>,
    /// Log probabilities of the tokens, and of so many of the likeliest at each place.
    #[schema(minimum = 0, maximum = 5)]
    pub logprobs: Option<u32>,
    pub guided_regex: Option<String>,
    pub guided_grammar: Option<String>,
    #[schema(min_items = 1)]
    pub guided_choice: Option<Vec<String>>,
    #[schema(value_type = Option<Value>)]
    pub guided_json: Option<Value>,
    /// Accepted and without effect.
    pub user: Option<String>,
}

#[derive(ToSchema, serde::Serialize)]
#[serde(untagged)]
pub enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    TokenLists(Vec<Vec<u32>>),
}

/// The whole answer.
#[derive(ToSchema)]
pub struct Completion {
    #[schema(example = "cmpl-0")]
    pub id: String,
    #[schema(example = "text_completion")]
    pub object: String,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub choices: Vec<CompletionChoice>,
    pub usage: Usage,
}

#[derive(ToSchema)]
pub struct CompletionChoice {
    pub index: u32,
    pub text: String,
    /// `stop` or `length`
    pub finish_reason: String,
    #[schema(value_type = Option<Object>)]
    pub logprobs: Option<Value>,
}
