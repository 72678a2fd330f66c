//! Quantized weights.
//!
//! Activations are quantized to bytes, row by row, and the products are dot products of bytes. Where the
//! machine has those for sixteen lanes ([`Isa::has_byte_dot`]), weights of the usual types are repacked
//! into panels of sixteen outputs ([`panels`]), which many rows take through matrix tiles where there are any
//! (`tiles`); everything else goes through candle's own dot products of
//! one row with one output ([`blocks`]). In both, a row's result does not depend on the other rows.

mod activations;
mod blocks;
#[cfg(target_arch = "x86_64")]
mod digits;
mod formats;
mod micro;
mod panels;
mod products;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::sync::Arc;

use candle_core::quantized::QTensor;

use super::{Input, Target};
use crate::kernels::isa::Isa;
use crate::kernels::{KernelError, ThreadPool};

/// Quantized weights `[out, in]`.
pub(super) enum QuantizedMatrix {
    Panels(panels::PanelMatrix),
    Blocks(blocks::BlockMatrix),
}

/// Quantized activations, kept from call to call.
#[derive(Default)]
pub(super) struct Activations {
    panels: activations::Activations,
    #[cfg(target_arch = "x86_64")]
    tiles: tiles::Activations,
    blocks: blocks::Activations,
}

impl Activations {
    /// A new call: what is quantized belongs to other rows.
    pub(super) fn forget(&mut self) {
        self.panels.forget();
        #[cfg(target_arch = "x86_64")]
        self.tiles.forget();
        self.blocks.forget();
    }
}

impl QuantizedMatrix {
    /// Takes the weights, in panels if `isa` has kernels for those.
    pub(super) fn new(
        isa: Isa,
        tensor: &Arc<QTensor>,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self, KernelError> {
        if isa.has_byte_dot()
            && let Some(matrix) = panels::PanelMatrix::new(tensor, out_features, in_features)?
        {
            return Ok(Self::Panels(matrix));
        }
        Ok(Self::Blocks(blocks::BlockMatrix::new(
            tensor,
            out_features,
            in_features,
        )?))
    }

    /// Takes the outputs of `next` in behind its own, if both are packed in the same way.
    pub(super) fn append(&mut self, next: &QuantizedMatrix) -> bool {
        match (self, next) {
            (Self::Panels(own), Self::Panels(next)) => own.append(next),
            _ => false,
        }
    }

    pub(super) fn out_features(&self) -> usize {
        match self {
            Self::Panels(matrix) => matrix.out_features(),
            Self::Blocks(matrix) => matrix.out_features(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Panels(matrix) => matrix.bytes(),
            Self::Blocks(matrix) => matrix.bytes(),
        }
    }

    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Panels(matrix) => matrix.read_row(row, out),
            Self::Blocks(matrix) => matrix.read_row(row, out),
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
        match self {
            Self::Panels(matrix) => matrix.matmul(isa, pool, x, rows, activations, target),
            Self::Blocks(matrix) => matrix.matmul(pool, x, rows, &mut activations.blocks, target),
        }
    }
}
