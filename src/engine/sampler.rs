//! Turns a row of logits into the next token, per sequence.
//!
//! The order is: repetition penalty, frequency and presence penalties, logit bias; then the most
//! likely token if the temperature is 0, else division by the temperature, `top_k`, softmax, `top_p` and
//! `min_p` (what both keep), and one draw. With a grammar, all this is done over the tokens that it
//! allows. Nothing here depends on other
//! sequences, and the random number of output token *i* is a function of the seed and *i* alone.

mod logprobs;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

pub use logprobs::TokenLogprobs;

use crate::grammar::{Constraint, Grammar};
use crate::ids::TokenId;
use crate::kernels;

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
    /// Tokens that are not sampled, whatever their logits.
    pub excluded: Arc<[TokenId]>,
    /// Seed of the sequence's own random numbers (counter-based: number *i* belongs to output token *i*).
    pub seed: u64,
    /// Sample only what this grammar allows.
    pub grammar: Option<Arc<Grammar>>,
    /// Report each sampled token's log probability, and those of this many most likely tokens.
    /// They are the model's own: of the logits before everything above.
    pub logprobs: Option<usize>,
    /// Report them for the tokens of the prompt, too, from the second on (nothing predicts the first).
    /// Has no effect without `logprobs`.
    pub prompt_logprobs: bool,
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
            excluded: Arc::new([]),
            seed: 0,
            grammar: None,
            logprobs: None,
            prompt_logprobs: false,
        }
    }
}

impl SamplingParameters {
    /// Whether the logits of all prompt positions are needed.
    pub fn scores_prompt(&self) -> bool {
        self.prompt_logprobs && self.logprobs.is_some()
    }

    fn counts_output(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
    }

    /// Whether the most likely token is always the one.
    fn is_greedy(&self) -> bool {
        self.temperature <= 0.0 || self.top_k == 1
    }

    fn changes_logits(&self) -> bool {
        self.counts_output() || !self.logit_bias.is_empty()
    }
}

/// Why no token could be sampled from a row of logits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The forward pass overflowed or the weights are damaged.
    #[error("the model produced logits that are not finite numbers")]
    NotFinite,
    /// Every token was given a logit of minus infinity.
    #[error("no token is left to sample from")]
    NothingLeft,
    /// The grammar cannot be followed any further.
    #[error("{0}")]
    Grammar(String),
}

/// One sequence's sampler: its parameters and what they need to remember of its tokens.
#[derive(Debug)]
pub struct SequenceSampler {
    parameters: SamplingParameters,
    /// Kept only with a repetition penalty.
    prompt: HashSet<u32>,
    /// How often each token was generated; kept only with a penalty.
    generated: HashMap<u32, u32>,
    /// Tokens sampled so far: the counter of the random numbers.
    drawn: u64,
    constraint: Option<Constraint>,
}

impl SequenceSampler {
    pub fn new(parameters: SamplingParameters, prompt: &[TokenId]) -> Self {
        let prompt = if parameters.repetition_penalty != 1.0 {
            prompt.iter().map(|token| token.0).collect()
        } else {
            HashSet::new()
        };
        let constraint = parameters.grammar.clone().map(Constraint::new);
        Self {
            constraint,
            parameters,
            prompt,
            generated: HashMap::new(),
            drawn: 0,
        }
    }

    /// How many tokens were sampled so far.
    pub fn sampled(&self) -> u64 {
        self.drawn
    }

    /// The next token for a row of logits (one a vocabulary entry). Remembers nothing: the caller
    /// calls [`Self::observe`] with the result. `scratch` is a buffer that is reused between calls.
    pub fn choose(
        &self,
        logits: &[f32],
        scratch: &mut SamplingScratch,
    ) -> Result<TokenId, SampleError> {
        let changes = self.parameters.changes_logits() || self.constraint.is_some();
        if !changes && self.parameters.excluded.is_empty() {
            return self.choose_from(logits, scratch);
        }
        if !self.parameters.excluded.is_empty() {
            // A row that is damaged is an error, wherever the damage is.
            let best = TokenId(argmax(logits)? as u32);
            // Nearly always the most likely token may be sampled, and the row need not be copied.
            if !changes && self.parameters.is_greedy() && !self.parameters.excluded.contains(&best)
            {
                return Ok(best);
            }
        }
        let mut adjusted = std::mem::take(&mut scratch.adjusted);
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        self.adjust(&mut adjusted);
        if let Some(constraint) = &self.constraint {
            // A row that is damaged is an error, wherever the damage is.
            argmax(&adjusted)?;
            let allowed = constraint.allowed().map_err(SampleError::Grammar)?;
            allowed.apply(&mut adjusted);
        }
        let token = self.choose_from(&adjusted, scratch);
        scratch.adjusted = adjusted;
        token
    }

    /// Whether sampling this token ends the sequence by its grammar, whatever its stop rule says.
    pub fn ends_grammar(&self, token: TokenId) -> bool {
        self.constraint
            .as_ref()
            .is_some_and(|constraint| constraint.is_end(token))
    }

    /// The log probabilities of `token` and of the most likely ones in a row of logits, if they are asked for.
    ///
    /// # Errors
    /// [`SampleError`] where the logits are no distribution.
    pub fn score(
        &self,
        logits: &[f32],
        token: TokenId,
        scratch: &mut SamplingScratch,
    ) -> Result<Option<TokenLogprobs>, SampleError> {
        let Some(top) = self.parameters.logprobs else {
            return Ok(None);
        };
        logprobs::of(logits, token, top, &mut scratch.candidates).map(Some)
    }

    /// Records the sampled token.
    pub fn observe(&mut self, token: TokenId) {
        self.drawn += 1;
        if let Some(constraint) = &mut self.constraint {
            constraint.advance(token);
        }
        if self.parameters.counts_output() {
            *self.generated.entry(token.0).or_insert(0) += 1;
        }
    }

    /// Applies the penalties and the bias, and excludes tokens.
    fn adjust(&self, logits: &mut [f32]) {
        let parameters = &self.parameters;
        if parameters.repetition_penalty != 1.0 {
            let new = self.generated.keys().filter(|id| !self.prompt.contains(id));
            for &id in self.prompt.iter().chain(new) {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = if *logit > 0.0 {
                        *logit / parameters.repetition_penalty
                    } else {
                        *logit * parameters.repetition_penalty
                    };
                }
            }
        }
        if parameters.frequency_penalty != 0.0 || parameters.presence_penalty != 0.0 {
            for (&id, &count) in &self.generated {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit -=
                        parameters.frequency_penalty * count as f32 + parameters.presence_penalty;
                }
            }
        }
        for (&token, &bias) in &parameters.logit_bias {
            if let Some(logit) = logits.get_mut(token.0 as usize) {
                *logit += bias;
            }
        }
        for &token in &*parameters.excluded {
            if let Some(logit) = logits.get_mut(token.0 as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn choose_from(
        &self,
        logits: &[f32],
        scratch: &mut SamplingScratch,
    ) -> Result<TokenId, SampleError> {
        let best = argmax(logits)?;
        if self.parameters.is_greedy() {
            return Ok(TokenId(best as u32));
        }
        let candidates = &mut scratch.candidates;
        if self.parameters.top_k > 0 && self.parameters.top_k < logits.len() {
            keep_most_likely(logits, self.parameters.top_k, candidates);
        } else {
            candidates.clear();
            candidates.extend((0u32..).zip(logits).map(Candidate::new));
        }
        if self.constraint.is_some() {
            candidates.retain(|candidate| candidate.weight > f32::NEG_INFINITY);
        }
        self.softmax(&mut scratch.weights, candidates);
        if self.parameters.top_p < 1.0 {
            keep_nucleus(candidates, f64::from(self.parameters.top_p));
        }
        let uniform = uniform(self.parameters.seed, self.drawn);
        Ok(TokenId(draw(candidates, uniform).unwrap_or(best as u32)))
    }

    /// Turns the candidates' logits into probabilities, and drops those that `min_p` drops, that round to
    /// 0, or that are too unlikely to be of any nucleus. Their order stays.
    fn softmax(&self, weights: &mut Vec<f32>, candidates: &mut Vec<Candidate>) {
        let scale = 1.0 / self.parameters.temperature;
        weights.clear();
        weights.extend(candidates.iter().map(|candidate| candidate.weight * scale));
        kernels::softmax(weights);
        let largest = weights.iter().copied().fold(0.0, f32::max);
        // Tokens less likely than this sum to less than half of what the nucleus leaves out.
        let tail = (1.0 - self.parameters.top_p).max(0.0) / (2 * weights.len()) as f32;
        let least = tail.max(self.parameters.min_p * largest);
        let mut weights = weights.iter();
        candidates.retain_mut(|candidate| {
            // There are as many weights as candidates.
            candidate.weight = weights.next().copied().unwrap_or(0.0);
            candidate.weight >= least && candidate.weight > 0.0
        });
    }
}

/// Buffers for sampling, reused between rows and steps.
#[derive(Debug, Default)]
pub struct SamplingScratch {
    adjusted: Vec<f32>,
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    id: u32,
    /// The logit first, then the probability.
    weight: f32,
}

impl Candidate {
    fn new((id, &weight): (u32, &f32)) -> Self {
        Self { id, weight }
    }
}

/// Fills `candidates` with the `count` largest logits, in the order of ids.
fn keep_most_likely(logits: &[f32], count: usize, candidates: &mut Vec<Candidate>) {
    candidates.clear();
    // Most tokens are less likely than the worst of those kept so far, and are passed over.
    let mut least = f32::NEG_INFINITY;
    for token in (0u32..).zip(logits) {
        if *token.1 < least {
            continue;
        }
        candidates.push(Candidate::new(token));
        if candidates.len() >= 2 * count + 64 {
            candidates.select_nth_unstable_by(count - 1, most_likely_first);
            candidates.truncate(count);
            least = candidates[count - 1].weight;
        }
    }
    if candidates.len() > count {
        candidates.select_nth_unstable_by(count - 1, most_likely_first);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by_key(|candidate| candidate.id);
}

/// A total order: by weight, and the lower id first among equals.
fn most_likely_first(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
}

/// The index of the largest value, the lowest one among equals.
fn argmax(logits: &[f32]) -> Result<usize, SampleError> {
    const LANES: usize = 16;
    // Lane by lane, so that the compiler can use vector instructions. `max` passes over NaN, so
    // that is watched for separately: NaN is the only value that differs from itself.
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut broken = [false; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            largest[lane] = if chunk[lane] > largest[lane] {
                chunk[lane]
            } else {
                largest[lane]
            };
            broken[lane] |= chunk[lane].is_nan();
        }
    }
    let most = rest
        .iter()
        .chain(&largest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max);
    if broken.contains(&true) || rest.iter().any(|logit| logit.is_nan()) || most == f32::INFINITY {
        return Err(SampleError::NotFinite);
    }
    if most == f32::NEG_INFINITY {
        return Err(SampleError::NothingLeft);
    }
    logits
        .iter()
        .position(|&logit| logit == most)
        .ok_or(SampleError::NothingLeft)
}

/// Keeps the smallest set of most likely candidates whose probabilities sum to at least `mass`, and
/// leaves them ordered by id. Selects growing prefixes rather than sorting the whole vocabulary.
fn keep_nucleus(candidates: &mut Vec<Candidate>, mass: f64) {
    let mut kept = 0;
    let mut sum = 0.0;
    let mut prefix = 64;
    while kept < candidates.len() {
        let end = prefix.min(candidates.len());
        let rest = &mut candidates[kept..];
        let count = end - kept;
        if count < rest.len() {
            rest.select_nth_unstable_by(count - 1, most_likely_first);
        }
        rest[..count].sort_unstable_by(most_likely_first);
        for candidate in &rest[..count] {
            sum += f64::from(candidate.weight);
            kept += 1;
            if sum >= mass {
                candidates.truncate(kept);
                candidates.sort_unstable_by_key(|candidate| candidate.id);
                return;
            }
        }
        prefix *= 4;
    }
    candidates.sort_unstable_by_key(|candidate| candidate.id);
}

/// The candidate at `uniform` (0 to 1) of the summed weights.
fn draw(candidates: &[Candidate], uniform: f64) -> Option<u32> {
    let total: f64 = candidates
        .iter()
        .map(|candidate| f64::from(candidate.weight))
        .sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let mut last = None;
    for candidate in candidates {
        sum += f64::from(candidate.weight);
        last = Some(candidate.id);
        if sum > target {
            break;
        }
    }
    last
}

/// Random number `index` of the sequence with `seed`, uniform in [0, 1) with 53 random bits. Two rounds
/// of the SplitMix64 finalizer (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
fn uniform(seed: u64, index: u64) -> f64 {
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let stream = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(stream.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
