//! Trunkline: an OpenAI-compatible inference server for many parallel agent clients on one machine.
//!
//! The modules follow the way of a request: [`http`] parses it, [`prompt`] turns its messages into
//! tokens, [`actors`] schedule it and stream its answer, [`engine`] computes it with [`kernels`]. [`grammar`]
//! says which tokens structured output may go on with.
//! [`cli`] reads the command line, and [`bench`] measures servers and the engine.
//! Only [`engine`] and [`kernels`] know tensors; only [`http`] knows the wire.

pub mod actors;
pub mod bench;
pub mod cli;
pub mod config;
pub mod engine;
pub mod grammar;
pub mod http;
pub mod ids;
pub mod kernels;
pub mod prompt;
pub mod server;
pub mod telemetry;
