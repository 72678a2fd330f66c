//! *burst*: many agents send the same new prompt at once. A server that computes it once needs little more
//! than the time of one agent.

use serde_json::Value;

use super::{Round, RoundError, Workload, sizes_json, unique_tokens};
use crate::bench::arguments::{Sizes, WorkloadName};
use crate::bench::client::Message;
use crate::bench::crowd::together;
use crate::bench::prompts::Prompts;
use crate::bench::target::Target;

pub struct Burst {
    agents: usize,
    prompt_tokens: usize,
    output_tokens: usize,
}

impl Burst {
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            agents: sizes.agents.unwrap_or(16),
            prompt_tokens: sizes.prompt_tokens.unwrap_or(2000),
            output_tokens: sizes.output_tokens.unwrap_or(1),
        }
    }

    /// A round of so many agents with a prompt that is new.
    fn agents(
        &self,
        count: usize,
        target: &Target,
        prompts: &mut Prompts,
    ) -> Result<Round, RoundError> {
        let text = prompts.text(target.scale.words_for(self.prompt_tokens));
        let messages = [Message::user(text)];
        let (started, results) =
            together(count, |_| target.client.ask(&messages, self.output_tokens))?;
        let unique = results
            .first()
            .and_then(|first| unique_tokens(target, first));
        Ok(Round::of(started, results, unique))
    }
}

impl Workload for Burst {
    fn name(&self) -> WorkloadName {
        WorkloadName::Burst
    }

    fn describe(&self) -> String {
        format!(
            "{} agents send the same cold prompt of {} tokens at once, {} out",
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
            ("figures.one_agent_s", "one agent alone, seconds"),
            ("figures.burst_ratio", "all agents' time over one agent's"),
        ]
    }

    fn run(&self, target: &Target, prompts: &mut Prompts) -> Result<Round, RoundError> {
        let alone = self.agents(1, target, prompts)?;
        let mut round = self.agents(self.agents, target, prompts)?;
        let clean = |round: &Round| {
            let seconds = round.metrics.get("wall_s")?;
            (round.metrics.get("errors") == Some(0.0)).then_some(seconds)
        };
        if let (Some(one), Some(all)) = (clean(&alone), clean(&round)) {
            round.metrics.insert("figures.one_agent_s", one);
            round.metrics.insert("figures.burst_ratio", all / one);
        }
        round.add_beside(alone);
        Ok(round)
    }
}
