//! What an answer is made of, and what an API has to know to tell it in its own words.
//!
//! Whatever API a request came through, its answer is the same sequence of [`Piece`]s. A [`WireForm`] is a
//! small state machine that turns them into that API's bytes, one piece after the other, or into its one
//! object when the client waits for the whole.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::error::ApiError;
use super::wire::{ChoiceDelta, ChoiceText, Progress, Timings, TokenLogprob, Usage, WireFinish};
use crate::actors::streamer::Interrupter;

/// How one API tells an answer. It lives as long as somebody waits for the answer.
pub trait WireForm {
    /// `Content-Type` of a streamed answer.
    fn content_type(&self) -> &'static str {
        "text/event-stream"
    }

    /// Generation has begun, and can be ended through `interrupter`.
    fn started(&mut self, _interrupter: Interrupter) {}

    /// The bytes that tell the next piece; empty for what this API does not tell. Called when the client
    /// takes them, so that pieces it did not take in time arrive here as one.
    fn encode(&mut self, piece: Piece) -> Bytes;

    /// The whole answer. Choices are in order.
    fn whole(&mut self, choices: Vec<WholeChoice>, summary: Summary) -> Value;
}

/// One thing to tell in a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Delta {
        choice: usize,
        delta: ChoiceDelta,
        /// Of the tokens whose text it completes, if they are asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// Prefill has begun or advanced.
    Progress(Progress),
    Finish {
        choice: usize,
        ending: Ending,
    },
    /// The stream is complete.
    Done(Summary),
    /// The stream has failed; nothing follows.
    Error(ApiError),
}

impl Piece {
    /// Makes `next` part of this piece if one frame can say both; otherwise gives it back.
    pub fn merge(&mut self, next: Piece) -> Option<Piece> {
        match (self, next) {
            (
                Piece::Delta {
                    choice,
                    delta,
                    logprobs,
                },
                Piece::Delta {
                    choice: same,
                    delta: more,
                    logprobs: more_logprobs,
                },
            ) if *choice == same => match delta.merge(more) {
                None => {
                    logprobs.extend(more_logprobs);
                    None
                }
                Some(delta) => Some(Piece::Delta {
                    choice: same,
                    delta,
                    logprobs: more_logprobs,
                }),
            },
            (Piece::Progress(old), Piece::Progress(new)) if old.status == new.status => {
                *old = new;
                None
            }
            (_, next) => Some(next),
        }
    }
}

/// How a choice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub finish: WireFinish,
    /// The stop string that ended it, if one did.
    pub stop_string: Option<String>,
    pub usage: Usage,
    pub timings: Timings,
}

/// A choice as a whole.
#[derive(Debug, Clone)]
pub struct WholeChoice {
    pub text: ChoiceText,
    pub ending: Ending,
}

/// The counts of a complete answer, all choices together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    pub usage: Usage,
    pub timings: Timings,
    pub timing: Timing,
}

/// How long an answer took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// From the request's arrival to its first token: queue and prefill. None: no token came.
    pub first_token: Option<Duration>,
    /// From the request's arrival to the end.
    pub total: Duration,
}

/// What is known when an answer begins.
#[derive(Debug, Clone)]
pub struct Opening {
    /// The id of the model that answers.
    pub model: String,
    /// Seconds since 1970.
    pub created: u64,
    pub request_id: Arc<str>,
    /// When the request arrived.
    pub arrived: Instant,
    /// All choices together.
    pub prompt_tokens: usize,
    /// The client has asked for `prefill_progress` events by a header.
    pub progress_events: bool,
    /// The configuration asks for the usage on a stream's final chunk.
    pub usage_on_final_chunk: bool,
}

/// Makes the form of one answer.
pub type FormMaker = Box<dyn FnOnce(Opening) -> Box<dyn WireForm> + Send>;

/// One server-sent event without a name. JSON text has no line breaks of its own, so one `data:` line
/// holds it.
pub fn data_event(data: &Value) -> Bytes {
    Bytes::from(format!("data: {data}\n\n"))
}

/// One server-sent event with a name.
pub fn named_event(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}
