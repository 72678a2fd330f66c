//! Rotary position embedding.

use crate::kernels::KernelError;
use crate::kernels::kv::{load_part, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask};

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

    /// Cosines and sines of a position.
    ///
    /// # Panics
    /// When the position is beyond the table.
    pub(super) fn angles(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * self.half;
        (
            &self.cos[start..][..self.half],
            &self.sin[start..][..self.half],
        )
    }
}

/// Rotary position embedding of a head in place ("NeoX" order: dimension `i` turns with `i + half`). Dimensions
/// beyond the table's stay as they are. (Su et al., 2021.)
pub(super) struct Rotate<'a> {
    /// At least twice as many numbers as there are cosines.
    pub(super) head: &'a mut [f32],
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
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
    use super::*;

    #[test]
    fn tables_that_do_not_fit_are_errors() {
        assert!(RopeTable::new(0, Vec::new(), Vec::new()).is_err());
        assert!(RopeTable::new(3, vec![0.0; 4], vec![0.0; 4]).is_err());
        assert!(RopeTable::new(2, vec![0.0; 4], vec![0.0; 6]).is_err());
    }
}
