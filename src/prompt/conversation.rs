//! From messages as clients send them to what templates expect.

use minijinja::value::Value;
use serde_json::{Map, Value as Json};

use super::PromptError;
use super::capabilities::{ArgumentsForm, Capabilities};
use super::format::ChatInput;
use super::template::{ChatTemplate, arguments_value, json_value};
use super::tools::Written;

/// Between the parts of a content that is given in parts.
const PART_SEPARATOR: &str = "\n";
/// Marks the end of the last message where that is to be continued. The trailing space tells whether the
/// template trims.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// How calls are written for models whose format says nothing else.
const GENERIC_WRITTEN: Written = Written::Each("<tool_call>", "</tool_call>");
/// Variables that `chat_template_kwargs` cannot set.
const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// What templates print at the borders of text.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpecialTokens<'a> {
    pub(super) bos: Option<&'a str>,
    pub(super) eos: Option<&'a str>,
}

/// Renders a conversation with all that the template needs done to it first.
pub(super) fn render(
    template: &ChatTemplate,
    capabilities: &Capabilities,
    input: &ChatInput<'_>,
    tokens: SpecialTokens<'_>,
) -> Result<String, PromptError> {
    if let Some(name) = RESERVED
        .into_iter()
        .find(|name| input.template_kwargs.contains_key(*name))
    {
        return Err(PromptError::ReservedVariable(name.to_string()));
    }
    let mut messages: Vec<Json> = input
        .messages
        .iter()
        .map(|message| prepared(message, capabilities))
        .collect();
    name_tool_results(&mut messages);
    let mut declared = input.tools;
    let uses_calls = messages
        .iter()
        .any(|message| role(message) == "tool" || has_calls(message));
    if !capabilities.prints_calls && (!declared.is_empty() || uses_calls) {
        messages = without_calls(messages, capabilities);
        if !capabilities.declares_tools && !declared.is_empty() {
            declare(&mut messages, declared, capabilities);
            declared = &[];
        }
    }
    if !capabilities.system_role {
        messages = without_system(messages);
    }
    let continued = if input.continue_final_message {
        Some(mark_final(&mut messages)?)
    } else {
        None
    };
    let context = context(
        &messages,
        declared,
        input.template_kwargs,
        !input.continue_final_message,
        tokens,
        capabilities,
    );
    let text = template.render(context)?;
    match continued {
        Some(content) => cut_at_tag(text, &content),
        None => Ok(text),
    }
}

/// The variables of a template, as transformers names them.
pub(super) fn context(
    messages: &[Json],
    tools: &[Json],
    kwargs: &Map<String, Json>,
    add_generation_prompt: bool,
    tokens: SpecialTokens<'_>,
    capabilities: &Capabilities,
) -> Value {
    let mut variables: Vec<(String, Value)> = vec![
        (
            "messages".to_string(),
            messages
                .iter()
                .map(|message| message_value(message, capabilities))
                .collect(),
        ),
        (
            "tools".to_string(),
            if tools.is_empty() && !capabilities.empty_tools {
                Value::from(())
            } else {
                tools.iter().map(json_value).collect()
            },
        ),
        ("documents".to_string(), Value::from(())),
        (
            "add_generation_prompt".to_string(),
            Value::from(add_generation_prompt),
        ),
    ];
    let named = [("bos_token", tokens.bos), ("eos_token", tokens.eos)];
    variables.extend(
        named
            .into_iter()
            .filter_map(|(name, token)| Some((name.to_string(), Value::from(token?)))),
    );
    variables.extend(
        kwargs
            .iter()
            .map(|(name, value)| (name.clone(), json_value(value))),
    );
    Value::from_pairs(variables)
}

fn role(message: &Json) -> &str {
    message["role"].as_str().unwrap_or_default()
}

fn has_calls(message: &Json) -> bool {
    message["tool_calls"]
        .as_array()
        .is_some_and(|calls| !calls.is_empty())
}

/// A message with its content as text and its fields under the names that templates know.
fn prepared(message: &Json, capabilities: &Capabilities) -> Json {
    let mut message = message.clone();
    if role(&message) == "developer" && !capabilities.developer_role {
        message["role"] = "system".into();
    }
    let calls = has_calls(&message);
    let Some(fields) = message.as_object_mut() else {
        return message;
    };
    if !calls {
        // An empty list would look like calls to `is defined`.
        fields.shift_remove("tool_calls");
    }
    let text = content_text(fields.get("content"));
    let content = if calls && text.is_empty() && capabilities.null_content {
        Json::Null
    } else {
        Json::from(text)
    };
    fields.insert("content".to_string(), content);
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|name| fields.get(*name).filter(|value| value.is_string()).cloned());
    if let Some(reasoning) = reasoning {
        fields
            .entry("thinking")
            .or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".to_string(), reasoning);
    }
    message
}

/// A content's text, whichever way it is given. Null is no text.
fn content_text(content: Option<&Json>) -> String {
    match content {
        Some(Json::String(text)) => text.clone(),
        Some(Json::Array(parts)) => {
            let texts: Vec<&str> = parts
                .iter()
                .filter_map(|part| part.as_str().or_else(|| part["text"].as_str()))
                .collect();
            texts.join(PART_SEPARATOR)
        }
        _ => String::new(),
    }
}

/// Tool results name their tool for templates that print it; clients give only the call's id.
fn name_tool_results(messages: &mut [Json]) {
    let mut names = std::collections::HashMap::new();
    for message in messages {
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            if let (Some(id), Some(name)) = (call["id"].as_str(), call["function"]["name"].as_str())
            {
                names.insert(id.to_string(), name.to_string());
            }
        }
        if role(message) == "tool"
            && message.get("name").is_none()
            && let Some(name) = message["tool_call_id"]
                .as_str()
                .and_then(|id| names.get(id))
        {
            message["name"] = name.as_str().into();
        }
    }
}

/// The conversation for a template that prints no calls, or in a form that cannot be read back: they are
/// text, and so are results if it prints none.
fn without_calls(messages: Vec<Json>, capabilities: &Capabilities) -> Vec<Json> {
    let keeps_results = capabilities.declares_tools && capabilities.prints_results;
    let mut changed: Vec<Json> = Vec::with_capacity(messages.len() + 1);
    let mut after_result = false;
    for mut message in messages {
        let is_result = role(&message) == "tool" && !keeps_results;
        if is_result {
            let text = format!(
                "<tool_response>\n{}\n</tool_response>",
                content_text(message.get("content"))
            );
            message = serde_json::json!({ "role": "user", "content": text });
        } else if has_calls(&message) {
            let text = with_calls(&message, capabilities);
            if let Some(fields) = message.as_object_mut() {
                fields.shift_remove("tool_calls");
                fields.insert("content".to_string(), text.into());
            }
        }
        match changed.last_mut() {
            // Results, and what the user says to them, are one turn: many templates insist on alternation.
            Some(last) if after_result && role(&message) == "user" => {
                last["content"] = joined(last, "\n", &message).into();
            }
            _ => changed.push(message),
        }
        after_result =
            changed.last().is_some_and(|last| role(last) == "user") && (after_result || is_result);
    }
    changed
}

/// Declares tools in the system message, for a template that does not.
fn declare(messages: &mut Vec<Json>, tools: &[Json], capabilities: &Capabilities) {
    let declaration = declaration(tools, capabilities);
    match messages.first_mut() {
        Some(first) if matches!(role(first), "system" | "developer") => {
            let text = content_text(first.get("content"));
            let text = if text.is_empty() {
                declaration
            } else {
                format!("{text}\n\n{declaration}")
            };
            first["content"] = text.into();
        }
        _ => messages.insert(
            0,
            serde_json::json!({ "role": "system", "content": declaration }),
        ),
    }
}

fn joined(first: &Json, separator: &str, second: &Json) -> String {
    content_text(first.get("content")) + separator + &content_text(second.get("content"))
}

/// An assistant's text and calls as one text.
fn with_calls(message: &Json, capabilities: &Capabilities) -> String {
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    let calls: Vec<(String, String)> = calls
        .map(|call| {
            let function = &call["function"];
            let arguments = match &function["arguments"] {
                Json::String(text) if text.trim().is_empty() => "{}".to_string(),
                Json::String(text) => text.clone(),
                Json::Null => "{}".to_string(),
                value => value.to_string(),
            };
            let name = function["name"].as_str().unwrap_or_default();
            (name.to_string(), arguments)
        })
        .collect();
    let mut text = content_text(message.get("content"));
    if !text.is_empty() {
        text.push('\n');
    }
    text + &written(capabilities).text(&calls)
}

/// How calls are written where the template does not do it.
fn written(capabilities: &Capabilities) -> Written {
    capabilities.tool_format.written.unwrap_or(GENERIC_WRITTEN)
}

/// How tools are declared to a model whose template does not do it.
fn declaration(tools: &[Json], capabilities: &Capabilities) -> String {
    let list: Vec<String> = tools
        .iter()
        .map(|tool| tool.get("function").unwrap_or(tool).to_string())
        .collect();
    let example = |name: &str, key: &str| {
        let arguments = serde_json::json!({ key: "value" }).to_string();
        vec![(name.to_string(), arguments)]
    };
    let written = written(capabilities);
    let how = match written {
        Written::Each(open, close) => format!(
            "To call a function, write its name and its arguments as one JSON object between {open} and {close}, \
             and nothing after it; for several calls write several of these:\n{open}\n\
             {{\"name\": \"function name\", \"arguments\": {{\"parameter name\": \"value\"}}}}\n{close}"
        ),
        Written::List(..) => format!(
            "To call functions, write a JSON list of their names and arguments, and nothing after it:\n{}",
            written.text(&example("function name", "parameter name"))
        ),
        Written::Named { .. } => format!(
            "To call functions, write their names and arguments in this form, and nothing after it:\n{}",
            written.text(&example("function_name", "parameter name"))
        ),
        Written::Python(..) => format!(
            "To call functions, write them as Python does, with the names of the parameters, and nothing \
             after it:\n{}",
            written.text(&example("function_name", "parameter_name"))
        ),
    };
    format!(
        "# Tools\n\n\
         You can call these functions, each described by a line of JSON:\n\
         <tools>\n{}\n</tools>\n\n\
         {how}\n\n\
         The results are given to you between <tool_response> and </tool_response>. \
         Where no function is needed, answer in words.",
        list.join("\n"),
    )
}

/// The conversation for a template that rejects system messages: each becomes the beginning of the user
/// message after it.
fn without_system(messages: Vec<Json>) -> Vec<Json> {
    let mut changed: Vec<Json> = Vec::with_capacity(messages.len());
    let mut system: Option<String> = None;
    for mut message in messages {
        if matches!(role(&message), "system" | "developer") {
            let text = content_text(message.get("content"));
            system = Some(system.map_or(text.clone(), |earlier| format!("{earlier}\n\n{text}")));
            continue;
        }
        if let Some(text) = system.take() {
            if role(&message) == "user" {
                message["content"] =
                    format!("{text}\n\n{}", content_text(message.get("content"))).into();
            } else {
                changed.push(serde_json::json!({ "role": "user", "content": text }));
            }
        }
        changed.push(message);
    }
    if let Some(text) = system {
        changed.push(serde_json::json!({ "role": "user", "content": text }));
    }
    changed
}

/// Marks where the last message ends and returns its content.
fn mark_final(messages: &mut [Json]) -> Result<String, PromptError> {
    let message = messages
        .last_mut()
        .ok_or_else(|| PromptError::NotContinuable("there is none".to_string()))?;
    let content = content_text(message.get("content"));
    message["content"] = format!("{content}{CONTINUE_TAG}").into();
    Ok(content)
}

/// The rendered text up to the mark (as transformers cuts it).
fn cut_at_tag(mut text: String, content: &str) -> Result<String, PromptError> {
    let found = text
        .rfind(CONTINUE_TAG.trim_end())
        .filter(|_| text.contains(content.trim()));
    let Some(position) = found else {
        return Err(PromptError::NotContinuable(
            "the chat template does not print it as it is".to_string(),
        ));
    };
    let spacing_kept = text[position..].starts_with(CONTINUE_TAG);
    text.truncate(position);
    if !spacing_kept {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

/// A message as the template sees it.
fn message_value(message: &Json, capabilities: &Capabilities) -> Value {
    let Some(fields) = message.as_object() else {
        return json_value(message);
    };
    Value::from_pairs(fields.iter().map(|(name, value)| {
        let value = match (name.as_str(), value) {
            ("tool_calls", Json::Array(calls)) => calls
                .iter()
                .map(|call| call_value(call, capabilities))
                .collect(),
            ("content", Json::String(text)) if capabilities.content_parts => {
                json_value(&serde_json::json!([{ "type": "text", "text": text }]))
            }
            _ => json_value(value),
        };
        (name.clone(), value)
    }))
}

fn call_value(call: &Json, capabilities: &Capabilities) -> Value {
    let Some(fields) = call.as_object() else {
        return json_value(call);
    };
    Value::from_pairs(fields.iter().map(|(name, value)| {
        let value = match (name.as_str(), value) {
            ("function", Json::Object(function)) => {
                Value::from_pairs(function.iter().map(|(name, value)| {
                    let value = match name.as_str() {
                        "arguments" => arguments(value, capabilities.arguments),
                        _ => json_value(value),
                    };
                    (name.clone(), value)
                }))
            }
            _ => json_value(value),
        };
        (name.clone(), value)
    }))
}

/// A call's arguments in the form that the template prints as the model wrote them.
fn arguments(value: &Json, form: ArgumentsForm) -> Value {
    match (value, form) {
        (Json::String(text), _) if text.trim().is_empty() => arguments(&Json::from("{}"), form),
        (Json::String(text), ArgumentsForm::Mapping) => {
            arguments_value(text).unwrap_or_else(|| Value::from(text.as_str()))
        }
        (Json::Object(_), ArgumentsForm::Text) => Value::from(value.to_string()),
        _ => json_value(value),
    }
}
