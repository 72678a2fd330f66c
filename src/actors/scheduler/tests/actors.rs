//! The actors themselves, over the fake engine on a thread of its own.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::fake_engine::{END, FakeEngine, solo};
use crate::actors::messages::{
    Audit, Cancel, CancelCause, Drain, GenerationEvent, GenerationFailure, GenerationRequest,
    Snapshot, Stop, Submit, SubmitError,
};
use crate::actors::scheduler::{
    EngineFacts, EngineOutputs, Scheduler, SchedulerOptions, StepEngine,
};
use crate::engine::sampler::SamplingParameters;
use crate::engine::step::{StepOutput, StepPlan};
use crate::ids::{SequenceId, TokenId};
use crate::telemetry::Metrics;

/// The fake engine behind a queue. Dies at the plan numbered `dies_at`.
struct FakeThread {
    plans: Sender<StepPlan>,
    thread: JoinHandle<()>,
}

impl FakeThread {
    /// The engine computes nothing until the other end of `gate` is dropped.
    fn start(outputs: &EngineOutputs, gate: Receiver<()>, dies_at: Option<u64>) -> Self {
        let sink = outputs.sink::<String>();
        let (plans, queue) = channel();
        let thread = std::thread::spawn(move || serve(&queue, &gate, dies_at, sink));
        Self { plans, thread }
    }
}

fn serve(
    queue: &Receiver<StepPlan>,
    gate: &Receiver<()>,
    dies_at: Option<u64>,
    sink: impl Fn(Result<StepOutput, String>),
) {
    let mut engine = FakeEngine::new(BLOCKS, BLOCK_SIZE);
    while let Ok(plan) = queue.recv() {
        let _ = gate.recv();
        if dies_at == Some(plan.number) {
            return sink(Err("it panicked".to_owned()));
        }
        sink(Ok(engine.step(plan)));
    }
}

impl StepEngine for FakeThread {
    fn submit(&self, plan: StepPlan) -> Result<(), String> {
        self.plans.send(plan).map_err(|gone| gone.to_string())
    }

    fn stop(self: Box<Self>) {
        drop(self.plans);
        self.thread.join().expect("the fake engine found no fault");
    }
}

/// Stands for a streamer.
struct Listener(UnboundedSender<GenerationEvent>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<GenerationEvent> for Listener {
    type Result = ();

    fn handle(&mut self, event: GenerationEvent, _: &mut Self::Context) {
        let _ = self.0.send(event);
    }
}

const BLOCKS: usize = 64;
const BLOCK_SIZE: usize = 4;

struct Server {
    scheduler: Addr<Scheduler>,
}

impl Server {
    /// A server whose engine dies at the plan of this number, if any.
    fn start(dies_at: Option<u64>) -> Self {
        Self::shut(dies_at).0
    }

    /// A server whose engine computes nothing until the sender is dropped.
    fn shut(dies_at: Option<u64>) -> (Self, Sender<()>) {
        let outputs = EngineOutputs::new();
        let (gate, shut) = channel();
        let engine = FakeThread::start(&outputs, shut, dies_at);
        let facts = EngineFacts {
            block_size: BLOCK_SIZE,
            block_count: BLOCKS,
            end_tokens: Arc::new([END]),
        };
        let options = SchedulerOptions {
            max_batch_tokens: 16,
            ..SchedulerOptions::default()
        };
        let metrics = Arc::new(Metrics::new());
        let scheduler = Scheduler::start(Box::new(engine), &outputs, facts, options, metrics);
        (Self { scheduler }, gate)
    }

    async fn submit(
        &self,
        prompt: &[TokenId],
        max_new_tokens: usize,
        patience: Duration,
    ) -> Result<Client, SubmitError> {
        let (sender, events) = unbounded_channel();
        let sequence = SequenceId::next();
        let request = GenerationRequest {
            sequence,
            request_id: "chatcmpl-test".into(),
            prompt: prompt.into(),
            sampling: SamplingParameters::default(),
            max_new_tokens,
            ignore_eos: true,
            deadline: Instant::now() + patience,
            events: Listener(sender).start().recipient(),
        };
        self.scheduler
            .send(Submit(request))
            .await
            .expect("the scheduler lives")?;
        Ok(Client { sequence, events })
    }

    /// Waits until nothing is left to do, then checks the books.
    async fn settle(&self) {
        loop {
            let snapshot = self
                .scheduler
                .send(Audit)
                .await
                .expect("the scheduler lives");
            if snapshot.expect("the books agree").idle {
                return;
            }
        }
    }
}

struct Client {
    sequence: SequenceId,
    events: UnboundedReceiver<GenerationEvent>,
}

impl Client {
    async fn next(&mut self) -> GenerationEvent {
        self.events.recv().await.expect("the listener lives")
    }

    /// All tokens and the last event.
    async fn finish(mut self) -> (Vec<TokenId>, GenerationEvent) {
        let mut output = Vec::new();
        loop {
            match self.next().await {
                GenerationEvent::Prefill(_) => {}
                GenerationEvent::Tokens(tokens) => {
                    output.extend(tokens.into_iter().map(|token| token.id));
                }
                last => return (output, last),
            }
        }
    }
}

const LONG: Duration = Duration::from_secs(600);

fn prompt() -> Vec<TokenId> {
    (100..142).map(TokenId).collect()
}

#[actix::test]
async fn sixteen_equal_cold_prompts_get_sixteen_equal_answers() {
    let server = Server::start(None);
    let mut clients = Vec::new();
    for _ in 0..16 {
        clients.push(server.submit(&prompt(), 9, LONG).await.unwrap());
    }
    let (expected, _) = solo(&prompt(), 0, 9, true);
    for client in clients {
        let (tokens, last) = client.finish().await;
        assert_eq!(tokens, expected);
        assert!(matches!(last, GenerationEvent::Finished(_)));
    }
    server.settle().await;
    server.scheduler.send(Stop).await.unwrap();
}

#[actix::test]
async fn a_cancelled_client_frees_its_blocks_and_leaves_them_in_the_cache() {
    let server = Server::start(None);
    let mut client = server.submit(&prompt(), 200, LONG).await.unwrap();
    while !matches!(client.next().await, GenerationEvent::Tokens(_)) {}
    let cause = CancelCause::ClientGone;
    server
        .scheduler
        .send(Cancel {
            sequence: client.sequence,
            cause,
        })
        .await
        .unwrap();
    server.settle().await;
    let again = server.submit(&prompt(), 1, LONG).await.unwrap();
    let (_, last) = again.finish().await;
    let GenerationEvent::Finished(finished) = last else {
        panic!("{last:?}")
    };
    assert_eq!(finished.usage.cached_tokens, prompt().len() - 1);
    server.settle().await;
}

/// Three long prompts and then a short one, all before the engine computes anything.
#[actix::test]
async fn a_short_prompt_has_its_first_token_before_the_long_ones_that_came_before_it() {
    /// Too few steps of 16 tokens for any of the long prompts.
    const STEPS: usize = 4;
    let (server, gate) = Server::shut(None);
    let mut long = Vec::new();
    for index in 1..4 {
        let prompt: Vec<_> = (1000 * index..1000 * index + 70).map(TokenId).collect();
        long.push(server.submit(&prompt, 1, LONG).await.unwrap());
    }
    let prompt: Vec<_> = (100..105).map(TokenId).collect();
    let mut short = server.submit(&prompt, 1, LONG).await.unwrap();
    for _ in 0..STEPS {
        gate.send(()).unwrap();
    }
    let first = async { while !matches!(short.next().await, GenerationEvent::Tokens(_)) {} };
    let arrived = tokio::time::timeout(Duration::from_secs(60), first).await;
    assert!(arrived.is_ok(), "no token in {STEPS} steps");
    drop(gate);
    for client in long {
        assert_eq!(client.finish().await.0.len(), 1);
    }
    server.settle().await;
}

#[actix::test]
async fn deadlines_come_while_the_engine_computes() {
    let (server, gate) = Server::shut(None);
    let running = server
        .submit(&prompt(), 9, Duration::from_millis(5))
        .await
        .unwrap();
    let waiting = server
        .submit(&prompt(), 9, Duration::from_millis(10))
        .await
        .unwrap();
    let failed = GenerationEvent::Failed(GenerationFailure::DeadlineExceeded);
    assert_eq!(running.finish().await.1, failed);
    assert_eq!(waiting.finish().await.1, failed);
    drop(gate);
    server.settle().await;
}

#[actix::test]
async fn draining_finishes_what_runs_and_refuses_the_rest() {
    let server = Server::start(None);
    let client = server.submit(&prompt(), 30, LONG).await.unwrap();
    server
        .scheduler
        .send(Drain {
            deadline: Instant::now() + LONG,
        })
        .await
        .unwrap();
    assert!(matches!(
        client.finish().await.1,
        GenerationEvent::Finished(_)
    ));
    let refused = server.submit(&prompt(), 9, LONG).await.err();
    assert_eq!(refused, Some(SubmitError::Draining));
}

#[actix::test]
async fn what_is_not_finished_at_the_drain_deadline_is_cut() {
    let (server, gate) = Server::shut(None);
    let client = server.submit(&prompt(), 30, LONG).await.unwrap();
    let drained = server.scheduler.send(Drain {
        deadline: Instant::now(),
    });
    let (last, ()) = tokio::join!(
        async {
            let (_, last) = client.finish().await;
            drop(gate);
            last
        },
        async { drained.await.unwrap() }
    );
    assert_eq!(
        last,
        GenerationEvent::Failed(GenerationFailure::ShuttingDown)
    );
    assert!(server.scheduler.send(Snapshot).await.unwrap().idle);
}

#[actix::test]
async fn a_dying_engine_fails_its_requests_and_refuses_new_ones() {
    let server = Server::start(Some(4));
    let client = server.submit(&prompt(), 30, LONG).await.unwrap();
    let (_, last) = client.finish().await;
    assert!(
        matches!(last, GenerationEvent::Failed(GenerationFailure::Engine(_))),
        "{last:?}"
    );
    server.settle().await;
    let refused = server.submit(&prompt(), 9, LONG).await.err();
    assert_eq!(refused, Some(SubmitError::EngineGone));
    server.scheduler.send(Stop).await.unwrap();
}

#[actix::test]
async fn stopping_fails_what_runs_and_ends_the_actors() {
    // The engine stands still until the request has been failed, so it cannot finish first.
    let (server, gate) = Server::shut(None);
    let client = server.submit(&prompt(), 200, LONG).await.unwrap();
    let stopped = server.scheduler.send(Stop);
    let (last, ()) = tokio::join!(
        async {
            let (_, last) = client.finish().await;
            drop(gate);
            last
        },
        async { stopped.await.unwrap() }
    );
    assert_eq!(
        last,
        GenerationEvent::Failed(GenerationFailure::ShuttingDown)
    );
    assert!(
        server.scheduler.send(Snapshot).await.is_err(),
        "the address is dead"
    );
}
