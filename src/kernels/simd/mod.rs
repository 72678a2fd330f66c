//! Sixteen `f32` lanes, whatever the machine: the one vector type that all kernels are written for.
//!
//! The lane count is the same everywhere and reductions follow one fixed tree, so a kernel does the
//! same arithmetic on every instruction set that has a fused multiply-add.
//!
//! Kernels use vectors in plain loops and `#[inline(always)]` functions, never in closures. A closure is
//! compiled without the instruction set of the function around it; where it is not inlined (as in
//! `array::map` and `array::from_fn`), every vector operation in it becomes a call, and the kernel ten
//! times slower.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bytes;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

use half::{bf16, f16};

use super::isa::Isa;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use bytes::{ByteDot, ByteDotTask, dispatch_bytes};

/// Lanes of a vector.
pub(super) const LANES: usize = 16;
/// Bytes of a cache line, as [`Simd::prefetch`] brings it.
pub(super) const CACHE_LINE: usize = 64;

/// The operations of one instruction set.
///
/// # Safety
/// All functions need the instruction set to be present, which [`dispatch`] makes sure of, and to be
/// inlined into a function compiled for it. Loads read, and stores write, sixteen elements at the
/// pointer unless said otherwise; pointers need no alignment beyond their type's.
pub(super) trait Simd: Copy + 'static {
    /// Sixteen `f32`.
    type F: Copy;

    /// The most vectors of sums that a micro-kernel keeps in registers.
    const SUMS: usize;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, v: Self::F);
    unsafe fn load_f16(p: *const f16) -> Self::F;
    unsafe fn load_bf16(p: *const bf16) -> Self::F;
    /// Rounds to nearest even; values beyond the range of `f16` become its largest.
    unsafe fn store_f16(p: *mut f16, v: Self::F);
    /// Rounds to nearest even.
    unsafe fn store_bf16(p: *mut bf16, v: Self::F);
    /// Sixteen signed bytes.
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self::F {
        let mut lanes = [0.0f32; LANES];
        for (i, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: promised by the caller.
            *lane = f32::from(unsafe { *p.add(i) });
        }
        // SAFETY: the array has sixteen elements.
        unsafe { Self::load(lanes.as_ptr()) }
    }
    /// Sixteen whole numbers between -128 and 127 as bytes; others, and what is not a number, as any byte.
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::F) {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the array has sixteen elements, and so has `p`, as the caller promises.
        unsafe {
            Self::store(lanes.as_mut_ptr(), v);
            for (i, &lane) in lanes.iter().enumerate() {
                *p.add(i) = lane as i8;
            }
        }
    }
    /// Asks for the cache line at `p`, which may be any address, to be brought close. Changes no result.
    unsafe fn prefetch<T>(p: *const T);
    /// As [`Self::prefetch`], but only as close as the second-level cache, where there is a choice.
    #[inline(always)]
    unsafe fn prefetch_far<T>(p: *const T) {
        // SAFETY: promised by the caller.
        unsafe { Self::prefetch(p) }
    }
    /// The first (`even`) and second (`odd`) numbers of sixteen pairs.
    unsafe fn split_pairs(p: *const u32) -> (Self::F, Self::F);

    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` where one of them is not a number.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where one of them is not a number.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest whole number, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// `a · 2^n` for whole `n` from -126 to 127.
    unsafe fn scale_by_power(a: Self::F, n: Self::F) -> Self::F;
    /// `a` where `x >= limit` or `x` is not a number, else 0.
    unsafe fn zero_below(a: Self::F, x: Self::F, limit: f32) -> Self::F;

    /// The sum of all lanes, by halves: lane i with lane i+8, then i+4, i+2, i+1.
    #[inline(always)]
    unsafe fn sum(v: Self::F) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the array has sixteen elements.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn max_lane(v: Self::F) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: the array has sixteen elements.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// `e^x`, relative error below 2e-7; exactly 0 below -87.3 (so also at minus infinity).
    ///
    /// `x = n·ln 2 + r` with the two-part constant of Cody and Waite, and the polynomial for `e^r`
    /// of Cephes' `expf` (Moshier).
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        const LOWEST: f32 = -87.3;
        // SAFETY: the caller's promises are this function's own.
        unsafe {
            // In this operand order a NaN passes.
            let clamped = Self::min(Self::splat(88.0), Self::max(Self::splat(LOWEST), x));
            let n = Self::round(Self::mul(clamped, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::fma(n, Self::splat(-0.693_359_4), clamped);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            p = Self::fma(p, r, Self::splat(1.398_199_9e-3));
            p = Self::fma(p, r, Self::splat(8.333_452e-3));
            p = Self::fma(p, r, Self::splat(4.166_579_6e-2));
            p = Self::fma(p, r, Self::splat(1.666_666_5e-1));
            p = Self::fma(p, r, Self::splat(5.0e-1));
            let p = Self::fma(Self::mul(r, r), p, Self::add(r, Self::splat(1.0)));
            Self::zero_below(Self::scale_by_power(p, n), x, LOWEST)
        }
    }
}

/// An instruction set with the dot product of `bf16` pairs.
pub(super) trait Bf16Dot: Simd {
    /// Sixteen pairs of `bf16`.
    type Pairs: Copy;
    /// # Safety
    /// As [`Simd`].
    unsafe fn load_pairs(p: *const u32) -> Self::Pairs;
    /// `acc + even(w)·even(x) + odd(w)·odd(x)` with one pair `x` for all lanes.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn dot_pairs(acc: Self::F, w: Self::Pairs, x: u32) -> Self::F;
    /// Stores sixteen and sixteen numbers as 32 `bf16` in a row, rounded to nearest even; numbers too small for
    /// the usual precision become zero.
    ///
    /// # Safety
    /// As [`Simd`].
    #[cfg(target_arch = "x86_64")]
    unsafe fn store_row(p: *mut u16, first: Self::F, second: Self::F);
}

/// A piece of work written over [`Bf16Dot`].
pub(super) trait Bf16DotTask {
    /// Must be `#[inline(always)]`.
    ///
    /// # Safety
    /// As [`SimdTask::run`].
    unsafe fn run<S: Bf16Dot>(self);
}

/// Runs `task` with the machine's `bf16` dot product, or on its scalar twin for any other set.
///
/// # Safety
/// `isa` is one of [`Isa::available`], and what the task itself asks for.
pub(super) unsafe fn dispatch_bf16<T: Bf16DotTask>(isa: Isa, task: T) {
    // SAFETY: promised by the caller.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Amx => avx512::run_bf16(task),
            _ => task.run::<scalar::Scalar>(),
        }
    }
}

/// A piece of work written over [`Simd`].
pub(super) trait SimdTask {
    type Output;
    /// Must be `#[inline(always)]`, and so must everything generic that it calls.
    ///
    /// # Safety
    /// `S` is present on this machine, and what the task's own documentation says.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Runs `task` compiled for `isa`.
///
/// # Safety
/// `isa` is one of [`Isa::available`], and what the task itself asks for.
pub(super) unsafe fn dispatch<T: SimdTask>(isa: Isa, task: T) -> T::Output {
    // SAFETY: promised by the caller.
    unsafe {
        match isa {
            Isa::Scalar => task.run::<scalar::Scalar>(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::run(task),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => avx512::run(task),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDot => neon::run(task),
        }
    }
}

/// Rounds to nearest even within the range of `f16`: larger values become its largest.
#[inline(always)]
pub(super) fn saturating_f16(x: f32) -> f16 {
    f16::from_f32(if x.is_nan() {
        x
    } else {
        x.clamp(-65504.0, 65504.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `e^x` of sixteen numbers on an instruction set.
    fn exp_on(isa: Isa, x: [f32; LANES]) -> [f32; LANES] {
        struct Exp([f32; LANES]);
        impl SimdTask for Exp {
            type Output = [f32; LANES];
            #[inline(always)]
            unsafe fn run<S: Simd>(mut self) -> [f32; LANES] {
                // SAFETY: the array has sixteen elements.
                unsafe {
                    let e = S::exp(S::load(self.0.as_ptr()));
                    S::store(self.0.as_mut_ptr(), e);
                }
                self.0
            }
        }
        // SAFETY: the tests pass available sets.
        unsafe { dispatch(isa, Exp(x)) }
    }

    /// Numbers that a conversion could get wrong: every exponent, halves of a last place, the edges of `f16`.
    fn hard_numbers() -> Vec<f32> {
        let mut numbers = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        numbers.extend([65_504.0, 65_519.9, 65_520.0, 1e6, f32::MAX]);
        for exponent in 0..255u32 {
            for mantissa in [
                0, 1, 0x7f_ffff, 0xfff, 0x1000, 0x1001, 0x3000, 0x7fff, 0x8000, 0x8001, 0x1_8000,
            ] {
                let number = f32::from_bits(exponent << 23 | mantissa);
                numbers.extend([number, -number]);
            }
        }
        numbers.resize(numbers.len().next_multiple_of(LANES), 1.0);
        numbers
    }

    /// What the conversions of an instruction set make of sixteen numbers: stored and loaded again as `f16`, as
    /// `bf16` and as whole numbers in bytes, and their largest.
    #[derive(Debug)]
    struct Converted {
        f16: ([u16; LANES], [f32; LANES]),
        bf16: ([u16; LANES], [f32; LANES]),
        bytes: ([i8; LANES], [f32; LANES]),
        largest: f32,
        sum: f32,
    }

    struct Convert([f32; LANES]);

    impl SimdTask for Convert {
        type Output = Converted;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Converted {
            let mut to = Converted {
                f16: ([0; LANES], [0.0; LANES]),
                bf16: ([0; LANES], [0.0; LANES]),
                bytes: ([0; LANES], [0.0; LANES]),
                largest: 0.0,
                sum: 0.0,
            };
            // SAFETY: all arrays have sixteen elements.
            unsafe {
                let v = S::load(self.0.as_ptr());
                S::store_f16(to.f16.0.as_mut_ptr().cast(), v);
                S::store(to.f16.1.as_mut_ptr(), S::load_f16(to.f16.0.as_ptr().cast()));
                S::store_bf16(to.bf16.0.as_mut_ptr().cast(), v);
                S::store(
                    to.bf16.1.as_mut_ptr(),
                    S::load_bf16(to.bf16.0.as_ptr().cast()),
                );
                let limit = |x| S::splat(x);
                let whole = S::round(S::max(limit(-128.0), S::min(limit(127.0), v)));
                S::store_i8(to.bytes.0.as_mut_ptr(), whole);
                S::store(to.bytes.1.as_mut_ptr(), S::load_i8(to.bytes.0.as_ptr()));
                to.largest = S::max_lane(v);
                to.sum = S::sum(v);
            }
            to
        }
    }

    #[test]
    fn conversions_are_the_same_on_every_instruction_set() {
        let same = |a: &[f32], b: &[f32]| {
            a.iter()
                .zip(b)
                .all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan())
        };
        for isa in Isa::available() {
            for numbers in hard_numbers().chunks_exact(LANES) {
                let mut sixteen = [0.0; LANES];
                sixteen.copy_from_slice(numbers);
                // SAFETY: the set is available.
                let (twin, found) = unsafe {
                    (
                        dispatch(Isa::Scalar, Convert(sixteen)),
                        dispatch(isa, Convert(sixteen)),
                    )
                };
                let what = format!("{isa:?} of {numbers:?}: {found:?} instead of {twin:?}");
                let numeric = !numbers.iter().any(|x| x.is_nan());
                assert!(same(&found.f16.1, &twin.f16.1), "{what}");
                assert!(same(&found.bf16.1, &twin.bf16.1), "{what}");
                if numeric {
                    assert_eq!(found.f16.0, twin.f16.0, "{what}");
                    assert_eq!(found.bf16.0, twin.bf16.0, "{what}");
                    assert_eq!(found.bytes.0, twin.bytes.0, "{what}");
                    assert!(same(&found.bytes.1, &twin.bytes.1), "{what}");
                }
                assert_eq!(found.largest, twin.largest, "{what}");
                assert!(same(&[found.sum], &[twin.sum]), "{what}");
            }
        }
    }

    #[test]
    fn the_exponential_is_close_and_the_same_on_every_instruction_set() {
        for isa in Isa::available() {
            for step in 0..20_000 {
                let x: [f32; LANES] = std::array::from_fn(|lane| {
                    -87.2 + 0.008_7 * (step as f32 + lane as f32 / 16.0)
                });
                for (x, e) in x.into_iter().zip(exp_on(isa, x)) {
                    let expected = f64::from(x.min(88.0)).exp();
                    let error = (f64::from(e) - expected).abs() / expected;
                    assert!(error < 2e-7, "{isa:?}: e^{x} is {e}, not {expected}");
                }
            }
            let mut edges = [0.0; LANES];
            edges[1] = f32::NEG_INFINITY;
            edges[2] = -87.4;
            edges[3] = f32::NAN;
            edges[4] = -1e30;
            let e = exp_on(isa, edges);
            assert_eq!((e[0], e[1], e[2], e[4]), (1.0, 0.0, 0.0, 0.0), "{isa:?}");
            assert!(e[3].is_nan(), "{isa:?}");
        }
    }
}
