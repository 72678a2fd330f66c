//! From the queues to the next plan, by way of the prefix cache.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::{MAX_PLANS, PlanInFlight, RowsInFlight, SchedulerState};
use crate::actors::prefix_cache::{
    Admission, AdmissionRound, Candidate, Commit, Cycle, CycleReply, Namespace,
};
use crate::actors::scheduler::budget::PendingPrompts;
use crate::actors::scheduler::policy::{self, Limits, PrefillView, RunningView, WaitingView, Work};
use crate::actors::scheduler::sequence::{
    EventSink, Phase, Promised, RunningSequence, WaitingSequence,
};
use crate::engine::step::{AdmittedSequence, RowInput, SequenceRows, StepPlan};
use crate::ids::{BlockId, SequenceId};

/// Prompt rows of one step whose logits are wanted: a row of logits is as long as the vocabulary, and this
/// many rows are no more than a full house of decoding sequences has.
const MAX_SCORED_ROWS: usize = 64;

/// A plan in the making.
#[derive(Default)]
struct PlanBuilder {
    step: StepPlan,
    in_flight: Vec<RowsInFlight>,
    prefill_tokens: usize,
}

impl<E: EventSink> SchedulerState<E> {
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
        let decision = policy::decide(&views, &ready, self.limits(&views, &ready));
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
                claim: decision.admissions.claim,
                reserve: decision.admissions.reserve,
                candidates,
            },
        };
        let nothing_to_ask = cycle.commits.is_empty()
            && cycle.releases.is_empty()
            && cycle.admissions.candidates.is_empty();
        let nothing_to_plan =
            decision.decodes.is_empty() && !decision.prefills && self.retired.is_empty();
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

    fn limits(&self, views: &[RunningView], ready: &[WaitingView]) -> Limits {
        let decode = |view: &&RunningView| matches!(view.work, Work::Decode { .. });
        let decode_rows = views.iter().filter(decode).count();
        let remaining = views.iter().filter_map(|view| match view.work {
            Work::Prefill { remaining } => Some(remaining),
            _ => None,
        });
        let waiting = ready.iter().map(|view| view.tokens);
        let pending = PendingPrompts {
            requests: remaining.clone().count() + self.waiting.len(),
            tokens: remaining.chain(waiting).sum(),
        };
        Limits {
            prefill_tokens: self.budget.prefill_tokens(decode_rows, pending),
            max_running: self.options.max_running,
        }
    }

    /// Running sequences that have tokens of their prompts to compute, those of `admitted` included.
    fn prefills(&self, admitted: &HashMap<SequenceId, Vec<BlockId>>) -> Vec<PrefillView> {
        // What those who wait for another's tokens have to go until their own first one, by that other.
        let mut nearest: HashMap<SequenceId, usize> = HashMap::new();
        for waiting in self.waiting.values() {
            if let Some(promised) = &waiting.promised {
                let end = nearest.entry(promised.by).or_insert(usize::MAX);
                *end = waiting.tokens.len().min(*end);
            }
        }
        let view = |view: RunningView| {
            let Work::Prefill { remaining } = view.work else {
                return None;
            };
            let id = view.sequence;
            let scheduled = self.running[&id].scheduled;
            let waiters = nearest.get(&id).map(|end| end.saturating_sub(scheduled));
            Some(PrefillView {
                sequence: id,
                remaining,
                distance: waiters.map_or(remaining, |waiters| waiters.min(remaining)),
                admitted: admitted.contains_key(&id),
            })
        };
        self.views().into_iter().filter_map(view).collect()
    }

    /// Waiting sequences that may be admitted: all their tokens are known, and nobody else is
    /// computing them. A promise is checked against its giver's present state, so whatever happens to
    /// the giver, the next cycle sees it.
    fn ready(&self) -> impl Iterator<Item = WaitingView> {
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
            .map(|(id, waiting)| WaitingView {
                sequence: *id,
                tokens: waiting.tokens.len(),
            })
    }

    fn candidate(&self, id: SequenceId) -> Candidate {
        let waiting = &self.waiting[&id];
        Candidate {
            sequence: id,
            namespace: Namespace::default(),
            tokens: waiting.tokens.clone(),
            reusable: waiting.sequence.reusable(),
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
        let decode_rows = plan.in_flight.len();
        let mut admitted = HashMap::new();
        for (id, admission) in reply.admissions {
            if let Some(blocks) = self.admit(id, admission, now, &mut plan) {
                admitted.insert(id, blocks);
            }
        }
        let requests = self.plan_prefills(decode_rows, admitted, &mut plan);
        self.budget
            .planned(decode_rows, plan.prefill_tokens, requests);
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

    /// Divides the step's prompt tokens. `admitted` are the new sequences and their blocks. Gives the number of
    /// requests that waited for them.
    fn plan_prefills(
        &mut self,
        decode_rows: usize,
        mut admitted: HashMap<SequenceId, Vec<BlockId>>,
        plan: &mut PlanBuilder,
    ) -> usize {
        let prefills = self.prefills(&admitted);
        let pending = PendingPrompts {
            tokens: prefills.iter().map(|view| view.remaining).sum(),
            requests: prefills.len() + self.waiting.len(),
        };
        let tokens = self.budget.prefill_tokens(decode_rows, pending);
        let mut scored_rows = MAX_SCORED_ROWS;
        for (id, mut chunk) in policy::share(&prefills, tokens) {
            let blocks = admitted.remove(&id).unwrap_or_default();
            if self.running[&id].sequence.unscored() > 0 {
                chunk = chunk.min(scored_rows.max(1));
                scored_rows = scored_rows.saturating_sub(chunk);
            }
            self.plan_prefill(id, chunk, blocks, plan);
        }
        debug_assert!(admitted.is_empty(), "whoever is admitted gets a token");
        pending.requests
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
        plan.prefill_tokens += count;
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

    /// Acts on the cache's answer for a waiting sequence. Returns its blocks if it runs now.
    fn admit(
        &mut self,
        id: SequenceId,
        admission: Admission,
        now: Instant,
        plan: &mut PlanBuilder,
    ) -> Option<Vec<BlockId>> {
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
                return None;
            }
            Admission::NoRoom => return None,
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
            sequence.began = Some(now);
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
        let running = RunningSequence::new(sequence, tokens, blocks.len(), cached, shared);
        self.running.insert(id, running);
        Some(blocks)
    }

    fn dispatch(&mut self, plan: PlanBuilder) -> Option<StepPlan> {
        let PlanBuilder {
            mut step,
            in_flight,
            prefill_tokens,
        } = plan;
        if step.rows.is_empty() && step.preempt.is_empty() && step.retire.is_empty() {
            return None;
        }
        let is_new = |rows: &RowsInFlight| {
            let admitted = |admitted: &AdmittedSequence| admitted.sequence == rows.sequence;
            step.admit.iter().any(admitted)
        };
        let goes_on = in_flight.iter().any(|rows| !is_new(rows));
        self.last_plan += 1;
        step.number = self.last_plan;
        self.plans.push_back(PlanInFlight {
            number: step.number,
            rows: in_flight,
            prefill_tokens,
            goes_on,
        });
        self.stirred = true;
        Some(step)
    }
}
