//! Why a measurement could not be made.

use crate::engine::{EngineError, loader::LoadError};
use crate::kernels::KernelError;

/// Why `trunkline bench` gave up. What a single request can fail of is a [`super::client::RequestError`],
/// which is counted and told instead.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    #[error(
        "--url {url:?} is no address of a server: {reason} (an example: http://127.0.0.1:8080)"
    )]
    BadUrl { url: String, reason: String },
    /// The first request to a server failed.
    #[error("{url}: {reason}")]
    Server { url: String, reason: String },
    #[error("cannot start a thread for each agent: {0}; use fewer --agents")]
    Thread(std::io::Error),
    #[error("cannot start again with candle's threads set: {0}")]
    Restart(std::io::Error),
    #[error("cannot print the report: {0}")]
    Output(std::io::Error),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("candle's matrix product failed: {0}")]
    Candle(#[from] candle_core::Error),
    /// The engine refused a step.
    #[error("the engine could not do {what}: {reason}")]
    Step { what: String, reason: String },
    #[error("the model's context of {context} tokens is too short: the cases need {needed}")]
    Context { context: usize, needed: usize },
}
