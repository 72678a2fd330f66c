//! The configuration: one validated [`Config`] from the file, the environment and the flags.
//!
//! Each field of [`Config`] is at once a key of `config/trunkline.toml` (`max_running`), an
//! environment variable (`TRUNKLINE_MAX_RUNNING`) and a flag (`--max-running`). A later one of these
//! wins; [`layers`] merges them, [`values`] has the types that fields hold, and [`validate`] checks
//! what concerns more than one field.

pub mod layers;
pub mod validate;
pub mod values;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, FromArgMatches};

pub use layers::{ConfigError, Loaded, load};
pub use values::{ApiKey, Auto, ByteSize, NamedValue, Origin};

use crate::engine::loader::quantize::Quantize;
use crate::engine::{AttentionKind, DeviceChoice, KvDtype, MatmulPrecision};
use crate::prompt::{ReasoningChoice, ToolFormat};
use crate::telemetry::LogFormat;
use values::{
    at_least_one, parse_block_size, parse_duration, parse_factor, parse_log_filter, parse_non_empty,
};

/// Everything a server can be told. [`Config::default`] is what an empty command line gives.
#[derive(Debug, Clone, PartialEq, Args)]
pub struct Config {
    /// What to serve: a configured id, a folder, a .gguf file, a hub name, or `demo`.
    ///
    /// `demo` is the tiny model inside the binary. A folder holds config.json, tokenizer.json and
    /// *.safetensors. `org/name` or `org/name@revision` comes from the Hugging Face hub, which honours
    /// HF_HOME, HF_TOKEN and HF_ENDPOINT.
    #[arg(long, short, default_value = "demo", value_name = "MODEL", help_heading = "Model", value_parser = parse_non_empty)]
    pub model: String,

    /// Further models as ID=SOURCE, for --allow-swap; repeatable.
    #[arg(long, value_name = "ID=SOURCE", help_heading = "Model")]
    pub models: Vec<NamedValue>,

    /// Short names for model ids as NAME=ID; repeatable.
    #[arg(long, value_name = "NAME=ID", help_heading = "Model")]
    pub aliases: Vec<NamedValue>,

    /// A further name that clients may use for the model; repeatable. `*` accepts any name.
    #[arg(long, value_name = "NAME", help_heading = "Model", value_parser = parse_non_empty)]
    pub served_model_name: Vec<String>,

    /// Let a request for another configured model swap it in, after running requests finish.
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set, help_heading = "Model")]
    pub allow_swap: bool,

    /// Free the model's memory after this long without a request; the next one loads it again. 0 = never.
    #[arg(long, default_value = "0s", value_name = "DURATION", help_heading = "Model", value_parser = parse_duration)]
    pub idle_unload: Duration,

    /// Use only files that are already in the hub cache.
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set, help_heading = "Model")]
    pub offline: bool,

    /// Quantize models in safetensors when they are loaded: none, auto, q8_0, q6_k, q5_k, q4_k or q4_0.
    ///
    /// `auto`, on the CPU: q8_0 if the weights as they are would take more than half of the free memory. GGUF
    /// files have their types already: they go with none and auto only.
    #[arg(
        long,
        default_value = "none",
        value_name = "TYPE",
        help_heading = "Model"
    )]
    pub quantize: Quantize,

    /// Folder that keeps quantized weights for the next start; `none` keeps nothing.
    ///
    /// Empty = trunkline/quantized in $XDG_CACHE_HOME or ~/.cache. Files there may be deleted at any time.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "FOLDER", help_heading = "Model", value_parser = values::parse_path)]
    pub quantize_cache: PathBuf,

    /// Most bytes in that folder; those not used for the longest time are removed first.
    #[arg(
        long,
        default_value = "32GiB",
        value_name = "SIZE",
        help_heading = "Model"
    )]
    pub quantize_cache_size: ByteSize,

    /// How tool calls are written: `auto` finds it out from the chat template; else a name of
    /// docs/tool-formats.md.
    #[arg(
        long,
        default_value = "auto",
        value_name = "NAME",
        help_heading = "Model"
    )]
    pub tool_format: ToolFormat,

    /// How reasoning is set off: `auto`, `none`, or a name of docs/tool-formats.md.
    #[arg(
        long,
        default_value = "auto",
        value_name = "NAME",
        help_heading = "Model"
    )]
    pub reasoning_format: ReasoningChoice,

    /// Address to listen on. Set an API key before choosing another than the loopback.
    #[arg(long, default_value = "127.0.0.1", value_name = "ADDRESS", help_heading = "Server", value_parser = parse_non_empty)]
    pub host: String,

    /// Port to listen on; 0 picks a free one.
    #[arg(
        long,
        short,
        default_value = "8080",
        value_name = "PORT",
        help_heading = "Server"
    )]
    pub port: u16,

    /// A key that clients must send as `Authorization: Bearer KEY`; repeatable.
    ///
    /// Command lines are visible to other users of the machine: prefer TRUNKLINE_API_KEY or
    /// --api-key-file.
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    pub api_key: Vec<ApiKey>,

    /// A file with one API key a line (# begins a comment). Empty = none.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "FILE", help_heading = "Server", value_parser = values::parse_path)]
    pub api_key_file: PathBuf,

    /// An origin that browsers may call from, or `*`; repeatable. None = no CORS headers.
    #[arg(long, value_name = "ORIGIN", help_heading = "Server")]
    pub cors: Vec<Origin>,

    /// Connections open at once; further ones are answered 503.
    #[arg(long, default_value = "1024", value_name = "N", help_heading = "Server", value_parser = at_least_one)]
    pub connection_limit: usize,

    /// Largest request body.
    #[arg(
        long,
        default_value = "8MiB",
        value_name = "SIZE",
        help_heading = "Server"
    )]
    pub body_limit: ByteSize,

    /// A request that takes longer, queue included, fails with 504.
    #[arg(long, default_value = "10m", value_name = "DURATION", help_heading = "Server", value_parser = parse_duration)]
    pub request_timeout: Duration,

    /// Threads that parse requests and write answers.
    #[arg(long, default_value = "2", value_name = "N", help_heading = "Server", value_parser = at_least_one)]
    pub http_workers: usize,

    /// How long a client may take to send the head of its first request.
    #[arg(long, default_value = "10s", value_name = "DURATION", help_heading = "Server", value_parser = parse_duration)]
    pub head_timeout: Duration,

    /// How long a client may take to send a request's body.
    #[arg(long, default_value = "60s", value_name = "DURATION", help_heading = "Server", value_parser = parse_duration)]
    pub body_timeout: Duration,

    /// How long an idle connection stays open. 0 = closed after each answer.
    #[arg(long, default_value = "75s", value_name = "DURATION", help_heading = "Server", value_parser = parse_duration)]
    pub keep_alive: Duration,

    /// How long a client may take no bytes of its answer before its connection is closed.
    #[arg(long, default_value = "5m", value_name = "DURATION", help_heading = "Server", value_parser = parse_duration)]
    pub write_timeout: Duration,

    /// At shutdown, how long running requests may take to finish before they are cut.
    #[arg(long, default_value = "30s", value_name = "DURATION", help_heading = "Server", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// Shortest time between two prefill progress events of one request.
    #[arg(long, default_value = "500ms", value_name = "DURATION", help_heading = "Server", value_parser = parse_duration)]
    pub progress_interval: Duration,

    /// Also put `usage` on a stream's final chunk, for older clients that read it there.
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set, help_heading = "Server")]
    pub usage_on_final_chunk: bool,

    /// Responses of `/v1/responses` kept for `previous_response_id`; 0 keeps none.
    ///
    /// Those not used for the longest time go first.
    #[arg(
        long,
        default_value = "1024",
        value_name = "N",
        help_heading = "Server"
    )]
    pub response_store_entries: usize,

    /// Most memory for kept responses.
    #[arg(
        long,
        default_value = "64MiB",
        value_name = "SIZE",
        help_heading = "Server"
    )]
    pub response_store_size: ByteSize,

    /// Requests computed at once.
    #[arg(long, default_value = "64", value_name = "N", help_heading = "Scheduling", value_parser = at_least_one)]
    pub max_running: usize,

    /// Requests that may wait; one more is refused with 429.
    #[arg(long, default_value = "512", value_name = "N", help_heading = "Scheduling", value_parser = at_least_one)]
    pub max_waiting: usize,

    /// Tokens computed in one step: running requests first, prompt chunks in what is left.
    #[arg(long, default_value = "512", value_name = "TOKENS", help_heading = "Scheduling", value_parser = at_least_one)]
    pub max_batch_tokens: usize,

    /// How many times longer a token of a running request may take, as a rule, while prompts are computed beside it.
    ///
    /// The chunks of prompts are cut to fit, to no less than 16 tokens. At most one step in 32 may take longer: up to 0.2 s
    /// where that clears all waiting prompts, and up to a second where four such steps clear a crowd.
    #[arg(long, default_value = "2", value_name = "FACTOR", help_heading = "Scheduling", value_parser = parse_factor)]
    pub prefill_slowdown: f64,

    /// Longest prompt and completion together. `auto` = what the model was made for.
    #[arg(long, default_value = "auto", value_name = "TOKENS", help_heading = "Scheduling", value_parser = Auto::parse_with(at_least_one))]
    pub context_length: Auto<usize>,

    /// Where to compute: auto, cpu, metal, cuda or cuda:N.
    #[arg(
        long,
        default_value = "auto",
        value_name = "DEVICE",
        help_heading = "Engine"
    )]
    pub device: DeviceChoice,

    /// CPU threads of the engine. `auto` = one for each physical core.
    #[arg(long, default_value = "auto", value_name = "N", help_heading = "Engine", value_parser = Auto::parse_with(at_least_one))]
    pub threads: Auto<usize>,

    /// How attention is computed: fused (SIMD kernels, CPU) or portable (the reference).
    #[arg(
        long,
        default_value = "fused",
        value_name = "KIND",
        help_heading = "Engine"
    )]
    pub attention: AttentionKind,

    /// Products with bf16 weights, and attention: exact (f32), fast (rounded to bf16) or auto.
    ///
    /// `auto` is fast on machines where that is faster (Intel AMX, AMD's AVX512-BF16) and exact on others;
    /// for the demo model always exact, so that its answers are the same everywhere. Attention is fast only of
    /// models with bf16 or quantized weights.
    #[arg(
        long,
        default_value = "auto",
        value_name = "KIND",
        help_heading = "Engine"
    )]
    pub matmul_precision: MatmulPrecision,

    /// Number type of cached keys and values: f16, bf16, f32 or q8_0. `auto` = f16, or bf16 on Intel AMX.
    #[arg(
        long,
        default_value = "auto",
        value_name = "TYPE",
        help_heading = "Engine"
    )]
    pub kv_dtype: KvDtype,

    /// Memory for keys and values (2GiB). `auto` = for 262,144 tokens, or what is free.
    #[arg(
        long,
        default_value = "auto",
        value_name = "SIZE",
        help_heading = "Engine"
    )]
    pub kv_memory: Auto<ByteSize>,

    /// The same as a number of blocks; not together with --kv-memory.
    #[arg(long, default_value = "auto", value_name = "N", help_heading = "Engine", value_parser = Auto::parse_with(at_least_one))]
    pub kv_blocks: Auto<usize>,

    /// Tokens in one KV block: a power of two up to 256.
    #[arg(long, default_value = "32", value_name = "TOKENS", help_heading = "Engine", value_parser = parse_block_size)]
    pub block_size: usize,

    /// What to log: error, warn, info, debug, trace, or directives (info,trunkline::actors=debug).
    #[arg(long, default_value = "info", value_name = "FILTER", help_heading = "Logging", value_parser = parse_log_filter)]
    pub log_level: String,

    /// How log lines look.
    #[arg(
        long,
        default_value = "text",
        value_name = "FORMAT",
        help_heading = "Logging"
    )]
    pub log_format: LogFormat,

    /// Also log prompts and completions. Without it, logs hold neither, and never a key.
    #[arg(long, default_value = "false", default_missing_value = "true", num_args = 0..=1, require_equals = true, value_name = "BOOL", action = clap::ArgAction::Set, help_heading = "Logging")]
    pub log_content: bool,
}

impl Default for Config {
    fn default() -> Self {
        let matches = Self::augment_args(clap::Command::new("trunkline").no_binary_name(true))
            .try_get_matches_from(std::iter::empty::<String>())
            .and_then(|matches| Self::from_arg_matches(&matches));
        matches.expect("every field has a default that parses")
    }
}
