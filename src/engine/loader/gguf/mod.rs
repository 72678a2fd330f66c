//! Models in one GGUF file: weights, hyperparameters, tokenizer and chat template.

mod config;
mod element;
mod metadata;
mod pretokenizer;
mod reader;
mod tokenizer;
mod tokenizer_writer;
mod weights;
mod writer;

use std::path::Path;

use super::bytes::FileBytes;
use super::config::ModelConfig;
use super::error::LoadError;
use super::{Parts, RecommendedSampling, Weights};
pub(crate) use element::ElementType;
pub(crate) use metadata::{set_hyperparameters, set_sampling};
pub(crate) use reader::GgufFile;
pub(crate) use tokenizer_writer::{TokenizerFiles, set_tokenizer};
pub(crate) use weights::{GgufWeights, gguf_name};
pub(crate) use writer::{GgufHeader, MetadataValue, TensorHeader, pad};

/// Maps and opens a GGUF file.
pub(crate) fn load(path: &Path) -> Result<Parts, LoadError> {
    let file = GgufFile::parse(path.display().to_string(), FileBytes::open(path)?)?;
    let mut config = ModelConfig::from_gguf(&file)?;
    let (text, end_tokens) = tokenizer::read_text(&file)?;
    config.add_end_tokens(end_tokens);
    config.validate(file.file())?;
    let sampling = RecommendedSampling::from_gguf(&file)?;
    let weights: Box<dyn Weights> = Box::new(GgufWeights::new(file, &config));
    Ok((config, weights, text, sampling))
}

/// The weights of a file that need not be a whole model.
#[cfg(test)]
pub(crate) fn open_weights(path: &Path) -> Result<GgufWeights, LoadError> {
    Ok(GgufWeights::plain(GgufFile::parse(
        path.display().to_string(),
        FileBytes::open(path)?,
    )?))
}

/// The tokenizer of a file that need not be a whole model.
#[cfg(test)]
pub(crate) fn open_tokenizer(path: &Path) -> Result<super::TextAssets, LoadError> {
    let file = GgufFile::parse(path.display().to_string(), FileBytes::open(path)?)?;
    Ok(tokenizer::read_text(&file)?.0)
}
