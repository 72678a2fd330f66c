//! Tests of the whole engine on tiny random models.

mod agreement;
mod exactness;
mod isolation;
pub mod model;
mod thread;
