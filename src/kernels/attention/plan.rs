//! Which rows walk which blocks: worked out once a step, the same for all layers.
//!
//! Block tables form a tree: tables whose blocks are the same over the first partitions share a node, and
//! part where they differ. A node's partitions are walked once for the rows of all its tables. Levels of
//! the tree run one after the other, since a row's partitions are combined in order.

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

impl AttentionShape {
    /// The first key that a row at `position` attends to.
    pub(super) fn first_key(&self, position: usize) -> usize {
        self.window
            .map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// One row of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionRow {
    /// Which of the plan's block tables is this row's.
    pub table: u32,
    /// The row's own position; it attends up to and including it.
    pub position: u32,
}

/// Some rows that one thread takes through some partitions together; all their tables have the same
/// blocks there.
#[derive(Clone)]
pub(super) struct Task {
    /// Places of [`AttentionPlan::order`].
    pub(super) rows: Range<usize>,
    pub(super) partitions: Range<usize>,
    /// How many tasks the rows have been through before this one.
    level: usize,
}

/// The rows and block tables of a step. Building it again reuses its memory.
#[derive(Default)]
pub struct AttentionPlan {
    shape: Option<AttentionShape>,
    block_size: usize,
    rows: Vec<AttentionRow>,
    /// All block tables one after the other.
    blocks: Vec<BlockId>,
    /// Where each table begins in `blocks`, and the end.
    starts: Vec<usize>,
    /// Row numbers: tables that share blocks are neighbours, positions of a table ascend.
    order: Vec<u32>,
    /// For each place of the order, where its state is kept between levels (in rows) if it has several.
    states: Vec<Option<u32>>,
    state_rows: usize,
    tasks: Vec<Task>,
    /// Where each level's tasks begin, and the end.
    levels: Vec<usize>,
    /// One more than the largest block number.
    block_bound: usize,
    /// Multiply-adds of scores, per query head and dimension.
    work: usize,
}

/// Query rows times heads that one task keeps the state of.
const TASK_PAIRS: usize = 192;

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
        assert!(block_size.is_power_of_two(), "impossible block size");
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
        self.work = rows.iter().map(|row| row.position as usize + 1).sum();
        self.rows.clear();
        self.rows.extend_from_slice(rows);
        self.tasks.clear();
        self.plan_order();
        self.states.clear();
        self.states.resize(rows.len(), None);
        self.plan_nodes();
        self.plan_states();
    }

    /// Orders rows by the blocks of their tables, then by table and position.
    fn plan_order(&mut self) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend(0..self.rows.len() as u32);
        order.sort_by(|&a, &b| {
            let (a, b) = (self.rows[a as usize], self.rows[b as usize]);
            let by_table = if a.table == b.table {
                std::cmp::Ordering::Equal
            } else {
                self.table(a.table)
                    .cmp(self.table(b.table))
                    .then(a.table.cmp(&b.table))
            };
            by_table.then(a.position.cmp(&b.position))
        });
        self.order = order;
    }

    /// Makes the tasks of the whole tree, sorted by level.
    fn plan_nodes(&mut self) {
        // Nodes to come: places of the order, first partition, level.
        let mut nodes = vec![(0..self.order.len(), 0, 0)];
        while let Some((places, first, level)) = nodes.pop() {
            // Rows that still have keys from `first` on, by what blocks they have there.
            let mut start = places.start;
            while start < places.end {
                let mut end = start + 1;
                while end < places.end && self.same_blocks(start, end, first) {
                    end += 1;
                }
                let last = (start..end)
                    .map(|place| self.last_partition(place))
                    .max()
                    .unwrap_or(0);
                if last >= first {
                    // As far as all tables agree. The outermost two differ first, since tables are sorted.
                    let mut until = first + 1;
                    while until <= last && self.same_blocks(start, end - 1, until) {
                        until += 1;
                    }
                    self.push_tasks(start..end, first..until, level);
                    if until <= last {
                        nodes.push((start..end, until, level + 1));
                    }
                }
                start = end;
            }
        }
        let level_count = self
            .tasks
            .iter()
            .map(|task| task.level + 1)
            .max()
            .unwrap_or(0);
        // Within a level the longest first, so that no thread is left alone with one; of equals,
        // neighbours in the order stay neighbours, because they may share blocks in part.
        self.tasks.sort_by_key(|task| {
            let size = task.partitions.len() * task.rows.len();
            (task.level, std::cmp::Reverse(size), task.rows.start)
        });
        self.levels.clear();
        for level in 0..=level_count {
            self.levels
                .push(self.tasks.partition_point(|task| task.level < level));
        }
    }

    fn push_tasks(&mut self, places: Range<usize>, partitions: Range<usize>, level: usize) {
        let shape = self.shape();
        let most = (TASK_PAIRS / (shape.query_heads / shape.kv_heads)).max(1);
        let count = places.len().div_ceil(most);
        for part in 0..count {
            let at = |part: usize| places.start + places.len() * part / count;
            let rows = at(part)..at(part + 1);
            self.tasks.push(Task {
                rows,
                partitions: partitions.clone(),
                level,
            });
        }
    }

    /// Rows that more than one task works on need their state kept in between.
    fn plan_states(&mut self) {
        self.state_rows = 0;
        for task in self.tasks.iter().filter(|task| task.level == 1) {
            for place in task.rows.clone() {
                self.states[place] = Some(self.state_rows as u32);
                self.state_rows += 1;
            }
        }
    }

    /// Whether the rows at two places have the same blocks in a partition.
    fn same_blocks(&self, a: usize, b: usize, partition: usize) -> bool {
        let (a, b) = (self.row(a).table, self.row(b).table);
        a == b || self.partition_blocks(a, partition) == self.partition_blocks(b, partition)
    }

    /// The blocks of a table that a partition touches.
    fn partition_blocks(&self, table: u32, partition: usize) -> &[BlockId] {
        let table = self.table(table);
        let first = partition * PARTITION / self.block_size;
        let end = ((partition + 1) * PARTITION).div_ceil(self.block_size);
        &table[first.min(table.len())..end.min(table.len())]
    }

    fn last_partition(&self, place: usize) -> usize {
        self.row(place).position as usize / PARTITION
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn shape(&self) -> AttentionShape {
        self.shape.expect("a plan is built before it is used")
    }

    /// The tasks of each level.
    pub(super) fn levels(&self) -> impl Iterator<Item = &[Task]> {
        self.levels
            .windows(2)
            .map(|bounds| &self.tasks[bounds[0]..bounds[1]])
    }

    /// Where the row at a place keeps its state between tasks, if it has several.
    pub(super) fn state(&self, place: usize) -> Option<usize> {
        self.states[place].map(|state| state as usize)
    }

    /// How many rows keep state between tasks.
    pub(super) fn state_rows(&self) -> usize {
        self.state_rows
    }

    /// Whether the task is the first of its rows.
    pub(super) fn begins(&self, task: &Task) -> bool {
        task.level == 0
    }

    /// Whether the task has the last keys of the row at a place.
    pub(super) fn ends(&self, task: &Task, place: usize) -> bool {
        self.last_partition(place) < task.partitions.end
    }

    /// Whether the row at a place has keys in the task.
    pub(super) fn takes_part(&self, task: &Task, place: usize) -> bool {
        self.last_partition(place) >= task.partitions.start
    }

    /// Keys of all rows together.
    pub(super) fn work(&self) -> usize {
        self.work
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
