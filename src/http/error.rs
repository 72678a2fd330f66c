//! The one error type of the HTTP layer, and the one place where it becomes a status and a body.

use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, HttpResponseBuilder, ResponseError};
use serde_json::{Value, json};

use crate::actors::messages::{GenerationFailure, SubmitError};
use crate::actors::model_manager::AcquireError;
use crate::grammar::GrammarError;
use crate::prompt::PromptError;

/// The code of a 503 while the server shuts down.
pub const SHUTTING_DOWN: &str = "shutting_down";

/// Why a request was not answered. `Display` is the message that the client reads.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The request is malformed, or asks for something impossible.
    #[error("{message}")]
    InvalidRequest {
        message: String,
        /// The field that is wrong, as a path: `messages[2].content`.
        parameter: Option<String>,
        code: &'static str,
    },
    /// The prompt leaves no room in the context for a single token.
    #[error(
        "this model's maximum context length is {limit} tokens; the prompt has {prompt} tokens and {} for the \
         completion; shorten the prompt",
        requested.map_or_else(|| "leaves no room".to_owned(), |tokens| format!("{tokens} more were requested"))
    )]
    ContextLengthExceeded {
        limit: usize,
        prompt: usize,
        requested: Option<usize>,
        /// The field that holds the prompt.
        parameter: String,
    },
    /// No key, or one that is not configured.
    #[error("{0}")]
    Unauthorized(&'static str),
    #[error("no route for {0}; GET /openapi.json describes all routes, and /docs/ shows them")]
    RouteNotFound(String),
    #[error("Response with id '{0}' not found.")]
    ResponseNotFound(String),
    #[error("the model `{requested}` does not exist here; available: {}", available.join(", "))]
    ModelNotFound {
        requested: String,
        available: Vec<String>,
    },
    #[error("{method} is not allowed here; use {allowed}")]
    MethodNotAllowed {
        method: String,
        allowed: &'static str,
    },
    /// The request did not arrive in time.
    #[error("the request body did not arrive within {} seconds", .0.as_secs_f32())]
    RequestTimeout(Duration),
    #[error("the request body is larger than the limit of {limit} bytes")]
    BodyTooLarge { limit: usize },
    /// A limit is reached; the same request may succeed later.
    #[error("{message}")]
    TooManyRequests {
        message: String,
        retry_after: Duration,
    },
    /// Loading, draining, or out of connections.
    #[error("{message}")]
    Unavailable {
        message: String,
        code: &'static str,
        retry_after: Duration,
    },
    #[error("the request did not finish before its deadline")]
    DeadlineExceeded,
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// A 400 that names the field.
    pub fn invalid(parameter: impl Into<String>, message: impl Into<String>) -> Self {
        let parameter = parameter.into();
        ApiError::InvalidRequest {
            message: format!("`{parameter}` {}", message.into()),
            parameter: Some(parameter),
            code: "invalid_value",
        }
    }

    /// A 400 for something that is understood and not offered.
    pub fn unsupported(parameter: impl Into<String>, message: impl Into<String>) -> Self {
        let parameter = parameter.into();
        ApiError::InvalidRequest {
            message: format!("`{parameter}` {}", message.into()),
            parameter: Some(parameter),
            code: "unsupported_parameter",
        }
    }

    /// A 400 about the request as a whole.
    pub fn malformed(message: impl Into<String>) -> Self {
        ApiError::InvalidRequest {
            message: message.into(),
            parameter: None,
            code: "invalid_request",
        }
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            ApiError::InvalidRequest { .. } | ApiError::ContextLengthExceeded { .. } => {
                StatusCode::BAD_REQUEST
            }
            ApiError::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            ApiError::RouteNotFound(_)
            | ApiError::ResponseNotFound(_)
            | ApiError::ModelNotFound { .. } => StatusCode::NOT_FOUND,
            ApiError::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            ApiError::RequestTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            ApiError::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            ApiError::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            ApiError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ApiError::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            ApiError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// `error.type`.
    fn kind(&self) -> &'static str {
        match self {
            ApiError::Unauthorized(_) => "authentication_error",
            ApiError::TooManyRequests { .. } => "rate_limit_error",
            ApiError::Unavailable { .. } => "service_unavailable_error",
            ApiError::DeadlineExceeded | ApiError::RequestTimeout(_) => "timeout_error",
            ApiError::Internal(_) => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// `error.code`; also the `reason` under which a refusal is counted.
    pub fn code(&self) -> &'static str {
        match self {
            ApiError::InvalidRequest { code, .. } | ApiError::Unavailable { code, .. } => code,
            ApiError::ContextLengthExceeded { .. } => "context_length_exceeded",
            ApiError::Unauthorized(_) => "invalid_api_key",
            ApiError::RouteNotFound(_) => "unknown_url",
            ApiError::ResponseNotFound(_) => "response_not_found",
            ApiError::ModelNotFound { .. } => "model_not_found",
            ApiError::MethodNotAllowed { .. } => "method_not_allowed",
            ApiError::RequestTimeout(_) => "request_timeout",
            ApiError::BodyTooLarge { .. } => "request_too_large",
            ApiError::TooManyRequests { .. } => "queue_full",
            ApiError::DeadlineExceeded => "deadline_exceeded",
            ApiError::Internal(_) => "internal_error",
        }
    }

    /// `error.param`.
    fn parameter(&self) -> Option<&str> {
        match self {
            ApiError::InvalidRequest { parameter, .. } => parameter.as_deref(),
            ApiError::ContextLengthExceeded { parameter, .. } => Some(parameter),
            ApiError::ModelNotFound { .. } => Some("model"),
            _ => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            ApiError::TooManyRequests { retry_after, .. }
            | ApiError::Unavailable { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// The body of the response in OpenAI's words, and the data of a stream's error event.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.to_string(),
            "type": self.kind(),
            "param": self.parameter(),
            "code": self.code(),
        }})
    }

    /// The whole response, in OpenAI's words.
    pub fn response(&self) -> HttpResponse {
        self.response_head().json(self.body())
    }

    /// Status and headers of the response, whatever its words.
    pub fn response_head(&self) -> HttpResponseBuilder {
        let mut response = HttpResponse::build(self.status());
        if let Some(delay) = self.retry_after() {
            // Whole seconds, rounded up, at least one: 0 would invite a busy loop.
            let seconds = delay.as_millis().div_ceil(1000).max(1);
            response.insert_header((header::RETRY_AFTER, seconds.to_string()));
        }
        match self {
            ApiError::MethodNotAllowed { allowed, .. } => {
                response.insert_header((header::ALLOW, HeaderValue::from_static(allowed)));
            }
            ApiError::Unauthorized(_) => {
                response
                    .insert_header((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
            }
            _ => {}
        }
        response
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status()
    }

    fn error_response(&self) -> HttpResponse {
        self.response()
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { retry_after, .. } => ApiError::TooManyRequests {
                message,
                retry_after,
            },
            SubmitError::Draining => ApiError::Unavailable {
                message,
                code: SHUTTING_DOWN,
                retry_after: Duration::from_secs(5),
            },
            SubmitError::ExceedsPool { .. } => ApiError::InvalidRequest {
                message,
                parameter: None,
                code: "exceeds_kv_cache",
            },
            SubmitError::EngineGone => ApiError::Unavailable {
                message,
                code: "engine_stopped",
                retry_after: Duration::from_secs(5),
            },
        }
    }
}

impl From<AcquireError> for ApiError {
    fn from(error: AcquireError) -> Self {
        let message = error.to_string();
        match error {
            AcquireError::Unknown {
                requested,
                available,
            } => ApiError::ModelNotFound {
                requested,
                available,
            },
            AcquireError::NotReady { retry_after } => ApiError::Unavailable {
                message,
                code: "model_loading",
                retry_after,
            },
            AcquireError::QueueFull { retry_after, .. } => ApiError::TooManyRequests {
                message,
                retry_after,
            },
            AcquireError::Failed(_) => ApiError::Unavailable {
                message,
                code: "model_failed",
                retry_after: Duration::from_secs(30),
            },
            AcquireError::Draining => ApiError::Unavailable {
                message,
                code: SHUTTING_DOWN,
                retry_after: Duration::from_secs(5),
            },
        }
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        let (parameter, code) = match &error {
            PromptError::Template(_)
            | PromptError::TemplateFailed(_)
            | PromptError::TemplateLimit(_)
            | PromptError::NotContinuable(_) => (Some("messages"), "template_error"),
            PromptError::ReservedVariable(_) => (Some("chat_template_kwargs"), "invalid_value"),
            PromptError::NoTemplate => (None, "no_chat_template"),
            PromptError::Encode(_) => (None, "not_encodable"),
            PromptError::InvalidTemplate(_) => return ApiError::Internal(error.to_string()),
        };
        ApiError::InvalidRequest {
            message: error.to_string(),
            parameter: parameter.map(str::to_owned),
            code,
        }
    }
}

impl From<GrammarError> for ApiError {
    fn from(error: GrammarError) -> Self {
        match error {
            GrammarError::Invalid { field, message } => ApiError::invalid(field, message),
            GrammarError::Unavailable(_) => ApiError::InvalidRequest {
                message: error.to_string(),
                parameter: None,
                code: "structured_output_unavailable",
            },
        }
    }
}

impl From<GenerationFailure> for ApiError {
    fn from(failure: GenerationFailure) -> Self {
        let message = failure.to_string();
        match failure {
            GenerationFailure::DeadlineExceeded => ApiError::DeadlineExceeded,
            GenerationFailure::ShuttingDown => ApiError::Unavailable {
                message,
                code: SHUTTING_DOWN,
                retry_after: Duration::from_secs(5),
            },
            GenerationFailure::Engine(_) => ApiError::Internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_has_all_four_fields() {
        let error = ApiError::invalid("messages[2].content", "must be a string");
        assert_eq!(
            error.body(),
            json!({"error": {
                "message": "`messages[2].content` must be a string",
                "type": "invalid_request_error",
                "param": "messages[2].content",
                "code": "invalid_value",
            }})
        );
        assert_eq!(
            ApiError::Internal("x".into()).body()["error"]["param"],
            Value::Null
        );
    }

    #[test]
    fn retry_after_is_whole_seconds_and_never_zero() {
        let error = ApiError::TooManyRequests {
            message: "full".into(),
            retry_after: Duration::from_millis(20),
        };
        let response = error.response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers().get(header::RETRY_AFTER).unwrap(), "1");
        let error = ApiError::Unavailable {
            message: "loading".into(),
            code: "loading",
            retry_after: Duration::from_millis(2001),
        };
        assert_eq!(
            error.response().headers().get(header::RETRY_AFTER).unwrap(),
            "3"
        );
    }

    #[test]
    fn context_error_gives_the_counts() {
        let error = ApiError::ContextLengthExceeded {
            limit: 100,
            prompt: 120,
            requested: Some(7),
            parameter: "messages".into(),
        };
        let body = error.body();
        assert_eq!(body["error"]["code"], "context_length_exceeded");
        assert_eq!(body["error"]["type"], "invalid_request_error");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(
            message.contains("100") && message.contains("120") && message.contains('7'),
            "{message}"
        );
    }
}
