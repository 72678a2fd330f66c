//! The innermost loops: a tile of rows against some panels, all sums in registers. With few rows panels share
//! the broadcasts of the activations, of which the machine loads fewer than it could multiply; with many, rows
//! share what it takes to unpack the weights.
//!
//! Every output is computed by the same operations in the same order whatever the number of rows. Of K-quants the sum
//! of 256 inputs, with the whole-numbered scales of their parts, is exact and rounded once, so that it may be computed
//! in another way ([`super::tiles`]).

use std::array::from_fn;
use std::marker::PhantomData;

use half::f16;

use super::formats::{Format, HALVES, Q4_0, Q4K, Q5K, Q6K, Q8_0, VECTOR, k6, k45};
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
pub(super) const FEW_ROWS: usize = 6;

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

/// Sums of `M` rows and `N` panels.
type Sums<T, const M: usize, const N: usize> = [[T; N]; M];

/// The product of a block of `N` panels with the records of one tile.
pub(super) trait Product: Format {
    /// The most panels that go together: of `Q6_K` so many as leave registers for the four sums of each.
    const GROUP: usize = 8;

    /// # Safety
    /// As [`ByteDot`]; each panel covers a panel block and `x` a tile's record for `M` rows. What is `ahead` bytes behind
    /// the weights need not be there.
    unsafe fn add<S: ByteDot, A: Ahead, const M: usize, const N: usize>(
        panels: [*const u8; N],
        x: *const u32,
        ahead: usize,
        sums: &mut Sums<S::F, M, N>,
    );
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

/// An array made of another one, element by element.
#[cfg(target_feature = "avx512f")]
macro_rules! each {
    ($array:expr, |$element:ident| $value:expr) => {
        $array.map(|$element| $value)
    };
}

/// The same, written out: a crate for machines with fewer instructions has them in some functions only, and neither
/// `map` nor a closure becomes a part of such a function while it calls these instructions itself. (For a machine
/// that has them all, the compiler makes more of `map`.)
#[cfg(not(target_feature = "avx512f"))]
macro_rules! each {
    ($array:expr, |$element:ident| $value:expr) => {{
        let array = $array;
        let $element = array[0];
        let mut values = [$value; N];
        each!(array, values, $element, $value; 1 2 3 4 5 6 7);
        values
    }};
    ($array:ident, $values:ident, $element:ident, $value:expr; $($n:literal)+) => {
        $(if N > $n {
            let $element = $array[$n];
            $values[$n] = $value;
        })+
    };
}

/// A vector of weights, while the one `ahead` bytes behind it is asked for.
///
/// # Safety
/// As [`ByteDot`]; there are so many bytes.
#[inline(always)]
unsafe fn load_and_ask<S: ByteDot, A: Ahead>(p: *const u8, ahead: usize) -> S::Bytes {
    // SAFETY: promised by the caller.
    unsafe {
        ask::<S, A>(p, ahead);
        S::load_bytes(p)
    }
}

/// Asks for what is `ahead` bytes behind `p`, if a kernel asks for anything.
///
/// # Safety
/// As [`ByteDot`].
#[inline(always)]
unsafe fn ask<S: ByteDot, A: Ahead>(p: *const u8, ahead: usize) {
    if A::VECTORS {
        // SAFETY: promised by the caller.
        unsafe { S::prefetch(p.wrapping_add(ahead)) };
    }
}

/// Adds the products of four inputs with `M` rows, whose quants begin at `x`.
///
/// # Safety
/// As [`ByteDot`]; `x` has `M` words.
#[inline(always)]
unsafe fn add_four<S: ByteDot, const M: usize, const N: usize>(
    weights: [S::Bytes; N],
    x: *const u32,
    sums: &mut Sums<S::I, M, N>,
) {
    for (m, sums) in sums.iter_mut().enumerate() {
        // SAFETY: promised by the caller.
        unsafe {
            let x = *x.add(m);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = S::dot_bytes(*sum, weights, x);
            }
        }
    }
}

/// `sums += scale · parts`.
///
/// # Safety
/// As [`ByteDot`].
#[inline(always)]
unsafe fn scale_parts<S: ByteDot, const M: usize, const N: usize>(
    parts: &Sums<S::I, M, N>,
    scales: [S::F; N],
    sums: &mut Sums<S::F, M, N>,
) {
    for (sums, parts) in sums.iter_mut().zip(parts) {
        for ((sum, &part), scale) in sums.iter_mut().zip(parts).zip(scales) {
            // SAFETY: promised by the caller.
            unsafe { *sum = S::fma(S::to_f32(part), scale, *sum) };
        }
    }
}

/// Sums of integers that begin with a word of each row.
///
/// # Safety
/// As [`ByteDot`]; `x` has `M` words.
#[inline(always)]
unsafe fn begin_with<S: ByteDot, const M: usize, const N: usize>(
    x: *const u32,
) -> Sums<S::I, M, N> {
    // SAFETY: promised by the caller.
    from_fn(|m| [unsafe { S::splat_i32(*x.add(m) as i32) }; N])
}

/// `whole += scaled`, whole numbers within 2²⁴.
///
/// # Safety
/// As [`ByteDot`].
#[inline(always)]
unsafe fn add_whole<S: ByteDot, const M: usize, const N: usize>(
    scaled: &Sums<S::F, M, N>,
    whole: &mut Sums<S::I, M, N>,
) {
    for (whole, scaled) in whole.iter_mut().zip(scaled) {
        for (whole, &scaled) in whole.iter_mut().zip(scaled) {
            // SAFETY: promised by the caller.
            unsafe { *whole = S::add_i32(*whole, S::to_i32(scaled)) };
        }
    }
}

/// A row's scale.
///
/// # Safety
/// As [`ByteDot`].
#[inline(always)]
unsafe fn row_scale<S: ByteDot>(x: *const u32) -> S::F {
    // SAFETY: promised by the caller.
    unsafe { S::splat(f32::from_bits(*x)) }
}

/// Words of a record of 256 inputs before the sums of 64, before those of 16, and before the scale.
const PAIR_SUMS: usize = 64;
const SIXTEEN_SUMS: usize = 68;
const SUPER_SCALE: usize = 84;

/// The quants of four inputs of sixteen outputs, or a multiple of them, from their lower bits on: a panel block and
/// where in it the part begins.
///
/// # Safety
/// As [`Product::add`].
trait Quants {
    unsafe fn load<S: ByteDot, A: Ahead, const UPPER: bool>(
        panel: *const u8,
        chunk: usize,
        i: usize,
        ahead: usize,
    ) -> S::Bytes;

    /// Pairs of parts whose scaled sums, whole numbers, are within 2²⁴ whatever the weights and activations: so many
    /// are added up as `f32` without being rounded.
    const EXACT_PAIRS: usize;

    /// The scales of a part, for sums of quants as they are loaded.
    unsafe fn scales<S: ByteDot, const UPPER: bool>(scales: *const u8) -> S::F;
}

impl Quants for Q4K {
    // 128 inputs of at most 15 · 63 · 127.
    const EXACT_PAIRS: usize = 2;

    #[inline(always)]
    unsafe fn load<S: ByteDot, A: Ahead, const UPPER: bool>(
        panel: *const u8,
        chunk: usize,
        i: usize,
        ahead: usize,
    ) -> S::Bytes {
        // SAFETY: promised by the caller.
        unsafe {
            let both = panel.add(k45::NIBBLES + (8 * chunk + i) * VECTOR);
            if UPPER {
                S::scaled_high_nibbles(S::load_bytes(both))
            } else {
                S::low_nibbles(load_and_ask::<S, A>(both, ahead))
            }
        }
    }

    #[inline(always)]
    unsafe fn scales<S: ByteDot, const UPPER: bool>(scales: *const u8) -> S::F {
        // SAFETY: promised by the caller. The sums are so many times the right ones, exactly.
        unsafe {
            let scales = S::load_u8(scales);
            if UPPER && S::HIGH_NIBBLES != 1.0 {
                S::mul(scales, S::splat(1.0 / S::HIGH_NIBBLES))
            } else {
                scales
            }
        }
    }
}

impl Quants for Q5K {
    // 64 inputs of at most 31 · 63 · 127.
    const EXACT_PAIRS: usize = 1;

    #[inline(always)]
    unsafe fn load<S: ByteDot, A: Ahead, const UPPER: bool>(
        panel: *const u8,
        chunk: usize,
        i: usize,
        ahead: usize,
    ) -> S::Bytes {
        // SAFETY: promised by the caller.
        unsafe {
            let both = panel.add(k45::NIBBLES + (8 * chunk + i) * VECTOR);
            let nibbles = if UPPER {
                S::high_nibbles(S::load_bytes(both))
            } else {
                S::low_nibbles(load_and_ask::<S, A>(both, ahead))
            };
            let bits = panel.add(k45::FIFTH + i * VECTOR);
            if chunk == 0 && !UPPER {
                ask::<S, A>(bits, ahead);
            }
            let bits = S::load_bytes(bits);
            let bit = 2 * chunk as u32 + u32::from(UPPER);
            S::or(nibbles, S::one_bit_up(bits, bit))
        }
    }

    #[inline(always)]
    unsafe fn scales<S: ByteDot, const UPPER: bool>(scales: *const u8) -> S::F {
        // SAFETY: promised by the caller.
        unsafe { S::load_u8(scales) }
    }
}

/// 32 inputs of `Q4_K` or `Q5_K`.
///
/// # Safety
/// As [`Product::add`].
#[inline(always)]
unsafe fn add_part<
    F: Quants,
    S: ByteDot,
    A: Ahead,
    const M: usize,
    const N: usize,
    const UPPER: bool,
>(
    panels: [*const u8; N],
    x: *const u32,
    chunk: usize,
    ahead: usize,
    scaled: &mut Sums<S::F, M, N>,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let part = 2 * chunk + usize::from(UPPER);
        let mut parts = [[S::splat_i32(0); N]; M];
        for i in 0..8 {
            let weights = each!(panels, |panel| F::load::<S, A, UPPER>(
                panel, chunk, i, ahead
            ));
            add_four::<S, M, N>(weights, x.add((8 * part + i) * M), &mut parts);
        }
        let scales = each!(panels, |panel| F::scales::<S, UPPER>(
            panel.add(k45::SCALES + part * LANES)
        ));
        scale_parts::<S, M, N>(&parts, scales, scaled);
    }
}

/// The scaled sums of 256 inputs of `Q4_K` or `Q5_K`, exact but for one rounding at the end.
///
/// # Safety
/// As [`Product::add`].
#[inline(always)]
unsafe fn scaled_k45<F: Quants, S: ByteDot, A: Ahead, const M: usize, const N: usize>(
    panels: [*const u8; N],
    x: *const u32,
    ahead: usize,
) -> Sums<S::F, M, N> {
    // SAFETY: promised by the caller.
    unsafe {
        let zero = [[S::splat(0.0); N]; M];
        if F::EXACT_PAIRS == 2 {
            let [mut sums, mut rest] = [zero; 2];
            if N == 1 {
                // Written out, all sums stay in registers: 0.9 times the time of the loop.
                add_part::<F, S, A, M, N, false>(panels, x, 0, ahead, &mut sums);
                add_part::<F, S, A, M, N, true>(panels, x, 0, ahead, &mut sums);
                add_part::<F, S, A, M, N, false>(panels, x, 1, ahead, &mut sums);
                add_part::<F, S, A, M, N, true>(panels, x, 1, ahead, &mut sums);
                add_part::<F, S, A, M, N, false>(panels, x, 2, ahead, &mut rest);
                add_part::<F, S, A, M, N, true>(panels, x, 2, ahead, &mut rest);
                add_part::<F, S, A, M, N, false>(panels, x, 3, ahead, &mut rest);
                add_part::<F, S, A, M, N, true>(panels, x, 3, ahead, &mut rest);
            } else {
                // With several panels that is too much code: 1.1 to 1.2 times the time.
                for (first, scaled) in [(0, &mut sums), (2, &mut rest)] {
                    for chunk in first..first + 2 {
                        add_part::<F, S, A, M, N, false>(panels, x, chunk, ahead, scaled);
                        add_part::<F, S, A, M, N, true>(panels, x, chunk, ahead, scaled);
                    }
                }
            }
            for (sums, rest) in sums.iter_mut().zip(&rest) {
                for (sum, &rest) in sums.iter_mut().zip(rest) {
                    *sum = S::add(*sum, rest);
                }
            }
            return sums;
        }
        let mut whole = [[S::splat_i32(0); N]; M];
        for chunk in 0..4 {
            let mut scaled = zero;
            add_part::<F, S, A, M, N, false>(panels, x, chunk, ahead, &mut scaled);
            add_part::<F, S, A, M, N, true>(panels, x, chunk, ahead, &mut scaled);
            add_whole::<S, M, N>(&scaled, &mut whole);
        }
        let mut sums = zero;
        for (sums, whole) in sums.iter_mut().zip(&whole) {
            for (sum, &whole) in sums.iter_mut().zip(whole) {
                *sum = S::to_f32(whole);
            }
        }
        sums
    }
}

/// `Q4_K` and `Q5_K`: the weight is `d·scale·q − dmin·minimum`, so the product of 256 inputs is
/// `d·Σ scale·(q·x) − dmin·Σ minimum·(Σ x)`.
///
/// # Safety
/// As [`Product::add`].
#[inline(always)]
unsafe fn add_k45<F: Quants, S: ByteDot, A: Ahead, const M: usize, const N: usize>(
    panels: [*const u8; N],
    x: *const u32,
    ahead: usize,
    sums: &mut Sums<S::F, M, N>,
) {
    // SAFETY: promised by the caller.
    unsafe {
        for panel in panels {
            for line in 0..k45::NIBBLES / CACHE_LINE {
                ask::<S, A>(panel.wrapping_add(line * CACHE_LINE), ahead);
            }
        }
        let scaled = scaled_k45::<F, S, A, M, N>(panels, x, ahead);
        let mut minima = [[S::splat_i32(0); N]; M];
        for pair in 0..4 {
            let weights = each!(panels, |panel| S::widen_bytes(
                panel.add(k45::MINIMA + pair * 2 * LANES)
            ));
            for (m, minima) in minima.iter_mut().enumerate() {
                let x = *x.add((PAIR_SUMS + pair) * M + m);
                for (minimum, weights) in minima.iter_mut().zip(weights) {
                    *minimum = S::dot_words(*minimum, weights, x);
                }
            }
        }
        let d = each!(panels, |panel| S::load_f16(panel.add(k45::D).cast::<f16>()));
        let minus_d_min = each!(panels, |panel| S::sub(
            S::splat(0.0),
            S::load_f16(panel.add(k45::D_MIN).cast::<f16>())
        ));
        for (m, sums) in sums.iter_mut().enumerate() {
            let scale = row_scale::<S>(x.add(SUPER_SCALE * M + m));
            for (n, sum) in sums.iter_mut().enumerate() {
                let minimum = S::mul(minus_d_min[n], S::to_f32(minima[m][n]));
                let product = S::fma(d[n], scaled[m][n], minimum);
                *sum = S::fma(product, scale, *sum);
            }
        }
    }
}

macro_rules! k45_products {
    ($format:ty) => {
        impl Product for $format {
            #[inline(always)]
            unsafe fn add<S: ByteDot, A: Ahead, const M: usize, const N: usize>(
                panels: [*const u8; N],
                x: *const u32,
                ahead: usize,
                sums: &mut Sums<S::F, M, N>,
            ) {
                // SAFETY: promised by the caller.
                unsafe { add_k45::<$format, S, A, M, N>(panels, x, ahead, sums) }
            }
        }
    };
}
k45_products!(Q4K);
k45_products!(Q5K);

/// Four inputs of the `PART`-th 32 of a half, from the vectors with their nibbles and with their upper bits.
///
/// # Safety
/// As [`ByteDot`].
#[inline(always)]
unsafe fn k6_quants<S: ByteDot, const PART: usize>(nibbles: S::Bytes, bits: S::Bytes) -> S::Bytes {
    // SAFETY: promised by the caller.
    unsafe {
        let low = if PART >= 2 {
            S::high_nibbles(nibbles)
        } else {
            S::low_nibbles(nibbles)
        };
        S::or(low, S::two_bits_up(bits, 2 * PART as u32))
    }
}

/// The scales of the 16 inputs `sixteen`.
///
/// # Safety
/// As [`Product::add`].
#[inline(always)]
unsafe fn k6_scales<S: ByteDot>(panel: *const u8, sixteen: usize) -> S::F {
    // SAFETY: promised by the caller.
    unsafe { S::load_i8(panel.add(k6::SCALES + sixteen * LANES).cast::<i8>()) }
}

/// 32 inputs of `Q6_K`, the `PART`-th of a half. Their scaled sums are within 2²⁴: at most 32 · 128 · 127 each.
///
/// # Safety
/// As [`Product::add`].
#[inline(always)]
unsafe fn add_k6<S: ByteDot, A: Ahead, const M: usize, const N: usize, const PART: usize>(
    panels: [*const u8; N],
    x: *const u32,
    half: usize,
    ahead: usize,
    whole: &mut Sums<S::I, M, N>,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let part = 4 * half + PART;
        let mut scaled = [[S::splat(0.0); N]; M];
        for quarter in 0..2 {
            let sixteen = 2 * part + quarter;
            // The quants stand for q - 32.
            let mut parts = begin_with::<S, M, N>(x.add((SIXTEEN_SUMS + sixteen) * M));
            for i in 4 * quarter..4 * quarter + 4 {
                let weights = each!(panels, |panel| {
                    let nibbles = panel.add(k6::nibbles(half, PART % 2, i));
                    let bits = panel.add(k6::pairs(half, i));
                    // The nibbles of two parts share their vectors, the upper bits of four.
                    if PART < 2 {
                        ask::<S, A>(nibbles, ahead);
                    }
                    if PART == 0 {
                        ask::<S, A>(bits, ahead);
                    }
                    k6_quants::<S, PART>(S::load_bytes(nibbles), S::load_bytes(bits))
                });
                add_four::<S, M, N>(weights, x.add((8 * part + i) * M), &mut parts);
            }
            let scales = each!(panels, |panel| k6_scales::<S>(panel, sixteen));
            scale_parts::<S, M, N>(&parts, scales, &mut scaled);
        }
        add_whole::<S, M, N>(&scaled, whole);
    }
}

/// Half a block of `Q6_K`, all four parts of each vector while it is at hand: a few rows are over so soon that it
/// counts in which order memory is read.
///
/// # Safety
/// As [`Product::add`].
#[inline(always)]
unsafe fn add_k6_half<S: ByteDot, A: Ahead, const M: usize, const N: usize>(
    panels: [*const u8; N],
    x: *const u32,
    half: usize,
    ahead: usize,
    whole: &mut Sums<S::I, M, N>,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut scaled = [[[S::splat(0.0); N]; M]; 4];
        for quarter in 0..2 {
            let sixteen = |part: usize| 2 * (4 * half + part) + quarter;
            let mut parts: [Sums<S::I, M, N>; 4] =
                from_fn(|part| begin_with::<S, M, N>(x.add((SIXTEEN_SUMS + sixteen(part)) * M)));
            for i in 4 * quarter..4 * quarter + 4 {
                let load = |offset: usize| {
                    each!(panels, |panel| load_and_ask::<S, A>(
                        panel.add(offset),
                        ahead
                    ))
                };
                let first = load(k6::nibbles(half, 0, i));
                let second = load(k6::nibbles(half, 1, i));
                let bits = load(k6::pairs(half, i));
                macro_rules! add {
                    ($part:literal, $nibbles:ident) => {
                        let weights = from_fn(|n| k6_quants::<S, $part>($nibbles[n], bits[n]));
                        let x = x.add((8 * (4 * half + $part) + i) * M);
                        add_four::<S, M, N>(weights, x, &mut parts[$part]);
                    };
                }
                add!(0, first);
                add!(1, second);
                add!(2, first);
                add!(3, second);
            }
            for (part, (parts, scaled)) in parts.iter().zip(&mut scaled).enumerate() {
                let scales = each!(panels, |panel| k6_scales::<S>(panel, sixteen(part)));
                scale_parts::<S, M, N>(parts, scales, scaled);
            }
        }
        for scaled in &scaled {
            add_whole::<S, M, N>(scaled, whole);
        }
    }
}

impl Product for Q6K {
    const GROUP: usize = 4;

    #[inline(always)]
    unsafe fn add<S: ByteDot, A: Ahead, const M: usize, const N: usize>(
        panels: [*const u8; N],
        x: *const u32,
        ahead: usize,
        sums: &mut Sums<S::F, M, N>,
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            for panel in panels {
                for line in 0..k6::nibbles(0, 0, 0) / CACHE_LINE {
                    ask::<S, A>(panel.wrapping_add(line * CACHE_LINE), ahead);
                }
            }
            let mut whole = [[S::splat_i32(0); N]; M];
            for half in 0..2 {
                if const { M * N <= S::FOUR_PARTS } {
                    add_k6_half::<S, A, M, N>(panels, x, half, ahead, &mut whole);
                } else {
                    add_k6::<S, A, M, N, 0>(panels, x, half, ahead, &mut whole);
                    add_k6::<S, A, M, N, 1>(panels, x, half, ahead, &mut whole);
                    add_k6::<S, A, M, N, 2>(panels, x, half, ahead, &mut whole);
                    add_k6::<S, A, M, N, 3>(panels, x, half, ahead, &mut whole);
                }
            }
            let d = each!(panels, |panel| S::load_f16(panel.add(k6::D).cast::<f16>()));
            for (m, sums) in sums.iter_mut().enumerate() {
                let scale = row_scale::<S>(x.add(SUPER_SCALE * M + m));
                for (n, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(S::mul(d[n], S::to_f32(whole[m][n])), scale, *sum);
                }
            }
        }
    }
}

/// Words of a record of 32 inputs before the offset and before the scale.
const OFFSET: usize = 8;
const PLAIN_SCALE: usize = 9;

/// `sums += d · scale · parts` of lifted parts.
///
/// # Safety
/// As [`Product::add`].
#[inline(always)]
unsafe fn finish_plain<S: ByteDot, const M: usize, const N: usize>(
    panels: [*const u8; N],
    x: *const u32,
    parts: &Sums<S::I, M, N>,
    sums: &mut Sums<S::F, M, N>,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let d = each!(panels, |panel| S::load_f16(panel.cast::<f16>()));
        let lift = each!(d, |d| S::lift(d));
        for (m, sums) in sums.iter_mut().enumerate() {
            let scale = row_scale::<S>(x.add(PLAIN_SCALE * M + m));
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(S::scaled(parts[m][n], d[n], lift[n]), scale, *sum);
            }
        }
    }
}

impl Product for Q8_0 {
    #[inline(always)]
    unsafe fn add<S: ByteDot, A: Ahead, const M: usize, const N: usize>(
        panels: [*const u8; N],
        x: *const u32,
        ahead: usize,
        sums: &mut Sums<S::F, M, N>,
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            // The quants stand for q - 128.
            let mut parts: Sums<S::I, M, N> =
                from_fn(|m| [S::start_centred(*x.add(OFFSET * M + m) as i32); N]);
            for i in 0..8 {
                let weights = each!(panels, |panel| load_and_ask::<S, A>(
                    panel.add(HALVES + i * VECTOR),
                    ahead
                ));
                for (m, parts) in parts.iter_mut().enumerate() {
                    let x = *x.add(i * M + m);
                    for (part, weights) in parts.iter_mut().zip(weights) {
                        *part = S::dot_centred(*part, weights, x);
                    }
                }
            }
            finish_plain::<S, M, N>(panels, x, &parts, sums);
        }
    }
}

impl Product for Q4_0 {
    #[inline(always)]
    unsafe fn add<S: ByteDot, A: Ahead, const M: usize, const N: usize>(
        panels: [*const u8; N],
        x: *const u32,
        ahead: usize,
        sums: &mut Sums<S::F, M, N>,
    ) {
        // SAFETY: promised by the caller.
        unsafe {
            // The quants stand for q - 8: a sixteenth of the offset, exactly.
            let mut parts: Sums<S::I, M, N> = from_fn(|m| {
                let offset = *x.add(OFFSET * M + m) as i32 - S::LIFT;
                [S::splat_i32((offset >> 4) + S::LIFT); N]
            });
            for i in 0..4 {
                let both = each!(panels, |panel| load_and_ask::<S, A>(
                    panel.add(HALVES + i * VECTOR),
                    ahead
                ));
                add_four::<S, M, N>(
                    each!(both, |both| S::low_nibbles(both)),
                    x.add(i * M),
                    &mut parts,
                );
                let high = each!(both, |both| S::high_nibbles(both));
                add_four::<S, M, N>(high, x.add((4 + i) * M), &mut parts);
            }
            finish_plain::<S, M, N>(panels, x, &parts, sums);
        }
    }
}
