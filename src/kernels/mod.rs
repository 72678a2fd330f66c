//! SIMD code for the CPU, each kernel with its scalar twin. Plain slices in, plain slices out.
//!
//! Every kernel is written once over [`simd::Simd`], sixteen `f32` lanes, and instantiated for
//! AVX-512, AVX2 + FMA, NEON and plain Rust; the best one is chosen at run time ([`Isa`]).
//! Because lanes, order of accumulation and partitions are fixed, a row's result has the same
//! bits whatever the number of rows, the row's place among them, and the number of threads.
//!
//! | module | one sentence |
//! |---|---|
//! | [`pool`] | fixed worker threads that take tiles of one job from an atomic counter |
//! | `amx` | matrix tiles, on machines that have them |
//! | [`isa`], [`simd`] | which instruction set runs, and the sixteen-lane vector it runs on |
//! | [`matmul`] | weights packed into panels, dense or quantized, and the product with rows |
//! | [`kv`] | key and value blocks of one layer: layout, writing, copying, reading |
//! | [`attention`] | ragged attention over block tables, shared blocks walked once |
//! | [`aligned`] | buffers at cache lines, in large pages |
//! | [`mmap`] | read-only memory maps of files |
//! | [`rows`] | norms, rotary embedding, activations, argmax: one row at a time |

mod aligned;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub mod isa;
pub mod kv;
pub mod matmul;
pub mod mmap;
pub mod pool;
pub mod rows;
mod simd;
#[cfg(test)]
mod testing;

pub use attention::{AttentionPlan, AttentionRow, AttentionShape, fused_attention};
pub use isa::Isa;
pub use kv::{KvLayer, KvLayout, KvRows, KvSlot, KvType};
pub use matmul::{Input, PackedMatrix, Precision};
pub use pool::ThreadPool;
pub use rows::{HeadPreparation, RopeTable, add, argmax, rms_norm, silu_mul, softmax};

/// Why a kernel could not be built or run.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A job panicked on some thread; the others were stopped and the pool stays usable.
    #[error("a kernel job panicked: {0}")]
    JobPanicked(String),
    /// The operating system refused a worker thread.
    #[error("cannot start a kernel worker thread: {0}")]
    Spawn(#[from] std::io::Error),
    /// The data do not have the size that the dimensions ask for.
    #[error("{what} has {found} elements where {expected} are needed")]
    Length {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    /// A dimension that the kernel cannot work with.
    #[error("{0}")]
    Shape(String),
    /// A quantization that has no kernel.
    #[error("weights quantized as {0} are not supported")]
    Quantization(String),
}

/// A pointer that jobs on several threads write disjoint parts of.
struct SharedMut<T>(*mut T);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedMut<T> {}

// SAFETY: only a pointer; every user writes a part of its own, as its SAFETY comment says.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// The `len` elements from `start` on, as this job's own.
    ///
    /// # Safety
    /// The range lies inside the slice, which outlives the job, and no other job touches it.
    unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: promised by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// The pointer to element `start`. Callers state the range that they write.
    fn at(self, start: usize) -> *mut T {
        self.0.wrapping_add(start)
    }
}
