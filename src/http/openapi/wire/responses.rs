//! `POST /v1/responses` and what belongs to it.

use serde_json::Value;
use utoipa::ToSchema;

use super::chat::ReasoningEffort;

/// Unknown fields are ignored, null is absent.
#[derive(ToSchema)]
pub struct ResponseRequest {
    /// A model's id or alias; without it, the model that is loaded.
    pub model: Option<String>,
    pub input: Option<ResponseInput>,
    /// A system message before everything else.
    pub instructions: Option<String>,
    /// The conversation goes on from that stored response.
    pub previous_response_id: Option<String>,
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u64>,
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    #[schema(max_items = 1024)]
    pub tools: Option<Vec<ResponseTool>>,
    /// `none`, `auto`, `required`, or a function.
    #[schema(value_type = Option<Value>)]
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    pub text: Option<ResponseText>,
    pub reasoning: Option<ResponseReasoning>,
    pub stream: Option<bool>,
    /// Keep the response for `previous_response_id` and `GET`; true without it.
    pub store: Option<bool>,
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    pub user: Option<String>,
}

#[derive(ToSchema, serde::Serialize)]
#[serde(untagged)]
pub enum ResponseInput {
    Text(String),
    Items(Vec<InputItem>),
}

/// A message, a call, its output, or reasoning.
#[derive(ToSchema, serde::Serialize)]
pub struct InputItem {
    /// `message` (also without it), `function_call`, `function_call_output` or `reasoning`
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub role: Option<String>,
    /// Text, or parts of type `input_text` and `output_text`.
    #[schema(value_type = Option<Value>)]
    pub content: Option<Value>,
    pub id: Option<String>,
    pub call_id: Option<String>,
    pub name: Option<String>,
    pub arguments: Option<String>,
    #[schema(value_type = Option<Value>)]
    pub output: Option<Value>,
}

#[derive(ToSchema)]
pub struct ResponseTool {
    /// `function`
    #[schema(rename = "type")]
    pub kind: String,
    pub name: String,
    pub description: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    pub strict: Option<bool>,
}

#[derive(ToSchema)]
pub struct ResponseText {
    /// `{"type": "text" | "json_object" | "json_schema", …}`
    #[schema(value_type = Option<Object>)]
    pub format: Option<Value>,
}

#[derive(ToSchema)]
pub struct ResponseReasoning {
    pub effort: Option<ReasoningEffort>,
}

/// A response, whole, or as far as it has come.
#[derive(ToSchema)]
pub struct Response {
    #[schema(example = "resp_0")]
    pub id: String,
    #[schema(example = "response")]
    pub object: String,
    pub created_at: f64,
    /// `completed`, `incomplete`, `failed`, `cancelled` or `in_progress`
    pub status: String,
    pub model: String,
    /// Messages, function calls, reasoning.
    #[schema(value_type = Vec<Object>)]
    pub output: Vec<Value>,
    #[schema(value_type = Option<Object>)]
    pub usage: Option<Value>,
}
