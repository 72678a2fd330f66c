//! *long-prefix*: agents behind one long prompt that the server has just computed.

use serde_json::Value;

use super::{Round, RoundError, Workload, sizes_json, unique_tokens};
use crate::bench::arguments::{Sizes, WorkloadName};
use crate::bench::client::Message;
use crate::bench::crowd::together;
use crate::bench::prompts::Prompts;
use crate::bench::statistics::TTFT;
use crate::bench::target::Target;

/// Words of each agent's own question.
const QUESTION_WORDS: usize = 40;

pub struct LongPrefix {
    agents: usize,
    prompt_tokens: usize,
    output_tokens: usize,
}

impl LongPrefix {
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            agents: sizes.agents.unwrap_or(16),
            prompt_tokens: sizes.prompt_tokens.unwrap_or(4000),
            output_tokens: sizes.output_tokens.unwrap_or(48),
        }
    }
}

impl Workload for LongPrefix {
    fn name(&self) -> WorkloadName {
        WorkloadName::LongPrefix
    }

    fn describe(&self) -> String {
        format!(
            "one agent brings a prompt of {} tokens, cold; then {} agents start together behind it, \
             {QUESTION_WORDS} words of their own and {} tokens out each",
            self.prompt_tokens, self.agents, self.output_tokens
        )
    }

    fn parameters(&self) -> Value {
        sizes_json(&[
            ("agents", self.agents),
            ("prompt_tokens", self.prompt_tokens),
            ("question_words", QUESTION_WORDS),
            ("output_tokens", self.output_tokens),
        ])
    }

    fn figures(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("figures.cold_ttft_s", "TTFT of the first agent, seconds"),
            (
                "figures.warm_ratio",
                "TTFT behind the cached prompt over it",
            ),
        ]
    }

    fn run(&self, target: &Target, prompts: &mut Prompts) -> Result<Round, RoundError> {
        let prefix = prompts.text(target.scale.words_for(self.prompt_tokens));
        let mut conversation = || {
            [
                Message::system(prefix.clone()),
                Message::user(prompts.text(QUESTION_WORDS)),
            ]
        };
        let first = conversation();
        let questions: Vec<_> = (0..self.agents).map(|_| conversation()).collect();
        let (started, results) = together(1, |_| target.client.ask(&first, 1))?;
        let unique = results
            .first()
            .and_then(|first| unique_tokens(target, first));
        let cold = Round::of(started, results, unique);
        let (started, results) = together(self.agents, |agent| {
            target.client.ask(&questions[agent], self.output_tokens)
        })?;
        let mut round = Round::of(started, results, None);
        if let (Some(cold), Some(warm)) = (cold.metrics.get(TTFT.p50), round.metrics.get(TTFT.p50))
        {
            round.metrics.insert("figures.cold_ttft_s", cold);
            round.metrics.insert("figures.warm_ratio", warm / cold);
        }
        round.add_beside(cold);
        Ok(round)
    }
}
