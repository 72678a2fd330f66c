//! Activations in the order that the micro-kernels of dense products read them in.

use half::bf16;

use super::Input;
use super::micro::{kernel_rows, max_rows, pair_of};
use crate::kernels::aligned::AlignedBuffer;
use crate::kernels::isa::Isa;
use crate::kernels::{KernelError, SharedMut, ThreadPool};

/// Activations below which packing is not worth sharing among threads.
const SMALL: usize = 64 * 1024;

/// What activations are packed as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// `[tile][input][row of the tile]`.
    F32,
    /// Rounded to `bf16`, two inputs a word, `[tile][pair][row of the tile]`.
    Bf16Pairs,
}

impl Kind {
    /// Bytes of one activation.
    pub(super) fn size(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16Pairs => 2,
        }
    }

    /// Words or numbers of a row of so many pairs of inputs.
    fn row_length(self, pairs: usize) -> usize {
        match self {
            Kind::F32 => 2 * pairs,
            Kind::Bf16Pairs => pairs,
        }
    }
}

/// Some rows that go through a micro-kernel together.
#[derive(Clone, Copy)]
pub(super) struct RowTile {
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// The micro-kernel's rows, at least `rows`; the others are zeros.
    pub(super) kernel_rows: usize,
    /// Where its activations begin, in numbers (`F32`) or words.
    pub(super) start: usize,
}

/// The rows of one call, packed as one [`Kind`].
#[derive(Default)]
struct Packed<T> {
    valid: bool,
    tiles: Vec<RowTile>,
    buffer: T,
}

/// Packed activations: memory is kept from call to call, contents for the segments of one call.
#[derive(Default)]
pub(super) struct Activations {
    numbers: Packed<AlignedBuffer<f32>>,
    pairs: Packed<AlignedBuffer<u32>>,
}

impl Activations {
    /// A new call: what is packed belongs to other rows.
    pub(super) fn forget(&mut self) {
        self.numbers.valid = false;
        self.pairs.valid = false;
    }

    /// Packs `x`, rows of `inputs`, unless this call has done so.
    ///
    /// # Errors
    /// When a job panicked.
    pub(super) fn pack(
        &mut self,
        isa: Isa,
        pool: &ThreadPool,
        x: Input<'_>,
        inputs: usize,
        kind: Kind,
    ) -> Result<(), KernelError> {
        let rows = x.rows(inputs);
        let row_length = kind.row_length(inputs.div_ceil(2));
        match kind {
            Kind::F32 => {
                let tiles = |tiles: &mut Vec<RowTile>| equal_tiles(tiles, rows, isa, row_length);
                self.numbers
                    .fill(pool, x, inputs, row_length, tiles, |x, tile, out| {
                        pack_numbers(x, inputs, tile, out);
                    })
            }
            Kind::Bf16Pairs => {
                let tiles = |tiles: &mut Vec<RowTile>| equal_tiles(tiles, rows, isa, row_length);
                self.pairs
                    .fill(pool, x, inputs, row_length, tiles, |x, tile, out| {
                        pack_pairs(x, inputs, tile, out);
                    })
            }
        }
    }

    pub(super) fn tiles(&self, kind: Kind) -> &[RowTile] {
        match kind {
            Kind::F32 => &self.numbers.tiles,
            Kind::Bf16Pairs => &self.pairs.tiles,
        }
    }

    pub(super) fn numbers(&self) -> &[f32] {
        &self.numbers.buffer
    }

    pub(super) fn pairs(&self) -> &[u32] {
        &self.pairs.buffer
    }
}

impl<T: crate::kernels::aligned::Number> Packed<AlignedBuffer<T>> {
    fn fill(
        &mut self,
        pool: &ThreadPool,
        x: Input<'_>,
        inputs: usize,
        row_length: usize,
        make_tiles: impl FnOnce(&mut Vec<RowTile>),
        pack: impl Fn(&[f32], &RowTile, &mut [T]) + Sync,
    ) -> Result<(), KernelError> {
        if std::mem::replace(&mut self.valid, true) {
            return Ok(());
        }
        self.tiles.clear();
        make_tiles(&mut self.tiles);
        let tiles = &self.tiles[..];
        let length = |tile: &RowTile| tile.kernel_rows * row_length;
        self.buffer
            .reserve(tiles.last().map_or(0, |last| last.start + length(last)));
        let buffer = SharedMut::new(&mut self.buffer);
        let worth = x.rows(inputs) * inputs >= SMALL;
        pool.run_if(worth, tiles.len(), |_, index| {
            let tile = &tiles[index];
            // SAFETY: each tile has its own part of the buffer, which was made to hold all.
            let out = unsafe { buffer.slice(tile.start, length(tile)) };
            x.with_rows(tile.first_row, tile.rows, inputs, |x| pack(x, tile, out));
        })
    }
}

/// Tiles as equal as possible, none with more rows than the largest micro-kernel has.
fn equal_tiles(tiles: &mut Vec<RowTile>, rows: usize, isa: Isa, row_length: usize) {
    let count = rows.div_ceil(max_rows(isa));
    let (mut first_row, mut start) = (0, 0);
    for index in 0..count {
        let rows = (rows - first_row).div_ceil(count - index);
        let kernel_rows = kernel_rows(rows);
        tiles.push(RowTile {
            first_row,
            rows,
            kernel_rows,
            start,
        });
        first_row += rows;
        start += kernel_rows * row_length;
    }
}

/// `out[input][row] = x[row][input]`, zeros for rows and inputs that fill up.
fn pack_numbers(x: &[f32], inputs: usize, tile: &RowTile, out: &mut [f32]) {
    let width = tile.kernel_rows;
    if width == 1 {
        out[..inputs].copy_from_slice(x);
        out[inputs..].fill(0.0);
        return;
    }
    if width > tile.rows || inputs % 2 == 1 {
        out.fill(0.0);
    }
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        for (out, &x) in out[row..].iter_mut().step_by(width).zip(x) {
            *out = x;
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
        for (out, x) in out[row..].iter_mut().step_by(width).zip(x.chunks(2)) {
            let odd = x.get(1).copied().unwrap_or(0.0);
            *out = pair_of(bf16::from_f32(x[0]), bf16::from_f32(odd));
        }
    }
}
