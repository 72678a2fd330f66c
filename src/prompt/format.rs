//! A model's text side: its template, its tokenizer and the formats it writes in.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::capabilities::Capabilities;
use super::choice::{ReasoningChoice, ReasoningName};
use super::conversation::{self, SpecialTokens};
use super::detokenizer::TokenTexts;
use super::output::{OutputFormat, OutputParser, ParserOptions};
use super::reasoning::{self, ReasoningFormat};
use super::template::ChatTemplate;
use super::{Detokenizer, FormatChoice, PromptError, tools};
use crate::grammar::TokenBytes;
use crate::ids::TokenId;

/// What a model's files say about its text.
#[derive(Debug, Clone)]
pub struct PromptAssets {
    pub tokenizer: Tokenizer,
    /// The Jinja text. None: the model takes no messages.
    pub chat_template: Option<String>,
    /// As templates print it.
    pub bos_token: Option<String>,
    /// As templates print it.
    pub eos_token: Option<String>,
    /// Whether the beginning-of-text token comes before plain text. None: as the tokenizer does it.
    pub add_bos: Option<bool>,
}

/// One conversation to render, in the shape of OpenAI's chat API (validated by the caller: each message
/// is an object with a `role`).
#[derive(Debug, Clone, Copy)]
pub struct ChatInput<'a> {
    pub messages: &'a [Value],
    /// Declared tools, in the order given. Empty: none.
    pub tools: &'a [Value],
    /// `chat_template_kwargs`: further variables of the template, such as `enable_thinking`.
    pub template_kwargs: &'a Map<String, Value>,
    /// The answer begins with the rest of the last message instead of a new one.
    pub continue_final_message: bool,
}

/// Renders conversations, encodes text, and reads the output of one model. Shared by all its requests.
#[derive(Debug)]
pub struct PromptFormat {
    tokenizer: Arc<Tokenizer>,
    tokens: Arc<TokenTexts>,
    chat: Option<Chat>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    add_bos: Option<bool>,
    output: OutputFormat,
    /// The model begins its answers with reasoning unless the template says that there is none.
    opens_reasoning: bool,
}

#[derive(Debug)]
struct Chat {
    template: ChatTemplate,
    capabilities: Capabilities,
}

impl PromptFormat {
    /// Compiles the template and finds out, by rendering small conversations with it, what it can take.
    ///
    /// # Errors
    /// [`PromptError::InvalidTemplate`].
    pub fn new(assets: PromptAssets) -> Result<Self, PromptError> {
        Self::with_formats(assets, FormatChoice::default())
    }

    /// The same, with formats that the configuration chose.
    ///
    /// # Errors
    /// [`PromptError::InvalidTemplate`].
    pub fn with_formats(assets: PromptAssets, choice: FormatChoice) -> Result<Self, PromptError> {
        let PromptAssets {
            mut tokenizer,
            chat_template,
            bos_token,
            eos_token,
            add_bos,
        } = assets;
        // A tokenizer file may carry the limits of some training run.
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| PromptError::Encode(error.to_string()))?;
        let chat = match &chat_template {
            Some(source) => {
                let template = ChatTemplate::new(source)?;
                let special = SpecialTokens {
                    bos: bos_token.as_deref(),
                    eos: eos_token.as_deref(),
                };
                let capabilities = Capabilities::of(&template, source, special, choice.tools.0);
                Some(Chat {
                    template,
                    capabilities,
                })
            }
            None => None,
        };
        let tool_format = match &chat {
            Some(chat) => chat.capabilities.tool_format,
            None => choice.tools.0.unwrap_or(tools::GENERIC),
        };
        let reasoning = match choice.reasoning {
            ReasoningChoice::None => None,
            ReasoningChoice::Named(ReasoningName(format)) => Some(format),
            ReasoningChoice::Auto if tool_format.channels => None,
            ReasoningChoice::Auto => reasoning_of(chat_template.as_deref(), &tokenizer),
        };
        let output = OutputFormat {
            reasoning,
            tools: tool_format,
        };
        let tokenizer = Arc::new(tokenizer);
        let tokens = Arc::new(TokenTexts::new(Arc::clone(&tokenizer), &output.marks()));
        let mut format = PromptFormat {
            tokenizer,
            tokens,
            chat,
            bos_token,
            eos_token,
            add_bos,
            output,
            opens_reasoning: false,
        };
        let is_sure = |reasoning: &ReasoningFormat| match choice.reasoning {
            ReasoningChoice::Named(_) => true,
            _ => chat_template.as_deref().is_some_and(|template| {
                template.contains(reasoning.open.trim_end()) && template.contains(reasoning.close)
            }),
        };
        format.opens_reasoning = reasoning.is_some_and(|reasoning| {
            format.leaves_reasoning_to_the_model(reasoning, is_sure(reasoning))
        });
        Ok(format)
    }

    /// Prompts leave open whether reasoning follows: closing it at once is the way to switch it off, or there
    /// is no way and the model is sure to reason in this form.
    fn leaves_reasoning_to_the_model(&self, reasoning: &ReasoningFormat, is_sure: bool) -> bool {
        let end = |template_kwargs: &Map<String, Value>| {
            let messages = [serde_json::json!({"role": "user", "content": "Hello!"})];
            let rendered = self.render(&ChatInput {
                messages: &messages,
                tools: &[],
                template_kwargs,
                continue_final_message: false,
            });
            rendered.unwrap_or_default().trim_end().to_owned()
        };
        let switched =
            |name: &str, on: bool| end(&Map::from_iter([(name.to_owned(), Value::Bool(on))]));
        let default = end(&Map::new());
        if reasoning.is_open_in(&default) || default.ends_with(reasoning.close) {
            return false;
        }
        let has_no_switch = || {
            let names = ["enable_thinking", "thinking"].iter();
            let mut prompts = names.flat_map(|name| [true, false].map(|on| switched(name, on)));
            prompts.all(|prompt| prompt == default)
        };
        switched("enable_thinking", false).ends_with(reasoning.close)
            || (is_sure && has_no_switch())
    }

    pub(super) fn opens_reasoning(&self) -> bool {
        self.opens_reasoning
    }

    /// How the model writes.
    pub(super) fn output_format(&self) -> OutputFormat {
        self.output
    }

    /// Renders a conversation to the text that the model continues.
    ///
    /// # Errors
    /// All but [`PromptError::Encode`] and [`PromptError::InvalidTemplate`]; each is the request's fault
    /// or the template's, not the server's.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, PromptError> {
        let chat = self.chat.as_ref().ok_or(PromptError::NoTemplate)?;
        let tokens = SpecialTokens {
            bos: self.bos_token.as_deref(),
            eos: self.eos_token.as_deref(),
        };
        conversation::render(&chat.template, &chat.capabilities, input, tokens)
    }

    /// Tokens of a rendered conversation. The template has written all special tokens, so none are added.
    ///
    /// Text that looks like a special token becomes one, as with Hugging Face transformers: also in what
    /// a user wrote.
    ///
    /// # Errors
    /// [`PromptError::Encode`].
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, PromptError> {
        self.encode_with(text, false)
    }

    /// Tokens of a plain text to be continued, with the special tokens that the tokenizer puts around
    /// text (usually a beginning-of-text token, or none).
    ///
    /// # Errors
    /// [`PromptError::Encode`].
    pub fn encode_completion(&self, text: &str) -> Result<Vec<TokenId>, PromptError> {
        let mut tokens = self.encode_with(text, self.add_bos != Some(false))?;
        if self.add_bos == Some(true)
            && let Some(bos) = self
                .bos_token
                .as_deref()
                .and_then(|token| self.tokenizer.token_to_id(token))
            && tokens.first() != Some(&TokenId(bos))
        {
            tokens.insert(0, TokenId(bos));
        }
        Ok(tokens)
    }

    fn encode_with(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<TokenId>, PromptError> {
        // The tokenizers crate has been seen to panic over odd files. A model's file must not fail other requests.
        let encode = || self.tokenizer.encode_fast(text, add_special_tokens);
        let encoding = std::panic::catch_unwind(std::panic::AssertUnwindSafe(encode))
            .map_err(|_| PromptError::Encode("the tokenizer stopped".to_owned()))?
            .map_err(|error| PromptError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().iter().map(|id| TokenId(*id)).collect())
    }

    /// Reads one request's output.
    pub fn output_parser(&self, options: &ParserOptions) -> OutputParser {
        OutputParser::new(options, self.output)
    }

    /// How to read the output that follows this prompt, if these tools may be called. (None: no calls.)
    pub fn parser_options(&self, prompt: &str, tools: &[Value]) -> ParserOptions {
        self.output.options(prompt, tools)
    }

    /// Any of the texts that begin a tool call in the model's format.
    pub fn call_marks(&self) -> Vec<&'static str> {
        self.output.tools.call_marks().collect()
    }

    /// The tokens that end a turn in the model's format, whatever its other files say.
    pub fn end_tokens(&self) -> Vec<TokenId> {
        let tokens = self.output.tools.end_tokens.iter();
        tokens
            .filter_map(|token| self.tokenizer.token_to_id(token))
            .map(TokenId)
            .collect()
    }

    /// What the model's template does for tools, in words.
    pub fn tool_support(&self) -> &'static str {
        match &self.chat {
            Some(chat) if chat.capabilities.prints_calls => "native",
            Some(chat) if chat.capabilities.declares_tools => "declared by the template",
            _ => "told by Trunkline",
        }
    }

    /// The names of the formats of tool calls and of reasoning.
    pub fn format_names(&self) -> (&'static str, &'static str) {
        let reasoning = match self.output.reasoning {
            Some(reasoning) => reasoning.name,
            None if self.output.tools.channels => self.output.tools.name,
            None => "none",
        };
        (self.output.tools.name, reasoning)
    }

    /// For a chat answer: text of its own, as the tokenizer's `decode` gives it.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.tokens))
    }

    /// For a text completion: the text continues the prompt's, so that a leading space is part of it.
    pub fn continuing_detokenizer(&self) -> Detokenizer {
        Detokenizer::continuing(Arc::clone(&self.tokens))
    }

    /// What each token id below `size` adds to an output.
    ///
    /// # Errors
    /// Why that cannot be told of single tokens.
    pub fn vocabulary(&self, size: usize) -> Result<Vec<TokenBytes>, String> {
        (0u32..)
            .take(size)
            .map(|id| self.tokens.bytes_of(id))
            .collect::<Option<_>>()
            .ok_or_else(|| "its tokenizer decodes tokens only together".to_owned())
    }

    /// The model takes messages.
    pub fn has_chat_template(&self) -> bool {
        self.chat.is_some()
    }
}

/// How a model reasons: as its template prints reasoning or opens it, or as its tokenizer has a token for.
fn reasoning_of(
    chat_template: Option<&str>,
    tokenizer: &Tokenizer,
) -> Option<&'static ReasoningFormat> {
    let in_template = |text: &str| {
        // Templates write newlines as escapes.
        chat_template.is_some_and(|template| template.contains(text.trim_end()))
    };
    let printed =
        |format: &&&'static ReasoningFormat| in_template(format.open) && in_template(format.close);
    let named = |format: &&&'static ReasoningFormat| {
        let there = in_template(format.close) || tokenizer.token_to_id(format.close).is_some();
        there && format.close_tells
    };
    let mut formats = reasoning::FORMATS.iter();
    let found = formats
        .clone()
        .find(printed)
        .or_else(|| formats.find(named))?;
    Some(found)
}
