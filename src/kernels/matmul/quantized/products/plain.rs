//! Products of `Q8_0` and `Q4_0`.

use std::array::from_fn;

use half::f16;

use super::{Product, Sums, add_four, load_and_ask, row_scale};
use crate::kernels::matmul::quantized::formats::{HALVES, Q4_0, Q8_0, VECTOR};
use crate::kernels::matmul::quantized::micro::Ahead;
use crate::kernels::simd::ByteDot;

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
