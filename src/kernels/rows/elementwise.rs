//! The gated activation of a feed-forward layer, and sums.

use super::for_rows;
use crate::kernels::isa::Isa;
use crate::kernels::kv::{load_part, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// The gated activation of a feed-forward layer: rows `gate|up` of twice `width` numbers become rows
/// `silu(gate) · up` of `width`, with `silu(x) = x / (1 + e^-x)`.
///
/// # Errors
/// When a job panicked.
///
/// # Panics
/// When the sizes do not fit.
pub fn silu_mul(
    pool: &ThreadPool,
    gate_up: &[f32],
    width: usize,
    out: &mut [f32],
) -> Result<(), KernelError> {
    assert!(
        gate_up.len() == 2 * out.len() && out.len().is_multiple_of(width),
        "silu_mul: sizes differ"
    );
    let (rows, isa, out) = (out.len() / width, Isa::detected(), SharedMut::new(out));
    for_rows(pool, rows, width, |row| {
        let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
        // SAFETY: each row writes its own part of `out`; the ISA was detected.
        unsafe {
            dispatch(
                isa,
                SiluMul {
                    gate,
                    up,
                    out: out.slice(row * width, width),
                },
            )
        };
    })
}

struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl SimdTask for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for start in (0..self.out.len()).step_by(LANES) {
            // SAFETY: `load_part` and `store_part` stay inside their slices.
            unsafe {
                let gate = load_part::<S>(&self.gate[start..]);
                let up = load_part::<S>(&self.up[start..]);
                let negated = S::sub(S::splat(0.0), gate);
                let silu = S::div(gate, S::add(S::splat(1.0), S::exp(negated)));
                store_part::<S>(&mut self.out[start..], S::mul(silu, up));
            }
        }
    }
}

/// Adds `y` to `x` (the residual connection).
///
/// # Errors
/// When a job panicked.
///
/// # Panics
/// When the lengths differ.
pub fn add(pool: &ThreadPool, x: &mut [f32], y: &[f32]) -> Result<(), KernelError> {
    const TILE: usize = 4096;
    assert_eq!(x.len(), y.len(), "add: lengths differ");
    let (len, x) = (x.len(), SharedMut::new(x));
    for_rows(pool, len.div_ceil(TILE), TILE, |tile| {
        let start = tile * TILE;
        let y = &y[start..len.min(start + TILE)];
        // SAFETY: each tile is its own part of `x`.
        let x = unsafe { x.slice(start, y.len()) };
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{WIDTHS, assert_close, spread_numbers as numbers, wide};
    use super::*;

    #[test]
    fn gated_activation_matches_the_reference() {
        let pool = ThreadPool::new(2).unwrap();
        for width in WIDTHS {
            for rows in [1, 40] {
                let mut gate_up = numbers(rows * 2 * width, 6);
                gate_up[0] = 200.0;
                let last = gate_up.len() - 1 - width;
                gate_up[last] = -200.0;
                let mut out = vec![f32::NAN; rows * width];
                silu_mul(&pool, &gate_up, width, &mut out).unwrap();
                let expected = gate_up.chunks_exact(2 * width).flat_map(|row| {
                    let (gate, up) = row.split_at(width);
                    let silu = |x: f64| x / (1.0 + (-x).exp());
                    wide(gate)
                        .into_iter()
                        .zip(wide(up))
                        .map(move |(g, u)| silu(g) * u)
                        .collect::<Vec<_>>()
                });
                assert_close(&out, expected, &format!("{rows} rows of {width}"));
            }
        }
    }

    #[test]
    fn sums_are_sums() {
        let pool = ThreadPool::new(3).unwrap();
        for len in [0, 1, 4095, 4096, 50_000] {
            let (mut x, y) = (numbers(len, 7), numbers(len, 8));
            let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            add(&pool, &mut x, &y).unwrap();
            assert_eq!(x, expected);
        }
    }
}
