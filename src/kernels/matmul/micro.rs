//! The innermost loops of dense products: some rows against some panels, all sums in registers.
//!
//! No vector operation stands in a closure here, see [`crate::kernels::simd`].

use half::{bf16, f16};

use crate::kernels::isa::Isa;
use crate::kernels::simd::{Bf16Dot, Bf16DotTask, LANES, Simd, SimdTask, dispatch, dispatch_bf16};

/// Two `bf16` in one word: the even input in the lower half.
pub(super) fn pair_of(even: bf16, odd: bf16) -> u32 {
    u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16
}

/// Rows and panels that a micro-kernel takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct KernelSize {
    pub(super) rows: usize,
    pub(super) panels: usize,
}

/// The micro-kernels that there are, as `(rows, panels)`: the one table that selection, compilation and
/// dispatch go by. A tile between two row counts is filled up with zero rows. Few rows leave registers for
/// more panels, whose chains hide each other's latency.
macro_rules! with_sizes {
    ($use_sizes:ident) => {
        $use_sizes!(
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
    };
}

macro_rules! table {
    ($(($rows:literal, $panels:literal)),+) => {
        [$(KernelSize { rows: $rows, panels: $panels }),+]
    };
}

const SIZES: &[KernelSize] = &with_sizes!(table);

/// Whether a set that keeps `sums` vectors in registers runs the micro-kernel of `rows × panels`.
const fn fits(rows: usize, panels: usize, sums: usize) -> bool {
    rows * panels <= sums && (panels == 1 || sums >= 24)
}

/// The most rows of a micro-kernel on this instruction set.
pub(super) fn max_rows(isa: Isa) -> usize {
    sums(isa).min(12)
}

/// The smallest micro-kernel that takes `rows` rows, which are at most [`max_rows`].
pub(super) fn kernel_rows(rows: usize) -> usize {
    SIZES
        .iter()
        .filter(|size| size.panels == 1)
        .map(|size| size.rows)
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

/// What a micro-kernel works on. Passed on by reference only: a copy would load the fields in wider pieces
/// than they were stored in, and so wait until the last kernel's results have left the store buffer.
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

    /// Asks for what [`Self::load`] will want [`AHEAD`] bytes further on.
    ///
    /// # Safety
    /// As [`Simd`]; `panel` may be any address.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(panel: *const Self) {
        for line in 0..(Self::STEP * size_of::<Self>()).div_ceil(64) {
            // SAFETY: promised by the caller.
            unsafe { S::prefetch(panel.wrapping_byte_add(AHEAD + line * 64)) };
        }
    }
}

/// How far ahead weights are asked for: the machine's own prefetchers start anew at every page, and few
/// rows leave little time to wait for memory.
const AHEAD: usize = 2048;

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
    args: &MicroArgs<E, f32>,
) {
    macro_rules! run {
        ($(($rows:literal, $panels:literal)),+) => {
            match (size.rows, size.panels) {
                $(($rows, $panels) => {
                    // SAFETY: promised by the caller.
                    unsafe { dispatch(isa, Micro::<E, $rows, $panels>(args)) }
                })+
                _ => unreachable!("no micro-kernel of {size:?}"),
            }
        };
    }
    with_sizes!(run)
}

/// Runs the micro-kernel of the given size with activations as pairs of `bf16`.
///
/// # Safety
/// As [`multiply`], on an instruction set with [`Isa::has_bf16_dot`].
pub(super) unsafe fn multiply_pairs(isa: Isa, size: KernelSize, args: &MicroArgs<u32, u32>) {
    macro_rules! run {
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
    with_sizes!(run)
}

struct Micro<'a, E, const M: usize, const N: usize>(&'a MicroArgs<E, f32>);

impl<E: PanelElement, const M: usize, const N: usize> SimdTask for Micro<'_, E, M, N> {
    type Output = ();

    /// # Safety
    /// As [`multiply`].
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // A constant, so that kernels too large for a set are not compiled for it.
        if const { !fits(M, N, S::SUMS) } {
            return;
        }
        let args = self.0;
        // SAFETY: promised by the caller.
        unsafe {
            let mut panel = args.weights;
            let mut x = args.x;
            let mut sums = [[S::splat(0.0); N]; M];
            let (mut even, mut odd) = ([S::splat(0.0); N], [S::splat(0.0); N]);
            for _ in 0..args.pairs {
                for (n, (even, odd)) in even.iter_mut().zip(&mut odd).enumerate() {
                    let panel = panel.add(n * args.panel_length);
                    E::prefetch::<S>(panel);
                    (*even, *odd) = E::load::<S>(panel);
                }
                add_products::<S, M, N>(&even, x, &mut sums);
                add_products::<S, M, N>(&odd, x.add(M), &mut sums);
                panel = panel.add(E::STEP);
                x = x.add(2 * M);
            }
            write::<S, E, f32, M, N>(args, &sums);
        }
    }
}

/// Adds the products of one input: its weights for `N` panels with `M` rows' activations.
///
/// # Safety
/// As [`Simd`]; `x` has `M` numbers.
#[inline(always)]
unsafe fn add_products<S: Simd, const M: usize, const N: usize>(
    weights: &[S::F; N],
    x: *const f32,
    sums: &mut [[S::F; N]; M],
) {
    for (m, sums) in sums.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        unsafe {
            let x = S::splat(*x.add(m));
            for (sum, &weight) in sums.iter_mut().zip(weights) {
                *sum = S::fma(weight, x, *sum);
            }
        }
    }
}

struct PairMicro<'a, const M: usize, const N: usize>(&'a MicroArgs<u32, u32>);

impl<const M: usize, const N: usize> Bf16DotTask for PairMicro<'_, M, N> {
    /// # Safety
    /// As [`multiply_pairs`].
    #[inline(always)]
    unsafe fn run<S: Bf16Dot>(self) {
        // A constant, so that kernels too large for a set are not compiled for it.
        if const { !fits(M, N, S::SUMS) } {
            return;
        }
        let args = self.0;
        // SAFETY: promised by the caller.
        unsafe {
            let mut panel = args.weights;
            let mut x = args.x;
            let mut sums = [[S::splat(0.0); N]; M];
            let mut weights = [S::load_pairs(panel); N];
            for _ in 0..args.pairs {
                for (n, weights) in weights.iter_mut().enumerate() {
                    *weights = S::load_pairs(panel.add(n * args.panel_length));
                }
                for (m, sums) in sums.iter_mut().enumerate() {
                    let x = *x.add(m);
                    for (sum, &weights) in sums.iter_mut().zip(&weights) {
                        *sum = S::dot_pairs(*sum, weights, x);
                    }
                }
                panel = panel.add(LANES);
                x = x.add(M);
            }
            write::<S, u32, u32, M, N>(args, &sums);
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
    // Sums are only ever picked by constant places: were they picked by a row number of the run time, the
    // compiler would keep them in memory all along.
    if args.rows == M && args.outputs == N * LANES {
        for n in 0..N {
            // SAFETY: promised by the caller, here and below.
            unsafe {
                let mut bias = S::splat(0.0);
                if !args.bias.is_null() {
                    bias = S::load(args.bias.add(n * LANES));
                }
                for (m, sums) in sums.iter().enumerate() {
                    let out = args.out.add(m * args.stride + n * LANES);
                    S::store(out, S::add(sums[n], bias));
                }
            }
        }
        return;
    }
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
