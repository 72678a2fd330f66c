//! Ragged attention over block tables, in place.
//!
//! Keys are partitioned at fixed absolute positions, [`PARTITION`] each. Within a partition a row's
//! scores, their maximum, the exponentials and the weighted sum of values are computed key by key in
//! order; partitions are combined in order with the usual rescaling (Milakov and Gimelshein, 2018). What
//! a row computes depends on its own position and keys only: not on the batch, the chunk it arrives in,
//! the blocks it shares, or the threads.

mod micro;
mod plan;
#[cfg(target_arch = "x86_64")]
mod products;
#[cfg(target_arch = "x86_64")]
mod tile_walk;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod walk;

use std::cell::RefCell;

pub use plan::{AttentionPlan, AttentionRow, AttentionShape};

use super::isa::Isa;
use super::kv::{KvLayer, with_buffers};
use super::{KernelError, SharedMut, ThreadPool};
use plan::Task;
use walk::{Partials, Source, States, Walk, WalkScratch};

/// Keys of a partition. Independent of the block size.
pub const PARTITION: usize = 128;

/// Up to so many pairs of a row and a query head a task is cut into pieces when there are few tasks.
const FEW_PAIRS: usize = 16;

/// Multiply-adds below which attention is not worth sharing among threads.
const SMALL: usize = 64 * 1024;

/// Kept from call to call by the thread that calls.
#[derive(Default)]
struct Scratch {
    /// The states of rows between levels.
    states: Vec<f32>,
    /// Results of single partitions.
    partials: Vec<f32>,
}

thread_local! {
    static BUFFERS: RefCell<Scratch> = RefCell::new(Scratch::default());
}

/// Into how many pieces each walk of a level is cut, if it is: when there are fewer walks than threads
/// can share evenly, each with few rows, as of a lone decode row with a long context.
fn pieces(pool: &ThreadPool, tasks: &[Task], walks: usize, group: usize) -> Option<usize> {
    let shortest = tasks.iter().map(|task| task.partitions.len()).min()?;
    let few_rows = tasks
        .iter()
        .all(|task| task.rows.len() * group <= FEW_PAIRS);
    let pieces = (4 * pool.threads()).div_ceil(walks).min(shortest);
    (pool.threads() > 1 && walks < 2 * pool.threads() && few_rows && pieces > 1).then_some(pieces)
}

/// Attention of all rows of `plan` over the keys and values of one layer.
///
/// Row `i`'s query heads, `query_heads × head_dim` numbers, begin at `queries[i * stride]`; so they may be
/// part of `q|k|v` rows. `out` gets rows of `query_heads × head_dim`. The rows' own keys and values must
/// have been written before. A row's result has the same bits whatever the other rows.
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

/// [`fused_attention`] on a chosen instruction set, which must be one of [`Isa::available`]; for
/// [`KvType::Bf16Tiles`](super::KvType::Bf16Tiles) it must have matrix tiles or be the scalar twin.
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
    let group = shape.query_heads / shape.kv_heads;
    let worth = plan.work() * width > SMALL;
    BUFFERS.with_borrow_mut(|Scratch { states, partials }| {
        let states = States::new(states, plan, layout);
        /// A walk over the layer's blocks, whatever their type, given to a method of [`Walk`].
        macro_rules! walk {
            ($task:expr, $kv_head:expr, $next:expr, $walk:ident => $use_walk:expr) => {
                WalkScratch::with(|scratch| {
                    let (task, kv_head, next) = ($task, $kv_head, $next);
                    let (plan, states) = (&*plan, states);
                    with_buffers!(layer.storage(), buffers => {
                        let source = Source::Numbers(buffers);
                        let $walk = Walk { isa, plan, layout, source, task, kv_head, next, queries, stride, out, states, scratch };
                        $use_walk
                    }, _tiles => {
                        // Elsewhere there is no such storage.
                        #[cfg(target_arch = "x86_64")]
                        {
                            let source = Source::<f32>::Tiles(_tiles);
                            let $walk = Walk { isa, plan, layout, source, task, kv_head, next, queries, stride, out, states, scratch };
                            $use_walk
                        }
                    });
                })
            };
        }
        for tasks in plan.levels() {
            let walks = tasks.len() * layout.kv_heads;
            let pieces = pieces(pool, tasks, walks, group).filter(|_| worth);
            // All tasks of a head first: neighbours then find shared blocks in the cache.
            let walk_at = |index: usize| (&tasks[index % tasks.len()], index / tasks.len());
            if let Some(pieces) = pieces {
                // Too few walks for the threads: each is done in pieces, whose results are then combined.
                let pairs = |task: &Task| task.rows.len() * group;
                let size =
                    |task: &Task| Partials::size(task.partitions.len(), pairs(task), layout);
                let largest = tasks.iter().map(size).max().unwrap_or(0);
                walk::grow(partials, walks * largest);
                let partials = SharedMut::new(partials);
                let results = |walk: usize, task: &Task| {
                    Partials::new(partials, walk * largest, task, pairs(task), layout)
                };
                pool.run(walks * pieces, |_, index| {
                    let (walk, piece) = (index / pieces, index % pieces);
                    let (task, kv_head) = walk_at(walk);
                    let at = |piece: usize| {
                        task.partitions.start + task.partitions.len() * piece / pieces
                    };
                    let results = results(walk, task);
                    // SAFETY: as below; pieces are different partitions.
                    walk!(task, kv_head, None, it => unsafe { it.spread(at(piece)..at(piece + 1), results) });
                })?;
                pool.run(walks, |_, walk| {
                    let (task, kv_head) = walk_at(walk);
                    let results = results(walk, task);
                    // SAFETY: as below; all pieces are done.
                    walk!(task, kv_head, None, it => unsafe { it.gather(results) });
                })?;
                continue;
            }
            pool.run_neighbours_if(worth, walks, |_, index| {
                let (task, kv_head) = walk_at(index);
                let next = (index + 1 < walks).then(|| walk_at(index + 1));
                // SAFETY: the ISA is available; a level's tasks have disjoint rows and KV heads disjoint
                // query heads, so each walk writes its own part of `out` and of the states; the plan's
                // blocks were checked.
                walk!(task, kv_head, next, it => unsafe { it.run() });
            })?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests;
