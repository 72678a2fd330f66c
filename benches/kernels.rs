//! The kernels one by one: `cargo bench --bench kernels [-- FILTER]`.
//!
//! The matrix product for every weight format at several row counts, as operations a second, and attention: prefill,
//! decode over own blocks, and decode over a shared prefix. On as many threads as the engine takes. The shares of the
//! machine's limits are told by `trunkline bench engine`.

use std::hint::black_box;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use half::{bf16, f16};
use trunkline::ids::BlockId;
use trunkline::kernels::{
    AttentionPlan, AttentionRow, AttentionShape, Isa, KvLayer, KvLayout, KvRows, KvSlot, KvType,
    PackedMatrix, Precision, ThreadPool, fused_attention,
};

/// Outputs and inputs of the matrices.
const SHAPE: (usize, usize) = (4096, 1024);
/// So many bytes have all copies of a matrix together: more than the part of a cache that one process is left with.
const BEYOND_CACHES: usize = 256 << 20;

fn pool() -> ThreadPool {
    ThreadPool::new(ThreadPool::physical_cores()).expect("threads can be started")
}

fn numbers(count: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

/// What packs a copy of the weights, for each format.
type Pack = Box<dyn Fn() -> PackedMatrix>;

fn formats() -> Vec<(String, Pack)> {
    let (out, inputs) = SHAPE;
    let weights: Arc<[f32]> = numbers(out * inputs).into();
    let halves: Vec<f16> = weights.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Arc<[bf16]> = weights.iter().map(|&x| bf16::from_f32(x)).collect();
    let fast = Arc::clone(&brains);
    let fits = "sizes fit";
    let tensor = Tensor::from_vec(weights.to_vec(), SHAPE, &Device::Cpu).expect(fits);
    let mut formats: Vec<(String, Pack)> = vec![
        (
            "f32".to_owned(),
            Box::new(move || PackedMatrix::from_f32(&weights, out, inputs).expect(fits)),
        ),
        (
            "f16".to_owned(),
            Box::new(move || PackedMatrix::from_f16(&halves, out, inputs).expect(fits)),
        ),
        (
            "bf16 exact".to_owned(),
            Box::new(move || PackedMatrix::from_bf16(&brains, out, inputs).expect(fits)),
        ),
        (
            "bf16 fast".to_owned(),
            Box::new(move || {
                let matrix = PackedMatrix::from_bf16(&fast, out, inputs).expect(fits);
                matrix.with_precision(Precision::Fast)
            }),
        ),
    ];
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K] {
        let tensor = Arc::new(QTensor::quantize(&tensor, kind).expect("can be quantized"));
        formats.push((
            format!("{kind:?}"),
            Box::new(move || PackedMatrix::from_quantized(&tensor).expect("has a kernel")),
        ));
    }
    formats
}

/// In turn over so many copies that few rows read their weights from memory, as they do in a model.
fn products(criterion: &mut Criterion) {
    let pool = pool();
    let (out, inputs) = SHAPE;
    for (name, pack) in formats() {
        let mut group = criterion.benchmark_group(format!("matmul {name}"));
        group.sample_size(20);
        let first = pack();
        let count = BEYOND_CACHES.div_ceil(first.bytes());
        let copies: Vec<PackedMatrix> = std::iter::once(first)
            .chain(std::iter::repeat_with(pack).take(count - 1))
            .collect();
        for rows in [1, 4, 16, 32, 64, 512] {
            // Of one pass: two for each weight and row.
            group.throughput(Throughput::Elements(2 * (rows * out * inputs) as u64));
            group.bench_function(BenchmarkId::from_parameter(rows), |bencher| {
                let (x, mut y) = (numbers(rows * inputs), vec![0.0; rows * out]);
                let mut turn = 0;
                bencher.iter(|| {
                    turn = (turn + 1) % copies.len();
                    let product = copies[turn].matmul(&pool, &x, None, &mut y);
                    product.expect("does not panic");
                    black_box(&mut y);
                });
            });
        }
        group.finish();
    }
}

struct Attention {
    layer: KvLayer,
    shape: AttentionShape,
    tables: Vec<Vec<BlockId>>,
}

const BLOCK: usize = 32;

/// The fastest type of two bytes.
fn kv_type() -> KvType {
    if KvType::has_tiles(Isa::detected(), BLOCK) {
        KvType::Bf16Tiles
    } else {
        KvType::F16
    }
}

impl Attention {
    /// Sequences of `length` positions of which the first `shared` are the same blocks.
    fn new(pool: &ThreadPool, sequences: usize, length: usize, shared: usize) -> Self {
        let layout = KvLayout {
            kv_heads: 8,
            head_dim: 128,
            block_size: BLOCK,
            kind: kv_type(),
        };
        let own = (length - shared).div_ceil(BLOCK);
        let blocks = shared / BLOCK + sequences * own;
        let mut layer = KvLayer::new(layout, blocks).expect("a possible layout");
        let width = layout.kv_heads * layout.head_dim;
        let slots: Vec<KvSlot> = (0..blocks * BLOCK)
            .map(|at| KvSlot {
                block: BlockId((at / BLOCK) as u32),
                slot: (at % BLOCK) as u32,
            })
            .collect();
        let mut numbers = numbers(slots.len() * 2 * width);
        let rows = KvRows {
            data: &mut numbers,
            stride: 2 * width,
            key: 0,
            value: width,
        };
        layer
            .write(pool, &slots, rows, |_, _| {})
            .expect("does not panic");
        let tables = (0..sequences)
            .map(|sequence| {
                let first = shared / BLOCK + sequence * own;
                (0..shared / BLOCK)
                    .chain(first..first + own)
                    .map(|block| BlockId(block as u32))
                    .collect()
            })
            .collect();
        let shape = AttentionShape {
            query_heads: 16,
            kv_heads: 8,
            scale: 0.088,
            window: None,
        };
        Attention {
            layer,
            shape,
            tables,
        }
    }

    /// The attention of some rows; `name` is theirs in `group`.
    fn bench(
        &self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        pool: &ThreadPool,
        name: &str,
        rows: &[AttentionRow],
    ) {
        let tables: Vec<&[BlockId]> = self.tables.iter().map(Vec::as_slice).collect();
        let mut plan = AttentionPlan::default();
        plan.build(self.shape, BLOCK, &tables, rows);
        let width = self.shape.query_heads * self.layer.layout().head_dim;
        let queries = numbers(rows.len() * width);
        let mut out = vec![0.0; queries.len()];
        // Scores and sums of values, two operations each for a key and a dimension.
        let keys: usize = rows.iter().map(|row| row.position as usize + 1).sum();
        group.throughput(Throughput::Elements(4 * (keys * width) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                fused_attention(pool, &plan, &self.layer, &queries, width, &mut out)
                    .expect("does not panic");
                black_box(&mut out);
            });
        });
    }
}

fn attention(criterion: &mut Criterion) {
    let pool = pool();
    let mut group = criterion.benchmark_group(format!("attention {:?}", kv_type()));
    group.sample_size(20);
    let prefill = Attention::new(&pool, 1, 2048, 0);
    for (from, to) in [(0, 512), (0, 1024), (1536, 2048)] {
        let row = |position| AttentionRow { table: 0, position };
        let rows: Vec<AttentionRow> = (from..to).map(row).collect();
        prefill.bench(&mut group, &pool, &format!("prefill {from} to {to}"), &rows);
    }
    for (sequences, length, shared) in [
        (1, 160, 0),
        (1, 4096, 0),
        (32, 160, 0),
        (32, 1024, 0),
        (32, 160, 128),
        (32, 4128, 4096),
        (16, 1440, 1248),
    ] {
        let world = Attention::new(&pool, sequences, length, shared);
        let position = length as u32 - 1;
        let row = |table| AttentionRow { table, position };
        let rows: Vec<AttentionRow> = (0..sequences as u32).map(row).collect();
        let name = format!("decode {sequences} x {length} keys, {shared} shared");
        world.bench(&mut group, &pool, &name, &rows);
    }
    group.finish();
}

/// What handing work to the threads costs by itself.
fn threads(criterion: &mut Criterion) {
    let (pool, count) = (pool(), ThreadPool::physical_cores());
    criterion.bench_function("empty job", |bencher| {
        bencher.iter(|| pool.run(count, |_, _| {}).expect("does not panic"));
    });
}

criterion_group!(benches, threads, products, attention);
criterion_main!(benches);
