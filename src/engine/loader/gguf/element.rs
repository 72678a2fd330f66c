//! Element types of GGUF tensors.

use std::fmt;

use candle_core::DType;
use candle_core::quantized::GgmlDType;

/// A tensor's element type, supported or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementType {
    Dense(DType),
    Quantized(GgmlDType),
    /// The number in the file.
    Unsupported(u32),
}

/// How elements lie in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockLayout {
    pub block_elements: usize,
    pub block_bytes: usize,
}

impl ElementType {
    pub const SUPPORTED: &'static str =
        "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";

    /// The supported types by the numbers of ggml's `ggml_type`.
    const NUMBERED: [(u32, ElementType); 11] = [
        (0, ElementType::Dense(DType::F32)),
        (1, ElementType::Dense(DType::F16)),
        (30, ElementType::Dense(DType::BF16)),
        (2, ElementType::Quantized(GgmlDType::Q4_0)),
        (3, ElementType::Quantized(GgmlDType::Q4_1)),
        (6, ElementType::Quantized(GgmlDType::Q5_0)),
        (7, ElementType::Quantized(GgmlDType::Q5_1)),
        (8, ElementType::Quantized(GgmlDType::Q8_0)),
        (12, ElementType::Quantized(GgmlDType::Q4K)),
        (13, ElementType::Quantized(GgmlDType::Q5K)),
        (14, ElementType::Quantized(GgmlDType::Q6K)),
    ];

    pub fn from_id(id: u32) -> Self {
        Self::NUMBERED
            .iter()
            .find(|(number, _)| *number == id)
            .map_or(ElementType::Unsupported(id), |(_, element)| *element)
    }

    /// The number in a file. A type without one is never written, since it has no layout either.
    pub fn id(self) -> u32 {
        match self {
            ElementType::Unsupported(id) => id,
            known => Self::NUMBERED
                .iter()
                .find(|(_, element)| *element == known)
                .map_or(u32::MAX, |(number, _)| *number),
        }
    }

    /// `None` for unsupported types.
    pub fn layout(self) -> Option<BlockLayout> {
        match self {
            ElementType::Dense(element) => Some(BlockLayout {
                block_elements: 1,
                block_bytes: element.size_in_bytes(),
            }),
            ElementType::Quantized(element) => Some(BlockLayout {
                block_elements: element.block_size(),
                block_bytes: element.type_size(),
            }),
            ElementType::Unsupported(_) => None,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unsupported = match self {
            ElementType::Dense(element) => return f.write_str(&element.as_str().to_uppercase()),
            // Q4K is written Q4_K everywhere else.
            ElementType::Quantized(element) => {
                return f.write_str(&format!("{element:?}").replace('K', "_K"));
            }
            ElementType::Unsupported(id) => *id,
        };
        let name = match unsupported {
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            other => return write!(f, "number {other}"),
        };
        f.write_str(name)
    }
}
