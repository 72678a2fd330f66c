//! The engine: weights, KV block storage, the forward pass and sampling, on a thread of its own.
//!
//! It never knows about HTTP, text or clients. The scheduler hands it a [`step::StepPlan`] at a
//! time and gets a [`step::StepOutput`] back for each, in order.

pub mod loader;
pub mod sampler;
pub mod step;
