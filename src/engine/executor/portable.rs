//! The executor made of candle operations, for any device.

use candle_core::quantized::{QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, IndexOp, Module, Tensor};
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
    fn dense(&self, tensor: Tensor) -> Result<Tensor, EngineError> {
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
        let mut packed: Vec<CandleMatrix> = Vec::with_capacity(parts.len());
        for part in parts {
            match (part, packed.last_mut()) {
                (Weight::Dense(tensor), Some(CandleMatrix::Dense(above)))
                    if self.device.is_cpu() || above.dtype() == tensor.dtype() =>
                {
                    *above = Tensor::cat(&[&*above, &self.dense(tensor)?], 0)?;
                }
                (Weight::Dense(tensor), _) => packed.push(CandleMatrix::Dense(self.dense(tensor)?)),
                (Weight::Quantized(tensor), _) => {
                    let tensor = self.quantized(tensor)?;
                    packed.push(CandleMatrix::Quantized(QMatMul::from_arc(tensor)?));
                }
            }
        }
        let bias = bias.map(|bias| self.vector(bias)).transpose()?;
        Ok(CandleLinear {
            parts: packed,
            bias,
        })
    }

    fn embedding(&self, weight: Weight) -> Result<CandleEmbedding, EngineError> {
        Ok(match weight {
            Weight::Dense(tensor) => CandleEmbedding::Dense(self.dense(tensor)?),
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

/// One layer's keys and values: `[blocks * kv_heads * block_size, head_dim]`, in that order.
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
            size.blocks * shape.kv_heads * size.block_size,
            shape.head_dim,
        );
        Ok(Self {
            keys: Tensor::zeros(dims, dtype, device)?,
            values: Tensor::zeros(dims, dtype, device)?,
            shape,
        })
    }

    /// `pool` as `[blocks, kv_heads, block_size, head_dim]`, sharing its memory.
    fn by_block(&self, pool: &Tensor) -> candle_core::Result<Tensor> {
        let AttentionShape {
            kv_heads,
            head_dim,
            block_size,
            ..
        } = self.shape;
        pool.reshape(((), kv_heads, block_size, head_dim))
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
    /// Row of the KV layer for each KV head and batch row, repeated along `head_dim`.
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
        let mut slots = Vec::with_capacity(d.kv_heads * batch.rows());
        for head in 0..d.kv_heads {
            slots.extend(batch.slots.iter().map(|slot| {
                (slot.block.0 * d.kv_heads as u32 + head as u32) * block_size + slot.slot
            }));
        }
        let count = slots.len();
        Ok(Pass {
            cosines: rotation(self.rope.cosines())?,
            sines: rotation(self.rope.sines())?,
            slots: Tensor::from_vec(slots, (count, 1), &self.device)?
                .broadcast_as((count, d.head_dim))?
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
        let heads =
            |offset: usize, heads: usize, norm: Option<&Tensor>| -> Result<Tensor, EngineError> {
                let part = qkv
                    .narrow(D::Minus1, offset, heads * d.head_dim)?
                    .reshape((rows, heads, d.head_dim))?
                    .transpose(0, 1)?
                    .contiguous()?;
                Ok(match norm {
                    Some(weight) => ops::rms_norm(&part, weight, d.norm_epsilon)?,
                    None => part,
                })
            };
        let rotate =
            |part: Tensor| rotary_emb::rope(&part.unsqueeze(0)?, &pass.cosines, &pass.sines)?.i(0);
        let (query_norm, key_norm) = match &layer.head_norms {
            Some((query, key)) => (Some(query), Some(key)),
            None => (None, None),
        };
        let queries = rotate(heads(0, d.heads, query_norm)?)?;
        let keys = rotate(heads(d.query_width(), d.kv_heads, key_norm)?)?;
        let values = heads(d.query_width() + d.kv_width(), d.kv_heads, None)?;
        let store = |pool: &Tensor, part: Tensor| {
            let part = part.reshape(((), d.head_dim))?.to_dtype(pool.dtype())?;
            pool.scatter_set(&pass.slots, &part, 0)
        };
        store(&blocks.keys, keys)?;
        store(&blocks.values, values)?;
        let queries = queries
            .transpose(0, 1)?
            .contiguous()?
            .reshape((rows, d.query_width()))?;
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

impl Executor for PortableExecutor {
    fn forward(&mut self, batch: &RaggedBatch, logits: &mut Vec<f32>) -> Result<(), EngineError> {
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

    fn copy_block(&mut self, copy: BlockCopy) -> Result<(), EngineError> {
        for layer in &self.blocks {
            for pool in [&layer.keys, &layer.values] {
                // The whole block: what lies behind `tokens` is overwritten before it is read.
                let rows = layer.shape.kv_heads * layer.shape.block_size;
                let block = pool.narrow(0, copy.from.0 as usize * rows, rows)?.copy()?;
                pool.slice_set(&block, 0, copy.to.0 as usize * rows)?;
            }
        }
        Ok(())
    }
}
