//! One KV head's walk through the partitions of a task.

use std::cell::RefCell;
use std::ops::Range;

use super::PARTITION;
use super::micro::{
    Blocks, Combine, MAX_PAIRS, SCORES, State, Weigh, kernel_pairs, max_pairs, scores, values,
};
use super::plan::{AttentionPlan, Task};
use crate::kernels::SharedMut;
use crate::kernels::isa::Isa;
use crate::kernels::kv::{Buffers, KvElement, KvLayout};
use crate::kernels::simd::{LANES, dispatch};

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
    /// Each pair's largest score so far, and sum of weights relative to it.
    maxima: Vec<f32>,
    totals: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<WalkScratch> = RefCell::new(WalkScratch::default());
}

pub(super) fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

impl WalkScratch {
    pub(super) fn with(use_it: impl FnOnce(&mut WalkScratch)) {
        SCRATCH.with_borrow_mut(use_it);
    }

    fn prepare(&mut self, pairs: usize, tiles: usize, dim: usize, padded: usize) {
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

/// The states of rows between levels: for each row and query head the maximum, the total and the sums.
#[derive(Clone, Copy)]
pub(super) struct States {
    numbers: SharedMut<f32>,
    heads: usize,
    length: usize,
}

impl States {
    pub(super) fn new(numbers: &mut Vec<f32>, plan: &AttentionPlan, layout: &KvLayout) -> Self {
        let (heads, length) = (plan.shape().query_heads, 2 + layout.padded_dim());
        grow(numbers, plan.state_rows() * heads * length);
        Self {
            numbers: SharedMut::new(numbers),
            heads,
            length,
        }
    }

    /// # Safety
    /// Nobody else uses this row's state of this head.
    unsafe fn of<'a>(self, row: usize, head: usize) -> &'a mut [f32] {
        // SAFETY: promised by the caller; the buffer was grown to hold all rows.
        unsafe {
            self.numbers
                .slice((row * self.heads + head) * self.length, self.length)
        }
    }
}

/// The largest score and the sum of weights of no keys.
const NOTHING: (f32, f32) = (f32::NEG_INFINITY, 0.0);

/// Adds a partition's result to a pair's state.
///
/// # Safety
/// The ISA is available; `partial` and the state's sums are as long as each other, in whole vectors.
unsafe fn combine(isa: Isa, state: State<'_>, (maximum, total): (f32, f32), partial: &[f32]) {
    if maximum == f32::NEG_INFINITY {
        return;
    }
    let task = Combine {
        state,
        maximum,
        total,
        partial,
    };
    // SAFETY: promised by the caller.
    unsafe { dispatch(isa, task) }
}

/// Results of single partitions of one task and KV head, for each partition and pair the largest score,
/// the sum of weights and the weighted sums of values.
#[derive(Clone, Copy)]
pub(super) struct Partials {
    numbers: SharedMut<f32>,
    first_partition: usize,
    pairs: usize,
    /// Numbers of one result.
    length: usize,
}

impl Partials {
    /// Numbers that the results of `partitions` for `pairs` take.
    pub(super) fn size(partitions: usize, pairs: usize, layout: &KvLayout) -> usize {
        partitions * pairs * (2 + layout.padded_dim())
    }

    /// Results from number `start` of `numbers` on.
    pub(super) fn new(
        numbers: SharedMut<f32>,
        start: usize,
        task: &Task,
        pairs: usize,
        layout: &KvLayout,
    ) -> Self {
        Self {
            numbers: SharedMut(numbers.at(start)),
            first_partition: task.partitions.start,
            pairs,
            length: 2 + layout.padded_dim(),
        }
    }

    /// # Safety
    /// The partition is one of the task's, the buffer holds [`Self::size`] numbers, and nobody else uses
    /// this result.
    unsafe fn of<'a>(self, partition: usize, pair: usize) -> &'a mut [f32] {
        let place = (partition - self.first_partition) * self.pairs + pair;
        // SAFETY: promised by the caller.
        unsafe { self.numbers.slice(place * self.length, self.length) }
    }
}

pub(super) struct Walk<'a, T> {
    pub(super) isa: Isa,
    pub(super) plan: &'a AttentionPlan,
    pub(super) layout: &'a KvLayout,
    pub(super) buffers: &'a Buffers<T>,
    pub(super) task: &'a Task,
    pub(super) kv_head: usize,
    pub(super) queries: &'a [f32],
    pub(super) stride: usize,
    pub(super) out: SharedMut<f32>,
    pub(super) states: States,
    pub(super) scratch: &'a mut WalkScratch,
}

/// Some (row, head) pairs that go through the micro-kernels together.
#[derive(Clone, Copy)]
struct Tile {
    index: usize,
    first: usize,
    count: usize,
    /// The micro-kernel's pairs, at least `count`.
    kernel: usize,
    /// The first and last key that any of its rows attends to.
    first_key: usize,
    last_key: usize,
}

impl<T: KvElement> Walk<'_, T> {
    /// # Safety
    /// The ISA is available, all blocks of the tables are inside the buffers, and nobody else uses this
    /// KV head's part of the task's rows of `out` and of the states.
    pub(super) unsafe fn run(mut self) {
        let (pairs, count) = self.prepare();
        // SAFETY: promised by the caller, here and below.
        unsafe { self.load_states(pairs) };
        for partition in self.task.partitions.clone() {
            for index in 0..count {
                let tile = self.tile(index, count, pairs);
                if let Some(found) = unsafe { self.partition(partition, tile) } {
                    for (m, &found) in found.iter().enumerate().take(tile.count) {
                        let padded = self.layout.padded_dim();
                        let scratch = &mut *self.scratch;
                        let partial = &scratch.partial[m * padded..][..padded];
                        let state = State {
                            maximum: &mut scratch.maxima[tile.first + m],
                            total: &mut scratch.totals[tile.first + m],
                            sums: &mut scratch.sums[(tile.first + m) * padded..][..padded],
                        };
                        unsafe { combine(self.isa, state, found, partial) };
                    }
                }
            }
        }
        unsafe { self.finish(pairs) };
    }

    /// Works out some of the task's partitions and keeps the results, for [`Self::gather`] to combine.
    ///
    /// # Safety
    /// As [`Self::run`], but what nobody else uses are these partitions' parts of `results`.
    pub(super) unsafe fn spread(mut self, partitions: Range<usize>, results: Partials) {
        let (pairs, count) = self.prepare();
        for partition in partitions {
            for index in 0..count {
                let tile = self.tile(index, count, pairs);
                // SAFETY: promised by the caller, here and below.
                let found = unsafe { self.partition(partition, tile) };
                for m in 0..tile.count {
                    let padded = self.layout.padded_dim();
                    let kept = unsafe { results.of(partition, tile.first + m) };
                    (kept[0], kept[1]) = found.map_or(NOTHING, |found| found[m]);
                    if kept[0] != f32::NEG_INFINITY {
                        kept[2..].copy_from_slice(&self.scratch.partial[m * padded..][..padded]);
                    }
                }
            }
        }
    }

    /// Combines what [`Self::spread`] has kept of all the task's partitions, in the order in which
    /// [`Self::run`] does: the bits are the same.
    ///
    /// # Safety
    /// As [`Self::run`]; `results` holds all of the task's partitions, and nobody writes them.
    pub(super) unsafe fn gather(mut self, results: Partials) {
        let (pairs, _) = self.prepare();
        // SAFETY: promised by the caller, here and below.
        unsafe { self.load_states(pairs) };
        let padded = self.layout.padded_dim();
        for partition in self.task.partitions.clone() {
            for pair in 0..pairs {
                let kept = unsafe { results.of(partition, pair) };
                let scratch = &mut *self.scratch;
                let state = State {
                    maximum: &mut scratch.maxima[pair],
                    total: &mut scratch.totals[pair],
                    sums: &mut scratch.sums[pair * padded..][..padded],
                };
                unsafe { combine(self.isa, state, (kept[0], kept[1]), &kept[2..]) };
            }
        }
        unsafe { self.finish(pairs) };
    }

    /// Packs the queries and empties the states; gives the number of pairs and of tiles.
    fn prepare(&mut self) -> (usize, usize) {
        let pairs = self.task.rows.len() * self.group();
        let count = pairs.div_ceil(max_pairs(self.isa));
        self.scratch
            .prepare(pairs, count, self.layout.head_dim, self.layout.padded_dim());
        for index in 0..count {
            let tile = self.tile(index, count, pairs);
            self.pack_queries(tile);
        }
        (pairs, count)
    }

    /// Tile `index` of `count`, as equal as possible.
    fn tile(&self, index: usize, count: usize, pairs: usize) -> Tile {
        let first = pairs * index / count;
        let end = pairs * (index + 1) / count;
        let mut tile = Tile {
            index,
            first,
            count: end - first,
            kernel: kernel_pairs(end - first),
            first_key: usize::MAX,
            last_key: 0,
        };
        for pair in first..end {
            let position = self.position(pair);
            tile.first_key = tile.first_key.min(self.plan.shape().first_key(position));
            tile.last_key = tile.last_key.max(position);
        }
        tile
    }

    /// Query heads of a KV head.
    fn group(&self) -> usize {
        self.plan.shape().query_heads / self.layout.kv_heads
    }

    /// The place, in the plan's order, of a pair's row.
    fn place(&self, pair: usize) -> usize {
        self.task.rows.start + pair / self.group()
    }

    /// The position of a pair's row.
    fn position(&self, pair: usize) -> usize {
        self.plan.row(self.place(pair)).position as usize
    }

    fn query_head(&self, pair: usize) -> usize {
        self.kv_head * self.group() + pair % self.group()
    }

    fn pack_queries(&mut self, tile: Tile) {
        let (dim, scale) = (self.layout.head_dim, self.plan.shape().scale);
        for m in 0..tile.kernel {
            // Pairs that fill up repeat the last one; their results are not used.
            let pair = tile.first + m.min(tile.count - 1);
            let row = self.plan.row_number(self.place(pair));
            let query = &self.queries[row * self.stride + self.query_head(pair) * dim..][..dim];
            let packed = &mut self.scratch.queries[tile.index * MAX_PAIRS * dim..];
            for (packed, &x) in packed[m..].iter_mut().step_by(tile.kernel).zip(query) {
                *packed = x * scale;
            }
        }
    }

    /// Continues where the levels before ended.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn load_states(&mut self, pairs: usize) {
        if self.plan.begins(self.task) {
            return;
        }
        let padded = self.layout.padded_dim();
        for pair in 0..pairs {
            let place = self.place(pair);
            if let Some(row) = self.plan.state(place)
                && self.plan.takes_part(self.task, place)
            {
                // SAFETY: promised by the caller.
                let state = unsafe { self.states.of(row, self.query_head(pair)) };
                self.scratch.maxima[pair] = state[0];
                self.scratch.totals[pair] = state[1];
                self.scratch.sums[pair * padded..][..padded].copy_from_slice(&state[2..]);
            }
        }
    }

    /// One partition's part of a tile's attention: each pair's largest score and sum of weights; the
    /// weighted sums of values are in the scratch. `None` where no pair sees a key.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn partition(
        &mut self,
        partition: usize,
        tile: Tile,
    ) -> Option<[(f32, f32); MAX_PAIRS]> {
        let start = partition * PARTITION;
        if tile.last_key < start || tile.first_key >= start + PARTITION {
            return None;
        }
        let (layout, isa) = (self.layout, self.isa);
        let (dim, padded, size) = (layout.head_dim, layout.padded_dim(), layout.block_size);
        let keys = PARTITION.min(tile.last_key + 1 - start);
        let table = self.plan.table(self.plan.row(self.place(tile.first)).table);
        let blocks = &table[start / size..(start + keys).div_ceil(size)];
        let (first_slot, block_size) = (start % size, size);
        let [zero, one] = [0, 1].map(crate::ids::BlockId);
        let scales_of = |scales: &[f32]| match scales.get(layout.scale_start(zero, self.kv_head)..)
        {
            Some(scales) => scales.as_ptr(),
            None => std::ptr::null(),
        };
        let key_blocks = Blocks {
            base: self.buffers.keys[layout.key_start(zero, self.kv_head)..].as_ptr(),
            block_length: layout.key_start(one, 0),
            scales: scales_of(&self.buffers.key_scales),
            scale_length: layout.scale_start(one, 0),
            scale_count: layout.scales(),
            blocks,
            first_slot,
            block_size,
            keys,
        };
        let value_blocks = Blocks {
            base: self.buffers.values[layout.value_start(zero, self.kv_head)..].as_ptr(),
            block_length: layout.value_start(one, 0),
            scales: scales_of(&self.buffers.value_scales),
            ..key_blocks
        };
        let mut found = [NOTHING; MAX_PAIRS];
        let queries = &self.scratch.queries[tile.index * MAX_PAIRS * dim..];
        // SAFETY: promised by the caller; the scratch was grown for all pairs.
        unsafe {
            scores(
                isa,
                tile.kernel,
                key_blocks,
                queries,
                dim,
                &mut self.scratch.scores,
            )
        };
        for (m, found) in found.iter_mut().enumerate().take(tile.count) {
            let position = self.position(tile.first + m);
            let first_key = self.plan.shape().first_key(position);
            let row = &mut self.scratch.scores[m * SCORES..][..keys.next_multiple_of(LANES)];
            // Keys that this row does not see weigh nothing: it is as if they were not there.
            let from = first_key.saturating_sub(start).min(row.len());
            let to = (position + 1).saturating_sub(start).min(row.len());
            row[..from].fill(f32::NEG_INFINITY);
            row[to..].fill(f32::NEG_INFINITY);
            // SAFETY: the ISA is available.
            *found = unsafe { dispatch(isa, Weigh(row)) };
        }
        let (weights, partial) = (&self.scratch.scores, &mut self.scratch.partial);
        // SAFETY: as for the scores.
        unsafe { values(isa, tile.kernel, value_blocks, weights, padded, partial) };
        Some(found)
    }

    /// Writes the results of rows that end here, and the states of those that go on.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn finish(&mut self, pairs: usize) {
        let (dim, padded) = (self.layout.head_dim, self.layout.padded_dim());
        let width = self.plan.shape().query_heads * dim;
        for pair in 0..pairs {
            let (place, head) = (self.place(pair), self.query_head(pair));
            if !self.plan.takes_part(self.task, place) {
                continue;
            }
            let total = self.scratch.totals[pair];
            let sums = &self.scratch.sums[pair * padded..][..padded];
            if self.plan.ends(self.task, place) {
                let start = self.plan.row_number(place) * width + head * dim;
                // SAFETY: this row's part of `out` for this head is this walk's own.
                let out = unsafe { self.out.slice(start, dim) };
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = sum / total;
                }
            } else if let Some(row) = self.plan.state(place) {
                // SAFETY: promised by the caller.
                let state = unsafe { self.states.of(row, head) };
                state[0] = self.scratch.maxima[pair];
                state[1] = total;
                state[2..].copy_from_slice(sums);
            }
        }
    }
}
