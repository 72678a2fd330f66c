//! From a catalogue entry to a started engine: the blocking part of a load.

use std::sync::Arc;

use super::catalogue::CatalogueEntry;
use crate::actors::scheduler::{EngineFacts, EngineOutputs, SchedulerOptions, StepEngine};
use crate::config::{Auto, Config};
use crate::engine::loader::quantize::CacheOptions;
use crate::engine::loader::{
    self, FileLocation, HubOptions, LoadError, QuantizeOptions, RecommendedSampling, TextAssets,
    hub,
};
use crate::engine::step::StepPlan;
use crate::engine::{
    EngineError, EngineHandle, EngineInfo, EngineOptions, EngineStopped, EngineThread, KvSize,
    MatmulPrecision,
};
use crate::prompt::{FormatChoice, PromptAssets, PromptError, PromptFormat};

/// How models are loaded and run; the same for all models of a server.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub engine: EngineOptions,
    pub scheduler: SchedulerOptions,
    pub hub: HubOptions,
    pub quantize: QuantizeOptions,
    /// How the model's output is read.
    pub formats: FormatChoice,
}

impl LoadOptions {
    /// What a configuration asks for; the hub's own variables come from the environment.
    pub fn new(config: &Config) -> Self {
        let defaults = EngineOptions::default();
        let from_env = HubOptions::from_env();
        let hub = HubOptions {
            offline: from_env.offline || config.offline,
            ..from_env
        };
        LoadOptions {
            engine: EngineOptions {
                device: config.device,
                kv_dtype: config.kv_dtype,
                attention: config.attention,
                precision: config.matmul_precision,
                kv_size: match (config.kv_memory, config.kv_blocks) {
                    (_, Auto::Set(blocks)) => KvSize::Blocks(blocks),
                    (Auto::Set(size), _) => KvSize::Bytes(size.0),
                    (Auto::Auto, Auto::Auto) => KvSize::Auto,
                },
                block_size: config.block_size,
                threads: config.threads.set().unwrap_or(defaults.threads),
                context_window: config.context_length.set(),
            },
            scheduler: SchedulerOptions {
                max_batch_tokens: config.max_batch_tokens,
                max_running: config.max_running,
                max_waiting: config.max_waiting,
                prefill_slowdown: config.prefill_slowdown,
                ..SchedulerOptions::default()
            },
            hub,
            quantize: QuantizeOptions {
                quantize: config.quantize,
                cache: quantize_cache(config),
                threads: config.threads.set().unwrap_or(defaults.threads),
                device: config.device,
            },
            formats: FormatChoice {
                tools: config.tool_format,
                reasoning: config.reasoning_format,
            },
        }
    }
}

/// Where quantized weights are kept, unless `quantize_cache` is `none` or there is no home folder.
fn quantize_cache(config: &Config) -> Option<CacheOptions> {
    let folder = match config.quantize_cache.to_str() {
        Some("none") => return None,
        Some("") => CacheOptions::default_folder()?,
        _ => config.quantize_cache.clone(),
    };
    Some(CacheOptions {
        folder,
        limit: config.quantize_cache_size.0,
    })
}

/// Why a model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The loading thread ended without an answer.
    #[error("loading stopped unexpectedly; the log has details")]
    Died,
}

/// A loaded model whose engine waits for plans, without a scheduler yet.
pub struct StartedModel {
    pub engine: EngineHandle,
    pub info: EngineInfo,
    /// Where the engine's outputs go.
    pub outputs: EngineOutputs,
    pub prompt: PromptFormat,
    pub sampling: RecommendedSampling,
}

/// Finds or downloads the files, reads them, starts the engine. Blocks for as long as that takes.
/// `on_engine_death` is called once, from the engine's thread, if the engine ends by itself.
///
/// # Errors
/// See [`ModelError`]; nothing of the model is left in memory.
pub fn load(
    entry: &CatalogueEntry,
    options: &LoadOptions,
    on_engine_death: impl Fn(EngineStopped) + Send + 'static,
) -> Result<StartedModel, ModelError> {
    let files = loader::resolve(&entry.source, &options.hub, &hub::Console::default())?;
    let model = loader::load_quantized(&files, &options.quantize)?;
    // First, because a template that does not compile shows in an instant.
    let prompt = PromptFormat::with_formats(prompt_assets(&model.text), options.formats)?;
    let (tools, reasoning) = prompt.format_names();
    tracing::info!(tools, reasoning, "formats of the model's output");
    let sampling = model.sampling;
    let outputs = EngineOutputs::new();
    let to_scheduler = outputs.sink();
    let sink = Box::new(move |output| {
        if let Err(stopped) = &output {
            on_engine_death(EngineStopped::clone(stopped));
        }
        to_scheduler(output);
    });
    let mut engine = options.engine.clone();
    if matches!(files.location, FileLocation::Embedded(_))
        && engine.precision == MatmulPrecision::Auto
    {
        // The demo model's answers are the same on every machine.
        engine.precision = MatmulPrecision::Exact;
    }
    let (engine, mut info) = EngineThread::start(model, engine, sink)?;
    for token in prompt.end_tokens() {
        if !info.end_tokens.contains(&token) {
            info.end_tokens.push(token);
        }
    }
    Ok(StartedModel {
        engine,
        info,
        outputs,
        prompt,
        sampling,
    })
}

/// What the scheduler must know of an engine.
pub fn engine_facts(info: &EngineInfo) -> EngineFacts {
    EngineFacts {
        block_size: info.block_size,
        block_count: info.block_count,
        end_tokens: Arc::from(info.end_tokens.as_slice()),
    }
}

fn prompt_assets(text: &TextAssets) -> PromptAssets {
    PromptAssets {
        tokenizer: text.tokenizer.clone(),
        chat_template: text.chat_template.clone(),
        bos_token: text.bos_token.clone(),
        eos_token: text.eos_token.clone(),
        add_bos: Some(text.add_bos),
    }
}

impl StepEngine for EngineHandle {
    fn submit(&self, plan: StepPlan) -> Result<(), String> {
        EngineHandle::submit(self, plan).map_err(|stopped| stopped.to_string())
    }

    fn stop(self: Box<Self>) {
        self.stop_and_wait();
    }
}
