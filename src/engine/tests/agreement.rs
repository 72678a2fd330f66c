//! The executors and the attention implementations compute the same function.

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};

use super::model::{self, Format, Random};
use crate::engine::batch::RaggedBatch;
use crate::engine::blocks::KvPoolSize;
use crate::engine::executor::Executor;
use crate::engine::executor::cpu::CpuExecutor;
use crate::engine::executor::portable::PortableExecutor;
use crate::engine::loader::{Architecture, ModelConfig, Weights};
use crate::engine::step::BlockCopy;
use crate::engine::{
    AttentionKind, Engine, EngineError, EngineOptions, KvDtype, MatmulPrecision, models,
};
use crate::ids::BlockId;

/// Logits of a ragged batch after an earlier one, with a copied block: three spans, one of them a decode row.
fn logits(executor: &mut dyn Executor) -> Vec<f32> {
    let mut random = Random::new(3);
    let mut tokens = |count| {
        let tokens: Vec<u32> = random.tokens(count).iter().map(|token| token.0).collect();
        tokens.into_iter()
    };
    let table = |numbers: &[u32]| {
        numbers
            .iter()
            .map(|&block| BlockId(block))
            .collect::<Vec<_>>()
    };
    let (first, second, third) = (table(&[4, 2, 9, 1]), table(&[3, 0, 7]), table(&[4, 5]));
    let mut logits = Vec::new();
    let mut batch = RaggedBatch::default();
    batch.push(tokens(40), 0, &first, 16, 0);
    batch.push(tokens(20), 0, &second, 16, 0);
    executor.forward(&batch, &mut logits).expect("a pass");
    assert!(logits.is_empty(), "nobody asked for logits");
    // The third sequence shares 16 tokens with the first and has 5 more in common with its second block.
    let copy = BlockCopy {
        from: BlockId(2),
        to: BlockId(5),
        tokens: 5,
    };
    executor.copy_block(copy).expect("a copy");
    batch.clear();
    batch.push(tokens(1), 40, &first, 16, 1);
    batch.push(tokens(25), 20, &second, 16, 1);
    batch.push(tokens(3), 21, &third, 16, 1);
    executor.forward(&batch, &mut logits).expect("a pass");
    assert_eq!(logits.len(), 3 * model::VOCABULARY);
    logits
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    let scale = a.iter().fold(0f32, |most, x| most.max(x.abs()));
    a.iter()
        .zip(b)
        .fold(0f32, |most, (a, b)| most.max((a - b).abs()))
        / scale
}

fn pool_size(block_size: usize) -> KvPoolSize {
    KvPoolSize {
        blocks: 10,
        block_size,
        block_bytes: 0,
    }
}

/// The logits of the CPU's executor.
fn cpu_logits(config: &ModelConfig, weights: &dyn Weights, options: &EngineOptions) -> Vec<f32> {
    let size = pool_size(options.block_size);
    let executor = CpuExecutor::new(models::describe(config), weights, size, options);
    logits(&mut executor.expect("an executor"))
}

fn check(architecture: Architecture, format: Format, tolerance: f32) {
    let config = model::config(architecture);
    let weights = model::weights(&config, format);
    let options = |attention| model::options(attention, KvDtype::F32);
    let fused = cpu_logits(&config, &weights, &options(AttentionKind::Fused));
    let portable_attention = cpu_logits(&config, &weights, &options(AttentionKind::Portable));
    let mut portable = PortableExecutor::new(
        models::describe(&config),
        &weights,
        pool_size(16),
        KvDtype::F32,
        Device::Cpu,
    )
    .expect("an executor");
    let portable = logits(&mut portable);
    let difference = largest_difference(&fused, &portable_attention);
    assert!(
        difference < 1e-5,
        "attention implementations differ by {difference}"
    );
    let difference = largest_difference(&fused, &portable);
    assert!(difference < tolerance, "executors differ by {difference}");
}

#[test]
fn executors_agree_on_every_architecture() {
    for architecture in [
        Architecture::Qwen3,
        Architecture::Qwen2,
        Architecture::Llama,
    ] {
        check(architecture, Format::Dense(DType::F32), 1e-5);
    }
}

/// Both read the same blocks, but a number that the two round to different neighbours differs by a step of the type.
#[test]
fn attentions_agree_on_every_type_of_keys_and_values() {
    let config = model::config(Architecture::Qwen3);
    let weights = model::weights(&config, Format::Dense(DType::BF16));
    for (kv_dtype, precision, tolerance) in [
        (KvDtype::F32, MatmulPrecision::Exact, 1e-5),
        (KvDtype::F16, MatmulPrecision::Exact, 1e-3),
        (KvDtype::Bf16, MatmulPrecision::Exact, 5e-3),
        (KvDtype::Q8_0, MatmulPrecision::Exact, 5e-3),
        // On matrix tiles, where the machine has them: queries and weights are rounded, too.
        (KvDtype::Bf16, MatmulPrecision::Fast, 3e-2),
    ] {
        let logits_with = |attention| {
            let options = EngineOptions {
                precision,
                block_size: 32,
                ..model::options(attention, kv_dtype)
            };
            cpu_logits(&config, &weights, &options)
        };
        let fused = logits_with(AttentionKind::Fused);
        let difference = largest_difference(&fused, &logits_with(AttentionKind::Portable));
        assert!(
            difference < tolerance,
            "with {kv_dtype:?}, {precision:?} they differ by {difference}"
        );
    }
}

#[test]
fn executors_agree_on_half_precision_weights() {
    check(Architecture::Qwen3, Format::Dense(DType::BF16), 1e-5);
    check(Architecture::Llama, Format::Dense(DType::F16), 1e-5);
}

#[test]
fn executors_agree_on_quantized_weights() {
    // candle and the kernels round the activations to 8 bits differently, and random layers amplify that.
    check(
        Architecture::Qwen3,
        Format::Quantized(GgmlDType::Q8_0),
        0.15,
    );
    check(Architecture::Llama, Format::Quantized(GgmlDType::Q4K), 0.15);
}

#[test]
fn a_missing_tensor_is_named() {
    let config = model::config(Architecture::Qwen3);
    let mut weights = model::weights(&config, Format::Dense(DType::F32));
    weights.remove("model.layers.1.mlp.up_proj.weight");
    let options = model::options(AttentionKind::Fused, KvDtype::F16);
    let error = Engine::new(&config, &weights, &options)
        .err()
        .expect("an error");
    assert!(matches!(error, EngineError::Load(_)));
    assert!(
        error
            .to_string()
            .contains("model.layers.1.mlp.up_proj.weight"),
        "{error}"
    );
}

/// The accelerator that this build is for computes what the CPU does, where there is one.
#[cfg(any(feature = "metal", feature = "cuda"))]
#[test]
fn the_accelerator_agrees_with_the_cpu() {
    use crate::engine::DeviceChoice;

    let device = DeviceChoice::Auto.open().expect("auto opens something");
    if device.is_cpu() {
        eprintln!("nothing was compared: there is no accelerator here");
        return;
    }
    let size = pool_size(16);
    // Halves round activations too there, and quantized products differ as on the CPU.
    let cases = [
        (Architecture::Qwen3, Format::Dense(DType::F32), 1e-3),
        (Architecture::Qwen2, Format::Dense(DType::F32), 1e-3),
        (Architecture::Llama, Format::Dense(DType::F32), 1e-3),
        (Architecture::Qwen3, Format::Dense(DType::BF16), 0.1),
        (Architecture::Llama, Format::Dense(DType::F16), 0.02),
        (
            Architecture::Qwen3,
            Format::Quantized(GgmlDType::Q8_0),
            0.15,
        ),
        (Architecture::Llama, Format::Quantized(GgmlDType::Q4K), 0.15),
        (Architecture::Llama, Format::Quantized(GgmlDType::Q6K), 0.15),
        (
            Architecture::Qwen2,
            Format::Quantized(GgmlDType::Q4_0),
            0.15,
        ),
    ];
    for (architecture, format, tolerance) in cases {
        let config = model::config(architecture);
        let weights = model::weights(&config, format);
        let run = |kv_dtype, device| {
            let description = models::describe(&config);
            let mut executor = PortableExecutor::new(description, &weights, size, kv_dtype, device)
                .expect("an executor");
            logits(&mut executor)
        };
        for kv_dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let expected = run(kv_dtype, Device::Cpu);
            let difference = largest_difference(&expected, &run(kv_dtype, device.clone()));
            assert!(
                difference < tolerance,
                "{architecture:?} as {format:?}, keys in {kv_dtype:?}: they differ by {difference}"
            );
        }
    }
}
