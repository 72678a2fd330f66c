//! The innermost loops: a tile of rows against some panels, all sums in registers. With few rows panels share
//! the broadcasts of the activations, of which the machine loads fewer than it could multiply; with many, rows
//! share what it takes to unpack the weights. What a block contributes is computed in [`super::products`].
//!
//! Every output is computed by the same operations in the same order whatever the number of rows.

use std::array::from_fn;
use std::marker::PhantomData;

use super::products::{Product, Sums};
use crate::kernels::isa::Isa;
use crate::kernels::simd::{ByteDot, ByteDotTask, CACHE_LINE, LANES, dispatch_bytes};

/// What a kernel works on.
#[derive(Clone, Copy)]
pub(super) struct MicroArgs {
    /// The first panel's first block; the others follow, then the next panel's.
    pub(super) panel: *const u8,
    /// Panels: a power of two up to [`panel_group`].
    pub(super) panels: usize,
    /// The tile's first record; the others follow.
    pub(super) x: *const u32,
    pub(super) blocks: usize,
    /// The first row's first output.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    pub(super) rows: usize,
    /// Outputs that are written: the last panel may have fewer than sixteen.
    pub(super) outputs: usize,
    /// One number an output, or null.
    pub(super) bias: *const f32,
}

/// Which weights a kernel asks for meanwhile. They need not be there.
pub(super) trait Ahead: Copy {
    /// Whether each vector of weights asks for another one.
    const VECTORS: bool;

    /// Begins a block, which is one of the last [`Format::AHEAD`] or not. Returns how many bytes behind a vector lies what
    /// is asked for with it.
    ///
    /// # Safety
    /// As [`ByteDot`].
    unsafe fn begin_block<S: ByteDot>(&mut self, is_last: bool) -> usize;
}

/// With each vector the one so many bytes behind it: when a lone tile takes weights from memory as fast as they come.
#[derive(Clone, Copy)]
pub(super) struct AheadOfVectors {
    pub(super) within: usize,
    /// The same beside the last blocks.
    pub(super) beyond: usize,
}

impl Ahead for AheadOfVectors {
    const VECTORS: bool = true;

    #[inline(always)]
    unsafe fn begin_block<S: ByteDot>(&mut self, is_last: bool) -> usize {
        if is_last { self.beyond } else { self.within }
    }
}

/// With each block so many cache lines: when there is time.
#[derive(Clone, Copy)]
pub(super) struct AheadOfBlocks {
    pub(super) next: *const u8,
    pub(super) lines: usize,
}

impl Ahead for AheadOfBlocks {
    const VECTORS: bool = false;

    #[inline(always)]
    unsafe fn begin_block<S: ByteDot>(&mut self, _is_last: bool) -> usize {
        for _ in 0..self.lines {
            // SAFETY: promised by the caller.
            unsafe { S::prefetch_far(self.next) };
            self.next = self.next.wrapping_add(CACHE_LINE);
        }
        0
    }
}

/// Runs the kernel for a tile's rows and some panels.
///
/// # Safety
/// `isa` is available, there are as many rows as activations are packed for on it, no more panels than
/// [`panel_group`], the pointers of `args` cover what they say, and nobody else uses these outputs.
pub(super) unsafe fn multiply<F: Product, A: Ahead>(isa: Isa, args: MicroArgs, ahead: A) {
    macro_rules! sizes {
        ($(($rows:literal, $panels:literal)),+) => {
            match (args.rows, args.panels) {
                $(($rows, $panels) => {
                    let task = Micro::<F, A, $rows, $panels> { args: &args, ahead, format: PhantomData };
                    // SAFETY: promised by the caller.
                    unsafe { dispatch_bytes(isa, task) }
                })+
                size => unreachable!("no kernel of {size:?} rows and panels"),
            }
        };
    }
    sizes!(
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 1),
        (5, 1),
        (6, 1),
        (7, 1),
        (8, 1),
        (9, 1),
        (10, 1),
        (11, 1),
        (1, 2),
        (2, 2),
        (3, 2),
        (4, 2),
        (5, 2),
        (6, 2),
        (1, 4),
        (2, 4),
        (3, 4),
        (1, 8)
    )
}

/// Up to so many rows panels go together; more share one panel's unpacking.
const FEW_ROWS: usize = 6;

/// How many panels go together with tiles of so many rows. A lone row is over before its weights have come from
/// memory, which hands out more when more of it is asked for at once.
pub(super) fn panel_group(isa: Isa, rows: usize) -> usize {
    // Of 32 registers, one row's sums of a panel are four with NEON and one with AVX-512.
    let (alone, few, several) = if cfg!(target_arch = "aarch64") {
        (2, 1, 1)
    } else {
        (8, 4, 2)
    };
    match rows {
        _ if is_scalar(isa) => 1,
        1 => alone,
        2 | 3 => few,
        4..=FEW_ROWS => several,
        _ => 1,
    }
}

/// The most rows that there are kernels for: those of twelve rows would have too few registers.
pub(super) fn most_rows(isa: Isa) -> usize {
    match isa {
        _ if is_scalar(isa) => 1,
        _ if cfg!(target_arch = "aarch64") => FEW_ROWS,
        _ => 11,
    }
}

/// Whether the scalar twin runs, which takes one row and one panel at a time.
pub(super) fn is_scalar(isa: Isa) -> bool {
    isa == Isa::Scalar || !isa.has_byte_dot()
}

/// By reference: were the arguments copied by wide loads, those would have to wait until all stores before them,
/// which may miss the caches, are done.
struct Micro<'a, F, A, const M: usize, const N: usize> {
    args: &'a MicroArgs,
    ahead: A,
    format: PhantomData<F>,
}

impl<F: Product, A: Ahead, const M: usize, const N: usize> ByteDotTask for Micro<'_, F, A, M, N> {
    /// # Safety
    /// As [`multiply`].
    #[inline(always)]
    unsafe fn run<S: ByteDot>(self) {
        // A constant, so that the scalar twin is compiled for one row and panel only.
        if const { M * N > S::TILE } {
            return;
        }
        let Self {
            args, mut ahead, ..
        } = self;
        // SAFETY: promised by the caller.
        unsafe {
            let mut panels: [*const u8; N] =
                from_fn(|n| args.panel.add(n * args.blocks * F::PANEL));
            let mut x = args.x;
            let mut sums = [[S::splat(0.0); N]; M];
            for block in 0..args.blocks {
                let bytes = ahead.begin_block::<S>(block + F::AHEAD >= args.blocks);
                F::add::<S, A, M, N>(panels, x, bytes, &mut sums);
                panels = panels.map(|panel| panel.add(F::PANEL));
                x = x.add(F::ACTIVATION.record() * M);
            }
            write::<S, M, N>(args, &sums);
        }
    }
}

/// Aligned, and so is the whole stack frame with what does not fit into registers. Otherwise every vector that waits
/// there crosses a cache line, and in some processes a page: such kernels were up to a quarter slower.
#[repr(align(64))]
struct Finished<const M: usize, const N: usize>(Sums<[f32; LANES], M, N>);

/// Adds the bias and writes the outputs that are real.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn write<S: ByteDot, const M: usize, const N: usize>(
    args: &MicroArgs,
    sums: &Sums<S::F, M, N>,
) {
    // All sums leave their registers by constant places: were they picked by row below, the compiler would
    // keep them in memory all along.
    let mut finished = Finished([[[0.0f32; LANES]; N]; M]);
    for (finished, sums) in finished.0.iter_mut().zip(sums) {
        for (finished, &sum) in finished.iter_mut().zip(sums) {
            // SAFETY: there are sixteen.
            unsafe { S::store(finished.as_mut_ptr(), sum) };
        }
    }
    for (row, finished) in finished.0.iter().enumerate() {
        for (output, &sum) in finished.as_flattened()[..args.outputs].iter().enumerate() {
            // SAFETY: promised by the caller.
            unsafe {
                let bias = if args.bias.is_null() {
                    0.0
                } else {
                    *args.bias.add(output)
                };
                *args.out.add(row * args.stride + output) = sum + bias;
            }
        }
    }
}
