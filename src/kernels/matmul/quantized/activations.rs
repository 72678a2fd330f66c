//! Activations as bytes, in the order in which the kernels read them.
//!
//! Rows go in tiles. A tile's record of one block of inputs holds, word by word for all rows of the tile:
//!
//! | [`Activation::Super`], 256 inputs | [`Activation::Plain`], 32 inputs |
//! |---|---|
//! | 64 words: four quants each | 8 words: four quants each |
//! | 4 words: the sums of twice 32 quants, as `i16` | 1 word: −128 · the sum of the quants, lifted ([`ByteDot::LIFT`]) |
//! | 16 words: −32 · the sum of 16 quants | 1 word: the scale, as `f32` |
//! | 1 word: the scale, as `f32` | |

use super::formats::Activation;
use super::micro::most_rows;
use crate::kernels::isa::Isa;
use crate::kernels::matmul::Input;
use crate::kernels::simd::{ByteDot, ByteDotTask, LANES, dispatch_bytes};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Inputs below which rows are quantized by the calling thread alone.
const SMALL: usize = 32 * 1024;

impl Activation {
    /// Inputs that share a scale.
    pub(super) const fn inputs(self) -> usize {
        match self {
            Self::Super => 256,
            Self::Plain => 32,
        }
    }

    /// Words of a record for one row.
    pub(super) const fn record(self) -> usize {
        match self {
            Self::Super => 64 + 4 + 16 + 1,
            Self::Plain => 8 + 1 + 1,
        }
    }
}

/// Some rows that go through a kernel together.
#[derive(Clone, Copy)]
pub(super) struct RowTile {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// Where its records begin.
    pub(super) start: usize,
}

impl RowTile {
    /// `count` tiles, as equal as possible, of all rows; `start` is told a tile's index and its first row.
    pub(super) fn cover(
        rows: usize,
        count: usize,
        start: impl Fn(usize, usize) -> usize,
    ) -> impl Iterator<Item = Self> {
        let mut first_row = 0;
        (0..count).map(move |index| {
            let tile = Self {
                first_row,
                rows: (rows - first_row).div_ceil(count - index),
                start: start(index, first_row),
            };
            first_row += tile.rows;
            tile
        })
    }
}

/// Quantized rows.
#[derive(Default)]
pub(super) struct Activations {
    tiles: Vec<RowTile>,
    super_blocks: Words,
    plain_blocks: Words,
}

#[derive(Default)]
struct Words {
    words: Vec<u32>,
    filled: bool,
}

impl Activations {
    /// A new call: what is quantized belongs to other rows.
    pub(super) fn forget(&mut self) {
        self.super_blocks.filled = false;
        self.plain_blocks.filled = false;
    }

    /// Quantizes the rows of `x`, of `inputs` numbers, unless that was done since [`Self::forget`].
    pub(super) fn fill(
        &mut self,
        isa: Isa,
        pool: &ThreadPool,
        x: Input<'_>,
        inputs: usize,
        kind: Activation,
    ) -> Result<Filled<'_>, KernelError> {
        let rows = x.rows(inputs);
        // Words of a row.
        let row_words = inputs / kind.inputs() * kind.record();
        let words = match kind {
            Activation::Super => &mut self.super_blocks,
            Activation::Plain => &mut self.plain_blocks,
        };
        let count = rows.div_ceil(most_rows(isa));
        let starts = |_: usize, first_row: usize| first_row * row_words;
        self.tiles.clear();
        self.tiles.extend(RowTile::cover(rows, count, starts));
        let end = rows * row_words;
        if !std::mem::replace(&mut words.filled, true) {
            if words.words.len() < end {
                words.words.resize(end, 0);
            }
            let (tiles, out) = (&self.tiles, SharedMut::new(&mut words.words));
            let quantize = |index: usize| {
                let tile = &tiles[index];
                x.with_rows(tile.first_row, tile.rows, inputs, |x| {
                    // SAFETY: each tile has its own part of the buffer, which was grown to hold all; the ISA
                    // is available.
                    unsafe {
                        let task = Quantize {
                            x,
                            inputs,
                            rows: tile.rows,
                            kind,
                            out: out.slice(tile.start, tile.rows * row_words),
                        };
                        dispatch_bytes(isa, task);
                    }
                });
            };
            pool.run_if(rows * inputs >= SMALL, count, |_, index| quantize(index))?;
        }
        Ok(Filled {
            tiles: &self.tiles,
            words: &words.words,
        })
    }
}

/// Quantized rows as a product reads them.
#[derive(Clone, Copy)]
pub(super) struct Filled<'a> {
    pub(super) tiles: &'a [RowTile],
    pub(super) words: &'a [u32],
}

impl<'a> Filled<'a> {
    /// How many blocks of about `rows` rows there are.
    pub(super) fn blocks(self, rows: usize) -> usize {
        let all: usize = self.tiles.iter().map(|tile| tile.rows).sum();
        all.div_ceil(rows).min(self.tiles.len())
    }

    /// The tiles of one of `blocks` blocks.
    pub(super) fn block(self, index: usize, blocks: usize) -> &'a [RowTile] {
        let count = self.tiles.len();
        &self.tiles[index * count / blocks..(index + 1) * count / blocks]
    }
}

/// Quantizes the rows of one tile.
struct Quantize<'a> {
    x: &'a [f32],
    inputs: usize,
    rows: usize,
    kind: Activation,
    out: &'a mut [u32],
}

impl ByteDotTask for Quantize<'_> {
    #[inline(always)]
    unsafe fn run<S: ByteDot>(self) {
        let Self {
            x,
            inputs,
            rows,
            kind,
            out,
        } = self;
        let mut quants = [0i8; 256];
        for (row, x) in x.chunks_exact(inputs).enumerate() {
            let records = out.chunks_exact_mut(kind.record() * rows);
            for (x, record) in x.chunks_exact(kind.inputs()).zip(records) {
                let quants = &mut quants[..x.len()];
                // SAFETY: the instruction set is there, as the caller promises; both have as many elements.
                let scale = unsafe { quantize::<S>(x, quants) };
                let mut words = record.iter_mut().skip(row).step_by(rows);
                let mut put = |word: u32| {
                    if let Some(place) = words.next() {
                        *place = word;
                    }
                };
                for four in quants.chunks_exact(4) {
                    put(u32::from_le_bytes(std::array::from_fn(|i| four[i] as u8)));
                }
                match kind {
                    Activation::Super => {
                        quants
                            .chunks_exact(64)
                            .for_each(|pair| put(pair_sums(pair)));
                        for sixteen in quants.chunks_exact(16) {
                            put((-32 * sum(sixteen)) as u32);
                        }
                    }
                    Activation::Plain => put((S::LIFT - 128 * sum(quants)) as u32),
                }
                put(scale.to_bits());
            }
        }
    }
}

#[inline(always)]
fn sum(quants: &[i8]) -> i32 {
    quants.iter().map(|&q| i32::from(q)).sum()
}

/// The sums of twice 32 quants, each within ±4,064, as two `i16`.
#[inline(always)]
pub(super) fn pair_sums(quants: &[i8]) -> u32 {
    let [first, second] = [&quants[..32], &quants[32..]].map(|quants| sum(quants) as u16);
    u32::from(first) | u32::from(second) << 16
}

/// `quants = round(x / scale)` with the scale that maps the largest magnitude to 127; returns the scale.
/// If a number is infinite or none at all, so is the scale, that it shows in the results.
///
/// # Safety
/// As [`ByteDot`]; the slices have the same length, a multiple of sixteen.
#[inline(always)]
pub(super) unsafe fn quantize<S: ByteDot>(x: &[f32], quants: &mut [i8]) -> f32 {
    // SAFETY: promised by the caller.
    unsafe {
        let mut largest = S::splat(0.0);
        let mut poison = S::splat(0.0);
        for x in x.chunks_exact(LANES) {
            let x = S::load(x.as_ptr());
            let magnitude = S::max(x, S::sub(S::splat(0.0), x));
            largest = S::max(magnitude, largest);
            poison = S::fma(x, S::splat(0.0), poison);
        }
        let largest = S::max_lane(largest);
        let inverse = S::splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
        for (x, quants) in x.chunks_exact(LANES).zip(quants.chunks_exact_mut(LANES)) {
            let scaled = S::round(S::mul(S::load(x.as_ptr()), inverse));
            S::store_i8(quants.as_mut_ptr(), scaled);
        }
        largest / 127.0 + S::sum(poison)
    }
}
