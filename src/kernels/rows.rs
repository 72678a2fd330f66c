//! Kernels that treat each row by itself: norms, rotary embedding, activations, argmax.

use super::isa::Isa;
use super::kv::{SMALL, load_part, store_part};
use super::simd::{LANES, Simd, SimdTask, dispatch};
use super::{KernelError, SharedMut, ThreadPool};

/// Runs `row` for each of `rows` rows of `width` numbers, on the pool when that pays.
fn for_rows(
    pool: &ThreadPool,
    rows: usize,
    width: usize,
    row: impl Fn(usize) + Sync,
) -> Result<(), KernelError> {
    if rows * width < SMALL {
        (0..rows).for_each(row);
        return Ok(());
    }
    // Tiles of at least a few thousand numbers.
    let tile = (4096 / width.max(1)).max(1);
    pool.run(rows.div_ceil(tile), |_, index| {
        (index * tile..rows.min((index + 1) * tile)).for_each(&row);
    })
}

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

/// Some heads of each row of a buffer, for example the query heads of `q|k|v` rows.
pub struct HeadRows<'a> {
    pub data: &'a mut [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// Where the first head begins in a row.
    pub offset: usize,
    pub heads: usize,
    pub head_dim: usize,
}

impl HeadRows<'_> {
    fn rows(&self) -> usize {
        assert!(
            self.stride > 0 && self.offset + self.heads * self.head_dim <= self.stride,
            "heads reach beyond the row"
        );
        assert!(
            self.data.len().is_multiple_of(self.stride),
            "rows are incomplete"
        );
        self.data.len() / self.stride
    }
}

/// [`rms_norm`] of every head by itself, in place, with one weight of `head_dim` numbers for all
/// heads (the query and key norms of Qwen3).
///
/// # Errors
/// When a job panicked.
///
/// # Panics
/// When the sizes do not fit.
pub fn rms_norm_heads(
    pool: &ThreadPool,
    target: HeadRows<'_>,
    weight: &[f32],
    epsilon: f32,
) -> Result<(), KernelError> {
    assert_eq!(
        weight.len(),
        target.head_dim,
        "rms_norm_heads: sizes differ"
    );
    let (rows, isa) = (target.rows(), Isa::detected());
    let HeadRows {
        data,
        stride,
        offset,
        heads,
        head_dim,
    } = target;
    let data = SharedMut::new(data);
    for_rows(pool, rows, heads * head_dim, |row| {
        for head in 0..heads {
            // SAFETY: each head of each row is its own part of the data; the ISA was detected.
            unsafe {
                let out = data.at(row * stride + offset + head * head_dim);
                dispatch(
                    isa,
                    Norm {
                        x: out,
                        weight,
                        epsilon,
                        out,
                    },
                );
            }
        }
    })
}

struct Norm<'a> {
    /// As many numbers as `weight`.
    x: *const f32,
    weight: &'a [f32],
    epsilon: f32,
    /// As many numbers as `weight`; may be `x` itself.
    out: *mut f32,
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
            let lanes = |start: usize| LANES.min(width - start);
            let part = |start: usize| {
                load_part::<S>(std::slice::from_raw_parts(self.x.add(start), lanes(start)))
            };
            let mut squares = S::splat(0.0);
            for start in (0..width).step_by(LANES) {
                let x = part(start);
                squares = S::fma(x, x, squares);
            }
            let mean = S::sum(squares) / width as f32;
            let factor = S::splat(1.0 / (mean + self.epsilon).sqrt());
            for start in (0..width).step_by(LANES) {
                let x = S::mul(
                    S::mul(part(start), factor),
                    load_part::<S>(&self.weight[start..]),
                );
                let out = std::slice::from_raw_parts_mut(self.out.add(start), lanes(start));
                store_part::<S>(out, x);
            }
        }
    }
}

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
    use super::*;

    /// Numbers that look random and are the same in every run.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * 6.0
            })
            .collect()
    }

    fn assert_close(found: &[f32], expected: impl IntoIterator<Item = f64>, what: &str) {
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

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    const WIDTHS: [usize; 7] = [1, 7, 16, 33, 64, 256, 1024];

    fn norm_reference(x: &[f32], weight: &[f32], epsilon: f64) -> Vec<f64> {
        let mean = wide(x).iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + epsilon).sqrt();
        wide(x)
            .iter()
            .zip(wide(weight))
            .map(|(x, w)| x * factor * w)
            .collect()
    }

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

    /// Calls `change` with heads 1 and 2 of four in rows of some length, and gives the rows back.
    fn on_middle_heads(
        data: &[f32],
        head_dim: usize,
        change: impl FnOnce(HeadRows<'_>),
    ) -> Vec<f32> {
        let mut changed = data.to_vec();
        let stride = 4 * head_dim + 3;
        change(HeadRows {
            data: &mut changed,
            stride,
            offset: head_dim,
            heads: 2,
            head_dim,
        });
        for (before, after) in data.chunks_exact(stride).zip(changed.chunks_exact(stride)) {
            assert_eq!(
                before[..head_dim],
                after[..head_dim],
                "what is before the heads changed"
            );
            assert_eq!(
                before[3 * head_dim..],
                after[3 * head_dim..],
                "what is behind the heads changed"
            );
        }
        changed
    }

    #[test]
    fn head_norms_match_the_reference_and_leave_other_heads() {
        let pool = ThreadPool::new(2).unwrap();
        for head_dim in [8, 40, 64, 128] {
            let data = numbers(50 * (4 * head_dim + 3), 3);
            let weight = numbers(head_dim, 4);
            let changed = on_middle_heads(&data, head_dim, |heads| {
                rms_norm_heads(&pool, heads, &weight, 1e-5).unwrap();
            });
            for (row, before) in data.chunks_exact(4 * head_dim + 3).enumerate() {
                for head in [1, 2] {
                    let start = head * head_dim;
                    let after = &changed[row * (4 * head_dim + 3) + start..][..head_dim];
                    let expected = norm_reference(&before[start..start + head_dim], &weight, 1e-5);
                    assert_close(
                        after,
                        expected,
                        &format!("row {row} head {head} of {head_dim}"),
                    );
                }
            }
        }
    }

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

    /// `e^x` of sixteen numbers on an instruction set.
    fn exp_on(isa: Isa, x: [f32; LANES]) -> [f32; LANES] {
        struct Exp([f32; LANES]);
        impl SimdTask for Exp {
            type Output = [f32; LANES];
            #[inline(always)]
            unsafe fn run<S: Simd>(mut self) -> [f32; LANES] {
                // SAFETY: the array has sixteen elements.
                unsafe {
                    let e = S::exp(S::load(self.0.as_ptr()));
                    S::store(self.0.as_mut_ptr(), e);
                }
                self.0
            }
        }
        // SAFETY: the tests pass available sets.
        unsafe { dispatch(isa, Exp(x)) }
    }

    #[test]
    fn the_exponential_is_close_and_the_same_on_every_instruction_set() {
        for isa in Isa::available() {
            for step in 0..20_000 {
                let x: [f32; LANES] = std::array::from_fn(|lane| {
                    -87.2 + 0.008_7 * (step as f32 + lane as f32 / 16.0)
                });
                for (x, e) in x.into_iter().zip(exp_on(isa, x)) {
                    let expected = f64::from(x.min(88.0)).exp();
                    let error = (f64::from(e) - expected).abs() / expected;
                    assert!(error < 2e-7, "{isa:?}: e^{x} is {e}, not {expected}");
                }
            }
            let mut edges = [0.0; LANES];
            edges[1] = f32::NEG_INFINITY;
            edges[2] = -87.4;
            edges[3] = f32::NAN;
            edges[4] = -1e30;
            let e = exp_on(isa, edges);
            assert_eq!((e[0], e[1], e[2], e[4]), (1.0, 0.0, 0.0, 0.0), "{isa:?}");
            assert!(e[3].is_nan(), "{isa:?}");
        }
    }
}
