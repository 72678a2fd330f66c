//! Input items: what a conversation is made of in the Responses API, and the chat messages it means.

use serde_json::{Map, Value, json};

use super::store::ResponseStore;
use crate::http::draft::{ChatDraft, unsupported};
use crate::http::error::ApiError;
use crate::http::request::fields::{Field, Fields};
use crate::http::request::limits;

/// Between the texts of one content, as in chats.
const TEXT_SEPARATOR: &str = "\n";

/// Reads `input` into the draft, and gives its items as they are listed later: each with an id.
pub fn read(
    input: &Field<'_>,
    store: &ResponseStore,
    draft: &mut ChatDraft,
) -> Result<Vec<Value>, ApiError> {
    if let Value::String(text) = input.value {
        let message = json!({"role": "user", "content": text});
        draft.message(message, input.path.clone());
        let content = json!([{"type": "input_text", "text": text}]);
        return Ok(vec![
            json!({"id": new_id("msg_"), "type": "message", "status": "completed",
            "role": "user", "content": content}),
        ]);
    }
    if !input.value.is_array() {
        return Err(input.wrong_type("a string or an array of items"));
    }
    let mut items = Vec::new();
    for field in input.array(limits::MESSAGES)? {
        let fields = field.object()?;
        let kind = fields.string("type")?.unwrap_or("message");
        if kind == "item_reference" {
            let id = fields.require("id")?;
            let Some(item) = store.item(id.string()?) else {
                return Err(id.invalid(format!("is {}, and no stored item has that id", id.value)));
            };
            add(
                &Field {
                    path: field.path,
                    value: &item,
                },
                draft,
            )?;
            items.push(item);
        } else {
            add(&field, draft)?;
            items.push(listed(&field, kind));
        }
    }
    Ok(items)
}

/// An item as it is listed.
fn listed(field: &Field<'_>, kind: &str) -> Value {
    let mut item = field.value.clone();
    item["type"] = kind.into();
    if kind == "message"
        && let Value::String(text) = &item["content"]
    {
        let part = match item["role"].as_str() {
            Some("assistant") => json!({"type": "output_text", "text": text, "annotations": []}),
            _ => json!({"type": "input_text", "text": text}),
        };
        item["content"] = json!([part]);
    }
    if item["id"].is_null() {
        item["id"] = match kind {
            "function_call" => new_id("fc_"),
            "function_call_output" => new_id("fco_"),
            "reasoning" => new_id("rs_"),
            _ => new_id("msg_"),
        }
        .into();
    }
    if item["status"].is_null() {
        item["status"] = "completed".into();
    }
    item
}

/// An id for an item or a response.
pub fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::new_v4().simple())
}

/// Adds one item to the conversation.
fn add(field: &Field<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let item = field.object()?;
    let kind = item.string("type")?.unwrap_or("message");
    match kind {
        "message" => message(field, &item, draft),
        "reasoning" => {
            let text = reasoning(&item)?;
            let mut message = Map::new();
            message.insert("role".into(), "assistant".into());
            message.insert("content".into(), "".into());
            message.insert("reasoning_content".into(), text.into());
            draft.message(Value::Object(message), field.path.clone());
            Ok(())
        }
        "function_call" => function_call(field, &item, draft),
        "function_call_output" => {
            let id = item.require("call_id")?;
            id.string()?;
            let output = text(&item.require("output")?, "user")?;
            let message = json!({"role": "tool", "tool_call_id": id.value, "content": output});
            draft.message(message, field.path.clone());
            draft_note(draft, "tool_call_id", id.path);
            Ok(())
        }
        other => {
            let known = "`message`, `function_call`, `function_call_output`, `reasoning` and `item_reference`";
            let message = format!("is {other:?}; items of type {known} are offered");
            Err(ApiError::unsupported(item.path_of("type"), message))
        }
    }
}

/// Notes where a member of the message last added came from.
fn draft_note(draft: &mut ChatDraft, member: &str, own: String) {
    let index = draft.messages().len() - 1;
    draft.note(format!("messages[{index}].{member}"), own);
}

fn message(field: &Field<'_>, item: &Fields<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let role_field = item.require("role")?;
    let role = match role_field.string()? {
        "developer" => "system",
        role @ ("system" | "user" | "assistant") => role,
        other => {
            let expected = "must be `user`, `assistant`, `system` or `developer`";
            return Err(role_field.invalid(format!("{expected}, got {other:?}")));
        }
    };
    let content = text(&item.require("content")?, role)?;
    // What was thought before belongs to the same turn.
    if role == "assistant"
        && let Some(open) = draft.last_message()
        && open["role"] == "assistant"
        && open["content"] == ""
        && open.get("tool_calls").is_none()
    {
        open["content"] = content.into();
    } else {
        let message = json!({"role": role, "content": content});
        draft.message(message, field.path.clone());
    }
    Ok(())
}

/// A call joins the assistant's turn that it follows.
fn function_call(
    field: &Field<'_>,
    item: &Fields<'_>,
    draft: &mut ChatDraft,
) -> Result<(), ApiError> {
    let id = item.require("call_id")?;
    id.string()?;
    let name = item.require("name")?;
    if name.string()?.is_empty() {
        return Err(name.invalid("must not be empty"));
    }
    let arguments = item.require("arguments")?;
    arguments.string()?;
    let call = json!({"id": id.value, "type": "function",
        "function": {"name": name.value, "arguments": arguments.value}});
    match draft.last_message() {
        Some(open) if open["role"] == "assistant" => {
            match open.get_mut("tool_calls").and_then(Value::as_array_mut) {
                Some(calls) => calls.push(call),
                None => open["tool_calls"] = json!([call]),
            }
        }
        _ => {
            let message = json!({"role": "assistant", "content": "", "tool_calls": [call]});
            draft.message(message, field.path.clone());
        }
    }
    Ok(())
}

/// The text of a reasoning item: its content, or its summary where that is all there is.
fn reasoning(item: &Fields<'_>) -> Result<String, ApiError> {
    for name in ["content", "summary"] {
        let parts = item.array(name, limits::CONTENT_PARTS)?.unwrap_or_default();
        if !parts.is_empty() {
            let texts = parts
                .iter()
                .map(|part| part.object()?.require("text")?.string())
                .collect::<Result<Vec<_>, _>>()?;
            return Ok(texts.join(TEXT_SEPARATOR));
        }
    }
    Ok(String::new())
}

/// The text of a content: a string, or parts.
fn text(field: &Field<'_>, role: &str) -> Result<String, ApiError> {
    if let Value::String(text) = field.value {
        return Ok(text.clone());
    }
    if !field.value.is_array() {
        return Err(field.wrong_type("a string or an array of parts"));
    }
    let parts = field.array(limits::CONTENT_PARTS)?;
    let texts = parts
        .iter()
        .map(|part| {
            let fields = part.object()?;
            let kind = fields.require("type")?;
            match kind.string()? {
                "input_text" | "output_text" | "text" => fields.require("text")?.string(),
                "refusal" if role == "assistant" => fields.require("refusal")?.string(),
                "input_image" => Err(unsupported(part, "is an image; this model reads text only")),
                other @ ("input_file" | "input_audio") => Err(unsupported(
                    part,
                    format!("is of type `{other}`; this model reads text only"),
                )),
                other => {
                    let expected = "must be `input_text` or `output_text`";
                    Err(kind.invalid(format!("{expected}, got {other:?}")))
                }
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join(TEXT_SEPARATOR))
}
