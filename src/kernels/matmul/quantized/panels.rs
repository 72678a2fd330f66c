//! Quantized weights in panels of sixteen outputs.

use std::ops::Range;

use candle_core::quantized::{GgmlDType, QTensor};

use super::Activations;
use super::activations::{Filled, RowTile};
use super::formats::{Q4_0, Q4K, Q5K, Q6K, Q8_0};
use super::micro::{AheadOfBlocks, AheadOfVectors, MicroArgs, multiply, panel_group};
use super::products::Product;
use crate::kernels::aligned::AlignedBuffer;
use crate::kernels::isa::Isa;
use crate::kernels::matmul::{Input, Target};
use crate::kernels::simd::{CACHE_LINE, LANES};
use crate::kernels::{KernelError, ThreadPool};

/// Multiply-adds below which a product is not worth sharing among threads.
const SMALL: usize = 256 * 1024;
/// Bytes of quantized rows that stay in the second-level cache while panels stream past them.
const ROW_BLOCK_BYTES: usize = 384 * 1024;
/// Bytes of weights below which packing is not worth a thread of its own.
const SMALL_PACKING: usize = 1 << 20;

/// Weights `[out, in]` in panels.
pub(in crate::kernels::matmul) struct PanelMatrix {
    out_features: usize,
    in_features: usize,
    kind: Kind,
    /// Panel blocks `[panel][block]`.
    panels: AlignedBuffer<u8>,
}

/// The types that there are panels for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Q4K,
    Q5K,
    Q6K,
    Q8_0,
    Q4_0,
}

/// Calls `$self.$method::<F>($arguments)` with the format of a kind.
macro_rules! with_format {
    ($kind:expr, $self:ident.$method:ident($($argument:expr),*)) => {
        match $kind {
            Kind::Q4K => $self.$method::<Q4K>($($argument),*),
            Kind::Q5K => $self.$method::<Q5K>($($argument),*),
            Kind::Q6K => $self.$method::<Q6K>($($argument),*),
            Kind::Q8_0 => $self.$method::<Q8_0>($($argument),*),
            Kind::Q4_0 => $self.$method::<Q4_0>($($argument),*),
        }
    };
}

impl PanelMatrix {
    /// Packs `tensor`, or nothing if its type has no panels.
    ///
    /// # Errors
    /// When its data have another size than its dimensions ask for.
    pub(super) fn new(
        tensor: &QTensor,
        out_features: usize,
        in_features: usize,
    ) -> Result<Option<Self>, KernelError> {
        let kind = match tensor.dtype() {
            GgmlDType::Q4K => Kind::Q4K,
            GgmlDType::Q5K => Kind::Q5K,
            GgmlDType::Q6K => Kind::Q6K,
            GgmlDType::Q8_0 => Kind::Q8_0,
            GgmlDType::Q4_0 => Kind::Q4_0,
            _ => return Ok(None),
        };
        let blocks = tensor
            .data()
            .map_err(|error| KernelError::Shape(error.to_string()))?;
        let mut matrix = Self {
            out_features,
            in_features,
            kind,
            panels: AlignedBuffer::zeros(0),
        };
        with_format!(kind, matrix.pack(&blocks))?;
        Ok(Some(matrix))
    }

    fn pack<F: Product>(&mut self, blocks: &[u8]) -> Result<(), KernelError> {
        let (out, inputs) = (self.out_features, self.in_features);
        if out == 0 || inputs == 0 || inputs % F::INPUTS != 0 {
            return Err(KernelError::Shape(format!(
                "a quantized matrix of {out} × {inputs} with blocks of {}",
                F::INPUTS
            )));
        }
        let row = inputs / F::INPUTS * F::BLOCK;
        let expected = out * row;
        if blocks.len() != expected {
            return Err(KernelError::Length {
                what: "a quantized matrix (bytes)",
                found: blocks.len(),
                expected,
            });
        }
        let count = out.div_ceil(LANES);
        let panel = inputs / F::INPUTS * F::PANEL;
        self.panels = AlignedBuffer::zeros(count * panel);
        let panels = &mut *self.panels;
        let pack = |first: usize, panels: &mut [u8]| {
            for (index, panel) in panels.chunks_exact_mut(panel).enumerate() {
                let rows = blocks[(first + index) * LANES * row..]
                    .chunks_exact(row)
                    .take(LANES);
                for (lane, row) in rows.enumerate() {
                    for (block, panel) in row
                        .chunks_exact(F::BLOCK)
                        .zip(panel.chunks_exact_mut(F::PANEL))
                    {
                        F::pack(block, lane, panel);
                    }
                }
            }
        };
        let threads = ThreadPool::physical_cores().min(expected / SMALL_PACKING);
        if threads < 2 {
            pack(0, panels);
            return Ok(());
        }
        let share = count.div_ceil(threads);
        std::thread::scope(|scope| {
            for (index, panels) in panels.chunks_mut(share * panel).enumerate() {
                let pack = &pack;
                scope.spawn(move || pack(index * share, panels));
            }
        });
        Ok(())
    }

    /// Takes the outputs of `next` in behind its own, if both are of one kind and its panels are whole.
    pub(super) fn append(&mut self, next: &PanelMatrix) -> bool {
        let fits = self.out_features.is_multiple_of(LANES)
            && (self.in_features, self.kind) == (next.in_features, next.kind);
        if fits {
            self.panels.append(&next.panels);
            self.out_features += next.out_features;
        }
        fits
    }

    pub(super) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(super) fn bytes(&self) -> usize {
        self.panels.len()
    }

    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        debug_assert!(row < self.out_features && out.len() == self.in_features);
        with_format!(self.kind, self.read(row, out));
    }

    fn read<F: Product>(&self, row: usize, out: &mut [f32]) {
        let panel = self.in_features / F::INPUTS * F::PANEL;
        let panel = &self.panels[row / LANES * panel..][..panel];
        for (panel, out) in panel
            .chunks_exact(F::PANEL)
            .zip(out.chunks_exact_mut(F::INPUTS))
        {
            F::read(panel, row % LANES, out);
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
        #[cfg(target_arch = "x86_64")]
        if isa.has_tiles() {
            use super::digits::Digits;
            let weights = super::tiles::TileWeights {
                panels: &self.panels,
                out_features: self.out_features,
                in_features: self.in_features,
            };
            let activations = &mut activations.tiles;
            match self.kind {
                Kind::Q4K if rows >= Q4K::ROWS => {
                    return weights.matmul::<Q4K>(isa, pool, x, activations, target);
                }
                Kind::Q5K if rows >= Q5K::ROWS => {
                    return weights.matmul::<Q5K>(isa, pool, x, activations, target);
                }
                Kind::Q6K if rows >= Q6K::ROWS => {
                    return weights.matmul::<Q6K>(isa, pool, x, activations, target);
                }
                _ => {}
            }
        }
        with_format!(
            self.kind,
            self.product(isa, pool, x, rows, activations, target)
        )
    }

    fn product<F: Product>(
        &self,
        isa: Isa,
        pool: &ThreadPool,
        x: Input<'_>,
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        let filled = activations
            .panels
            .fill(isa, pool, x, self.in_features, F::ACTIVATION)?;
        let panels = self.out_features.div_ceil(LANES);
        // Panels a tile: at least 64 tiles of whole groups, up to sixteen panels.
        let chunk = panels.div_ceil(64).next_multiple_of(8).min(16);
        let chunks = panels.div_ceil(chunk);
        let row_bytes = self.in_features / F::ACTIVATION.inputs() * F::ACTIVATION.record() * 4;
        let blocks = filled.blocks((ROW_BLOCK_BYTES / row_bytes).max(24));
        let tile = |_: usize, index: usize| {
            // All rows with some panels first: weights come from memory once.
            let tiles = filled.block(index % blocks, blocks);
            let first = index / blocks * chunk;
            // SAFETY: the ISA is available; each block of rows and chunk of panels has outputs of its own.
            unsafe {
                self.run::<F>(isa, filled, tiles, first..panels.min(first + chunk), target);
            }
        };
        let worth = rows * self.out_features * self.in_features >= SMALL;
        pool.run_neighbours_if(worth, blocks * chunks, tile)
    }

    /// Some panels against some tiles of rows.
    ///
    /// # Safety
    /// The ISA is available and nobody else writes these rows' outputs of these panels.
    unsafe fn run<F: Product>(
        &self,
        isa: Isa,
        filled: Filled<'_>,
        tiles: &[RowTile],
        panels: Range<usize>,
        target: Target<'_>,
    ) {
        let blocks = self.in_features / F::INPUTS;
        let widest = tiles.iter().map(|tile| tile.rows).max().unwrap_or(0);
        let group = panel_group(isa, widest).min(F::GROUP);
        let mut panel = panels.start;
        while panel < panels.end {
            let count = 1 << group.min(panels.end - panel).ilog2();
            let first = panel * LANES;
            let bytes = count * blocks * F::PANEL;
            let start = self.panels[panel * blocks * F::PANEL..].as_ptr();
            // While a group goes from tile to tile out of the caches, each asks for a share of the next.
            let lines = bytes.div_ceil(CACHE_LINE * tiles.len() * blocks);
            let mut next = start.wrapping_add(bytes);
            for tile in tiles {
                let args = MicroArgs {
                    panel: start,
                    panels: count,
                    x: filled.words[tile.start..].as_ptr(),
                    blocks,
                    out: target.out.at(tile.first_row * target.stride + first),
                    stride: target.stride,
                    rows: tile.rows,
                    outputs: (count * LANES).min(self.out_features - first),
                    bias: target
                        .bias
                        .map_or(std::ptr::null(), |bias| bias[first..].as_ptr()),
                };
                // SAFETY: promised by the caller; the panels and the tile lie inside their buffers.
                unsafe {
                    if tiles.len() == 1 {
                        // At a panel's end follows the one of the next group.
                        let within = F::AHEAD * F::PANEL;
                        let beyond = within + bytes - blocks * F::PANEL;
                        multiply::<F, _>(isa, args, AheadOfVectors { within, beyond });
                    } else {
                        multiply::<F, _>(isa, args, AheadOfBlocks { next, lines });
                        next = next.wrapping_add(lines * blocks * CACHE_LINE);
                    }
                }
            }
            panel += count;
        }
    }
}
