//! The client side of `/v1/chat/completions`: one streamed request, and when each piece of it came.

use std::io::{BufReader, ErrorKind, Read};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::BenchError;
use super::events::{Event, EventReader};
use crate::config::ApiKey;

/// Most of a body that is read where a short answer is expected.
const SHORT_BODY: u64 = 1 << 20;
/// Most characters of a server's error message that are repeated.
const LONGEST_MESSAGE: usize = 300;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Speaks with one server.
#[derive(Debug, Clone)]
pub struct Client {
    agent: ureq::Agent,
    /// Without `/v1`.
    url: String,
    key: Option<ApiKey>,
    model: String,
    extensions: Extensions,
}

/// Fields beyond the plainest request. The bench tries which of them a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extensions {
    /// `stream_options: {"include_usage": true}`.
    pub usage: bool,
    /// `ignore_eos: true`, so that each answer has as many tokens as were asked for.
    pub ignore_eos: bool,
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
}

impl Message {
    pub fn system(content: String) -> Self {
        let role = "system";
        Self { role, content }
    }

    pub fn user(content: String) -> Self {
        let role = "user";
        Self { role, content }
    }

    pub fn assistant(content: String) -> Self {
        let role = "assistant";
        Self { role, content }
    }
}

/// A complete answer and its times.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Just before the connection was asked for.
    pub sent: Instant,
    /// When each piece of text came; of an answer without any visible text, when it was finished.
    pub pieces: Vec<Instant>,
    pub ended: Instant,
    pub text: String,
    /// What the server counted.
    pub usage: Option<Usage>,
}

impl Answer {
    /// From sending to the first piece of text.
    pub fn time_to_first_token(&self) -> Duration {
        let first = self.pieces.first().unwrap_or(&self.ended);
        first.duration_since(self.sent)
    }

    pub fn end_to_end(&self) -> Duration {
        self.ended.duration_since(self.sent)
    }

    /// Tokens out: as the server counted them, else the number of pieces.
    pub fn output_tokens(&self) -> u64 {
        let counted = self.usage.map(|usage| usage.completion_tokens);
        counted.unwrap_or(self.pieces.len() as u64)
    }
}

/// Token counts of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

impl Usage {
    /// Prompt tokens from the server's cache; `None` if it does not say.
    pub fn cached_tokens(&self) -> Option<u64> {
        self.prompt_tokens_details?.cached_tokens
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

/// Why one request failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    #[error("cannot reach it ({0}); is the server running, and is the URL right?")]
    Unreachable(String),
    #[error("cannot connect to it ({0}); is the URL right?")]
    NoConnection(String),
    #[error("no answer within --timeout")]
    Timeout,
    #[error("the server answered {status}: {message}")]
    Refused { status: u16, message: String },
    #[error("the stream was cut: {0}")]
    Cut(String),
    #[error("the server ended the stream with an error: {0}")]
    Failed(String),
    #[error("not a stream of chat completion chunks: {0}")]
    NotAStream(String),
}

impl RequestError {
    fn of(error: ureq::Error) -> Self {
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve)
            | ureq::Error::ConnectionFailed => Self::Unreachable(error.to_string()),
            ureq::Error::HostNotFound => Self::NoConnection(error.to_string()),
            ureq::Error::Timeout(_) => Self::Timeout,
            ureq::Error::Io(error) => match error.kind() {
                ErrorKind::ConnectionRefused => Self::Unreachable(error.to_string()),
                ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::UnexpectedEof => Self::Cut(error.to_string()),
                // A name that nobody knows, a server without TLS where the URL says https, and the like.
                _ => Self::NoConnection(error.to_string()),
            },
            other => Self::Cut(other.to_string()),
        }
    }

    fn of_body(error: &std::io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(ureq::Error::Timeout(_)) => Self::Timeout,
            _ if error.kind() == std::io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Cut(error.to_string()),
        }
    }
}

impl Client {
    /// A client of the server at `url` that asks for `model`. Nothing is sent yet.
    ///
    /// # Errors
    /// When `url` is none of HTTP.
    pub fn new(
        url: &str,
        model: String,
        key: Option<ApiKey>,
        timeout: Duration,
    ) -> Result<Self, BenchError> {
        let url = base_url(url)?;
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(timeout))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(timeout)))
            // Compression would gather what should be seen piece by piece.
            .accept_encoding("")
            .max_redirects(0)
            // Each request has a connection of its own: some servers close theirs after a stream without saying so.
            .max_idle_connections(0)
            .max_idle_connections_per_host(0);
        if is_loopback(&url) {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            url,
            key,
            model,
            extensions: Extensions {
                usage: true,
                ignore_eos: true,
            },
        })
    }

    /// Where the server is, without `/v1`.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn with_model(self, model: String) -> Self {
        Self { model, ..self }
    }

    pub fn with_extensions(self, extensions: Extensions) -> Self {
        Self { extensions, ..self }
    }

    /// The ids that `/v1/models` lists.
    ///
    /// # Errors
    /// When there is no such list.
    pub fn models(&self) -> Result<Vec<String>, RequestError> {
        let body = self.get("/v1/models")?;
        let list: Value = serde_json::from_str(&body)
            .map_err(|error| RequestError::NotAStream(format!("/v1/models: {error}")))?;
        let entries = list["data"].as_array().map(Vec::as_slice);
        let ids = entries.unwrap_or_default().iter();
        Ok(ids
            .filter_map(|entry| Some(entry["id"].as_str()?.to_owned()))
            .collect())
    }

    /// The text of a page that is not long.
    ///
    /// # Errors
    /// When the server does not answer with 200.
    pub fn get(&self, path: &str) -> Result<String, RequestError> {
        match self.page(path)? {
            (200, body) => Ok(body),
            (status, body) => Err(refused(status, &body)),
        }
    }

    /// Whether the server says on `/health` that it is still loading its model, as several servers do.
    pub fn is_loading(&self) -> bool {
        let page = self.page("/health");
        page.is_ok_and(|(status, body)| {
            status == 503 && body.to_ascii_lowercase().contains("loading")
        })
    }

    /// The status and the text of a page that is not long.
    fn page(&self, path: &str) -> Result<(u16, String), RequestError> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {}", key.reveal()));
        }
        let mut response = request.call().map_err(RequestError::of)?;
        let status = response.status().as_u16();
        Ok((status, short_text(response.body_mut())?))
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn ask(&self, messages: &[Message], max_tokens: usize) -> Result<Answer, RequestError> {
        self.ask_watched(messages, max_tokens, |_| ControlFlow::Continue(()))
    }

    /// [`Self::ask`], telling `watch` the time of each piece of text; its `Break` ends the request as a
    /// client does that leaves, and the answer is what has come until then.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub fn ask_watched(
        &self,
        messages: &[Message],
        max_tokens: usize,
        mut watch: impl FnMut(Instant) -> ControlFlow<()>,
    ) -> Result<Answer, RequestError> {
        let body = self.body(messages, max_tokens).to_string();
        let sent = Instant::now();
        let mut request = self
            .agent
            .post(format!("{}/v1/chat/completions", self.url))
            .header("Content-Type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {}", key.reveal()));
        }
        let mut response = request.send(body).map_err(RequestError::of)?;
        let status = response.status().as_u16();
        if status != 200 {
            let body = short_text(response.body_mut())?;
            return Err(refused(status, &body));
        }
        if response.body().mime_type() != Some("text/event-stream") {
            let found = response.body().mime_type().unwrap_or("nothing").to_owned();
            return Err(RequestError::NotAStream(format!(
                "the content type is {found}, not text/event-stream"
            )));
        }
        let mut answer = Answer {
            sent,
            pieces: Vec::new(),
            ended: sent,
            text: String::new(),
            usage: None,
        };
        let mut events = EventReader::new(BufReader::new(response.body_mut().as_reader()));
        let mut finished = false;
        loop {
            let event = events
                .next()
                .map_err(|error| RequestError::of_body(&error))?;
            let now = Instant::now();
            let data = match event {
                Some(Event::Data(data)) => data,
                Some(Event::Done) => {
                    // To the end of the body, as a client that stays does; what it says there is over.
                    while let Ok(Some(_)) = events.next() {}
                    break;
                }
                // Some servers leave [DONE] out; without a finish reason the stream was cut.
                None if finished => break,
                None => return Err(RequestError::Cut("it ended without [DONE]".to_owned())),
            };
            match answer.accept(&data, now)? {
                Piece::Text => {
                    answer.ended = now;
                    if watch(now).is_break() {
                        return Ok(answer);
                    }
                }
                Piece::Finish => {
                    finished = true;
                    answer.ended = now;
                }
                Piece::Other => {}
            }
        }
        if answer.pieces.is_empty() {
            if !finished {
                return Err(RequestError::NotAStream("it held no choice".to_owned()));
            }
            answer.pieces.push(answer.ended);
        }
        Ok(answer)
    }

    fn body(&self, messages: &[Message], max_tokens: usize) -> Value {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| json!({"role": message.role, "content": message.content}))
            .collect();
        let mut body = json!({
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": true,
        });
        if self.extensions.usage {
            body["stream_options"] = json!({"include_usage": true});
        }
        if self.extensions.ignore_eos {
            body["ignore_eos"] = json!(true);
        }
        body
    }
}

/// What a chunk held.
enum Piece {
    Text,
    Finish,
    Other,
}

impl Answer {
    fn accept(&mut self, data: &str, now: Instant) -> Result<Piece, RequestError> {
        let chunk: Value = serde_json::from_str(data)
            .map_err(|error| RequestError::NotAStream(format!("{error} in {}", shorten(data))))?;
        if !chunk["error"].is_null() {
            return Err(RequestError::Failed(error_message(&chunk)));
        }
        if let Ok(usage) = Usage::deserialize(&chunk["usage"]) {
            self.usage = Some(usage);
        }
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        let content = delta["content"].as_str().unwrap_or_default();
        self.text.push_str(content);
        // Reasoning and tool calls are tokens, too; they are not part of the text of the next turn.
        let hidden = ["reasoning_content", "reasoning"].iter();
        let visible = !content.is_empty()
            || hidden
                .into_iter()
                .any(|name| delta[name].as_str().is_some_and(|text| !text.is_empty()))
            || delta["tool_calls"]
                .as_array()
                .is_some_and(|calls| !calls.is_empty());
        if visible {
            self.pieces.push(now);
        }
        Ok(match (visible, choice["finish_reason"].is_string()) {
            (_, true) => Piece::Finish,
            (true, false) => Piece::Text,
            (false, false) => Piece::Other,
        })
    }
}

/// The address without `/v1`.
fn base_url(text: &str) -> Result<String, BenchError> {
    let bad = |reason: &str| BenchError::BadUrl {
        url: text.to_owned(),
        reason: reason.to_owned(),
    };
    let text = text.trim();
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    if !["http", "https"].contains(&scheme) {
        return Err(bad(&format!("{scheme} is not http or https")));
    }
    let rest = rest.trim_end_matches('/');
    let rest = rest
        .strip_suffix("/v1")
        .unwrap_or(rest)
        .trim_end_matches('/');
    let url = format!("{scheme}://{rest}");
    match url.parse::<ureq::http::Uri>() {
        Ok(uri) if uri.host().is_some_and(|host| !host.is_empty()) => Ok(url),
        Ok(_) => Err(bad("it has no host")),
        Err(error) => Err(bad(&error.to_string())),
    }
}

/// Whether the server is on this machine, so that no proxy is in between.
fn is_loopback(url: &str) -> bool {
    let uri: Result<ureq::http::Uri, _> = url.parse();
    let Some(host) = uri.ok().and_then(|uri| uri.host().map(str::to_owned)) else {
        return false;
    };
    let host = host.trim_matches(['[', ']']);
    let address: Result<std::net::IpAddr, _> = host.parse();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn short_text(body: &mut ureq::Body) -> Result<String, RequestError> {
    let mut bytes = Vec::new();
    body.as_reader()
        .take(SHORT_BODY)
        .read_to_end(&mut bytes)
        .map_err(|error| RequestError::of_body(&error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn refused(status: u16, body: &str) -> RequestError {
    let message = match serde_json::from_str::<Value>(body) {
        Ok(json) => error_message(&json),
        Err(_) => shorten(body),
    };
    RequestError::Refused { status, message }
}

/// The message of an error object in any of the forms that servers use.
fn error_message(json: &Value) -> String {
    let candidates = [
        &json["error"]["message"],
        &json["message"],
        &json["error"],
        &json["detail"],
    ];
    let message = candidates.into_iter().find_map(Value::as_str);
    message.map_or_else(|| shorten(&json.to_string()), shorten)
}

fn shorten(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(LONGEST_MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_brought_into_one_form() {
        for (given, expected) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://127.0.0.1:8080/v1/", "http://127.0.0.1:8080"),
            ("localhost:8000", "http://localhost:8000"),
            ("https://host/path/v1", "https://host/path"),
        ] {
            assert_eq!(base_url(given).unwrap(), expected);
        }
        for wrong in ["", "ftp://host", "http://", "http://a b"] {
            let error = base_url(wrong).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:8080"), "{error}");
        }
    }

    #[test]
    fn loopback_needs_no_proxy() {
        for (url, expected) in [
            ("http://localhost:1", true),
            ("http://127.0.0.5:1", true),
            ("http://[::1]:1", true),
            ("http://10.0.0.1:1", false),
            ("http://example.org", false),
        ] {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }

    #[test]
    fn chunks_of_different_servers_are_understood() {
        let now = Instant::now();
        let mut answer = Answer {
            sent: now,
            pieces: Vec::new(),
            ended: now,
            text: String::new(),
            usage: None,
        };
        for chunk in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
            r#"{"choices":[{"delta":{"content":"a"},"finish_reason":null}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"b"}}]}"#,
            r#"{"choices":[{"delta":{"content":"c"},"finish_reason":"length"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":null}}"#,
        ] {
            answer.accept(chunk, now).unwrap();
        }
        assert_eq!((answer.pieces.len(), answer.text.as_str()), (3, "ac"));
        assert_eq!(answer.output_tokens(), 3);
        assert_eq!(answer.usage.unwrap().cached_tokens(), None);
        let with_cache = r#"{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        answer.accept(with_cache, now).unwrap();
        assert_eq!(answer.usage.unwrap().cached_tokens(), Some(4));
        let error = answer.accept(r#"{"error":{"message":"no room"}}"#, now);
        assert!(matches!(error, Err(RequestError::Failed(text)) if text == "no room"));
        assert!(answer.accept("<html>", now).is_err());
    }

    #[test]
    fn messages_of_servers_are_found_and_cut() {
        for body in [
            r#"{"error":{"message":"why"}}"#,
            r#"{"object":"error","message":"why"}"#,
            r#"{"error":"why"}"#,
            r#"{"detail":"why"}"#,
            "why\n",
        ] {
            let text = refused(400, body).to_string();
            assert_eq!(text, "the server answered 400: why");
        }
        let long = "x".repeat(5000);
        assert!(refused(500, &long).to_string().len() < 400);
    }
}
