//! The passes that are timed, driven straight into the engine.
//!
//! A decode row is given as a prompt of one token at a fixed position, which is the same to a forward pass:
//! so a step can be repeated at the same context as often as one likes. Keys and values are computed once
//! and copied to where they are needed; what they are does not matter to the time.

use std::sync::Arc;

use super::work::Rows;
use crate::bench::error::BenchError;
use crate::bench::statistics::median;
use crate::engine::Engine;
use crate::engine::sampler::SamplingParameters;
use crate::engine::step::{
    AdmittedSequence, BlockCopy, RowInput, SequenceRows, StepPlan, StopRule,
};
use crate::ids::{BlockId, SequenceId, TokenId};

/// Tokens a block, as the server has it by default.
pub const BLOCK_SIZE: usize = 32;
/// Tokens of the prefilled prompt.
const PROMPT: usize = 1024;
/// Tokens of a prefill step, as the server has it by default.
const CHUNK: usize = 512;
/// Context of the sequence that decodes alone.
const ALONE_CONTEXT: usize = 128;
/// Sequences that decode together.
const BATCH: usize = 32;
/// Their context.
const BATCH_CONTEXT: usize = 160;
/// The long and the short shared prefix.
pub const LONG_PREFIX: usize = 4096;
pub const SHORT_PREFIX: usize = 128;
/// What each sequence has of its own behind a shared prefix.
const TAIL: usize = 32;
/// The longest context of any case.
pub const LONGEST_CONTEXT: usize = LONG_PREFIX + TAIL;

/// What is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    Alone,
    Prefill,
    Batch,
    LongPrefix,
    ShortPrefix,
}

impl Case {
    pub const ALL: [Case; 5] = [
        Case::Alone,
        Case::Prefill,
        Case::Batch,
        Case::LongPrefix,
        Case::ShortPrefix,
    ];

    pub fn key(self) -> &'static str {
        match self {
            Case::Alone => "decode_alone",
            Case::Prefill => "prefill",
            Case::Batch => "decode_batch",
            Case::LongPrefix => "long_prefix",
            Case::ShortPrefix => "short_prefix",
        }
    }

    /// How often it is timed in a round.
    pub fn passes(self) -> usize {
        match self {
            Case::Alone => 9,
            Case::Prefill => 1,
            Case::Batch | Case::LongPrefix | Case::ShortPrefix => 3,
        }
    }

    /// The steps of one pass, each a batch of rows.
    pub fn steps(self) -> Vec<Vec<Rows>> {
        match self {
            Case::Alone => vec![vec![Rows::decode(ALONE_CONTEXT)]],
            Case::Prefill => (0..PROMPT)
                .step_by(CHUNK)
                .map(|start| {
                    let count = CHUNK.min(PROMPT - start);
                    let sample = start + count == PROMPT;
                    vec![Rows {
                        start,
                        count,
                        sample,
                    }]
                })
                .collect(),
            Case::Batch => vec![vec![Rows::decode(BATCH_CONTEXT); BATCH]],
            Case::LongPrefix => vec![vec![Rows::decode(LONG_PREFIX + TAIL); BATCH]],
            Case::ShortPrefix => vec![vec![Rows::decode(SHORT_PREFIX + TAIL); BATCH]],
        }
    }

    /// Positions whose keys and values a pass must read at least: shared ones once.
    pub fn positions_read(self) -> usize {
        match self {
            Case::Alone => ALONE_CONTEXT,
            // Each chunk reads what was there before it once.
            Case::Prefill => (0..PROMPT).step_by(CHUNK).sum(),
            Case::Batch => BATCH * BATCH_CONTEXT,
            Case::LongPrefix => LONG_PREFIX + BATCH * TAIL,
            Case::ShortPrefix => SHORT_PREFIX + BATCH * TAIL,
        }
    }

    /// What it is called in the table.
    pub fn title(self) -> String {
        match self {
            Case::Alone => format!("decode alone, context {ALONE_CONTEXT}"),
            Case::Prefill => format!("prefill of {PROMPT} tokens in steps of {CHUNK}"),
            Case::Batch => format!("decode of {BATCH} sequences, context {BATCH_CONTEXT}"),
            Case::LongPrefix | Case::ShortPrefix => {
                format!("decode of {BATCH} behind 4,096 shared tokens over {SHORT_PREFIX}")
            }
        }
    }
}

/// Blocks that all cases together need.
pub fn blocks() -> usize {
    let of = |tokens: usize| tokens.div_ceil(BLOCK_SIZE);
    of(PROMPT)
        + of(ALONE_CONTEXT)
        + BATCH * of(BATCH_CONTEXT)
        + of(LONG_PREFIX)
        + 2 * BATCH * of(TAIL)
}

/// An engine with the sequences of all cases in place.
pub struct Driver {
    engine: Engine,
    steps: u64,
    next_block: u32,
    next_sequence: u64,
    /// The block table of the prefilled prompt, which the others are copied from.
    prompt_blocks: Vec<BlockId>,
    prompt: SequenceId,
    alone: SequenceId,
    batch: Vec<SequenceId>,
    long: Vec<SequenceId>,
    short: Vec<SequenceId>,
}

impl Driver {
    /// Admits all sequences, and fills their blocks.
    ///
    /// # Errors
    /// When the engine fails a step.
    pub fn new(engine: Engine) -> Result<Self, BenchError> {
        let mut driver = Self {
            engine,
            steps: 0,
            next_block: 0,
            next_sequence: 0,
            prompt_blocks: Vec::new(),
            prompt: SequenceId(0),
            alone: SequenceId(0),
            batch: Vec::new(),
            long: Vec::new(),
            short: Vec::new(),
        };
        let blocks = driver.take_blocks(PROMPT);
        driver.prompt_blocks = blocks.clone();
        let first = (0, CHUNK.min(PROMPT), false);
        driver.prompt = driver.admit(blocks, Vec::new(), first)?;
        // Computes the rest of the prompt, too.
        driver.time(Case::Prefill, 1)?;

        driver.alone = driver.admit_copy(&[], ALONE_CONTEXT)?;
        let prefix = driver.take_blocks(LONG_PREFIX);
        driver.fill(&prefix)?;
        for _ in 0..BATCH {
            let sequence = driver.admit_copy(&[], BATCH_CONTEXT)?;
            driver.batch.push(sequence);
            let sequence = driver.admit_copy(&prefix, LONG_PREFIX + TAIL)?;
            driver.long.push(sequence);
            let short = &prefix[..SHORT_PREFIX / BLOCK_SIZE];
            let sequence = driver.admit_copy(short, SHORT_PREFIX + TAIL)?;
            driver.short.push(sequence);
        }
        // Each case once, so that buffers have their sizes.
        for case in Case::ALL {
            driver.time(case, 1)?;
        }
        Ok(driver)
    }

    /// The median time of a pass, in seconds, of so many.
    ///
    /// # Errors
    /// When the engine fails a step.
    pub fn time(&mut self, case: Case, passes: usize) -> Result<f64, BenchError> {
        let mut times = Vec::with_capacity(passes);
        for _ in 0..passes {
            let mut seconds = 0.0;
            for batch in case.steps() {
                let sequences = self.sequences(case).to_vec();
                let rows = sequences.iter().zip(&batch);
                let rows = rows.map(|(&sequence, rows)| rows_of(sequence, *rows, Vec::new()));
                let plan = StepPlan {
                    rows: rows.collect(),
                    ..StepPlan::default()
                };
                seconds += self.step(plan, &case.title())?;
            }
            times.push(seconds);
        }
        Ok(median(&times).unwrap_or_default())
    }

    fn sequences(&self, case: Case) -> &[SequenceId] {
        match case {
            Case::Alone => std::slice::from_ref(&self.alone),
            Case::Prefill => std::slice::from_ref(&self.prompt),
            Case::Batch => &self.batch,
            Case::LongPrefix => &self.long,
            Case::ShortPrefix => &self.short,
        }
    }

    /// A sequence of `context` positions: `shared` blocks, then own ones with copied content.
    fn admit_copy(&mut self, shared: &[BlockId], context: usize) -> Result<SequenceId, BenchError> {
        let own = self.take_blocks(context - shared.len() * BLOCK_SIZE);
        let copies = self.copies_to(&own);
        let table = [shared, &own].concat();
        self.admit(table, copies, (context - 1, 1, true))
    }

    /// A new sequence with this block table, by a first step over some rows.
    fn admit(
        &mut self,
        table: Vec<BlockId>,
        copies: Vec<BlockCopy>,
        (start, count, sample): (usize, usize, bool),
    ) -> Result<SequenceId, BenchError> {
        let sequence = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        let rows = Rows {
            start,
            count,
            sample,
        };
        let plan = StepPlan {
            admit: vec![AdmittedSequence {
                sequence,
                prompt: Arc::from([]),
                sampling: SamplingParameters::default(),
                stop: StopRule {
                    end_tokens: Arc::from([]),
                    max_new_tokens: usize::MAX,
                },
            }],
            copies,
            rows: vec![rows_of(sequence, rows, table)],
            ..StepPlan::default()
        };
        self.step(plan, "the first step of a sequence")?;
        Ok(sequence)
    }

    /// Fills blocks with computed keys and values.
    fn fill(&mut self, blocks: &[BlockId]) -> Result<(), BenchError> {
        let plan = StepPlan {
            copies: self.copies_to(blocks),
            ..StepPlan::default()
        };
        self.step(plan, "copies of blocks").map(drop)
    }

    fn copies_to(&self, blocks: &[BlockId]) -> Vec<BlockCopy> {
        let from = self.prompt_blocks.iter().cycle();
        from.zip(blocks)
            .map(|(&from, &to)| BlockCopy {
                from,
                to,
                tokens: BLOCK_SIZE,
            })
            .collect()
    }

    fn take_blocks(&mut self, tokens: usize) -> Vec<BlockId> {
        let first = self.next_block;
        self.next_block += tokens.div_ceil(BLOCK_SIZE) as u32;
        (first..self.next_block).map(BlockId).collect()
    }

    /// Does a step, and returns its seconds.
    fn step(&mut self, mut plan: StepPlan, what: &str) -> Result<f64, BenchError> {
        self.steps += 1;
        plan.number = self.steps;
        let output = self.engine.step(plan);
        match output.failed.into_iter().next() {
            Some((_, reason)) => Err(BenchError::Step {
                what: what.to_owned(),
                reason,
            }),
            None => Ok(output.statistics.duration.as_secs_f64()),
        }
    }
}

/// Rows with some tokens or other.
fn rows_of(sequence: SequenceId, rows: Rows, new_blocks: Vec<BlockId>) -> SequenceRows {
    let tokens =
        (rows.start..rows.start + rows.count).map(|position| TokenId(position as u32 % 97));
    SequenceRows {
        sequence,
        new_blocks,
        input: RowInput::Prefill {
            tokens: tokens.collect(),
            start: rows.start,
            sample: rows.sample,
        },
    }
}
