//! The contract between the scheduler and the engine: one plan in, one output back, in order.
//!
//! The engine keeps, per admitted sequence: its sampler, its block table, the number of positions
//! computed, and the token sampled last. So a plan for step *n+1* can be handed over while step *n*
//! still runs: a [`RowInput::Decode`] row means "the token you sampled last, whatever it is", and the
//! row is skipped (no output) when that token already ended the sequence.

use std::sync::Arc;
use std::time::Duration;

use super::sampler::{SamplingParameters, TokenLogprobs};
use crate::ids::{BlockId, SequenceId, TokenId};

/// What one forward pass does. Fields are applied in the order they stand here.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Increasing by one from 1.
    pub number: u64,
    /// Sequences that have ended (finished, cancelled, failed): the engine forgets them. Unknown ids are ignored.
    pub retire: Vec<SequenceId>,
    /// Sequences that lost their blocks: the engine empties their block table, and keeps the sampler.
    pub preempt: Vec<SequenceId>,
    /// Sequences that the engine sees for the first time.
    pub admit: Vec<AdmittedSequence>,
    /// Copies of the matched part of a partly matching block (copy on write), before the pass.
    pub copies: Vec<BlockCopy>,
    /// The ragged batch: decode rows first, then prefill chunks. May be empty (then only the above is done).
    pub rows: Vec<SequenceRows>,
}

/// A sequence's constant facts, told to the engine once.
#[derive(Debug, Clone)]
pub struct AdmittedSequence {
    pub sequence: SequenceId,
    /// The whole prompt, for penalties that count prompt tokens.
    pub prompt: Arc<[TokenId]>,
    pub sampling: SamplingParameters,
    pub stop: StopRule,
}

/// When the engine itself ends a sequence.
#[derive(Debug, Clone)]
pub struct StopRule {
    /// Sampling one of these ends the sequence (empty with `ignore_eos`, which excludes them).
    pub end_tokens: Arc<[TokenId]>,
    /// The sequence ends after this many sampled tokens, over its whole life. At least 1.
    pub max_new_tokens: usize,
}

/// Copies the keys and values of the first `tokens` positions of `from` into `to`, in all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    pub from: BlockId,
    pub to: BlockId,
    pub tokens: usize,
}

/// One sequence's part of the batch.
#[derive(Debug, Clone)]
pub struct SequenceRows {
    pub sequence: SequenceId,
    /// Appended to the sequence's block table before the pass, so that it covers every row's position.
    pub new_blocks: Vec<BlockId>,
    pub input: RowInput,
}

#[derive(Debug, Clone)]
pub enum RowInput {
    /// Known tokens at the absolute positions `start..start + tokens.len()`. Positions below `start` are
    /// in the block table already. With `sample`, the last row's logits are sampled. (A sequence with
    /// `prompt_logprobs` needs the logits of its other prompt rows, too: the engine knows which.)
    Prefill {
        tokens: Vec<TokenId>,
        start: usize,
        sample: bool,
    },
    /// One row: the token sampled last for this sequence, at the next position; its logits are sampled.
    Decode,
}

/// The answer to one [`StepPlan`], sent in plan order.
#[derive(Debug, Default)]
pub struct StepOutput {
    pub number: u64,
    /// At most one a sequence; sequences that did not sample in this step are absent.
    pub sampled: Vec<SampledToken>,
    /// What the prompt rows of sequences that ask for it predicted: for each row whose next token is of
    /// the prompt that token's log probabilities, in order. Over a sequence's life each row is told once.
    pub scored: Vec<(SequenceId, Vec<TokenLogprobs>)>,
    /// Sequences whose rows could not be computed, and why. Other sequences are unharmed.
    pub failed: Vec<(SequenceId, String)>,
    pub statistics: StepStatistics,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    pub sequence: SequenceId,
    pub token: TokenId,
    /// Only for sequences that ask for it.
    pub logprobs: Option<TokenLogprobs>,
    /// Set when this token ended the sequence by its [`StopRule`].
    pub end: Option<EndReason>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// An end token was sampled. It is not part of the text.
    EndToken,
    /// `max_new_tokens` were sampled.
    Length,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct StepStatistics {
    /// Sequences in the batch that were computed.
    pub sequences: usize,
    /// Token rows computed (decode rows and prefill tokens).
    pub tokens: usize,
    pub duration: Duration,
    /// The part of `duration` that the forward pass took; most of the rest is sampling.
    pub forward: Duration,
    /// How long the engine had nothing to do before this plan came.
    pub waited: Duration,
}
