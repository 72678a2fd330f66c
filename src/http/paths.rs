//! Errors about the internal request, told in the names of the fields that the client sent.

use super::error::ApiError;

/// Which field of the client's body each field of the internal (chat) request was made from.
///
/// APIs are translated to one chat request, which is checked once. What is wrong with it is found under its
/// names (`messages[3].content`) and told under the client's (`input[5].content`).
#[derive(Debug, Clone, Default)]
pub struct PathMap(Vec<(String, String)>);

impl PathMap {
    /// `chat` and everything below it was made from `own`.
    pub fn add(&mut self, chat: impl Into<String>, own: impl Into<String>) {
        self.0.push((chat.into(), own.into()));
    }

    /// The client's name of a field.
    pub fn own(&self, path: &str) -> String {
        let matching = self.0.iter().filter_map(|(chat, own)| {
            let rest = path.strip_prefix(chat.as_str())?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then_some((chat.len(), own, rest))
        });
        match matching.max_by_key(|(length, ..)| *length) {
            Some((_, own, rest)) => format!("{own}{rest}"),
            None => path.to_owned(),
        }
    }

    /// The same error with the client's names, in its parameter and between backticks in its message.
    pub fn tell(&self, error: ApiError) -> ApiError {
        if self.0.is_empty() {
            return error;
        }
        match error {
            ApiError::InvalidRequest {
                message,
                parameter,
                code,
            } => ApiError::InvalidRequest {
                message: self.in_text(&message),
                parameter: parameter.map(|path| self.own(&path)),
                code,
            },
            ApiError::ContextLengthExceeded {
                limit,
                prompt,
                requested,
                parameter,
            } => ApiError::ContextLengthExceeded {
                limit,
                prompt,
                requested,
                parameter: self.own(&parameter),
            },
            other => other,
        }
    }

    /// Every second part of a text cut at backticks is quoted.
    fn in_text(&self, text: &str) -> String {
        let parts = text.split('`').enumerate().map(|(index, part)| {
            if index % 2 == 1 {
                self.own(part)
            } else {
                part.to_owned()
            }
        });
        parts.collect::<Vec<_>>().join("`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_known_path_counts() {
        let mut paths = PathMap::default();
        paths.add("messages", "input");
        paths.add("messages[1]", "input[4]");
        paths.add("max_tokens", "max_output_tokens");
        for (chat, own) in [
            ("messages", "input"),
            ("messages[1]", "input[4]"),
            ("messages[1].content[0]", "input[4].content[0]"),
            ("messages[10].content", "input[10].content"),
            ("max_tokens", "max_output_tokens"),
            ("max_tokens_more", "max_tokens_more"),
            ("temperature", "temperature"),
        ] {
            assert_eq!(paths.own(chat), own);
        }
    }

    #[test]
    fn errors_are_told_in_the_clients_names() {
        let mut paths = PathMap::default();
        paths.add("tools[0].function", "tools[0]");
        let error = paths.tell(ApiError::invalid(
            "tools[0].function.name",
            "must not be empty",
        ));
        assert_eq!(
            error,
            ApiError::invalid("tools[0].name", "must not be empty")
        );
        paths.add("messages", "input");
        let error = paths.tell(ApiError::ContextLengthExceeded {
            limit: 1,
            prompt: 2,
            requested: None,
            parameter: "messages".into(),
        });
        assert_eq!(error.body()["error"]["param"], "input");
    }
}
