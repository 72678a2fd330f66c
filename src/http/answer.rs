//! One request's answer, as its streamers put it together: sent piece by piece, or kept until whole.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use actix::WeakAddr;
use serde_json::Value;
use tokio::sync::oneshot;

use super::error::ApiError;
use super::form::{Ending, Piece, Summary, WholeChoice, WireForm};
use super::outbox::Outbox;
use super::record::{Outcome, RequestRecord};
use super::wire::{ChoiceDelta, ChoiceText, Progress, Timings, TokenLogprob, Usage, WireFinish};
use crate::actors::messages::TokenUsage;
use crate::actors::streamer::{Abandon, Interrupter, Streamer};

/// How the client wants its answer.
pub enum Delivery {
    Stream(Rc<RefCell<Outbox>>),
    Whole {
        form: Box<dyn WireForm>,
        reply: oneshot::Sender<Result<Value, ApiError>>,
    },
}

/// Which sequences an answer is made of. Sequences and choices are numbered prompt by prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub prompts: usize,
    /// Choices told of each prompt.
    pub n: usize,
    /// Sequences generated of each prompt, at least `n`; if more, then those are told whose tokens are the
    /// likeliest on average.
    pub best_of: usize,
    /// Log probabilities are told (they may also come only to choose the best).
    pub logprobs: bool,
}

impl Shape {
    /// So many choices of one prompt.
    pub const fn choices(n: usize) -> Self {
        Self {
            prompts: 1,
            n,
            best_of: n,
            logprobs: false,
        }
    }

    fn sequences(self) -> usize {
        self.prompts * self.best_of
    }
}

/// See the module's text.
pub struct Answer {
    record: RequestRecord,
    /// None when the answer is complete, has failed or is wanted no more.
    delivery: Option<Delivery>,
    /// Texts of streams are kept, too, to be logged.
    log_content: bool,
    shape: Shape,
    choices: Vec<Choice>,
    streamers: Vec<WeakAddr<Streamer>>,
}

#[derive(Default)]
struct Choice {
    /// Stays empty in streams, unless it is to be logged.
    text: ChoiceText,
    ending: Option<Ending>,
}

impl Answer {
    pub fn new(
        record: RequestRecord,
        delivery: Delivery,
        shape: Shape,
        log_content: bool,
    ) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            record,
            delivery: Some(delivery),
            log_content,
            shape,
            choices: std::iter::repeat_with(Choice::default)
                .take(shape.sequences())
                .collect(),
            streamers: Vec::new(),
        }))
    }

    /// The streamers of all choices, so that the failure of one ends the others.
    pub fn set_streamers(&mut self, streamers: Vec<WeakAddr<Streamer>>) {
        let interrupter = Interrupter::new(streamers.clone());
        self.streamers = streamers;
        match &mut self.delivery {
            Some(Delivery::Stream(outbox)) => outbox.borrow_mut().started(interrupter),
            Some(Delivery::Whole { form, .. }) => form.started(interrupter),
            None => {}
        }
    }

    /// A token of any choice has come.
    pub fn token(&mut self, now: Instant) {
        self.record.token(now);
    }

    /// The next piece of a choice's output.
    pub fn delta(&mut self, choice: usize, delta: ChoiceDelta) {
        self.scored_delta(choice, delta, Vec::new());
    }

    /// The same with the log probabilities of its tokens.
    pub fn scored_delta(&mut self, choice: usize, delta: ChoiceDelta, logprobs: Vec<TokenLogprob>) {
        match &self.delivery {
            Some(Delivery::Stream(outbox)) => {
                if self.log_content {
                    self.choices[choice].text.push(delta.clone());
                }
                outbox.borrow_mut().push(Piece::Delta {
                    choice,
                    delta,
                    logprobs,
                });
            }
            Some(Delivery::Whole { .. }) => {
                let text = &mut self.choices[choice].text;
                text.push(delta);
                text.logprobs.extend(logprobs);
            }
            None => {}
        }
    }

    /// Prefill has advanced.
    pub fn progress(&mut self, progress: Progress) {
        if let Some(Delivery::Stream(outbox)) = &self.delivery {
            outbox.borrow_mut().push(Piece::Progress(progress));
        }
    }

    /// A choice is complete; with the last one, the answer is.
    pub fn finish(&mut self, choice: usize, ending: Ending) {
        if let Some(Delivery::Stream(outbox)) = &self.delivery {
            let ending = ending.clone();
            outbox.borrow_mut().push(Piece::Finish { choice, ending });
        }
        self.choices[choice].ending = Some(ending);
        if self.choices.iter().all(|choice| choice.ending.is_some()) {
            self.complete();
        }
    }

    fn complete(&mut self) {
        let mut usage = Usage::default();
        let mut timings = Timings::default();
        let mut outcome = Outcome::Stop;
        let mut choices = Vec::with_capacity(self.choices.len());
        let sequences = std::mem::take(&mut self.choices).into_iter().enumerate();
        for (sequence, Choice { text, ending }) in sequences {
            let Some(mut ending) = ending else {
                continue;
            };
            // A prompt counts once, with what was cached before the request.
            let same_prompt = sequence % self.shape.best_of > 0;
            if same_prompt {
                ending.usage.tokens.prompt_tokens = 0;
                ending.usage.tokens.cached_tokens = 0;
            }
            usage.add(ending.usage);
            timings.add(ending.timings, same_prompt);
            choices.push(WholeChoice { text, ending });
        }
        if self.shape.best_of > self.shape.n {
            choices = self.best(choices);
        }
        for choice in &mut choices {
            match choice.ending.finish {
                WireFinish::Stop => {}
                WireFinish::Length => outcome = Outcome::Length,
                WireFinish::ToolCalls => outcome = Outcome::ToolCalls,
                WireFinish::Cancelled => outcome = Outcome::Cancelled,
            }
            if !self.shape.logprobs {
                // They were only for choosing.
                choice.text.logprobs.clear();
            }
        }
        if self.log_content {
            let request_id = self.record.request_id();
            for choice in &choices {
                tracing::info!(%request_id, completion = %choice.text.plain(), "completion");
            }
        }
        let summary = Summary {
            usage,
            timings,
            timing: self.record.timing(),
        };
        match self.delivery.take() {
            Some(Delivery::Stream(outbox)) => outbox.borrow_mut().push(Piece::Done(summary)),
            Some(Delivery::Whole { mut form, reply }) => {
                // Fails only if the client has just left.
                let _ = reply.send(Ok(form.whole(choices, summary)));
            }
            None => return,
        }
        self.record.complete(outcome, usage.tokens);
    }

    /// Of each prompt's sequences those whose tokens are the likeliest on average, the best first.
    fn best(&self, sequences: Vec<WholeChoice>) -> Vec<WholeChoice> {
        let mut choices = Vec::with_capacity(self.shape.prompts * self.shape.n);
        let mut rest = sequences.into_iter();
        for _ in 0..self.shape.prompts {
            let mut of_prompt: Vec<_> = rest.by_ref().take(self.shape.best_of).collect();
            // Stable: of equals, the first.
            of_prompt.sort_by(|a, b| {
                let mean = |choice: &WholeChoice| choice.text.mean_logprob();
                mean(b).total_cmp(&mean(a))
            });
            of_prompt.truncate(self.shape.n);
            choices.extend(of_prompt);
        }
        choices
    }

    /// A choice has failed, and with it the answer.
    pub fn fail(&mut self, error: ApiError, usage: TokenUsage) {
        let Some(delivery) = self.delivery.take() else {
            return;
        };
        self.record.fail(&error, usage);
        match delivery {
            Delivery::Stream(outbox) => outbox.borrow_mut().push(Piece::Error(error)),
            Delivery::Whole { reply, .. } => {
                // Fails only if the client has just left.
                let _ = reply.send(Err(error));
            }
        }
        self.abandon_streamers();
    }

    /// Before anything was generated, it turned out that nothing will be.
    pub fn reject(&mut self, error: &ApiError) {
        if self.delivery.take().is_some() {
            self.record.reject(error);
            self.abandon_streamers();
        }
    }

    /// The client has left.
    pub fn abandon(&mut self, usage: TokenUsage) {
        if self.delivery.take().is_some() {
            self.record.cancel(usage);
        }
    }

    fn abandon_streamers(&self) {
        for streamer in self.streamers.iter().filter_map(WeakAddr::upgrade) {
            streamer.do_send(Abandon);
        }
    }
}
