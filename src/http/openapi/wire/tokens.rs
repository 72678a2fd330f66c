//! Tokens and templates.

use serde_json::Value;
use utoipa::ToSchema;

use super::chat::{Message, Tool};

/// One of `content` (or `prompt`) and `messages`.
#[derive(ToSchema)]
pub struct TokenizeRequest {
    pub model: Option<String>,
    pub content: Option<String>,
    /// The same as `content`.
    pub prompt: Option<String>,
    pub messages: Option<Vec<Message>>,
    pub tools: Option<Vec<Tool>>,
    pub add_special_tokens: Option<bool>,
}

#[derive(ToSchema)]
pub struct Tokens {
    pub tokens: Vec<u32>,
    pub count: u64,
}

#[derive(ToSchema)]
pub struct DetokenizeRequest {
    pub model: Option<String>,
    pub tokens: Vec<u32>,
}

#[derive(ToSchema)]
pub struct ApplyTemplateRequest {
    pub model: Option<String>,
    pub messages: Vec<Message>,
    pub tools: Option<Vec<Tool>>,
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Value>,
    pub continue_final_message: Option<bool>,
    pub add_generation_prompt: Option<bool>,
}

#[derive(ToSchema)]
pub struct RenderedPrompt {
    pub prompt: String,
}
