//! `out = x · weightsᵀ + bias` for many rows `x` against weights `[out, in]` packed once.
//!
//! Every output element is one chain of multiply-adds along `in`, from the first to the last, in every
//! micro-kernel, so a row's result does not depend on how many rows there are or which row it is.

mod activations;
mod dense;
mod input;
mod micro;
mod quantized;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use half::{bf16, f16};

use super::isa::Isa;
use super::{KernelError, SharedMut, ThreadPool};
use activations::Activations;
use dense::DenseMatrix;
pub use input::Input;
use quantized::QuantizedMatrix;

/// How products with `bf16` weights, and attention, are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// Activations, and queries, keys, weights and values of attention, in `f32`; products rounded once: as
    /// exact as `f32` weights.
    #[default]
    Exact,
    /// Those rounded to `bf16`: several times as fast on matrix tiles, which add in another order
    /// than the `bf16` dot product does. The same as exact on a machine that has neither
    /// ([`Isa::has_bf16_dot`]); [`Isa::bf16_dot_pays`] says where it is faster.
    Fast,
}

/// Weights `[out, in]`, packed for [`PackedMatrix::matmul`]. Several matrices with the same `in` can be
/// stacked into one, whatever their formats: their outputs follow each other in a row.
pub struct PackedMatrix {
    in_features: usize,
    out_features: usize,
    segments: Vec<Segment>,
}

/// One of the stacked matrices.
struct Segment {
    /// Where its outputs begin in a row.
    first_output: usize,
    weights: Weights,
}

enum Weights {
    Dense(DenseMatrix),
    Quantized(QuantizedMatrix),
}

impl Weights {
    /// Takes the outputs of `next` in behind its own, if both are of one kind.
    fn append(&mut self, next: &Weights) -> bool {
        match (self, next) {
            (Weights::Dense(own), Weights::Dense(next)) => own.append(next),
            (Weights::Quantized(own), Weights::Quantized(next)) => own.append(next),
            _ => false,
        }
    }

    fn out_features(&self) -> usize {
        match self {
            Weights::Dense(matrix) => matrix.out_features(),
            Weights::Quantized(matrix) => matrix.out_features(),
        }
    }
}

thread_local! {
    /// Packed activations, kept from call to call by the thread that calls.
    static ACTIVATIONS: RefCell<Scratch> = RefCell::new(Scratch::default());
}

#[derive(Default)]
struct Scratch {
    dense: Activations,
    #[cfg(target_arch = "x86_64")]
    tiles: tiles::Activations,
    quantized: quantized::Activations,
}

impl Scratch {
    /// A new call: what is packed belongs to other rows.
    fn forget(&mut self) {
        self.dense.forget();
        #[cfg(target_arch = "x86_64")]
        self.tiles.forget();
        self.quantized.forget();
    }
}

impl PackedMatrix {
    /// Packs `weights`, row-major `[out, in]`.
    ///
    /// # Errors
    /// When the length is not `out × in`, or a dimension is zero.
    pub fn from_f32(weights: &[f32], out: usize, in_features: usize) -> Result<Self, KernelError> {
        check_length(weights.len(), out, in_features)?;
        Ok(Self::single(
            Weights::Dense(DenseMatrix::from_f32(weights, out, in_features)),
            in_features,
        ))
    }

    /// As [`Self::from_f32`]; kept as `bf16`.
    ///
    /// # Errors
    /// When the length is not `out × in`, or a dimension is zero.
    pub fn from_bf16(
        weights: &[bf16],
        out: usize,
        in_features: usize,
    ) -> Result<Self, KernelError> {
        check_length(weights.len(), out, in_features)?;
        Ok(Self::single(
            Weights::Dense(DenseMatrix::from_bf16(weights, out, in_features)),
            in_features,
        ))
    }

    /// As [`Self::from_f32`]; kept as `f16`.
    ///
    /// # Errors
    /// When the length is not `out × in`, or a dimension is zero.
    pub fn from_f16(weights: &[f16], out: usize, in_features: usize) -> Result<Self, KernelError> {
        check_length(weights.len(), out, in_features)?;
        Ok(Self::single(
            Weights::Dense(DenseMatrix::from_f16(weights, out, in_features)),
            in_features,
        ))
    }

    /// Takes a quantized tensor `[out, in]` on the CPU. `F32`, `F16` and `BF16` tensors become dense ones.
    ///
    /// # Errors
    /// When the tensor has not two dimensions, is not on the CPU, or has a type without kernel.
    pub fn from_quantized(tensor: &Arc<QTensor>) -> Result<Self, KernelError> {
        Self::from_quantized_for(Isa::detected(), tensor)
    }

    /// [`Self::from_quantized`] for the kernels of a chosen instruction set.
    fn from_quantized_for(isa: Isa, tensor: &Arc<QTensor>) -> Result<Self, KernelError> {
        let &[out, in_features] = tensor.shape().dims() else {
            return Err(KernelError::Shape(format!(
                "a matrix of shape {:?}: two dimensions are needed",
                tensor.shape().dims()
            )));
        };
        let data = tensor
            .data()
            .map_err(|error| KernelError::Shape(error.to_string()))?;
        let halves = || {
            data.chunks_exact(2)
                .map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
        };
        match tensor.dtype() {
            GgmlDType::F32 => {
                let read = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                let numbers: Vec<f32> = data.chunks_exact(4).map(read).collect();
                Self::from_f32(&numbers, out, in_features)
            }
            GgmlDType::F16 => Self::from_f16(
                &halves().map(f16::from_bits).collect::<Vec<_>>(),
                out,
                in_features,
            ),
            GgmlDType::BF16 => Self::from_bf16(
                &halves().map(bf16::from_bits).collect::<Vec<_>>(),
                out,
                in_features,
            ),
            _ => {
                let matrix = QuantizedMatrix::new(isa, tensor, out, in_features)?;
                Ok(Self::single(Weights::Quantized(matrix), in_features))
            }
        }
    }

    /// One matrix whose rows of output are the outputs of `parts` one after the other, for example
    /// `q|k|v` or `gate|up`: the activations are packed once for all.
    ///
    /// # Errors
    /// When there is no part or their `in` differ.
    pub fn stack(parts: Vec<PackedMatrix>) -> Result<Self, KernelError> {
        let Some(in_features) = parts.first().map(|part| part.in_features) else {
            return Err(KernelError::Shape("a stack of no matrices".to_owned()));
        };
        if let Some(other) = parts.iter().find(|part| part.in_features != in_features) {
            return Err(KernelError::Shape(format!(
                "stacked matrices take {in_features} and {} inputs",
                other.in_features
            )));
        }
        let mut stacked = Self {
            in_features,
            out_features: 0,
            segments: Vec::new(),
        };
        for segment in parts.into_iter().flat_map(|part| part.segments) {
            let first_output = stacked.out_features;
            stacked.out_features += segment.weights.out_features();
            // One job for the threads instead of two.
            if let Some(last) = stacked.segments.last_mut()
                && last.weights.append(&segment.weights)
            {
                continue;
            }
            stacked.segments.push(Segment {
                first_output,
                weights: segment.weights,
            });
        }
        Ok(stacked)
    }

    /// Chooses how products with `bf16` weights are computed; other weights are not concerned.
    pub fn with_precision(mut self, precision: Precision) -> Self {
        for segment in &mut self.segments {
            if let Weights::Dense(matrix) = &mut segment.weights {
                matrix.set_precision(precision);
            }
        }
        self
    }

    /// Whether products round activations to eight bits or so: the weights are quantized, or `bf16` and to be
    /// multiplied with [`Precision::Fast`].
    pub fn rounds_activations(&self) -> bool {
        self.segments.iter().any(|segment| match &segment.weights {
            Weights::Dense(matrix) => matrix.rounds_activations(),
            Weights::Quantized(_) => true,
        })
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// Bytes of packed weights: what one product reads.
    pub fn bytes(&self) -> usize {
        let bytes = |segment: &Segment| match &segment.weights {
            Weights::Dense(matrix) => matrix.bytes(),
            Weights::Quantized(matrix) => matrix.bytes(),
        };
        self.segments.iter().map(bytes).sum()
    }

    /// Writes the weights of output `row` as `f32` (an embedding is a row of the token matrix).
    ///
    /// # Panics
    /// When `row` is out of range or `out` is not `in_features` long.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(
            row < self.out_features && out.len() == self.in_features,
            "read_row: out of range"
        );
        let index = self
            .segments
            .partition_point(|segment| segment.first_output <= row)
            - 1;
        let segment = &self.segments[index];
        match &segment.weights {
            Weights::Dense(matrix) => matrix.read_row(row - segment.first_output, out),
            Weights::Quantized(matrix) => matrix.read_row(row - segment.first_output, out),
        }
    }

    /// Gathers the rows named by `ids` into `out`, rows of `in_features`: the embedding of tokens.
    ///
    /// # Errors
    /// When a job panicked.
    ///
    /// # Panics
    /// When an id is out of range or `out` has another size.
    pub fn gather(
        &self,
        pool: &ThreadPool,
        ids: &[u32],
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let width = self.in_features;
        assert_eq!(out.len(), ids.len() * width, "gather: sizes differ");
        if ids.len() < 8 {
            for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width)) {
                self.read_row(id as usize, out);
            }
            return Ok(());
        }
        let out = SharedMut::new(out);
        pool.run(ids.len(), |_, row| {
            // SAFETY: each tile is a row of its own.
            let out = unsafe { out.slice(row * width, width) };
            self.read_row(ids[row] as usize, out);
        })
    }

    /// `out = x · weightsᵀ + bias`: `x` are rows of `in_features`, `out` holds as many rows of `out_features`,
    /// `bias` one number an output.
    ///
    /// # Errors
    /// When a job panicked.
    ///
    /// # Panics
    /// When the sizes do not fit.
    pub fn matmul<'a>(
        &self,
        pool: &ThreadPool,
        x: impl Into<Input<'a>>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        self.matmul_on(Isa::detected(), pool, x, bias, out)
    }

    /// [`Self::matmul`] on a chosen instruction set, which must be one of [`Isa::available`].
    fn matmul_on<'a>(
        &self,
        isa: Isa,
        pool: &ThreadPool,
        x: impl Into<Input<'a>>,
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), KernelError> {
        let x = x.into();
        let rows = x.rows(self.in_features);
        assert_eq!(
            out.len(),
            rows * self.out_features,
            "matmul: out has another size"
        );
        assert!(
            bias.is_none_or(|bias| bias.len() == self.out_features),
            "matmul: bias has another size"
        );
        if rows == 0 {
            return Ok(());
        }
        let target = Target {
            out: SharedMut::new(out),
            stride: self.out_features,
            bias,
        };
        ACTIVATIONS.with_borrow_mut(|scratch| {
            scratch.forget();
            for segment in &self.segments {
                let target =
                    target.starting_at(segment.first_output, segment.weights.out_features());
                match &segment.weights {
                    Weights::Dense(matrix) => {
                        #[cfg(target_arch = "x86_64")]
                        if let Some(weights) = matrix.tiles(isa) {
                            weights.matmul(pool, x, rows, &mut scratch.tiles, target)?;
                            continue;
                        }
                        matrix.matmul(isa, pool, x, rows, &mut scratch.dense, target)?;
                    }
                    Weights::Quantized(matrix) => {
                        matrix.matmul(isa, pool, x, rows, &mut scratch.quantized, target)?;
                    }
                }
            }
            Ok(())
        })
    }
}

impl PackedMatrix {
    fn single(weights: Weights, in_features: usize) -> Self {
        let out_features = weights.out_features();
        Self {
            in_features,
            out_features,
            segments: vec![Segment {
                first_output: 0,
                weights,
            }],
        }
    }
}

fn check_length(found: usize, out: usize, in_features: usize) -> Result<(), KernelError> {
    if out == 0 || in_features == 0 {
        return Err(KernelError::Shape(format!(
            "a matrix of {out} × {in_features}"
        )));
    }
    match out.checked_mul(in_features) {
        Some(expected) if expected == found => Ok(()),
        expected => Err(KernelError::Length {
            what: "a weight matrix",
            found,
            expected: expected.unwrap_or(usize::MAX),
        }),
    }
}

/// Where a segment's results go.
#[derive(Clone, Copy)]
struct Target<'a> {
    /// The first row's first output of this segment.
    out: SharedMut<f32>,
    /// Numbers from one row to the next.
    stride: usize,
    bias: Option<&'a [f32]>,
}

impl Target<'_> {
    fn starting_at(self, first: usize, len: usize) -> Self {
        Self {
            out: SharedMut(self.out.at(first)),
            stride: self.stride,
            bias: self.bias.map(|bias| &bias[first..first + len]),
        }
    }
}

#[cfg(test)]
mod tests;
