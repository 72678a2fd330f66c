//! From a validated request to sequences that fit the model's context.

use std::sync::Arc;

use super::error::ApiError;
use super::request::chat::ChatRequest;
use super::request::completion::{CompletionRequest, Prompt};
use super::request::options::GenerationOptions;
use super::request::tool_choice::ToolChoice;
use super::wire::Form;
use crate::grammar::Grammar;
use crate::ids::TokenId;
use crate::prompt::{ChatInput, ParserOptions, PromptFormat};

/// What makes a token as good as impossible.
const FORBID: f32 = -100.0;

/// A request of either kind.
#[derive(Debug, Clone)]
pub enum GenerationRequest {
    Chat(ChatRequest),
    Text(CompletionRequest),
}

impl GenerationRequest {
    pub fn options(&self) -> &GenerationOptions {
        match self {
            GenerationRequest::Chat(request) => &request.options,
            GenerationRequest::Text(request) => &request.options,
        }
    }

    pub fn form(&self) -> Form {
        match self {
            GenerationRequest::Chat(_) => Form::Chat,
            GenerationRequest::Text(_) => Form::Text,
        }
    }

    /// Not more than one tool call may be made.
    pub fn single_call(&self) -> bool {
        match self {
            GenerationRequest::Chat(request) => !request.tool_rules.parallel,
            GenerationRequest::Text(_) => false,
        }
    }

    /// The field that holds the prompt, for errors about it.
    fn prompt_field(&self) -> &'static str {
        match self {
            GenerationRequest::Chat(_) => "messages",
            GenerationRequest::Text(_) => "prompt",
        }
    }
}

/// One sequence to be generated.
#[derive(Debug)]
pub struct PreparedSequence {
    pub prompt: Arc<[TokenId]>,
    pub max_new_tokens: usize,
    /// What the answer begins with (`echo`).
    pub echo: Option<String>,
    /// The output goes on with the prompt's text, so that a leading space is part of it.
    pub continues_text: bool,
    /// Nothing is to be generated: only the prompt is told. (One token is sampled all the same.)
    pub silent: bool,
    /// How to read the output; None for text completions.
    pub parser: Option<ParserOptions>,
    /// Token that must not be sampled.
    pub forbidden: Option<(TokenId, f32)>,
    /// What the output has to follow.
    pub grammar: Option<Arc<Grammar>>,
    /// The rendered prompt, only if contents may be logged.
    pub text: Option<String>,
}

/// What the model allows.
#[derive(Debug, Clone, Copy)]
pub struct ModelBounds {
    pub context_window: usize,
    pub vocabulary: usize,
}

/// Renders and encodes. Takes long for long prompts: not for a thread that serves others.
///
/// # Errors
/// What template, tokenizer or context refuse.
pub fn prepare(
    request: &GenerationRequest,
    format: &PromptFormat,
    bounds: ModelBounds,
    keep_text: bool,
) -> Result<Vec<PreparedSequence>, ApiError> {
    let outside = |token: &&TokenId| token.0 as usize >= bounds.vocabulary;
    if let Some(token) = request.options().sampling.logit_bias.keys().find(outside) {
        return Err(ApiError::invalid(
            format!("logit_bias.{}", token.0),
            format!(
                "is not a token of this model; ids are below {}",
                bounds.vocabulary
            ),
        ));
    }
    let mut sequences = match request {
        GenerationRequest::Chat(chat) => vec![prepare_chat(chat, format, keep_text)?],
        GenerationRequest::Text(text) => prepare_text(text, format, bounds, keep_text)?,
    };
    for sequence in &mut sequences {
        sequence.max_new_tokens = fit(request, sequence.prompt.len(), bounds.context_window)?;
    }
    Ok(sequences)
}

/// How many tokens may be generated: as many as asked for, and as the context has room for.
fn fit(request: &GenerationRequest, prompt: usize, limit: usize) -> Result<usize, ApiError> {
    let requested = request.options().max_tokens;
    match limit.checked_sub(prompt) {
        None | Some(0) => Err(ApiError::ContextLengthExceeded {
            limit,
            prompt,
            requested,
            parameter: request.prompt_field().to_owned(),
        }),
        Some(room) => Ok(requested.unwrap_or(room).min(room).max(1)),
    }
}

fn prepare_chat(
    chat: &ChatRequest,
    format: &PromptFormat,
    keep_text: bool,
) -> Result<PreparedSequence, ApiError> {
    let may_call = chat.tool_rules.choice != ToolChoice::None && !chat.tools.is_empty();
    // Without permission to call, the tools stay in the prompt (its cached tokens remain those of the other
    // turns) and the token that begins a call is ruled out. Where no single token begins a call, the
    // tools have to go, or markup could show up in the content.
    let must_not_call = chat.tool_rules.choice == ToolChoice::None && !chat.tools.is_empty();
    let forbidden = if must_not_call {
        call_token(format)?
    } else {
        None
    };
    let tools = if must_not_call && forbidden.is_none() {
        &[]
    } else {
        chat.tools.as_slice()
    };
    let text = format.render(&ChatInput {
        messages: &chat.messages,
        tools,
        template_kwargs: &chat.template_arguments,
        continue_final_message: chat.continue_final_message,
    })?;
    let prompt: Arc<[TokenId]> = format.encode(&text)?.into();
    if prompt.is_empty() {
        return Err(ApiError::invalid("messages", "render to an empty prompt"));
    }
    Ok(PreparedSequence {
        prompt,
        max_new_tokens: 0,
        echo: None,
        continues_text: chat.continue_final_message,
        silent: false,
        parser: Some(format.parser_options(&text, if may_call { &chat.tools } else { &[] })),
        forbidden: forbidden.map(|token| (token, FORBID)),
        grammar: None,
        text: keep_text.then_some(text),
    })
}

/// The one token that begins every tool call in the model's format.
fn call_token(format: &PromptFormat) -> Result<Option<TokenId>, ApiError> {
    let [mark] = format.call_marks()[..] else {
        return Ok(None);
    };
    match format.encode(mark)?.as_slice() {
        [token] => Ok(Some(*token)),
        _ => Ok(None),
    }
}

fn prepare_text(
    request: &CompletionRequest,
    format: &PromptFormat,
    bounds: ModelBounds,
    keep_text: bool,
) -> Result<Vec<PreparedSequence>, ApiError> {
    let several = request.prompts.len() > 1;
    let mut sequences = Vec::with_capacity(request.prompts.len());
    for (index, prompt) in request.prompts.iter().enumerate() {
        let path = if several {
            format!("prompt[{index}]")
        } else {
            "prompt".to_owned()
        };
        let tokens = match prompt {
            Prompt::Text(text) => format.encode_completion(text)?,
            Prompt::Tokens(tokens) => tokens.clone(),
        };
        if tokens.is_empty() {
            return Err(ApiError::invalid(
                path,
                "has no tokens; give at least one character",
            ));
        }
        if let Some(token) = tokens
            .iter()
            .find(|token| token.0 as usize >= bounds.vocabulary)
        {
            let message = format!(
                "has the token id {}; this model's ids are below {}",
                token.0, bounds.vocabulary
            );
            return Err(ApiError::invalid(path, message));
        }
        let text = || match prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Tokens(tokens) => decode(format, tokens),
        };
        sequences.push(PreparedSequence {
            prompt: tokens.into(),
            max_new_tokens: 0,
            echo: request.echo.then(text),
            continues_text: true,
            silent: request.silent,
            parser: None,
            forbidden: None,
            grammar: None,
            text: keep_text.then(text),
        });
    }
    Ok(sequences)
}

/// The text of tokens.
pub fn decode(format: &PromptFormat, tokens: &[TokenId]) -> String {
    let mut detokenizer = format.detokenizer();
    let mut text: String = tokens
        .iter()
        .map(|token| detokenizer.push(*token))
        .collect();
    text.push_str(&detokenizer.finish());
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::prompt::PromptAssets;

    const BOUNDS: ModelBounds = ModelBounds {
        context_window: 400,
        vocabulary: 2048,
    };

    fn format() -> PromptFormat {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let template = std::fs::read_to_string(demo.join("chat_template.jinja")).unwrap();
        PromptFormat::new(PromptAssets {
            tokenizer: tokenizers::Tokenizer::from_file(demo.join("tokenizer.json")).unwrap(),
            chat_template: Some(template),
            bos_token: None,
            eos_token: None,
            add_bos: None,
        })
        .unwrap()
    }

    fn chat(body: Value) -> Result<Vec<PreparedSequence>, ApiError> {
        let request = GenerationRequest::Chat(ChatRequest::parse(&body).unwrap());
        prepare(&request, &format(), BOUNDS, true)
    }

    fn text(body: Value) -> Result<Vec<PreparedSequence>, ApiError> {
        let request = GenerationRequest::Text(CompletionRequest::parse(&body).unwrap());
        prepare(&request, &format(), BOUNDS, true)
    }

    #[test]
    fn without_max_tokens_as_much_as_fits() {
        let messages = json!([{"role": "user", "content": "Hello!"}]);
        let room = |max_tokens: Value| {
            let prepared = chat(json!({"messages": messages, "max_tokens": max_tokens})).unwrap();
            (prepared[0].prompt.len(), prepared[0].max_new_tokens)
        };
        let (prompt, most) = room(Value::Null);
        assert_eq!(prompt + most, 400);
        assert_eq!(room(json!(7)), (prompt, 7));
        assert_eq!(room(json!(1_000_000)), (prompt, most));
    }

    #[test]
    fn a_prompt_without_room_is_refused_with_its_count() {
        let tokens = |count: usize| json!({"prompt": vec![65; count], "max_tokens": 5});
        assert_eq!(text(tokens(399)).unwrap()[0].max_new_tokens, 1);
        let expected = ApiError::ContextLengthExceeded {
            limit: 400,
            prompt: 400,
            requested: Some(5),
            parameter: "prompt".into(),
        };
        assert_eq!(text(tokens(400)).unwrap_err(), expected);
    }

    #[test]
    fn ids_outside_the_vocabulary_are_named() {
        let error = text(json!({"prompt": [[1], [2, 2048]]})).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "prompt[1]");
        assert!(error.to_string().contains("2048"));
        let error = text(json!({"prompt": "a", "logit_bias": {"2048": 1}})).unwrap_err();
        assert_eq!(error.body()["error"]["param"], "logit_bias.2048");
        assert_eq!(
            text(json!({"prompt": ""})).unwrap_err().body()["error"]["param"],
            "prompt"
        );
    }

    #[test]
    fn forbidding_tools_keeps_the_prompt() {
        let body = |choice: &str| {
            json!({
                "messages": [{"role": "user", "content": "Hello!"}],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
                "tool_choice": choice,
            })
        };
        let auto = chat(body("auto")).unwrap().remove(0);
        let none = chat(body("none")).unwrap().remove(0);
        assert!(auto.parser.unwrap().tools && auto.forbidden.is_none());
        assert!(!none.parser.unwrap().tools);
        if let Some(token) = call_token(&format()).unwrap() {
            assert_eq!(none.prompt, auto.prompt);
            assert_eq!(none.forbidden, Some((token, FORBID)));
        } else {
            assert!(!none.text.unwrap().contains("<tools>"));
        }
    }

    #[test]
    fn echo_is_the_prompt() {
        let body = json!({"prompt": ["One two", "three"], "echo": true});
        let echoed: Vec<_> = text(body)
            .unwrap()
            .into_iter()
            .map(|sequence| sequence.echo)
            .collect();
        assert_eq!(
            echoed,
            [Some("One two".to_owned()), Some("three".to_owned())]
        );
        let ids: Vec<u32> = format()
            .encode("One two")
            .unwrap()
            .iter()
            .map(|token| token.0)
            .collect();
        let sequence = text(json!({"prompt": ids, "echo": true}))
            .unwrap()
            .remove(0);
        assert_eq!(sequence.echo.as_deref(), Some("One two"));
    }
}
