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
    self, AttentionPlan, AttentionRow, AttentionShape, HeadPreparation, Input, Isa, KernelError,
    KvLayer, KvLayout, KvRows, KvSlot, KvType, PackedMatrix, Precision, ThreadPool,
    fused_attention,
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
        input: Input<'_>,
        output: &mut Vec<f32>,
    ) -> Result<(), KernelError> {
        let rows = input.rows(self.matrix.in_features());
        output.resize(rows * self.matrix.out_features(), 0.0);
        self.matrix
            .matmul(pool, input, self.bias.as_deref(), output)
    }

    /// The same for rows that are made one by one, as they are needed.
    fn forward_made(
        &self,
        pool: &ThreadPool,
        rows: usize,
        make: impl Fn(usize, &mut [f32]) + Sync,
        output: &mut Vec<f32>,
    ) -> Result<(), KernelError> {
        let input = Input::Made { rows, make: &make };
        self.forward(pool, input, output)
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
    fn new(d: &DecoderDescription, kind: AttentionKind, block_size: usize) -> Self {
        match kind {
            AttentionKind::Fused => Self::Fused {
                shape: AttentionShape {
                    query_heads: d.heads,
                    kv_heads: d.kv_heads,
                    scale: 1.0 / (d.head_dim as f32).sqrt(),
                    window: None,
                },
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
            Self::Fused { plans, .. } => Ok(fused_attention(
                pool,
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
    /// What a projection adds to it, `[rows, hidden]`.
    projected: Vec<f32>,
    /// `[rows, heads + 2 kv_heads, head_dim]`.
    qkv: Vec<f32>,
    /// `[rows, heads, head_dim]`.
    attended: Vec<f32>,
    /// `[rows, 2 intermediate]`.
    gate_up: Vec<f32>,
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
    kv_dtype: KvDtype,
}

/// What keys and values are stored as, and how. `rounds`: attention may round to `bf16`.
fn kv_type(options: &EngineOptions, rounds: bool, block_size: usize) -> (KvDtype, KvType) {
    let tiles = rounds
        && options.attention == AttentionKind::Fused
        && KvType::has_tiles(Isa::detected(), block_size);
    match options.kv_dtype {
        KvDtype::Auto | KvDtype::Bf16 if tiles => (KvDtype::Bf16, KvType::Bf16Tiles),
        KvDtype::Auto | KvDtype::F16 => (KvDtype::F16, KvType::F16),
        KvDtype::Bf16 => (KvDtype::Bf16, KvType::Bf16),
        KvDtype::F32 => (KvDtype::F32, KvType::F32),
        KvDtype::Q8_0 => (KvDtype::Q8_0, KvType::Q8_0),
    }
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
        // Attention is no less exact than the projections around it.
        let mut layers = decoder.layers.iter();
        let rounds = precision == Precision::Fast
            && layers.all(|layer| layer.qkv.matrix.rounds_activations());
        let (kv_dtype, kind) = kv_type(options, rounds, size.block_size);
        let layout = KvLayout {
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            block_size: size.block_size,
            kind,
        };
        let blocks = (0..d.layers)
            .map(|_| KvLayer::new(layout, size.blocks))
            .collect::<Result<_, _>>()?;
        let threads = match options.threads {
            0 => ThreadPool::physical_cores(),
            threads => threads,
        };
        let angles = RopeTable::new(d.inverse_frequencies.clone());
        Ok(Self {
            pool: ThreadPool::new(threads)?,
            blocks,
            attention: Attention::new(d, options.attention, size.block_size),
            kv_dtype,
            rope: kernels::RopeTable::new(angles.width(), Vec::new(), Vec::new())?,
            angles,
            buffers: Buffers::default(),
            wanted: RaggedBatch::default(),
            block_size: size.block_size,
            decoder,
        })
    }

    /// What keys and values are stored as.
    pub fn kv_dtype(&self) -> KvDtype {
        self.kv_dtype
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
            projected,
            qkv,
            attended,
            gate_up,
        } = &mut self.buffers;

        let norm = row_norm(hidden, &layer.attention_norm, epsilon);
        layer.qkv.forward_made(pool, batch.rows(), norm, qkv)?;
        let preparation = HeadPreparation {
            query_heads: d.heads,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            norms: layer
                .head_norms
                .as_ref()
                .map(|(query, key)| (query.as_slice(), key.as_slice())),
            epsilon,
            rope: &self.rope,
        };
        let kv_rows = KvRows {
            data: qkv.as_mut_slice(),
            stride,
            key: d.query_width(),
            value: d.query_width() + d.kv_width(),
        };
        self.blocks[index].write(pool, &batch.slots, kv_rows, |row, numbers| {
            preparation.apply(numbers, batch.positions[row]);
        })?;

        if rows == Rows::Wanted {
            keep_rows(qkv, stride, batch.wanted_rows());
            keep_rows(hidden, d.hidden, batch.wanted_rows());
            if hidden.is_empty() {
                return Ok(());
            }
        }
        let count = hidden.len() / d.hidden;
        attended.resize(count * d.query_width(), 0.0);
        self.attention
            .attend(rows, pool, &self.blocks[index], qkv, stride, attended)?;
        let attended = Input::Stored(attended);
        layer.output.forward(pool, attended, projected)?;
        kernels::add(pool, hidden, projected)?;

        let norm = row_norm(hidden, &layer.mlp_norm, epsilon);
        layer.gate_up.forward_made(pool, count, norm, gate_up)?;
        let width = 2 * d.intermediate;
        let activate = |row: usize, out: &mut [f32]| {
            kernels::silu_mul(&gate_up[row * width..][..width], out);
        };
        layer.down.forward_made(pool, count, activate, projected)?;
        kernels::add(pool, hidden, projected)?;
        Ok(())
    }
}

/// Makes normed rows of the residual stream.
fn row_norm(hidden: &[f32], weight: &[f32], epsilon: f32) -> impl Fn(usize, &mut [f32]) + Sync {
    move |row, out| {
        let hidden = &hidden[row * weight.len()..][..weight.len()];
        kernels::rms_norm(hidden, weight, epsilon, out);
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
        let hidden = &self.buffers.hidden;
        logits.clear();
        let description = &self.decoder.description;
        let rows = hidden.len() / description.hidden;
        if rows > 0 {
            let norm = row_norm(hidden, &self.decoder.final_norm, description.norm_epsilon);
            let head = &self.decoder.head;
            head.forward_made(&self.pool, rows, norm, logits)?;
        }
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
