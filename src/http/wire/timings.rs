//! How long a request took, as llama-server tells it.

use std::time::Duration;

use serde_json::{Value, json};

/// Times of one sequence, or of all of a request's. What it waited in the queue counts to neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Prompt tokens that were found in the cache.
    pub cached_tokens: usize,
    /// The others.
    pub prompt_tokens: usize,
    /// From the beginning of prefill to the first token.
    pub prompt_time: Duration,
    pub predicted_tokens: usize,
    /// From the first token to the end.
    pub predicted_time: Duration,
}

impl Timings {
    /// Adds a sequence that was computed beside this one. `same_prompt`: its prompt is counted already.
    pub fn add(&mut self, other: Timings, same_prompt: bool) {
        if !same_prompt {
            self.cached_tokens += other.cached_tokens;
            self.prompt_tokens += other.prompt_tokens;
        }
        self.prompt_time = self.prompt_time.max(other.prompt_time);
        self.predicted_tokens += other.predicted_tokens;
        self.predicted_time = self.predicted_time.max(other.predicted_time);
    }

    pub fn to_json(self) -> Value {
        json!({
            "cache_n": self.cached_tokens,
            "prompt_n": self.prompt_tokens,
            "prompt_ms": milliseconds(self.prompt_time),
            "prompt_per_token_ms": per_token(self.prompt_time, self.prompt_tokens),
            "prompt_per_second": per_second(self.prompt_tokens, self.prompt_time),
            "predicted_n": self.predicted_tokens,
            "predicted_ms": milliseconds(self.predicted_time),
            "predicted_per_token_ms": per_token(self.predicted_time, self.predicted_tokens),
            "predicted_per_second": per_second(self.predicted_tokens, self.predicted_time),
        })
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn per_token(time: Duration, tokens: usize) -> f64 {
    milliseconds(time) / tokens.max(1) as f64
}

fn per_second(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        tokens as f64 / time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timings() -> Timings {
        Timings {
            cached_tokens: 30,
            prompt_tokens: 10,
            prompt_time: Duration::from_millis(20),
            predicted_tokens: 5,
            predicted_time: Duration::from_millis(100),
        }
    }

    #[test]
    fn rates_are_tokens_over_time() {
        let expected = json!({
            "cache_n": 30, "prompt_n": 10, "prompt_ms": 20.0, "prompt_per_token_ms": 2.0, "prompt_per_second": 500.0,
            "predicted_n": 5, "predicted_ms": 100.0, "predicted_per_token_ms": 20.0, "predicted_per_second": 50.0,
        });
        assert_eq!(timings().to_json(), expected);
        let none = Timings::default().to_json();
        assert_eq!(none["predicted_per_second"], 0.0);
        assert_eq!(none["prompt_per_token_ms"], 0.0);
    }

    #[test]
    fn sequences_beside_each_other_share_time_and_prompt() {
        let mut all = timings();
        all.add(timings(), true);
        assert_eq!((all.prompt_tokens, all.predicted_tokens), (10, 10));
        assert_eq!(all.predicted_time, Duration::from_millis(100));
        all.add(timings(), false);
        assert_eq!((all.prompt_tokens, all.cached_tokens), (20, 60));
    }
}
