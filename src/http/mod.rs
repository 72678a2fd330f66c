//! The wire: routes, requests, responses, errors, keys, and the sockets themselves.

pub mod error;
pub mod request;
