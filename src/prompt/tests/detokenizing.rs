//! Detokenizing step by step against the tokenizer's own `decode`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use proptest::prelude::*;
use tokenizers::Tokenizer;

use crate::ids::TokenId;
use crate::prompt::detokenizer::TokenTexts;
use crate::prompt::{Detokenizer, PromptAssets, PromptFormat};

pub(super) fn format_of(tokenizer: Tokenizer, chat_template: Option<&str>) -> PromptFormat {
    PromptFormat::new(PromptAssets {
        tokenizer,
        chat_template: chat_template.map(str::to_string),
        bos_token: Some("<s>".to_string()),
        eos_token: Some("</s>".to_string()),
        add_bos: None,
    })
    .expect("the template is valid")
}

/// A tokenizer of this vocabulary, special tokens and decoder, with tokens numbered in order.
pub(super) fn tokenizer(vocabulary: &[&str], special: &[&str], decoder: &str) -> Tokenizer {
    let vocabulary: serde_json::Map<String, serde_json::Value> = vocabulary
        .iter()
        .enumerate()
        .map(|(id, token)| (token.to_string(), id.into()))
        .collect();
    let added: Vec<serde_json::Value> = special
        .iter()
        .map(|token| {
            serde_json::json!({
                "id": vocabulary[*token], "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    let decoder: serde_json::Value = serde_json::from_str(decoder).expect("a decoder");
    let description = serde_json::json!({
        "version": "1.0", "truncation": { "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 },
        "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": decoder,
        "model": { "type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": null, "dropout": null,
                   "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false },
    });
    Tokenizer::from_bytes(description.to_string()).expect("a tokenizer")
}

/// The text of the tokens one by one, and that each piece is whole characters is given by its type.
fn streamed(mut detokenizer: Detokenizer, tokens: &[u32]) -> String {
    let mut text: String = tokens
        .iter()
        .map(|token| detokenizer.push(TokenId(*token)))
        .collect();
    text += &detokenizer.finish();
    assert_eq!(detokenizer.finish(), "");
    text
}

const BYTE_LEVEL: &str =
    r#"{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}"#;
const LLAMA: &str = r#"{"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#;
const GEMMA: &str = r#"{"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}"#;
const METASPACE: &str =
    r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}"#;
const WORD_PIECE: &str = r###"{"type": "WordPiece", "prefix": "##", "cleanup": false}"###;

/// Tokens whose bytes meet in all ways: whole characters, halves of them, and what never becomes one.
const BYTE_TOKENS: [&str; 14] = [
    "<s>", "H", "Ġhi", "Ċ", "ð", "ŁĻĤ", "ĺ", "Ã", "©", "Â", "ÿ", "<a b>", "âĤ", "¬",
];
const PIECES: [&str; 14] = [
    "<s>", "▁Hello", "▁", "▁▁", "a", " ", "<0x0A>", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>",
    "<0xFF>", "▁é", "<0x>",
];

/// `decode` gives replacement characters for a whole run of byte tokens if any part of it is invalid.
/// This is the same rule for the invalid parts only.
fn with_runs_by_characters(tokenizer: &Tokenizer, tokens: &[u32], skip: u32) -> String {
    let byte = |token: u32| {
        let piece = tokenizer.id_to_token(token)?;
        let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
        u8::from_str_radix(digits, 16).ok()
    };
    let mut text = String::new();
    let mut run: Vec<u8> = Vec::new();
    let end_run = |run: &mut Vec<u8>, text: &mut String| {
        for chunk in run.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|_| '\u{fffd}'));
        }
        run.clear();
    };
    for token in tokens.iter().copied().filter(|token| *token != skip) {
        match byte(token) {
            Some(byte) => run.push(byte),
            None => {
                end_run(&mut run, &mut text);
                text += &tokenizer
                    .id_to_token(token)
                    .unwrap_or_default()
                    .replace('▁', " ");
            }
        }
    }
    end_run(&mut run, &mut text);
    text
}

proptest! {
    #[test]
    fn byte_level_equals_decode(tokens in proptest::collection::vec(0u32..14, 0..12)) {
        let tokenizer = tokenizer(&BYTE_TOKENS, &["<s>", "<a b>"], BYTE_LEVEL);
        let decoded = tokenizer.decode(&tokens, true).expect("decodes");
        prop_assert_eq!(streamed(format_of(tokenizer, None).detokenizer(), &tokens), decoded);
    }

    #[test]
    fn special_tokens_that_mark_something_are_kept(tokens in proptest::collection::vec(0u32..14, 0..12)) {
        let tokenizer = tokenizer(&BYTE_TOKENS, &["<s>", "<a b>"], BYTE_LEVEL);
        let decoded = tokenizer.decode(&tokens, false).expect("decodes");
        let texts = Arc::new(TokenTexts::new(Arc::new(tokenizer), &["<s>", "<a b>"]));
        prop_assert_eq!(streamed(Detokenizer::new(texts), &tokens), decoded);
    }

    #[test]
    fn sentence_piece_equals_decode(tokens in proptest::collection::vec(0u32..14, 0..12)) {
        for decoder in [LLAMA, GEMMA] {
            let tokenizer = tokenizer(&PIECES, &["<s>"], decoder);
            let decoded = tokenizer.decode(&tokens, true).expect("decodes");
            let by_characters = with_runs_by_characters(&tokenizer, &tokens, 0);
            let stripped = if decoder == LLAMA { by_characters.strip_prefix(' ').unwrap_or(&by_characters) } else { &by_characters };
            let format = format_of(tokenizer, None);
            let text = streamed(format.detokenizer(), &tokens);
            prop_assert_eq!(&text, stripped);
            if !by_characters.contains('\u{fffd}') {
                prop_assert_eq!(&text, &decoded);
            }
            prop_assert_eq!(streamed(format.continuing_detokenizer(), &tokens), by_characters);
        }
    }

    #[test]
    fn metaspace_equals_decode(tokens in proptest::collection::vec(0u32..6, 0..12)) {
        let tokenizer = tokenizer(&PIECES, &["<s>"], METASPACE);
        let decoded = tokenizer.decode(&tokens, true).expect("decodes");
        prop_assert_eq!(streamed(format_of(tokenizer, None).detokenizer(), &tokens), decoded);
    }

    #[test]
    fn other_decoders_equal_decode(tokens in proptest::collection::vec(0u32..5, 0..12)) {
        let tokenizer = tokenizer(&["<s>", "ab", "##cd", "é", "x"], &["<s>"], WORD_PIECE);
        let decoded = tokenizer.decode(&tokens, true).expect("decodes");
        prop_assert_eq!(streamed(format_of(tokenizer, None).detokenizer(), &tokens), decoded);
    }
}

#[test]
fn characters_are_whole_and_early() {
    let tokenizer = tokenizer(&BYTE_TOKENS, &["<s>", "<a b>"], BYTE_LEVEL);
    let mut detokenizer = format_of(tokenizer, None).detokenizer();
    // 🙂 is F0 9F 99 82.
    let pieces: Vec<String> = [1, 4, 5, 2, 0, 4]
        .iter()
        .map(|token| detokenizer.push(TokenId(*token)))
        .collect();
    assert_eq!(pieces, ["H", "", "🙂", " hi", "", ""]);
    assert_eq!(detokenizer.finish(), "\u{fffd}");
    assert_eq!(detokenizer.push(TokenId(9999)), "", "no such token");
}

#[test]
fn a_tokenizer_file_cannot_limit_the_prompt() {
    let format = format_of(tokenizer(&["<s>", "a", "b"], &["<s>"], BYTE_LEVEL), None);
    assert_eq!(format.encode("abababab").expect("encodes").len(), 8);
}

#[test]
fn the_beginning_of_text_comes_once() {
    let with = |add_bos| {
        let tokenizer = tokenizer(&["<s>", "a", "b"], &["<s>"], BYTE_LEVEL);
        let assets = PromptAssets {
            tokenizer,
            chat_template: None,
            bos_token: Some("<s>".into()),
            eos_token: None,
            add_bos,
        };
        PromptFormat::new(assets).expect("valid")
    };
    let ids = |tokens: Vec<TokenId>| tokens.into_iter().map(|token| token.0).collect::<Vec<_>>();
    assert_eq!(
        ids(with(Some(true)).encode_completion("ab").expect("encodes")),
        [0, 1, 2]
    );
    assert_eq!(
        ids(with(Some(true))
            .encode_completion("<s>ab")
            .expect("encodes")),
        [0, 1, 2]
    );
    assert_eq!(
        ids(with(None).encode_completion("ab").expect("encodes")),
        [1, 2]
    );
    assert_eq!(
        ids(with(Some(true)).encode("<s>ab").expect("encodes")),
        [0, 1, 2]
    );
}

/// A real tokenizer, if it is here.
fn real_tokenizer(path: &str) -> Option<Tokenizer> {
    Some(Tokenizer::from_file(reference(path)?).expect("a tokenizer"))
}

/// A file of the repository, or of the reference data beside it, if it is here.
pub(super) fn reference(path: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["", "../shared/data", "../../shared/data"]
        .iter()
        .map(|folder| root.join(folder).join(path))
        .find(|path| path.exists())
}

#[test]
fn real_tokenizers_equal_decode() {
    for path in [
        "models/demo/tokenizer.json",
        "qwen-tokenizer/tokenizer.json",
    ] {
        let Some(tokenizer) = real_tokenizer(path) else {
            continue;
        };
        let size = u32::try_from(tokenizer.get_vocab_size(true)).expect("fits");
        let decode = tokenizer.clone();
        let format = format_of(tokenizer, None);
        // Random tokens: mostly broken characters.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from(state >> 33).expect("31 bits") % size
        };
        for length in 0..200 {
            let tokens: Vec<u32> = (0..length % 40).map(|_| random()).collect();
            assert_eq!(
                streamed(format.detokenizer(), &tokens),
                decode.decode(&tokens, true).expect("decodes"),
                "{path}: {tokens:?}"
            );
        }
        let text = "Grüße, 世界! 🙂👩‍👩‍👧 {\"a\": [1, 2]}\n\tfn main() {}\u{200b} naïve Ω";
        let tokens: Vec<u32> = format
            .encode(text)
            .expect("encodes")
            .iter()
            .map(|token| token.0)
            .collect();
        assert_eq!(streamed(format.detokenizer(), &tokens), text, "{path}");
    }
}

/// Not a timed assertion: prints how long 100 KB take (`--nocapture`), and checks that they come back.
#[test]
fn a_long_prompt_is_encoded_whole() {
    let Some(tokenizer) = real_tokenizer("qwen-tokenizer/tokenizer.json") else {
        return;
    };
    let format = format_of(tokenizer, None);
    let text: String = (0..2500)
        .map(|n| format!("Line {n}: the quick brown fox, {}.\n", n * 7919))
        .collect();
    let start = Instant::now();
    let tokens = format.encode(&text).expect("encodes");
    println!(
        "{} bytes, {} tokens: {:?}",
        text.len(),
        tokens.len(),
        start.elapsed()
    );
    let tokens: Vec<u32> = tokens.iter().map(|token| token.0).collect();
    let start = Instant::now();
    assert_eq!(streamed(format.detokenizer(), &tokens), text);
    println!("detokenized: {:?}", start.elapsed());
}
