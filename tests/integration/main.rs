//! Everything that runs more than one layer, in one test binary.

mod bad_input;
mod disconnect;
mod lifecycle;
mod reference_logits;
mod streaming;
mod support;
