//! What is counted and logged about one generation request, on every way it can end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dialect::Dialect;
use super::error::ApiError;
use super::form::Timing;
use crate::actors::messages::TokenUsage;
use crate::telemetry::{Metrics, Rejection};

/// Which API a request came through: the `endpoint` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    ChatCompletions,
    Completions,
    Responses,
    Messages,
    OllamaChat,
    OllamaGenerate,
    CountTokens,
    InputTokens,
    Tokenize,
    Detokenize,
    ApplyTemplate,
}

impl Endpoint {
    pub fn as_str(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "chat_completions",
            Endpoint::Completions => "completions",
            Endpoint::Responses => "responses",
            Endpoint::Messages => "messages",
            Endpoint::OllamaChat => "ollama_chat",
            Endpoint::OllamaGenerate => "ollama_generate",
            Endpoint::CountTokens => "count_tokens",
            Endpoint::InputTokens => "input_tokens",
            Endpoint::Tokenize => "tokenize",
            Endpoint::Detokenize => "detokenize",
            Endpoint::ApplyTemplate => "apply_template",
        }
    }

    /// Whose words its errors are in.
    pub fn dialect(self) -> Dialect {
        match self {
            Endpoint::Messages | Endpoint::CountTokens => Dialect::Anthropic,
            Endpoint::OllamaChat | Endpoint::OllamaGenerate => Dialect::Ollama,
            _ => Dialect::OpenAi,
        }
    }
}

/// How an answered request ended: the `outcome` label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Stop,
    Length,
    ToolCalls,
    Cancelled,
    Failed,
    Deadline,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Stop => "stop",
            Outcome::Length => "length",
            Outcome::ToolCalls => "tool_calls",
            Outcome::Cancelled => "cancelled",
            Outcome::Failed => "failed",
            Outcome::Deadline => "deadline",
        }
    }
}

/// Follows one request from its arrival to its end. Exactly one of [`RequestRecord::reject`],
/// [`RequestRecord::fail`], [`RequestRecord::complete`] or dropping it (the client has left) ends it; each
/// writes the metrics and one log line.
pub struct RequestRecord {
    endpoint: Endpoint,
    request_id: Arc<str>,
    arrived: Instant,
    metrics: Arc<Metrics>,
    model: Option<String>,
    streamed: bool,
    last_token: Option<Instant>,
    first_token_after: Option<Duration>,
    ended: bool,
}

impl RequestRecord {
    pub fn new(
        endpoint: Endpoint,
        request_id: Arc<str>,
        arrived: Instant,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            endpoint,
            request_id,
            arrived,
            metrics,
            model: None,
            streamed: false,
            last_token: None,
            first_token_after: None,
            ended: false,
        }
    }

    /// Notes what is known once the request is understood.
    pub fn describe(&mut self, model: &str, streamed: bool) {
        self.model = Some(model.to_owned());
        self.streamed = streamed;
    }

    pub fn request_id(&self) -> &Arc<str> {
        &self.request_id
    }

    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// How long it has taken so far.
    pub fn timing(&self) -> Timing {
        Timing {
            first_token: self.first_token_after,
            total: self.arrived.elapsed(),
        }
    }

    /// A token of the answer has come.
    pub fn token(&mut self, now: Instant) {
        match self.last_token.replace(now) {
            None => {
                let delay = now - self.arrived;
                self.first_token_after = Some(delay);
                self.metrics
                    .time_to_first_token_seconds
                    .observe(delay.as_secs_f64());
            }
            Some(last) => self
                .metrics
                .inter_token_latency_seconds
                .observe((now - last).as_secs_f64()),
        }
    }

    /// The request was refused before anything was generated.
    pub fn reject(&mut self, error: &ApiError) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match rejection(error) {
            Some(reason) => self.metrics.reject(reason),
            None => self.count(outcome(error)),
        }
        self.log(error.status().as_u16(), error.code(), TokenUsage::default());
    }

    /// Generation failed.
    pub fn fail(&mut self, error: &ApiError, usage: TokenUsage) {
        self.end(outcome(error), error.status().as_u16(), error.code(), usage);
    }

    /// The answer is complete.
    pub fn complete(&mut self, outcome: Outcome, usage: TokenUsage) {
        self.end(outcome, 200, outcome.as_str(), usage);
    }

    /// The client has left.
    pub fn cancel(&mut self, usage: TokenUsage) {
        if !self.ended {
            self.metrics.client_disconnects.inc();
        }
        self.end(Outcome::Cancelled, 499, Outcome::Cancelled.as_str(), usage);
    }

    fn end(&mut self, outcome: Outcome, status: u16, cause: &str, usage: TokenUsage) {
        if !std::mem::replace(&mut self.ended, true) {
            self.count(outcome);
            self.log(status, cause, usage);
        }
    }

    fn count(&self, outcome: Outcome) {
        let endpoint = self.endpoint.as_str();
        self.metrics
            .requests
            .with_label_values(&[endpoint, outcome.as_str()])
            .inc();
        self.metrics
            .request_duration_seconds
            .with_label_values(&[endpoint])
            .observe(self.arrived.elapsed().as_secs_f64());
    }

    fn log(&self, status: u16, cause: &str, usage: TokenUsage) {
        tracing::info!(
            request_id = %self.request_id,
            endpoint = self.endpoint.as_str(),
            status,
            cause,
            model = self.model.as_deref().unwrap_or_default(),
            stream = self.streamed,
            seconds = self.arrived.elapsed().as_secs_f64(),
            first_token_seconds = self.first_token_after.map(|delay| delay.as_secs_f64()),
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            completion_tokens = usage.completion_tokens,
            "request"
        );
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        self.cancel(TokenUsage::default());
    }
}

fn outcome(error: &ApiError) -> Outcome {
    match error {
        ApiError::DeadlineExceeded => Outcome::Deadline,
        _ => Outcome::Failed,
    }
}

/// The `reason` label of a refusal. None: not a refusal but a failure.
fn rejection(error: &ApiError) -> Option<Rejection> {
    match error {
        ApiError::InvalidRequest { .. }
        | ApiError::BodyTooLarge { .. }
        | ApiError::RequestTimeout(_)
        | ApiError::RouteNotFound(_)
        | ApiError::ResponseNotFound(_)
        | ApiError::MethodNotAllowed { .. } => Some(Rejection::Invalid),
        ApiError::ContextLengthExceeded { .. } => Some(Rejection::ContextLength),
        ApiError::Unauthorized(_) => Some(Rejection::Unauthorized),
        ApiError::ModelNotFound { .. } => Some(Rejection::UnknownModel),
        ApiError::TooManyRequests { .. } => Some(Rejection::QueueFull),
        ApiError::Unavailable {
            code: super::error::SHUTTING_DOWN,
            ..
        } => Some(Rejection::Draining),
        ApiError::Unavailable { .. } => Some(Rejection::NotReady),
        ApiError::DeadlineExceeded | ApiError::Internal(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(metrics: &Arc<Metrics>) -> RequestRecord {
        RequestRecord::new(
            Endpoint::Completions,
            "req".into(),
            Instant::now(),
            Arc::clone(metrics),
        )
    }

    fn count(metrics: &Metrics, outcome: &str) -> u64 {
        metrics
            .requests
            .with_label_values(&["completions", outcome])
            .get()
    }

    #[test]
    fn each_request_ends_once() {
        let metrics = Arc::new(Metrics::new());
        let mut complete = record(&metrics);
        complete.complete(Outcome::Stop, TokenUsage::default());
        complete.cancel(TokenUsage::default());
        drop(complete);
        assert_eq!(count(&metrics, "stop"), 1);
        assert_eq!(count(&metrics, "cancelled"), 0);
        assert_eq!(metrics.client_disconnects.get(), 0);
    }

    #[test]
    fn a_dropped_request_is_a_client_that_left() {
        let metrics = Arc::new(Metrics::new());
        drop(record(&metrics));
        assert_eq!(count(&metrics, "cancelled"), 1);
        assert_eq!(metrics.client_disconnects.get(), 1);
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let metrics = Arc::new(Metrics::new());
        record(&metrics).reject(&ApiError::malformed("x"));
        record(&metrics).reject(&ApiError::Unauthorized("x"));
        assert_eq!(
            metrics
                .requests_rejected
                .with_label_values(&["invalid"])
                .get(),
            1
        );
        assert_eq!(
            metrics
                .requests_rejected
                .with_label_values(&["unauthorized"])
                .get(),
            1
        );
        assert_eq!(count(&metrics, "cancelled"), 0);
    }
}
