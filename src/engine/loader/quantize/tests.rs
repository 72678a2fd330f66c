//! Quantized models, written and in place, against the models they come from.

use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::quantized::GgmlDType;

use super::{CacheOptions, FileType, Quantize, QuantizeError, QuantizeJob, QuantizeOptions};
use super::{QuantizeReport, write_gguf};
use crate::engine::loader::bytes::FileBytes;
use crate::engine::loader::error::LoadError;
use crate::engine::loader::gguf::{ElementType, GgufFile};
use crate::engine::loader::hub::Silent;
use crate::engine::loader::quantize::source::tensor_shapes;
use crate::engine::loader::tests::{CHECKPOINTS, fixture, load_path, values};
use crate::engine::loader::{
    HubOptions, LoadedModel, ModelSource, Weight, load_quantized, resolve,
};

const ALL_TYPES: [FileType; 10] = [
    FileType::F32,
    FileType::F16,
    FileType::BF16,
    FileType::Q4_0,
    FileType::Q4_K_S,
    FileType::Q4_K_M,
    FileType::Q5_K_S,
    FileType::Q5_K_M,
    FileType::Q6_K,
    FileType::Q8_0,
];

/// The largest error of a weight, relative to the largest weight of its tensor.
fn tolerance(file_type: FileType) -> f32 {
    match file_type {
        // The fixtures' weights are exact in all three.
        FileType::F32 | FileType::F16 | FileType::BF16 => 0.0,
        FileType::Q8_0 => 0.005,
        FileType::Q6_K => 0.03,
        FileType::Q5_K_S | FileType::Q5_K_M => 0.06,
        FileType::Q4_0 | FileType::Q4_K_S | FileType::Q4_K_M => 0.13,
    }
}

fn job(input: &str, output: &Path, file_type: FileType) -> QuantizeJob {
    QuantizeJob {
        input: input.to_owned(),
        output: output.to_path_buf(),
        file_type,
        force: false,
        threads: 2,
    }
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Writes `input` into a fresh folder, and loads what was written.
fn written(input: &str, file_type: FileType) -> (tempfile::TempDir, QuantizeReport, LoadedModel) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = folder.path().join("out.gguf");
    let report = write_gguf(&job(input, &output, file_type)).expect("a model that can be written");
    let model = load_path(&output).expect("what was written");
    (folder, report, model)
}

fn load_with(input: &str, options: &QuantizeOptions) -> Result<LoadedModel, LoadError> {
    let source = ModelSource::parse(input)?;
    let files = resolve(&source, &HubOptions::offline(PathBuf::new()), &Silent)?;
    load_quantized(&files, options)
}

fn plain(input: &str) -> LoadedModel {
    load_with(input, &QuantizeOptions::default()).expect("a valid model")
}

/// Every tensor of both within `tolerance` of the larger's largest number.
fn assert_near(what: &str, one: &LoadedModel, other: &LoadedModel, tolerance: f32) {
    for (name, dims) in tensor_shapes(&one.config) {
        let left = values(&one.weights.get_shaped(&name, &dims).expect(&name));
        let right = values(&other.weights.get_shaped(&name, &dims).expect(&name));
        let largest = left
            .iter()
            .fold(0.0f32, |most, value| most.max(value.abs()));
        let worst = left
            .iter()
            .zip(&right)
            .map(|(left, right)| (left - right).abs())
            .fold(0.0, f32::max);
        assert!(
            worst <= tolerance * largest,
            "{what}: {name} is off by {worst} of {largest}"
        );
    }
}

/// The same blocks, bit for bit.
fn assert_same_bits(what: &str, one: &LoadedModel, other: &LoadedModel) {
    for (name, _) in tensor_shapes(&one.config) {
        let pair = [one, other].map(|model| model.weights.get(&name).expect(&name));
        match &pair {
            [Weight::Quantized(left), Weight::Quantized(right)] => {
                assert_eq!(left.dtype(), right.dtype(), "{what}: {name}");
                let same = left.data().expect("CPU") == right.data().expect("CPU");
                assert!(same, "{what}: {name}");
            }
            [left, right] => assert_eq!(values(left), values(right), "{what}: {name}"),
        }
    }
}

fn fixture_text(path: &str) -> String {
    path_text(&fixture(path)).to_owned()
}

#[test]
fn what_is_written_is_the_model_that_was_read() {
    for name in CHECKPOINTS {
        let input = fixture_text(&format!("reference/{name}"));
        let original = plain(&input);
        for file_type in ALL_TYPES {
            let (_folder, report, mut model) = written(&input, file_type);
            let what = format!("{name} as {file_type}");
            assert_near(&what, &original, &model, tolerance(file_type));
            assert_eq!(report.file_type, file_type);
            // GGUF has a divisor for each frequency in place of the rule, and numbers in f32.
            let frequencies = original.config.inverse_frequencies();
            for (left, right) in frequencies.iter().zip(model.config.inverse_frequencies()) {
                assert!((left / right - 1.0).abs() < 1e-6, "{what}");
            }
            model.config.rope_scaling = original.config.rope_scaling.clone();
            model.config.rms_norm_epsilon = original.config.rms_norm_epsilon;
            assert_eq!(model.config, original.config, "{what}");
            assert_eq!(model.text.chat_template, original.text.chat_template);
            assert_eq!(model.text.bos_token, original.text.bos_token, "{what}");
            assert_eq!(model.text.eos_token, original.text.eos_token, "{what}");
            assert_eq!(model.text.add_bos, original.text.add_bos, "{what}");
        }
    }
}

#[test]
fn the_fixtures_of_the_gguf_package_have_the_same_bits() {
    for name in CHECKPOINTS {
        let input = fixture_text(&format!("reference/{name}"));
        for (file_type, file) in [
            (FileType::F16, "model-f16.gguf"),
            (FileType::Q8_0, "model-q8_0.gguf"),
        ] {
            let (_folder, _, model) = written(&input, file_type);
            let expected = plain(&format!("{input}/{file}"));
            assert_same_bits(&format!("{name}/{file}"), &expected, &model);
        }
    }
}

#[test]
fn a_gguf_file_quantizes_as_the_folder_does() {
    for name in CHECKPOINTS {
        let input = fixture_text(&format!("reference/{name}"));
        for file_type in [FileType::Q4_K_M, FileType::Q8_0] {
            let (_one, _, from_folder) = written(&input, file_type);
            let (_two, _, from_file) = written(&format!("{input}/model-f16.gguf"), file_type);
            assert_same_bits(name, &from_folder, &from_file);
            assert_eq!(from_folder.config, from_file.config, "{name}");
        }
    }
}

#[test]
fn the_demo_model_gets_the_mix_of_k_quants() {
    let (folder, report, model) = written("demo", FileType::Q4_K_M);
    let original = plain("demo");
    assert_near("demo", &original, &model, tolerance(FileType::Q4_K_M));
    assert_eq!(model.config.end_tokens, original.config.end_tokens);
    assert_eq!(model.sampling, original.sampling);
    assert_eq!(model.text.chat_template, original.text.chat_template);

    let path = folder.path().join("out.gguf");
    let file = GgufFile::parse("demo".into(), FileBytes::open(&path).expect("the file"))
        .expect("a valid file");
    let kind = |name: &str| file.tensor(name).expect(name).element;
    // Six layers: an eighth of them is none, and 7/8 are five; between, each third one counts.
    for (layer, bits) in [
        GgmlDType::Q4K,
        GgmlDType::Q4K,
        GgmlDType::Q6K,
        GgmlDType::Q4K,
        GgmlDType::Q4K,
        GgmlDType::Q6K,
    ]
    .into_iter()
    .enumerate()
    {
        for part in ["attn_v", "ffn_down"] {
            let found = kind(&format!("blk.{layer}.{part}.weight"));
            assert_eq!(found, ElementType::Quantized(bits), "{part} of {layer}");
        }
        assert_eq!(
            kind(&format!("blk.{layer}.attn_q.weight")),
            ElementType::Quantized(GgmlDType::Q4K)
        );
    }
    assert_eq!(
        kind("token_embd.weight"),
        ElementType::Quantized(GgmlDType::Q6K),
        "it is the LM head"
    );
    assert_eq!(kind("output_norm.weight"), ElementType::Dense(DType::F32));
    assert_eq!(file.count("general.file_type").expect("a number"), Some(15));
    assert_eq!(report.tensors["Q6_K"], 5);

    // Its tokenizer has no name in GGUF: it is in the file as a whole, and the user is told.
    assert!(
        report
            .warnings
            .iter()
            .any(|text| text.contains("tokenizer"))
    );
    for text in ["What is the weather in Berlin?", "{\"a\": [1, 23]}\n\n x"] {
        let encode = |model: &LoadedModel| {
            let encoding = model.text.tokenizer.encode_fast(text, true).expect("text");
            encoding.get_ids().to_vec()
        };
        assert_eq!(encode(&model), encode(&original));
    }
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = fixture_text("reference/qwen3");
    let refused = |job: &QuantizeJob| write_gguf(job).expect_err("it must be refused");
    let out = folder.path().join("out.gguf");
    let good = job(&input, &out, FileType::Q8_0);

    let quantized = format!("{input}/model-q8_0.gguf");
    let error = refused(&job(&quantized, &out, FileType::Q4_K_M));
    assert!(matches!(error, QuantizeError::AlreadyQuantized { .. }));
    assert!(error.to_string().contains("Q8_0"), "{error}");

    let error = refused(&job("org/not-here", &out, FileType::Q8_0));
    assert!(error.to_string().contains("org/not-here"), "{error}");
    let error = refused(&job(
        &input,
        &folder.path().join("none/out.gguf"),
        FileType::Q8_0,
    ));
    assert!(matches!(error, QuantizeError::Write { .. }), "{error}");
    let error = refused(&job(&input, folder.path(), FileType::Q8_0));
    assert!(
        matches!(error, QuantizeError::OutputIsFolder { .. }),
        "{error}"
    );

    std::fs::write(&out, b"precious").expect("a writable folder");
    let error = refused(&good);
    assert!(error.to_string().contains("--force"), "{error}");
    assert_eq!(std::fs::read(&out).expect("the file"), b"precious");
    let forced = QuantizeJob {
        force: true,
        ..good
    };
    write_gguf(&forced).expect("it may be replaced");
    let error = refused(&QuantizeJob {
        input: path_text(&out).to_owned(),
        ..forced
    });
    assert!(
        matches!(error, QuantizeError::OutputIsInput { .. }),
        "{error}"
    );
    let names = std::fs::read_dir(folder.path())
        .expect("the folder")
        .count();
    assert_eq!(names, 1, "only the output");
}

#[test]
fn numbers_that_a_type_cannot_hold_are_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(
            fixture("reference/llama3").join(file),
            folder.path().join(file),
        )
        .expect("a copy");
    }
    let weights = std::fs::read(fixture("reference/llama3/model.safetensors")).expect("a fixture");
    let name = "model.layers.1.mlp.up_proj.weight";
    let header = u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    let json: serde_json::Value = serde_json::from_slice(&weights[8..8 + header]).expect("JSON");
    let start = 8 + header + json[name]["data_offsets"][0].as_u64().expect("a number") as usize;
    for (number, file_type, word) in [
        (f32::NAN, FileType::Q8_0, "finite"),
        (f32::INFINITY, FileType::F32, "finite"),
        (1e5, FileType::F16, "f16"),
    ] {
        let mut damaged = weights.clone();
        damaged[start..start + 4].copy_from_slice(&number.to_le_bytes());
        std::fs::write(folder.path().join("model.safetensors"), damaged).expect("space");
        let output = folder.path().join("out.gguf");
        let error = write_gguf(&job(path_text(folder.path()), &output, file_type))
            .expect_err("it must be refused")
            .to_string();
        assert!(error.contains(name) && error.contains(word), "{error}");
        assert!(!output.exists());
    }
}

fn in_situ(file_type: FileType, cache: Option<&Path>) -> QuantizeOptions {
    QuantizeOptions {
        quantize: Quantize::Type(file_type),
        cache: cache.map(|folder| CacheOptions {
            folder: folder.to_path_buf(),
            limit: 1 << 30,
        }),
        threads: 2,
        ..QuantizeOptions::default()
    }
}

#[test]
fn in_place_from_the_cache_and_from_a_file_are_the_same_bits() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let inputs = CHECKPOINTS.map(|name| fixture_text(&format!("reference/{name}")));
    for input in inputs.iter().map(String::as_str).chain(["demo"]) {
        for file_type in [FileType::Q8_0, FileType::Q4_K_M, FileType::Q4_0] {
            let what = format!("{input} as {file_type}");
            let (_file, _, expected) = written(input, file_type);
            let load = |cache| load_with(input, &in_situ(file_type, cache)).expect("a model");
            assert_same_bits(&what, &expected, &load(None));
            assert_same_bits(&what, &expected, &load(Some(folder.path())));
            assert_same_bits(&what, &expected, &load(Some(folder.path())));
        }
    }
    let entries = std::fs::read_dir(folder.path()).expect("the cache").count();
    assert_eq!(entries, 4 * 3, "one for each model and type");
}

#[test]
fn a_damaged_entry_of_the_cache_is_made_anew() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let input = fixture_text("reference/qwen2");
    let options = in_situ(FileType::Q8_0, Some(folder.path()));
    let first = load_with(&input, &options).expect("a model");
    let entry = || {
        let mut entries = std::fs::read_dir(folder.path()).expect("the cache");
        let path = entries.next().expect("one entry").expect("a name").path();
        assert!(entries.next().is_none());
        path
    };
    let whole = std::fs::read(entry()).expect("the entry");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], &[]] {
        // Not in place: the first model still has the old file mapped.
        let path = entry();
        std::fs::remove_file(&path).expect("the entry");
        std::fs::write(&path, damaged).expect("space");
        let again = load_with(&input, &options).expect("a model");
        assert_same_bits("again", &first, &again);
        assert_eq!(std::fs::read(entry()).expect("the entry"), whole);
    }
}

#[test]
fn other_weights_are_another_entry() {
    let cache = tempfile::tempdir().expect("a temporary folder");
    let model = tempfile::tempdir().expect("a temporary folder");
    for entry in std::fs::read_dir(fixture("reference/qwen3")).expect("the fixture") {
        let path = entry.expect("a name").path();
        let name = path.file_name().expect("a name");
        std::fs::copy(&path, model.path().join(name)).expect("a copy");
    }
    let options = in_situ(FileType::Q8_0, Some(cache.path()));
    let load = || load_with(path_text(model.path()), &options).expect("a model");
    let before = load();
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("the weights");
    let last = bytes.len() - 1;
    bytes[last] ^= 0x80;
    std::fs::remove_file(&path).expect("the weights");
    std::fs::write(&path, bytes).expect("space");
    let after = load();
    assert_eq!(
        std::fs::read_dir(cache.path()).expect("the cache").count(),
        2
    );
    let differs = tensor_shapes(&before.config).iter().any(|(name, _)| {
        values(&before.weights.get(name).expect(name))
            != values(&after.weights.get(name).expect(name))
    });
    assert!(differs);
}

#[test]
fn a_cache_that_cannot_be_written_is_no_obstacle() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("a-file");
    std::fs::write(&file, b"not a folder").expect("space");
    let input = fixture_text("reference/llama3");
    let expected = load_with(&input, &in_situ(FileType::Q8_0, None)).expect("a model");
    let found = load_with(&input, &in_situ(FileType::Q8_0, Some(&file))).expect("a model");
    assert_same_bits("unwritable", &expected, &found);

    let mut small = in_situ(FileType::Q8_0, Some(folder.path()));
    if let Some(cache) = &mut small.cache {
        cache.limit = 1000;
    }
    let found = load_with(&input, &small).expect("a model");
    assert_same_bits("too small", &expected, &found);
    assert_eq!(
        std::fs::read_dir(folder.path())
            .expect("the folder")
            .count(),
        1
    );
}

#[test]
fn gguf_files_are_not_quantized_in_place() {
    let input = fixture_text("reference/qwen3/model-f16.gguf");
    let error = load_with(&input, &in_situ(FileType::Q8_0, None))
        .err()
        .expect("it must be refused")
        .to_string();
    for part in ["q8_0", "model-f16.gguf", "trunkline quantize"] {
        assert!(error.contains(part), "{part} is missing from {error}");
    }
    for quantize in [Quantize::None, Quantize::Auto] {
        let options = QuantizeOptions {
            quantize,
            ..QuantizeOptions::default()
        };
        assert!(load_with(&input, &options).is_ok());
    }
}
