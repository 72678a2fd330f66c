//! Invariant 1, shown on the whole way from submission to token: scheduler, prefix cache and a real
//! engine. Many requests, each alone with a cold cache; then all of them together, as no two servers
//! would compute them: in another order, in chunks of random size, on shared and unshared blocks, over
//! a pool so small that sequences lose their blocks again and again, and once more over a warm cache.
//! The logits have the same bits each time, and so the texts are equal, and the log probabilities of those
//! that ask for them.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::DType;
use candle_core::quantized::GgmlDType;

use crate::actors::messages::{GeneratedToken, GenerationEvent};
use crate::actors::prefix_cache::Ledger;
use crate::actors::scheduler::sequence::{EventSink, Request};
use crate::actors::scheduler::state::SchedulerState;
use crate::actors::scheduler::{EngineFacts, SchedulerOptions};
use crate::engine::loader::{self, Architecture, HubOptions, ModelSource, TextAssets, hub};
use crate::engine::sampler::{SamplingParameters, TokenLogprobs};
use crate::engine::step::{RowInput, StepOutput, StepPlan};
use crate::engine::tests::model::{self, Format, Random};
use crate::engine::{AttentionKind, Engine, EngineOptions, KvDtype, KvSize, MatmulPrecision};
use crate::ids::{SequenceId, TokenId};
use crate::prompt::{PromptAssets, PromptFormat};
use crate::telemetry::Metrics;

/// Without optimization, a few are enough to see that the test itself works.
const REQUESTS: usize = if cfg!(debug_assertions) { 24 } else { 200 };
const BLOCK_SIZE: usize = 8;
/// What matrix tiles need.
const TILE_BLOCK_SIZE: usize = 32;
/// Room for everything at once.
const ROOMY: usize = 3000;

/// Blocks with room for the longest request and hardly more.
fn tiny(block_size: usize, solos: &[Solo]) -> usize {
    let tokens = |solo: &Solo| solo.prompt.len() + solo.max_new_tokens;
    let longest = solos.iter().map(tokens).max().unwrap_or(0);
    longest.div_ceil(block_size) + 1
}

/// Tokens of a prompt at most.
const LONGEST: usize = 120;

/// What is asked, and what came of it alone.
struct Solo {
    prompt: Arc<[TokenId]>,
    sampling: SamplingParameters,
    max_new_tokens: usize,
    ignore_eos: bool,
    /// The bits of the logits of each token of the answer.
    logits: Vec<Vec<u32>>,
    tokens: Vec<GeneratedToken>,
    /// Log probabilities of the prompt, if they are asked for.
    scored: Vec<TokenLogprobs>,
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

/// Where a sequence's tokens go.
#[derive(Clone, Default)]
struct Listener(Rc<RefCell<Heard>>);

#[derive(Default)]
struct Heard {
    tokens: Vec<GeneratedToken>,
    scored: Vec<TokenLogprobs>,
    cached: Option<usize>,
}

impl EventSink for Listener {
    fn send(&self, event: GenerationEvent) {
        let mut heard = self.0.borrow_mut();
        match event {
            GenerationEvent::Prefill(_) => {}
            GenerationEvent::PromptLogprobs(logprobs) => {
                assert!(heard.tokens.is_empty(), "the prompt comes first");
                heard.scored.extend(logprobs);
            }
            GenerationEvent::Tokens(tokens) => heard.tokens.extend(tokens),
            GenerationEvent::Finished(finished) => {
                heard.cached = Some(finished.usage.cached_tokens);
            }
            GenerationEvent::Failed(failure) => panic!("{failure}"),
        }
    }
}

/// Scheduler and books of a pool, in front of an engine that outlives them.
struct Server<'a> {
    engine: &'a mut Engine,
    state: SchedulerState<Listener>,
    ledger: Ledger,
    metrics: Arc<Metrics>,
    plans: VecDeque<StepPlan>,
    outputs: VecDeque<StepOutput>,
    submitted: u64,
    /// Sizes of prefill chunks that came up.
    chunks: BTreeSet<usize>,
}

impl<'a> Server<'a> {
    fn new(engine: &'a mut Engine, blocks: usize, options: SchedulerOptions) -> Self {
        let block_size = engine.info().block_size;
        let facts = EngineFacts {
            block_size,
            block_count: blocks,
            end_tokens: Arc::new([TokenId(END)]),
        };
        let metrics = Arc::new(Metrics::new());
        Self {
            engine,
            state: SchedulerState::new(facts, options, metrics.clone()),
            ledger: Ledger::new(blocks, block_size),
            metrics,
            plans: VecDeque::new(),
            outputs: VecDeque::new(),
            submitted: 0,
            chunks: BTreeSet::new(),
        }
    }

    fn submit(&mut self, solo: &Solo) -> (SequenceId, Listener) {
        self.submitted += 1;
        let sequence = SequenceId(self.submitted);
        let now = Instant::now();
        let request = Request {
            sequence,
            prompt: solo.prompt.clone(),
            sampling: solo.sampling.clone(),
            max_new_tokens: solo.max_new_tokens,
            ignore_eos: solo.ignore_eos,
            deadline: now + Duration::from_secs(3600),
        };
        let listener = Listener::default();
        let submitted = self.state.submit(request, listener.clone(), now);
        submitted.expect("the queue has room");
        (sequence, listener)
    }

    fn pump(&mut self) {
        while let Some(cycle) = self.state.begin_cycle() {
            let reply = self.ledger.run(cycle);
            if let Some(plan) = self.state.end_cycle(reply, Instant::now()) {
                self.chunks
                    .extend(plan.rows.iter().map(|rows| match &rows.input {
                        RowInput::Prefill { tokens, .. } => tokens.len(),
                        RowInput::Decode => 0,
                    }));
                self.plans.push_back(plan);
            }
        }
    }

    /// The engine computes a plan, and says that it took so long.
    fn compute(&mut self, duration: Duration, see: impl FnMut(SequenceId, &[f32])) {
        if let Some(plan) = self.plans.pop_front() {
            let mut output = self.engine.step_observed(plan, see);
            assert_eq!(output.failed, []);
            output.statistics.duration = duration;
            self.outputs.push_back(output);
        }
    }

    /// The scheduler hears of what was computed.
    fn deliver(&mut self) {
        if let Some(output) = self.outputs.pop_front() {
            self.state.take_output(output, Instant::now());
        }
        self.pump();
    }

    fn is_idle(&self) -> bool {
        self.state.is_idle() && self.plans.is_empty() && self.outputs.is_empty()
    }
}

/// Computes a request by itself, with nothing in the cache and the prompt in one piece.
fn run_alone(engine: &mut Engine, solo: &mut Solo) {
    let options = SchedulerOptions {
        max_batch_tokens: LONGEST,
        ..SchedulerOptions::default()
    };
    let mut server = Server::new(engine, ROOMY, options);
    let (_, listener) = server.submit(solo);
    server.pump();
    let mut logits = Vec::new();
    while !server.is_idle() {
        server.compute(Duration::from_millis(10), |_, row| logits.push(bits(row)));
        server.deliver();
    }
    let chunks: Vec<_> = server.chunks.into_iter().filter(|&size| size > 0).collect();
    if !solo.sampling.scores_prompt() {
        assert_eq!(chunks, [solo.prompt.len()]);
    }
    solo.logits = logits;
    let heard = listener.0.take();
    assert_eq!(heard.cached, Some(0));
    solo.tokens = heard.tokens;
    solo.scored = heard.scored;
    let scored = match solo.sampling.scores_prompt() {
        true => solo.prompt.len() - 1,
        false => 0,
    };
    assert_eq!(solo.scored.len(), scored);
    let asked = solo.sampling.logprobs.is_some();
    assert!(
        solo.tokens
            .iter()
            .all(|token| token.logprobs.is_some() == asked)
    );
}

/// What happened while all ran together.
struct Together {
    preemptions: u64,
    cached: usize,
    chunk_sizes: usize,
}

/// Computes all requests at once, `rounds` times over the same cache.
fn run_together(
    engine: &mut Engine,
    solos: &[Solo],
    blocks: usize,
    rounds: usize,
    format: Option<&PromptFormat>,
    random: &mut Random,
) -> Together {
    let options = SchedulerOptions {
        max_batch_tokens: [40, 90, 300][random.below(3)],
        min_prefill_tokens: 1 + random.below(20),
        max_running: 6 + random.below(30),
        max_waiting: REQUESTS,
        prefill_slowdown: 2.0,
        target_step_time: Duration::from_millis(50),
    };
    let mut server = Server::new(engine, blocks, options);
    let mut cached = 0;
    for _ in 0..rounds {
        let mut order: Vec<usize> = (0..solos.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last + 1));
        }
        let mut running = HashMap::new();
        let mut sampled: HashMap<SequenceId, usize> = HashMap::new();
        while !order.is_empty() || !server.is_idle() {
            if random.chance(30) {
                for _ in 0..1 + random.below(12) {
                    let Some(index) = order.pop() else { break };
                    let (sequence, listener) = server.submit(&solos[index]);
                    running.insert(sequence, (index, listener));
                    if random.chance(50) {
                        server.pump();
                    }
                }
                server.pump();
            }
            if random.chance(70) {
                // The scheduler learns from these how large the next chunks should be.
                let duration = Duration::from_micros(100 + random.below(30_000) as u64);
                server.compute(duration, |sequence, row| {
                    let position = sampled.entry(sequence).or_default();
                    let (index, _) = running[&sequence];
                    let expected = &solos[index].logits[*position];
                    assert!(
                        bits(row) == *expected,
                        "request {index}: other logits for token {position} of its answer"
                    );
                    *position += 1;
                });
            }
            if random.chance(70) {
                server.deliver();
            }
        }
        for (index, listener) in running.values() {
            let (heard, solo) = (listener.0.take(), &solos[*index]);
            assert_eq!(facts(&heard.tokens), facts(&solo.tokens), "request {index}");
            assert_eq!(heard.scored, solo.scored, "request {index}");
            if let Some(format) = format {
                assert_eq!(text(format, &heard.tokens), text(format, &solo.tokens));
            }
            cached += heard.cached.expect("it finished");
        }
        assert_eq!(running.len(), solos.len());
    }
    assert_eq!(server.ledger.counts().leased, 0);
    Together {
        preemptions: server.metrics.preemptions.get(),
        cached,
        chunk_sizes: server.chunks.len(),
    }
}

/// What does not depend on the clock.
fn facts(tokens: &[GeneratedToken]) -> Vec<(TokenId, &Option<TokenLogprobs>)> {
    tokens
        .iter()
        .map(|token| (token.id, &token.logprobs))
        .collect()
}

fn text(format: &PromptFormat, tokens: &[GeneratedToken]) -> String {
    let mut detokenizer = format.detokenizer();
    let mut text: String = tokens
        .iter()
        .map(|token| detokenizer.push(token.id))
        .collect();
    text += &detokenizer.finish();
    text
}

/// A token that ends answers. Models with random weights sample it now and then.
const END: u32 = 1;

/// Prompts of many lengths from pieces: a third of them unlike all others, the rest with one of a few
/// beginnings, or with all of another prompt as its beginning.
fn solos(
    random: &mut Random,
    mut piece: impl FnMut(&mut Random, usize) -> Vec<TokenId>,
) -> Vec<Solo> {
    let beginnings: Vec<_> = (0..4).map(|_| piece(random, 60)).collect();
    let mut prompts: Vec<Vec<TokenId>> = Vec::new();
    for index in 0..REQUESTS {
        let mut prompt = match index % 3 {
            0 => Vec::new(),
            1 => {
                let beginning = &beginnings[random.below(beginnings.len())];
                beginning[..1 + random.below(beginning.len())].to_vec()
            }
            _ => prompts[random.below(prompts.len())].clone(),
        };
        let own = [1, 7, 8, 9, 30, 60][random.below(6)];
        prompt.extend(piece(random, own));
        prompt.truncate(LONGEST);
        prompts.push(prompt);
    }
    let solo = |(index, prompt): (usize, Vec<TokenId>)| Solo {
        prompt: prompt.into(),
        sampling: SamplingParameters {
            temperature: if index % 2 == 0 { 0.0 } else { 0.9 },
            top_p: 0.95,
            repetition_penalty: if index % 5 == 0 { 1.1 } else { 1.0 },
            seed: index as u64,
            logprobs: (index % 4 == 1).then_some(index % 5),
            prompt_logprobs: index % 8 == 5,
            ..SamplingParameters::default()
        },
        max_new_tokens: [1, 3, 8, 60][random.below(4)],
        ignore_eos: index % 4 > 0,
        logits: Vec::new(),
        tokens: Vec::new(),
        scored: Vec::new(),
    };
    prompts.into_iter().enumerate().map(solo).collect()
}

fn check(engine: &mut Engine, solos: &mut [Solo], format: Option<&PromptFormat>) {
    let mut random = Random::new(11);
    for solo in solos.iter_mut() {
        run_alone(engine, solo);
    }
    let blocks = tiny(engine.info().block_size, solos);
    let tiny = run_together(engine, solos, blocks, 1, format, &mut random);
    assert!(tiny.preemptions > 0, "the pool was meant to be too small");
    let roomy = run_together(engine, solos, ROOMY, 2, format, &mut random);
    assert!(roomy.chunk_sizes > 5 && tiny.chunk_sizes > 5);
    let tokens: usize = solos.iter().map(|solo| solo.prompt.len()).sum();
    assert!(
        roomy.cached > tokens,
        "the second time, all but the last token of each is cached"
    );
}

fn options(attention: AttentionKind) -> EngineOptions {
    EngineOptions {
        kv_size: KvSize::Blocks(ROOMY),
        block_size: BLOCK_SIZE,
        ..model::options(attention, KvDtype::F16)
    }
}

fn check_random(architecture: Architecture, format: Format, attention: AttentionKind) {
    check_random_with(architecture, format, &options(attention));
}

fn check_random_with(architecture: Architecture, format: Format, options: &EngineOptions) {
    let config = model::config(architecture);
    let weights = model::weights(&config, format);
    let mut engine = Engine::new(&config, &weights, options).expect("an engine");
    let mut random = Random::new(5);
    let mut solos = solos(&mut random, |random, count| random.tokens(count));
    check(&mut engine, &mut solos, None);
}

fn check_demo(attention: AttentionKind) {
    let source = ModelSource::Embedded;
    let files = loader::resolve(&source, &HubOptions::from_env(), &hub::Console::default());
    let model = loader::load(&files.expect("it is part of the binary")).expect("it is sound");
    let TextAssets { tokenizer, .. } = model.text;
    let format = PromptFormat::new(PromptAssets {
        tokenizer,
        chat_template: None,
        bos_token: None,
        eos_token: None,
        add_bos: None,
    });
    let format = format.expect("no template, so nothing can be wrong");
    let weights = model.weights.as_ref();
    let engine = Engine::new(&model.config, weights, &options(attention));
    let mut engine = engine.expect("an engine");
    let mut random = Random::new(5);
    let mut solos = solos(&mut random, |random, count| words(&format, random, count));
    check(&mut engine, &mut solos, Some(&format));
}

/// So many tokens of plain English.
fn words(format: &PromptFormat, random: &mut Random, count: usize) -> Vec<TokenId> {
    const WORDS: [&str; 12] = [
        "The", " sky", " is", " blue", ".", " What", " colour", " has", " snow", "?", " Ten", "\n",
    ];
    let text: String = (0..count)
        .map(|_| WORDS[random.below(WORDS.len())])
        .collect();
    let mut tokens = format.encode(&text).expect("plain text");
    tokens.truncate(count);
    tokens
}

#[test]
fn demo_model_fused_attention() {
    check_demo(AttentionKind::Fused);
}

#[test]
fn demo_model_portable_attention() {
    check_demo(AttentionKind::Portable);
}

#[test]
fn f32_fused_attention() {
    let format = Format::Dense(DType::F32);
    check_random(Architecture::Qwen3, format, AttentionKind::Fused);
}

#[test]
fn f32_portable_attention() {
    let format = Format::Dense(DType::F32);
    check_random(Architecture::Qwen3, format, AttentionKind::Portable);
}

#[test]
fn bf16_fused_attention() {
    let format = Format::Dense(DType::BF16);
    check_random(Architecture::Llama, format, AttentionKind::Fused);
}

/// Products and attention in `bf16`, where the machine has matrix tiles.
fn fast() -> EngineOptions {
    EngineOptions {
        precision: MatmulPrecision::Fast,
        kv_dtype: KvDtype::Auto,
        block_size: TILE_BLOCK_SIZE,
        ..options(AttentionKind::Fused)
    }
}

#[test]
fn bf16_fast() {
    check_random_with(Architecture::Qwen3, Format::Dense(DType::BF16), &fast());
}

#[test]
fn q4_k_m_fast() {
    check_random_with(Architecture::Llama, Format::Q4KM, &fast());
}

#[test]
fn bf16_portable_attention() {
    let format = Format::Dense(DType::BF16);
    check_random(Architecture::Llama, format, AttentionKind::Portable);
}

#[test]
fn q8_0_fused_attention() {
    let format = Format::Quantized(GgmlDType::Q8_0);
    check_random(Architecture::Qwen2, format, AttentionKind::Fused);
}

#[test]
fn q8_0_portable_attention() {
    let format = Format::Quantized(GgmlDType::Q8_0);
    check_random(Architecture::Qwen2, format, AttentionKind::Portable);
}

#[test]
fn q4_k_m_fused_attention() {
    check_random(Architecture::Qwen3, Format::Q4KM, AttentionKind::Fused);
}

#[test]
fn q4_k_m_portable_attention() {
    check_random(Architecture::Qwen3, Format::Q4KM, AttentionKind::Portable);
}
