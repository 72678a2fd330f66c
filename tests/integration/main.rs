//! Everything that runs more than one layer, in one test binary.

mod reference_logits;
