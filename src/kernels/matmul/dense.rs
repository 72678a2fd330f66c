//! Dense weights in panels of sixteen outputs.
//!
//! A panel holds, for two inputs at a time, the weights of its sixteen outputs: `f32` and `f16` one input
//! after the other, `bf16` as pairs in one word, which is what the `bf16` dot product takes and what two
//! shifts widen to `f32`. Outputs and inputs are filled up with zeros to whole panels and pairs.

use std::ops::Range;

use half::{bf16, f16};

use super::micro::{
    KernelSize, MicroArgs, PanelElement, kernel_rows, max_rows, multiply, multiply_pairs,
    panel_group,
};
#[cfg(target_arch = "x86_64")]
use super::tiles::{self, TileWeights};
use super::{Precision, Target};
use crate::kernels::isa::Isa;
use crate::kernels::simd::LANES;
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Multiply-adds below which a product is not worth sharing among threads.
const SMALL: usize = 128 * 1024;
/// Rows whose activations are kept in the second-level cache while panels stream past them.
const ROW_BLOCK_BYTES: usize = 384 * 1024;

pub(super) struct DenseMatrix {
    out_features: usize,
    in_features: usize,
    precision: Precision,
    panels: Panels,
}

enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// Pairs of inputs: the even one in the lower half.
    Bf16(Vec<u32>),
}

/// Packs row-major weights: `put(panel slot, even weight, odd weight)` for each pair of inputs, where the
/// slot is `(panel · pairs + pair) · 16 + lane`.
fn for_pairs<T: Copy>(weights: &[T], inputs: usize, zero: T, mut put: impl FnMut(usize, T, T)) {
    let pairs = inputs.div_ceil(2);
    for (output, row) in weights.chunks_exact(inputs).enumerate() {
        let start = output / LANES * pairs * LANES + output % LANES;
        for (pair, values) in row.chunks(2).enumerate() {
            put(
                start + pair * LANES,
                values[0],
                values.get(1).copied().unwrap_or(zero),
            );
        }
    }
}

/// Packs weights of which a panel holds first the even inputs' sixteen outputs, then the odd ones'.
fn pack_planes<T: Copy>(weights: &[T], outputs: usize, inputs: usize, zero: T) -> Vec<T> {
    let mut panels = vec![zero; 2 * LANES * outputs.div_ceil(LANES) * inputs.div_ceil(2)];
    for_pairs(weights, inputs, zero, |slot, even, odd| {
        let place = slot / LANES * 2 * LANES + slot % LANES;
        panels[place] = even;
        panels[place + LANES] = odd;
    });
    panels
}

impl DenseMatrix {
    pub(super) fn from_f32(weights: &[f32], out_features: usize, in_features: usize) -> Self {
        let panels = Panels::F32(pack_planes(weights, out_features, in_features, 0.0));
        Self {
            out_features,
            in_features,
            precision: Precision::Exact,
            panels,
        }
    }

    pub(super) fn from_f16(weights: &[f16], out_features: usize, in_features: usize) -> Self {
        let panels = Panels::F16(pack_planes(weights, out_features, in_features, f16::ZERO));
        Self {
            out_features,
            in_features,
            precision: Precision::Exact,
            panels,
        }
    }

    pub(super) fn from_bf16(weights: &[bf16], out_features: usize, in_features: usize) -> Self {
        let mut panels = vec![0u32; LANES * out_features.div_ceil(LANES) * in_features.div_ceil(2)];
        for_pairs(weights, in_features, bf16::ZERO, |slot, even, odd| {
            panels[slot] = pair_of(even, odd);
        });
        let panels = Panels::Bf16(panels);
        Self {
            out_features,
            in_features,
            precision: Precision::Exact,
            panels,
        }
    }

    pub(super) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    pub(super) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => panels.len() * 4,
            Panels::F16(panels) => panels.len() * 2,
            Panels::Bf16(panels) => panels.len() * 4,
        }
    }

    /// The weights for matrix tiles, if that is how they are multiplied on this instruction set.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn tiles(&self, isa: Isa) -> Option<TileWeights<'_>> {
        match &self.panels {
            Panels::Bf16(panels)
                if self.precision == Precision::Fast
                    && isa.has_tiles()
                    && tiles::fits(self.in_features) =>
            {
                Some(TileWeights {
                    panels,
                    out_features: self.out_features,
                    in_features: self.in_features,
                })
            }
            _ => None,
        }
    }

    fn pairs(&self) -> usize {
        self.in_features.div_ceil(2)
    }

    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let start = row / LANES * self.pairs() * LANES;
        let lane = row % LANES;
        for (input, x) in out.iter_mut().enumerate() {
            let slot = start + input / 2 * LANES;
            let plane = 2 * slot + input % 2 * LANES + lane;
            *x = match &self.panels {
                Panels::F32(panels) => panels[plane],
                Panels::F16(panels) => panels[plane].to_f32(),
                Panels::Bf16(panels) => {
                    let pair = panels[slot + lane];
                    f32::from_bits(if input % 2 == 0 {
                        pair << 16
                    } else {
                        pair & 0xffff_0000
                    })
                }
            };
        }
    }

    pub(super) fn matmul(
        &self,
        isa: Isa,
        pool: &ThreadPool,
        x: &[f32],
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        let fast = self.precision == Precision::Fast
            && isa.has_bf16_dot()
            && matches!(self.panels, Panels::Bf16(_));
        let kind = if fast { Kind::Bf16Pairs } else { Kind::F32 };
        activations.pack(isa, pool, x, rows, self.in_features, kind)?;
        let activations = &*activations;
        let panels = self.out_features.div_ceil(LANES);
        // Panels a tile: at least 32 tiles of whole groups of four, up to sixteen panels.
        let chunk = (panels.div_ceil(32)).next_multiple_of(4).min(16);
        let chunks = panels.div_ceil(chunk);
        let block = (ROW_BLOCK_BYTES / (self.pairs() * 2 * kind.size())).max(24);
        let blocks = activations.blocks(block);
        let work = Work {
            matrix: self,
            isa,
            activations,
            target,
            fast,
        };
        let tile = |index: usize| {
            let (block, first) = (index / chunks, index % chunks * chunk);
            let tiles = activations.block(block, blocks);
            // SAFETY: the ISA is available; each block and chunk has outputs of its own.
            unsafe { work.run(tiles, first..panels.min(first + chunk)) }
        };
        if rows * self.out_features * self.in_features < SMALL {
            (0..blocks * chunks).for_each(tile);
            Ok(())
        } else {
            pool.run(blocks * chunks, |_, index| tile(index))
        }
    }
}

fn pair_of(even: bf16, odd: bf16) -> u32 {
    u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16
}

/// What activations are packed as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    /// Rounded to `bf16`, two inputs a word.
    Bf16Pairs,
}

impl Kind {
    /// Bytes of one activation.
    fn size(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16Pairs => 2,
        }
    }
}

/// Some rows that go through a micro-kernel together.
#[derive(Clone, Copy)]
struct RowTile {
    first_row: usize,
    rows: usize,
    /// The micro-kernel's rows, at least `rows`.
    kernel_rows: usize,
    /// Where its activations begin, in numbers (`F32`) or pairs (`Bf16Pairs`).
    start: usize,
}

/// Activations `[tile][input][row of the tile]`.
#[derive(Default)]
pub(super) struct Activations {
    tiles: Vec<RowTile>,
    numbers: Vec<f32>,
    words: Vec<u32>,
    has_numbers: bool,
    has_words: bool,
}

impl Activations {
    /// A new call: what is packed belongs to other rows.
    pub(super) fn forget(&mut self) {
        self.has_numbers = false;
        self.has_words = false;
    }

    fn pack(
        &mut self,
        isa: Isa,
        pool: &ThreadPool,
        x: &[f32],
        rows: usize,
        inputs: usize,
        kind: Kind,
    ) -> Result<(), KernelError> {
        let done = match kind {
            Kind::F32 => &mut self.has_numbers,
            Kind::Bf16Pairs => &mut self.has_words,
        };
        if std::mem::replace(done, true) {
            return Ok(());
        }
        let pairs = inputs.div_ceil(2);
        // Tiles as equal as possible.
        let most = max_rows(isa);
        let count = rows.div_ceil(most);
        self.tiles.clear();
        let (mut first_row, mut start) = (0, 0);
        for index in 0..count {
            let rows = (rows - first_row).div_ceil(count - index);
            let kernel_rows = kernel_rows(rows);
            self.tiles.push(RowTile {
                first_row,
                rows,
                kernel_rows,
                start,
            });
            first_row += rows;
            start += kernel_rows * pairs;
        }
        let (len, tiles) = (start, &self.tiles);
        // Starts are counted in pairs: twice that many numbers.
        let (numbers, words) = match kind {
            Kind::F32 => {
                grow(&mut self.numbers, 2 * len);
                (SharedMut::new(&mut self.numbers), None)
            }
            Kind::Bf16Pairs => {
                grow(&mut self.words, len);
                (
                    SharedMut(std::ptr::null_mut()),
                    Some(SharedMut::new(&mut self.words)),
                )
            }
        };
        let pack_tile = |tile: &RowTile| {
            let source = &x[tile.first_row * inputs..][..tile.rows * inputs];
            let len = tile.kernel_rows * pairs;
            // SAFETY: each tile has its own part of the buffer, which was grown to hold all.
            unsafe {
                match words {
                    None => {
                        pack_numbers(source, inputs, tile, numbers.slice(2 * tile.start, 2 * len))
                    }
                    Some(words) => pack_pairs(source, inputs, tile, words.slice(tile.start, len)),
                }
            }
        };
        if x.len() < SMALL / 2 {
            tiles.iter().for_each(pack_tile);
            Ok(())
        } else {
            pool.run(tiles.len(), |_, index| pack_tile(&tiles[index]))
        }
    }

    /// How many blocks of about `rows` rows there are.
    fn blocks(&self, rows: usize) -> usize {
        let last = self.tiles[self.tiles.len() - 1];
        (last.first_row + last.rows)
            .div_ceil(rows)
            .min(self.tiles.len())
    }

    /// The tiles of one of `blocks` blocks.
    fn block(&self, index: usize, blocks: usize) -> &[RowTile] {
        let count = self.tiles.len();
        &self.tiles[index * count / blocks..(index + 1) * count / blocks]
    }
}

fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// `out[input][row] = x[row][input]`, zeros for rows and inputs that fill up.
fn pack_numbers(x: &[f32], inputs: usize, tile: &RowTile, out: &mut [f32]) {
    let width = tile.kernel_rows;
    if width > tile.rows || inputs % 2 == 1 {
        out.fill(0.0);
    }
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (input, &x) in x.iter().enumerate() {
            out[input * width + row] = x;
        }
    }
}

/// `out[pair][row]`: two inputs of a row as `bf16`, zeros for rows and inputs that fill up.
fn pack_pairs(x: &[f32], inputs: usize, tile: &RowTile, out: &mut [u32]) {
    let width = tile.kernel_rows;
    if width > tile.rows {
        out.fill(0);
    }
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (pair, x) in x.chunks(2).enumerate() {
            let odd = x.get(1).copied().unwrap_or(0.0);
            out[pair * width + row] = pair_of(bf16::from_f32(x[0]), bf16::from_f32(odd));
        }
    }
}

/// One product, as all its tiles see it.
struct Work<'a> {
    matrix: &'a DenseMatrix,
    isa: Isa,
    activations: &'a Activations,
    target: Target<'a>,
    fast: bool,
}

impl Work<'_> {
    /// Some panels against some tiles of rows.
    ///
    /// # Safety
    /// The ISA is available and nobody else writes these rows' outputs of these panels.
    unsafe fn run(&self, tiles: &[RowTile], panels: Range<usize>) {
        let numbers = self.activations.numbers.as_ptr();
        // SAFETY: promised by the caller.
        unsafe {
            match &self.matrix.panels {
                Panels::F32(weights) => self.all(tiles, panels, weights, numbers, multiply),
                Panels::F16(weights) => self.all(tiles, panels, weights, numbers, multiply),
                Panels::Bf16(weights) if self.fast => {
                    let words = self.activations.words.as_ptr();
                    self.all(tiles, panels, weights, words, multiply_pairs);
                }
                Panels::Bf16(weights) => self.all(tiles, panels, weights, numbers, multiply),
            }
        }
    }

    /// # Safety
    /// As [`Self::run`]; `x` are the packed activations that `multiply` takes.
    unsafe fn all<E: PanelElement, X>(
        &self,
        tiles: &[RowTile],
        panels: Range<usize>,
        weights: &[E],
        x: *const X,
        multiply: unsafe fn(Isa, KernelSize, MicroArgs<E, X>),
    ) {
        let widest = tiles.iter().map(|tile| tile.kernel_rows).max().unwrap_or(0);
        let group = panel_group(self.isa, widest);
        let pairs = self.matrix.pairs();
        // Activations of a pair of inputs: one word or two numbers.
        let pair_length = if self.fast { 1 } else { 2 };
        let mut panel = panels.start;
        while panel < panels.end {
            let width = if panels.end - panel >= group {
                group
            } else {
                1
            };
            let first = panel * LANES;
            for tile in tiles {
                let args = MicroArgs {
                    weights: weights[panel * pairs * E::STEP..].as_ptr(),
                    panel_length: pairs * E::STEP,
                    x: x.wrapping_add(tile.start * pair_length),
                    pairs,
                    out: self
                        .target
                        .out
                        .at(tile.first_row * self.target.stride + first),
                    stride: self.target.stride,
                    rows: tile.rows,
                    outputs: (width * LANES).min(self.matrix.out_features - first),
                    bias: self
                        .target
                        .bias
                        .map_or(std::ptr::null(), |bias| bias[first..].as_ptr()),
                };
                // SAFETY: promised by the caller; the panels and the tile lie inside their buffers.
                unsafe {
                    multiply(
                        self.isa,
                        KernelSize {
                            rows: tile.kernel_rows,
                            panels: width,
                        },
                        args,
                    )
                };
            }
            panel += width;
        }
    }
}
