//! The streamer: one actor for each sequence that a client waits for.
//!
//! It receives what happens to the sequence, turns tokens into the answer, tells prefill progress where that
//! was asked for, and is the one who cancels: when the client has left, or a stop string is found. It
//! lives on the thread of the connection, so that the answer needs no lock. Its timers end with it.

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
    Cancel, CancelCause, FinishReason, Finished, GenerationEvent, PrefillProgress, TokenUsage,
};
use crate::http::answer::Answer;
use crate::http::error::ApiError;
use crate::http::form::Ending;
use crate::http::wire::{ChoiceDelta, Progress, ProgressStatus, Usage, WireFinish};
use crate::ids::{SequenceId, TokenId};
use crate::telemetry::Metrics;
use decoder::OutputDecoder;

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

    fn tokens(&mut self, tokens: Vec<TokenId>, ctx: &mut Context<Self>) {
        self.end_prefill();
        for token in tokens {
            self.tokens += 1;
            let decoded = self.assignment.decoder.push(token);
            {
                let mut answer = self.assignment.answer.borrow_mut();
                answer.token(Instant::now());
                for delta in decoded.deltas {
                    answer.delta(self.assignment.choice, ChoiceDelta::from_output(delta));
                }
            }
            if decoded.stopped {
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
        let deltas = self.assignment.decoder.finish();
        {
            let mut answer = self.assignment.answer.borrow_mut();
            for delta in deltas {
                answer.delta(self.assignment.choice, ChoiceDelta::from_output(delta));
            }
        }
        let finish = match finished.reason {
            FinishReason::Length => WireFinish::Length,
            FinishReason::Stop if self.assignment.decoder.tool_calls() > 0 => WireFinish::ToolCalls,
            FinishReason::Stop => WireFinish::Stop,
        };
        self.finish(finish, finished.usage);
    }

    fn finish(&mut self, finish: WireFinish, tokens: TokenUsage) {
        let usage = Usage {
            tokens,
            reasoning_tokens: self.assignment.decoder.reasoning_tokens(),
        };
        let ending = Ending {
            finish,
            stop_string: self.assignment.decoder.stop_string().map(str::to_owned),
            usage,
        };
        self.assignment
            .answer
            .borrow_mut()
            .finish(self.assignment.choice, ending);
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
        let deltas = self.assignment.decoder.finish();
        {
            let mut answer = self.assignment.answer.borrow_mut();
            for delta in deltas {
                answer.delta(self.assignment.choice, ChoiceDelta::from_output(delta));
            }
        }
        self.finish(WireFinish::Cancelled, self.usage());
        ctx.stop();
    }
}
