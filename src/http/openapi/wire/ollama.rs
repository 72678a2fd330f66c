//! `/api`.

use serde_json::Value;
use utoipa::ToSchema;

/// Unknown fields are ignored.
#[derive(ToSchema)]
pub struct OllamaChatRequest {
    pub model: Option<String>,
    /// `role`, `content`, `thinking`, `tool_calls`, `tool_name`.
    #[schema(value_type = Vec<Object>)]
    pub messages: Vec<Value>,
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<Value>>,
    /// One JSON object a line; true without it.
    pub stream: Option<bool>,
    /// `json`, or a JSON schema.
    #[schema(value_type = Option<Value>)]
    pub format: Option<Value>,
    /// `temperature`, `top_k`, `top_p`, `min_p`, `seed`, `num_predict`, `stop`, `repeat_penalty`, …
    #[schema(value_type = Option<Object>)]
    pub options: Option<Value>,
    /// Whether to think: a boolean, or `low`, `medium`, `high`.
    #[schema(value_type = Option<Value>)]
    pub think: Option<Value>,
    /// Accepted and without effect.
    #[schema(value_type = Option<Value>)]
    pub keep_alive: Option<Value>,
}

/// Unknown fields are ignored.
#[derive(ToSchema)]
pub struct OllamaGenerateRequest {
    pub model: Option<String>,
    pub prompt: Option<String>,
    pub system: Option<String>,
    /// The prompt goes to the model as it is, without the chat template.
    pub raw: Option<bool>,
    pub stream: Option<bool>,
    #[schema(value_type = Option<Value>)]
    pub format: Option<Value>,
    #[schema(value_type = Option<Object>)]
    pub options: Option<Value>,
    #[schema(value_type = Option<Value>)]
    pub think: Option<Value>,
    #[schema(value_type = Option<Value>)]
    pub keep_alive: Option<Value>,
}

/// The whole answer: `message` of a chat, `response` of a text.
#[derive(ToSchema)]
pub struct OllamaAnswer {
    pub model: String,
    pub created_at: String,
    #[schema(value_type = Option<Object>, required = false)]
    pub message: Option<Value>,
    #[schema(required = false)]
    pub response: Option<String>,
    pub done: bool,
    /// `stop` or `length`
    pub done_reason: Option<String>,
    /// Nanoseconds, as the other durations.
    pub total_duration: Option<u64>,
    pub prompt_eval_count: Option<u64>,
    pub eval_count: Option<u64>,
}

#[derive(ToSchema)]
pub struct OllamaTags {
    #[schema(value_type = Vec<Object>)]
    pub models: Vec<Value>,
}

#[derive(ToSchema)]
pub struct OllamaShowRequest {
    pub model: Option<String>,
}

#[derive(ToSchema)]
pub struct OllamaVersion {
    pub version: String,
}
