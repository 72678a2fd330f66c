//! Which model is loaded: load, swap, idle unload, drain.
//!
//! [`catalogue`] says which names mean which model, [`occupancy`] decides what is in memory when,
//! [`loading`] does the blocking work of a load on a thread of its own. The actor carries these out. A
//! model is handed out only when its engine is warm and its scheduler runs, and its memory is free
//! before the next one is loaded.

pub mod catalogue;
pub mod loading;
pub mod messages;
pub mod occupancy;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use actix::prelude::*;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

pub use catalogue::{Catalogue, CatalogueError};
pub use loading::LoadOptions;
pub use messages::{
    Acquire, AcquireError, AuditModel, Drain, Health, HealthQuery, HealthStatus, ListModels,
    LoadedFacts, ModelCard, ModelLease, Release, Shutdown, WaitReady,
};

use self::catalogue::ModelIndex;
use self::loading::{ModelError, StartedModel, engine_facts};
use self::occupancy::{Command, Occupancy, Place};
use super::messages as scheduling;
use super::scheduler::Scheduler;
use crate::engine::loader::RecommendedSampling;
use crate::engine::{EngineInfo, EngineStopped};
use crate::grammar::GrammarCompiler;
use crate::prompt::PromptFormat;
use crate::telemetry::{Metrics, ModelFacts};

/// When a client that came during a load may try again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A model in memory, ready for requests.
#[derive(Debug)]
pub struct ServedModel {
    /// The full id, as clients see it.
    pub id: String,
    /// When the server learned of the model, in seconds since 1970.
    pub created: u64,
    /// Tokens a conversation may hold: the model's window, or the whole KV pool where that is smaller.
    pub context_window: usize,
    pub prompt: Arc<PromptFormat>,
    /// For structured output.
    pub grammars: Arc<GrammarCompiler>,
    pub scheduler: Addr<Scheduler>,
    pub engine: EngineInfo,
    /// What the model's files recommend for requests that leave sampling open.
    pub sampling: RecommendedSampling,
}

impl ServedModel {
    fn facts(&self) -> LoadedFacts {
        LoadedFacts {
            model: self.id.clone(),
            device: self.engine.device.clone(),
            kv_blocks: self.engine.block_count,
            block_size: self.engine.block_size,
            kv_bytes: self.engine.kv_bytes,
            context_window: self.context_window,
        }
    }
}

type Requester = oneshot::Sender<Result<ModelLease, AcquireError>>;

/// See the module. All fields are changed by the actor alone.
pub struct ModelManager {
    catalogue: Catalogue,
    options: LoadOptions,
    /// A model without requests for this long is unloaded; zero means never.
    idle_unload: Duration,
    metrics: Arc<Metrics>,
    occupancy: Occupancy<Requester>,
    /// The model in memory; leases hold it, too.
    served: Option<Arc<ServedModel>>,
    /// Counts loads, so that news of an engine that is long gone are told apart.
    generation: u64,
    first_load: FirstLoad,
    /// Why the last load failed, until one succeeds.
    failure: Option<String>,
    /// Context windows of models that have been loaded once.
    context_windows: BTreeMap<ModelIndex, usize>,
    created: u64,
    /// A timer for the idle check is set.
    watching_idle: bool,
    draining: bool,
    /// To be told when the last lease ends.
    drain_waiters: Vec<oneshot::Sender<()>>,
}

/// Until the first load is over, requests are refused instead of queued.
enum FirstLoad {
    /// Who wants to know its end.
    UnderWay(Vec<oneshot::Sender<Result<LoadedFacts, String>>>),
    Over(Result<LoadedFacts, String>),
}

impl ModelManager {
    /// A manager that loads the default model when it starts. At most `max_waiting` requests wait for a
    /// model to come.
    pub fn new(
        catalogue: Catalogue,
        options: LoadOptions,
        idle_unload: Duration,
        max_waiting: usize,
        metrics: Arc<Metrics>,
    ) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        ModelManager {
            catalogue,
            options,
            idle_unload,
            metrics,
            occupancy: Occupancy::new(max_waiting),
            served: None,
            generation: 0,
            first_load: FirstLoad::UnderWay(Vec::new()),
            failure: None,
            context_windows: BTreeMap::new(),
            created: since_1970.map_or(0, |age| age.as_secs()),
            watching_idle: false,
            draining: false,
            drain_waiters: Vec::new(),
        }
    }

    fn execute(&mut self, commands: Vec<Command<Requester>>, context: &mut Context<Self>) {
        for command in commands {
            match command {
                Command::Grant(requester) => self.grant(requester, context),
                Command::Load(model) => self.load(model, context),
                Command::Unload(_) => self.unload(context),
            }
        }
        if self.occupancy.leases() == 0 {
            for waiter in self.drain_waiters.drain(..) {
                // Whoever asked may have gone.
                let _ = waiter.send(());
            }
        }
    }

    fn grant(&mut self, requester: Requester, context: &mut Context<Self>) {
        let manager = context.address().recipient();
        let lease = match &self.served {
            Some(served) => Ok(ModelLease::new(Arc::clone(served), manager)),
            None => {
                // The occupancy has counted a lease that nobody gets.
                manager.do_send(Release);
                Err(AcquireError::Failed("it is not in memory".to_owned()))
            }
        };
        // When the requester has gone, the lease is dropped and thereby given back.
        let _ = requester.send(lease);
    }

    /// Loads on a thread of its own, which is not waited for at shutdown: a download may take hours.
    fn load(&mut self, model: ModelIndex, context: &mut Context<Self>) {
        self.generation += 1;
        let entry = self.catalogue.get(model).clone();
        let options = self.options.clone();
        let began = Instant::now();
        info!(model = entry.id, source = ?entry.source, "loading");
        let generation = self.generation;
        let manager = context.address();
        let on_engine_death = move |stopped: EngineStopped| {
            manager.do_send(EngineDied {
                generation,
                stopped,
            });
        };
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name("model-loader".to_owned());
        let spawned = thread.spawn(move || {
            // If the manager has gone, the model is dropped here.
            let _ = sender.send(loading::load(&entry, &options, on_engine_death));
        });
        if let Err(error) = spawned {
            error!(%error, "no thread for loading");
        }
        let loaded = receiver.map(|result| result.unwrap_or(Err(ModelError::Died)));
        context.spawn(
            loaded
                .into_actor(self)
                .map(move |result, manager, context| match result {
                    Ok(started) => manager.loaded(model, started, began, context),
                    Err(error) => manager.load_failed(model, &error, context),
                }),
        );
    }

    fn loaded(
        &mut self,
        model: ModelIndex,
        started: StartedModel,
        began: Instant,
        context: &mut Context<Self>,
    ) {
        let StartedModel {
            engine,
            info,
            outputs,
            prompt,
            sampling,
        } = started;
        let scheduler = Scheduler::start(
            Box::new(engine),
            &outputs,
            engine_facts(&info),
            self.options.scheduler.clone(),
            Arc::clone(&self.metrics),
        );
        let id = self.catalogue.get(model).id.clone();
        let context_window = info.context_window.min(info.block_count * info.block_size);
        if context_window < info.context_window {
            warn!(
                model = id,
                context_window,
                model_window = info.context_window,
                "the KV pool holds less than one context window; raise kv_memory for longer conversations"
            );
        }
        let seconds = began.elapsed().as_secs_f64();
        info!(model = id, device = info.device, seconds, "loaded");
        self.metrics.model_loads.with_label_values(&["ok"]).inc();
        self.metrics.model_load_seconds.observe(seconds);
        self.metrics.set_kv_blocks(info.block_count, 0, 0);
        self.metrics.set_model(Some(ModelFacts {
            model: &id,
            device: &info.device,
            kv_dtype: &info.kv_dtype.to_string(),
            attention: &info.attention.to_string(),
            block_size: info.block_size,
            context_window,
        }));
        let served = Arc::new(ServedModel {
            id,
            created: self.created,
            context_window,
            prompt: Arc::new(prompt),
            grammars: Arc::new(GrammarCompiler::new(&info.end_tokens)),
            scheduler,
            engine: info,
            sampling,
        });
        self.context_windows.insert(model, context_window);
        self.failure = None;
        self.end_first_load(Ok(served.facts()));
        self.served = Some(served);
        let commands = self.occupancy.loaded(Instant::now());
        self.execute(commands, context);
        self.watch_idle(context);
    }

    fn load_failed(&mut self, model: ModelIndex, error: &ModelError, context: &mut Context<Self>) {
        let id = &self.catalogue.get(model).id;
        let reason = error.to_string();
        error!(model = id, reason, "the model could not be loaded");
        self.metrics
            .model_loads
            .with_label_values(&["failed"])
            .inc();
        self.failure = Some(reason.clone());
        self.end_first_load(Err(reason.clone()));
        let (refused, commands) = self.occupancy.load_failed(Instant::now());
        for requester in refused {
            // Whoever asked may have gone.
            let _ = requester.send(Err(AcquireError::Failed(reason.clone())));
        }
        self.execute(commands, context);
    }

    fn end_first_load(&mut self, result: Result<LoadedFacts, String>) {
        if let FirstLoad::UnderWay(waiters) = &mut self.first_load {
            for waiter in waiters.drain(..) {
                // Whoever asked may have gone.
                let _ = waiter.send(result.clone());
            }
            self.first_load = FirstLoad::Over(result);
        }
    }

    fn unload(&mut self, context: &mut Context<Self>) {
        let freed = self.free_model();
        context.spawn(freed.into_actor(self).map(|(), manager, context| {
            let commands = manager.occupancy.unloaded(Instant::now());
            manager.execute(commands, context);
        }));
    }

    /// Takes the model out of service; the future ends when its memory is free.
    fn free_model(&mut self) -> impl Future<Output = ()> + use<> {
        let served = self.served.take();
        if let Some(served) = &served {
            info!(model = served.id, "unloading");
            self.metrics.model_unloads.inc();
            self.metrics.set_model(None);
        }
        let metrics = Arc::clone(&self.metrics);
        async move {
            let Some(served) = served else { return };
            // An error means that the scheduler has ended already.
            let _ = served.scheduler.send(scheduling::Stop).await;
            metrics.set_kv_blocks(0, 0, 0);
        }
    }

    /// Unloads the model if it is idle, or looks again when it may be. One timer at a time.
    fn watch_idle(&mut self, context: &mut Context<Self>) {
        if self.idle_unload.is_zero() || self.watching_idle {
            return;
        }
        match self
            .occupancy
            .unload_if_idle(self.idle_unload, Instant::now())
        {
            Ok(commands) => self.execute(commands, context),
            Err(Some(wait)) => {
                self.watching_idle = true;
                context.run_later(wait, |manager, context| {
                    manager.watching_idle = false;
                    manager.watch_idle(context);
                });
            }
            Err(None) => {}
        }
    }

    /// The model that a request means.
    fn resolve(&self, requested: Option<&str>) -> Result<ModelIndex, AcquireError> {
        let Some(requested) = requested else {
            return Ok(match self.occupancy.place() {
                Place::Loaded { model, .. } | Place::Loading(model) => model,
                Place::Empty | Place::Unloading(_) => self.catalogue.default_model(),
            });
        };
        self.catalogue
            .resolve(requested)
            .map_err(|unknown| AcquireError::Unknown {
                requested: unknown.requested,
                available: unknown.available,
            })
    }

    fn acquire(
        &mut self,
        requested: Option<&str>,
        context: &mut Context<Self>,
    ) -> Result<oneshot::Receiver<Result<ModelLease, AcquireError>>, AcquireError> {
        if self.draining {
            return Err(AcquireError::Draining);
        }
        let model = self.resolve(requested)?;
        if matches!(self.first_load, FirstLoad::UnderWay(_)) {
            return Err(AcquireError::NotReady {
                retry_after: RETRY_AFTER,
            });
        }
        let (sender, receiver) = oneshot::channel();
        match self.occupancy.acquire(model, sender, Instant::now()) {
            Ok(commands) => self.execute(commands, context),
            Err(_) => {
                return Err(AcquireError::QueueFull {
                    limit: self.options.scheduler.max_waiting,
                    retry_after: RETRY_AFTER,
                });
            }
        }
        Ok(receiver)
    }

    fn health(&self) -> Health {
        let loading = matches!(self.first_load, FirstLoad::UnderWay(_));
        let status = match &self.failure {
            _ if self.draining => HealthStatus::Draining,
            _ if loading => HealthStatus::Loading,
            Some(reason) => HealthStatus::Failed(reason.clone()),
            None => HealthStatus::Ok,
        };
        let model = match self.occupancy.place() {
            Place::Loaded { model, .. } | Place::Loading(model) => model,
            Place::Empty | Place::Unloading(_) => self.catalogue.default_model(),
        };
        Health {
            status,
            model: self.catalogue.get(model).id.clone(),
            loaded: self.served.as_ref().map(|served| served.facts()),
        }
    }
}

impl Actor for ModelManager {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        let commands = self.occupancy.preload(self.catalogue.default_model());
        self.execute(commands, context);
    }
}

impl Handler<Acquire> for ModelManager {
    type Result = ResponseFuture<Result<ModelLease, AcquireError>>;

    fn handle(&mut self, Acquire { model }: Acquire, context: &mut Self::Context) -> Self::Result {
        let granted = self.acquire(model.as_deref(), context);
        Box::pin(async move {
            // The sender is dropped only when the manager ends.
            granted?.await.unwrap_or(Err(AcquireError::Draining))
        })
    }
}

impl Handler<Release> for ModelManager {
    type Result = ();

    fn handle(&mut self, _: Release, context: &mut Self::Context) {
        let commands = self.occupancy.released(Instant::now());
        self.execute(commands, context);
        self.watch_idle(context);
    }
}

/// The engine of the load `generation` ended by itself.
#[derive(Message)]
#[rtype(result = "()")]
struct EngineDied {
    generation: u64,
    stopped: EngineStopped,
}

impl Handler<EngineDied> for ModelManager {
    type Result = ();

    fn handle(
        &mut self,
        EngineDied {
            generation,
            stopped,
        }: EngineDied,
        context: &mut Self::Context,
    ) {
        if generation != self.generation {
            return;
        }
        error!(%stopped, "the model will be loaded anew for the next request");
        let commands = self.occupancy.broke(Instant::now());
        self.execute(commands, context);
    }
}

impl Handler<ListModels> for ModelManager {
    type Result = MessageResult<ListModels>;

    fn handle(&mut self, _: ListModels, _: &mut Self::Context) -> Self::Result {
        let loaded = match self.occupancy.place() {
            Place::Loaded { model, .. } => Some(model),
            _ => None,
        };
        let card = |(index, entry): (ModelIndex, &catalogue::CatalogueEntry)| ModelCard {
            id: entry.id.clone(),
            aliases: self.catalogue.aliases_of(index),
            created: self.created,
            context_window: self.context_windows.get(&index).copied(),
            loaded: loaded == Some(index),
        };
        MessageResult(self.catalogue.entries().map(card).collect())
    }
}

impl Handler<HealthQuery> for ModelManager {
    type Result = MessageResult<HealthQuery>;

    fn handle(&mut self, _: HealthQuery, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.health())
    }
}

impl Handler<WaitReady> for ModelManager {
    type Result = ResponseFuture<Result<LoadedFacts, String>>;

    fn handle(&mut self, _: WaitReady, _: &mut Self::Context) -> Self::Result {
        match &mut self.first_load {
            FirstLoad::Over(result) => Box::pin(std::future::ready(result.clone())),
            FirstLoad::UnderWay(waiters) => {
                let (sender, receiver) = oneshot::channel();
                waiters.push(sender);
                Box::pin(async move {
                    receiver
                        .await
                        .unwrap_or_else(|_| Err("the server is shutting down".to_owned()))
                })
            }
        }
    }
}

impl Handler<Drain> for ModelManager {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, Drain { deadline }: Drain, context: &mut Self::Context) -> Self::Result {
        self.draining = true;
        for requester in self.occupancy.refuse_all() {
            // Whoever asked may have gone.
            let _ = requester.send(Err(AcquireError::Draining));
        }
        let (waiter, done) = oneshot::channel();
        self.drain_waiters.push(waiter);
        self.execute(Vec::new(), context);
        let scheduler = self.served.as_ref().map(|served| served.scheduler.clone());
        Box::pin(async move {
            if let Some(scheduler) = scheduler {
                // Errors mean that scheduler or manager have ended already.
                let _ = scheduler.send(scheduling::Drain { deadline }).await;
            }
            let _ = done.await;
        })
    }
}

impl Handler<Shutdown> for ModelManager {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Shutdown, _: &mut Self::Context) -> Self::Result {
        self.draining = true;
        let freed = self.free_model();
        Box::pin(freed.into_actor(self).map(|(), _, context| context.stop()))
    }
}

impl Handler<AuditModel> for ModelManager {
    type Result = ResponseFuture<Option<Result<scheduling::SchedulerSnapshot, String>>>;

    fn handle(&mut self, _: AuditModel, _: &mut Self::Context) -> Self::Result {
        let scheduler = self.served.as_ref().map(|served| served.scheduler.clone());
        Box::pin(async move {
            let report = scheduler?.send(scheduling::Audit).await;
            Some(report.unwrap_or_else(|closed| Err(closed.to_string())))
        })
    }
}
