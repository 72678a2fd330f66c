//! How byte-level BPE tokenizers of GGUF files cut text into words (`tokenizer.ggml.pre`).

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, SplitDelimiterBehavior};

/// A family of byte-level BPE tokenizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PreTokenizer {
    /// Qwen 2, 2.5 and 3: single digits, NFC.
    Qwen2,
    /// Llama 3: up to three digits; whole words of the vocabulary are taken without merging.
    Llama3,
    Gpt2,
    /// SmolLM and StarCoder: GPT-2 with single digits.
    SmolLm,
    /// What converters write when they do not know: punctuation, GPT-2's words, then digits in threes.
    Default,
}

const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

impl PreTokenizer {
    pub const ALL: [PreTokenizer; 5] = [
        PreTokenizer::Qwen2,
        PreTokenizer::Llama3,
        PreTokenizer::Gpt2,
        PreTokenizer::SmolLm,
        PreTokenizer::Default,
    ];

    /// The name in `tokenizer.ggml.pre`.
    pub fn name(self) -> &'static str {
        match self {
            PreTokenizer::Qwen2 => "qwen2",
            PreTokenizer::Llama3 => "llama-bpe",
            PreTokenizer::Gpt2 => "gpt-2",
            PreTokenizer::SmolLm => "smollm",
            PreTokenizer::Default => "default",
        }
    }

    /// By the names that converters write; for messages about others, see [`PreTokenizer::SUPPORTED`].
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "qwen2" | "deepseek-r1-qwen" => Some(PreTokenizer::Qwen2),
            "llama-bpe" | "llama3" | "llama-v3" | "smaug-bpe" => Some(PreTokenizer::Llama3),
            "gpt-2" | "gpt2" | "phi-2" => Some(PreTokenizer::Gpt2),
            "smollm" | "starcoder" => Some(PreTokenizer::SmolLm),
            "default" => Some(PreTokenizer::Default),
            _ => None,
        }
    }

    pub const SUPPORTED: &'static str = "qwen2, llama-bpe, gpt-2, smollm, default";

    pub fn normalizer(self) -> Option<NormalizerWrapper> {
        (self == PreTokenizer::Qwen2).then(|| NFC.into())
    }

    /// Words that are in the vocabulary are not cut further.
    pub fn ignores_merges(self) -> bool {
        self == PreTokenizer::Llama3
    }

    /// Text begins with the begin-of-sequence token unless the file says otherwise.
    pub fn adds_bos_by_default(self) -> bool {
        self == PreTokenizer::Llama3
    }

    /// The steps: splitting, then bytes to the letters that stand for them.
    pub fn steps(self) -> Result<PreTokenizerWrapper, tokenizers::Error> {
        let bytes =
            |use_regex: bool| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
        let mut steps: Vec<PreTokenizerWrapper> = match self {
            PreTokenizer::Qwen2 => vec![split(QWEN2)?, bytes(false)],
            PreTokenizer::Llama3 => vec![split(LLAMA3)?, bytes(false)],
            PreTokenizer::Gpt2 => vec![bytes(true)],
            PreTokenizer::SmolLm => vec![Digits::new(true).into(), bytes(true)],
            PreTokenizer::Default => DEFAULT.into_iter().map(split).collect::<Result<_, _>>()?,
        };
        if self == PreTokenizer::Default {
            steps.push(bytes(false));
        }
        Ok(Sequence::new(steps).into())
    }
}

fn split(regex: &str) -> Result<PreTokenizerWrapper, tokenizers::Error> {
    let pattern = SplitPattern::Regex(regex.to_owned());
    Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into())
}
