//! What HTTP handlers, streamers and the scheduler say to each other about one generation.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::prefix_cache::BlockCounts;
use crate::engine::sampler::{SamplingParameters, TokenLogprobs};
use crate::ids::{SequenceId, TokenId};

/// Everything the scheduler needs to know about a request. The prompt fits the context (the handler checked).
#[derive(Clone)]
pub struct GenerationRequest {
    pub sequence: SequenceId,
    /// The id clients see (`chatcmpl-…`), for logs.
    pub request_id: Arc<str>,
    /// At least one token.
    pub prompt: Arc<[TokenId]>,
    pub sampling: SamplingParameters,
    /// At least 1; `prompt.len() + max_new_tokens` is at most the context window.
    pub max_new_tokens: usize,
    /// End tokens are not sampled, unless a grammar allows them.
    pub ignore_eos: bool,
    /// When the request fails with [`GenerationFailure::DeadlineExceeded`].
    pub deadline: Instant,
    /// Where its events go: the request's streamer.
    pub events: Recipient<GenerationEvent>,
}

/// Asks the scheduler to queue a request. `Ok` means admitted to the waiting queue: from then on exactly
/// one of [`GenerationEvent::Finished`] and [`GenerationEvent::Failed`] ends the events, unless a
/// [`Cancel`] comes first (after which there are none).
#[derive(Message)]
#[rtype(result = "Result<(), SubmitError>")]
pub struct Submit(pub GenerationRequest);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SubmitError {
    #[error("the waiting queue is full ({limit} requests); retry later")]
    QueueFull { limit: usize, retry_after: Duration },
    #[error("the server is shutting down")]
    Draining,
    #[error("the request needs {needed} KV blocks and the pool holds {available}")]
    ExceedsPool { needed: usize, available: usize },
    #[error("the engine has stopped")]
    EngineGone,
}

/// Ends a sequence within one step. Its computed blocks stay in the prefix cache. Unknown ids are ignored.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Cancel {
    pub sequence: SequenceId,
    pub cause: CancelCause,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelCause {
    /// The client has left (counted as a disconnect).
    ClientGone,
    /// The streamer found a stop string: the request is complete (counted as `stop`).
    StopString,
    /// Another request has asked for it.
    Requested,
}

/// What happens to a request, in order.
#[derive(Message, Debug, Clone, PartialEq)]
#[rtype(result = "()")]
pub enum GenerationEvent {
    /// Prefill has begun or advanced (one for each chunk); also once when it is complete.
    Prefill(PrefillProgress),
    /// Log probabilities of the prompt's next tokens, from the second one on, if they were asked for. All
    /// of them come before the first token of the output.
    PromptLogprobs(Vec<TokenLogprobs>),
    /// The next tokens of the output, end token excluded.
    Tokens(Vec<GeneratedToken>),
    /// The output is complete.
    Finished(Finished),
    /// It could not be completed.
    Failed(GenerationFailure),
}

/// A token of the output.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    pub id: TokenId,
    /// If they were asked for.
    pub logprobs: Option<TokenLogprobs>,
    /// When it came, from the beginning of prefill.
    pub after: Duration,
}

impl From<TokenId> for GeneratedToken {
    fn from(id: TokenId) -> Self {
        Self {
            id,
            logprobs: None,
            after: Duration::ZERO,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillProgress {
    /// Prompt tokens whose keys and values exist, cached ones included.
    pub processed: usize,
    pub cached: usize,
    pub prompt: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    pub reason: FinishReason,
    pub usage: TokenUsage,
    /// When the last token came (an end token, maybe), from the beginning of prefill.
    pub after: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token.
    Stop,
    /// `max_new_tokens`.
    Length,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    pub prompt_tokens: usize,
    /// Prompt tokens that were really taken from the cache (at first admission).
    pub cached_tokens: usize,
    /// Sampled tokens, an end token included.
    pub completion_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerationFailure {
    #[error("the request did not finish before its deadline")]
    DeadlineExceeded,
    #[error("the server is shutting down")]
    ShuttingDown,
    #[error("generation failed: {0}")]
    Engine(String),
}

/// Refuses new requests, lets the others finish until `deadline`, then fails what is left with
/// [`GenerationFailure::ShuttingDown`]. Answered when nothing is left.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Drain {
    pub deadline: Instant,
}

/// Fails what is left with [`GenerationFailure::ShuttingDown`] and ends scheduler, prefix cache and
/// engine. Answered when the engine's memory is free; the address is dead from then on.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Stop;

/// Asks the scheduler how things stand. Cheap.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "SchedulerSnapshot")]
pub struct Snapshot;

#[derive(Debug, Clone, Copy, PartialEq, Eq, MessageResponse)]
pub struct SchedulerSnapshot {
    /// Sequences that hold blocks, those included that are just ending.
    pub running: usize,
    pub waiting: usize,
    /// Steps handed to the engine and not answered.
    pub plans_in_flight: usize,
    /// Nothing is queued, running or still to be cleaned up: then no block is leased.
    pub idle: bool,
    /// As of the last planning cycle.
    pub blocks: BlockCounts,
}

/// Asks the scheduler to check its books and the prefix cache's against each other. Walks all blocks:
/// for tests and debugging. An error is a bug, in words.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "Result<SchedulerSnapshot, String>")]
pub struct Audit;
