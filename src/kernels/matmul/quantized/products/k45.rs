//! Products of `Q4_K` and `Q5_K`.

use half::f16;

use super::{
    PAIR_SUMS, Product, SUPER_SCALE, Sums, add_four, add_whole, ask, ask_for_heads, load_and_ask,
    row_scale, scale_parts,
};
use crate::kernels::matmul::quantized::formats::{Q4K, Q5K, VECTOR, k45};
use crate::kernels::matmul::quantized::micro::Ahead;
use crate::kernels::simd::{ByteDot, LANES};

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
        ask_for_heads::<S, A, N>(panels, k45::NIBBLES, ahead);
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
