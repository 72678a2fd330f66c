//! Weights in candle's blocks, for machines or types without panels: a row of activations is quantized once to
//! the type that the block's dot product takes, and every output is one such dot product.

use std::sync::Arc;

use candle_core::quantized::k_quants::{
    BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K, BlockQ8_0,
};
use candle_core::quantized::{GgmlDType, GgmlType, QTensor};

use crate::kernels::matmul::{Input, Target};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Multiply-adds below which a product is not worth sharing among threads.
const SMALL: usize = 64 * 1024;
/// Rows that go through a group of weights before the next group: their blocks stay in the cache.
const ROW_TILE: usize = 16;
/// Outputs of a tile.
const OUTPUT_TILE: usize = 16;

pub(in crate::kernels::matmul) struct BlockMatrix {
    out_features: usize,
    in_features: usize,
    kernel: Box<dyn Kernel>,
    tensor: Arc<QTensor>,
}

/// Quantized activations, kept in words so that any block type is aligned.
#[derive(Default)]
pub(super) struct Activations {
    words: Vec<u64>,
    /// The type that the words hold now.
    held: Option<GgmlDType>,
}

impl Activations {
    /// A new call: what is quantized belongs to other rows.
    pub(super) fn forget(&mut self) {
        self.held = None;
    }
}

/// A matrix of one block type.
trait Kernel: Send + Sync {
    fn read_row(&self, blocks: &[u8], row: usize, out: &mut [f32]);
    fn matmul(
        &self,
        blocks: &[u8],
        pool: &ThreadPool,
        x: Input<'_>,
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError>;
}

impl BlockMatrix {
    pub(super) fn new(
        tensor: &Arc<QTensor>,
        out_features: usize,
        in_features: usize,
    ) -> Result<Self, KernelError> {
        fn kernel<T: GgmlType + 'static>(
            out: usize,
            inputs: usize,
        ) -> (Box<dyn Kernel>, usize, usize) {
            let kernel = Typed::<T> {
                out_features: out,
                in_features: inputs,
                marker: Default::default(),
            };
            (Box::new(kernel), T::BLCK_SIZE, size_of::<T>())
        }
        let (out, inputs) = (out_features, in_features);
        let (kernel, block, size) = match tensor.dtype() {
            GgmlDType::Q4_0 => kernel::<BlockQ4_0>(out, inputs),
            GgmlDType::Q4_1 => kernel::<BlockQ4_1>(out, inputs),
            GgmlDType::Q5_0 => kernel::<BlockQ5_0>(out, inputs),
            GgmlDType::Q5_1 => kernel::<BlockQ5_1>(out, inputs),
            GgmlDType::Q8_0 => kernel::<BlockQ8_0>(out, inputs),
            GgmlDType::Q4K => kernel::<BlockQ4K>(out, inputs),
            GgmlDType::Q5K => kernel::<BlockQ5K>(out, inputs),
            GgmlDType::Q6K => kernel::<BlockQ6K>(out, inputs),
            other => return Err(KernelError::Quantization(format!("{other:?}"))),
        };
        if out == 0 || inputs == 0 || inputs % block != 0 {
            return Err(KernelError::Shape(format!(
                "a quantized matrix of {out} × {inputs} with blocks of {block}"
            )));
        }
        let found = tensor
            .data()
            .map_err(|error| KernelError::Shape(error.to_string()))?
            .len();
        let expected = out * (inputs / block) * size;
        if found != expected {
            return Err(KernelError::Length {
                what: "a quantized matrix (bytes)",
                found,
                expected,
            });
        }
        Ok(Self {
            out_features,
            in_features,
            kernel,
            tensor: Arc::clone(tensor),
        })
    }

    pub(super) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(super) fn bytes(&self) -> usize {
        self.tensor.storage_size_in_bytes()
    }

    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        debug_assert!(row < self.out_features && out.len() == self.in_features);
        self.kernel.read_row(&self.blocks(), row, out);
    }

    pub(super) fn matmul(
        &self,
        pool: &ThreadPool,
        x: Input<'_>,
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        self.kernel
            .matmul(&self.blocks(), pool, x, rows, activations, target)
    }

    fn blocks(&self) -> std::borrow::Cow<'_, [u8]> {
        // The constructor has read the same tensor's data.
        self.tensor
            .data()
            .expect("a tensor on the CPU gives its data")
    }
}

struct Typed<T> {
    out_features: usize,
    in_features: usize,
    marker: std::marker::PhantomData<fn() -> T>,
}

impl<T: GgmlType> Typed<T> {
    /// Blocks of one row.
    fn row_blocks(&self) -> usize {
        self.in_features / T::BLCK_SIZE
    }

    fn typed<'a>(&self, bytes: &'a [u8]) -> &'a [T] {
        let count = self.out_features * self.row_blocks();
        assert!(bytes.len() == count * size_of::<T>() && bytes.as_ptr().cast::<T>().is_aligned());
        // SAFETY: size and alignment were checked; candle's blocks are `repr(C)` structs of numbers, for
        // which all bits are valid, and it stores them as a slice of this type.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), count) }
    }
}

impl<T: GgmlType> Kernel for Typed<T> {
    fn read_row(&self, blocks: &[u8], row: usize, out: &mut [f32]) {
        T::to_float(
            &self.typed(blocks)[row * self.row_blocks()..][..self.row_blocks()],
            out,
        );
    }

    fn matmul(
        &self,
        blocks: &[u8],
        pool: &ThreadPool,
        x: Input<'_>,
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        let weights = self.typed(blocks);
        let (inputs, outputs, row_blocks) =
            (self.in_features, self.out_features, self.row_blocks());
        let small = rows * inputs * outputs < SMALL;
        let count = rows * row_blocks;
        let held = activations.held.replace(T::VecDotType::DTYPE);
        let words = (count * size_of::<T::VecDotType>()).div_ceil(size_of::<u64>());
        if activations.words.len() < words {
            activations.words.resize(words, 0);
        }
        let quantized = SharedMut(activations.words.as_mut_ptr().cast::<T::VecDotType>());
        if held != Some(T::VecDotType::DTYPE) {
            let quantize = |_: usize, row: usize| {
                // SAFETY: rows are disjoint; the buffer holds `count` blocks, aligned to words, and all
                // bits are valid for a block.
                let out = unsafe { quantized.slice(row * row_blocks, row_blocks) };
                x.with_rows(row, 1, inputs, |x| T::VecDotType::from_float(x, out));
            };
            if small || rows < 4 {
                (0..rows).for_each(|row| quantize(0, row));
            } else {
                pool.run(rows, quantize)?;
            }
        }
        let row_tiles = rows.div_ceil(ROW_TILE);
        let output_tiles = outputs.div_ceil(OUTPUT_TILE);
        let tile = |_: usize, index: usize| {
            let first_row = index / output_tiles * ROW_TILE;
            let first = index % output_tiles * OUTPUT_TILE;
            let end = outputs.min(first + OUTPUT_TILE);
            let weight_row = |output: usize| &weights[output * row_blocks..][..row_blocks];
            let put = |row: usize, output: usize, sum: f32| {
                let bias = target.bias.map_or(0.0, |bias| bias[output]);
                // SAFETY: each tile writes its own rows and outputs.
                unsafe { *target.out.at(row * target.stride + output) = sum + bias };
            };
            for quad in (first..end).step_by(4) {
                for row in first_row..rows.min(first_row + ROW_TILE) {
                    // SAFETY: written before (by this or the previous dispatch), and only read now.
                    let x = unsafe {
                        std::slice::from_raw_parts(quantized.at(row * row_blocks), row_blocks)
                    };
                    if quad + 4 <= end {
                        let [a, b, c, d] = [quad, quad + 1, quad + 2, quad + 3].map(weight_row);
                        let sums = T::vec_dot_4(inputs, a, b, c, d, x);
                        put(row, quad, sums.0);
                        put(row, quad + 1, sums.1);
                        put(row, quad + 2, sums.2);
                        put(row, quad + 3, sums.3);
                    } else {
                        (quad..end).for_each(|o| put(row, o, T::vec_dot(inputs, weight_row(o), x)));
                    }
                }
            }
        };
        if small {
            (0..row_tiles * output_tiles).for_each(|index| tile(0, index));
            Ok(())
        } else {
            pool.run(row_tiles * output_tiles, tile)
        }
    }
}
