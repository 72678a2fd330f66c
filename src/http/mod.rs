//! The wire: routes, requests, responses, errors, keys, and the sockets themselves.
//!
//! A generation request's way: [`generate`] reads and validates it ([`request`]), acquires the model, renders
//! and encodes the prompt ([`prepare`]), starts a streamer for each sequence and submits them. The streamers
//! put the [`answer`] together; a streamed one leaves through the [`outbox`]. Each API tells it in a [`form`] of
//! its own ([`openai`] for chat and text completions), and is told errors in its [`dialect`]. What is counted
//! about it is in [`record`]. A client that leaves is noticed by the [`connection`].

pub mod answer;
mod auth;
mod body;
mod connection;
mod constrain;
mod context;
mod cors;
pub mod dialect;
pub mod error;
pub mod form;
mod generate;
mod handlers;
pub mod openai;
mod openapi;
mod options;
pub mod outbox;
pub mod paths;
mod prepare;
pub mod record;
pub mod request;
mod server;
pub mod wire;

pub use context::AppState;
pub use options::HttpOptions;
pub use server::{HttpServer, serve};
