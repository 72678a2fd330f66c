//! Reading a request's body within its limits.

use std::time::Duration;

use actix_web::error::PayloadError;
use actix_web::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};

use super::error::ApiError;

/// Reads a body of at most `limit` bytes that arrives within `timeout`.
///
/// # Errors
/// 413, 408, and 400 for a body that ends early or is encoded.
pub async fn read_body(
    payload: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin,
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

async fn collect(
    mut payload: impl Stream<Item = Result<Bytes, PayloadError>> + Unpin,
    limit: usize,
) -> Result<Bytes, ApiError> {
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

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;
    use futures_util::stream;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    fn pieces(pieces: &[&'static str]) -> impl Stream<Item = Result<Bytes, PayloadError>> + Unpin {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Bytes::from_static(piece.as_bytes())))
            .collect();
        stream::iter(pieces)
    }

    #[actix_web::test]
    async fn pieces_are_put_together_up_to_the_limit() {
        let none = HeaderMap::new();
        let body = read_body(pieces(&["ab", "cd"]), &none, 4, LONG).await;
        assert_eq!(body.unwrap(), "abcd");
        let body = read_body(pieces(&["ab", "cd", "e"]), &none, 4, LONG).await;
        assert_eq!(body.unwrap_err(), ApiError::BodyTooLarge { limit: 4 });
    }

    #[actix_web::test]
    async fn a_length_above_the_limit_is_refused_unread() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("5"));
        let body = read_body(stream::pending(), &headers, 4, LONG).await;
        assert_eq!(body.unwrap_err(), ApiError::BodyTooLarge { limit: 4 });
    }

    #[actix_web::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let short = Duration::from_millis(10);
        let body = read_body(stream::pending(), &HeaderMap::new(), 4, short).await;
        assert_eq!(body.unwrap_err().status(), 408);
    }

    #[actix_web::test]
    async fn a_body_that_ends_early_is_malformed() {
        let cut = stream::iter([
            Ok(Bytes::from_static(b"a")),
            Err(PayloadError::Incomplete(None)),
        ]);
        let body = read_body(cut, &HeaderMap::new(), 4, LONG).await;
        assert!(body.unwrap_err().to_string().contains("ended early"));
    }

    #[actix_web::test]
    async fn encoded_bodies_are_refused() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        let body = read_body(pieces(&["ab"]), &headers, 4, LONG).await;
        assert_eq!(body.unwrap_err().status(), 400);
    }
}
