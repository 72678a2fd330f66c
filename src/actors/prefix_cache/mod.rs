//! The prefix cache: which tokens' keys and values exist, in which blocks, and who uses them.
//!
//! An actor around the [`Ledger`]. It copies no KV data and never hands out a block that is not fully
//! written: what the scheduler commits has been computed.

mod block_pool;
mod ledger;
#[cfg(test)]
mod model_test;
pub mod radix_tree;

use std::sync::Arc;

use actix::prelude::*;

pub use block_pool::BlockCounts;
pub use ledger::{
    Admission, AdmissionRound, Candidate, Commit, Cycle, CycleReply, CycleStatistics, Ledger,
    Release,
};
pub use radix_tree::Namespace;

use crate::telemetry::Metrics;

/// Owns the books of one engine's KV pool.
pub struct PrefixCache {
    ledger: Ledger,
    metrics: Arc<Metrics>,
}

impl PrefixCache {
    /// The books of a pool of `blocks` blocks of `block_size` tokens, all free.
    pub fn new(blocks: usize, block_size: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            ledger: Ledger::new(blocks, block_size),
            metrics,
        }
    }

    fn publish(&self, counts: BlockCounts) {
        self.metrics
            .set_kv_blocks(counts.free, counts.leased, counts.cached);
    }
}

impl Actor for PrefixCache {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        self.publish(self.ledger.counts());
    }
}

/// One planning cycle: the only message that changes anything.
#[derive(Message)]
#[rtype(result = "CycleReply")]
pub struct RunCycle(pub Cycle);

impl Handler<RunCycle> for PrefixCache {
    type Result = CycleReply;

    fn handle(&mut self, RunCycle(cycle): RunCycle, _: &mut Self::Context) -> Self::Result {
        let reply = self.ledger.run(cycle);
        let CycleStatistics {
            query_tokens,
            hit_tokens,
            evicted_blocks,
        } = reply.statistics;
        self.metrics
            .prefix_cache_query_tokens
            .inc_by(query_tokens as u64);
        self.metrics
            .prefix_cache_hit_tokens
            .inc_by(hit_tokens as u64);
        self.metrics
            .prefix_cache_evicted_blocks
            .inc_by(evicted_blocks as u64);
        self.publish(reply.counts);
        reply
    }
}

/// Asks for the state of the books.
#[derive(Message)]
#[rtype(result = "LedgerReport")]
pub struct Inspect;

/// The state of the books.
#[derive(Debug, Clone, PartialEq, Eq, MessageResponse)]
pub struct LedgerReport {
    pub counts: BlockCounts,
    /// Sequences that hold blocks.
    pub leases: usize,
    /// The first contradiction found in the books, if any.
    pub integrity: Result<(), String>,
}

impl Handler<Inspect> for PrefixCache {
    type Result = LedgerReport;

    fn handle(&mut self, _: Inspect, _: &mut Self::Context) -> Self::Result {
        LedgerReport {
            counts: self.ledger.counts(),
            leases: self.ledger.leases(),
            integrity: self.ledger.check_integrity(),
        }
    }
}
