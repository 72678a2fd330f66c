//! Blocks of keys and values in the order in which matrix tiles take them: attention reads them in place.
//!
//! Numbers are `bf16`, two to a word. A tile of keys holds sixteen keys in 32 dimensions, a word two
//! dimensions of a key; a tile of values holds 32 keys in sixteen dimensions, a word two keys in a
//! dimension:
//!
//! ```text
//! keys    [block][head][sixteen keys][32 dimensions][pair of dimensions][key]
//! values  [block][head][32 keys][sixteen dimensions][pair of keys][dimension]
//! ```
//!
//! Tiles of values are multiplied whole, also where only some of their keys are seen: the others weigh
//! nothing, which is as good as not being there as long as they are finite. So values always are: where
//! one is not, zeros are stored, and the key becomes what is not a number, for those to find who see it.

use half::bf16;

use super::{KvLayout, KvSlot, load_part};
use crate::kernels::SharedMut;
use crate::kernels::aligned::AlignedBuffer;
use crate::kernels::simd::{LANES, Simd};

/// Words of a tile: sixteen rows of as many.
pub(in crate::kernels) const TILE_WORDS: usize = LANES * LANES;
/// Dimensions of a tile of keys, and keys of a tile of values.
pub(in crate::kernels) const TILE_STEP: usize = 2 * LANES;

/// Where tiles lie.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels) struct TileOrder {
    kv_heads: usize,
    /// Tiles of sixteen keys, one behind the other.
    key_tiles: usize,
    /// Tiles of 32 values, one behind the other.
    value_tiles: usize,
    block_size: usize,
}

impl TileOrder {
    pub(in crate::kernels) fn of(layout: &KvLayout) -> Self {
        Self {
            kv_heads: layout.kv_heads,
            key_tiles: layout.head_dim.div_ceil(TILE_STEP),
            value_tiles: layout.padded_dim() / LANES,
            block_size: layout.block_size,
        }
    }

    /// Words from sixteen keys to the next.
    pub(in crate::kernels) fn key_words(self) -> usize {
        self.key_tiles * TILE_WORDS
    }

    /// Words from 32 values to the next.
    pub(in crate::kernels) fn value_words(self) -> usize {
        self.value_tiles * TILE_WORDS
    }

    fn key_head(self) -> usize {
        self.block_size / LANES * self.key_words()
    }

    fn value_head(self) -> usize {
        self.block_size / TILE_STEP * self.value_words()
    }

    /// Where the tiles of the sixteen keys begin that the slot is one of.
    pub(in crate::kernels) fn keys_of(self, at: KvSlot, head: usize) -> usize {
        let block = at.block.0 as usize * self.kv_heads + head;
        block * self.key_head() + at.slot as usize / LANES * self.key_words()
    }

    /// Where the tiles of the 32 values begin that the slot is one of.
    pub(in crate::kernels) fn values_of(self, at: KvSlot, head: usize) -> usize {
        let block = at.block.0 as usize * self.kv_heads + head;
        block * self.value_head() + at.slot as usize / TILE_STEP * self.value_words()
    }

    /// The word, and whether its upper half, of a key's dimension.
    fn key(self, at: KvSlot, head: usize, dimension: usize) -> (usize, bool) {
        let tile = self.keys_of(at, head) + dimension / TILE_STEP * TILE_WORDS;
        let pair = dimension % TILE_STEP / 2;
        let word = tile + pair * LANES + at.slot as usize % LANES;
        (word, dimension % 2 == 1)
    }

    /// The same of a value's.
    fn value(self, at: KvSlot, head: usize, dimension: usize) -> (usize, bool) {
        let tile = self.values_of(at, head) + dimension / LANES * TILE_WORDS;
        let pair = at.slot as usize % TILE_STEP / 2;
        (tile + pair * LANES + dimension % LANES, at.slot % 2 == 1)
    }
}

/// The blocks of one layer.
pub(in crate::kernels) struct TileBlocks {
    order: TileOrder,
    pub(in crate::kernels) keys: AlignedBuffer<u32>,
    pub(in crate::kernels) values: AlignedBuffer<u32>,
}

impl TileBlocks {
    pub(super) fn new(layout: &KvLayout, blocks: usize) -> Self {
        let order = TileOrder::of(layout);
        let heads = blocks * layout.kv_heads;
        Self {
            order,
            keys: AlignedBuffer::zeros(heads * order.key_head()),
            // Products take four tiles of values at a time, and may find fewer behind the last.
            values: AlignedBuffer::zeros(heads * order.value_head() + 3 * TILE_WORDS),
        }
    }

    /// Elements of one block, keys and values of all heads.
    pub(super) fn block_elements(layout: &KvLayout) -> usize {
        let order = TileOrder::of(layout);
        2 * layout.kv_heads * (order.key_head() + order.value_head())
    }

    /// What rows are written to.
    pub(super) fn target(&mut self) -> TileTarget {
        TileTarget {
            order: self.order,
            keys: SharedMut::new(&mut self.keys),
            values: SharedMut::new(&mut self.values),
        }
    }

    /// Reads one head's key and value.
    pub(super) fn read(&self, at: KvSlot, head: usize, key: &mut [f32], value: &mut [f32]) {
        let number = |words: &[u32], (word, upper): (usize, bool)| {
            let bits = words[word] >> if upper { 16 } else { 0 };
            bf16::from_bits(bits as u16).to_f32()
        };
        for (dimension, x) in key.iter_mut().enumerate() {
            *x = number(&self.keys, self.order.key(at, head, dimension));
        }
        for (dimension, x) in value.iter_mut().enumerate() {
            *x = number(&self.values, self.order.value(at, head, dimension));
        }
    }

    /// Copies the first `tokens` positions of a block, and whatever else is in their tiles: nobody sees it
    /// before it is written.
    pub(super) fn copy(&mut self, layout: &KvLayout, from: KvSlot, to: KvSlot, tokens: usize) {
        let order = self.order;
        let key_words = tokens.div_ceil(LANES) * order.key_words();
        let value_words = tokens.div_ceil(TILE_STEP) * order.value_words();
        for head in 0..layout.kv_heads {
            let start = order.keys_of(from, head);
            self.keys
                .copy_within(start..start + key_words, order.keys_of(to, head));
            let start = order.values_of(from, head);
            self.values
                .copy_within(start..start + value_words, order.values_of(to, head));
        }
    }
}

/// Where rows are written, by several threads.
#[derive(Clone, Copy)]
pub(super) struct TileTarget {
    order: TileOrder,
    keys: SharedMut<u32>,
    values: SharedMut<u32>,
}

impl TileTarget {
    /// Stores one head's key and value.
    ///
    /// # Safety
    /// The set is present; the slot is inside the storage, and nobody else writes its block.
    #[inline(always)]
    pub(super) unsafe fn write<S: Simd>(self, at: KvSlot, head: usize, key: &[f32], value: &[f32]) {
        let (key_lane, value_half) = (at.slot as usize % LANES, 16 * (at.slot % 2));
        let keys = self.order.keys_of(at, head) + key_lane;
        let value_pair = at.slot as usize % TILE_STEP / 2;
        let values = self.order.values_of(at, head) + value_pair * LANES;
        let mut is_finite = true;
        for (part, value) in value.chunks(LANES).enumerate() {
            // SAFETY: the set is present; the word of each dimension is the slot's, which is inside.
            unsafe {
                let rounded = round::<S>(value);
                is_finite &= rounded.iter().all(|bits| bits & 0x7f80 != 0x7f80);
                let words = self.values.slice(values + part * TILE_WORDS, LANES);
                for (word, &bits) in words.iter_mut().zip(&rounded) {
                    *word = *word & !(0xffff << value_half) | u32::from(bits) << value_half;
                }
            }
        }
        for (part, key) in key.chunks(LANES).enumerate() {
            // SAFETY: as above.
            unsafe {
                let rounded = round::<S>(key);
                // Half a tile of pairs, one below the other.
                let first = keys + part * LANES / 2 * LANES;
                for (pair, bits) in rounded.chunks_exact(2).enumerate() {
                    *self.keys.at(first + pair * LANES) =
                        u32::from(bits[0]) | u32::from(bits[1]) << 16;
                }
            }
        }
        if !is_finite {
            // SAFETY: as above.
            unsafe {
                for part in 0..value.len().div_ceil(LANES) {
                    for word in self.values.slice(values + part * TILE_WORDS, LANES) {
                        *word &= !(0xffff << value_half);
                    }
                }
                *self.keys.at(keys) = u32::from(bf16::NAN.to_bits());
            }
        }
    }
}

/// Sixteen numbers, or fewer with zeros behind them, as `bf16`.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
unsafe fn round<S: Simd>(numbers: &[f32]) -> [u16; LANES] {
    let mut rounded = [bf16::ZERO; LANES];
    // SAFETY: the array has sixteen elements; the set is present, as the caller promises.
    unsafe { S::store_bf16(rounded.as_mut_ptr(), load_part::<S>(numbers)) };
    rounded.map(bf16::to_bits)
}
