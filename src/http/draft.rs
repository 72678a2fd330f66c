//! A chat request in the making: what the other APIs are translated to.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::form::FormMaker;
use super::generate::Translated;
use super::paths::PathMap;
use super::prepare::GenerationRequest;
use super::request::chat::ChatRequest;
use super::request::completion::CompletionRequest;
use super::request::fields::{Field, Fields};

/// Members of an OpenAI chat request, with where each came from, so that the one check of it speaks in the
/// client's names.
#[derive(Debug, Default)]
pub struct ChatDraft {
    members: Map<String, Value>,
    messages: Vec<Value>,
    tools: Vec<Value>,
    template_arguments: Map<String, Value>,
    paths: PathMap,
}

impl ChatDraft {
    /// Takes a member over under the chat's name, if it is there.
    pub fn copy(&mut self, fields: &Fields<'_>, own: &str, chat: &str) {
        if let Some(field) = fields.get(own) {
            self.set(chat, field.value.clone(), field.path);
        }
    }

    /// Takes members over whose names are the same.
    pub fn copy_all(&mut self, fields: &Fields<'_>, names: &[&str]) {
        for name in names {
            self.copy(fields, name, name);
        }
    }

    /// Sets a member that was made from the client's field `own`.
    pub fn set(&mut self, chat: &str, value: impl Into<Value>, own: impl Into<String>) {
        self.paths.add(chat, own);
        self.members.insert(chat.to_owned(), value.into());
    }

    /// Notes that the part `chat` of a member was made from `own`.
    pub fn note(&mut self, chat: impl Into<String>, own: impl Into<String>) {
        self.paths.add(chat, own);
    }

    /// Sets a variable of the chat template.
    pub fn template_argument(&mut self, name: &str, value: impl Into<Value>) {
        self.template_arguments
            .insert(name.to_owned(), value.into());
    }

    /// Adds a message that was made from the client's field `own`.
    pub fn message(&mut self, message: Value, own: impl Into<String>) {
        let chat = format!("messages[{}]", self.messages.len());
        self.paths.add(chat, own);
        self.messages.push(message);
    }

    /// The message last added, to be gone on with.
    pub fn last_message(&mut self) -> Option<&mut Value> {
        self.messages.last_mut()
    }

    /// All messages so far.
    pub fn messages(&self) -> &[Value] {
        &self.messages
    }

    /// Adds a function that the client declared in the field `own`, its schema in the field `schema`.
    pub fn tool(&mut self, function: Value, own: &str, schema: &str) {
        let chat = format!("tools[{}]", self.tools.len());
        self.paths.add(format!("{chat}.function"), own);
        self.paths
            .add(format!("{chat}.function.parameters"), schema);
        self.paths.add(chat, own);
        self.tools
            .push(json!({"type": "function", "function": function}));
    }

    /// Checks it. `messages` is the client's field that the conversation is in.
    ///
    /// # Errors
    /// What is wrong with it, under the client's names.
    pub fn finish(mut self, messages: &str) -> Result<(ChatRequest, PathMap), ApiError> {
        self.paths.add("messages", messages);
        self.members
            .insert("messages".to_owned(), self.messages.into());
        if !self.tools.is_empty() {
            self.members.insert("tools".to_owned(), self.tools.into());
        }
        if !self.template_arguments.is_empty() {
            self.members.insert(
                "chat_template_kwargs".to_owned(),
                self.template_arguments.into(),
            );
        }
        match ChatRequest::parse(&Value::Object(self.members)) {
            Ok(request) => Ok((request, self.paths)),
            Err(error) => Err(self.paths.tell(error)),
        }
    }

    /// Checks it as a text completion, whose `prompt` has been set.
    ///
    /// # Errors
    /// What is wrong with it, under the client's names.
    pub fn translated_text(self, form: FormMaker) -> Result<Translated, ApiError> {
        match CompletionRequest::parse(&Value::Object(self.members)) {
            Ok(request) => Ok(Translated {
                request: GenerationRequest::Text(request),
                form,
                paths: self.paths,
            }),
            Err(error) => Err(self.paths.tell(error)),
        }
    }

    /// The same, with the form of the answer.
    ///
    /// # Errors
    /// What is wrong with it, under the client's names.
    pub fn translated(self, messages: &str, form: FormMaker) -> Result<Translated, ApiError> {
        let (request, paths) = self.finish(messages)?;
        Ok(Translated {
            request: GenerationRequest::Chat(request),
            form,
            paths,
        })
    }
}

/// The function that a tool of another API declares: its name, description and schema.
pub fn function(
    name: &Field<'_>,
    description: Option<Field<'_>>,
    parameters: Option<Field<'_>>,
) -> Value {
    let mut function = Map::new();
    function.insert("name".to_owned(), name.value.clone());
    for (key, field) in [("description", description), ("parameters", parameters)] {
        if let Some(field) = field {
            function.insert(key.to_owned(), field.value.clone());
        }
    }
    Value::Object(function)
}

/// A refusal of what is understood and not offered.
pub fn unsupported(field: &Field<'_>, message: impl Into<String>) -> ApiError {
    ApiError::unsupported(field.path.clone(), message)
}

/// JSON as models write it: a space after each comma and colon. Arguments that a client has parsed become the
/// tokens again that the model generated, so that the cache holds them.
pub fn spaced_json(value: &Value) -> String {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, Spaced);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8(text).unwrap_or_else(|_| value.to_string()),
        Err(_) => value.to_string(),
    }
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaced_json_is_as_models_write_it() {
        let value = json!({"city": "K\u{f6}ln", "days": [1, 2], "deep": {"a": null, "b": "x\"y"}, "none": {}});
        assert_eq!(
            spaced_json(&value),
            "{\"city\": \"K\u{f6}ln\", \"days\": [1, 2], \"deep\": {\"a\": null, \"b\": \"x\\\"y\"}, \"none\": {}}"
        );
    }

    #[test]
    fn errors_of_the_one_check_have_the_clients_names() {
        let mut draft = ChatDraft::default();
        draft.message(json!({"role": "user", "content": "x"}), "input[7]");
        draft.set("max_tokens", -3, "max_output_tokens");
        let error = draft.finish("input").unwrap_err();
        assert_eq!(error.body()["error"]["param"], "max_output_tokens");
        assert!(
            error.to_string().starts_with("`max_output_tokens` must be"),
            "{error}"
        );
    }
}
