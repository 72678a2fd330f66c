//! The JSON of answers: OpenAI's objects, whole and as stream chunks.

mod logprobs;
mod timings;

use serde::Serialize;
use serde_json::{Value, json};

pub use logprobs::{TokenLogprob, logprobs_json};
pub use timings::Timings;

use super::form::WholeChoice;
use crate::actors::messages::{PrefillProgress, TokenUsage};
use crate::prompt::OutputDelta;

/// Which of the two kinds of object an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Chat,
    Text,
}

impl Form {
    /// The beginning of ids.
    pub fn id_prefix(self) -> &'static str {
        match self {
            Form::Chat => "chatcmpl-",
            Form::Text => "cmpl-",
        }
    }

    fn object(self) -> &'static str {
        match self {
            Form::Chat => "chat.completion",
            Form::Text => "text_completion",
        }
    }

    fn chunk_object(self) -> &'static str {
        match self {
            Form::Chat => "chat.completion.chunk",
            Form::Text => "text_completion",
        }
    }
}

/// Why a choice ended, as clients read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WireFinish {
    Stop,
    Length,
    ToolCalls,
    /// Another request has asked to end it. Only APIs that offer that see it.
    Cancelled,
}

/// What all chunks of a stream, and the whole answer, share.
#[derive(Debug, Clone)]
pub struct Envelope {
    pub form: Form,
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    pub model: String,
    pub fingerprint: String,
}

/// Token counts of a request, all choices together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub tokens: TokenUsage,
    pub reasoning_tokens: usize,
}

impl Usage {
    pub fn add(&mut self, other: Usage) {
        self.tokens.prompt_tokens += other.tokens.prompt_tokens;
        self.tokens.cached_tokens += other.tokens.cached_tokens;
        self.tokens.completion_tokens += other.tokens.completion_tokens;
        self.reasoning_tokens += other.reasoning_tokens;
    }

    pub fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.tokens.prompt_tokens,
            "completion_tokens": self.tokens.completion_tokens,
            "total_tokens": self.tokens.prompt_tokens + self.tokens.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.tokens.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        })
    }
}

/// One piece of a choice's output, with the ids that the wire needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChoiceDelta {
    /// The assistant's turn begins.
    Role,
    Content(String),
    Reasoning(String),
    ToolCall {
        index: usize,
        id: String,
        name: String,
        arguments: String,
    },
    ToolArguments {
        index: usize,
        text: String,
    },
}

impl ChoiceDelta {
    /// Gives a tool call its id.
    pub fn from_output(delta: OutputDelta) -> Self {
        match delta {
            OutputDelta::Content(text) => ChoiceDelta::Content(text),
            OutputDelta::Reasoning(text) => ChoiceDelta::Reasoning(text),
            OutputDelta::ToolCallStart { index, name } => ChoiceDelta::ToolCall {
                index,
                id: format!("call_{}", uuid::Uuid::new_v4().simple()),
                name,
                arguments: String::new(),
            },
            OutputDelta::ToolCallArguments { index, text } => {
                ChoiceDelta::ToolArguments { index, text }
            }
        }
    }

    /// Appends `next` if one delta can say both; otherwise gives it back.
    pub fn merge(&mut self, next: ChoiceDelta) -> Option<ChoiceDelta> {
        match (self, next) {
            (ChoiceDelta::Content(text), ChoiceDelta::Content(more))
            | (ChoiceDelta::Reasoning(text), ChoiceDelta::Reasoning(more)) => text.push_str(&more),
            (
                ChoiceDelta::ToolCall {
                    index,
                    arguments: text,
                    ..
                },
                ChoiceDelta::ToolArguments {
                    index: i,
                    text: more,
                },
            )
            | (
                ChoiceDelta::ToolArguments { index, text },
                ChoiceDelta::ToolArguments {
                    index: i,
                    text: more,
                },
            ) if *index == i => {
                text.push_str(&more);
            }
            (_, next) => return Some(next),
        }
        None
    }

    fn to_json(&self) -> Value {
        match self {
            ChoiceDelta::Role => json!({"role": "assistant", "content": null}),
            ChoiceDelta::Content(text) => json!({"content": text}),
            ChoiceDelta::Reasoning(text) => json!({"reasoning_content": text}),
            ChoiceDelta::ToolCall {
                index,
                id,
                name,
                arguments,
            } => json!({"tool_calls": [{
                "index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments},
            }]}),
            ChoiceDelta::ToolArguments { index, text } => {
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        }
    }
}

/// A choice's whole output, put together from its deltas.
#[derive(Debug, Clone, Default)]
pub struct ChoiceText {
    pub content: String,
    pub reasoning: String,
    pub tool_calls: Vec<ToolCallText>,
    /// Of all tokens of the output, if they are asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// A whole tool call.
#[derive(Debug, Clone)]
pub struct ToolCallText {
    pub id: String,
    pub name: String,
    /// JSON, as the model wrote it.
    pub arguments: String,
}

impl ChoiceText {
    /// The mean log probability of its sampled tokens: how sure the model was of each. A text without
    /// tokens has none and ranks last.
    pub fn mean_logprob(&self) -> f64 {
        let sampled = self.logprobs.iter().filter(|token| !token.echoed);
        let told = sampled.filter_map(|token| token.logprob);
        let sum: f64 = told.clone().map(f64::from).sum();
        match told.count() {
            0 => f64::NEG_INFINITY,
            count => sum / count as f64,
        }
    }

    pub fn push(&mut self, delta: ChoiceDelta) {
        match delta {
            ChoiceDelta::Role => {}
            ChoiceDelta::Content(text) => self.content.push_str(&text),
            ChoiceDelta::Reasoning(text) => self.reasoning.push_str(&text),
            ChoiceDelta::ToolCall {
                id,
                name,
                arguments,
                ..
            } => {
                self.tool_calls.push(ToolCallText {
                    id,
                    name,
                    arguments,
                });
            }
            ChoiceDelta::ToolArguments { index, text } => {
                if let Some(call) = self.tool_calls.get_mut(index) {
                    call.arguments.push_str(&text);
                }
            }
        }
    }

    /// All of it as text, for logs.
    pub fn plain(&self) -> String {
        let calls = self
            .tool_calls
            .iter()
            .map(|call| format!("{}({})", call.name, call.arguments));
        let parts = [self.reasoning.clone(), self.content.clone()];
        let parts = parts
            .into_iter()
            .chain(calls)
            .filter(|part| !part.is_empty());
        parts.collect::<Vec<_>>().join("\n")
    }

    fn to_json(&self, form: Form, index: usize, finish: WireFinish) -> Value {
        let logprobs = told(form, &self.logprobs);
        if form == Form::Text {
            return json!({"index": index, "text": self.content, "logprobs": logprobs, "finish_reason": finish});
        }
        let only_tools = self.content.is_empty() && !self.tool_calls.is_empty();
        let mut message = json!({
            "role": "assistant",
            "content": if only_tools { Value::Null } else { self.content.as_str().into() },
        });
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = self.reasoning.as_str().into();
        }
        if !self.tool_calls.is_empty() {
            let call = |call: &ToolCallText| {
                json!({"id": call.id, "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments}})
            };
            message["tool_calls"] = self.tool_calls.iter().map(call).collect();
        }
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
    }
}

/// The `logprobs` of a choice: null where none are asked for.
fn told(form: Form, tokens: &[TokenLogprob]) -> Value {
    match tokens {
        [] => Value::Null,
        tokens => logprobs_json(form, tokens),
    }
}

/// How far a prompt is, for the progress that clients may ask for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    pub status: ProgressStatus,
    pub prefill: PrefillProgress,
    pub elapsed_seconds: f64,
}

impl Progress {
    /// What all APIs tell of it.
    pub fn to_json(self) -> Value {
        let PrefillProgress {
            processed,
            cached,
            prompt,
        } = self.prefill;
        json!({
            "status": self.status,
            "n_past": processed,
            "n_prompt_tokens": prompt,
            "cached_tokens": cached,
            "fraction": if prompt == 0 { 0.0 } else { processed as f64 / prompt as f64 },
            "elapsed_seconds": self.elapsed_seconds,
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgressStatus {
    Queued,
    Processing,
    Done,
}

impl Envelope {
    fn chunk(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": self.form.chunk_object(),
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    /// A chunk with a piece of one choice's output, and the log probabilities of its tokens if there are any.
    pub fn delta_chunk(
        &self,
        choice: usize,
        delta: &ChoiceDelta,
        logprobs: &[TokenLogprob],
    ) -> Value {
        let logprobs = told(self.form, logprobs);
        self.chunk(match (self.form, delta) {
            (Form::Chat, delta) if logprobs.is_null() => {
                json!([{"index": choice, "delta": delta.to_json(), "finish_reason": null}])
            }
            (Form::Chat, delta) => {
                json!([{"index": choice, "delta": delta.to_json(), "logprobs": logprobs, "finish_reason": null}])
            }
            (Form::Text, ChoiceDelta::Content(text)) => {
                json!([{"index": choice, "text": text, "logprobs": logprobs, "finish_reason": null}])
            }
            // Text completions are not parsed, so there is nothing else.
            (Form::Text, _) => json!([]),
        })
    }

    /// A choice's last chunk.
    pub fn finish_chunk(
        &self,
        choice: usize,
        finish: WireFinish,
        usage: Option<Usage>,
        timings: Option<Timings>,
    ) -> Value {
        let mut chunk = self.chunk(match self.form {
            Form::Chat => json!([{"index": choice, "delta": {}, "finish_reason": finish}]),
            Form::Text => {
                json!([{"index": choice, "text": "", "logprobs": null, "finish_reason": finish}])
            }
        });
        if let Some(usage) = usage {
            chunk["usage"] = usage.to_json();
        }
        if let Some(timings) = timings {
            chunk["timings"] = timings.to_json();
        }
        chunk
    }

    /// The chunk that only tells the usage.
    pub fn usage_chunk(&self, usage: Usage) -> Value {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = usage.to_json();
        chunk
    }

    /// The data of a `prefill_progress` event. It has the members that SDKs read of any chunk, because
    /// some hand named events to user code as chunks.
    pub fn progress_event(&self, progress: &Progress) -> Value {
        let mut event = progress.to_json();
        event["id"] = self.id.as_str().into();
        event["object"] = "prefill_progress".into();
        event["created"] = self.created.into();
        event["model"] = self.model.as_str().into();
        event["choices"] = json!([]);
        event
    }

    /// A standard chunk with the progress, as llama-server tells it.
    pub fn progress_chunk(&self, progress: &Progress) -> Value {
        let mut chunk = self.chunk(match self.form {
            Form::Chat => json!([{"index": 0, "delta": {}, "finish_reason": null}]),
            Form::Text => {
                json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": null}])
            }
        });
        let PrefillProgress {
            processed,
            cached,
            prompt,
        } = progress.prefill;
        chunk["prompt_progress"] = json!({
            "total": prompt,
            "cache": cached,
            "processed": processed,
            "time_ms": (progress.elapsed_seconds * 1000.0).round() as u64,
        });
        chunk
    }

    /// The whole answer.
    pub fn whole(&self, choices: &[WholeChoice], usage: Usage, timings: Option<Timings>) -> Value {
        let choices: Vec<Value> = choices
            .iter()
            .enumerate()
            .map(|(index, choice)| choice.text.to_json(self.form, index, choice.ending.finish))
            .collect();
        let mut answer = json!({
            "id": self.id,
            "object": self.form.object(),
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "usage": usage.to_json(),
        });
        if let Some(timings) = timings {
            answer["timings"] = timings.to_json();
        }
        answer
    }
}
