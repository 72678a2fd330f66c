//! Products with `bf16` weights on matrix tiles (AMX): activations rounded to `bf16`, sums in `f32`.
//!
//! All rows go this way, however few: tiles add in an order of their own, and a row's result must not
//! depend on the other rows.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use super::Target;
use crate::kernels::amx::{STEP, TILE_BYTES, TILE_ROWS, Tiles};
use crate::kernels::isa::Isa;
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Multiply-adds below which a product is not worth sharing among threads.
const SMALL: usize = 1 << 20;
/// Bytes of packed rows that stay in the second-level cache while panels stream past them.
const ROW_BLOCK_BYTES: usize = 512 * 1024;
/// `bf16` of a tile.
const TILE: usize = TILE_BYTES / 2;
/// Numbers of a tile of sums.
const SUMS: usize = TILE_ROWS * LANES;

/// Rows as `bf16`, `[tile of rows][step of inputs][row][input]`.
#[derive(Default)]
pub(super) struct Activations {
    tiles: Vec<u16>,
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
        x: &[f32],
        rows: usize,
        inputs: usize,
    ) -> Result<(), KernelError> {
        if std::mem::replace(&mut self.packed, true) {
            return Ok(());
        }
        let count = rows.div_ceil(TILE_ROWS);
        let tile_len = inputs / STEP * TILE;
        if self.tiles.len() < count * tile_len {
            self.tiles.resize(count * tile_len, 0);
        }
        let out = SharedMut::new(&mut self.tiles);
        pool.run_if(x.len() >= 64 * 1024, count, |_, index| {
            // SAFETY: each tile is a part of its own.
            let out = unsafe { out.slice(index * tile_len, tile_len) };
            let end = rows.min((index + 1) * TILE_ROWS);
            let x = &x[index * TILE_ROWS * inputs..end * inputs];
            if x.len() < TILE_ROWS * inputs {
                out.fill(0);
            }
            // SAFETY: the instruction set is one of the machine's.
            unsafe { dispatch(Isa::detected(), Round { x, inputs, out }) };
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
    static PRODUCTS: RefCell<Box<[f32; 4 * SUMS]>> = RefCell::new(Box::new([0.0; 4 * SUMS]));
}

impl TileWeights<'_> {
    /// The product with `rows` rows of `x`. The machine must have tiles.
    pub(super) fn matmul(
        self,
        pool: &ThreadPool,
        x: &[f32],
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        activations.pack(pool, x, rows, self.in_features)?;
        let x = activations.tiles.as_slice();
        let panels = self.out_features.div_ceil(LANES);
        // Panels a task: at least 32 tasks of pairs, up to sixteen panels.
        let chunk = panels.div_ceil(32).next_multiple_of(2).min(16);
        let chunks = panels.div_ceil(chunk);
        let tiles = rows.div_ceil(TILE_ROWS);
        let block = (ROW_BLOCK_BYTES / (self.in_features * 2 * TILE_ROWS)).max(2);
        let blocks = tiles.div_ceil(block.next_multiple_of(2));
        let task = |_: usize, index: usize| {
            let first = index % chunks * chunk;
            // Whole pairs of tiles, but for the last.
            let block = tiles.div_ceil(blocks).next_multiple_of(2);
            let start = index / chunks * block;
            let tiles = start..tiles.min(start + block);
            // SAFETY: the machine has tiles; each block and chunk has outputs of its own.
            unsafe { self.run(x, rows, tiles, first..panels.min(first + chunk), target) };
        };
        let worth = rows * self.out_features * self.in_features >= SMALL;
        pool.run_if(worth, blocks * chunks, task)
    }

    /// Some panels against some tiles of rows.
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
        let panel_len = steps * TILE_BYTES / 4;
        // SAFETY: promised by the caller; tasks do not nest.
        let tiles = unsafe { Tiles::configure() };
        PRODUCTS.with_borrow_mut(|products| {
            let mut panel = panels.start;
            while panel < panels.end {
                let count = 2.min(panels.end - panel);
                // An odd last panel goes with itself.
                let weights =
                    [0, count - 1].map(|n| self.panels[(panel + n) * panel_len..].as_ptr());
                let mut tile = row_tiles.start;
                while tile < row_tiles.end {
                    let row_count = 2.min(row_tiles.end - tile);
                    let x = [0, row_count - 1].map(|n| x[(tile + n) * steps * TILE..].as_ptr());
                    let sums = products.as_mut_ptr();
                    // SAFETY: rows and weights have as many steps; the sums have room.
                    unsafe {
                        if row_count == 2 {
                            tiles.bf16_products(steps, x, weights, sums);
                        } else {
                            tiles.bf16_products_of_few(steps, x[0], weights, sums);
                        }
                    }
                    for (index, sums) in products.chunks_exact(SUMS).enumerate() {
                        let (n, row_tile) = (index % 2, tile + index / 2);
                        if n < count && index / 2 < row_count {
                            // SAFETY: promised by the caller.
                            unsafe { self.write(sums, rows, row_tile, panel + n, target) };
                        }
                    }
                    tile += row_count;
                }
                panel += count;
            }
        });
    }

    /// Adds the bias and writes the rows and outputs that are real.
    ///
    /// # Safety
    /// Nobody else writes these rows' outputs of this panel.
    unsafe fn write(
        self,
        sums: &[f32],
        rows: usize,
        row_tile: usize,
        panel: usize,
        target: Target<'_>,
    ) {
        let first = panel * LANES;
        let outputs = LANES.min(self.out_features - first);
        let first_row = row_tile * TILE_ROWS;
        for (row, sums) in (first_row..rows).zip(sums.chunks_exact(LANES)) {
            // SAFETY: promised by the caller.
            let out = unsafe { target.out.slice(row * target.stride + first, outputs) };
            match target.bias {
                None => out.copy_from_slice(&sums[..outputs]),
                Some(bias) => {
                    for ((out, &sum), &bias) in out.iter_mut().zip(sums).zip(&bias[first..]) {
                        *out = sum + bias;
                    }
                }
            }
        }
    }
}
