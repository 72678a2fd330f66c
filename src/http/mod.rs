//! The wire: routes, requests, responses, errors, keys, and the sockets themselves.
//!
//! A generation request's way: [`generate`] reads and validates it ([`request`]), acquires the model, renders
//! and encodes the prompt ([`prepare`]), starts a streamer for each sequence and submits them. The streamers
//! put the [`answer`] together; a streamed one leaves through the [`outbox`]. Each API tells it in a [`form`] of
//! its own ([`openai`] for chat and text completions), and is told errors in its [`dialect`]. The others
//! ([`responses`], [`anthropic`], [`ollama`]) translate their requests to a [`draft`] of a chat request, and
//! errors about it back by its [`paths`]. What is counted about a request is in [`record`]. A client that leaves is noticed by the [`connection`].

pub mod answer;
mod anthropic;
mod auth;
mod body;
mod connection;
mod constrain;
mod context;
mod cors;
pub mod dialect;
mod draft;
pub mod error;
pub mod form;
mod generate;
mod handlers;
mod ollama;
pub mod openai;
mod openapi;
mod options;
pub mod outbox;
pub mod paths;
mod prepare;
pub mod record;
pub mod request;
mod responses;
mod server;
mod tokens;
pub mod wire;

pub use context::AppState;
pub use options::HttpOptions;
pub use responses::store::StoreLimits;
pub use server::{HttpServer, serve};
