//! From a Responses request to the internal one.

use serde_json::{Map, Value, json};

use super::form::ResponseForm;
use super::items;
use super::store::ResponseStore;
use crate::http::draft::{ChatDraft, function, unsupported};
use crate::http::error::ApiError;
use crate::http::generate::Translated;
use crate::http::paths::PathMap;
use crate::http::request::chat::ChatRequest;
use crate::http::request::fields::{Field, Fields};
use crate::http::request::limits;

/// Members that mean the same in a chat, those included that OpenAI does not have here.
const SAME: [&str; 16] = [
    "model",
    "temperature",
    "top_p",
    "stream",
    "stream_options",
    "parallel_tool_calls",
    "metadata",
    "user",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "frequency_penalty",
    "presence_penalty",
    "return_progress",
    "ignore_eos",
];

/// What of a request the answer repeats, and what it takes to keep the answer.
#[derive(Debug)]
pub struct Asked {
    /// Members of the response object, in its order.
    pub echo: Map<String, Value>,
    /// Where the response is kept; None: it is not.
    pub keep: Option<Keep>,
    pub store: ResponseStore,
}

/// The conversation so far.
#[derive(Debug)]
pub struct Keep {
    pub input_items: Vec<Value>,
    pub messages: Vec<Value>,
}

/// `POST /v1/responses`.
pub fn responses(body: &Value, store: &ResponseStore) -> Result<Translated, ApiError> {
    let fields = Fields::root(body)?;
    let Conversation {
        mut draft,
        input_items,
        instructions,
    } = conversation(&fields, store)?;
    for name in ["background", "conversation", "prompt"] {
        if let Some(field) = fields.get(name)
            && field.value != &Value::Bool(false)
        {
            return Err(unsupported(&field, "is not supported"));
        }
    }
    include(&fields)?;
    draft.copy_all(&fields, &SAME);
    draft.copy(&fields, "max_output_tokens", "max_tokens");
    let keeps = fields.boolean("store")?.unwrap_or(true);
    let echo = echo(&fields, keeps)?;
    let keep = keeps.then(|| Keep {
        input_items,
        messages: draft.messages()[usize::from(instructions)..].to_vec(),
    });
    let asked = Asked {
        echo,
        keep,
        store: store.clone(),
    };
    let form = Box::new(move |opening| Box::new(ResponseForm::new(asked, opening)) as _);
    draft.translated("input", form)
}

/// `POST /v1/responses/input_tokens`: what the prompt depends on.
pub fn counted(body: &Value, store: &ResponseStore) -> Result<(ChatRequest, PathMap), ApiError> {
    let fields = Fields::root(body)?;
    let mut draft = conversation(&fields, store)?.draft;
    draft.copy(&fields, "model", "model");
    draft.finish("input")
}

struct Conversation {
    draft: ChatDraft,
    input_items: Vec<Value>,
    /// The first message is `instructions`, which the next request does not inherit.
    instructions: bool,
}

/// All that becomes part of the prompt.
fn conversation(body: &Fields<'_>, store: &ResponseStore) -> Result<Conversation, ApiError> {
    let mut draft = ChatDraft::default();
    let instructions = body.string("instructions")?.filter(|text| !text.is_empty());
    if let Some(text) = instructions {
        let message = json!({"role": "system", "content": text});
        draft.message(message, "instructions");
    }
    if let Some(field) = body.get("previous_response_id") {
        let id = field.string()?;
        let previous = store.get(id).ok_or_else(|| ApiError::InvalidRequest {
            message: format!("Previous response with id '{id}' not found."),
            parameter: Some(field.path.clone()),
            code: "previous_response_not_found",
        })?;
        for message in &previous.messages {
            draft.message(message.clone(), field.path.clone());
        }
    }
    let input_items = items::read(&body.require("input")?, store, &mut draft)?;
    let tools = body.array("tools", limits::TOOLS)?.unwrap_or_default();
    for field in &tools {
        tool(field, &mut draft)?;
    }
    // What is the default anyway is sent without tools, too.
    if let Some(choice) = body.get("tool_choice")
        && !(tools.is_empty() && choice.value == "auto")
    {
        tool_choice(&choice, &mut draft)?;
    }
    if let Some(text) = body.object("text")?
        && let Some(format) = text.get("format")
    {
        text_format(&format, &mut draft)?;
    }
    if let Some(reasoning) = body.object("reasoning")? {
        draft.copy(&reasoning, "effort", "reasoning_effort");
    }
    draft.copy(body, "chat_template_kwargs", "chat_template_kwargs");
    Ok(Conversation {
        draft,
        input_items,
        instructions: instructions.is_some(),
    })
}

fn tool(field: &Field<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let tool = field.object()?;
    let kind = tool.require("type")?;
    match kind.string()? {
        "function" => {}
        other => {
            let message = format!("is {other:?}; only tools of type `function` are offered");
            return Err(unsupported(&kind, message));
        }
    }
    let name = tool.require("name")?;
    let parameters = tool.get("parameters");
    let function = function(&name, tool.get("description"), parameters);
    draft.tool(function, &field.path, &tool.path_of("parameters"));
    Ok(())
}

/// The name of a function that is chosen.
fn chosen<'a>(choice: &Fields<'a>) -> Result<Field<'a>, ApiError> {
    let kind = choice.require("type")?;
    match kind.string()? {
        "function" => choice.require("name"),
        other => Err(unsupported(
            &kind,
            format!("is {other:?}; only tools of type `function` are offered"),
        )),
    }
}

fn tool_choice(field: &Field<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let Value::Object(_) = field.value else {
        draft.set("tool_choice", field.value.clone(), field.path.clone());
        return Ok(());
    };
    let choice = field.object()?;
    let kind = choice.require("type")?;
    let value = match kind.string()? {
        "allowed_tools" => {
            let mut tools = Vec::new();
            for (index, tool) in choice
                .require("tools")?
                .array(limits::TOOLS)?
                .iter()
                .enumerate()
            {
                let name = chosen(&tool.object()?)?;
                let chat = format!("tool_choice.allowed_tools.tools[{index}]");
                draft.note(format!("{chat}.function"), tool.path.clone());
                draft.note(chat, tool.path.clone());
                tools.push(json!({"type": "function", "function": {"name": name.value}}));
            }
            let mode = choice.require("mode")?;
            draft.note("tool_choice.allowed_tools", field.path.clone());
            json!({"type": "allowed_tools", "allowed_tools": {"mode": mode.value, "tools": tools}})
        }
        _ => {
            let name = chosen(&choice)?;
            draft.note("tool_choice.function", field.path.clone());
            json!({"type": "function", "function": {"name": name.value}})
        }
    };
    draft.set("tool_choice", value, field.path.clone());
    Ok(())
}

fn text_format(field: &Field<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let format = field.object()?;
    let kind = format.require("type")?;
    let value = match kind.string()? {
        "json_schema" => {
            let mut schema = Map::new();
            for name in ["name", "description", "schema", "strict"] {
                if let Some(member) = format.get(name) {
                    schema.insert(name.to_owned(), member.value.clone());
                }
            }
            draft.note("response_format.json_schema", field.path.clone());
            json!({"type": "json_schema", "json_schema": schema})
        }
        _ => json!({"type": kind.value}),
    };
    draft.set("response_format", value, field.path.clone());
    Ok(())
}

/// What can be included is there anyway; what is not there cannot be included.
fn include(body: &Fields<'_>) -> Result<(), ApiError> {
    for field in body.array("include", 64)?.unwrap_or_default() {
        if field.string()? == "message.output_text.logprobs" {
            return Err(unsupported(
                &field,
                "is not supported in this API; use `logprobs` in chats",
            ));
        }
    }
    if body.integer("top_logprobs", 0, 20)?.unwrap_or(0) > 0 {
        let message = "is not supported in this API; use `logprobs` in chats";
        return Err(ApiError::unsupported("top_logprobs", message));
    }
    Ok(())
}

/// The members of the answer that repeat the request.
fn echo(body: &Fields<'_>, keeps: bool) -> Result<Map<String, Value>, ApiError> {
    if let Some(truncation) = body.get("truncation")
        && !matches!(truncation.string()?, "auto" | "disabled")
    {
        return Err(truncation.invalid("must be `auto` or `disabled`"));
    }
    body.integer("max_tool_calls", 0, i64::MAX)?;
    let or_null = |name: &str| {
        body.get(name)
            .map_or(Value::Null, |field| field.value.clone())
    };
    let or =
        |name: &str, default: Value| body.get(name).map_or(default, |field| field.value.clone());
    let reasoning = body.object("reasoning")?;
    let of_reasoning = |name: &str| {
        let field = reasoning.as_ref().and_then(|fields| fields.get(name));
        field.map_or(Value::Null, |field| field.value.clone())
    };
    let text = body.object("text")?;
    let format = text.as_ref().and_then(|text| text.get("format"));
    let format = format.map_or_else(|| json!({"type": "text"}), |field| field.value.clone());
    let echo = json!({
        "background": false,
        "instructions": or_null("instructions"),
        "max_output_tokens": or_null("max_output_tokens"),
        "metadata": or("metadata", json!({})),
        "parallel_tool_calls": or("parallel_tool_calls", true.into()),
        "previous_response_id": or_null("previous_response_id"),
        "reasoning": {"effort": of_reasoning("effort"), "summary": null},
        "store": keeps,
        "temperature": or_null("temperature"),
        "text": {"format": format},
        "tool_choice": or("tool_choice", "auto".into()),
        "tools": or("tools", json!([])),
        "top_p": or_null("top_p"),
        "truncation": or("truncation", "disabled".into()),
        "user": or_null("user"),
    });
    match echo {
        Value::Object(echo) => Ok(echo),
        _ => Ok(Map::new()),
    }
}

#[cfg(test)]
mod tests;
