//! What all handlers share, and what is known of a request before its handler runs.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix::Addr;
use actix_web::{HttpMessage, HttpRequest};
use tokio::sync::Semaphore;

use super::auth::ApiKeys;
use super::connection::Connection;
use super::cors::CorsPolicy;
use super::options::HttpOptions;
use super::responses::store::ResponseStore;
use crate::actors::model_manager::ModelManager;
use crate::telemetry::Metrics;

/// What the server is made of: the other side of the handlers.
#[derive(Clone)]
pub struct AppState {
    pub manager: Addr<ModelManager>,
    pub metrics: Arc<Metrics>,
}

/// Shared by all handlers of all workers.
#[derive(Clone)]
pub struct Context {
    pub state: AppState,
    pub options: Arc<HttpOptions>,
    pub keys: ApiKeys,
    pub cors: CorsPolicy,
    pub responses: ResponseStore,
    /// Bounds how many prompts are rendered and encoded at once.
    pub encoding: Arc<Semaphore>,
}

impl Context {
    pub fn new(options: HttpOptions, state: AppState) -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            state,
            keys: ApiKeys::new(options.api_keys.clone()),
            cors: CorsPolicy::new(&options.cors_origins),
            responses: ResponseStore::new(options.response_store),
            options: Arc::new(options),
            encoding: Arc::new(Semaphore::new(threads)),
        }
    }
}

/// One request's identity, made by the outermost middleware.
#[derive(Clone)]
pub struct Arrival {
    pub request_id: Arc<str>,
    pub at: Instant,
    /// The handler writes the request's log line itself.
    pub logged: Rc<Cell<bool>>,
}

impl Arrival {
    pub fn new() -> Self {
        Self {
            request_id: format!("req_{}", uuid::Uuid::new_v4().simple()).into(),
            at: Instant::now(),
            logged: Rc::default(),
        }
    }

    /// The one that the middleware made for this request.
    pub fn of(request: &HttpRequest) -> Self {
        let known = request.extensions().get::<Arrival>().cloned();
        known.unwrap_or_else(Arrival::new)
    }
}

/// The connection that a request came on.
pub fn connection(request: &HttpRequest) -> Option<Rc<Connection>> {
    request.conn_data::<Rc<Connection>>().cloned()
}
