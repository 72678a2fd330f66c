//! Quantizing models: into a GGUF file (`trunkline quantize`), or while a safetensors model is loaded
//! (`--quantize`), with a cache of the result.
//!
//! Both take the same way: [`source`] lists a model's tensors as GGUF files have them, [`mix`] says what each
//! becomes, [`blocks`] converts its rows. [`export`] adds hyperparameters, tokenizer and template and writes
//! the file; [`in_situ`] hands the tensors to the engine, by a file in the [`cache`] where that is possible.

mod blocks;
mod cache;
mod error;
mod export;
mod file_type;
mod in_situ;
mod mix;
mod partial;
mod progress;
mod source;
#[cfg(test)]
mod tests;
mod write;

pub use cache::CacheOptions;
pub use error::QuantizeError;
pub use export::{QuantizeJob, QuantizeReport, write_gguf};
pub use file_type::{FileType, Quantize};
pub use in_situ::QuantizeOptions;

pub(super) use in_situ::{refuse_gguf, weights};
