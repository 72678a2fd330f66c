//! Running a model's chat template (Jinja) as Hugging Face transformers does.

mod arguments;
mod filters;
mod json;
mod python;
mod source;
mod values;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};

use super::PromptError;
pub(super) use arguments::arguments_value;
pub(super) use json::json_value;

/// Instructions one rendering may take: a few seconds. Most templates take less than a million for a
/// thousand messages; some look at all messages for each.
const FUEL: u64 = 20_000_000;
/// Blocks in each other, a macro call counting for several. The engine allows no more.
const MAX_RECURSION: usize = 500;
/// Bytes one rendering may write.
const MAX_OUTPUT: usize = 64 * 1024 * 1024;
/// The one template of the environment.
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
}

/// The message of a template's `raise_exception`, kept as the source of the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

impl ChatTemplate {
    /// Compiles a template's text.
    ///
    /// # Errors
    /// [`PromptError::InvalidTemplate`].
    pub fn new(source: &str) -> Result<Self, PromptError> {
        ChatTemplate::with_fuel(source, FUEL)
    }

    /// Compiles a template that may take so many instructions.
    pub(super) fn with_fuel(source: &str, fuel: u64) -> Result<Self, PromptError> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        environment
            .set_syntax(syntax.map_err(|error| PromptError::InvalidTemplate(error.to_string()))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_debug(false);
        environment.set_fuel(Some(fuel));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        python::install(&mut environment);
        // The engine has been seen to panic on odd templates, here and in `render`. A model's template must not end
        // the server.
        let compiled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let added = environment.add_template_owned(NAME, source::adapted(source));
            added.map(|()| environment)
        }));
        let Ok(compiled) = compiled else {
            return Err(PromptError::InvalidTemplate(
                "the template engine stopped while compiling it".to_string(),
            ));
        };
        let environment =
            compiled.map_err(|error| PromptError::InvalidTemplate(description(&error)))?;
        Ok(ChatTemplate { environment })
    }

    /// Renders the template with variables given as JSON.
    ///
    /// # Errors
    /// As [`PromptFormat::render`](super::PromptFormat::render).
    pub fn render_json(
        &self,
        context: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, PromptError> {
        self.render(Value::from_pairs(
            context
                .iter()
                .map(|(name, value)| (name.as_str(), json_value(value))),
        ))
    }

    /// Renders the template with these variables.
    pub(super) fn render(&self, context: Value) -> Result<String, PromptError> {
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|error| failure(&error))?;
        let mut output = Limited {
            bytes: Vec::new(),
            exceeded: false,
        };
        let rendered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            template.render_captured_to(context, &mut output).map(drop)
        }));
        let Ok(rendered) = rendered else {
            return Err(PromptError::TemplateFailed(
                "the template engine stopped".to_string(),
            ));
        };
        if output.exceeded {
            return Err(PromptError::TemplateLimit("output".to_string()));
        }
        rendered.map_err(|error| failure(&error))?;
        String::from_utf8(output.bytes)
            .map_err(|error| PromptError::TemplateFailed(error.to_string()))
    }
}

/// Text that may not grow without bound.
struct Limited {
    bytes: Vec<u8>,
    exceeded: bool,
}

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.exceeded = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The local time now, as Python's `strftime` writes it.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(|error| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now: {error}"),
        )
    })
}

fn failure(error: &Error) -> PromptError {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return PromptError::Template(message.clone());
        }
        source = inner.source();
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return PromptError::TemplateLimit("instructions".to_string());
    }
    PromptError::TemplateFailed(description(error))
}

/// What went wrong and in which line of the template.
fn description(error: &Error) -> String {
    let what = match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}
