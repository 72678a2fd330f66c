//! The messages of a chat request.

use serde_json::{Map, Value};

use super::fields::{Field, Fields};
use super::limits;
use super::tools::tool_call;
use crate::http::error::ApiError;

/// The messages in OpenAI's shape.
pub(super) fn messages(body: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let field = body.require("messages")?;
    let messages = field.array(limits::MESSAGES)?;
    if messages.is_empty() {
        return Err(field.invalid("must hold at least one message"));
    }
    messages
        .iter()
        .map(|message| self::message(&message.object()?))
        .collect()
}

/// One message in OpenAI's shape, known members only.
fn message(message: &Fields<'_>) -> Result<Value, ApiError> {
    let role_field = message.require("role")?;
    let role = match role_field.string()? {
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        other => {
            let expected = "must be `system`, `developer`, `user`, `assistant` or `tool`";
            return Err(role_field.invalid(format!("{expected}, got {other:?}")));
        }
    };
    let mut output = Map::new();
    output.insert("role".into(), role.into());

    let content = message
        .get("content")
        .map(|field| content(&field, role))
        .transpose()?;
    let content_is_optional = matches!(role, "assistant" | "tool");
    if content.is_none() && !content_is_optional {
        message.require("content")?;
    }
    output.insert("content".into(), content.unwrap_or_default().into());

    if let Some(name) = message.get("name") {
        output.insert("name".into(), self::name(&name)?.into());
    }
    if role == "tool" {
        let id = message.require("tool_call_id")?;
        if id.string()?.is_empty() {
            return Err(
                id.invalid("must not be empty; repeat the `id` of the tool call that this answers")
            );
        }
        output.insert("tool_call_id".into(), id.value.clone());
    }
    if role == "assistant" {
        if let Some(reasoning) = message.string("reasoning_content")? {
            output.insert("reasoning_content".into(), reasoning.into());
        }
        let calls = message
            .array("tool_calls", limits::TOOL_CALLS)?
            .unwrap_or_default();
        if !calls.is_empty() {
            let calls = calls.iter().map(tool_call).collect::<Result<Vec<_>, _>>()?;
            output.insert("tool_calls".into(), calls.into());
        }
    }
    Ok(Value::Object(output))
}

/// The text of a content: a string, or parts joined by newlines.
fn content(field: &Field<'_>, role: &str) -> Result<String, ApiError> {
    match field.value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(_) => {
            let parts = field.array(limits::CONTENT_PARTS)?;
            if parts.is_empty() {
                return Err(field.invalid("must hold at least one part"));
            }
            let texts = parts
                .iter()
                .map(|part| part_text(part, role))
                .collect::<Result<Vec<_>, _>>()?;
            Ok(texts.join("\n"))
        }
        _ => Err(field.wrong_type("a string or an array of parts")),
    }
}

fn part_text<'a>(part: &Field<'a>, role: &str) -> Result<&'a str, ApiError> {
    let fields = part.object()?;
    let kind = fields.require("type")?;
    match kind.string()? {
        "text" => fields.require("text")?.string(),
        "refusal" if role == "assistant" => fields.require("refusal")?.string(),
        "image_url" | "input_image" | "image" => Err(ApiError::unsupported(
            part.path.clone(),
            "is an image; this model reads text only",
        )),
        other @ ("input_audio" | "audio_url" | "video_url" | "file") => Err(ApiError::unsupported(
            part.path.clone(),
            format!("is of type `{other}`; this model reads text only"),
        )),
        other => Err(kind.invalid(format!("must be `text`, got {other:?}"))),
    }
}

/// A participant's or function's name.
pub(super) fn name<'a>(field: &Field<'a>) -> Result<&'a str, ApiError> {
    match field.string()? {
        "" => Err(field.invalid("must not be empty")),
        name if name.len() > limits::NAME_BYTES => {
            Err(field.invalid(format!("is longer than {} bytes", limits::NAME_BYTES)))
        }
        name => Ok(name),
    }
}
