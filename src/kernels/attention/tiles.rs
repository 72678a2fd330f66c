//! What a walk on matrix tiles (AMX) computes besides their products: queries and weights as operands.
//!
//! Keys and values lie in the order that tiles take and are read in place ([`crate::kernels::kv::tiles`]); queries and
//! weights are rounded to `bf16` as they are; sums are in `f32`. A tile's rows do not know of each other, so a row's result has the
//! same bits however many go with it; but they are not the bits of the other instruction sets, so all rows go
//! this way, however few.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::PARTITION;
use super::products::{Beside, MOST_PANELS, Panels, Product, ROW_STEP};
use super::walk::Found;
use crate::kernels::aligned::AlignedBuffer;
use crate::kernels::amx::{STEP, TILE_ROWS};
use crate::kernels::isa::Isa;
use crate::kernels::kv::load_part;
use crate::kernels::simd::{Bf16Dot, Bf16DotTask, CACHE_LINE, LANES, Simd, dispatch_bf16};

/// (row, head) pairs that go through a product together: two tiles.
const PAIRS: usize = 2 * TILE_ROWS;
/// Steps of a partition's keys, each a row of tiles of values.
pub(super) const KEY_STEPS: usize = PARTITION / STEP;
/// Panels of a partition's keys.
pub(super) const KEY_TILES: usize = PARTITION / LANES;
/// Numbers from one pair's scores to the next: a partition, and room for panels that nobody needs.
const SCORES: usize = PARTITION + MOST_PANELS * LANES;

/// Some pairs and one partition: what goes through the products at a time.
pub(super) struct Unit {
    pub(super) partition: usize,
    pub(super) pairs: Range<usize>,
    /// Whether all pairs see all keys of the partition.
    pub(super) all_seen: bool,
    /// Steps of the partition's keys that any of the pairs sees; not none.
    pub(super) steps: Range<usize>,
    /// Where each sixteen keys of the partition begin, as far as they are seen.
    pub(super) keys: [*const u32; KEY_TILES],
    /// Where each 32 values begin.
    pub(super) values: [*const u32; KEY_STEPS],
}

impl Unit {
    /// The pairs of each of a partition's units.
    pub(super) fn pairs(pairs: usize) -> impl Iterator<Item = Range<usize>> {
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

/// What a unit leaves behind.
#[derive(Default)]
struct Stage {
    /// `[pair][key]`.
    scores: AlignedBuffer<f32>,
    /// `[tile][step of keys][pair of the tile][key]`.
    weights: AlignedBuffer<u16>,
    /// Weighted sums of values, `[pair][dimension]`.
    partial: AlignedBuffer<f32>,
    /// Each pair's largest score, and its sum of weights.
    maxima: [f32; PAIRS],
    totals: [f32; PAIRS],
}

/// A walk's operands and results, kept from walk to walk.
#[derive(Default)]
pub(super) struct TileScratch {
    dim: usize,
    padded: usize,
    /// Scaled queries, `[tile][step of dimensions][pair of the tile][dimension]`.
    queries: AlignedBuffer<u16>,
    /// Neighbouring units have different ones.
    stages: [Stage; 2],
    /// What is read in the partitions that come next.
    pub(super) ahead: Ahead,
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
        let stride = self.partial_stride();
        for stage in &mut self.stages {
            stage.scores.reserve(PAIRS * SCORES);
            stage
                .weights
                .reserve(PAIRS / TILE_ROWS * KEY_STEPS * ROW_STEP);
            stage.partial.reserve(PAIRS * stride);
        }
    }

    fn dim_steps(&self) -> usize {
        self.dim.div_ceil(STEP)
    }

    /// Numbers from one pair's sums to the next: whole groups of panels.
    fn partial_stride(&self) -> usize {
        self.padded.next_multiple_of(MOST_PANELS * LANES)
    }

    /// What a unit's pairs have found.
    pub(super) fn found(&self, stage: usize, unit: &Unit) -> Found<'_> {
        let stage = &self.stages[stage];
        Found {
            pairs: unit.pairs.clone(),
            maxima: &stage.maxima,
            totals: &stage.totals,
            partial: &stage.partial,
            stride: self.partial_stride(),
        }
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

    /// The product that gives a unit's scores, as far as any pair sees keys. Queries have been packed.
    pub(super) fn scores(&mut self, stage: usize, unit: &Unit) -> Product {
        let dim_steps = self.dim_steps();
        let first = unit.steps.start * STEP / LANES;
        let mut keys = [std::ptr::null(); KEY_TILES];
        let panel_count = unit.steps.len() * STEP / LANES;
        keys[..panel_count].copy_from_slice(&unit.keys[first..][..panel_count]);
        let queries = unit.pairs.start / TILE_ROWS * dim_steps * ROW_STEP;
        Product {
            row_tiles: unit.row_tiles(),
            steps: dim_steps,
            rows: self.queries[queries..].as_ptr(),
            row_tile_length: dim_steps * ROW_STEP,
            panels: Panels::Keys(keys),
            panel_count,
            to: self.stages[stage].scores[first * LANES..].as_mut_ptr(),
            stride: SCORES,
        }
    }

    /// The product that gives a unit's weighted sums of values, once its scores have been weighed.
    pub(super) fn sums(&mut self, stage: usize, unit: &Unit) -> Product {
        let stride = self.partial_stride();
        let mut values = [std::ptr::null(); KEY_STEPS];
        values[..unit.steps.len()].copy_from_slice(&unit.values[unit.steps.clone()]);
        let stage = &mut self.stages[stage];
        Product {
            row_tiles: unit.row_tiles(),
            steps: unit.steps.len(),
            rows: stage.weights[unit.steps.start * ROW_STEP..].as_ptr(),
            row_tile_length: KEY_STEPS * ROW_STEP,
            panels: Panels::Values(values),
            panel_count: self.padded / LANES,
            to: stage.partial.as_mut_ptr(),
            stride,
        }
    }
    /// Turns a unit's scores into weights `e^(score - maximum)`; finds each pair's maximum and sum of weights. Of its
    /// keys a pair sees only those in its range of `seen`, relative to the partition's first, if there are any; the others
    /// weigh nothing: it is as if they were not there. Products go on beside it, a turn for each pair.
    ///
    /// # Safety
    /// `isa` is available; it has tiles or is the scalar twin. The stage has the unit's scores, and products write to the
    /// other one.
    pub(super) unsafe fn weigh(
        &mut self,
        isa: Isa,
        stage: usize,
        unit: &Unit,
        seen: &[Range<usize>],
        beside: &mut Beside<'_>,
    ) {
        let stage = &mut self.stages[stage];
        let task = WeighPairs {
            pairs: unit.pairs.len(),
            steps: unit.steps.clone(),
            seen,
            ahead: &mut self.ahead,
            beside,
            scores: &mut stage.scores,
            out: &mut stage.weights,
            maxima: &mut stage.maxima,
            totals: &mut stage.totals,
        };
        // SAFETY: promised by the caller.
        unsafe { dispatch_bf16(isa, task) };
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

/// Keys and values of partitions that come next, fetched from memory while weights are computed.
#[derive(Default)]
pub(super) struct Ahead {
    /// Beginnings of pieces of [`Self::piece`] lines.
    pieces: Vec<*const u8>,
    piece: usize,
    /// The piece and its line that come next.
    next: (usize, usize),
    /// Lines to ask for at a time.
    share: usize,
}

impl Ahead {
    /// Begins with these pieces of so many bytes, to be fetched over so many turns.
    pub(super) fn begin(
        &mut self,
        pieces: impl Iterator<Item = *const u8>,
        piece: usize,
        turns: usize,
    ) {
        self.pieces.clear();
        self.pieces.extend(pieces);
        self.piece = piece.div_ceil(CACHE_LINE);
        self.next = (0, 0);
        self.share = (self.pieces.len() * self.piece).div_ceil(turns.max(1));
    }

    /// # Safety
    /// The set is present.
    #[inline(always)]
    unsafe fn fetch<S: Simd>(&mut self) {
        let (mut piece, mut line) = self.next;
        let mut share = self.share;
        while share > 0
            && let Some(start) = self.pieces.get(piece)
        {
            let lines = share.min(self.piece - line);
            let start = start.wrapping_add(line * CACHE_LINE);
            for line in 0..lines {
                // SAFETY: promised by the caller; any address may be asked for.
                unsafe { S::prefetch_far(start.wrapping_add(line * CACHE_LINE)) };
            }
            (share, line) = (share - lines, line + lines);
            if line == self.piece {
                (piece, line) = (piece + 1, 0);
            }
        }
        self.next = (piece, line);
    }
}

/// See [`TileScratch::weigh`].
struct WeighPairs<'a, 'b> {
    pairs: usize,
    steps: Range<usize>,
    /// None if all see everything.
    seen: &'a [Range<usize>],
    ahead: &'a mut Ahead,
    beside: &'a mut Beside<'b>,
    /// `[pair][key]`.
    scores: &'a mut [f32],
    /// `[tile][step of keys][pair of the tile][key]`.
    out: &'a mut [u16],
    maxima: &'a mut [f32],
    totals: &'a mut [f32],
}

impl Bf16DotTask for WeighPairs<'_, '_> {
    #[inline(always)]
    unsafe fn run<S: Bf16Dot>(self) {
        let keys = self.steps.start * STEP..self.steps.end * STEP;
        for (pair, maximum) in self.maxima[..self.pairs].iter_mut().enumerate() {
            let scores = &mut self.scores[pair * SCORES..][keys.clone()];
            if let Some(seen) = self.seen.get(pair) {
                if seen.start > keys.start {
                    let hidden = seen.start.min(keys.end) - keys.start;
                    scores[..hidden].fill(f32::NEG_INFINITY);
                }
                if seen.end < keys.end {
                    let hidden = seen.end.max(keys.start) - keys.start;
                    scores[hidden..].fill(f32::NEG_INFINITY);
                }
            }
            // SAFETY: the set is present, as the caller promises; scores are whole steps.
            unsafe {
                let mut largest = [S::splat(f32::NEG_INFINITY); 2];
                for scores in scores.chunks_exact(STEP) {
                    largest[0] = S::max(largest[0], S::load(scores.as_ptr()));
                    largest[1] = S::max(largest[1], S::load(scores[LANES..].as_ptr()));
                }
                *maximum = S::max_lane(S::max(largest[0], largest[1]));
            }
        }
        for (pair, &maximum) in self.maxima[..self.pairs].iter().enumerate() {
            self.beside.turn();
            let scores = &self.scores[pair * SCORES..][keys.clone()];
            let start = (pair / TILE_ROWS * KEY_STEPS + self.steps.start) * ROW_STEP;
            let out = &mut self.out[start + pair % TILE_ROWS * STEP..];
            // Without a key every weight is e to the minus infinity.
            let is_empty = maximum == f32::NEG_INFINITY;
            // SAFETY: the set is present, as the caller promises; stores have room for a row of a step.
            unsafe {
                self.ahead.fetch::<S>();
                let shift = S::splat(if is_empty { 0.0 } else { -maximum * LOG2_E });
                let mut totals = [S::splat(0.0); 2];
                for (scores, out) in scores.chunks_exact(STEP).zip(out.chunks_mut(ROW_STEP)) {
                    let first = power::<S>(S::load(scores.as_ptr()), shift);
                    let second = power::<S>(S::load(scores[LANES..].as_ptr()), shift);
                    totals[0] = S::add(totals[0], first);
                    totals[1] = S::add(totals[1], second);
                    S::store_row(out[..STEP].as_mut_ptr(), first, second);
                }
                self.totals[pair] = S::sum(S::add(totals[0], totals[1]));
            }
        }
    }
}
