//! How model families write tool calls.

mod hermes;
mod json;

pub(super) use hermes::{CLOSE, HermesParser, OPEN};
