//! *streams*: many short requests at once, each with a longer answer: how far batching carries.

use serde_json::Value;

use super::{Round, RoundError, Workload, sizes_json, unique_tokens};
use crate::bench::arguments::{Sizes, WorkloadName};
use crate::bench::client::Message;
use crate::bench::crowd::together;
use crate::bench::prompts::Prompts;
use crate::bench::target::Target;

pub struct Streams {
    agents: usize,
    prompt_tokens: usize,
    output_tokens: usize,
}

impl Streams {
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            agents: sizes.agents.unwrap_or(64),
            prompt_tokens: sizes.prompt_tokens.unwrap_or(64),
            output_tokens: sizes.output_tokens.unwrap_or(128),
        }
    }

    fn streams(
        &self,
        count: usize,
        target: &Target,
        prompts: &mut Prompts,
    ) -> Result<Round, RoundError> {
        let words = target.scale.words_for(self.prompt_tokens);
        let texts: Vec<String> = (0..count).map(|_| prompts.text(words)).collect();
        let (started, results) = together(count, |agent| {
            let messages = [Message::user(texts[agent].clone())];
            target.client.ask(&messages, self.output_tokens)
        })?;
        let unique: Option<u64> = results
            .iter()
            .map(|answer| unique_tokens(target, answer))
            .sum();
        Ok(Round::of(started, results, unique))
    }
}

impl Workload for Streams {
    fn name(&self) -> WorkloadName {
        WorkloadName::Streams
    }

    fn describe(&self) -> String {
        format!(
            "{} streams start together with different cold prompts of {} tokens, {} out",
            self.agents, self.prompt_tokens, self.output_tokens
        )
    }

    fn parameters(&self) -> Value {
        sizes_json(&[
            ("agents", self.agents),
            ("prompt_tokens", self.prompt_tokens),
            ("output_tokens", self.output_tokens),
        ])
    }

    fn figures(&self) -> &'static [(&'static str, &'static str)] {
        &[
            (
                "figures.one_stream_tokens_per_s",
                "one stream alone, tokens/s",
            ),
            (
                "figures.streams_ratio",
                "tokens/s of all streams over those of one",
            ),
        ]
    }

    fn run(&self, target: &Target, prompts: &mut Prompts) -> Result<Round, RoundError> {
        let alone = self.streams(1, target, prompts)?;
        let mut round = self.streams(self.agents, target, prompts)?;
        let rate = |round: &Round| {
            round
                .metrics
                .get("output_tokens_per_s")
                .filter(|rate| *rate > 0.0)
        };
        if let (Some(one), Some(all)) = (rate(&alone), rate(&round)) {
            round.metrics.insert("figures.one_stream_tokens_per_s", one);
            round.metrics.insert("figures.streams_ratio", all / one);
        }
        round.add_beside(alone);
        Ok(round)
    }
}
