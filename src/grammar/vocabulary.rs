//! A model's vocabulary as bytes, in the form that llguidance walks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::ids::TokenId;

/// What a token adds to the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenBytes {
    /// These bytes of text; maybe only a part of a character.
    Text(Vec<u8>),
    /// No text: a control token of this name.
    Control(String),
    /// Not to be sampled at all: an entry of the embedding table that the tokenizer does not know.
    Unused,
}

/// A token of more bytes is never allowed in constrained output: the trie is not made for such depths.
const LONGEST_TOKEN: usize = 512;

/// The trie of all tokens. Tokenizations are not forced: a token is allowed when its bytes are, and which
/// one of those it becomes is the model's choice.
///
/// # Errors
/// What is wrong with the vocabulary.
pub(super) fn token_environment(
    tokens: &[TokenBytes],
    end_tokens: &[TokenId],
) -> Result<TokEnv, String> {
    let ends: Vec<u32> = end_tokens
        .iter()
        .map(|token| token.0)
        .filter(|&id| (id as usize) < tokens.len())
        .collect();
    let Some(&first_end) = ends.first() else {
        return Err("it has no token that ends an answer".to_owned());
    };
    let control = |name: &[u8]| [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat();
    let words: Vec<Vec<u8>> = tokens
        .iter()
        .zip(0u32..)
        .map(|(token, id)| match token {
            TokenBytes::Text(bytes) if ends.contains(&id) => control(bytes),
            TokenBytes::Text(bytes) => bytes.clone(),
            TokenBytes::Control(name) => control(name.as_bytes()),
            TokenBytes::Unused => Vec::new(),
        })
        .map(|word| match word.len() {
            ..=LONGEST_TOKEN => word,
            _ => Vec::new(),
        })
        .collect();
    let size = u32::try_from(words.len()).map_err(|error| error.to_string())?;
    // The trie asserts what it expects of a vocabulary.
    let trie = catch_unwind(AssertUnwindSafe(|| {
        TokTrie::from(&TokRxInfo::new(size, first_end), &words).with_eos_tokens(&ends)
    }));
    match trie {
        Ok(trie) => Ok(Arc::new(ApproximateTokEnv::new(trie))),
        Err(_) => Err("its vocabulary cannot be made into a trie".to_owned()),
    }
}
