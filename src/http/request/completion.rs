//! `POST /v1/completions`: one or more prompts, as text or as token ids.

use serde_json::Value;

use super::fields::{Field, Fields};
use super::limits;
use super::options::GenerationOptions;
use crate::http::error::ApiError;
use crate::ids::TokenId;

/// A validated text completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    pub options: GenerationOptions,
    /// At least one; the `n` choices of the first come first.
    pub prompts: Vec<Prompt>,
    /// The answer begins with the prompt's text.
    pub echo: bool,
    /// `max_tokens` is 0: the answer is the prompt alone.
    pub silent: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    Text(String),
    /// Not empty. Whether the ids are in the vocabulary is checked when the model is known.
    Tokens(Vec<TokenId>),
}

impl CompletionRequest {
    pub fn parse(body: &Value) -> Result<Self, ApiError> {
        let body = Fields::root(body)?;
        let mut options = GenerationOptions::parse(&body)?;
        if let Some(suffix) = body.string("suffix")?
            && !suffix.is_empty()
        {
            return Err(ApiError::unsupported(
                "suffix",
                "is not supported: this model has no infill",
            ));
        }
        options.logprobs = body
            .integer("logprobs", 0, limits::COMPLETION_LOGPROBS)?
            .map(|top| top as usize);
        options.choices.best_of = best_of(&body, &options)?;
        let prompts = prompts(&body.require("prompt")?)?;
        if prompts.len() * options.choices.best_of > limits::SEQUENCES as usize {
            let parameter = if options.choices.best_of > options.choices.n {
                "best_of"
            } else {
                "n"
            };
            let message = format!(
                "asks for {} times {} sequences; at most {} in all are generated",
                prompts.len(),
                options.choices.best_of,
                limits::SEQUENCES
            );
            return Err(ApiError::invalid(parameter, message));
        }
        let echo = body.boolean("echo")?.unwrap_or(false);
        // Only with `echo`.
        let silent = options.max_tokens == Some(0);
        Ok(Self {
            options,
            prompts,
            echo,
            silent,
        })
    }
}

/// How many sequences are generated for each prompt.
fn best_of(body: &Fields<'_>, options: &GenerationOptions) -> Result<usize, ApiError> {
    let Some(field) = body.get("best_of") else {
        return Ok(options.choices.n);
    };
    // Validated to be positive. As many as `n` leave nothing to choose, so the limit is `n`'s then.
    let most = limits::BEST_OF.max(options.choices.n as i64);
    let best_of = field.integer(1, most)? as usize;
    if best_of < options.choices.n {
        return Err(field.invalid(format!(
            "must be at least `n`, which is {}; got {best_of}",
            options.choices.n
        )));
    }
    if options.stream && best_of > 1 {
        return Err(field.invalid(
            "greater than 1 cannot be streamed: which choices are best is known at the end",
        ));
    }
    Ok(best_of)
}

fn prompts(field: &Field<'_>) -> Result<Vec<Prompt>, ApiError> {
    match field.value {
        Value::String(text) => Ok(vec![Prompt::Text(text.clone())]),
        Value::Array(items) => match items.first() {
            None => Err(field.invalid("must not be empty")),
            Some(Value::Number(_)) => Ok(vec![tokens(field)?]),
            Some(_) => field
                .array(limits::PROMPTS)?
                .iter()
                .map(one_of_several)
                .collect(),
        },
        _ => {
            Err(field
                .wrong_type("a string, an array of strings, token ids or an array of token ids"))
        }
    }
}

fn one_of_several(field: &Field<'_>) -> Result<Prompt, ApiError> {
    match field.value {
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(_) => tokens(field),
        _ => Err(field.wrong_type("a string or an array of token ids")),
    }
}

fn tokens(field: &Field<'_>) -> Result<Prompt, ApiError> {
    // The body limit bounds the number; the context is checked later.
    let items = field.array(usize::MAX)?;
    if items.is_empty() {
        return Err(field.invalid("must hold at least one token id"));
    }
    let token = |item: &Field<'_>| Ok(TokenId(item.integer(0, i64::from(u32::MAX))? as u32));
    Ok(Prompt::Tokens(
        items.iter().map(token).collect::<Result<_, ApiError>>()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_four_forms_of_prompt() {
        let prompts = |prompt: Value| {
            CompletionRequest::parse(&json!({"prompt": prompt}))
                .unwrap()
                .prompts
        };
        let ids = |ids: &[u32]| Prompt::Tokens(ids.iter().map(|&id| TokenId(id)).collect());
        assert_eq!(prompts(json!("a")), [Prompt::Text("a".into())]);
        assert_eq!(
            prompts(json!(["a", "b"])),
            [Prompt::Text("a".into()), Prompt::Text("b".into())]
        );
        assert_eq!(prompts(json!([1, 2, 3])), [ids(&[1, 2, 3])]);
        assert_eq!(prompts(json!([[1, 2], [3]])), [ids(&[1, 2]), ids(&[3])]);
    }

    #[test]
    fn bad_input_names_the_field() {
        for (body, parameter, part) in [
            (json!({}), "prompt", "is required"),
            (
                json!({"prompt": 5}),
                "prompt",
                "a string, an array of strings",
            ),
            (json!({"prompt": []}), "prompt", "must not be empty"),
            (
                json!({"prompt": [[]]}),
                "prompt[0]",
                "at least one token id",
            ),
            (
                json!({"prompt": [1, "a"]}),
                "prompt[1]",
                "must be an integer",
            ),
            (json!({"prompt": [1, -1]}), "prompt[1]", "from 0 to"),
            (
                json!({"prompt": ["a", 1]}),
                "prompt[1]",
                "a string or an array of token ids",
            ),
            (json!({"prompt": vec!["a"; 65]}), "prompt", "at most 64"),
            (json!({"prompt": "a", "suffix": "b"}), "suffix", "infill"),
            (
                json!({"prompt": "a", "logprobs": true}),
                "logprobs",
                "must be an integer",
            ),
            (
                json!({"prompt": "a", "logprobs": -1}),
                "logprobs",
                "from 0 to 5",
            ),
            (
                json!({"prompt": "a", "best_of": 0}),
                "best_of",
                "from 1 to 20",
            ),
            (
                json!({"prompt": "a", "best_of": 21}),
                "best_of",
                "from 1 to 20",
            ),
            (
                json!({"prompt": "a", "best_of": "2"}),
                "best_of",
                "must be an integer",
            ),
            (
                json!({"prompt": "a", "best_of": 2, "n": 3}),
                "best_of",
                "at least `n`, which is 3",
            ),
            (
                json!({"prompt": "a", "best_of": 2, "stream": true}),
                "best_of",
                "cannot be streamed",
            ),
            (
                json!({"prompt": vec!["a"; 3], "n": 43}),
                "n",
                "at most 128 in all",
            ),
            (
                json!({"prompt": vec!["a"; 7], "n": 2, "best_of": 19}),
                "best_of",
                "at most 128 in all",
            ),
            (
                json!({"prompt": "a", "logprobs": 9}),
                "logprobs",
                "from 0 to 5",
            ),
            (json!({"prompt": "a", "echo": 1}), "echo", "true or false"),
            (
                json!({"prompt": "a", "max_tokens": 0}),
                "max_tokens",
                "at least 1",
            ),
            (
                json!({"prompt": "a", "max_tokens": -1}),
                "max_tokens",
                "at least 1",
            ),
            (json!({"prompt": "a", "n": 0}), "n", "from 1 to 128"),
        ] {
            let error = CompletionRequest::parse(&body).expect_err(&body.to_string());
            assert_eq!(error.status(), 400);
            assert_eq!(error.body()["error"]["param"], parameter, "{body}");
            assert!(error.to_string().contains(part), "{body}: {error}");
        }
    }
}
