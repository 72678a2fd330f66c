//! Safetensors and GGUF give the same model.

use candle_core::{Device, Tensor};

use super::{CHECKPOINTS, fixture, load_fixture, load_path, values};
use crate::engine::loader::config::{Architecture, ModelConfig};
use crate::engine::loader::gguf::open_weights;
use crate::engine::loader::{LoadError, LoadedModel, Weight, Weights};
use crate::ids::TokenId;

/// Every tensor that the engine will ask for, and its shape.
fn expected_tensors(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, head) = (config.hidden_size, config.head_dim);
    let mut tensors = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![config.vocabulary, hidden],
        ),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tied_embeddings {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocabulary, hidden]));
    }
    for layer in 0..config.layers {
        let mut add = |name: &str, dims: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}"), dims.to_vec()))
        };
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        add("self_attn.q_proj.weight", &[config.heads * head, hidden]);
        add("self_attn.k_proj.weight", &[config.kv_heads * head, hidden]);
        add("self_attn.v_proj.weight", &[config.kv_heads * head, hidden]);
        add("self_attn.o_proj.weight", &[hidden, config.heads * head]);
        add("mlp.gate_proj.weight", &[config.intermediate_size, hidden]);
        add("mlp.up_proj.weight", &[config.intermediate_size, hidden]);
        add("mlp.down_proj.weight", &[hidden, config.intermediate_size]);
        if config.qkv_bias {
            add("self_attn.q_proj.bias", &[config.heads * head]);
            add("self_attn.k_proj.bias", &[config.kv_heads * head]);
            add("self_attn.v_proj.bias", &[config.kv_heads * head]);
        }
        if config.qk_norm {
            add("self_attn.q_norm.weight", &[head]);
            add("self_attn.k_norm.weight", &[head]);
        }
    }
    tensors
}

fn assert_same_weights(one: &LoadedModel, other: &LoadedModel, tolerance: f32) {
    for (name, dims) in expected_tensors(&one.config) {
        let left = values(&one.weights.get_shaped(&name, &dims).expect(&name));
        let right = values(&other.weights.get_shaped(&name, &dims).expect(&name));
        let worst = left
            .iter()
            .zip(&right)
            .map(|(l, r)| (l - r).abs())
            .fold(0.0, f32::max);
        assert!(worst <= tolerance, "{name} differs by {worst}");
    }
}

#[test]
fn gguf_gives_the_same_configuration_as_json() {
    for name in CHECKPOINTS {
        let json = load_fixture(&format!("reference/{name}")).config;
        let mut gguf = load_fixture(&format!("reference/{name}/model-f16.gguf")).config;
        for (left, right) in json
            .inverse_frequencies()
            .iter()
            .zip(gguf.inverse_frequencies())
        {
            assert!(
                (left / right - 1.0).abs() < 1e-6,
                "{name}: {left} and {right}"
            );
        }
        gguf.rope_scaling = json.rope_scaling.clone();
        gguf.rms_norm_epsilon = json.rms_norm_epsilon;
        assert_eq!(json, gguf, "{name}");
    }
}

#[test]
fn the_configurations_are_those_of_the_script() {
    let qwen3 = load_fixture("reference/qwen3").config;
    assert_eq!(
        (qwen3.architecture, qwen3.head_dim, qwen3.tied_embeddings),
        (Architecture::Qwen3, 32, true)
    );
    assert_eq!(qwen3.rope_theta, 1e6);
    assert_eq!(
        qwen3.end_tokens,
        [TokenId(313), TokenId(315)],
        "<|endoftext|> and <|im_end|>"
    );
    let qwen2 = load_fixture("reference/qwen2").config;
    assert_eq!(
        (qwen2.architecture, qwen2.head_dim, qwen2.tied_embeddings),
        (Architecture::Qwen2, 16, false)
    );
    assert!(qwen2.qkv_bias);
    let llama = load_fixture("reference/llama3").config;
    assert_eq!(llama.end_tokens.len(), 2, "<|end_of_text|> and <|eot_id|>");
}

#[test]
fn gguf_gives_the_same_weights_as_safetensors() {
    for name in CHECKPOINTS {
        let dense = load_fixture(&format!("reference/{name}"));
        assert_same_weights(
            &dense,
            &load_fixture(&format!("reference/{name}/model-f16.gguf")),
            0.0,
        );
        assert_same_weights(
            &dense,
            &load_fixture(&format!("reference/{name}/model-q8_0.gguf")),
            0.01,
        );
    }
}

#[test]
fn every_element_type_reads_as_the_gguf_package_reads_it() {
    let weights = open_weights(&fixture("reference/element_types.gguf")).expect("a valid file");
    let expected = candle_core::safetensors::load(
        fixture("reference/element_types.safetensors"),
        &Device::Cpu,
    )
    .expect("a valid file");
    assert_eq!(expected.len(), 11);
    for (gguf_name, tensor) in expected {
        let name = hugging_face_name(&gguf_name);
        let read = values(&weights.get_shaped(&name, tensor.dims()).expect(&name));
        let wanted = values(&Weight::Dense(tensor));
        let scale = wanted
            .iter()
            .fold(0.0f32, |most, value| most.max(value.abs()));
        for (read, wanted) in read.iter().zip(&wanted) {
            assert!(
                (read - wanted).abs() <= 1e-6 * scale,
                "{gguf_name}: {read} instead of {wanted}"
            );
        }
    }
}

fn hugging_face_name(gguf_name: &str) -> String {
    let (layer, rest) = gguf_name
        .trim_start_matches("blk.")
        .split_once('.')
        .expect("a layer's tensor");
    let module = match rest.trim_end_matches(".weight") {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        other => panic!("{other}"),
    };
    format!("model.layers.{layer}.{module}.weight")
}

#[test]
fn shards_are_found_by_their_index() {
    let whole = load_fixture("reference/qwen2");
    let folder = tempfile::tempdir().expect("a temporary folder");
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(
            fixture("reference/qwen2").join(file),
            folder.path().join(file),
        )
        .expect("a copy");
    }
    let tensors =
        candle_core::safetensors::load(fixture("reference/qwen2/model.safetensors"), &Device::Cpu)
            .expect("valid");
    let mut map = serde_json::Map::new();
    let mut shards: [std::collections::HashMap<String, Tensor>; 2] = Default::default();
    for (index, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(
            name.clone(),
            format!("model-0000{}-of-00002.safetensors", index % 2 + 1).into(),
        );
        shards[index % 2].insert(name, tensor);
    }
    for (index, shard) in shards.iter().enumerate() {
        let path = folder
            .path()
            .join(format!("model-0000{}-of-00002.safetensors", index + 1));
        candle_core::safetensors::save(shard, path).expect("a writable folder");
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(
        folder.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .expect("a writable folder");
    assert_same_weights(
        &whole,
        &load_path(folder.path()).expect("a sharded model"),
        0.0,
    );

    std::fs::remove_file(folder.path().join("model-00002-of-00002.safetensors")).expect("a shard");
    let message = load_path(folder.path())
        .err()
        .expect("a shard is missing")
        .to_string();
    assert!(
        message.contains("model-00002-of-00002.safetensors") && message.contains("shard"),
        "{message}"
    );
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let model = load_fixture("reference/qwen3");
    let missing = model.weights.get("model.layers.9.mlp.up_proj.weight").err();
    assert!(
        matches!(missing, Some(LoadError::MissingTensor { name }) if name.contains("layers.9"))
    );
    let message = model
        .weights
        .get_shaped("model.norm.weight", &[65])
        .expect_err("64")
        .to_string();
    assert!(
        message.contains("[64]") && message.contains("[65]") && message.contains("model.norm"),
        "{message}"
    );
    assert!(
        model.weights.contains("model.norm.weight") && !model.weights.contains("lm_head.weight")
    );
}
