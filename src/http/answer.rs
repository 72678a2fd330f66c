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
use super::wire::{ChoiceDelta, ChoiceText, Progress, Usage, WireFinish};
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

/// See the module's text.
pub struct Answer {
    record: RequestRecord,
    /// None when the answer is complete, has failed or is wanted no more.
    delivery: Option<Delivery>,
    /// Texts of streams are kept, too, to be logged.
    log_content: bool,
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
        choices: usize,
        log_content: bool,
    ) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            record,
            delivery: Some(delivery),
            log_content,
            choices: std::iter::repeat_with(Choice::default)
                .take(choices)
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
        match &self.delivery {
            Some(Delivery::Stream(outbox)) => {
                if self.log_content {
                    self.choices[choice].text.push(delta.clone());
                }
                outbox.borrow_mut().push(Piece::Delta { choice, delta });
            }
            Some(Delivery::Whole { .. }) => self.choices[choice].text.push(delta),
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
        let mut outcome = Outcome::Stop;
        let mut choices = Vec::with_capacity(self.choices.len());
        for Choice { text, ending } in std::mem::take(&mut self.choices) {
            let Some(ending) = ending else {
                continue;
            };
            usage.add(ending.usage);
            match ending.finish {
                WireFinish::Stop => {}
                WireFinish::Length => outcome = Outcome::Length,
                WireFinish::ToolCalls => outcome = Outcome::ToolCalls,
                WireFinish::Cancelled => outcome = Outcome::Cancelled,
            }
            choices.push(WholeChoice { text, ending });
        }
        if self.log_content {
            let request_id = self.record.request_id();
            for choice in &choices {
                tracing::info!(%request_id, completion = %choice.text.plain(), "completion");
            }
        }
        let summary = Summary {
            usage,
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
