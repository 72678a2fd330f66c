//! `trunkline quantize IN OUT.gguf`: a model as one GGUF file with everything inside.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::blocks::thread_count;
use super::error::QuantizeError;
use super::file_type::FileType;
use super::mix::Mix;
use super::partial::PartialFile;
use super::progress::Progress;
use super::source::{self, SourceTensor};
use super::write::{StreamError, set_tensors, write_stream};
use crate::engine::loader::bytes::FileBytes;
use crate::engine::loader::config::ModelConfig;
use crate::engine::loader::files::{Folder, LARGE_FILE, SMALL_FILE};
use crate::engine::loader::gguf::{
    GgufFile, GgufHeader, MetadataValue, TokenizerFiles, set_hyperparameters, set_sampling,
    set_tokenizer,
};
use crate::engine::loader::hub::Silent;
use crate::engine::loader::json::JsonObject;
use crate::engine::loader::{
    FileLocation, HubOptions, ModelFiles, ModelSource, open_folder, resolve,
};

/// What to write, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuantizeJob {
    /// A folder with safetensors, a GGUF file that is not quantized, a hub name in the cache, or `demo`.
    pub input: String,
    pub output: PathBuf,
    pub file_type: FileType,
    /// Replace `output` if it exists.
    pub force: bool,
    /// Threads that quantize; 0 is one for each CPU.
    pub threads: usize,
}

/// What was written. Prints as a line for the user.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeReport {
    pub output: PathBuf,
    pub file_type: FileType,
    /// Of the whole file.
    pub bytes: u64,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// How many tensors have which element type.
    pub tensors: BTreeMap<String, usize>,
    /// What the user should know about the file.
    pub warnings: Vec<String>,
}

impl fmt::Display for QuantizeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds: Vec<String> = self
            .tensors
            .iter()
            .map(|(kind, count)| format!("{count} {kind}"))
            .collect();
        write!(
            f,
            "{}: {}, {:.1} MB, {:.2} bits a weight (tensors: {})",
            self.output.display(),
            self.file_type,
            self.bytes as f64 / 1e6,
            self.bytes as f64 * 8.0 / self.parameters.max(1) as f64,
            kinds.join(", "),
        )
    }
}

/// Writes the file. It appears under its name only when it is complete. Blocks.
///
/// # Errors
/// See [`QuantizeError`].
pub fn write_gguf(job: &QuantizeJob) -> Result<QuantizeReport, QuantizeError> {
    // Only what is here: a download belongs to the server, which shows its progress.
    let hub = HubOptions {
        offline: true,
        ..HubOptions::from_env()
    };
    check_output(job)?;
    let files = resolve(&ModelSource::parse(&job.input)?, &hub, &Silent)?;
    match &files.location {
        FileLocation::Gguf(path) => from_gguf(job, path),
        FileLocation::Directory(path) => from_folder(job, &files, Folder::Disk(path)),
        FileLocation::Embedded(model) => from_folder(job, &files, Folder::Embedded(model)),
    }
}

fn check_output(job: &QuantizeJob) -> Result<(), QuantizeError> {
    let path = job.output.clone();
    if path.is_dir() {
        return Err(QuantizeError::OutputIsFolder { path });
    }
    if !path.exists() {
        return Ok(());
    }
    let same = fs::canonicalize(&path)
        .is_ok_and(|output| fs::canonicalize(&job.input).is_ok_and(|input| input == output));
    if same {
        return Err(QuantizeError::OutputIsInput { path });
    }
    if job.force {
        return Ok(());
    }
    Err(QuantizeError::OutputExists { path })
}

fn from_folder(
    job: &QuantizeJob,
    files: &ModelFiles,
    folder: Folder<'_>,
) -> Result<QuantizeReport, QuantizeError> {
    const TOKENIZER: &str = "tokenizer.json";
    const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
    let model = open_folder(folder)?;
    let name = files.id.rsplit('/').next().unwrap_or(&files.id);
    let mut header = GgufHeader::default();
    set_hyperparameters(&mut header, name, &model.config)?;
    set_sampling(&mut header, &model.sampling);
    let tokenizer_json =
        folder.read_required(TOKENIZER, LARGE_FILE, "the tokenizer is read from it")?;
    let tokenizer_config = folder
        .read(TOKENIZER_CONFIG, SMALL_FILE)?
        .map(|bytes| JsonObject::parse(TOKENIZER_CONFIG, &bytes))
        .transpose()?;
    let tokenizer = TokenizerFiles {
        tokenizer_json: &tokenizer_json,
        config: tokenizer_config.as_ref(),
    };
    let warning = set_tokenizer(&mut header, &tokenizer, &model.text, &model.config)?;
    let tensors = source::of_safetensors(&model.weights, &model.config)?;
    let mut report = write(job, header, &model.config, &tensors)?;
    report.warnings.extend(warning);
    Ok(report)
}

fn from_gguf(job: &QuantizeJob, path: &Path) -> Result<QuantizeReport, QuantizeError> {
    let file = GgufFile::parse(path.display().to_string(), FileBytes::open(path)?)?;
    let config = ModelConfig::from_gguf(&file)?;
    let tensors = source::of_gguf(&file, |tensor, element| QuantizeError::AlreadyQuantized {
        file: file.file().to_owned(),
        tensor: tensor.to_owned(),
        element: element.to_string(),
    })?;
    let mut header = GgufHeader::default();
    for (key, value) in file.copied_metadata() {
        // The file that is written has the usual alignment, whatever this one has.
        if key != "general.alignment" {
            header.set(key, value);
        }
    }
    write(job, header, &config, &tensors)
}

/// Version of the formats of quantized blocks (`GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

fn write(
    job: &QuantizeJob,
    mut header: GgufHeader,
    config: &ModelConfig,
    tensors: &[SourceTensor<'_>],
) -> Result<QuantizeReport, QuantizeError> {
    header.set(
        "general.file_type",
        MetadataValue::U32(job.file_type.number()),
    );
    if job.file_type.is_quantized() {
        header.set(
            "general.quantization_version",
            MetadataValue::U32(QUANTIZATION_VERSION),
        );
    }
    let mix = Mix::new(job.file_type, config);
    set_tensors(&mut header, tensors, |tensor| {
        mix.element_type(&tensor.name, &tensor.dims)
    });
    let unwritable = |cause| QuantizeError::write(&job.output, cause);
    let total: usize = tensors.iter().map(SourceTensor::bytes).sum();
    let progress = Progress::new(format!("{} {}", job.input, job.file_type), total as u64);
    let mut file = PartialFile::create(&job.output).map_err(unwritable)?;
    write_stream(
        &mut file,
        &header,
        tensors,
        thread_count(job.threads),
        &progress,
    )
    .map_err(|error| match error {
        StreamError::Source(error) => QuantizeError::Load(error),
        StreamError::Write(cause) => unwritable(cause),
    })?;
    file.keep().map_err(unwritable)?;
    let mut kinds = BTreeMap::new();
    for tensor in &header.tensors {
        *kinds.entry(tensor.element.to_string()).or_default() += 1;
    }
    Ok(QuantizeReport {
        output: job.output.clone(),
        file_type: job.file_type,
        bytes: header.file_size().map_err(unwritable)?,
        parameters: tensors.iter().map(|tensor| tensor.elements() as u64).sum(),
        tensors: kinds,
        warnings: small_rows(tensors, &mix),
    })
}

/// Says when rows are too short for the blocks that the type asks for.
fn small_rows(tensors: &[SourceTensor<'_>], mix: &Mix) -> Vec<String> {
    let count = tensors
        .iter()
        .filter(|tensor| mix.falls_back(&tensor.name, &tensor.dims))
        .count();
    match count {
        0 => Vec::new(),
        _ => vec![format!(
            "{count} tensors have rows that hold no whole blocks of their type, and got one with smaller blocks"
        )],
    }
}
