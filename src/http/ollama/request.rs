//! From Ollama's requests to the internal one.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::form::OllamaForm;
use crate::http::draft::{ChatDraft, spaced_json, unsupported};
use crate::http::error::ApiError;
use crate::http::generate::Translated;
use crate::http::request::fields::{Field, Fields};
use crate::http::request::limits;

/// `options` with the same meaning under the same name.
const SAME_OPTIONS: [&str; 8] = [
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
];

/// `POST /api/chat`.
pub fn chat(body: &Value) -> Result<Translated, ApiError> {
    let body = Fields::root(body)?;
    let mut draft = shared_members(&body)?;
    let mut calls = OpenCalls::default();
    let messages = body.require("messages")?;
    for field in messages.array(limits::MESSAGES)? {
        let message = message(&field.object()?, &mut calls)?;
        draft.message(message, field.path);
    }
    // Tools have OpenAI's shape.
    draft.copy(&body, "tools", "tools");
    let form = Box::new(|opening| Box::new(OllamaForm::chat(opening)) as _);
    draft.translated("messages", form)
}

/// `POST /api/generate`.
pub fn generate(body: &Value) -> Result<Translated, ApiError> {
    let body = Fields::root(body)?;
    for (name, why) in [
        ("suffix", "is not supported: this model has no infill"),
        ("template", "is not supported; the model's own is used"),
        (
            "context",
            "is not supported; send the conversation to `/api/chat`",
        ),
        ("images", "are not supported; this model reads text only"),
    ] {
        if let Some(field) = body.get(name)
            && !matches!(field.value, Value::String(text) if text.is_empty())
            && !matches!(field.value, Value::Array(items) if items.is_empty())
        {
            return Err(unsupported(&field, why));
        }
    }
    let mut draft = shared_members(&body)?;
    let prompt = body.require("prompt")?;
    if prompt.string()?.is_empty() {
        return Err(prompt.invalid("must not be empty"));
    }
    let form = Box::new(|opening| Box::new(OllamaForm::generate(opening)) as _);
    if body.boolean("raw")?.unwrap_or(false) {
        draft.set("prompt", prompt.value.clone(), prompt.path);
        return draft.translated_text(form);
    }
    if let Some(system) = body.string("system")?.filter(|text| !text.is_empty()) {
        draft.message(json!({"role": "system", "content": system}), "system");
    }
    let message = json!({"role": "user", "content": prompt.value});
    draft.message(message, prompt.path);
    draft.translated("prompt", form)
}

/// What both have.
fn shared_members(body: &Fields<'_>) -> Result<ChatDraft, ApiError> {
    let mut draft = ChatDraft::default();
    if let Some(model) = body.string("model")? {
        draft.set("model", without_tag(model), "model");
    }
    draft.set("stream", body.boolean("stream")?.unwrap_or(true), "stream");
    if let Some(think) = body.get("think") {
        match think.value {
            Value::Bool(on) => draft.template_argument("enable_thinking", *on),
            Value::String(level) if matches!(level.as_str(), "low" | "medium" | "high") => {
                draft.set("reasoning_effort", level.as_str(), "think");
            }
            Value::String(other) => {
                let expected = "must be true, false, `low`, `medium` or `high`";
                return Err(think.invalid(format!("{expected}, got {other:?}")));
            }
            _ => return Err(think.wrong_type("true, false, `low`, `medium` or `high`")),
        }
    }
    if let Some(format) = body.get("format") {
        response_format(&format, &mut draft)?;
    }
    if let Some(options) = body.object("options")? {
        draft.copy_all(&options, &SAME_OPTIONS);
        draft.copy(&options, "repeat_penalty", "repetition_penalty");
        // Below zero is how Ollama spells "as much as fits".
        if let Some(most) = options.integer("num_predict", i64::MIN, i64::MAX)?
            && most >= 0
        {
            draft.copy(&options, "num_predict", "max_tokens");
        }
    }
    draft.copy_all(body, &["return_progress", "ignore_eos"]);
    Ok(draft)
}

/// `json`, or a schema.
fn response_format(field: &Field<'_>, draft: &mut ChatDraft) -> Result<(), ApiError> {
    let format = match field.value {
        Value::String(text) if text.is_empty() => return Ok(()),
        Value::String(text) if text == "json" => json!({"type": "json_object"}),
        Value::String(other) => {
            return Err(field.invalid(format!("must be `json` or a JSON schema, got {other:?}")));
        }
        Value::Object(schema) => {
            json!({"type": "json_schema", "json_schema": {"name": "format", "schema": schema}})
        }
        _ => return Err(field.wrong_type("`json` or a JSON schema")),
    };
    draft.set("response_format", format, "format");
    draft.note("response_format.json_schema", "format");
    draft.note("response_format.json_schema.schema", "format");
    Ok(())
}

/// Ollama's models are `name:tag`; here they have no tag, so the one that means any is left out.
pub fn without_tag(model: &str) -> &str {
    model.strip_suffix(":latest").unwrap_or(model)
}

/// Calls that have no result yet: name and id. Ollama's results name the function, or nothing.
#[derive(Default)]
struct OpenCalls {
    open: VecDeque<(String, String)>,
    made: usize,
}

impl OpenCalls {
    fn begin(&mut self, name: &str, id: Option<&str>) -> String {
        self.made += 1;
        let id = match id {
            Some(id) if !id.is_empty() => id.to_owned(),
            _ => format!("call_{}", self.made),
        };
        self.open.push_back((name.to_owned(), id.clone()));
        id
    }

    /// The id of the call that a result answers: by id, else the first open one of that name, else the
    /// first open one.
    fn answer(&mut self, id: Option<&str>, name: Option<&str>) -> String {
        let position = match (id, name) {
            (Some(id), _) => self.open.iter().position(|(_, open)| open == id),
            (None, Some(name)) => self.open.iter().position(|(open, _)| open == name),
            (None, None) => Some(0),
        };
        let known = self.open.remove(position.unwrap_or(0));
        match (id, known) {
            (Some(id), _) => id.to_owned(),
            (None, Some((_, id))) => id,
            (None, None) => "call_0".to_owned(),
        }
    }
}

fn message(message: &Fields<'_>, calls: &mut OpenCalls) -> Result<Value, ApiError> {
    let role_field = message.require("role")?;
    let role = role_field.string()?;
    if !matches!(role, "system" | "user" | "assistant" | "tool") {
        let expected = "must be `system`, `user`, `assistant` or `tool`";
        return Err(role_field.invalid(format!("{expected}, got {role:?}")));
    }
    if let Some(images) = message.get("images")
        && !images.array(limits::CONTENT_PARTS)?.is_empty()
    {
        return Err(unsupported(
            &images,
            "are not supported; this model reads text only",
        ));
    }
    let mut output = Map::new();
    output.insert("role".into(), role.into());
    let content = message.string("content")?.unwrap_or_default();
    output.insert("content".into(), content.into());
    match role {
        "tool" => {
            let name = message.string("tool_name")?.or(message.string("name")?);
            let id = message.string("tool_call_id")?.filter(|id| !id.is_empty());
            output.insert("tool_call_id".into(), calls.answer(id, name).into());
        }
        "assistant" => {
            if let Some(thinking) = message.string("thinking")?.filter(|text| !text.is_empty()) {
                output.insert("reasoning_content".into(), thinking.into());
            }
            let made = message
                .array("tool_calls", limits::TOOL_CALLS)?
                .unwrap_or_default();
            let made = made
                .iter()
                .map(|call| tool_call(&call.object()?, calls))
                .collect::<Result<Vec<_>, _>>()?;
            if !made.is_empty() {
                output.insert("tool_calls".into(), made.into());
            }
        }
        _ => {}
    }
    Ok(Value::Object(output))
}

fn tool_call(call: &Fields<'_>, calls: &mut OpenCalls) -> Result<Value, ApiError> {
    let function = call.require("function")?.object()?;
    let name = function.require("name")?.string()?;
    let arguments = match function.get("arguments") {
        None => "{}".to_owned(),
        Some(arguments) => {
            arguments.object()?;
            spaced_json(arguments.value)
        }
    };
    let id = calls.begin(name, call.string("id")?);
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::prepare::GenerationRequest;

    fn translated(body: Value) -> crate::http::request::chat::ChatRequest {
        match chat(&body).map(|translated| translated.request) {
            Ok(GenerationRequest::Chat(request)) => request,
            Ok(other) => panic!("{other:?}"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn results_find_their_calls_without_ids() {
        let call =
            |name: &str| json!({"function": {"name": name, "arguments": {"a": 1, "b": "x"}}});
        let request = translated(json!({"model": "demo:latest", "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call("f"), call("g")]},
            {"role": "tool", "content": "2", "tool_name": "g"},
            {"role": "tool", "content": "1"},
        ]}));
        let function = |name: &str| json!({"name": name, "arguments": "{\"a\": 1, \"b\": \"x\"}"});
        assert_eq!(
            Value::Array(request.messages),
            json!([
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [
                    {"id": "call_1", "type": "function", "function": function("f")},
                    {"id": "call_2", "type": "function", "function": function("g")}]},
                {"role": "tool", "content": "2", "tool_call_id": "call_2"},
                {"role": "tool", "content": "1", "tool_call_id": "call_1"},
            ])
        );
        assert!(request.options.stream, "streaming is the default");
        assert_eq!(request.options.model.as_deref(), Some("demo"));
    }

    #[test]
    fn options_have_their_own_names() {
        let messages = json!([{"role": "user", "content": "q"}]);
        let request = translated(
            json!({"messages": messages, "stream": false, "think": false,
            "keep_alive": "5m", "options": {"temperature": 0, "num_predict": 9, "repeat_penalty": 1.5,
            "num_ctx": 4096, "top_k": 3, "stop": ["x"], "seed": 4}}),
        );
        assert_eq!(request.options.max_tokens, Some(9));
        assert_eq!(request.options.sampling.repetition_penalty, Some(1.5));
        assert_eq!(request.options.stop, ["x"]);
        assert_eq!(request.template_arguments["enable_thinking"], false);
        let endless = translated(json!({"messages": messages, "options": {"num_predict": -1}}));
        assert_eq!(endless.options.max_tokens, None);
    }

    #[test]
    fn bad_input_names_ollamas_fields() {
        let message = |message: Value| json!({"messages": [message]});
        let option = |options: Value| json!({"messages": [{"role": "user", "content": "q"}], "options": options});
        for (body, part) in [
            (json!({}), "`messages` is required"),
            (json!({"messages": []}), "`messages` must hold at least one"),
            (
                message(json!({"role": "robot"})),
                "`messages[0].role` must be",
            ),
            (
                message(json!({"role": "user", "content": 1})),
                "`messages[0].content` must be a string",
            ),
            (
                message(json!({"role": "user", "images": ["x"]})),
                "`messages[0].images` are not supported",
            ),
            (
                message(
                    json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}),
                ),
                "`messages[0].tool_calls[0].function.arguments` must be an object",
            ),
            (
                option(json!({"temperature": "hot"})),
                "`options.temperature` must be a number",
            ),
            (
                option(json!({"repeat_penalty": 11})),
                "`options.repeat_penalty` must be between",
            ),
            (
                option(json!({"num_predict": "x"})),
                "`options.num_predict` must be an integer",
            ),
            (
                json!({"messages": [{"role": "user", "content": "q"}], "format": "xml"}),
                "`format` must be `json`",
            ),
            (
                json!({"messages": [{"role": "user", "content": "q"}], "think": 1}),
                "`think` must be",
            ),
            (
                json!({"messages": [{"role": "user", "content": "q"}], "tools": [{"type": "x"}]}),
                "`tools[0].type`",
            ),
        ] {
            let error = chat(&body)
                .err()
                .unwrap_or_else(|| panic!("{body} is refused"));
            assert_eq!(error.status(), 400);
            assert!(error.to_string().contains(part), "{body}: {error}");
        }
        for (body, part) in [
            (json!({}), "`prompt` is required"),
            (json!({"prompt": "x", "suffix": "y"}), "`suffix`"),
            (json!({"prompt": "x", "context": [1]}), "`context`"),
            (json!({"prompt": "x", "raw": 1}), "`raw`"),
        ] {
            let error = generate(&body)
                .err()
                .unwrap_or_else(|| panic!("{body} is refused"));
            assert!(error.to_string().contains(part), "{body}: {error}");
        }
    }
}
