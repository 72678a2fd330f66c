//! *mixed*: short and long requests that arrive at random, whatever becomes of those before them.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Round, RoundError, Workload, sizes_json, unique_tokens};
use crate::bench::arguments::{Sizes, WorkloadName};
use crate::bench::client::Message;
use crate::bench::crowd::together;
use crate::bench::prompts::Prompts;
use crate::bench::target::Target;

/// Share of long requests.
const LONG_SHARE: f64 = 0.3;
/// Tokens of short prompts.
const SHORT: (usize, usize) = (40, 160);

pub struct Mixed {
    requests: usize,
    /// Mean arrivals a second.
    rate: f64,
    /// Tokens of the longest prompt; long ones have at least half of it.
    prompt_tokens: usize,
    /// Tokens out of long requests; short ones have half of it.
    output_tokens: usize,
}

/// A request of the plan.
struct Arrival {
    /// From the start of the round.
    after: Duration,
    messages: [Message; 1],
    output_tokens: usize,
}

impl Mixed {
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            requests: sizes.agents.unwrap_or(32),
            rate: sizes.rate.unwrap_or(2.0),
            prompt_tokens: sizes.prompt_tokens.unwrap_or(2000),
            output_tokens: sizes.output_tokens.unwrap_or(64),
        }
    }

    fn plan(&self, target: &Target, prompts: &mut Prompts) -> Vec<Arrival> {
        let mut after = 0.0;
        let mut next = |_| {
            after += prompts.pause(self.rate);
            let long = prompts.chance(LONG_SHARE);
            let (tokens, output_tokens) = if long {
                let tokens = prompts.between(self.prompt_tokens / 2, self.prompt_tokens);
                (tokens, self.output_tokens)
            } else {
                let (least, most) = SHORT;
                let tokens = prompts.between(least, most).min(self.prompt_tokens);
                (tokens, self.output_tokens.div_ceil(2))
            };
            let text = prompts.text(target.scale.words_for(tokens));
            Arrival {
                after: Duration::from_secs_f64(after),
                messages: [Message::user(text)],
                output_tokens,
            }
        };
        (0..self.requests).map(&mut next).collect()
    }
}

impl Workload for Mixed {
    fn name(&self) -> WorkloadName {
        WorkloadName::Mixed
    }

    fn describe(&self) -> String {
        format!(
            "{} requests arrive at random, {} a second in the mean; {:.0} % long ({} to {} tokens in, {} out), \
             the others short (up to {} in, {} out)",
            self.requests,
            self.rate,
            LONG_SHARE * 100.0,
            self.prompt_tokens / 2,
            self.prompt_tokens,
            self.output_tokens,
            SHORT.1.min(self.prompt_tokens),
            self.output_tokens.div_ceil(2),
        )
    }

    fn parameters(&self) -> Value {
        let mut parameters = sizes_json(&[
            ("requests", self.requests),
            ("prompt_tokens", self.prompt_tokens),
            ("output_tokens", self.output_tokens),
        ]);
        parameters["rate_per_s"] = json!(self.rate);
        parameters["long_share"] = json!(LONG_SHARE);
        parameters
    }

    fn run(&self, target: &Target, prompts: &mut Prompts) -> Result<Round, RoundError> {
        let plan = self.plan(target, prompts);
        let began = Instant::now();
        let (_, results) = together(plan.len(), |number| {
            let arrival = &plan[number];
            std::thread::sleep((began + arrival.after).saturating_duration_since(Instant::now()));
            target.client.ask(&arrival.messages, arrival.output_tokens)
        })?;
        let unique: Option<u64> = results
            .iter()
            .map(|answer| unique_tokens(target, answer))
            .sum();
        Ok(Round::of(began, results, unique))
    }
}
