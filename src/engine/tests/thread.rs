//! The engine's thread: outputs in order, errors at start, a clean end.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use candle_core::DType;

use super::model::{self, Format};
use crate::engine::loader::Architecture;
use crate::engine::sampler::SamplingParameters;
use crate::engine::step::{
    AdmittedSequence, RowInput, SequenceRows, StepOutput, StepPlan, StopRule,
};
use crate::engine::{
    AttentionKind, DeviceChoice, EngineHandle, EngineOptions, EngineStopped, EngineThread, KvDtype,
};
use crate::ids::{BlockId, SequenceId, TokenId};

type Outputs = Receiver<Result<StepOutput, EngineStopped>>;

fn start(options: EngineOptions) -> Result<(EngineHandle, Outputs), String> {
    let config = model::config(Architecture::Qwen3);
    let weights = Box::new(model::weights(&config, Format::Dense(DType::F32)));
    let (sender, outputs) = channel();
    let sink = Box::new(move |output| {
        // The test may have stopped listening.
        let _ = sender.send(output);
    });
    let (handle, info) = EngineThread::start_parts(config, weights, options, sink)
        .map_err(|error| error.to_string())?;
    assert_eq!((info.block_size, info.block_count), (16, 1000));
    assert_eq!((info.device.as_str(), info.context_window), ("cpu", 4096));
    Ok((handle, outputs))
}

fn next(outputs: &Outputs) -> StepOutput {
    outputs
        .recv_timeout(Duration::from_secs(60))
        .expect("an output")
        .expect("no stop")
}

#[test]
fn plans_run_in_order_and_a_decode_row_may_wait_for_the_token_before_it() {
    let (handle, outputs) =
        start(model::options(AttentionKind::Fused, KvDtype::F16)).expect("starts");
    let sequence = SequenceId(1);
    let rows = |input| {
        vec![SequenceRows {
            sequence,
            new_blocks: vec![],
            input,
        }]
    };
    let mut first = StepPlan {
        number: 1,
        ..Default::default()
    };
    first.admit.push(AdmittedSequence {
        sequence,
        prompt: Arc::from([TokenId(3)]),
        sampling: SamplingParameters::default(),
        stop: StopRule {
            end_tokens: Arc::from([]),
            max_new_tokens: 3,
        },
    });
    let input = RowInput::Prefill {
        tokens: vec![TokenId(3)],
        start: 0,
        sample: true,
    };
    first.rows.push(SequenceRows {
        sequence,
        new_blocks: vec![BlockId(0)],
        input,
    });
    handle.submit(first).expect("room");
    // The second plan is handed over before the first one's token is known.
    handle
        .submit(StepPlan {
            number: 2,
            rows: rows(RowInput::Decode),
            ..Default::default()
        })
        .expect("room");
    for number in 1..3 {
        let output = next(&outputs);
        assert_eq!(
            (output.number, output.failed.len(), output.sampled.len()),
            (number, 0, 1)
        );
    }
    handle
        .submit(StepPlan {
            number: 3,
            ..Default::default()
        })
        .expect("room");
    assert_eq!(next(&outputs).number, 3);
    handle.stop_and_wait();
    assert!(outputs.recv().is_err(), "the sink is gone with the thread");
}

#[test]
fn dropping_the_handle_ends_the_thread() {
    let (handle, outputs) =
        start(model::options(AttentionKind::Fused, KvDtype::F16)).expect("starts");
    drop(handle);
    assert!(outputs.recv_timeout(Duration::from_secs(60)).is_err());
}

#[test]
fn what_is_wrong_at_the_start_is_said() {
    let options = model::options(AttentionKind::Fused, KvDtype::F16);
    let odd = EngineOptions {
        block_size: 24,
        ..options.clone()
    };
    assert!(start(odd).expect_err("refused").contains("power of two"));
    if cfg!(not(feature = "metal")) {
        let metal = EngineOptions {
            device: DeviceChoice::Metal,
            ..options
        };
        assert!(
            start(metal)
                .expect_err("refused")
                .contains("built without it")
        );
    }
}
