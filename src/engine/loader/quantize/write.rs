//! A header and the converted tensors as one GGUF stream.

use std::io::{self, Write};

use super::blocks::convert;
use super::progress::Progress;
use super::source::SourceTensor;
use crate::engine::loader::error::LoadError;
use crate::engine::loader::gguf::{ElementType, GgufHeader, TensorHeader, pad};

/// Why a stream ended.
#[derive(Debug)]
pub(super) enum StreamError {
    /// The model's fault.
    Source(LoadError),
    /// The file's.
    Write(io::Error),
}

impl From<LoadError> for StreamError {
    fn from(error: LoadError) -> Self {
        StreamError::Source(error)
    }
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        StreamError::Write(error)
    }
}

/// Enters the tensors into the header, each with the type that `element` gives it.
pub(super) fn set_tensors(
    header: &mut GgufHeader,
    tensors: &[SourceTensor<'_>],
    element: impl Fn(&SourceTensor<'_>) -> ElementType,
) {
    header.tensors = tensors
        .iter()
        .map(|tensor| TensorHeader {
            name: tensor.name.clone(),
            dims: tensor.dims.clone(),
            element: element(tensor),
        })
        .collect();
}

/// Writes the header, and each of its tensors converted to its type. `tensors` are those of the header.
pub(super) fn write_stream(
    writer: &mut impl Write,
    header: &GgufHeader,
    tensors: &[SourceTensor<'_>],
    threads: usize,
    progress: &Progress,
) -> Result<(), StreamError> {
    writer.write_all(&header.to_bytes()?)?;
    for (tensor, entry) in tensors.iter().zip(&header.tensors) {
        convert(tensor, entry.element, threads, |bytes| {
            writer.write_all(bytes).map_err(StreamError::Write)
        })?;
        pad(writer, entry.bytes()?)?;
        progress.advance(tensor);
    }
    Ok(())
}
