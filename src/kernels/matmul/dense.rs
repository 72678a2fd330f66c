//! Dense weights in panels of sixteen outputs.
//!
//! A panel holds, for two inputs at a time, the weights of its sixteen outputs: `f32` and `f16` one input
//! after the other, `bf16` as pairs in one word, which is what the `bf16` dot product takes and what two
//! shifts widen to `f32`. Outputs and inputs are filled up with zeros to whole panels and pairs.

use std::ops::Range;

use half::{bf16, f16};

use super::activations::{Activations, Kind, RowTile};
use super::micro::{
    KernelSize, MicroArgs, PanelElement, multiply, multiply_pairs, pair_of, panel_group,
};
#[cfg(target_arch = "x86_64")]
use super::tiles::{self, TileWeights};
use super::{Input, Precision, Target};
use crate::kernels::aligned::{AlignedBuffer, Number};
use crate::kernels::isa::Isa;
use crate::kernels::simd::LANES;
use crate::kernels::{KernelError, ThreadPool};

/// Multiply-adds below which a product is not worth sharing among threads.
const SMALL: usize = 128 * 1024;
/// Rows whose activations are kept in the second-level cache while panels stream past them.
const ROW_BLOCK_BYTES: usize = 384 * 1024;

/// The most panels of a tile of work.
const MAX_CHUNK: usize = 16;

pub(super) struct DenseMatrix {
    out_features: usize,
    in_features: usize,
    precision: Precision,
    panels: Panels,
}

enum Panels {
    F32(AlignedBuffer<f32>),
    F16(AlignedBuffer<f16>),
    /// Pairs of inputs: the even one in the lower half.
    Bf16(AlignedBuffer<u32>),
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
fn pack_planes<T: Number>(
    weights: &[T],
    outputs: usize,
    inputs: usize,
    zero: T,
) -> AlignedBuffer<T> {
    let slots = LANES * outputs.div_ceil(LANES) * inputs.div_ceil(2);
    let mut panels = AlignedBuffer::zeros(2 * slots);
    let places = &mut panels[..];
    for_pairs(weights, inputs, zero, |slot, even, odd| {
        let place = slot / LANES * 2 * LANES + slot % LANES;
        places[place] = even;
        places[place + LANES] = odd;
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
        let slots = LANES * out_features.div_ceil(LANES) * in_features.div_ceil(2);
        let mut panels = AlignedBuffer::zeros(slots);
        let places = &mut panels[..];
        for_pairs(weights, in_features, bf16::ZERO, |slot, even, odd| {
            places[slot] = pair_of(even, odd);
        });
        let panels = Panels::Bf16(panels);
        Self {
            out_features,
            in_features,
            precision: Precision::Exact,
            panels,
        }
    }

    pub(super) fn rounds_activations(&self) -> bool {
        matches!(self.panels, Panels::Bf16(_)) && self.precision == Precision::Fast
    }

    pub(super) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Takes the outputs of `next` in behind its own, if both are of one kind and its panels are whole.
    pub(super) fn append(&mut self, next: &DenseMatrix) -> bool {
        if !self.out_features.is_multiple_of(LANES)
            || (self.in_features, self.precision) != (next.in_features, next.precision)
        {
            return false;
        }
        match (&mut self.panels, &next.panels) {
            (Panels::F32(own), Panels::F32(next)) => own.append(next),
            (Panels::F16(own), Panels::F16(next)) => own.append(next),
            (Panels::Bf16(own), Panels::Bf16(next)) => own.append(next),
            _ => return false,
        }
        self.out_features += next.out_features;
        true
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
        x: Input<'_>,
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        let kind = self.activation_kind(isa);
        activations.pack(isa, pool, x, self.in_features, kind)?;
        let activations = &*activations;
        let panels = self.out_features.div_ceil(LANES);
        // Panels a tile: at least 32 tiles of whole groups of four, up to sixteen panels.
        let chunk = (panels.div_ceil(32)).next_multiple_of(4).min(MAX_CHUNK);
        let chunks = panels.div_ceil(chunk);
        let tiles = activations.tiles(kind);
        let block = (ROW_BLOCK_BYTES / (self.pairs() * 2 * kind.size())).max(32);
        let blocks = rows.div_ceil(block).min(tiles.len());
        let work = Work {
            matrix: self,
            isa,
            activations,
            target,
            kind,
        };
        let tile = |index: usize| {
            // All rows with some panels first: weights come from memory once.
            let (block, first) = (index % blocks, index / blocks * chunk);
            let at = |block: usize| block * tiles.len() / blocks;
            let panels = first..panels.min(first + chunk);
            // SAFETY: the ISA is available; each block and chunk has outputs of its own.
            unsafe { work.run(&tiles[at(block)..at(block + 1)], panels) }
        };
        let worth = rows * self.out_features * self.in_features >= SMALL;
        pool.run_neighbours_if(worth, blocks * chunks, |_, index| tile(index))
    }

    /// How this product's activations are packed, which says how it is computed.
    fn activation_kind(&self, isa: Isa) -> Kind {
        match (&self.panels, self.precision) {
            (Panels::Bf16(_), Precision::Fast) if isa.has_bf16_dot() => Kind::Bf16Pairs,
            _ => Kind::F32,
        }
    }
}

/// One product, as all its tiles see it.
struct Work<'a> {
    matrix: &'a DenseMatrix,
    isa: Isa,
    activations: &'a Activations,
    target: Target<'a>,
    kind: Kind,
}

impl Work<'_> {
    /// Some panels against some tiles of rows.
    ///
    /// # Safety
    /// The ISA is available and nobody else writes these rows' outputs of these panels.
    unsafe fn run(&self, tiles: &[RowTile], panels: Range<usize>) {
        let numbers = self.activations.numbers();
        let pairs = self.activations.pairs();
        // SAFETY: promised by the caller.
        unsafe {
            match (&self.matrix.panels, self.kind) {
                (Panels::F32(weights), _) => self.all(tiles, panels, weights, numbers, multiply),
                (Panels::F16(weights), _) => self.all(tiles, panels, weights, numbers, multiply),
                (Panels::Bf16(weights), Kind::F32) => {
                    self.all(tiles, panels, weights, numbers, multiply);
                }
                (Panels::Bf16(weights), Kind::Bf16Pairs) => {
                    self.all(tiles, panels, weights, pairs, multiply_pairs);
                }
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
        x: &[X],
        multiply: unsafe fn(Isa, KernelSize, &MicroArgs<E, X>),
    ) {
        let widest = tiles.iter().map(|tile| tile.kernel_rows).max().unwrap_or(0);
        let group = panel_group(self.isa, widest);
        let pairs = self.matrix.pairs();
        let panel_length = pairs * E::STEP;
        // Rows outside, panels inside: results of neighbouring panels then go to neighbouring places, while
        // a walk down all rows would touch a new page of the output every time.
        for tile in tiles {
            let x = x[tile.start..].as_ptr();
            let mut panel = panels.start;
            while panel < panels.end {
                let width = if panels.end - panel >= group {
                    group
                } else {
                    1
                };
                let first = panel * LANES;
                let args = MicroArgs {
                    weights: weights[panel * panel_length..].as_ptr(),
                    panel_length,
                    x,
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
                let size = KernelSize {
                    rows: tile.kernel_rows,
                    panels: width,
                };
                // SAFETY: promised by the caller; the panels and the tile lie inside their buffers.
                unsafe { multiply(self.isa, size, &args) };
                panel += width;
            }
        }
    }
}
