//! Attention over block tables. The fused CPU implementation is in [`crate::kernels`]; the reference is here.

pub mod portable;
