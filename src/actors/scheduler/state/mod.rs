//! The scheduler without its actor: queues, the cycle with the prefix cache, plans at the engine.
//!
//! Everything comes in through the methods (time, too), and goes out as return values and events, so
//! that a test can drive it step by step. The order is always: [`begin_cycle`] makes a request for the
//! prefix cache, its reply goes to [`end_cycle`], which makes a plan for the engine; outputs come back
//! to [`take_output`] in plan order ([`planning`] and [`outputs`] hold these). Nothing else may be called between `begin_cycle` and `end_cycle`.
//!
//! [`begin_cycle`]: SchedulerState::begin_cycle
//! [`end_cycle`]: SchedulerState::end_cycle
//! [`take_output`]: SchedulerState::take_output

mod outputs;
mod planning;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::budget::TokenBudget;
use super::options::{EngineFacts, SchedulerOptions};
use super::pace::Pace;
use super::policy::Decision;
use super::sequence::{EventSink, Phase, Request, RunningSequence, Sequence, WaitingSequence};
use crate::actors::messages::{GenerationEvent, GenerationFailure, SubmitError};
use crate::actors::prefix_cache::Release;
use crate::ids::SequenceId;
use crate::telemetry::Metrics;

/// Plans handed to the engine and not answered: one that runs, and the next.
const MAX_PLANS: usize = 2;

/// Queues, running sequences and plans in flight. `E` is where a sequence's events go.
pub struct SchedulerState<E> {
    engine: EngineFacts,
    options: SchedulerOptions,
    metrics: Arc<Metrics>,
    /// In order of arrival, as sequence ids are.
    waiting: BTreeMap<SequenceId, WaitingSequence<E>>,
    running: BTreeMap<SequenceId, RunningSequence<E>>,
    deadlines: BTreeSet<(Instant, SequenceId)>,
    /// Leases that the prefix cache has not been told to end.
    releases: Vec<Release>,
    /// Ended sequences that the engine has not been told of.
    retired: Vec<SequenceId>,
    plans: VecDeque<PlanInFlight>,
    last_plan: u64,
    /// What the step should be for which a cycle is under way.
    cycle: Option<Decision>,
    /// Something has happened that may allow a next plan.
    stirred: bool,
    door: Door,
    budget: TokenBudget,
    pace: Pace,
}

struct PlanInFlight {
    number: u64,
    rows: Vec<RowsInFlight>,
    /// Prompt tokens among them.
    prefill_tokens: usize,
    /// Some of them are of a sequence that was running before: the engine should not have to wait.
    goes_on: bool,
}

#[derive(Clone, Copy)]
struct RowsInFlight {
    sequence: SequenceId,
    /// Positions computed by them.
    tokens: usize,
    sample: bool,
}

/// Which new requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Open,
    Draining,
    EngineGone,
}

impl<E: EventSink> SchedulerState<E> {
    pub fn new(engine: EngineFacts, options: SchedulerOptions, metrics: Arc<Metrics>) -> Self {
        let budget = TokenBudget::new(
            options.max_batch_tokens,
            options.min_prefill_tokens,
            options.target_step_time,
            options.prefill_slowdown,
        );
        Self {
            engine,
            options,
            metrics,
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            releases: Vec::new(),
            retired: Vec::new(),
            plans: VecDeque::new(),
            last_plan: 0,
            cycle: None,
            stirred: false,
            door: Door::Open,
            budget,
            pace: Pace::default(),
        }
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn plans_in_flight(&self) -> usize {
        self.plans.len()
    }

    /// Whether nothing is queued, running, at the engine, or still to be told to anybody.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.running.is_empty()
            && self.plans.is_empty()
            && self.releases.is_empty()
            && self.retired.is_empty()
    }

    /// Queues a request.
    ///
    /// # Errors
    /// When it can never run, or not now.
    pub fn submit(&mut self, request: Request, events: E, now: Instant) -> Result<(), SubmitError> {
        match self.door {
            Door::Open => {}
            Door::Draining => return Err(SubmitError::Draining),
            Door::EngineGone => return Err(SubmitError::EngineGone),
        }
        // The keys and values of the last token are never computed.
        let positions = request.prompt.len() + request.max_new_tokens - 1;
        let needed = positions.div_ceil(self.engine.block_size);
        if needed > self.engine.block_count {
            return Err(SubmitError::ExceedsPool {
                needed,
                available: self.engine.block_count,
            });
        }
        if self.waiting.len() >= self.options.max_waiting {
            let retry_after = self.pace.retry_after(self.waiting.len());
            return Err(SubmitError::QueueFull {
                limit: self.options.max_waiting,
                retry_after,
            });
        }
        if self.is_idle() {
            self.pace.pause();
        }
        self.deadlines.insert((request.deadline, request.sequence));
        let sequence = Sequence::new(request, events, now);
        self.waiting
            .insert(sequence.id(), WaitingSequence::new(sequence));
        self.stirred = true;
        Ok(())
    }

    /// Refuses all further requests.
    pub fn stop_admitting(&mut self) {
        if self.door == Door::Open {
            self.door = Door::Draining;
        }
    }

    /// Ends a sequence without another event. Unknown ids are ignored.
    pub fn cancel(&mut self, id: SequenceId) {
        self.wind_down(id, None);
    }

    /// Fails a sequence that is waiting or running. Unknown ids are ignored.
    pub fn fail(&mut self, id: SequenceId, failure: GenerationFailure) {
        self.wind_down(id, Some(failure));
    }

    /// Fails everything.
    pub fn fail_all(&mut self, failure: &GenerationFailure) {
        let ids: Vec<_> = self
            .waiting
            .keys()
            .chain(self.running.keys())
            .copied()
            .collect();
        for id in ids {
            self.fail(id, failure.clone());
        }
    }

    /// Leases that the prefix cache counts.
    pub fn leases(&self) -> usize {
        self.running.len() + self.releases.len()
    }

    /// The engine is gone: fails everything, and expects no output of the plans in flight.
    pub fn engine_stopped(&mut self, failure: &GenerationFailure) {
        self.door = Door::EngineGone;
        self.cycle = None;
        self.plans.clear();
        self.fail_all(failure);
        let ending: Vec<_> = self.running.keys().copied().collect();
        for id in ending {
            self.end_running(id);
        }
        self.retired.clear();
        self.stirred = true;
    }

    /// When the next sequence is to fail for its deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Fails the sequences whose deadline has come.
    pub fn expire(&mut self, now: Instant) {
        while let Some((deadline, id)) = self.deadlines.first().copied()
            && deadline <= now
        {
            self.deadlines.pop_first();
            self.fail(id, GenerationFailure::DeadlineExceeded);
        }
    }

    /// Ends a sequence for its client. Rows of it that are in flight are still kept for the cache.
    fn wind_down(&mut self, id: SequenceId, failure: Option<GenerationFailure>) {
        let sequence = if let Some(waiting) = self.waiting.get(&id) {
            &waiting.sequence
        } else if let Some(running) = self.running.get(&id)
            && !matches!(running.phase, Phase::Ending)
        {
            &running.sequence
        } else {
            return;
        };
        self.stirred = true;
        self.deadlines.remove(&(sequence.request.deadline, id));
        if let Some(failure) = failure {
            sequence.events.send(GenerationEvent::Failed(failure));
        }
        if let Some(running) = self.running.get_mut(&id) {
            running.phase = Phase::Ending;
            if running.sequence.in_flight == 0 {
                self.end_running(id);
            }
        } else {
            self.end_waiting(id);
        }
    }

    fn end_waiting(&mut self, id: SequenceId) {
        if let Some(waiting) = self.waiting.remove(&id)
            && waiting.sequence.cached.is_some()
        {
            self.retired.push(id);
        }
    }

    /// Forgets a running sequence; what it has computed goes to the cache.
    fn end_running(&mut self, id: SequenceId) {
        if let Some(running) = self.running.remove(&id) {
            self.releases.push(Release {
                sequence: id,
                tokens: running.uncommitted(),
            });
            self.retired.push(id);
        }
    }
}
