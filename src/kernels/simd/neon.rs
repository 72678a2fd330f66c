//! NEON (always there on AArch64): a vector is four registers.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::{Simd, SimdTask, scalar::Scalar};

#[derive(Clone, Copy)]
pub(in crate::kernels) struct Neon;

/// # Safety
/// What the task itself asks for.
pub(super) unsafe fn run<T: SimdTask>(task: T) -> T::Output {
    // SAFETY: promised by the caller.
    unsafe { task.run::<Neon>() }
}

type Four = [float32x4_t; 4];

#[inline(always)]
fn each(f: impl Fn(usize) -> float32x4_t) -> Four {
    std::array::from_fn(f)
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
        unsafe {
            let lanes = Scalar::load_f16(p);
            Self::load(lanes.as_ptr())
        }
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
        let mut lanes = [0.0f32; 16];
        // SAFETY: see above.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            Scalar::store_f16(p, lanes);
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Four) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: see above.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            Scalar::store_bf16(p, lanes);
        }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(_: *const T) {}
    #[inline(always)]
    unsafe fn split_pairs(p: *const u32) -> (Four, Four) {
        // SAFETY: see above.
        unsafe {
            let pairs: [uint32x4_t; 4] = std::array::from_fn(|i| vld1q_u32(p.add(4 * i)));
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
}
