//! The scheduler: who computes what in the next step.
//!
//! An actor around [`SchedulerState`]. It wakes on submissions, cancellations, engine outputs and the
//! next deadline, and waits for nobody but the prefix cache, which lives on the same thread and answers
//! at once: one message and one reply a planning cycle. While the engine computes one plan, the next
//! lies ready in its queue.
//!
//! In the order of a request's life: [`sequence`] holds its facts and progress, [`state`] the queues,
//! [`budget`] decides how many prompt tokens the next step computes, [`policy`] whose they are, [`pace`]
//! tells clients that were refused when to return.

mod budget;
mod options;
mod pace;
mod policy;
mod sequence;
mod state;
#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use actix::WeakAddr;
use actix::prelude::*;
use tokio::sync::oneshot;
use tracing::{debug, error};

pub use options::{EngineFacts, SchedulerOptions};

use self::sequence::{EventSink, Request};
use self::state::SchedulerState;
use super::messages::{
    Audit, Cancel, Drain, GenerationEvent, GenerationFailure, GenerationRequest, SchedulerSnapshot,
    Snapshot, Stop, Submit, SubmitError,
};
use super::prefix_cache::{BlockCounts, CycleReply, Inspect, PrefixCache, RunCycle};
use crate::engine::step::{StepOutput, StepPlan};
use crate::telemetry::Metrics;

/// Messages that may wait in the scheduler's mailbox before senders wait, too.
const MAILBOX: usize = 1024;

/// Computes plans on a thread of its own.
pub trait StepEngine: Send + 'static {
    /// Hands over a plan without blocking. Its output comes through [`EngineOutputs`].
    ///
    /// # Errors
    /// The reason, when the engine has ended.
    fn submit(&self, plan: StepPlan) -> Result<(), String>;

    /// Ends the engine, and returns when its memory is free. May block.
    fn stop(self: Box<Self>);
}

/// The way of outputs from the engine's thread to the scheduler. Made first, because the engine needs
/// its end before the scheduler exists.
#[derive(Clone, Default)]
pub struct EngineOutputs(Arc<OnceLock<WeakAddr<Scheduler>>>);

impl EngineOutputs {
    pub fn new() -> Self {
        Self::default()
    }

    /// The engine's end: call it once a plan, in order; an error is the last call. Never blocks.
    pub fn sink<S: Display>(&self) -> impl Fn(Result<StepOutput, S>) + Send + Sync + use<S> {
        let scheduler = self.0.clone();
        move |output| {
            // There is no output before the first plan, which the scheduler makes.
            if let Some(scheduler) = scheduler.get().and_then(WeakAddr::upgrade) {
                scheduler.do_send(EngineOutput(output.map_err(|stopped| stopped.to_string())));
            }
        }
    }
}

/// See the module.
pub struct Scheduler {
    state: SchedulerState<Recipient<GenerationEvent>>,
    cache: Addr<PrefixCache>,
    /// `None` once it has been told to stop.
    engine: Option<Box<dyn StepEngine>>,
    metrics: Arc<Metrics>,
    /// Blocks by state after the last cycle.
    blocks: BlockCounts,
    /// The timer that is set, and for when.
    timer: Option<(Instant, SpawnHandle)>,
    drain: Option<DrainInProgress>,
}

struct DrainInProgress {
    /// When what is left is cut.
    deadline: Instant,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Scheduler {
    /// Starts scheduler and prefix cache for `engine` on a thread of their own, which ends after
    /// [`Stop`]. Call it within an actix system. `outputs` is what the engine's sink was made of.
    pub fn start(
        engine: Box<dyn StepEngine>,
        outputs: &EngineOutputs,
        facts: EngineFacts,
        options: SchedulerOptions,
        metrics: Arc<Metrics>,
    ) -> Addr<Scheduler> {
        let arbiter = Arbiter::new();
        let cache_metrics = metrics.clone();
        let (blocks, block_size) = (facts.block_count, facts.block_size);
        let cache = PrefixCache::start_in_arbiter(&arbiter.handle(), move |_| {
            PrefixCache::new(blocks, block_size, cache_metrics)
        });
        let scheduler = Scheduler::start_in_arbiter(&arbiter.handle(), move |context| {
            context.set_mailbox_capacity(MAILBOX);
            Scheduler {
                state: SchedulerState::new(facts, options, metrics.clone()),
                cache,
                engine: Some(engine),
                metrics,
                blocks: BlockCounts {
                    free: blocks,
                    leased: 0,
                    cached: 0,
                },
                timer: None,
                drain: None,
            }
        });
        let first = outputs.0.set(scheduler.downgrade()).is_ok();
        assert!(first, "an engine has one scheduler");
        scheduler
    }

    /// Plans as far ahead as may be. To be called after every message that changed anything.
    fn pump(&mut self, context: &mut Context<Self>) {
        match self.state.begin_cycle() {
            Some(cycle) => {
                let reply = self.cache.send(RunCycle(cycle)).into_actor(self);
                // No other message is handled until the reply is here.
                context.wait(reply.map(|reply, scheduler, context| match reply {
                    Ok(reply) => scheduler.end_cycle(reply, context),
                    Err(closed) => scheduler.engine_stopped(&closed.to_string(), context),
                }));
            }
            None => self.settle(context),
        }
    }

    fn end_cycle(&mut self, reply: CycleReply, context: &mut Context<Self>) {
        self.blocks = reply.counts;
        let plan = self.state.end_cycle(reply, Instant::now());
        if let Some(plan) = plan
            && let Some(engine) = &self.engine
            && let Err(reason) = engine.submit(plan)
        {
            return self.engine_stopped(&reason, context);
        }
        self.pump(context);
    }

    /// Nothing more to plan for now: publishes the queues and sets the timer.
    fn settle(&mut self, context: &mut Context<Self>) {
        self.metrics
            .requests_running
            .set(self.state.running() as i64);
        self.metrics
            .requests_waiting
            .set(self.state.waiting() as i64);
        self.set_timer(context);
        if self.state.is_idle()
            && let Some(drain) = &mut self.drain
        {
            for waiter in drain.waiters.drain(..) {
                // Whoever asked may have gone.
                let _ = waiter.send(());
            }
        }
    }

    fn set_timer(&mut self, context: &mut Context<Self>) {
        let cut = self.drain.as_ref().map(|drain| drain.deadline);
        let cut = cut.filter(|_| !self.state.is_idle());
        let next = self.state.next_deadline().into_iter().chain(cut).min();
        if self.timer.map(|(at, _)| at) == next {
            return;
        }
        if let Some((_, handle)) = self.timer.take() {
            context.cancel_future(handle);
        }
        self.timer = next.map(|at| {
            let wait = at.saturating_duration_since(Instant::now());
            // Through the mailbox, which is shut while a cycle is under way.
            (
                at,
                context.run_later(wait, |_, context| {
                    context.address().do_send(DeadlineReached)
                }),
            )
        });
    }

    fn engine_stopped(&mut self, reason: &str, context: &mut Context<Self>) {
        error!(reason, "the engine has stopped; its requests fail");
        self.state
            .engine_stopped(&GenerationFailure::Engine(reason.to_owned()));
        self.pump(context);
    }
}

impl Actor for Scheduler {
    type Context = Context<Self>;

    fn stopped(&mut self, _: &mut Self::Context) {
        debug!("scheduler stopped");
        Arbiter::current().stop();
    }
}

impl EventSink for Recipient<GenerationEvent> {
    fn send(&self, event: GenerationEvent) {
        self.do_send(event);
    }
}

impl Handler<Submit> for Scheduler {
    type Result = Result<(), SubmitError>;

    fn handle(&mut self, Submit(request): Submit, context: &mut Self::Context) -> Self::Result {
        let GenerationRequest {
            events, request_id, ..
        } = request;
        let request = Request {
            sequence: request.sequence,
            prompt: request.prompt,
            sampling: request.sampling,
            max_new_tokens: request.max_new_tokens.max(1),
            ignore_eos: request.ignore_eos,
            deadline: request.deadline,
        };
        let (sequence, prompt_tokens) = (request.sequence, request.prompt.len());
        self.state.submit(request, events, Instant::now())?;
        debug!(%sequence, request = &*request_id, prompt_tokens, "queued");
        self.pump(context);
        Ok(())
    }
}

impl Handler<Cancel> for Scheduler {
    type Result = ();

    fn handle(&mut self, cancel: Cancel, context: &mut Self::Context) {
        debug!(sequence = %cancel.sequence, cause = ?cancel.cause, "cancelled");
        self.state.cancel(cancel.sequence);
        self.pump(context);
    }
}

/// The engine's answer to a plan, or why there will be no more.
#[derive(Message)]
#[rtype(result = "()")]
struct EngineOutput(Result<StepOutput, String>);

impl Handler<EngineOutput> for Scheduler {
    type Result = ();

    fn handle(&mut self, EngineOutput(output): EngineOutput, context: &mut Self::Context) {
        match output {
            Ok(output) => {
                self.state.take_output(output, Instant::now());
                self.pump(context);
            }
            Err(reason) => self.engine_stopped(&reason, context),
        }
    }
}

/// The timer that was set for the next deadline has run out.
#[derive(Message)]
#[rtype(result = "()")]
struct DeadlineReached;

impl Handler<DeadlineReached> for Scheduler {
    type Result = ();

    fn handle(&mut self, _: DeadlineReached, context: &mut Self::Context) {
        self.timer = None;
        let now = Instant::now();
        self.state.expire(now);
        if self
            .drain
            .as_ref()
            .is_some_and(|drain| drain.deadline <= now)
        {
            self.state.fail_all(&GenerationFailure::ShuttingDown);
        }
        self.pump(context);
    }
}

impl Handler<Drain> for Scheduler {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Drain { deadline }: Drain, context: &mut Self::Context) -> Self::Result {
        self.state.stop_admitting();
        let (waiter, done) = oneshot::channel();
        let drain = self.drain.get_or_insert(DrainInProgress {
            deadline,
            waiters: Vec::new(),
        });
        drain.deadline = drain.deadline.min(deadline);
        drain.waiters.push(waiter);
        self.pump(context);
        Box::pin(async move {
            // An error means that the scheduler has stopped, which is as idle as can be.
            let _ = done.await;
        })
    }
}

impl Handler<Stop> for Scheduler {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Stop, context: &mut Self::Context) -> Self::Result {
        self.state.engine_stopped(&GenerationFailure::ShuttingDown);
        self.settle(context);
        let engine = self.engine.take();
        let stopped = async move {
            if let Some(engine) = engine
                && let Err(panicked) = tokio::task::spawn_blocking(|| engine.stop()).await
            {
                error!(%panicked, "the engine did not stop cleanly");
            }
        };
        Box::pin(
            stopped
                .into_actor(self)
                .map(|(), _, context| context.stop()),
        )
    }
}

impl Handler<Snapshot> for Scheduler {
    type Result = SchedulerSnapshot;

    fn handle(&mut self, _: Snapshot, _: &mut Self::Context) -> Self::Result {
        self.snapshot()
    }
}

impl Scheduler {
    fn snapshot(&self) -> SchedulerSnapshot {
        SchedulerSnapshot {
            running: self.state.running(),
            waiting: self.state.waiting(),
            plans_in_flight: self.state.plans_in_flight(),
            idle: self.state.is_idle(),
            blocks: self.blocks,
        }
    }
}

impl Handler<Audit> for Scheduler {
    type Result = ResponseFuture<Result<SchedulerSnapshot, String>>;

    fn handle(&mut self, _: Audit, _: &mut Self::Context) -> Self::Result {
        // The cache handles messages in order, so its report is of the same moment.
        let report = self.cache.send(Inspect);
        let snapshot = self.snapshot();
        let leases = self.state.leases();
        Box::pin(async move {
            let report = report.await.map_err(|closed| closed.to_string())?;
            report.integrity?;
            if report.leases != leases {
                return Err(format!(
                    "{} leases, and {leases} sequences to hold them",
                    report.leases
                ));
            }
            if snapshot.idle && report.counts.leased > 0 {
                return Err(format!(
                    "idle, and {} blocks are leased",
                    report.counts.leased
                ));
            }
            Ok(snapshot)
        })
    }
}
