//! The scalar twin: the same sixteen lanes as an array.

use half::{bf16, f16};

use super::{Bf16Dot, LANES, Simd, saturating_f16};

#[derive(Clone, Copy)]
pub(in crate::kernels) struct Scalar;

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

/// One rounding where the machine has the instruction; the library call would be too slow elsewhere.
#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

#[inline(always)]
fn even(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

#[inline(always)]
fn odd(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

/// The bits of the nearest `bf16`, ties to even; of numbers too small for the usual precision, of zero.
#[cfg(target_arch = "x86_64")]
fn rounded_to_bf16(x: f32) -> u16 {
    let x = if x.is_subnormal() {
        0.0f32.copysign(x)
    } else {
        x
    };
    bf16::from_f32(x).to_bits()
}

// SAFETY of all bodies: pointers cover sixteen elements, as the trait asks of its callers.
impl Simd for Scalar {
    type F = [f32; LANES];
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: see above.
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self::F {
        // SAFETY: see above.
        each(|i| unsafe { *p.add(i) }.to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self::F {
        // SAFETY: see above.
        each(|i| unsafe { *p.add(i) }.to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: Self::F) {
        for (i, &x) in v.iter().enumerate() {
            // SAFETY: see above.
            unsafe { *p.add(i) = saturating_f16(x) };
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: Self::F) {
        for (i, &x) in v.iter().enumerate() {
            // SAFETY: see above.
            unsafe { *p.add(i) = bf16::from_f32(x) };
        }
    }
    #[inline(always)]
    unsafe fn prefetch<T>(_: *const T) {}
    #[inline(always)]
    unsafe fn split_pairs(p: *const u32) -> (Self::F, Self::F) {
        // SAFETY: see above.
        unsafe { (each(|i| even(*p.add(i))), each(|i| odd(*p.add(i)))) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        each(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(|i| fused(a[i], b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        each(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        each(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn scale_by_power(a: Self::F, n: Self::F) -> Self::F {
        each(|i| a[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn zero_below(a: Self::F, x: Self::F, limit: f32) -> Self::F {
        each(|i| if x[i] < limit { 0.0 } else { a[i] })
    }
}

// SAFETY of both bodies: as above.
impl Bf16Dot for Scalar {
    type Pairs = [u32; LANES];

    #[inline(always)]
    unsafe fn load_pairs(p: *const u32) -> Self::Pairs {
        // SAFETY: see above.
        unsafe { p.cast::<Self::Pairs>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::F, w: Self::Pairs, x: u32) -> Self::F {
        each(|i| fused(odd(w[i]), odd(x), fused(even(w[i]), even(x), acc[i])))
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_row(p: *mut u16, first: Self::F, second: Self::F) {
        for (i, x) in first.into_iter().chain(second).enumerate() {
            // SAFETY: see above.
            unsafe { p.add(i).write(rounded_to_bf16(x)) };
        }
    }
}
