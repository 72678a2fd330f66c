//! How an engine is set up.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::str::FromStr;

use candle_core::Device;

use super::error::EngineError;
use crate::kernels::{Isa, Precision};

/// Which device computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// CUDA or Metal if the binary was built with it and it opens, else the CPU.
    #[default]
    Auto,
    Cpu,
    Metal,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| EngineError::UnknownDevice(text.to_owned())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Metal => f.write_str("metal"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceChoice {
    /// Opens the device.
    ///
    /// # Errors
    /// When the binary was built without its backend, or the driver refuses. `Auto` never fails.
    pub fn open(self) -> Result<Device, EngineError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if cfg!(feature = "cuda") => Ok(Self::Cuda(0).open().unwrap_or(Device::Cpu)),
            Self::Auto if cfg!(feature = "metal") => Ok(Self::Metal.open().unwrap_or(Device::Cpu)),
            Self::Auto => Ok(Device::Cpu),
            Self::Metal if !cfg!(feature = "metal") => Err(EngineError::DeviceNotBuilt {
                device: "metal",
                feature: "metal",
            }),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(EngineError::DeviceNotBuilt {
                device: "cuda",
                feature: "cuda",
            }),
            Self::Metal => self.driver(|| Device::new_metal(0)),
            Self::Cuda(number) => self.driver(|| Device::new_cuda(number)),
        }
    }

    /// What a driver refuses as our error. candle panics on a Mac without a GPU, as virtual ones are.
    fn driver(
        self,
        open: impl FnOnce() -> candle_core::Result<Device>,
    ) -> Result<Device, EngineError> {
        let failed = |reason| EngineError::DeviceFailed {
            device: self.to_string(),
            reason,
        };
        match catch_unwind(AssertUnwindSafe(open)) {
            Ok(opened) => opened.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed("there is no such device".to_owned())),
        }
    }
}

/// How keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtype {
    /// `bf16` where attention rounds keys and values to that anyway (on matrix tiles), else `f16`.
    #[default]
    Auto,
    F32,
    F16,
    Bf16,
    /// Bytes with a scale for every 32 dimensions; on the CPU alone.
    Q8_0,
}

impl KvDtype {
    /// Bytes of one position's keys (or values) of a layer.
    pub fn row_bytes(self, kv_heads: usize, head_dim: usize) -> usize {
        let head = match self {
            Self::F32 => 4 * head_dim,
            Self::Auto | Self::F16 | Self::Bf16 => 2 * head_dim,
            Self::Q8_0 => head_dim + 4 * head_dim.div_ceil(32),
        };
        kv_heads * head
    }

    /// What is stored on a device other than the CPU.
    pub fn on_device(self) -> Self {
        match self {
            Self::Auto => Self::F16,
            other => other,
        }
    }

    /// The type of tensors on any device.
    ///
    /// # Errors
    /// When there is none: `q8_0` is known to the CPU's kernels alone.
    pub fn candle(self) -> Result<candle_core::DType, EngineError> {
        match self {
            Self::F32 => Ok(candle_core::DType::F32),
            Self::Auto | Self::F16 => Ok(candle_core::DType::F16),
            Self::Bf16 => Ok(candle_core::DType::BF16),
            Self::Q8_0 => Err(EngineError::InvalidOption(
                "the KV data type q8_0 works on the CPU only: use f16 or bf16 on this device"
                    .to_owned(),
            )),
        }
    }
}

impl FromStr for KvDtype {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        match text {
            "auto" => Ok(Self::Auto),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(EngineError::InvalidOption(format!(
                "unknown KV data type {text:?}: use auto, f16, bf16, f32 or q8_0"
            ))),
        }
    }
}

impl fmt::Display for KvDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        })
    }
}

/// Which attention implementation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionKind {
    /// The CPU kernel that reads blocks in place. On other devices portable attention runs.
    #[default]
    Fused,
    /// candle operations only: the reference.
    Portable,
}

impl FromStr for AttentionKind {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        match text {
            "fused" => Ok(Self::Fused),
            "portable" => Ok(Self::Portable),
            _ => Err(EngineError::InvalidOption(format!(
                "unknown attention {text:?}: use fused or portable"
            ))),
        }
    }
}

impl fmt::Display for AttentionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fused => "fused",
            Self::Portable => "portable",
        })
    }
}

/// How products with `bf16` weights are computed on the CPU, and fused attention of models with `bf16` or
/// quantized weights (which round activations anyway). Models with `f32` or `f16` weights are not concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MatmulPrecision {
    /// Fast where that is faster ([`Isa::bf16_dot_pays`]), else exact.
    #[default]
    Auto,
    /// Activations stay `f32`: the same bits on every machine that has a fused multiply-add.
    Exact,
    /// Activations are rounded to `bf16`, as most `bf16` implementations do.
    Fast,
}

impl MatmulPrecision {
    /// What the kernels are told.
    pub fn on_this_machine(self) -> Precision {
        match self {
            Self::Auto if Isa::detected().bf16_dot_pays() => Precision::Fast,
            Self::Auto | Self::Exact => Precision::Exact,
            Self::Fast => Precision::Fast,
        }
    }
}

impl FromStr for MatmulPrecision {
    type Err = EngineError;

    fn from_str(text: &str) -> Result<Self, EngineError> {
        match text {
            "auto" => Ok(Self::Auto),
            "exact" => Ok(Self::Exact),
            "fast" => Ok(Self::Fast),
            _ => Err(EngineError::InvalidOption(format!(
                "unknown matmul precision {text:?}: use auto, exact or fast"
            ))),
        }
    }
}

impl fmt::Display for MatmulPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Exact => "exact",
            Self::Fast => "fast",
        })
    }
}

/// How large the KV pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvSize {
    /// Half of the free memory (on CUDA 4 GiB), at most enough for 262,144 tokens or one context window.
    #[default]
    Auto,
    /// This many bytes.
    Bytes(u64),
    /// This many blocks.
    Blocks(usize),
}

/// How to start an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    pub device: DeviceChoice,
    pub kv_dtype: KvDtype,
    pub attention: AttentionKind,
    pub precision: MatmulPrecision,
    pub kv_size: KvSize,
    /// Tokens a block: a power of two from 1 to 256.
    pub block_size: usize,
    /// Threads of the CPU kernels; 0 is one for each physical core.
    pub threads: usize,
    /// Most positions of one sequence; `None` is the model's own context window.
    pub context_window: Option<usize>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::default(),
            kv_dtype: KvDtype::default(),
            attention: AttentionKind::default(),
            precision: MatmulPrecision::default(),
            kv_size: KvSize::default(),
            block_size: 32,
            threads: 0,
            context_window: None,
        }
    }
}

impl EngineOptions {
    /// Checks what does not depend on the model.
    pub fn validate(&self) -> Result<(), EngineError> {
        if !self.block_size.is_power_of_two() || self.block_size > 256 {
            return Err(EngineError::InvalidOption(format!(
                "the block size is {} tokens; it must be a power of two from 1 to 256",
                self.block_size
            )));
        }
        if self.kv_size == KvSize::Blocks(0) {
            return Err(EngineError::InvalidOption(
                "the KV pool must have at least one block".to_owned(),
            ));
        }
        if self.context_window == Some(0) {
            return Err(EngineError::InvalidOption(
                "the context window must be at least one token".to_owned(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_parse_and_print_alike() {
        for name in ["auto", "cpu", "metal", "cuda:0", "cuda:3"] {
            let device: DeviceChoice = name.parse().expect("a device");
            assert_eq!(device.to_string(), name);
        }
        assert_eq!(
            "cuda".parse::<DeviceChoice>().expect("a device"),
            DeviceChoice::Cuda(0)
        );
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn precisions_parse_and_print_alike() {
        for name in ["auto", "exact", "fast"] {
            let precision: MatmulPrecision = name.parse().expect("a precision");
            assert_eq!(precision.to_string(), name);
        }
        assert!("f32".parse::<MatmulPrecision>().is_err());
        assert_eq!(
            MatmulPrecision::Exact.on_this_machine(),
            Precision::Exact,
            "whatever the machine has"
        );
    }

    #[cfg(not(feature = "metal"))]
    #[test]
    fn a_device_that_was_not_built_is_a_clear_error() {
        let error = DeviceChoice::Metal
            .open()
            .expect_err("not built")
            .to_string();
        assert!(error.contains("--features metal"), "{error}");
    }

    #[test]
    fn block_sizes_are_powers_of_two() {
        for (size, valid) in [
            (0, false),
            (1, true),
            (24, false),
            (256, true),
            (512, false),
        ] {
            let options = EngineOptions {
                block_size: size,
                ..Default::default()
            };
            assert_eq!(options.validate().is_ok(), valid, "block size {size}");
        }
    }
}
