//! The engine proper: sequence states, one forward pass a plan, sampling. Runs on the caller's thread;
//! [`super::thread`] gives it one of its own.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::batch::RaggedBatch;
use super::blocks::KvPoolSize;
use super::error::EngineError;
use super::executor::Executor;
use super::executor::cpu::CpuExecutor;
use super::executor::portable::PortableExecutor;
use super::loader::{ModelConfig, Weights};
use super::models;
use super::options::{AttentionKind, DeviceChoice, EngineOptions, KvDtype};
use super::sampler::{SamplingScratch, SequenceSampler, TokenLogprobs};
use super::step::{
    AdmittedSequence, BlockCopy, EndReason, RowInput, SampledToken, SequenceRows, StepOutput,
    StepPlan, StepStatistics, StopRule,
};
use crate::ids::{BlockId, SequenceId, TokenId};

/// What others need to know about a started engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineInfo {
    /// Tokens a block.
    pub block_size: usize,
    pub block_count: usize,
    /// Bytes of the whole KV pool.
    pub kv_bytes: u64,
    /// Most positions of one sequence.
    pub context_window: usize,
    /// Token ids are below this.
    pub vocabulary: usize,
    /// Sampling one of these ends an answer, by the model's own configuration.
    pub end_tokens: Vec<TokenId>,
    /// `cpu`, `metal` or `cuda:N`.
    pub device: String,
    pub kv_dtype: KvDtype,
    /// What really runs: devices other than the CPU have portable attention only.
    pub attention: AttentionKind,
}

/// What the engine remembers of a sequence.
struct SequenceState {
    sampler: SequenceSampler,
    /// The prompt whose tokens' log probabilities are to be told; empty if none are.
    scoring: Arc<[TokenId]>,
    /// How many of its rows were told: each predicts the next of its tokens.
    scored: usize,
    stop: StopRule,
    /// Blocks in the order of positions.
    blocks: Vec<BlockId>,
    /// The position after the last computed one.
    next_position: usize,
    last_token: Option<TokenId>,
    /// It ended by its stop rule or failed: its remaining rows are skipped.
    ended: bool,
}

impl SequenceState {
    fn new(admitted: AdmittedSequence) -> Self {
        let scoring = if admitted.sampling.scores_prompt() {
            Arc::clone(&admitted.prompt)
        } else {
            Arc::default()
        };
        Self {
            scoring,
            scored: 0,
            sampler: SequenceSampler::new(admitted.sampling, &admitted.prompt),
            stop: admitted.stop,
            blocks: Vec::new(),
            next_position: 0,
            last_token: None,
            ended: false,
        }
    }
}

/// A span of the batch.
#[derive(Clone, Copy)]
struct Member {
    sequence: SequenceId,
    /// Its last row is sampled.
    sample: bool,
}

/// What a row's logits are for.
#[derive(Clone, Copy)]
enum Purpose {
    /// The next token of the output.
    Sample,
    /// How likely this next token of the prompt was.
    Score(TokenId),
}

/// What came of a row.
enum Verdict {
    Sampled(TokenId, Option<TokenLogprobs>),
    Scored(TokenLogprobs),
}

/// Weights, KV blocks and sequences.
pub struct Engine {
    executor: Box<dyn Executor>,
    info: EngineInfo,
    sequences: HashMap<SequenceId, SequenceState>,
    // Reused between steps.
    batch: RaggedBatch,
    /// Whose each span of `batch` is.
    members: Vec<Member>,
    /// The blocks that the batch writes: two rows must never write the same place.
    written: HashSet<BlockId>,
    logits: Vec<f32>,
    scratch: SamplingScratch,
}

impl Engine {
    /// Opens the device, loads the weights, reserves the KV pool and warms up.
    ///
    /// # Errors
    /// A device that is not there, an option that cannot work, or a weight that cannot be read.
    pub fn new(
        config: &ModelConfig,
        weights: &dyn Weights,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        options.validate()?;
        let device = options.device.open()?;
        let mut description = models::describe(config);
        if let Some(context_window) = options.context_window {
            description.context_window = description.context_window.min(context_window);
        }
        description.validate()?;
        let size = KvPoolSize::choose(&description, options, device.is_cuda())?;
        let mut info = EngineInfo {
            block_size: size.block_size,
            block_count: size.blocks,
            kv_bytes: size.bytes(),
            context_window: description.context_window,
            vocabulary: description.vocabulary,
            end_tokens: config.end_tokens.clone(),
            device: device_name(options.device, &device),
            kv_dtype: options.kv_dtype,
            attention: AttentionKind::Portable,
        };
        let executor: Box<dyn Executor> = if device.is_cpu() {
            info.attention = options.attention;
            let executor = CpuExecutor::new(description, weights, size, options)?;
            info.kv_dtype = executor.kv_dtype();
            Box::new(executor)
        } else {
            info.kv_dtype = options.kv_dtype.on_device();
            let dtype = info.kv_dtype;
            Box::new(PortableExecutor::new(
                description,
                weights,
                size,
                dtype,
                device,
            )?)
        };
        Self::with_executor(executor, info)
    }

    /// An engine over `executor`, warmed up.
    pub(super) fn with_executor(
        executor: Box<dyn Executor>,
        info: EngineInfo,
    ) -> Result<Self, EngineError> {
        let mut engine = Self {
            executor,
            info,
            sequences: HashMap::new(),
            batch: RaggedBatch::default(),
            members: Vec::new(),
            written: HashSet::new(),
            logits: Vec::new(),
            scratch: SamplingScratch::default(),
        };
        engine.warm_up()?;
        Ok(engine)
    }

    pub fn info(&self) -> &EngineInfo {
        &self.info
    }

    /// A pass over the first block, which no sequence uses yet: devices compile their kernels, and pages
    /// of the weights are read.
    fn warm_up(&mut self) -> Result<(), EngineError> {
        let rows = self.info.block_size.min(self.info.context_window);
        self.batch.clear();
        self.batch.push(
            std::iter::repeat_n(0, rows),
            0,
            &[BlockId(0)],
            self.info.block_size,
            1,
        );
        self.executor.forward(&self.batch, &mut self.logits)?;
        self.batch.clear();
        self.batch.push(
            std::iter::once(0),
            0,
            &[BlockId(0)],
            self.info.block_size,
            1,
        );
        self.executor.forward(&self.batch, &mut self.logits)
    }

    /// Does one plan. Never fails as a whole: sequences that could not be computed are named in the output.
    pub fn step(&mut self, plan: StepPlan) -> StepOutput {
        self.step_observed(plan, |_, _| {})
    }

    /// [`Self::step`], showing the logits of each sampled row before it is sampled.
    pub fn step_observed(
        &mut self,
        plan: StepPlan,
        mut observe: impl FnMut(SequenceId, &[f32]),
    ) -> StepOutput {
        let started = Instant::now();
        let mut output = StepOutput {
            number: plan.number,
            ..Default::default()
        };
        for sequence in plan.retire {
            self.sequences.remove(&sequence);
        }
        for sequence in plan.preempt {
            if let Some(state) = self.sequences.get_mut(&sequence) {
                state.blocks.clear();
                state.next_position = 0;
            }
        }
        for admitted in plan.admit {
            self.sequences
                .insert(admitted.sequence, SequenceState::new(admitted));
        }
        let spoiled = self.copy_blocks(&plan.copies);
        self.batch.clear();
        self.members.clear();
        self.written.clear();
        for rows in plan.rows {
            let sequence = rows.sequence;
            if let Err(reason) = self.add_rows(rows, &spoiled) {
                self.fail(sequence, reason, &mut output);
            }
        }
        let mut forward = Duration::ZERO;
        if !self.members.is_empty() {
            let before = Instant::now();
            self.forward(&mut output);
            forward = before.elapsed();
            self.sample(&mut output, &mut observe);
        }
        output.statistics = StepStatistics {
            sequences: self.members.len(),
            tokens: self.batch.rows(),
            duration: started.elapsed(),
            forward,
            waited: Duration::ZERO,
        };
        output
    }

    /// Copies blocks, and returns the destinations that could not be written, and why.
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> HashMap<BlockId, String> {
        let mut spoiled = HashMap::new();
        for &copy in copies {
            let in_pool = |block: BlockId| (block.0 as usize) < self.info.block_count;
            let result =
                if !in_pool(copy.from) || !in_pool(copy.to) || copy.tokens > self.info.block_size {
                    Err(format!("the plan has an impossible block copy: {copy:?}"))
                } else {
                    guarded(|| self.executor.copy_block(copy))
                };
            if let Err(reason) = result {
                spoiled.insert(copy.to, reason);
            }
        }
        spoiled
    }

    /// Checks one sequence's rows and adds them to the batch. Rows of ended sequences are skipped.
    fn add_rows(
        &mut self,
        rows: SequenceRows,
        spoiled: &HashMap<BlockId, String>,
    ) -> Result<(), String> {
        let state = self
            .sequences
            .get_mut(&rows.sequence)
            .ok_or_else(|| "the engine does not know the sequence".to_owned())?;
        if state.ended {
            return Ok(());
        }
        if self
            .members
            .iter()
            .any(|member| member.sequence == rows.sequence)
        {
            return Err("the plan has two entries for the sequence".to_owned());
        }
        for &block in &rows.new_blocks {
            if block.0 as usize >= self.info.block_count {
                return Err(format!(
                    "block {} is not in the pool of {}",
                    block.0, self.info.block_count
                ));
            }
            if let Some(reason) = spoiled.get(&block) {
                return Err(reason.clone());
            }
        }
        state.blocks.extend(rows.new_blocks);
        let (tokens, start, sample) = match rows.input {
            RowInput::Prefill {
                tokens,
                start,
                sample,
            } => (tokens, start, sample),
            RowInput::Decode => {
                let last = state
                    .last_token
                    .ok_or("the plan decodes before any token was sampled")?;
                (vec![last], state.next_position, true)
            }
        };
        if tokens.is_empty() {
            return Err("the plan has no tokens for the sequence".to_owned());
        }
        let end = start.saturating_add(tokens.len());
        if end > self.info.context_window {
            return Err(format!(
                "position {} is beyond the context of {} tokens",
                end - 1,
                self.info.context_window
            ));
        }
        if state.blocks.len() * self.info.block_size < end {
            return Err(format!(
                "the block table of {} blocks does not cover position {}",
                state.blocks.len(),
                end - 1
            ));
        }
        if let Some(token) = tokens
            .iter()
            .find(|token| token.0 as usize >= self.info.vocabulary)
        {
            return Err(format!(
                "token {} is not in the vocabulary of {}",
                token.0, self.info.vocabulary
            ));
        }
        let to_score = state.to_score(&(start..end))?;
        let block_size = self.info.block_size;
        for &block in &state.blocks[start / block_size..end.div_ceil(block_size)] {
            if !self.written.insert(block) {
                return Err(format!(
                    "block {} would be written twice in one step",
                    block.0
                ));
            }
        }
        let tokens = tokens.iter().map(|token| token.0);
        let wanted = if to_score.is_empty() {
            usize::from(sample)
        } else {
            end - to_score.start
        };
        self.batch
            .push(tokens, start, &state.blocks, self.info.block_size, wanted);
        self.members.push(Member {
            sequence: rows.sequence,
            sample,
        });
        state.next_position = end;
        Ok(())
    }

    /// The pass over the batch. If it fails, all its sequences fail and the batch is empty.
    fn forward(&mut self, output: &mut StepOutput) {
        let result =
            guarded(|| self.executor.forward(&self.batch, &mut self.logits)).and_then(|()| {
                let expected = self.batch.wanted_rows().count() * self.info.vocabulary;
                if self.logits.len() == expected {
                    return Ok(());
                }
                let found = self.logits.len();
                Err(format!(
                    "the forward pass left {found} logits instead of {expected}"
                ))
            });
        if let Err(reason) = result {
            for member in std::mem::take(&mut self.members) {
                self.fail(member.sequence, reason.clone(), output);
            }
            self.batch.clear();
        }
    }

    /// Samples and scores the rows that want it, and applies the stop rules.
    fn sample(&mut self, output: &mut StepOutput, observe: &mut impl FnMut(SequenceId, &[f32])) {
        let purposes = self.purposes();
        let rows = self.logits.chunks_exact(self.info.vocabulary);
        for (&(sequence, purpose), logits) in purposes.iter().zip(rows) {
            if let Some(Purpose::Sample) = purpose {
                observe(sequence, logits);
            }
        }
        for (&(sequence, _), verdict) in purposes.iter().zip(self.judge(&purposes)) {
            // An earlier row of the sequence may have failed.
            let state = self.sequences.get_mut(&sequence);
            let Some(state) = state.filter(|state| !state.ended) else {
                continue;
            };
            match verdict {
                Ok(Some(Verdict::Sampled(token, logprobs))) => {
                    output.sampled.push(state.accept(sequence, token, logprobs));
                }
                Ok(Some(Verdict::Scored(logprobs))) => {
                    state.scored += 1;
                    match output.scored.last_mut() {
                        Some((same, scored)) if *same == sequence => scored.push(logprobs),
                        _ => output.scored.push((sequence, vec![logprobs])),
                    }
                }
                Ok(None) => {}
                Err(reason) => self.fail(sequence, reason, output),
            }
        }
    }

    /// Whose each row of the logits is, and what for.
    fn purposes(&self) -> Vec<(SequenceId, Option<Purpose>)> {
        let mut purposes = Vec::new();
        for (span, member) in self.batch.spans.iter().zip(&self.members) {
            let end = span.start + span.rows;
            let state = self.sequences.get(&member.sequence);
            for position in end - span.wanted..end {
                let next = state.and_then(|state| state.scoring.get(position + 1));
                let purpose = if member.sample && position + 1 == end {
                    Some(Purpose::Sample)
                } else {
                    next.map(|token| Purpose::Score(*token))
                };
                purposes.push((member.sequence, purpose));
            }
        }
        purposes
    }

    /// The verdict on each row of logits, in order; on all threads if that pays.
    fn judge(
        &mut self,
        purposes: &[(SequenceId, Option<Purpose>)],
    ) -> Vec<Result<Option<Verdict>, String>> {
        const SMALL: usize = 1 << 16;
        let vocabulary = self.info.vocabulary;
        let mut verdicts: Vec<_> = purposes
            .iter()
            .map(|_| Err("it was not sampled".to_owned()))
            .collect();
        let samplers: Vec<_> = purposes
            .iter()
            .map(|(id, _)| self.sequences.get(id).map(|state| &state.sampler))
            .collect();
        let judge = |row: usize, scratch: &mut SamplingScratch, verdict: &mut Result<_, String>| {
            let logits = &self.logits[row * vocabulary..][..vocabulary];
            if let Some(sampler) = samplers[row] {
                let found = purposes[row]
                    .1
                    .map(|purpose| purpose.judge(sampler, logits, scratch));
                *verdict = found.transpose().map(Option::flatten);
            }
        };
        match self.executor.pool() {
            Some(pool) if purposes.len() > 1 && purposes.len() * vocabulary >= SMALL => {
                let scratches: Vec<_> = (0..pool.threads())
                    .map(|_| Mutex::new(SamplingScratch::default()))
                    .collect();
                let slots: Vec<_> = verdicts.iter_mut().map(Mutex::new).collect();
                let result = pool.run(purposes.len(), |thread, row| {
                    // Each thread has its own scratch and each row its own slot: no lock is contended.
                    let lock = (scratches[thread].lock(), slots[row].lock());
                    if let (Ok(mut scratch), Ok(mut verdict)) = lock {
                        judge(row, &mut scratch, &mut verdict);
                    }
                });
                if let Err(error) = result {
                    tracing::error!(%error, "sampling");
                }
            }
            _ => {
                for (row, verdict) in verdicts.iter_mut().enumerate() {
                    judge(row, &mut self.scratch, verdict);
                }
            }
        }
        verdicts
    }

    fn fail(&mut self, sequence: SequenceId, reason: String, output: &mut StepOutput) {
        if let Some(state) = self.sequences.get_mut(&sequence) {
            state.ended = true;
        }
        tracing::warn!(%sequence, reason, "sequence failed");
        output.failed.push((sequence, reason));
    }
}

impl Purpose {
    fn judge(
        self,
        sampler: &SequenceSampler,
        logits: &[f32],
        scratch: &mut SamplingScratch,
    ) -> Result<Option<Verdict>, String> {
        let token = match self {
            Purpose::Sample => sampler.choose(logits, scratch),
            Purpose::Score(token) => Ok(token),
        };
        let scored = token.and_then(|token| Ok((token, sampler.score(logits, token, scratch)?)));
        let (token, logprobs) = scored.map_err(|error| error.to_string())?;
        Ok(match self {
            Purpose::Sample => Some(Verdict::Sampled(token, logprobs)),
            Purpose::Score(_) => logprobs.map(Verdict::Scored),
        })
    }
}

impl SequenceState {
    /// Those of the rows at these positions whose next token is of the prompt and still to be scored.
    fn to_score(&self, rows: &Range<usize>) -> Result<Range<usize>, String> {
        let end = rows.end.min(self.scoring.len().saturating_sub(1));
        if self.scored < end && rows.start > self.scored {
            return Err(format!(
                "the plan skips the prompt's row {}, whose logits are wanted",
                self.scored
            ));
        }
        Ok(self.scored.max(rows.start)..end)
    }

    /// Takes a sampled token, which may end the sequence.
    fn accept(
        &mut self,
        sequence: SequenceId,
        token: TokenId,
        logprobs: Option<TokenLogprobs>,
    ) -> SampledToken {
        self.sampler.observe(token);
        self.last_token = Some(token);
        let end = if self.stop.end_tokens.contains(&token) || self.sampler.ends_grammar(token) {
            Some(EndReason::EndToken)
        } else if self.sampler.sampled() >= self.stop.max_new_tokens as u64 {
            Some(EndReason::Length)
        } else {
            None
        };
        self.ended = end.is_some();
        SampledToken {
            sequence,
            token,
            logprobs,
            end,
        }
    }
}

/// Runs device work; an error or a panic becomes its message.
fn guarded(work: impl FnOnce() -> Result<(), EngineError>) -> Result<(), String> {
    // Executors overwrite all of their own buffers in the next pass.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let message = panic
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("unknown cause");
            Err(format!("the forward pass panicked: {message}"))
        }
    }
}

fn device_name(choice: DeviceChoice, device: &candle_core::Device) -> String {
    if device.is_cpu() {
        return "cpu".to_owned();
    }
    match choice {
        DeviceChoice::Cuda(number) => format!("cuda:{number}"),
        _ if device.is_cuda() => "cuda:0".to_owned(),
        _ => "metal".to_owned(),
    }
}
