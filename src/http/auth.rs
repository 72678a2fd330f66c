//! Bearer keys.

use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use subtle::{Choice, ConstantTimeEq};

use super::error::ApiError;

/// The keys that clients may present.
#[derive(Clone)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    pub fn new(keys: Vec<String>) -> Self {
        Self(keys)
    }

    /// Checks a request's `Authorization: Bearer KEY`. Without configured keys everyone may call.
    ///
    /// The time it takes tells nothing about the keys but their lengths.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`].
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        let Some(value) = headers.get(AUTHORIZATION) else {
            return Err(ApiError::Unauthorized(
                "an API key is required: send `Authorization: Bearer KEY`",
            ));
        };
        let key = match value.as_bytes().split_at_checked(7) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key.trim_ascii(),
            _ => {
                return Err(ApiError::Unauthorized(
                    "the Authorization header must be `Bearer KEY`",
                ));
            }
        };
        // All keys are compared, whichever matches.
        let found = self.0.iter().fold(Choice::from(0), |found, known| {
            found | known.as_bytes().ct_eq(key)
        });
        if bool::from(found) {
            Ok(())
        } else {
            Err(ApiError::Unauthorized("the API key is not valid"))
        }
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn check(keys: &[&str], header: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(header) = header {
            headers.insert(AUTHORIZATION, HeaderValue::from_str(header).unwrap());
        }
        ApiKeys::new(keys.iter().map(|key| key.to_string()).collect())
            .check(&headers)
            .is_ok()
    }

    #[test]
    fn any_configured_key_opens() {
        assert!(check(&["one", "two"], Some("Bearer one")));
        assert!(check(&["one", "two"], Some("bearer two")));
        assert!(check(&["one"], Some("Bearer  one ")));
        for wrong in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Bearer on"),
            Some("Bearer onee"),
            Some("one"),
            Some("Basic one"),
        ] {
            assert!(!check(&["one", "two"], wrong), "{wrong:?}");
        }
    }

    #[test]
    fn without_keys_everyone_may_call() {
        assert!(check(&[], None));
        assert!(check(&[], Some("Bearer whatever")));
    }
}
