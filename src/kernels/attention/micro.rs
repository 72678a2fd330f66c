//! The innermost loops of attention: some (row, head) pairs against the keys or values of a partition.
//!
//! No vector operation stands in a closure here, see [`crate::kernels::simd`].

use std::marker::PhantomData;

use super::PARTITION;
use crate::ids::BlockId;
use crate::kernels::isa::Isa;
use crate::kernels::kv::{KvElement, SCALED_DIMS};
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};

/// Scores of one pair: a partition, and room for a last store of sixteen.
pub(super) const SCORES: usize = PARTITION + LANES;
/// The most pairs of a tile.
pub(super) const MAX_PAIRS: usize = 12;

/// The pair counts that there are micro-kernels for.
const KERNEL_PAIRS: [usize; 7] = [1, 2, 3, 4, 6, 8, 12];

/// The most pairs of a micro-kernel on this instruction set.
pub(super) fn max_pairs(isa: Isa) -> usize {
    if sums(isa) >= 24 { 12 } else { 4 }
}

/// The smallest micro-kernel that takes `pairs`, which are at most [`max_pairs`].
pub(super) fn kernel_pairs(pairs: usize) -> usize {
    KERNEL_PAIRS
        .into_iter()
        .find(|&kernel| kernel >= pairs)
        .unwrap_or(MAX_PAIRS)
}

fn sums(isa: Isa) -> usize {
    struct Sums;
    impl SimdTask for Sums {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> usize {
            S::SUMS
        }
    }
    // SAFETY: runs no instruction of the set.
    unsafe { dispatch(isa, Sums) }
}

/// The blocks of one KV head that a partition's keys lie in.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a, T> {
    /// The head's part of block 0, and elements from one block to the next.
    pub(super) base: *const T,
    pub(super) block_length: usize,
    /// The head's scales of block 0, and numbers from one block to the next; not used without scales.
    pub(super) scales: *const f32,
    pub(super) scale_length: usize,
    /// Scales of one value.
    pub(super) scale_count: usize,
    pub(super) blocks: &'a [BlockId],
    /// The slot of the first key in the first block.
    pub(super) first_slot: usize,
    pub(super) block_size: usize,
    pub(super) keys: usize,
}

#[cfg(target_arch = "x86_64")]
impl<T> Blocks<'_, T> {
    /// The head's part of the block that a key of the partition lies in.
    #[inline(always)]
    fn block_of(&self, key: usize) -> *const T {
        let place = (self.first_slot + key) >> self.block_size.trailing_zeros();
        self.base
            .wrapping_add(self.blocks[place].0 as usize * self.block_length)
    }

    /// Its slot there.
    #[inline(always)]
    fn slot_of(&self, key: usize) -> usize {
        (self.first_slot + key) & (self.block_size - 1)
    }

    /// The first dimension of a key; the others follow at a distance of the block size.
    #[inline(always)]
    pub(super) fn key_of(&self, key: usize) -> *const T {
        self.block_of(key).wrapping_add(self.slot_of(key))
    }

    /// The value of a key, of `padded` dimensions.
    #[inline(always)]
    pub(super) fn value_of(&self, key: usize, padded: usize) -> *const T {
        self.block_of(key).wrapping_add(self.slot_of(key) * padded)
    }
}

impl<T> Blocks<'_, T> {
    /// The part of the partition in each block, in order.
    #[inline(always)]
    fn parts(&self) -> impl Iterator<Item = Part<T>> {
        let (mut key, mut slot) = (0, self.first_slot);
        self.blocks.iter().map(move |block| {
            let slots = (self.block_size - slot).min(self.keys - key);
            let part = Part {
                block: self.base.wrapping_add(block.0 as usize * self.block_length),
                scales: self
                    .scales
                    .wrapping_add(block.0 as usize * self.scale_length),
                slot,
                slots,
                key,
            };
            key += slots;
            slot = 0;
            part
        })
    }
}

/// Neighbouring keys of a partition that lie in one block.
struct Part<T> {
    block: *const T,
    /// The block's scales.
    scales: *const f32,
    /// The first one's slot.
    slot: usize,
    slots: usize,
    /// The first one's place in the partition.
    key: usize,
}

/// Scores of all keys: `scores[pair][key] = query · key`, one chain of multiply-adds along the dimensions.
/// Up to fifteen scores behind the last key are written too.
///
/// # Safety
/// `isa` is available; `pairs` is what [`kernel_pairs`] gives; `queries` are `[dim][pairs]` numbers and
/// `scores` has rows of [`SCORES`]; the blocks are inside their buffer, with sixteen elements to spare.
pub(super) unsafe fn scores<T: KvElement>(
    isa: Isa,
    pairs: usize,
    keys: Blocks<'_, T>,
    queries: &[f32],
    dim: usize,
    scores: &mut [f32],
) {
    macro_rules! sizes {
        ($($pairs:literal),+) => {
            match pairs {
                $($pairs => {
                    // SAFETY: promised by the caller.
                    unsafe { dispatch(isa, Scores::<T, $pairs> { keys, queries, dim, scores }) }
                })+
                _ => unreachable!("no micro-kernel for {pairs} pairs"),
            }
        };
    }
    debug_assert!(queries.len() >= dim * pairs && scores.len() >= pairs * SCORES);
    sizes!(1, 2, 3, 4, 6, 8, 12)
}

struct Scores<'a, T, const M: usize> {
    keys: Blocks<'a, T>,
    queries: &'a [f32],
    dim: usize,
    scores: &'a mut [f32],
}

impl<T: KvElement, const M: usize> SimdTask for Scores<'_, T, M> {
    type Output = ();

    /// # Safety
    /// As [`scores`].
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // A constant, so that kernels too large for a set are not compiled for it.
        if const { M > 4 && S::SUMS < 24 } {
            return;
        }
        let (size, dim) = (self.keys.block_size, self.dim);
        let queries = self.queries.as_ptr();
        let scores = self.scores.as_mut_ptr();
        for part in self.keys.parts() {
            let mut done = 0;
            while done < part.slots {
                // SAFETY: promised by the caller.
                unsafe {
                    let keys = part.block.add(part.slot + done);
                    let to = scores.add(part.key + done);
                    if T::SCALED {
                        let scales = part.scales.wrapping_add(part.slot + done);
                        score_scaled::<S, T, M>(keys, scales, size, queries, dim, to);
                        done += LANES;
                    } else if const { S::SUMS >= 24 } && part.slots - done > LANES {
                        score::<S, T, M, 2>(keys, size, queries, dim, to);
                        done += 2 * LANES;
                    } else {
                        score::<S, T, M, 1>(keys, size, queries, dim, to);
                        done += LANES;
                    }
                }
            }
        }
    }
}

/// # Safety
/// As [`scores`], for `N` vectors of keys from `keys` on.
#[inline(always)]
unsafe fn score<S: Simd, T: KvElement, const M: usize, const N: usize>(
    mut keys: *const T,
    size: usize,
    mut queries: *const f32,
    dim: usize,
    to: *mut f32,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut sums = [[S::splat(0.0); N]; M];
        let mut loaded = [S::splat(0.0); N];
        for _ in 0..dim {
            for (n, loaded) in loaded.iter_mut().enumerate() {
                *loaded = T::load::<S>(keys.add(n * LANES));
            }
            for (m, sums) in sums.iter_mut().enumerate() {
                let query = S::splat(*queries.add(m));
                for (sum, &keys) in sums.iter_mut().zip(&loaded) {
                    *sum = S::fma(keys, query, *sum);
                }
            }
            keys = keys.wrapping_add(size);
            queries = queries.add(M);
        }
        for (m, sums) in sums.iter().enumerate() {
            for (n, &sum) in sums.iter().enumerate() {
                S::store(to.add(m * SCORES + n * LANES), sum);
            }
        }
    }
}

/// [`score`] of keys with scales: one chain for each part of the dimensions, then one along the parts.
///
/// # Safety
/// As [`scores`], for sixteen keys from `keys` on, whose scales begin at `scales`.
#[inline(always)]
unsafe fn score_scaled<S: Simd, T: KvElement, const M: usize>(
    mut keys: *const T,
    mut scales: *const f32,
    size: usize,
    mut queries: *const f32,
    dim: usize,
    to: *mut f32,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let mut totals = [S::splat(0.0); M];
        for start in (0..dim).step_by(SCALED_DIMS) {
            let mut sums = [S::splat(0.0); M];
            for _ in start..dim.min(start + SCALED_DIMS) {
                let loaded = T::load::<S>(keys);
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(loaded, S::splat(*queries.add(m)), *sum);
                }
                keys = keys.wrapping_add(size);
                queries = queries.add(M);
            }
            let scale = S::load(scales);
            for (total, &sum) in totals.iter_mut().zip(&sums) {
                *total = S::fma(sum, scale, *total);
            }
            scales = scales.wrapping_add(size);
        }
        for (m, &total) in totals.iter().enumerate() {
            S::store(to.add(m * SCORES), total);
        }
    }
}

/// Weighted sums of values: `out[pair][dimension] = Σ weights[pair][key] · value[key]`, key by key in order.
///
/// # Safety
/// As [`scores`]; `out` has rows of `padded` numbers, which is a multiple of sixteen.
pub(super) unsafe fn values<T: KvElement>(
    isa: Isa,
    pairs: usize,
    values: Blocks<'_, T>,
    weights: &[f32],
    padded: usize,
    out: &mut [f32],
) {
    debug_assert!(weights.len() >= pairs * SCORES && out.len() >= pairs * padded);
    let wide = sums(isa) >= 24;
    let mut from = 0;
    while from < padded {
        let vectors = match (padded - from) / LANES {
            8.. if wide && pairs <= 2 => 8,
            4.. if wide && pairs <= 6 => 4,
            2.. if wide && pairs >= 8 => 2,
            _ => 1,
        };
        macro_rules! sizes {
            ($(($pairs:literal, $vectors:literal)),+) => {
                match (pairs, vectors) {
                    $(($pairs, $vectors) => {
                        let part = Values::<T, $pairs, $vectors> {
                            values, weights, padded, from, out: &mut *out, element: PhantomData,
                        };
                        // SAFETY: promised by the caller.
                        unsafe { dispatch(isa, part) }
                    })+
                    _ => unreachable!("no micro-kernel for {pairs} pairs and {vectors} vectors"),
                }
            };
        }
        sizes!(
            (1, 8),
            (2, 8),
            (1, 4),
            (2, 4),
            (3, 4),
            (4, 4),
            (6, 4),
            (8, 2),
            (12, 2),
            (1, 1),
            (2, 1),
            (3, 1),
            (4, 1),
            (6, 1),
            (8, 1),
            (12, 1)
        );
        from += vectors * LANES;
    }
}

struct Values<'a, T, const M: usize, const N: usize> {
    values: Blocks<'a, T>,
    weights: &'a [f32],
    padded: usize,
    /// The first dimension.
    from: usize,
    out: &'a mut [f32],
    element: PhantomData<T>,
}

impl<T: KvElement, const M: usize, const N: usize> SimdTask for Values<'_, T, M, N> {
    type Output = ();

    /// # Safety
    /// As [`values`]; there are `N` vectors of dimensions from `from` on.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // A constant, so that kernels too large for a set are not compiled for it.
        if const { (M > 4 || N > 1) && S::SUMS < 24 } {
            return;
        }
        let Self {
            values,
            weights,
            padded,
            from,
            out,
            ..
        } = self;
        let weights = weights.as_ptr();
        let scale_count = values.scale_count;
        // SAFETY: promised by the caller.
        unsafe {
            let mut sums = [[S::splat(0.0); N]; M];
            let mut loaded = [S::splat(0.0); N];
            for part in values.parts() {
                let mut value = part.block.add(part.slot * padded + from);
                let mut scale = part.scales.wrapping_add(part.slot * scale_count);
                for key in part.key..part.key + part.slots {
                    for (n, loaded) in loaded.iter_mut().enumerate() {
                        *loaded = T::load::<S>(value.add(n * LANES));
                        if T::SCALED {
                            let scale = *scale.add((from + n * LANES) / SCALED_DIMS);
                            *loaded = S::mul(*loaded, S::splat(scale));
                        }
                    }
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let weight = S::splat(*weights.add(m * SCORES + key));
                        for (sum, &value) in sums.iter_mut().zip(&loaded) {
                            *sum = S::fma(value, weight, *sum);
                        }
                    }
                    value = value.wrapping_add(padded);
                    scale = scale.wrapping_add(scale_count);
                }
            }
            for (m, sums) in sums.iter().enumerate() {
                for (n, &sum) in sums.iter().enumerate() {
                    S::store(
                        out[m * padded + from + n * LANES..][..LANES].as_mut_ptr(),
                        sum,
                    );
                }
            }
        }
    }
}

/// Turns scores into `e^(score - maximum)`; gives the maximum and the sum. Whole vectors.
pub(super) struct Weigh<'a>(pub(super) &'a mut [f32]);

impl SimdTask for Weigh<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, f32) {
        let scores = self.0;
        // SAFETY: all accesses are whole chunks of sixteen.
        unsafe {
            let mut largest = S::splat(f32::NEG_INFINITY);
            for chunk in scores.chunks_exact(LANES) {
                largest = S::max(largest, S::load(chunk.as_ptr()));
            }
            let maximum = S::max_lane(largest);
            if maximum == f32::NEG_INFINITY {
                scores.fill(0.0);
                return (maximum, 0.0);
            }
            let shift = S::splat(maximum);
            let mut total = S::splat(0.0);
            for chunk in scores.chunks_exact_mut(LANES) {
                let weight = S::exp(S::sub(S::load(chunk.as_ptr()), shift));
                S::store(chunk.as_mut_ptr(), weight);
                total = S::add(total, weight);
            }
            (maximum, S::sum(total))
        }
    }
}

/// What some (row, head) pairs have gathered so far.
pub(super) struct Gathered<'a> {
    /// The largest score; minus infinity before the first key.
    pub(super) maxima: &'a mut [f32],
    /// The sum of the weights relative to the maximum.
    pub(super) totals: &'a mut [f32],
    /// The weighted sums of values, in whole vectors.
    pub(super) sums: &'a mut [f32],
}

/// Adds a partition's results to what the partitions before it gave.
pub(super) struct Combine<'a> {
    pub(super) gathered: Gathered<'a>,
    /// The partition's largest scores and sums of weights.
    pub(super) maxima: &'a [f32],
    pub(super) totals: &'a [f32],
    /// Its weighted sums of values, `stride` numbers from one pair to the next.
    pub(super) partial: &'a [f32],
    pub(super) stride: usize,
    /// Numbers of one pair's sums.
    pub(super) padded: usize,
}

impl SimdTask for Combine<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Gathered {
            maxima,
            totals,
            sums,
        } = self.gathered;
        let padded = self.padded;
        for first in (0..maxima.len()).step_by(LANES) {
            let pairs = LANES.min(maxima.len() - first);
            let (mut old, mut new) = ([0.0f32; LANES], [0.0f32; LANES]);
            for pair in 0..pairs {
                let maximum = f32::max(maxima[first + pair], self.maxima[first + pair]);
                old[pair] = maxima[first + pair] - maximum;
                new[pair] = self.maxima[first + pair] - maximum;
            }
            // SAFETY: all accesses are whole chunks of sixteen.
            unsafe {
                S::store(old.as_mut_ptr(), S::exp(S::load(old.as_ptr())));
                S::store(new.as_mut_ptr(), S::exp(S::load(new.as_ptr())));
            }
            for pair in 0..pairs {
                let at = first + pair;
                if self.maxima[at] == f32::NEG_INFINITY {
                    continue;
                }
                let is_first = maxima[at] == f32::NEG_INFINITY;
                let sums = &mut sums[at * padded..][..padded];
                let partial = &self.partial[at * self.stride..][..padded];
                let chunks = sums
                    .chunks_exact_mut(LANES)
                    .zip(partial.chunks_exact(LANES));
                // SAFETY: all accesses are whole chunks of sixteen.
                unsafe {
                    // A negative zero, which only rounding leaves, becomes the zero that a masked key behind
                    // it would make of it.
                    let zero = S::splat(0.0);
                    if is_first {
                        (maxima[at], totals[at]) = (self.maxima[at], self.totals[at]);
                        for (sum, partial) in chunks {
                            let partial = S::add(S::load(partial.as_ptr()), zero);
                            S::store(sum.as_mut_ptr(), partial);
                        }
                    } else {
                        maxima[at] = f32::max(maxima[at], self.maxima[at]);
                        totals[at] = totals[at] * old[pair] + self.totals[at] * new[pair];
                        let (old, new) = (S::splat(old[pair]), S::splat(new[pair]));
                        for (sum, partial) in chunks {
                            let scaled = S::mul(S::load(sum.as_ptr()), old);
                            let partial = S::add(S::load(partial.as_ptr()), zero);
                            S::store(sum.as_mut_ptr(), S::fma(partial, new, scaled));
                        }
                    }
                }
            }
        }
    }
}
