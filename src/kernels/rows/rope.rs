//! Rotary position embedding.

use super::{HeadRows, for_rows};
use crate::kernels::isa::Isa;
use crate::kernels::kv::{load_part, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Cosines and sines of the rotary embedding, by position.
pub struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// `cos` and `sin` hold a row of `half` numbers for each position from 0 on; twice `half` are the
    /// dimensions that rotate.
    ///
    /// # Errors
    /// When the tables differ in size or are not made of whole rows.
    pub fn new(half: usize, cos: Vec<f32>, sin: Vec<f32>) -> Result<Self, KernelError> {
        if half == 0 || !cos.len().is_multiple_of(half) {
            return Err(KernelError::Shape(format!(
                "{} cosines are not rows of {half} frequencies",
                cos.len()
            )));
        }
        if sin.len() != cos.len() {
            let (found, expected) = (sin.len(), cos.len());
            return Err(KernelError::Length {
                what: "the sine table",
                found,
                expected,
            });
        }
        Ok(Self { half, cos, sin })
    }

    /// The number of positions that it holds.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

/// Rotary position embedding in place ("NeoX" order: dimension `i` turns with `i + half`), heads of row
/// `r` by the angles of `positions[r]`. Dimensions beyond the table's stay as they are. (Su et al., 2021.)
///
/// # Errors
/// When a job panicked.
///
/// # Panics
/// When the sizes do not fit or a position is beyond the table.
pub fn rope(
    pool: &ThreadPool,
    target: HeadRows<'_>,
    positions: &[u32],
    table: &RopeTable,
) -> Result<(), KernelError> {
    let (rows, isa) = (target.rows(), Isa::detected());
    let HeadRows {
        data,
        stride,
        offset,
        heads,
        head_dim,
    } = target;
    assert_eq!(rows, positions.len(), "rope: one position a row");
    assert!(
        2 * table.half <= head_dim,
        "rope: more dimensions turn than there are"
    );
    let data = SharedMut::new(data);
    for_rows(pool, rows, heads * head_dim, |row| {
        let angles = positions[row] as usize * table.half;
        let cos = &table.cos[angles..][..table.half];
        let sin = &table.sin[angles..][..table.half];
        for head in 0..heads {
            // SAFETY: each head of each row is its own part of the data; the ISA was detected.
            unsafe {
                let head = data.slice(row * stride + offset + head * head_dim, head_dim);
                dispatch(isa, Rotate { head, cos, sin });
            }
        }
    })
}

struct Rotate<'a> {
    head: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl SimdTask for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let half = self.cos.len();
        let (first, rest) = self.head.split_at_mut(half);
        let second = &mut rest[..half];
        for start in (0..half).step_by(LANES) {
            // SAFETY: `load_part` and `store_part` stay inside their slices.
            unsafe {
                let (a, b) = (
                    load_part::<S>(&first[start..]),
                    load_part::<S>(&second[start..]),
                );
                let cos = load_part::<S>(&self.cos[start..]);
                let sin = load_part::<S>(&self.sin[start..]);
                store_part::<S>(&mut first[start..], S::sub(S::mul(a, cos), S::mul(b, sin)));
                store_part::<S>(&mut second[start..], S::fma(a, sin, S::mul(b, cos)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{on_middle_heads, spread_numbers as numbers};
    use super::*;

    #[test]
    fn rotation_matches_the_reference_and_leaves_the_rest() {
        let pool = ThreadPool::new(2).unwrap();
        for (head_dim, half) in [(8, 4), (64, 32), (40, 20), (48, 9)] {
            let stride = 4 * head_dim + 3;
            let rows = 40;
            let angle = |position: usize, i: usize| position as f64 * 0.3 / (i + 1) as f64;
            let table = |f: fn(f64) -> f64| {
                (0..100 * half)
                    .map(|at| f(angle(at / half, at % half)) as f32)
                    .collect::<Vec<_>>()
            };
            let (cos, sin) = (table(f64::cos), table(f64::sin));
            let rope_table = RopeTable::new(half, cos.clone(), sin.clone()).unwrap();
            assert_eq!(rope_table.positions(), 100);
            let positions: Vec<u32> = (0..rows as u32).map(|row| row * 7 % 100).collect();
            let data = numbers(rows * stride, 5);
            let changed = on_middle_heads(&data, head_dim, |heads| {
                rope(&pool, heads, &positions, &rope_table).unwrap();
            });
            for (row, &position) in positions.iter().enumerate() {
                for head in [1, 2] {
                    let start = row * stride + head * head_dim;
                    for i in 0..half {
                        let at = position as usize * half + i;
                        let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
                        let (a, b) = (
                            f64::from(data[start + i]),
                            f64::from(data[start + i + half]),
                        );
                        let close = |found: f32, expected: f64| {
                            assert!(
                                (f64::from(found) - expected).abs() < 2e-6,
                                "{found} {expected}"
                            );
                        };
                        close(changed[start + i], a * c - b * s);
                        close(changed[start + i + half], a * s + b * c);
                    }
                    let rest = start + 2 * half..start + head_dim;
                    assert_eq!(changed[rest.clone()], data[rest]);
                }
            }
        }
    }

    #[test]
    fn tables_that_do_not_fit_are_errors() {
        assert!(RopeTable::new(0, Vec::new(), Vec::new()).is_err());
        assert!(RopeTable::new(3, vec![0.0; 4], vec![0.0; 4]).is_err());
        assert!(RopeTable::new(2, vec![0.0; 4], vec![0.0; 6]).is_err());
    }
}
