//! `POST /v1/chat/completions`.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

use super::errors::OpenAiErrorBody;

/// What both generating endpoints of OpenAI's API take. Unknown fields are ignored, null is absent.
#[derive(ToSchema)]
pub struct ChatCompletionRequest {
    /// A model's id or alias; without it, the model that is loaded.
    pub model: Option<String>,
    #[schema(min_items = 1, max_items = 16384)]
    pub messages: Vec<Message>,
    /// 0 is greedy.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    pub top_p: Option<f64>,
    /// Only the most likely so many; 0 and -1 are all.
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
    /// Added to the logits of these tokens, by id.
    #[schema(value_type = Option<BTreeMap<String, f64>>)]
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub seed: Option<i64>,
    #[schema(minimum = 1)]
    pub max_tokens: Option<u64>,
    /// The same as `max_tokens`, which it overrides.
    #[schema(minimum = 1)]
    pub max_completion_tokens: Option<u64>,
    /// One string, or several.
    #[schema(value_type = Option<Stop>)]
    pub stop: Option<Stop>,
    pub ignore_eos: Option<bool>,
    pub stream: Option<bool>,
    /// Only with `stream`.
    pub stream_options: Option<StreamOptions>,
    /// Progress of the prompt on the stream's chunks (as llama-server has it).
    pub return_progress: Option<bool>,
    /// Choices; the prompt is computed once.
    #[schema(minimum = 1, maximum = 128)]
    pub n: Option<u32>,
    /// Log probabilities of the answer's tokens, before penalties, bias and temperature.
    pub logprobs: Option<bool>,
    /// Only with `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    pub top_logprobs: Option<u32>,
    #[schema(max_items = 1024)]
    pub tools: Option<Vec<Tool>>,
    /// `none`, `auto`, `required`, a function, or `allowed_tools`.
    #[schema(value_type = Option<Value>)]
    pub tool_choice: Option<Value>,
    pub parallel_tool_calls: Option<bool>,
    /// `text`, `json_object` or `json_schema`.
    pub response_format: Option<ResponseFormat>,
    /// A JSON schema (an object, or its text) that the answer follows.
    #[schema(value_type = Option<Value>)]
    pub guided_json: Option<Value>,
    /// A regular expression that the whole answer matches.
    pub guided_regex: Option<String>,
    /// A grammar in Lark's notation.
    pub guided_grammar: Option<String>,
    /// The answer is one of these.
    #[schema(min_items = 1)]
    pub guided_choice: Option<Vec<String>>,
    /// The same, as vLLM spells it now: `json`, `regex`, `choice` or `grammar`.
    #[schema(value_type = Option<Object>)]
    pub structured_outputs: Option<Value>,
    /// Given to the template, and whether to think where it only knows that.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Variables for the chat template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<Value>,
    /// The answer goes on with the last message, which is the assistant's.
    pub continue_final_message: Option<bool>,
    pub add_generation_prompt: Option<bool>,
    /// `timings` on the answer, or on a stream's final chunk.
    pub timings: Option<bool>,
    /// Accepted and without effect.
    pub user: Option<String>,
    /// Accepted and without effect.
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<Value>,
    /// Accepted and without effect.
    pub store: Option<bool>,
    /// Accepted and without effect.
    pub service_tier: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum ReasoningEffort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    Xhigh,
}

#[derive(ToSchema, serde::Serialize)]
#[serde(untagged)]
pub enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(ToSchema)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: Option<bool>,
    /// Accepted and without effect.
    pub include_obfuscation: Option<bool>,
}

/// A message of the conversation.
#[derive(ToSchema)]
pub struct Message {
    pub role: Role,
    /// Text, or parts of type `text`. May be absent only in the assistant's and tools' messages.
    pub content: Option<Content>,
    pub name: Option<String>,
    /// The assistant's: what it thought.
    pub reasoning_content: Option<String>,
    /// The assistant's.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// Required in a tool's message: the call that it answers.
    pub tool_call_id: Option<String>,
}

#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(ToSchema, serde::Serialize)]
#[serde(untagged)]
pub enum Content {
    Text(String),
    Parts(Vec<ContentPart>),
}

#[derive(ToSchema, serde::Serialize)]
pub struct ContentPart {
    /// `text`
    #[serde(rename = "type")]
    pub kind: String,
    pub text: String,
}

#[derive(ToSchema)]
pub struct ToolCall {
    pub id: Option<String>,
    /// `function`
    #[schema(rename = "type")]
    pub kind: Option<String>,
    pub function: FunctionCall,
}

#[derive(ToSchema)]
pub struct FunctionCall {
    #[schema(min_length = 1, max_length = 256)]
    pub name: String,
    /// JSON text.
    pub arguments: String,
}

#[derive(ToSchema)]
pub struct Tool {
    /// `function`
    #[schema(rename = "type")]
    pub kind: String,
    pub function: Function,
}

#[derive(ToSchema)]
pub struct Function {
    #[schema(min_length = 1, max_length = 256)]
    pub name: String,
    pub description: Option<String>,
    /// The JSON schema of the arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    pub strict: Option<bool>,
}

#[derive(ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object` or `json_schema`
    #[schema(rename = "type")]
    pub kind: String,
    pub json_schema: Option<JsonSchemaFormat>,
}

#[derive(ToSchema)]
pub struct JsonSchemaFormat {
    #[schema(pattern = "^[a-zA-Z0-9_-]{1,64}$")]
    pub name: String,
    pub description: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
    pub strict: Option<bool>,
}

/// The whole answer.
#[derive(ToSchema)]
pub struct ChatCompletion {
    #[schema(example = "chatcmpl-0")]
    pub id: String,
    #[schema(example = "chat.completion")]
    pub object: String,
    pub created: u64,
    pub model: String,
    pub system_fingerprint: String,
    pub choices: Vec<ChatChoice>,
    pub usage: Usage,
}

#[derive(ToSchema)]
pub struct ChatChoice {
    pub index: u32,
    pub message: AnswerMessage,
    /// `stop`, `length` or `tool_calls`
    pub finish_reason: String,
    #[schema(value_type = Option<Object>)]
    pub logprobs: Option<Value>,
}

#[derive(ToSchema)]
pub struct AnswerMessage {
    pub role: String,
    pub content: Option<String>,
    pub reasoning_content: Option<String>,
    #[schema(required = false)]
    pub tool_calls: Option<Vec<ToolCall>>,
}

#[derive(ToSchema)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    pub prompt_tokens_details: Option<PromptTokensDetails>,
    pub completion_tokens_details: Option<CompletionTokensDetails>,
}

#[derive(ToSchema)]
pub struct PromptTokensDetails {
    /// Taken from the prefix cache.
    pub cached_tokens: u64,
}

#[derive(ToSchema)]
pub struct CompletionTokensDetails {
    pub reasoning_tokens: u64,
}

/// What a streamed answer consists of: `data:` lines with chunks of an answer, `data: [DONE]` at the end; an error
/// after the first chunk is a line `data: {"error": …}`.
#[derive(ToSchema)]
pub struct StreamError {
    pub error: OpenAiErrorBody,
}
