//! The Responses API's answers: a response object, whole or as typed events.

use bytes::Bytes;
use serde_json::{Value, json};

use super::items::new_id;
use super::request::{Asked, Keep};
use super::store::{Registration, StoredResponse};
use crate::actors::streamer::Interrupter;
use crate::http::error::ApiError;
use crate::http::form::{Opening, Piece, Summary, WholeChoice, WireForm, named_event};
use crate::http::wire::{ChoiceDelta, ChoiceText, Usage, WireFinish};

/// What an output item is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    Call { call_id: String, name: String },
}

/// The output item that is being told.
#[derive(Debug)]
struct OpenItem {
    kind: Kind,
    id: String,
    /// Its text so far, or its arguments.
    text: String,
}

impl OpenItem {
    fn new(kind: Kind) -> Self {
        let prefix = match kind {
            Kind::Message => "msg_",
            Kind::Reasoning => "rs_",
            Kind::Call { .. } => "fc_",
        };
        Self {
            id: new_id(prefix),
            kind,
            text: String::new(),
        }
    }

    /// The one content part; None: calls have none.
    fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Message => Some(json!({"type": "output_text", "text": self.text,
                "annotations": [], "logprobs": []})),
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": self.text})),
            Kind::Call { .. } => None,
        }
    }

    /// The item, with its content once it has some.
    fn item(&self, status: &str) -> Value {
        let content: Vec<Value> = match status {
            "in_progress" => Vec::new(),
            _ => self.part().into_iter().collect(),
        };
        match &self.kind {
            Kind::Message => json!({"id": self.id, "type": "message", "status": status,
                "role": "assistant", "content": content}),
            Kind::Reasoning => json!({"id": self.id, "type": "reasoning", "status": status,
                "summary": [], "content": content}),
            Kind::Call { call_id, name } => json!({"id": self.id, "type": "function_call",
                "status": status, "call_id": call_id, "name": name, "arguments": self.text}),
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct ResponseForm {
    id: String,
    opening: Opening,
    asked: Asked,
    /// Of the next event.
    sequence: u64,
    /// Items that are complete.
    output: Vec<Value>,
    open: Option<OpenItem>,
    /// The same output as a chat has it, for the next turn.
    text: ChoiceText,
    finish: WireFinish,
    registration: Option<Registration>,
}

impl ResponseForm {
    pub fn new(asked: Asked, opening: Opening) -> Self {
        Self {
            id: new_id("resp_"),
            opening,
            asked,
            sequence: 0,
            output: Vec::new(),
            open: None,
            text: ChoiceText::default(),
            finish: WireFinish::Stop,
            registration: None,
        }
    }

    /// The response object.
    fn object(&self, status: &str, usage: Option<Usage>, error: Option<&ApiError>) -> Value {
        let mut object = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.opening.created,
            "status": status,
            "error": error.map(|error| json!({"code": "server_error", "message": error.to_string()})),
            "incomplete_details": match status {
                "incomplete" => json!({"reason": "max_output_tokens"}),
                _ => Value::Null,
            },
            "model": self.opening.model,
            "output": self.output,
            "usage": usage.map(usage_json),
        });
        for (name, value) in &self.asked.echo {
            object[name] = value.clone();
        }
        object
    }

    fn event(&mut self, kind: &str, mut data: Value) -> String {
        data["type"] = kind.into();
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        named_event(kind, &data)
    }

    /// An event about the open item.
    fn item_event(&mut self, kind: &str, id: &str, mut data: Value) -> String {
        data["item_id"] = id.into();
        data["output_index"] = self.output.len().into();
        if !kind.contains("function_call") {
            data["content_index"] = 0.into();
        }
        self.event(kind, data)
    }

    fn open(&mut self, kind: Kind) -> String {
        let mut frames = self.close("completed");
        let item = OpenItem::new(kind);
        let index = self.output.len();
        let data = json!({"output_index": index, "item": item.item("in_progress")});
        frames += &self.event("response.output_item.added", data);
        if let Some(part) = item.part() {
            let data = json!({"part": part});
            frames += &self.item_event("response.content_part.added", &item.id, data);
        }
        self.open = Some(item);
        frames
    }

    fn close(&mut self, status: &str) -> String {
        let Some(item) = self.open.take() else {
            return String::new();
        };
        let mut frames = match &item.kind {
            Kind::Message => {
                let data = json!({"text": item.text, "logprobs": []});
                self.item_event("response.output_text.done", &item.id, data)
            }
            Kind::Reasoning => {
                let data = json!({"text": item.text});
                self.item_event("response.reasoning_text.done", &item.id, data)
            }
            Kind::Call { name, .. } => {
                let data = json!({"name": name, "arguments": item.text});
                self.item_event("response.function_call_arguments.done", &item.id, data)
            }
        };
        if let Some(part) = item.part() {
            let data = json!({"part": part});
            frames += &self.item_event("response.content_part.done", &item.id, data);
        }
        let done = item.item(status);
        let data = json!({"output_index": self.output.len(), "item": done});
        frames += &self.event("response.output_item.done", data);
        self.output.push(done);
        frames
    }

    /// A piece of an item's text, which goes into the open item if that is of the same kind.
    fn text_delta(&mut self, kind: Kind, text: &str) -> String {
        let mut frames = match &self.open {
            Some(open) if open.kind == kind => String::new(),
            _ => self.open(kind),
        };
        frames += &self.delta(text);
        frames
    }

    /// A piece of the open item.
    fn delta(&mut self, text: &str) -> String {
        let Some(item) = &mut self.open else {
            return String::new();
        };
        item.text.push_str(text);
        let id = item.id.clone();
        let (kind, data) = match item.kind {
            Kind::Message => (
                "response.output_text.delta",
                json!({"delta": text, "logprobs": []}),
            ),
            Kind::Reasoning => ("response.reasoning_text.delta", json!({"delta": text})),
            Kind::Call { .. } => (
                "response.function_call_arguments.delta",
                json!({"delta": text}),
            ),
        };
        self.item_event(kind, &id, data)
    }

    fn tell(&mut self, delta: ChoiceDelta) -> String {
        self.text.push(delta.clone());
        match delta {
            ChoiceDelta::Role => {
                let response = json!({"response": self.object("in_progress", None, None)});
                let created = self.event("response.created", response.clone());
                created + &self.event("response.in_progress", response)
            }
            ChoiceDelta::Content(text) => self.text_delta(Kind::Message, &text),
            ChoiceDelta::Reasoning(text) => self.text_delta(Kind::Reasoning, &text),
            ChoiceDelta::ToolCall {
                id,
                name,
                arguments,
                ..
            } => {
                let mut frames = self.open(Kind::Call { call_id: id, name });
                if !arguments.is_empty() {
                    frames += &self.delta(&arguments);
                }
                frames
            }
            ChoiceDelta::ToolArguments { text, .. } => self.delta(&text),
        }
    }

    /// The output is complete, or cut off within its last item.
    fn end(&mut self, finish: WireFinish) -> String {
        self.finish = finish;
        self.close(match finish {
            WireFinish::Stop | WireFinish::ToolCalls => "completed",
            WireFinish::Length | WireFinish::Cancelled => "incomplete",
        })
    }

    /// The final object, which is kept if the request said so.
    fn complete(&mut self, summary: Summary) -> Value {
        let status = match self.finish {
            WireFinish::Stop | WireFinish::ToolCalls => "completed",
            WireFinish::Length => "incomplete",
            WireFinish::Cancelled => "cancelled",
        };
        let object = self.object(status, Some(summary.usage), None);
        if let Some(Keep {
            input_items,
            mut messages,
        }) = self.asked.keep.take()
        {
            messages.push(chat_message(&self.text));
            let stored = StoredResponse {
                response: object.clone(),
                input_items,
                messages,
            };
            self.asked.store.keep(&self.id, stored);
        }
        if let Some(registration) = self.registration.take() {
            registration.complete(&object);
        }
        object
    }
}

/// The output as the assistant's message of a chat.
fn chat_message(text: &ChoiceText) -> Value {
    let mut message = json!({"role": "assistant", "content": text.content});
    if !text.reasoning.is_empty() {
        message["reasoning_content"] = text.reasoning.as_str().into();
    }
    if !text.tool_calls.is_empty() {
        let calls = text.tool_calls.iter().map(|call| {
            json!({"id": call.id, "type": "function",
                "function": {"name": call.name, "arguments": call.arguments}})
        });
        message["tool_calls"] = calls.collect();
    }
    message
}

fn usage_json(usage: Usage) -> Value {
    let tokens = usage.tokens;
    json!({
        "input_tokens": tokens.prompt_tokens,
        "input_tokens_details": {"cached_tokens": tokens.cached_tokens},
        "output_tokens": tokens.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": tokens.prompt_tokens + tokens.completion_tokens,
    })
}

impl WireForm for ResponseForm {
    fn started(&mut self, interrupter: Interrupter) {
        let response = self.object("in_progress", None, None);
        let registration = self.asked.store.register(&self.id, response, interrupter);
        self.registration = Some(registration);
    }

    fn encode(&mut self, piece: Piece) -> Bytes {
        let frames = match piece {
            Piece::Delta { delta, .. } => self.tell(delta),
            Piece::Progress(progress) => match self.opening.progress_events {
                true => {
                    let mut data = progress.to_json();
                    data["type"] = "prefill_progress".into();
                    named_event("prefill_progress", &data)
                }
                false => String::new(),
            },
            Piece::Finish { ending, .. } => self.end(ending.finish),
            Piece::Done(summary) => {
                let object = self.complete(summary);
                let kind = match self.finish {
                    WireFinish::Stop | WireFinish::ToolCalls => "response.completed",
                    // There is no event of its own for a response that was cancelled.
                    WireFinish::Length | WireFinish::Cancelled => "response.incomplete",
                };
                self.event(kind, json!({"response": object}))
            }
            Piece::Error(error) => {
                let told = &error.body()["error"];
                let data = json!({"code": told["code"], "message": told["message"], "param": told["param"]});
                let frames = self.event("error", data);
                let object = self.object("failed", None, Some(&error));
                frames + &self.event("response.failed", json!({"response": object}))
            }
        };
        frames.into()
    }

    /// Through the same states as a stream, so that both have the same items.
    fn whole(&mut self, choices: Vec<WholeChoice>, summary: Summary) -> Value {
        if let Some(WholeChoice { text, ending }) = choices.into_iter().next() {
            if !text.reasoning.is_empty() {
                self.tell(ChoiceDelta::Reasoning(text.reasoning));
            }
            if !text.content.is_empty() {
                self.tell(ChoiceDelta::Content(text.content));
            }
            for (index, call) in text.tool_calls.into_iter().enumerate() {
                self.tell(ChoiceDelta::ToolCall {
                    index,
                    id: call.id,
                    name: call.name,
                    arguments: call.arguments,
                });
            }
            self.end(ending.finish);
        }
        self.complete(summary)
    }
}
