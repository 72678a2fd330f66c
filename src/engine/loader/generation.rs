//! What `generation_config.json` recommends for requests that leave sampling open.

use super::error::LoadError;
use super::json::JsonObject;

/// A model's own sampling defaults; None where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RecommendedSampling {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<usize>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl RecommendedSampling {
    /// Reads Hugging Face's names. `do_sample: false` is greedy, whatever else stands there.
    pub(super) fn from_json(json: &JsonObject) -> Result<Self, LoadError> {
        let number = |key, minimum: f64, maximum: f64| match json.number(key)? {
            Some(number) if !(minimum..=maximum).contains(&number) => {
                let expected = format!("must be between {minimum} and {maximum}, not {number}");
                Err(json.error(key, expected))
            }
            number => Ok(number.map(|number| number as f32)),
        };
        let read = Self {
            temperature: number("temperature", 0.0, 2.0)?,
            top_p: number("top_p", 0.0, 1.0)?,
            top_k: json.count("top_k")?,
            min_p: number("min_p", 0.0, 1.0)?,
            repetition_penalty: number("repetition_penalty", 0.01, 10.0)?,
        };
        Ok(match json.flag("do_sample")? {
            Some(false) => Self {
                temperature: Some(0.0),
                repetition_penalty: read.repetition_penalty,
                ..Self::default()
            },
            _ => read,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<RecommendedSampling, LoadError> {
        RecommendedSampling::from_json(&JsonObject::parse(
            "generation_config.json",
            text.as_bytes(),
        )?)
    }

    #[test]
    fn what_stands_there_is_recommended() {
        let found = read(r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95}"#);
        let expected = RecommendedSampling {
            temperature: Some(0.6),
            top_p: Some(0.95),
            top_k: Some(20),
            ..RecommendedSampling::default()
        };
        assert_eq!(found.unwrap(), expected);
        assert_eq!(read("{}").unwrap(), RecommendedSampling::default());
    }

    #[test]
    fn without_sampling_it_is_greedy() {
        let found = read(r#"{"do_sample": false, "temperature": 0.6, "top_k": 20}"#).unwrap();
        assert_eq!((found.temperature, found.top_k), (Some(0.0), None));
    }

    #[test]
    fn impossible_values_are_named() {
        let error = read(r#"{"top_p": 2}"#).unwrap_err().to_string();
        assert!(error.contains("top_p") && error.contains('2'), "{error}");
    }
}
