//! Invariant 2: what is wrong with one sequence never changes another.

use std::sync::Arc;

use candle_core::DType;

use super::model::{self, Format};
use crate::engine::batch::RaggedBatch;
use crate::engine::executor::Executor;
use crate::engine::loader::Architecture;
use crate::engine::sampler::SamplingParameters;
use crate::engine::step::{
    AdmittedSequence, BlockCopy, EndReason, RowInput, SequenceRows, StepOutput, StepPlan, StopRule,
};
use crate::engine::{AttentionKind, Engine, EngineError, EngineInfo, KvDtype};
use crate::ids::{BlockId, SequenceId, TokenId};

fn admit(id: u64, end_tokens: &[u32], max_new_tokens: usize) -> AdmittedSequence {
    AdmittedSequence {
        sequence: SequenceId(id),
        prompt: Arc::from([TokenId(1)]),
        sampling: SamplingParameters::default(),
        stop: StopRule {
            end_tokens: end_tokens.iter().map(|&id| TokenId(id)).collect(),
            max_new_tokens,
        },
    }
}

fn prefill(id: u64, blocks: &[u32], tokens: &[u32], start: usize) -> SequenceRows {
    SequenceRows {
        sequence: SequenceId(id),
        new_blocks: blocks.iter().map(|&block| BlockId(block)).collect(),
        input: RowInput::Prefill {
            tokens: tokens.iter().map(|&id| TokenId(id)).collect(),
            start,
            sample: true,
        },
    }
}

fn decode(id: u64) -> SequenceRows {
    SequenceRows {
        sequence: SequenceId(id),
        new_blocks: vec![],
        input: RowInput::Decode,
    }
}

fn failed(output: &StepOutput) -> Vec<u64> {
    output
        .failed
        .iter()
        .map(|(sequence, _)| sequence.0)
        .collect()
}

fn sampled(output: &StepOutput) -> Vec<(u64, u32)> {
    output
        .sampled
        .iter()
        .map(|sampled| (sampled.sequence.0, sampled.token.0))
        .collect()
}

fn engine() -> Engine {
    let config = model::config(Architecture::Qwen3);
    let weights = model::weights(&config, Format::Dense(DType::F32));
    let options = model::options(AttentionKind::Fused, KvDtype::F16);
    Engine::new(&config, &weights, &options).expect("an engine")
}

#[test]
fn impossible_rows_fail_alone() {
    let mut engine = engine();
    let good = [5, 6, 7];
    let alone = engine.step(StepPlan {
        admit: vec![admit(1, &[], 9)],
        rows: vec![prefill(1, &[3], &good, 0)],
        ..Default::default()
    });
    assert!(failed(&alone).is_empty());
    let beside = engine.step(StepPlan {
        number: 2,
        admit: (2..14).map(|id| admit(id, &[], 9)).collect(),
        copies: vec![BlockCopy {
            from: BlockId(1),
            to: BlockId(20),
            tokens: 17,
        }],
        rows: vec![
            decode(2),
            prefill(3, &[8], &[1; 17], 0),
            prefill(4, &[1000], &[1], 0),
            prefill(5, &[9], &[320], 0),
            prefill(6, &[10], &[], 0),
            prefill(7, &(100..400).collect::<Vec<_>>(), &[1, 1], 4095),
            prefill(8, &[20], &[1], 0),
            prefill(9, &[30], &good, 0),
            prefill(9, &[31], &good, 0),
            prefill(10, &[30], &good, 0),
            prefill(11, &[32, 32], &[1; 20], 0),
            prefill(12, &[33], &[1], usize::MAX),
            prefill(13, &[40], &good, 0),
            prefill(99, &[34], &[1], 0),
        ],
        ..Default::default()
    });
    assert_eq!(failed(&beside), [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 99]);
    assert_eq!(beside.number, 2);
    let [(13, token)] = sampled(&beside)[..] else {
        panic!("{beside:?}")
    };
    assert_eq!(token, alone.sampled[0].token.0);
}

#[test]
fn damaged_numbers_of_one_sequence_stay_its_own() {
    let config = model::config(Architecture::Llama);
    let mut weights = model::weights(&config, Format::Dense(DType::F32));
    weights.spoil("model.embed_tokens.weight", 13);
    for attention in [AttentionKind::Fused, AttentionKind::Portable] {
        let options = model::options(attention, KvDtype::F32);
        let mut engine = Engine::new(&config, &weights, &options).expect("an engine");
        let plan = |ids: &[u64]| StepPlan {
            admit: ids.iter().map(|&id| admit(id, &[], 9)).collect(),
            rows: ids
                .iter()
                .map(|&id| {
                    let middle = if id == 2 { 13 } else { 4 };
                    prefill(id, &[id as u32], &[3, middle, 5], 0)
                })
                .collect(),
            ..Default::default()
        };
        let clean = engine.step(plan(&[1]));
        let mixed = engine.step(plan(&[1, 2, 3]));
        assert_eq!(failed(&mixed), [2]);
        assert!(
            mixed.failed[0].1.contains("not finite"),
            "{:?}",
            mixed.failed
        );
        assert_eq!(sampled(&mixed)[0], sampled(&clean)[0]);
        // The block of the damaged sequence goes to another one.
        let after = engine.step(StepPlan {
            retire: vec![SequenceId(2)],
            admit: vec![admit(4, &[], 9)],
            rows: vec![decode(2), prefill(4, &[2], &[3, 4], 0)],
            ..Default::default()
        });
        assert_eq!(failed(&after), [2]);
        assert_eq!(sampled(&after).len(), 1);
    }
}

#[test]
fn sequences_end_by_their_own_rules_and_later_rows_are_skipped() {
    let mut engine = engine();
    let first = engine.step(StepPlan {
        admit: vec![admit(1, &[], 9)],
        rows: vec![prefill(1, &[1], &[5, 6], 0)],
        ..Default::default()
    });
    let token = first.sampled[0].token.0;
    assert_eq!(first.sampled[0].end, None);
    let ended = engine.step(StepPlan {
        admit: vec![admit(2, &[7, token], 9), admit(3, &[], 1), admit(4, &[], 2)],
        rows: (2..5)
            .map(|id| prefill(id, &[id as u32], &[5, 6], 0))
            .collect(),
        ..Default::default()
    });
    let ends: Vec<_> = ended.sampled.iter().map(|sampled| sampled.end).collect();
    assert_eq!(
        ends,
        [Some(EndReason::EndToken), Some(EndReason::Length), None]
    );
    let next = engine.step(StepPlan {
        rows: (1..5).map(decode).collect(),
        ..Default::default()
    });
    assert!(failed(&next).is_empty());
    assert_eq!(
        sampled(&next).iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [1, 4]
    );
    assert_eq!((next.statistics.sequences, next.statistics.tokens), (2, 2));
    assert_eq!(next.sampled[1].end, Some(EndReason::Length));
}

/// Panics when a row has token 13, and fails when one has token 14.
struct Fragile;

impl Executor for Fragile {
    fn forward(&mut self, batch: &RaggedBatch, logits: &mut Vec<f32>) -> Result<(), EngineError> {
        assert!(!batch.tokens.contains(&13), "thirteen");
        if batch.tokens.contains(&14) {
            return Err(EngineError::InvalidOption("fourteen".to_owned()));
        }
        logits.clear();
        logits.resize(batch.wanted_rows().count() * 20, 0.5);
        Ok(())
    }

    fn copy_block(&mut self, _: BlockCopy) -> Result<(), EngineError> {
        panic!("cannot copy");
    }
}

#[test]
fn a_pass_that_panics_fails_its_rows_and_the_engine_goes_on() {
    let info = EngineInfo {
        vocabulary: 20,
        ..engine().info().clone()
    };
    let mut engine = Engine::with_executor(Box::new(Fragile), info).expect("an engine");
    let mut step = |id: u64, token: u32, copies: Vec<BlockCopy>| {
        engine.step(StepPlan {
            admit: vec![admit(id, &[], 9), admit(id + 1, &[], 9)],
            copies,
            rows: vec![
                prefill(id, &[0], &[1], 0),
                prefill(id + 1, &[1], &[token], 0),
            ],
            ..Default::default()
        })
    };
    let copy = BlockCopy {
        from: BlockId(5),
        to: BlockId(1),
        tokens: 1,
    };
    let panicked = step(10, 13, vec![]);
    assert_eq!(failed(&panicked), [10, 11]);
    assert!(
        panicked.failed[0].1.contains("thirteen"),
        "{:?}",
        panicked.failed
    );
    assert_eq!(failed(&step(20, 14, vec![])), [20, 21]);
    assert_eq!(failed(&step(30, 1, vec![copy])), [31]);
    assert!(failed(&step(40, 1, vec![])).is_empty());
}
