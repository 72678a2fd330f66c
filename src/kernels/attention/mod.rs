//! Ragged attention over block tables, in place.
//!
//! Keys are partitioned at fixed absolute positions, [`PARTITION`] each. Within a partition a row's
//! scores, their maximum, the exponentials and the weighted sum of values are computed key by key in
//! order; partitions are combined in order with the usual rescaling (Milakov and Gimelshein, 2018). What
//! a row computes depends on its own position and keys only: not on the batch, the chunk it arrives in,
//! the blocks it shares, or the threads.

mod micro;
mod plan;
mod walk;

use std::cell::RefCell;

pub use plan::{AttentionPlan, AttentionRow, AttentionShape};

use super::isa::Isa;
use super::kv::{KvLayer, with_buffers};
use super::{KernelError, SharedMut, ThreadPool};
use walk::{States, Walk, WalkScratch};

/// Keys of a partition. Independent of the block size.
pub const PARTITION: usize = 128;

/// Multiply-adds below which attention is not worth sharing among threads.
const SMALL: usize = 64 * 1024;

thread_local! {
    /// The states of rows between levels, kept from call to call by the thread that calls.
    static STATES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Attention of all rows of `plan` over the keys and values of one layer.
///
/// Row `i`'s query heads, `query_heads × head_dim` numbers, begin at `queries[i * stride]`; so they may be
/// part of `q|k|v` rows. `out` gets rows of `query_heads × head_dim`. The rows' own keys and values must
/// have been written before.
///
/// # Errors
/// When a job panicked.
///
/// # Panics
/// When the sizes do not fit, or the plan was built for another block size.
pub fn fused_attention(
    pool: &ThreadPool,
    plan: &AttentionPlan,
    layer: &KvLayer,
    queries: &[f32],
    stride: usize,
    out: &mut [f32],
) -> Result<(), KernelError> {
    attention_on(Isa::detected(), pool, plan, layer, queries, stride, out)
}

/// [`fused_attention`] on a chosen instruction set, which must be one of [`Isa::available`].
fn attention_on(
    isa: Isa,
    pool: &ThreadPool,
    plan: &AttentionPlan,
    layer: &KvLayer,
    queries: &[f32],
    stride: usize,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let (shape, layout) = (plan.shape(), layer.layout());
    let width = shape.query_heads * layout.head_dim;
    plan.check(layer);
    let rows = plan.rows();
    assert_eq!(out.len(), rows * width, "attention: out has another size");
    assert!(
        rows == 0 || queries.len() >= (rows - 1) * stride + width,
        "attention: queries too short"
    );
    let out = SharedMut::new(out);
    STATES.with_borrow_mut(|states| {
        let states = States::new(states, plan, layout);
        for tasks in plan.levels() {
            // All tasks of a head first: neighbours then find shared blocks in the cache.
            let walk = |index: usize| {
                let (kv_head, task) = (index / tasks.len(), &tasks[index % tasks.len()]);
                WalkScratch::with(|scratch| {
                    with_buffers!(layer.storage(), buffers => {
                        let (plan, states) = (&*plan, states);
                        let walk = Walk { isa, plan, layout, buffers, task, kv_head, queries, stride, out, states, scratch };
                        // SAFETY: the ISA is available; a level's tasks have disjoint rows and KV heads
                        // disjoint query heads, so each walk writes its own part of `out` and of the
                        // states; the plan's blocks were checked.
                        unsafe { walk.run() }
                    });
                });
            };
            let walks = tasks.len() * layout.kv_heads;
            pool.run_if(plan.work() * width > SMALL, walks, |_, index| walk(index))?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests;
