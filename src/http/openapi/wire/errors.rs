//! Errors, in the three shapes that clients know.

use utoipa::{IntoResponses, ToSchema};

/// An error as OpenAI's API tells it.
#[derive(ToSchema)]
pub struct OpenAiError {
    pub error: OpenAiErrorBody,
}

#[derive(ToSchema)]
pub struct OpenAiErrorBody {
    /// What is wrong and how to mend it.
    pub message: String,
    #[schema(rename = "type", example = "invalid_request_error")]
    pub kind: String,
    /// The field that is wrong, as a path.
    #[schema(example = "messages[0].role")]
    pub param: Option<String>,
    #[schema(example = "invalid_value")]
    pub code: Option<String>,
}

/// An error as Anthropic's API tells it.
#[derive(ToSchema)]
pub struct AnthropicError {
    #[schema(rename = "type", example = "error")]
    pub kind: String,
    pub error: AnthropicErrorBody,
    pub request_id: Option<String>,
}

#[derive(ToSchema)]
pub struct AnthropicErrorBody {
    #[schema(rename = "type", example = "invalid_request_error")]
    pub kind: String,
    pub message: String,
}

/// An error as Ollama tells it.
#[derive(ToSchema)]
pub struct OllamaError {
    pub error: String,
}

/// Which statuses a route that generates or counts can answer with, beside success, in one API's shape.
macro_rules! errors {
    ($(#[$about:meta])* $name:ident, $body:ty) => {
        $(#[$about])*
        #[derive(IntoResponses)]
                pub enum $name {
            /// The request is malformed or asks for something impossible; the message names the field.
            #[response(status = 400)]
            BadRequest(#[to_schema] $body),
            /// No key, or a wrong one.
            #[response(status = 401)]
            Unauthorized(#[to_schema] $body),
            /// The model (or the object named in the path) does not exist.
            #[response(status = 404)]
            NotFound(#[to_schema] $body),
            /// The path has no such method.
            #[response(status = 405)]
            MethodNotAllowed(#[to_schema] $body),
            /// The body did not arrive in time.
            #[response(status = 408)]
            RequestTimeout(#[to_schema] $body),
            /// The body is too large.
            #[response(status = 413)]
            TooLarge(#[to_schema] $body),
            /// The waiting queue is full; `Retry-After` says when to try again.
            #[response(status = 429)]
            TooManyRequests(#[to_schema] $body),
            /// A model is being loaded, or the server shuts down; see `Retry-After`.
            #[response(status = 503)]
            Unavailable(#[to_schema] $body),
            /// The request did not finish before its deadline.
            #[response(status = 504)]
            DeadlineExceeded(#[to_schema] $body),
        }
    };
}

errors!(
    /// Of the routes under `/v1` but Anthropic's, and of the helpers.
    OpenAiErrors, OpenAiError
);
errors!(
    /// Of `/v1/messages`.
    AnthropicErrors, AnthropicError
);
errors!(
    /// Of `/api`.
    OllamaErrors, OllamaError
);
