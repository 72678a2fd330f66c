//! Random operations on tree, pool and ledger beside naive models that are obviously right.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::block_pool::{BlockPool, BlockState};
use super::ledger::{
    Admission, AdmissionRound, Candidate, Commit, Cycle, CycleReply, Ledger, Release,
};
use super::radix_tree::{Inserted, Namespace, RadixTree, common_prefix};
use crate::ids::{BlockId, SequenceId, TokenId};

/// Few different tokens, so that random sequences share prefixes of all lengths.
fn tokens(max: usize) -> impl Strategy<Value = Vec<TokenId>> {
    let token = prop_oneof![4 => Just(0u32), 2 => Just(1), 1 => Just(2)].prop_map(TokenId);
    proptest::collection::vec(token, 1..=max)
}

#[derive(Debug, Clone)]
enum TreeOp {
    /// A sequence computes these tokens and enters them.
    Enter {
        tokens: Vec<TokenId>,
    },
    /// The sequence of this index (of those that run) ends.
    End(usize),
    Find {
        tokens: Vec<TokenId>,
        touch: bool,
    },
    Evict,
}

fn tree_op() -> impl Strategy<Value = TreeOp> {
    prop_oneof![
        4 => tokens(14).prop_map(|tokens| TreeOp::Enter { tokens }),
        3 => any::<usize>().prop_map(TreeOp::End),
        3 => (tokens(14), any::<bool>()).prop_map(|(tokens, touch)| TreeOp::Find { tokens, touch }),
        2 => Just(TreeOp::Evict),
    ]
}

/// A block of the naive tree: all tokens from the root to its end.
#[derive(Debug)]
struct Entry {
    path: Vec<TokenId>,
    block: BlockId,
    used: u64,
}

/// The naive tree: a list of paths, and who uses which block.
struct Naive {
    block_size: usize,
    entries: Vec<Entry>,
    /// The blocks of each running sequence.
    running: Vec<Vec<BlockId>>,
    clock: u64,
}

impl Naive {
    fn leased(&self, block: BlockId) -> bool {
        self.leases(block) > 0
    }

    fn leases(&self, block: BlockId) -> u32 {
        self.running
            .iter()
            .flatten()
            .filter(|other| **other == block)
            .count() as u32
    }

    fn use_now(&mut self, block: BlockId) {
        self.clock += 1;
        if let Some(entry) = self.entries.iter_mut().find(|entry| entry.block == block) {
            entry.used = self.clock;
        }
    }

    /// Blocks from the root down to the end of `path`.
    fn depth(&self, path: &[TokenId]) -> usize {
        path.len().div_ceil(self.block_size)
    }

    /// The entry that holds `path`, or that would grow to it: in `block`, if there are several.
    fn same_block(&mut self, path: &[TokenId], block: Option<BlockId>) -> Option<&mut Entry> {
        let depth = self.depth(path);
        let block_size = self.block_size;
        self.entries.iter_mut().find(|entry| {
            entry.path.len().div_ceil(block_size) == depth
                && (entry.path.starts_with(path) || path.starts_with(&entry.path))
                && block.is_none_or(|block| block == entry.block)
        })
    }

    fn longest_match(&self, tokens: &[TokenId]) -> usize {
        self.entries
            .iter()
            .map(|entry| common_prefix(&entry.path, tokens))
            .max()
            .unwrap_or(0)
    }

    /// Removes the least recently used entry that is not leased and has nothing below it.
    fn evict(&mut self) -> Option<BlockId> {
        let is_leaf = |entry: &Entry| {
            let below = |other: &Entry| {
                self.depth(&other.path) > self.depth(&entry.path)
                    && other.path.starts_with(&entry.path)
            };
            !self.leased(entry.block) && !self.entries.iter().any(below)
        };
        let oldest = (0..self.entries.len())
            .filter(|index| is_leaf(&self.entries[*index]))
            .min_by_key(|index| self.entries[*index].used)?;
        Some(self.entries.remove(oldest).block)
    }
}

/// Tree and pool, used as the ledger uses them.
struct Real {
    pool: BlockPool,
    tree: RadixTree,
}

impl Real {
    fn lease(&mut self, block: BlockId) {
        if self.pool.state(block) == BlockState::Cached {
            self.tree.set_leased(block, true);
        }
        self.pool.lease(block);
    }
}

/// Enters `tokens` block by block into both, and leases the whole path to a new running sequence.
fn enter(real: &mut Real, naive: &mut Naive, tokens: &[TokenId]) {
    let root = real.tree.root(Namespace::default());
    let mut node = root;
    let mut held = Vec::new();
    for start in (0..tokens.len()).step_by(naive.block_size) {
        let end = (start + naive.block_size).min(tokens.len());
        let Some(own) = real.pool.take() else { break };
        held.push(own);
        let path = &tokens[..end];
        let inserted = real.tree.insert(node, &tokens[start..end], own);
        let clock = naive.clock;
        let named = match inserted {
            Inserted::Present { block, .. } => Some(block),
            _ => None,
        };
        match (inserted, naive.same_block(path, named)) {
            (Inserted::Added(added), None) => {
                real.pool.enter_tree(own);
                naive.entries.push(Entry {
                    path: path.to_vec(),
                    block: own,
                    used: clock,
                });
                node = added;
            }
            (Inserted::Replaced { node: longer, old }, Some(entry)) => {
                assert!(path.len() > entry.path.len() && entry.block == old);
                real.pool.leave_tree(old);
                real.pool.enter_tree(own);
                entry.path = path.to_vec();
                entry.block = own;
                node = longer;
            }
            (
                Inserted::Present {
                    node: present,
                    block,
                },
                Some(entry),
            ) => {
                assert!(entry.path.starts_with(path));
                if !naive.leased(block) {
                    naive.use_now(block);
                }
                real.lease(block);
                held.push(block);
                node = present;
            }
            (inserted, entry) => panic!("{inserted:?}, expected {entry:?}"),
        }
    }
    naive.running.push(held);
}

fn check(real: &Real, naive: &Naive) {
    let in_tree = |block| naive.entries.iter().any(|entry| entry.block == block);
    real.pool
        .check_integrity(|block| naive.leases(block), in_tree)
        .unwrap();
    real.tree
        .check_integrity(|block| naive.leased(block))
        .unwrap();
}

fn run_tree(block_size: usize, blocks: usize, ops: Vec<TreeOp>) {
    let mut real = Real {
        pool: BlockPool::new(blocks),
        tree: RadixTree::new(block_size),
    };
    let mut naive = Naive {
        block_size,
        entries: Vec::new(),
        running: Vec::new(),
        clock: 0,
    };
    for op in ops {
        match op {
            TreeOp::Enter { tokens } => enter(&mut real, &mut naive, &tokens),
            TreeOp::End(_) if naive.running.is_empty() => {}
            TreeOp::End(index) => {
                let held = naive.running.swap_remove(index % naive.running.len());
                for (done, block) in held.iter().enumerate() {
                    let left = held[done + 1..].contains(block) || naive.leased(*block);
                    let state = real.pool.release(*block);
                    assert_eq!(state == BlockState::Leased, left);
                    if state == BlockState::Cached {
                        real.tree.set_leased(*block, false);
                        naive.use_now(*block);
                    }
                }
            }
            TreeOp::Find { tokens, touch } => {
                let root = real.tree.root(Namespace::default());
                let found = real.tree.find(root, &tokens);
                let full = found.full.len() * block_size;
                let partial = found.partial.map_or(0, |partial| partial.tokens);
                assert_eq!(full + partial, naive.longest_match(&tokens));
                let mut blocks = found.full;
                blocks.extend(found.partial.map(|partial| partial.block));
                for (depth, block) in blocks.iter().enumerate() {
                    let end = ((depth + 1) * block_size).min(full + partial);
                    let entry = naive
                        .entries
                        .iter()
                        .find(|entry| entry.block == *block)
                        .unwrap();
                    assert!(
                        entry.path.starts_with(&tokens[..end]),
                        "{block:?} holds other tokens"
                    );
                }
                if let Some(partial) = found.partial.filter(|_| touch) {
                    real.tree.touch(partial.block);
                    naive.use_now(partial.block);
                }
            }
            TreeOp::Evict => {
                let evicted = real.tree.evict();
                assert_eq!(evicted, naive.evict());
                if let Some(block) = evicted {
                    assert_eq!(real.pool.leave_tree(block), BlockState::Free);
                }
            }
        }
        check(&real, &naive);
    }
}

#[derive(Debug, Clone)]
enum LedgerOp {
    Admit {
        tokens: Vec<TokenId>,
        reserve: usize,
    },
    /// The sequence of this index computes so many more tokens of its own, or samples them.
    Compute {
        index: usize,
        count: usize,
        sampled: Vec<TokenId>,
    },
    Release {
        index: usize,
    },
    Grow {
        index: usize,
    },
}

fn ledger_op() -> impl Strategy<Value = LedgerOp> {
    prop_oneof![
        3 => (tokens(14), 0..3usize)
            .prop_map(|(tokens, reserve)| LedgerOp::Admit { tokens, reserve }),
        5 => (any::<usize>(), 1..9usize, tokens(4))
            .prop_map(|(index, count, sampled)| LedgerOp::Compute { index, count, sampled }),
        2 => any::<usize>().prop_map(|index| LedgerOp::Release { index }),
        2 => any::<usize>().prop_map(|index| LedgerOp::Grow { index }),
    ]
}

/// What the naive ledger knows of a running sequence.
#[derive(Debug)]
struct Running {
    tokens: Vec<TokenId>,
    /// Tokens it was admitted with.
    admitted: usize,
    computed: usize,
    committed: usize,
    blocks: usize,
}

struct LedgerModel {
    block_size: usize,
    ledger: Ledger,
    running: BTreeMap<SequenceId, Running>,
    /// Every prefix that was ever committed.
    committed: Vec<Vec<TokenId>>,
    last: u64,
    /// The pool is so large that nothing is ever evicted: matches are known exactly.
    roomy: bool,
}

impl LedgerModel {
    fn run(&mut self, cycle: Cycle) -> CycleReply {
        let reply = self.ledger.run(cycle);
        self.ledger.check_integrity().unwrap();
        assert_eq!(reply.counts, self.ledger.counts());
        assert!(!self.roomy || reply.statistics.evicted_blocks == 0);
        for gone in &reply.preempted {
            assert!(!self.roomy);
            self.running
                .remove(gone)
                .expect("only running sequences are preempted");
        }
        assert_eq!(self.ledger.leases(), self.running.len());
        reply
    }

    fn pick(&self, index: usize) -> Option<SequenceId> {
        let count = self.running.len().max(1);
        self.running.keys().nth(index % count).copied()
    }

    fn admit(&mut self, tokens: Vec<TokenId>, reserve: usize) {
        self.last += 1;
        let sequence = SequenceId(self.last);
        let candidate = Candidate {
            sequence,
            namespace: Namespace::default(),
            tokens: Arc::from(tokens.as_slice()),
            reusable: usize::MAX,
            resumed: false,
        };
        let reusable = &tokens[..tokens.len() - 1];
        let longest = self
            .committed
            .iter()
            .map(|path| common_prefix(path, reusable))
            .max();
        let longest = longest.unwrap_or(0);
        let promised = self
            .running
            .values()
            .filter(|running| running.computed < running.admitted);
        let promised = promised
            .map(|running| common_prefix(&running.tokens[..running.admitted], reusable))
            .max()
            .unwrap_or(0);
        let admissions = AdmissionRound {
            candidates: vec![candidate],
            slots: 1,
            tokens: 100,
            claim: 100,
            reserve,
        };
        let counts = self.ledger.counts();
        let reply = self.ledger_admit(admissions, &tokens, sequence);
        match reply {
            Admission::Promised { by, until } => {
                let giver = &self.running[&by];
                assert!(giver.computed < until && until <= giver.admitted);
                assert!(promised >= self.block_size);
                assert!(!self.roomy || promised >= longest + self.block_size);
            }
            Admission::NoRoom => {
                let most = tokens.len().div_ceil(self.block_size) + reserve;
                assert!(counts.available() < most, "{counts:?} hold {most} blocks");
            }
            Admission::Admitted { cached, .. } => {
                assert!(cached <= longest);
                if self.roomy {
                    assert_eq!(cached, longest, "a match is exact to the token");
                    assert!(promised < longest + self.block_size);
                }
            }
        }
    }

    fn ledger_admit(
        &mut self,
        admissions: AdmissionRound,
        tokens: &[TokenId],
        sequence: SequenceId,
    ) -> Admission {
        let reply = self.ledger.run(Cycle {
            admissions,
            ..Cycle::default()
        });
        self.ledger.check_integrity().unwrap();
        let (answered, admission) = reply.admissions.into_iter().next().expect("one answer");
        assert_eq!(answered, sequence);
        if let Admission::Admitted {
            blocks,
            cached,
            copy,
        } = &admission
        {
            assert_eq!(blocks.len(), tokens.len().div_ceil(self.block_size));
            let copied = copy.map_or(0, |copy| copy.tokens);
            assert_eq!((cached - copied) % self.block_size, 0);
            if let Some(copy) = copy {
                assert_eq!(copy.to, blocks[cached / self.block_size]);
                assert!(!blocks.contains(&copy.from));
            }
            let running = Running {
                tokens: tokens.to_vec(),
                admitted: tokens.len(),
                computed: *cached,
                committed: cached - copied,
                blocks: blocks.len(),
            };
            self.running.insert(sequence, running);
        }
        admission
    }

    fn compute(&mut self, sequence: SequenceId, count: usize, sampled: &[TokenId]) {
        let block_size = self.block_size;
        let running = self
            .running
            .get_mut(&sequence)
            .expect("picked from the running");
        let before = running.computed;
        if running.computed < running.admitted {
            running.computed = (running.computed + count).min(running.admitted);
        } else {
            let room = running.blocks * block_size - running.computed;
            running.tokens.extend(&sampled[..sampled.len().min(room)]);
            running.computed = running.tokens.len();
        }
        let prefilled = before < running.admitted && running.computed == running.admitted;
        let full = running.computed / block_size * block_size;
        let end = if prefilled { running.computed } else { full };
        if end <= running.committed {
            return;
        }
        let tokens = running.tokens[running.committed..end].to_vec();
        running.committed = full;
        self.committed.push(running.tokens[..end].to_vec());
        let commit = Commit {
            sequence,
            tokens,
            prefilled,
        };
        self.run(Cycle {
            commits: vec![commit],
            ..Cycle::default()
        });
    }

    fn release(&mut self, sequence: SequenceId) {
        let running = self
            .running
            .remove(&sequence)
            .expect("picked from the running");
        let tokens = running.tokens[running.committed..running.computed].to_vec();
        self.committed
            .push(running.tokens[..running.computed].to_vec());
        self.run(Cycle {
            releases: vec![Release { sequence, tokens }],
            ..Cycle::default()
        });
    }

    fn grow(&mut self, sequence: SequenceId) {
        let reply = self.run(Cycle {
            growth: vec![sequence],
            ..Cycle::default()
        });
        let grown = reply.grown.iter().any(|(grown, _)| *grown == sequence);
        assert_eq!(grown, !reply.preempted.contains(&sequence));
        if let Some(running) = self.running.get_mut(&sequence) {
            running.blocks += 1;
        }
        if let Some(youngest) = reply.preempted.iter().max() {
            assert!(
                self.running.keys().all(|left| left < youngest),
                "the youngest go first"
            );
        }
    }
}

fn run_ledger(block_size: usize, blocks: usize, roomy: bool, ops: Vec<LedgerOp>) {
    let mut model = LedgerModel {
        block_size,
        ledger: Ledger::new(blocks, block_size),
        running: BTreeMap::new(),
        committed: Vec::new(),
        last: 0,
        roomy,
    };
    for op in ops {
        match op {
            LedgerOp::Admit { tokens, reserve } => model.admit(tokens, reserve),
            LedgerOp::Compute {
                index,
                count,
                sampled,
            } => {
                if let Some(sequence) = model.pick(index) {
                    model.compute(sequence, count, &sampled);
                }
            }
            LedgerOp::Release { index } => {
                if let Some(sequence) = model.pick(index) {
                    model.release(sequence);
                }
            }
            LedgerOp::Grow { index } => {
                if let Some(sequence) = model.pick(index) {
                    model.grow(sequence);
                }
            }
        }
    }
    while let Some(sequence) = model.pick(0) {
        model.release(sequence);
    }
    assert_eq!(
        model.ledger.counts().leased,
        0,
        "nothing runs, so nothing is leased"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn tree_and_pool_agree_with_a_list_of_paths(
        block_size in 1..5usize,
        blocks in 4..60usize,
        ops in proptest::collection::vec(tree_op(), 1..80),
    ) {
        run_tree(block_size, blocks, ops);
    }

    #[test]
    fn without_evictions_the_ledger_finds_exactly_what_was_committed(
        block_size in 1..5usize,
        ops in proptest::collection::vec(ledger_op(), 1..80),
    ) {
        run_ledger(block_size, 2000, true, ops);
    }

    #[test]
    fn in_a_tiny_pool_the_ledger_keeps_its_books(
        block_size in 1..5usize,
        blocks in 4..24usize,
        ops in proptest::collection::vec(ledger_op(), 1..80),
    ) {
        run_ledger(block_size, blocks, false, ops);
    }
}
