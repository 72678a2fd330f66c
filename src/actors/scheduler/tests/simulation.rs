//! Random load on the bench: arrivals, cancellations, deadlines, failing rows, tiny pools, chunks of any
//! size, late outputs. Each run ends idle, and each output equals the request's solo run.

use std::time::Duration;

use super::bench::{Bench, Order};
use crate::actors::messages::SubmitError;
use crate::actors::scheduler::SchedulerOptions;
use crate::ids::{SequenceId, TokenId};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    fn tokens(&mut self, count: usize) -> Vec<TokenId> {
        (0..count)
            .map(|_| TokenId((self.next() % 4) as u32))
            .collect()
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        (!items.is_empty()).then(|| &items[self.range(0, items.len() - 1)])
    }
}

/// A prompt that shares much with others: a common beginning, or a conversation's next turn.
fn prompt(random: &mut Random, families: &[Vec<TokenId>], bench: &Bench) -> Vec<TokenId> {
    let tickets: Vec<_> = bench.tickets.values().collect();
    let mut prompt = match random.range(0, 3) {
        0 => Vec::new(),
        1 => random.pick(&tickets).map_or(Vec::new(), |ticket| {
            let mut turn = ticket.order.prompt.clone();
            turn.extend(ticket.tokens());
            turn
        }),
        _ => random.pick(families).cloned().unwrap_or_default(),
    };
    prompt.truncate(random.range(0, 40));
    if prompt.is_empty() || random.chance(70) {
        let count = random.range(1, 8);
        prompt.extend(random.tokens(count));
    }
    prompt
}

struct Coverage {
    preempted: u64,
    evicted: bool,
    hits: u64,
}

fn simulate(seed: u64) -> Coverage {
    let mut random = Random(seed);
    let block_size = [1, 2, 3, 4, 8, 16][random.range(0, 5)];
    let block_count = random.range(64usize.div_ceil(block_size), 200usize.div_ceil(block_size));
    let max_batch_tokens = [1, 2, 5, 16, 64, 512][random.range(0, 5)];
    let options = SchedulerOptions {
        max_batch_tokens,
        min_prefill_tokens: random.range(1, 4),
        max_running: [1, 2, 4, 8, 64][random.range(0, 4)],
        max_waiting: random.range(4, 40),
        ..SchedulerOptions::default()
    };
    let mut bench = Bench::new(block_count, block_size, options);
    let families: Vec<_> = (0..3)
        .map(|_| {
            let count = random.range(4, 36);
            random.tokens(count)
        })
        .collect();

    let mut orders = random.range(4, 48);
    let (cancels, breaks, lateness) = (
        random.range(0, 8) as u64,
        random.range(0, 2) as u64,
        random.range(20, 90) as u64,
    );
    while orders > 0 {
        if random.chance(30) {
            let burst = random.range(1, 6).min(orders);
            let same = random
                .chance(30)
                .then(|| prompt(&mut random, &families, &bench));
            for _ in 0..burst {
                orders -= 1;
                let prompt = same
                    .clone()
                    .unwrap_or_else(|| prompt(&mut random, &families, &bench));
                let order = Order {
                    prompt,
                    max_new_tokens: random.range(1, 16),
                    ignore_eos: random.chance(50),
                    seed: random.next() % 3,
                    patience: Duration::from_millis(random.range(1, 3000) as u64),
                };
                match bench.enqueue(order) {
                    Ok(_) | Err(SubmitError::QueueFull { .. }) => {}
                    Err(refused) => panic!("seed {seed}: {refused}"),
                }
                if random.chance(50) {
                    bench.pump();
                }
            }
            bench.pump();
        }
        let live: Vec<SequenceId> = bench
            .tickets
            .iter()
            .filter(|(_, ticket)| !ticket.is_over())
            .map(|(id, _)| *id)
            .collect();
        if random.chance(cancels)
            && let Some(id) = random.pick(&live)
        {
            bench.cancel(*id);
        }
        if random.chance(breaks) {
            bench.engine.broken = random.pick(&live).copied();
        }
        bench.now += Duration::from_millis(random.range(0, 20) as u64);
        bench.expire();
        if random.chance(lateness) {
            bench.step_time = Duration::from_micros(random.range(0, 200_000) as u64);
            bench.compute();
        }
        if random.chance(lateness) {
            bench.deliver();
        }
    }
    bench.finish();
    let preempted = bench.metrics.preemptions.get();
    let counts = bench.ledger.counts();
    Coverage {
        preempted,
        evicted: counts.free == 0,
        hits: bench
            .tickets
            .values()
            .filter_map(|ticket| ticket.usage())
            .map(|usage| usage.cached_tokens as u64)
            .sum(),
    }
}

/// Seeds per run of the tests; set `SIMULATION_SEEDS` for more.
fn seeds() -> u64 {
    std::env::var("SIMULATION_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok())
        .unwrap_or(2000)
}

#[test]
fn random_load_ends_idle_and_every_output_equals_its_solo_run() {
    let mut preempted = 0;
    let mut evicted = 0;
    let mut hits = 0;
    for seed in 0..seeds() {
        let result = std::panic::catch_unwind(|| simulate(seed));
        let coverage = result.unwrap_or_else(|panic| {
            eprintln!("the failing seed is {seed}");
            std::panic::resume_unwind(panic)
        });
        preempted += coverage.preempted;
        evicted += u64::from(coverage.evicted);
        hits += coverage.hits;
    }
    eprintln!("{preempted} preemptions, {evicted} full pools, {hits} cached tokens");
    assert!(
        preempted > 0 && evicted > 0 && hits > 0,
        "the load must reach every path"
    );
}
