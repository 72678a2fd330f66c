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
