//! The ragged batch of one forward pass: many sequences' rows one after another.

use std::ops::Range;

use crate::ids::BlockId;
use crate::kernels::KvSlot;

/// The rows of one sequence within a [`RaggedBatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The span's first row in the batch.
    pub first_row: usize,
    /// How many rows it has: at least 1.
    pub rows: usize,
    /// The absolute position of the first row; the others follow one by one.
    pub start: usize,
    /// The sequence's block table, as a range of [`RaggedBatch::tables`]. Covers `start + rows` positions.
    pub table: Range<usize>,
    /// How many of its last rows' logits are wanted.
    pub wanted: usize,
}

/// All rows of a forward pass. Reused between steps, so that nothing is allocated anew.
#[derive(Debug, Default)]
pub struct RaggedBatch {
    /// The input token of each row.
    pub tokens: Vec<u32>,
    /// The absolute position of each row.
    pub positions: Vec<u32>,
    /// Where each row's keys and values go.
    pub slots: Vec<KvSlot>,
    /// The block tables of all spans, one after another.
    pub tables: Vec<BlockId>,
    pub spans: Vec<Span>,
}

impl RaggedBatch {
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.slots.clear();
        self.tables.clear();
        self.spans.clear();
    }

    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The rows whose logits are wanted, in order.
    pub fn wanted_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.spans.iter().flat_map(|span| {
            let end = span.first_row + span.rows;
            end - span.wanted..end
        })
    }

    /// The block table of `span`.
    pub fn table(&self, span: &Span) -> &[BlockId] {
        &self.tables[span.table.clone()]
    }

    /// Adds the rows of one sequence, the logits of whose last `wanted` rows are wanted. `table` covers
    /// `start + tokens.len()` positions, and there are as many rows (the engine checked).
    pub fn push(
        &mut self,
        tokens: impl ExactSizeIterator<Item = u32>,
        start: usize,
        table: &[BlockId],
        block_size: usize,
        wanted: usize,
    ) {
        let first_row = self.tokens.len();
        let rows = tokens.len();
        self.tokens.extend(tokens);
        for position in start..start + rows {
            self.positions.push(position as u32);
            self.slots.push(KvSlot {
                block: table[position / block_size],
                slot: (position % block_size) as u32,
            });
        }
        let blocks = (start + rows).div_ceil(block_size);
        let first_block = self.tables.len();
        self.tables.extend_from_slice(&table[..blocks]);
        self.spans.push(Span {
            first_row,
            rows,
            start,
            table: first_block..first_block + blocks,
            wanted,
        });
    }

    /// Fills `self` with the rows of `full` whose logits are wanted.
    pub fn keep_wanted(&mut self, full: &RaggedBatch) {
        self.clear();
        self.tables.extend_from_slice(&full.tables);
        for span in full.spans.iter().filter(|span| span.wanted > 0) {
            let skipped = span.rows - span.wanted;
            self.spans.push(Span {
                first_row: self.tokens.len(),
                rows: span.wanted,
                start: span.start + skipped,
                table: span.table.clone(),
                wanted: span.wanted,
            });
            let rows = span.first_row + skipped..span.first_row + span.rows;
            self.tokens.extend_from_slice(&full.tokens[rows.clone()]);
            self.positions
                .extend_from_slice(&full.positions[rows.clone()]);
            self.slots.extend_from_slice(&full.slots[rows]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_positions_slots_and_tables() {
        let table = [BlockId(5), BlockId(2), BlockId(9)];
        let mut batch = RaggedBatch::default();
        batch.push([7, 8, 9].into_iter(), 3, &table, 4, 1);
        batch.push([1].into_iter(), 0, &[BlockId(3)], 4, 0);
        assert_eq!(batch.positions, [3, 4, 5, 0]);
        let slot = |block, slot| KvSlot {
            block: BlockId(block),
            slot,
        };
        assert_eq!(
            batch.slots,
            [slot(5, 3), slot(2, 0), slot(2, 1), slot(3, 0)]
        );
        assert_eq!(batch.table(&batch.spans[0]), [BlockId(5), BlockId(2)]);
        assert_eq!(batch.table(&batch.spans[1]), [BlockId(3)]);
        assert_eq!(batch.wanted_rows().collect::<Vec<_>>(), [2]);

        let mut last = RaggedBatch::default();
        last.keep_wanted(&batch);
        assert_eq!((last.rows(), last.tokens[0], last.positions[0]), (1, 9, 5));
        assert_eq!(last.slots, [slot(2, 1)]);
        assert_eq!(last.table(&last.spans[0]), [BlockId(5), BlockId(2)]);
        assert_eq!(last.spans[0].start, 5);
    }

    #[test]
    fn several_rows_of_a_span_can_be_wanted() {
        let table = [BlockId(5), BlockId(2)];
        let mut batch = RaggedBatch::default();
        batch.push([1].into_iter(), 0, &[BlockId(3)], 4, 0);
        batch.push([7, 8, 9].into_iter(), 3, &table, 4, 2);
        assert_eq!(batch.wanted_rows().collect::<Vec<_>>(), [2, 3]);
        let mut wanted = RaggedBatch::default();
        wanted.keep_wanted(&batch);
        assert_eq!(wanted.tokens, [8, 9]);
        assert_eq!(wanted.positions, [4, 5]);
        let span = &wanted.spans[0];
        assert_eq!((span.first_row, span.rows, span.start), (0, 2, 4));
        assert_eq!(wanted.wanted_rows().collect::<Vec<_>>(), [0, 1]);
    }
}
