//! API keys: `Authorization: Bearer KEY`, or `x-api-key: KEY` as Anthropic has it.

use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use subtle::{Choice, ConstantTimeEq};

use super::error::ApiError;

/// The header that Anthropic's clients send their key in.
const ANTHROPIC_KEY: &str = "x-api-key";

/// The keys that clients may present.
#[derive(Clone)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    pub fn new(keys: Vec<String>) -> Self {
        Self(keys)
    }

    /// Checks a request's `Authorization: Bearer KEY`, or its `x-api-key`. Without configured keys everyone
    /// may call.
    ///
    /// The time it takes tells nothing about the keys but their lengths.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`].
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        if let Some(key) = headers.get(ANTHROPIC_KEY)
            && self.holds(key.as_bytes().trim_ascii())
        {
            return Ok(());
        }
        let Some(value) = headers.get(AUTHORIZATION) else {
            return Err(ApiError::Unauthorized(match headers.get(ANTHROPIC_KEY) {
                Some(_) => "the API key is not valid",
                None => "an API key is required: send `Authorization: Bearer KEY`",
            }));
        };
        let key = match value.as_bytes().split_at_checked(7) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(b"bearer ") => key.trim_ascii(),
            _ => {
                return Err(ApiError::Unauthorized(
                    "the Authorization header must be `Bearer KEY`",
                ));
            }
        };
        match self.holds(key) {
            true => Ok(()),
            false => Err(ApiError::Unauthorized("the API key is not valid")),
        }
    }

    /// All keys are compared, whichever matches.
    fn holds(&self, key: &[u8]) -> bool {
        let found = self.0.iter().fold(Choice::from(0), |found, known| {
            found | known.as_bytes().ct_eq(key)
        });
        bool::from(found)
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
    fn anthropics_header_will_do() {
        let keys = ApiKeys::new(vec!["one".to_owned()]);
        let check = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                let name = actix_web::http::header::HeaderName::from_static(name);
                headers.insert(name, HeaderValue::from_static(value));
            }
            keys.check(&headers).is_ok()
        };
        assert!(check(&[("x-api-key", "one")]));
        assert!(check(&[
            ("x-api-key", "old"),
            ("authorization", "Bearer one")
        ]));
        assert!(!check(&[("x-api-key", "on")]));
        assert!(!check(&[("x-api-key", "")]));
    }

    #[test]
    fn without_keys_everyone_may_call() {
        assert!(check(&[], None));
        assert!(check(&[], Some("Bearer whatever")));
    }
}
