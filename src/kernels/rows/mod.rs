//! Kernels that treat each row by itself.
//!
//! [`norm`]: root-mean-square norms; [`rope`]: rotary embedding; [`elementwise`]: gated activation and sums;
//! [`choice`]: what the sampler asks of a row of logits.

mod choice;
mod elementwise;
mod norm;
mod rope;

pub use choice::{argmax, softmax};
pub use elementwise::{add, silu_mul};
pub use norm::{rms_norm, rms_norm_heads};
pub use rope::{RopeTable, rope};

use super::kv::SMALL;
use super::{KernelError, ThreadPool};

/// Runs `row` for each of `rows` rows of `width` numbers, on the pool when that pays.
fn for_rows(
    pool: &ThreadPool,
    rows: usize,
    width: usize,
    row: impl Fn(usize) + Sync,
) -> Result<(), KernelError> {
    if rows * width < SMALL {
        (0..rows).for_each(row);
        return Ok(());
    }
    // Tiles of at least a few thousand numbers.
    let tile = (4096 / width.max(1)).max(1);
    pool.run(rows.div_ceil(tile), |_, index| {
        (index * tile..rows.min((index + 1) * tile)).for_each(&row);
    })
}

/// Some heads of each row of a buffer, for example the query heads of `q|k|v` rows.
pub struct HeadRows<'a> {
    pub data: &'a mut [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// Where the first head begins in a row.
    pub offset: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl HeadRows<'_> {
    fn rows(&self) -> usize {
        assert!(
            self.stride > 0 && self.offset + self.heads * self.head_dim <= self.stride,
            "heads reach beyond the row"
        );
        assert!(
            self.data.len().is_multiple_of(self.stride),
            "rows are incomplete"
        );
        self.data.len() / self.stride
    }
}

#[cfg(test)]
mod tests {
    use super::HeadRows;
    use crate::kernels::testing::numbers;

    pub fn assert_close(found: &[f32], expected: impl IntoIterator<Item = f64>, what: &str) {
        let mut count = 0;
        for (index, (&found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(found) - expected).abs() / expected.abs().max(1e-3);
            assert!(
                error < 2e-6,
                "{what}: element {index} is {found}, not {expected}"
            );
            count += 1;
        }
        assert_eq!(count, found.len(), "{what}");
    }

    pub fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    /// Numbers between -6 and 6.
    pub fn spread_numbers(count: usize, seed: u64) -> Vec<f32> {
        numbers(count, seed).into_iter().map(|x| x * 6.0).collect()
    }

    pub const WIDTHS: [usize; 7] = [1, 7, 16, 33, 64, 256, 1024];

    /// Calls `change` with heads 1 and 2 of four in rows of some length, and gives the rows back.
    pub fn on_middle_heads(
        data: &[f32],
        head_dim: usize,
        change: impl FnOnce(HeadRows<'_>),
    ) -> Vec<f32> {
        let mut changed = data.to_vec();
        let stride = 4 * head_dim + 3;
        change(HeadRows {
            data: &mut changed,
            stride,
            offset: head_dim,
            heads: 2,
            head_dim,
        });
        for (before, after) in data.chunks_exact(stride).zip(changed.chunks_exact(stride)) {
            assert_eq!(
                before[..head_dim],
                after[..head_dim],
                "what is before the heads changed"
            );
            assert_eq!(
                before[3 * head_dim..],
                after[3 * head_dim..],
                "what is behind the heads changed"
            );
        }
        changed
    }
}
