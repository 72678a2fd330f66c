//! The scheduler without its actor: queues, the cycle with the prefix cache, plans at the engine.
//!
//! Everything comes in through the methods (time, too), and goes out as return values and events, so
//! that a test can drive it step by step. The order is always: [`begin_cycle`] makes a request for the
//! prefix cache, its reply goes to [`end_cycle`], which makes a plan for the engine; outputs come back
//! to [`take_output`] in plan order. Nothing else may be called between `begin_cycle` and `end_cycle`.
//!
//! [`begin_cycle`]: SchedulerState::begin_cycle
//! [`end_cycle`]: SchedulerState::end_cycle
//! [`take_output`]: SchedulerState::take_output

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::budget::TokenBudget;
use super::options::{EngineFacts, SchedulerOptions};
use super::pace::Pace;
use super::policy::{self, Decision, Limits, RunningView, Work};
use super::sequence::{
    EventSink, Phase, Promised, Request, RunningSequence, Sequence, WaitingSequence,
};
use crate::actors::messages::{GenerationEvent, GenerationFailure, SubmitError};
use crate::actors::prefix_cache::{
    Admission, AdmissionRound, Candidate, Commit, Cycle, CycleReply, Namespace, Release,
};
use crate::engine::step::{RowInput, SampledToken, SequenceRows, StepOutput, StepPlan};
use crate::ids::{BlockId, SequenceId};
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
    has_prefill: bool,
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
        let floor = options.min_prefill_tokens;
        let budget = TokenBudget::new(options.max_batch_tokens, floor, options.target_step_time);
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

    /// The next request to the prefix cache; `None` when there is nothing to do, or the engine has
    /// plans enough.
    pub fn begin_cycle(&mut self) -> Option<Cycle> {
        assert!(self.cycle.is_none(), "one cycle at a time");
        if !self.stirred || self.plans.len() >= MAX_PLANS {
            return None;
        }
        self.stirred = false;

        let views = self.views();
        let ready: Vec<_> = self.ready().collect();
        let decision = policy::decide(&views, &ready, self.limits(&views));
        let commits = self.take_commits();
        let candidates: Vec<_> = decision
            .admissions
            .candidates
            .iter()
            .map(|id| self.candidate(*id))
            .collect();
        let cycle = Cycle {
            commits,
            releases: std::mem::take(&mut self.releases),
            growth: decision.growth.clone(),
            admissions: AdmissionRound {
                slots: decision.admissions.slots,
                tokens: decision.admissions.tokens,
                reserve: decision.admissions.reserve,
                candidates,
            },
        };
        let nothing_to_ask = cycle.commits.is_empty()
            && cycle.releases.is_empty()
            && cycle.admissions.candidates.is_empty();
        let nothing_to_plan =
            decision.decodes.is_empty() && decision.prefills.is_empty() && self.retired.is_empty();
        if nothing_to_ask && nothing_to_plan {
            return None;
        }
        self.cycle = Some(decision);
        Some(cycle)
    }

    fn views(&self) -> Vec<RunningView> {
        let view = |(id, running): (&SequenceId, &RunningSequence<E>)| RunningView {
            sequence: *id,
            work: running.work(self.engine.block_size),
        };
        self.running.iter().map(view).collect()
    }

    fn limits(&self, views: &[RunningView]) -> Limits {
        let decodes = views
            .iter()
            .any(|view| matches!(view.work, Work::Decode { .. }));
        Limits {
            batch_tokens: self.budget.tokens(decodes),
            min_prefill_tokens: self.options.min_prefill_tokens,
            max_running: self.options.max_running,
        }
    }

    /// Waiting sequences that may be admitted: all their tokens are known, and nobody else is
    /// computing them. A promise is checked against its giver's present state, so whatever happens to
    /// the giver, the next cycle sees it.
    fn ready(&self) -> impl Iterator<Item = SequenceId> {
        let kept = |promised: &Promised| {
            self.running
                .get(&promised.by)
                .is_some_and(|giver| giver.keeps_promise(promised.until))
        };
        let ready = move |waiting: &WaitingSequence<E>| {
            waiting.sequence.in_flight == 0 && !waiting.promised.as_ref().is_some_and(kept)
        };
        self.waiting
            .iter()
            .filter(move |(_, waiting)| ready(waiting))
            .map(|(id, _)| *id)
    }

    fn candidate(&self, id: SequenceId) -> Candidate {
        let waiting = &self.waiting[&id];
        Candidate {
            sequence: id,
            namespace: Namespace::default(),
            tokens: waiting.tokens.clone(),
            resumed: waiting.sequence.cached.is_some(),
        }
    }

    fn take_commits(&mut self) -> Vec<Commit> {
        let block_size = self.engine.block_size;
        let commit = |(id, running): (&SequenceId, &mut RunningSequence<E>)| {
            let (tokens, prefilled) = running.take_commit(block_size)?;
            Some(Commit {
                sequence: *id,
                tokens,
                prefilled,
            })
        };
        self.running.iter_mut().filter_map(commit).collect()
    }

    /// Makes the next plan of what the prefix cache has granted; `None` when there is nothing to tell
    /// the engine.
    pub fn end_cycle(&mut self, reply: CycleReply, now: Instant) -> Option<StepPlan> {
        let decision = self.cycle.take().expect("begin_cycle comes first");
        let mut plan = PlanBuilder::default();
        plan.step.preempt = self.set_back(&reply.preempted);

        let mut grown: HashMap<SequenceId, BlockId> = reply.grown.into_iter().collect();
        let needy: BTreeSet<SequenceId> = decision.growth.into_iter().collect();
        for id in decision.decodes {
            let block = grown.remove(&id);
            if block.is_some() || !needy.contains(&id) {
                self.plan_decode(id, block, &mut plan);
            }
        }
        for (id, tokens) in decision.prefills {
            self.plan_prefill(id, tokens, Vec::new(), &mut plan);
        }
        let mut tokens = decision.admissions.tokens;
        for (id, admission) in reply.admissions {
            tokens -= self.admit(id, admission, tokens, now, &mut plan);
        }
        plan.step.retire = std::mem::take(&mut self.retired);

        if self.running.is_empty() && self.releases.is_empty() {
            debug_assert_eq!(
                reply.counts.leased, 0,
                "no sequence runs, so none holds a block"
            );
        }
        self.dispatch(plan)
    }

    /// Moves sequences that have lost their blocks back to the queue. Those that were ending are over.
    /// Returns those that the engine must set back, too.
    fn set_back(&mut self, preempted: &[SequenceId]) -> Vec<SequenceId> {
        let mut set_back = Vec::new();
        for id in preempted {
            let Some(RunningSequence {
                sequence, phase, ..
            }) = self.running.remove(id)
            else {
                continue;
            };
            if matches!(phase, Phase::Ending) {
                self.retired.push(*id);
            } else {
                self.metrics.preemptions.inc();
                self.waiting.insert(*id, WaitingSequence::new(sequence));
                set_back.push(*id);
            }
        }
        set_back
    }

    fn plan_decode(&mut self, id: SequenceId, block: Option<BlockId>, plan: &mut PlanBuilder) {
        let Some(running) = self.running.get_mut(&id) else {
            return;
        };
        running.blocks += usize::from(block.is_some());
        running.scheduled += 1;
        running.sequence.in_flight += 1;
        running.sequence.sampling += 1;
        plan.in_flight.push(RowsInFlight {
            sequence: id,
            tokens: 1,
            sample: true,
        });
        let new_blocks = block.into_iter().collect();
        plan.step.rows.push(SequenceRows {
            sequence: id,
            new_blocks,
            input: RowInput::Decode,
        });
    }

    fn plan_prefill(
        &mut self,
        id: SequenceId,
        count: usize,
        new_blocks: Vec<BlockId>,
        plan: &mut PlanBuilder,
    ) {
        let Some(running) = self.running.get_mut(&id) else {
            return;
        };
        let Phase::Prefilling { tokens } = &running.phase else {
            return;
        };
        let start = running.scheduled;
        let end = start + count;
        let sample = end == tokens.len();
        let tokens = tokens[start..end].to_vec();
        running.scheduled = end;
        running.sequence.in_flight += 1;
        running.sequence.sampling += usize::from(sample);
        plan.in_flight.push(RowsInFlight {
            sequence: id,
            tokens: count,
            sample,
        });
        plan.has_prefill = true;
        let input = RowInput::Prefill {
            tokens,
            start,
            sample,
        };
        plan.step.rows.push(SequenceRows {
            sequence: id,
            new_blocks,
            input,
        });
    }

    /// Acts on the cache's answer for a waiting sequence. Returns how many of the `room` tokens that
    /// the step has left it takes.
    fn admit(
        &mut self,
        id: SequenceId,
        admission: Admission,
        room: usize,
        now: Instant,
        plan: &mut PlanBuilder,
    ) -> usize {
        let (blocks, cached, copy) = match admission {
            Admission::Admitted {
                blocks,
                cached,
                copy,
            } => (blocks, cached, copy),
            Admission::Promised { by, until } => {
                if let Some(waiting) = self.waiting.get_mut(&id) {
                    waiting.promised = Some(Promised { by, until });
                }
                return 0;
            }
            Admission::NoRoom => return 0,
        };
        let WaitingSequence {
            mut sequence,
            tokens,
            ..
        } = self
            .waiting
            .remove(&id)
            .expect("a candidate waits until its cycle ends");
        if sequence.cached.is_none() {
            sequence.cached = Some(cached);
            self.metrics
                .prompt_tokens
                .inc_by(sequence.request.prompt.len() as u64);
            let queued = now.saturating_duration_since(sequence.submitted);
            self.metrics
                .request_queue_seconds
                .observe(queued.as_secs_f64());
            plan.step
                .admit
                .push(sequence.admitted(&self.engine.end_tokens));
        }
        sequence.report_prefill(cached);
        plan.step.copies.extend(copy);
        let shared = cached - copy.map_or(0, |copy| copy.tokens);
        let chunk = room.min(tokens.len() - cached);
        let running = RunningSequence::new(sequence, tokens, blocks.len(), cached, shared);
        self.running.insert(id, running);
        self.plan_prefill(id, chunk, blocks, plan);
        chunk
    }

    fn dispatch(&mut self, plan: PlanBuilder) -> Option<StepPlan> {
        let PlanBuilder {
            mut step,
            in_flight,
            has_prefill,
        } = plan;
        if step.rows.is_empty() && step.preempt.is_empty() && step.retire.is_empty() {
            return None;
        }
        self.last_plan += 1;
        step.number = self.last_plan;
        self.plans.push_back(PlanInFlight {
            number: step.number,
            rows: in_flight,
            has_prefill,
        });
        self.stirred = true;
        Some(step)
    }

    /// Takes the engine's answer to the oldest plan in flight.
    pub fn take_output(&mut self, output: StepOutput, now: Instant) {
        // After the engine stopped there may be stragglers.
        let Some(plan) = self.plans.pop_front() else {
            return;
        };
        debug_assert_eq!(plan.number, output.number, "outputs come in plan order");
        self.stirred = true;
        self.observe(&output, plan.has_prefill);

        let mut failed: HashMap<_, _> = output.failed.into_iter().collect();
        let sampled: HashMap<_, _> = output
            .sampled
            .into_iter()
            .map(|sampled| (sampled.sequence, sampled))
            .collect();
        for rows in plan.rows {
            let failure = failed.remove(&rows.sequence);
            self.take_rows(rows, sampled.get(&rows.sequence).copied(), failure, now);
        }
    }

    fn observe(&mut self, output: &StepOutput, has_prefill: bool) {
        let step = &output.statistics;
        if step.sequences > 0 {
            self.metrics
                .step_duration_seconds
                .observe(step.duration.as_secs_f64());
            self.metrics.step_rows.observe(step.sequences as f64);
            self.metrics.step_tokens.observe(step.tokens as f64);
        }
        if has_prefill {
            self.budget.observe(step);
        }
        self.metrics
            .generation_tokens
            .inc_by(output.sampled.len() as u64);
    }

    /// Takes what became of one sequence's rows.
    fn take_rows(
        &mut self,
        rows: RowsInFlight,
        sampled: Option<SampledToken>,
        failure: Option<String>,
        now: Instant,
    ) {
        let id = rows.sequence;
        let lost = failure.or_else(|| {
            (rows.sample && sampled.is_none()).then(|| "the engine sampled no token".to_owned())
        });
        let finished = if let Some(running) = self.running.get_mut(&id) {
            let sequence = &mut running.sequence;
            sequence.in_flight -= 1;
            sequence.sampling -= usize::from(rows.sample);
            let ending = matches!(running.phase, Phase::Ending);
            if lost.is_some() {
                // What later rows of it compute rests on what is missing: none of it is kept.
                self.lose_running(id, lost.filter(|_| !ending));
                return;
            }
            running.advance(rows.tokens);
            if ending {
                // The position that a further row computed is known only with its token.
                running
                    .sequence
                    .generated
                    .extend(sampled.map(|sampled| sampled.token));
                if running.sequence.in_flight == 0 {
                    self.end_running(id);
                }
                return;
            }
            sampled.and_then(|sampled| running.sequence.take_token(sampled))
        } else if let Some(waiting) = self.waiting.get_mut(&id) {
            // Preempted with rows in flight: their blocks are lost, their token counts.
            waiting.sequence.in_flight -= 1;
            waiting.sequence.sampling -= usize::from(rows.sample);
            if let Some(reason) = lost {
                self.fail(id, GenerationFailure::Engine(reason));
                return;
            }
            sampled.and_then(|sampled| waiting.take_token(sampled))
        } else {
            return;
        };
        let Some(finished) = finished else { return };
        let sequence = match self.running.get(&id) {
            Some(running) => &running.sequence,
            None => &self.waiting[&id].sequence,
        };
        sequence.events.send(GenerationEvent::Finished(finished));
        self.deadlines.remove(&(sequence.request.deadline, id));
        self.pace.completed(now);
        self.end_running(id);
        self.end_waiting(id);
    }

    /// Ends a running sequence at once, though rows of it may be in flight.
    fn lose_running(&mut self, id: SequenceId, failure: Option<String>) {
        if let Some(running) = self.running.get(&id) {
            self.deadlines
                .remove(&(running.sequence.request.deadline, id));
            if let Some(reason) = failure {
                let failed = GenerationEvent::Failed(GenerationFailure::Engine(reason));
                running.sequence.events.send(failed);
            }
            self.end_running(id);
        }
    }
}

/// A plan in the making.
#[derive(Default)]
struct PlanBuilder {
    step: StepPlan,
    in_flight: Vec<RowsInFlight>,
    has_prefill: bool,
}
