//! Products with `bf16` weights on matrix tiles (AMX): activations rounded to `bf16`, sums in `f32`.
//!
//! All rows go this way, however few: tiles add in an order of their own, and a row's result must not
//! depend on the other rows.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use super::{Input, Target};
use crate::kernels::aligned::AlignedBuffer;
use crate::kernels::amx::{Ahead, STEP, Sums, TILE_BYTES, TILE_ROWS, Tiles};
use crate::kernels::isa::Isa;
use crate::kernels::kv::{load_part, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Multiply-adds below which a product is not worth sharing among threads.
const SMALL: usize = 1 << 20;
/// Bytes of packed rows that stay in the second-level cache while panels stream past them.
const ROW_BLOCK_BYTES: usize = 512 * 1024;
/// `bf16` of a tile.
const TILE: usize = TILE_BYTES / 2;
/// Sums of a kernel: four tiles.
const KERNEL_SUMS: usize = 4 * TILE_ROWS * LANES;
/// The most panels of a task.
const MAX_CHUNK: usize = 16;
/// Steps of inputs that a kernel takes at a time: two tiles of rows, as many of weights and the sums then
/// fill the first-level cache by four fifths.
const PART_STEPS: usize = 8;

/// Rows as `bf16`, `[tile of rows][step of inputs][row][input]`.
#[derive(Default)]
pub(super) struct Activations {
    tiles: AlignedBuffer<u16>,
    packed: bool,
}

impl Activations {
    /// A new call: what is packed belongs to other rows.
    pub(super) fn forget(&mut self) {
        self.packed = false;
    }

    fn pack(
        &mut self,
        pool: &ThreadPool,
        x: Input<'_>,
        rows: usize,
        inputs: usize,
    ) -> Result<(), KernelError> {
        if std::mem::replace(&mut self.packed, true) {
            return Ok(());
        }
        let count = rows.div_ceil(TILE_ROWS);
        let tile_len = inputs / STEP * TILE;
        self.tiles.reserve(count * tile_len);
        let out = SharedMut::new(&mut self.tiles);
        pool.run_if(rows * inputs >= 64 * 1024, count, |_, index| {
            // SAFETY: each tile is a part of its own.
            let out = unsafe { out.slice(index * tile_len, tile_len) };
            let count = TILE_ROWS.min(rows - index * TILE_ROWS);
            if count < TILE_ROWS {
                out.fill(0);
            }
            x.with_rows(index * TILE_ROWS, count, inputs, |x| {
                // SAFETY: the instruction set is one of the machine's.
                unsafe { dispatch(Isa::detected(), Round { x, inputs, out }) };
            });
        })
    }
}

/// Rounds rows to `bf16`, each step of inputs into its tile.
struct Round<'a> {
    x: &'a [f32],
    inputs: usize,
    out: &'a mut [u16],
}

impl SimdTask for Round<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (row, x) in self.x.chunks_exact(self.inputs).enumerate() {
            for (x, tile) in x.chunks_exact(STEP).zip(self.out.chunks_exact_mut(TILE)) {
                let out = &mut tile[row * STEP..(row + 1) * STEP];
                for (x, out) in x.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
                    // SAFETY: both have sixteen elements; the set is present, as the caller promises.
                    unsafe { S::store_bf16(out.as_mut_ptr().cast::<bf16>(), S::load(x.as_ptr())) };
                }
            }
        }
    }
}

/// Weights `[panel][pair of inputs][output]`, each word a pair, the even input in the lower half; inputs a
/// multiple of [`STEP`].
#[derive(Clone, Copy)]
pub(super) struct TileWeights<'a> {
    pub(super) panels: &'a [u32],
    pub(super) out_features: usize,
    pub(super) in_features: usize,
}

/// Whether a matrix with so many inputs can go through tiles.
pub(super) fn fits(in_features: usize) -> bool {
    in_features.is_multiple_of(STEP)
}

thread_local! {
    /// The sums of a task's panels while they wait for the next part of the inputs.
    static WAITING: RefCell<AlignedBuffer<f32>> = RefCell::default();
}

impl TileWeights<'_> {
    /// The product with `rows` rows of `x`. The machine must have tiles.
    pub(super) fn matmul(
        self,
        pool: &ThreadPool,
        x: Input<'_>,
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        activations.pack(pool, x, rows, self.in_features)?;
        let x = &activations.tiles[..];
        let panels = self.out_features.div_ceil(LANES);
        // Panels a task: at least 32 tasks of whole kernels, up to sixteen panels.
        let chunk = panels.div_ceil(32).next_multiple_of(4).min(MAX_CHUNK);
        let chunks = panels.div_ceil(chunk);
        let tiles = rows.div_ceil(TILE_ROWS);
        let block = (ROW_BLOCK_BYTES / (self.in_features * 2 * TILE_ROWS)).max(2);
        let blocks = tiles.div_ceil(block.next_multiple_of(2));
        let task = |_: usize, index: usize| {
            // All rows with some panels first: weights come from memory once.
            let first = index / blocks * chunk;
            // Whole pairs of tiles, but for the last.
            let block = tiles.div_ceil(blocks).next_multiple_of(2);
            let start = index % blocks * block;
            let tiles = start..tiles.min(start + block);
            // SAFETY: the machine has tiles; each block and chunk has outputs of its own.
            unsafe { self.run(x, rows, tiles, first..panels.min(first + chunk), target) };
        };
        let worth = rows * self.out_features * self.in_features >= SMALL;
        pool.run_neighbours_if(worth, blocks * chunks, task)
    }

    /// Some panels against some tiles of rows.
    ///
    /// A kernel takes 4 KiB of operands for 64 cycles of work, more than the second-level cache gives. So
    /// inputs are taken in parts, small enough for the rows' part to stay in the first level while the
    /// panels' stream past; meanwhile the sums of all panels wait.
    ///
    /// # Safety
    /// The machine has tiles and nobody else writes these rows' outputs of these panels.
    unsafe fn run(
        self,
        x: &[u16],
        rows: usize,
        row_tiles: Range<usize>,
        panels: Range<usize>,
        target: Target<'_>,
    ) {
        let steps = self.in_features / STEP;
        // With one or two tiles of rows no part is used twice: then weights are best read from end to end.
        let parts = if row_tiles.len() > 2 {
            steps.div_ceil(PART_STEPS)
        } else {
            1
        };
        // SAFETY: promised by the caller; tasks do not nest.
        let tiles = unsafe { Tiles::configure() };
        WAITING.with_borrow_mut(|waiting| {
            waiting.reserve(MAX_CHUNK / 2 * KERNEL_SUMS);
            for first_tile in row_tiles.clone().step_by(2) {
                let tile_count = 2.min(row_tiles.end - first_tile);
                // Four tiles of sums either way: few rows leave registers for more panels.
                let width = 4 / tile_count;
                for part in 0..parts {
                    let part_steps = part * steps / parts..(part + 1) * steps / parts;
                    for (place, panel) in panels.clone().step_by(width).enumerate() {
                        let product = Product {
                            x,
                            first_tile,
                            tile_count,
                            steps: part_steps.clone(),
                            panel,
                            panel_count: width.min(panels.end - panel),
                            ahead: if parts == 1 {
                                Ahead::then((width - 1) * steps * TILE_BYTES)
                            } else {
                                Ahead::NONE
                            },
                            is_first: part == 0,
                            is_last: part + 1 == parts,
                        };
                        let sums = &mut waiting[place * KERNEL_SUMS..][..KERNEL_SUMS];
                        // SAFETY: promised by the caller.
                        unsafe { self.add(&tiles, &product, sums, rows, target) };
                    }
                }
            }
        });
    }

    /// One kernel's sums of one part of the inputs.
    ///
    /// # Safety
    /// As [`Self::run`]; `waiting` is aligned to a tile's rows.
    unsafe fn add(
        self,
        tiles: &Tiles,
        product: &Product<'_>,
        waiting: &mut [f32],
        rows: usize,
        target: Target<'_>,
    ) {
        let steps = self.in_features / STEP;
        let count = product.steps.len();
        let x = |tile: usize| {
            let tile = product.first_tile + tile;
            product.x[(tile * steps + product.steps.start) * TILE..].as_ptr()
        };
        // A kernel has room for more panels than there may be left: it then takes the last one again.
        let weights = |n: usize| {
            let panel = product.panel + n.min(product.panel_count - 1);
            self.panels[(panel * steps + product.steps.start) * (TILE_BYTES / 4)..].as_ptr()
        };
        let kernel_rows = product.tile_count * TILE_ROWS;
        let kernel_outputs = KERNEL_SUMS / kernel_rows;
        let waiting_sums = Sums {
            first: waiting.as_mut_ptr(),
            row_bytes: kernel_outputs * size_of::<f32>(),
        };
        let from = if product.is_first {
            Sums::zero()
        } else {
            Sums {
                first: waiting_sums.first.cast_const(),
                row_bytes: waiting_sums.row_bytes,
            }
        };
        let first_row = product.first_tile * TILE_ROWS;
        let first_output = product.panel * LANES;
        let real_rows = kernel_rows.min(rows - first_row);
        let real_outputs = kernel_outputs.min(self.out_features - first_output);
        let real_outputs = real_outputs.min(product.panel_count * LANES);
        let is_whole = (real_rows, real_outputs) == (kernel_rows, kernel_outputs);
        let out = target.out.at(first_row * target.stride + first_output);
        // Whole tiles of final sums go straight to their place.
        let direct = product.is_last && is_whole && target.bias.is_none();
        let to = if direct {
            Sums {
                first: out,
                row_bytes: target.stride * size_of::<f32>(),
            }
        } else {
            waiting_sums
        };
        // SAFETY: promised by the caller; rows and weights have these steps, and both places of sums have
        // room for the kernel's.
        unsafe {
            if product.tile_count == 2 {
                let (x, weights) = ([x(0), x(1)], [weights(0), weights(1)]);
                tiles.add_two_by_two(count, x, weights, product.ahead, from, to);
            } else {
                let weights = [weights(0), weights(1), weights(2), weights(3)];
                tiles.add_one_by_four(count, x(0), weights, product.ahead, from, to);
            }
        }
        if product.is_last && !direct {
            let write = Write {
                sums: waiting,
                width: kernel_outputs,
                rows: real_rows,
                outputs: real_outputs,
                bias: target.bias.map(|bias| &bias[first_output..]),
                out,
                stride: target.stride,
            };
            // SAFETY: promised by the caller; the instruction set is the machine's.
            unsafe { dispatch(Isa::detected(), write) };
        }
    }
}

/// Some tiles of rows with some panels, over some steps of the inputs.
struct Product<'a> {
    x: &'a [u16],
    first_tile: usize,
    /// One or two.
    tile_count: usize,
    steps: Range<usize>,
    panel: usize,
    panel_count: usize,
    ahead: Ahead,
    is_first: bool,
    is_last: bool,
}

/// Writes the sums of real rows and outputs, with the bias.
struct Write<'a> {
    /// Rows of `width`.
    sums: &'a [f32],
    width: usize,
    rows: usize,
    outputs: usize,
    bias: Option<&'a [f32]>,
    /// Rows of `stride`, of which nobody else uses these outputs.
    out: *mut f32,
    stride: usize,
}

impl SimdTask for Write<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (row, sums) in self
            .sums
            .chunks_exact(self.width)
            .take(self.rows)
            .enumerate()
        {
            for first in (0..self.outputs).step_by(LANES) {
                let lanes = LANES.min(self.outputs - first);
                // SAFETY: as the fields say.
                unsafe {
                    let mut sum = S::load(sums[first..][..LANES].as_ptr());
                    if let Some(bias) = self.bias {
                        sum = S::add(sum, load_part::<S>(&bias[first..][..lanes]));
                    }
                    let out = self.out.add(row * self.stride + first);
                    store_part::<S>(std::slice::from_raw_parts_mut(out, lanes), sum);
                }
            }
        }
    }
}
