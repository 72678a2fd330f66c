//! Invariant 1: a request's logits have the same bits alone or in any batch, whole or in chunks, cold or
//! from the cache, preempted or not.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::DType;
use candle_core::quantized::GgmlDType;

use super::model::{self, Format, Random};
use crate::engine::loader::Architecture;
use crate::engine::sampler::SamplingParameters;
use crate::engine::step::{
    AdmittedSequence, BlockCopy, RowInput, SequenceRows, StepPlan, StopRule,
};
use crate::engine::{AttentionKind, Engine, EngineOptions, KvDtype, MatmulPrecision};
use crate::ids::{BlockId, SequenceId, TokenId};

/// A request, and what came of it when it ran alone: the bits of the logits, and the tokens.
struct Request {
    prompt: Vec<TokenId>,
    sampling: SamplingParameters,
    logits: Vec<Vec<u32>>,
    tokens: Vec<TokenId>,
}

const NEW_TOKENS: usize = 6;

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn admit(id: u64, request: &Request) -> AdmittedSequence {
    AdmittedSequence {
        sequence: SequenceId(id),
        prompt: request.prompt.as_slice().into(),
        sampling: request.sampling.clone(),
        stop: StopRule {
            end_tokens: Arc::from([]),
            max_new_tokens: NEW_TOKENS,
        },
    }
}

fn rows(id: u64, new_blocks: Vec<BlockId>, input: RowInput) -> SequenceRows {
    SequenceRows {
        sequence: SequenceId(id),
        new_blocks,
        input,
    }
}

/// Runs a request alone: one prefill of the whole prompt, then decode rows.
fn run_alone(engine: &mut Engine, request: &mut Request) {
    let id = 1_000_000;
    let positions = request.prompt.len() + NEW_TOKENS;
    let table = (0..positions.div_ceil(engine.info().block_size) as u32)
        .map(BlockId)
        .collect();
    let input = RowInput::Prefill {
        tokens: request.prompt.clone(),
        start: 0,
        sample: true,
    };
    let mut plan = StepPlan {
        admit: vec![admit(id, request)],
        rows: vec![rows(id, table, input)],
        ..Default::default()
    };
    for _ in 0..NEW_TOKENS {
        let output = engine.step_observed(plan, |_, logits| request.logits.push(bits(logits)));
        assert_eq!(output.failed, []);
        request.tokens.push(output.sampled[0].token);
        plan = StepPlan {
            rows: vec![rows(id, vec![], RowInput::Decode)],
            ..Default::default()
        };
    }
    engine.step(StepPlan {
        retire: vec![SequenceId(id)],
        ..Default::default()
    });
}

/// A sequence in the random run.
struct Running {
    request: usize,
    table: Vec<BlockId>,
    /// Prompt and sampled tokens.
    tokens: Vec<TokenId>,
    computed: usize,
    sampled: usize,
}

/// A run of all requests at once by random plans.
struct RandomRun<'a> {
    engine: &'a mut Engine,
    requests: &'a [Request],
    running: Vec<Running>,
    random: Random,
    next_block: u32,
    /// How often each of the interesting things happened.
    shared: usize,
    copied: usize,
    preempted: usize,
}

impl RandomRun<'_> {
    fn fresh_block(&mut self) -> BlockId {
        self.next_block += 1;
        BlockId(self.next_block)
    }

    /// Gives an empty sequence the computed blocks of another with the same beginning.
    /// `written` are the positions of each sequence whose keys and values exist before this step.
    fn reuse(
        &mut self,
        index: usize,
        written: &[usize],
        new_blocks: &mut Vec<BlockId>,
        copies: &mut Vec<BlockCopy>,
    ) {
        let block_size = self.engine.info().block_size;
        let donor = self.random.below(self.running.len());
        let (own, other) = (&self.running[index], &self.running[donor]);
        let same = own
            .tokens
            .iter()
            .zip(&other.tokens)
            .take_while(|(a, b)| a == b)
            .count();
        // At least one token is always computed, to have logits.
        let same = same
            .min(written[donor])
            .min(other.computed)
            .min(own.tokens.len() - 1);
        if donor == index || same == 0 {
            return;
        }
        let (full, rest) = (same / block_size, same % block_size);
        new_blocks.extend_from_slice(&self.running[donor].table[..full]);
        self.shared += full;
        if rest > 0 {
            let from = self.running[donor].table[full];
            let to = self.fresh_block();
            copies.push(BlockCopy {
                from,
                to,
                tokens: rest,
            });
            new_blocks.push(to);
            self.copied += 1;
        }
        self.running[index].computed = same;
    }

    fn step(&mut self) {
        let block_size = self.engine.info().block_size;
        let mut plan = StepPlan::default();
        let mut sampling = HashMap::new();
        let written: Vec<usize> = self
            .running
            .iter()
            .map(|sequence| sequence.computed)
            .collect();
        for index in 0..self.running.len() {
            if self.running[index].sampled == NEW_TOKENS || self.random.chance(30) {
                continue;
            }
            if self.running[index].computed > 0 && self.random.chance(3) {
                plan.preempt.push(SequenceId(index as u64));
                self.running[index].table.clear();
                self.running[index].computed = 0;
                self.preempted += 1;
                continue;
            }
            let mut new_blocks = Vec::new();
            if self.running[index].table.is_empty() && self.random.chance(70) {
                self.reuse(index, &written, &mut new_blocks, &mut plan.copies);
            }
            let sequence = &self.running[index];
            let (start, total) = (sequence.computed, sequence.tokens.len());
            // A restarted sequence must say where it starts.
            let decoding = !sequence.table.is_empty() && sequence.sampled > 0 && start + 1 == total;
            let end = if decoding {
                total
            } else {
                total.min(start + 1 + self.random.below(90))
            };
            let have = sequence.table.len() + new_blocks.len();
            for _ in have..end.div_ceil(block_size) {
                new_blocks.push(self.fresh_block());
            }
            let sequence = &mut self.running[index];
            sequence.table.extend_from_slice(&new_blocks);
            sequence.computed = end;
            let input = if decoding {
                RowInput::Decode
            } else {
                RowInput::Prefill {
                    tokens: sequence.tokens[start..end].to_vec(),
                    start,
                    sample: end == total,
                }
            };
            if end == total {
                sampling.insert(SequenceId(index as u64), index);
            }
            plan.rows.push(rows(index as u64, new_blocks, input));
        }
        let requests = self.requests;
        let running = &self.running;
        let output = self.engine.step_observed(plan, |id, logits| {
            let sequence = &running[sampling[&id]];
            let expected = &requests[sequence.request].logits[sequence.sampled];
            assert!(
                bits(logits) == *expected,
                "{id}: other logits at output {}",
                sequence.sampled
            );
        });
        assert_eq!(output.failed, []);
        assert_eq!(output.sampled.len(), sampling.len());
        for sampled in output.sampled {
            let sequence = &mut self.running[sampling[&sampled.sequence]];
            assert_eq!(
                sampled.token,
                self.requests[sequence.request].tokens[sequence.sampled]
            );
            sequence.tokens.push(sampled.token);
            sequence.sampled += 1;
            assert_eq!(sampled.end.is_some(), sequence.sampled == NEW_TOKENS);
        }
    }
}

/// Prompts of many lengths, most with a common beginning.
fn requests(random: &mut Random) -> Vec<Request> {
    let system = random.tokens(150);
    (0..8)
        .map(|index| {
            let own = [1, 15, 16, 40, 110, 200][random.below(6)];
            let mut prompt = if index % 4 == 3 {
                vec![]
            } else {
                system[..40 + random.below(110)].to_vec()
            };
            prompt.extend(random.tokens(own));
            let sampling = SamplingParameters {
                temperature: if index % 2 == 0 { 0.0 } else { 0.9 },
                top_p: 0.95,
                repetition_penalty: 1.1,
                seed: index,
                ..Default::default()
            };
            Request {
                prompt,
                sampling,
                logits: vec![],
                tokens: vec![],
            }
        })
        .collect()
}

fn check(architecture: Architecture, format: Format, attention: AttentionKind, kv_dtype: KvDtype) {
    check_with(architecture, format, &model::options(attention, kv_dtype));
}

fn check_with(architecture: Architecture, format: Format, options: &EngineOptions) {
    let config = model::config(architecture);
    let weights = model::weights(&config, format);
    let mut engine = Engine::new(&config, &weights, options).expect("an engine");
    let mut random = Random::new(7);
    let mut requests = requests(&mut random);
    for request in &mut requests {
        run_alone(&mut engine, request);
    }
    let mut run = RandomRun {
        engine: &mut engine,
        requests: &requests,
        running: Vec::new(),
        random,
        next_block: 0,
        shared: 0,
        copied: 0,
        preempted: 0,
    };
    // Every request twice, so that the second can find the first one's blocks.
    let mut plan = StepPlan::default();
    for id in 0..2 * requests.len() {
        let request = &requests[id % requests.len()];
        plan.admit.push(admit(id as u64, request));
        run.running.push(Running {
            request: id % requests.len(),
            table: vec![],
            tokens: request.prompt.clone(),
            computed: 0,
            sampled: 0,
        });
    }
    run.engine.step(plan);
    let mut steps = 0;
    while run
        .running
        .iter()
        .any(|sequence| sequence.sampled < NEW_TOKENS)
    {
        run.step();
        steps += 1;
        assert!(steps < 1000, "the run does not end");
    }
    assert!(run.shared > 0 && run.copied > 0 && run.preempted > 0);
}

#[test]
fn f32_weights_fused_attention() {
    let dense = Format::Dense(DType::F32);
    check(
        Architecture::Qwen3,
        dense,
        AttentionKind::Fused,
        KvDtype::F16,
    );
    check(
        Architecture::Llama,
        dense,
        AttentionKind::Fused,
        KvDtype::F32,
    );
}

#[test]
fn f32_weights_portable_attention() {
    check(
        Architecture::Qwen2,
        Format::Dense(DType::F32),
        AttentionKind::Portable,
        KvDtype::F16,
    );
}

#[test]
fn bf16_weights_fused_attention() {
    check(
        Architecture::Qwen2,
        Format::Dense(DType::BF16),
        AttentionKind::Fused,
        KvDtype::Bf16,
    );
}

/// Activations rounded to `bf16`: by the matrix unit or the dot product where the machine has them.
#[test]
fn bf16_weights_fast_products() {
    for attention in [AttentionKind::Fused, AttentionKind::Portable] {
        let options = EngineOptions {
            precision: MatmulPrecision::Fast,
            ..model::options(attention, KvDtype::F16)
        };
        check_with(Architecture::Qwen3, Format::Dense(DType::BF16), &options);
    }
}

/// Keys and values in the order of matrix tiles, where the machine has them.
#[test]
fn attention_on_matrix_tiles() {
    for format in [
        Format::Dense(DType::BF16),
        Format::Quantized(GgmlDType::Q4K),
        Format::Quantized(GgmlDType::Q8_0),
    ] {
        let options = EngineOptions {
            precision: MatmulPrecision::Fast,
            block_size: 32,
            ..model::options(AttentionKind::Fused, KvDtype::Auto)
        };
        check_with(Architecture::Qwen3, format, &options);
    }
}

#[test]
fn bf16_weights_portable_attention() {
    check(
        Architecture::Qwen3,
        Format::Dense(DType::BF16),
        AttentionKind::Portable,
        KvDtype::F32,
    );
}

#[test]
fn f16_weights_fused_attention() {
    check(
        Architecture::Llama,
        Format::Dense(DType::F16),
        AttentionKind::Fused,
        KvDtype::F16,
    );
}

#[test]
fn q8_0_weights_fused_attention() {
    check(
        Architecture::Qwen3,
        Format::Quantized(GgmlDType::Q8_0),
        AttentionKind::Fused,
        KvDtype::F16,
    );
}

#[test]
fn q4_k_weights_fused_attention() {
    check(
        Architecture::Llama,
        Format::Quantized(GgmlDType::Q4K),
        AttentionKind::Fused,
        KvDtype::F16,
    );
}

#[test]
fn bytes_as_keys_and_values() {
    for attention in [AttentionKind::Fused, AttentionKind::Portable] {
        check(
            Architecture::Qwen2,
            Format::Quantized(GgmlDType::Q6K),
            attention,
            KvDtype::Q8_0,
        );
    }
}

#[test]
fn q4_k_weights_portable_attention() {
    check(
        Architecture::Qwen3,
        Format::Quantized(GgmlDType::Q4K),
        AttentionKind::Portable,
        KvDtype::F16,
    );
}
