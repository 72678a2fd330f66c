//! Writing keys and values into their blocks.

use std::ops::Range;

use super::tiles::TileTarget;
use super::{KvElement, KvLayer, KvLayout, KvSlot, SCALED_DIMS, SMALL, load_part, with_buffers};
use crate::kernels::isa::Isa;
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

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

impl KvLayer {
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
}

/// A row's keys and values as numbers.
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
