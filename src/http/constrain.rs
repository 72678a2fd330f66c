//! From what a request demands of its output to a compiled grammar.

use super::error::ApiError;
use super::prepare::{GenerationRequest, PreparedSequence};
use crate::grammar::{GrammarCompiler, GrammarSpec};
use crate::prompt::PromptFormat;

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
    let Some(part) = &request.options().output else {
        return Ok(());
    };
    let spec = GrammarSpec::only(part.clone());
    let grammar = compiler.compile(&spec, || format.vocabulary(vocabulary))?;
    for sequence in sequences {
        sequence.grammar = Some(grammar.clone());
    }
    Ok(())
}
