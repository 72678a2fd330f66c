//! Everything that runs more than one layer, in one test binary.

mod apis;
mod bad_input;
mod bench;
mod choices;
mod disconnect;
mod forced_calls;
mod lifecycle;
mod load;
mod logprobs;
mod openapi;
mod options;
mod process;
mod reference_logits;
mod scenarios;
mod streaming;
mod structured_output;
mod support;
