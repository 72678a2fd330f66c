//! The rows that a product takes.

use std::cell::RefCell;

/// Rows of activations: stored, or made as they are packed, so that what was computed for a product alone (a
/// norm, an activation) never goes through memory.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// Rows one after the other.
    Stored(&'a [f32]),
    Made {
        rows: usize,
        /// Writes a row. It may be asked for a row more than once, by any thread.
        make: &'a (dyn Fn(usize, &mut [f32]) + Sync),
    },
}

impl<'a> From<&'a [f32]> for Input<'a> {
    fn from(rows: &'a [f32]) -> Self {
        Self::Stored(rows)
    }
}

impl<'a> From<&'a Vec<f32>> for Input<'a> {
    fn from(rows: &'a Vec<f32>) -> Self {
        Self::Stored(rows)
    }
}

thread_local! {
    /// Rows that were made for the tile that is being packed.
    static MADE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Input<'_> {
    /// The number of rows of `width` numbers.
    ///
    /// # Panics
    /// When stored rows are incomplete.
    pub fn rows(self, width: usize) -> usize {
        match self {
            Self::Stored(numbers) => {
                assert!(
                    numbers.len().is_multiple_of(width),
                    "matmul: x has incomplete rows"
                );
                numbers.len() / width
            }
            Self::Made { rows, .. } => rows,
        }
    }

    /// Gives `count` rows from `first` on, of `width` numbers, to `pack`. Does not nest.
    pub(super) fn with_rows(
        self,
        first: usize,
        count: usize,
        width: usize,
        pack: impl FnOnce(&[f32]),
    ) {
        match self {
            Self::Stored(numbers) => pack(&numbers[first * width..][..count * width]),
            Self::Made { make, .. } => MADE.with_borrow_mut(|made| {
                if made.len() < count * width {
                    made.resize(count * width, 0.0);
                }
                let made = &mut made[..count * width];
                for (row, numbers) in made.chunks_exact_mut(width).enumerate() {
                    make(first + row, numbers);
                }
                pack(made);
            }),
        }
    }
}
