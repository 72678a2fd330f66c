//! From what is wanted to a compiled grammar, within limits, once.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory, regex_to_lark};

use super::constraint::{Grammar, TokenMask};
use super::vocabulary::{TokenBytes, token_environment};
use super::workers::MaskWorkers;
use super::{GrammarError, GrammarPart, GrammarSource, GrammarSpec, schema, text};
use crate::ids::TokenId;

/// Compiled grammars that are remembered.
const REMEMBERED: usize = 64;
/// Bytes of one schema as JSON.
const SCHEMA_BYTES: usize = 256 * 1024;
const REGEX_BYTES: usize = 16 * 1024;
const LARK_BYTES: usize = 64 * 1024;
/// Bytes of all choices together.
const CHOICE_BYTES: usize = 64 * 1024;
/// Compiling recurses as deep as a grammar is nested, through references, too. The limits above and in
/// [`schema`] keep that within this stack, of which only what is used takes memory.
const STACK_BYTES: usize = 256 * 1024 * 1024;
/// Longest text of llguidance's in an error.
const MESSAGE_BYTES: usize = 300;

/// Compiles grammars for one model's vocabulary.
pub struct GrammarCompiler {
    end_tokens: Arc<[TokenId]>,
    /// Made when the first grammar is wanted: it takes some 100 ms for a large vocabulary.
    factory: OnceLock<Result<ParserFactory, String>>,
    remembered: Mutex<Remembered>,
    workers: Arc<MaskWorkers>,
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarCompiler")
            .field("end_tokens", &self.end_tokens)
            .finish_non_exhaustive()
    }
}

impl GrammarCompiler {
    /// For a model whose answers end with one of `end_tokens`.
    pub fn new(end_tokens: &[TokenId]) -> Self {
        Self {
            end_tokens: end_tokens.into(),
            factory: OnceLock::new(),
            remembered: Mutex::default(),
            workers: Arc::default(),
        }
    }

    /// Compiles a grammar, or finds it among those compiled before. Takes long: not for a thread that
    /// serves others. `vocabulary` gives what each token stands for, or says why that is not known; it
    /// is asked once.
    ///
    /// # Errors
    /// [`GrammarError`]; it names the field that is wrong.
    pub fn compile(
        &self,
        spec: &GrammarSpec,
        vocabulary: impl FnOnce() -> Result<Vec<TokenBytes>, String>,
    ) -> Result<Arc<Grammar>, GrammarError> {
        let factory = self
            .factory
            .get_or_init(|| make_factory(&vocabulary()?, &self.end_tokens))
            .as_ref()
            .map_err(|reason| GrammarError::Unavailable(reason.clone()))?;
        for part in spec.parts.iter().chain(&spec.checked) {
            check_size(part)?;
        }
        let key = key(spec);
        if let Some(grammar) = self.remembered().get(&key) {
            return Ok(grammar);
        }
        let (matcher, first) = on_large_stack(|| build(factory, spec))?;
        let grammar = Arc::new(Grammar::new(
            matcher,
            first,
            Arc::clone(&self.end_tokens),
            Arc::clone(&self.workers),
            key,
        ));
        self.remembered().insert(key, Arc::clone(&grammar));
        Ok(grammar)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The grammars used last.
#[derive(Default)]
struct Remembered {
    grammars: HashMap<blake3::Hash, (Arc<Grammar>, u64)>,
    /// Counts uses.
    clock: u64,
}

impl Remembered {
    fn get(&mut self, key: &blake3::Hash) -> Option<Arc<Grammar>> {
        self.clock += 1;
        let (grammar, used) = self.grammars.get_mut(key)?;
        *used = self.clock;
        Some(Arc::clone(grammar))
    }

    fn insert(&mut self, key: blake3::Hash, grammar: Arc<Grammar>) {
        self.clock += 1;
        self.grammars.insert(key, (grammar, self.clock));
        if self.grammars.len() > REMEMBERED {
            let oldest = self.grammars.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(key) = oldest.map(|(key, _)| *key) {
                self.grammars.remove(&key);
            }
        }
    }
}

/// What a grammar is known by: all that it is compiled from, and nothing of where it came from.
fn key(spec: &GrammarSpec) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(spec.root.as_deref().unwrap_or_default());
    add(&spec.parts.len().to_string());
    for part in spec.parts.iter().chain(&spec.checked) {
        match &part.source {
            GrammarSource::JsonSchema { schema, strict } => {
                add(if *strict { "strict" } else { "schema" });
                add(&schema.to_string());
            }
            GrammarSource::Regex(text) => {
                add("regex");
                add(text);
            }
            GrammarSource::Lark(text) => {
                add("lark");
                add(text);
            }
            GrammarSource::Choice(choices) => {
                add("choice");
                add(&choices.len().to_string());
                for choice in choices {
                    add(choice);
                }
            }
            GrammarSource::Text(text) => {
                add(if text.strict { "strict text" } else { "text" });
                add(&text.schema.to_string());
                for expressions in [&text.except, &text.also] {
                    add(&expressions.len().to_string());
                    expressions.iter().for_each(|expression| add(expression));
                }
                add(&text.mark);
                add(&text.end);
            }
        }
    }
    hasher.finalize()
}

fn check_size(part: &GrammarPart) -> Result<(), GrammarError> {
    let (size, limit) = match &part.source {
        GrammarSource::JsonSchema { schema, .. } => (schema.to_string().len(), SCHEMA_BYTES),
        GrammarSource::Regex(text) => (text.len(), REGEX_BYTES),
        GrammarSource::Lark(text) => (text.len(), LARK_BYTES),
        GrammarSource::Choice(choices) => (choices.iter().map(String::len).sum(), CHOICE_BYTES),
        GrammarSource::Text(text) => (text.schema.to_string().len(), SCHEMA_BYTES),
    };
    if size > limit {
        let message = format!("has {size} bytes; at most {limit} are accepted");
        return Err(GrammarError::invalid(&part.field, message));
    }
    Ok(())
}

fn make_factory(tokens: &[TokenBytes], end_tokens: &[TokenId]) -> Result<ParserFactory, String> {
    let environment = token_environment(tokens, end_tokens)?;
    let mut factory = ParserFactory::new(
        &environment,
        InferenceCapabilities::default(),
        &SlicedBiasComputer::general_slices(),
    )
    .map_err(|error| error.to_string())?;
    factory.quiet();
    // A mask that reaches a limit ends its own sequence. With these it takes about 20 ms at most.
    *factory.limits_mut() = ParserLimits {
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

/// Runs compiling work on a thread of its own, whose stack is large enough for what the limits allow.
fn on_large_stack<T: Send>(
    work: impl FnOnce() -> Result<T, GrammarError> + Send,
) -> Result<T, GrammarError> {
    let failed = |reason: &str| GrammarError::Unavailable(reason.to_owned());
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)
            .map_err(|error| failed(&error.to_string()))?
            .join()
            .unwrap_or_else(|_| Err(failed("the grammar could not be compiled")))
    })
}

/// A matcher at the beginning of the grammar, and its first mask.
fn build(
    factory: &ParserFactory,
    spec: &GrammarSpec,
) -> Result<(Matcher, TokenMask), GrammarError> {
    for part in &spec.checked {
        lower(part)?;
    }
    let mut grammars = Vec::new();
    if let Some(root) = &spec.root {
        grammars.push(named("root", GrammarWithLexer::from_lark(root.clone())));
    }
    for (index, part) in spec.parts.iter().enumerate() {
        let grammar = lower(part)?;
        grammars.push(named(&format!("part_{index}"), grammar));
    }
    match begin(factory, grammars) {
        Ok(begun) => Ok(begun),
        Err(message) => Err(blame(factory, spec, &message)),
    }
}

fn named(name: &str, grammar: GrammarWithLexer) -> GrammarWithLexer {
    GrammarWithLexer {
        name: Some(name.to_owned()),
        ..grammar
    }
}

/// One part in llguidance's terms, checked as far as that can be done without it.
fn lower(part: &GrammarPart) -> Result<GrammarWithLexer, GrammarError> {
    Ok(match &part.source {
        GrammarSource::JsonSchema { schema, strict } => {
            let schema = schema::prepare(schema, &part.field, *strict)?;
            GrammarWithLexer::from_json_schema(schema)
        }
        GrammarSource::Regex(text) if text.is_empty() => {
            return Err(GrammarError::invalid(&part.field, "must not be empty"));
        }
        GrammarSource::Regex(text) => {
            let regex = regex_to_lark(text, "");
            GrammarWithLexer::from_lark(format!("start: REGEX\nREGEX: /{regex}/"))
        }
        GrammarSource::Lark(text) => GrammarWithLexer::from_lark(text.clone()),
        GrammarSource::Text(text) => text::lower(text, &part.field)?,
        GrammarSource::Choice(choices) => {
            let literals: Vec<String> = choices
                .iter()
                .map(|choice| serde_json::Value::from(choice.as_str()).to_string())
                .collect();
            GrammarWithLexer::from_lark(format!("start: CHOICE\nCHOICE: {}", literals.join(" | ")))
        }
    })
}

fn begin(
    factory: &ParserFactory,
    grammars: Vec<GrammarWithLexer>,
) -> Result<(Matcher, TokenMask), String> {
    let grammar = TopLevelGrammar {
        grammars,
        max_tokens: None,
    };
    let mut matcher = Matcher::new(factory.create_parser(grammar));
    match matcher.compute_mask() {
        Ok(mask) => Ok((matcher, TokenMask::new(mask))),
        Err(error) => Err(tell(&error.to_string())),
    }
}

/// What is wrong, and in which field.
fn blame(factory: &ParserFactory, spec: &GrammarSpec, message: &str) -> GrammarError {
    for part in &spec.parts {
        let Ok(grammar) = lower(part) else { continue };
        let Err(message) = begin(factory, vec![grammar]) else {
            continue;
        };
        return match &part.source {
            GrammarSource::JsonSchema { schema, strict } => {
                let accepts = |schema: &serde_json::Value| {
                    let prepared = schema::prepare(schema, "", *strict).ok()?;
                    let grammar = GrammarWithLexer::from_json_schema(prepared);
                    begin(factory, vec![grammar]).err()
                };
                schema::locate(schema, &part.field, &message, &accepts)
            }
            GrammarSource::Regex(_) => GrammarError::invalid(
                &part.field,
                format!("is not a regular expression that can be enforced: {message}"),
            ),
            GrammarSource::Lark(_) => {
                GrammarError::invalid(&part.field, format!("is not a valid grammar: {message}"))
            }
            GrammarSource::Choice(_) | GrammarSource::Text(_) => {
                GrammarError::invalid(&part.field, format!("cannot be enforced: {message}"))
            }
        };
    }
    // Each for itself is well: together they are too much.
    match spec.parts.first() {
        Some(part) => GrammarError::invalid(&part.field, format!("cannot be enforced: {message}")),
        None => GrammarError::Unavailable(message.to_owned()),
    }
}

/// An error of llguidance's in a few words, without what it says of its insides.
fn tell(error: &str) -> String {
    // Without the grammar's text and position: what is ours means nothing to the client, and what is
    // theirs they have.
    let error = error.split("\n<").next().unwrap_or_default();
    let error = error.split("\n1 | ").next().unwrap_or_default();
    if error.starts_with("panic:") {
        return "it is too complex".to_owned();
    }
    let mut text: String = error.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.len() > MESSAGE_BYTES {
        let end = (0..=MESSAGE_BYTES)
            .rev()
            .find(|&end| text.is_char_boundary(end))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}
