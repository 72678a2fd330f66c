//! The KV pool's ledger: which blocks are free, leased or cached. It never sees keys or values.

use crate::ids::BlockId;

/// What a block is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockState {
    /// Nobody refers to it; its content is meaningless.
    Free,
    /// At least one sequence refers to it (the tree may, too).
    Leased,
    /// Only the tree refers to it.
    Cached,
}

/// How many blocks are in each state. They sum to the pool's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCounts {
    pub free: usize,
    pub leased: usize,
    pub cached: usize,
}

impl BlockCounts {
    /// All blocks of the pool.
    pub fn total(&self) -> usize {
        self.free + self.leased + self.cached
    }

    /// Blocks that can be had: free ones, and those the tree gives up on demand.
    pub fn available(&self) -> usize {
        self.free + self.cached
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// References from sequences.
    leases: u32,
    /// Whether the tree refers to it.
    in_tree: bool,
}

impl Slot {
    fn state(self) -> BlockState {
        match (self.leases, self.in_tree) {
            (0, false) => BlockState::Free,
            (0, true) => BlockState::Cached,
            _ => BlockState::Leased,
        }
    }
}

/// A fixed number of blocks with reference counts and a free list. All operations are O(1).
///
/// Misuse (releasing what is not leased, a foreign id) is a bug of the caller and panics.
#[derive(Debug)]
pub struct BlockPool {
    slots: Vec<Slot>,
    /// Last in, first out: a block just freed is the likeliest to be in the CPU's cache.
    free: Vec<BlockId>,
    counts: BlockCounts,
}

impl BlockPool {
    /// A pool of `blocks` free blocks, numbered from 0.
    pub fn new(blocks: usize) -> Self {
        let count = u32::try_from(blocks).expect("a block id is 32 bits wide");
        Self {
            slots: vec![Slot::default(); blocks],
            free: (0..count).rev().map(BlockId).collect(),
            counts: BlockCounts {
                free: blocks,
                leased: 0,
                cached: 0,
            },
        }
    }

    pub fn counts(&self) -> BlockCounts {
        self.counts
    }

    pub fn state(&self, block: BlockId) -> BlockState {
        self.slot(block).state()
    }

    /// Takes a free block and leases it once; `None` when there is none.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.change(block, |slot| slot.leases = 1);
        Some(block)
    }

    /// One more sequence refers to `block`, which is leased or cached already.
    pub fn lease(&mut self, block: BlockId) {
        assert_ne!(
            self.state(block),
            BlockState::Free,
            "{block:?} is free: take it instead"
        );
        self.change(block, |slot| slot.leases += 1);
    }

    /// One sequence less refers to `block`. Returns its new state.
    pub fn release(&mut self, block: BlockId) -> BlockState {
        self.change(block, |slot| {
            slot.leases = slot
                .leases
                .checked_sub(1)
                .expect("a released block was leased");
        })
    }

    /// The tree begins to refer to `block`, which is leased (by the sequence that wrote it).
    pub fn enter_tree(&mut self, block: BlockId) {
        let slot = self.slot(block);
        assert!(
            slot.leases > 0 && !slot.in_tree,
            "{block:?} cannot enter the tree as {slot:?}"
        );
        self.change(block, |slot| slot.in_tree = true);
    }

    /// The tree no longer refers to `block`. Returns its new state.
    pub fn leave_tree(&mut self, block: BlockId) -> BlockState {
        assert!(self.slot(block).in_tree, "{block:?} is not in the tree");
        self.change(block, |slot| slot.in_tree = false)
    }

    fn slot(&self, block: BlockId) -> Slot {
        self.slots[block.0 as usize]
    }

    /// Changes a slot, and moves it between the free list and the counts of the states.
    fn change(&mut self, block: BlockId, change: impl FnOnce(&mut Slot)) -> BlockState {
        let slot = &mut self.slots[block.0 as usize];
        let before = slot.state();
        change(slot);
        let after = slot.state();
        if before != after {
            *self.count(before) -= 1;
            *self.count(after) += 1;
            if after == BlockState::Free {
                self.free.push(block);
            }
        }
        after
    }

    fn count(&mut self, state: BlockState) -> &mut usize {
        match state {
            BlockState::Free => &mut self.counts.free,
            BlockState::Leased => &mut self.counts.leased,
            BlockState::Cached => &mut self.counts.cached,
        }
    }

    /// Compares the books with the truth given by the owners: `leases(block)` references from
    /// sequences, `in_tree(block)`. O(blocks), for tests and debug assertions.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn check_integrity(
        &self,
        leases: impl Fn(BlockId) -> u32,
        in_tree: impl Fn(BlockId) -> bool,
    ) -> Result<(), String> {
        let mut counts = BlockCounts::default();
        for (index, slot) in self.slots.iter().enumerate() {
            let block = BlockId(index as u32);
            if slot.leases != leases(block) || slot.in_tree != in_tree(block) {
                return Err(format!(
                    "{block:?} is {slot:?}, but has {} leases and in_tree = {}",
                    leases(block),
                    in_tree(block)
                ));
            }
            match slot.state() {
                BlockState::Free => counts.free += 1,
                BlockState::Leased => counts.leased += 1,
                BlockState::Cached => counts.cached += 1,
            }
        }
        if counts != self.counts {
            return Err(format!("counted {counts:?}, booked {:?}", self.counts));
        }
        let mut listed = vec![false; self.slots.len()];
        for block in &self.free {
            let seen = std::mem::replace(&mut listed[block.0 as usize], true);
            if seen || self.state(*block) != BlockState::Free {
                return Err(format!("{block:?} is on the free list wrongly or twice"));
            }
        }
        if self.free.len() != counts.free {
            return Err(format!(
                "{} blocks listed free, {} are",
                self.free.len(),
                counts.free
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_goes_round_through_all_states() {
        let mut pool = BlockPool::new(2);
        let block = pool.take().unwrap();
        assert_eq!(
            pool.counts(),
            BlockCounts {
                free: 1,
                leased: 1,
                cached: 0
            }
        );
        pool.enter_tree(block);
        pool.lease(block);
        assert_eq!(pool.release(block), BlockState::Leased);
        assert_eq!(pool.release(block), BlockState::Cached);
        assert_eq!(pool.counts().available(), 2);
        pool.lease(block);
        assert_eq!(pool.leave_tree(block), BlockState::Leased);
        assert_eq!(pool.release(block), BlockState::Free);
        pool.check_integrity(|_| 0, |_| false).unwrap();
    }

    #[test]
    fn an_empty_pool_gives_nothing() {
        let mut pool = BlockPool::new(1);
        assert!(pool.take().is_some());
        assert_eq!(pool.take(), None);
    }

    #[test]
    #[should_panic(expected = "was leased")]
    fn releasing_twice_is_a_bug() {
        let mut pool = BlockPool::new(1);
        let block = pool.take().unwrap();
        pool.release(block);
        pool.release(block);
    }

    #[test]
    fn integrity_notices_a_forgotten_lease() {
        let mut pool = BlockPool::new(1);
        pool.take();
        assert!(pool.check_integrity(|_| 0, |_| false).is_err());
        pool.check_integrity(|_| 1, |_| false).unwrap();
    }
}
