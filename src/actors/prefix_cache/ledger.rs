//! Who uses which KV block: the pool's books, the radix tree, and every running sequence's lease.
//!
//! A lease is a sequence's block table and its place in the tree. It holds a reference to every block
//! of the path to that place, so what the tree must not give up is exactly what is leased, and
//! "free + cached" is exactly what can be had.
//!
//! A block enters the tree when the scheduler *commits* its tokens: it knows from the engine's answer
//! that they are computed. Until then the tokens of a running prefill are only *promised*: a candidate
//! that would compute them again is told to wait instead.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::MessageResponse;

use super::block_pool::{BlockCounts, BlockPool, BlockState};
use super::radix_tree::{Inserted, Namespace, NodeId, PartialMatch, RadixTree, common_prefix};
use crate::engine::step::BlockCopy;
use crate::ids::{BlockId, SequenceId, TokenId};

/// What the scheduler asks in one planning cycle. Done in the order of the fields.
#[derive(Debug, Default)]
pub struct Cycle {
    pub commits: Vec<Commit>,
    /// Sequences that have ended.
    pub releases: Vec<Release>,
    /// Sequences that need one more block, the most important first.
    pub growth: Vec<SequenceId>,
    pub admissions: AdmissionRound,
}

/// Newly computed tokens of a running sequence.
#[derive(Debug)]
pub struct Commit {
    pub sequence: SequenceId,
    /// The tokens from the first that is not yet in a committed full block to the last computed.
    pub tokens: Vec<TokenId>,
    /// Everything promised at admission is computed: nobody need wait for it, and the partly filled
    /// last block may be copied from, too.
    pub prefilled: bool,
}

/// The end of a lease.
#[derive(Debug)]
pub struct Release {
    pub sequence: SequenceId,
    /// As [`Commit::tokens`]; a partly filled last block is kept.
    pub tokens: Vec<TokenId>,
}

/// Waiting sequences that may begin, and how much room the scheduler has for them.
#[derive(Debug, Default)]
pub struct AdmissionRound {
    /// In the order in which they are to be admitted: the first that finds no room ends the round.
    pub candidates: Vec<Candidate>,
    /// How many may be admitted.
    pub slots: usize,
    /// The round ends when those admitted have claimed this many tokens of the step.
    pub tokens: usize,
    /// What each claims: as many as it has to compute, and at most this many.
    pub claim: usize,
    /// Blocks that must stay available for the running sequences to grow.
    pub reserve: usize,
}

#[derive(Debug)]
pub struct Candidate {
    pub sequence: SequenceId,
    pub namespace: Namespace,
    /// All tokens it will compute before it samples: the prompt, and after a preemption its output so
    /// far. At least one.
    pub tokens: Arc<[TokenId]>,
    /// At most this many of them may be taken from the cache; the others it computes itself.
    pub reusable: usize,
    /// It ran before and was preempted; its tokens do not count again in the statistics.
    pub resumed: bool,
}

#[derive(Debug, Default, PartialEq, Eq, MessageResponse)]
pub struct CycleReply {
    pub grown: Vec<(SequenceId, BlockId)>,
    /// Sequences whose leases ended because blocks ran out. When there are any, nothing was admitted.
    pub preempted: Vec<SequenceId>,
    /// Answers to the first candidates, in their order; the others were not looked at.
    pub admissions: Vec<(SequenceId, Admission)>,
    pub counts: BlockCounts,
    pub statistics: CycleStatistics,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It has a lease now.
    Admitted {
        /// Its block table, enough for all its tokens.
        blocks: Vec<BlockId>,
        /// Tokens whose keys and values exist, always fewer than it has. `copy` included.
        cached: usize,
        /// The part of them that must be copied first.
        copy: Option<BlockCopy>,
    },
    /// `by` is computing its next tokens: ask again when it has computed `until`, or is gone.
    Promised { by: SequenceId, until: usize },
    /// There are too few blocks now.
    NoRoom,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CycleStatistics {
    /// Tokens of sequences admitted for the first time.
    pub query_tokens: usize,
    /// Of these, the tokens found.
    pub hit_tokens: usize,
    pub evicted_blocks: usize,
}

/// A running sequence's blocks.
#[derive(Debug)]
struct Lease {
    /// In order of position, as the engine has it.
    table: Vec<BlockId>,
    root: NodeId,
    /// The tree's node of the last committed full block, or the root.
    node: NodeId,
    /// Tokens on the path to `node`: a multiple of the block size.
    committed: usize,
    /// The tree's blocks on that path for tokens that another sequence computed at the same time, in
    /// place of this sequence's own blocks.
    twins: Vec<BlockId>,
    /// The tokens it was admitted with, until all of them are computed.
    promise: Option<Arc<[TokenId]>>,
}

/// The books of one KV pool.
#[derive(Debug)]
pub struct Ledger {
    block_size: usize,
    pool: BlockPool,
    tree: RadixTree,
    /// By age: the last is the first to be preempted.
    leases: BTreeMap<SequenceId, Lease>,
    evicted: usize,
}

impl Ledger {
    /// The books of a pool of `blocks` free blocks of `block_size` tokens.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        Self {
            block_size,
            pool: BlockPool::new(blocks),
            tree: RadixTree::new(block_size),
            leases: BTreeMap::new(),
            evicted: 0,
        }
    }

    pub fn counts(&self) -> BlockCounts {
        self.pool.counts()
    }

    /// Running sequences that hold blocks.
    pub fn leases(&self) -> usize {
        self.leases.len()
    }

    /// Does one planning cycle.
    pub fn run(&mut self, cycle: Cycle) -> CycleReply {
        for Commit {
            sequence,
            tokens,
            prefilled,
        } in cycle.commits
        {
            self.commit(sequence, &tokens, prefilled);
        }
        for Release { sequence, tokens } in cycle.releases {
            self.commit(sequence, &tokens, true);
            self.end_lease(sequence);
        }
        let mut reply = CycleReply::default();
        for sequence in cycle.growth {
            self.grow(sequence, &mut reply);
        }
        if reply.preempted.is_empty() {
            self.admit_round(cycle.admissions, &mut reply);
        }
        reply.counts = self.pool.counts();
        reply.statistics.evicted_blocks = std::mem::take(&mut self.evicted);
        reply
    }

    /// Enters computed tokens into the tree: full blocks, and with `tail` a partly filled last one.
    fn commit(&mut self, sequence: SequenceId, tokens: &[TokenId], tail: bool) {
        let Some(mut lease) = self.leases.remove(&sequence) else {
            return;
        };
        for tokens in tokens.chunks(self.block_size) {
            let full = tokens.len() == self.block_size;
            if !full && !tail {
                break;
            }
            let own = lease.table[lease.committed / self.block_size];
            let node = match self.tree.insert(lease.node, tokens, own) {
                Inserted::Added(node) => {
                    self.pool.enter_tree(own);
                    node
                }
                Inserted::Extended(node) => node,
                Inserted::Replaced { node, old } => {
                    self.pool.leave_tree(old);
                    self.pool.enter_tree(own);
                    node
                }
                Inserted::Present { node, block } => {
                    if full && block != own {
                        self.lease_block(block);
                        lease.twins.push(block);
                    }
                    node
                }
            };
            if full {
                lease.node = node;
                lease.committed += self.block_size;
            }
        }
        if tail {
            lease.promise = None;
        }
        self.leases.insert(sequence, lease);
    }

    fn end_lease(&mut self, sequence: SequenceId) {
        let Some(lease) = self.leases.remove(&sequence) else {
            return;
        };
        for block in lease.table.into_iter().chain(lease.twins) {
            self.release_block(block);
        }
    }

    /// Gives `sequence` one more block, at the cost of younger sequences if need be, or of itself.
    fn grow(&mut self, sequence: SequenceId, reply: &mut CycleReply) {
        while self.leases.contains_key(&sequence) {
            if let Some(block) = self.take_block() {
                let lease = self.leases.get_mut(&sequence).expect("checked above");
                lease.table.push(block);
                reply.grown.push((sequence, block));
                return;
            }
            let youngest = *self
                .leases
                .last_key_value()
                .expect("there is at least this one")
                .0;
            self.end_lease(youngest);
            reply.grown.retain(|(grown, _)| *grown != youngest);
            reply.preempted.push(youngest);
        }
    }

    fn admit_round(&mut self, round: AdmissionRound, reply: &mut CycleReply) {
        let (mut slots, mut tokens) = (round.slots, round.tokens);
        // Sources of copies stay leased to the end of the round, so that none becomes a target.
        let mut sources = Vec::new();
        for candidate in round.candidates {
            if slots == 0 || tokens == 0 {
                break;
            }
            let admission = self.admit(&candidate, round.reserve, &mut sources);
            let found_room = admission != Admission::NoRoom;
            if let Admission::Admitted { cached, .. } = admission {
                slots -= 1;
                let claimed = round.claim.min(candidate.tokens.len() - cached);
                tokens = tokens.saturating_sub(claimed);
                if !candidate.resumed {
                    reply.statistics.query_tokens += candidate.tokens.len();
                    reply.statistics.hit_tokens += cached;
                }
            }
            reply.admissions.push((candidate.sequence, admission));
            if !found_room {
                break;
            }
        }
        for source in sources {
            self.release_block(source);
        }
    }

    fn admit(
        &mut self,
        candidate: &Candidate,
        reserve: usize,
        sources: &mut Vec<BlockId>,
    ) -> Admission {
        let tokens = &candidate.tokens;
        // The last token is always computed, to have logits.
        let reusable = &tokens[..candidate.reusable.min(tokens.len() - 1)];
        let root = self.tree.root(candidate.namespace);
        let found = self.tree.find(root, reusable);
        let shared = found.full.len() * self.block_size;
        let partial_tokens = found.partial.map_or(0, |partial| partial.tokens);
        if let Some(promised) = self.promise_of(root, reusable, shared + partial_tokens) {
            return promised;
        }

        for block in &found.full {
            self.lease_block(*block);
        }
        let fresh = tokens.len().div_ceil(self.block_size) - found.full.len();
        let needed = fresh + reserve;
        let partial = found
            .partial
            .filter(|partial| self.has_beside(partial.block, needed));
        if partial.is_none() && self.pool.counts().available() < needed {
            for block in found.full {
                self.release_block(block);
            }
            return Admission::NoRoom;
        }
        if let Some(PartialMatch { block, .. }) = partial {
            self.lease_block(block);
            self.tree.touch(block);
            sources.push(block);
        }

        let mut table = found.full;
        for _ in 0..fresh {
            table.push(self.take_block().expect("as many blocks are available"));
        }
        let copy = partial.map(|PartialMatch { block, tokens }| BlockCopy {
            from: block,
            to: table[shared / self.block_size],
            tokens,
        });
        let lease = Lease {
            table: table.clone(),
            root,
            node: found.node,
            committed: shared,
            twins: Vec::new(),
            promise: Some(tokens.clone()),
        };
        self.leases.insert(candidate.sequence, lease);
        let cached = shared + copy.map_or(0, |copy| copy.tokens);
        Admission::Admitted {
            blocks: table,
            cached,
            copy,
        }
    }

    /// Whether `needed` blocks can be had without giving up `block`.
    fn has_beside(&self, block: BlockId, needed: usize) -> bool {
        let itself = usize::from(self.pool.state(block) == BlockState::Cached);
        self.pool.counts().available() - itself >= needed
    }

    /// The running sequence that is computing most of what of `tokens` is not `cached` yet, if that
    /// is at least a block.
    fn promise_of(&self, root: NodeId, tokens: &[TokenId], cached: usize) -> Option<Admission> {
        let promises = self.leases.iter().filter_map(|(sequence, lease)| {
            let promised = lease.promise.as_ref().filter(|_| lease.root == root)?;
            Some((common_prefix(promised, tokens), *sequence, promised.len()))
        });
        let (shared, by, length) = promises.max_by_key(|(shared, ..)| *shared)?;
        (shared >= cached + self.block_size).then(|| Admission::Promised {
            by,
            until: shared.next_multiple_of(self.block_size).min(length),
        })
    }

    /// A free block, leased once; evicts if there is none.
    fn take_block(&mut self) -> Option<BlockId> {
        if self.pool.counts().free == 0 {
            let evicted = self.tree.evict()?;
            self.pool.leave_tree(evicted);
            self.evicted += 1;
        }
        self.pool.take()
    }

    fn lease_block(&mut self, block: BlockId) {
        if self.pool.state(block) == BlockState::Cached {
            self.tree.set_leased(block, true);
        }
        self.pool.lease(block);
    }

    fn release_block(&mut self, block: BlockId) {
        if self.pool.release(block) == BlockState::Cached {
            self.tree.set_leased(block, false);
        }
    }

    /// Checks the books against each other. O(blocks), for tests and debug assertions.
    ///
    /// # Errors
    /// The first contradiction found.
    pub fn check_integrity(&self) -> Result<(), String> {
        let mut leases = vec![0u32; self.pool.counts().total()];
        for (sequence, lease) in &self.leases {
            for block in lease.table.iter().chain(&lease.twins) {
                leases[block.0 as usize] += 1;
            }
            if lease.committed > lease.table.len() * self.block_size {
                return Err(format!(
                    "{sequence} has committed more than its blocks hold"
                ));
            }
        }
        let of = |block: BlockId| leases[block.0 as usize];
        self.pool
            .check_integrity(of, |block| self.tree.contains(block))?;
        self.tree.check_integrity(|block| of(block) > 0)
    }
}
