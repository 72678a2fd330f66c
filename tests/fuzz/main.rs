//! Fuzzing on stable Rust: every parser of outside data, fed with mutations of real inputs.
//!
//! If the process itself dies, run it again with `TRUNKLINE_FUZZ_TRACE=FOLDER`, where each target keeps the input that it
//! is about to read.
//!
//! `cargo test` gives each target a second, `.ci/run` sixty (`TRUNKLINE_FUZZ_SECONDS`). A failure prints the
//! seed and keeps the input; put it into `tests/fuzz/regressions/TARGET/`, from where it is replayed first in every
//! later run. (`cargo fuzz` needs a nightly compiler, so inputs are made by mutation alone, without coverage.)

mod mutate;
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mutate::Mutator;
use rand::SeedableRng;
use rand::rngs::StdRng;
use trunkline::prompt::{ReasoningChoice, ToolFormat};

/// How the inputs of a target are varied.
enum Shape {
    /// Bytes: flips, cuts, splices, odd integers.
    Binary,
    /// JSON: values replaced, removed, repeated, nested; now and then as bytes.
    Json,
    /// Text: pieces of a dictionary and of the seeds, shuffled.
    Text(&'static [&'static str]),
}

/// Replays the regressions and seeds, then mutates them until the time is over.
fn fuzz(name: &str, shape: Shape, mut seeds: Vec<Vec<u8>>, target: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/regressions")
        .join(name);
    seeds.extend(
        files(&folder)
            .into_iter()
            .map(|path| std::fs::read(path).expect("a readable regression")),
    );
    assert!(!seeds.is_empty(), "{name} has nothing to begin with");
    // What a crash of the whole process leaves behind (a stack that overflows cannot be caught).
    let trace =
        std::env::var_os("TRUNKLINE_FUZZ_TRACE").map(|folder| Path::new(&folder).join(name));
    let run = |input: &[u8], origin: &str| {
        if let Some(path) = &trace {
            std::fs::write(path, input).expect("a writable folder");
        }
        if let Err(cause) = catch_unwind(AssertUnwindSafe(|| target(input))) {
            let kept = keep(name, input);
            eprintln!(
                "{name} failed on {origin}; the input is in {}",
                kept.display()
            );
            std::panic::resume_unwind(cause);
        }
    };
    for (number, seed) in seeds.iter().enumerate() {
        run(seed, &format!("seed {number}"));
    }
    let seconds = setting("TRUNKLINE_FUZZ_SECONDS").unwrap_or(1);
    let random = setting("TRUNKLINE_FUZZ_SEED").unwrap_or_else(rand::random);
    let mut mutator = Mutator::new(StdRng::seed_from_u64(random), seeds);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut inputs = 0u64;
    while Instant::now() < end {
        let input = match shape {
            Shape::Binary => mutator.bytes(),
            Shape::Json => mutator.json(),
            Shape::Text(dictionary) => mutator.text(dictionary),
        };
        run(
            &input,
            &format!("input {inputs} of TRUNKLINE_FUZZ_SEED={random}"),
        );
        inputs += 1;
    }
    println!("{name}: {inputs} inputs in {seconds} s");
    assert!(seconds == 0 || inputs > 0, "{name} never ran");
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Where a failing input is kept.
fn keep(name: &str, input: &[u8]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("fuzz")
        .join(name);
    let path = folder.join(blake3::hash(input).to_hex().as_str());
    let written = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, input));
    written.expect("a writable target folder");
    path
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    files
}

fn fixture(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(path);
    std::fs::read(&path).expect("a fixture")
}

#[test]
fn request() {
    let seeds = targets::REQUESTS
        .iter()
        .map(|seed| seed.as_bytes().to_vec());
    fuzz("request", Shape::Json, seeds.collect(), targets::request);
}

#[test]
fn output() {
    let seeds = targets::OUTPUTS.iter().map(|seed| seed.as_bytes().to_vec());
    fuzz(
        "output",
        Shape::Text(targets::OUTPUT_WORDS),
        seeds.collect(),
        targets::output,
    );
}

/// No format was forgotten: the configuration names them all when it is given one that it does not know.
#[test]
fn all_formats_are_fuzzed() {
    let named = |error: String| -> Vec<String> {
        let list = error.split_once(": use ").expect("a list").1.to_owned();
        list.split(", ").map(str::to_owned).collect()
    };
    let tools = named("?".parse::<ToolFormat>().expect_err("no such format"));
    assert_eq!(tools[1..], *targets::TOOL_FORMATS);
    let reasoning = named("?".parse::<ReasoningChoice>().expect_err("no such format"));
    assert_eq!(reasoning, *targets::REASONING_FORMATS);
}

#[test]
fn template() {
    let seeds = targets::TEMPLATES
        .iter()
        .map(|seed| seed.as_bytes().to_vec());
    fuzz(
        "template",
        Shape::Text(targets::TEMPLATE_WORDS),
        seeds.collect(),
        targets::template,
    );
}

#[test]
fn stop_strings() {
    fuzz(
        "stop_strings",
        Shape::Binary,
        vec![b"\x02ab\0aab\0aaabab".to_vec()],
        targets::stop_strings,
    );
}

#[test]
fn gguf() {
    let seeds = [
        "reference/llama3/model-q8_0.gguf",
        "reference/qwen3/model-q8_0.gguf",
        "reference/element_types.gguf",
    ];
    fuzz(
        "gguf",
        Shape::Binary,
        seeds.map(fixture).to_vec(),
        targets::gguf,
    );
}

#[test]
fn safetensors() {
    let seeds = [
        "reference/qwen2/model.safetensors",
        "reference/element_types.safetensors",
    ];
    fuzz(
        "safetensors",
        Shape::Binary,
        seeds.map(fixture).to_vec(),
        targets::safetensors,
    );
}

#[test]
fn model_configuration() {
    let seeds =
        ["qwen3", "qwen2", "llama3"].map(|name| fixture(&format!("reference/{name}/config.json")));
    fuzz(
        "model_configuration",
        Shape::Json,
        seeds.to_vec(),
        targets::model_configuration,
    );
}

#[test]
fn tokenizer() {
    let seeds = [
        "reference/qwen3/tokenizer.json",
        "reference/llama3/tokenizer.json",
    ]
    .map(fixture);
    fuzz("tokenizer", Shape::Json, seeds.to_vec(), targets::tokenizer);
}
