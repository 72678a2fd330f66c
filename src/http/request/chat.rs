//! `POST /v1/chat/completions`: messages and tools, checked and brought into one form.

use serde_json::{Map, Value};

use super::fields::Fields;
use super::limits;
use super::messages::messages;
use super::options::GenerationOptions;
use super::tool_choice::ToolRules;
use super::tools::tools;
use crate::http::error::ApiError;

/// A validated chat request.
///
/// `messages` and `tools` keep OpenAI's shape, with what differs only in spelling made equal: content is a
/// string (text parts are joined by newlines; absent content is the empty string), the role `developer`
/// is `system`.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    pub options: GenerationOptions,
    pub messages: Vec<Value>,
    pub tools: Vec<Value>,
    pub tool_rules: ToolRules,
    /// Variables for the chat template, such as `enable_thinking`.
    pub template_arguments: Map<String, Value>,
    /// The answer goes on with the last message, the assistant's, and holds only what comes after it.
    pub continue_final_message: bool,
}

impl ChatRequest {
    pub fn parse(body: &Value) -> Result<Self, ApiError> {
        let body = Fields::root(body)?;
        let mut options = GenerationOptions::parse(&body)?;
        options.logprobs = logprobs(&body)?;
        refuse_what_is_of_other_apis(&body)?;
        modalities(&body)?;
        let tools = tools(&body)?;
        let tool_rules = ToolRules::parse(&body, &tools)?;
        let continued = continues_final_message(&body)?;
        Ok(Self {
            options,
            messages: messages(&body)?,
            tools,
            tool_rules,
            template_arguments: template_arguments(&body)?,
            continue_final_message: continued,
        })
    }
}

/// How many alternatives each token's log probability comes with; None: none are told.
fn logprobs(body: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let asked = body.boolean("logprobs")?.unwrap_or(false);
    let top = body.integer("top_logprobs", 0, limits::TOP_LOGPROBS)?;
    match top {
        Some(1..) if !asked => Err(ApiError::invalid(
            "top_logprobs",
            "is only allowed when `logprobs` is true",
        )),
        // Validated above.
        top => Ok(asked.then_some(top.unwrap_or(0) as usize)),
    }
}

/// Fields that would change the answer, and that chats do not have.
fn refuse_what_is_of_other_apis(body: &Fields<'_>) -> Result<(), ApiError> {
    if body.boolean("echo")?.unwrap_or(false) {
        return Err(ApiError::unsupported(
            "echo",
            "is of `/v1/completions`; a chat's answer does not repeat its messages",
        ));
    }
    if body.integer("best_of", 1, i64::MAX)?.unwrap_or(1) > 1 {
        return Err(ApiError::unsupported(
            "best_of",
            "greater than 1 is of `/v1/completions`; ask for `n` choices and their `logprobs`",
        ));
    }
    for name in ["functions", "function_call"] {
        if let Some(field) = body.get(name)
            && field.value != &Value::Array(Vec::new())
        {
            return Err(ApiError::unsupported(
                name,
                "is the old form of tools; send `tools` and `tool_choice`",
            ));
        }
    }
    Ok(())
}

/// Answers are text.
fn modalities(body: &Fields<'_>) -> Result<(), ApiError> {
    for field in body.array("modalities", 8)?.unwrap_or_default() {
        match field.string()? {
            "text" => {}
            other => {
                let message = format!("is {other:?}; this model writes text only");
                return Err(ApiError::unsupported(field.path, message));
            }
        }
    }
    Ok(())
}

/// `chat_template_kwargs`, and what `reasoning_effort` adds to them: the effort itself for templates that
/// print it, and `enable_thinking` for those that only know on and off. What the client sets by name wins.
fn template_arguments(body: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let mut arguments = body
        .object("chat_template_kwargs")?
        .map(|arguments| arguments.map().clone())
        .unwrap_or_default();
    if let Some(field) = body.get("reasoning_effort") {
        let effort = field.string()?;
        let thinks = match effort {
            "none" | "minimal" => false,
            "low" | "medium" | "high" | "xhigh" => true,
            other => {
                let expected = "must be `none`, `minimal`, `low`, `medium`, `high` or `xhigh`";
                return Err(field.invalid(format!("{expected}, got {other:?}")));
            }
        };
        arguments
            .entry("reasoning_effort")
            .or_insert_with(|| effort.into());
        arguments
            .entry("enable_thinking")
            .or_insert_with(|| thinks.into());
    }
    Ok(arguments)
}

/// Whether the last message is to be continued: `continue_final_message` as vLLM spells it, or `prefix` on
/// the message itself as Mistral and DeepSeek do.
fn continues_final_message(body: &Fields<'_>) -> Result<bool, ApiError> {
    let continued = body.boolean("continue_final_message")?;
    let generation_prompt = body.boolean("add_generation_prompt")?;
    let messages = body
        .array("messages", limits::MESSAGES)?
        .unwrap_or_default();
    let mut by_prefix = false;
    for (index, message) in messages.iter().enumerate() {
        // What is no object is refused with the other messages.
        let Ok(fields) = message.object() else {
            continue;
        };
        if fields.boolean("prefix")?.unwrap_or(false) {
            if index + 1 < messages.len() {
                return Err(ApiError::invalid(
                    fields.path_of("prefix"),
                    "is only allowed on the last message",
                ));
            }
            by_prefix = true;
        }
    }
    if !continued.unwrap_or(by_prefix) {
        if by_prefix {
            return Err(ApiError::invalid(
                "continue_final_message",
                "is false, and the last message has `prefix`",
            ));
        }
        if generation_prompt == Some(false) {
            return Err(ApiError::unsupported(
                "add_generation_prompt",
                "false is for continuing the last message: set `continue_final_message` to true",
            ));
        }
        return Ok(false);
    }
    if generation_prompt == Some(true) {
        return Err(ApiError::invalid(
            "add_generation_prompt",
            "must not be true together with `continue_final_message`",
        ));
    }
    if let Some(last) = messages.last()
        && let Ok(fields) = last.object()
    {
        let refused = |message: &str| ApiError::invalid(last.path.clone(), message);
        if fields.string("role")? != Some("assistant") {
            return Err(refused("is to be continued, so it must be the assistant's"));
        }
        if fields
            .array("tool_calls", limits::TOOL_CALLS)?
            .is_some_and(|calls| !calls.is_empty())
        {
            return Err(refused("calls tools, so it cannot be continued"));
        }
        let empty = match fields.get("content").map(|field| field.value) {
            None => true,
            Some(Value::String(text)) => text.trim().is_empty(),
            Some(_) => false,
        };
        if empty {
            return Err(refused(
                "is to be continued, so its content must not be empty",
            ));
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
