//! The engine's logits are those of Hugging Face transformers in float32, for every architecture, both
//! weight formats and both attention implementations.
//!
//! The checkpoints and the expected logits come from `scripts/make_reference_fixtures.py`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Device;
use safetensors::SafeTensors;
use trunkline::engine::loader::hub::Silent;
use trunkline::engine::loader::quantize::{FileType, Quantize, QuantizeJob, write_gguf};
use trunkline::engine::loader::{
    HubOptions, LoadError, LoadedModel, ModelConfig, ModelSource, QuantizeOptions, Weight, Weights,
    load_quantized, resolve,
};
use trunkline::engine::sampler::SamplingParameters;
use trunkline::engine::step::{AdmittedSequence, RowInput, SequenceRows, StepPlan, StopRule};
use trunkline::engine::{
    AttentionKind, DeviceChoice, Engine, EngineOptions, KvDtype, KvSize, MatmulPrecision,
};
use trunkline::ids::{BlockId, SequenceId, TokenId};

/// max |difference| / max |expected|.
const TOLERANCE: f32 = 1e-4;
/// The same for quantized weights that are multiplied as they are: activations are rounded to 8 bits, too.
const QUANTIZED_TOLERANCE: f32 = 0.1;
const BLOCK_SIZE: usize = 16;
const DECODE_STEPS: usize = 16;
/// Prefill chunks: one that ends inside a block, one token, one over several blocks; then the rest.
const CHUNKS: [usize; 3] = [39, 1, 50];

fn reference_folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/reference")
        .join(name)
}

fn load_model(path: &Path) -> LoadedModel {
    load_with(path, Quantize::None)
}

/// Loads and quantizes as `--quantize` does.
fn load_with(path: &Path, quantize: Quantize) -> LoadedModel {
    let source = ModelSource::parse(path.to_str().expect("a UTF-8 path")).expect("a model");
    let files =
        resolve(&source, &HubOptions::offline(PathBuf::new()), &Silent).expect("local files");
    let options = QuantizeOptions {
        quantize,
        ..QuantizeOptions::default()
    };
    load_quantized(&files, &options).expect("a valid model")
}

/// What transformers computed.
struct Reference {
    prompt: Vec<TokenId>,
    /// Row 0 belongs to the last prompt position, row *n* to the *n*-th generated token.
    logits: Vec<Vec<f32>>,
    /// The greedy choice of each row.
    tokens: Vec<TokenId>,
}

impl Reference {
    /// `suffix` chooses the weights: none for the exact ones, `_q8_0` for the quantized.
    fn read(folder: &Path, suffix: &str) -> Self {
        let bytes = std::fs::read(folder.join("reference.safetensors")).expect("the fixture");
        let tensors = SafeTensors::deserialize(&bytes).expect("a valid fixture");
        let words = |name: &str| -> Vec<[u8; 4]> {
            let data = tensors.tensor(name).expect(name).data();
            data.chunks_exact(4)
                .map(|word| word.try_into().expect("four bytes"))
                .collect()
        };
        let ids = |name: &str| {
            words(name)
                .into_iter()
                .map(|word| TokenId(u32::from_le_bytes(word)))
                .collect()
        };
        let logits_name = format!("logits{suffix}");
        let width = tensors.tensor(&logits_name).expect("logits").shape()[1];
        let values: Vec<f32> = words(&logits_name)
            .into_iter()
            .map(f32::from_le_bytes)
            .collect();
        Self {
            prompt: ids("prompt"),
            logits: values.chunks_exact(width).map(<[f32]>::to_vec).collect(),
            tokens: ids(&format!("tokens{suffix}")),
        }
    }
}

/// Runs one sequence greedily and returns the logits of each sampled row and the sampled tokens.
fn run(engine: &mut Engine, prompt: &[TokenId]) -> (Vec<Vec<f32>>, Vec<TokenId>) {
    let sequence = SequenceId::next();
    let mut admit = vec![AdmittedSequence {
        sequence,
        prompt: Arc::from(prompt),
        sampling: SamplingParameters::default(),
        stop: StopRule {
            end_tokens: Arc::from([]),
            max_new_tokens: DECODE_STEPS + 1,
        },
    }];
    let mut chunks = Vec::new();
    let mut start = 0;
    for length in CHUNKS
        .into_iter()
        .chain([prompt.len() - CHUNKS.iter().sum::<usize>()])
    {
        let end = start + length;
        chunks.push((
            end,
            RowInput::Prefill {
                tokens: prompt[start..end].to_vec(),
                start,
                sample: end == prompt.len(),
            },
        ));
        start = end;
    }
    let decodes = (1..=DECODE_STEPS).map(|step| (prompt.len() + step, RowInput::Decode));
    let (mut logits, mut tokens, mut blocks) = (Vec::new(), Vec::new(), 0);
    for (number, (end, input)) in (1..).zip(chunks.into_iter().chain(decodes)) {
        let needed = end.div_ceil(BLOCK_SIZE);
        // Blocks out of order, so that a table read as a range would be noticed.
        let new_blocks = (blocks..needed)
            .map(|block| BlockId((block as u32) ^ 1))
            .collect();
        blocks = blocks.max(needed);
        let plan = StepPlan {
            number,
            admit: std::mem::take(&mut admit),
            rows: vec![SequenceRows {
                sequence,
                new_blocks,
                input,
            }],
            ..StepPlan::default()
        };
        let output = engine.step_observed(plan, |_, row| logits.push(row.to_vec()));
        assert!(output.failed.is_empty(), "{:?}", output.failed);
        tokens.extend(output.sampled.iter().map(|sampled| sampled.token));
    }
    (logits, tokens)
}

fn relative_error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected
        .iter()
        .fold(0.0f32, |most, value| most.max(value.abs()));
    let worst = found
        .iter()
        .zip(expected)
        .map(|(found, expected)| (found - expected).abs())
        .fold(0.0, f32::max);
    worst / largest
}

/// Quantized weights as the numbers they stand for.
struct Dequantized(Box<dyn Weights>);

impl Weights for Dequantized {
    fn get(&self, name: &str) -> Result<Weight, LoadError> {
        Ok(match self.0.get(name)? {
            Weight::Quantized(tensor) => {
                Weight::Dense(tensor.dequantize(&Device::Cpu).expect("known blocks"))
            }
            dense => dense,
        })
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// Checks weights with both attention implementations.
fn check_weights(
    what: &str,
    config: &ModelConfig,
    weights: &dyn Weights,
    reference: &Reference,
    tolerance: f32,
) {
    assert_eq!(reference.logits.len(), DECODE_STEPS + 1);
    for attention in [AttentionKind::Portable, AttentionKind::Fused] {
        let options = EngineOptions {
            device: DeviceChoice::Cpu,
            attention,
            // The reference computes with f32 activations.
            precision: MatmulPrecision::Exact,
            kv_dtype: KvDtype::F32,
            kv_size: KvSize::Blocks(16),
            block_size: BLOCK_SIZE,
            threads: 1,
            ..EngineOptions::default()
        };
        let mut engine = Engine::new(config, weights, &options).expect("an engine");
        assert_eq!(engine.info().attention, attention);
        let (logits, tokens) = run(&mut engine, &reference.prompt);
        assert_eq!(logits.len(), reference.logits.len());
        // A token that rounding chose otherwise leads to another text; what comes after it cannot be compared.
        let same = tokens
            .iter()
            .zip(&reference.tokens)
            .take_while(|(found, expected)| found == expected)
            .count();
        if tolerance <= TOLERANCE {
            assert_eq!(tokens, reference.tokens, "{what}, {attention} attention");
        }
        for (step, (found, expected)) in logits
            .iter()
            .zip(&reference.logits)
            .enumerate()
            .take(same + 1)
        {
            let error = relative_error(found, expected);
            assert!(
                error <= tolerance,
                "{what}, {attention} attention, step {step}: relative error {error}"
            );
        }
    }
}

/// Checks one unquantized weight file.
fn check(folder: &str, file: &str) {
    let folder = reference_folder(folder);
    let model = load_model(&folder.join(file));
    let reference = Reference::read(&folder, "");
    check_weights(
        &model.id,
        &model.config,
        model.weights.as_ref(),
        &reference,
        TOLERANCE,
    );
}

#[test]
fn qwen3_safetensors() {
    check("qwen3", "");
}

#[test]
fn qwen2_safetensors() {
    check("qwen2", "");
}

#[test]
fn llama3_safetensors() {
    check("llama3", "");
}

#[test]
fn gguf_f16() {
    for name in ["qwen3", "qwen2", "llama3"] {
        check(name, "model-f16.gguf");
    }
}

#[test]
fn gguf_q8_0() {
    for name in ["qwen3", "qwen2", "llama3"] {
        let folder = reference_folder(name);
        let LoadedModel {
            config, weights, ..
        } = load_model(&folder.join("model-q8_0.gguf"));
        let reference = Reference::read(&folder, "_q8_0");
        check_weights(
            name,
            &config,
            weights.as_ref(),
            &reference,
            QUANTIZED_TOLERANCE,
        );
        check_weights(name, &config, &Dequantized(weights), &reference, TOLERANCE);
    }
}

#[test]
fn files_that_we_write() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["qwen3", "qwen2", "llama3"] {
        let original = reference_folder(name);
        for (file_type, suffix) in [(FileType::F32, ""), (FileType::Q8_0, "_q8_0")] {
            let output = folder.path().join(format!("{name}-{file_type}.gguf"));
            write_gguf(&QuantizeJob {
                input: original.to_str().expect("a UTF-8 path").to_owned(),
                output: output.clone(),
                file_type,
                force: false,
                threads: 1,
            })
            .expect("a model that can be written");
            let LoadedModel {
                config, weights, ..
            } = load_model(&output);
            let reference = Reference::read(&original, suffix);
            check_weights(name, &config, &Dequantized(weights), &reference, TOLERANCE);
        }
    }
}

#[test]
fn weights_quantized_in_place() {
    for name in ["qwen3", "qwen2", "llama3"] {
        let folder = reference_folder(name);
        let reference = Reference::read(&folder, "_q8_0");
        let LoadedModel {
            config, weights, ..
        } = load_with(&folder, Quantize::Type(FileType::Q8_0));
        check_weights(
            name,
            &config,
            weights.as_ref(),
            &reference,
            QUANTIZED_TOLERANCE,
        );
        check_weights(name, &config, &Dequantized(weights), &reference, TOLERANCE);
    }
}
