//! Cross-origin headers, for the origins that the configuration names.

use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, HeaderMap, HeaderValue, ORIGIN, VARY,
};

/// Headers that browsers may send.
const ALLOWED_HEADERS: &str = "Content-Type, Authorization, X-Prefill-Progress, X-SwiftLM-Prefill-Progress, X-Api-Key, \
     Anthropic-Version, Anthropic-Beta, Anthropic-Dangerous-Direct-Browser-Access";

/// Which origins may call.
#[derive(Debug, Clone)]
pub enum CorsPolicy {
    /// No CORS headers.
    Off,
    Any,
    Origins(Vec<String>),
}

impl CorsPolicy {
    pub fn new(origins: &[String]) -> Self {
        match origins {
            [] => CorsPolicy::Off,
            origins if origins.iter().any(|origin| origin == "*") => CorsPolicy::Any,
            origins => CorsPolicy::Origins(origins.to_vec()),
        }
    }

    /// Adds what a browser needs to let the page read a response.
    pub fn apply(&self, request: &HeaderMap, response: &mut HeaderMap, preflight: bool) {
        let allowed = match self {
            CorsPolicy::Off => return,
            CorsPolicy::Any => HeaderValue::from_static("*"),
            CorsPolicy::Origins(origins) => {
                response.append(VARY, HeaderValue::from_static("Origin"));
                match request.get(ORIGIN) {
                    Some(origin)
                        if origins
                            .iter()
                            .any(|known| known.as_bytes() == origin.as_bytes()) =>
                    {
                        origin.clone()
                    }
                    _ => return,
                }
            }
        };
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        response.insert(
            ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("X-Request-Id, Retry-After"),
        );
        if preflight {
            response.insert(
                ACCESS_CONTROL_ALLOW_METHODS,
                HeaderValue::from_static("GET, POST, DELETE, OPTIONS"),
            );
            response.insert(
                ACCESS_CONTROL_ALLOW_HEADERS,
                HeaderValue::from_static(ALLOWED_HEADERS),
            );
            response.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
        }
    }
}
