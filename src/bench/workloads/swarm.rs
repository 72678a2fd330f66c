//! *swarm*: agents that start together behind one system prompt, each with a conversation of some turns.

use serde_json::Value;

use super::{Round, RoundError, Workload, sizes_json, unique_tokens};
use crate::bench::arguments::{Sizes, WorkloadName};
use crate::bench::client::{Answer, Client, Message, RequestError};
use crate::bench::crowd::together;
use crate::bench::prompts::Prompts;
use crate::bench::target::Target;

/// New words of the user in each turn.
const TURN_WORDS: usize = 40;

pub struct Swarm {
    agents: usize,
    turns: usize,
    system_words: usize,
    output_tokens: usize,
}

impl Swarm {
    pub fn new(sizes: &Sizes) -> Self {
        Self {
            agents: sizes.agents.unwrap_or(16),
            turns: sizes.turns.unwrap_or(2),
            system_words: sizes.system_words.unwrap_or(1200),
            output_tokens: sizes.output_tokens.unwrap_or(48),
        }
    }

    /// One agent's conversation. It ends early when a turn fails.
    fn converse(
        &self,
        client: &Client,
        system: &str,
        questions: &[String],
    ) -> Vec<Result<Answer, RequestError>> {
        let mut messages = vec![Message::system(system.to_owned())];
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            messages.push(Message::user(question.clone()));
            let answer = client.ask(&messages, self.output_tokens);
            let said = match &answer {
                // Some templates refuse an empty turn.
                Ok(answer) if answer.text.trim().is_empty() => "-".to_owned(),
                Ok(answer) => answer.text.clone(),
                Err(_) => {
                    answers.push(answer);
                    break;
                }
            };
            messages.push(Message::assistant(said));
            answers.push(answer);
        }
        answers
    }
}

impl Workload for Swarm {
    fn name(&self) -> WorkloadName {
        WorkloadName::Swarm
    }

    fn describe(&self) -> String {
        format!(
            "{} agents start together, cold; {} turns each behind one system prompt of {} words, {TURN_WORDS} \
             new words and {} tokens out a turn",
            self.agents, self.turns, self.system_words, self.output_tokens
        )
    }

    fn parameters(&self) -> Value {
        sizes_json(&[
            ("agents", self.agents),
            ("turns", self.turns),
            ("system_words", self.system_words),
            ("turn_words", TURN_WORDS),
            ("output_tokens", self.output_tokens),
        ])
    }

    fn run(&self, target: &Target, prompts: &mut Prompts) -> Result<Round, RoundError> {
        let system = prompts.text(self.system_words);
        let questions: Vec<Vec<String>> = (0..self.agents)
            .map(|_| (0..self.turns).map(|_| prompts.text(TURN_WORDS)).collect())
            .collect();
        let (started, conversations) = together(self.agents, |agent| {
            self.converse(&target.client, &system, &questions[agent])
        })?;
        // The first turn of one agent at least; its length is the first answer's.
        let unique = conversations
            .first()
            .and_then(|turns| unique_tokens(target, turns.first()?));
        let results = conversations.into_iter().flatten().collect();
        Ok(Round::of(started, results, unique))
    }
}
