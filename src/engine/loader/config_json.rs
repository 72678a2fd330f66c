//! Hyperparameters from Hugging Face's `config.json`.

use serde_json::Value;

use super::config::{Architecture, ModelConfig, RopeScaling};
use super::error::LoadError;
use super::json::JsonObject;
use crate::ids::TokenId;

const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_RMS_NORM_EPSILON: f64 = 1e-6;

impl ModelConfig {
    /// Reads and checks `config.json`. Absent fields have the defaults of Hugging Face transformers.
    ///
    /// # Errors
    /// [`LoadError::UnsupportedArchitecture`], [`LoadError::UnsupportedFeature`] for features that would change
    /// the results (sliding windows, other activations, quantized checkpoints), or the field that is wrong.
    pub(crate) fn from_json(json: &JsonObject) -> Result<Self, LoadError> {
        let architecture = architecture(json)?;
        refuse_unsupported(json)?;
        let hidden_size = json.required("hidden_size", json.count("hidden_size")?)?;
        let heads = json.required("num_attention_heads", json.count("num_attention_heads")?)?;
        if heads == 0 {
            return Err(json.error("num_attention_heads", "is 0; it must be at least 1"));
        }
        let attention_bias = json.flag("attention_bias")?.unwrap_or(false);
        let rope = rope_parameters(json)?;
        let default_head_dim = match architecture {
            Architecture::Qwen3 => 128,
            Architecture::Qwen2 | Architecture::Llama => hidden_size / heads,
        };
        let mut config = ModelConfig {
            architecture,
            hidden_size,
            intermediate_size: json
                .required("intermediate_size", json.count("intermediate_size")?)?,
            layers: json.required("num_hidden_layers", json.count("num_hidden_layers")?)?,
            heads,
            kv_heads: json.count("num_key_value_heads")?.unwrap_or(heads),
            head_dim: json.count("head_dim")?.unwrap_or(default_head_dim),
            vocabulary: json.required("vocab_size", json.count("vocab_size")?)?,
            rms_norm_epsilon: json
                .number("rms_norm_eps")?
                .unwrap_or(DEFAULT_RMS_NORM_EPSILON),
            rope_theta: rope_theta(json, rope.as_ref())?,
            rope_scaling: rope_scaling(json, rope.as_ref())?,
            tied_embeddings: json.flag("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
            output_bias: architecture != Architecture::Qwen2 && attention_bias,
            qk_norm: architecture == Architecture::Qwen3,
            context_window: json.required(
                "max_position_embeddings",
                json.count("max_position_embeddings")?,
            )?,
            end_tokens: Vec::new(),
        };
        config.add_end_tokens(end_tokens(json)?);
        config.validate(json.file())?;
        Ok(config)
    }
}

/// `eos_token_id` of `config.json` or `generation_config.json`: a number, a list of numbers, or nothing.
pub(crate) fn end_tokens(json: &JsonObject) -> Result<Vec<TokenId>, LoadError> {
    let token = |value: &Value| {
        value
            .as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .map(TokenId)
            .ok_or_else(|| {
                json.error(
                    "eos_token_id",
                    format!("must be a token id or a list of them, not {value}"),
                )
            })
    };
    match json.get("eos_token_id") {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(token).collect(),
        Some(value) => Ok(vec![token(value)?]),
    }
}

fn architecture(json: &JsonObject) -> Result<Architecture, LoadError> {
    let class = match json.get("architectures") {
        None => None,
        Some(Value::Array(names)) => names.first().and_then(Value::as_str),
        Some(_) => return Err(json.error("architectures", "must be a list of class names")),
    };
    let name = match class {
        Some(name) => name,
        None => json
            .text("model_type")?
            .ok_or_else(|| json.error("architectures", "is missing, and so is model_type"))?,
    };
    Architecture::from_name(name).ok_or_else(|| LoadError::UnsupportedArchitecture {
        found: name.to_owned(),
    })
}

/// Features that would silently give wrong results if ignored.
fn refuse_unsupported(json: &JsonObject) -> Result<(), LoadError> {
    let refuse = |feature: String| Err(LoadError::unsupported(json.file(), feature));
    let activation = json.text("hidden_act")?.unwrap_or("silu");
    if !matches!(activation, "silu" | "swish") {
        return refuse(format!("hidden_act '{activation}' (only silu)"));
    }
    if json.flag("use_sliding_window")?.unwrap_or(false) {
        return refuse("use_sliding_window (sliding-window attention)".to_owned());
    }
    if let Some(Value::Array(kinds)) = json.get("layer_types")
        && let Some(kind) = kinds
            .iter()
            .find(|kind| kind.as_str() != Some("full_attention"))
    {
        return refuse(format!("layer type {kind} (only full_attention)"));
    }
    if json.flag("mlp_bias")?.unwrap_or(false) {
        return refuse("mlp_bias".to_owned());
    }
    if let Some(quantization) = json.object("quantization_config")? {
        let method = quantization.text("quant_method")?.unwrap_or("unknown");
        return refuse(format!(
            "quantization_config ({method}); use unquantized safetensors or a GGUF file"
        ));
    }
    Ok(())
}

/// `rope_parameters` (new style, theta included) or `rope_scaling`.
fn rope_parameters(json: &JsonObject) -> Result<Option<JsonObject>, LoadError> {
    match json.object("rope_parameters")? {
        Some(parameters) => Ok(Some(parameters)),
        None => json.object("rope_scaling"),
    }
}

fn rope_theta(json: &JsonObject, rope: Option<&JsonObject>) -> Result<f64, LoadError> {
    if let Some(rope) = rope
        && let Some(theta) = rope.number("rope_theta")?
    {
        return Ok(theta);
    }
    Ok(json.number("rope_theta")?.unwrap_or(DEFAULT_ROPE_THETA))
}

fn rope_scaling(json: &JsonObject, rope: Option<&JsonObject>) -> Result<RopeScaling, LoadError> {
    let Some(rope) = rope else {
        return Ok(RopeScaling::None);
    };
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let number = |key: &str| rope.required(key, rope.number(key)?);
    if rope
        .number("partial_rotary_factor")?
        .is_some_and(|factor| factor != 1.0)
    {
        return Err(LoadError::unsupported(json.file(), "partial_rotary_factor"));
    }
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear {
            factor: number("factor")?,
        }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_frequency_factor: number("low_freq_factor")?,
            high_frequency_factor: number("high_freq_factor")?,
            original_context: rope.required(
                "original_max_position_embeddings",
                rope.count("original_max_position_embeddings")?,
            )?,
        }),
        other => Err(LoadError::unsupported(
            json.file(),
            format!("rope_scaling type '{other}' (only default, linear and llama3)"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{
        "architectures": ["LlamaForCausalLM"], "attention_bias": false, "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 2048,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "vocab_size": 128256 }"#;

    fn parse(text: &str) -> Result<ModelConfig, LoadError> {
        ModelConfig::from_json(&JsonObject::parse("config.json", text.as_bytes())?)
    }

    /// The Llama configuration with one field changed (or taken away, with `null`).
    fn with(key: &str, value: serde_json::Value) -> Result<ModelConfig, LoadError> {
        let mut json: serde_json::Value = serde_json::from_str(LLAMA).expect("valid JSON");
        json[key] = value;
        parse(&json.to_string())
    }

    #[test]
    fn reads_llama_with_its_rope_scaling() {
        let config = parse(LLAMA).expect("a valid configuration");
        assert_eq!(config.architecture, Architecture::Llama);
        assert_eq!(
            (config.head_dim, config.kv_heads, config.layers),
            (64, 8, 16)
        );
        assert_eq!(
            config.end_tokens,
            [TokenId(128_001), TokenId(128_008), TokenId(128_009)]
        );
        assert!(matches!(
            config.rope_scaling,
            RopeScaling::Llama3 {
                original_context: 8192,
                ..
            }
        ));
        assert!(config.tied_embeddings && !config.qkv_bias && !config.qk_norm);
    }

    #[test]
    fn reads_new_style_rope_parameters() {
        let config = with(
            "rope_parameters",
            serde_json::json!({"rope_type": "default", "rope_theta": 1000000.0}),
        )
        .expect("a valid configuration");
        assert_eq!(
            (config.rope_theta, config.rope_scaling),
            (1e6, RopeScaling::None)
        );
        let config = with(
            "rope_scaling",
            serde_json::json!({"type": "linear", "factor": 2}),
        )
        .expect("valid");
        assert_eq!(config.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn biases_and_norms_follow_the_architecture() {
        let qwen2 = with("architectures", serde_json::json!(["Qwen2ForCausalLM"])).expect("valid");
        assert!(qwen2.qkv_bias && !qwen2.output_bias && !qwen2.qk_norm);
        let qwen3 = with("architectures", serde_json::json!(["Qwen3ForCausalLM"])).expect("valid");
        assert!(!qwen3.qkv_bias && qwen3.qk_norm && qwen3.head_dim == 128);
        let llama = with("attention_bias", serde_json::json!(true)).expect("valid");
        assert!(llama.qkv_bias && llama.output_bias);
    }

    #[test]
    fn refuses_what_would_give_wrong_results() {
        let cases = [
            (
                "architectures",
                serde_json::json!(["GemmaForCausalLM"]),
                "GemmaForCausalLM",
            ),
            ("architectures", serde_json::json!("Llama"), "architectures"),
            ("hidden_act", serde_json::json!("gelu"), "gelu"),
            ("use_sliding_window", serde_json::json!(true), "sliding"),
            (
                "layer_types",
                serde_json::json!(["full_attention", "sliding_attention"]),
                "sliding_attention",
            ),
            (
                "quantization_config",
                serde_json::json!({"quant_method": "awq"}),
                "awq",
            ),
            (
                "rope_scaling",
                serde_json::json!({"rope_type": "yarn", "factor": 4.0}),
                "yarn",
            ),
            (
                "rope_scaling",
                serde_json::json!({"rope_type": "llama3", "factor": 4.0}),
                "low_freq_factor",
            ),
            ("hidden_size", serde_json::json!("wide"), "hidden_size"),
            (
                "hidden_size",
                serde_json::Value::Null,
                "hidden_size is missing",
            ),
            (
                "num_attention_heads",
                serde_json::json!(0),
                "num_attention_heads",
            ),
            (
                "num_hidden_layers",
                serde_json::json!(-2),
                "num_hidden_layers",
            ),
            ("vocab_size", serde_json::json!(1e30), "vocab_size"),
            ("eos_token_id", serde_json::json!(["</s>"]), "eos_token_id"),
            ("eos_token_id", serde_json::json!(128_256), "eos_token_id"),
        ];
        for (key, value, expected) in cases {
            let message = with(key, value).expect_err(key).to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(
            parse("[]")
                .expect_err("not an object")
                .to_string()
                .contains("config.json")
        );
        assert!(
            parse("{")
                .expect_err("cut short")
                .to_string()
                .contains("not valid JSON")
        );
    }
}
