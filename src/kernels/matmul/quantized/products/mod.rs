//! What a block of weights contributes to a tile's sums, format by format.
//!
//! Of K-quants the sum of 256 inputs, with the whole-numbered scales of their parts, is exact and rounded once, so that
//! it may be computed in another way ([`super::tiles`]).

use std::array::from_fn;

use super::formats::Format;
use super::micro::Ahead;
use crate::kernels::simd::{ByteDot, CACHE_LINE};

/// Sums of `M` rows and `N` panels.
pub(super) type Sums<T, const M: usize, const N: usize> = [[T; N]; M];

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

mod k45;
mod k6;
mod plain;

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

/// Asks for what is `ahead` bytes behind the first `bytes` of each panel's block.
///
/// # Safety
/// As [`ByteDot`].
#[inline(always)]
unsafe fn ask_for_heads<S: ByteDot, A: Ahead, const N: usize>(
    panels: [*const u8; N],
    bytes: usize,
    ahead: usize,
) {
    for panel in panels {
        for line in 0..bytes / CACHE_LINE {
            // SAFETY: promised by the caller.
            unsafe { ask::<S, A>(panel.wrapping_add(line * CACHE_LINE), ahead) };
        }
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
