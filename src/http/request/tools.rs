//! Tools that a chat request offers, and calls of them in its messages.

use serde_json::{Value, json};

use super::fields::{Field, Fields};
use super::limits;
use super::messages::name;
use crate::http::error::ApiError;

/// An earlier call of the assistant.
pub(super) fn tool_call(field: &Field<'_>) -> Result<Value, ApiError> {
    let call = field.object()?;
    is_function(&call)?;
    let function = call.require("function")?.object()?;
    let name = name(&function.require("name")?)?;
    // Kept as the text that the model wrote: it must become the same tokens again.
    let arguments = match function.get("arguments") {
        Some(arguments) => arguments.string()?,
        None => "{}",
    };
    let id = call.string("id")?.unwrap_or_default();
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

/// `type` may be absent, and is `function` otherwise.
fn is_function(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.get("type") {
        Some(kind) if kind.string()? != "function" => Err(kind.invalid("must be `function`")),
        _ => Ok(()),
    }
}

/// The tools in OpenAI's shape.
pub(super) fn tools(body: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
    let tools = body.array("tools", limits::TOOLS)?.unwrap_or_default();
    for tool in &tools {
        let fields = tool.object()?;
        is_function(&fields)?;
        let function = fields.require("function")?.object()?;
        name(&function.require("name")?)?;
        function.string("description")?;
        function.object("parameters")?;
    }
    Ok(tools.iter().map(|tool| tool.value.clone()).collect())
}
