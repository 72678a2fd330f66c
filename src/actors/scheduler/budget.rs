//! How many tokens a step may hold, learnt from how long steps take.

use std::time::Duration;

use crate::engine::step::StepStatistics;

/// The weight of the newest measurement.
const NEWEST: f64 = 0.3;

/// How much longer a step may take when nobody waits for a next token, only new requests for their turn.
const PATIENCE: u32 = 5;

/// The token budget of a step: as much as fits into the target time, so that a long prompt on a slow
/// device neither stalls running streams nor keeps new requests out for long.
#[derive(Debug)]
pub struct TokenBudget {
    /// Tokens of a step at most.
    limit: usize,
    /// Tokens of a step that it never goes below.
    floor: usize,
    /// How long a step with decode rows should take at most.
    target: Duration,
    /// Tokens a second in steps that held prefill chunks, once there was one.
    rate: Option<f64>,
}

impl TokenBudget {
    /// A budget between `floor` and `limit` tokens for steps of at most `target`.
    pub fn new(limit: usize, floor: usize, target: Duration) -> Self {
        Self {
            limit,
            floor: floor.min(limit),
            target,
            rate: None,
        }
    }

    /// Learns from a step that held prefill chunks.
    pub fn observe(&mut self, step: &StepStatistics) {
        if step.tokens < self.floor || step.duration.is_zero() {
            return;
        }
        let rate = step.tokens as f64 / step.duration.as_secs_f64();
        self.rate = Some(self.rate.map_or(rate, |old| old + NEWEST * (rate - old)));
    }

    /// Tokens for the next step.
    pub fn tokens(&self, has_decode_rows: bool) -> usize {
        let target = if has_decode_rows {
            self.target
        } else {
            self.target * PATIENCE
        };
        let fitting = |rate: f64| (rate * target.as_secs_f64()) as usize;
        self.rate.map_or(self.limit, |rate| {
            fitting(rate).clamp(self.floor, self.limit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(tokens: usize, millis: u64) -> StepStatistics {
        StepStatistics {
            sequences: 1,
            tokens,
            duration: Duration::from_millis(millis),
        }
    }

    #[test]
    fn a_slow_device_gets_smaller_chunks_beside_decode_rows() {
        let mut budget = TokenBudget::new(512, 32, Duration::from_millis(200));
        assert_eq!(budget.tokens(true), 512, "nothing is known yet");
        for _ in 0..20 {
            budget.observe(&step(512, 1000));
        }
        assert_eq!(budget.tokens(true), 102);
        assert_eq!(
            budget.tokens(false),
            512,
            "five times as long is enough for the limit"
        );
        for _ in 0..50 {
            budget.observe(&step(100, 10_000));
        }
        assert_eq!(budget.tokens(true), 32);
        assert_eq!(budget.tokens(false), 32);
    }

    #[test]
    fn small_steps_teach_nothing() {
        let mut budget = TokenBudget::new(512, 32, Duration::from_millis(200));
        budget.observe(&step(3, 1000));
        budget.observe(&step(100, 0));
        assert_eq!(budget.tokens(true), 512);
    }
}
