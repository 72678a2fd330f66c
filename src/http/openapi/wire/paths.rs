//! The routes. The functions exist only to be described.

use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use super::anthropic::{AnthropicAnswer, CountTokensRequest, MessagesRequest, TokenCount};
use super::chat::{ChatCompletion, ChatCompletionRequest, StreamError};
use super::completions::{Completion, CompletionRequest};
use super::errors::{AnthropicErrors, OllamaErrors, OpenAiErrors};
use super::ollama::{
    OllamaAnswer, OllamaChatRequest, OllamaGenerateRequest, OllamaShowRequest, OllamaTags,
    OllamaVersion,
};
use super::responses::{Response, ResponseRequest};
use super::server::{Health, Model, Models};
use super::tokens::{
    ApplyTemplateRequest, DetokenizeRequest, RenderedPrompt, TokenizeRequest, Tokens,
};

/// Trunkline's API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Trunkline",
        description = "OpenAI-compatible inference server for many parallel agent clients on one machine.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    paths(
        chat_completions, completions, models, model, health, metrics,
        responses, response, delete_response, response_input_items, cancel_response,
        messages, count_message_tokens,
        ollama_chat, ollama_generate, ollama_tags, ollama_ps, ollama_show, ollama_version,
        tokenize, detokenize, apply_template, chat_input_tokens, response_input_tokens,
    ),
    components(schemas(StreamError)),
    modifiers(&Keys),
)]
pub struct Description;

/// Keys are needed only where the server was given some.
struct Keys;

impl utoipa::Modify for Keys {
    fn modify(&self, description: &mut utoipa::openapi::OpenApi) {
        let components = description.components.get_or_insert_default();
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("key", bearer);
    }
}

/// Answers a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "OpenAI", request_body = ChatCompletionRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The answer; with `stream`, chunks of it", content(
        (ChatCompletion = "application/json"), (String = "text/event-stream"))), OpenAiErrors))]
fn chat_completions() {}

/// Continues texts.
#[utoipa::path(post, path = "/v1/completions", tag = "OpenAI", request_body = CompletionRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The answer; with `stream`, chunks of it", content(
        (Completion = "application/json"), (String = "text/event-stream"))), OpenAiErrors))]
fn completions() {}

/// The models that can be asked for.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", security((), ("key" = [])),
    responses((status = 200, description = "The models", body = Models), OpenAiErrors))]
fn models() {}

/// One model.
#[utoipa::path(get, path = "/v1/models/{id}", tag = "OpenAI", security((), ("key" = [])),
    params(("id" = String, Path, description = "Id or alias; may hold slashes")),
    responses((status = 200, description = "The model", body = Model), OpenAiErrors))]
fn model() {}

/// The server's state.
#[utoipa::path(get, path = "/health", tag = "Server",
    responses((status = 200, description = "Ready", body = Health),
        (status = 405, description = "The path has no such method"),
        (status = 503, description = "Not ready, or no more", body = Health)))]
fn health() {}

/// For Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Server",
    responses((status = 200, description = "All metrics", body = String, content_type = "text/plain"),
        (status = 405, description = "The path has no such method")))]
fn metrics() {}

/// Answers a conversation, and keeps the answer unless told not to.
#[utoipa::path(post, path = "/v1/responses", tag = "OpenAI", request_body = ResponseRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The answer; with `stream`, its events", content(
        (Response = "application/json"), (String = "text/event-stream"))), OpenAiErrors))]
fn responses() {}

/// A stored response.
#[utoipa::path(get, path = "/v1/responses/{id}", tag = "OpenAI", security((), ("key" = [])),
    params(("id" = String, Path, description = "The response's id")),
    responses((status = 200, description = "The response", body = Response), OpenAiErrors))]
fn response() {}

/// Forgets a stored response.
#[utoipa::path(delete, path = "/v1/responses/{id}", tag = "OpenAI", security((), ("key" = [])),
    params(("id" = String, Path, description = "The response's id")),
    responses((status = 200, description = "It is forgotten", body = Object), OpenAiErrors))]
fn delete_response() {}

/// What a stored response was made from.
#[utoipa::path(get, path = "/v1/responses/{id}/input_items", tag = "OpenAI", security((), ("key" = [])),
    params(("id" = String, Path, description = "The response's id")),
    responses((status = 200, description = "The items", body = Object), OpenAiErrors))]
fn response_input_items() {}

/// Ends a response that is being generated.
#[utoipa::path(post, path = "/v1/responses/{id}/cancel", tag = "OpenAI", security((), ("key" = [])),
    params(("id" = String, Path, description = "The response's id")),
    responses((status = 200, description = "The response as far as it came", body = Response), OpenAiErrors))]
fn cancel_response() {}

/// Answers a conversation, as Anthropic's API does.
#[utoipa::path(post, path = "/v1/messages", tag = "Anthropic", request_body = MessagesRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The answer; with `stream`, its events", content(
        (AnthropicAnswer = "application/json"), (String = "text/event-stream"))), AnthropicErrors))]
fn messages() {}

/// Counts the tokens of a conversation.
#[utoipa::path(post, path = "/v1/messages/count_tokens", tag = "Anthropic", request_body = CountTokensRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The count", body = TokenCount), AnthropicErrors))]
fn count_message_tokens() {}

/// Answers a conversation, as Ollama does.
#[utoipa::path(post, path = "/api/chat", tag = "Ollama", request_body = OllamaChatRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The answer; by default one JSON object a line", content(
        (OllamaAnswer = "application/json"), (String = "application/x-ndjson"))), OllamaErrors))]
fn ollama_chat() {}

/// Answers a prompt, as Ollama does.
#[utoipa::path(post, path = "/api/generate", tag = "Ollama", request_body = OllamaGenerateRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The answer; by default one JSON object a line", content(
        (OllamaAnswer = "application/json"), (String = "application/x-ndjson"))), OllamaErrors))]
fn ollama_generate() {}

/// The models that can be asked for.
#[utoipa::path(get, path = "/api/tags", tag = "Ollama", security((), ("key" = [])),
    responses((status = 200, description = "The models", body = OllamaTags), OllamaErrors))]
fn ollama_tags() {}

/// The models that are loaded.
#[utoipa::path(get, path = "/api/ps", tag = "Ollama", security((), ("key" = [])),
    responses((status = 200, description = "The models", body = OllamaTags), OllamaErrors))]
fn ollama_ps() {}

/// About a model.
#[utoipa::path(post, path = "/api/show", tag = "Ollama", request_body = OllamaShowRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "What is known of it", body = Object), OllamaErrors))]
fn ollama_show() {}

/// The server's version.
#[utoipa::path(get, path = "/api/version", tag = "Ollama", security((), ("key" = [])),
    responses((status = 200, description = "The version", body = OllamaVersion), OllamaErrors))]
fn ollama_version() {}

/// The tokens of a text or conversation.
#[utoipa::path(post, path = "/tokenize", tag = "Helpers", request_body = TokenizeRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The tokens", body = Tokens), OpenAiErrors))]
fn tokenize() {}

/// The text of tokens.
#[utoipa::path(post, path = "/detokenize", tag = "Helpers", request_body = DetokenizeRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The text", body = Object), OpenAiErrors))]
fn detokenize() {}

/// A conversation as the model reads it.
#[utoipa::path(post, path = "/apply-template", tag = "Helpers", request_body = ApplyTemplateRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The text", body = RenderedPrompt), OpenAiErrors))]
fn apply_template() {}

/// How many tokens a chat's prompt has.
#[utoipa::path(post, path = "/v1/chat/completions/input_tokens", tag = "Helpers",
    request_body = ChatCompletionRequest, security((), ("key" = [])),
    responses((status = 200, description = "The count", body = Object), OpenAiErrors))]
fn chat_input_tokens() {}

/// How many tokens a response's prompt has.
#[utoipa::path(post, path = "/v1/responses/input_tokens", tag = "Helpers", request_body = ResponseRequest,
    security((), ("key" = [])),
    responses((status = 200, description = "The count", body = Object), OpenAiErrors))]
fn response_input_tokens() {}
