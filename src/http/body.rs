//! Reading a request's body within its limits.

use std::time::Duration;

use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use actix_web::web;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use super::error::ApiError;

/// Reads a body of at most `limit` bytes that arrives within `timeout`.
///
/// # Errors
/// 413, 408, and 400 for a body that ends early or is encoded.
pub async fn read_body(
    payload: &mut web::Payload,
    headers: &HeaderMap,
    limit: usize,
    timeout: Duration,
) -> Result<Bytes, ApiError> {
    let declared = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limit) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return Err(ApiError::malformed(
            "encoded request bodies (Content-Encoding) are not supported",
        ));
    }
    match tokio::time::timeout(timeout, collect(payload, limit)).await {
        Ok(body) => body,
        Err(_) => Err(ApiError::RequestTimeout(timeout)),
    }
}

async fn collect(payload: &mut web::Payload, limit: usize) -> Result<Bytes, ApiError> {
    let mut body = BytesMut::new();
    while let Some(piece) = payload.next().await {
        let piece = piece.map_err(|error| match error {
            PayloadError::Incomplete(_) => ApiError::malformed("the request body ended early"),
            error => ApiError::malformed(format!("the request body could not be read: {error}")),
        })?;
        if body.len() + piece.len() > limit {
            return Err(ApiError::BodyTooLarge { limit });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}
