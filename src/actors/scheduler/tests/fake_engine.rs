//! An engine whose keys and values are hashes. It keeps the real content of every slot of every block,
//! and each row reads all slots before it, as attention does. So a block that is shared wrongly, read
//! before it is written, overwritten too early or copied wrongly is noticed at once.

use std::collections::HashMap;

use crate::engine::step::{
    AdmittedSequence, EndReason, RowInput, SampledToken, SequenceRows, StepOutput, StepPlan,
    StepStatistics,
};
use crate::ids::{BlockId, SequenceId, TokenId};

/// Sampled tokens are below this; so that outputs end, repeat and collide often.
pub const VOCABULARY: u64 = 7;
/// The token that ends an answer.
pub const END: TokenId = TokenId(0);

fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ b.wrapping_add(0x2545_F491_4F6C_DD1D);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Keys and values of `token` after a position with keys and values `before`.
fn content(before: u64, token: TokenId) -> u64 {
    mix(before, u64::from(token.0) + 1)
}

/// What is sampled after positions with keys and values `all`.
fn choose(all: impl Iterator<Item = u64>, seed: u64) -> TokenId {
    let state = all.fold(seed, mix);
    TokenId((mix(state, 3) % VOCABULARY) as u32)
}

/// The whole output of a request that runs alone, and whether an end token ends it.
pub fn solo(
    prompt: &[TokenId],
    seed: u64,
    max_new_tokens: usize,
    ignore_eos: bool,
) -> (Vec<TokenId>, EndReason) {
    let mut contents = Vec::new();
    let push = |contents: &mut Vec<u64>, token| {
        contents.push(content(contents.last().copied().unwrap_or(0), token));
    };
    for token in prompt {
        push(&mut contents, *token);
    }
    let mut output = Vec::new();
    loop {
        let token = choose(contents.iter().copied(), seed);
        output.push(token);
        if token == END && !ignore_eos {
            return (output, EndReason::EndToken);
        }
        if output.len() == max_new_tokens {
            return (output, EndReason::Length);
        }
        push(&mut contents, token);
    }
}

struct FakeSequence {
    admitted: AdmittedSequence,
    table: Vec<BlockId>,
    next_position: usize,
    generated: Vec<TokenId>,
    ended: bool,
}

/// See the module.
pub struct FakeEngine {
    block_size: usize,
    blocks: Vec<Vec<Option<u64>>>,
    sequences: HashMap<SequenceId, FakeSequence>,
    last_plan: u64,
    /// Prefill tokens computed in its life.
    pub prefilled: usize,
    /// Rows of this sequence fail from now on.
    pub broken: Option<SequenceId>,
}

impl FakeEngine {
    pub fn new(block_count: usize, block_size: usize) -> Self {
        Self {
            block_size,
            blocks: vec![vec![None; block_size]; block_count],
            sequences: HashMap::new(),
            last_plan: 0,
            prefilled: 0,
            broken: None,
        }
    }

    /// Sequences that have not been retired.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    pub fn step(&mut self, plan: StepPlan) -> StepOutput {
        self.last_plan += 1;
        assert_eq!(
            plan.number, self.last_plan,
            "plans are numbered without gaps"
        );
        for id in plan.retire {
            assert!(self.sequences.remove(&id).is_some(), "{id} was admitted");
        }
        for id in plan.preempt {
            let sequence = self
                .sequences
                .get_mut(&id)
                .expect("a preempted sequence is known");
            sequence.table.clear();
            sequence.next_position = 0;
        }
        for admitted in plan.admit {
            let id = admitted.sequence;
            let sequence = FakeSequence {
                admitted,
                table: Vec::new(),
                next_position: 0,
                generated: Vec::new(),
                ended: false,
            };
            assert!(
                self.sequences.insert(id, sequence).is_none(),
                "{id} is admitted once"
            );
        }
        for copy in &plan.copies {
            let read_later = plan.copies.iter().any(|other| other.from == copy.to);
            assert!(!read_later, "the order of copies does not matter: {copy:?}");
        }
        for copy in plan.copies {
            for slot in 0..copy.tokens {
                let value = self.blocks[copy.from.0 as usize][slot];
                assert!(
                    value.is_some(),
                    "{copy:?} copies a slot that was never written"
                );
                self.blocks[copy.to.0 as usize][slot] = value;
            }
        }
        let mut output = StepOutput {
            number: plan.number,
            ..StepOutput::default()
        };
        for rows in plan.rows {
            self.rows(rows, &mut output);
        }
        output
    }

    fn rows(&mut self, rows: SequenceRows, output: &mut StepOutput) {
        let id = rows.sequence;
        let sequence = self
            .sequences
            .get_mut(&id)
            .expect("rows are for admitted sequences");
        if sequence.ended {
            return;
        }
        if self.broken == Some(id) {
            sequence.ended = true;
            output.failed.push((id, "broken".to_owned()));
            return;
        }
        sequence.table.extend(rows.new_blocks);
        let (tokens, start, sample) = match rows.input {
            RowInput::Prefill {
                tokens,
                start,
                sample,
            } => {
                self.prefilled += tokens.len();
                (tokens, start, sample)
            }
            RowInput::Decode => {
                let last = *sequence
                    .generated
                    .last()
                    .expect("decoding needs a sampled token");
                (vec![last], sequence.next_position, true)
            }
        };
        assert!(!tokens.is_empty());
        let known: Vec<TokenId> = sequence
            .admitted
            .prompt
            .iter()
            .chain(&sequence.generated)
            .copied()
            .collect();
        assert_eq!(
            known[start..start + tokens.len()],
            tokens,
            "{id} computes its own tokens"
        );

        let place = |position: usize| {
            (
                sequence.table[position / self.block_size].0 as usize,
                position % self.block_size,
            )
        };
        let mut before = 0;
        for (position, token) in known[..start].iter().enumerate() {
            let (block, slot) = place(position);
            before = content(before, *token);
            assert_eq!(
                self.blocks[block][slot],
                Some(before),
                "{id} reads position {position}, which holds something else"
            );
        }
        for (offset, token) in tokens.iter().enumerate() {
            let (block, slot) = place(start + offset);
            before = content(before, *token);
            self.blocks[block][slot] = Some(before);
        }
        let end = start + tokens.len();
        sequence.next_position = end;
        output.statistics = StepStatistics {
            sequences: output.statistics.sequences + 1,
            tokens: output.statistics.tokens + tokens.len(),
            ..output.statistics
        };
        if !sample {
            return;
        }
        let contents = (0..end).map(|position| {
            let (block, slot) = place(position);
            self.blocks[block][slot].expect("read above")
        });
        let token = choose(contents, sequence.admitted.sampling.seed);
        sequence.generated.push(token);
        let end = if sequence.admitted.stop.end_tokens.contains(&token) {
            Some(EndReason::EndToken)
        } else if sequence.generated.len() == sequence.admitted.stop.max_new_tokens {
            Some(EndReason::Length)
        } else {
            None
        };
        sequence.ended = end.is_some();
        output.sampled.push(SampledToken {
            sequence: id,
            token,
            logprobs: None,
            end,
        });
    }
}
