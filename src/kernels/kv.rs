//! The keys and values of one layer in fixed-size blocks.
//!
//! Inside a block every KV head has its own part. Keys lie transposed (but see [`tiles`]), `[head_dim][slot]`, so that one
//! load brings the same dimension of sixteen keys and scores need no sum across lanes; values lie
//! `[slot][head_dim]` with the dimension rounded up to sixteen, zeros behind it. Scales, where the type has
//! them, lie likewise: `[part of the dimensions][slot]` for keys, `[slot][part]` for values.

pub(super) mod tiles;
mod write;

use half::{bf16, f16};

use super::KernelError;
use super::isa::Isa;
use super::simd::{LANES, Simd};
use crate::ids::BlockId;
use tiles::{TILE_STEP, TileBlocks};
pub use write::KvRows;

/// What a key or value is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    F32,
    F16,
    Bf16,
    /// [`Self::Bf16`] in the order in which matrix tiles take them, and products with them are computed on
    /// tiles, which rounds queries and weights likewise. Blocks have a multiple of 32 positions.
    Bf16Tiles,
    /// Bytes, with a scale in `f32` for every [`SCALED_DIMS`] dimensions of a key or value.
    Q8_0,
}

impl KvType {
    /// Whether [`Self::Bf16Tiles`] is possible with these kernels and blocks.
    pub fn has_tiles(isa: Isa, block_size: usize) -> bool {
        isa.has_tiles() && block_size.is_multiple_of(TILE_STEP)
    }

    /// Bytes of one number, without scales.
    fn size(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::F16 | KvType::Bf16 | KvType::Bf16Tiles => 2,
            KvType::Q8_0 => 1,
        }
    }
}

/// Dimensions that share a scale in [`KvType::Q8_0`].
pub(super) const SCALED_DIMS: usize = 32;

/// The most positions of a block.
const MAX_BLOCK: usize = 256;

/// The dimensions of one layer's KV storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Positions in a block: a power of two up to 256.
    pub block_size: usize,
    pub kind: KvType,
}

impl KvLayout {
    /// Bytes that one block takes in one layer, keys and values.
    pub fn block_bytes(&self) -> usize {
        if self.kind == KvType::Bf16Tiles {
            return TileBlocks::block_elements(self) * self.kind.size();
        }
        let scales = match self.kind {
            KvType::Q8_0 => 2 * self.scale_block() * size_of::<f32>(),
            _ => 0,
        };
        (self.key_block() + self.value_block()) * self.kind.size() + scales
    }

    /// Scales of a key or value of one head.
    pub(super) fn scales(&self) -> usize {
        self.head_dim.div_ceil(SCALED_DIMS)
    }

    /// Scales of one block's keys, or of its values, all heads.
    fn scale_block(&self) -> usize {
        self.kv_heads * self.scales() * self.block_size
    }

    /// Where the scales of one head's keys, or values, of a block begin.
    pub(super) fn scale_start(&self, block: BlockId, head: usize) -> usize {
        block.0 as usize * self.scale_block() + head * self.scales() * self.block_size
    }

    /// `head_dim` rounded up to whole vectors: the row length of a stored value.
    pub(super) fn padded_dim(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Elements of one block's keys, all heads.
    fn key_block(&self) -> usize {
        self.kv_heads * self.head_dim * self.block_size
    }

    /// Elements of one block's values, all heads.
    fn value_block(&self) -> usize {
        self.kv_heads * self.padded_dim() * self.block_size
    }

    /// Where one head's keys of a block begin.
    pub(super) fn key_start(&self, block: BlockId, head: usize) -> usize {
        block.0 as usize * self.key_block() + head * self.head_dim * self.block_size
    }

    /// Where one head's values of a block begin.
    pub(super) fn value_start(&self, block: BlockId, head: usize) -> usize {
        block.0 as usize * self.value_block() + head * self.padded_dim() * self.block_size
    }

    fn check(&self) -> Result<(), KernelError> {
        if !self.block_size.is_power_of_two() || self.block_size > MAX_BLOCK {
            return Err(KernelError::Shape(format!(
                "a block of {} positions: it must be a power of two up to {MAX_BLOCK}",
                self.block_size
            )));
        }
        if self.kind == KvType::Bf16Tiles && !self.block_size.is_multiple_of(TILE_STEP) {
            return Err(KernelError::Shape(format!(
                "a block of {} positions: matrix tiles take a multiple of {TILE_STEP}",
                self.block_size
            )));
        }
        if self.kind == KvType::Bf16Tiles && !cfg!(target_arch = "x86_64") {
            return Err(KernelError::Shape(
                "keys and values for matrix tiles on a processor without any".to_owned(),
            ));
        }
        if self.kv_heads == 0 || self.head_dim == 0 {
            return Err(KernelError::Shape(
                "attention without heads or dimensions".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Where a row's key and value go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSlot {
    pub block: BlockId,
    /// The position within the block.
    pub slot: u32,
}

/// A number type that keys and values are stored as.
pub(super) trait KvElement: Copy + Default + Send + Sync + 'static {
    /// Whether numbers have to be multiplied with a scale.
    const SCALED: bool = false;

    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
    /// # Safety
    /// As [`Simd::store`].
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F);
    fn to_f32(self) -> f32;
}

macro_rules! kv_element {
    ($type:ty, $load:ident, $store:ident, $widen:expr) => {
        impl KvElement for $type {
            #[inline(always)]
            unsafe fn load<S: Simd>(p: *const Self) -> S::F {
                // SAFETY: promised by the caller.
                unsafe { S::$load(p) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(p: *mut Self, v: S::F) {
                // SAFETY: promised by the caller.
                unsafe { S::$store(p, v) }
            }
            fn to_f32(self) -> f32 {
                $widen(self)
            }
        }
    };
}
kv_element!(f32, load, store, |x| x);
kv_element!(f16, load_f16, store_f16, f16::to_f32);
kv_element!(bf16, load_bf16, store_bf16, bf16::to_f32);

impl KvElement for i8 {
    const SCALED: bool = true;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: promised by the caller.
        unsafe { S::load_i8(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::F) {
        // SAFETY: promised by the caller.
        unsafe { S::store_i8(p, S::round(v)) }
    }
    fn to_f32(self) -> f32 {
        f32::from(self)
    }
}

/// Keys and values of one type.
pub(super) struct Buffers<T> {
    pub(super) keys: Vec<T>,
    pub(super) values: Vec<T>,
    /// Empty where the type has no scales.
    pub(super) key_scales: Vec<f32>,
    pub(super) value_scales: Vec<f32>,
}

impl<T> Buffers<T> {
    fn unscaled(keys: Vec<T>, values: Vec<T>) -> Self {
        Self {
            keys,
            values,
            key_scales: Vec::new(),
            value_scales: Vec::new(),
        }
    }
}

pub(super) enum Storage {
    F32(Buffers<f32>),
    F16(Buffers<f16>),
    Bf16(Buffers<bf16>),
    Q8_0(Buffers<i8>),
    Tiles(TileBlocks),
}

/// Calls `$body` with `$buffers` bound to the typed buffers, or `$other` with `$tiles` bound to tiles.
macro_rules! with_buffers {
    ($storage:expr, $buffers:ident => $body:expr, $tiles:ident => $other:expr) => {
        match $storage {
            $crate::kernels::kv::Storage::F32($buffers) => $body,
            $crate::kernels::kv::Storage::F16($buffers) => $body,
            $crate::kernels::kv::Storage::Bf16($buffers) => $body,
            $crate::kernels::kv::Storage::Q8_0($buffers) => $body,
            $crate::kernels::kv::Storage::Tiles($tiles) => $other,
        }
    };
}
pub(super) use with_buffers;

/// The KV blocks of one layer. Starts as zeros; the system gives the memory when it is first written.
pub struct KvLayer {
    layout: KvLayout,
    block_count: usize,
    storage: Storage,
}

impl KvLayer {
    /// # Errors
    /// When the block size is not a power of two up to 256, or a dimension is zero.
    pub fn new(layout: KvLayout, block_count: usize) -> Result<Self, KernelError> {
        layout.check()?;
        // Loads of sixteen keys may reach past the last block when blocks are smaller than that.
        let keys = layout.key_block() * block_count + LANES;
        let values = layout.value_block() * block_count + LANES;
        let storage = match layout.kind {
            KvType::F32 => Storage::F32(Buffers::unscaled(vec![0.0; keys], vec![0.0; values])),
            KvType::F16 => Storage::F16(Buffers::unscaled(zeros(keys), zeros(values))),
            KvType::Bf16 => Storage::Bf16(Buffers::unscaled(zeros(keys), zeros(values))),
            KvType::Bf16Tiles => Storage::Tiles(TileBlocks::new(&layout, block_count)),
            KvType::Q8_0 => {
                let scales = layout.scale_block() * block_count + LANES;
                Storage::Q8_0(Buffers {
                    keys: vec![0; keys],
                    values: vec![0; values],
                    key_scales: vec![0.0; scales],
                    value_scales: vec![0.0; scales],
                })
            }
        };
        Ok(Self {
            layout,
            block_count,
            storage,
        })
    }

    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    pub fn block_count(&self) -> usize {
        self.block_count
    }

    pub(super) fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Copies the keys and values of the first `tokens` positions of block `from` into block `to`. What is behind
    /// them in `to` may change, too: nobody sees a position before it is written.
    ///
    /// # Panics
    /// When a block or `tokens` is out of range.
    pub fn copy_block(&mut self, from: BlockId, to: BlockId, tokens: usize) {
        let layout = self.layout;
        assert!(
            (from.0.max(to.0) as usize) < self.block_count && tokens <= layout.block_size,
            "a copied block is outside the KV storage"
        );
        with_buffers!(&mut self.storage, buffers => {
            for head in 0..layout.kv_heads {
                let (source, target) = (layout.key_start(from, head), layout.key_start(to, head));
                for start in (0..layout.head_dim).map(|d| d * layout.block_size) {
                    let source = source + start;
                    buffers.keys.copy_within(source..source + tokens, target + start);
                }
                let source = layout.value_start(from, head);
                let length = tokens * layout.padded_dim();
                buffers.values.copy_within(source..source + length, layout.value_start(to, head));
                if buffers.key_scales.is_empty() {
                    continue;
                }
                let (source, target) = (layout.scale_start(from, head), layout.scale_start(to, head));
                for start in (0..layout.scales()).map(|part| part * layout.block_size) {
                    let source = source + start;
                    buffers.key_scales.copy_within(source..source + tokens, target + start);
                }
                let length = tokens * layout.scales();
                buffers.value_scales.copy_within(source..source + length, target);
            }
        }, tiles => {
            let [from, to] = [from, to].map(|block| KvSlot { block, slot: 0 });
            tiles.copy(&layout, from, to, tokens);
        });
    }

    /// Reads one head's key and value at a slot, each `head_dim` numbers.
    ///
    /// # Panics
    /// When the slot or head is out of range, or the slices are not `head_dim` long.
    pub fn read(&self, at: KvSlot, head: usize, key: &mut [f32], value: &mut [f32]) {
        let layout = &self.layout;
        assert!(head < layout.kv_heads && (at.slot as usize) < layout.block_size);
        assert!(key.len() == layout.head_dim && value.len() == layout.head_dim);
        let slot = at.slot as usize;
        with_buffers!(&self.storage, buffers => {
            let start = layout.key_start(at.block, head) + slot;
            for (d, out) in key.iter_mut().enumerate() {
                *out = buffers.keys[start + d * layout.block_size].to_f32();
            }
            let start = layout.value_start(at.block, head) + slot * layout.padded_dim();
            for (out, x) in value.iter_mut().zip(&buffers.values[start..]) {
                *out = x.to_f32();
            }
            if !buffers.key_scales.is_empty() {
                let start = layout.scale_start(at.block, head);
                for (part, key) in key.chunks_mut(SCALED_DIMS).enumerate() {
                    let scale = buffers.key_scales[start + part * layout.block_size + slot];
                    key.iter_mut().for_each(|x| *x *= scale);
                }
                for (part, value) in value.chunks_mut(SCALED_DIMS).enumerate() {
                    let scale = buffers.value_scales[start + slot * layout.scales() + part];
                    value.iter_mut().for_each(|x| *x *= scale);
                }
            }
        }, tiles => tiles.read(at, head, key, value));
    }
}

/// Fewer numbers than this are not worth waking other threads for.
pub(super) const SMALL: usize = 16 * 1024;

/// `len` zeros of a 16-bit float type, from memory that the system hands out zeroed and untouched.
fn zeros<T: HalfBits>(len: usize) -> Vec<T> {
    let bits = std::mem::ManuallyDrop::new(vec![0u16; len]);
    // SAFETY: `T` has the size and alignment of `u16` and zero bits are the number zero; the vector's
    // parts come from one that is never used again.
    unsafe { Vec::from_raw_parts(bits.as_ptr().cast_mut().cast(), bits.len(), bits.capacity()) }
}

/// # Safety
/// The type is a transparent wrapper of `u16`.
unsafe trait HalfBits {}
// SAFETY: `repr(transparent)` over `u16`.
unsafe impl HalfBits for f16 {}
// SAFETY: `repr(transparent)` over `u16`.
unsafe impl HalfBits for bf16 {}

/// The first sixteen numbers of a slice, zeros behind its end.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn load_part<S: Simd>(slice: &[f32]) -> S::F {
    // SAFETY: reads sixteen elements only where there are sixteen.
    unsafe {
        if slice.len() >= LANES {
            S::load(slice.as_ptr())
        } else {
            let mut lanes = [0.0; LANES];
            lanes[..slice.len()].copy_from_slice(slice);
            S::load(lanes.as_ptr())
        }
    }
}

/// Stores the first lanes into a slice of up to sixteen numbers; longer slices get all sixteen.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn store_part<S: Simd>(slice: &mut [f32], v: S::F) {
    // SAFETY: writes sixteen elements only where there are sixteen.
    unsafe {
        if slice.len() >= LANES {
            S::store(slice.as_mut_ptr(), v);
        } else {
            let mut lanes = [0.0; LANES];
            S::store(lanes.as_mut_ptr(), v);
            let len = slice.len();
            slice.copy_from_slice(&lanes[..len]);
        }
    }
}
