//! What a model's matrices become, by the names that users write.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;
use candle_core::quantized::GgmlDType;

use crate::engine::loader::gguf::ElementType;

/// A GGUF file type (`general.file_type`): one element type for all matrices, or a mix of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum FileType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q8_0,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
}

impl FileType {
    const ALL: [(FileType, &'static str); 10] = [
        (FileType::Q4_0, "q4_0"),
        (FileType::Q4_K_S, "q4_k_s"),
        (FileType::Q4_K_M, "q4_k_m"),
        (FileType::Q5_K_S, "q5_k_s"),
        (FileType::Q5_K_M, "q5_k_m"),
        (FileType::Q6_K, "q6_k"),
        (FileType::Q8_0, "q8_0"),
        (FileType::F16, "f16"),
        (FileType::BF16, "bf16"),
        (FileType::F32, "f32"),
    ];

    /// Its number in `general.file_type` (`llama_ftype`).
    pub(super) fn number(self) -> u32 {
        match self {
            FileType::F32 => 0,
            FileType::F16 => 1,
            FileType::Q4_0 => 2,
            FileType::Q8_0 => 7,
            FileType::Q4_K_S => 14,
            FileType::Q4_K_M => 15,
            FileType::Q5_K_S => 16,
            FileType::Q5_K_M => 17,
            FileType::Q6_K => 18,
            FileType::BF16 => 32,
        }
    }

    /// The element type of a matrix for which the mix makes no exception.
    pub(super) fn base(self) -> ElementType {
        match self {
            FileType::F32 => ElementType::Dense(DType::F32),
            FileType::F16 => ElementType::Dense(DType::F16),
            FileType::BF16 => ElementType::Dense(DType::BF16),
            FileType::Q4_0 => ElementType::Quantized(GgmlDType::Q4_0),
            FileType::Q8_0 => ElementType::Quantized(GgmlDType::Q8_0),
            FileType::Q4_K_S | FileType::Q4_K_M => ElementType::Quantized(GgmlDType::Q4K),
            FileType::Q5_K_S | FileType::Q5_K_M => ElementType::Quantized(GgmlDType::Q5K),
            FileType::Q6_K => ElementType::Quantized(GgmlDType::Q6K),
        }
    }

    /// Whether matrices are stored in blocks with common scales.
    pub(super) fn is_quantized(self) -> bool {
        matches!(self.base(), ElementType::Quantized(_))
    }
}

impl FromStr for FileType {
    type Err = String;

    /// Upper or lower case; `q4_k` and `q5_k` are the medium mixes.
    fn from_str(text: &str) -> Result<Self, String> {
        let name = match text.to_ascii_lowercase().as_str() {
            "q4_k" => "q4_k_m".to_owned(),
            "q5_k" => "q5_k_m".to_owned(),
            other => other.to_owned(),
        };
        let names = Self::ALL.map(|(_, name)| name).join(", ");
        Self::ALL
            .into_iter()
            .find_map(|(kind, known)| (known == name).then_some(kind))
            .ok_or_else(|| format!("unknown type '{text}': use one of {names}"))
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::ALL.iter().find(|(kind, _)| kind == self);
        f.write_str(name.map_or("", |(_, name)| name))
    }
}

/// What `--quantize` asks for when a model is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Quantize {
    /// Weights as they are in the files.
    #[default]
    None,
    /// On the CPU: as they are when memory suffices, else in Q8_0.
    Auto,
    /// Always one of the quantized types.
    Type(FileType),
}

impl FromStr for Quantize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("unknown quantization '{text}': use q8_0, q6_k, q5_k, q4_k, q4_0, none or auto")
        };
        match text.to_ascii_lowercase().as_str() {
            "none" => Ok(Self::None),
            "auto" => Ok(Self::Auto),
            name => match name.parse::<FileType>() {
                Ok(kind) if kind.is_quantized() => Ok(Self::Type(kind)),
                _ => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Auto => f.write_str("auto"),
            Self::Type(kind) => kind.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print_alike() {
        for (kind, name) in FileType::ALL {
            assert_eq!(name.parse(), Ok(kind));
            assert_eq!(name.to_uppercase().parse(), Ok(kind));
            assert_eq!(kind.to_string(), name);
        }
        assert_eq!("q4_k".parse(), Ok(FileType::Q4_K_M));
        let error = "q9".parse::<FileType>().unwrap_err();
        assert!(
            error.contains("'q9'") && error.contains("q4_k_m"),
            "{error}"
        );
    }

    #[test]
    fn loading_quantizes_to_blocks_only() {
        assert_eq!("q5_k".parse(), Ok(Quantize::Type(FileType::Q5_K_M)));
        assert_eq!("auto".parse(), Ok(Quantize::Auto));
        for wrong in ["f16", "", "q3_k"] {
            let error = wrong.parse::<Quantize>().unwrap_err();
            assert!(error.contains("q4_k") && error.contains("auto"), "{error}");
        }
    }
}
