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
    /// Whether the last row's logits are wanted.
    pub sample: bool,
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
    pub fn sampled_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.spans
            .iter()
            .filter(|span| span.sample)
            .map(|span| span.first_row + span.rows - 1)
    }

    /// The block table of `span`.
    pub fn table(&self, span: &Span) -> &[BlockId] {
        &self.tables[span.table.clone()]
    }

    /// Adds the rows of one sequence. `table` covers `start + tokens.len()` positions (the engine checked).
    pub fn push(
        &mut self,
        tokens: impl ExactSizeIterator<Item = u32>,
        start: usize,
        table: &[BlockId],
        block_size: usize,
        sample: bool,
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
            sample,
        });
    }

    /// Fills `self` with the sampled rows of `full` alone, each a span of one row.
    pub fn keep_sampled(&mut self, full: &RaggedBatch) {
        self.clear();
        self.tables.extend_from_slice(&full.tables);
        for span in full.spans.iter().filter(|span| span.sample) {
            let row = span.first_row + span.rows - 1;
            self.spans.push(Span {
                first_row: self.tokens.len(),
                rows: 1,
                start: span.start + span.rows - 1,
                table: span.table.clone(),
                sample: true,
            });
            self.tokens.push(full.tokens[row]);
            self.positions.push(full.positions[row]);
            self.slots.push(full.slots[row]);
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
        batch.push([7, 8, 9].into_iter(), 3, &table, 4, true);
        batch.push([1].into_iter(), 0, &[BlockId(3)], 4, false);
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
        assert_eq!(batch.sampled_rows().collect::<Vec<_>>(), [2]);

        let mut last = RaggedBatch::default();
        last.keep_sampled(&batch);
        assert_eq!((last.rows(), last.tokens[0], last.positions[0]), (1, 9, 5));
        assert_eq!(last.slots, [slot(2, 1)]);
        assert_eq!(last.table(&last.spans[0]), [BlockId(5), BlockId(2)]);
        assert_eq!(last.spans[0].start, 5);
    }
}
