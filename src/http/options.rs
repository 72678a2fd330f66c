//! What the HTTP server is told at its start.

use std::time::Duration;

use super::responses::store::StoreLimits;

/// Bounds and behaviour of the HTTP server.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// Name or address to listen on; all addresses of a name are bound.
    pub host: String,
    /// 0 picks a free port.
    pub port: u16,
    /// Threads that parse requests and write answers.
    pub workers: usize,
    /// Keys that clients may present. Empty: everyone may call.
    pub api_keys: Vec<String>,
    /// Origins that browsers may call from; `*` is any. Empty: no CORS headers.
    pub cors_origins: Vec<String>,
    /// Bytes of a request body.
    pub body_limit: usize,
    /// Connections open at once; further ones are answered 503.
    pub connection_limit: usize,
    /// From arrival to the end of the answer.
    pub request_timeout: Duration,
    /// For the head of a connection's first request.
    pub head_timeout: Duration,
    /// For a request's body.
    pub body_timeout: Duration,
    /// How long an idle connection stays open.
    pub keep_alive: Duration,
    /// How long a client may take no bytes at all before its connection is closed.
    pub write_timeout: Duration,
    /// Shortest time between two progress events of one request.
    pub progress_interval: Duration,
    /// The usage rides on a stream's final chunk, too.
    pub usage_on_final_chunk: bool,
    /// How many responses are kept for clients that come back to them.
    pub response_store: StoreLimits,
    /// Prompts and completions may be logged.
    pub log_content: bool,
}
