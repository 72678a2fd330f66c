//! What turns text into tokens and back: tokenizer, chat template, special tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;
use tokenizers::Tokenizer;

use super::error::LoadError;
use super::files::{Folder, LARGE_FILE, SMALL_FILE};
use super::json::JsonObject;
use crate::ids::TokenId;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// The text side of a model.
#[derive(Debug, Clone)]
pub struct TextAssets {
    /// Never truncates and never pads.
    pub tokenizer: Tokenizer,
    /// The Jinja template that turns messages into a prompt.
    pub chat_template: Option<String>,
    /// The template for requests with tools, where the model has a separate one.
    pub tool_template: Option<String>,
    /// Text of the token that begins a sequence, for templates.
    pub bos_token: Option<String>,
    /// Text of the token that ends a sequence, for templates.
    pub eos_token: Option<String>,
    /// Encoding plain text with special tokens puts `bos_token` first. (Chat templates write it themselves.)
    pub add_bos: bool,
}

impl TextAssets {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and the template files of a folder.
    pub(crate) fn read(folder: Folder<'_>) -> Result<Self, LoadError> {
        let bytes = folder.read_required(TOKENIZER, LARGE_FILE, "the tokenizer is read from it")?;
        let tokenizer = parse_tokenizer(TOKENIZER, &bytes)?;
        let config = match folder.read(TOKENIZER_CONFIG, SMALL_FILE)? {
            Some(bytes) => JsonObject::parse(TOKENIZER_CONFIG, &bytes)?,
            None => JsonObject::parse(TOKENIZER_CONFIG, b"{}")?,
        };
        let templates = Templates::read(folder, &config)?;
        let bos_token = special_token(&config, "bos_token")?;
        Ok(Self {
            add_bos: begins_with(&tokenizer, bos_token.as_deref()),
            bos_token,
            eos_token: special_token(&config, "eos_token")?,
            chat_template: templates.chat,
            tool_template: templates.tools,
            tokenizer,
        })
    }

    /// The id of `eos_token`, if both exist.
    pub(crate) fn end_token(&self) -> Option<TokenId> {
        self.eos_token
            .as_deref()
            .and_then(|text| self.tokenizer.token_to_id(text))
            .map(TokenId)
    }
}

/// Parses a `tokenizer.json` and switches truncation and padding off.
pub(crate) fn parse_tokenizer(file: &str, bytes: &[u8]) -> Result<Tokenizer, LoadError> {
    let unreadable = |message: String| LoadError::Tokenizer {
        file: file.to_owned(),
        message,
    };
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
        .map_err(|cause| unreadable(cause.to_string()))?;
    // The tokenizers crate panics on some inconsistent files; for a user that is an unreadable file.
    let mut tokenizer = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(bytes)))
        .map_err(|_| unreadable("it contradicts itself".to_owned()))?
        .map_err(|cause| unreadable(cause.to_string()))?;
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|cause| unreadable(cause.to_string()))?;
    // Some contradictions show only when a text is encoded, such as a post-processor's token that is not there. (That
    // this text cannot be encoded is no contradiction: others may be.)
    let encode = || drop(tokenizer.encode_fast("a", true));
    catch_unwind(AssertUnwindSafe(encode))
        .map_err(|_| unreadable("it contradicts itself".to_owned()))?;
    Ok(tokenizer)
}

/// Whether plain text is encoded with this token first.
pub(crate) fn begins_with(tokenizer: &Tokenizer, token: Option<&str>) -> bool {
    let Some(id) = token.and_then(|token| tokenizer.token_to_id(token)) else {
        return false;
    };
    let encode = || tokenizer.encode_fast("a", true);
    matches!(catch_unwind(AssertUnwindSafe(encode)), Ok(Ok(encoding)) if encoding.get_ids().first() == Some(&id))
}

/// A special token's text: a string, or an object with `content`.
fn special_token(config: &JsonObject, key: &str) -> Result<Option<String>, LoadError> {
    match config.get(key) {
        Some(Value::Object(_)) => {
            let token = config.object(key)?;
            Ok(token
                .as_ref()
                .map(|token| token.text("content"))
                .transpose()?
                .flatten()
                .map(str::to_owned))
        }
        _ => Ok(config.text(key)?.map(str::to_owned)),
    }
}

/// The chat templates of a folder.
#[derive(Debug, Default, PartialEq)]
struct Templates {
    chat: Option<String>,
    tools: Option<String>,
}

impl Templates {
    /// `chat_template.jinja`, else `chat_template.json`, else `tokenizer_config.json`.
    fn read(folder: Folder<'_>, tokenizer_config: &JsonObject) -> Result<Self, LoadError> {
        const JINJA: &str = "chat_template.jinja";
        const JSON: &str = "chat_template.json";
        if let Some(bytes) = folder.read(JINJA, SMALL_FILE)? {
            let template = String::from_utf8(bytes.into_owned())
                .map_err(|_| LoadError::corrupt(JINJA, "it is not UTF-8 text"))?;
            let tools = folder.read("additional_chat_templates/tool_use.jinja", SMALL_FILE)?;
            return Ok(Self {
                chat: Some(template),
                tools: tools.and_then(|bytes| String::from_utf8(bytes.into_owned()).ok()),
            });
        }
        if let Some(bytes) = folder.read(JSON, SMALL_FILE)? {
            return Self::from_field(&JsonObject::parse(JSON, &bytes)?);
        }
        Self::from_field(tokenizer_config)
    }

    /// The field `chat_template`: a string, or a list of named ones of which `default` and `tool_use` count.
    fn from_field(json: &JsonObject) -> Result<Self, LoadError> {
        const FIELD: &str = "chat_template";
        let Some(Value::Array(named)) = json.get(FIELD) else {
            return Ok(Self {
                chat: json.text(FIELD)?.map(str::to_owned),
                tools: None,
            });
        };
        let mut templates = Self::default();
        for entry in named {
            let text = |key: &str| entry.get(key).and_then(Value::as_str);
            let (Some(name), Some(template)) = (text("name"), text("template")) else {
                return Err(json.error(FIELD, "must be a string or a list of {name, template}"));
            };
            match name {
                "default" => templates.chat = Some(template.to_owned()),
                "tool_use" => templates.tools = Some(template.to_owned()),
                _ => {}
            }
        }
        Ok(templates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: serde_json::Value) -> JsonObject {
        JsonObject::parse(TOKENIZER_CONFIG, json.to_string().as_bytes()).expect("an object")
    }

    #[test]
    fn templates_may_be_a_string_or_named() {
        let one = Templates::from_field(&config(serde_json::json!({"chat_template": "{{ x }}"})))
            .expect("valid");
        assert_eq!(
            one,
            Templates {
                chat: Some("{{ x }}".into()),
                tools: None
            }
        );
        let named = serde_json::json!({"chat_template": [
            {"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}, {"name": "rag", "template": "c"}]});
        let two = Templates::from_field(&config(named)).expect("valid");
        assert_eq!(
            two,
            Templates {
                chat: Some("a".into()),
                tools: Some("b".into())
            }
        );
        assert_eq!(
            Templates::from_field(&config(serde_json::json!({}))).expect("valid"),
            Templates::default()
        );
        assert!(Templates::from_field(&config(serde_json::json!({"chat_template": [1]}))).is_err());
        assert!(Templates::from_field(&config(serde_json::json!({"chat_template": 3}))).is_err());
    }

    #[test]
    fn a_template_file_wins_over_the_configuration() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::Disk(root.path());
        let json = config(serde_json::json!({"chat_template": "from config"}));
        assert_eq!(
            Templates::read(folder, &json)
                .expect("valid")
                .chat
                .as_deref(),
            Some("from config")
        );
        std::fs::write(
            root.path().join("chat_template.json"),
            r#"{"chat_template": "from json"}"#,
        )
        .expect("write");
        assert_eq!(
            Templates::read(folder, &json)
                .expect("valid")
                .chat
                .as_deref(),
            Some("from json")
        );
        std::fs::write(root.path().join("chat_template.jinja"), "from jinja").expect("write");
        assert_eq!(
            Templates::read(folder, &json)
                .expect("valid")
                .chat
                .as_deref(),
            Some("from jinja")
        );
    }

    #[test]
    fn special_tokens_may_be_strings_or_objects() {
        let json = config(
            serde_json::json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null}),
        );
        assert_eq!(
            special_token(&json, "bos_token").expect("valid").as_deref(),
            Some("<s>")
        );
        assert_eq!(
            special_token(&json, "eos_token").expect("valid").as_deref(),
            Some("</s>")
        );
        assert_eq!(special_token(&json, "pad_token").expect("valid"), None);
        assert!(special_token(&config(serde_json::json!({"bos_token": 1})), "bos_token").is_err());
    }
}
