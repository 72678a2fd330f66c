//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use serde_json::Value;
use utoipa::ToSchema;

/// Unknown fields are ignored.
#[derive(ToSchema)]
pub struct MessagesRequest {
    /// A model's id or alias; without it, the model that is loaded.
    pub model: Option<String>,
    #[schema(min_items = 1)]
    pub messages: Vec<AnthropicMessage>,
    #[schema(minimum = 1)]
    pub max_tokens: u64,
    /// Text, or blocks of type `text`.
    #[schema(value_type = Option<Value>)]
    pub system: Option<Value>,
    #[schema(minimum = 0, maximum = 1)]
    pub temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    #[schema(minimum = 0)]
    pub top_k: Option<i64>,
    pub stop_sequences: Option<Vec<String>>,
    pub stream: Option<bool>,
    pub tools: Option<Vec<AnthropicTool>>,
    /// `{"type": "auto" | "any" | "tool" | "none", …}`
    #[schema(value_type = Option<Object>)]
    pub tool_choice: Option<Value>,
    /// `{"type": "enabled" | "disabled", …}`
    #[schema(value_type = Option<Object>)]
    pub thinking: Option<Value>,
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
}

#[derive(ToSchema)]
pub struct CountTokensRequest {
    pub model: Option<String>,
    #[schema(min_items = 1)]
    pub messages: Vec<AnthropicMessage>,
    #[schema(value_type = Option<Value>)]
    pub system: Option<Value>,
    pub tools: Option<Vec<AnthropicTool>>,
}

#[derive(ToSchema)]
pub struct AnthropicMessage {
    /// `user` or `assistant`
    pub role: String,
    pub content: AnthropicContent,
}

#[derive(ToSchema, serde::Serialize)]
#[serde(untagged)]
pub enum AnthropicContent {
    Text(String),
    /// Blocks of type `text`, `tool_use`, `tool_result` and `thinking`.
    Blocks(Vec<Value>),
}

#[derive(ToSchema)]
pub struct AnthropicTool {
    #[schema(min_length = 1, max_length = 256)]
    pub name: String,
    pub description: Option<String>,
    /// The JSON schema of the input.
    #[schema(value_type = Object)]
    pub input_schema: Value,
}

/// The whole answer.
#[derive(ToSchema)]
pub struct AnthropicAnswer {
    #[schema(example = "msg_0")]
    pub id: String,
    #[schema(rename = "type", example = "message")]
    pub kind: String,
    pub role: String,
    pub model: String,
    #[schema(value_type = Vec<Object>)]
    pub content: Vec<Value>,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`
    pub stop_reason: Option<String>,
    pub stop_sequence: Option<String>,
    pub usage: AnthropicUsage,
}

#[derive(ToSchema)]
pub struct AnthropicUsage {
    /// Without those read from the cache.
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_read_input_tokens: Option<u64>,
    pub cache_creation_input_tokens: Option<u64>,
}

#[derive(ToSchema)]
pub struct TokenCount {
    pub input_tokens: u64,
}
