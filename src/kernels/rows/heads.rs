//! What happens to the heads of a `q|k|v` row between projection and attention.

use super::norm::Norm;
use super::rope::{RopeTable, Rotate};
use crate::kernels::isa::Isa;
use crate::kernels::simd::{Simd, SimdTask, dispatch};

/// Norms of query and key heads, where the model has them, and rotation to the row's position.
pub struct HeadPreparation<'a> {
    pub query_heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Weights of the root-mean-square norms of each query and key head by itself (Qwen3), `head_dim` numbers.
    pub norms: Option<(&'a [f32], &'a [f32])>,
    pub epsilon: f32,
    pub rope: &'a RopeTable,
}

impl HeadPreparation<'_> {
    /// Changes the queries and keys that begin a row.
    ///
    /// # Panics
    /// When the row is too short, a norm has another width than a head, or the table has fewer positions or
    /// turns more dimensions than there are.
    pub fn apply(&self, row: &mut [f32], position: u32) {
        let heads = self.query_heads + self.kv_heads;
        let (cos, sin) = self.rope.angles(position);
        assert!(
            2 * cos.len() <= self.head_dim,
            "more dimensions turn than there are"
        );
        if let Some((query, key)) = self.norms {
            assert!(
                query.len() == self.head_dim && key.len() == self.head_dim,
                "a norm's width is not a head's"
            );
        }
        let task = Prepare {
            preparation: self,
            heads: &mut row[..heads * self.head_dim],
            cos,
            sin,
        };
        // SAFETY: the ISA was detected.
        unsafe { dispatch(Isa::detected(), task) };
    }
}

struct Prepare<'a> {
    preparation: &'a HeadPreparation<'a>,
    heads: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

impl SimdTask for Prepare<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let preparation = self.preparation;
        for (number, head) in self
            .heads
            .chunks_exact_mut(preparation.head_dim)
            .enumerate()
        {
            // SAFETY: the set is present, as the caller promises; norms are as wide as heads.
            unsafe {
                if let Some((query, key)) = preparation.norms {
                    let weight = if number < preparation.query_heads {
                        query
                    } else {
                        key
                    };
                    let norm = Norm {
                        x: head.as_ptr(),
                        weight,
                        epsilon: preparation.epsilon,
                        out: head.as_mut_ptr(),
                    };
                    norm.run::<S>();
                }
                let (cos, sin) = (self.cos, self.sin);
                Rotate { head, cos, sin }.run::<S>();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{norm_reference, spread_numbers as numbers};
    use super::*;

    #[test]
    fn heads_match_the_reference_and_what_is_behind_them_stays() {
        for (head_dim, half) in [(8, 4), (64, 32), (40, 20), (48, 9), (128, 64)] {
            let angle = |at: usize| (at / half) as f64 * 0.3 / (at % half + 1) as f64;
            let table = |f: fn(f64) -> f64| {
                (0..100 * half)
                    .map(|at| f(angle(at)) as f32)
                    .collect::<Vec<_>>()
            };
            let (cos, sin) = (table(f64::cos), table(f64::sin));
            let rope = RopeTable::new(half, cos.clone(), sin.clone()).unwrap();
            assert_eq!(rope.positions(), 100);
            let (query, key) = (numbers(head_dim, 4), numbers(head_dim, 5));
            let before = numbers(4 * head_dim + 3, 3);
            for with_norms in [false, true] {
                let preparation = HeadPreparation {
                    query_heads: 2,
                    kv_heads: 1,
                    head_dim,
                    norms: with_norms.then_some((&query, &key)),
                    epsilon: 1e-5,
                    rope: &rope,
                };
                for position in [0, 7, 99] {
                    let mut row = before.clone();
                    preparation.apply(&mut row, position);
                    assert_eq!(row[3 * head_dim..], before[3 * head_dim..]);
                    for head in 0..3 {
                        let place = head * head_dim..(head + 1) * head_dim;
                        let mut expected: Vec<f64> = before[place.clone()]
                            .iter()
                            .map(|&x| f64::from(x))
                            .collect();
                        if with_norms {
                            let weight = if head < 2 { &query } else { &key };
                            expected = norm_reference(&before[place.clone()], weight, 1e-5);
                        }
                        for i in 0..half {
                            let at = position as usize * half + i;
                            let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
                            let (a, b) = (expected[i], expected[i + half]);
                            expected[i] = a * c - b * s;
                            expected[i + half] = a * s + b * c;
                        }
                        for (&found, expected) in row[place].iter().zip(expected) {
                            let error = (f64::from(found) - expected).abs();
                            assert!(
                                error < 4e-6 * expected.abs().max(2.0),
                                "head {head} of {head_dim}, position {position}: {found} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}
