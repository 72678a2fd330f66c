//! From the bytes of a body to a validated request. Unknown fields are ignored; null is absent.

pub mod chat;
pub mod completion;
pub mod fields;
pub mod limits;
mod messages;
pub mod options;
pub mod response_format;
pub mod tool_choice;
mod tools;

use serde_json::Value;

use crate::http::error::ApiError;

/// The JSON text of a body. Nesting is limited to 128 levels.
pub fn parse_json(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Err(ApiError::malformed("the body is empty; send a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| ApiError::InvalidRequest {
        // The parser's message tells place and cause, and quotes nothing of the body.
        message: format!("the body is not valid JSON: {error}"),
        parameter: None,
        code: "invalid_json",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_bodies_say_where() {
        for (body, part) in [
            (&b""[..], "empty"),
            (b"{", "line 1 column 1"),
            (b"{\"temperature\": NaN}", "line 1"),
            (b"{\"temperature\": 1e999}", "out of range"),
            (b"\xff\xfe", "line 1"),
            (b"{\"a\":\"\xff\"}", "line 1"),
        ] {
            let error = parse_json(body).unwrap_err();
            assert_eq!(error.status(), 400);
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let body = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
        let error = parse_json(&body).unwrap_err();
        assert!(error.to_string().contains("recursion limit"), "{error}");
    }
}
