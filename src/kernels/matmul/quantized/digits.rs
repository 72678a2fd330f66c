//! Weights of K-quants as bytes for matrix tiles.
//!
//! A weight is `d`, which 256 inputs share, times a whole number: the quant times the scale of its part. That number has
//! ten to thirteen bits, so it goes into two bytes, a lower and an upper digit. Products of both digits and their sums
//! over the 256 inputs are exact.

use std::arch::x86_64::*;

use half::f16;

use super::formats::{Format, HALVES, Q4K, Q5K, Q6K, VECTOR, k6, k45};
use crate::kernels::amx::TILE_BYTES;
use crate::kernels::simd::{Avx512, ByteDot, LANES, Simd};

/// Vectors of a [`Digits::head`].
pub(super) const HEAD: usize = 6;
/// Steps of 64 inputs of a block.
pub(super) const STEPS: usize = 4;
/// Parts in which a block is unpacked.
pub(super) const QUARTERS: usize = 4;
/// Bytes from the tiles of one step to those of the next: two digits of two panels.
pub(super) const STEP_BYTES: usize = 4 * TILE_BYTES;

/// What a panel block's sums are scaled with.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(super) struct Head(pub(super) [[f32; LANES]; HEAD]);

/// The same in registers.
pub(super) struct Loaded([__m512; HEAD]);

impl Head {
    /// # Safety
    /// As [`Digits`].
    #[inline(always)]
    pub(super) unsafe fn load(&self) -> Loaded {
        // SAFETY: promised by the caller.
        unsafe {
            Loaded([
                Avx512::load(self.0[0].as_ptr()),
                Avx512::load(self.0[1].as_ptr()),
                Avx512::load(self.0[2].as_ptr()),
                Avx512::load(self.0[3].as_ptr()),
                Avx512::load(self.0[4].as_ptr()),
                Avx512::load(self.0[5].as_ptr()),
            ])
        }
    }
}

/// `acc + w₀·x₀ + w₁·x₁` over the two signed 16-bit numbers of each lane, `x` the same in all lanes and read by the same
/// instruction.
///
/// # Safety
/// As [`Digits`]; `x` can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_words(acc: __m512i, w: __m512, x: *const u32) -> __m512i {
    let mut acc = acc;
    // SAFETY: the instruction reads registers and the word that the caller promises.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {acc}, {w}, dword ptr [{x}]{{1to16}}",
            acc = inout(zmm_reg) acc,
            w = in(zmm_reg) w,
            x = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    acc
}

/// A K-quant that is unpacked to digits.
///
/// # Safety
/// All functions need AVX-512 F, BW, VL, DQ and VNNI, and to be inlined into a function compiled for them. `panel` covers
/// a panel block.
pub(super) trait Digits: Format {
    /// From so many rows on tiles are worth their unpacking, which takes longest beside what the byte dot product
    /// takes for `Q4_K`, almost as it is.
    const ROWS: usize;
    /// The upper digit is a signed byte, or an unsigned one. The lower one is unsigned.
    const SIGNED: bool;

    /// The sum of both digits' sums.
    unsafe fn combine(lower: __m512i, upper: __m512i) -> __m512i;
    /// Prepares what [`Self::finish`] takes besides sums.
    unsafe fn head(panel: *const u8, head: &mut Head);
    /// Unpacks a quarter of the block. `tiles` has, for each of the four steps of 64 inputs and [`STEP_BYTES`] apart, the
    /// panel's tile of lower and that of upper digits.
    unsafe fn unpack(panel: *const u8, quarter: usize, tiles: *mut u8);
    /// The product of sixteen outputs but for the scale of the activations, given the sum over all inputs. `pairs` are
    /// the sums of twice 32 activations, from one word to the next [`LANES`] words.
    unsafe fn finish(head: &Loaded, whole: __m512i, pairs: *const u32) -> __m512;
}

/// For [`spread`]: the places of the bytes, and zero (the upper bit) elsewhere.
const fn places(upper: bool) -> [u8; VECTOR] {
    let mut places = [0x80; VECTOR];
    let mut lane = 0;
    while lane < LANES {
        let first = 4 * lane + upper as usize;
        places[first] = lane as u8;
        places[first + 2] = lane as u8;
        lane += 1;
    }
    places
}

/// Each of sixteen bytes in both halves of its 32-bit lane: in their lower bytes, or in the upper ones.
///
/// # Safety
/// As [`Digits`]; there are sixteen bytes.
#[inline(always)]
unsafe fn spread<const UPPER: bool>(bytes: *const u8) -> __m512i {
    // SAFETY: promised by the caller; the places are a vector's.
    unsafe {
        let all = _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.cast()));
        let places = const { &places(UPPER) };
        _mm512_shuffle_epi8(all, _mm512_loadu_si512(places.as_ptr().cast()))
    }
}

/// Stores sixteen times four inputs: one row of a tile.
///
/// # Safety
/// As [`Digits`]; the tile has the row.
#[inline(always)]
unsafe fn store_row(tile: *mut u8, row: usize, v: __m512i) {
    // SAFETY: promised by the caller.
    unsafe { _mm512_store_si512(tile.add(row * VECTOR).cast(), v) }
}

/// `d`, `-dmin` and the minima.
///
/// # Safety
/// As [`Digits::head`].
#[inline(always)]
unsafe fn head_k45(panel: *const u8, head: &mut Head) {
    // SAFETY: promised by the caller.
    unsafe {
        let d = Avx512::load_f16(panel.add(k45::D).cast::<f16>());
        let d_min = Avx512::load_f16(panel.add(k45::D_MIN).cast::<f16>());
        Avx512::store(head.0[0].as_mut_ptr(), d);
        Avx512::store(
            head.0[1].as_mut_ptr(),
            Avx512::sub(Avx512::splat(0.0), d_min),
        );
        for pair in 0..4 {
            let minima = Avx512::widen_bytes(panel.add(k45::MINIMA + pair * HALVES));
            _mm512_store_si512(head.0[2 + pair].as_mut_ptr().cast(), minima);
        }
    }
}

/// As in [`super::micro`]: `d·sum − dmin·Σ minimum·(Σ x)`.
///
/// # Safety
/// As [`Digits::finish`].
#[inline(always)]
unsafe fn finish_k45(head: &Loaded, whole: __m512i, pairs: *const u32) -> __m512 {
    // SAFETY: promised by the caller.
    unsafe {
        let mut minima = Avx512::splat_i32(0);
        for pair in 0..4 {
            minima = dot_words(minima, head.0[2 + pair], pairs.add(pair * LANES));
        }
        let minimum = Avx512::mul(head.0[1], Avx512::to_f32(minima));
        Avx512::fma(head.0[0], Avx512::to_f32(whole), minimum)
    }
}

/// 64 inputs of `Q4_K` or `Q5_K`. Digits are products with the lower and the upper three bits of a scale: two fit into
/// each other's 16 bits without a carry.
///
/// # Safety
/// As [`Digits::unpack`].
#[inline(always)]
unsafe fn unpack_k45<const FIFTH: bool>(panel: *const u8, quarter: usize, tiles: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        let lower = tiles.add(quarter * STEP_BYTES);
        let upper = lower.add(TILE_BYTES);
        let scales = panel.add(k45::SCALES + 2 * quarter * LANES);
        let seven = _mm512_set1_epi16(7);
        let first = spread::<false>(scales);
        let (first_lower, first_upper) = (
            _mm512_and_si512(first, seven),
            _mm512_srli_epi16::<3>(first),
        );
        let second = spread::<false>(scales.add(LANES));
        let (second_lower, second_upper) = (
            _mm512_and_si512(second, seven),
            _mm512_srli_epi16::<3>(second),
        );
        for i in 0..8 {
            let both = Avx512::load_bytes(panel.add(k45::NIBBLES + (8 * quarter + i) * VECTOR));
            let mut low = Avx512::low_nibbles(both);
            let mut high = Avx512::high_nibbles(both);
            if FIFTH {
                let bits = Avx512::load_bytes(panel.add(k45::FIFTH + i * VECTOR));
                let bit = 2 * quarter as u32;
                low = Avx512::or(low, Avx512::one_bit_up(bits, bit));
                high = Avx512::or(high, Avx512::one_bit_up(bits, bit + 1));
            }
            store_row(lower, i, _mm512_mullo_epi16(low, first_lower));
            store_row(upper, i, _mm512_mullo_epi16(low, first_upper));
            store_row(lower, 8 + i, _mm512_mullo_epi16(high, second_lower));
            store_row(upper, 8 + i, _mm512_mullo_epi16(high, second_upper));
        }
    }
}

macro_rules! k45_digits {
    ($format:ty, $fifth:literal) => {
        // SAFETY of all bodies: promised by the caller.
        impl Digits for $format {
            const ROWS: usize = 24;
            const SIGNED: bool = false;

            #[inline(always)]
            unsafe fn combine(lower: __m512i, upper: __m512i) -> __m512i {
                // SAFETY: see above.
                unsafe { _mm512_add_epi32(lower, _mm512_slli_epi32::<3>(upper)) }
            }

            #[inline(always)]
            unsafe fn head(panel: *const u8, head: &mut Head) {
                // SAFETY: see above.
                unsafe { head_k45(panel, head) }
            }
            #[inline(always)]
            unsafe fn unpack(panel: *const u8, quarter: usize, tiles: *mut u8) {
                // SAFETY: see above.
                unsafe { unpack_k45::<$fifth>(panel, quarter, tiles) }
            }
            #[inline(always)]
            unsafe fn finish(head: &Loaded, whole: __m512i, pairs: *const u32) -> __m512 {
                // SAFETY: see above.
                unsafe { finish_k45(head, whole, pairs) }
            }
        }
    };
}
k45_digits!(Q4K, false);
k45_digits!(Q5K, true);

/// A part's scale as [`store_k6`] takes it.
#[derive(Clone, Copy)]
struct K6Scale {
    /// Signed bytes: the scale and zero, for the even inputs, and zero and the scale, for the odd ones.
    even: __m512i,
    odd: __m512i,
    /// 32 times the scale, as 16-bit numbers.
    offset: __m512i,
}

impl K6Scale {
    /// # Safety
    /// As [`Digits::unpack`]; there are sixteen bytes.
    #[inline(always)]
    unsafe fn load(scales: *const u8) -> Self {
        // SAFETY: promised by the caller.
        unsafe {
            let odd = spread::<true>(scales);
            Self {
                even: _mm512_srli_epi16::<8>(odd),
                odd,
                // The scale times 256, shifted back with its sign.
                offset: _mm512_srai_epi16::<3>(odd),
            }
        }
    }
}

/// Lower and upper bytes of `scale · (q − 32)`, as a row of each of two tiles.
///
/// # Safety
/// As [`Digits::unpack`]; `lower` and the tile behind it have the row.
#[inline(always)]
unsafe fn store_k6(q: __m512i, scale: K6Scale, lower: *mut u8, row: usize) {
    // SAFETY: promised by the caller.
    unsafe {
        let even = _mm512_sub_epi16(_mm512_maddubs_epi16(q, scale.even), scale.offset);
        let odd = _mm512_sub_epi16(_mm512_maddubs_epi16(q, scale.odd), scale.offset);
        // Each byte's neighbour.
        let swapped = _mm512_broadcast_i32x4(_mm_setr_epi8(
            1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14,
        ));
        let low = _mm512_mask_shuffle_epi8(even, 0xaaaa_aaaa_aaaa_aaaa, odd, swapped);
        let high = _mm512_mask_shuffle_epi8(odd, 0x5555_5555_5555_5555, even, swapped);
        store_row(lower, row, low);
        store_row(lower.add(TILE_BYTES), row, high);
    }
}

/// 32 inputs of each of two steps: half `HALF`, of which the parts `PART` and `PART + 2` share their nibbles' vectors.
///
/// # Safety
/// As [`Digits::unpack`].
#[inline(always)]
unsafe fn unpack_k6<const HALF: usize, const PART: usize>(panel: *const u8, tiles: *mut u8) {
    // SAFETY: promised by the caller.
    unsafe {
        let first = tiles.add(2 * HALF * STEP_BYTES);
        let second = first.add(STEP_BYTES);
        for eight in 0..2 {
            let scale =
                |part: usize| panel.add(k6::SCALES + (2 * (4 * HALF + part) + eight) * LANES);
            let first_scale = K6Scale::load(scale(PART));
            let second_scale = K6Scale::load(scale(PART + 2));
            for i in 4 * eight..4 * eight + 4 {
                let nibbles = panel.add(k6::nibbles(HALF, PART, i));
                let both = Avx512::load_bytes(nibbles);
                let bits = Avx512::load_bytes(panel.add(k6::pairs(HALF, i)));
                let low = Avx512::or(
                    Avx512::low_nibbles(both),
                    Avx512::two_bits_up(bits, 2 * PART as u32),
                );
                store_k6(low, first_scale, first, 8 * PART + i);
                let high = Avx512::or(
                    Avx512::high_nibbles(both),
                    Avx512::two_bits_up(bits, 2 * PART as u32 + 4),
                );
                store_k6(high, second_scale, second, 8 * PART + i);
            }
        }
    }
}

// SAFETY of all bodies: promised by the caller.
impl Digits for Q6K {
    const ROWS: usize = 12;
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn combine(lower: __m512i, upper: __m512i) -> __m512i {
        // SAFETY: see above.
        unsafe { _mm512_add_epi32(lower, _mm512_slli_epi32::<8>(upper)) }
    }

    #[inline(always)]
    unsafe fn head(panel: *const u8, head: &mut Head) {
        // SAFETY: see above.
        unsafe {
            let d = Avx512::load_f16(panel.add(k6::D).cast::<f16>());
            Avx512::store(head.0[0].as_mut_ptr(), d);
        }
    }
    #[inline(always)]
    unsafe fn unpack(panel: *const u8, quarter: usize, tiles: *mut u8) {
        // SAFETY: see above.
        unsafe {
            match quarter {
                0 => unpack_k6::<0, 0>(panel, tiles),
                1 => unpack_k6::<0, 1>(panel, tiles),
                2 => unpack_k6::<1, 0>(panel, tiles),
                _ => unpack_k6::<1, 1>(panel, tiles),
            }
        }
    }
    #[inline(always)]
    unsafe fn finish(head: &Loaded, whole: __m512i, _pairs: *const u32) -> __m512 {
        // SAFETY: see above.
        unsafe { Avx512::mul(head.0[0], Avx512::to_f32(whole)) }
    }
}
