//! `POST /v1/chat/completions`: messages and tools, checked and brought into one form.

use serde_json::{Map, Value, json};

use super::fields::{Field, Fields};
use super::limits;
use super::options::GenerationOptions;
use super::tool_choice::ToolRules;
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

fn messages(body: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
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
fn name<'a>(field: &Field<'a>) -> Result<&'a str, ApiError> {
    match field.string()? {
        "" => Err(field.invalid("must not be empty")),
        name if name.len() > limits::NAME_BYTES => {
            Err(field.invalid(format!("is longer than {} bytes", limits::NAME_BYTES)))
        }
        name => Ok(name),
    }
}

/// An earlier call of the assistant.
fn tool_call(field: &Field<'_>) -> Result<Value, ApiError> {
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

fn tools(body: &Fields<'_>) -> Result<Vec<Value>, ApiError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::tool_choice::ToolChoice;
    use crate::ids::TokenId;

    fn parse(body: Value) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(&body)
    }

    fn user() -> Value {
        json!([{"role": "user", "content": "hi"}])
    }

    /// A valid request with some members replaced.
    fn with(members: Value) -> Value {
        let mut body = json!({"messages": user()});
        for (name, value) in members.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    }

    #[test]
    fn full_request_is_understood() {
        let request = parse(json!({
            "model": "demo", "messages": user(), "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1,
            "frequency_penalty": -1, "presence_penalty": 1.5, "repetition_penalty": 1.1, "seed": -7,
            "stop": ["a", "b"], "max_tokens": 5, "max_completion_tokens": 6, "n": 1, "logprobs": false,
            "logit_bias": {"17": -100, "3": 2.5}, "response_format": {"type": "text"}, "stream": true,
            "stream_options": {"include_usage": true}, "user": "u", "metadata": {"k": "v"},
            "chat_template_kwargs": {"enable_thinking": false}, "ignore_eos": true, "return_progress": true,
            "session_id": "s", "unknown": [1, 2], "tool_choice": "none", "parallel_tool_calls": false,
        }))
        .unwrap();
        let options = &request.options;
        assert_eq!(options.model.as_deref(), Some("demo"));
        assert_eq!(options.max_tokens, Some(6));
        assert_eq!(options.stop, ["a", "b"]);
        assert!(
            options.stream
                && options.include_usage
                && options.ignore_eos
                && options.return_progress
        );
        assert_eq!(options.sampling.seed, Some(-7_i64 as u64));
        assert_eq!(options.sampling.top_k, Some(40));
        assert_eq!(options.sampling.logit_bias[&TokenId(17)], -100.0);
        assert_eq!(request.template_arguments["enable_thinking"], false);
        assert_eq!(request.tool_rules.choice, ToolChoice::None);
        assert!(!request.tool_rules.parallel);
    }

    #[test]
    fn what_changes_nothing_is_accepted() {
        let request = parse(with(json!({
            "prediction": {"type": "content", "content": "x"}, "store": true, "service_tier": "auto",
            "metadata": {"k": "v"}, "user": "u", "prompt_cache_key": "k", "safety_identifier": "s",
            "verbosity": "low", "modalities": ["text"], "stream": true, "best_of": 1, "echo": false,
            "top_logprobs": 0, "stream_options": {"include_obfuscation": false}, "functions": [],
        })));
        let plain = parse(with(json!({"stream": true})));
        assert_eq!(request.unwrap(), plain.unwrap());
    }

    #[test]
    fn log_probabilities_choices_and_timings() {
        let options = |members| parse(with(members)).unwrap().options;
        assert_eq!(options(json!({})).logprobs, None);
        assert_eq!(options(json!({"logprobs": true})).logprobs, Some(0));
        let asked = options(json!({"logprobs": true, "top_logprobs": 20, "n": 128}));
        assert_eq!(
            (asked.logprobs, asked.choices.n, asked.choices.best_of),
            (Some(20), 128, 128)
        );
        assert!(options(json!({"timings": true})).timings);
        assert!(options(json!({"timings_per_token": true})).timings);
        assert!(!options(json!({"timings": false})).timings);
    }

    #[test]
    fn reasoning_effort_is_a_template_argument() {
        let arguments = |members| Value::Object(parse(with(members)).unwrap().template_arguments);
        for (effort, thinks) in [
            ("none", false),
            ("minimal", false),
            ("low", true),
            ("high", true),
        ] {
            let expected = json!({"reasoning_effort": effort, "enable_thinking": thinks});
            assert_eq!(arguments(json!({"reasoning_effort": effort})), expected);
        }
        let both =
            json!({"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": false}});
        assert_eq!(arguments(both)["enable_thinking"], false);
        assert_eq!(arguments(json!({"reasoning_effort": null})), json!({}));
    }

    #[test]
    fn the_last_message_is_continued_when_asked_for_in_either_way() {
        let continued = |members: Value, prefix: Value| {
            let mut body = json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]});
            for (name, value) in members.as_object().unwrap() {
                body[name] = value.clone();
            }
            body["messages"][1]["prefix"] = prefix;
            parse(body).map(|request| request.continue_final_message)
        };
        assert!(!continued(json!({}), Value::Null).unwrap());
        assert!(continued(json!({"continue_final_message": true}), Value::Null).unwrap());
        let spelled = json!({"continue_final_message": true, "add_generation_prompt": false});
        assert!(continued(spelled, Value::Null).unwrap());
        assert!(continued(json!({}), json!(true)).unwrap());
        let error = continued(json!({"continue_final_message": false}), json!(true)).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "continue_final_message");
    }

    #[test]
    fn null_is_absent() {
        let request = parse(with(json!({
            "temperature": null, "stop": null, "tools": null, "tool_choice": null, "max_tokens": null,
            "stream": null, "stream_options": null, "logprobs": null, "response_format": null, "n": null,
        })));
        assert_eq!(
            request.unwrap(),
            parse(json!({"messages": user()})).unwrap()
        );
    }

    #[test]
    fn messages_are_brought_into_one_form() {
        let request = parse(json!({"messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "user", "content": "q", "name": "ann", "extra": 1},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "42"},
            {"role": "assistant", "content": "done", "reasoning_content": "hm", "tool_calls": []},
        ]}))
        .unwrap();
        assert_eq!(
            Value::Array(request.messages),
            json!([
                {"role": "system", "content": "a\nb"},
                {"role": "user", "content": "q", "name": "ann"},
                {"role": "assistant", "content": "", "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
                {"role": "tool", "content": "42", "tool_call_id": "call_1"},
                {"role": "assistant", "content": "done", "reasoning_content": "hm"},
            ])
        );
    }

    #[test]
    fn bad_input_names_the_field_and_the_fix() {
        let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
        let message =
            |message: Value| json!({"messages": [{"role": "user", "content": "x"}, message]});
        let table = [
            (json!([1]), None, "must be a JSON object, not an array"),
            (json!({}), Some("messages"), "is required"),
            (
                json!({"messages": []}),
                Some("messages"),
                "at least one message",
            ),
            (
                json!({"messages": "hi"}),
                Some("messages"),
                "must be an array, not a string",
            ),
            (
                json!({"messages": ["hi"]}),
                Some("messages[0]"),
                "must be an object, not a string",
            ),
            (
                json!({"messages": [{"content": "x"}]}),
                Some("messages[0].role"),
                "is required",
            ),
            (
                message(json!({"role": "robot", "content": "x"})),
                Some("messages[1].role"),
                "got \"robot\"",
            ),
            (
                message(json!({"role": 7, "content": "x"})),
                Some("messages[1].role"),
                "must be a string, not a number",
            ),
            (
                message(json!({"role": "user"})),
                Some("messages[1].content"),
                "is required",
            ),
            (
                message(json!({"role": "user", "content": null})),
                Some("messages[1].content"),
                "is required",
            ),
            (
                message(json!({"role": "user", "content": 5})),
                Some("messages[1].content"),
                "a string or an array of parts",
            ),
            (
                message(json!({"role": "user", "content": []})),
                Some("messages[1].content"),
                "at least one part",
            ),
            (
                message(json!({"role": "user", "content": ["x"]})),
                Some("messages[1].content[0]"),
                "must be an object",
            ),
            (
                message(json!({"role": "user", "content": [{"type": "text"}]})),
                Some("messages[1].content[0].text"),
                "is required",
            ),
            (
                message(json!({"role": "user", "content": [
                    {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "data:"}}]})),
                Some("messages[1].content[1]"),
                "is an image; this model reads text only",
            ),
            (
                message(json!({"role": "user", "content": [{"type": "smell"}]})),
                Some("messages[1].content[0].type"),
                "must be `text`",
            ),
            (
                message(json!({"role": "tool", "content": "x"})),
                Some("messages[1].tool_call_id"),
                "is required",
            ),
            (
                message(json!({"role": "tool", "content": "x", "tool_call_id": ""})),
                Some("messages[1].tool_call_id"),
                "must not be empty",
            ),
            (
                message(json!({"role": "assistant", "tool_calls": {"id": "x"}})),
                Some("messages[1].tool_calls"),
                "must be an array, not an object",
            ),
            (
                message(json!({"role": "assistant", "tool_calls": [{"id": "x"}]})),
                Some("messages[1].tool_calls[0].function"),
                "is required",
            ),
            (
                message(
                    json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}),
                ),
                Some("messages[1].tool_calls[0].function.arguments"),
                "must be a string, not an object",
            ),
            (
                with(json!({"temperature": -0.1})),
                Some("temperature"),
                "between 0 and 2, got -0.1",
            ),
            (
                with(json!({"temperature": 2.1})),
                Some("temperature"),
                "between 0 and 2, got 2.1",
            ),
            (
                with(json!({"temperature": "hot"})),
                Some("temperature"),
                "must be a number, not a string",
            ),
            (
                with(json!({"temperature": "NaN"})),
                Some("temperature"),
                "must be a number, not a string",
            ),
            (
                with(json!({"top_p": 1.5})),
                Some("top_p"),
                "between 0 and 1",
            ),
            (with(json!({"top_p": -1})), Some("top_p"), "between 0 and 1"),
            (with(json!({"top_k": -2})), Some("top_k"), "at least -1"),
            (
                with(json!({"top_k": 1.5})),
                Some("top_k"),
                "must be an integer",
            ),
            (with(json!({"min_p": 2})), Some("min_p"), "between 0 and 1"),
            (
                with(json!({"frequency_penalty": 3})),
                Some("frequency_penalty"),
                "between -2 and 2",
            ),
            (
                with(json!({"presence_penalty": -3})),
                Some("presence_penalty"),
                "between -2 and 2",
            ),
            (
                with(json!({"repetition_penalty": 0})),
                Some("repetition_penalty"),
                "greater than 0",
            ),
            (
                with(json!({"repetition_penalty": -1})),
                Some("repetition_penalty"),
                "between 0 and 10",
            ),
            (
                with(json!({"seed": 1.5})),
                Some("seed"),
                "must be an integer",
            ),
            (
                with(json!({"seed": "x"})),
                Some("seed"),
                "must be an integer",
            ),
            (
                with(json!({"max_tokens": 0})),
                Some("max_tokens"),
                "at least 1, got 0",
            ),
            (
                with(json!({"max_tokens": -5})),
                Some("max_tokens"),
                "at least 1, got -5",
            ),
            (
                with(json!({"max_tokens": "5"})),
                Some("max_tokens"),
                "must be an integer",
            ),
            (
                with(json!({"max_completion_tokens": 0})),
                Some("max_completion_tokens"),
                "at least 1",
            ),
            (
                with(json!({"stop": 5})),
                Some("stop"),
                "a string or an array of strings",
            ),
            (
                with(json!({"stop": ["a", ""]})),
                Some("stop[1]"),
                "must not be empty",
            ),
            (
                with(json!({"stop": ["a", 1]})),
                Some("stop[1]"),
                "must be a string",
            ),
            (
                with(json!({"stop": vec!["x"; 17]})),
                Some("stop"),
                "at most 16",
            ),
            (
                with(json!({"logit_bias": [1]})),
                Some("logit_bias"),
                "must be an object",
            ),
            (
                with(json!({"logit_bias": {"x": 1}})),
                Some("logit_bias"),
                "token ids",
            ),
            (
                with(json!({"logit_bias": {"-1": 1}})),
                Some("logit_bias"),
                "token ids",
            ),
            (
                with(json!({"logit_bias": {"5": 101}})),
                Some("logit_bias.5"),
                "between -100 and 100",
            ),
            (with(json!({"n": 0})), Some("n"), "from 1 to 128"),
            (with(json!({"n": 129})), Some("n"), "from 1 to 128"),
            (with(json!({"n": 1.5})), Some("n"), "from 1 to 128"),
            (with(json!({"n": "2"})), Some("n"), "must be an integer"),
            (
                with(json!({"best_of": 2})),
                Some("best_of"),
                "/v1/completions",
            ),
            (with(json!({"echo": true})), Some("echo"), "/v1/completions"),
            (with(json!({"echo": "no"})), Some("echo"), "true or false"),
            (
                with(json!({"functions": [{"name": "f"}]})),
                Some("functions"),
                "send `tools`",
            ),
            (
                with(json!({"function_call": "auto"})),
                Some("function_call"),
                "`tool_choice`",
            ),
            (
                with(json!({"modalities": ["text", "audio"]})),
                Some("modalities[1]"),
                "text only",
            ),
            (
                with(json!({"modalities": "text"})),
                Some("modalities"),
                "must be an array",
            ),
            (
                with(json!({"reasoning_effort": "extreme"})),
                Some("reasoning_effort"),
                "got \"extreme\"",
            ),
            (
                with(json!({"reasoning_effort": 3})),
                Some("reasoning_effort"),
                "must be a string",
            ),
            (
                with(json!({"store": "yes"})),
                Some("store"),
                "true or false",
            ),
            (
                with(json!({"prediction": "text"})),
                Some("prediction"),
                "must be an object",
            ),
            (
                with(json!({"service_tier": 1})),
                Some("service_tier"),
                "must be a string",
            ),
            (
                with(json!({"prompt_cache_key": 1})),
                Some("prompt_cache_key"),
                "must be a string",
            ),
            (
                with(json!({"safety_identifier": []})),
                Some("safety_identifier"),
                "must be a string",
            ),
            (
                with(json!({"verbosity": 1})),
                Some("verbosity"),
                "must be a string",
            ),
            (
                with(json!({"stream": true, "stream_options": {"include_obfuscation": 1}})),
                Some("stream_options.include_obfuscation"),
                "true or false",
            ),
            (
                with(json!({"timings": 1})),
                Some("timings"),
                "true or false",
            ),
            (
                with(json!({"timings_per_token": "all"})),
                Some("timings_per_token"),
                "true or false",
            ),
            (
                with(json!({"continue_final_message": "yes"})),
                Some("continue_final_message"),
                "true or false",
            ),
            (
                with(json!({"continue_final_message": true})),
                Some("messages[0]"),
                "must be the assistant's",
            ),
            (
                with(json!({"add_generation_prompt": false})),
                Some("add_generation_prompt"),
                "`continue_final_message`",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
                    "continue_final_message": true, "add_generation_prompt": true}),
                Some("add_generation_prompt"),
                "must not be true",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": " "}],
                    "continue_final_message": true}),
                Some("messages[1]"),
                "must not be empty",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [
                    {"function": {"name": "f"}}]}], "continue_final_message": true}),
                Some("messages[1]"),
                "calls tools",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "x", "prefix": true},
                    {"role": "user", "content": "y"}]}),
                Some("messages[0].prefix"),
                "last message",
            ),
            (
                with(json!({"logprobs": 1})),
                Some("logprobs"),
                "true or false",
            ),
            (
                with(json!({"top_logprobs": 5})),
                Some("top_logprobs"),
                "`logprobs` is true",
            ),
            (
                with(json!({"logprobs": false, "top_logprobs": 1})),
                Some("top_logprobs"),
                "`logprobs` is true",
            ),
            (
                with(json!({"logprobs": true, "top_logprobs": 21})),
                Some("top_logprobs"),
                "from 0 to 20",
            ),
            (
                with(json!({"logprobs": true, "top_logprobs": -1})),
                Some("top_logprobs"),
                "from 0 to 20",
            ),
            (
                with(json!({"logprobs": true, "top_logprobs": true})),
                Some("top_logprobs"),
                "must be an integer",
            ),
            (
                with(json!({"top_logprobs": 50})),
                Some("top_logprobs"),
                "from 0 to 20",
            ),
            (
                with(json!({"response_format": {"type": "xml"}})),
                Some("response_format.type"),
                "must be `text`",
            ),
            (
                with(json!({"response_format": "json"})),
                Some("response_format"),
                "must be an object",
            ),
            (
                with(json!({"response_format": {}})),
                Some("response_format.type"),
                "is required",
            ),
            (
                with(json!({"stream": "yes"})),
                Some("stream"),
                "true or false",
            ),
            (
                with(json!({"stream_options": {"include_usage": true}})),
                Some("stream_options"),
                "`stream` is true",
            ),
            (
                with(json!({"stream": true, "stream_options": {"include_usage": 1}})),
                Some("stream_options.include_usage"),
                "true or false",
            ),
            (with(json!({"model": 5})), Some("model"), "must be a string"),
            (
                with(json!({"chat_template_kwargs": [1]})),
                Some("chat_template_kwargs"),
                "must be an object",
            ),
            (
                with(json!({"ignore_eos": "no"})),
                Some("ignore_eos"),
                "true or false",
            ),
            (
                with(json!({"parallel_tool_calls": "no"})),
                Some("parallel_tool_calls"),
                "true or false",
            ),
            (
                with(json!({"tools": {}})),
                Some("tools"),
                "must be an array",
            ),
            (
                with(json!({"tools": [{"type": "function"}]})),
                Some("tools[0].function"),
                "is required",
            ),
            (
                with(json!({"tools": [{"type": "web"}]})),
                Some("tools[0].type"),
                "must be `function`",
            ),
            (
                with(tool(json!({}))),
                Some("tools[0].function.name"),
                "is required",
            ),
            (
                with(tool(json!({"name": ""}))),
                Some("tools[0].function.name"),
                "must not be empty",
            ),
            (
                with(tool(json!({"name": "f", "parameters": "x"}))),
                Some("tools[0].function.parameters"),
                "must be an object, not a string",
            ),
            (
                with(json!({"tool_choice": "required"})),
                Some("tool_choice"),
                "needs `tools`",
            ),
            (
                with(json!({"parallel_tool_calls": "no"})),
                Some("parallel_tool_calls"),
                "true or false",
            ),
            (with(json!({"user": 1})), Some("user"), "must be a string"),
            (
                with(json!({"metadata": 1})),
                Some("metadata"),
                "must be an object",
            ),
        ];
        for (body, parameter, part) in table {
            let error = parse(body.clone()).expect_err(&body.to_string());
            assert_eq!(error.status(), 400, "{body}");
            let object = error.body();
            assert_eq!(object["error"]["param"].as_str(), parameter, "{body}");
            assert_eq!(object["error"]["type"], "invalid_request_error");
            let message = error.to_string();
            assert!(message.contains(part), "{body}: {message}");
            if let Some(parameter) = parameter {
                assert!(message.contains(parameter), "{body}: {message}");
            }
        }
    }
}
