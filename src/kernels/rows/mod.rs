//! Kernels that treat each row by itself.
//!
//! [`norm`]: root-mean-square norms; [`rope`]: rotary embedding; [`heads`]: both for the heads of a row;
//! [`elementwise`]: gated activation and sums; [`choice`]: what the sampler asks of a row of logits.

mod choice;
mod elementwise;
mod heads;
mod norm;
mod rope;

pub use choice::{argmax, softmax};
pub use elementwise::{add, silu_mul};
pub use heads::HeadPreparation;
pub use norm::rms_norm;
pub use rope::RopeTable;

#[cfg(test)]
mod tests {
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

    /// `x / sqrt(mean(x²) + epsilon) · weight`.
    pub fn norm_reference(x: &[f32], weight: &[f32], epsilon: f64) -> Vec<f64> {
        let mean = wide(x).iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + epsilon).sqrt();
        wide(x)
            .iter()
            .zip(wide(weight))
            .map(|(x, w)| x * factor * w)
            .collect()
    }
}
