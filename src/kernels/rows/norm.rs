//! Root-mean-square norms.

use super::for_rows;
use crate::kernels::isa::Isa;
use crate::kernels::kv::{load_part, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Root-mean-square norm of each row: `out = x / sqrt(mean(x²) + epsilon) · weight`.
///
/// `x` and `out` hold rows of `weight.len()` numbers. (Zhang and Sennrich, 2019.)
///
/// # Errors
/// When a job panicked.
///
/// # Panics
/// When the sizes do not fit.
pub fn rms_norm(
    pool: &ThreadPool,
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let width = weight.len();
    assert!(
        x.len() == out.len() && x.len().is_multiple_of(width),
        "rms_norm: sizes differ"
    );
    let (rows, isa, out) = (x.len() / width, Isa::detected(), SharedMut::new(out));
    for_rows(pool, rows, width, |row| {
        let x = &x[row * width..][..width];
        // SAFETY: each row writes its own part of `out`; the ISA was detected.
        unsafe {
            let out = out.slice(row * width, width);
            dispatch(
                isa,
                Norm {
                    x: x.as_ptr(),
                    weight,
                    epsilon,
                    out: out.as_mut_ptr(),
                },
            );
        }
    })
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
        let pool = ThreadPool::new(3).unwrap();
        for width in WIDTHS {
            for rows in [1, 2, 70] {
                let (x, weight) = (numbers(rows * width, 1), numbers(width, 2));
                let mut out = vec![f32::NAN; x.len()];
                rms_norm(&pool, &x, &weight, 1e-6, &mut out).unwrap();
                let expected = x
                    .chunks_exact(width)
                    .flat_map(|x| norm_reference(x, &weight, 1e-6));
                assert_close(&out, expected, &format!("{rows} rows of {width}"));
                let mut alone = vec![0.0; width];
                rms_norm(&pool, &x[x.len() - width..], &weight, 1e-6, &mut alone).unwrap();
                assert_eq!(alone, out[x.len() - width..]);
            }
        }
    }
}
