//! *single*: one client alone.

use serde_json::Value;

use super::{Round, RoundError, Workload, sizes_json, unique_tokens};
use crate::bench::arguments::{Sizes, WorkloadName};
use crate::bench::client::Message;
use crate::bench::crowd::together;
use crate::bench::prompts::Prompts;
use crate::bench::target::Target;

pub struct Single {
    prompt_tokens: usize,
    output_tokens: usize,
}

impl Single {
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            prompt_tokens: sizes.prompt_tokens.unwrap_or(128),
            output_tokens: sizes.output_tokens.unwrap_or(128),
        }
    }
}

impl Workload for Single {
    fn name(&self) -> WorkloadName {
        WorkloadName::Single
    }

    fn describe(&self) -> String {
        format!(
            "one client, a cold prompt of {} tokens, {} out",
            self.prompt_tokens, self.output_tokens
        )
    }

    fn parameters(&self) -> Value {
        sizes_json(&[
            ("prompt_tokens", self.prompt_tokens),
            ("output_tokens", self.output_tokens),
        ])
    }

    fn run(&self, target: &Target, prompts: &mut Prompts) -> Result<Round, RoundError> {
        let text = prompts.text(target.scale.words_for(self.prompt_tokens));
        let messages = [Message::user(text)];
        let (started, results) = together(1, |_| target.client.ask(&messages, self.output_tokens))?;
        let unique = results
            .first()
            .and_then(|first| unique_tokens(target, first));
        Ok(Round::of(started, results, unique))
    }
}
