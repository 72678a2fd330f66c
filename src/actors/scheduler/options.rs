//! What the scheduler is told at its start.

use std::sync::Arc;
use std::time::Duration;

use crate::ids::TokenId;

/// What the scheduler must know of the engine it plans for.
#[derive(Debug, Clone)]
pub struct EngineFacts {
    /// Tokens of a KV block.
    pub block_size: usize,
    /// Blocks of the pool.
    pub block_count: usize,
    /// Tokens that end a sequence, unless it ignores them.
    pub end_tokens: Arc<[TokenId]>,
}

/// Bounds and targets of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerOptions {
    /// Token rows of one step at most (more decode rows are computed all the same).
    pub max_batch_tokens: usize,
    /// Token rows that prefill may have in each step, however many decode rows there are.
    pub min_prefill_tokens: usize,
    /// Sequences that hold blocks at the same time.
    pub max_running: usize,
    /// Sequences in the waiting queue when a new one is refused.
    pub max_waiting: usize,
    /// How many times longer a step with decode rows may take for the prompt tokens in it: at least 1.
    /// Chunks of prompts are cut to fit.
    pub prefill_slowdown: f64,
    /// How long a step with decode rows may take when it clears all prompts at once, rarely, and when
    /// it is not known yet how long such steps take. A step without any may take five times as long.
    pub target_step_time: Duration,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self {
            max_batch_tokens: 512,
            min_prefill_tokens: 16,
            max_running: 256,
            max_waiting: 512,
            prefill_slowdown: 2.0,
            target_step_time: Duration::from_millis(200),
        }
    }
}
