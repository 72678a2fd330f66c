//! The fields that chat and text completions share: sampling, length, stop, streaming.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Field, Fields};
use super::limits;
use super::response_format::output_format;
use crate::engine::loader::RecommendedSampling;
use crate::engine::sampler::SamplingParameters;
use crate::grammar::GrammarPart;
use crate::http::error::ApiError;
use crate::ids::TokenId;

/// How to sample, as asked; what was not asked is as the model recommends, or as OpenAI's API has it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RequestedSampling {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub frequency_penalty: f32,
    pub presence_penalty: f32,
    pub logit_bias: BTreeMap<TokenId, f32>,
    pub seed: Option<u64>,
}

impl RequestedSampling {
    /// Parameters for a sequence with this seed. Log probabilities and a grammar are the caller's to add.
    pub fn resolve(&self, model: &RecommendedSampling, seed: u64) -> SamplingParameters {
        SamplingParameters {
            temperature: self.temperature.or(model.temperature).unwrap_or(1.0),
            top_k: self.top_k.or(model.top_k).unwrap_or(0),
            top_p: self.top_p.or(model.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(model.min_p).unwrap_or(0.0),
            repetition_penalty: self
                .repetition_penalty
                .or(model.repetition_penalty)
                .unwrap_or(1.0),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            logit_bias: self.logit_bias.clone(),
            seed,
            ..SamplingParameters::default()
        }
    }
}

/// How many answers are generated for each prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choices {
    /// Choices that are told; at least 1.
    pub n: usize,
    /// Sequences generated, the best `n` of which are told; at least `n`.
    pub best_of: usize,
}

impl Default for Choices {
    fn default() -> Self {
        Self { n: 1, best_of: 1 }
    }
}

/// The shared fields, validated.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationOptions {
    /// None: the model that is loaded.
    pub model: Option<String>,
    pub sampling: RequestedSampling,
    /// None: as much as fits. 0 only with `echo`.
    pub max_tokens: Option<usize>,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
    pub stream: bool,
    pub include_usage: bool,
    pub return_progress: bool,
    /// What the output must look like.
    pub output: Option<GrammarPart>,
    pub choices: Choices,
    /// Tell log probabilities of the tokens, and of this many most likely ones at each place.
    pub logprobs: Option<usize>,
    /// Tell how long prompt and output took.
    pub timings: bool,
}

impl GenerationOptions {
    pub fn parse(body: &Fields<'_>) -> Result<Self, ApiError> {
        let stream = body.boolean("stream")?.unwrap_or(false);
        let include_usage = match body.object("stream_options")? {
            Some(_) if !stream => {
                return Err(ApiError::invalid(
                    "stream_options",
                    "is only allowed when `stream` is true",
                ));
            }
            Some(options) => options.boolean("include_usage")?.unwrap_or(false),
            None => false,
        };
        accept_without_effect(body)?;
        let n = body.integer("n", 1, limits::SEQUENCES)?.unwrap_or(1) as usize;
        // Only a prompt that is told makes an answer without tokens.
        let least = match body.boolean("echo")? {
            Some(true) => 0,
            _ => 1,
        };
        let max_tokens = body.integer("max_tokens", least, i64::MAX)?;
        let max_completion_tokens = body.integer("max_completion_tokens", 1, i64::MAX)?;
        Ok(Self {
            model: body.string("model")?.map(str::to_owned),
            sampling: sampling(body)?,
            max_tokens: max_completion_tokens
                .or(max_tokens)
                .map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
            stop: body
                .get("stop")
                .map(|field| stop_strings(&field))
                .transpose()?
                .unwrap_or_default(),
            ignore_eos: body.boolean("ignore_eos")?.unwrap_or(false),
            stream,
            include_usage,
            return_progress: body.boolean("return_progress")?.unwrap_or(false),
            output: output_format(body)?,
            choices: Choices { n, best_of: n },
            logprobs: None,
            timings: timings(body)?,
        })
    }
}

/// Fields that change nothing here: checked only for what they are.
fn accept_without_effect(body: &Fields<'_>) -> Result<(), ApiError> {
    for name in [
        "user",
        "service_tier",
        "prompt_cache_key",
        "safety_identifier",
        "verbosity",
    ] {
        body.string(name)?;
    }
    body.boolean("store")?;
    body.object("metadata")?;
    body.object("prediction")?;
    if let Some(options) = body.object("stream_options")? {
        options.boolean("include_obfuscation")?;
    }
    Ok(())
}

/// `timings`, or as llama-server spells it `timings_per_token`.
fn timings(body: &Fields<'_>) -> Result<bool, ApiError> {
    let asked = body.boolean("timings")?.unwrap_or(false);
    Ok(body.boolean("timings_per_token")?.unwrap_or(false) || asked)
}

fn sampling(body: &Fields<'_>) -> Result<RequestedSampling, ApiError> {
    let float = |name, minimum, maximum| -> Result<Option<f32>, ApiError> {
        Ok(body
            .number(name, minimum, maximum)?
            .map(|number| number as f32))
    };
    let repetition_penalty = float("repetition_penalty", 0.0, 10.0)?;
    if repetition_penalty == Some(0.0) {
        return Err(ApiError::invalid(
            "repetition_penalty",
            "must be greater than 0; 1 is off",
        ));
    }
    // -1 is how vLLM clients spell "all".
    let top_k = body
        .integer("top_k", -1, i64::MAX)?
        .map(|number| usize::try_from(number).unwrap_or(0));
    Ok(RequestedSampling {
        temperature: float("temperature", 0.0, 2.0)?,
        top_p: float("top_p", 0.0, 1.0)?,
        top_k,
        min_p: float("min_p", 0.0, 1.0)?,
        repetition_penalty,
        frequency_penalty: float("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        presence_penalty: float("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias: body
            .object("logit_bias")?
            .map(|bias| logit_bias(&bias))
            .transpose()?
            .unwrap_or_default(),
        seed: body.get("seed").map(|field| seed(&field)).transpose()?,
    })
}

/// Any 64-bit integer, signed or not.
fn seed(field: &Field<'_>) -> Result<u64, ApiError> {
    match field.value.as_u64() {
        Some(seed) => Ok(seed),
        None => Ok(field.integer(i64::MIN, i64::MAX)? as u64),
    }
}

fn logit_bias(bias: &Fields<'_>) -> Result<BTreeMap<TokenId, f32>, ApiError> {
    if bias.map().len() > limits::LOGIT_BIAS {
        return Err(ApiError::invalid(
            "logit_bias",
            format!(
                "has {} entries; at most {} are accepted",
                bias.map().len(),
                limits::LOGIT_BIAS
            ),
        ));
    }
    bias.members()
        .map(|(token, field)| {
            let id = token.parse().map_err(|_| {
                ApiError::invalid(
                    "logit_bias",
                    format!("has the key {token:?}; keys must be token ids"),
                )
            })?;
            Ok((TokenId(id), field.number(-100.0, 100.0)? as f32))
        })
        .collect()
}

/// One string or several, none empty.
fn stop_strings(field: &Field<'_>) -> Result<Vec<String>, ApiError> {
    let strings = match field.value {
        Value::String(_) => vec![field.clone()],
        Value::Array(_) => field.array(limits::STOP_STRINGS)?,
        _ => return Err(field.wrong_type("a string or an array of strings")),
    };
    strings
        .iter()
        .map(|field| match field.string()? {
            "" => Err(field.invalid("must not be empty")),
            text if text.len() > limits::STOP_STRING_BYTES => Err(field.invalid(format!(
                "is longer than {} bytes",
                limits::STOP_STRING_BYTES
            ))),
            text => Ok(text.to_owned()),
        })
        .collect()
}
