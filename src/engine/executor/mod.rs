//! Who computes the forward pass: [`cpu`] with our kernels, [`portable`] with candle operations on any
//! device.

pub mod cpu;
pub mod portable;

use super::batch::RaggedBatch;
use super::error::EngineError;
use super::step::BlockCopy;
use crate::kernels::ThreadPool;

/// Computes forward passes over its own weights and KV blocks.
pub trait Executor {
    /// Writes the keys and values of all rows into their slots, attends, and leaves the logits of the
    /// wanted rows in `logits`, one row of the vocabulary after another.
    ///
    /// The batch is valid: tokens are in the vocabulary, positions within the context, slots in the pool.
    ///
    /// # Errors
    /// When the device fails. The batch's keys and values are then undefined; all others are intact.
    fn forward(&mut self, batch: &RaggedBatch, logits: &mut Vec<f32>) -> Result<(), EngineError>;

    /// The threads that sampling may use, if it has any.
    fn pool(&self) -> Option<&ThreadPool> {
        None
    }

    /// Copies the first positions of a block into another, in all layers. Both are in the pool.
    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), EngineError>;
}
