//! One KV head's walk on matrix tiles.
//!
//! The walk goes in units: some pairs and one partition. While a unit's scores are weighed, the sums of values of
//! the unit before and the scores of the one behind are computed in the tiles. Each is computed as it would be
//! alone, so the order changes no bit.

use std::ops::Range;

use super::PARTITION;
use super::plan::Task;
use super::products::{Beside, Products};
use super::tiles::{KEY_STEPS, KEY_TILES, Unit};
use super::walk::{Found, Walk, WalkStates};
use crate::kernels::kv::tiles::{TILE_STEP, TileBlocks, TileOrder};
use crate::kernels::kv::{KvElement, KvSlot};
use crate::kernels::simd::LANES;

/// Pairs from which on products go on beside weights, and partitions are fetched ahead: weights of many take computing,
/// and no memory. With few the machine reads ahead better by itself.
const MANY_PAIRS: usize = 16;

/// The pairs of a unit, and what they see.
struct UnitPairs {
    pairs: Range<usize>,
    /// The smallest and the largest first key of any pair.
    first_keys: (usize, usize),
    /// The smallest and the largest key behind a pair's last.
    ends: (usize, usize),
}

/// What a task's pairs see, kept from walk to walk.
#[derive(Default)]
pub(super) struct Sight {
    /// Of each of a partition's units.
    units: Vec<UnitPairs>,
    /// What each pair of a unit sees of the partition.
    seen: Vec<Range<usize>>,
}

/// The units still to come.
struct Units {
    partitions: Range<usize>,
    /// Which is next in the first partition.
    index: usize,
}

impl<T: KvElement> Walk<'_, T> {
    /// Gives what the task's pairs find in each of some partitions, in order, units that see nothing left out.
    ///
    /// # Safety
    /// As [`Self::run`]; the products are for the task's pairs, whose queries have been packed.
    pub(super) unsafe fn with_tiles(
        &mut self,
        products: &mut Products,
        blocks: &TileBlocks,
        partitions: Range<usize>,
        mut take: impl FnMut(&mut WalkStates, usize, Found<'_>),
    ) {
        let mut scratch = std::mem::take(&mut self.scratch.tiles);
        let mut sight = std::mem::take(&mut self.scratch.sight);
        sight.units.clear();
        let unit_pairs = Unit::pairs(self.pairs()).map(|pairs| self.unit_pairs(pairs));
        sight.units.extend(unit_pairs);
        let ends = sight.units.iter().map(|unit| unit.ends.1);
        let end = ends.max().unwrap_or(0).min(partitions.end * PARTITION);
        let many = self.pairs() >= MANY_PAIRS;
        // Nothing of another walk's.
        scratch.ahead.begin(std::iter::empty(), 0, 1);
        let mut units = Units {
            partitions,
            index: 0,
        };
        let (mut stage, mut before) = (0, None::<Unit>);
        let mut current = self.next_unit(blocks, &mut units, &sight.units);
        let mut is_scored = false;
        while let Some(unit) = current {
            let next = self.next_unit(blocks, &mut units, &sight.units);
            let other = 1 - stage;
            if !is_scored {
                let scores = scratch.scores(stage, &unit);
                let sums = scratch.sums(stage, &unit);
                // SAFETY: promised by the caller, here and below; keys are inside their blocks as far as they are
                // seen, rounded up to whole steps; a stage is one unit's until its results have been taken.
                unsafe { scores.run_asking(products, Some(&sums)) };
            }
            let mut waiting = [None, None];
            if many {
                let is_first = before.as_ref().map(|unit| unit.partition) != Some(unit.partition);
                if is_first {
                    let (pieces, piece) = self.pieces_ahead(blocks, unit.partition, end);
                    scratch.ahead.begin(pieces, piece, self.pairs());
                }
                waiting = [
                    before.as_ref().map(|unit| scratch.sums(other, unit)),
                    next.as_ref().map(|unit| scratch.scores(other, unit)),
                ];
                is_scored = true;
            }
            let seen = self.seen(&unit, &mut sight.seen);
            // SAFETY: as above.
            unsafe {
                let mut beside = Beside::new(products, waiting, unit.pairs.len());
                scratch.weigh(self.isa, stage, &unit, seen, &mut beside);
                beside.finish();
            }
            if let Some(before) = &before {
                let found = scratch.found(other, before);
                take(&mut self.scratch.states, before.partition, found);
            }
            if many {
                before = Some(unit);
            } else {
                let sums = scratch.sums(stage, &unit);
                let following = match &next {
                    Some(next) => Some(scratch.scores(other, next)),
                    None => {
                        let first = self.first_of_next(blocks);
                        first.map(|first| scratch.scores(other, &first))
                    }
                };
                // SAFETY: as above.
                unsafe { sums.run_asking(products, following.as_ref()) };
                let found = scratch.found(stage, &unit);
                take(&mut self.scratch.states, unit.partition, found);
            }
            (current, stage) = (next, other);
        }
        if let Some(last) = &before {
            let stage = 1 - stage;
            let sums = scratch.sums(stage, last);
            // SAFETY: as above.
            unsafe { sums.run(products) };
            let found = scratch.found(stage, last);
            take(&mut self.scratch.states, last.partition, found);
        }
        self.scratch.tiles = scratch;
        self.scratch.sight = sight;
    }

    /// What each of a unit's pairs sees of its partition; none if all see everything.
    fn seen<'s>(&self, unit: &Unit, seen: &'s mut Vec<Range<usize>>) -> &'s [Range<usize>] {
        seen.clear();
        if !unit.all_seen {
            seen.extend(unit.pairs.clone().map(|pair| {
                let (start, position) = (unit.partition * PARTITION, self.position(pair));
                let first = self.plan.shape().first_key(position);
                first.saturating_sub(start)..(position + 1).saturating_sub(start)
            }));
        }
        seen
    }

    /// What some pairs of the task see.
    fn unit_pairs(&self, pairs: Range<usize>) -> UnitPairs {
        let (mut first_keys, mut ends) = ((usize::MAX, 0), (usize::MAX, 0));
        let group = self.group();
        for pair in pairs.clone().step_by(group).chain([pairs.end - 1]) {
            let position = self.position(pair);
            let first = self.plan.shape().first_key(position);
            first_keys = (first.min(first_keys.0), first.max(first_keys.1));
            ends = ((position + 1).min(ends.0), (position + 1).max(ends.1));
        }
        UnitPairs {
            pairs,
            first_keys,
            ends,
        }
    }

    /// The next unit that sees a key.
    fn next_unit(
        &self,
        blocks: &TileBlocks,
        units: &mut Units,
        pairs: &[UnitPairs],
    ) -> Option<Unit> {
        while !units.partitions.is_empty() {
            let (partition, seen) = (units.partitions.start, &pairs[units.index]);
            units.index += 1;
            if units.index == pairs.len() {
                (units.partitions.start, units.index) = (partition + 1, 0);
            }
            let start = partition * PARTITION;
            let end = seen.ends.1.saturating_sub(start).min(PARTITION);
            let steps = Unit::steps(seen.first_keys.0.saturating_sub(start).min(end)..end);
            if !steps.is_empty() {
                let here = (self.task, self.kv_head);
                let (keys, values) = self.places(blocks, here, start, steps.end);
                return Some(Unit {
                    partition,
                    pairs: seen.pairs.clone(),
                    all_seen: seen.first_keys.1 <= start && seen.ends.0 >= start + PARTITION,
                    steps,
                    keys,
                    values,
                });
            }
        }
        None
    }

    /// About what the next walk begins with: as a unit to be asked for.
    fn first_of_next(&self, blocks: &TileBlocks) -> Option<Unit> {
        let next = self.next?;
        let partition = next.0.partitions.start;
        let start = partition * PARTITION;
        let position = self.plan.row(next.0.rows.start).position as usize;
        let first = self.plan.shape().first_key(position).saturating_sub(start);
        let end = (position + 1).saturating_sub(start).min(PARTITION);
        let steps = Unit::steps(first.min(end)..end);
        if steps.is_empty() {
            return None;
        }
        let (keys, values) = self.places(blocks, next, start, steps.end);
        Some(Unit {
            partition,
            pairs: 0..1,
            all_seen: false,
            steps,
            keys,
            values,
        })
    }

    /// Where keys and values of so many steps from position `start` on lie, for the rows of a task and a KV head.
    fn places(
        &self,
        blocks: &TileBlocks,
        (task, kv_head): (&Task, usize),
        start: usize,
        steps: usize,
    ) -> ([*const u32; KEY_TILES], [*const u32; KEY_STEPS]) {
        let order = TileOrder::of(self.layout);
        let mut places = ([std::ptr::null(); KEY_TILES], [std::ptr::null(); KEY_STEPS]);
        for step in 0..steps {
            // Blocks have whole steps.
            let at = self.slot(task, start + step * TILE_STEP);
            places.1[step] = blocks.values[order.values_of(at, kv_head)..].as_ptr();
            let keys = &blocks.keys[order.keys_of(at, kv_head)..];
            let tiles = TILE_STEP / LANES;
            for (tile, place) in places.0[step * tiles..][..tiles].iter_mut().enumerate() {
                *place = keys[tile * order.key_words()..].as_ptr();
            }
        }
        places
    }

    /// Where a position lies that a task's rows share.
    fn slot(&self, task: &Task, position: usize) -> KvSlot {
        let (plan, size) = (self.plan, self.layout.block_size);
        let table = plan.table(plan.row(task.rows.start).table);
        KvSlot {
            block: table[position / size],
            slot: (position % size) as u32,
        }
    }

    /// What to fetch while a partition is weighed, and how many bytes each piece has. The tiles then take the keys of
    /// the partition behind it, so keys are fetched two ahead and values one, up to the key `end`.
    fn pieces_ahead<'b>(
        &'b self,
        blocks: &'b TileBlocks,
        partition: usize,
        end: usize,
    ) -> (impl Iterator<Item = *const u8> + 'b, usize) {
        let (order, kv_head) = (TileOrder::of(self.layout), self.kv_head);
        let steps = move |partition: usize| {
            let start = partition * PARTITION;
            (start..end.min(start + PARTITION)).step_by(TILE_STEP)
        };
        let values = steps(partition + 1).map(move |position| {
            let at = order.values_of(self.slot(self.task, position), kv_head);
            blocks.values[at..].as_ptr().cast::<u8>()
        });
        let keys = steps(partition + 2).map(move |position| {
            let at = order.keys_of(self.slot(self.task, position), kv_head);
            blocks.keys[at..].as_ptr().cast::<u8>()
        });
        let piece = order.value_words().max(2 * order.key_words()) * size_of::<u32>();
        (values.chain(keys), piece)
    }
}
