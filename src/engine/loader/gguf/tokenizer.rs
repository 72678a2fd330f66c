//! The tokenizer that a GGUF file carries in its metadata, as a [`Tokenizer`].

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as DecoderSequence;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::normalizers::replace::Replace;
use tokenizers::normalizers::{Prepend, Sequence as NormalizerSequence};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, Tokenizer};

use super::pretokenizer::PreTokenizer;
use super::reader::GgufFile;
use crate::engine::loader::TextAssets;
use crate::engine::loader::error::LoadError;
use crate::engine::loader::text::{begins_with, parse_tokenizer};
use crate::ids::TokenId;

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
/// The whole of a `tokenizer.json`, which then counts instead of the keys above.
pub(super) const HUGGING_FACE: &str = "tokenizer.huggingface.json";

/// A vocabulary larger than this is an error of the file.
const MAX_VOCABULARY: usize = 1 << 23;
/// Pieces of a SentencePiece vocabulary that are longer (in characters) are never built by merging.
const MAX_MERGED_PIECE: usize = 256;
/// Stands for a space in SentencePiece vocabularies.
const SPACE_MARK: &str = "\u{2581}";

/// Texts of tokens that end an answer wherever they are in a vocabulary; files often name only one of them.
pub(super) const END_TEXTS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<EOT>",
];

/// What a vocabulary entry is for (`llama_token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal = 1,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl TokenType {
    pub fn number(self) -> i32 {
        self as i32
    }

    fn from_number(number: f64) -> Option<Self> {
        [
            TokenType::Normal,
            TokenType::Unknown,
            TokenType::Control,
            TokenType::UserDefined,
            TokenType::Unused,
            TokenType::Byte,
        ]
        .into_iter()
        .find(|kind| f64::from(kind.number()) == number)
    }
}

/// A GGUF file's vocabulary and special tokens.
struct Vocabulary<'a> {
    file: &'a GgufFile,
    tokens: Vec<String>,
    types: Vec<TokenType>,
}

/// Reads tokenizer, chat templates and special tokens; and all tokens that end an answer.
pub(crate) fn read_text(file: &GgufFile) -> Result<(TextAssets, Vec<TokenId>), LoadError> {
    let vocabulary = Vocabulary::read(file)?;
    let bos = vocabulary.special("bos_token_id")?;
    let tokenizer = match file.text(HUGGING_FACE)? {
        Some(json) => parse_tokenizer(file.file(), json.as_bytes())?,
        None => vocabulary.tokenizer(bos)?,
    };
    let text_of = |id: Option<u32>| id.map(|id| vocabulary.tokens[id as usize].clone());
    let bos_token = text_of(bos);
    let assets = TextAssets {
        add_bos: begins_with(&tokenizer, bos_token.as_deref()),
        bos_token,
        eos_token: text_of(vocabulary.special("eos_token_id")?),
        chat_template: file.text("tokenizer.chat_template")?.map(str::to_owned),
        tool_template: file
            .text("tokenizer.chat_template.tool_use")?
            .map(str::to_owned),
        tokenizer,
    };
    Ok((assets, vocabulary.end_tokens()?))
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a GgufFile) -> Result<Self, LoadError> {
        let tokens = file
            .texts(TOKENS)?
            .ok_or_else(|| file.error(TOKENS, "is missing"))?;
        if tokens.is_empty() || tokens.len() > MAX_VOCABULARY {
            return Err(file.error(TOKENS, format!("has {} entries", tokens.len())));
        }
        let types = match file.numbers(TOKEN_TYPES)? {
            None => vec![TokenType::Normal; tokens.len()],
            Some(numbers) if numbers.len() == tokens.len() => numbers
                .into_iter()
                .map(|number| {
                    TokenType::from_number(number).ok_or_else(|| {
                        file.error(TOKEN_TYPES, format!("has the unknown type {number}"))
                    })
                })
                .collect::<Result<_, _>>()?,
            Some(numbers) => {
                return Err(file.error(
                    TOKEN_TYPES,
                    format!(
                        "has {} entries, but {TOKENS} has {}",
                        numbers.len(),
                        tokens.len()
                    ),
                ));
            }
        };
        Ok(Self {
            file,
            tokens,
            types,
        })
    }

    /// The id in `tokenizer.ggml.NAME`, checked.
    fn special(&self, name: &str) -> Result<Option<u32>, LoadError> {
        let key = format!("tokenizer.ggml.{name}");
        match self.file.count(&key)? {
            None => Ok(None),
            Some(id) if id < self.tokens.len() => Ok(Some(id as u32)),
            Some(id) => Err(self.file.error(
                &key,
                format!(
                    "names token {id}, but the vocabulary has {} entries",
                    self.tokens.len()
                ),
            )),
        }
    }

    /// Every named end token, and control tokens that are known to end answers.
    fn end_tokens(&self) -> Result<Vec<TokenId>, LoadError> {
        let mut ids = Vec::new();
        for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            ids.extend(self.special(name)?.map(TokenId));
        }
        for (id, (text, kind)) in self.tokens.iter().zip(&self.types).enumerate() {
            if *kind == TokenType::Control && END_TEXTS.contains(&text.as_str()) {
                ids.push(TokenId(id as u32));
            }
        }
        Ok(ids)
    }

    fn unreadable(&self, cause: impl std::fmt::Display) -> LoadError {
        LoadError::Tokenizer {
            file: self.file.file().to_owned(),
            message: cause.to_string(),
        }
    }

    fn vocab(&self) -> Vocab {
        self.tokens.iter().cloned().zip(0..).collect()
    }

    fn tokenizer(&self, bos: Option<u32>) -> Result<Tokenizer, LoadError> {
        let (mut tokenizer, bos_by_default) = match self.file.text(MODEL)? {
            Some("gpt2") => self.byte_level()?,
            Some("llama") => (self.sentence_piece()?, true),
            Some(other) => {
                return Err(LoadError::unsupported(
                    self.file.file(),
                    format!("tokenizer model '{other}' (only gpt2 and llama)"),
                ));
            }
            None => return Err(self.file.error(MODEL, "is missing")),
        };
        self.add_special_tokens(&mut tokenizer)?;
        let add_bos = self
            .file
            .flag("tokenizer.ggml.add_bos_token")?
            .unwrap_or(bos_by_default);
        if let Some(bos) = bos.filter(|_| add_bos) {
            self.begin_with(&mut tokenizer, bos)?;
        }
        Ok(tokenizer)
    }

    /// Builds a BPE model. The tokenizers crate panics on some inconsistent input; that is an unreadable file.
    fn build(&self, builder: tokenizers::models::bpe::BpeBuilder) -> Result<Tokenizer, LoadError> {
        catch_unwind(AssertUnwindSafe(|| builder.build()))
            .map_err(|_| self.unreadable("the vocabulary contradicts itself"))?
            .map(Tokenizer::new)
            .map_err(|cause| self.unreadable(cause))
    }

    /// GPT-2 style byte-level BPE, and whether its texts begin with a special token by default.
    fn byte_level(&self) -> Result<(Tokenizer, bool), LoadError> {
        let name = self.file.text(PRE)?.unwrap_or("default");
        let pre = PreTokenizer::from_name(name).ok_or_else(|| {
            LoadError::unsupported(
                self.file.file(),
                format!("{PRE} '{name}' (only {})", PreTokenizer::SUPPORTED),
            )
        })?;
        let merges = self
            .file
            .texts(MERGES)?
            .ok_or_else(|| self.file.error(MERGES, "is missing"))?;
        let merges: Merges = merges
            .into_iter()
            .map(|merge| match merge.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
                None => Err(self.file.error(
                    MERGES,
                    format!("has the entry '{merge}', which is not a pair"),
                )),
            })
            .collect::<Result<_, _>>()?;
        let builder = BPE::builder()
            .vocab_and_merges(self.vocab(), merges)
            .ignore_merges(pre.ignores_merges());
        let mut tokenizer = self.build(builder)?;
        tokenizer
            .with_normalizer(pre.normalizer())
            .map_err(|cause| self.unreadable(cause))?;
        tokenizer.with_pre_tokenizer(Some(pre.steps().map_err(|cause| self.unreadable(cause))?));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        Ok((tokenizer, pre.adds_bos_by_default()))
    }

    /// SentencePiece BPE with byte fallback: merges in the order of their pieces' scores.
    fn sentence_piece(&self) -> Result<Tokenizer, LoadError> {
        let unknown = self
            .types
            .iter()
            .position(|kind| *kind == TokenType::Unknown)
            .map(|id| self.tokens[id].clone());
        let mut builder = BPE::builder()
            .vocab_and_merges(self.vocab(), self.merges_by_score()?)
            .byte_fallback(true)
            .fuse_unk(true);
        if let Some(unknown) = unknown {
            builder = builder.unk_token(unknown);
        }
        let mut tokenizer = self.build(builder)?;
        let replace =
            |from: &str, to: &str| Replace::new(from, to).map_err(|cause| self.unreadable(cause));
        let prefix = self
            .file
            .flag("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true);
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        let mut decoders: Vec<DecoderWrapper> = vec![
            replace(SPACE_MARK, " ")?.into(),
            ByteFallback::new().into(),
            Fuse::new().into(),
        ];
        if prefix {
            normalizers.push(Prepend::new(SPACE_MARK.to_owned()).into());
            decoders.push(Strip::new(' ', 1, 0).into());
        }
        normalizers.push(replace(" ", SPACE_MARK)?.into());
        tokenizer
            .with_normalizer(Some(NormalizerSequence::new(normalizers)))
            .map_err(|cause| self.unreadable(cause))?;
        tokenizer.with_decoder(Some(DecoderSequence::new(decoders)));
        Ok(tokenizer)
    }

    /// Every way to build a piece from two others, best score first; as transformers' converter orders them.
    fn merges_by_score(&self) -> Result<Merges, LoadError> {
        let scores = self
            .file
            .numbers(SCORES)?
            .ok_or_else(|| self.file.error(SCORES, "is missing"))?;
        if scores.len() != self.tokens.len() {
            return Err(self.file.error(
                SCORES,
                format!(
                    "has {} entries, but {TOKENS} has {}",
                    scores.len(),
                    self.tokens.len()
                ),
            ));
        }
        let vocab = self.vocab();
        let mut merges = Vec::new();
        for (piece, score) in self.tokens.iter().zip(scores) {
            let length = piece.chars().count();
            if length > MAX_MERGED_PIECE {
                continue;
            }
            let mut ways: Vec<_> = piece
                .char_indices()
                .skip(1)
                .enumerate()
                .filter_map(|(before, (at, _))| {
                    let (left, right) = piece.split_at(at);
                    let ids = (*vocab.get(left)?, *vocab.get(right)?);
                    Some((
                        ids,
                        (score, before + 1, length - before - 1),
                        (left.to_owned(), right.to_owned()),
                    ))
                })
                .collect();
            ways.sort_by_key(|(ids, ..)| *ids);
            merges.extend(ways.into_iter().map(|(_, order, pair)| (order, pair)));
        }
        merges.sort_by(
            |((score, left, right), _), ((other_score, other_left, other_right), _)| {
                other_score
                    .total_cmp(score)
                    .then_with(|| (other_left, other_right).cmp(&(left, right)))
            },
        );
        Ok(merges.into_iter().map(|(_, pair)| pair).collect())
    }

    /// Control tokens, and tokens that the user's text may contain verbatim.
    fn add_special_tokens(&self, tokenizer: &mut Tokenizer) -> Result<(), LoadError> {
        let added = self
            .tokens
            .iter()
            .zip(&self.types)
            .filter_map(|(text, kind)| match kind {
                TokenType::Control | TokenType::Unknown => {
                    Some(AddedToken::from(text.as_str(), true).normalized(false))
                }
                TokenType::UserDefined => {
                    Some(AddedToken::from(text.as_str(), false).normalized(false))
                }
                TokenType::Normal | TokenType::Unused | TokenType::Byte => None,
            });
        tokenizer
            .add_tokens(added)
            .map_err(|cause| self.unreadable(cause))?;
        Ok(())
    }

    /// Encoding with special tokens puts the token `bos` first.
    fn begin_with(&self, tokenizer: &mut Tokenizer, bos: u32) -> Result<(), LoadError> {
        const BEGIN: &str = "bos";
        let template = TemplateProcessing::builder()
            .try_single(format!("{BEGIN} $A"))
            .and_then(|builder| builder.try_pair(format!("{BEGIN} $A {BEGIN}:1 $B:1")))
            .map_err(|cause| self.unreadable(cause))?
            .special_tokens(vec![(BEGIN, bos)])
            .build()
            .map_err(|cause| self.unreadable(cause))?;
        tokenizer.with_post_processor(Some(template));
        Ok(())
    }
}
