//! Scheduler state, ledger and fake engine on one bench, driven step by step.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fake_engine::{END, FakeEngine, solo};
use crate::actors::messages::{
    FinishReason, GenerationEvent, GenerationFailure, SubmitError, TokenUsage,
};
use crate::actors::prefix_cache::Ledger;
use crate::actors::scheduler::sequence::{EventSink, Request};
use crate::actors::scheduler::state::SchedulerState;
use crate::actors::scheduler::{EngineFacts, SchedulerOptions};
use crate::engine::sampler::SamplingParameters;
use crate::engine::step::{EndReason, StepOutput, StepPlan};
use crate::ids::{SequenceId, TokenId};
use crate::telemetry::Metrics;

/// All events of one sequence.
#[derive(Clone, Default)]
pub struct Record(Rc<RefCell<Vec<GenerationEvent>>>);

impl EventSink for Record {
    fn send(&self, event: GenerationEvent) {
        self.0.borrow_mut().push(event);
    }
}

/// What a test submits.
#[derive(Debug, Clone)]
pub struct Order {
    pub prompt: Vec<TokenId>,
    pub max_new_tokens: usize,
    pub ignore_eos: bool,
    pub seed: u64,
    pub patience: Duration,
}

impl Order {
    pub fn new(prompt: Vec<TokenId>, max_new_tokens: usize) -> Self {
        let patience = Duration::from_secs(1000);
        Self {
            prompt,
            max_new_tokens,
            ignore_eos: true,
            seed: 0,
            patience,
        }
    }
}

pub struct Ticket {
    pub order: Order,
    pub cancelled: bool,
    record: Record,
}

impl Ticket {
    pub fn events(&self) -> Vec<GenerationEvent> {
        self.record.0.borrow().clone()
    }

    pub fn tokens(&self) -> Vec<TokenId> {
        let events = self.events();
        let tokens = events.iter().filter_map(|event| match event {
            GenerationEvent::Tokens(tokens) => Some(tokens.clone()),
            _ => None,
        });
        tokens.flatten().map(|token| token.id).collect()
    }

    pub fn usage(&self) -> Option<TokenUsage> {
        match self.events().last() {
            Some(GenerationEvent::Finished(finished)) => Some(finished.usage),
            _ => None,
        }
    }

    pub fn failure(&self) -> Option<GenerationFailure> {
        match self.events().last() {
            Some(GenerationEvent::Failed(failure)) => Some(failure.clone()),
            _ => None,
        }
    }

    pub fn is_over(&self) -> bool {
        self.cancelled || self.usage().is_some() || self.failure().is_some()
    }

    /// Checks the events against the rules and the solo run.
    fn check(&self, id: SequenceId) {
        let order = &self.order;
        let events = self.events();
        let is_terminal = |event: &GenerationEvent| {
            matches!(
                event,
                GenerationEvent::Finished(_) | GenerationEvent::Failed(_)
            )
        };
        let terminals = events.iter().filter(|event| is_terminal(event)).count();
        if self.cancelled {
            assert_eq!(terminals, 0, "{id} was cancelled: {events:?}");
        } else {
            assert_eq!(terminals, 1, "{id} ends once: {events:?}");
            assert!(is_terminal(events.last().unwrap()), "{id}: {events:?}");
        }
        let mut processed = None;
        let mut generating = false;
        for event in &events {
            match event {
                GenerationEvent::Prefill(progress) => {
                    assert!(!generating, "{id} reports prefill after a token");
                    assert!(Some(progress.processed) > processed, "{id} makes progress");
                    assert!(
                        progress.processed <= progress.prompt && progress.cached < progress.prompt
                    );
                    processed = Some(progress.processed);
                }
                GenerationEvent::Tokens(_) => {
                    assert_eq!(processed, Some(order.prompt.len()), "{id} prefills first");
                    generating = true;
                }
                _ => {}
            }
        }
        let (expected, end) = solo(
            &order.prompt,
            order.seed,
            order.max_new_tokens,
            order.ignore_eos,
        );
        let visible = match end {
            EndReason::EndToken => &expected[..expected.len() - 1],
            EndReason::Length => &expected[..],
        };
        let tokens = self.tokens();
        let Some(GenerationEvent::Finished(finished)) = events.last() else {
            assert!(
                visible.starts_with(&tokens),
                "{id} differs from its solo run"
            );
            return;
        };
        assert_eq!(tokens, visible, "{id} differs from its solo run");
        let reason = match end {
            EndReason::EndToken => FinishReason::Stop,
            EndReason::Length => FinishReason::Length,
        };
        assert_eq!(finished.reason, reason);
        assert_eq!(finished.usage.prompt_tokens, order.prompt.len());
        assert_eq!(finished.usage.completion_tokens, expected.len());
        assert!(finished.usage.cached_tokens < order.prompt.len());
    }
}

/// The whole of it.
pub struct Bench {
    pub state: SchedulerState<Record>,
    pub ledger: Ledger,
    pub engine: FakeEngine,
    pub metrics: Arc<Metrics>,
    pub tickets: BTreeMap<SequenceId, Ticket>,
    pub now: Instant,
    /// How long the engine says that it takes for a step.
    pub step_time: Duration,
    plans: VecDeque<StepPlan>,
    outputs: VecDeque<StepOutput>,
    next_id: u64,
}

impl Bench {
    pub fn new(block_count: usize, block_size: usize, options: SchedulerOptions) -> Self {
        let facts = EngineFacts {
            block_size,
            block_count,
            end_tokens: Arc::new([END]),
        };
        let metrics = Arc::new(Metrics::new());
        Self {
            state: SchedulerState::new(facts, options, metrics.clone()),
            ledger: Ledger::new(block_count, block_size),
            engine: FakeEngine::new(block_count, block_size),
            metrics,
            tickets: BTreeMap::new(),
            now: Instant::now(),
            step_time: Duration::ZERO,
            plans: VecDeque::new(),
            outputs: VecDeque::new(),
            next_id: 1,
        }
    }

    /// Submits without planning.
    pub fn enqueue(&mut self, order: Order) -> Result<SequenceId, SubmitError> {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let request = Request {
            sequence: id,
            prompt: order.prompt.clone().into(),
            sampling: SamplingParameters {
                seed: order.seed,
                ..SamplingParameters::default()
            },
            max_new_tokens: order.max_new_tokens,
            ignore_eos: order.ignore_eos,
            deadline: self.now + order.patience,
        };
        let record = Record::default();
        self.state.submit(request, record.clone(), self.now)?;
        let ticket = Ticket {
            order,
            cancelled: false,
            record,
        };
        self.tickets.insert(id, ticket);
        Ok(id)
    }

    /// Submits and plans, as the actor does.
    pub fn submit(&mut self, order: Order) -> SequenceId {
        let id = self.enqueue(order).expect("the request is accepted");
        self.pump();
        id
    }

    pub fn cancel(&mut self, id: SequenceId) {
        self.state.cancel(id);
        let ticket = self.tickets.get_mut(&id).expect("a ticket for each id");
        ticket.cancelled = !ticket.is_over() || ticket.cancelled;
        self.pump();
    }

    pub fn expire(&mut self) {
        self.state.expire(self.now);
        self.pump();
    }

    /// Plans as far ahead as may be.
    pub fn pump(&mut self) {
        while let Some(cycle) = self.state.begin_cycle() {
            let reply = self.ledger.run(cycle);
            self.ledger.check_integrity().expect("the books agree");
            if let Some(plan) = self.state.end_cycle(reply, self.now) {
                self.plans.push_back(plan);
            }
            assert_eq!(self.ledger.leases(), self.state.leases());
            assert!(self.state.plans_in_flight() <= 2);
        }
    }

    /// The engine computes a plan; its output is on the way.
    pub fn compute(&mut self) -> bool {
        let Some(plan) = self.plans.pop_front() else {
            return false;
        };
        let mut output = self.engine.step(plan);
        output.statistics.duration = self.step_time;
        self.outputs.push_back(output);
        true
    }

    /// The scheduler gets an output, and plans.
    pub fn deliver(&mut self) -> bool {
        let Some(output) = self.outputs.pop_front() else {
            return false;
        };
        self.state.take_output(output, self.now);
        self.pump();
        true
    }

    /// The engine computes a plan and the scheduler gets the output. False when there is nothing to do.
    pub fn step(&mut self) -> bool {
        self.compute();
        self.deliver()
    }

    /// Runs until nothing is in flight; then nothing may be left anywhere.
    pub fn finish(&mut self) {
        while self.step() {}
        assert!(
            self.state.is_idle(),
            "stuck with {} running and {} waiting",
            self.state.running(),
            self.state.waiting()
        );
        assert_eq!(self.ledger.leases(), 0);
        assert_eq!(self.ledger.counts().leased, 0, "a block leaked");
        assert_eq!(
            self.engine.sequences(),
            0,
            "the engine still knows a sequence"
        );
        assert_eq!(self.state.next_deadline(), None);
        for (id, ticket) in &self.tickets {
            ticket.check(*id);
        }
    }

    pub fn ticket(&self, id: SequenceId) -> &Ticket {
        &self.tickets[&id]
    }

    /// Cached tokens of a finished request.
    pub fn cached(&self, id: SequenceId) -> usize {
        self.ticket(id).usage().expect("it finished").cached_tokens
    }
}
