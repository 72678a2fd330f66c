use super::*;
use crate::ids::BlockId;

const SHAPE: AttentionShape = AttentionShape {
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    block_size: 4,
};

/// Numbers between -1 and 1 that look random.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

struct Pool {
    keys: Tensor,
    values: Tensor,
}

impl BlockSource for Pool {
    fn gather(&self, blocks: &[u32]) -> Result<(Tensor, Tensor)> {
        let blocks = Tensor::new(blocks, &Device::Cpu)?;
        Ok((
            select_blocks(&self.keys, &blocks)?,
            select_blocks(&self.values, &blocks)?,
        ))
    }
}

fn pool(blocks: usize) -> (Pool, Vec<f32>, Vec<f32>) {
    let dims = (blocks, SHAPE.block_size, SHAPE.kv_heads, SHAPE.head_dim);
    let count = blocks * SHAPE.kv_heads * SHAPE.block_size * SHAPE.head_dim;
    let (keys, values) = (numbers(count, 1), numbers(count, 2));
    let tensor = |numbers: &[f32]| Tensor::from_slice(numbers, dims, &Device::Cpu).expect("shape");
    (
        Pool {
            keys: tensor(&keys),
            values: tensor(&values),
        },
        keys,
        values,
    )
}

/// Attention of one row by the formula, in f64.
fn naive(
    query: &[f32],
    position: usize,
    table: &[BlockId],
    keys: &[f32],
    values: &[f32],
) -> Vec<f32> {
    let AttentionShape {
        heads,
        kv_heads,
        head_dim,
        block_size,
    } = SHAPE;
    let at = |kv_head: usize, key: usize| {
        let block = table[key / block_size].0 as usize;
        ((block * block_size + key % block_size) * kv_heads + kv_head) * head_dim
    };
    let mut output = Vec::new();
    for head in 0..heads {
        let kv_head = head / (heads / kv_heads);
        let query = &query[head * head_dim..][..head_dim];
        let weights: Vec<f64> = (0..=position)
            .map(|key| {
                let dot: f64 = (0..head_dim)
                    .map(|i| f64::from(query[i]) * f64::from(keys[at(kv_head, key) + i]))
                    .sum();
                (dot / (head_dim as f64).sqrt()).exp()
            })
            .collect();
        let total: f64 = weights.iter().sum();
        output.extend((0..head_dim).map(|i| {
            let sum: f64 = weights
                .iter()
                .enumerate()
                .map(|(key, weight)| weight * f64::from(values[at(kv_head, key) + i]))
                .sum();
            (sum / total) as f32
        }));
    }
    output
}

fn attend(
    attention: &PortableAttention,
    batch: &RaggedBatch,
    pool: &Pool,
    queries: &[f32],
) -> Vec<f32> {
    let width = SHAPE.heads * SHAPE.head_dim;
    let queries = Tensor::from_slice(queries, (batch.rows(), width), &Device::Cpu).expect("shape");
    let plan = attention.plan(batch).expect("a plan");
    let output = attention.attend(&plan, &queries, pool).expect("attention");
    output
        .flatten_all()
        .and_then(|flat| flat.to_vec1())
        .expect("f32")
}

#[test]
fn agrees_with_the_formula_and_not_with_the_batch() {
    let (pool, keys, values) = pool(200);
    let width = SHAPE.heads * SHAPE.head_dim;
    let first: Vec<BlockId> = (0..100).map(|i| BlockId((i * 7) % 200)).collect();
    let second: Vec<BlockId> = (0..100).map(|i| BlockId((i * 11 + 3) % 200)).collect();
    let rows = |batch: &mut RaggedBatch, table: &[BlockId], start: usize, count: usize| {
        batch.push(
            std::iter::repeat_n(0, count),
            start,
            table,
            SHAPE.block_size,
            1,
        );
    };
    let queries = numbers(60 * width, 5);
    for tiling in [Some(Tiling::FIXED), None] {
        let attention = PortableAttention {
            shape: SHAPE,
            device: Device::Cpu,
            tiling,
        };
        let mut together = RaggedBatch::default();
        rows(&mut together, &first, 0, 20);
        rows(&mut together, &second, 300, 1);
        rows(&mut together, &second, 250, 39);
        let output = attend(&attention, &together, &pool, &queries);
        for (row, &position) in together.positions.iter().enumerate() {
            let table = if row < 20 { &first } else { &second };
            let expected = naive(
                &queries[row * width..][..width],
                position as usize,
                table,
                &keys,
                &values,
            );
            for (found, expected) in output[row * width..][..width].iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-5,
                    "row {row}: {found} instead of {expected}"
                );
            }
            if tiling.is_some() {
                let mut alone = RaggedBatch::default();
                rows(&mut alone, table, position as usize, 1);
                let alone = attend(&attention, &alone, &pool, &queries[row * width..][..width]);
                assert_eq!(alone, &output[row * width..][..width], "row {row} alone");
            }
        }
    }
}

#[test]
fn what_was_left_in_unwritten_places_does_no_harm() {
    let (clean, ..) = pool(4);
    let spoil = |tensor: &Tensor| {
        let mut numbers: Vec<f32> = tensor
            .flatten_all()
            .and_then(|flat| flat.to_vec1())
            .expect("f32");
        // Block 1 holds positions 4 to 7; spoil the last two, both heads of eight numbers.
        numbers[6 * 2 * 8..8 * 2 * 8].fill(f32::NAN);
        Tensor::from_vec(numbers, tensor.dims(), &Device::Cpu).expect("shape")
    };
    let spoiled = Pool {
        keys: spoil(&clean.keys),
        values: spoil(&clean.values),
    };
    let attention = PortableAttention::new(SHAPE, Device::Cpu);
    let mut batch = RaggedBatch::default();
    batch.push(
        [0].into_iter(),
        5,
        &[BlockId(0), BlockId(1)],
        SHAPE.block_size,
        1,
    );
    let queries = numbers(SHAPE.heads * SHAPE.head_dim, 9);
    let expected = attend(&attention, &batch, &clean, &queries);
    assert_eq!(attend(&attention, &batch, &spoiled, &queries), expected);
}
