//! Root-mean-square norms.

use crate::kernels::isa::Isa;
use crate::kernels::kv::{load_part, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};

/// Root-mean-square norm of a row: `out = x / sqrt(mean(x²) + epsilon) · weight`. (Zhang and Sennrich, 2019.)
///
/// # Panics
/// When the sizes differ.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(
        x.len() == weight.len() && out.len() == weight.len(),
        "rms_norm: sizes differ"
    );
    let norm = Norm {
        x: x.as_ptr(),
        weight,
        epsilon,
        out: out.as_mut_ptr(),
    };
    // SAFETY: the ISA was detected; all have the same length.
    unsafe { dispatch(Isa::detected(), norm) };
}

pub(super) struct Norm<'a> {
    /// As many numbers as `weight`.
    pub(super) x: *const f32,
    pub(super) weight: &'a [f32],
    pub(super) epsilon: f32,
    /// As many numbers as `weight`; may be `x` itself.
    pub(super) out: *mut f32,
}

impl SimdTask for Norm<'_> {
    type Output = ();

    /// # Safety
    /// `x` and `out` point to `weight.len()` numbers each.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let width = self.weight.len();
        // SAFETY: all accesses are parts of the first `width` numbers. `x` may be `out`: no slice of
        // one lives while the same part of the other is used.
        unsafe {
            let mut squares = S::splat(0.0);
            for start in (0..width).step_by(LANES) {
                let lanes = LANES.min(width - start);
                let x = load_part::<S>(std::slice::from_raw_parts(self.x.add(start), lanes));
                squares = S::fma(x, x, squares);
            }
            let mean = S::sum(squares) / width as f32;
            let factor = S::splat(1.0 / (mean + self.epsilon).sqrt());
            for start in (0..width).step_by(LANES) {
                let lanes = LANES.min(width - start);
                let x = load_part::<S>(std::slice::from_raw_parts(self.x.add(start), lanes));
                let x = S::mul(S::mul(x, factor), load_part::<S>(&self.weight[start..]));
                let out = std::slice::from_raw_parts_mut(self.out.add(start), lanes);
                store_part::<S>(out, x);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{WIDTHS, assert_close, norm_reference, spread_numbers as numbers};
    use super::*;

    #[test]
    fn norms_match_the_reference() {
        for width in WIDTHS {
            let (x, weight) = (numbers(width, 1), numbers(width, 2));
            let mut out = vec![f32::NAN; width];
            rms_norm(&x, &weight, 1e-6, &mut out);
            let expected = norm_reference(&x, &weight, 1e-6);
            assert_close(&out, expected, &format!("a row of {width}"));
        }
    }
}
