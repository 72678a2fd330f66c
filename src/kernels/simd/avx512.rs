//! AVX-512: a vector is one register.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Bf16Dot, Bf16DotTask, ByteDot, ByteDotTask, Simd, SimdTask};

#[derive(Clone, Copy)]
pub(in crate::kernels) struct Avx512;

/// # Safety
/// The machine has AVX-512 F, BW, VL and DQ, AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn run<T: SimdTask>(task: T) -> T::Output {
    // SAFETY: promised by the caller.
    unsafe { task.run::<Avx512>() }
}

/// # Safety
/// As [`run`], and AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn run_bf16<T: Bf16DotTask>(task: T) {
    // SAFETY: promised by the caller.
    unsafe { task.run::<Avx512>() }
}

/// # Safety
/// As [`run`], and AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run_bytes<T: ByteDotTask>(task: T) {
    // SAFETY: promised by the caller.
    unsafe { task.run::<Avx512>() }
}

/// The bits of each lane rounded to `bf16`, nearest even, in the lower half of the lane.
#[inline(always)]
unsafe fn round_to_bf16(v: __m512) -> __m512i {
    // SAFETY: only called where AVX-512 is present.
    unsafe {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let bias = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let rounded = _mm512_add_epi32(bits, bias);
        // A NaN keeps its upper bits and is made quiet, so that rounding cannot turn it into infinity.
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
        let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_srli_epi32::<16>(_mm512_mask_blend_epi32(nan, rounded, quiet))
    }
}

// SAFETY of all bodies: the instruction set is present and pointers cover sixteen elements, as the
// trait asks of its callers.
impl Simd for Avx512 {
    type F = __m512;
    const SUMS: usize = 24;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m512 {
        // SAFETY: see above.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: __m512) {
        // SAFETY: see above. The operand order of min and max keeps NaN.
        unsafe {
            let v = _mm512_max_ps(_mm512_set1_ps(-65504.0), v);
            let v = _mm512_min_ps(_mm512_set1_ps(65504.0), v);
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v);
            _mm256_storeu_si256(p.cast(), half);
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(round_to_bf16(v))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: __m512) {
        // SAFETY: see above.
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: a hint; it cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn split_pairs(p: *const u32) -> (__m512, __m512) {
        // SAFETY: see above.
        unsafe {
            let pairs = _mm512_loadu_si512(p.cast());
            let even = _mm512_slli_epi32::<16>(pairs);
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000u32 as i32));
            (_mm512_castsi512_ps(even), _mm512_castsi512_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: __m512, n: __m512) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        // SAFETY: see above. The same tree as the trait's own.
        unsafe {
            let low = _mm512_castps512_ps256(v);
            let high = _mm512_extractf32x8_ps::<1>(v);
            let sum = _mm256_add_ps(low, high);
            let sum = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
            _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)))
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: __m512) -> f32 {
        // SAFETY: see above. In this operand order what is not a number is passed over.
        unsafe {
            let v = _mm512_max_ps(v, _mm512_set1_ps(f32::NEG_INFINITY));
            _mm512_reduce_max_ps(v)
        }
    }
    #[inline(always)]
    unsafe fn zero_below(a: __m512, x: __m512, limit: f32) -> __m512 {
        // SAFETY: see above. "Not less than" is true for NaN.
        unsafe {
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(limit));
            _mm512_maskz_mov_ps(keep, a)
        }
    }
}

// SAFETY of all bodies: as above, and the bf16 instructions are present.
impl Bf16Dot for Avx512 {
    type Pairs = __m512bh;

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> __m512bh {
        // SAFETY: see above; both types are 64 bytes for which all bits are valid.
        unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: __m512, w: __m512bh, x: u32) -> __m512 {
        // SAFETY: see above; both types are 64 bytes for which all bits are valid.
        unsafe {
            _mm512_dpbf16_ps(
                acc,
                w,
                std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(x as i32)),
            )
        }
    }
    #[inline(always)]
    unsafe fn store_row(p: *mut u16, first: __m512, second: __m512) {
        // SAFETY: as above.
        unsafe {
            let row = _mm512_cvtne2ps_pbh(second, first);
            _mm512_storeu_si512(p.cast(), std::mem::transmute::<__m512bh, __m512i>(row));
        }
    }
}

/// From here to the next power of two neighbouring numbers are one apart, on both sides of it.
const LIFT: f32 = 12_582_912.0;

// SAFETY of all bodies: as above, and the byte dot products are present; pointers cover what the trait says.
impl ByteDot for Avx512 {
    type Bytes = __m512i;
    type I = __m512i;
    const TILE: usize = 12;
    const FOUR_PARTS: usize = 4;

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn low_nibbles(v: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(0x0f)) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(v: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(v), _mm512_set1_epi8(0x0f)) }
    }
    const HIGH_NIBBLES: f32 = 16.0;
    #[inline(always)]
    unsafe fn scaled_high_nibbles(v: __m512i) -> __m512i {
        // SAFETY: see above. The product takes any unsigned byte.
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(0xf0u8 as i8)) }
    }
    #[inline(always)]
    unsafe fn two_bits_up(v: __m512i, n: u32) -> __m512i {
        // SAFETY: see above. Bits that come from the neighbouring byte are masked away.
        unsafe {
            let shifted = match n {
                0 => _mm512_slli_epi16::<4>(v),
                2 => _mm512_slli_epi16::<2>(v),
                4 => v,
                _ => _mm512_srli_epi16::<2>(v),
            };
            _mm512_and_si512(shifted, _mm512_set1_epi8(0x30))
        }
    }
    #[inline(always)]
    unsafe fn one_bit_up(v: __m512i, n: u32) -> __m512i {
        // SAFETY: see above. Bits that come from the neighbouring byte are masked away.
        unsafe {
            let shifted = _mm512_srl_epi16(v, _mm_cvtsi32_si128(n as i32));
            let bit = _mm512_and_si512(shifted, _mm512_set1_epi8(1));
            _mm512_slli_epi16::<4>(bit)
        }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn widen_bytes(p: *const u8) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_cvtepu8_epi16(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: __m512i, w: __m512i, x: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x as i32)) }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: __m512i, w: __m512i, x: u32) -> __m512i {
        // SAFETY: see above.
        unsafe { dot_words(acc, w, _mm512_set1_epi32(x as i32)) }
    }
    #[inline(always)]
    unsafe fn to_f32(v: __m512i) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(v) }
    }
    #[inline(always)]
    unsafe fn to_i32(v: __m512) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_cvtps_epi32(v) }
    }
    #[inline(always)]
    unsafe fn add_i32(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(a, b) }
    }
    /// The bits of 1.5 · 2²³, to which whole numbers are added as to an integer.
    const LIFT: i32 = LIFT.to_bits() as i32;
    #[inline(always)]
    unsafe fn lift(scale: __m512) -> __m512 {
        // SAFETY: see above. Exact: three times a number of few bits.
        unsafe { _mm512_mul_ps(_mm512_set1_ps(-LIFT), scale) }
    }
    #[inline(always)]
    unsafe fn scaled(v: __m512i, scale: __m512, lift: __m512) -> __m512 {
        // SAFETY: see above. One instruction instead of a conversion and a product, with the same bits.
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(v), scale, lift) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
}

/// `acc + w₀·x₀ + w₁·x₁` over the two signed 16-bit numbers of each lane, as one instruction: of the intrinsic the
/// compiler makes a product and an addition.
///
/// # Safety
/// The instruction set is present.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_words(acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
    let mut acc = acc;
    // SAFETY: the instruction reads and writes registers only, and the machine has it, as the caller promises.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {acc}, {w}, {x}",
            acc = inout(zmm_reg) acc,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}
