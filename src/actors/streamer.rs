//! The streamer: one actor for each sequence that a client waits for.
//!
//! It receives what happens to the sequence, turns tokens into the answer, tells prefill progress where that
//! was asked for, and is the one who cancels: when the client has left, or a stop string is found. It
//! lives on the thread of the connection, so that the answer needs no lock. Its timers end with it.

mod alignment;
pub mod decoder;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::WeakAddr;
use actix::prelude::*;

use super::messages::{
    Cancel, CancelCause, FinishReason, Finished, GeneratedToken, GenerationEvent, PrefillProgress,
    TokenUsage,
};
use crate::http::answer::Answer;
use crate::http::error::ApiError;
use crate::http::form::Ending;
use crate::http::wire::{ChoiceDelta, Progress, ProgressStatus, Timings, Usage, WireFinish};
use crate::ids::SequenceId;
use crate::telemetry::Metrics;
use decoder::{Decoded, EchoedPrompt, OutputDecoder};

/// How long after the deadline the streamer gives up by itself. The scheduler ends requests at their
/// deadline; this is for a scheduler that is gone.
const SILENCE_AFTER_DEADLINE: Duration = Duration::from_secs(5);

/// What a streamer is made of.
pub struct Assignment {
    pub sequence: SequenceId,
    /// Which choice of the answer the sequence is.
    pub choice: usize,
    pub prompt_tokens: usize,
    pub decoder: OutputDecoder,
    /// The prompt, if it is to be told with its log probabilities.
    pub echo: Option<EchoedPrompt>,
    /// The output itself is not wanted, only what the prompt led to.
    pub silent: bool,
    /// The request's answer, shared with the streamers of its other choices.
    pub answer: Rc<RefCell<Answer>>,
    pub scheduler: Recipient<Cancel>,
    /// Tell progress, at most once in this time.
    pub progress_interval: Option<Duration>,
    pub deadline: Instant,
    pub metrics: Arc<Metrics>,
    /// Held until the last token: the right to use the model.
    pub lease: Rc<dyn Any>,
}

/// See the module's text.
pub struct Streamer {
    assignment: Assignment,
    started: Instant,
    prefill: PrefillProgress,
    phase: Phase,
    tokens: usize,
    /// When the first and the last token came, from the beginning of prefill.
    first_token: Option<Duration>,
    last_token: Duration,
}

/// How far the sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Queued,
    Prefilling,
    /// Prefill is complete, and its progress told.
    Decoding,
}

/// Nobody waits for the sequence any more.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Abandon;

/// Another request has asked to end the sequence; what has been generated is its output.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Interrupt;

/// Ends the sequences of one request, from any thread. They may have ended already.
#[derive(Debug, Clone)]
pub struct Interrupter(Vec<WeakAddr<Streamer>>);

impl Interrupter {
    pub fn new(streamers: Vec<WeakAddr<Streamer>>) -> Self {
        Self(streamers)
    }

    /// See [`Interrupt`].
    pub fn interrupt(&self) {
        for streamer in self.0.iter().filter_map(WeakAddr::upgrade) {
            streamer.do_send(Interrupt);
        }
    }
}

/// Held by whoever stands for the client (the response body, or the handler that waits for a whole answer):
/// dropping it abandons the sequences.
pub struct Presence(Vec<Addr<Streamer>>);

impl Presence {
    pub fn new(streamers: Vec<Addr<Streamer>>) -> Self {
        Self(streamers)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        for streamer in &self.0 {
            // No effect on those that have finished.
            streamer.do_send(Abandon);
        }
    }
}

impl Streamer {
    pub fn new(assignment: Assignment) -> Self {
        let prefill = PrefillProgress {
            processed: 0,
            cached: 0,
            prompt: assignment.prompt_tokens,
        };
        Self {
            assignment,
            started: Instant::now(),
            prefill,
            phase: Phase::Queued,
            tokens: 0,
            first_token: None,
            last_token: Duration::ZERO,
        }
    }

    fn tell_progress(&self, status: ProgressStatus) {
        if self.assignment.progress_interval.is_some() {
            let elapsed_seconds = self.started.elapsed().as_secs_f64();
            let progress = Progress {
                status,
                prefill: self.prefill,
                elapsed_seconds,
            };
            self.assignment.answer.borrow_mut().progress(progress);
        }
    }

    /// The heartbeat.
    fn tick(&mut self, _: &mut Context<Self>) {
        match self.phase {
            Phase::Queued => self.tell_progress(ProgressStatus::Queued),
            Phase::Prefilling => self.tell_progress(ProgressStatus::Processing),
            Phase::Decoding => {}
        }
    }

    fn prefill(&mut self, progress: PrefillProgress) {
        // What was cached is told once: a preempted sequence finds its own blocks again.
        let cached = if self.phase == Phase::Queued {
            progress.cached
        } else {
            self.prefill.cached
        };
        if self.phase != Phase::Decoding {
            self.phase = Phase::Prefilling;
            self.prefill = PrefillProgress { cached, ..progress };
            if progress.processed >= progress.prompt {
                self.end_prefill();
            }
        }
    }

    fn end_prefill(&mut self) {
        if self.phase != Phase::Decoding {
            self.phase = Phase::Decoding;
            self.prefill.processed = self.prefill.prompt;
            self.tell_progress(ProgressStatus::Done);
        }
    }

    /// The prompt is computed, and so are its log probabilities.
    fn tell_echo(&mut self) {
        if let Some(echo) = self.assignment.echo.take() {
            let (text, logprobs) = echo.finish();
            let delta = ChoiceDelta::Content(text);
            let mut answer = self.assignment.answer.borrow_mut();
            answer.scored_delta(self.assignment.choice, delta, logprobs);
        }
    }

    fn tell(&self, decoded: Decoded) {
        if self.assignment.silent {
            return;
        }
        let mut answer = self.assignment.answer.borrow_mut();
        let choice = self.assignment.choice;
        let mut logprobs = decoded.logprobs;
        if decoded.deltas.is_empty() && !logprobs.is_empty() {
            // Tokens without text, at the end.
            answer.scored_delta(choice, ChoiceDelta::Content(String::new()), logprobs);
            return;
        }
        for delta in decoded.deltas {
            let logprobs = std::mem::take(&mut logprobs);
            answer.scored_delta(choice, ChoiceDelta::from_output(delta), logprobs);
        }
    }

    fn tokens(&mut self, tokens: Vec<GeneratedToken>, ctx: &mut Context<Self>) {
        self.end_prefill();
        self.tell_echo();
        for token in tokens {
            self.tokens += 1;
            self.first_token.get_or_insert(token.after);
            self.last_token = token.after;
            self.assignment.answer.borrow_mut().token(Instant::now());
            let decoded = self.assignment.decoder.push(&token);
            let stopped = decoded.stopped;
            self.tell(decoded);
            if stopped {
                self.cancel(CancelCause::StopString);
                let finish = match self.assignment.decoder.is_cut() {
                    true => WireFinish::ToolCalls,
                    false => WireFinish::Stop,
                };
                self.finish(finish, self.usage());
                ctx.stop();
                return;
            }
        }
    }

    fn finished(&mut self, finished: Finished) {
        self.end_prefill();
        self.tell_echo();
        let decoded = self.assignment.decoder.finish();
        self.tell(decoded);
        self.last_token = finished.after;
        let finish = match finished.reason {
            FinishReason::Length => WireFinish::Length,
            FinishReason::Stop if self.assignment.decoder.tool_calls() > 0 => WireFinish::ToolCalls,
            FinishReason::Stop => WireFinish::Stop,
        };
        self.finish(finish, finished.usage);
    }

    fn finish(&mut self, finish: WireFinish, mut tokens: TokenUsage) {
        let mut reasoning_tokens = self.assignment.decoder.reasoning_tokens();
        let mut finish = finish;
        if self.assignment.silent {
            // What was sampled to compute the prompt is none of the answer.
            (tokens.completion_tokens, reasoning_tokens) = (0, 0);
            finish = WireFinish::Length;
        }
        let ending = Ending {
            finish,
            stop_string: self.assignment.decoder.stop_string().map(str::to_owned),
            usage: Usage {
                tokens,
                reasoning_tokens,
            },
            timings: self.timings(&tokens),
        };
        let mut answer = self.assignment.answer.borrow_mut();
        answer.finish(self.assignment.choice, ending);
    }

    fn timings(&self, tokens: &TokenUsage) -> Timings {
        // An output may end with its first token, which is not told then.
        let first_token = self.first_token.unwrap_or(self.last_token);
        Timings {
            cached_tokens: tokens.cached_tokens,
            prompt_tokens: tokens.prompt_tokens.saturating_sub(tokens.cached_tokens),
            prompt_time: first_token,
            predicted_tokens: tokens.completion_tokens,
            predicted_time: self.last_token.saturating_sub(first_token),
        }
    }

    fn fail(&mut self, error: ApiError) {
        // The answer abandons the other choices' streamers; this one stops by itself.
        self.assignment
            .answer
            .borrow_mut()
            .fail(error, self.usage());
    }

    /// What is known before the scheduler tells.
    fn usage(&self) -> TokenUsage {
        TokenUsage {
            prompt_tokens: self.assignment.prompt_tokens,
            cached_tokens: self.prefill.cached,
            completion_tokens: self.tokens,
        }
    }

    fn cancel(&self, cause: CancelCause) {
        self.assignment.scheduler.do_send(Cancel {
            sequence: self.assignment.sequence,
            cause,
        });
    }
}

impl Actor for Streamer {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.assignment.metrics.streams_active.inc();
        self.tell_progress(ProgressStatus::Queued);
        if let Some(interval) = self.assignment.progress_interval {
            ctx.run_interval(interval, Self::tick);
        }
        let silence = self
            .assignment
            .deadline
            .saturating_duration_since(Instant::now())
            + SILENCE_AFTER_DEADLINE;
        ctx.run_later(silence, |streamer, ctx| {
            streamer.cancel(CancelCause::ClientGone);
            streamer.fail(ApiError::DeadlineExceeded);
            ctx.stop();
        });
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.assignment.metrics.streams_active.dec();
    }
}

impl Handler<GenerationEvent> for Streamer {
    type Result = ();

    fn handle(&mut self, event: GenerationEvent, ctx: &mut Self::Context) {
        match event {
            GenerationEvent::Prefill(progress) => self.prefill(progress),
            GenerationEvent::PromptLogprobs(logprobs) => {
                if let Some(echo) = &mut self.assignment.echo {
                    echo.take(&logprobs);
                }
            }
            GenerationEvent::Tokens(tokens) => self.tokens(tokens, ctx),
            GenerationEvent::Finished(finished) => {
                self.finished(finished);
                ctx.stop();
            }
            GenerationEvent::Failed(failure) => {
                self.fail(failure.into());
                ctx.stop();
            }
        }
    }
}

impl Handler<Abandon> for Streamer {
    type Result = ();

    fn handle(&mut self, _: Abandon, ctx: &mut Self::Context) {
        self.cancel(CancelCause::ClientGone);
        self.assignment.answer.borrow_mut().abandon(self.usage());
        ctx.stop();
    }
}

impl Handler<Interrupt> for Streamer {
    type Result = ();

    fn handle(&mut self, _: Interrupt, ctx: &mut Self::Context) {
        self.cancel(CancelCause::Requested);
        let decoded = self.assignment.decoder.finish();
        self.tell(decoded);
        self.finish(WireFinish::Cancelled, self.usage());
        ctx.stop();
    }
}
