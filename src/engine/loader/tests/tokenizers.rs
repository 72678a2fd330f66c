//! A tokenizer from a GGUF file encodes and decodes as the `tokenizer.json` of the same model.

use tokenizers::Tokenizer;

use super::{CHECKPOINTS, fixture, load_fixture};
use crate::engine::loader::gguf::open_tokenizer;
use crate::engine::loader::text::parse_tokenizer;

const CORPUS: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/tokenizers/corpus.txt"
));

/// Lines, the whole, special tokens between text, and every kind of whitespace run.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = CORPUS.lines().map(str::to_owned).collect();
    texts.push(CORPUS.to_owned());
    texts.push(
        "<|im_start|>user\nHi <tool_call>{}</tool_call><|im_end|>\n<|endoftext|> tail".to_owned(),
    );
    texts.push(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>".to_owned(),
    );
    texts.push("<s> a </s><unk>b <s>c".to_owned());
    texts.push(String::new());
    for run in [
        " ", "\n", "\t", "\r\n", "\u{a0}", "\u{3000}", " \n", "\u{0}", "\u{200b}",
    ] {
        for length in 1..12 {
            texts.push(run.repeat(length));
            texts.push(format!("x{}y", run.repeat(length)));
        }
    }
    texts
}

fn assert_equal(name: &str, json: &Tokenizer, gguf: &Tokenizer) {
    assert_eq!(
        json.get_vocab_size(true),
        gguf.get_vocab_size(true),
        "{name}"
    );
    for text in texts() {
        for add_special in [false, true] {
            let left = json.encode_fast(text.as_str(), add_special).expect("text");
            let right = gguf.encode_fast(text.as_str(), add_special).expect("text");
            assert_eq!(left.get_ids(), right.get_ids(), "{name}: {text:?}");
            for skip_special in [false, true] {
                let left = json.decode(left.get_ids(), skip_special).expect("ids");
                let right = gguf.decode(right.get_ids(), skip_special).expect("ids");
                assert_eq!(left, right, "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn byte_level_and_sentencepiece_vocabularies_encode_as_tokenizer_json() {
    for name in ["gpt2", "smollm", "sentencepiece"] {
        let folder = fixture("tokenizers").join(name);
        let bytes = std::fs::read(folder.join("tokenizer.json")).expect("the fixture");
        let json = parse_tokenizer("tokenizer.json", &bytes).expect("a valid tokenizer");
        let gguf = open_tokenizer(&folder.join("tokenizer.gguf"))
            .expect("a valid tokenizer")
            .tokenizer;
        assert_equal(name, &json, &gguf);
    }
}

#[test]
fn checkpoints_have_the_same_text_assets_in_both_formats() {
    for name in CHECKPOINTS {
        let json = load_fixture(&format!("reference/{name}")).text;
        let gguf = load_fixture(&format!("reference/{name}/model-q8_0.gguf")).text;
        assert_equal(name, &json.tokenizer, &gguf.tokenizer);
        assert_eq!(json.chat_template, gguf.chat_template, "{name}");
        assert!(json.chat_template.is_some());
        assert_eq!(json.eos_token, gguf.eos_token, "{name}");
        assert_eq!(json.add_bos, gguf.add_bos, "{name}");
        assert_eq!(json.add_bos, name == "llama3");
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_switched_off() {
    let bytes = std::fs::read(fixture("tokenizers/gpt2/tokenizer.json")).expect("the fixture");
    let mut json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    let tokenizer =
        parse_tokenizer("tokenizer.json", json.to_string().as_bytes()).expect("a valid tokenizer");
    let ids = tokenizer
        .encode_fast("q w e r t z u i o p", false)
        .expect("text");
    assert!(ids.len() > 8 && ids.len() < 64, "{}", ids.len());
}
