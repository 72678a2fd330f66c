//! NEON (always there on AArch64): a vector is four registers. Byte dot products are an extension of it.
//!
//! Where Rust has no stable intrinsic yet for an instruction, it stands here as assembly.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::{ByteDot, ByteDotTask, Simd, SimdTask};

#[derive(Clone, Copy)]
pub(in crate::kernels) struct Neon;

/// # Safety
/// What the task itself asks for.
pub(super) unsafe fn run<T: SimdTask>(task: T) -> T::Output {
    // SAFETY: promised by the caller.
    unsafe { task.run::<Neon>() }
}

/// # Safety
/// The machine has the dot product of bytes, and what the task itself asks for.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn run_bytes<T: ByteDotTask>(task: T) {
    // SAFETY: promised by the caller.
    unsafe { task.run::<Neon>() }
}

type Four = [float32x4_t; 4];

#[inline(always)]
fn each<T>(f: impl Fn(usize) -> T) -> [T; 4] {
    [f(0), f(1), f(2), f(3)]
}

/// The numbers of four `f16`.
#[inline(always)]
fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: every AArch64 machine has the instruction, which touches its registers only.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h",
            wide = lateout(vreg) wide,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}

/// The nearest `f16` of four numbers, ties to even.
#[inline(always)]
fn narrow_f16(wide: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: every AArch64 machine has the instruction, which touches its registers only.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {wide:v}.4s",
            halves = lateout(vreg) halves,
            wide = in(vreg) wide,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

// SAFETY of all bodies: NEON is part of AArch64 and pointers cover sixteen elements, as the trait
// asks of its callers.
impl Simd for Neon {
    type F = Four;
    const SUMS: usize = 6;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Four {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vld1q_f32(p.add(4 * i)) })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Four) {
        for (i, part) in v.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe { vst1q_f32(p.add(4 * i), part) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { widen_f16(vld1_u16(p.add(4 * i).cast())) })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Four {
        // SAFETY: see above.
        each(|i| unsafe {
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(p.add(4 * i).cast()))))
        })
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Four) {
        for (i, part) in v.into_iter().enumerate() {
            // SAFETY: see above. What is not a number passes both limits.
            unsafe {
                let part = vminq_f32(vmaxq_f32(part, vdupq_n_f32(-65504.0)), vdupq_n_f32(65504.0));
                vst1_u16(p.add(4 * i).cast(), narrow_f16(part));
            }
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Four) {
        for (i, part) in v.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe {
                let bits = vreinterpretq_u32_f32(part);
                // Half of the last place, less one where that place is even.
                let even = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                let rounded = vaddq_u32(bits, vaddq_u32(even, vdupq_n_u32(0x7fff)));
                // What is not a number keeps its sign and must not round to infinity.
                let quiet = vorrq_u32(bits, vdupq_n_u32(0x0040_0000));
                let bits = vbslq_u32(vceqq_f32(part, part), rounded, quiet);
                vst1_u16(p.add(4 * i).cast(), vshrn_n_u32::<16>(bits));
            }
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Four {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_s8(p);
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            [
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))),
                vcvtq_f32_s32(vmovl_high_s16(low)),
                vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))),
                vcvtq_f32_s32(vmovl_high_s16(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Four) {
        // SAFETY: see above.
        unsafe {
            let [a, b, c, d] = each(|i| vmovn_s32(vcvtq_s32_f32(v[i])));
            let low = vmovn_s16(vcombine_s16(a, b));
            let high = vmovn_s16(vcombine_s16(c, d));
            vst1q_s8(p, vcombine_s8(low, high));
        }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(p: *const T) {
        // SAFETY: a hint, which faults at no address.
        unsafe {
            asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        // SAFETY: as above.
        unsafe {
            asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags));
        }
    }
    #[inline(always)]
    unsafe fn split_pairs(p: *const u32) -> (Four, Four) {
        // SAFETY: see above.
        unsafe {
            let pairs = each(|i| vld1q_u32(p.add(4 * i)));
            let high = vdupq_n_u32(0xffff_0000);
            (
                each(|i| vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs[i]))),
                each(|i| vreinterpretq_f32_u32(vandq_u32(pairs[i], high))),
            )
        }
    }
    #[inline(always)]
    unsafe fn add(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vaddq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn sub(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vsubq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn mul(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn div(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vdivq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn fma(a: Four, b: Four, c: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn max(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vbslq_f32(vcgtq_f32(a[i], b[i]), a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn min(a: Four, b: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vbslq_f32(vcltq_f32(a[i], b[i]), a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn round(a: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vrndnq_f32(a[i]) })
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: Four, n: Four) -> Four {
        // SAFETY: see above.
        each(|i| unsafe {
            let exponent = vaddq_s32(vcvtq_s32_f32(n[i]), vdupq_n_s32(127));
            vmulq_f32(a[i], vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)))
        })
    }
    #[inline(always)]
    unsafe fn zero_below(a: Four, x: Four, limit: f32) -> Four {
        // SAFETY: see above. A comparison with NaN is false, so NaN keeps `a`.
        each(|i| unsafe {
            let below = vcltq_f32(x[i], vdupq_n_f32(limit));
            vbslq_f32(below, vdupq_n_f32(0.0), a[i])
        })
    }
    #[inline(always)]
    unsafe fn sum(v: Four) -> f32 {
        // SAFETY: see above. The same tree as the trait's own.
        unsafe {
            let sum = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let sum = vadd_f32(vget_low_f32(sum), vget_high_f32(sum));
            vget_lane_f32::<0>(sum) + vget_lane_f32::<1>(sum)
        }
    }
    #[inline(always)]
    unsafe fn max_lane(v: Four) -> f32 {
        // SAFETY: see above. These pass over what is not a number, unless there is nothing else.
        unsafe {
            let most = vmaxnmq_f32(vmaxnmq_f32(v[0], v[1]), vmaxnmq_f32(v[2], v[3]));
            vmaxnmvq_f32(vmaxnmq_f32(most, vdupq_n_f32(f32::NEG_INFINITY)))
        }
    }
}

/// `acc + Σ aᵢ·bᵢ` over the four signed bytes of each lane.
///
/// # Safety
/// The machine has the dot product of bytes.
#[inline(always)]
unsafe fn dot(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let mut acc = acc;
    // SAFETY: the instruction is there, as the caller promises, and touches its registers only.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {acc:v}.4s, {a:v}.16b, {b:v}.16b",
            acc = inlateout(vreg) acc,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

// SAFETY of all bodies: as above, and the byte dot products are present; pointers cover what the trait says.
impl ByteDot for Neon {
    type Bytes = [uint8x16_t; 4];
    type I = [int32x4_t; 4];
    const TILE: usize = 6;
    const FOUR_PARTS: usize = 1;

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::Bytes {
        // SAFETY: see above.
        each(|i| unsafe { vld1q_u8(p.add(16 * i)) })
    }
    #[inline(always)]
    unsafe fn low_nibbles(v: Self::Bytes) -> Self::Bytes {
        // SAFETY: see above.
        each(|i| unsafe { vandq_u8(v[i], vdupq_n_u8(0x0f)) })
    }
    #[inline(always)]
    unsafe fn high_nibbles(v: Self::Bytes) -> Self::Bytes {
        // SAFETY: see above.
        each(|i| unsafe { vshrq_n_u8::<4>(v[i]) })
    }
    #[inline(always)]
    unsafe fn two_bits_up(v: Self::Bytes, n: u32) -> Self::Bytes {
        // SAFETY: see above.
        each(|i| unsafe {
            let shifted = match n {
                0 => vshlq_n_u8::<4>(v[i]),
                2 => vshlq_n_u8::<2>(v[i]),
                4 => v[i],
                _ => vshrq_n_u8::<2>(v[i]),
            };
            vandq_u8(shifted, vdupq_n_u8(0x30))
        })
    }
    #[inline(always)]
    unsafe fn one_bit_up(v: Self::Bytes, n: u32) -> Self::Bytes {
        // SAFETY: see above. A negative shift is one to the right.
        unsafe {
            let to_bit_four = vdupq_n_s8(4 - n as i8);
            each(|i| vandq_u8(vshlq_u8(v[i], to_bit_four), vdupq_n_u8(0x10)))
        }
    }
    #[inline(always)]
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        // SAFETY: see above.
        each(|i| unsafe { vorrq_u8(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn widen_bytes(p: *const u8) -> Self::Bytes {
        // SAFETY: see above.
        each(|i| unsafe { vreinterpretq_u8_u16(vmovl_u8(vld1_u8(p.add(8 * i)))) })
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: Self::I, w: Self::Bytes, x: u32) -> Self::I {
        // SAFETY: see above. Below 128 signed bytes are the same as unsigned ones.
        unsafe {
            let x = vreinterpretq_s8_u32(vdupq_n_u32(x));
            each(|i| dot(acc[i], vreinterpretq_s8_u8(w[i]), x))
        }
    }
    #[inline(always)]
    unsafe fn start_centred(_: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { Self::splat_i32(0) }
    }
    #[inline(always)]
    unsafe fn dot_centred(acc: Self::I, w: Self::Bytes, x: u32) -> Self::I {
        // SAFETY: see above. With its upper bit turned round, w is the signed byte w - 128.
        unsafe {
            let centred = each(|i| veorq_u8(w[i], vdupq_n_u8(0x80)));
            Self::dot_bytes(acc, centred, x)
        }
    }
    #[inline(always)]
    unsafe fn dot_words(acc: Self::I, w: Self::Bytes, x: u32) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let x = vreinterpretq_s16_u32(vdupq_n_u32(x));
            each(|i| {
                let w = vreinterpretq_s16_u8(w[i]);
                let low = vmull_s16(vget_low_s16(w), vget_low_s16(x));
                let high = vmull_high_s16(w, x);
                vaddq_s32(acc[i], vpaddq_s32(low, high))
            })
        }
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Four {
        // SAFETY: see above.
        each(|i| unsafe { vcvtq_f32_s32(v[i]) })
    }
    #[inline(always)]
    unsafe fn to_i32(v: Four) -> Self::I {
        // SAFETY: see above.
        each(|i| unsafe { vcvtq_s32_f32(v[i]) })
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        // SAFETY: see above.
        each(|i| unsafe { vaddq_s32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Four {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_u8(p);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            [
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(low))),
                vcvtq_f32_u32(vmovl_high_u16(low)),
                vcvtq_f32_u32(vmovl_u16(vget_low_u16(high))),
                vcvtq_f32_u32(vmovl_high_u16(high)),
            ]
        }
    }
}
