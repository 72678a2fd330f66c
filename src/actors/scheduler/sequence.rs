//! One sequence's facts and progress, waiting or running.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::actors::messages::{
    FinishReason, Finished, GeneratedToken, GenerationEvent, PrefillProgress, TokenUsage,
};
use crate::engine::sampler::{SamplingParameters, TokenLogprobs};
use crate::engine::step::{AdmittedSequence, EndReason, SampledToken, StopRule};
use crate::ids::{SequenceId, TokenId};

use super::policy::Work;

/// Where a sequence's events go.
pub trait EventSink {
    /// Hands over an event. Never blocks; a receiver that has gone is no error.
    fn send(&self, event: GenerationEvent);
}

/// A request's constant facts.
#[derive(Debug, Clone)]
pub struct Request {
    pub sequence: SequenceId,
    /// At least one token.
    pub prompt: Arc<[TokenId]>,
    pub sampling: SamplingParameters,
    /// At least 1.
    pub max_new_tokens: usize,
    pub ignore_eos: bool,
    pub deadline: Instant,
}

/// What a sequence keeps in every state.
#[derive(Debug)]
pub struct Sequence<E> {
    pub request: Request,
    pub events: E,
    pub submitted: Instant,
    /// When it was first admitted.
    pub began: Option<Instant>,
    /// Sampled tokens, in order; the engine's end token included.
    pub generated: Vec<TokenId>,
    /// Prompt tokens found in the cache when it was first admitted; `None` before. The engine knows
    /// the sequence from then on.
    pub cached: Option<usize>,
    /// Plans at the engine that hold a row of it.
    pub in_flight: usize,
    /// Those of them that sample a token.
    pub sampling: usize,
    /// Prompt rows whose log probabilities have come; only for sequences that ask for them.
    scored: usize,
    /// Prompt tokens last reported as processed.
    reported: Option<usize>,
}

impl<E: EventSink> Sequence<E> {
    pub fn new(request: Request, events: E, now: Instant) -> Self {
        Self {
            request,
            events,
            submitted: now,
            began: None,
            generated: Vec::new(),
            cached: None,
            in_flight: 0,
            sampling: 0,
            scored: 0,
            reported: None,
        }
    }

    pub fn id(&self) -> SequenceId {
        self.request.sequence
    }

    /// The prompt and the output so far: all tokens known.
    fn tokens(&self) -> Arc<[TokenId]> {
        match self.generated.is_empty() {
            true => self.request.prompt.clone(),
            false => self
                .request
                .prompt
                .iter()
                .chain(&self.generated)
                .copied()
                .collect(),
        }
    }

    /// Known tokens at the positions `from..to`.
    fn tokens_between(&self, from: usize, to: usize) -> Vec<TokenId> {
        let prompt = self.request.prompt.iter();
        prompt
            .chain(&self.generated)
            .copied()
            .skip(from)
            .take(to - from)
            .collect()
    }

    /// What the engine is told when it first sees the sequence.
    pub fn admitted(&self, end_tokens: &Arc<[TokenId]>) -> AdmittedSequence {
        let mut sampling = self.request.sampling.clone();
        let end_tokens = match self.request.ignore_eos {
            true => {
                // Were they sampled, the model would most likely repeat them for good. A grammar excludes and allows
                // them by itself.
                if sampling.grammar.is_none() {
                    sampling.excluded = end_tokens.clone();
                }
                Arc::new([])
            }
            false => end_tokens.clone(),
        };
        AdmittedSequence {
            sequence: self.id(),
            prompt: self.request.prompt.clone(),
            sampling,
            stop: StopRule {
                end_tokens,
                max_new_tokens: self.request.max_new_tokens,
            },
        }
    }

    /// Tells the streamer that keys and values of `computed` tokens exist, before the first token.
    pub fn report_prefill(&mut self, computed: usize) {
        let prompt = self.request.prompt.len();
        let processed = computed.min(prompt);
        if self.generated.is_empty() && self.reported.is_none_or(|reported| reported < processed) {
            self.reported = Some(processed);
            let cached = self.cached.unwrap_or(0);
            self.events.send(GenerationEvent::Prefill(PrefillProgress {
                processed,
                cached,
                prompt,
            }));
        }
    }

    /// How many rows of its prompt still have to be computed to have their logits.
    pub fn unscored(&self) -> usize {
        let rows = match self.request.sampling.scores_prompt() {
            true => self.request.prompt.len() - 1,
            false => 0,
        };
        rows - self.scored
    }

    /// How many of its tokens' keys and values may come from the cache: rows whose logits are wanted have
    /// to be computed.
    pub fn reusable(&self) -> usize {
        match self.unscored() {
            0 => usize::MAX,
            _ => self.scored,
        }
    }

    /// Takes log probabilities of its prompt, and tells the streamer.
    pub fn take_scored(&mut self, logprobs: Vec<TokenLogprobs>) {
        if !logprobs.is_empty() {
            self.scored += logprobs.len();
            self.events.send(GenerationEvent::PromptLogprobs(logprobs));
        }
    }

    /// The engine has answered a plan with a row of it, which samples or not.
    pub fn answered(&mut self, samples: bool) {
        self.in_flight -= 1;
        self.sampling -= usize::from(samples);
    }

    /// Takes the next token of the output, and tells the streamer. Returns the end, if this is it.
    pub fn take_token(&mut self, sampled: SampledToken, now: Instant) -> Option<Finished> {
        let after = self
            .began
            .map_or(Duration::ZERO, |began| now.saturating_duration_since(began));
        self.generated.push(sampled.token);
        if sampled.end != Some(EndReason::EndToken) {
            self.events
                .send(GenerationEvent::Tokens(vec![GeneratedToken {
                    id: sampled.token,
                    logprobs: sampled.logprobs,
                    after,
                }]));
        }
        let reason = match sampled.end? {
            EndReason::EndToken => FinishReason::Stop,
            EndReason::Length => FinishReason::Length,
        };
        let usage = TokenUsage {
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached.unwrap_or(0),
            completion_tokens: self.generated.len(),
        };
        Some(Finished {
            reason,
            usage,
            after,
        })
    }
}

/// A sequence that holds no blocks: new, or preempted.
#[derive(Debug)]
pub struct WaitingSequence<E> {
    pub sequence: Sequence<E>,
    /// What it will compute: the prompt, and after a preemption the output so far.
    pub tokens: Arc<[TokenId]>,
    /// Another sequence that is computing its next tokens.
    pub promised: Option<Promised>,
}

impl<E: EventSink> WaitingSequence<E> {
    pub fn new(sequence: Sequence<E>) -> Self {
        Self {
            tokens: sequence.tokens(),
            sequence,
            promised: None,
        }
    }

    /// As [`Sequence::take_token`], of a row that was in flight when it was preempted.
    pub fn take_token(&mut self, sampled: SampledToken, now: Instant) -> Option<Finished> {
        self.sequence.report_prefill(self.tokens.len());
        let finished = self.sequence.take_token(sampled, now);
        self.tokens = self.sequence.tokens();
        finished
    }
}

/// `by` has promised to compute as many as `until` tokens.
#[derive(Debug, Clone, Copy)]
pub struct Promised {
    pub by: SequenceId,
    pub until: usize,
}

/// A sequence that holds blocks.
#[derive(Debug)]
pub struct RunningSequence<E> {
    pub sequence: Sequence<E>,
    pub phase: Phase,
    /// Positions whose keys and values exist, as the engine has answered.
    pub computed: usize,
    /// Positions handed to the engine: `computed`, and those in flight.
    pub scheduled: usize,
    /// Positions in full blocks that the prefix cache has been told of.
    committed: usize,
    /// Blocks of its table.
    pub blocks: usize,
}

/// What a running sequence is doing.
#[derive(Debug)]
pub enum Phase {
    /// Not all of the tokens it was admitted with are computed.
    Prefilling { tokens: Arc<[TokenId]> },
    /// They are; `told` once the prefix cache knows.
    Decoding { told: bool },
    /// It is over for its client, but rows of it are in flight: they are kept for the cache.
    Ending,
}

impl<E: EventSink> RunningSequence<E> {
    /// A sequence that was just given `blocks` blocks to compute `tokens`. Keys and values of the first
    /// `cached` exist, `shared` of them in full blocks that belong to the tree.
    pub fn new(
        sequence: Sequence<E>,
        tokens: Arc<[TokenId]>,
        blocks: usize,
        cached: usize,
        shared: usize,
    ) -> Self {
        Self {
            sequence,
            phase: Phase::Prefilling { tokens },
            computed: cached,
            scheduled: cached,
            committed: shared,
            blocks,
        }
    }

    /// What it could do in the next step.
    pub fn work(&self, block_size: usize) -> Work {
        match &self.phase {
            Phase::Prefilling { tokens } if self.scheduled < tokens.len() => Work::Prefill {
                remaining: tokens.len() - self.scheduled,
            },
            Phase::Prefilling { .. } | Phase::Decoding { .. } => {
                let sampled = self.sequence.generated.len() + self.sequence.sampling;
                if sampled < self.sequence.request.max_new_tokens {
                    Work::Decode {
                        needs_block: self.scheduled == self.blocks * block_size,
                    }
                } else {
                    Work::Idle
                }
            }
            Phase::Ending => Work::Idle,
        }
    }

    /// Whether it is still computing the tokens it was admitted with, and has computed fewer than `until`.
    pub fn keeps_promise(&self, until: usize) -> bool {
        matches!(self.phase, Phase::Prefilling { .. }) && self.computed < until
    }

    /// The engine has computed `tokens` more positions.
    pub fn advance(&mut self, tokens: usize) {
        self.computed += tokens;
        if let Phase::Prefilling { tokens } = &self.phase {
            if self.computed >= tokens.len() {
                self.phase = Phase::Decoding { told: false };
            }
            self.sequence.report_prefill(self.computed);
        }
    }

    /// What the prefix cache has not been told of yet, if that is worth a message: the tokens from
    /// the first uncommitted full block on, and whether the prefill has been completed by them.
    pub fn take_commit(&mut self, block_size: usize) -> Option<(Vec<TokenId>, bool)> {
        let full = self.computed / block_size * block_size;
        let prefilled = matches!(self.phase, Phase::Decoding { told: false });
        if full <= self.committed && !prefilled {
            return None;
        }
        let to = if prefilled { self.computed } else { full };
        let tokens = self.sequence.tokens_between(self.committed, to);
        self.committed = full;
        if prefilled {
            self.phase = Phase::Decoding { told: true };
        }
        Some((tokens, prefilled))
    }

    /// All computed tokens that the prefix cache has not been told of.
    pub fn uncommitted(&self) -> Vec<TokenId> {
        self.sequence.tokens_between(self.committed, self.computed)
    }
}
