//! A streamed answer as a whole.

use serde_json::{Value, json};

use super::{Event, EventStream};

/// A streamed answer, put together as a client does.
#[derive(Debug, Default)]
pub struct Answer {
    pub content: String,
    /// Name and arguments of each call.
    pub calls: Vec<(String, String)>,
    pub call_ids: Vec<String>,
    pub finish_reason: String,
    pub usage: Value,
    pub progress: Vec<Value>,
    pub id: String,
}

impl Answer {
    pub fn of(stream: EventStream) -> Answer {
        assert_eq!(stream.status, 200);
        let mut answer = Answer::default();
        for event in stream.into_done() {
            answer.add(&event);
        }
        answer
    }

    pub fn add(&mut self, event: &Event) {
        let data = event.json();
        if event.name.as_deref() == Some("prefill_progress") {
            assert!(
                self.content.is_empty() && self.calls.is_empty(),
                "progress after the first token"
            );
            self.progress.push(data);
            return;
        }
        assert_eq!(event.name, None);
        self.id = text(&data["id"]);
        if data["usage"].is_object() {
            self.usage = data["usage"].clone();
        }
        let Some(choice) = data["choices"].get(0) else {
            return;
        };
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = reason.to_owned();
        }
        self.content += choice["delta"]["content"].as_str().unwrap_or("");
        for call in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let index = call["index"].as_u64().expect("an index") as usize;
            if index == self.calls.len() {
                self.calls
                    .push((text(&call["function"]["name"]), String::new()));
                self.call_ids.push(text(&call["id"]));
            }
            self.calls[index].1 += call["function"]["arguments"].as_str().unwrap_or("");
        }
    }

    pub fn prompt_tokens(&self) -> u64 {
        self.usage["prompt_tokens"].as_u64().expect("usage")
    }

    pub fn completion_tokens(&self) -> u64 {
        self.usage["completion_tokens"].as_u64().expect("usage")
    }

    pub fn cached_tokens(&self) -> u64 {
        self.usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .expect("usage")
    }

    /// The message that goes back to the server in the next turn.
    pub fn message(&self) -> Value {
        let calls: Vec<Value> = self
            .calls
            .iter()
            .zip(&self.call_ids)
            .map(|((name, arguments), id)| {
                json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
            })
            .collect();
        if calls.is_empty() {
            json!({"role": "assistant", "content": self.content})
        } else {
            json!({"role": "assistant", "content": null, "tool_calls": calls})
        }
    }
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no string"))
        .to_owned()
}
