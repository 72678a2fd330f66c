//! Turns a row of logits into the next token, per sequence.

use std::collections::BTreeMap;

use crate::ids::TokenId;

/// How one sequence is sampled. Values are validated by the HTTP layer; the engine clamps nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParameters {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `top_k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probability sums to at least this; 1.0 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this times the most likely one; 0.0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output; 1.0 is off.
    pub repetition_penalty: f32,
    /// Subtracted from a generated token's logit once per occurrence; 0.0 is off.
    pub frequency_penalty: f32,
    /// Subtracted from a generated token's logit once if it occurred; 0.0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of these tokens, -100 to 100.
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// Seed of the sequence's own random numbers (counter-based: number *i* belongs to output token *i*).
    pub seed: u64,
}

impl Default for SamplingParameters {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }
}
