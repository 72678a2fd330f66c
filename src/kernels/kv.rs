//! The keys and values of one layer in fixed-size blocks.
//!
//! Inside a block every KV head has its own part. Keys lie transposed (but see [`tiles`]), `[head_dim][slot]`, so that one
//! load brings the same dimension of sixteen keys and scores need no sum across lanes; values lie
//! `[slot][head_dim]` with the dimension rounded up to sixteen, zeros behind it. Scales, where the type has
//! them, lie likewise: `[part of the dimensions][slot]` for keys, `[slot][part]` for values.

pub(super) mod tiles;

use std::ops::Range;

use half::{bf16, f16};

use super::isa::Isa;
use super::simd::{LANES, Simd, SimdTask, dispatch};
use super::{KernelError, SharedMut, ThreadPool};
use crate::ids::BlockId;
use tiles::{TILE_STEP, TileBlocks, TileTarget};

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

    /// Stores the key and value of each row at its slot, rounded to the storage's type (`f16` saturates).
    ///
    /// `rows` holds a row of `stride` numbers for each slot. In it a row's key begins at `key` and holds
    /// `kv_heads × head_dim` numbers, its value likewise at `value`; so both may be parts of one `q|k|v`
    /// buffer. `prepare` is called with each row's number and numbers before they are read. Slots of a block
    /// follow each other.
    ///
    /// # Errors
    /// When a job panicked.
    ///
    /// # Panics
    /// When a slot is outside the storage or the rows are too short.
    pub fn write(
        &mut self,
        pool: &ThreadPool,
        slots: &[KvSlot],
        rows: KvRows<'_>,
        prepare: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Result<(), KernelError> {
        let layout = self.layout;
        let width = layout.kv_heads * layout.head_dim;
        let KvRows {
            data,
            stride,
            key,
            value,
        } = rows;
        assert!(
            data.len() == slots.len() * stride && key.max(value) + width <= stride,
            "rows are too short"
        );
        let inside = |slot: &KvSlot| {
            (slot.block.0 as usize) < self.block_count && (slot.slot as usize) < layout.block_size
        };
        assert!(slots.iter().all(inside), "a slot is outside the KV storage");
        // Rows of one block lie in the same cache lines: one thread writes them all.
        let mut runs: Vec<Range<usize>> = Vec::with_capacity(slots.len());
        for (row, slot) in slots.iter().enumerate() {
            match runs.last_mut() {
                Some(run) if slots[run.start].block == slot.block => run.end = row + 1,
                _ => runs.push(row..row + 1),
            }
        }
        debug_assert!(
            {
                let mut blocks: Vec<u32> =
                    runs.iter().map(|run| slots[run.start].block.0).collect();
                blocks.sort_unstable();
                blocks.windows(2).all(|two| two[0] != two[1])
            },
            "a block's slots do not follow each other"
        );
        let isa = Isa::detected();
        let data = SharedMut::new(data);
        let worth = slots.len() * stride >= SMALL;
        let row = |row: usize| {
            // SAFETY: each row is its own part of the data, and belongs to one run.
            let numbers = unsafe { data.slice(row * stride, stride) };
            prepare(row, numbers);
            (
                slots[row],
                &numbers[key..][..width],
                &numbers[value..][..width],
            )
        };
        with_buffers!(&mut self.storage, buffers => {
            let (key_out, value_out) =
                (SharedMut::new(&mut buffers.keys), SharedMut::new(&mut buffers.values));
            let key_scales = SharedMut::new(&mut buffers.key_scales);
            let value_scales = SharedMut::new(&mut buffers.value_scales);
            pool.run_if(worth, runs.len(), |_, run| {
                for (slot, key, value) in runs[run].clone().map(row) {
                    let task = WriteRow {
                        layout,
                        slot,
                        key,
                        value,
                        key_out,
                        value_out,
                        key_scales,
                        value_scales,
                    };
                    // SAFETY: the ISA was detected; slots of a step are distinct positions, so rows
                    // write disjoint parts of the buffers.
                    unsafe { dispatch(isa, task) }
                }
            })
        }, tiles => {
            let target = tiles.target();
            pool.run_if(worth, runs.len(), |_, run| {
                let task = WriteTileRun {
                    target,
                    head_dim: layout.head_dim,
                    rows: &runs[run].clone().map(row).collect::<Vec<_>>(),
                };
                // SAFETY: the ISA was detected; a block's rows are all in one run.
                unsafe { dispatch(isa, task) }
            })
        })
    }

    /// Copies the keys and values of the first `tokens` positions of block `from` into block `to`.
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

/// Rows of a buffer that hold keys and values.
pub struct KvRows<'a> {
    /// Rows of `stride` numbers.
    pub data: &'a mut [f32],
    pub stride: usize,
    /// Where keys begin in a row.
    pub key: usize,
    /// Where values begin in a row.
    pub value: usize,
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

struct WriteRow<'a, T> {
    layout: KvLayout,
    slot: KvSlot,
    key: &'a [f32],
    value: &'a [f32],
    key_out: SharedMut<T>,
    value_out: SharedMut<T>,
    /// Not used where the type has no scales.
    key_scales: SharedMut<f32>,
    value_scales: SharedMut<f32>,
}

impl<T: KvElement> SimdTask for WriteRow<'_, T> {
    type Output = ();

    /// # Safety
    /// Nobody else writes this slot.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self {
            layout,
            slot: KvSlot { block, slot },
            ..
        } = self;
        let (dim, padded, slot) = (layout.head_dim, layout.padded_dim(), slot as usize);
        for head in 0..layout.kv_heads {
            let key = &self.key[head * dim..][..dim];
            let value = &self.value[head * dim..][..dim];
            let key_out = layout.key_start(block, head) + slot;
            let value_out = layout.value_start(block, head) + slot * padded;
            // SAFETY: the set is present, as the caller promises.
            let (mut key_scale, mut value_scale) = unsafe { (S::splat(1.0), S::splat(1.0)) };
            for start in (0..dim).step_by(LANES) {
                let lanes = LANES.min(dim - start);
                let mut rounded = [T::default(); LANES];
                // SAFETY: `load_part` stays inside its slice; the target indices are inside the slot's
                // part of the storage, whose bounds were checked before.
                unsafe {
                    if T::SCALED && start % SCALED_DIMS == 0 {
                        let end = dim.min(start + SCALED_DIMS);
                        let part = start / SCALED_DIMS;
                        let scales = layout.scale_start(block, head);
                        let at = scales + part * layout.block_size + slot;
                        let (scale, inverse) = scale_of(&key[start..end]);
                        (*self.key_scales.at(at), key_scale) = (scale, S::splat(inverse));
                        let at = scales + slot * layout.scales() + part;
                        let (scale, inverse) = scale_of(&value[start..end]);
                        (*self.value_scales.at(at), value_scale) = (scale, S::splat(inverse));
                    }
                    let key = load_part::<S>(&key[start..]);
                    let key = if T::SCALED {
                        S::mul(key, key_scale)
                    } else {
                        key
                    };
                    T::store::<S>(rounded.as_mut_ptr(), key);
                    for (lane, &x) in rounded[..lanes].iter().enumerate() {
                        *self
                            .key_out
                            .at(key_out + (start + lane) * layout.block_size) = x;
                    }
                    let value = load_part::<S>(&value[start..]);
                    let value = if T::SCALED {
                        S::mul(value, value_scale)
                    } else {
                        value
                    };
                    T::store::<S>(self.value_out.at(value_out + start), value);
                }
            }
        }
    }
}

/// Keys and values of some rows of a block into its tiles.
struct WriteTileRun<'a> {
    target: TileTarget,
    head_dim: usize,
    /// Slots, keys and values.
    rows: &'a [(KvSlot, &'a [f32], &'a [f32])],
}

impl SimdTask for WriteTileRun<'_> {
    type Output = ();

    /// # Safety
    /// Nobody else writes the block.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.rows.first().map_or(0, |(_, key, _)| key.len());
        // A head's tiles stay in the first-level cache for all rows.
        for (head, start) in (0..width).step_by(self.head_dim).enumerate() {
            for &(slot, key, value) in self.rows {
                let place = start..start + self.head_dim;
                // SAFETY: promised by the caller; the slot's bounds were checked before.
                unsafe {
                    self.target
                        .write::<S>(slot, head, &key[place.clone()], &value[place]);
                }
            }
        }
    }
}

/// The scale that maps the largest magnitude to 127, and its inverse. If a number is infinite or none at all,
/// so is the scale, that it shows in the results.
#[inline(always)]
fn scale_of(numbers: &[f32]) -> (f32, f32) {
    let (mut largest, mut poison) = (0.0f32, 0.0f32);
    for x in numbers {
        largest = largest.max(x.abs());
        poison += x * 0.0;
    }
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    (largest / 127.0 + poison, inverse)
}

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
