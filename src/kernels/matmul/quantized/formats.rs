//! How the blocks of GGUF's types lie in panels of sixteen outputs.
//!
//! A panel block holds one block of inputs for sixteen outputs. Its quants are the blocks' own words of four
//! bytes, transposed: vector `v` holds word `v` of all sixteen outputs, so that one byte dot product takes
//! four inputs of sixteen outputs. The types are described in ggml's `ggml-common.h`.

use half::f16;

use crate::kernels::simd::LANES;

/// Bytes of a vector.
pub(super) const VECTOR: usize = 4 * LANES;

/// What activations a type is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    /// One scale for 256 inputs.
    Super,
    /// One scale for 32 inputs.
    Plain,
}

/// A type of blocks and how it is packed. The kernels are in [`super::micro`].
pub(super) trait Format: Copy + Send + Sync + 'static {
    /// Inputs of a block.
    const INPUTS: usize;
    /// Bytes of a block.
    const BLOCK: usize;
    /// Bytes of a panel block.
    const PANEL: usize;
    const ACTIVATION: Activation;
    /// So many blocks before their turn a panel's blocks are asked for: some 2 to 3 KB.
    const AHEAD: usize;

    /// Puts one output's block into its lane of a panel block.
    fn pack(block: &[u8], lane: usize, panel: &mut [u8]);
    /// One lane's weights as `f32`.
    fn read(panel: &[u8], lane: usize, out: &mut [f32]);
}

/// Copies words of four bytes into one lane of vectors that follow each other.
fn transpose(words: &[u8], lane: usize, vectors: &mut [u8]) {
    for (word, vector) in words.chunks_exact(4).zip(vectors.chunks_exact_mut(VECTOR)) {
        vector[4 * lane..4 * lane + 4].copy_from_slice(word);
    }
}

/// Byte `i` of the words that [`transpose`] put into a lane.
fn byte(vectors: &[u8], lane: usize, i: usize) -> u8 {
    vectors[i / 4 * VECTOR + 4 * lane + i % 4]
}

fn put_f16(bytes: &[u8], lane: usize, panel: &mut [u8]) {
    panel[2 * lane..2 * lane + 2].copy_from_slice(&bytes[..2]);
}

fn get_f16(panel: &[u8], lane: usize) -> f32 {
    f16::from_le_bytes([panel[2 * lane], panel[2 * lane + 1]]).to_f32()
}

/// Bytes of sixteen `f16`.
pub(super) const HALVES: usize = 2 * LANES;

/// Where the parts of a `Q4_K` or `Q5_K` panel block begin.
pub(super) mod k45 {
    use super::{HALVES, LANES, VECTOR};
    /// Sixteen `f16`: what the scales are multiplied with.
    pub(in super::super) const D: usize = 0;
    /// Sixteen `f16`: what the minima are multiplied with.
    pub(in super::super) const D_MIN: usize = HALVES;
    /// Eight times sixteen bytes: the scale of each 32 inputs.
    pub(in super::super) const SCALES: usize = 2 * HALVES;
    /// Four times sixteen pairs of bytes: the minima of twice 32 inputs.
    pub(in super::super) const MINIMA: usize = SCALES + 8 * LANES;
    /// Four times eight vectors: the lower nibbles of 32 inputs and the upper ones of the next 32.
    pub(in super::super) const NIBBLES: usize = MINIMA + 8 * LANES;
    /// `Q5_K`: eight vectors, bit `u` of each byte is the fifth bit in the `u`-th 32 inputs.
    pub(in super::super) const FIFTH: usize = NIBBLES + 32 * VECTOR;
}

/// The scales and minima of the eight parts, six bits each.
fn scales_and_minima(packed: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|part| {
        if part < 4 {
            (packed[part] & 63, packed[part + 4] & 63)
        } else {
            let (low, high) = (packed[part + 4], part - 4);
            (
                low & 15 | packed[high] >> 6 << 4,
                low >> 4 | packed[high + 4] >> 6 << 4,
            )
        }
    })
}

/// What `Q4_K` and `Q5_K` share: `d`, `dmin` and twelve bytes of scales.
fn pack_k_head(block: &[u8], lane: usize, panel: &mut [u8]) {
    put_f16(block, lane, &mut panel[k45::D..]);
    put_f16(&block[2..], lane, &mut panel[k45::D_MIN..]);
    for (part, (scale, minimum)) in scales_and_minima(&block[4..16]).into_iter().enumerate() {
        panel[k45::SCALES + part * LANES + lane] = scale;
        panel[k45::MINIMA + part / 2 * 2 * LANES + 2 * lane + part % 2] = minimum;
    }
}

/// One lane's weights of `Q4_K` or `Q5_K`, given the bits above the nibble.
fn read_k(panel: &[u8], lane: usize, out: &mut [f32], high: impl Fn(usize, usize) -> u8) {
    let (d, d_min) = (
        get_f16(&panel[k45::D..], lane),
        get_f16(&panel[k45::D_MIN..], lane),
    );
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let scale = f32::from(panel[k45::SCALES + part * LANES + lane]);
        let minimum = f32::from(panel[k45::MINIMA + part / 2 * 2 * LANES + 2 * lane + part % 2]);
        let nibbles = &panel[k45::NIBBLES + part / 2 * 8 * VECTOR..];
        for (i, out) in out.iter_mut().enumerate() {
            let nibble = byte(nibbles, lane, i) >> (4 * (part % 2)) & 15;
            *out = d * scale * f32::from(nibble | high(part, i)) - d_min * minimum;
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q4K;

impl Format for Q4K {
    const INPUTS: usize = 256;
    const BLOCK: usize = 144;
    const PANEL: usize = k45::FIFTH;
    const ACTIVATION: Activation = Activation::Super;
    const AHEAD: usize = 1;

    fn pack(block: &[u8], lane: usize, panel: &mut [u8]) {
        pack_k_head(block, lane, panel);
        transpose(&block[16..], lane, &mut panel[k45::NIBBLES..]);
    }

    fn read(panel: &[u8], lane: usize, out: &mut [f32]) {
        read_k(panel, lane, out, |_, _| 0);
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q5K;

impl Format for Q5K {
    const INPUTS: usize = 256;
    const BLOCK: usize = 176;
    const PANEL: usize = k45::FIFTH + 8 * VECTOR;
    const ACTIVATION: Activation = Activation::Super;
    const AHEAD: usize = 1;

    fn pack(block: &[u8], lane: usize, panel: &mut [u8]) {
        pack_k_head(block, lane, panel);
        transpose(&block[16..48], lane, &mut panel[k45::FIFTH..]);
        transpose(&block[48..], lane, &mut panel[k45::NIBBLES..]);
    }

    fn read(panel: &[u8], lane: usize, out: &mut [f32]) {
        let fifth = &panel[k45::FIFTH..];
        read_k(panel, lane, out, |part, i| {
            (byte(fifth, lane, i) >> part & 1) << 4
        });
    }
}

/// Where the parts of a `Q6_K` panel block begin.
pub(super) mod k6 {
    use super::{LANES, VECTOR};
    /// Sixteen `f16`, filled up to a vector.
    pub(in super::super) const D: usize = 0;
    /// Sixteen times sixteen signed bytes: the scale of each 16 inputs.
    pub(in super::super) const SCALES: usize = VECTOR;
    /// For each half of 128 inputs eight times three vectors, in the order in which a lone row takes them: the lower
    /// nibbles of four of the first 32 inputs and the upper ones of the third, the same of the second and the fourth, and
    /// two more bits of each of the four.
    const QUANTS: usize = SCALES + 16 * LANES;
    pub(in super::super) const END: usize = QUANTS + 48 * VECTOR;

    /// Where the `i`-th four inputs of each 32 of a half begin.
    const fn four(half: usize, i: usize) -> usize {
        QUANTS + (8 * half + i) * 3 * VECTOR
    }

    /// The `i`-th nibbles of the first and third 32 inputs of a half, or of the second and fourth.
    pub(in super::super) const fn nibbles(half: usize, second: usize, i: usize) -> usize {
        four(half, i) + second * VECTOR
    }

    /// The `i`-th bits above the nibbles of a half.
    pub(in super::super) const fn pairs(half: usize, i: usize) -> usize {
        four(half, i) + 2 * VECTOR
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q6K;

impl Format for Q6K {
    const INPUTS: usize = 256;
    const BLOCK: usize = 210;
    const PANEL: usize = k6::END;
    const ACTIVATION: Activation = Activation::Super;
    const AHEAD: usize = 1;

    fn pack(block: &[u8], lane: usize, panel: &mut [u8]) {
        for half in 0..2 {
            for i in 0..8 {
                for second in 0..2 {
                    let word = &block[64 * half + 32 * second + 4 * i..][..4];
                    transpose(word, lane, &mut panel[k6::nibbles(half, second, i)..]);
                }
                let word = &block[128 + 32 * half + 4 * i..][..4];
                transpose(word, lane, &mut panel[k6::pairs(half, i)..]);
            }
        }
        for (part, &scale) in block[192..208].iter().enumerate() {
            panel[k6::SCALES + part * LANES + lane] = scale;
        }
        put_f16(&block[208..], lane, &mut panel[k6::D..]);
    }

    fn read(panel: &[u8], lane: usize, out: &mut [f32]) {
        let d = get_f16(&panel[k6::D..], lane);
        for (input, out) in out.iter_mut().enumerate() {
            let (half, part, four, i) = (input / 128, input / 32 % 4, input / 4 % 8, input % 4);
            let nibbles = &panel[k6::nibbles(half, part % 2, four)..];
            let low = byte(nibbles, lane, i) >> (4 * (part / 2)) & 15;
            let high = byte(&panel[k6::pairs(half, four)..], lane, i) >> (2 * part) & 3;
            let scale = panel[k6::SCALES + input / 16 * LANES + lane] as i8;
            *out = d * f32::from(scale) * f32::from((low | high << 4) as i8 - 32);
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q8_0;

impl Format for Q8_0 {
    const INPUTS: usize = 32;
    const BLOCK: usize = 34;
    const PANEL: usize = HALVES + 8 * VECTOR;
    const ACTIVATION: Activation = Activation::Plain;
    const AHEAD: usize = 4;

    /// The quants get 128 added: the byte dot product takes the weights without sign.
    fn pack(block: &[u8], lane: usize, panel: &mut [u8]) {
        put_f16(block, lane, panel);
        let quants: [u8; 32] = std::array::from_fn(|i| block[2 + i] ^ 0x80);
        transpose(&quants, lane, &mut panel[HALVES..]);
    }

    fn read(panel: &[u8], lane: usize, out: &mut [f32]) {
        let d = get_f16(panel, lane);
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * f32::from((byte(&panel[HALVES..], lane, i) ^ 0x80) as i8);
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Q4_0;

impl Format for Q4_0 {
    const INPUTS: usize = 32;
    const BLOCK: usize = 18;
    const PANEL: usize = HALVES + 4 * VECTOR;
    const ACTIVATION: Activation = Activation::Plain;
    const AHEAD: usize = 8;

    fn pack(block: &[u8], lane: usize, panel: &mut [u8]) {
        put_f16(block, lane, panel);
        transpose(&block[2..], lane, &mut panel[HALVES..]);
    }

    fn read(panel: &[u8], lane: usize, out: &mut [f32]) {
        let d = get_f16(panel, lane);
        for (i, out) in out.iter_mut().enumerate() {
            let nibble = byte(&panel[HALVES..], lane, i % 16) >> (4 * (i / 16)) & 15;
            *out = d * (f32::from(nibble) - 8.0);
        }
    }
}
