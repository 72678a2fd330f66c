//! The engine's own thread: plans in by a bounded queue, outputs out by a sink, in order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use super::core::{Engine, EngineInfo};
use super::error::{EngineError, EngineStopped};
use super::loader::{LoadedModel, ModelConfig, Weights};
use super::options::EngineOptions;
use super::step::{StepOutput, StepPlan};

/// Plans that may wait for the engine. The scheduler keeps two in flight.
const QUEUE: usize = 8;

/// Receives each plan's output, on the engine's thread, so it must be quick; an error is the last call.
pub type OutputSink = Box<dyn Fn(Result<StepOutput, EngineStopped>) + Send>;

/// Starts engines.
pub struct EngineThread;

impl EngineThread {
    /// Loads `model` on a new thread and returns when it is warm. Blocks for as long as that takes.
    ///
    /// # Errors
    /// What [`Engine::new`] says, or that no thread could be started.
    pub fn start(
        model: LoadedModel,
        options: EngineOptions,
        sink: OutputSink,
    ) -> Result<(EngineHandle, EngineInfo), EngineError> {
        Self::start_parts(model.config, model.weights, options, sink)
    }

    /// [`Self::start`] for a model without text.
    pub fn start_parts(
        config: ModelConfig,
        weights: Box<dyn Weights>,
        options: EngineOptions,
        sink: OutputSink,
    ) -> Result<(EngineHandle, EngineInfo), EngineError> {
        let (plans, queue) = sync_channel(QUEUE);
        let (report, started) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                let engine = Engine::new(&config, weights.as_ref(), &options);
                // The packed copies are all that is needed from here on.
                drop(weights);
                let engine = match engine {
                    Ok(engine) => engine,
                    Err(error) => {
                        // Nobody listens only if the starter is gone, who then needs no error.
                        let _ = report.send(Err(error));
                        return;
                    }
                };
                let _ = report.send(Ok(engine.info().clone()));
                serve(engine, &queue, &stopped, &sink);
            })
            .map_err(|error| EngineError::Thread(error.to_string()))?;
        match started.recv() {
            Ok(Ok(info)) => Ok((
                EngineHandle {
                    plans: Some(plans),
                    stop,
                    thread: Some(thread),
                },
                info,
            )),
            Ok(Err(error)) => {
                // It has reported, so it is at its end.
                let _ = thread.join();
                Err(error)
            }
            Err(_) => Err(EngineError::Thread("it panicked while loading".to_owned())),
        }
    }
}

/// Does plans until the handle is dropped, parked while there are none.
fn serve(mut engine: Engine, queue: &Receiver<StepPlan>, stop: &AtomicBool, sink: &OutputSink) {
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut idle_since = Instant::now();
        while let Ok(plan) = queue.recv() {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let waited = idle_since.elapsed();
            let mut output = engine.step(plan);
            output.statistics.waited = waited;
            tracing::trace!(
                step = output.number,
                sequences = output.statistics.sequences,
                tokens = output.statistics.tokens,
                waited = ?output.statistics.waited,
                forward = ?output.statistics.forward,
                duration = ?output.statistics.duration,
                "step"
            );
            idle_since = Instant::now();
            sink(Ok(output));
        }
    }));
    if result.is_err() {
        sink(Err(EngineStopped {
            reason: "it panicked".to_owned(),
        }));
    }
}

/// The only way to the engine. Dropping it ends the thread after the step that runs, without waiting, and
/// frees the engine's memory there.
#[derive(Debug)]
pub struct EngineHandle {
    plans: Option<SyncSender<StepPlan>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EngineHandle {
    /// Hands a plan over. Never blocks.
    ///
    /// # Errors
    /// When the engine has ended, or more plans wait than the scheduler may have in flight.
    pub fn submit(&self, plan: StepPlan) -> Result<(), EngineStopped> {
        let stopped = |reason: &str| EngineStopped {
            reason: reason.to_owned(),
        };
        let plans = self
            .plans
            .as_ref()
            .ok_or_else(|| stopped("it was told to stop"))?;
        plans.try_send(plan).map_err(|error| match error {
            TrySendError::Full(_) => stopped(&format!("more than {QUEUE} plans wait for it")),
            TrySendError::Disconnected(_) => stopped("its thread has ended"),
        })
    }

    /// Ends the thread and waits until its memory is free. Blocks for the rest of the step that runs; not
    /// for async workers, and not for the sink.
    pub fn stop_and_wait(mut self) {
        self.signal();
        if let Some(thread) = self.thread.take() {
            // A panic was reported to the sink.
            let _ = thread.join();
        }
    }

    fn signal(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.plans = None;
    }
}

impl Drop for EngineHandle {
    fn drop(&mut self) {
        self.signal();
    }
}
