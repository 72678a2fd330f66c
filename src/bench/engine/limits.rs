//! What the machine can do: how fast it reads, and how fast it multiplies.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{Device, Module, Tensor};

use super::work::format_of;
use crate::bench::error::BenchError;
use crate::engine::MatmulPrecision;
use crate::engine::executor::cpu::pack;
use crate::engine::layers::DecoderDescription;
use crate::engine::loader::{Weight, Weights};
use crate::kernels::{KernelError, PackedMatrix, ThreadPool};

/// Rows of the products that give the peak.
pub const PEAK_ROWS: usize = 512;
/// Words of 8 bytes that are read: more than any cache holds.
const READ_WORDS: usize = 64 << 20;
/// Words of a tile of the reading.
const READ_TILE: usize = 1 << 17;

/// The best of `runs` runs: what else runs on the machine only ever adds time.
fn best<E>(runs: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut best = Duration::MAX;
    for _ in 0..runs {
        let started = Instant::now();
        run()?;
        best = best.min(started.elapsed());
    }
    Ok(best.as_secs_f64())
}

/// Reads all words, a line from each of so many equal parts in turn.
fn read<const STREAMS: usize>(words: &[u64]) -> u64 {
    /// Words of a cache line.
    const LINE: usize = 8;
    let part = words.len() / STREAMS;
    let mut sums = [0u64; LINE];
    for line in (0..part).step_by(LINE) {
        for stream in 0..STREAMS {
            let words = &words[stream * part + line..][..LINE];
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum ^= word;
            }
        }
    }
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// Reads memory with all threads.
pub struct Bandwidth {
    data: Vec<u64>,
}

impl Default for Bandwidth {
    fn default() -> Self {
        Self {
            data: vec![1; READ_WORDS],
        }
    }
}

impl Bandwidth {
    /// Bytes a second, with as many streams of reads a thread as are fastest.
    ///
    /// # Errors
    /// When a thread of the pool panicked.
    pub fn measure(&self, pool: &ThreadPool, runs: usize) -> Result<f64, KernelError> {
        let mut fastest = f64::INFINITY;
        for read in [read::<1>, read::<4>, read::<8>, read::<16>] {
            let seconds = best(runs, || {
                pool.run(self.data.len() / READ_TILE, |_, tile| {
                    black_box(read(&self.data[tile * READ_TILE..][..READ_TILE]));
                })
            })?;
            fastest = fastest.min(seconds);
        }
        Ok((self.data.len() * size_of::<u64>()) as f64 / fastest)
    }
}

/// The products of one weight format that the peak is looked for in.
pub struct Peak {
    format: String,
    contestants: Vec<Contestant>,
}

/// One matrix, by one implementation.
struct Contestant {
    who: &'static str,
    product: Product,
    out: usize,
    inputs: usize,
}

enum Product {
    /// The path that the engine takes.
    Ours {
        matrix: PackedMatrix,
        x: Vec<f32>,
        y: Vec<f32>,
    },
    /// candle's own quantized product, on its own threads.
    Quantized { matrix: QMatMul, x: Tensor },
    /// candle's product of dense tensors of the weights' type.
    Dense { weights: Tensor, x: Tensor },
}

impl Peak {
    /// For each format among the projections of a layer: the matrices of that format, of different shapes.
    ///
    /// # Errors
    /// When a weight cannot be read or packed.
    pub fn all(
        description: &DecoderDescription,
        weights: &dyn Weights,
    ) -> Result<Vec<Peak>, BenchError> {
        let d = description;
        let shapes = [
            ("self_attn.q_proj", d.query_width(), d.hidden),
            ("self_attn.v_proj", d.kv_width(), d.hidden),
            ("mlp.gate_proj", d.intermediate, d.hidden),
            ("mlp.down_proj", d.hidden, d.intermediate),
        ];
        let mut by_format: BTreeMap<String, Peak> = BTreeMap::new();
        // The first layer has each format that mixes such as Q4_K_M use.
        for (name, out, inputs) in shapes {
            let name = format!("model.layers.0.{name}.weight");
            let weight = weights.get_shaped(&name, &[out, inputs])?;
            let format = format_of(&weight);
            let peak = by_format.entry(format.clone()).or_insert_with(|| Peak {
                format,
                contestants: Vec::new(),
            });
            peak.contestants
                .extend(Contestant::both(weight, out, inputs)?);
        }
        Ok(by_format.into_values().collect())
    }

    pub fn format(&self) -> &str {
        &self.format
    }

    /// FLOP a second of each implementation's best product.
    ///
    /// # Errors
    /// When a product fails.
    pub fn measure(
        &mut self,
        pool: &ThreadPool,
        runs: usize,
    ) -> Result<BTreeMap<&'static str, f64>, BenchError> {
        let mut rates = BTreeMap::new();
        for contestant in &mut self.contestants {
            let seconds = best(runs, || contestant.product.run(pool))?;
            let flops = 2.0 * (PEAK_ROWS * contestant.out * contestant.inputs) as f64;
            let rate = rates.entry(contestant.who).or_insert(0.0f64);
            *rate = rate.max(flops / seconds);
        }
        Ok(rates)
    }
}

impl Contestant {
    /// The same product by us and by candle.
    fn both(weight: Weight, out: usize, inputs: usize) -> Result<[Self; 2], BenchError> {
        // Speed does not depend on the values, but zeros and denormals could be special.
        let x: Vec<f32> = (0..PEAK_ROWS * inputs)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
            .collect();
        let tensor = Tensor::from_slice(&x, (PEAK_ROWS, inputs), &Device::Cpu)?;
        let (who, candle) = match &weight {
            Weight::Quantized(matrix) => {
                let matrix = QMatMul::from_arc(Arc::<QTensor>::clone(matrix))?;
                ("candle quantized", Product::Quantized { matrix, x: tensor })
            }
            Weight::Dense(weights) => {
                let x = tensor.to_dtype(weights.dtype())?;
                let weights = weights.clone();
                ("candle dense", Product::Dense { weights, x })
            }
        };
        let ours = Product::Ours {
            matrix: pack(weight)?.with_precision(MatmulPrecision::Auto.on_this_machine()),
            y: vec![0.0; PEAK_ROWS * out],
            x,
        };
        let contestant = |who, product| Contestant {
            who,
            product,
            out,
            inputs,
        };
        Ok([contestant("ours", ours), contestant(who, candle)])
    }
}

impl Product {
    fn run(&mut self, pool: &ThreadPool) -> Result<(), BenchError> {
        match self {
            Product::Ours { matrix, x, y } => {
                matrix.matmul(pool, &*x, None, y)?;
                black_box(&y);
            }
            Product::Quantized { matrix, x } => {
                // On a thread of its own: candle configures a thread's matrix tiles once and for all, and ours on
                // this thread give them back after each use.
                let product = std::thread::scope(|scope| {
                    let run = || matrix.forward(x);
                    scope.spawn(run).join()
                });
                let stopped = |_| candle_core::Error::Msg("candle's product stopped".to_owned());
                black_box(product.map_err(stopped)??);
            }
            Product::Dense { weights, x } => {
                black_box(x.matmul(&weights.t()?)?);
            }
        }
        Ok(())
    }
}
