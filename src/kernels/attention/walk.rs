//! One KV head's walk through the partitions of a task.

use std::cell::RefCell;
use std::ops::Range;

use super::PARTITION;
use super::micro::{
    Blocks, Combine, Gathered, MAX_PAIRS, SCORES, Weigh, kernel_pairs, max_pairs, scores, values,
};
use super::plan::{AttentionPlan, Task};
#[cfg(target_arch = "x86_64")]
use super::products::Products;
#[cfg(target_arch = "x86_64")]
use super::tile_walk::Sight;
#[cfg(target_arch = "x86_64")]
use super::tiles::TileScratch;
use crate::ids::BlockId;
use crate::kernels::SharedMut;
use crate::kernels::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::kernels::kv::tiles::TileBlocks;
use crate::kernels::kv::{Buffers, KvElement, KvLayout};
use crate::kernels::simd::{LANES, dispatch};

/// What a walk reads. How scores and sums of values are computed follows from it.
pub(super) enum Source<'a, T> {
    /// Numbers, for `f32` multiply-adds, the same on every instruction set.
    Numbers(&'a Buffers<T>),
    /// Matrix tiles, or their twin, with operands rounded to `bf16`.
    #[cfg(target_arch = "x86_64")]
    Tiles(&'a TileBlocks),
}

/// A thread's buffers, kept from walk to walk.
#[derive(Default)]
pub(super) struct WalkScratch {
    /// Scaled queries, `[tile][dimension][pair of the tile]`.
    queries: Vec<f32>,
    /// Scores, then weights, `[pair][key]`.
    scores: Vec<f32>,
    /// A partition's weighted sums of values, `[pair][padded dimension]`.
    partial: Vec<f32>,
    /// Each pair's largest score of the partition, and its sum of weights.
    partial_maxima: Vec<f32>,
    partial_totals: Vec<f32>,
    pub(super) states: WalkStates,
    #[cfg(target_arch = "x86_64")]
    pub(super) tiles: TileScratch,
    #[cfg(target_arch = "x86_64")]
    pub(super) sight: Sight,
}

/// What a walk's pairs have gathered so far.
#[derive(Default)]
pub(super) struct WalkStates {
    /// The combined sums, `[pair][padded dimension]`.
    sums: Vec<f32>,
    /// Each pair's largest score, and sum of weights relative to it.
    maxima: Vec<f32>,
    totals: Vec<f32>,
}

/// What some pairs find in a partition.
pub(super) struct Found<'a> {
    pub(super) pairs: Range<usize>,
    /// For each of them the largest score, and the sum of weights.
    pub(super) maxima: &'a [f32],
    pub(super) totals: &'a [f32],
    /// Their weighted sums of values, `stride` numbers from one pair to the next.
    pub(super) partial: &'a [f32],
    pub(super) stride: usize,
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

    fn prepare_vectors(&mut self, tiles: usize, dim: usize, padded: usize) {
        grow(&mut self.queries, tiles * MAX_PAIRS * dim);
        grow(&mut self.scores, MAX_PAIRS * SCORES);
        // The last tile's micro-kernel may have more pairs than the tile.
        grow(&mut self.partial, tiles * MAX_PAIRS * padded);
    }

    fn prepare_partials(&mut self, pairs: usize) {
        grow(&mut self.partial_maxima, pairs);
        grow(&mut self.partial_totals, pairs);
    }
}

impl WalkStates {
    fn prepare(&mut self, pairs: usize, padded: usize) {
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
    pub(super) source: Source<'a, T>,
    pub(super) task: &'a Task,
    pub(super) kv_head: usize,
    /// What the thread most likely walks next: walks on tiles ask for it.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code))]
    pub(super) next: Option<(&'a Task, usize)>,
    pub(super) queries: &'a [f32],
    pub(super) stride: usize,
    pub(super) out: SharedMut<f32>,
    pub(super) states: States,
    pub(super) scratch: &'a mut WalkScratch,
}

/// How a walk computes.
enum Means<'a, T> {
    /// With micro-kernels that take so many tiles of pairs.
    Vectors {
        tiles: usize,
        buffers: &'a Buffers<T>,
    },
    #[cfg(target_arch = "x86_64")]
    Tiles(Products, &'a TileBlocks),
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

impl<'a, T: KvElement> Walk<'a, T> {
    /// # Safety
    /// The ISA is available, all blocks of the tables are inside the buffers, and nobody else uses this
    /// KV head's part of the task's rows of `out` and of the states.
    pub(super) unsafe fn run(mut self) {
        let pairs = self.pairs();
        // SAFETY: promised by the caller, here and below.
        let means = unsafe { self.prepare(pairs) };
        unsafe { self.load_states(pairs) };
        let (isa, padded, partitions) = (
            self.isa,
            self.layout.padded_dim(),
            self.task.partitions.clone(),
        );
        unsafe {
            self.work(means, partitions, |states, _, found| {
                let pairs = found.pairs;
                let task = Combine {
                    gathered: Gathered {
                        maxima: &mut states.maxima[pairs.clone()],
                        totals: &mut states.totals[pairs.clone()],
                        sums: &mut states.sums[pairs.start * padded..pairs.end * padded],
                    },
                    maxima: found.maxima,
                    totals: found.totals,
                    partial: found.partial,
                    stride: found.stride,
                    padded,
                };
                dispatch(isa, task);
            });
        }
        unsafe { self.finish(pairs) };
    }

    /// Works out some of the task's partitions and keeps the results, for [`Self::gather`] to combine.
    ///
    /// # Safety
    /// As [`Self::run`], but what nobody else uses are these partitions' parts of `results`.
    pub(super) unsafe fn spread(mut self, partitions: Range<usize>, results: Partials) {
        let pairs = self.pairs();
        // SAFETY: promised by the caller, here and below.
        let means = unsafe { self.prepare(pairs) };
        let padded = self.layout.padded_dim();
        for partition in partitions.clone() {
            for pair in 0..pairs {
                // What follows passes over pairs that see nothing of a partition.
                let kept = unsafe { results.of(partition, pair) };
                kept[0] = f32::NEG_INFINITY;
            }
        }
        unsafe {
            self.work(means, partitions, |_, partition, found| {
                for (index, pair) in found.pairs.enumerate() {
                    let kept = results.of(partition, pair);
                    kept[0] = found.maxima[index];
                    kept[1] = found.totals[index];
                    if kept[0] != f32::NEG_INFINITY {
                        kept[2..].copy_from_slice(&found.partial[index * found.stride..][..padded]);
                    }
                }
            });
        }
    }

    /// Gives what the task's pairs find in each of some partitions, in order.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn work(
        &mut self,
        means: Means<'_, T>,
        partitions: Range<usize>,
        mut take: impl FnMut(&mut WalkStates, usize, Found<'_>),
    ) {
        match means {
            Means::Vectors { tiles, buffers } => {
                let (pairs, stride) = (self.pairs(), self.layout.padded_dim());
                for partition in partitions {
                    for index in 0..tiles {
                        let tile = self.tile(index, tiles, pairs);
                        // SAFETY: promised by the caller.
                        unsafe { self.with_vectors(buffers, partition * PARTITION, tile) };
                    }
                    let scratch = &mut *self.scratch;
                    let found = Found {
                        pairs: 0..pairs,
                        maxima: &scratch.partial_maxima,
                        totals: &scratch.partial_totals,
                        partial: &scratch.partial,
                        stride,
                    };
                    take(&mut scratch.states, partition, found);
                }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: promised by the caller.
            Means::Tiles(mut products, blocks) => unsafe {
                self.with_tiles(&mut products, blocks, partitions, take);
            },
        }
    }

    /// Combines what [`Self::spread`] has kept of all the task's partitions, in the order in which
    /// [`Self::run`] does: the bits are the same.
    ///
    /// # Safety
    /// As [`Self::run`]; `results` holds all of the task's partitions, and nobody writes them.
    pub(super) unsafe fn gather(mut self, results: Partials) {
        let (pairs, padded) = (self.pairs(), self.layout.padded_dim());
        self.scratch.states.prepare(pairs, padded);
        // SAFETY: promised by the caller, here and below.
        unsafe { self.load_states(pairs) };
        for partition in self.task.partitions.clone() {
            for pair in 0..pairs {
                let kept = unsafe { results.of(partition, pair) };
                let states = &mut self.scratch.states;
                let task = Combine {
                    gathered: Gathered {
                        maxima: &mut states.maxima[pair..=pair],
                        totals: &mut states.totals[pair..=pair],
                        sums: &mut states.sums[pair * padded..][..padded],
                    },
                    maxima: &kept[..1],
                    totals: &kept[1..2],
                    partial: &kept[2..],
                    stride: padded,
                    padded,
                };
                unsafe { dispatch(self.isa, task) };
            }
        }
        unsafe { self.finish(pairs) };
    }

    /// Packs the queries and empties the states.
    ///
    /// # Safety
    /// The ISA is available.
    unsafe fn prepare(&mut self, pairs: usize) -> Means<'a, T> {
        let (dim, padded) = (self.layout.head_dim, self.layout.padded_dim());
        self.scratch.states.prepare(pairs, padded);
        match self.source {
            Source::Numbers(buffers) => {
                let tiles = pairs.div_ceil(max_pairs(self.isa));
                self.scratch.prepare_vectors(tiles, dim, padded);
                self.scratch.prepare_partials(pairs);
                for index in 0..tiles {
                    let tile = self.tile(index, tiles, pairs);
                    self.pack_queries(tile);
                }
                Means::Vectors { tiles, buffers }
            }
            #[cfg(target_arch = "x86_64")]
            Source::Tiles(blocks) => {
                self.scratch.tiles.prepare(pairs, dim, padded);
                for pair in 0..pairs {
                    let (query, scale) = (self.query(pair), self.plan.shape().scale);
                    // SAFETY: promised by the caller, here and below.
                    unsafe { self.scratch.tiles.pack_query(self.isa, pair, query, scale) };
                }
                Means::Tiles(unsafe { Products::new(self.isa, pairs) }, blocks)
            }
        }
    }

    /// Tile `index` of `count`, as equal as possible.
    fn tile(&self, index: usize, count: usize, pairs: usize) -> Tile {
        let first = pairs * index / count;
        let end = pairs * (index + 1) / count;
        let (first_key, last_key) = self.keys_seen(first..end);
        Tile {
            index,
            first,
            count: end - first,
            kernel: kernel_pairs(end - first),
            first_key,
            last_key,
        }
    }

    /// The first and the last key that any of some pairs attends to.
    fn keys_seen(&self, pairs: Range<usize>) -> (usize, usize) {
        let mut seen = (usize::MAX, 0);
        for pair in pairs {
            let position = self.position(pair);
            seen.0 = seen.0.min(self.plan.shape().first_key(position));
            seen.1 = seen.1.max(position);
        }
        seen
    }

    /// The task's pairs of a row and a query head.
    pub(super) fn pairs(&self) -> usize {
        self.task.rows.len() * self.group()
    }

    /// Query heads of a KV head.
    pub(super) fn group(&self) -> usize {
        self.plan.shape().query_heads / self.layout.kv_heads
    }

    /// The place, in the plan's order, of a pair's row.
    fn place(&self, pair: usize) -> usize {
        self.task.rows.start + pair / self.group()
    }

    /// The position of a pair's row.
    pub(super) fn position(&self, pair: usize) -> usize {
        self.plan.row(self.place(pair)).position as usize
    }

    fn query_head(&self, pair: usize) -> usize {
        self.kv_head * self.group() + pair % self.group()
    }

    /// A pair's query.
    fn query(&self, pair: usize) -> &'a [f32] {
        let dim = self.layout.head_dim;
        let row = self.plan.row_number(self.place(pair));
        &self.queries[row * self.stride + self.query_head(pair) * dim..][..dim]
    }

    fn pack_queries(&mut self, tile: Tile) {
        let (dim, scale) = (self.layout.head_dim, self.plan.shape().scale);
        for m in 0..tile.kernel {
            // Pairs that fill up repeat the last one; their results are not used.
            let pair = tile.first + m.min(tile.count - 1);
            let query = self.query(pair);
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
                let states = &mut self.scratch.states;
                states.maxima[pair] = state[0];
                states.totals[pair] = state[1];
                states.sums[pair * padded..][..padded].copy_from_slice(&state[2..]);
            }
        }
    }

    /// The keys and values of a partition that begins at `start`.
    fn blocks<'b>(
        &self,
        buffers: &Buffers<T>,
        table: &'b [BlockId],
        start: usize,
        keys: usize,
    ) -> (Blocks<'b, T>, Blocks<'b, T>) {
        let (layout, size) = (self.layout, self.layout.block_size);
        let [zero, one] = [0, 1].map(BlockId);
        let scales_of = |scales: &[f32]| match scales.get(layout.scale_start(zero, self.kv_head)..)
        {
            Some(scales) => scales.as_ptr(),
            None => std::ptr::null(),
        };
        let key_blocks = Blocks {
            base: buffers.keys[layout.key_start(zero, self.kv_head)..].as_ptr(),
            block_length: layout.key_start(one, 0),
            scales: scales_of(&buffers.key_scales),
            scale_length: layout.scale_start(one, 0),
            scale_count: layout.scales(),
            blocks: &table[start / size..(start + keys).div_ceil(size)],
            first_slot: start % size,
            block_size: size,
            keys,
        };
        let value_blocks = Blocks {
            base: buffers.values[layout.value_start(zero, self.kv_head)..].as_ptr(),
            block_length: layout.value_start(one, 0),
            scales: scales_of(&buffers.value_scales),
            ..key_blocks
        };
        (key_blocks, value_blocks)
    }

    /// One partition's part of a tile's attention, from [`Source::Numbers`]: each pair's largest score and sum of
    /// weights, and the weighted sums of values, all in the scratch.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn with_vectors(&mut self, buffers: &Buffers<T>, start: usize, tile: Tile) {
        self.scratch.partial_maxima[tile.first..tile.first + tile.count].fill(f32::NEG_INFINITY);
        if tile.last_key < start || tile.first_key >= start + PARTITION {
            return;
        }
        let keys = PARTITION.min(tile.last_key + 1 - start);
        let (layout, isa) = (self.layout, self.isa);
        let (dim, padded) = (layout.head_dim, layout.padded_dim());
        let table = self.plan.table(self.plan.row(self.place(tile.first)).table);
        let (key_blocks, value_blocks) = self.blocks(buffers, table, start, keys);
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
        for m in 0..tile.count {
            let position = self.position(tile.first + m);
            let first_key = self.plan.shape().first_key(position);
            let row = &mut self.scratch.scores[m * SCORES..][..keys.next_multiple_of(LANES)];
            // Keys that this row does not see weigh nothing: it is as if they were not there.
            let from = first_key.saturating_sub(start).min(row.len());
            let to = (position + 1).saturating_sub(start).min(row.len());
            row[..from].fill(f32::NEG_INFINITY);
            row[to..].fill(f32::NEG_INFINITY);
            // SAFETY: the ISA is available.
            let (maximum, total) = unsafe { dispatch(isa, Weigh(row)) };
            self.scratch.partial_maxima[tile.first + m] = maximum;
            self.scratch.partial_totals[tile.first + m] = total;
        }
        let weights = &self.scratch.scores;
        let partial = &mut self.scratch.partial[tile.first * padded..];
        // SAFETY: as for the scores.
        unsafe { values(isa, tile.kernel, value_blocks, weights, padded, partial) };
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
            let total = self.scratch.states.totals[pair];
            let sums = &self.scratch.states.sums[pair * padded..][..padded];
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
                state[0] = self.scratch.states.maxima[pair];
                state[1] = total;
                state[2..].copy_from_slice(sums);
            }
        }
    }
}
