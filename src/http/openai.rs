//! OpenAI's chat and text completions as forms of an answer.

use bytes::Bytes;
use serde_json::Value;

use super::dialect::Dialect;
use super::form::{Opening, Piece, Summary, WholeChoice, WireForm, data_event, named_event};
use super::wire::{Envelope, Form};

/// The model and its numbers change only with the build.
const FINGERPRINT: &str = concat!("trunkline-", env!("CARGO_PKG_VERSION"));

/// What a stream tells beside the text.
#[derive(Debug, Clone, Copy, Default)]
pub struct StreamOptions {
    /// A chunk with the usage at the end.
    pub include_usage: bool,
    /// The usage on the final chunk, too.
    pub usage_on_final_chunk: bool,
    /// `prefill_progress` events.
    pub progress_events: bool,
    /// `prompt_progress` on chunks.
    pub progress_chunks: bool,
    /// How long it took, on the final chunk and on the whole answer.
    pub timings: bool,
}

/// `chat.completion` and `text_completion` objects, whole and as chunks.
#[derive(Debug)]
pub struct CompletionForm {
    pub envelope: Envelope,
    pub options: StreamOptions,
}

impl CompletionForm {
    /// The options of the request are taken from `options`, those of header and configuration from `opening`.
    pub fn new(form: Form, options: StreamOptions, opening: Opening) -> Self {
        Self {
            envelope: Envelope {
                form,
                id: format!("{}{}", form.id_prefix(), uuid::Uuid::new_v4().simple()),
                created: opening.created,
                model: opening.model,
                fingerprint: FINGERPRINT.to_owned(),
            },
            options: StreamOptions {
                usage_on_final_chunk: opening.usage_on_final_chunk,
                progress_events: opening.progress_events,
                ..options
            },
        }
    }
}

impl WireForm for CompletionForm {
    fn encode(&mut self, piece: Piece) -> Bytes {
        let envelope = &self.envelope;
        match piece {
            Piece::Delta {
                choice,
                delta,
                logprobs,
            } => data_event(&envelope.delta_chunk(choice, &delta, &logprobs)),
            Piece::Progress(progress) => {
                let mut frames = String::new();
                if self.options.progress_events {
                    frames += &named_event("prefill_progress", &envelope.progress_event(&progress));
                }
                if self.options.progress_chunks {
                    frames += &format!("data: {}\n\n", envelope.progress_chunk(&progress));
                }
                frames.into()
            }
            Piece::Finish { choice, ending } => {
                let usage = self.options.usage_on_final_chunk.then_some(ending.usage);
                let timings = self.options.timings.then_some(ending.timings);
                data_event(&envelope.finish_chunk(choice, ending.finish, usage, timings))
            }
            Piece::Done(summary) => {
                let mut frames = String::new();
                if self.options.include_usage {
                    frames += &format!("data: {}\n\n", envelope.usage_chunk(summary.usage));
                }
                frames += "data: [DONE]\n\n";
                frames.into()
            }
            Piece::Error(error) => data_event(&Dialect::OpenAi.error_body(&error, "")),
        }
    }

    fn whole(&mut self, choices: Vec<WholeChoice>, summary: Summary) -> Value {
        let timings = self.options.timings.then_some(summary.timings);
        self.envelope.whole(&choices, summary.usage, timings)
    }
}
