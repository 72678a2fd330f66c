//! Ragged attention over block tables, in place.
//!
//! Keys are partitioned at fixed absolute positions, [`PARTITION`] each. Within a partition a row's
//! scores, their maximum, the exponentials and the weighted sum of values are computed key by key in
//! order; partitions are combined in order with the usual rescaling (Milakov and Gimelshein, 2018). What
//! a row computes depends on its own position and keys only: not on the batch, the chunk it arrives in,
//! the blocks it shares, or the threads.

mod plan;
mod walk;

pub use plan::{AttentionPlan, AttentionRow, AttentionShape};

use super::isa::Isa;
use super::kv::{KvLayer, with_buffers};
use super::simd::dispatch;
use super::{KernelError, SharedMut, ThreadPool};
use walk::{Walk, WalkScratch};

/// Keys of a partition. Blocks divide it evenly.
pub const PARTITION: usize = 256;

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
    let tasks = plan.tasks();
    pool.run(tasks.len() * layout.kv_heads, |_, index| {
        let (task, kv_head) = (&tasks[index / layout.kv_heads], index % layout.kv_heads);
        WalkScratch::with(|scratch| {
            with_buffers!(layer.storage(), buffers => {
                let walk = Walk { plan, layout, buffers, task, kv_head, queries, stride, out, scratch };
                // SAFETY: the ISA is available; tasks have disjoint rows and KV heads disjoint query
                // heads, so each walk writes its own part of `out`; the plan's blocks were checked.
                unsafe { dispatch(isa, walk) }
            });
        });
    })
}

#[cfg(test)]
mod tests;
