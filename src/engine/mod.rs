//! The engine: weights, KV block storage, the forward pass and sampling, on a thread of its own.
//!
//! It never knows about HTTP, text or clients. The scheduler hands it a [`step::StepPlan`] at a
//! time and gets a [`step::StepOutput`] back for each, in order.
//!
//! In the order of a step: [`thread`] takes the plan, [`core`] keeps the sequences and turns the plan into
//! a [`batch::RaggedBatch`], an [`executor`] computes it over the weights that [`layers`] describes and the
//! KV pool that [`blocks`] sizes, and [`sampler`] picks the tokens.

pub mod attention;
pub mod batch;
pub mod blocks;
pub mod core;
pub mod error;
pub mod executor;
pub mod layers;
pub mod loader;
pub mod memory;
pub mod models;
pub mod options;
pub mod rope;
pub mod sampler;
pub mod step;
pub mod thread;

#[cfg(test)]
pub(crate) mod tests;

pub use self::core::{Engine, EngineInfo};
pub use error::{EngineError, EngineStopped};
pub use options::{AttentionKind, DeviceChoice, EngineOptions, KvDtype, KvSize, MatmulPrecision};
pub use thread::{EngineHandle, EngineThread, OutputSink};
