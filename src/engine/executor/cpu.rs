//! The executor for the CPU: plain f32 buffers that live between steps, and our kernels.
//!
//! Every kernel computes a row the same way whatever the other rows are, so a row's logits have the same
//! bits in any batch. With portable attention the same holds, by its fixed tiles.

use std::sync::Arc;

use candle_core::{CpuStorage, Device, Storage, Tensor};

use super::Executor;
use crate::engine::attention::portable::{
    AttentionShape as TileShape, BlockSource, PortableAttention, TilePlan,
};
use crate::engine::batch::RaggedBatch;
use crate::engine::blocks::KvPoolSize;
use crate::engine::error::EngineError;
use crate::engine::layers::{Decoder, DecoderDescription, WeightBackend};
use crate::engine::loader::{Weight, Weights};
use crate::engine::options::{AttentionKind, EngineOptions, KvDtype};
use crate::engine::rope::RopeTable;
use crate::engine::step::BlockCopy;
use crate::ids::BlockId;
use crate::kernels::{
    self, AttentionPlan, AttentionRow, AttentionShape, HeadRows, KernelError, KvLayer, KvLayout,
    KvSlot, KvType, PackedMatrix, Precision, ThreadPool, fused_attention,
};

/// Packs weights for the kernels.
struct CpuBackend {
    precision: Precision,
}

/// Stacked projections and their bias.
struct CpuLinear {
    matrix: Arc<PackedMatrix>,
    bias: Option<Vec<f32>>,
}

impl CpuLinear {
    /// `input`, rows of the input width, to `output`, which gets as many rows of the output width.
    fn forward(
        &self,
        pool: &ThreadPool,
        input: &[f32],
        output: &mut Vec<f32>,
    ) -> Result<(), KernelError> {
        let rows = input.len() / self.matrix.in_features();
        output.resize(rows * self.matrix.out_features(), 0.0);
        self.matrix
            .matmul(pool, input, self.bias.as_deref(), output)
    }
}

impl CpuBackend {
    fn pack(&self, weight: Weight) -> Result<PackedMatrix, EngineError> {
        Ok(pack(weight)?.with_precision(self.precision))
    }
}

/// A weight as the kernels want it: what every projection of the engine is made of.
pub(crate) fn pack(weight: Weight) -> Result<PackedMatrix, EngineError> {
    let tensor = match weight {
        Weight::Quantized(tensor) => return Ok(PackedMatrix::from_quantized(&tensor)?),
        Weight::Dense(tensor) => tensor,
    };
    let (out, input) = tensor.dims2()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::msg("a weight that is not contiguous"))?;
    Ok(match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            PackedMatrix::from_f32(&values[start..end], out, input)?
        }
        Storage::Cpu(CpuStorage::F16(values)) => {
            PackedMatrix::from_f16(&values[start..end], out, input)?
        }
        Storage::Cpu(CpuStorage::BF16(values)) => {
            PackedMatrix::from_bf16(&values[start..end], out, input)?
        }
        _ => {
            return Err(
                candle_core::Error::msg("a weight that is neither f32, f16 nor bf16").into(),
            );
        }
    })
}

impl WeightBackend for CpuBackend {
    type Linear = CpuLinear;
    type Embedding = Arc<PackedMatrix>;
    type Vector = Vec<f32>;

    fn linear(&self, parts: Vec<Weight>, bias: Option<Vec<f32>>) -> Result<CpuLinear, EngineError> {
        let parts = parts
            .into_iter()
            .map(|part| self.pack(part))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(CpuLinear {
            matrix: Arc::new(PackedMatrix::stack(parts)?),
            bias,
        })
    }

    fn embedding(&self, weight: Weight) -> Result<Arc<PackedMatrix>, EngineError> {
        Ok(Arc::new(self.pack(weight)?))
    }

    fn tied_head(&self, embedding: &Arc<PackedMatrix>) -> Result<CpuLinear, EngineError> {
        Ok(CpuLinear {
            matrix: Arc::clone(embedding),
            bias: None,
        })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>, EngineError> {
        Ok(values)
    }
}

/// Which attention runs, with what it works out once a step.
enum Attention {
    Fused {
        shape: AttentionShape,
        precision: Precision,
        plans: Box<PerRows<AttentionPlan>>,
    },
    Portable {
        attention: PortableAttention,
        plans: Box<PerRows<Option<TilePlan>>>,
    },
}

/// The rows that a layer's attention is computed for.
#[derive(Clone, Copy, PartialEq)]
enum Rows {
    All,
    /// Those alone whose logits are wanted: all that the last layer needs.
    Wanted,
}

/// A plan for each choice of [`Rows`].
#[derive(Default)]
struct PerRows<T> {
    all: T,
    wanted: T,
}

impl<T> PerRows<T> {
    fn get(&self, rows: Rows) -> &T {
        match rows {
            Rows::All => &self.all,
            Rows::Wanted => &self.wanted,
        }
    }
}

impl Attention {
    fn new(
        d: &DecoderDescription,
        kind: AttentionKind,
        precision: Precision,
        block_size: usize,
    ) -> Self {
        match kind {
            AttentionKind::Fused => Self::Fused {
                shape: AttentionShape {
                    query_heads: d.heads,
                    kv_heads: d.kv_heads,
                    scale: 1.0 / (d.head_dim as f32).sqrt(),
                    window: None,
                },
                precision,
                plans: Box::default(),
            },
            AttentionKind::Portable => Self::Portable {
                attention: PortableAttention::new(
                    TileShape {
                        heads: d.heads,
                        kv_heads: d.kv_heads,
                        head_dim: d.head_dim,
                        block_size,
                    },
                    Device::Cpu,
                ),
                plans: Box::default(),
            },
        }
    }

    fn plan(
        &mut self,
        batch: &RaggedBatch,
        wanted: &RaggedBatch,
        block_size: usize,
    ) -> Result<(), EngineError> {
        match self {
            Self::Fused { shape, plans, .. } => {
                build(&mut plans.all, *shape, block_size, batch);
                build(&mut plans.wanted, *shape, block_size, wanted);
            }
            Self::Portable { attention, plans } => {
                plans.all = Some(attention.plan(batch)?);
                plans.wanted = match wanted.rows() {
                    0 => None,
                    _ => Some(attention.plan(wanted)?),
                };
            }
        }
        Ok(())
    }

    /// Attention of the queries that begin each row of `qkv`, into rows of query heads.
    fn attend(
        &self,
        rows: Rows,
        pool: &ThreadPool,
        layer: &KvLayer,
        qkv: &[f32],
        stride: usize,
        output: &mut [f32],
    ) -> Result<(), EngineError> {
        match self {
            Self::Fused {
                precision, plans, ..
            } => Ok(fused_attention(
                pool,
                *precision,
                plans.get(rows),
                layer,
                qkv,
                stride,
                output,
            )?),
            Self::Portable { attention, plans } => {
                let Some(plan) = plans.get(rows) else {
                    return Ok(());
                };
                let count = qkv.len() / stride;
                let width = output.len() / count;
                let queries: Vec<f32> = qkv
                    .chunks_exact(stride)
                    .flat_map(|row| &row[..width])
                    .copied()
                    .collect();
                let queries = Tensor::from_vec(queries, (count, width), &Device::Cpu)?;
                let attended = attention.attend(plan, &queries, &StoredBlocks(layer))?;
                output.copy_from_slice(&attended.flatten_all()?.to_vec1::<f32>()?);
                Ok(())
            }
        }
    }
}

fn build(plan: &mut AttentionPlan, shape: AttentionShape, block_size: usize, batch: &RaggedBatch) {
    let tables: Vec<&[BlockId]> = batch.spans.iter().map(|span| batch.table(span)).collect();
    let rows: Vec<AttentionRow> = batch
        .spans
        .iter()
        .enumerate()
        .flat_map(|(table, span)| {
            (span.start..span.start + span.rows).map(move |position| AttentionRow {
                table: table as u32,
                position: position as u32,
            })
        })
        .collect();
    plan.build(shape, block_size, &tables, &rows);
}

/// The kernels' KV storage as portable attention reads it.
struct StoredBlocks<'a>(&'a KvLayer);

impl BlockSource for StoredBlocks<'_> {
    fn gather(&self, blocks: &[u32]) -> candle_core::Result<(Tensor, Tensor)> {
        let KvLayout {
            kv_heads,
            head_dim,
            block_size,
            ..
        } = *self.0.layout();
        let dims = (blocks.len(), block_size, kv_heads, head_dim);
        let count = blocks.len() * kv_heads * block_size * head_dim;
        let mut keys = vec![0.0; count];
        let mut values = vec![0.0; count];
        let mut places = keys
            .chunks_exact_mut(head_dim)
            .zip(values.chunks_exact_mut(head_dim));
        for &block in blocks {
            for slot in 0..block_size {
                let slot = KvSlot {
                    block: BlockId(block),
                    slot: slot as u32,
                };
                // As many places as the loops go round.
                for (head, (key, value)) in places.by_ref().take(kv_heads).enumerate() {
                    self.0.read(slot, head, key, value);
                }
            }
        }
        Ok((
            Tensor::from_vec(keys, dims, &Device::Cpu)?,
            Tensor::from_vec(values, dims, &Device::Cpu)?,
        ))
    }
}

/// Activations, kept between steps: rows of the batch, or of its wanted rows behind the last attention.
#[derive(Default)]
struct Buffers {
    /// The residual stream, `[rows, hidden]`.
    hidden: Vec<f32>,
    /// A norm's output or a projection's, `[rows, hidden]`.
    normed: Vec<f32>,
    /// `[rows, heads + 2 kv_heads, head_dim]`.
    qkv: Vec<f32>,
    /// `[rows, heads, head_dim]`.
    attended: Vec<f32>,
    /// `[rows, 2 intermediate]`.
    gate_up: Vec<f32>,
    /// `[rows, intermediate]`.
    activated: Vec<f32>,
}

/// Forward passes by our kernels.
pub struct CpuExecutor {
    decoder: Decoder<CpuBackend>,
    pool: ThreadPool,
    blocks: Vec<KvLayer>,
    attention: Attention,
    angles: RopeTable,
    rope: kernels::RopeTable,
    buffers: Buffers,
    wanted: RaggedBatch,
    block_size: usize,
}

impl CpuExecutor {
    /// Packs the weights, starts the threads and reserves the KV pool (the system gives its memory as it
    /// is used).
    pub fn new(
        description: DecoderDescription,
        weights: &dyn Weights,
        size: KvPoolSize,
        options: &EngineOptions,
    ) -> Result<Self, EngineError> {
        let precision = options.precision.on_this_machine();
        let decoder = Decoder::build(description, weights, &CpuBackend { precision })?;
        let d = &decoder.description;
        let layout = KvLayout {
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            block_size: size.block_size,
            kind: match options.kv_dtype {
                KvDtype::F32 => KvType::F32,
                KvDtype::F16 => KvType::F16,
                KvDtype::Bf16 => KvType::Bf16,
                KvDtype::Q8_0 => KvType::Q8_0,
            },
        };
        let blocks = (0..d.layers)
            .map(|_| KvLayer::new(layout, size.blocks))
            .collect::<Result<_, _>>()?;
        // Attention is no less exact than the projections around it.
        let mut layers = decoder.layers.iter();
        let attention_precision = if layers.all(|layer| layer.qkv.matrix.rounds_activations()) {
            precision
        } else {
            Precision::Exact
        };
        let threads = match options.threads {
            0 => ThreadPool::physical_cores(),
            threads => threads,
        };
        let angles = RopeTable::new(d.inverse_frequencies.clone());
        Ok(Self {
            pool: ThreadPool::new(threads)?,
            blocks,
            attention: Attention::new(d, options.attention, attention_precision, size.block_size),
            rope: kernels::RopeTable::new(angles.width(), Vec::new(), Vec::new())?,
            angles,
            buffers: Buffers::default(),
            wanted: RaggedBatch::default(),
            block_size: size.block_size,
            decoder,
        })
    }

    /// Makes the rotary table reach the batch's last position.
    fn cover_positions(&mut self, batch: &RaggedBatch) -> Result<(), EngineError> {
        let last = batch.positions.iter().max().copied().unwrap_or(0);
        if self.angles.cover(last as usize) {
            self.rope = kernels::RopeTable::new(
                self.angles.width(),
                self.angles.cosines().to_vec(),
                self.angles.sines().to_vec(),
            )?;
        }
        Ok(())
    }

    /// Keys and values of `batch` into their slots, and attention and feed-forward for `rows`.
    fn layer(&mut self, index: usize, batch: &RaggedBatch, rows: Rows) -> Result<(), EngineError> {
        let d = &self.decoder.description;
        let layer = &self.decoder.layers[index];
        let (pool, epsilon, stride) = (&self.pool, d.norm_epsilon, d.qkv_width());
        let Buffers {
            hidden,
            normed,
            qkv,
            attended,
            gate_up,
            activated,
        } = &mut self.buffers;

        normed.resize(hidden.len(), 0.0);
        kernels::rms_norm(pool, hidden, &layer.attention_norm, epsilon, normed)?;
        layer.qkv.forward(pool, normed, qkv)?;
        if let Some((query_norm, key_norm)) = &layer.head_norms {
            for (norm, offset, heads) in [
                (query_norm, 0, d.heads),
                (key_norm, d.query_width(), d.kv_heads),
            ] {
                let data = qkv.as_mut_slice();
                let heads = HeadRows {
                    data,
                    stride,
                    offset,
                    heads,
                    head_dim: d.head_dim,
                };
                kernels::rms_norm_heads(pool, heads, norm, epsilon)?;
            }
        }
        let turning = HeadRows {
            data: qkv.as_mut_slice(),
            stride,
            offset: 0,
            heads: d.heads + d.kv_heads,
            head_dim: d.head_dim,
        };
        kernels::rope(pool, turning, &batch.positions, &self.rope)?;
        let (keys, values) = (
            &qkv[d.query_width()..],
            &qkv[d.query_width() + d.kv_width()..],
        );
        self.blocks[index].write(pool, &batch.slots, keys, values, stride)?;

        if rows == Rows::Wanted {
            keep_rows(qkv, stride, batch.wanted_rows());
            keep_rows(hidden, d.hidden, batch.wanted_rows());
            if hidden.is_empty() {
                return Ok(());
            }
        }
        attended.resize(hidden.len() / d.hidden * d.query_width(), 0.0);
        self.attention
            .attend(rows, pool, &self.blocks[index], qkv, stride, attended)?;
        layer.output.forward(pool, attended, normed)?;
        kernels::add(pool, hidden, normed)?;

        kernels::rms_norm(pool, hidden, &layer.mlp_norm, epsilon, normed)?;
        layer.gate_up.forward(pool, normed, gate_up)?;
        activated.resize(gate_up.len() / 2, 0.0);
        kernels::silu_mul(pool, gate_up, d.intermediate, activated)?;
        layer.down.forward(pool, activated, normed)?;
        kernels::add(pool, hidden, normed)?;
        Ok(())
    }
}

/// Keeps some rows of `width` numbers, given in ascending order.
fn keep_rows(data: &mut Vec<f32>, width: usize, rows: impl Iterator<Item = usize>) {
    let mut kept = 0;
    for row in rows {
        data.copy_within(row * width..(row + 1) * width, kept * width);
        kept += 1;
    }
    data.truncate(kept * width);
}

impl Executor for CpuExecutor {
    fn forward(&mut self, batch: &RaggedBatch, logits: &mut Vec<f32>) -> Result<(), EngineError> {
        self.cover_positions(batch)?;
        self.wanted.keep_wanted(batch);
        self.attention.plan(batch, &self.wanted, self.block_size)?;
        self.buffers
            .hidden
            .resize(batch.rows() * self.decoder.description.hidden, 0.0);
        self.decoder
            .embedding
            .gather(&self.pool, &batch.tokens, &mut self.buffers.hidden)?;
        let layers = self.decoder.layers.len();
        for index in 0..layers {
            let rows = if index + 1 == layers {
                Rows::Wanted
            } else {
                Rows::All
            };
            self.layer(index, batch, rows)?;
        }
        let Buffers { hidden, normed, .. } = &mut self.buffers;
        logits.clear();
        if hidden.is_empty() {
            return Ok(());
        }
        normed.resize(hidden.len(), 0.0);
        let epsilon = self.decoder.description.norm_epsilon;
        kernels::rms_norm(
            &self.pool,
            hidden,
            &self.decoder.final_norm,
            epsilon,
            normed,
        )?;
        self.decoder.head.forward(&self.pool, normed, logits)?;
        Ok(())
    }

    fn pool(&self) -> Option<&ThreadPool> {
        Some(&self.pool)
    }

    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), EngineError> {
        for layer in &mut self.blocks {
            layer.copy_block(copy.from, copy.to, copy.tokens);
        }
        Ok(())
    }
}
