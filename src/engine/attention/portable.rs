//! Attention with candle operations only: the reference, and what Metal and CUDA run.
//!
//! A batch is cut into tiles: up to `query_rows` rows of one sequence, at absolute positions from one
//! multiple of `query_rows` to the next. Keys are cut at absolute multiples of `key_positions`, and the
//! partitions of a tile are combined in the order of positions by the online softmax (Milakov and
//! Gimelshein, "Online normalizer calculation for softmax"; Dao et al., "FlashAttention"). A row always
//! has the same place in a tile of the same shape, and a tile the same partitions, whatever else is in
//! the batch: with matrix products whose elements depend on nothing but their shape, row and column,
//! which candle's are on the CPU, a row's result is always the same to the bit.

use candle_core::{D, DType, Device, Result, Tensor};

use crate::engine::batch::RaggedBatch;

/// The cut of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Divides `key_positions`, so that all rows of a tile end in the same partition.
    pub query_rows: usize,
    /// A multiple of the block size.
    pub key_positions: usize,
}

impl Tiling {
    /// Fixed for all batches, as bit-identical results on the CPU ask for.
    pub const FIXED: Tiling = Tiling {
        query_rows: 16,
        key_positions: 256,
    };

    /// For devices whose products depend on the batch anyway: no padding of decode rows.
    fn for_batch(batch: &RaggedBatch) -> Tiling {
        let longest = batch.spans.iter().map(|span| span.rows).max().unwrap_or(1);
        Tiling {
            query_rows: longest.next_power_of_two().min(128),
            key_positions: 1024,
        }
    }
}

/// Head counts and sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub block_size: usize,
}

/// One layer's keys and values.
pub trait BlockSource {
    /// The keys and the values of `blocks`, each `[blocks, block_size, kv_heads, head_dim]` in f32.
    fn gather(&self, blocks: &[u32]) -> Result<(Tensor, Tensor)>;
}

/// Attention of one kind of batch on one device.
#[derive(Debug)]
pub struct PortableAttention {
    shape: AttentionShape,
    device: Device,
    tiling: Option<Tiling>,
}

/// What a batch's attention does, the same in all layers.
#[derive(Debug)]
pub struct TilePlan {
    groups: Vec<TileGroup>,
    /// For each row of the batch, its row among all groups' tiles.
    places: Tensor,
}

/// Tiles with the same number of key partitions, computed together.
#[derive(Debug)]
struct TileGroup {
    tiles: usize,
    query_rows: usize,
    /// The row of the batch that each place of each tile holds (any row, at places that hold none).
    rows: Tensor,
    partitions: Vec<Partition>,
}

/// The same key partition of all tiles of a group.
#[derive(Debug)]
struct Partition {
    /// `tiles x (key_positions / block_size)` blocks.
    blocks: Vec<u32>,
    key_positions: usize,
    /// Only in the last partition, where not every key is visible.
    limit: Option<Limit>,
}

#[derive(Debug)]
struct Limit {
    /// 1 where a key was written, `[tiles, 1, key_positions, 1]`, u8.
    written: Tensor,
    /// 0 where a row may see a key and minus infinity elsewhere, `[tiles, 1, rows x group, key_positions]`.
    mask: Tensor,
}

/// A tile before it is grouped.
struct Tile {
    span: usize,
    /// Position of place 0.
    base: usize,
    /// First and one past the last position that rows of the batch have here.
    from: usize,
    to: usize,
}

impl PortableAttention {
    /// Attention on `device`; on the CPU with [`Tiling::FIXED`].
    pub fn new(shape: AttentionShape, device: Device) -> Self {
        let tiling = device.is_cpu().then_some(Tiling::FIXED);
        Self {
            shape,
            device,
            tiling,
        }
    }

    pub fn shape(&self) -> AttentionShape {
        self.shape
    }

    /// Cuts a batch into tiles.
    pub fn plan(&self, batch: &RaggedBatch) -> Result<TilePlan> {
        let tiling = self.tiling.unwrap_or_else(|| Tiling::for_batch(batch));
        let mut tiles = Vec::new();
        for (index, span) in batch.spans.iter().enumerate() {
            let end = span.start + span.rows;
            let mut base = span.start / tiling.query_rows * tiling.query_rows;
            while base < end {
                tiles.push(Tile {
                    span: index,
                    base,
                    from: base.max(span.start),
                    to: end.min(base + tiling.query_rows),
                });
                base += tiling.query_rows;
            }
        }
        let partitions = |tile: &Tile| tile.to.div_ceil(tiling.key_positions);
        tiles.sort_by_key(partitions);
        let mut places = vec![0u32; batch.rows()];
        let mut first_place = 0;
        let mut groups = Vec::new();
        for tiles in tiles.chunk_by(|a, b| partitions(a) == partitions(b)) {
            for (index, tile) in tiles.iter().enumerate() {
                let span = &batch.spans[tile.span];
                for position in tile.from..tile.to {
                    let place = first_place + index * tiling.query_rows + position - tile.base;
                    places[span.first_row + position - span.start] = place as u32;
                }
            }
            first_place += tiles.len() * tiling.query_rows;
            groups.push(self.group(batch, tiles, partitions(&tiles[0]), tiling)?);
        }
        let places = Tensor::from_vec(places, batch.rows(), &self.device)?;
        Ok(TilePlan { groups, places })
    }

    fn group(
        &self,
        batch: &RaggedBatch,
        tiles: &[Tile],
        partitions: usize,
        tiling: Tiling,
    ) -> Result<TileGroup> {
        let mut rows = Vec::with_capacity(tiles.len() * tiling.query_rows);
        for tile in tiles {
            let span = &batch.spans[tile.span];
            for position in tile.base..tile.base + tiling.query_rows {
                let position = position.clamp(tile.from, tile.to - 1);
                rows.push((span.first_row + position - span.start) as u32);
            }
        }
        let places = rows.len();
        Ok(TileGroup {
            tiles: tiles.len(),
            query_rows: tiling.query_rows,
            rows: Tensor::from_vec(rows, places, &self.device)?,
            partitions: (0..partitions)
                .map(|index| self.partition(batch, tiles, index, index + 1 == partitions, tiling))
                .collect::<Result<_>>()?,
        })
    }

    fn partition(
        &self,
        batch: &RaggedBatch,
        tiles: &[Tile],
        index: usize,
        last: bool,
        tiling: Tiling,
    ) -> Result<Partition> {
        let width = tiling.key_positions;
        let first = index * width;
        let blocks_each = width / self.shape.block_size;
        let first_block = first / self.shape.block_size;
        let mut blocks = Vec::with_capacity(tiles.len() * blocks_each);
        for tile in tiles {
            let table = batch.table(&batch.spans[tile.span]);
            // A block of the table stands in for those past its end, whose keys count as not written.
            blocks.extend(
                (first_block..first_block + blocks_each)
                    .map(|block| table.get(block).unwrap_or(&table[0]).0),
            );
        }
        let limit = if last {
            Some(self.limit(tiles, first, tiling)?)
        } else {
            None
        };
        Ok(Partition {
            blocks,
            key_positions: width,
            limit,
        })
    }

    fn limit(&self, tiles: &[Tile], first: usize, tiling: Tiling) -> Result<Limit> {
        let width = tiling.key_positions;
        let group = self.shape.heads / self.shape.kv_heads;
        let mut written = Vec::with_capacity(tiles.len() * width);
        let mut mask = Vec::with_capacity(tiles.len() * tiling.query_rows * group * width);
        for tile in tiles {
            written.extend((first..first + width).map(|key| u8::from(key < tile.to)));
            for place in 0..tiling.query_rows {
                let position = tile.base + place;
                for _ in 0..group {
                    mask.extend((first..first + width).map(|key| {
                        if key <= position {
                            0.0
                        } else {
                            f32::NEG_INFINITY
                        }
                    }));
                }
            }
        }
        Ok(Limit {
            written: Tensor::from_vec(written, (tiles.len(), 1, width, 1), &self.device)?,
            mask: Tensor::from_vec(
                mask,
                (tiles.len(), 1, tiling.query_rows * group, width),
                &self.device,
            )?,
        })
    }

    /// Attention of `queries` `[rows, heads * head_dim]` (f32, rotated) over one layer's blocks; the
    /// same shape comes back. The batch's own keys and values are in their blocks already.
    pub fn attend(
        &self,
        plan: &TilePlan,
        queries: &Tensor,
        source: &dyn BlockSource,
    ) -> Result<Tensor> {
        let outputs = plan
            .groups
            .iter()
            .map(|group| self.attend_group(group, queries, source))
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&outputs, 0)?.index_select(&plan.places, 0)
    }

    fn attend_group(
        &self,
        group: &TileGroup,
        queries: &Tensor,
        source: &dyn BlockSource,
    ) -> Result<Tensor> {
        let AttentionShape {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let per_kv = heads / kv_heads;
        let rows = group.query_rows * per_kv;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let queries = (queries.index_select(&group.rows, 0)? * scale)?
            .reshape((group.tiles, group.query_rows, kv_heads, per_kv, head_dim))?
            .permute((0, 2, 1, 3, 4))?
            .contiguous()?
            .reshape((group.tiles * kv_heads, rows, head_dim))?;
        let mut sum: Option<Softmax> = None;
        for partition in &group.partitions {
            let next = self.attend_partition(group.tiles, &queries, partition, source)?;
            sum = Some(match sum {
                None => next,
                Some(before) => before.combine(&next)?,
            });
        }
        let Some(sum) = sum else {
            candle_core::bail!("a tile without key partitions")
        };
        sum.output
            .broadcast_div(&sum.total)?
            .reshape((group.tiles, kv_heads, group.query_rows, per_kv, head_dim))?
            .permute((0, 2, 1, 3, 4))?
            .contiguous()?
            .reshape((group.tiles * group.query_rows, heads * head_dim))
    }

    fn attend_partition(
        &self,
        tiles: usize,
        queries: &Tensor,
        partition: &Partition,
        source: &dyn BlockSource,
    ) -> Result<Softmax> {
        let AttentionShape {
            kv_heads, head_dim, ..
        } = self.shape;
        let width = partition.key_positions;
        let (keys, values) = source.gather(&partition.blocks)?;
        let arrange = |gathered: Tensor| -> Result<Tensor> {
            let tiled = gathered
                .reshape((tiles, width, kv_heads, head_dim))?
                .transpose(1, 2)?
                .contiguous()?;
            // What was never written, or by another sequence long ago, may be NaN: not even 0 times it is 0.
            let tiled = match &partition.limit {
                Some(limit) => limit
                    .written
                    .broadcast_as(tiled.shape())?
                    .contiguous()?
                    .where_cond(&tiled, &tiled.zeros_like()?)?,
                None => tiled,
            };
            tiled.reshape((tiles * kv_heads, width, head_dim))
        };
        let keys = arrange(keys)?;
        let values = arrange(values)?;
        let rows = queries.dim(1)?;
        let mut scores = queries.matmul(&keys.transpose(1, 2)?)?;
        if let Some(limit) = &partition.limit {
            scores = scores
                .reshape((tiles, kv_heads, rows, width))?
                .broadcast_add(&limit.mask)?
                .reshape((tiles * kv_heads, rows, width))?;
        }
        let largest = scores.max_keepdim(D::Minus1)?;
        let weights = scores.broadcast_sub(&largest)?.exp()?;
        Ok(Softmax {
            total: weights.sum_keepdim(D::Minus1)?,
            output: weights.matmul(&values)?,
            largest,
        })
    }
}

/// The state of an online softmax over some keys: `[batch, rows, 1]` twice and `[batch, rows, head_dim]`.
struct Softmax {
    largest: Tensor,
    /// Sum of `exp(score - largest)`.
    total: Tensor,
    /// Sum of `exp(score - largest) * value`.
    output: Tensor,
}

impl Softmax {
    /// The state over the keys of both.
    fn combine(&self, next: &Softmax) -> Result<Softmax> {
        let largest = self.largest.maximum(&next.largest)?;
        let before = (&self.largest - &largest)?.exp()?;
        let after = (&next.largest - &largest)?.exp()?;
        Ok(Softmax {
            total: ((&self.total * &before)? + (&next.total * &after)?)?,
            output: (self.output.broadcast_mul(&before)? + next.output.broadcast_mul(&after)?)?,
            largest,
        })
    }
}

/// Keys or values of blocks from a pool `[blocks, ...]`, in f32.
pub fn select_blocks(pool: &Tensor, blocks: &Tensor) -> Result<Tensor> {
    pool.index_select(blocks, 0)?.to_dtype(DType::F32)
}

#[cfg(test)]
mod tests;
