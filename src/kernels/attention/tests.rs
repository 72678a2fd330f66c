use proptest::prelude::*;

use super::*;
use crate::ids::BlockId;
use crate::kernels::testing::{bits, numbers};
use crate::kernels::{KvLayout, KvRows, KvSlot, KvType};

/// Sequences in one layer's blocks, with the queries of all their positions.
struct World {
    pool: ThreadPool,
    layer: KvLayer,
    shape: AttentionShape,
    tables: Vec<Vec<BlockId>>,
    lengths: Vec<usize>,
    /// Each sequence's queries, `[position][head][dimension]`.
    queries: Vec<Vec<f32>>,
}

/// The instruction sets that can attend to keys and values of a type. The twin of matrix tiles is left out, being
/// slow.
fn sets(kind: KvType) -> Vec<Isa> {
    let mut sets = Isa::available();
    if kind == KvType::Bf16Tiles {
        sets.retain(|isa| isa.has_tiles());
    }
    sets
}

/// Types that keys and values can have in blocks of a size on this machine.
fn kinds(block_size: usize) -> Vec<KvType> {
    let mut kinds = vec![KvType::F32, KvType::F16, KvType::Bf16, KvType::Q8_0];
    if KvType::has_tiles(Isa::detected(), block_size) {
        kinds.push(KvType::Bf16Tiles);
    }
    kinds
}

/// How far a result may be from the reference. Matrix tiles multiply numbers of eight bits.
fn tolerance(kind: KvType) -> f64 {
    match kind {
        KvType::Bf16Tiles => 1e-2,
        _ => 2e-6,
    }
}

/// Stores rows of keys and values.
fn write(layer: &mut KvLayer, pool: &ThreadPool, slots: &[KvSlot], keys: &[f32], values: &[f32]) {
    let width = layer.layout().kv_heads * layer.layout().head_dim;
    let mut data: Vec<f32> = keys
        .chunks_exact(width)
        .zip(values.chunks_exact(width))
        .flat_map(|(key, value)| [key, value].concat())
        .collect();
    let rows = KvRows {
        data: &mut data,
        stride: 2 * width,
        key: 0,
        value: width,
    };
    layer.write(pool, slots, rows, |_, _| {}).unwrap();
}

#[derive(Clone, Copy)]
struct Setup {
    layout: KvLayout,
    query_heads: usize,
    window: Option<usize>,
    threads: usize,
}

impl Setup {
    fn new(kind: KvType, block_size: usize) -> Self {
        let layout = KvLayout {
            kv_heads: 2,
            head_dim: 24,
            block_size,
            kind,
        };
        Setup {
            layout,
            query_heads: 6,
            window: None,
            threads: 2,
        }
    }
}

impl World {
    /// Sequences of the given lengths; all share the blocks of their first `shared` positions.
    fn new(setup: Setup, lengths: &[usize], shared: usize) -> Self {
        let Setup {
            layout,
            query_heads,
            window,
            threads,
        } = setup;
        let size = layout.block_size;
        assert!(shared.is_multiple_of(size));
        let pool = ThreadPool::new(threads).unwrap();
        let total: usize = lengths.iter().map(|length| length.div_ceil(size)).sum();
        let mut layer = KvLayer::new(layout, total + 1).unwrap();
        let width = layout.kv_heads * layout.head_dim;
        // Blocks are handed out from the end and every other one of a sequence, so that neighbours
        // in a table are not neighbours in memory.
        let mut free: Vec<u32> = (0..=total as u32).collect();
        free.sort_by_key(|block| block.wrapping_mul(2_654_435_761) % 1009);
        let mut tables: Vec<Vec<BlockId>> = Vec::new();
        for (sequence, &length) in lengths.iter().enumerate() {
            let mut table = Vec::new();
            if let Some(first) = tables.first() {
                table.extend_from_slice(&first[..(shared / size).min(first.len())]);
            }
            let from = table.len() * size;
            while table.len() * size < length {
                table.push(BlockId(free.pop().unwrap()));
            }
            let slots: Vec<KvSlot> = (from.min(length)..length)
                .map(|p| KvSlot {
                    block: table[p / size],
                    slot: (p % size) as u32,
                })
                .collect();
            let keys = numbers(slots.len() * width, 100 + sequence as u64);
            let values = numbers(slots.len() * width, 200 + sequence as u64);
            write(&mut layer, &pool, &slots, &keys, &values);
            tables.push(table);
        }
        let queries = lengths
            .iter()
            .enumerate()
            .map(|(sequence, &length)| {
                let mut queries = numbers(
                    length * query_heads * layout.head_dim,
                    300 + sequence as u64,
                );
                queries.iter_mut().for_each(|x| *x *= 4.0);
                queries
            })
            .collect();
        let scale = 1.0 / (layout.head_dim as f32).sqrt();
        let shape = AttentionShape {
            query_heads,
            kv_heads: layout.kv_heads,
            scale,
            window,
        };
        World {
            pool,
            layer,
            shape,
            tables,
            lengths: lengths.to_vec(),
            queries,
        }
    }

    fn width(&self) -> usize {
        self.shape.query_heads * self.layer.layout().head_dim
    }

    /// Attention of the given (sequence, position) rows in one batch.
    fn attend_on(&self, isa: Isa, rows: &[(usize, usize)]) -> Vec<f32> {
        let width = self.width();
        let stride = width + 5;
        let mut queries = vec![f32::NAN; rows.len() * stride];
        for (row, &(sequence, position)) in rows.iter().enumerate() {
            let query = &self.queries[sequence][position * width..][..width];
            queries[row * stride..][..width].copy_from_slice(query);
        }
        let tables: Vec<&[BlockId]> = self.tables.iter().map(Vec::as_slice).collect();
        let rows: Vec<AttentionRow> = rows
            .iter()
            .map(|&(table, position)| AttentionRow {
                table: table as u32,
                position: position as u32,
            })
            .collect();
        let mut plan = AttentionPlan::default();
        plan.build(self.shape, self.layer.layout().block_size, &tables, &rows);
        let mut out = vec![f32::NAN; rows.len() * width];
        attention_on(
            isa,
            &self.pool,
            &plan,
            &self.layer,
            &queries,
            stride,
            &mut out,
        )
        .unwrap();
        out
    }

    /// On this machine.
    fn attend(&self, rows: &[(usize, usize)]) -> Vec<f32> {
        self.attend_on(Isa::detected(), rows)
    }

    /// The same in `f64`, from the stored keys and values.
    fn reference(&self, sequence: usize, position: usize) -> Vec<f64> {
        let layout = *self.layer.layout();
        let (dim, size) = (layout.head_dim, layout.block_size);
        let group = self.shape.query_heads / layout.kv_heads;
        let first = self
            .shape
            .window
            .map_or(0, |window| (position + 1).saturating_sub(window));
        let mut out = Vec::new();
        for head in 0..self.shape.query_heads {
            let query = &self.queries[sequence][position * self.width() + head * dim..][..dim];
            let (mut scores, mut values) = (Vec::new(), Vec::new());
            for at in first..=position {
                let slot = KvSlot {
                    block: self.tables[sequence][at / size],
                    slot: (at % size) as u32,
                };
                let (mut key, mut value) = (vec![0.0; dim], vec![0.0; dim]);
                self.layer.read(slot, head / group, &mut key, &mut value);
                let dot: f64 = query
                    .iter()
                    .zip(&key)
                    .map(|(&a, &b)| f64::from(a) * f64::from(b))
                    .sum();
                scores.push(dot * f64::from(self.shape.scale));
                values.push(value);
            }
            let largest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for d in 0..dim {
                let sum: f64 = weights
                    .iter()
                    .zip(&values)
                    .map(|(w, v)| w * f64::from(v[d]))
                    .sum();
                out.push(sum / total);
            }
        }
        out
    }

    fn assert_matches_reference(&self, isa: Isa, what: &str) {
        let rows: Vec<(usize, usize)> = (0..self.lengths.len())
            .flat_map(|s| (0..self.lengths[s]).map(move |p| (s, p)))
            .collect();
        let found = self.attend_on(isa, &rows);
        for (&(sequence, position), found) in rows.iter().zip(found.chunks_exact(self.width())) {
            // The reference is slow: a few positions are enough, among them all edges.
            let near_edge = position % PARTITION < 2 || position % PARTITION > PARTITION - 2;
            if !(near_edge || position % 37 == 0 || position + 1 == self.lengths[sequence]) {
                continue;
            }
            let expected = self.reference(sequence, position);
            for (index, (&found, expected)) in found.iter().zip(expected).enumerate() {
                let error = (f64::from(found) - expected).abs();
                assert!(
                    error < tolerance(self.layer.layout().kind),
                    "{what}: sequence {sequence} position {position} element {index} is {found}, not {expected}"
                );
            }
        }
    }
}

#[test]
fn attention_matches_the_reference_on_every_instruction_set() {
    for block_size in [1, 2, 16, 32, 256] {
        for kind in kinds(block_size) {
            let world = World::new(Setup::new(kind, block_size), &[300, 1, 33], 0);
            for isa in sets(kind) {
                let what = format!("{isa:?} {kind:?} blocks of {block_size}");
                world.assert_matches_reference(isa, &what);
            }
        }
    }
}

#[test]
fn attention_matches_the_reference_for_many_shapes_of_heads() {
    for (kv_heads, query_heads, head_dim) in [
        (1, 1, 16),
        (1, 14, 64),
        (2, 4, 128),
        (3, 3, 8),
        (2, 2, 40),
        (1, 2, 256),
    ] {
        for kind in kinds(32) {
            let mut setup = Setup::new(kind, 32);
            setup.layout.kv_heads = kv_heads;
            setup.layout.head_dim = head_dim;
            setup.query_heads = query_heads;
            let world = World::new(setup, &[270, 40], 0);
            for isa in sets(kind) {
                let what = format!("{isa:?} {kind:?} {query_heads}/{kv_heads} heads of {head_dim}");
                world.assert_matches_reference(isa, &what);
            }
        }
    }
}

#[test]
fn a_window_hides_what_is_before_it() {
    for window in [1, 7, 256, 300] {
        for kind in kinds(32) {
            let mut setup = Setup::new(kind, 32);
            setup.window = Some(window);
            let world = World::new(setup, &[700, 20], 0);
            let what = format!("{kind:?}, window {window}");
            world.assert_matches_reference(Isa::detected(), &what);
        }
    }
}

#[test]
fn every_instruction_set_gives_the_scalar_twins_bits() {
    if !cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        return;
    }
    let world = World::new(Setup::new(KvType::F16, 32), &[300], 0);
    let rows: Vec<(usize, usize)> = (0..300).map(|p| (0, p)).collect();
    let twin = world.attend_on(Isa::Scalar, &rows);
    for isa in Isa::available() {
        let found = world.attend_on(isa, &rows);
        assert_eq!(bits(&found), bits(&twin), "{isa:?}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn matrix_tiles_give_the_bits_of_their_twin() {
    let Some(isa) = Isa::available().into_iter().find(|isa| isa.has_tiles()) else {
        return;
    };
    for (head_dim, block_size) in [(24, 32), (64, 128), (40, 64)] {
        let mut setup = Setup::new(KvType::Bf16Tiles, block_size);
        setup.layout.head_dim = head_dim;
        let world = World::new(setup, &[300, 20], 0);
        // A tile that is not full, one row alone, and several tiles.
        let few: Vec<(usize, usize)> = (290..299).map(|p| (0, p)).collect();
        let many: Vec<(usize, usize)> = (100..130).map(|p| (0, p)).chain([(1, 19)]).collect();
        for rows in [vec![(0, 299)], few, many] {
            assert_eq!(
                bits(&world.attend_on(isa, &rows)),
                bits(&world.attend_on(Isa::Scalar, &rows)),
                "heads of {head_dim}, {} rows",
                rows.len()
            );
        }
    }
}

/// Each row alone has the bits that it has in the batch.
fn assert_rows_independent(world: &World, rows: &[(usize, usize)]) {
    let together = world.attend(rows);
    for (&row, together) in rows.iter().zip(together.chunks_exact(world.width())) {
        assert!(
            bits(&world.attend(&[row])) == bits(together),
            "row {row:?} differs in the batch"
        );
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_chunk_and_batch() {
    for block_size in [1, 16, 32] {
        for kind in kinds(block_size) {
            let world = World::new(Setup::new(kind, block_size), &[530, 290, 3], 0);
            let mut rows: Vec<(usize, usize)> = (200..530).map(|p| (0, p)).collect();
            rows.push((1, 289));
            rows.extend((0..3).map(|p| (2, p)));
            assert_rows_independent(&world, &rows);
        }
    }
}

/// Few rows with many keys are cut into pieces, more of them the more threads there are.
#[test]
fn threads_change_no_bit_of_a_long_context() {
    for (window, rows) in [
        (None, vec![(0, 1100)]),
        (Some(300), vec![(0, 1100)]),
        // The second row has keys of its own behind the shared ones: a second level.
        (None, vec![(0, 1100), (1, 900)]),
    ] {
        for kind in kinds(32) {
            let mut setup = Setup::new(kind, 32);
            setup.window = window;
            setup.threads = 1;
            let expected = World::new(setup, &[1101, 901], 512).attend(&rows);
            for threads in [2, 3, 16] {
                setup.threads = threads;
                let found = World::new(setup, &[1101, 901], 512).attend(&rows);
                assert_eq!(
                    bits(&found),
                    bits(&expected),
                    "{threads} threads, {window:?}, {kind:?}"
                );
            }
        }
    }
}

#[test]
fn sharing_blocks_changes_no_bit() {
    for (threads, kind) in [1, 3]
        .into_iter()
        .flat_map(|n| kinds(32).into_iter().map(move |kind| (n, kind)))
    {
        let mut setup = Setup::new(kind, 32);
        setup.threads = threads;
        let lengths = [900, 650, 640, 641, 1300, 700];
        let world = World::new(setup, &lengths, 608);
        let mut rows: Vec<(usize, usize)> = lengths.iter().map(|n| n - 1).enumerate().collect();
        rows.extend((610..700).map(|p| (5, p)));
        assert_rows_independent(&world, &rows);
        world.assert_matches_reference(Isa::detected(), &format!("{kind:?}, shared blocks"));
    }
}

/// Many rows that share a partition and part in the next, where the first one's table ends.
#[test]
fn what_is_read_ahead_ends_with_what_is_shared() {
    for kind in kinds(32) {
        let lengths = [128, 400, 400, 300, 300, 300];
        let world = World::new(Setup::new(kind, 32), &lengths, 128);
        let mut rows: Vec<(usize, usize)> = vec![(0, 127)];
        rows.extend((1..lengths.len()).map(|sequence| (sequence, lengths[sequence] - 1)));
        assert_rows_independent(&world, &rows);
    }
}

#[test]
fn stale_numbers_behind_a_row_do_not_reach_it() {
    // A block that another sequence filled before, with infinities behind the row's position.
    for kind in kinds(32) {
        let setup = Setup::new(kind, 32);
        let mut world = World::new(setup, &[20], 0);
        let before = world.attend(&[(0, 10)]);
        let width = setup.layout.kv_heads * setup.layout.head_dim;
        let slots: Vec<KvSlot> = (11..32)
            .map(|slot| KvSlot {
                block: world.tables[0][0],
                slot,
            })
            .collect();
        let bad = vec![f32::NAN; slots.len() * width];
        write(&mut world.layer, &world.pool, &slots, &bad, &bad);
        assert_eq!(bits(&world.attend(&[(0, 10)])), bits(&before), "{kind:?}");
        // Who sees them knows it, be it the key or the value that is none.
        for (key, value) in [(f32::NAN, 1.0), (1.0, f32::NAN), (1.0, f32::INFINITY)] {
            if value.is_infinite() && kind == KvType::F16 {
                // Saturates.
                continue;
            }
            let numbers = |x| vec![x; slots.len() * width];
            write(
                &mut world.layer,
                &world.pool,
                &slots,
                &numbers(key),
                &numbers(value),
            );
            let found = world.attend(&[(0, 19)]);
            assert!(
                found.iter().all(|x| !x.is_finite()),
                "{kind:?} {key} {value}"
            );
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_vanish() {
    for kind in kinds(32) {
        let mut world = World::new(Setup::new(kind, 32), &[520], 0);
        world.queries[0].iter_mut().for_each(|x| *x *= 500.0);
        let out = world.attend(&[(0, 519), (0, 3)]);
        assert!(
            out.iter().all(|x| x.is_finite() && x.abs() <= 1.005),
            "{kind:?}"
        );
    }
}

#[test]
fn copied_blocks_hold_the_same_and_leave_other_blocks() {
    for kind in kinds(32) {
        let mut world = World::new(Setup::new(kind, 32), &[128], 0);
        let blocks = world.tables[0].clone();
        let (from, to) = (blocks[2], blocks[1]);
        let read = |world: &World, block| {
            let read = |slot| {
                let (mut key, mut value) = (vec![0.0; 24], vec![0.0; 24]);
                world
                    .layer
                    .read(KvSlot { block, slot }, 1, &mut key, &mut value);
                (key, value)
            };
            (0..32).map(read).collect::<Vec<_>>()
        };
        let before: Vec<_> = blocks.iter().map(|&block| read(&world, block)).collect();
        assert_ne!(before[1][4], before[2][4]);
        for tokens in [5, 32] {
            world.layer.copy_block(from, to, tokens);
            for (index, &block) in blocks.iter().enumerate() {
                if block == to {
                    assert_eq!(read(&world, to)[..tokens], before[2][..tokens], "{kind:?}");
                } else {
                    assert_eq!(read(&world, block), before[index], "{kind:?}");
                }
            }
        }
    }
}

#[test]
fn stored_numbers_are_rounded_to_nearest_and_saturate() {
    let pool = ThreadPool::new(1).unwrap();
    let values = [
        1.000_3,
        -70_000.0,
        f32::INFINITY,
        1e-7,
        3.0e-5,
        0.1,
        65519.0,
        -0.0,
    ];
    for kind in [KvType::F16, KvType::Bf16] {
        let layout = KvLayout {
            kv_heads: 1,
            head_dim: 8,
            block_size: 2,
            kind,
        };
        let mut layer = KvLayer::new(layout, 1).unwrap();
        let slot = KvSlot {
            block: BlockId(0),
            slot: 1,
        };
        write(&mut layer, &pool, &[slot], &values, &values);
        let (mut key, mut value) = (vec![0.0; 8], vec![0.0; 8]);
        layer.read(slot, 0, &mut key, &mut value);
        let expected: Vec<f32> = values
            .iter()
            .map(|&x| match kind {
                KvType::Bf16 => half::bf16::from_f32(x).to_f32(),
                _ => half::f16::from_f32(x.clamp(-65504.0, 65504.0)).to_f32(),
            })
            .collect();
        assert_eq!(
            (bits(&key), bits(&value)),
            (bits(&expected), bits(&expected)),
            "{kind:?}"
        );
    }
}

#[test]
fn impossible_layouts_are_errors() {
    let layout = KvLayout {
        kv_heads: 1,
        head_dim: 8,
        block_size: 3,
        kind: KvType::F32,
    };
    assert!(KvLayer::new(layout, 1).is_err());
    let tiles = KvLayout {
        block_size: 16,
        kind: KvType::Bf16Tiles,
        ..layout
    };
    assert!(KvLayer::new(tiles, 1).is_err());
    assert!(
        KvLayer::new(
            KvLayout {
                block_size: 512,
                ..layout
            },
            1
        )
        .is_err()
    );
    assert!(
        KvLayer::new(
            KvLayout {
                block_size: 1,
                kv_heads: 0,
                ..layout
            },
            1
        )
        .is_err()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_batch_is_its_rows_alone(
        lengths in prop::collection::vec(1usize..400, 1..5),
        size in prop::sample::select(vec![1usize, 2, 16, 32]),
        shared in 0usize..200,
        threads in 1usize..4,
        picks in prop::collection::vec((0usize..5, 0.0f64..1.0), 1..60),
        window in prop::option::of(1usize..300),
        kind in 0usize..16,
    ) {
        let kinds = kinds(size);
        let mut setup = Setup::new(kinds[kind % kinds.len()], size);
        setup.threads = threads;
        setup.window = window;
        let world = World::new(setup, &lengths, shared / size * size);
        let mut rows: Vec<(usize, usize)> = picks
            .into_iter()
            .map(|(sequence, place)| {
                let sequence = sequence % lengths.len();
                (sequence, (place * lengths[sequence] as f64) as usize)
            })
            .collect();
        rows.sort_unstable();
        rows.dedup();
        assert_rows_independent(&world, &rows);
    }
}

#[test]
fn bytes_with_scales_are_within_half_a_step_of_the_numbers() {
    let pool = ThreadPool::new(1).unwrap();
    let layout = KvLayout {
        kv_heads: 2,
        head_dim: 72,
        block_size: 4,
        kind: KvType::Q8_0,
    };
    let width = 2 * 72;
    let mut layer = KvLayer::new(layout, 2).unwrap();
    let keys = numbers(4 * width, 5);
    let mut values = numbers(4 * width, 6);
    values[..32].fill(0.0);
    values[width] = 100.0;
    let slots: Vec<KvSlot> = (0..4)
        .map(|slot| KvSlot {
            block: BlockId(0),
            slot,
        })
        .collect();
    write(&mut layer, &pool, &slots, &keys, &values);
    layer.copy_block(BlockId(0), BlockId(1), 3);
    for (row, slot) in slots.iter().enumerate() {
        for head in 0..2 {
            let (mut key, mut value) = (vec![0.0; 72], vec![0.0; 72]);
            layer.read(*slot, head, &mut key, &mut value);
            for (found, source) in [(&key, &keys), (&value, &values)] {
                let source = &source[row * width + head * 72..][..72];
                for (found, source) in found.chunks(32).zip(source.chunks(32)) {
                    let largest = source.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    for (found, source) in found.iter().zip(source) {
                        assert!((found - source).abs() <= largest * 0.5001 / 127.0);
                    }
                }
            }
            if row < 3 {
                let (mut key_copy, mut value_copy) = (vec![0.0; 72], vec![0.0; 72]);
                let copy = KvSlot {
                    block: BlockId(1),
                    ..*slot
                };
                layer.read(copy, head, &mut key_copy, &mut value_copy);
                assert_eq!((key_copy, value_copy), (key, value));
            }
        }
    }
}
