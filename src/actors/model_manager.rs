//! Which model is loaded: load, swap, idle unload, drain.
//!
//! [`catalogue`] says which names mean which model, [`occupancy`] decides what is in memory when.

pub mod catalogue;
pub mod messages;
pub mod occupancy;

pub use catalogue::{Catalogue, CatalogueError};
pub use messages::{
    Acquire, AcquireError, Drain, Health, HealthQuery, HealthStatus, ListModels, LoadedFacts,
    ModelCard, ModelLease, Release, WaitReady,
};

/// A model in memory, ready for requests.
#[derive(Debug)]
pub struct ServedModel {
    /// The full id, as clients see it.
    pub id: String,
    /// When the server learned of the model, in seconds since 1970.
    pub created: u64,
    /// Tokens a conversation may hold.
    pub context_window: usize,
}
