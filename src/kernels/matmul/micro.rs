//! The innermost loops of dense products: some rows against some panels, all sums in registers.

use std::marker::PhantomData;

use half::f16;

use crate::kernels::isa::Isa;
use crate::kernels::simd::{Bf16Dot, Bf16DotTask, LANES, Simd, SimdTask, dispatch, dispatch_bf16};

/// Rows and panels that a micro-kernel takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KernelSize {
    pub(super) rows: usize,
    pub(super) panels: usize,
}

/// The row counts that there are micro-kernels for; a tile in between is filled up with zero rows.
const KERNEL_ROWS: [usize; 7] = [1, 2, 4, 6, 8, 10, 12];

/// Whether there is a micro-kernel of `rows × panels` for a set that keeps `sums` vectors in registers.
/// Few rows leave registers for more panels, whose chains hide each other's latency.
const fn exists(rows: usize, panels: usize, sums: usize) -> bool {
    let shape = match panels {
        1 => true,
        2 => rows >= 6,
        _ => rows <= 6,
    };
    shape && rows * panels <= sums && (panels == 1 || sums >= 24)
}

/// The most rows of a micro-kernel on this instruction set.
pub(super) fn max_rows(isa: Isa) -> usize {
    sums(isa).min(12)
}

/// The smallest micro-kernel that takes `rows` rows, which are at most [`max_rows`].
pub(super) fn kernel_rows(rows: usize) -> usize {
    KERNEL_ROWS
        .into_iter()
        .find(|&kernel| kernel >= rows)
        .unwrap_or(12)
}

/// How many panels go together when tiles have up to `rows` rows.
pub(super) fn panel_group(isa: Isa, rows: usize) -> usize {
    match (sums(isa), rows) {
        (..24, _) => 1,
        (_, ..=6) => 4,
        (_, _) => 2,
    }
}

fn sums(isa: Isa) -> usize {
    struct Sums;
    impl SimdTask for Sums {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> usize {
            S::SUMS
        }
    }
    // SAFETY: runs no instruction of the set.
    unsafe { dispatch(isa, Sums) }
}

/// What a micro-kernel works on.
#[derive(Clone, Copy)]
pub(super) struct MicroArgs<W, X> {
    /// The first panel; the others follow, `panel_length` elements each.
    pub(super) weights: *const W,
    pub(super) panel_length: usize,
    /// Activations `[pair of inputs][row]`.
    pub(super) x: *const X,
    pub(super) pairs: usize,
    /// The first row's first output.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    /// Rows that are written; the kernel's other rows only fill it up.
    pub(super) rows: usize,
    /// Outputs that are written: the last panel may have fewer than sixteen.
    pub(super) outputs: usize,
    /// One number an output, or null.
    pub(super) bias: *const f32,
}

/// Loads the weights of two inputs for sixteen outputs as `f32`, first the even input's.
pub(super) trait PanelElement: Copy {
    /// Elements of a panel for two inputs.
    const STEP: usize;

    /// # Safety
    /// As [`Simd`]; there are `STEP` elements.
    unsafe fn load<S: Simd>(panel: *const Self) -> (S::F, S::F);
}

macro_rules! plane_element {
    ($type:ty, $load:ident) => {
        impl PanelElement for $type {
            const STEP: usize = 2 * LANES;

            #[inline(always)]
            unsafe fn load<S: Simd>(panel: *const Self) -> (S::F, S::F) {
                // SAFETY: promised by the caller.
                unsafe { (S::$load(panel), S::$load(panel.add(LANES))) }
            }
        }
    };
}
plane_element!(f32, load);
plane_element!(f16, load_f16);

/// Pairs of `bf16`, the even input in the lower half.
impl PanelElement for u32 {
    const STEP: usize = LANES;

    #[inline(always)]
    unsafe fn load<S: Simd>(panel: *const Self) -> (S::F, S::F) {
        // SAFETY: promised by the caller.
        unsafe { S::split_pairs(panel) }
    }
}

/// Runs the micro-kernel of the given size with activations in `f32`.
///
/// # Safety
/// `isa` is available, the size is one that [`kernel_rows`] and [`panel_group`] (or one panel) give, the
/// pointers of `args` cover what they say, and nobody else uses these outputs.
pub(super) unsafe fn multiply<E: PanelElement>(
    isa: Isa,
    size: KernelSize,
    args: MicroArgs<E, f32>,
) {
    macro_rules! sizes {
        ($(($rows:literal, $panels:literal)),+) => {
            match (size.rows, size.panels) {
                $(($rows, $panels) => {
                    // SAFETY: promised by the caller.
                    unsafe { dispatch(isa, Micro::<E, $rows, $panels>(args, PhantomData)) }
                })+
                _ => unreachable!("no micro-kernel of {size:?}"),
            }
        };
    }
    sizes!(
        (1, 1),
        (2, 1),
        (4, 1),
        (6, 1),
        (8, 1),
        (10, 1),
        (12, 1),
        (6, 2),
        (8, 2),
        (10, 2),
        (12, 2),
        (1, 4),
        (2, 4),
        (4, 4),
        (6, 4)
    )
}

/// Runs the micro-kernel of the given size with activations as pairs of `bf16`.
///
/// # Safety
/// As [`multiply`], on an instruction set with [`Isa::has_bf16_dot`].
pub(super) unsafe fn multiply_pairs(isa: Isa, size: KernelSize, args: MicroArgs<u32, u32>) {
    macro_rules! sizes {
        ($(($rows:literal, $panels:literal)),+) => {
            match (size.rows, size.panels) {
                $(($rows, $panels) => {
                    // SAFETY: promised by the caller.
                    unsafe { dispatch_bf16(isa, PairMicro::<$rows, $panels>(args)) }
                })+
                _ => unreachable!("no micro-kernel of {size:?}"),
            }
        };
    }
    sizes!(
        (1, 1),
        (2, 1),
        (4, 1),
        (6, 1),
        (8, 1),
        (10, 1),
        (12, 1),
        (6, 2),
        (8, 2),
        (10, 2),
        (12, 2),
        (1, 4),
        (2, 4),
        (4, 4),
        (6, 4)
    )
}

struct Micro<E, const M: usize, const N: usize>(MicroArgs<E, f32>, PhantomData<E>);

impl<E: PanelElement, const M: usize, const N: usize> SimdTask for Micro<E, M, N> {
    type Output = ();

    /// # Safety
    /// As [`multiply`].
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // A constant, so that kernels too large for a set are not compiled for it.
        if const { !exists(M, N, S::SUMS) } {
            return;
        }
        let args = self.0;
        // SAFETY: promised by the caller.
        unsafe {
            let mut panels: [*const E; N] =
                std::array::from_fn(|n| args.weights.add(n * args.panel_length));
            let mut x = args.x;
            let mut sums = [[S::splat(0.0); N]; M];
            for _ in 0..args.pairs {
                let both = panels.map(|panel| E::load::<S>(panel));
                add_products::<S, M, N>(both.map(|both| both.0), x, &mut sums);
                add_products::<S, M, N>(both.map(|both| both.1), x.add(M), &mut sums);
                panels = panels.map(|panel| panel.add(E::STEP));
                x = x.add(2 * M);
            }
            write::<S, E, f32, M, N>(&args, &sums);
        }
    }
}

/// Adds the products of one input: its weights for `N` panels with `M` rows' activations.
///
/// # Safety
/// As [`Simd`]; `x` has `M` numbers.
#[inline(always)]
unsafe fn add_products<S: Simd, const M: usize, const N: usize>(
    weights: [S::F; N],
    x: *const f32,
    sums: &mut [[S::F; N]; M],
) {
    for (m, sums) in sums.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        unsafe {
            let x = S::splat(*x.add(m));
            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                *sum = S::fma(weight, x, *sum);
            }
        }
    }
}

struct PairMicro<const M: usize, const N: usize>(MicroArgs<u32, u32>);

impl<const M: usize, const N: usize> Bf16DotTask for PairMicro<M, N> {
    /// # Safety
    /// As [`multiply_pairs`].
    #[inline(always)]
    unsafe fn run<S: Bf16Dot>(self) {
        // A constant, so that kernels too large for a set are not compiled for it.
        if const { !exists(M, N, S::SUMS) } {
            return;
        }
        let args = self.0;
        // SAFETY: promised by the caller.
        unsafe {
            let mut panels: [*const u32; N] =
                std::array::from_fn(|n| args.weights.add(n * args.panel_length));
            let mut x = args.x;
            let mut sums = [[S::splat(0.0); N]; M];
            for _ in 0..args.pairs {
                let weights = panels.map(|panel| S::load_pairs(panel));
                for (m, sums) in sums.iter_mut().enumerate() {
                    let x = *x.add(m);
                    for (sum, &weight) in sums.iter_mut().zip(&weights) {
                        *sum = S::dot_pairs(*sum, weight, x);
                    }
                }
                panels = panels.map(|panel| panel.add(LANES));
                x = x.add(M);
            }
            write::<S, u32, u32, M, N>(&args, &sums);
        }
    }
}

/// Adds the bias and writes the rows and outputs that are real.
///
/// # Safety
/// As [`multiply`].
#[inline(always)]
unsafe fn write<S: Simd, W, X, const M: usize, const N: usize>(
    args: &MicroArgs<W, X>,
    sums: &[[S::F; N]; M],
) {
    // The sums leave their registers here, all of them by constant places: were they picked by row below,
    // the compiler would keep them in memory all along.
    let mut finished = [[[0.0f32; LANES]; N]; M];
    for (finished, sums) in finished.iter_mut().zip(sums) {
        for (finished, &sum) in finished.iter_mut().zip(sums) {
            // SAFETY: there are sixteen.
            unsafe { S::store(finished.as_mut_ptr(), sum) };
        }
    }
    for n in 0..N {
        let first = n * LANES;
        let lanes = LANES.min(args.outputs - first);
        for (m, finished) in finished.iter().enumerate().take(args.rows) {
            // SAFETY: promised by the caller.
            unsafe {
                let out = args.out.add(m * args.stride + first);
                if lanes == LANES {
                    let mut sum = S::load(finished[n].as_ptr());
                    if !args.bias.is_null() {
                        sum = S::add(sum, S::load(args.bias.add(first)));
                    }
                    S::store(out, sum);
                    continue;
                }
                for (lane, &sum) in finished[n][..lanes].iter().enumerate() {
                    let bias = if args.bias.is_null() {
                        0.0
                    } else {
                        *args.bias.add(first + lane)
                    };
                    *out.add(lane) = sum + bias;
                }
            }
        }
    }
}
