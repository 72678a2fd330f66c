//! From a model's name or path to its files, and from the files to weights, tokenizer and template.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;
use candle_core::quantized::QTensor;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The demo model inside the binary.
    Embedded,
    /// A folder with `config.json`, `tokenizer.json` and `*.safetensors`.
    Directory(PathBuf),
    /// One GGUF file that holds everything.
    Gguf(PathBuf),
    /// `org/name` (optionally `org/name@revision`) on the Hugging Face hub.
    Hub { repository: String, revision: Option<String> },
}

/// One weight tensor: its shape is `[out, in]` for a linear layer, `[vocabulary, hidden]` for embeddings.
#[derive(Debug, Clone)]
pub enum Weight {
    /// f32, f16 or bf16, on the CPU.
    Dense(Tensor),
    /// GGUF block-quantized, on the CPU.
    Quantized(Arc<QTensor>),
}
