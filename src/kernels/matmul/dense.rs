//! Dense weights in panels of sixteen outputs.
//!
//! A panel holds, for two inputs at a time, the weights of its sixteen outputs: `f32` and `f16` one input
//! after the other, `bf16` as pairs in one word, which is what the `bf16` dot product takes and what two
//! shifts widen to `f32`. Outputs and inputs are filled up with zeros to whole panels and pairs.

use half::{bf16, f16};

use super::{Precision, Target};
use crate::kernels::isa::Isa;
use crate::kernels::simd::{LANES, Simd, SimdTask, dispatch};
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Multiply-adds below which a product is not worth sharing among threads.
const SMALL: usize = 128 * 1024;
/// Rows whose activations are kept in the second-level cache while panels stream past them.
const ROW_BLOCK_BYTES: usize = 384 * 1024;

pub(super) struct DenseMatrix {
    out_features: usize,
    in_features: usize,
    precision: Precision,
    panels: Panels,
}

enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    /// Pairs of inputs: the even one in the lower half.
    Bf16(Vec<u32>),
}

/// Packs row-major weights: `put(panel slot, even weight, odd weight)` for each pair of inputs, where the
/// slot is `(panel · pairs + pair) · 16 + lane`.
fn for_pairs<T: Copy>(weights: &[T], inputs: usize, zero: T, mut put: impl FnMut(usize, T, T)) {
    let pairs = inputs.div_ceil(2);
    for (output, row) in weights.chunks_exact(inputs).enumerate() {
        let start = output / LANES * pairs * LANES + output % LANES;
        for (pair, values) in row.chunks(2).enumerate() {
            put(
                start + pair * LANES,
                values[0],
                values.get(1).copied().unwrap_or(zero),
            );
        }
    }
}

/// Packs weights of which a panel holds first the even inputs' sixteen outputs, then the odd ones'.
fn pack_planes<T: Copy>(weights: &[T], outputs: usize, inputs: usize, zero: T) -> Vec<T> {
    let mut panels = vec![zero; 2 * LANES * outputs.div_ceil(LANES) * inputs.div_ceil(2)];
    for_pairs(weights, inputs, zero, |slot, even, odd| {
        let place = slot / LANES * 2 * LANES + slot % LANES;
        panels[place] = even;
        panels[place + LANES] = odd;
    });
    panels
}

impl DenseMatrix {
    pub(super) fn from_f32(weights: &[f32], out_features: usize, in_features: usize) -> Self {
        let panels = Panels::F32(pack_planes(weights, out_features, in_features, 0.0));
        Self {
            out_features,
            in_features,
            precision: Precision::Exact,
            panels,
        }
    }

    pub(super) fn from_f16(weights: &[f16], out_features: usize, in_features: usize) -> Self {
        let panels = Panels::F16(pack_planes(weights, out_features, in_features, f16::ZERO));
        Self {
            out_features,
            in_features,
            precision: Precision::Exact,
            panels,
        }
    }

    pub(super) fn from_bf16(weights: &[bf16], out_features: usize, in_features: usize) -> Self {
        let mut panels = vec![0u32; LANES * out_features.div_ceil(LANES) * in_features.div_ceil(2)];
        for_pairs(weights, in_features, bf16::ZERO, |slot, even, odd| {
            panels[slot] = pair_of(even, odd);
        });
        let panels = Panels::Bf16(panels);
        Self {
            out_features,
            in_features,
            precision: Precision::Exact,
            panels,
        }
    }

    pub(super) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    pub(super) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(super) fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => panels.len() * 4,
            Panels::F16(panels) => panels.len() * 2,
            Panels::Bf16(panels) => panels.len() * 4,
        }
    }

    fn pairs(&self) -> usize {
        self.in_features.div_ceil(2)
    }

    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        let start = row / LANES * self.pairs() * LANES;
        let lane = row % LANES;
        for (input, x) in out.iter_mut().enumerate() {
            let slot = start + input / 2 * LANES;
            let plane = 2 * slot + input % 2 * LANES + lane;
            *x = match &self.panels {
                Panels::F32(panels) => panels[plane],
                Panels::F16(panels) => panels[plane].to_f32(),
                Panels::Bf16(panels) => {
                    let pair = panels[slot + lane];
                    f32::from_bits(if input % 2 == 0 {
                        pair << 16
                    } else {
                        pair & 0xffff_0000
                    })
                }
            };
        }
    }

    pub(super) fn matmul(
        &self,
        isa: Isa,
        pool: &ThreadPool,
        x: &[f32],
        rows: usize,
        activations: &mut Activations,
        target: Target<'_>,
    ) -> Result<(), KernelError> {
        let fast = self.precision == Precision::Fast
            && isa.has_bf16_dot()
            && matches!(self.panels, Panels::Bf16(_));
        let kind = if fast { Kind::Bf16Pairs } else { Kind::F32 };
        activations.pack(isa, pool, x, rows, self.in_features, kind)?;
        let activations = &*activations;
        let panels = self.out_features.div_ceil(LANES);
        // Panels a tile: at least 32 tiles of whole groups of four, up to sixteen panels.
        let chunk = (panels.div_ceil(32)).next_multiple_of(4).min(16);
        let chunks = panels.div_ceil(chunk);
        let block = (ROW_BLOCK_BYTES / (self.pairs() * 2 * kind.size())).max(2 * MAX_ROWS);
        let blocks = activations.blocks(block);
        let tile = |tile: usize| {
            let (block, chunk_index) = (tile / chunks, tile % chunks);
            let first_panel = chunk_index * chunk;
            let task = DenseTask {
                matrix: self,
                activations,
                tiles: activations.block(block, blocks),
                first_panel,
                end_panel: panels.min(first_panel + chunk),
                target,
                fast,
            };
            // SAFETY: the ISA is available and tiles write disjoint outputs.
            unsafe { dispatch(isa, task) }
        };
        if rows * self.out_features * self.in_features < SMALL {
            (0..blocks * chunks).for_each(tile);
            Ok(())
        } else {
            pool.run(blocks * chunks, |_, index| tile(index))
        }
    }
}

fn pair_of(even: bf16, odd: bf16) -> u32 {
    u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16
}

/// What activations are packed as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    F32,
    /// Rounded to `bf16`, two inputs a word.
    Bf16Pairs,
}

impl Kind {
    /// Bytes of one activation.
    fn size(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16Pairs => 2,
        }
    }
}

/// The most rows that any micro-kernel takes.
const MAX_ROWS: usize = 12;
/// The row counts that there are micro-kernels for; a tile in between is filled up with zero rows.
const KERNEL_ROWS: [usize; 8] = [1, 2, 3, 4, 6, 8, 10, 12];

/// Some rows that go through a micro-kernel together.
#[derive(Clone, Copy)]
struct RowTile {
    first_row: usize,
    rows: usize,
    /// The micro-kernel's rows, at least `rows`.
    kernel_rows: usize,
    /// Where its activations begin, in numbers (`F32`) or pairs (`Bf16Pairs`).
    start: usize,
}

/// Activations `[tile][input][row of the tile]`.
#[derive(Default)]
pub(super) struct Activations {
    tiles: Vec<RowTile>,
    numbers: Vec<f32>,
    words: Vec<u32>,
    has_numbers: bool,
    has_words: bool,
}

impl Activations {
    /// A new call: what is packed belongs to other rows.
    pub(super) fn forget(&mut self) {
        self.has_numbers = false;
        self.has_words = false;
    }

    fn pack(
        &mut self,
        isa: Isa,
        pool: &ThreadPool,
        x: &[f32],
        rows: usize,
        inputs: usize,
        kind: Kind,
    ) -> Result<(), KernelError> {
        let done = match kind {
            Kind::F32 => &mut self.has_numbers,
            Kind::Bf16Pairs => &mut self.has_words,
        };
        if std::mem::replace(done, true) {
            return Ok(());
        }
        let pairs = inputs.div_ceil(2);
        // Tiles as equal as possible.
        let most = max_rows(isa);
        let count = rows.div_ceil(most);
        self.tiles.clear();
        let (mut first_row, mut start) = (0, 0);
        for index in 0..count {
            let rows = (rows - first_row).div_ceil(count - index);
            let fits = |&kernel: &usize| kernel >= rows;
            let kernel_rows = KERNEL_ROWS.into_iter().find(fits).unwrap_or(rows);
            self.tiles.push(RowTile {
                first_row,
                rows,
                kernel_rows,
                start,
            });
            first_row += rows;
            start += kernel_rows * pairs;
        }
        let (len, tiles) = (start, &self.tiles);
        // Starts are counted in pairs: twice that many numbers.
        let (numbers, words) = match kind {
            Kind::F32 => {
                grow(&mut self.numbers, 2 * len);
                (SharedMut::new(&mut self.numbers), None)
            }
            Kind::Bf16Pairs => {
                grow(&mut self.words, len);
                (
                    SharedMut(std::ptr::null_mut()),
                    Some(SharedMut::new(&mut self.words)),
                )
            }
        };
        let pack_tile = |tile: &RowTile| {
            let source = &x[tile.first_row * inputs..][..tile.rows * inputs];
            let len = tile.kernel_rows * pairs;
            // SAFETY: each tile has its own part of the buffer, which was grown to hold all.
            unsafe {
                match words {
                    None => {
                        pack_numbers(source, inputs, tile, numbers.slice(2 * tile.start, 2 * len))
                    }
                    Some(words) => pack_pairs(source, inputs, tile, words.slice(tile.start, len)),
                }
            }
        };
        if x.len() < SMALL / 2 {
            tiles.iter().for_each(pack_tile);
            Ok(())
        } else {
            pool.run(tiles.len(), |_, index| pack_tile(&tiles[index]))
        }
    }

    /// How many blocks of about `rows` rows there are.
    fn blocks(&self, rows: usize) -> usize {
        let last = self.tiles[self.tiles.len() - 1];
        (last.first_row + last.rows)
            .div_ceil(rows)
            .min(self.tiles.len())
    }

    /// The tiles of one of `blocks` blocks.
    fn block(&self, index: usize, blocks: usize) -> &[RowTile] {
        let count = self.tiles.len();
        &self.tiles[index * count / blocks..(index + 1) * count / blocks]
    }
}

fn grow<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
}

/// `out[input][row] = x[row][input]`, zeros for rows and inputs that fill up.
fn pack_numbers(x: &[f32], inputs: usize, tile: &RowTile, out: &mut [f32]) {
    let width = tile.kernel_rows;
    if width > tile.rows || inputs % 2 == 1 {
        out.fill(0.0);
    }
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (input, &x) in x.iter().enumerate() {
            out[input * width + row] = x;
        }
    }
}

/// `out[pair][row]`: two inputs of a row as `bf16`, zeros for rows and inputs that fill up.
fn pack_pairs(x: &[f32], inputs: usize, tile: &RowTile, out: &mut [u32]) {
    let width = tile.kernel_rows;
    if width > tile.rows {
        out.fill(0);
    }
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (pair, x) in x.chunks(2).enumerate() {
            let odd = x.get(1).copied().unwrap_or(0.0);
            out[pair * width + row] = pair_of(bf16::from_f32(x[0]), bf16::from_f32(odd));
        }
    }
}

/// The most rows of a micro-kernel on this instruction set.
fn max_rows(isa: Isa) -> usize {
    struct MaxRows;
    impl SimdTask for MaxRows {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> usize {
            S::MAX_ROWS
        }
    }
    // SAFETY: runs no instruction of the set.
    unsafe { dispatch(isa, MaxRows) }
}

/// Some panels against the tiles of one block of rows.
struct DenseTask<'a> {
    matrix: &'a DenseMatrix,
    activations: &'a Activations,
    tiles: &'a [RowTile],
    first_panel: usize,
    end_panel: usize,
    target: Target<'a>,
    fast: bool,
}

/// Loads the weights of two inputs for sixteen outputs, and multiplies.
trait PanelElement: Copy {
    /// Elements of a panel for two inputs.
    const STEP: usize;
    type Activation: Copy;
    /// Activations for two inputs and one row.
    const ACTIVATIONS: usize;

    /// Adds two inputs' products to `M × N` sums, first the even input's, then the odd one's.
    ///
    /// # Safety
    /// Each panel pointer has `STEP` elements, `x` has `M · ACTIVATIONS`.
    unsafe fn step<S: Simd, const M: usize, const N: usize>(
        panels: [*const Self; N],
        x: *const Self::Activation,
        sums: &mut [[S::F; N]; M],
    );
}

/// The two steps of all formats whose weights widen to `f32`.
///
/// # Safety
/// `x` has `2 · M` numbers.
#[inline(always)]
unsafe fn two_steps<S: Simd, const M: usize, const N: usize>(
    even: [S::F; N],
    odd: [S::F; N],
    x: *const f32,
    sums: &mut [[S::F; N]; M],
) {
    // SAFETY: promised by the caller.
    unsafe {
        for m in 0..M {
            let x = S::splat(*x.add(m));
            for n in 0..N {
                sums[m][n] = S::fma(even[n], x, sums[m][n]);
            }
        }
        for m in 0..M {
            let x = S::splat(*x.add(M + m));
            for n in 0..N {
                sums[m][n] = S::fma(odd[n], x, sums[m][n]);
            }
        }
    }
}

macro_rules! plane_element {
    ($type:ty, $load:ident) => {
        impl PanelElement for $type {
            const STEP: usize = 2 * LANES;
            type Activation = f32;
            const ACTIVATIONS: usize = 2;

            #[inline(always)]
            unsafe fn step<S: Simd, const M: usize, const N: usize>(
                panels: [*const Self; N],
                x: *const f32,
                sums: &mut [[S::F; N]; M],
            ) {
                // SAFETY: promised by the caller.
                unsafe {
                    let even = panels.map(|panel| S::$load(panel));
                    let odd = panels.map(|panel| S::$load(panel.add(LANES)));
                    two_steps::<S, M, N>(even, odd, x, sums);
                }
            }
        }
    };
}
plane_element!(f32, load);
plane_element!(f16, load_f16);

/// A pair of `bf16` weights, multiplied in `f32`.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ExactPair(u32);

impl PanelElement for ExactPair {
    const STEP: usize = LANES;
    type Activation = f32;
    const ACTIVATIONS: usize = 2;

    #[inline(always)]
    unsafe fn step<S: Simd, const M: usize, const N: usize>(
        panels: [*const Self; N],
        x: *const f32,
        sums: &mut [[S::F; N]; M],
    ) {
        // SAFETY: promised by the caller; the type is a transparent word.
        unsafe {
            let both = panels.map(|panel| S::split_pairs(panel.cast()));
            two_steps::<S, M, N>(both.map(|b| b.0), both.map(|b| b.1), x, sums);
        }
    }
}

/// A pair of `bf16` weights for the dot-product instruction.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct FastPair(u32);

impl PanelElement for FastPair {
    const STEP: usize = LANES;
    type Activation = u32;
    const ACTIVATIONS: usize = 1;

    #[inline(always)]
    unsafe fn step<S: Simd, const M: usize, const N: usize>(
        panels: [*const Self; N],
        x: *const u32,
        sums: &mut [[S::F; N]; M],
    ) {
        // SAFETY: promised by the caller; the type is a transparent word.
        unsafe {
            let weights = panels.map(|panel| S::load_pairs(panel.cast()));
            for m in 0..M {
                let x = *x.add(m);
                for n in 0..N {
                    sums[m][n] = S::dot_pairs(sums[m][n], weights[n], x);
                }
            }
        }
    }
}

impl SimdTask for DenseTask<'_> {
    type Output = ();

    /// # Safety
    /// Nobody else writes these panels' outputs of these rows.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let numbers = self.activations.numbers.as_ptr();
        // SAFETY: promised by the caller.
        unsafe {
            match &self.matrix.panels {
                Panels::F32(panels) => self.all::<S, f32>(panels.as_ptr(), numbers),
                Panels::F16(panels) => self.all::<S, f16>(panels.as_ptr(), numbers),
                Panels::Bf16(panels) if self.fast => {
                    self.all::<S, FastPair>(
                        panels.as_ptr().cast(),
                        self.activations.words.as_ptr(),
                    );
                }
                Panels::Bf16(panels) => self.all::<S, ExactPair>(panels.as_ptr().cast(), numbers),
            }
        }
    }
}

impl DenseTask<'_> {
    /// # Safety
    /// As [`SimdTask::run`]; `weights` and `x` are the whole packed buffers.
    #[inline(always)]
    unsafe fn all<S: Simd, E: PanelElement>(&self, weights: *const E, x: *const E::Activation) {
        let widest = self
            .tiles
            .iter()
            .map(|tile| tile.kernel_rows)
            .max()
            .unwrap_or(0);
        // Few rows leave registers for more panels, and their chains hide each other's latency.
        let group = match (S::WIDE, widest) {
            (true, ..=6) => 4,
            (true, _) => 2,
            (false, _) => 1,
        };
        let mut panel = self.first_panel;
        while panel < self.end_panel {
            let width = if self.end_panel - panel >= group {
                group
            } else {
                1
            };
            for tile in self.tiles {
                // SAFETY: promised by the caller.
                unsafe {
                    match width {
                        4 => self.tile::<S, E, 4>(weights, x, panel, tile),
                        2 => self.tile::<S, E, 2>(weights, x, panel, tile),
                        _ => self.tile::<S, E, 1>(weights, x, panel, tile),
                    }
                }
            }
            panel += width;
        }
    }

    /// # Safety
    /// As [`Self::all`].
    #[inline(always)]
    unsafe fn tile<S: Simd, E: PanelElement, const N: usize>(
        &self,
        weights: *const E,
        x: *const E::Activation,
        panel: usize,
        tile: &RowTile,
    ) {
        // SAFETY: promised by the caller. Row counts that the set's registers cannot hold never occur.
        unsafe {
            match tile.kernel_rows {
                1 => self.micro::<S, E, 1, N>(weights, x, panel, tile),
                2 => self.micro::<S, E, 2, N>(weights, x, panel, tile),
                3 => self.micro::<S, E, 3, N>(weights, x, panel, tile),
                4 => self.micro::<S, E, 4, N>(weights, x, panel, tile),
                6 if S::MAX_ROWS >= 6 => self.micro::<S, E, 6, N>(weights, x, panel, tile),
                8 if S::WIDE && N <= 2 => self.micro::<S, E, 8, N>(weights, x, panel, tile),
                10 if S::WIDE && N <= 2 => self.micro::<S, E, 10, N>(weights, x, panel, tile),
                12 if S::WIDE && N <= 2 => self.micro::<S, E, 12, N>(weights, x, panel, tile),
                rows => unreachable!("no micro-kernel for {rows} rows and {N} panels"),
            }
        }
    }

    /// # Safety
    /// As [`Self::all`]; `M` is the tile's row count and `N` panels begin at `panel`.
    #[inline(always)]
    unsafe fn micro<S: Simd, E: PanelElement, const M: usize, const N: usize>(
        &self,
        weights: *const E,
        x: *const E::Activation,
        panel: usize,
        tile: &RowTile,
    ) {
        let pairs = self.matrix.pairs();
        // SAFETY: panels and tile lie inside the buffers by construction of both.
        unsafe {
            let mut panels: [*const E; N] =
                std::array::from_fn(|n| weights.add((panel + n) * pairs * E::STEP));
            let mut x = x.add(tile.start * E::ACTIVATIONS);
            let mut sums = [[S::splat(0.0); N]; M];
            for _ in 0..pairs {
                E::step::<S, M, N>(panels, x, &mut sums);
                panels = panels.map(|panel| panel.add(E::STEP));
                x = x.add(M * E::ACTIVATIONS);
            }
            for n in 0..N {
                let first = (panel + n) * LANES;
                let lanes = LANES.min(self.matrix.out_features - first);
                for (m, sums) in sums.iter().enumerate().take(tile.rows) {
                    let out = self
                        .target
                        .out
                        .at((tile.first_row + m) * self.target.stride + first);
                    let mut sum = sums[n];
                    if lanes == LANES {
                        if let Some(bias) = self.target.bias {
                            sum = S::add(sum, S::load(bias.as_ptr().add(first)));
                        }
                        S::store(out, sum);
                    } else {
                        let mut buffer = [0.0f32; LANES];
                        S::store(buffer.as_mut_ptr(), sum);
                        for (lane, &sum) in buffer[..lanes].iter().enumerate() {
                            let bias = self.target.bias.map(|bias| bias[first + lane]);
                            *out.add(lane) = bias.map_or(sum, |bias| sum + bias);
                        }
                    }
                }
            }
        }
    }
}
