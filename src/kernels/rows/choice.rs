//! The largest of a row, and probabilities.

use crate::kernels::isa::Isa;
use crate::kernels::kv::{load_part, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};

/// The index of the largest number, the first of equals; 0 for an empty slice. NaN never wins.
pub fn argmax(x: &[f32]) -> usize {
    const CHUNK: usize = 256;
    let mut best = (0, f32::NEG_INFINITY);
    for (chunk, part) in x.chunks(CHUNK).enumerate() {
        // A comparison of whole chunks is quick; the index is looked for only where the best moves.
        let largest = part
            .iter()
            .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        if largest > best.1
            && let Some(place) = part.iter().position(|&x| x == largest)
        {
            best = (chunk * CHUNK + place, largest);
        }
    }
    best.0
}

/// Turns scores into probabilities, in place: `e^(x - max) / Σ`. Does nothing to an empty slice.
pub fn softmax(x: &mut [f32]) {
    // SAFETY: the ISA was detected.
    unsafe { dispatch(Isa::detected(), Softmax(x)) };
}

struct Softmax<'a>(&'a mut [f32]);

impl SimdTask for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let x = self.0;
        let largest = x
            .iter()
            .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut total = 0.0f64;
        for start in (0..x.len()).step_by(LANES) {
            // SAFETY: `load_part` and `store_part` stay inside their slices.
            unsafe {
                let shifted = S::sub(load_part::<S>(&x[start..]), S::splat(largest));
                store_part::<S>(&mut x[start..], S::exp(shifted));
            }
            total += x[start..]
                .iter()
                .take(LANES)
                .map(|&p| f64::from(p))
                .sum::<f64>();
        }
        let factor = (1.0 / total) as f32;
        x.iter_mut().for_each(|p| *p *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_close, spread_numbers as numbers, wide};
    use super::*;

    #[test]
    fn the_largest_is_found_first_of_equals() {
        for len in [1, 255, 256, 257, 5000] {
            let mut x = numbers(len, 9);
            let expected = (0..len).fold(0, |best, i| if x[i] > x[best] { i } else { best });
            assert_eq!(argmax(&x), expected);
            x[len / 2] = 99.0;
            x[len - 1] = 99.0;
            assert_eq!(argmax(&x), len / 2);
            x[0] = f32::NAN;
            assert_eq!(argmax(&x), if len == 1 { 0 } else { len / 2 });
        }
        assert_eq!(argmax(&[]), 0);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 300]), 0);
    }

    #[test]
    fn probabilities_match_the_reference() {
        for len in [1, 5, 16, 100, 3000] {
            let mut x = numbers(len, 10);
            let largest = wide(&x).into_iter().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = wide(&x).iter().map(|x| (x - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            softmax(&mut x);
            assert_close(&x, weights.iter().map(|w| w / total), &format!("{len}"));
        }
        softmax(&mut []);
    }
}
