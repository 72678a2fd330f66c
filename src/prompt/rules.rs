//! The grammar of an answer that must follow rules: reasoning first, then calls or content.

use super::PromptFormat;
use super::output::ParserOptions;
use super::tools::constraint::{self, CallableTool, NoRulesForCalls, Otherwise, Parts};
use crate::grammar::{GrammarPart, GrammarSpec};

/// What an answer may be. At least one of `tools` and `content`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AnswerRules {
    /// Tools that may be called: name, and the grammar of the arguments.
    pub tools: Vec<(String, GrammarPart)>,
    /// Several calls are fine.
    pub several: bool,
    pub content: ContentRule,
}

/// What an answer that is no call may be.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum ContentRule {
    /// It must be a call.
    #[default]
    Nothing,
    Free,
    Grammar(GrammarPart),
}

impl PromptFormat {
    /// The grammar of an answer to a prompt. Reasoning comes before all rules and has none of its own: it
    /// must come where the prompt has opened it, and may come where the model opens it by itself.
    ///
    /// # Errors
    /// There are tools, and this model's form of calls cannot hold them.
    pub fn answer_grammar(
        &self,
        rules: &AnswerRules,
        prompt: PromptEnd,
    ) -> Result<GrammarSpec, NoRulesForCalls> {
        let mut parts = Parts::default();
        let format = self.output_format().tools;
        let answer = match (&rules.content, rules.tools.as_slice()) {
            (ContentRule::Grammar(part), []) => {
                let name = parts.add(part.clone());
                if prompt == PromptEnd::Answer {
                    return Ok(parts.without_root());
                }
                format!("answer: {name}\n")
            }
            (content, tools) => {
                let otherwise = match content {
                    ContentRule::Nothing => Otherwise::Nothing,
                    ContentRule::Free => Otherwise::Text,
                    ContentRule::Grammar(part) => Otherwise::Grammar(part.clone()),
                };
                let tools: Vec<CallableTool> = tools
                    .iter()
                    .map(|(name, arguments)| CallableTool {
                        name: name.clone(),
                        arguments: arguments.clone(),
                    })
                    .collect();
                constraint::answer(format, &tools, rules.several, &otherwise, &mut parts)?
            }
        };
        if format.channels && !rules.tools.is_empty() {
            let start = format!("start: thoughts? answer\n{}", constraint::thoughts());
            return Ok(parts.spec(start + &answer));
        }
        let marks = self.output_format().reasoning_marks();
        let [open, close] = marks.map(|mark| serde_json::Value::from(mark).to_string());
        let close = format!("reasoning[suffix={close}]: /(?s:.*)/\nBREAK: /\\n{{1,2}}/\n");
        let start = match prompt {
            PromptEnd::Answer => "start: answer\n".to_owned(),
            PromptEnd::InReasoning => format!("start: reasoning BREAK? answer\n{close}"),
            PromptEnd::BeforeReasoning => {
                format!("start: ({open} reasoning BREAK?)? answer\n{close}")
            }
        };
        Ok(parts.spec(start + &answer))
    }

    /// What the output after a prompt begins with.
    pub fn prompt_end(&self, options: &ParserOptions, tail: &str) -> PromptEnd {
        match () {
            () if options.reasoning_open => PromptEnd::InReasoning,
            () if self.opens_reasoning()
                && !tail
                    .trim_end()
                    .ends_with(self.output_format().reasoning_marks()[1]) =>
            {
                PromptEnd::BeforeReasoning
            }
            // Whatever the channels before it, the answer is what follows the mark of the last one.
            () if self.output_format().tools.channels => PromptEnd::InReasoning,
            () => PromptEnd::Answer,
        }
    }
}

/// What an output begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptEnd {
    Answer,
    /// The rest of reasoning that the prompt has opened.
    InReasoning,
    /// Reasoning, if the model opens it.
    BeforeReasoning,
}
