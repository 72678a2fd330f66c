//! Log probabilities as OpenAI's two APIs spell them.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::Form;

/// JSON has no infinity; OpenAI writes this for what is impossible.
const IMPOSSIBLE: f32 = -9999.0;

/// A token of a choice's text, and how likely it was.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// What it adds to the text; maybe only a part of a character.
    pub bytes: Vec<u8>,
    /// None: it is a prompt's first token, which nothing predicts.
    pub logprob: Option<f32>,
    /// The most likely tokens at its place, the most likely first.
    pub top: Vec<(Vec<u8>, f32)>,
    /// Characters of the choice's text before it.
    pub offset: usize,
    /// It is of the prompt, which the choice's text repeats.
    pub echoed: bool,
}

/// The `logprobs` member of a choice, or of a part of it.
pub fn logprobs_json(form: Form, tokens: &[TokenLogprob]) -> Value {
    match form {
        Form::Chat => json!({
            "content": tokens.iter().map(TokenLogprob::chat_json).collect::<Vec<_>>(),
            "refusal": null,
        }),
        Form::Text => json!({
            "tokens": tokens.iter().map(|token| named(&token.bytes)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|token| token.logprob.map(finite)).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(TokenLogprob::top_by_name).collect::<Vec<_>>(),
            "text_offset": tokens.iter().map(|token| token.offset).collect::<Vec<_>>(),
        }),
    }
}

impl TokenLogprob {
    fn chat_json(&self) -> Value {
        let entry = |bytes: &[u8], logprob: f32| json!({"token": text(bytes), "logprob": finite(logprob), "bytes": bytes});
        let mut own = entry(&self.bytes, self.logprob.unwrap_or(0.0));
        let top = self.top.iter();
        own["top_logprobs"] = top.map(|(bytes, logprob)| entry(bytes, *logprob)).collect();
        own
    }

    /// Token texts and their log probabilities; the token itself is always among them.
    fn top_by_name(&self) -> Value {
        let Some(own) = self.logprob else {
            return Value::Null;
        };
        let mut by_name = Map::new();
        let top = self.top.iter().map(|(bytes, logprob)| (bytes, *logprob));
        for (bytes, logprob) in top.chain([(&self.bytes, own)]) {
            // Of different tokens with the same text, the likeliest.
            by_name
                .entry(named(bytes))
                .or_insert_with(|| finite(logprob).into());
        }
        Value::Object(by_name)
    }
}

fn finite(logprob: f32) -> f32 {
    logprob.max(IMPOSSIBLE)
}

/// A token as text; with escapes for bytes if it is only a part of a character.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => escaped(String::new(), bytes),
    }
}

/// The same for text completions, which have no `bytes` to tell escapes from text.
fn named(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => escaped("bytes:".to_owned(), bytes),
    }
}

fn escaped(mut text: String, bytes: &[u8]) -> String {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "\\x{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> [TokenLogprob; 3] {
        let token = |bytes: &[u8], logprob, offset| TokenLogprob {
            bytes: bytes.to_vec(),
            logprob,
            top: vec![(b"a".to_vec(), -0.5), (vec![0xf0, 0x9f], f32::NEG_INFINITY)],
            offset,
            echoed: false,
        };
        [
            TokenLogprob {
                top: Vec::new(),
                ..token(b"x", None, 0)
            },
            token(b"a", Some(-0.5), 1),
            token(&[0xc3], Some(-2.0), 2),
        ]
    }

    #[test]
    fn chats_have_an_object_for_each_token() {
        let found = logprobs_json(Form::Chat, &tokens()[1..]);
        let top = json!([
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\\xf0\\x9f", "logprob": -9999.0, "bytes": [240, 159]},
        ]);
        let expected = json!({"refusal": null, "content": [
            {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": top},
            {"token": "\\xc3", "logprob": -2.0, "bytes": [195], "top_logprobs": top},
        ]});
        assert_eq!(found, expected);
    }

    #[test]
    fn text_completions_have_a_list_for_each_fact() {
        let found = logprobs_json(Form::Text, &tokens());
        let expected = json!({
            "tokens": ["x", "a", "bytes:\\xc3"],
            "token_logprobs": [null, -0.5, -2.0],
            "top_logprobs": [
                null,
                {"a": -0.5, "bytes:\\xf0\\x9f": -9999.0},
                {"a": -0.5, "bytes:\\xf0\\x9f": -9999.0, "bytes:\\xc3": -2.0},
            ],
            "text_offset": [0, 1, 2],
        });
        assert_eq!(found, expected);
    }
}
