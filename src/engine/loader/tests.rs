//! The loader on real files: the reference checkpoints in both formats, tokenizers, and damaged files.

mod damage;
mod formats;
mod tokenizers;

use std::path::PathBuf;

use candle_core::{DType, Device};

use super::hub::Silent;
use super::{HubOptions, LoadError, LoadedModel, ModelSource, Weight, load, resolve};

pub(super) const CHECKPOINTS: [&str; 3] = ["qwen3", "qwen2", "llama3"];

/// A path under `tests/fixtures`.
pub(super) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(path)
}

/// Resolves and loads what a user would name by this path.
pub(super) fn load_path(path: &std::path::Path) -> Result<LoadedModel, LoadError> {
    let source = ModelSource::parse(path.to_str().expect("a UTF-8 path"))?;
    load(&resolve(
        &source,
        &HubOptions::offline(PathBuf::new()),
        &Silent,
    )?)
}

/// [`load_path`] on a fixture that must load.
pub(super) fn load_fixture(path: &str) -> LoadedModel {
    load_path(&fixture(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A weight's numbers.
pub(super) fn values(weight: &Weight) -> Vec<f32> {
    let tensor = match weight {
        Weight::Dense(tensor) => tensor.clone(),
        Weight::Quantized(tensor) => tensor.dequantize(&Device::Cpu).expect("known blocks"),
    };
    let flat = tensor
        .flatten_all()
        .and_then(|tensor| tensor.to_dtype(DType::F32));
    flat.and_then(|tensor| tensor.to_vec1()).expect("numbers")
}

#[test]
fn the_id_is_the_name_of_the_folder_or_file() {
    assert_eq!(load_fixture("reference/qwen3").id, "qwen3");
    assert_eq!(
        load_fixture("reference/qwen3/model-q8_0.gguf").id,
        "model-q8_0"
    );
}

#[test]
fn the_embedded_demo_loads_without_any_file() {
    let files = resolve(
        &ModelSource::Embedded,
        &HubOptions::offline(PathBuf::new()),
        &Silent,
    )
    .expect("it is in the binary");
    let model = load(&files).expect("a valid model");
    assert_eq!(model.config.context_window, 32_768);
    let vocabulary = model.config.vocabulary;
    let embedding = model.weights.get_shaped(
        "model.embed_tokens.weight",
        &[vocabulary, model.config.hidden_size],
    );
    assert!(embedding.is_ok());
    assert!(model.text.tokenizer.get_vocab_size(true) <= vocabulary);
    assert!(model.text.chat_template.is_some());
    assert!(!model.config.end_tokens.is_empty());
}
