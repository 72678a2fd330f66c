//! Anthropic's answers: a message of content blocks, whole or as named events.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::http::dialect::Dialect;
use crate::http::form::{Ending, Opening, Piece, Summary, WholeChoice, WireForm, named_event};
use crate::http::wire::{ChoiceDelta, ToolCallText, Usage, WireFinish};

/// The block that is being told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Thinking,
    /// Of the call with this index.
    ToolUse(usize),
}

/// See the module's text.
#[derive(Debug)]
pub struct MessageForm {
    id: String,
    opening: Opening,
    open: Option<Block>,
    /// Blocks begun.
    blocks: usize,
    ending: Option<Ending>,
}

impl MessageForm {
    pub fn new(opening: Opening) -> Self {
        Self {
            id: format!("msg_{}", uuid::Uuid::new_v4().simple()),
            opening,
            open: None,
            blocks: 0,
            ending: None,
        }
    }

    fn message(&self, content: Vec<Value>, ending: Option<&Ending>, usage: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.opening.model,
            "content": content,
            "stop_reason": ending.map(stop_reason),
            "stop_sequence": ending.and_then(stop_sequence),
            "usage": usage,
        })
    }

    /// What the message begins with. How much of the prompt was cached is not known yet; the last usage
    /// corrects it.
    fn start(&self) -> String {
        let mut counts = Usage::default();
        counts.tokens.prompt_tokens = self.opening.prompt_tokens;
        let message = self.message(Vec::new(), None, usage(counts));
        event(json!({"type": "message_start", "message": message}))
            + &event(json!({"type": "ping"}))
    }

    /// Ends the open block, if it is another one, and begins this one if it is not open.
    fn switch(&mut self, to: Option<(Block, Value)>) -> String {
        let wanted = to.as_ref().map(|(block, _)| *block);
        let mut frames = String::new();
        if self.open.is_some() && self.open == wanted {
            return frames;
        }
        if let Some(block) = self.open.take() {
            let index = self.blocks - 1;
            if block == Block::Thinking {
                // Nothing is signed here, and nothing is asked back. SDKs want the member.
                let delta = json!({"type": "signature_delta", "signature": self.id});
                frames += &delta_event(index, delta);
            }
            frames += &event(json!({"type": "content_block_stop", "index": index}));
        }
        if let Some((block, content)) = to {
            frames += &event(json!({"type": "content_block_start", "index": self.blocks,
                "content_block": content}));
            self.open = Some(block);
            self.blocks += 1;
        }
        frames
    }

    /// A piece of the open block.
    fn delta(&self, delta: Value) -> String {
        delta_event(self.blocks.saturating_sub(1), delta)
    }

    fn tell(&mut self, delta: ChoiceDelta) -> String {
        match delta {
            ChoiceDelta::Role => self.start(),
            ChoiceDelta::Content(text) => {
                let block = json!({"type": "text", "text": ""});
                let frames = self.switch(Some((Block::Text, block)));
                frames + &self.delta(json!({"type": "text_delta", "text": text}))
            }
            ChoiceDelta::Reasoning(text) => {
                let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                let frames = self.switch(Some((Block::Thinking, block)));
                frames + &self.delta(json!({"type": "thinking_delta", "thinking": text}))
            }
            ChoiceDelta::ToolCall {
                index,
                id,
                name,
                arguments,
            } => {
                let block =
                    json!({"type": "tool_use", "id": call_id(&id), "name": name, "input": {}});
                let mut frames = self.switch(Some((Block::ToolUse(index), block)));
                // SDKs begin with an empty piece, too.
                frames += &self.delta(input(&arguments));
                frames
            }
            ChoiceDelta::ToolArguments { text, .. } => self.delta(input(&text)),
        }
    }
}

fn input(json_text: &str) -> Value {
    json!({"type": "input_json_delta", "partial_json": json_text})
}

fn delta_event(index: usize, delta: Value) -> String {
    event(json!({"type": "content_block_delta", "index": index, "delta": delta}))
}

/// An event is named as its data's type.
fn event(data: Value) -> String {
    named_event(data["type"].as_str().unwrap_or_default(), &data)
}

/// Anthropic's ids of calls begin otherwise than OpenAI's.
fn call_id(id: &str) -> String {
    format!("toolu_{}", id.strip_prefix("call_").unwrap_or(id))
}

fn stop_reason(ending: &Ending) -> &'static str {
    match ending.finish {
        WireFinish::Length => "max_tokens",
        WireFinish::ToolCalls => "tool_use",
        WireFinish::Stop if ending.stop_string.is_some() => "stop_sequence",
        WireFinish::Stop | WireFinish::Cancelled => "end_turn",
    }
}

fn stop_sequence(ending: &Ending) -> Option<&str> {
    match stop_reason(ending) {
        "stop_sequence" => ending.stop_string.as_deref(),
        _ => None,
    }
}

/// `input_tokens` are those that were not in the cache.
fn usage(usage: Usage) -> Value {
    let tokens = usage.tokens;
    json!({
        "input_tokens": tokens.prompt_tokens.saturating_sub(tokens.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tokens.cached_tokens,
        "output_tokens": tokens.completion_tokens,
    })
}

/// The input as an object. One that was cut off by the token limit is empty.
fn call_input(call: &ToolCallText) -> Value {
    match serde_json::from_str(&call.arguments) {
        Ok(input @ Value::Object(_)) => input,
        _ => json!({}),
    }
}

impl WireForm for MessageForm {
    fn encode(&mut self, piece: Piece) -> Bytes {
        let frames = match piece {
            Piece::Delta { delta, .. } => self.tell(delta),
            Piece::Progress(progress) => match self.opening.progress_events {
                true => {
                    let mut data = progress.to_json();
                    data["type"] = "prefill_progress".into();
                    event(data)
                }
                false => String::new(),
            },
            Piece::Finish { ending, .. } => {
                self.ending = Some(ending);
                self.switch(None)
            }
            Piece::Done(summary) => {
                let ending = self.ending.as_ref();
                let delta = event(json!({
                    "type": "message_delta",
                    "delta": {"stop_reason": ending.map(stop_reason),
                        "stop_sequence": ending.and_then(stop_sequence)},
                    "usage": usage(summary.usage),
                }));
                delta + &event(json!({"type": "message_stop"}))
            }
            Piece::Error(error) => {
                event(Dialect::Anthropic.error_body(&error, &self.opening.request_id))
            }
        };
        frames.into()
    }

    fn whole(&mut self, choices: Vec<WholeChoice>, summary: Summary) -> Value {
        let Some(WholeChoice { text, ending }) = choices.into_iter().next() else {
            return self.message(Vec::new(), None, usage(summary.usage));
        };
        let mut content = Vec::new();
        if !text.reasoning.is_empty() {
            content.push(
                json!({"type": "thinking", "thinking": text.reasoning, "signature": self.id}),
            );
        }
        if !text.content.is_empty() {
            content.push(json!({"type": "text", "text": text.content}));
        }
        for call in &text.tool_calls {
            content.push(
                json!({"type": "tool_use", "id": call_id(&call.id), "name": call.name,
                "input": call_input(call)}),
            );
        }
        self.message(content, Some(&ending), usage(summary.usage))
    }
}
