//! The executor made of candle operations, for any device.

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::{ops, rotary_emb};
use std::sync::Arc;

use super::Executor;
use crate::engine::attention::portable::{
    AttentionShape, BlockSource, PortableAttention, TilePlan, select_blocks,
};
use crate::engine::batch::RaggedBatch;
use crate::engine::blocks::KvPoolSize;
use crate::engine::error::EngineError;
use crate::engine::layers::{Decoder, DecoderDescription, DecoderLayer, WeightBackend};
use crate::engine::loader::{Weight, Weights};
use crate::engine::options::KvDtype;
use crate::engine::rope::RopeTable;
use crate::engine::step::BlockCopy;

/// Packs weights as candle tensors on one device.
struct CandleBackend {
    device: Device,
}

/// Matrices of the same input and one bias over all their outputs.
struct CandleLinear {
    parts: Vec<CandleMatrix>,
    bias: Option<Tensor>,
}

enum CandleMatrix {
    /// `[out, in]`.
    Dense(Tensor),
    Quantized(QMatMul),
}

enum CandleEmbedding {
    Dense(Tensor),
    Quantized(Arc<QTensor>),
}

impl CandleBackend {
    /// Matrices of the same inputs and type, one above the other.
    fn dense(&self, stack: &[Tensor]) -> Result<Tensor, EngineError> {
        // Stacked before it goes to the device: Metal gives the result of an operation a power of two of bytes.
        let tensor = match stack {
            [tensor] => tensor.clone(),
            stack => Tensor::cat(stack, 0)?,
        };
        // candle multiplies f32 on the CPU; other devices keep the weights' own type.
        let tensor = if self.device.is_cpu() {
            tensor.to_dtype(DType::F32)?
        } else {
            tensor
        };
        Ok(tensor.to_device(&self.device)?)
    }

    fn quantized(&self, tensor: Arc<QTensor>) -> Result<Arc<QTensor>, EngineError> {
        if self.device.is_cpu() {
            return Ok(tensor);
        }
        let storage = QStorage::from_data(tensor.data()?, &self.device, tensor.dtype())?;
        Ok(Arc::new(QTensor::new(storage, tensor.shape())?))
    }
}

impl WeightBackend for CandleBackend {
    type Linear = CandleLinear;
    type Embedding = CandleEmbedding;
    type Vector = Tensor;

    fn linear(
        &self,
        parts: Vec<Weight>,
        bias: Option<Vec<f32>>,
    ) -> Result<CandleLinear, EngineError> {
        let mut packed = Vec::with_capacity(parts.len());
        let mut parts = parts.into_iter().peekable();
        while let Some(part) = parts.next() {
            packed.push(match part {
                Weight::Dense(first) => {
                    let dtype = first.dtype();
                    let mut stack = vec![first];
                    let fits = |next: &Weight| matches!(next, Weight::Dense(next) if next.dtype() == dtype);
                    while let Some(Weight::Dense(next)) = parts.next_if(fits) {
                        stack.push(next);
                    }
                    CandleMatrix::Dense(self.dense(&stack)?)
                }
                Weight::Quantized(tensor) => {
                    CandleMatrix::Quantized(QMatMul::from_arc(self.quantized(tensor)?)?)
                }
            });
        }
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        Ok(CandleLinear {
            parts: packed,
            bias,
        })
    }

    fn embedding(&self, weight: Weight) -> Result<CandleEmbedding, EngineError> {
        Ok(match weight {
            Weight::Dense(tensor) => CandleEmbedding::Dense(self.dense(&[tensor])?),
            Weight::Quantized(tensor) => CandleEmbedding::Quantized(self.quantized(tensor)?),
        })
    }

    fn tied_head(&self, embedding: &CandleEmbedding) -> Result<CandleLinear, EngineError> {
        let matrix = match embedding {
            CandleEmbedding::Dense(table) => CandleMatrix::Dense(table.clone()),
            CandleEmbedding::Quantized(table) => {
                CandleMatrix::Quantized(QMatMul::from_arc(Arc::clone(table))?)
            }
        };
        Ok(CandleLinear {
            parts: vec![matrix],
            bias: None,
        })
    }

    fn vector(&self, values: Vec<f32>) -> Result<Tensor, EngineError> {
        let length = values.len();
        Ok(Tensor::from_vec(values, length, &self.device)?)
    }
}

/// One layer's keys and values, each `[blocks * block_size, kv_heads * head_dim]`: a position's heads together,
/// for on Metal and CUDA a scatter goes through the rows one after another and shares only their width among
/// threads.
struct KvLayer {
    keys: Tensor,
    values: Tensor,
    shape: AttentionShape,
}

impl KvLayer {
    fn new(
        size: KvPoolSize,
        shape: AttentionShape,
        dtype: DType,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let dims = (
            size.blocks * size.block_size,
            shape.kv_heads * shape.head_dim,
        );
        let zeros = || {
            if device.is_metal() {
                // What Metal itself fills with zeros takes a power of two of bytes, up to twice what was planned;
                // what comes from the host takes no more than it has.
                Tensor::zeros(dims, dtype, &Device::Cpu)?.to_device(device)
            } else {
                Tensor::zeros(dims, dtype, device)
            }
        };
        Ok(Self {
            keys: zeros()?,
            values: zeros()?,
            shape,
        })
    }

    /// `pool` as `[blocks, block_size, kv_heads, head_dim]`, sharing its memory.
    fn by_block(&self, pool: &Tensor) -> candle_core::Result<Tensor> {
        let AttentionShape {
            kv_heads,
            head_dim,
            block_size,
            ..
        } = self.shape;
        pool.reshape(((), block_size, kv_heads, head_dim))
    }
}

impl BlockSource for KvLayer {
    fn gather(&self, blocks: &[u32]) -> candle_core::Result<(Tensor, Tensor)> {
        let blocks = Tensor::new(blocks, self.keys.device())?;
        Ok((
            select_blocks(&self.by_block(&self.keys)?, &blocks)?,
            select_blocks(&self.by_block(&self.values)?, &blocks)?,
        ))
    }
}

/// Forward passes by candle operations.
pub struct PortableExecutor {
    decoder: Decoder<CandleBackend>,
    attention: PortableAttention,
    blocks: Vec<KvLayer>,
    rope: RopeTable,
    device: Device,
    last_rows: RaggedBatch,
}

/// What all layers need to know about a batch.
struct Pass {
    /// Cosines and sines of the rows' positions, `[rows, head_dim / 2]`.
    cosines: Tensor,
    sines: Tensor,
    /// Row of the KV layer for each batch row, repeated along its width.
    slots: Tensor,
    plan: TilePlan,
}

/// The rows that go on after the last layer's keys and values are written.
struct LastRows {
    /// Their rows in the batch.
    rows: Tensor,
    plan: TilePlan,
}

impl PortableExecutor {
    /// Loads the weights onto `device` and reserves the KV pool there.
    pub fn new(
        description: DecoderDescription,
        weights: &dyn Weights,
        size: KvPoolSize,
        dtype: KvDtype,
        device: Device,
    ) -> Result<Self, EngineError> {
        let decoder = Decoder::build(
            description,
            weights,
            &CandleBackend {
                device: device.clone(),
            },
        )?;
        let description = &decoder.description;
        let shape = AttentionShape {
            heads: description.heads,
            kv_heads: description.kv_heads,
            head_dim: description.head_dim,
            block_size: size.block_size,
        };
        let dtype = dtype.candle()?;
        let blocks = (0..description.layers)
            .map(|_| KvLayer::new(size, shape, dtype, &device))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            attention: PortableAttention::new(shape, device.clone()),
            blocks,
            rope: RopeTable::new(description.inverse_frequencies.clone()),
            device,
            last_rows: RaggedBatch::default(),
            decoder,
        })
    }

    fn pass(&mut self, batch: &RaggedBatch) -> Result<Pass, EngineError> {
        let d = &self.decoder.description;
        let width = self.rope.width();
        let last = batch.positions.iter().max().copied().unwrap_or(0);
        self.rope.cover(last as usize);
        let rotation = |table: &[f32]| {
            let mut rows = Vec::with_capacity(batch.rows() * width);
            for &position in &batch.positions {
                rows.extend_from_slice(&table[position as usize * width..][..width]);
            }
            Tensor::from_vec(rows, (batch.rows(), width), &self.device)
        };
        let block_size = self.attention.shape().block_size as u32;
        let slots: Vec<u32> = batch
            .slots
            .iter()
            .map(|slot| slot.block.0 * block_size + slot.slot)
            .collect();
        Ok(Pass {
            cosines: rotation(self.rope.cosines())?,
            sines: rotation(self.rope.sines())?,
            slots: Tensor::from_vec(slots, (batch.rows(), 1), &self.device)?
                .broadcast_as((batch.rows(), d.kv_width()))?
                .contiguous()?,
            plan: self.attention.plan(batch)?,
        })
    }

    fn layer(
        &self,
        index: usize,
        hidden: &Tensor,
        pass: &Pass,
        last_rows: Option<&LastRows>,
    ) -> Result<Tensor, EngineError> {
        let d = &self.decoder.description;
        let layer: &DecoderLayer<CandleBackend> = &self.decoder.layers[index];
        let blocks = &self.blocks[index];
        let rows = hidden.dim(0)?;
        let normed = ops::rms_norm(hidden, &layer.attention_norm, d.norm_epsilon)?;
        let qkv = forward(&layer.qkv, &normed)?;
        // `[rows, heads * head_dim]`, normed and rotated.
        let rotated =
            |offset: usize, heads: usize, norm: Option<&Tensor>| -> Result<Tensor, EngineError> {
                let part = qkv
                    .narrow(D::Minus1, offset, heads * d.head_dim)?
                    .contiguous()?
                    .reshape((rows, heads, d.head_dim))?;
                let part = match norm {
                    Some(weight) => ops::rms_norm(&part, weight, d.norm_epsilon)?,
                    None => part,
                };
                let part = rotary_emb::rope_thd(&part.unsqueeze(0)?, &pass.cosines, &pass.sines)?;
                Ok(part.reshape((rows, heads * d.head_dim))?)
            };
        let (query_norm, key_norm) = match &layer.head_norms {
            Some((query, key)) => (Some(query), Some(key)),
            None => (None, None),
        };
        let queries = rotated(0, d.heads, query_norm)?;
        let keys = rotated(d.query_width(), d.kv_heads, key_norm)?;
        let values = qkv.narrow(D::Minus1, d.query_width() + d.kv_width(), d.kv_width())?;
        let store = |pool: &Tensor, rows: Tensor| {
            let rows = rows.to_dtype(pool.dtype())?.contiguous()?;
            pool.scatter_set(&pass.slots, &rows, 0)
        };
        store(&blocks.keys, keys)?;
        store(&blocks.values, values)?;
        let (hidden, attended) = match last_rows {
            Some(last) => (
                hidden.index_select(&last.rows, 0)?,
                self.attention
                    .attend(&last.plan, &queries.index_select(&last.rows, 0)?, blocks)?,
            ),
            None => (
                hidden.clone(),
                self.attention.attend(&pass.plan, &queries, blocks)?,
            ),
        };
        let hidden = (hidden + forward(&layer.output, &attended)?)?;
        let normed = ops::rms_norm(&hidden, &layer.mlp_norm, d.norm_epsilon)?;
        let gate_up = forward(&layer.gate_up, &normed)?;
        let gate = gate_up.narrow(D::Minus1, 0, d.intermediate)?.contiguous()?;
        let up = gate_up
            .narrow(D::Minus1, d.intermediate, d.intermediate)?
            .contiguous()?;
        let activated = (ops::silu(&gate)? * up)?;
        Ok((hidden + forward(&layer.down, &activated)?)?)
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor, EngineError> {
        let tokens = Tensor::new(tokens, &self.device)?;
        let rows = match &self.decoder.embedding {
            CandleEmbedding::Dense(table) => table.index_select(&tokens, 0)?,
            CandleEmbedding::Quantized(table) => table.embedding(&tokens)?,
        };
        Ok(rows.to_dtype(DType::F32)?)
    }
}

/// `input` `[rows, in]` in f32 to `[rows, out]` in f32.
fn forward(linear: &CandleLinear, input: &Tensor) -> Result<Tensor, EngineError> {
    let parts = linear
        .parts
        .iter()
        .map(|part| {
            let output = match part {
                CandleMatrix::Dense(weight) => {
                    input.to_dtype(weight.dtype())?.matmul(&weight.t()?)?
                }
                CandleMatrix::Quantized(weight) => weight.forward(input)?,
            };
            output.to_dtype(DType::F32)
        })
        .collect::<candle_core::Result<Vec<_>>>()?;
    let output = match parts.as_slice() {
        [part] => part.clone(),
        parts => Tensor::cat(parts, D::Minus1)?,
    };
    Ok(match &linear.bias {
        Some(bias) => output.broadcast_add(bias)?,
        None => output,
    })
}

/// Runs device work. Objects that Metal hands out wait in the thread's autorelease pool for their end; without
/// a pool that ends here they would stay for as long as the engine's thread lives.
fn with_released<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(all(target_vendor = "apple", feature = "metal"))]
    return objc2::rc::autoreleasepool(|_| work());
    #[cfg(not(all(target_vendor = "apple", feature = "metal")))]
    work()
}

impl Executor for PortableExecutor {
    fn forward(&mut self, batch: &RaggedBatch, logits: &mut Vec<f32>) -> Result<(), EngineError> {
        with_released(|| self.compute(batch, logits))
    }

    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), EngineError> {
        with_released(|| self.copy(copy))
    }
}

impl PortableExecutor {
    fn compute(&mut self, batch: &RaggedBatch, logits: &mut Vec<f32>) -> Result<(), EngineError> {
        logits.clear();
        let pass = self.pass(batch)?;
        let mut last_rows = std::mem::take(&mut self.last_rows);
        last_rows.keep_wanted(batch);
        let wanted = last_rows.rows();
        let last = if wanted == 0 {
            None
        } else {
            let rows: Vec<u32> = batch.wanted_rows().map(|row| row as u32).collect();
            Some(LastRows {
                rows: Tensor::from_vec(rows, wanted, &self.device)?,
                plan: self.attention.plan(&last_rows)?,
            })
        };
        self.last_rows = last_rows;
        let mut hidden = self.embed(&batch.tokens)?;
        let layers = self.decoder.layers.len();
        for index in 0..layers {
            let last = if index + 1 == layers {
                last.as_ref()
            } else {
                None
            };
            hidden = self.layer(index, &hidden, &pass, last)?;
        }
        if wanted == 0 {
            return Ok(());
        }
        let d = &self.decoder.description;
        let hidden = ops::rms_norm(&hidden, &self.decoder.final_norm, d.norm_epsilon)?;
        let output = forward(&self.decoder.head, &hidden)?;
        *logits = output.flatten_all()?.to_vec1()?;
        Ok(())
    }

    fn copy(&mut self, copy: BlockCopy) -> Result<(), EngineError> {
        for layer in &self.blocks {
            for pool in [&layer.keys, &layer.values] {
                // The whole block: what lies behind `tokens` is overwritten before it is read.
                let rows = layer.shape.block_size;
                // A buffer of its own: `copy` would share or copy the whole pool, by device.
                let block = pool
                    .narrow(0, copy.from.0 as usize * rows, rows)?
                    .force_contiguous()?;
                pool.slice_set(&block, 0, copy.to.0 as usize * rows)?;
            }
        }
        Ok(())
    }
}
