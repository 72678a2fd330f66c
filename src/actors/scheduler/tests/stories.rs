//! What must hold in situations that are worth a name.

use std::time::Duration;

use super::bench::{Bench, Order};
use crate::actors::messages::{GenerationEvent, GenerationFailure, SubmitError};
use crate::actors::scheduler::SchedulerOptions;
use crate::ids::TokenId;

fn prompt(range: std::ops::Range<u32>) -> Vec<TokenId> {
    range.map(|token| TokenId(100 + token)).collect()
}

/// Steps of at most `max_batch_tokens`, whatever else is computed.
fn options(max_batch_tokens: usize) -> SchedulerOptions {
    SchedulerOptions {
        max_batch_tokens,
        min_prefill_tokens: max_batch_tokens,
        ..SchedulerOptions::default()
    }
}

/// An earlier server hung here: the first of sixteen equal cold prompts ended in the very step that
/// completed the last shared block, nothing else ran, and nobody woke the fifteen that waited for it.
#[test]
fn sixteen_equal_cold_prompts_cost_one_prefill_even_if_the_first_ends_with_it() {
    for length in [40, 41, 42, 43] {
        for chunk in [3, 4, 8, 512] {
            for max_new_tokens in [1, 2, 9] {
                for at_once in [false, true] {
                    let mut bench = Bench::new(200, 4, options(chunk));
                    for _ in 0..16 {
                        let order = Order::new(prompt(0..length), max_new_tokens);
                        bench.enqueue(order).unwrap();
                        if !at_once {
                            bench.pump();
                        }
                    }
                    bench.pump();
                    bench.finish();
                    // One token each; with chunks as small as a block, some do not wait for the last
                    // few tokens.
                    let again = bench.engine.prefilled - length as usize;
                    let most = if chunk < 8 { 15 * 4 } else { 15 };
                    assert!(
                        (15..=most).contains(&again),
                        "{again} tokens computed again of {length} in chunks of {chunk}"
                    );
                    let cached: usize = bench.tickets.keys().map(|id| bench.cached(*id)).sum();
                    assert_eq!(cached, 15 * length as usize - again);
                }
            }
        }
    }
}

#[test]
fn a_common_system_prompt_is_computed_once_to_the_token() {
    let mut bench = Bench::new(200, 4, options(16));
    for user in 0..8 {
        let mut prompt = prompt(0..42);
        prompt.extend([
            TokenId(user),
            TokenId(user + 1),
            TokenId(user + 2),
            TokenId(user + 3),
        ]);
        bench.enqueue(Order::new(prompt, 5)).unwrap();
    }
    bench.pump();
    bench.finish();
    assert_eq!(bench.engine.prefilled, 42 + 8 * 4);
}

#[test]
fn prompts_that_share_less_than_a_block_do_not_wait_for_each_other() {
    let mut bench = Bench::new(200, 4, options(512));
    for user in 0..4 {
        let mut prompt = prompt(0..3);
        prompt.extend([TokenId(user); 9]);
        bench.enqueue(Order::new(prompt, 1)).unwrap();
    }
    bench.pump();
    assert_eq!(bench.state.running(), 4);
    bench.finish();
}

#[test]
fn when_the_writer_is_cancelled_the_next_goes_on_from_what_it_computed() {
    let mut bench = Bench::new(200, 4, options(8));
    let writer = bench.submit(Order::new(prompt(0..40), 4));
    let others = [(); 3].map(|()| bench.submit(Order::new(prompt(0..40), 4)));
    bench.step();
    bench.cancel(writer);
    bench.finish();
    assert_eq!(bench.engine.prefilled, 40 + 2, "nothing was computed twice");
    assert_eq!(
        bench.cached(others[0]),
        24,
        "one chunk had been answered, two were in flight"
    );
    assert_eq!(bench.cached(others[2]), 39);
}

#[test]
fn when_the_writer_fails_the_others_compute_for_themselves() {
    let mut bench = Bench::new(200, 4, options(8));
    let writer = bench.submit(Order::new(prompt(0..40), 4));
    let others = [(); 3].map(|()| bench.submit(Order::new(prompt(0..40), 4)));
    bench.step();
    bench.engine.broken = Some(writer);
    bench.finish();
    let failure = GenerationFailure::Engine("broken".to_owned());
    assert_eq!(bench.ticket(writer).failure(), Some(failure));
    assert_eq!(others.map(|id| bench.cached(id)), [8, 39, 39]);
}

#[test]
fn when_the_writer_is_preempted_nobody_waits_for_it() {
    let mut bench = Bench::new(12, 4, options(2));
    let elder = bench.submit(Order::new(prompt(500..504), 30));
    let writer = bench.submit(Order::new(prompt(0..32), 4));
    let others = [(); 2].map(|()| bench.submit(Order::new(prompt(0..32), 4)));
    while bench.metrics.preemptions.get() == 0 {
        assert!(bench.step(), "the elder needs the writer's blocks");
    }
    bench.finish();
    assert!(bench.ticket(elder).usage().is_some());
    assert!(bench.cached(writer) == 0 && others.iter().all(|id| bench.cached(*id) > 0));
}

#[test]
fn chains_of_promises_resolve_in_order() {
    let mut bench = Bench::new(200, 4, options(4));
    let ids = [24, 40, 48].map(|length| bench.enqueue(Order::new(prompt(0..length), 3)).unwrap());
    bench.pump();
    assert_eq!((bench.state.running(), bench.state.waiting()), (1, 2));
    bench.finish();
    assert_eq!(bench.engine.prefilled, 48);
    assert_eq!(ids.map(|id| bench.cached(id)), [0, 24, 40]);
}

#[test]
fn a_waiter_may_leave_and_the_rest_go_on() {
    let mut bench = Bench::new(200, 4, options(4));
    let ids = [(); 4].map(|()| bench.submit(Order::new(prompt(0..40), 3)));
    bench.step();
    bench.cancel(ids[1]);
    bench.now += Duration::from_secs(2000);
    bench.expire();
    for id in [ids[0], ids[2], ids[3]] {
        assert_eq!(
            bench.ticket(id).failure(),
            Some(GenerationFailure::DeadlineExceeded)
        );
    }
    bench.finish();
}

#[test]
fn the_next_turn_reuses_prompt_and_answer() {
    let mut bench = Bench::new(200, 8, options(512));
    let mut conversation = prompt(0..21);
    let mut known = 0;
    for turn in 0..5 {
        let id = bench.submit(Order::new(conversation.clone(), 7));
        bench.finish();
        assert_eq!(bench.cached(id), known);
        conversation.extend(bench.ticket(id).tokens());
        // The last sampled token is never computed.
        known = conversation.len() - 1;
        conversation.extend(prompt(1000 * turn..1000 * turn + 3));
    }
}

#[test]
fn what_a_cancelled_prompt_has_computed_is_kept_with_the_chunks_in_flight() {
    let mut bench = Bench::new(200, 4, options(8));
    let gone = bench.submit(Order::new(prompt(0..40), 4));
    bench.step();
    bench.cancel(gone);
    bench.finish();
    let back = bench.submit(Order::new(prompt(0..40), 4));
    bench.finish();
    assert_eq!(bench.cached(back), 24);
}

#[test]
fn a_long_prompt_never_stalls_a_running_stream() {
    let mut bench = Bench::new(400, 4, options(8));
    let stream = bench.submit(Order::new(prompt(0..4), 60));
    bench.step();
    bench.submit(Order::new(prompt(500..1000), 4));
    for _ in 0..50 {
        let before = bench.ticket(stream).tokens().len();
        bench.step();
        assert_eq!(
            bench.ticket(stream).tokens().len(),
            before + 1,
            "a token each step"
        );
    }
    bench.finish();
}

#[test]
fn short_prompts_overtake_a_long_one_that_is_done_in_twice_its_time_all_the_same() {
    let mut bench = Bench::new(1000, 4, options(32));
    let long = bench.submit(Order::new(prompt(0..1600), 2));
    bench.step();
    let mut steps = 0;
    while bench.ticket(long).tokens().is_empty() {
        let short = prompt(5000 + 20 * steps..5020 + 20 * steps);
        let short = bench.submit(Order::new(short, 1));
        for _ in 0..4 {
            bench.step();
            steps += 1;
        }
        assert_eq!(bench.ticket(short).tokens().len(), 1, "at step {steps}");
    }
    assert!(steps <= 110, "{steps} steps for 50 steps' worth of tokens");
    bench.finish();
}

#[test]
fn a_short_prompt_overtakes_a_whole_queue_of_long_ones() {
    let mut bench = Bench::new(4000, 4, options(32));
    let long: Vec<_> = (0..12)
        .map(|index| prompt(1000 * index..1000 * index + 800))
        .map(|prompt| bench.submit(Order::new(prompt, 1)))
        .collect();
    bench.step();
    let short = bench.submit(Order::new(prompt(90_000..90_010), 1));
    for _ in 0..4 {
        bench.step();
    }
    assert_eq!(bench.ticket(short).tokens().len(), 1);
    // The long ones are done in order of arrival.
    let mut done = 0;
    while bench.step() {
        let answered = |id: &_| !bench.ticket(*id).tokens().is_empty();
        assert!(long[..done].iter().all(answered));
        done += usize::from(done < long.len() && answered(&long[done]));
    }
    assert_eq!(done, long.len());
    bench.finish();
}

/// It waits for the beginning of a long prompt that it shares, so that prompt is computed first.
#[test]
fn who_waits_for_a_long_prompt_hurries_it() {
    let mut bench = Bench::new(4000, 4, options(32));
    bench.submit(Order::new(prompt(0..3000), 1));
    let giver = bench.submit(Order::new(prompt(10_000..13_000), 1));
    bench.step();
    let mut short = prompt(10_000..10_200);
    short.extend([TokenId(7); 5]);
    let short = bench.submit(Order::new(short, 1));
    // A competitor that is nearer to its own first token than the giver is.
    bench.submit(Order::new(prompt(20_000..20_600), 1));
    for _ in 0..20 {
        bench.step();
    }
    assert_eq!(bench.ticket(short).tokens().len(), 1);
    assert_eq!(bench.cached(short), 200);
    assert!(bench.ticket(giver).tokens().is_empty());
    bench.finish();
}

#[test]
fn a_full_queue_says_when_to_return() {
    let mut bench = Bench::new(
        200,
        4,
        SchedulerOptions {
            max_waiting: 2,
            ..options(8)
        },
    );
    for _ in 0..2 {
        bench.enqueue(Order::new(prompt(0..8), 1)).unwrap();
    }
    let refused = bench.enqueue(Order::new(prompt(0..8), 1)).unwrap_err();
    let SubmitError::QueueFull {
        limit: 2,
        retry_after,
    } = refused
    else {
        panic!("{refused}")
    };
    assert!(retry_after >= Duration::from_secs(1));
    bench.pump();
    bench.finish();
    bench.submit(Order::new(prompt(0..8), 1));
    bench.finish();
}

#[test]
fn what_can_never_fit_is_refused_and_what_just_fits_runs() {
    let mut bench = Bench::new(4, 4, options(8));
    let refused = bench.enqueue(Order::new(prompt(0..10), 8)).unwrap_err();
    assert_eq!(
        refused,
        SubmitError::ExceedsPool {
            needed: 5,
            available: 4
        }
    );
    // Twice, so that the second finds the pool full of what the first left.
    for _ in 0..2 {
        bench.submit(Order::new(prompt(0..10), 7));
        bench.submit(Order::new(prompt(0..15), 2));
        bench.finish();
    }
}

#[test]
fn a_draining_scheduler_finishes_what_it_has() {
    let mut bench = Bench::new(200, 4, options(8));
    let id = bench.submit(Order::new(prompt(0..40), 4));
    bench.state.stop_admitting();
    assert_eq!(
        bench.enqueue(Order::new(prompt(0..8), 1)),
        Err(SubmitError::Draining)
    );
    bench.finish();
    assert!(bench.ticket(id).usage().is_some());
}

#[test]
fn when_the_engine_is_gone_everybody_learns_it_and_no_block_is_kept() {
    let mut bench = Bench::new(200, 4, options(8));
    let ids = [(); 4].map(|()| bench.submit(Order::new(prompt(0..40), 4)));
    bench.step();
    let failure = GenerationFailure::Engine("it panicked".to_owned());
    bench.state.engine_stopped(&failure);
    bench.pump();
    assert!(bench.state.is_idle());
    assert_eq!(bench.ledger.counts().leased, 0);
    for id in ids {
        assert_eq!(
            bench.ticket(id).events().last(),
            Some(&GenerationEvent::Failed(failure.clone()))
        );
    }
    assert_eq!(
        bench.enqueue(Order::new(prompt(0..8), 1)),
        Err(SubmitError::EngineGone)
    );
}

/// The youngest is set back while the row that samples its last token is at the engine.
#[test]
fn a_preempted_sequence_takes_the_token_that_was_in_flight() {
    let mut seen = 0;
    for blocks in 8..16 {
        for answer in 2..24 {
            let mut bench = Bench::new(blocks, 4, options(64));
            bench.submit(Order::new(prompt(0..9), 20));
            let youngest = bench.submit(Order::new(prompt(500..506), answer.min(4 * blocks - 10)));
            while bench.step() {
                let events = bench.ticket(youngest).events();
                let over = matches!(events.last(), Some(GenerationEvent::Finished(_)));
                seen += u32::from(over && bench.metrics.preemptions.get() > 0);
            }
            bench.finish();
        }
    }
    assert!(seen > 0);
}
