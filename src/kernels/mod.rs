//! SIMD code for the CPU, each kernel with its scalar twin. Plain slices in, plain slices out.

pub mod mmap;
