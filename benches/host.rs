//! What the host does between engine steps: `cargo bench --bench host [-- FILTER]`.
//!
//! The radix tree under many conversations, sampling from a row of logits, and one token's way into a
//! server-sent event. The kernels have a bench of their own (`kernels`).

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use actix_web::body::MessageBody;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use trunkline::actors::prefix_cache::Namespace;
use trunkline::actors::prefix_cache::radix_tree::{Inserted, NodeId, RadixTree};
use trunkline::engine::sampler::{SamplingParameters, SamplingScratch, SequenceSampler};
use trunkline::http::form::Piece;
use trunkline::http::openai::{CompletionForm, StreamOptions};
use trunkline::http::outbox::{Outbox, StreamBody};
use trunkline::http::wire::{ChoiceDelta, Envelope, Form};
use trunkline::ids::{BlockId, TokenId};

const BLOCK_SIZE: usize = 32;
/// Conversations in the tree, and blocks of each behind the shared ones.
const CONVERSATIONS: usize = 200;
const OWN_BLOCKS: usize = 40;
/// Blocks of the system prompt that all conversations share.
const SHARED_BLOCKS: usize = 40;
/// Entries of the vocabulary of Qwen models.
const VOCABULARY: usize = 151_936;

/// The tokens of a conversation: the shared beginning, then its own.
fn conversation(number: usize) -> Vec<TokenId> {
    let shared = SHARED_BLOCKS * BLOCK_SIZE;
    let all = shared + OWN_BLOCKS * BLOCK_SIZE;
    (0..all)
        .map(|at| {
            TokenId(if at < shared {
                at
            } else {
                at * 31 + number * 7919
            } as u32)
        })
        .collect()
}

/// Puts a conversation's blocks into the tree, as prefill does; blocks are numbered from `first` on.
fn insert(tree: &mut RadixTree, root: NodeId, tokens: &[TokenId], first: usize) {
    let mut node = root;
    for (number, block) in tokens.chunks(BLOCK_SIZE).enumerate() {
        node = match tree.insert(node, block, BlockId((first + number) as u32)) {
            Inserted::Added(node)
            | Inserted::Extended(node)
            | Inserted::Replaced { node, .. }
            | Inserted::Present { node, .. } => node,
        };
    }
}

/// A tree of many conversations that nobody leases.
fn grown_tree() -> (RadixTree, NodeId) {
    let mut tree = RadixTree::new(BLOCK_SIZE);
    let root = tree.root(Namespace::default());
    let blocks = SHARED_BLOCKS + OWN_BLOCKS;
    for number in 0..CONVERSATIONS {
        insert(&mut tree, root, &conversation(number), number * blocks);
    }
    for block in 0..CONVERSATIONS * blocks {
        tree.set_leased(BlockId(block as u32), false);
    }
    (tree, root)
}

fn radix_tree(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("radix_tree");
    let tokens = conversation(CONVERSATIONS / 2);
    group.throughput(Throughput::Elements(tokens.len() as u64));
    let (tree, root) = grown_tree();
    group.bench_function("find a cached conversation of 2,560 tokens", |bencher| {
        bencher.iter(|| black_box(tree.find(root, black_box(&tokens))));
    });
    let new = conversation(CONVERSATIONS + 1);
    group.bench_function("insert a conversation of 2,560 tokens", |bencher| {
        bencher.iter_batched_ref(
            grown_tree,
            |(tree, root)| insert(tree, *root, &new, 1 << 24),
            BatchSize::LargeInput,
        );
    });
    group.throughput(Throughput::Elements(1000));
    group.bench_function("evict 1,000 blocks", |bencher| {
        bencher.iter_batched_ref(
            grown_tree,
            |(tree, _)| {
                for _ in 0..1000 {
                    black_box(tree.evict());
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

/// A row of logits as a model leaves it: most tokens far below a few.
fn logits() -> Vec<f32> {
    (0..VOCABULARY)
        .map(|token| {
            let wave = (token as f32 * 0.7311).sin() * 4.0;
            if token % 5003 == 0 { 12.0 + wave } else { wave }
        })
        .collect()
}

fn sampler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sampler, 151,936 logits");
    group.throughput(Throughput::Elements(1));
    let logits = logits();
    let hot = SamplingParameters {
        temperature: 0.7,
        seed: 1,
        ..SamplingParameters::default()
    };
    let cases = [
        ("greedy", SamplingParameters::default()),
        ("temperature", hot.clone()),
        (
            "top_k 20",
            SamplingParameters {
                top_k: 20,
                ..hot.clone()
            },
        ),
        (
            "top_p 0.95",
            SamplingParameters {
                top_p: 0.95,
                ..hot.clone()
            },
        ),
        (
            "top_k 20, top_p 0.95, repetition penalty",
            SamplingParameters {
                top_k: 20,
                top_p: 0.95,
                repetition_penalty: 1.1,
                ..hot
            },
        ),
    ];
    for (name, parameters) in cases {
        let sampler = SequenceSampler::new(parameters, &[TokenId(5), TokenId(5003)]);
        let mut scratch = SamplingScratch::default();
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(sampler.choose(black_box(&logits), &mut scratch)));
        });
    }
    group.finish();
}

fn sse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sse");
    group.throughput(Throughput::Elements(1));
    let envelope = Envelope {
        form: Form::Chat,
        id: "chatcmpl-0123456789abcdef0123456789abcdef".to_owned(),
        created: 1_760_000_000,
        model: "org/some-model".to_owned(),
        fingerprint: "trunkline-0.1.0".to_owned(),
    };
    let outbox = Outbox::new(Box::new(CompletionForm {
        envelope,
        options: StreamOptions::default(),
    }));
    let mut body = StreamBody::new(std::rc::Rc::clone(&outbox), None, ());
    let mut context = Context::from_waker(Waker::noop());
    group.bench_function("one token into an event", |bencher| {
        bencher.iter(|| {
            outbox.borrow_mut().push(Piece::Delta {
                choice: 0,
                delta: ChoiceDelta::Content(black_box(" token").to_owned()),
                logprobs: Vec::new(),
            });
            match Pin::new(&mut body).poll_next(&mut context) {
                Poll::Ready(frame) => black_box(frame),
                Poll::Pending => unreachable!("a piece was pushed"),
            }
        });
    });
    group.finish();
}

criterion_group!(benches, radix_tree, sampler, sse);
criterion_main!(benches);
