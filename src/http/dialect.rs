//! Errors in the words of the API that a request was sent to.

use actix_web::HttpResponse;
use serde_json::{Value, json};

use super::error::ApiError;

/// The code of a refusal that tells Anthropic's SDKs to send the whole conversation instead.
pub const THREAD_UNSUPPORTED: &str = "thread_unsupported_request";

/// Whose API a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    OpenAi,
    Anthropic,
    Ollama,
}

impl Dialect {
    /// By the path alone, so that refusals before any handler (unknown route, key, method) fit, too.
    pub fn of_path(path: &str) -> Self {
        let within = |root: &str| {
            path.strip_prefix(root)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if within("/v1/messages") {
            Dialect::Anthropic
        } else if within("/api") {
            Dialect::Ollama
        } else {
            Dialect::OpenAi
        }
    }

    /// The JSON of an error. Anthropic's has the request's id.
    pub fn error_body(self, error: &ApiError, request_id: &str) -> Value {
        match self {
            Dialect::OpenAi => error.body(),
            Dialect::Anthropic => {
                let mut told = json!({"type": anthropic_kind(error), "message": error.to_string()});
                if error.code() == THREAD_UNSUPPORTED {
                    told["details"] =
                        json!({"error_code": THREAD_UNSUPPORTED, "unsupported": ["thread"]});
                }
                json!({"type": "error", "error": told, "request_id": request_id})
            }
            Dialect::Ollama => json!({"error": error.to_string()}),
        }
    }

    /// The whole response to a request that is refused or has failed.
    pub fn error_response(self, error: &ApiError, request_id: &str) -> HttpResponse {
        error
            .response_head()
            .json(self.error_body(error, request_id))
    }
}

/// Anthropic's `error.type`.
fn anthropic_kind(error: &ApiError) -> &'static str {
    match error.status().as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_tell_the_dialect() {
        for (path, dialect) in [
            ("/v1/messages", Dialect::Anthropic),
            ("/v1/messages/count_tokens", Dialect::Anthropic),
            ("/v1/messagesx", Dialect::OpenAi),
            ("/api/chat", Dialect::Ollama),
            ("/apix", Dialect::OpenAi),
            ("/v1/responses", Dialect::OpenAi),
            ("/", Dialect::OpenAi),
        ] {
            assert_eq!(Dialect::of_path(path), dialect, "{path}");
        }
    }

    #[test]
    fn each_dialect_has_its_shape() {
        let error = ApiError::invalid("messages[0].role", "must be `user`");
        let message = "`messages[0].role` must be `user`";
        assert_eq!(
            Dialect::Anthropic.error_body(&error, "req_1"),
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": message},
                "request_id": "req_1"})
        );
        assert_eq!(
            Dialect::Ollama.error_body(&error, "req_1"),
            json!({"error": message})
        );
        let thread = ApiError::InvalidRequest {
            message: "no".into(),
            parameter: None,
            code: THREAD_UNSUPPORTED,
        };
        let details = Dialect::Anthropic.error_body(&thread, "")["error"]["details"].clone();
        assert_eq!(details["error_code"], THREAD_UNSUPPORTED);
        let body = Dialect::OpenAi.error_body(&error, "req_1");
        assert_eq!(body["error"]["param"], "messages[0].role");
        let kinds = [
            (ApiError::Unauthorized("x"), "authentication_error"),
            (ApiError::BodyTooLarge { limit: 1 }, "request_too_large"),
            (ApiError::DeadlineExceeded, "timeout_error"),
            (ApiError::Internal("x".into()), "api_error"),
            (ApiError::RouteNotFound("x".into()), "not_found_error"),
        ];
        for (error, kind) in kinds {
            assert_eq!(
                Dialect::Anthropic.error_body(&error, "")["error"]["type"],
                kind
            );
        }
    }
}
