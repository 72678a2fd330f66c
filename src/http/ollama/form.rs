//! Ollama's answers: one JSON object a line.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::http::dialect::Dialect;
use crate::http::form::{Ending, Opening, Piece, Summary, WholeChoice, WireForm};
use crate::http::wire::{ChoiceDelta, ToolCallText, WireFinish};

/// Which of the two objects carries the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `message`.
    Chat,
    /// `response`.
    Generate,
}

/// See the module's text.
#[derive(Debug)]
pub struct OllamaForm {
    kind: Kind,
    opening: Opening,
    /// The call whose arguments are coming: it is told when it is whole.
    call: Option<ToolCallText>,
    ending: Option<Ending>,
}

impl OllamaForm {
    pub fn chat(opening: Opening) -> Self {
        Self::new(Kind::Chat, opening)
    }

    pub fn generate(opening: Opening) -> Self {
        Self::new(Kind::Generate, opening)
    }

    fn new(kind: Kind, opening: Opening) -> Self {
        Self {
            kind,
            opening,
            call: None,
            ending: None,
        }
    }

    /// One object with these parts of the answer.
    fn object(&self, content: &str, thinking: &str, calls: &[Value], done: bool) -> Value {
        let mut object = json!({
            "model": self.opening.model,
            "created_at": jiff::Timestamp::now().to_string(),
        });
        match self.kind {
            Kind::Chat => {
                let mut message = json!({"role": "assistant", "content": content});
                if !thinking.is_empty() {
                    message["thinking"] = thinking.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                object["message"] = message;
            }
            Kind::Generate => {
                object["response"] = content.into();
                if !thinking.is_empty() {
                    object["thinking"] = thinking.into();
                }
            }
        }
        object["done"] = done.into();
        object
    }

    /// Adds what the last object tells.
    fn complete(object: &mut Value, finish: WireFinish, summary: Summary) {
        let total = summary.timing.total;
        // Queue and prefill, then the tokens.
        let prompt = summary.timing.first_token.unwrap_or(total);
        object["done_reason"] = match finish {
            WireFinish::Length => "length",
            WireFinish::Stop | WireFinish::ToolCalls | WireFinish::Cancelled => "stop",
        }
        .into();
        object["total_duration"] = nanoseconds(total);
        object["load_duration"] = 0.into();
        object["prompt_eval_count"] = summary.usage.tokens.prompt_tokens.into();
        object["prompt_eval_duration"] = nanoseconds(prompt);
        object["eval_count"] = summary.usage.tokens.completion_tokens.into();
        object["eval_duration"] = nanoseconds(total.saturating_sub(prompt));
    }

    /// The call that is whole now, as a line. Text between calls cannot belong to one.
    fn finish_call(&mut self) -> String {
        match self.call.take().as_ref().and_then(call_json) {
            Some(call) => line(&self.object("", "", &[call], false)),
            None => String::new(),
        }
    }
}

fn nanoseconds(duration: Duration) -> Value {
    u64::try_from(duration.as_nanos())
        .unwrap_or(u64::MAX)
        .into()
}

/// A call with its arguments as an object. None: they were cut off by the token limit, so that there is no
/// call to make.
fn call_json(call: &ToolCallText) -> Option<Value> {
    let text = match call.arguments.trim() {
        "" => "{}",
        text => text,
    };
    let arguments: Value = serde_json::from_str(text).ok()?;
    arguments
        .is_object()
        .then(|| json!({"id": call.id, "function": {"name": call.name, "arguments": arguments}}))
}

fn line(object: &Value) -> String {
    format!("{object}\n")
}

impl WireForm for OllamaForm {
    fn content_type(&self) -> &'static str {
        "application/x-ndjson"
    }

    fn encode(&mut self, piece: Piece) -> Bytes {
        if let Piece::Delta {
            delta: ChoiceDelta::ToolArguments { text, .. },
            ..
        } = &piece
        {
            if let Some(call) = &mut self.call {
                call.arguments.push_str(text);
            }
            return Bytes::new();
        }
        let before = match piece {
            Piece::Progress(_) | Piece::Error(_) => String::new(),
            _ => self.finish_call(),
        };
        let this = match piece {
            Piece::Delta { delta, .. } => match delta {
                ChoiceDelta::Content(text) => line(&self.object(&text, "", &[], false)),
                ChoiceDelta::Reasoning(text) => line(&self.object("", &text, &[], false)),
                ChoiceDelta::ToolCall {
                    id,
                    name,
                    arguments,
                    ..
                } => {
                    self.call = Some(ToolCallText {
                        id,
                        name,
                        arguments,
                    });
                    String::new()
                }
                ChoiceDelta::Role | ChoiceDelta::ToolArguments { .. } => String::new(),
            },
            Piece::Progress(_) => String::new(),
            Piece::Finish { ending, .. } => {
                self.ending = Some(ending);
                String::new()
            }
            Piece::Done(summary) => {
                let finish = self
                    .ending
                    .as_ref()
                    .map_or(WireFinish::Stop, |ending| ending.finish);
                let mut object = self.object("", "", &[], true);
                Self::complete(&mut object, finish, summary);
                line(&object)
            }
            Piece::Error(error) => line(&Dialect::Ollama.error_body(&error, "")),
        };
        Bytes::from(before + &this)
    }

    fn whole(&mut self, choices: Vec<WholeChoice>, summary: Summary) -> Value {
        let Some(choice) = choices.into_iter().next() else {
            return self.object("", "", &[], true);
        };
        let text = choice.text;
        let calls: Vec<Value> = text.tool_calls.iter().filter_map(call_json).collect();
        let mut object = self.object(&text.content, &text.reasoning, &calls, true);
        Self::complete(&mut object, choice.ending.finish, summary);
        object
    }
}
