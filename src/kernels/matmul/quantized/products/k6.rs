//! Products of `Q6_K`.

use half::f16;

use super::{
    Product, SIXTEEN_SUMS, SUPER_SCALE, Sums, add_four, add_whole, ask, ask_for_heads, begin_with,
    load_and_ask, row_scale, scale_parts,
};
use crate::kernels::matmul::quantized::formats::{Q6K, k6};
use crate::kernels::matmul::quantized::micro::Ahead;
use crate::kernels::simd::{ByteDot, LANES};

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
            let sixteen = 8 * half + quarter;
            macro_rules! begin {
                ($part:literal) => {
                    begin_with::<S, M, N>(x.add((SIXTEEN_SUMS + sixteen + 2 * $part) * M))
                };
            }
            let mut parts = [begin!(0), begin!(1), begin!(2), begin!(3)];
            for i in 4 * quarter..4 * quarter + 4 {
                let quants = each!(panels, |panel| (
                    load_and_ask::<S, A>(panel.add(k6::nibbles(half, 0, i)), ahead),
                    load_and_ask::<S, A>(panel.add(k6::nibbles(half, 1, i)), ahead),
                    load_and_ask::<S, A>(panel.add(k6::pairs(half, i)), ahead),
                ));
                macro_rules! add {
                    ($part:literal, $nibbles:tt) => {
                        let weights = each!(quants, |quants| k6_quants::<S, $part>(
                            quants.$nibbles,
                            quants.2
                        ));
                        let x = x.add((8 * (4 * half + $part) + i) * M);
                        add_four::<S, M, N>(weights, x, &mut parts[$part]);
                    };
                }
                add!(0, 0);
                add!(1, 1);
                add!(2, 0);
                add!(3, 1);
            }
            for (part, (parts, scaled)) in parts.iter().zip(&mut scaled).enumerate() {
                let scales = each!(panels, |panel| k6_scales::<S>(panel, sixteen + 2 * part));
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
            ask_for_heads::<S, A, N>(panels, k6::nibbles(0, 0, 0), ahead);
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
