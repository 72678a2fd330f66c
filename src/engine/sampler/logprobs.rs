//! Log probabilities of tokens: log softmax of a row of logits as the model gives it.

use super::{Candidate, SampleError, argmax, keep_most_likely, most_likely_first};
use crate::ids::TokenId;

/// How likely the model found a token, and what it found most likely in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability, before penalties, bias and temperature.
    pub logprob: f32,
    /// The most likely tokens, the most likely first and the lower id first among equals.
    pub top: Vec<(TokenId, f32)>,
}

/// Log probabilities of `token` and of the `top` most likely tokens.
///
/// `logit - (max + ln sum exp(logit - max))`, summed in f64 in the order of ids, so that the result
/// depends on the row alone. `candidates` is a buffer that is reused.
pub(super) fn of(
    logits: &[f32],
    token: TokenId,
    top: usize,
    candidates: &mut Vec<Candidate>,
) -> Result<TokenLogprobs, SampleError> {
    let largest = f64::from(logits[argmax(logits)?]);
    let sum: f64 = logits
        .iter()
        .map(|&logit| (f64::from(logit) - largest).exp())
        .sum();
    let normalizer = largest + sum.ln();
    let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
    candidates.clear();
    if top > 0 {
        keep_most_likely(logits, top, candidates);
        candidates.sort_unstable_by(most_likely_first);
    }
    Ok(TokenLogprobs {
        // The engine checked that the token is in the vocabulary.
        logprob: logits
            .get(token.0 as usize)
            .map_or(f32::NEG_INFINITY, |&logit| logprob(logit)),
        top: candidates
            .iter()
            .map(|candidate| (TokenId(candidate.id), logprob(candidate.weight)))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sampler::{SamplingParameters, SamplingScratch, SequenceSampler};

    /// Logits like a model's, without a pattern.
    fn row(length: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..length).map(|_| 30.0 * next() * next() - 12.0).collect()
    }

    /// Softmax by its definition, in f64 and without any care for overflow.
    fn naive(logits: &[f32]) -> Vec<f64> {
        let weights: Vec<f64> = logits.iter().map(|&logit| f64::from(logit).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|weight| (weight / sum).ln()).collect()
    }

    #[test]
    fn equals_the_naive_computation() {
        for (length, seed) in [(1, 1), (2, 2), (17, 3), (2048, 4), (151_936, 5)] {
            let logits = row(length, seed);
            let expected = naive(&logits);
            let token = TokenId(length as u32 / 2);
            let found = of(&logits, token, 20, &mut Vec::new()).unwrap();
            let close = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-5;
            assert!(close(found.logprob, expected[token.0 as usize]));
            let mut order: Vec<usize> = (0..length).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            assert_eq!(found.top.len(), length.min(20));
            for ((token, logprob), expected_token) in found.top.iter().zip(order) {
                assert_eq!(token.0 as usize, expected_token);
                assert!(close(*logprob, expected[expected_token]));
            }
        }
    }

    #[test]
    fn probabilities_sum_to_one() {
        let logits = row(320, 9);
        let found = of(&logits, TokenId(0), 320, &mut Vec::new()).unwrap();
        let sum: f64 = found
            .top
            .iter()
            .map(|(_, logprob)| f64::from(*logprob).exp())
            .sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let found = of(
            &[3e38, -3e38, f32::NEG_INFINITY],
            TokenId(2),
            2,
            &mut Vec::new(),
        )
        .unwrap();
        assert_eq!(found.top[0], (TokenId(0), 0.0));
        assert_eq!(found.top[1].0, TokenId(1));
        assert_eq!(found.logprob, f32::NEG_INFINITY);
        let broken = of(&[0.0, f32::NAN], TokenId(0), 0, &mut Vec::new());
        assert_eq!(broken, Err(SampleError::NotFinite));
    }

    #[test]
    fn neither_penalties_nor_bias_nor_temperature_change_them() {
        let logits = row(64, 11);
        let plain = SamplingParameters {
            logprobs: Some(5),
            ..Default::default()
        };
        let changed = SamplingParameters {
            temperature: 1.7,
            top_k: 3,
            repetition_penalty: 1.5,
            presence_penalty: 1.0,
            logit_bias: [(TokenId(7), 50.0)].into(),
            ..plain.clone()
        };
        let score = |parameters: SamplingParameters| {
            let mut sampler = SequenceSampler::new(parameters, &[TokenId(7)]);
            sampler.observe(TokenId(9));
            sampler.score(&logits, TokenId(7), &mut SamplingScratch::default())
        };
        assert_eq!(score(plain), score(changed));
        let unasked = score(SamplingParameters::default());
        assert_eq!(unasked, Ok(None));
    }
}
