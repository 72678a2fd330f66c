//! The gated activation of a feed-forward layer, and sums.

use crate::kernels::isa::Isa;
use crate::kernels::kv::{SMALL, load_part, store_part};
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// The gated activation of a feed-forward layer: a row `gate|up` becomes `silu(gate) · up`, of half its length,
/// with `silu(x) = x / (1 + e^-x)`.
///
/// # Panics
/// When the sizes do not fit.
pub fn silu_mul(gate_up: &[f32], out: &mut [f32]) {
    assert_eq!(gate_up.len(), 2 * out.len(), "silu_mul: sizes differ");
    let (gate, up) = gate_up.split_at(out.len());
    // SAFETY: the ISA was detected.
    unsafe { dispatch(Isa::detected(), SiluMul { gate, up, out }) };
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
    let tiles = len.div_ceil(TILE);
    pool.run_if(tiles * TILE >= SMALL, tiles, |_, tile| {
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
        for width in WIDTHS {
            let mut gate_up = numbers(2 * width, 6);
            gate_up[0] = 200.0;
            gate_up[width - 1] = -200.0;
            let mut out = vec![f32::NAN; width];
            silu_mul(&gate_up, &mut out);
            let (gate, up) = gate_up.split_at(width);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let expected = wide(gate).into_iter().zip(wide(up));
            let expected = expected.map(|(gate, up)| silu(gate) * up);
            assert_close(&out, expected, &format!("a row of {width}"));
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
