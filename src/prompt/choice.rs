//! The configured choice of formats.

use std::fmt;
use std::str::FromStr;

use super::reasoning::{self, ReasoningFormat};
use super::tools::{FORMATS, Format};

/// Which formats a model's output is read in.
#[derive(Debug, Clone, Copy, Default)]
pub struct FormatChoice {
    pub tools: ToolFormat,
    pub reasoning: ReasoningChoice,
}

/// How tool calls are written: found out from the chat template, or one of the formats by its name.
#[derive(Debug, Clone, Copy, Default)]
pub struct ToolFormat(pub(super) Option<&'static Format>);

/// How reasoning is set off: found out, not at all, or one of the formats by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReasoningChoice {
    #[default]
    Auto,
    /// All output is the answer.
    None,
    Named(ReasoningName),
}

/// A known form of reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningName(pub(super) &'static ReasoningFormat);

impl FromStr for ToolFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(ToolFormat(None));
        }
        match FORMATS.iter().find(|format| format.name == text) {
            Some(format) => Ok(ToolFormat(Some(format))),
            None => {
                let names: Vec<&str> = FORMATS.iter().map(|format| format.name).collect();
                Err(format!(
                    "unknown tool format '{text}': use auto, {}",
                    names.join(", ")
                ))
            }
        }
    }
}

impl PartialEq for ToolFormat {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.map_or("auto", |format| format.name))
    }
}

impl FromStr for ReasoningChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(ReasoningChoice::Auto),
            "none" => return Ok(ReasoningChoice::None),
            _ => {}
        }
        let mut formats = reasoning::FORMATS.iter();
        match formats.find(|format| format.name == text) {
            Some(format) => Ok(ReasoningChoice::Named(ReasoningName(format))),
            None => {
                let formats = reasoning::FORMATS.iter();
                let names: Vec<&str> = formats.map(|format| format.name).collect();
                Err(format!(
                    "unknown reasoning format '{text}': use auto, none, {}",
                    names.join(", ")
                ))
            }
        }
    }
}

impl fmt::Display for ReasoningChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReasoningChoice::Auto => "auto",
            ReasoningChoice::None => "none",
            ReasoningChoice::Named(ReasoningName(format)) => format.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_and_print_alike() {
        for format in FORMATS {
            let choice: ToolFormat = format.name.parse().unwrap();
            assert_eq!(choice.to_string(), format.name);
        }
        for format in reasoning::FORMATS {
            let choice: ReasoningChoice = format.name.parse().unwrap();
            assert_eq!(choice.to_string(), format.name);
        }
        assert_eq!("auto".parse(), Ok(ToolFormat::default()));
        assert_eq!("none".parse(), Ok(ReasoningChoice::None));
        let error = "xml".parse::<ToolFormat>().unwrap_err();
        assert!(
            error.contains("'xml'") && error.contains("qwen3_coder"),
            "{error}"
        );
        assert!("xml".parse::<ReasoningChoice>().is_err());
    }
}
