//! From Anthropic's requests to the internal one.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::form::MessageForm;
use crate::http::dialect::THREAD_UNSUPPORTED;
use crate::http::draft::{ChatDraft, function, spaced_json, unsupported};
use crate::http::error::ApiError;
use crate::http::generate::Translated;
use crate::http::paths::PathMap;
use crate::http::request::chat::ChatRequest;
use crate::http::request::fields::{Field, Fields};
use crate::http::request::limits;

/// Between the texts of one content, as in chats.
const TEXT_SEPARATOR: &str = "\n";

/// `POST /v1/messages`.
pub fn messages(body: &Value) -> Result<Translated, ApiError> {
    let body = Fields::root(body)?;
    let most = body.require("max_tokens")?.integer(1, i64::MAX)?;
    let mut draft = conversation(&body)?;
    draft.copy_all(
        &body,
        &["max_tokens", "temperature", "top_p", "top_k", "stream"],
    );
    draft.copy_all(&body, &["metadata", "return_progress", "ignore_eos"]);
    draft.copy(&body, "stop_sequences", "stop");
    if let Some(stops) = body.get("stop_sequences") {
        // A single string would do for a chat, and not here.
        stops.array(limits::STOP_STRINGS)?;
    }
    thinking(&body, Some(most))?;
    output_format(&body, &mut draft)?;
    let form = Box::new(|opening| Box::new(MessageForm::new(opening)) as _);
    draft.translated("messages", form)
}

/// `POST /v1/messages/count_tokens`: what the prompt depends on.
pub fn counted(body: &Value) -> Result<(ChatRequest, PathMap), ApiError> {
    conversation(&Fields::root(body)?)?.finish("messages")
}

/// All that becomes part of the prompt.
fn conversation(body: &Fields<'_>) -> Result<ChatDraft, ApiError> {
    let mut draft = ChatDraft::default();
    refuse_what_is_kept_by_servers(body)?;
    draft.copy(body, "model", "model");
    let thinks = thinking(body, None)?;
    draft.template_argument("enable_thinking", thinks);
    if let Some(system) = body.get("system") {
        let text = text(&system)?;
        if !text.is_empty() {
            draft.message(json!({"role": "system", "content": text}), "system");
        }
    }
    let messages = body.require("messages")?;
    let mut turns = Turns {
        draft,
        calls: HashSet::new(),
    };
    for field in messages.array(limits::MESSAGES)? {
        turns.add(&field)?;
    }
    let mut draft = turns.draft;
    if let Some(last) = draft.messages().last()
        && last["role"] == "assistant"
    {
        draft.set("continue_final_message", true, "messages");
    }
    for field in body.array("tools", limits::TOOLS)?.unwrap_or_default() {
        tool(&field, &mut draft)?;
    }
    if let Some(choice) = body.object("tool_choice")? {
        tool_choice(&choice, &mut draft)?;
    }
    Ok(draft)
}

/// Conversations are not kept here, nor other servers asked.
fn refuse_what_is_kept_by_servers(body: &Fields<'_>) -> Result<(), ApiError> {
    if body.get("thread").is_some() {
        return Err(ApiError::InvalidRequest {
            message: "`thread` is not supported; send the whole conversation".to_owned(),
            parameter: Some("thread".to_owned()),
            code: THREAD_UNSUPPORTED,
        });
    }
    for name in ["compaction", "mcp_servers"] {
        if let Some(field) = body.get(name)
            && !matches!(field.value, Value::Array(items) if items.is_empty())
        {
            return Err(unsupported(&field, "is not supported"));
        }
    }
    Ok(())
}

/// `output_config.format`: as `response_format` of chats.
fn output_format(body: &Fields<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let Some(config) = body.object("output_config")? else {
        return Ok(());
    };
    let Some(format) = config.object("format")? else {
        return Ok(());
    };
    let kind = format.require("type")?;
    if kind.string()? != "json_schema" {
        return Err(kind.invalid(format!("must be `json_schema`, got {}", kind.value)));
    }
    let schema = format.require("schema")?;
    let own = config.path_of("format");
    draft.note("response_format.json_schema", own.clone());
    let value = json!({"type": "json_schema",
        "json_schema": {"name": "output", "schema": schema.value, "strict": true}});
    draft.set("response_format", value, own);
    Ok(())
}

/// Whether the model is to think first: only if it is asked to.
fn thinking(body: &Fields<'_>, most: Option<i64>) -> Result<bool, ApiError> {
    let Some(thinking) = body.object("thinking")? else {
        return Ok(false);
    };
    let kind = thinking.require("type")?;
    match kind.string()? {
        "disabled" => Ok(false),
        "adaptive" => Ok(true),
        "enabled" => {
            let budget = thinking.require("budget_tokens")?;
            let tokens = budget.integer(1, i64::MAX)?;
            if most.is_some_and(|most| tokens >= most) {
                return Err(budget.invalid("must be less than `max_tokens`"));
            }
            Ok(true)
        }
        other => {
            let expected = "must be `enabled`, `disabled` or `adaptive`";
            Err(kind.invalid(format!("{expected}, got {other:?}")))
        }
    }
}

/// A string, or blocks of text.
fn text(field: &Field<'_>) -> Result<String, ApiError> {
    if let Value::String(text) = field.value {
        return Ok(text.clone());
    }
    if !field.value.is_array() {
        return Err(field.wrong_type("a string or an array of blocks"));
    }
    let blocks = field.array(limits::CONTENT_PARTS)?;
    let texts = blocks
        .iter()
        .map(|block| {
            let fields = block.object()?;
            let kind = fields.require("type")?;
            match kind.string()? {
                "text" => fields.require("text")?.string(),
                _ => Err(refused_block(block, &kind)),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(texts.join(TEXT_SEPARATOR))
}

/// Why a block of this type does not go here.
fn refused_block(block: &Field<'_>, kind: &Field<'_>) -> ApiError {
    match kind.value.as_str() {
        Some("image") => unsupported(block, "is an image; this model reads text only"),
        Some(other @ ("document" | "search_result" | "container_upload")) => unsupported(
            block,
            format!("is of type `{other}`; this model reads text only"),
        ),
        _ => kind.invalid(format!(
            "must be the type of a block that may stand here, got {}",
            kind.value
        )),
    }
}

/// The conversation in the making.
struct Turns {
    draft: ChatDraft,
    /// Ids of the calls so far.
    calls: HashSet<String>,
}

impl Turns {
    fn add(&mut self, field: &Field<'_>) -> Result<(), ApiError> {
        let message = field.object()?;
        let role = message.require("role")?;
        let content = message.require("content")?;
        match role.string()? {
            "user" => self.user(field, &content),
            "assistant" => self.assistant(field, &content),
            other => Err(role.invalid(format!(
                "must be `user` or `assistant`, got {other:?}; instructions go into `system`"
            ))),
        }
    }

    /// Results of calls become messages of their own, in the order of the blocks.
    fn user(&mut self, field: &Field<'_>, content: &Field<'_>) -> Result<(), ApiError> {
        if content.value.is_string() {
            let message = json!({"role": "user", "content": content.value});
            self.draft.message(message, field.path.clone());
            return Ok(());
        }
        if !content.value.is_array() {
            return Err(content.wrong_type("a string or an array of blocks"));
        }
        let blocks = content.array(limits::CONTENT_PARTS)?;
        if blocks.is_empty() {
            return Err(content.invalid("must hold at least one block"));
        }
        let mut texts: Vec<&str> = Vec::new();
        for block in &blocks {
            let fields = block.object()?;
            let kind = fields.require("type")?;
            match kind.string()? {
                "text" => texts.push(fields.require("text")?.string()?),
                "tool_result" => {
                    self.user_text(field, &mut texts);
                    let message = self.tool_result(&fields)?;
                    self.draft.message(message, block.path.clone());
                }
                _ => return Err(refused_block(block, &kind)),
            }
        }
        self.user_text(field, &mut texts);
        Ok(())
    }

    fn user_text(&mut self, field: &Field<'_>, texts: &mut Vec<&str>) {
        if !texts.is_empty() {
            let text = std::mem::take(texts).join(TEXT_SEPARATOR);
            let message = json!({"role": "user", "content": text});
            self.draft.message(message, field.path.clone());
        }
    }

    fn tool_result(&self, result: &Fields<'_>) -> Result<Value, ApiError> {
        let id = result.require("tool_use_id")?;
        if !self.calls.contains(id.string()?) {
            return Err(id.invalid(format!(
                "is {}, and no earlier `tool_use` block has that id",
                id.value
            )));
        }
        let mut content = match result.get("content") {
            Some(content) => text(&content)?,
            None => String::new(),
        };
        if result.boolean("is_error")?.unwrap_or(false)
            && !content.to_ascii_lowercase().starts_with("error")
        {
            content = format!("Error: {content}");
        }
        Ok(json!({"role": "tool", "tool_call_id": id.value, "content": content}))
    }

    fn assistant(&mut self, field: &Field<'_>, content: &Field<'_>) -> Result<(), ApiError> {
        let mut message = Map::new();
        message.insert("role".into(), "assistant".into());
        if content.value.is_string() {
            message.insert("content".into(), content.value.clone());
            self.draft
                .message(Value::Object(message), field.path.clone());
            return Ok(());
        }
        if !content.value.is_array() {
            return Err(content.wrong_type("a string or an array of blocks"));
        }
        let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        for block in content.array(limits::CONTENT_PARTS)? {
            let fields = block.object()?;
            let kind = fields.require("type")?;
            match kind.string()? {
                "text" => texts.push(fields.require("text")?.string()?),
                "thinking" => thoughts.push(fields.require("thinking")?.string()?),
                // Only its writer can read it.
                "redacted_thinking" => {}
                "tool_use" => calls.push(self.tool_use(&fields)?),
                _ => return Err(refused_block(&block, &kind)),
            }
        }
        message.insert("content".into(), texts.join(TEXT_SEPARATOR).into());
        if !thoughts.is_empty() {
            let thoughts = thoughts.join(TEXT_SEPARATOR);
            message.insert("reasoning_content".into(), thoughts.into());
        }
        if !calls.is_empty() {
            message.insert("tool_calls".into(), calls.into());
        }
        self.draft
            .message(Value::Object(message), field.path.clone());
        Ok(())
    }

    fn tool_use(&mut self, call: &Fields<'_>) -> Result<Value, ApiError> {
        let id = call.require("id")?;
        self.calls.insert(id.string()?.to_owned());
        let name = call.require("name")?;
        name.string()?;
        let input = call.require("input")?;
        input.object()?;
        Ok(json!({"id": id.value, "type": "function",
            "function": {"name": name.value, "arguments": spaced_json(input.value)}}))
    }
}

fn tool(field: &Field<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let tool = field.object()?;
    if let Some(kind) = tool.get("type")
        && kind.string()? != "custom"
    {
        return Err(unsupported(
            &kind,
            format!(
                "is {}, a tool of Anthropic's servers; only tools with `input_schema` are offered",
                kind.value
            ),
        ));
    }
    let name = tool.require("name")?;
    let schema = tool.require("input_schema")?;
    schema.object()?;
    let function = function(&name, tool.get("description"), Some(schema.clone()));
    draft.tool(function, &field.path, &schema.path);
    Ok(())
}

fn tool_choice(choice: &Fields<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let kind = choice.require("type")?;
    let chosen = match kind.string()? {
        "auto" => json!("auto"),
        "none" => json!("none"),
        "any" => json!("required"),
        "tool" => {
            let name = choice.require("name")?;
            name.string()?;
            draft.note("tool_choice.function.name", name.path.clone());
            json!({"type": "function", "function": {"name": name.value}})
        }
        other => {
            let expected = "must be `auto`, `any`, `tool` or `none`";
            return Err(kind.invalid(format!("{expected}, got {other:?}")));
        }
    };
    draft.set("tool_choice", chosen, "tool_choice");
    if let Some(one) = choice.boolean("disable_parallel_tool_use")? {
        let own = choice.path_of("disable_parallel_tool_use");
        draft.set("parallel_tool_calls", !one, own);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
