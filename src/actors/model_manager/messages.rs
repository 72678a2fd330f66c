//! What handlers and the server say to the model manager.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;

use super::ServedModel;
use crate::actors::messages::SchedulerSnapshot;

/// Asks for a model; answered when it is in memory and ready. `None` is the model in memory, or the
/// default one.
#[derive(Message, Debug, Clone)]
#[rtype(result = "Result<ModelLease, AcquireError>")]
pub struct Acquire {
    pub model: Option<String>,
}

/// Why there is no model for a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AcquireError {
    /// No configured model has this name (404).
    #[error("the model '{requested}' does not exist; available: {}", available.join(", "))]
    Unknown {
        requested: String,
        available: Vec<String>,
    },
    /// The first model is still loading (503).
    #[error("the model is loading")]
    NotReady { retry_after: Duration },
    /// Too many requests wait for a model to be loaded (429).
    #[error("too many requests wait for a model to be loaded (at most {limit})")]
    QueueFull { limit: usize, retry_after: Duration },
    /// It could not be loaded; the next request tries again (503).
    #[error("the model could not be loaded: {0}")]
    Failed(String),
    /// The server is shutting down (503).
    #[error("the server is shutting down")]
    Draining,
}

/// The right to use a model: while it lives, the model is neither swapped nor unloaded. Whoever
/// generates with the model holds one until its last token.
pub struct ModelLease {
    model: Arc<ServedModel>,
    manager: Recipient<Release>,
}

impl ModelLease {
    pub(super) fn new(model: Arc<ServedModel>, manager: Recipient<Release>) -> Self {
        ModelLease { model, manager }
    }
}

impl Deref for ModelLease {
    type Target = ServedModel;

    fn deref(&self) -> &ServedModel {
        &self.model
    }
}

impl fmt::Debug for ModelLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ModelLease").field(&self.model.id).finish()
    }
}

impl Drop for ModelLease {
    fn drop(&mut self) {
        self.manager.do_send(Release);
    }
}

/// A lease has ended.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Release;

/// Asks for the models that requests can reach, the default one first.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "Vec<ModelCard>")]
pub struct ListModels;

/// One entry of `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelCard {
    pub id: String,
    /// Other names that mean this model.
    pub aliases: Vec<String>,
    /// When the server learned of it, in seconds since 1970.
    pub created: u64,
    /// Tokens a conversation may hold; known once the model has been loaded.
    pub context_window: Option<usize>,
    /// In memory now.
    pub loaded: bool,
}

/// Asks how the server is.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "Health")]
pub struct HealthQuery;

/// The answer to [`HealthQuery`].
#[derive(Debug, Clone)]
pub struct Health {
    pub status: HealthStatus,
    /// The model in memory, or the one that is loading or would be loaded by default.
    pub model: String,
    /// Facts of the model in memory.
    pub loaded: Option<LoadedFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthStatus {
    /// Requests are served; a model that was unloaded comes back on request.
    Ok,
    /// A model is being loaded, and nothing is served meanwhile.
    Loading,
    /// The last load failed. Requests try again.
    Failed(String),
    /// The server is shutting down.
    Draining,
}

/// What `/health` and the ready line tell about a model in memory.
#[derive(Debug, Clone)]
pub struct LoadedFacts {
    pub model: String,
    pub device: String,
    pub kv_blocks: usize,
    /// Tokens a KV block.
    pub block_size: usize,
    /// Bytes of all KV blocks.
    pub kv_bytes: u64,
    pub context_window: usize,
}

impl LoadedFacts {
    /// Tokens that the KV blocks hold together.
    pub fn kv_tokens(&self) -> usize {
        self.kv_blocks * self.block_size
    }
}

/// Refuses further requests and answers when the running ones are done, or have been cut at `deadline`.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Drain {
    pub deadline: Instant,
}

/// Answers when the first load is done: the facts, or why it failed.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "Result<LoadedFacts, String>")]
pub struct WaitReady;

/// Unloads the model, cutting what runs, and ends the manager. Answered when the memory is free.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "()")]
pub struct Shutdown;

/// Asks the scheduler of the model in memory to check its books; `None` when there is no model. For
/// tests and debugging.
#[derive(Message, Debug, Clone, Copy)]
#[rtype(result = "Option<Result<SchedulerSnapshot, String>>")]
pub struct AuditModel;
