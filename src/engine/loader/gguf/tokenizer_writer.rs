//! A model's `tokenizer.json` and templates as GGUF metadata.
//!
//! Loaders of GGUF files know byte-level BPE tokenizers by how they cut text into words, under a name
//! (`tokenizer.ggml.pre`). Which name is right shows when the tokenizer that is read back encodes a text with
//! everything in it to the same tokens. One that has no name gets its whole `tokenizer.json` into the file
//! too, under the key that the format has for it: Trunkline reads that; others take the nearest name.

use std::collections::HashMap;

use serde_json::Value;
use tokenizers::{
    NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _, Tokenizer,
};

use super::pretokenizer::PreTokenizer;
use super::reader::GgufFile;
use super::tokenizer::{self, END_TEXTS, HUGGING_FACE, TokenType};
use super::writer::{GgufHeader, MetadataValue};
use crate::engine::loader::TextAssets;
use crate::engine::loader::bytes::FileBytes;
use crate::engine::loader::config::ModelConfig;
use crate::engine::loader::error::LoadError;
use crate::engine::loader::json::JsonObject;

/// Letters, digits, contractions, punctuation, spaces and line ends in every neighbourhood that word-cutting
/// rules tell apart, composed and decomposed accents, other scripts and emoji.
const PROBE: &str = "Hello world!  It's 12345 o'clock, we'LL see 3.14159 (or 1,000,000)…\n\n\n  x_y = f(a)[0]; \
\t// naïve nai\u{308}ve Ångström — «quoted» \"text\" 'single'\r\n   trailing   \n{\"key\": [1, 22, 333, 4444]}, \
don't DON'T you're I'm they've he'd 你好世界 こんにちは 안녕 привет мир مرحبا שלום ไทย १२३ ½ 🙂👩\u{200d}💻 e\u{301} \
http://example.org/a?b=c&d=1 #tag @name 50% $5 A1b2 \u{a0}nbsp\u{3000}wide <|x|> ``` code ``` end.";

/// The tokenizer's files.
pub(crate) struct TokenizerFiles<'a> {
    /// The bytes of `tokenizer.json`.
    pub tokenizer_json: &'a [u8],
    /// `tokenizer_config.json`, if there is one.
    pub config: Option<&'a JsonObject>,
}

/// Writes vocabulary, merges, special tokens and templates. Returns a warning if other loaders will cut text
/// into other tokens than the model was trained with.
///
/// # Errors
/// [`LoadError::Tokenizer`] for a kind of tokenizer that GGUF files cannot hold.
pub(crate) fn set_tokenizer(
    header: &mut GgufHeader,
    files: &TokenizerFiles<'_>,
    text: &TextAssets,
    config: &ModelConfig,
) -> Result<Option<String>, LoadError> {
    let json = JsonObject::parse("tokenizer.json", files.tokenizer_json)?;
    let source = Source::read(&json, config.vocabulary)?;
    let mut own = GgufHeader::default();
    source.set_vocabulary(&mut own);
    set_special_tokens(&mut own, files, text, config);
    let nearest = match &source.model {
        Model::SentencePiece { .. } => None,
        Model::ByteLevel { ignore_merges, .. } => {
            Some(nearest_name(&text.tokenizer, *ignore_merges))
        }
    };
    own.set_text(
        tokenizer::PRE,
        nearest.map_or("default", PreTokenizer::name),
    );
    let same = reads_back_alike(&own, &text.tokenizer)?;
    if !same {
        let whole = String::from_utf8_lossy(files.tokenizer_json);
        own.set_text(HUGGING_FACE, whole);
    }
    for (key, value) in own.metadata {
        header.set(key, value);
    }
    for (key, template) in [
        ("tokenizer.chat_template", &text.chat_template),
        ("tokenizer.chat_template.tool_use", &text.tool_template),
    ] {
        if let Some(template) = template {
            header.set_text(key, template.as_str());
        }
    }
    Ok((!same).then(|| {
        "this tokenizer cuts text in a way that GGUF has no name for; it is in the file as tokenizer.json, \
         which Trunkline reads, but other programs will split some text into other tokens"
            .to_owned()
    }))
}

/// What `tokenizer.json` says, by token id.
struct Source {
    tokens: Vec<String>,
    types: Vec<TokenType>,
    merges: Vec<(String, String)>,
    model: Model,
}

enum Model {
    ByteLevel { ignore_merges: bool },
    SentencePiece { space_prefix: bool },
}

impl Source {
    fn read(json: &JsonObject, vocabulary: usize) -> Result<Self, LoadError> {
        let unreadable = |message: String| LoadError::Tokenizer {
            file: json.file().to_owned(),
            message,
        };
        let model = json.required("model", json.object("model")?)?;
        match model.text("type")? {
            Some("BPE") | None => {}
            Some(other) => {
                return Err(unreadable(format!(
                    "its model is {other}; only BPE can be written to GGUF"
                )));
            }
        }
        let mut entries: HashMap<usize, (String, TokenType)> = HashMap::new();
        let vocab = model.required("vocab", model.object("vocab")?)?;
        let byte_fallback = model.flag("byte_fallback")?.unwrap_or(false);
        let unknown = model.text("unk_token")?.map(str::to_owned);
        for (token, id) in vocab.keys() {
            let id = id
                .as_u64()
                .and_then(|id| usize::try_from(id).ok())
                .ok_or_else(|| vocab.error(token, "must be a token id"))?;
            let kind = if byte_fallback && is_byte(token) {
                TokenType::Byte
            } else if byte_fallback && unknown.as_deref() == Some(token) {
                TokenType::Unknown
            } else {
                TokenType::Normal
            };
            entries.insert(id, (token.to_owned(), kind));
        }
        if let Some(Value::Array(added)) = json.get("added_tokens") {
            for token in added {
                let id = token.get("id").and_then(Value::as_u64);
                let content = token.get("content").and_then(Value::as_str);
                let (Some(id), Some(content)) = (id, content) else {
                    return Err(json.error("added_tokens", "must be a list of {id, content}"));
                };
                let id = usize::try_from(id).unwrap_or(usize::MAX);
                let is_unknown = entries
                    .get(&id)
                    .is_some_and(|(_, kind)| *kind == TokenType::Unknown);
                let kind = match token.get("special").and_then(Value::as_bool) {
                    _ if is_unknown => TokenType::Unknown,
                    Some(true) => TokenType::Control,
                    _ => TokenType::UserDefined,
                };
                entries.insert(id, (content.to_owned(), kind));
            }
        }
        if let Some(beyond) = entries.keys().find(|id| **id >= vocabulary) {
            return Err(unreadable(format!(
                "it has a token {beyond}, but the model's embedding has only {vocabulary} rows"
            )));
        }
        // Rows of the embedding without a token get a name that no text can contain by accident.
        let (tokens, types) = (0..vocabulary)
            .map(|id| {
                entries
                    .remove(&id)
                    .unwrap_or_else(|| (format!("[PAD{id}]"), TokenType::Unused))
            })
            .unzip();
        Ok(Self {
            tokens,
            types,
            merges: merges(&model)?,
            model: if byte_fallback {
                Model::SentencePiece {
                    space_prefix: prepends_space(json.get("normalizer")),
                }
            } else {
                Model::ByteLevel {
                    ignore_merges: model.flag("ignore_merges")?.unwrap_or(false),
                }
            },
        })
    }

    fn set_vocabulary(&self, header: &mut GgufHeader) {
        let name = match &self.model {
            Model::ByteLevel { .. } => "gpt2",
            Model::SentencePiece { .. } => "llama",
        };
        header.set_text(tokenizer::MODEL, name);
        header.set(tokenizer::TOKENS, MetadataValue::Texts(self.tokens.clone()));
        let types = self.types.iter().map(|kind| kind.number()).collect();
        header.set(tokenizer::TOKEN_TYPES, MetadataValue::I32s(types));
        match &self.model {
            Model::ByteLevel { .. } => {
                let merges = self
                    .merges
                    .iter()
                    .map(|(left, right)| format!("{left} {right}"))
                    .collect();
                header.set(tokenizer::MERGES, MetadataValue::Texts(merges));
            }
            Model::SentencePiece { space_prefix } => {
                header.set(tokenizer::SCORES, MetadataValue::F32s(self.scores()));
                header.set(
                    "tokenizer.ggml.add_space_prefix",
                    MetadataValue::Bool(*space_prefix),
                );
            }
        }
    }

    /// Pieces are merged in the order of their scores: a piece's is minus the rank of the first merge that
    /// builds it, and pieces that no merge builds come last, as SentencePiece numbers them.
    fn scores(&self) -> Vec<f32> {
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (left, right) in &self.merges {
            let rank = ranks.len();
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
        let mut beyond = ranks.len();
        self.tokens
            .iter()
            .zip(&self.types)
            .map(|(token, kind)| match (kind, ranks.get(token)) {
                (TokenType::Normal, Some(rank)) => -(*rank as f32),
                (TokenType::Normal, None) => {
                    beyond += 1;
                    -((beyond - 1) as f32)
                }
                _ => 0.0,
            })
            .collect()
    }
}

/// `<0x0A>`.
fn is_byte(token: &str) -> bool {
    token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// `["a b", …]` or `[["a", "b"], …]`.
fn merges(model: &JsonObject) -> Result<Vec<(String, String)>, LoadError> {
    let Some(Value::Array(merges)) = model.get("merges") else {
        return Err(model.error("merges", "must be a list"));
    };
    let pair = |merge: &Value| -> Option<(String, String)> {
        let (left, right) = match merge {
            Value::String(text) => text.split_once(' ')?,
            Value::Array(pair) => match pair.as_slice() {
                [left, right] => (left.as_str()?, right.as_str()?),
                _ => return None,
            },
            _ => return None,
        };
        // In a GGUF file a space parts the two.
        (!left.contains(' ') && !right.contains(' ')).then(|| (left.to_owned(), right.to_owned()))
    };
    merges
        .iter()
        .map(|merge| {
            pair(merge).ok_or_else(|| {
                model.error(
                    "merges",
                    format!("has the entry {merge}, which is not a pair of pieces without spaces"),
                )
            })
        })
        .collect()
}

/// Whether a normalizer, or one of its steps, puts a space mark before the text.
fn prepends_space(normalizer: Option<&Value>) -> bool {
    let Some(normalizer) = normalizer else {
        return false;
    };
    let is_prepend = normalizer.get("type").and_then(Value::as_str) == Some("Prepend");
    is_prepend
        || normalizer
            .get("normalizers")
            .and_then(Value::as_array)
            .is_some_and(|steps| steps.iter().any(|step| prepends_space(Some(step))))
}

fn set_special_tokens(
    header: &mut GgufHeader,
    files: &TokenizerFiles<'_>,
    text: &TextAssets,
    config: &ModelConfig,
) {
    let id = |token: Option<&str>| token.and_then(|token| text.tokenizer.token_to_id(token));
    let configured = |key: &str| -> Option<u32> {
        let value = files.config?.get(key)?;
        id(value.as_str().or_else(|| value.get("content")?.as_str()))
    };
    let end =
        id(text.eos_token.as_deref()).or_else(|| config.end_tokens.first().map(|token| token.0));
    let mut set = |name: &str, id: Option<u32>| {
        if let Some(id) = id.filter(|id| (*id as usize) < config.vocabulary) {
            header.set(
                format!("tokenizer.ggml.{name}_token_id"),
                MetadataValue::U32(id),
            );
        }
    };
    set("bos", id(text.bos_token.as_deref()));
    set("eos", end);
    set("padding", configured("pad_token"));
    set("unknown", configured("unk_token"));
    // Loaders know the usual end tokens by their texts; two others can be named.
    let others: Vec<u32> = config
        .end_tokens
        .iter()
        .map(|token| token.0)
        .filter(|other| Some(*other) != end)
        .filter(|other| {
            let known = text.tokenizer.id_to_token(*other);
            !known.is_some_and(|token| END_TEXTS.contains(&token.as_str()))
        })
        .collect();
    set("eot", others.first().copied());
    set("eom", others.get(1).copied());
    header.set(
        "tokenizer.ggml.add_bos_token",
        MetadataValue::Bool(text.add_bos),
    );
}

/// The named way of cutting that cuts [`PROBE`] as this tokenizer does, or else a general one.
fn nearest_name(tokenizer: &Tokenizer, ignore_merges: bool) -> PreTokenizer {
    let wanted = words(tokenizer);
    let same = |candidate: &PreTokenizer| -> bool {
        let mut other = Tokenizer::new(tokenizers::models::bpe::BPE::default());
        let Ok(steps) = candidate.steps() else {
            return false;
        };
        other.with_pre_tokenizer(Some(steps));
        other.with_normalizer(candidate.normalizer()).is_ok()
            && wanted.is_some()
            && words(&other) == wanted
    };
    PreTokenizer::ALL
        .into_iter()
        .filter(|candidate| candidate.ignores_merges() == ignore_merges)
        .chain(PreTokenizer::ALL)
        .find(same)
        .unwrap_or(PreTokenizer::Default)
}

/// [`PROBE`] normalized and cut into words.
fn words(tokenizer: &Tokenizer) -> Option<Vec<String>> {
    let mut normalized = NormalizedString::from(PROBE);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized).ok()?;
    }
    let mut cut = PreTokenizedString::from(normalized);
    if let Some(steps) = tokenizer.get_pre_tokenizer() {
        steps.pre_tokenize(&mut cut).ok()?;
    }
    let splits = cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
    Some(
        splits
            .into_iter()
            .map(|(word, ..)| word.to_owned())
            .collect(),
    )
}

/// Whether a loader that reads only these keys gets a tokenizer that encodes alike.
fn reads_back_alike(header: &GgufHeader, original: &Tokenizer) -> Result<bool, LoadError> {
    let unwritable = |cause: std::io::Error| LoadError::Tokenizer {
        file: "tokenizer.json".to_owned(),
        message: cause.to_string(),
    };
    let bytes = header.to_bytes().map_err(unwritable)?;
    let file = GgufFile::parse(
        "the metadata to be written".to_owned(),
        FileBytes::Owned(bytes.into()),
    )?;
    let read = tokenizer::read_text(&file)?.0.tokenizer;
    let encode = |tokenizer: &Tokenizer| {
        let encoding = tokenizer.encode_fast(PROBE, true).ok()?;
        Some(encoding.get_ids().to_vec())
    };
    Ok(encode(&read) == encode(original))
}
