//! How many prompt tokens a step may hold, learnt from how long steps take.
//!
//! While answers are being written, each of their streams waits for every step, so a step that also
//! holds prompt tokens should take at most [`slowdown`](TokenBudget::new) times as long as one without.
//! Two costs tell how many tokens that is: what a step of decode rows takes by itself, and what each
//! prompt token adds to it. Neither rests on a single measurement. Where more requests wait for a first
//! token than streams for a next one, prompts get more time by the same ratio, up to the target time of a
//! step. And a crowd whose prompts a few long steps clear gets those: whoever begins together shares all
//! steps from then on, and each step costs nearly the same for few rows as for many. The budget decides only
//! how much is computed at once: results do not depend on it.

use std::collections::VecDeque;
use std::time::Duration;

/// The weight of the newest measurement in a mean.
const NEWEST: f64 = 0.3;

/// How many times longer than the target a step may take when nobody waits for a next token, only new
/// requests for their turn.
const PATIENCE: u32 = 5;

/// Steps with decode rows for each that may take longer than usual: rare enough to stay out of the 95th
/// percentile of the time between tokens.
const STEPS_FOR_A_LONG: u32 = 32;

/// Long steps that may be saved up.
const LONG_STEPS: u32 = 4;

/// Streams for each of several waiting requests, at most, that stand back for these.
const STREAMS_OF_A_CROWD: usize = 3;

/// Measurements of which a median is taken.
const MEDIAN_OF: usize = 9;

/// Steps of nothing but decode rows that are remembered.
const DECODE_STEPS: usize = 64;

/// Fewer prompt tokens than these teach nothing of what one costs.
const TELLING: usize = 8;

/// What was computed in a step, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepCost {
    pub decode_rows: usize,
    pub prefill_tokens: usize,
    pub duration: Duration,
}

/// Prompts that are not computed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingPrompts {
    pub tokens: usize,
    /// Requests that wait for them, running ones included.
    pub requests: usize,
}

/// Seconds that steps of nothing but decode rows took lately.
#[derive(Debug, Default)]
struct DecodeCosts {
    /// The latest [`DECODE_STEPS`], rows and seconds, the newest first.
    steps: VecDeque<(usize, f64)>,
}

impl DecodeCosts {
    fn observe(&mut self, rows: usize, seconds: f64) {
        self.steps.truncate(DECODE_STEPS - 1);
        self.steps.push_front((rows, seconds));
    }

    /// The median of the steps that had the most similar number of rows, of such the newest.
    fn estimate(&self, rows: usize) -> Option<f64> {
        let mut steps: Vec<_> = self.steps.iter().copied().collect();
        steps.sort_by_key(|step| step.0.abs_diff(rows));
        steps.truncate(MEDIAN_OF);
        // Not of others: one step of as many rows tells more than many of half as many.
        let nearest = steps.first()?.0;
        let farthest = nearest.abs_diff(rows) + nearest / 8;
        steps.retain(|step| step.0.abs_diff(rows) <= farthest);
        steps.sort_by(|a, b| a.1.total_cmp(&b.1));
        steps.get(steps.len() / 2).map(|step| step.1)
    }
}

/// The mean cost of a token, in seconds, that no single measurement moves far.
#[derive(Debug, Default, Clone, Copy)]
struct TokenCost(Option<f64>);

impl TokenCost {
    fn observe(&mut self, seconds: f64) {
        self.0 = Some(match self.0 {
            Some(mean) => mean + NEWEST * (seconds.clamp(mean / 2.0, mean * 2.0) - mean),
            None => seconds,
        });
    }

    /// As many tokens as fit into `seconds`, if the cost is known.
    fn fitting(&self, seconds: f64) -> Option<usize> {
        // Sums of times are off by their rounding: a token that fits but for that fits.
        self.0.map(|cost| (seconds / cost + 1e-6) as usize)
    }
}

/// See the module.
#[derive(Debug)]
pub struct TokenBudget {
    /// Tokens of a step at most, decode rows included.
    limit: usize,
    /// Prompt tokens that a step may always hold.
    floor: usize,
    target: Duration,
    slowdown: f64,
    decode: DecodeCosts,
    /// Of a prompt token in a step without decode rows.
    alone: TokenCost,
    /// What a prompt token adds to a step of decode rows; at first the same.
    beside: TokenCost,
    /// Steps with decode rows that no long step was had for.
    saved: u32,
}

impl TokenBudget {
    /// A budget for steps of at most `limit` tokens, and of at least `floor` prompt tokens. A step with
    /// decode rows should take at most `slowdown` times as long as without prompt tokens; or up to
    /// `target` once in a while, and as long as nothing is known of decode steps; or a few times `target`
    /// for a crowd.
    pub fn new(limit: usize, floor: usize, target: Duration, slowdown: f64) -> Self {
        Self {
            limit,
            floor: floor.clamp(1, limit.max(1)),
            target,
            slowdown: slowdown.max(1.0),
            decode: DecodeCosts::default(),
            alone: TokenCost::default(),
            beside: TokenCost::default(),
            saved: LONG_STEPS * STEPS_FOR_A_LONG,
        }
    }

    /// Learns from a step.
    pub fn observe(&mut self, step: StepCost) {
        let seconds = step.duration.as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        if step.prefill_tokens == 0 {
            if step.decode_rows > 0 {
                self.decode.observe(step.decode_rows, seconds);
            }
            return;
        }
        if step.prefill_tokens < TELLING.min(self.floor) {
            return;
        }
        let tokens = step.prefill_tokens as f64;
        if step.decode_rows == 0 {
            self.alone.observe(seconds / tokens);
        } else if let Some(decode) = self.decode.estimate(step.decode_rows) {
            self.beside.0 = self.beside.0.or(self.alone.0);
            // Less than a quarter of a decode step is within what decode steps differ among themselves.
            self.beside
                .observe((seconds - decode).max(decode / 4.0) / tokens);
        }
    }

    /// Prompt tokens that the next step may hold beside `decode_rows` rows. At least 1.
    pub fn prefill_tokens(&self, decode_rows: usize, pending: PendingPrompts) -> usize {
        let most = self.limit.saturating_sub(decode_rows).max(self.floor);
        if decode_rows == 0 {
            let target = (self.target * PATIENCE).as_secs_f64();
            let fitting = self.alone.fitting(target).unwrap_or(self.limit);
            return fitting.clamp(self.floor, most);
        }
        if pending.tokens == 0 {
            return self.floor;
        }
        let decode = self.decode.estimate(decode_rows);
        let usual = self
            .usual_tokens(decode, decode_rows, pending.requests)
            .clamp(self.floor, most);
        let long_steps = (self.saved / STEPS_FOR_A_LONG) as usize;
        if long_steps > 0 {
            let long = |target: Duration| {
                let tokens = self.tokens_beside(decode, target.as_secs_f64());
                tokens.clamp(usual, most)
            };
            let once = long(self.target);
            if pending.tokens <= once {
                return once;
            }
            let is_crowd =
                pending.requests > 1 && pending.requests * STREAMS_OF_A_CROWD >= decode_rows;
            let crowded = long(self.target * PATIENCE);
            if is_crowd && pending.tokens <= crowded * long_steps {
                return crowded;
            }
        }
        usual
    }

    /// A step of these is on its way to the engine.
    pub fn planned(&mut self, decode_rows: usize, prefill_tokens: usize, waiting: usize) {
        if decode_rows == 0 {
            return;
        }
        // Most steps hold no prompt tokens, and take no estimate.
        let is_long = prefill_tokens > self.floor && {
            let decode = self.decode.estimate(decode_rows);
            prefill_tokens > self.usual_tokens(decode, decode_rows, waiting)
        };
        if is_long {
            self.saved = self.saved.saturating_sub(STEPS_FOR_A_LONG);
        } else {
            self.saved = (self.saved + 1).min(LONG_STEPS * STEPS_FOR_A_LONG);
        }
    }

    /// Prompt tokens that make a step last `slowdown` times as long as its decode rows do by themselves; more
    /// if more requests wait for a first token than there are rows. `decode`: what the rows take, if that is known.
    fn usual_tokens(&self, decode: Option<f64>, decode_rows: usize, waiting: usize) -> usize {
        let longest = self.target.as_secs_f64();
        let target = match decode {
            Some(decode) => {
                let crowd = (waiting as f64 / decode_rows.max(1) as f64).max(1.0);
                let crowded = decode * (1.0 + (self.slowdown - 1.0) * crowd);
                crowded.min(longest.max(self.slowdown * decode))
            }
            None => longest,
        };
        self.tokens_beside(decode, target)
    }

    /// Prompt tokens that fit into a step of `seconds` beside rows that take `decode`.
    fn tokens_beside(&self, decode: Option<f64>, seconds: f64) -> usize {
        let left = (seconds - decode.unwrap_or(0.0)).max(0.0);
        let beside = self.beside.fitting(left);
        beside.or_else(|| self.alone.fitting(left)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> TokenBudget {
        TokenBudget::new(512, 32, Duration::from_millis(200), 2.0)
    }

    fn step(decode_rows: usize, prefill_tokens: usize, millis: f64) -> StepCost {
        StepCost {
            decode_rows,
            prefill_tokens,
            duration: Duration::from_secs_f64(millis / 1000.0),
        }
    }

    /// A prompt that no single step clears.
    const LONG: PendingPrompts = one(1_000_000);

    /// One request's prompt.
    const fn one(tokens: usize) -> PendingPrompts {
        PendingPrompts {
            tokens,
            requests: 1,
        }
    }

    #[test]
    fn a_device_of_which_nothing_is_known_gets_full_steps_alone_and_careful_ones_beside_streams() {
        assert_eq!(budget().prefill_tokens(0, LONG), 512);
        assert_eq!(budget().prefill_tokens(3, LONG), 32);
    }

    #[test]
    fn prompts_alone_fill_the_step_unless_the_device_is_slow() {
        let mut budget = budget();
        budget.observe(step(0, 512, 500.0));
        assert_eq!(budget.prefill_tokens(0, LONG), 512);
        for _ in 0..20 {
            budget.observe(step(0, 512, 5120.0));
        }
        let tokens = budget.prefill_tokens(0, LONG);
        assert!((100..=101).contains(&tokens), "a second's worth: {tokens}");
    }

    /// Plays steps on a device where 15 decode rows take 40 ms and each prompt token adds `cost` ms as
    /// long as they do not fit into `free` ms that would pass anyway. Returns the durations.
    fn play(budget: &mut TokenBudget, steps: usize, cost: f64, free: f64) -> Vec<f64> {
        (0..steps)
            .map(|_| {
                let tokens = budget.prefill_tokens(15, LONG);
                budget.planned(15, tokens, 1);
                let millis = 40.0 + (cost * tokens as f64 - free).max(0.0);
                budget.observe(step(15, tokens, millis));
                millis
            })
            .collect()
    }

    #[test]
    fn a_mixed_step_takes_about_twice_as_long_as_a_decode_step() {
        for cost in [0.1, 0.2, 0.5, 1.0] {
            for free in [0.0, 20.0] {
                let mut budget = budget();
                budget.observe(step(0, 512, 512.0 * cost));
                for _ in 0..20 {
                    budget.observe(step(15, 0, 40.0));
                }
                let durations = play(&mut budget, 100, cost, free);
                let worst = durations.iter().copied().fold(0.0, f64::max);
                let last = durations[99];
                assert!(worst <= 90.0, "{cost} ms a token, {free} free: {worst} ms");
                let full = cost * 497.0 - free < 40.0;
                assert!(full || last >= 70.0, "{cost} ms a token: only {last} ms");
            }
        }
    }

    #[test]
    fn the_slowdown_is_what_was_asked_for() {
        let chunk = |slowdown| {
            let mut budget = TokenBudget::new(512, 8, Duration::from_millis(200), slowdown);
            budget.observe(step(0, 100, 100.0));
            budget.observe(step(4, 0, 50.0));
            budget.prefill_tokens(4, LONG)
        };
        assert_eq!([1.0, 1.5, 2.0, 3.0].map(chunk), [8, 25, 50, 100]);
    }

    #[test]
    fn a_crowd_that_waits_gets_time_by_its_size_up_to_the_target() {
        let mut budget = budget();
        budget.observe(step(0, 100, 100.0));
        budget.observe(step(10, 0, 40.0));
        let tokens = |requests| {
            let tokens = 1_000_000;
            budget.prefill_tokens(10, PendingPrompts { tokens, requests })
        };
        assert_eq!([1, 10, 20, 30, 1000].map(tokens), [40, 40, 80, 120, 160]);
    }

    #[test]
    fn a_crowd_that_a_few_long_steps_clear_gets_them() {
        let mut budget = TokenBudget::new(512, 32, Duration::from_millis(100), 2.0);
        budget.observe(step(0, 100, 100.0));
        budget.observe(step(12, 0, 40.0));
        let tokens = |budget: &TokenBudget, tokens, requests| {
            budget.prefill_tokens(12, PendingPrompts { tokens, requests })
        };
        // 500 ms less those of the decode rows, four times.
        assert_eq!(tokens(&budget, 1840, 4), 460);
        assert_eq!(tokens(&budget, 1841, 4), 40, "they would not clear it");
        assert_eq!(tokens(&budget, 1840, 3), 40, "too few for so many streams");
        assert_eq!(tokens(&budget, 1840, 1), 40, "one is no crowd");
        for left in [1380, 920, 460] {
            budget.planned(12, 460, 4);
            assert_eq!(tokens(&budget, left, 4), 460);
            assert_eq!(tokens(&budget, left + 1, 4), 40, "long steps are used up");
        }
        budget.planned(12, 460, 4);
        assert_eq!(tokens(&budget, 30, 4), 40);
    }

    #[test]
    fn prefill_goes_on_by_a_block_where_every_token_is_dear() {
        let mut budget = budget();
        budget.observe(step(0, 100, 10_000.0));
        budget.observe(step(4, 0, 50.0));
        assert_eq!(budget.prefill_tokens(4, LONG), 32);
        assert_eq!(
            budget.prefill_tokens(600, LONG),
            32,
            "rows alone fill the step"
        );
    }

    #[test]
    fn a_hiccup_changes_little() {
        let mut budget = budget();
        budget.observe(step(0, 512, 256.0));
        for _ in 0..9 {
            budget.observe(step(15, 0, 40.0));
        }
        assert_eq!(budget.prefill_tokens(15, LONG), 80);
        budget.observe(step(15, 0, 4000.0));
        budget.observe(step(15, 0, 1.0));
        assert_eq!(budget.prefill_tokens(15, LONG), 80);
        budget.observe(step(15, 80, 80.0));
        budget.observe(step(15, 80, 8000.0));
        let tokens = budget.prefill_tokens(15, LONG);
        assert!((60..80).contains(&tokens), "{tokens}");
    }

    #[test]
    fn a_step_costs_what_those_with_about_as_many_rows_did_lately() {
        let mut costs = DecodeCosts::default();
        assert_eq!(costs.estimate(9), None);
        costs.observe(20, 0.06);
        costs.observe(1, 0.03);
        costs.observe(9, 0.04);
        assert_eq!(
            [1, 3, 12, 16, 31, 1000].map(|rows| costs.estimate(rows)),
            [0.03, 0.03, 0.04, 0.06, 0.06, 0.06].map(Some)
        );
        for _ in 0..MEDIAN_OF {
            costs.observe(16, 0.05);
        }
        assert_eq!(costs.estimate(15), Some(0.05), "one row more or less");
        assert_eq!(costs.estimate(20), Some(0.06));
        for _ in 0..DECODE_STEPS {
            costs.observe(2, 0.01);
        }
        assert_eq!(costs.estimate(20), Some(0.01), "the others were long ago");
        assert_eq!(costs.steps.len(), DECODE_STEPS);
    }

    #[test]
    fn once_in_a_while_a_longer_step_clears_all_prompts() {
        let mut budget = budget();
        budget.observe(step(0, 100, 100.0));
        budget.observe(step(15, 0, 40.0));
        assert_eq!(budget.prefill_tokens(15, one(160)), 160);
        assert_eq!(
            budget.prefill_tokens(15, one(161)),
            40,
            "that would not clear them"
        );
        for _ in 0..LONG_STEPS {
            assert_eq!(budget.prefill_tokens(15, one(100)), 160);
            budget.planned(15, 100, 1);
        }
        for _ in 0..STEPS_FOR_A_LONG {
            assert_eq!(budget.prefill_tokens(15, one(100)), 40);
            budget.planned(15, 40, 1);
        }
        assert_eq!(budget.prefill_tokens(15, one(100)), 160);
    }

    #[test]
    fn a_few_tokens_and_no_time_teach_nothing() {
        let mut budget = budget();
        budget.observe(step(0, 3, 1000.0));
        budget.observe(step(0, 100, 0.0));
        budget.observe(step(3, 0, 0.0));
        assert_eq!(budget.prefill_tokens(0, LONG), 512);
        assert_eq!(budget.prefill_tokens(3, LONG), 32);
    }
}
