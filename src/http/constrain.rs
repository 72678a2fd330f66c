//! From what a request demands of its output to a compiled grammar.

use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::prepare::{GenerationRequest, PreparedSequence};
use super::request::chat::ChatRequest;
use super::request::tool_choice::ToolChoice;
use crate::grammar::{GrammarCompiler, GrammarPart, GrammarSource, GrammarSpec};
use crate::prompt::{AnswerRules, ContentRule, PromptEnd, PromptFormat};

/// Tokens at the end of a prompt that are looked at for the end of reasoning.
const TAIL: usize = 16;

/// Gives each sequence the grammar that its request asks for. Compiles, which takes long: not for a thread
/// that serves others. `vocabulary` is the number of token ids.
///
/// # Errors
/// What cannot be understood or enforced, by the field it stands in.
pub fn constrain(
    request: &GenerationRequest,
    sequences: &mut [PreparedSequence],
    format: &PromptFormat,
    compiler: &GrammarCompiler,
    vocabulary: usize,
) -> Result<(), ApiError> {
    let output = request.options().output.as_ref();
    let rules = match request {
        GenerationRequest::Chat(chat) => rules_of(chat, output),
        GenerationRequest::Text(_) => output.map(|part| AnswerRules {
            content: ContentRule::Grammar(part.clone()),
            ..AnswerRules::default()
        }),
    };
    let Some(rules) = rules else {
        return Ok(());
    };
    for sequence in sequences {
        let spec = spec(&rules, sequence, format)?;
        let grammar = compiler.compile(&spec, || format.vocabulary(vocabulary))?;
        sequence.grammar = Some(grammar);
    }
    Ok(())
}

/// What a chat answer may be; None: anything.
fn rules_of(chat: &ChatRequest, output: Option<&GrammarPart>) -> Option<AnswerRules> {
    let calls = &chat.tool_rules;
    let content = match (calls.choice, output) {
        // A demand on the content has no object where there must be a call.
        (ToolChoice::Required, _) => ContentRule::Nothing,
        (_, Some(part)) => ContentRule::Grammar(part.clone()),
        // Anything but a call that is not allowed.
        (ToolChoice::Auto, None) if calls.callable.is_some() => ContentRule::Free,
        _ => return None,
    };
    let callable = match (calls.choice, &calls.callable) {
        (ToolChoice::None, _) => Vec::new(),
        (_, Some(indices)) => indices.clone(),
        (_, None) => (0..chat.tools.len()).collect(),
    };
    Some(AnswerRules {
        tools: callable
            .into_iter()
            .filter_map(|index| Some((index, chat.tools.get(index)?)))
            .map(|(index, tool)| arguments(index, &tool["function"]))
            .collect(),
        several: calls.parallel,
        content,
    })
}

/// A tool's name, and what its arguments must look like.
fn arguments(index: usize, function: &Value) -> (String, GrammarPart) {
    let mut schema = match &function["parameters"] {
        Value::Object(schema) => schema.clone(),
        _ => Map::from_iter([("properties".to_owned(), json!({}))]),
    };
    // Arguments are an object; many declarations do not say so.
    let says = ["type", "$ref", "allOf", "anyOf", "oneOf", "const", "enum"];
    if !says.iter().any(|keyword| schema.contains_key(*keyword)) {
        schema.insert("type".to_owned(), json!("object"));
    }
    let part = GrammarPart {
        field: format!("tools[{index}].function.parameters"),
        source: GrammarSource::JsonSchema {
            schema: Value::Object(schema),
            // Declarations are written for models to read: what cannot be enforced is no error.
            strict: function["strict"] == true,
        },
    };
    let name = function["name"].as_str().unwrap_or_default();
    (name.to_owned(), part)
}

fn spec(
    rules: &AnswerRules,
    sequence: &PreparedSequence,
    format: &PromptFormat,
) -> Result<GrammarSpec, ApiError> {
    let prompt = match &sequence.parser {
        Some(options) => {
            let tail = &sequence.prompt[sequence.prompt.len().saturating_sub(TAIL)..];
            let mut detokenizer = format.continuing_detokenizer();
            let mut text: String = tail.iter().map(|token| detokenizer.push(*token)).collect();
            text.push_str(&detokenizer.finish());
            format.prompt_end(options, &text)
        }
        // Text completions know no reasoning.
        None => PromptEnd::Answer,
    };
    format
        .answer_grammar(rules, prompt)
        .map_err(|error| ApiError::unsupported("tool_choice", format!("is not possible: {error}")))
}
