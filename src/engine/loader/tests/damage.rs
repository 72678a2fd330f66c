//! Damaged and hostile files give an error: no panic, no unbounded allocation, and a message that names the file.

use std::path::Path;

use proptest::prelude::*;

use super::{fixture, load_path};
use crate::engine::loader::LoadError;

const SMALL_FILES: [&str; 4] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// A copy of a checkpoint's folder.
fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in SMALL_FILES.into_iter().chain(["model.safetensors"]) {
        std::fs::copy(
            fixture("reference").join(name).join(file),
            folder.path().join(file),
        )
        .expect("a copy");
    }
    folder
}

fn error_of(path: &Path) -> LoadError {
    load_path(path).err().expect("it must not load")
}

/// Loads it and reads every tensor that may be there; the result does not matter, only that there is one.
fn exercise(path: &Path) {
    let Ok(model) = load_path(path) else { return };
    for name in [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    ] {
        let _ = model.weights.get(name);
    }
    let _ = model
        .text
        .tokenizer
        .encode_fast("Hello, world 123 <|im_end|>", true);
}

#[test]
fn each_missing_file_is_named() {
    for (file, needed) in SMALL_FILES
        .into_iter()
        .zip([true, false, true, false])
        .chain([("model.safetensors", true)])
    {
        let folder = copy_of("qwen3");
        std::fs::remove_file(folder.path().join(file)).expect("the file");
        match load_path(folder.path()) {
            Ok(_) => assert!(!needed, "{file}"),
            Err(error) => {
                assert!(needed, "{file}: {error}");
                assert!(
                    matches!(error, LoadError::MissingFile { .. })
                        && error.to_string().contains(file),
                    "{error}"
                );
            }
        }
    }
}

#[test]
fn truncated_weights_are_called_incomplete() {
    let folder = copy_of("qwen3");
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("the file");
    for length in [0, 3, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).expect("a writable folder");
        let error = error_of(folder.path());
        assert!(
            matches!(error, LoadError::Corrupt { .. }),
            "{length}: {error}"
        );
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }
}

#[test]
fn truncated_gguf_files_are_called_incomplete() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("cut.gguf");
    let bytes = std::fs::read(fixture("reference/llama3/model-q8_0.gguf")).expect("the fixture");
    for length in (0..bytes.len())
        .step_by(997)
        .chain([4, 8, 23, 24, 25, bytes.len() - 1])
    {
        std::fs::write(&path, &bytes[..length]).expect("a writable folder");
        let error = error_of(&path);
        assert!(
            matches!(error, LoadError::Corrupt { .. }),
            "{length}: {error}"
        );
        assert!(error.to_string().contains("cut.gguf"), "{error}");
    }
}

#[test]
fn absurd_counts_do_not_allocate() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("absurd.gguf");
    let header = |version: u32, tensors: u64, metadata: u64| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(metadata.to_le_bytes());
        bytes
    };
    let array = |element: u32, count: u64| {
        let mut bytes = header(3, 0, 1);
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(b"k");
        bytes.extend(9u32.to_le_bytes());
        bytes.extend(element.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes
    };
    let mut nested = array(9, 1);
    for _ in 0..1000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    let cases: [(Vec<u8>, &str); 9] = [
        (b"GGML".to_vec(), "not a GGUF file"),
        (header(1, 0, 0), "version 1"),
        (header(3u32.swap_bytes(), 0, 0), "big-endian"),
        (header(3, u64::MAX, 0), "ends at"),
        (header(3, 0, u64::MAX), "ends at"),
        (array(8, u64::MAX), "ends at"),
        (array(10, u64::MAX), "ends at"),
        (array(77, 1), "type 77"),
        (nested, "nested"),
    ];
    for (bytes, expected) in cases {
        std::fs::write(&path, bytes).expect("a writable folder");
        let message = error_of(&path).to_string();
        assert!(
            message.contains(expected),
            "{message} should contain {expected}"
        );
    }
}

#[test]
fn an_unreadable_tokenizer_is_named() {
    let folder = copy_of("qwen3");
    for text in [
        "",
        "{}",
        "[]",
        "{\"model\": {\"type\": \"BPE\", \"vocab\": {}, \"merges\": [\"a b\"]}}",
        "\u{0}\u{1}",
    ] {
        std::fs::write(folder.path().join("tokenizer.json"), text).expect("a writable folder");
        let error = error_of(folder.path());
        assert!(
            matches!(error, LoadError::Tokenizer { .. }),
            "{text}: {error}"
        );
        assert!(error.to_string().contains("tokenizer.json"), "{error}");
    }
}

/// One change somewhere in a file.
#[derive(Debug, Clone)]
enum Change {
    Set(u8),
    Remove(usize),
    Insert(Vec<u8>),
    Number(u64),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        any::<u8>().prop_map(Change::Set),
        (1usize..40).prop_map(Change::Remove),
        proptest::collection::vec(any::<u8>(), 1..20).prop_map(Change::Insert),
        prop_oneof![
            Just(0),
            Just(u64::MAX),
            Just(1 << 31),
            Just(1 << 62),
            any::<u64>()
        ]
        .prop_map(Change::Number),
    ]
}

fn apply(bytes: &mut Vec<u8>, position: usize, change: &Change) {
    if bytes.is_empty() {
        return;
    }
    let position = position % bytes.len();
    match change {
        Change::Set(value) => bytes[position] = *value,
        Change::Remove(length) => drop(bytes.drain(position..(position + length).min(bytes.len()))),
        Change::Insert(inserted) => {
            drop(bytes.splice(position..position, inserted.iter().copied()))
        }
        Change::Number(number) => {
            for (byte, new) in bytes[position..].iter_mut().zip(number.to_le_bytes()) {
                *byte = new;
            }
        }
    }
}

/// Changes to one of the first `span` bytes (most often the header) of a file.
fn changes(span: usize) -> impl Strategy<Value = Vec<(usize, Change)>> {
    proptest::collection::vec((prop_oneof![0..span, 0..512usize], change()), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_gguf_files_never_panic(changes in changes(12_000)) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("changed.gguf");
        let mut bytes = std::fs::read(fixture("reference/llama3/model-q8_0.gguf")).expect("the fixture");
        for (position, change) in &changes {
            apply(&mut bytes, *position, change);
        }
        std::fs::write(&path, &bytes).expect("a writable folder");
        exercise(&path);
    }

    #[test]
    fn changed_sentencepiece_vocabularies_never_panic(changes in changes(14_000)) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("changed.gguf");
        let mut bytes = std::fs::read(fixture("tokenizers/sentencepiece/tokenizer.gguf")).expect("the fixture");
        for (position, change) in &changes {
            apply(&mut bytes, *position, change);
        }
        std::fs::write(&path, &bytes).expect("a writable folder");
        if let Ok(text) = crate::engine::loader::gguf::open_tokenizer(&path) {
            let _ = text.tokenizer.encode_fast("Hello <s> world 🙂", true);
        }
    }

    #[test]
    fn changed_folders_never_panic(file in 0usize..5, changes in changes(3_000)) {
        let folder = copy_of("qwen2");
        let path = folder.path().join(SMALL_FILES.get(file).unwrap_or(&"model.safetensors"));
        let mut bytes = std::fs::read(&path).expect("the file");
        for (position, change) in &changes {
            apply(&mut bytes, *position, change);
        }
        std::fs::write(&path, &bytes).expect("a writable folder");
        exercise(folder.path());
    }
}
