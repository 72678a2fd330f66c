//! Dot products of bytes: what quantized weights are multiplied with.

use super::{Isa, LANES, Simd, scalar};

/// An instruction set with dot products of four bytes in each of sixteen lanes.
///
/// # Safety
/// As [`Simd`]; loads read what the function says.
pub(in crate::kernels) trait ByteDot: Simd {
    /// Sixteen lanes of four bytes or two 16-bit numbers.
    type Bytes: Copy;
    /// Sixteen `i32`.
    type I: Copy;

    /// The most rows times panels of sixteen outputs that a kernel has: its sums stay in registers.
    const TILE: usize;
    /// As [`Self::TILE`], with four sums each.
    const FOUR_PARTS: usize;

    /// 64 bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::Bytes;
    /// The lower four bits of each byte.
    unsafe fn low_nibbles(v: Self::Bytes) -> Self::Bytes;
    /// The upper four bits of each byte.
    unsafe fn high_nibbles(v: Self::Bytes) -> Self::Bytes;
    /// What the bytes of [`Self::scaled_high_nibbles`] are multiples of: 1 or 16.
    const HIGH_NIBBLES: f32 = 1.0;
    /// The upper four bits of each byte, as they are cheapest to have.
    #[inline(always)]
    unsafe fn scaled_high_nibbles(v: Self::Bytes) -> Self::Bytes {
        // SAFETY: promised by the caller.
        unsafe { Self::high_nibbles(v) }
    }
    /// Bits `n` and `n + 1` of each byte as bits 4 and 5.
    unsafe fn two_bits_up(v: Self::Bytes, n: u32) -> Self::Bytes;
    /// Bit `n` of each byte as bit 4.
    unsafe fn one_bit_up(v: Self::Bytes, n: u32) -> Self::Bytes;
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// 32 unsigned bytes as 16-bit numbers.
    unsafe fn widen_bytes(p: *const u8) -> Self::Bytes;

    unsafe fn splat_i32(x: i32) -> Self::I;
    /// `acc + Σ wᵢ·xᵢ` over the four bytes of each lane, `w` unsigned and below 128 or of
    /// [`Self::scaled_high_nibbles`], `x` signed and the same in all lanes.
    unsafe fn dot_bytes(acc: Self::I, w: Self::Bytes, x: u32) -> Self::I;
    /// What sums of [`Self::dot_centred`] begin with: `offset` is −128 times the sum of all their `x`.
    #[inline(always)]
    unsafe fn start_centred(offset: i32) -> Self::I {
        // SAFETY: promised by the caller.
        unsafe { Self::splat_i32(offset) }
    }
    /// As [`Self::dot_bytes`] with any byte `w`, which stands for `w − 128`. Part of what that takes may be done
    /// by [`Self::start_centred`].
    #[inline(always)]
    unsafe fn dot_centred(acc: Self::I, w: Self::Bytes, x: u32) -> Self::I {
        // SAFETY: promised by the caller. All sets that have no function of their own take any byte.
        unsafe { Self::dot_bytes(acc, w, x) }
    }
    /// `acc + w₀·x₀ + w₁·x₁` over the two signed 16-bit numbers of each lane, `x` the same in all lanes.
    unsafe fn dot_words(acc: Self::I, w: Self::Bytes, x: u32) -> Self::I;
    unsafe fn to_f32(v: Self::I) -> Self::F;
    /// Of whole numbers within 2²⁴.
    unsafe fn to_i32(v: Self::F) -> Self::I;
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I;
    /// What sums for [`Self::scaled`] begin with.
    const LIFT: i32 = 0;
    /// What [`Self::scaled`] asks for beside a scale, which has at most sixteen bits.
    #[inline(always)]
    unsafe fn lift(_scale: Self::F) -> Self::F {
        // SAFETY: promised by the caller.
        unsafe { Self::splat(0.0) }
    }
    /// `(v − LIFT) · scale`, rounded once; the difference is within 2²².
    #[inline(always)]
    unsafe fn scaled(v: Self::I, scale: Self::F, _lift: Self::F) -> Self::F {
        // SAFETY: promised by the caller.
        unsafe { Self::mul(Self::to_f32(v), scale) }
    }
    /// Sixteen unsigned bytes.
    unsafe fn load_u8(p: *const u8) -> Self::F;
}

/// A piece of work written over [`ByteDot`].
pub(in crate::kernels) trait ByteDotTask {
    /// Must be `#[inline(always)]`, and so must everything generic that it calls.
    ///
    /// # Safety
    /// As [`super::SimdTask::run`].
    unsafe fn run<S: ByteDot>(self);
}

/// Runs `task` with the machine's byte dot product, or on its scalar twin for any other set.
///
/// # Safety
/// `isa` is one of [`Isa::available`], and what the task itself asks for.
pub(in crate::kernels) unsafe fn dispatch_bytes<T: ByteDotTask>(isa: Isa, task: T) {
    // SAFETY: promised by the caller; the byte instructions are there as `has_byte_dot` has looked.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx if isa.has_byte_dot() => {
                super::avx512::run_bytes(task)
            }
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => super::neon::run_bytes(task),
            _ => task.run::<scalar::Scalar>(),
        }
    }
}

#[inline(always)]
fn each<T>(f: impl Fn(usize) -> T) -> [T; LANES] {
    std::array::from_fn(f)
}

// SAFETY of all bodies: pointers cover what the trait says.
impl ByteDot for scalar::Scalar {
    type Bytes = [u32; LANES];
    type I = [i32; LANES];
    const TILE: usize = 1;
    const FOUR_PARTS: usize = 1;

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::Bytes {
        // SAFETY: see above.
        each(|i| u32::from_le_bytes(unsafe { p.add(4 * i).cast::<[u8; 4]>().read() }))
    }
    #[inline(always)]
    unsafe fn low_nibbles(v: Self::Bytes) -> Self::Bytes {
        each(|i| v[i] & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn high_nibbles(v: Self::Bytes) -> Self::Bytes {
        each(|i| (v[i] >> 4) & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn two_bits_up(v: Self::Bytes, n: u32) -> Self::Bytes {
        each(|i| ((v[i] >> n) & 0x0303_0303) << 4)
    }
    #[inline(always)]
    unsafe fn one_bit_up(v: Self::Bytes, n: u32) -> Self::Bytes {
        each(|i| ((v[i] >> n) & 0x0101_0101) << 4)
    }
    #[inline(always)]
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        each(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn widen_bytes(p: *const u8) -> Self::Bytes {
        // SAFETY: see above.
        each(|i| unsafe { u32::from(*p.add(2 * i)) | u32::from(*p.add(2 * i + 1)) << 16 })
    }
    #[inline(always)]
    unsafe fn splat_i32(x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: Self::I, w: Self::Bytes, x: u32) -> Self::I {
        let x = x.to_le_bytes().map(|x| i32::from(x as i8));
        each(|i| {
            let w = w[i].to_le_bytes().map(i32::from);
            acc[i] + w[0] * x[0] + w[1] * x[1] + w[2] * x[2] + w[3] * x[3]
        })
    }
    #[inline(always)]
    unsafe fn dot_words(acc: Self::I, w: Self::Bytes, x: u32) -> Self::I {
        let half = |word: u32, which: u32| i32::from((word >> (16 * which)) as i16);
        each(|i| acc[i] + half(w[i], 0) * half(x, 0) + half(w[i], 1) * half(x, 1))
    }
    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        each(|i| v[i] as f32)
    }
    #[inline(always)]
    unsafe fn to_i32(v: Self::F) -> Self::I {
        each(|i| v[i] as i32)
    }
    #[inline(always)]
    unsafe fn add_i32(a: Self::I, b: Self::I) -> Self::I {
        each(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        // SAFETY: see above.
        each(|i| f32::from(unsafe { *p.add(i) }))
    }
}
