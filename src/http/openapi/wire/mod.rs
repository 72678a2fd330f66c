//! The types of the wire, and the paths that take and give them.

mod anthropic;
mod chat;
mod completions;
mod errors;
mod ollama;
mod paths;
mod responses;
mod server;
mod tokens;

pub(super) use paths::Description;
