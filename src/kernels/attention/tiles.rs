//! Scores and weighted sums of values as products of matrix tiles (AMX).
//!
//! Keys and values lie in the order that tiles take and are read in place ([`crate::kernels::kv::tiles`]); queries and
//! weights are rounded to `bf16` as they are; sums are in `f32`. A tile's rows do not know of each other, so a row's result has the
//! same bits however many go with it; but they are not the bits of the other instruction sets, so all rows go
//! this way, however few.
//!
//! Tiles take a while to get going, so all scores of a partition are computed in one go, and all sums of values
//! in another.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::PARTITION;
use crate::kernels::aligned::AlignedBuffer;
use crate::kernels::amx::{STEP, Sums, TILE_BYTES, TILE_ROWS, TileSteps, Tiles};
use crate::kernels::isa::Isa;
use crate::kernels::kv::load_part;
use crate::kernels::kv::tiles::TILE_WORDS;
use crate::kernels::simd::{Bf16Dot, Bf16DotTask, CACHE_LINE, LANES, Simd, dispatch_bf16};

/// (row, head) pairs that go through a product together: two tiles.
const PAIRS: usize = 2 * TILE_ROWS;
/// `bf16` of a tile of rows.
const ROW_STEP: usize = TILE_BYTES / 2;
/// Steps of a partition's keys.
const KEY_STEPS: usize = PARTITION / STEP;
/// The most panels that a product takes at a time.
const MOST_PANELS: usize = 4;
/// Panels that all rows go past before the next: few enough to stay in the first-level cache.
const PANELS_AT_A_TIME: usize = 4;
/// Numbers from one pair's scores to the next: a partition, and room for panels that nobody needs.
const SCORES: usize = PARTITION + MOST_PANELS * LANES;

/// What multiplies tiles.
pub(super) enum Products {
    /// The thread's tiles, configured.
    Tiles(Tiles),
    /// The same in plain Rust, for tests.
    Twin,
}

impl Products {
    /// Products for tasks of `pairs`.
    ///
    /// # Safety
    /// `isa` is available; it has tiles or is the scalar twin. No other `Tiles` is alive on this thread.
    pub(super) unsafe fn new(isa: Isa, pairs: usize) -> Self {
        if isa.has_tiles() {
            // SAFETY: promised by the caller.
            Self::Tiles(unsafe { Tiles::configure_rows(pairs.clamp(1, TILE_ROWS)) })
        } else {
            Self::Twin
        }
    }
}

/// Where a product's panels lie.
#[derive(Clone, Copy)]
enum Panels<'a> {
    /// Each panel by itself: its steps follow each other.
    Keys(&'a [*const u32]),
    /// Each step by itself: the panels' tiles follow each other. Behind the last there is room for three.
    Values(&'a [*const u32]),
}

/// One product: `to[row][output] = Σ rows[row][input] · panels[output][input]`.
#[derive(Clone, Copy)]
struct Operands<'a> {
    /// One or two.
    row_tiles: usize,
    steps: usize,
    rows: *const u16,
    /// `bf16` from one tile of rows to the next.
    row_tile_length: usize,
    panels: Panels<'a>,
    first_panel: usize,
    panel_count: usize,
    /// Room for whole groups of panels: two with two tiles of rows, four with one.
    to: *mut f32,
    stride: usize,
}

impl Operands<'_> {
    fn rows(&self, tile: usize) -> *const u16 {
        self.rows.wrapping_add(tile * self.row_tile_length)
    }

    /// The tile of a panel's step.
    fn panel_tile(&self, panel: usize, step: usize) -> *const u32 {
        let panel = self.first_panel + panel;
        match self.panels {
            Panels::Keys(panels) => panels[panel].wrapping_add(step * TILE_WORDS),
            Panels::Values(steps) => steps[step].wrapping_add(panel * TILE_WORDS),
        }
    }

    /// # Safety
    /// The pointers cover what they say; `to` has as many rows as the products were made for, or sixteen for
    /// each tile of rows.
    unsafe fn multiply(self, products: &Products) {
        match products {
            // SAFETY: promised by the caller.
            Products::Tiles(tiles) => unsafe { self.with_tiles(tiles) },
            // SAFETY: as above.
            Products::Twin => unsafe { self.one_by_one() },
        }
    }

    /// # Safety
    /// As [`Self::multiply`].
    unsafe fn with_tiles(self, tiles: &Tiles) {
        let from = Sums::zero();
        for first in (0..self.panel_count).step_by(MOST_PANELS / self.row_tiles) {
            let to = Sums {
                first: self.to.wrapping_add(first * LANES),
                row_bytes: self.stride * size_of::<f32>(),
            };
            let rows = [self.rows(0), self.rows(self.row_tiles - 1)];
            match self.panels {
                Panels::Keys(panels) => {
                    // A group has room for more panels than there may be left: it then takes the last one again.
                    let panels = &panels[self.first_panel..][..self.panel_count];
                    let panel = |n: usize| panels[(first + n).min(self.panel_count - 1)];
                    // SAFETY: promised by the caller.
                    unsafe {
                        if self.row_tiles == 2 {
                            let panels = [panel(0), panel(1)];
                            tiles.add_two_by_two(self.steps, rows, panels, false, from, to);
                        } else {
                            let panels = [panel(0), panel(1), panel(2), panel(3)];
                            tiles.add_one_by_four(self.steps, rows[0], panels, false, from, to);
                        }
                    }
                }
                Panels::Values(steps) => {
                    let steps = TileSteps {
                        tiles: &steps[..self.steps],
                        offset: (self.first_panel + first) * TILE_BYTES,
                    };
                    // SAFETY: promised by the caller.
                    unsafe {
                        if self.row_tiles == 2 {
                            tiles.sum_two_by_two(steps, rows, to);
                        } else {
                            tiles.sum_one_by_four(steps, rows[0], to);
                        }
                    }
                }
            }
        }
    }

    /// What [`Self::with_tiles`] computes, one number at a time.
    ///
    /// # Safety
    /// As [`Self::multiply`], with sixteen rows for each tile of rows.
    unsafe fn one_by_one(self) {
        let number = |bits: u16| flushed(f32::from_bits(u32::from(bits) << 16));
        for row in 0..self.row_tiles * TILE_ROWS {
            for output in 0..self.panel_count * LANES {
                let mut sum = 0.0f32;
                for step in 0..self.steps {
                    let rows = self
                        .rows(row / TILE_ROWS)
                        .wrapping_add(step * ROW_STEP + row % TILE_ROWS * STEP);
                    let panel = self
                        .panel_tile(output / LANES, step)
                        .wrapping_add(output % LANES);
                    let mut halves = [0.0f32; 2];
                    for input in 0..STEP {
                        // SAFETY: promised by the caller.
                        let (x, pair) =
                            unsafe { (*rows.add(input), *panel.add(input / 2 * LANES)) };
                        let w = (pair >> (16 * (input % 2))) as u16;
                        let half = &mut halves[input % 2];
                        *half = flushed(number(x).mul_add(number(w), *half));
                    }
                    sum = flushed(sum + flushed(halves[0] + halves[1]));
                }
                // SAFETY: promised by the caller.
                unsafe { self.to.add(row * self.stride + output).write(sum) };
            }
        }
    }
}

/// Numbers too small for the usual precision count as zero.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() {
        0.0f32.copysign(x)
    } else {
        x
    }
}

/// A walk's operands and results, kept from walk to walk.
#[derive(Default)]
pub(super) struct TileScratch {
    dim: usize,
    padded: usize,
    /// Scaled queries, `[tile][step of dimensions][pair of the tile][dimension]`.
    queries: AlignedBuffer<u16>,
    /// `[pair][key]`.
    scores: AlignedBuffer<f32>,
    /// `[tile][step of keys][pair of the tile][key]`.
    weights: AlignedBuffer<u16>,
    /// Weighted sums of values, `[pair][dimension]`.
    partial: AlignedBuffer<f32>,
}

/// Pairs that go through a product together.
pub(super) struct PairBlock {
    pub(super) pairs: Range<usize>,
    /// Steps of the partition's keys that any of them sees.
    pub(super) steps: Range<usize>,
}

impl PairBlock {
    /// The pairs of each block of a task's.
    pub(super) fn ranges(pairs: usize) -> impl Iterator<Item = Range<usize>> {
        (0..pairs)
            .step_by(PAIRS)
            .map(move |first| first..pairs.min(first + PAIRS))
    }

    /// The steps that keys of the partition are in.
    pub(super) fn steps(keys: Range<usize>) -> Range<usize> {
        keys.start / STEP..keys.end.div_ceil(STEP)
    }

    fn row_tiles(&self) -> usize {
        self.pairs.len().div_ceil(TILE_ROWS)
    }
}

impl TileScratch {
    pub(super) fn prepare(&mut self, pairs: usize, dim: usize, padded: usize) {
        let dim_steps = dim.div_ceil(STEP);
        if !dim.is_multiple_of(STEP) && self.dim != dim {
            // Other dimensions may have left numbers where zeros fill up.
            self.queries = AlignedBuffer::default();
        }
        (self.dim, self.padded) = (dim, padded);
        let tiles = pairs.div_ceil(TILE_ROWS);
        self.queries.reserve(tiles * dim_steps * ROW_STEP);
        self.scores.reserve(tiles * TILE_ROWS * SCORES);
        self.weights.reserve(tiles * KEY_STEPS * ROW_STEP);
        self.partial
            .reserve(tiles * TILE_ROWS * self.partial_stride());
    }

    fn dim_steps(&self) -> usize {
        self.dim.div_ceil(STEP)
    }

    /// Numbers from one pair's sums to the next: whole groups of panels.
    pub(super) fn partial_stride(&self) -> usize {
        self.padded.next_multiple_of(MOST_PANELS * LANES)
    }

    /// Weighted sums of values, for each pair [`Self::partial_stride`] numbers.
    pub(super) fn partial(&self) -> &[f32] {
        &self.partial
    }

    /// The query of one of the task's pairs.
    ///
    /// # Safety
    /// `isa` is available; it has tiles or is the scalar twin.
    pub(super) unsafe fn pack_query(&mut self, isa: Isa, pair: usize, query: &[f32], scale: f32) {
        let tile_length = self.dim_steps() * ROW_STEP;
        let (tile, row) = (pair / TILE_ROWS, pair % TILE_ROWS * STEP);
        let out = &mut self.queries[tile * tile_length..][row..tile_length];
        // SAFETY: promised by the caller.
        unsafe { dispatch_bf16(isa, PackQuery { query, scale, out }) };
    }

    /// Scores of the blocks' pairs with the partition's keys, as far as any pair of a block sees them. `keys`
    /// says where each sixteen of them begin.
    ///
    /// # Safety
    /// The products are for the task's pairs; keys are inside their blocks as far as they are seen, rounded up
    /// to whole steps; queries are packed.
    pub(super) unsafe fn score(
        &mut self,
        products: &Products,
        keys: &[*const u32],
        blocks: &[PairBlock],
    ) {
        let dim_steps = self.dim_steps();
        for group in (0..keys.len()).step_by(PANELS_AT_A_TIME) {
            for block in blocks {
                let panels = STEP / LANES * block.steps.start..STEP / LANES * block.steps.end;
                let panels = panels.start.max(group)..panels.end.min(group + PANELS_AT_A_TIME);
                if panels.is_empty() {
                    continue;
                }
                let first = block.pairs.start;
                let operands = Operands {
                    row_tiles: block.row_tiles(),
                    steps: dim_steps,
                    rows: self.queries[first / TILE_ROWS * dim_steps * ROW_STEP..].as_ptr(),
                    row_tile_length: dim_steps * ROW_STEP,
                    panels: Panels::Keys(keys),
                    first_panel: panels.start,
                    panel_count: panels.len(),
                    to: self.scores[first * SCORES + panels.start * LANES..].as_mut_ptr(),
                    stride: SCORES,
                };
                // SAFETY: promised by the caller; the buffers were made for this.
                unsafe { operands.multiply(products) };
            }
        }
    }

    /// Turns the scores of a block's pairs into weights `e^(score - maximum)`; gives each pair's maximum and
    /// sum of weights. Of its keys a pair sees only those in its range of `seen`, relative to the partition's
    /// first; the others weigh nothing: it is as if they were not there.
    ///
    /// # Safety
    /// `isa` is available; it has tiles or is the scalar twin. The blocks' scores have been computed.
    pub(super) unsafe fn weigh(
        &mut self,
        isa: Isa,
        block: &PairBlock,
        seen: &[Range<usize>],
        ahead: &mut Ahead,
        (maxima, totals): (&mut [f32], &mut [f32]),
    ) {
        let first = block.pairs.start;
        let task = WeighPairs {
            steps: block.steps.clone(),
            seen,
            ahead,
            scores: &mut self.scores[first * SCORES..],
            out: &mut self.weights[first / TILE_ROWS * KEY_STEPS * ROW_STEP..],
            maxima,
            totals,
        };
        // SAFETY: promised by the caller.
        unsafe { dispatch_bf16(isa, task) };
    }

    /// Weighted sums of the partition's values for the blocks' pairs. `values` says where each 32 of them begin.
    ///
    /// # Safety
    /// As [`Self::score`]; all pairs' scores have been weighed.
    pub(super) unsafe fn gather(
        &mut self,
        products: &Products,
        values: &[*const u32],
        blocks: &[PairBlock],
    ) {
        let (panels, stride) = (self.padded / LANES, self.partial_stride());
        for group in (0..panels).step_by(PANELS_AT_A_TIME) {
            for block in blocks.iter().filter(|block| !block.steps.is_empty()) {
                let (first, step) = (block.pairs.start, block.steps.start);
                let tile = first / TILE_ROWS * KEY_STEPS;
                let operands = Operands {
                    row_tiles: block.row_tiles(),
                    steps: block.steps.len(),
                    rows: self.weights[(tile + step) * ROW_STEP..].as_ptr(),
                    row_tile_length: KEY_STEPS * ROW_STEP,
                    panels: Panels::Values(&values[block.steps.clone()]),
                    first_panel: group,
                    panel_count: PANELS_AT_A_TIME.min(panels - group),
                    to: self.partial[first * stride + group * LANES..].as_mut_ptr(),
                    stride,
                };
                // SAFETY: promised by the caller; the buffers were made for this.
                unsafe { operands.multiply(products) };
            }
        }
    }
}

/// Scales and rounds a query. `out` begins at the pair's row of the first step.
struct PackQuery<'a> {
    query: &'a [f32],
    scale: f32,
    out: &'a mut [u16],
}

impl Bf16DotTask for PackQuery<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16Dot>(self) {
        // SAFETY: the set is present, as the caller promises; stores have room for a row of a step.
        unsafe {
            let scale = S::splat(self.scale);
            for (query, out) in self.query.chunks(STEP).zip(self.out.chunks_mut(ROW_STEP)) {
                let first = S::mul(load_part::<S>(query), scale);
                let second = S::mul(load_part::<S>(query.get(LANES..).unwrap_or(&[])), scale);
                S::store_row(out[..STEP].as_mut_ptr(), first, second);
            }
        }
    }
}

/// `e^x · 2^shift`, relative error below 1e-5 (the result is rounded to `bf16`); 0 below `2^-126`.
///
/// `2^(n + r)` with whole `n` and a polynomial for `2^r`, fitted over `-1/2..1/2`.
///
/// # Safety
/// As [`Bf16DotTask::run`].
#[inline(always)]
unsafe fn power<S: Bf16Dot>(x: S::F, shift: S::F) -> S::F {
    // SAFETY: promised by the caller.
    unsafe {
        let x = S::fma(x, S::splat(LOG2_E), shift);
        let n = S::round(x);
        let r = S::sub(x, n);
        let mut p = S::splat(9.582_853e-3);
        p = S::fma(p, r, S::splat(5.590_642_6e-2));
        p = S::fma(p, r, S::splat(2.402_41e-1));
        p = S::fma(p, r, S::splat(6.931_242e-1));
        p = S::fma(p, r, S::splat(1.0));
        S::zero_below(S::scale_by_power(p, n), x, -126.0)
    }
}

/// The keys and values of the partition that comes next, fetched from memory while weights are computed.
#[derive(Default)]
pub(super) struct Ahead {
    /// Beginnings of pieces of [`Self::piece`] bytes.
    pieces: Vec<*const u8>,
    piece: usize,
    /// Bytes that were asked for.
    done: usize,
    /// Bytes to ask for at a time.
    share: usize,
}

impl Ahead {
    /// Begins with these pieces, to be fetched over so many turns.
    pub(super) fn begin(
        &mut self,
        pieces: impl Iterator<Item = *const u8>,
        piece: usize,
        turns: usize,
    ) {
        self.pieces.clear();
        self.pieces.extend(pieces);
        self.piece = piece.next_multiple_of(CACHE_LINE);
        self.done = 0;
        let bytes = self.pieces.len() * self.piece;
        self.share = bytes.div_ceil(turns.max(1)).next_multiple_of(CACHE_LINE);
    }

    /// # Safety
    /// The set is present.
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&mut self) {
        let end = (self.done + self.share).min(self.pieces.len() * self.piece);
        while self.done < end {
            let start = self.pieces[self.done / self.piece].wrapping_add(self.done % self.piece);
            let stop = end.min((self.done / self.piece + 1) * self.piece);
            for line in (0..stop - self.done).step_by(CACHE_LINE) {
                // SAFETY: promised by the caller; any address may be asked for.
                unsafe { S::prefetch_far(start.wrapping_add(line)) };
            }
            self.done = stop;
        }
    }
}

/// See [`TileScratch::weigh`].
struct WeighPairs<'a> {
    steps: Range<usize>,
    seen: &'a [Range<usize>],
    ahead: &'a mut Ahead,
    /// `[pair][key]`, from the block's first pair on.
    scores: &'a mut [f32],
    /// `[tile][step of keys][pair of the tile][key]`, from the block's first tile on.
    out: &'a mut [u16],
    maxima: &'a mut [f32],
    totals: &'a mut [f32],
}

impl Bf16DotTask for WeighPairs<'_> {
    #[inline(always)]
    unsafe fn run<S: Bf16Dot>(self) {
        let keys = self.steps.start * STEP..self.steps.end * STEP;
        for (pair, seen) in self.seen.iter().enumerate() {
            let scores = &mut self.scores[pair * SCORES..][keys.clone()];
            if seen.start > keys.start {
                let hidden = seen.start.min(keys.end) - keys.start;
                scores[..hidden].fill(f32::NEG_INFINITY);
            }
            if seen.end < keys.end {
                let hidden = seen.end.max(keys.start) - keys.start;
                scores[hidden..].fill(f32::NEG_INFINITY);
            }
            let start = (pair / TILE_ROWS * KEY_STEPS + self.steps.start) * ROW_STEP;
            let out = &mut self.out[start + pair % TILE_ROWS * STEP..];
            // SAFETY: the set is present, as the caller promises; stores have room for a row of a step.
            unsafe {
                let mut largest = [S::splat(f32::NEG_INFINITY); 2];
                for scores in scores.chunks_exact(STEP) {
                    largest[0] = S::max(largest[0], S::load(scores.as_ptr()));
                    largest[1] = S::max(largest[1], S::load(scores[LANES..].as_ptr()));
                }
                let maximum = S::max_lane(S::max(largest[0], largest[1]));
                // Without a key every weight is e to the minus infinity.
                let is_empty = maximum == f32::NEG_INFINITY;
                let shift = S::splat(if is_empty { 0.0 } else { -maximum * LOG2_E });
                let mut totals = [S::splat(0.0); 2];
                for (scores, out) in scores.chunks_exact(STEP).zip(out.chunks_mut(ROW_STEP)) {
                    let first = power::<S>(S::load(scores.as_ptr()), shift);
                    let second = power::<S>(S::load(scores[LANES..].as_ptr()), shift);
                    totals[0] = S::add(totals[0], first);
                    totals[1] = S::add(totals[1], second);
                    S::store_row(out[..STEP].as_mut_ptr(), first, second);
                    self.ahead.fetch::<S>();
                }
                self.maxima[pair] = maximum;
                self.totals[pair] = S::sum(S::add(totals[0], totals[1]));
            }
        }
    }
}
