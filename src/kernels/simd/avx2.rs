//! AVX2 with FMA and F16C: a vector is two registers.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Simd, SimdTask, scalar::Scalar};

#[derive(Clone, Copy)]
pub(in crate::kernels) struct Avx2;

/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<T: SimdTask>(task: T) -> T::Output {
    // SAFETY: promised by the caller.
    unsafe { task.run::<Avx2>() }
}

type Two = [__m256; 2];

/// One lane-wise intrinsic on both halves.
macro_rules! both {
    ($f:ident, $($v:ident),+) => { [$f($($v[0]),+), $f($($v[1]),+)] };
}

// SAFETY of all bodies: the instruction set is present and pointers cover sixteen elements, as the
// trait asks of its callers.
impl Simd for Avx2 {
    type F = Two;
    const SUMS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Two {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Two {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Two) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Two {
        // SAFETY: see above.
        unsafe {
            let low = _mm_loadu_si128(p.cast());
            let high = _mm_loadu_si128(p.add(8).cast());
            [_mm256_cvtph_ps(low), _mm256_cvtph_ps(high)]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Two {
        // SAFETY: see above.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast()));
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Two) {
        // SAFETY: see above. The operand order of min and max keeps NaN.
        unsafe {
            for (i, half) in v.into_iter().enumerate() {
                let half = _mm256_max_ps(_mm256_set1_ps(-65504.0), half);
                let half = _mm256_min_ps(_mm256_set1_ps(65504.0), half);
                let bits = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(half);
                _mm_storeu_si128(p.add(8 * i).cast(), bits);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Two) {
        // SAFETY: see above.
        unsafe { Scalar::store_bf16(p, std::mem::transmute::<Two, [f32; 16]>(v)) }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: a hint; it cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn split_pairs(p: *const u32) -> (Two, Two) {
        // SAFETY: see above.
        unsafe {
            widen([
                _mm256_loadu_si256(p.cast()),
                _mm256_loadu_si256(p.add(8).cast()),
            ])
        }
    }
    #[inline(always)]
    unsafe fn add(a: Two, b: Two) -> Two {
        // SAFETY: see above.
        unsafe { both!(_mm256_add_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Two, b: Two) -> Two {
        // SAFETY: see above.
        unsafe { both!(_mm256_sub_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Two, b: Two) -> Two {
        // SAFETY: see above.
        unsafe { both!(_mm256_mul_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Two, b: Two) -> Two {
        // SAFETY: see above.
        unsafe { both!(_mm256_div_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Two, b: Two, c: Two) -> Two {
        // SAFETY: see above.
        unsafe { both!(_mm256_fmadd_ps, a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Two, b: Two) -> Two {
        // SAFETY: see above.
        unsafe { both!(_mm256_max_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Two, b: Two) -> Two {
        // SAFETY: see above.
        unsafe { both!(_mm256_min_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: Two) -> Two {
        // SAFETY: see above.
        unsafe {
            [
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a[0]),
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: Two, n: Two) -> Two {
        // SAFETY: see above.
        unsafe { [scale_half(a[0], n[0]), scale_half(a[1], n[1])] }
    }
    #[inline(always)]
    unsafe fn zero_below(a: Two, x: Two, limit: f32) -> Two {
        // SAFETY: see above. "Not less than" is true for NaN.
        unsafe {
            let limit = _mm256_set1_ps(limit);
            [
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], limit), a[0]),
                _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], limit), a[1]),
            ]
        }
    }
}

#[inline(always)]
unsafe fn widen(pairs: [__m256i; 2]) -> (Two, Two) {
    // SAFETY: only called where AVX2 is present.
    unsafe {
        let high = _mm256_set1_epi32(0xffff_0000u32 as i32);
        let even = |p| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(p));
        let odd = |p| _mm256_castsi256_ps(_mm256_and_si256(p, high));
        (
            [even(pairs[0]), even(pairs[1])],
            [odd(pairs[0]), odd(pairs[1])],
        )
    }
}

#[inline(always)]
unsafe fn scale_half(a: __m256, n: __m256) -> __m256 {
    // SAFETY: only called where AVX2 is present.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
}
