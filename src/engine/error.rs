//! What can go wrong in the engine.

use super::loader::LoadError;

/// Why an engine could not be started, or a forward pass not be done.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A weight could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The binary was built without the device's backend.
    #[error(
        "device {device} is not available: this binary was built without it (build with `cargo build --release --features {feature}`)"
    )]
    DeviceNotBuilt {
        device: &'static str,
        feature: &'static str,
    },
    /// The device's own driver refused.
    #[error("cannot open device {device}: {reason}")]
    DeviceFailed { device: String, reason: String },
    /// Not a device's name.
    #[error("unknown device {0:?}: use auto, cpu, metal, cuda or cuda:N")]
    UnknownDevice(String),
    /// A combination of options that cannot work.
    #[error("{0}")]
    InvalidOption(String),
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A CPU kernel could not be built or run.
    #[error(transparent)]
    Kernel(#[from] crate::kernels::KernelError),
    /// The engine's thread could not be started or ended before it was ready.
    #[error("the engine thread failed: {0}")]
    Thread(String),
}

/// The engine takes no more plans.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped: {reason}")]
pub struct EngineStopped {
    pub reason: String,
}
