//! Products of K-quants with many rows on matrix tiles (AMX), with the bits of the dot products of bytes
//! ([`super::micro`]), so that few rows, for which unpacking the weights takes too long, need not go this way.
//!
//! A unit of work is a tile of up to sixteen rows with a block of 256 inputs of two panels. Sums of bytes leave the tiles
//! after each unit, to be scaled. Tiles have a queue of their own, so between a unit's steps go a share of the scaling of
//! the unit before and a share of the unpacking of the next block's weights ([`super::digits`]).

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::activations::{RowTile, pair_sums, quantize};
use super::digits::{Digits, HEAD, Head, QUARTERS, STEP_BYTES, STEPS};
use crate::kernels::aligned::AlignedBuffer;
use crate::kernels::amx::{TILE_BYTES, TILE_ROWS, Tiles, prefetch_for_writing};
use crate::kernels::isa::Isa;
use crate::kernels::matmul::{Input, Target};
use crate::kernels::simd::{Avx512, ByteDot, ByteDotTask, CACHE_LINE, LANES, Simd, dispatch_bytes};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Inputs below which rows are quantized by the calling thread alone.
const SMALL_ROWS: usize = 32 * 1024;
/// Multiply-adds below which a product is not worth sharing among threads.
const SMALL: usize = 1 << 20;
/// Bytes of quantized rows that stay in the second-level cache while panels go past them.
const ROW_BLOCK_BYTES: usize = 1024 * 1024;
/// Inputs of a block.
const INPUTS: usize = 256;
/// Panels of a unit.
const PANELS: usize = 2;
/// The most panels of a task.
const MAX_PANELS: usize = 16;

/// Where in a record of sixteen rows and 256 inputs, after the tiles of the four steps, their sums of twice 32 begin,
/// four words for each row, and where the scales do.
const PAIR_SUMS: usize = STEPS * TILE_BYTES;
const SCALES: usize = PAIR_SUMS + 4 * TILE_ROWS * 4;
const RECORD: usize = SCALES + TILE_ROWS * 4;

/// Quantized rows: for each block of inputs the records of all tiles of rows.
#[derive(Default)]
pub(super) struct Activations {
    tiles: Vec<RowTile>,
    records: AlignedBuffer<u8>,
    filled: bool,
}

impl Activations {
    /// A new call: what is quantized belongs to other rows.
    pub(super) fn forget(&mut self) {
        self.filled = false;
    }

    /// Quantizes the rows of `x`, of `inputs` numbers, unless that was done since [`Self::forget`].
    fn fill(
        &mut self,
        isa: Isa,
        pool: &ThreadPool,
        x: Input<'_>,
        inputs: usize,
    ) -> Result<(), KernelError> {
        if std::mem::replace(&mut self.filled, true) {
            return Ok(());
        }
        let rows = x.rows(inputs);
        // Equal ones: a product takes as many cycles as it has rows.
        let count = rows.div_ceil(TILE_ROWS);
        self.tiles.clear();
        self.tiles
            .extend(RowTile::cover(rows, count, |index, _| index * RECORD));
        self.records.reserve(inputs / INPUTS * count * RECORD);
        let (tiles, out) = (&self.tiles, SharedMut::new(&mut self.records));
        let quantize = |_: usize, index: usize| {
            let tile = &tiles[index];
            x.with_rows(tile.first_row, tile.rows, inputs, |x| {
                for block in 0..inputs / INPUTS {
                    // SAFETY: each tile has its own part of the buffer, which was grown to hold all; the ISA is
                    // available.
                    unsafe {
                        let out = out.slice((block * count + index) * RECORD, RECORD);
                        dispatch_bytes(
                            isa,
                            Quantize {
                                x,
                                inputs,
                                block,
                                out,
                            },
                        );
                    }
                }
            });
        };
        pool.run_if(rows * inputs >= SMALL_ROWS, count, quantize)
    }
}

/// Quantizes a block of the rows of one tile.
struct Quantize<'a> {
    x: &'a [f32],
    inputs: usize,
    block: usize,
    out: &'a mut [u8],
}

impl ByteDotTask for Quantize<'_> {
    #[inline(always)]
    unsafe fn run<S: ByteDot>(self) {
        let record = self.out;
        let mut quants = [0i8; INPUTS];
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            let x = &x[self.block * INPUTS..][..INPUTS];
            // SAFETY: the instruction set is there, as the caller promises; both have as many elements.
            let scale = unsafe { quantize::<S>(x, &mut quants) };
            for (step, quants) in quants.chunks_exact(INPUTS / STEPS).enumerate() {
                let place = step * TILE_BYTES + row * quants.len();
                for (byte, &quant) in record[place..].iter_mut().zip(quants) {
                    *byte = quant as u8;
                }
                let place = PAIR_SUMS + (step * TILE_ROWS + row) * 4;
                record[place..place + 4].copy_from_slice(&pair_sums(quants).to_ne_bytes());
            }
            let place = SCALES + row * 4;
            record[place..place + 4].copy_from_slice(&scale.to_ne_bytes());
        }
    }
}

/// Weights in panels, as [`super::panels`] packs them.
#[derive(Clone, Copy)]
pub(super) struct TileWeights<'a> {
    pub(super) panels: &'a [u8],
    pub(super) out_features: usize,
    pub(super) in_features: usize,
}

impl TileWeights<'_> {
    /// The product with the rows of `x`. `isa` has tiles.
    pub(super) fn matmul<F: Digits>(
        self,
        isa: Isa,
        pool: &ThreadPool,
        x: Input<'_>,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        activations.fill(isa, pool, x, self.in_features)?;
        let (tiles, records) = (&activations.tiles[..], &activations.records[..]);
        let panels = self.out_features.div_ceil(LANES);
        // Panels a task: at least 64 tasks of whole units, up to sixteen panels.
        let chunk = panels.div_ceil(64).next_multiple_of(PANELS).min(MAX_PANELS);
        let chunks = panels.div_ceil(chunk);
        let tile_bytes = self.in_features / INPUTS * RECORD;
        let row_blocks = tiles.len().div_ceil((ROW_BLOCK_BYTES / tile_bytes).max(2));
        let task = |_: usize, index: usize| {
            // All rows with some panels first: weights come from memory once.
            let (first, block) = (index / row_blocks * chunk, index % row_blocks);
            let share = |block: usize| block * tiles.len() / row_blocks;
            let task = Task {
                weights: self,
                records,
                block_bytes: tiles.len() * RECORD,
                tiles: &tiles[share(block)..share(block + 1)],
                panels: first..panels.min(first + chunk),
                target,
            };
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.reserve(task.tiles.len());
                // SAFETY: the machine has tiles, and with those all that AVX-512 asks for; each block of rows and chunk
                // of panels has outputs of its own.
                unsafe { run::<F>(&task, scratch) };
            });
        };
        let rows: usize = tiles.iter().map(|tile| tile.rows).sum();
        let worth = rows * self.out_features * self.in_features >= SMALL;
        pool.run_neighbours_if(worth, row_blocks * chunks, task)
    }
}

/// Some panels against some tiles of rows.
struct Task<'a> {
    weights: TileWeights<'a>,
    records: &'a [u8],
    /// Bytes of the records of one block of inputs.
    block_bytes: usize,
    tiles: &'a [RowTile],
    panels: Range<usize>,
    target: Target<'a>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Parts in which a block of a unit's panels is unpacked.
const PARTS: usize = PANELS * QUARTERS;
/// Bytes of the unpacked weights of one block of a unit's panels.
const DIGITS: usize = STEPS * STEP_BYTES;
/// Whole sums of a unit.
const SUMS: usize = 2 * PANELS * TILE_ROWS * LANES;

/// Products of a unit.
const UNIT: usize = TILE_ROWS * PANELS * LANES;

/// What one thread works with.
#[derive(Default)]
struct Scratch {
    /// Of the block that is multiplied and of the next.
    digits: AlignedBuffer<u8>,
    /// Of the unit that is multiplied and of the one before, `[tile][row][output]`.
    whole: AlignedBuffer<u32>,
    /// For each tile of rows the products so far with a unit's panels, `[row][output]`.
    products: AlignedBuffer<f32>,
}

impl Scratch {
    fn reserve(&mut self, tiles: usize) {
        self.digits.reserve(2 * DIGITS);
        self.whole.reserve(2 * SUMS);
        self.products.reserve(tiles * UNIT);
    }
}

/// One block of a unit's panels.
#[derive(Clone, Copy)]
struct Block {
    panels: [*const u8; PANELS],
    /// The blocks behind, which will be next but one.
    ahead: [*const u8; PANELS],
}

/// A unit whose whole sums wait to be scaled.
#[derive(Clone, Copy)]
struct Unit {
    whole: *const i32,
    record: *const u8,
    /// The unit's products so far.
    products: *mut f32,
    heads: usize,
    tile: RowTile,
    /// The first of the panels, and how many blocks of inputs are still to come.
    panel: usize,
    blocks_left: usize,
    is_first: bool,
}

impl Unit {
    const NONE: Self = Self {
        whole: std::ptr::null(),
        record: std::ptr::null(),
        products: std::ptr::null_mut(),
        heads: 0,
        tile: RowTile {
            first_row: 0,
            rows: 0,
            start: 0,
        },
        panel: 0,
        blocks_left: 0,
        is_first: true,
    };
}

/// # Safety
/// The machine has tiles and AVX-512 with VNNI, nobody else writes these rows' outputs of these panels, and the scratch has
/// room for the task's tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn run<F: Digits>(task: &Task<'_>, scratch: &mut Scratch) {
    let weights = task.weights;
    let blocks = weights.in_features / INPUTS;
    let units = task.tiles.len();
    let digits = scratch.digits.as_mut_ptr();
    let whole = scratch.whole.as_mut_ptr().cast::<i32>();
    let products = scratch.products.as_mut_ptr();
    // Three: of the block that is multiplied, of the next, and of the one before, whose last unit is scaled late.
    let mut heads = [[Head([[0.0; LANES]; HEAD]); PANELS]; 3];
    let widest = task.tiles.iter().map(|tile| tile.rows).max().unwrap_or(0);
    if widest == 0 {
        return;
    }
    let count = task.panels.len().div_ceil(PANELS) * blocks;
    let block = |index: usize| {
        let (first, block) = (task.panels.start + index / blocks * PANELS, index % blocks);
        // A single panel at the end is taken twice, and written once.
        let last = task.panels.end - 1;
        let at = |panel: usize| {
            weights
                .panels
                .as_ptr()
                .wrapping_add((panel.min(last) * blocks + block) * F::PANEL)
        };
        let panels = [at(first), at(first + 1)];
        let skip = if block + 1 < blocks {
            1
        } else {
            (PANELS - 1) * blocks + 1
        };
        Block {
            panels,
            ahead: panels.map(|panel| panel.wrapping_add(skip * F::PANEL)),
        }
    };
    // SAFETY: promised by the caller; all pointers stay within what they were made of.
    unsafe {
        let mut tiles = Tiles::configure_rows(widest);
        let mut next = block(0);
        for part in 0..PARTS {
            unpack::<F>(&next, part, digits, &mut heads[0]);
        }
        // In turn the unit that is multiplied and the one before.
        let mut waiting = [Unit::NONE; 2];
        let mut turn = 0;
        let mut this_digits = digits;
        let mut next_digits = digits.add(DIGITS);
        let first_record = task.records.as_ptr().add(task.tiles[0].start);
        // So many shares of scaling and unpacking has a block; parts of the next one are due evenly.
        let shares = units * STEPS;
        for step in 0..count {
            let has_next = step + 1 < count;
            if has_next {
                next = block(step + 1);
            }
            let mut unpacked = if has_next { 0 } else { PARTS };
            let mut due = 0;
            let mut unit_products = products;
            let mut record = first_record.add(step % blocks * task.block_bytes);
            for tile in task.tiles {
                let sums = whole.add(turn * SUMS);
                let before = &waiting[1 - turn];
                let share = before.tile.rows.div_ceil(STEPS);
                tiles.begin();
                for k in 0..STEPS {
                    let rows = record.add(k * TILE_BYTES);
                    tiles.multiply_bytes(F::SIGNED, rows, this_digits.add(k * STEP_BYTES));
                    let rows = k * share..before.tile.rows.min((k + 1) * share);
                    finish::<F>(task, before, &heads[before.heads], rows);
                    due += PARTS;
                    while due >= shares && unpacked < PARTS {
                        unpack::<F>(&next, unpacked, next_digits, &mut heads[(step + 1) % 3]);
                        unpacked += 1;
                        due -= shares;
                    }
                }
                tiles.store_whole(sums);
                // Field by field: a unit is read soon, and by the same widths.
                let unit = &mut waiting[turn];
                unit.whole = sums;
                unit.record = record;
                unit.products = unit_products;
                unit.heads = step % 3;
                unit.tile = *tile;
                unit.panel = task.panels.start + step / blocks * PANELS;
                unit.blocks_left = blocks - 1 - step % blocks;
                unit.is_first = step % blocks == 0;
                turn = 1 - turn;
                unit_products = unit_products.add(UNIT);
                record = record.add(RECORD);
            }
            std::mem::swap(&mut this_digits, &mut next_digits);
        }
        let last = &waiting[1 - turn];
        finish::<F>(task, last, &heads[last.heads], 0..last.tile.rows);
    }
}

/// Unpacks one of the parts of a block, and asks for as much of the block behind.
///
/// # Safety
/// As [`Digits`]; the digits have room for a block of all panels.
#[inline(always)]
unsafe fn unpack<F: Digits>(
    block: &Block,
    part: usize,
    digits: *mut u8,
    heads: &mut [Head; PANELS],
) {
    let (panel, quarter) = (part / QUARTERS, part % QUARTERS);
    // SAFETY: promised by the caller.
    unsafe {
        let share = F::PANEL.div_ceil(QUARTERS);
        for line in 0..share.div_ceil(CACHE_LINE) {
            let ahead = block.ahead[panel].wrapping_add(quarter * share + line * CACHE_LINE);
            Avx512::prefetch(ahead);
        }
        if quarter == 0 {
            F::head(block.panels[panel], &mut heads[panel]);
        }
        F::unpack(
            block.panels[panel],
            quarter,
            digits.add(panel * 2 * TILE_BYTES),
        );
    }
}

/// Scales the sums of some rows of a unit and adds them to the products so far; rows that are complete are written.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn finish<F: Digits>(
    task: &Task<'_>,
    unit: &Unit,
    heads: &[Head; PANELS],
    rows: Range<usize>,
) {
    for (panel, head) in heads.iter().enumerate() {
        // SAFETY: promised by the caller.
        unsafe {
            let head = head.load();
            for row in rows.clone() {
                let pairs = unit.record.add(PAIR_SUMS + row * 4).cast::<u32>();
                let scale = Avx512::splat(*unit.record.add(SCALES + row * 4).cast::<f32>());
                let lower = unit.whole.add((2 * panel * TILE_ROWS + row) * LANES);
                let upper = lower.add(TILE_ROWS * LANES);
                let whole = F::combine(
                    _mm512_load_si512(lower.cast()),
                    _mm512_load_si512(upper.cast()),
                );
                let product = F::finish(&head, whole, pairs);
                let so_far = unit.products.add((row * PANELS + panel) * LANES);
                let sum = if unit.is_first {
                    Avx512::splat(0.0)
                } else {
                    Avx512::load(so_far)
                };
                let sum = Avx512::fma(product, scale, sum);
                if unit.blocks_left == 0 {
                    write(task, unit, row, panel, sum);
                } else {
                    Avx512::store(so_far, sum);
                }
            }
        }
    }
    if unit.blocks_left == 1 {
        // Rows are often a power of two apart and their outputs far from the caches: they are asked for one block before
        // they are written.
        for row in rows {
            let out = task
                .target
                .out
                .at((unit.tile.first_row + row) * task.target.stride);
            let out = out.wrapping_add(unit.panel * LANES);
            for panel in 0..PANELS {
                prefetch_for_writing(out.wrapping_add(panel * LANES));
            }
        }
    }
}

/// Adds the bias to sixteen outputs of a row and writes those that are real.
///
/// # Safety
/// As [`run`].
#[inline(always)]
unsafe fn write(task: &Task<'_>, unit: &Unit, row: usize, panel: usize, sum: __m512) {
    if unit.panel + panel >= task.panels.end {
        return;
    }
    let first = (unit.panel + panel) * LANES;
    let real = (task.weights.out_features - first).min(LANES);
    let mask = ((1u32 << real) - 1) as __mmask16;
    let row = (unit.tile.first_row + row) * task.target.stride;
    // SAFETY: promised by the caller; only real outputs are read and written.
    unsafe {
        let bias = match task.target.bias {
            Some(bias) => _mm512_maskz_loadu_ps(mask, bias.as_ptr().add(first)),
            None => Avx512::splat(0.0),
        };
        let out = task.target.out.at(row + first);
        _mm512_mask_storeu_ps(out, mask, Avx512::add(sum, bias));
    }
}
