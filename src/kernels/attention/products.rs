//! Products of matrix tiles that go on step by step beside other work.
//!
//! A tile product takes dozens of cycles in a unit of its own, and leaves the rest of the core idle. So scores and sums of
//! values are computed a step at a time, between vectors of weights.

use std::ops::Range;

use super::tiles::{KEY_STEPS, KEY_TILES};
use crate::kernels::amx::{STEP, Sums, TILE_BYTES, TILE_ROWS, Tiles, prefetch_tile};
use crate::kernels::isa::Isa;
use crate::kernels::kv::tiles::TILE_WORDS;
use crate::kernels::simd::LANES;

/// `bf16` of a tile of rows.
pub(super) const ROW_STEP: usize = TILE_BYTES / 2;
/// The most panels that a product takes at a time.
pub(super) const MOST_PANELS: usize = 4;

/// How many turns before their own panels are asked for.
const TURNS_AHEAD: usize = 2;

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
pub(super) enum Panels {
    /// Each panel by itself: its steps follow each other.
    Keys([*const u32; KEY_TILES]),
    /// Each step by itself: the panels' tiles follow each other. Behind the last there is room for three.
    Values([*const u32; KEY_STEPS]),
}

/// One product: `to[row][output] = Σ rows[row][input] · panels[output][input]`.
#[derive(Clone, Copy)]
pub(super) struct Product {
    /// One or two.
    pub(super) row_tiles: usize,
    /// At least one.
    pub(super) steps: usize,
    /// The first row of the first tile.
    pub(super) rows: *const u16,
    /// `bf16` from one tile of rows to the next.
    pub(super) row_tile_length: usize,
    pub(super) panels: Panels,
    pub(super) panel_count: usize,
    /// Room for whole groups of panels: two with two tiles of rows, four with one.
    pub(super) to: *mut f32,
    /// Numbers from one row of `to` to the next.
    pub(super) stride: usize,
}

impl Product {
    fn rows(&self, tile: usize) -> *const u16 {
        self.rows.wrapping_add(tile * self.row_tile_length)
    }

    /// The tile of a panel's step.
    fn panel_tile(&self, panel: usize, step: usize) -> *const u32 {
        match &self.panels {
            // A group has room for more panels than there may be left: it then takes the last one again.
            Panels::Keys(panels) => {
                panels[panel.min(self.panel_count - 1)].wrapping_add(step * TILE_WORDS)
            }
            Panels::Values(steps) => steps[step].wrapping_add(panel * TILE_WORDS),
        }
    }

    /// Panels that go past the rows at a time.
    fn group(&self) -> usize {
        if self.row_tiles == 2 { 2 } else { MOST_PANELS }
    }

    /// How many turns the product takes.
    fn turns(&self) -> usize {
        self.panel_count.div_ceil(self.group()) * self.steps
    }

    /// All of it at once.
    ///
    /// # Safety
    /// As [`Self::turn`].
    pub(super) unsafe fn run(&self, products: &mut Products) {
        for panel in (0..self.panel_count).step_by(self.group()) {
            for step in 0..self.steps {
                // SAFETY: promised by the caller.
                unsafe { self.turn(products, (panel, step)) };
            }
        }
    }

    /// As [`Self::run`], while the panels of later turns, and of the product that comes next, are asked for.
    ///
    /// # Safety
    /// As [`Self::turn`].
    pub(super) unsafe fn run_asking(&self, products: &mut Products, next: Option<&Product>) {
        let turns = self.turns();
        for turn in 0..turns {
            let asked = turn + TURNS_AHEAD;
            if asked < turns {
                self.ask(asked);
            } else if let Some(next) = next
                && asked - turns < next.turns()
            {
                next.ask(asked - turns);
            }
            // SAFETY: promised by the caller.
            unsafe { self.turn(products, self.at(turn)) };
        }
    }

    /// The first panel and the step of a turn.
    fn at(&self, turn: usize) -> (usize, usize) {
        (turn / self.steps * self.group(), turn % self.steps)
    }

    /// Asks for the panels of a turn.
    fn ask(&self, turn: usize) {
        let (panel, step) = self.at(turn);
        for panel in panel..self.panel_count.min(panel + self.group()) {
            prefetch_tile(self.panel_tile(panel, step));
        }
    }

    /// One step of a group of panels.
    ///
    /// # Safety
    /// The pointers cover what they say; `to` has as many rows as the products were made for, or sixteen for
    /// each tile of rows. Turns come in order, with none of another product between those of a group.
    #[inline(always)]
    unsafe fn turn(&self, products: &mut Products, (panel, step): (usize, usize)) {
        let tiles = match products {
            Products::Tiles(tiles) => tiles,
            Products::Twin => {
                if step == 0 {
                    let outputs = panel * LANES..(panel + self.group()) * LANES;
                    // SAFETY: promised by the caller.
                    unsafe { self.one_by_one(outputs) };
                }
                return;
            }
        };
        if step == 0 {
            tiles.begin();
        }
        let is_last = step + 1 == self.steps;
        let rows = |tile: usize| self.rows(tile).wrapping_add(step * ROW_STEP);
        let weights = |n: usize| self.panel_tile(panel + n, step);
        let to = Sums {
            first: self.to.wrapping_add(panel * LANES),
            row_bytes: self.stride * size_of::<f32>(),
        };
        // SAFETY: promised by the caller.
        unsafe {
            if self.row_tiles == 2 {
                tiles.multiply_two_by_two([rows(0), rows(1)], [weights(0), weights(1)]);
                if is_last {
                    tiles.store_two_by_two(to);
                }
            } else {
                let weights = [weights(0), weights(1), weights(2), weights(3)];
                tiles.multiply_one_by_four(rows(0), weights);
                if is_last {
                    tiles.store_one_by_four(to);
                }
            }
        }
    }

    /// What tiles compute, one number at a time.
    ///
    /// # Safety
    /// As [`Self::turn`], with sixteen rows for each tile of rows.
    #[cold]
    unsafe fn one_by_one(&self, outputs: Range<usize>) {
        let number = |bits: u16| flushed(f32::from_bits(u32::from(bits) << 16));
        for row in 0..self.row_tiles * TILE_ROWS {
            for output in outputs.clone() {
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

/// Products that go on beside other work, one after the other.
pub(super) struct Beside<'a> {
    products: &'a mut Products,
    waiting: [Option<Product>; 2],
    /// The next panel and step of the first that waits.
    at: (usize, usize),
    /// Turns of products for so many turns of the other work.
    turns: usize,
    of: usize,
    due: usize,
}

impl<'a> Beside<'a> {
    /// Products that take as long as `turns` turns of other work.
    ///
    /// # Safety
    /// Until [`Self::finish`], as [`Product::turn`] for each of them.
    #[inline(always)]
    pub(super) unsafe fn new(
        products: &'a mut Products,
        mut waiting: [Option<Product>; 2],
        turns: usize,
    ) -> Self {
        if waiting[0].is_none() {
            waiting.swap(0, 1);
        }
        Self {
            products,
            turns: waiting.iter().flatten().map(Product::turns).sum(),
            waiting,
            at: (0, 0),
            of: turns.max(1),
            due: 0,
        }
    }

    /// One turn of the other work is done.
    #[inline(always)]
    pub(super) fn turn(&mut self) {
        self.due += self.turns;
        while self.due >= self.of {
            self.due -= self.of;
            self.step();
        }
    }

    /// Works through what is left.
    #[inline(always)]
    pub(super) fn finish(mut self) {
        while self.step() {}
    }

    /// The next step, if there is one.
    #[inline(always)]
    fn step(&mut self) -> bool {
        let [first, second] = &mut self.waiting;
        let Some(product) = first else {
            return false;
        };
        // SAFETY: promised when this was made; turns come in order here.
        unsafe { product.turn(self.products, self.at) };
        self.at.1 += 1;
        if self.at.1 == product.steps {
            self.at = (self.at.0 + product.group(), 0);
        }
        if self.at.0 >= product.panel_count {
            self.at = (0, 0);
            *first = second.take();
        }
        true
    }
}
