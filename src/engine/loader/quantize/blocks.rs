//! Converting a tensor's rows to another element type, on a bounded number of threads.

use std::num::NonZero;
use std::thread;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::source::SourceTensor;
use crate::engine::loader::error::LoadError;
use crate::engine::loader::gguf::ElementType;

/// Numbers that one thread converts at a time: 4 MiB as f32.
const SLAB: usize = 1 << 20;

/// `threads`, or one for each CPU where it is 0.
pub(super) fn thread_count(threads: usize) -> usize {
    match threads {
        0 => thread::available_parallelism().map_or(1, NonZero::get),
        count => count,
    }
}

/// Converts all rows of `tensor` to `target`, and gives `write` the bytes in order. Memory is bounded by a
/// slab for each thread.
///
/// # Errors
/// What `write` returns; a number that the type cannot hold.
pub(super) fn convert<E: From<LoadError>>(
    tensor: &SourceTensor<'_>,
    target: ElementType,
    threads: usize,
    mut write: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let row = tensor.row_elements().max(1);
    let slab_rows = (SLAB / row).max(1);
    let rows = tensor.rows();
    let encode = |first: usize| {
        let end = rows.min(first + slab_rows);
        encode(&tensor.original, tensor.read_rows(first..end), row, target)
    };
    let starts: Vec<usize> = (0..rows).step_by(slab_rows).collect();
    for round in starts.chunks(threads.max(1)) {
        let encoded: Vec<Result<Vec<u8>, LoadError>> = match round {
            [only] => vec![encode(*only)],
            several => thread::scope(|scope| {
                let workers: Vec<_> = several
                    .iter()
                    .map(|first| scope.spawn(|| encode(*first)))
                    .collect();
                workers
                    .into_iter()
                    .map(|worker| {
                        worker
                            .join()
                            .unwrap_or_else(|_| Err(died(&tensor.original)))
                    })
                    .collect()
            }),
        };
        for bytes in encoded {
            write(&bytes?)?;
        }
    }
    Ok(())
}

fn died(name: &str) -> LoadError {
    LoadError::Tensor {
        name: name.to_owned(),
        message: "its conversion stopped unexpectedly".to_owned(),
    }
}

/// Rows of `row` numbers each as bytes of `target`.
fn encode(
    name: &str,
    values: Vec<f32>,
    row: usize,
    target: ElementType,
) -> Result<Vec<u8>, LoadError> {
    let fault = |message: String| LoadError::Tensor {
        name: name.to_owned(),
        message,
    };
    if let Some(value) = values.iter().find(|value| !value.is_finite()) {
        return Err(fault(format!(
            "it holds {value}, which is not a finite number"
        )));
    }
    match target {
        ElementType::Dense(DType::F16) => {
            if let Some(value) = values.iter().find(|value| value.abs() >= 65_520.0) {
                return Err(fault(format!(
                    "it holds {value}, which is beyond f16; use bf16 or f32"
                )));
            }
            Ok(values
                .into_iter()
                .flat_map(|value| f16::from_f32(value).to_le_bytes())
                .collect())
        }
        ElementType::Dense(DType::BF16) => Ok(values
            .into_iter()
            .flat_map(|value| bf16::from_f32(value).to_le_bytes())
            .collect()),
        ElementType::Dense(_) => Ok(values.into_iter().flat_map(f32::to_le_bytes).collect()),
        ElementType::Quantized(kind) => {
            quantize(values, row, kind).map_err(|cause| fault(cause.to_string()))
        }
        ElementType::Unsupported(_) => Err(fault(format!("{target} cannot be written"))),
    }
}

/// candle's quantizer, on whole rows.
fn quantize(values: Vec<f32>, row: usize, kind: GgmlDType) -> candle_core::Result<Vec<u8>> {
    let shape = (values.len() / row, row);
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, kind)?.data()?.into_owned())
}
