//! A whole server: model manager and HTTP put together, started and stopped.
//!
//! Each server runs an actix system on a thread of its own and shares nothing with another in the same
//! process. Starting is in two steps, because a model may take minutes to load while `/health` should
//! already say so: [`start`] returns when the address is bound, [`StartingServer::wait_ready`] when the
//! model is ready.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc as blocking;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, System};
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use crate::actors::model_manager::{
    Catalogue, CatalogueError, Drain, LoadOptions, LoadedFacts, ModelManager, Shutdown, WaitReady,
};
use crate::config::{ApiKey, Config, Origin};
use crate::http::StoreLimits;
use crate::http::{AppState, HttpOptions, HttpServer};
use crate::telemetry::Metrics;

/// After the drain, how long clients may take to fetch the rest of their answers.
const GRACE: Duration = Duration::from_secs(5);

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: String, source: io::Error },
    #[error("cannot serve the model: {0}")]
    Model(String),
    #[error("the server's thread failed: {0}")]
    Thread(String),
}

/// Binds the address, and begins to load the model.
///
/// # Errors
/// Model names that mean nothing, or an address that cannot be bound.
pub fn start(config: Config) -> Result<StartingServer, StartError> {
    let catalogue = Catalogue::new(&config)?;
    let (report, bound) = blocking::sync_channel(1);
    let (control, orders) = mpsc::unbounded_channel();
    let metrics = Arc::new(Metrics::new());
    let thread = std::thread::Builder::new()
        .name("server".to_owned())
        .spawn({
            let metrics = Arc::clone(&metrics);
            move || run(config, catalogue, metrics, orders, &report)
        })
        .map_err(|error| StartError::Thread(error.to_string()))?;
    let bound = bound
        .recv()
        .unwrap_or_else(|_| Err(StartError::Thread("it panicked".to_owned())))?;
    Ok(StartingServer {
        running: RunningServer {
            address: bound.address,
            metrics,
            manager: bound.manager,
            stopper: Stopper(control),
            thread: Some(thread),
        },
        ready: bound.ready,
    })
}

/// A server that listens and loads its model.
#[derive(Debug)]
pub struct StartingServer {
    running: RunningServer,
    ready: blocking::Receiver<Result<LoadedFacts, String>>,
}

impl StartingServer {
    /// Stops the server, also while it loads.
    pub fn stopper(&self) -> Stopper {
        self.running.stopper.clone()
    }

    /// Where it listens. Until the model is ready, requests are answered 503.
    pub fn address(&self) -> SocketAddr {
        self.running.address()
    }

    /// Waits until the model is ready. Blocks.
    ///
    /// # Errors
    /// Why the model could not be loaded; the server has been stopped then.
    pub fn wait_ready(self) -> Result<(RunningServer, LoadedFacts), StartError> {
        match self.ready.recv() {
            Ok(Ok(facts)) => Ok((self.running, facts)),
            Ok(Err(reason)) => Err(StartError::Model(reason)),
            Err(_) => Err(StartError::Model(
                "the server was stopped while it loaded".to_owned(),
            )),
        }
    }
}

/// A server that serves. Dropping it stops it at once.
#[derive(Debug)]
pub struct RunningServer {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    manager: Addr<ModelManager>,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl RunningServer {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its counts, as `/metrics` shows them.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Its model manager, for tests that look inside.
    pub fn manager(&self) -> &Addr<ModelManager> {
        &self.manager
    }

    /// Stops it from elsewhere.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Waits until it has been stopped. Blocks.
    pub fn wait(mut self) {
        self.join();
    }

    fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the server's thread panicked");
        }
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stopper.stop_now();
            self.join();
        }
    }
}

/// Stops a server.
#[derive(Debug, Clone)]
pub struct Stopper(mpsc::UnboundedSender<Order>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Drain,
    StopNow,
}

impl Stopper {
    /// Refuses new requests with 503, lets running ones finish within the drain timeout, cuts the rest
    /// with an error event, and stops. Returns at once.
    pub fn drain(&self) {
        self.order(Order::Drain);
    }

    /// The same without time to finish.
    pub fn stop_now(&self) {
        self.order(Order::StopNow);
    }

    fn order(&self, order: Order) {
        // A server that has stopped needs no order.
        let _ = self.0.send(order);
    }
}

/// What the server's thread tells when it is bound.
struct Bound {
    address: SocketAddr,
    manager: Addr<ModelManager>,
    ready: blocking::Receiver<Result<LoadedFacts, String>>,
}

/// The server's thread.
fn run(
    config: Config,
    catalogue: Catalogue,
    metrics: Arc<Metrics>,
    orders: mpsc::UnboundedReceiver<Order>,
    report: &blocking::SyncSender<Result<Bound, StartError>>,
) {
    let system = System::new();
    system.block_on(async {
        let manager = ModelManager::new(
            catalogue,
            LoadOptions::new(&config),
            config.idle_unload,
            config.max_waiting,
            Arc::clone(&metrics),
        )
        .start();
        let state = AppState {
            manager: manager.clone(),
            metrics,
        };
        let http = match listen(&config, state) {
            Ok(http) => http,
            Err(error) => {
                // Nobody listens only if the starter is gone, who then needs no error.
                let _ = report.send(Err(error));
                return;
            }
        };
        let (ready, wait_ready) = blocking::sync_channel(1);
        actix::spawn({
            let manager = manager.clone();
            async move {
                if let Ok(result) = manager.send(WaitReady).await {
                    // Whoever started the server may not want to know.
                    let _ = ready.try_send(result);
                }
            }
        });
        let Some(&address) = http.addresses().first() else {
            return;
        };
        let bound = Bound {
            address,
            manager: manager.clone(),
            ready: wait_ready,
        };
        if report.send(Ok(bound)).is_err() {
            return;
        }
        serve_until_stopped(http, &manager, config.drain_timeout, orders).await;
    });
    System::current().stop();
    if let Err(error) = system.run() {
        error!(%error, "the server's system did not stop cleanly");
    }
}

fn listen(config: &Config, state: AppState) -> Result<HttpServer, StartError> {
    crate::http::serve(http_options(config), state).map_err(|source| StartError::Listen {
        address: format!("{}:{}", config.host, config.port),
        source,
    })
}

fn http_options(config: &Config) -> HttpOptions {
    HttpOptions {
        host: config.host.clone(),
        port: config.port,
        api_keys: config
            .api_key
            .iter()
            .map(|key| ApiKey::reveal(key).to_owned())
            .collect(),
        cors_origins: config
            .cors
            .iter()
            .map(|origin| Origin::as_str(origin).to_owned())
            .collect(),
        body_limit: config.body_limit.as_usize(),
        connection_limit: config.connection_limit,
        workers: config.http_workers,
        request_timeout: config.request_timeout,
        head_timeout: config.head_timeout,
        body_timeout: config.body_timeout,
        keep_alive: config.keep_alive,
        write_timeout: config.write_timeout,
        progress_interval: config.progress_interval,
        usage_on_final_chunk: config.usage_on_final_chunk,
        response_store: StoreLimits {
            entries: config.response_store_entries,
            bytes: config.response_store_size.as_usize(),
        },
        log_content: config.log_content,
    }
}

async fn serve_until_stopped(
    http: HttpServer,
    manager: &Addr<ModelManager>,
    drain_timeout: Duration,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    let handle = http.handle();
    let serving = actix::spawn(http.run());
    // `None` means that nobody is left who could give an order.
    let order = orders.recv().await.unwrap_or(Order::StopNow);
    let patience = match order {
        Order::Drain => drain_timeout,
        Order::StopNow => Duration::ZERO,
    };
    info!(
        seconds = patience.as_secs_f64(),
        "shutting down: new requests are refused, running ones may finish"
    );
    let drained = manager.send(Drain {
        deadline: Instant::now() + patience,
    });
    tokio::select! {
        drained = tokio::time::timeout(patience + GRACE, drained) => {
            if drained.is_err() {
                warn!("some clients do not read the end of their answers; their connections are cut");
            }
        }
        () = stop_now(&mut orders) => {}
    }
    tokio::select! {
        () = handle.stop(true) => {}
        () = tokio::time::sleep(GRACE) => handle.stop(false).await,
        () = stop_now(&mut orders) => handle.stop(false).await,
    }
    // An error means that the manager has ended already.
    let _ = manager.send(Shutdown).await;
    match serving.await {
        Ok(Ok(())) => info!("stopped"),
        Ok(Err(error)) => error!(%error, "the HTTP server failed"),
        Err(error) => error!(%error, "the HTTP server's task failed"),
    }
}

/// Returns when told to stop at once.
async fn stop_now(orders: &mut mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = orders.recv().await {
        if order == Order::StopNow {
            return;
        }
    }
}
