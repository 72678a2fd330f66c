//! One KV head's walk over a task's partitions, written over sixteen lanes.

use std::cell::RefCell;

use super::PARTITION;
use super::plan::{AttentionPlan, Task};
use crate::ids::BlockId;
use crate::kernels::SharedMut;
use crate::kernels::kv::{Buffers, KvElement, KvLayout, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask};

/// Scores of one row and head: a partition, and room for a last store of sixteen.
const SCORES: usize = PARTITION + LANES;
/// The most (row, head) pairs of a tile.
const MAX_PAIRS: usize = 12;

/// A thread's buffers, kept from walk to walk.
#[derive(Default)]
pub(super) struct WalkScratch {
    /// Scaled queries, `[tile][dimension][pair of the tile]`.
    queries: Vec<f32>,
    /// Scores, then weights, `[pair][key]`.
    scores: Vec<f32>,
    /// A partition's weighted sums of values, `[pair][padded dimension]`.
    partial: Vec<f32>,
    /// The combined sums so far, `[pair][padded dimension]`.
    sums: Vec<f32>,
    /// Each pair's largest score so far and sum of weights relative to it.
    maxima: Vec<f32>,
    totals: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<WalkScratch> = RefCell::new(WalkScratch::default());
}

impl WalkScratch {
    pub(super) fn with(use_it: impl FnOnce(&mut WalkScratch)) {
        SCRATCH.with_borrow_mut(use_it);
    }

    fn prepare(&mut self, pairs: usize, tiles: usize, dim: usize, padded: usize) {
        fn grow(buffer: &mut Vec<f32>, len: usize) {
            if buffer.len() < len {
                buffer.resize(len, 0.0);
            }
        }
        grow(&mut self.queries, tiles * MAX_PAIRS * dim);
        grow(&mut self.scores, MAX_PAIRS * SCORES);
        grow(&mut self.partial, MAX_PAIRS * padded);
        grow(&mut self.sums, pairs * padded);
        grow(&mut self.maxima, pairs);
        grow(&mut self.totals, pairs);
        self.maxima[..pairs].fill(f32::NEG_INFINITY);
        self.totals[..pairs].fill(0.0);
        self.sums[..pairs * padded].fill(0.0);
    }
}

pub(super) struct Walk<'a, T> {
    pub(super) plan: &'a AttentionPlan,
    pub(super) layout: &'a KvLayout,
    pub(super) buffers: &'a Buffers<T>,
    pub(super) task: &'a Task,
    pub(super) kv_head: usize,
    pub(super) queries: &'a [f32],
    pub(super) stride: usize,
    pub(super) out: SharedMut<f32>,
    pub(super) scratch: &'a mut WalkScratch,
}

/// Some (row, head) pairs that go through a micro-kernel together.
#[derive(Clone, Copy)]
struct Tile {
    index: usize,
    first: usize,
    count: usize,
    /// The micro-kernel's pairs, at least `count`.
    kernel: usize,
}

/// The pair counts that there are micro-kernels for.
const KERNEL_PAIRS: [usize; 8] = [1, 2, 3, 4, 6, 8, 10, 12];

impl<T: KvElement> SimdTask for Walk<'_, T> {
    type Output = ();

    /// # Safety
    /// All blocks of the tables are inside the buffers, and nobody else writes this KV head's part of
    /// the task's rows of `out`.
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let pairs = self.task.rows.len() * self.group();
        let tiles = pairs.div_ceil(S::MAX_ROWS.min(MAX_PAIRS));
        let (dim, padded) = (self.layout.head_dim, self.layout.padded_dim());
        self.scratch.prepare(pairs, tiles, dim, padded);
        let tile = |index: usize| {
            let first = pairs * index / tiles;
            let count = pairs * (index + 1) / tiles - first;
            let kernel = KERNEL_PAIRS
                .into_iter()
                .find(|&n| n >= count)
                .unwrap_or(count);
            Tile {
                index,
                first,
                count,
                kernel,
            }
        };
        (0..tiles).for_each(|index| self.pack_queries(tile(index)));
        let last = self.position(pairs - 1);
        let first = self.first_key(self.position(0));
        for partition in first / PARTITION..=last / PARTITION {
            for index in 0..tiles {
                // SAFETY: promised by the caller.
                unsafe { self.partition::<S>(partition, tile(index)) };
            }
        }
        // SAFETY: promised by the caller.
        unsafe { self.finish::<S>(pairs) };
    }
}

impl<T: KvElement> Walk<'_, T> {
    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.plan.shape().query_heads / self.layout.kv_heads
    }

    /// The position of a pair's row.
    fn position(&self, pair: usize) -> usize {
        self.plan
            .row(self.task.rows.start + pair / self.group())
            .position as usize
    }

    /// The first key that a row at `position` attends to.
    fn first_key(&self, position: usize) -> usize {
        self.plan
            .shape()
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn query_head(&self, pair: usize) -> usize {
        self.kv_head * self.group() + pair % self.group()
    }

    /// The pair's row number in the batch.
    fn row_number(&self, pair: usize) -> usize {
        self.plan
            .row_number(self.task.rows.start + pair / self.group())
    }

    fn pack_queries(&mut self, tile: Tile) {
        let (dim, scale) = (self.layout.head_dim, self.plan.shape().scale);
        for m in 0..tile.kernel {
            // Pairs that fill up repeat the last one; their results are not used.
            let pair = tile.first + m.min(tile.count - 1);
            let start = self.row_number(pair) * self.stride + self.query_head(pair) * dim;
            let query = &self.queries[start..][..dim];
            let packed = &mut self.scratch.queries[tile.index * MAX_PAIRS * dim..];
            for (d, &x) in query.iter().enumerate() {
                packed[d * tile.kernel + m] = x * scale;
            }
        }
    }

    /// One partition's part of a tile's attention, combined with what came before.
    ///
    /// # Safety
    /// As [`SimdTask::run`].
    #[inline(always)]
    unsafe fn partition<S: Simd>(&mut self, partition: usize, tile: Tile) {
        let start = partition * PARTITION;
        let last = self.position(tile.first + tile.count - 1);
        if last < start || self.first_key(self.position(tile.first)) >= start + PARTITION {
            return;
        }
        let keys = PARTITION.min(last + 1 - start);
        let size = self.layout.block_size;
        let table = self.plan.table(self.plan.row(self.task.rows.start).table);
        let blocks = &table[start / size..][..keys.div_ceil(size)];
        // SAFETY: promised by the caller; the scratch was grown for all pairs.
        unsafe {
            match tile.kernel {
                1 => self.tile::<S, 1>(blocks, start, keys, tile),
                2 => self.tile::<S, 2>(blocks, start, keys, tile),
                3 => self.tile::<S, 3>(blocks, start, keys, tile),
                4 => self.tile::<S, 4>(blocks, start, keys, tile),
                6 if S::MAX_ROWS >= 6 => self.tile::<S, 6>(blocks, start, keys, tile),
                8 if S::WIDE => self.tile::<S, 8>(blocks, start, keys, tile),
                10 if S::WIDE => self.tile::<S, 10>(blocks, start, keys, tile),
                12 if S::WIDE => self.tile::<S, 12>(blocks, start, keys, tile),
                pairs => unreachable!("no micro-kernel for {pairs} pairs"),
            }
        }
    }

    /// # Safety
    /// As [`SimdTask::run`]; `M` is the tile's kernel size.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(
        &mut self,
        blocks: &[BlockId],
        start: usize,
        keys: usize,
        tile: Tile,
    ) {
        let padded = self.layout.padded_dim();
        let mut maxima = [f32::NEG_INFINITY; M];
        let mut totals = [0.0f32; M];
        // SAFETY: promised by the caller.
        unsafe {
            self.scores::<S, M>(blocks, tile);
            for m in 0..tile.count {
                let position = self.position(tile.first + m);
                let scores = &mut self.scratch.scores[m * SCORES..][..SCORES];
                let own = self
                    .plan
                    .shape()
                    .window
                    .map_or(0, |w| (position + 1).saturating_sub(w));
                // Keys that this row does not see weigh nothing: the rest is as if they were not there.
                let (from, to) = (
                    own.saturating_sub(start),
                    (position + 1).saturating_sub(start),
                );
                let end = keys.next_multiple_of(LANES);
                scores[to.min(end)..end].fill(f32::NEG_INFINITY);
                scores[..from.min(end)].fill(f32::NEG_INFINITY);
                (maxima[m], totals[m]) = weigh::<S>(&mut scores[..end]);
            }
            self.values::<S, M>(blocks, keys);
            for m in 0..tile.count {
                if maxima[m] == f32::NEG_INFINITY {
                    continue;
                }
                let pair = tile.first + m;
                let partial = &self.scratch.partial[m * padded..][..padded];
                let sums = &mut self.scratch.sums[pair * padded..][..padded];
                let (maximum, total) = (
                    &mut self.scratch.maxima[pair],
                    &mut self.scratch.totals[pair],
                );
                combine::<S>(maximum, total, sums, maxima[m], totals[m], partial);
            }
        }
    }

    /// Scores of all keys of the blocks, `[pair][key]`.
    ///
    /// # Safety
    /// As [`Self::tile`].
    #[inline(always)]
    unsafe fn scores<S: Simd, const M: usize>(&mut self, blocks: &[BlockId], tile: Tile) {
        let size = self.layout.block_size;
        let dim = self.layout.head_dim;
        let queries = self.scratch.queries[tile.index * MAX_PAIRS * dim..].as_ptr();
        let scores = self.scratch.scores.as_mut_ptr();
        for (index, &block) in blocks.iter().enumerate() {
            // SAFETY: the block is inside the buffer, which has sixteen more elements behind its last
            // block; the scratch has room for sixteen more scores than a partition has.
            unsafe {
                let keys = self
                    .buffers
                    .keys
                    .as_ptr()
                    .add(self.layout.key_start(block, self.kv_head));
                let mut slot = 0;
                while slot < size {
                    let to = scores.add(index * size + slot);
                    if S::WIDE && size - slot >= 2 * LANES {
                        score::<S, T, M, 2>(keys.add(slot), size, queries, dim, to);
                        slot += 2 * LANES;
                    } else {
                        score::<S, T, M, 1>(keys.add(slot), size, queries, dim, to);
                        slot += LANES;
                    }
                }
            }
        }
    }

    /// Weighted sums of the values of the first `keys` keys.
    ///
    /// # Safety
    /// As [`Self::tile`].
    #[inline(always)]
    unsafe fn values<S: Simd, const M: usize>(&mut self, blocks: &[BlockId], keys: usize) {
        let padded = self.layout.padded_dim();
        let mut from = 0;
        while from < padded {
            let vectors = (padded - from) / LANES;
            // SAFETY: promised by the caller.
            let done = unsafe {
                match M {
                    ..=2 if S::WIDE && vectors >= 8 => {
                        self.value_part::<S, M, 8>(blocks, keys, from)
                    }
                    ..=6 if S::WIDE && vectors >= 4 => {
                        self.value_part::<S, M, 4>(blocks, keys, from)
                    }
                    _ if S::WIDE && vectors >= 2 => self.value_part::<S, M, 2>(blocks, keys, from),
                    _ => self.value_part::<S, M, 1>(blocks, keys, from),
                }
            };
            from += done * LANES;
        }
    }

    /// `N` vectors of dimensions from `from` on.
    ///
    /// # Safety
    /// As [`Self::tile`]; there are that many dimensions.
    #[inline(always)]
    unsafe fn value_part<S: Simd, const M: usize, const N: usize>(
        &mut self,
        blocks: &[BlockId],
        keys: usize,
        from: usize,
    ) -> usize {
        let (size, padded) = (self.layout.block_size, self.layout.padded_dim());
        let weights = self.scratch.scores.as_ptr();
        // SAFETY: blocks, slots and dimensions are inside the buffers.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            for (index, &block) in blocks.iter().enumerate() {
                let start = self.layout.value_start(block, self.kv_head) + from;
                let mut values = self.buffers.values.as_ptr().add(start);
                let first = index * size;
                for key in first..keys.min(first + size) {
                    let loaded: [S::F; N] =
                        std::array::from_fn(|n| T::load::<S>(values.add(n * LANES)));
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let weight = S::splat(*weights.add(m * SCORES + key));
                        for n in 0..N {
                            sums[n] = S::fma(loaded[n], weight, sums[n]);
                        }
                    }
                    values = values.add(padded);
                }
            }
            for (m, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    let to = &mut self.scratch.partial[m * padded + from + n * LANES..][..LANES];
                    // A negative zero, which only rounding leaves, becomes the zero that a masked
                    // key behind it would make of it.
                    S::store(to.as_mut_ptr(), S::add(sum, S::splat(0.0)));
                }
            }
        }
        N
    }

    /// Writes the results.
    ///
    /// # Safety
    /// As [`SimdTask::run`].
    #[inline(always)]
    unsafe fn finish<S: Simd>(&mut self, pairs: usize) {
        let (dim, padded) = (self.layout.head_dim, self.layout.padded_dim());
        let width = self.plan.shape().query_heads * dim;
        for pair in 0..pairs {
            let start = self.row_number(pair) * width + self.query_head(pair) * dim;
            // SAFETY: this row's part of `out` for this head is this walk's own.
            unsafe {
                let out = self.out.slice(start, dim);
                let total = S::splat(self.scratch.totals[pair]);
                let sums = &self.scratch.sums[pair * padded..][..padded];
                for at in (0..dim).step_by(LANES) {
                    let sum = S::load(sums[at..].as_ptr());
                    let end = dim.min(at + LANES);
                    store_part::<S>(&mut out[at..end], S::div(sum, total));
                }
            }
        }
    }
}

/// Scores of `N` vectors of keys against `M` queries: one chain of multiply-adds along the dimensions.
///
/// # Safety
/// `keys` has `dim` rows of `size` elements of which `N` vectors can be loaded, `queries` `dim × M`
/// numbers, and `to` room for `N` vectors in each of `M` rows of scores.
#[inline(always)]
unsafe fn score<S: Simd, T: KvElement, const M: usize, const N: usize>(
    mut keys: *const T,
    size: usize,
    mut queries: *const f32,
    dim: usize,
    to: *mut f32,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; M];
        for _ in 0..dim {
            let loaded: [S::F; N] = std::array::from_fn(|n| T::load::<S>(keys.add(n * LANES)));
            for (m, sums) in sums.iter_mut().enumerate() {
                let query = S::splat(*queries.add(m));
                for n in 0..N {
                    sums[n] = S::fma(loaded[n], query, sums[n]);
                }
            }
            keys = keys.wrapping_add(size);
            queries = queries.add(M);
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                S::store(to.add(m * SCORES + n * LANES), sum);
            }
        }
    }
}

/// Turns scores into `e^(score - maximum)`; gives the maximum and the sum. Whole vectors.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn weigh<S: Simd>(scores: &mut [f32]) -> (f32, f32) {
    // SAFETY: all accesses are whole chunks of sixteen.
    unsafe {
        let mut largest = S::splat(f32::NEG_INFINITY);
        for chunk in scores.chunks_exact(LANES) {
            largest = S::max(largest, S::load(chunk.as_ptr()));
        }
        let maximum = S::max_lane(largest);
        if maximum == f32::NEG_INFINITY {
            scores.fill(0.0);
            return (maximum, 0.0);
        }
        let shift = S::splat(maximum);
        let mut total = S::splat(0.0);
        for chunk in scores.chunks_exact_mut(LANES) {
            let weight = S::exp(S::sub(S::load(chunk.as_ptr()), shift));
            S::store(chunk.as_mut_ptr(), weight);
            total = S::add(total, weight);
        }
        (maximum, S::sum(total))
    }
}

/// Adds a partition's result to what the partitions before it gave.
///
/// # Safety
/// As [`Simd`]; both sums are whole vectors of the same length.
#[inline(always)]
unsafe fn combine<S: Simd>(
    maximum: &mut f32,
    total: &mut f32,
    sums: &mut [f32],
    new_maximum: f32,
    new_total: f32,
    partial: &[f32],
) {
    if *maximum == f32::NEG_INFINITY {
        (*maximum, *total) = (new_maximum, new_total);
        sums.copy_from_slice(partial);
        return;
    }
    // SAFETY: all accesses are whole chunks of sixteen.
    unsafe {
        let both = f32::max(*maximum, new_maximum);
        let mut shifts = [0.0f32; LANES];
        shifts[0] = *maximum - both;
        shifts[1] = new_maximum - both;
        let factors = S::exp(S::load(shifts.as_ptr()));
        S::store(shifts.as_mut_ptr(), factors);
        let [old, new] = [shifts[0], shifts[1]];
        *maximum = both;
        *total = *total * old + new_total * new;
        let (old, new) = (S::splat(old), S::splat(new));
        for (sum, partial) in sums
            .chunks_exact_mut(LANES)
            .zip(partial.chunks_exact(LANES))
        {
            let scaled = S::mul(S::load(sum.as_ptr()), old);
            S::store(
                sum.as_mut_ptr(),
                S::fma(S::load(partial.as_ptr()), new, scaled),
            );
        }
    }
}
