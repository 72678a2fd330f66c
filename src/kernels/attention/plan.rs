//! Which rows walk which blocks: worked out once a step, the same for all layers.

use std::ops::Range;

use super::PARTITION;
use crate::ids::BlockId;
use crate::kernels::KvLayer;

/// What the heads of a model look like to attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    pub query_heads: usize,
    /// Divides `query_heads`.
    pub kv_heads: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A row at position `p` attends to positions `p - window + 1 ..= p`, or to all up to `p`.
    pub window: Option<usize>,
}

/// One row of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionRow {
    /// Which of the plan's block tables is this row's.
    pub table: u32,
    /// The row's own position; it attends up to and including it.
    pub position: u32,
}

/// Some rows of one block table that one thread takes through the blocks together.
pub(super) struct Task {
    /// Part of [`AttentionPlan::order`], ascending in position.
    pub(super) rows: Range<usize>,
}

/// The rows and block tables of a step. Building it again reuses its memory.
#[derive(Default)]
pub struct AttentionPlan {
    shape: Option<AttentionShape>,
    block_size: usize,
    rows: Vec<AttentionRow>,
    /// Row numbers by table, then by position.
    order: Vec<u32>,
    /// All block tables one after the other.
    blocks: Vec<BlockId>,
    /// Where each table begins in `blocks`, and the end.
    starts: Vec<usize>,
    tasks: Vec<Task>,
    /// One more than the largest block number.
    block_bound: usize,
}

/// Query rows times heads that one task keeps the state of.
const TASK_PAIRS: usize = 96;

impl AttentionPlan {
    /// Plans `rows` over `tables` of blocks of `block_size` positions.
    ///
    /// # Panics
    /// When the shape is impossible, a row names no table, or its table does not cover its position.
    pub fn build(
        &mut self,
        shape: AttentionShape,
        block_size: usize,
        tables: &[&[BlockId]],
        rows: &[AttentionRow],
    ) {
        assert!(
            shape.kv_heads > 0 && shape.query_heads.is_multiple_of(shape.kv_heads),
            "the KV heads must divide the query heads"
        );
        assert!(
            block_size.is_power_of_two() && block_size <= PARTITION,
            "impossible block size"
        );
        assert!(shape.window != Some(0), "a window of no position");
        self.shape = Some(shape);
        self.block_size = block_size;
        self.blocks.clear();
        self.starts.clear();
        for table in tables {
            self.starts.push(self.blocks.len());
            self.blocks.extend_from_slice(table);
        }
        self.starts.push(self.blocks.len());
        self.block_bound = self
            .blocks
            .iter()
            .map(|block| block.0 as usize + 1)
            .max()
            .unwrap_or(0);
        for row in rows {
            let covered = tables[row.table as usize].len() * block_size;
            assert!(
                (row.position as usize) < covered,
                "a block table does not cover a row"
            );
        }
        self.rows.clear();
        self.rows.extend_from_slice(rows);
        self.order.clear();
        self.order.extend(0..rows.len() as u32);
        self.order
            .sort_by_key(|&row| (rows[row as usize].table, rows[row as usize].position));
        self.plan_tasks(shape);
    }

    fn plan_tasks(&mut self, shape: AttentionShape) {
        let group = shape.query_heads / shape.kv_heads;
        let most = (TASK_PAIRS / group).max(1);
        self.tasks.clear();
        let mut start = 0;
        while start < self.order.len() {
            let table = self.row(start).table;
            let same = |place: &usize| self.row(*place).table == table;
            let end = start + (start..self.order.len()).take_while(same).count();
            let count = (end - start).div_ceil(most);
            for part in 0..count {
                let at = |part: usize| start + (end - start) * part / count;
                self.tasks.push(Task {
                    rows: at(part)..at(part + 1),
                });
            }
            start = end;
        }
        // The longest first, so that no thread is left alone with one.
        let (order, rows) = (&self.order, &self.rows);
        let last = |task: &Task| rows[order[task.rows.end - 1] as usize].position;
        self.tasks.sort_by_key(|task| std::cmp::Reverse(last(task)));
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn shape(&self) -> AttentionShape {
        self.shape.expect("a plan is built before it is used")
    }

    pub(super) fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The number, in the batch, of the row at a place of the order.
    pub(super) fn row_number(&self, place: usize) -> usize {
        self.order[place] as usize
    }

    /// The row at a place of the order.
    pub(super) fn row(&self, place: usize) -> AttentionRow {
        self.rows[self.row_number(place)]
    }

    pub(super) fn table(&self, table: u32) -> &[BlockId] {
        let table = table as usize;
        &self.blocks[self.starts[table]..self.starts[table + 1]]
    }

    /// # Panics
    /// When the layer is not one that this plan was built for.
    pub(super) fn check(&self, layer: &KvLayer) {
        let layout = layer.layout();
        assert_eq!(
            self.block_size, layout.block_size,
            "attention: another block size"
        );
        assert_eq!(
            self.shape().kv_heads,
            layout.kv_heads,
            "attention: another number of KV heads"
        );
        assert!(
            self.block_bound <= layer.block_count(),
            "attention: a block is outside the storage"
        );
    }
}
