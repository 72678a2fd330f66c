//! Kernel rates against what the machine can do: `cargo bench --bench kernels [-- THREADS] [attention]`.
//!
//! Prints, for every weight format, the rate of the matrix product at several row counts beside the best
//! rate of that format (*peak*) and the time that reading the weights takes at full bandwidth (*bw*), then
//! attention: prefill, decode over own blocks, and decode over a shared prefix. Times are the best of
//! several runs, because a busy machine only ever adds time.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use trunkline::bench::engine::Bandwidth;
use trunkline::ids::BlockId;
use trunkline::kernels::{
    AttentionPlan, AttentionRow, AttentionShape, Isa, KvLayer, KvLayout, KvRows, KvSlot, KvType,
    PackedMatrix, Precision, ThreadPool, fused_attention,
};

/// The best of several runs.
fn best(mut run: impl FnMut()) -> Duration {
    run();
    let started = Instant::now();
    let mut best = Duration::MAX;
    let mut runs = 0;
    while runs < 5 || (started.elapsed() < Duration::from_millis(400) && runs < 1000) {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed());
        runs += 1;
    }
    best
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

fn matrices(out: usize, inputs: usize) -> Vec<(String, PackedMatrix)> {
    let weights = numbers(out * inputs);
    let halves: Vec<f16> = weights.iter().map(|&x| f16::from_f32(x)).collect();
    let brains: Vec<bf16> = weights.iter().map(|&x| bf16::from_f32(x)).collect();
    let packed = "sizes fit";
    let mut matrices = vec![
        (
            "f32".to_owned(),
            PackedMatrix::from_f32(&weights, out, inputs).expect(packed),
        ),
        (
            "f16".to_owned(),
            PackedMatrix::from_f16(&halves, out, inputs).expect(packed),
        ),
        (
            "bf16 exact".to_owned(),
            PackedMatrix::from_bf16(&brains, out, inputs).expect(packed),
        ),
        (
            "bf16 fast".to_owned(),
            PackedMatrix::from_bf16(&brains, out, inputs)
                .expect(packed)
                .with_precision(Precision::Fast),
        ),
    ];
    let tensor = Tensor::from_vec(weights, (out, inputs), &Device::Cpu).expect("sizes fit");
    for kind in [GgmlDType::Q8_0, GgmlDType::Q4K, GgmlDType::Q6K] {
        let tensor = Arc::new(QTensor::quantize(&tensor, kind).expect("can be quantized"));
        matrices.push((
            format!("{kind:?}"),
            PackedMatrix::from_quantized(&tensor).expect("has a kernel"),
        ));
    }
    matrices
}

fn products(pool: &ThreadPool, bandwidth: f64) {
    let (out, inputs) = (4096, 1024);
    let row_counts = [1, 4, 16, 64, 512];
    println!("\nmatrix product, {out} × {inputs}: GFLOP/s, share of the nearer limit");
    println!("{:>11} {:>8}  rows {row_counts:?}", "weights", "peak");
    for (name, matrix) in matrices(out, inputs) {
        // Several copies, so that a single row finds its weights in memory and not in the cache.
        let times: Vec<f64> = row_counts
            .iter()
            .map(|&rows| {
                let (x, mut y) = (numbers(rows * inputs), vec![0.0; rows * out]);
                let time = best(|| {
                    matrix
                        .matmul(pool, &x, None, &mut y)
                        .expect("does not panic");
                });
                black_box(&y);
                time.as_secs_f64()
            })
            .collect();
        let flops = |rows: usize| 2.0 * (rows * out * inputs) as f64;
        let peak = flops(512) / times[4];
        let cells: Vec<String> = row_counts
            .iter()
            .zip(&times)
            .map(|(&rows, &time)| {
                let limit = (flops(rows) / peak).max(matrix.bytes() as f64 / bandwidth);
                format!("{:7.1} {:4.2}", flops(rows) / time / 1e9, limit / time)
            })
            .collect();
        println!("{name:>11} {:8.1}  {}", peak / 1e9, cells.join(" | "));
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

    fn time(&self, pool: &ThreadPool, rows: &[AttentionRow]) -> f64 {
        let tables: Vec<&[BlockId]> = self.tables.iter().map(Vec::as_slice).collect();
        let mut plan = AttentionPlan::default();
        plan.build(self.shape, BLOCK, &tables, rows);
        let width = self.shape.query_heads * self.layer.layout().head_dim;
        let queries = numbers(rows.len() * width);
        let mut out = vec![0.0; queries.len()];
        best(|| {
            fused_attention(pool, &plan, &self.layer, &queries, width, &mut out)
                .expect("does not panic");
        })
        .as_secs_f64()
    }
}

fn attention(pool: &ThreadPool, bandwidth: f64) {
    println!(
        "\nattention, 16 query heads, 8 KV heads of 128, {:?}",
        kv_type()
    );
    let position_bytes = (8 * 128 * 2 * 2) as f64;
    let row_flops = |keys: usize| 4.0 * (keys * 16 * 128) as f64;
    let prefill = Attention::new(pool, 1, 2048, 0);
    for (from, to) in [(0, 512), (0, 1024), (1536, 2048)] {
        let rows: Vec<AttentionRow> = (from..to)
            .map(|position| AttentionRow {
                table: 0,
                position: position as u32,
            })
            .collect();
        let time = prefill.time(pool, &rows);
        let flops: f64 = (from..to).map(|position| row_flops(position + 1)).sum();
        println!(
            "prefill {from:5}..{to:5}: {:8.3} ms {:7.1} GFLOP/s",
            time * 1e3,
            flops / time / 1e9
        );
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
        let world = Attention::new(pool, sequences, length, shared);
        let rows: Vec<AttentionRow> = (0..sequences)
            .map(|table| AttentionRow {
                table: table as u32,
                position: length as u32 - 1,
            })
            .collect();
        let time = world.time(pool, &rows);
        let bytes = (shared + sequences * (length - shared)) as f64 * position_bytes;
        println!(
            "decode {sequences:3} × {length:5} keys, {shared:5} shared: {:8.3} ms {:7.1} GFLOP/s, reads {:5.1} GB/s ({:4.2} of bw)",
            time * 1e3,
            row_flops(length) * sequences as f64 / time / 1e9,
            bytes / time / 1e9,
            bytes / time / bandwidth,
        );
    }
}

fn main() {
    let threads = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok());
    let threads = threads.unwrap_or_else(ThreadPool::physical_cores);
    let pool = ThreadPool::new(threads).expect("threads can be started");
    let bandwidth = Bandwidth::default()
        .measure(&pool, 5)
        .expect("reading does not panic");
    println!(
        "{:?}, {threads} threads, reads {:.1} GB/s",
        Isa::detected(),
        bandwidth / 1e9
    );
    let time = best(|| pool.run(threads, |_, _| {}).expect("does not panic"));
    println!("empty job: {:.2} µs", time.as_secs_f64() * 1e6);
    if !std::env::args().any(|argument| argument == "attention") {
        products(&pool, bandwidth);
    }
    attention(&pool, bandwidth);
}
