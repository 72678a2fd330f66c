//! The matrix tiles of newer Intel machines (AMX): registers of sixteen rows of 64 bytes, and the product of
//! two of them in one instruction. See the Intel Architecture Instruction Set Extensions Reference, chapter 3.
//!
//! The compiler has no use for tile registers. Between blocks of assembly the configuration stays while a [`Tiles`]
//! lives, and so do sums that [`Tiles::begin`] began; all else leaves nothing in them.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Inputs of a tile of `bf16`.
pub(super) const STEP: usize = 32;
/// Bytes of a tile.
pub(super) const TILE_BYTES: usize = 1024;
/// How far ahead weights are asked for.
const AHEAD_STEPS: usize = 4;

/// How many bytes behind a step's weights lie those that are asked for with it. They need not be there.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    within: usize,
    /// The same in the last steps.
    beyond: usize,
}

impl Ahead {
    /// Nothing is asked for.
    pub(super) const NONE: Self = Self {
        within: 0,
        beyond: 0,
    };

    /// Behind the last step of each panel the first ones so many bytes behind it are asked for.
    pub(super) fn then(behind: usize) -> Self {
        let within = AHEAD_STEPS * TILE_BYTES;
        Self {
            within,
            beyond: within + behind,
        }
    }
}

/// Whether the machine has tiles with products of bytes and of `bf16`, and the system lets this process use
/// them, which it is asked for here.
pub(super) fn available() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    const WANTED: u32 = BF16 | TILE | INT8;
    if std::arch::x86_64::__cpuid(0).eax < 7 {
        return false;
    }
    std::arch::x86_64::__cpuid_count(7, 0).edx & WANTED == WANTED && ask_for_tiles()
}

/// Linux saves the tiles of a process only if it has asked for that.
#[cfg(target_os = "linux")]
fn ask_for_tiles() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` and the number of the state, from the kernel's `x86/xstate.rst`.
    const REQUEST: libc::c_long = 0x1023;
    const TILE_DATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but this permission.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_tiles() -> bool {
    false
}

/// The shapes of the tiles, as the instruction reads them.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row, for each tile.
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Where sums lie: rows of `row_bytes` from one to the next.
#[derive(Clone, Copy)]
pub(super) struct Sums<P> {
    pub(super) first: P,
    pub(super) row_bytes: usize,
}

impl Sums<*const f32> {
    /// Sums of nothing.
    pub(super) fn zero() -> Self {
        #[repr(align(64))]
        struct Row([f32; 4 * TILE_ROWS]);
        static ZEROS: Row = Row([0.0; 4 * TILE_ROWS]);
        // Every row is the same one.
        Self {
            first: ZEROS.0.as_ptr(),
            row_bytes: 0,
        }
    }
}

/// The tiles of this thread, configured until this is dropped.
pub(super) struct Tiles(());

impl Tiles {
    /// Configures all tiles for sixteen rows of 64 bytes.
    ///
    /// # Safety
    /// [`available`] was true, and no other `Tiles` is alive on this thread.
    pub(super) unsafe fn configure() -> Self {
        // SAFETY: promised by the caller.
        unsafe { Self::configure_rows(TILE_ROWS) }
    }

    /// As [`Self::configure`], but with only `rows` rows and sums for one tile of rows by four: a product takes
    /// as many cycles as there are rows.
    ///
    /// # Safety
    /// As there; `rows` is between 1 and 16.
    pub(super) unsafe fn configure_rows(rows: usize) -> Self {
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        configuration.row_bytes[..8].fill(64);
        configuration.rows[..5].fill(rows as u8);
        configuration.rows[5..8].fill(TILE_ROWS as u8);
        // SAFETY: the configuration is valid for the only palette there is.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly));
        }
        Self(())
    }

    /// Adds the products of two tiles of sixteen rows with two panels of sixteen outputs to sums in `f32`.
    ///
    /// Rows and weights come in steps of [`STEP`] inputs, a tile of [`TILE_BYTES`] for each: sixteen rows of 32
    /// `bf16`, and sixteen pairs of inputs with two `bf16` for every output. `from` holds the sums so far and
    /// `to` gets the new ones, both 32 rows of 32 outputs.
    ///
    /// Each step's products of even and of odd inputs are summed apart, from the first to the last, each
    /// product and addition rounded once; then their sum is added. Numbers too small for the usual precision
    /// count as zero.
    ///
    /// `ahead`: weights that come from memory are asked for some steps before they are used. The machine's own
    /// prefetchers start anew at every page, and do not know that a tile is more than a line.
    ///
    /// # Safety
    /// The pointers cover `steps` tiles, at least one; `from` and `to` have the rows that they say.
    #[inline(always)]
    pub(super) unsafe fn add_two_by_two(
        &self,
        steps: usize,
        rows: [*const u16; 2],
        weights: [*const u32; 2],
        ahead: Ahead,
        from: Sums<*const f32>,
        to: Sums<*mut f32>,
    ) {
        // SAFETY: promised by the caller; the tile registers are used nowhere else.
        unsafe {
            asm!(
                "tileloadd tmm0, [{from} + {from_row}]",
                "tileloadd tmm1, [{from} + {from_row} + 64]",
                "tileloadd tmm2, [{from_below} + {from_row}]",
                "tileloadd tmm3, [{from_below} + {from_row} + 64]",
                "2:",
                "tileloadd tmm4, [{rows_0} + {vector}]",
                "tileloadd tmm6, [{weights_0} + {vector}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{weights_1} + {vector}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "test {ahead}, {ahead}",
                "jz 3f",
                ".irp line, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
                "prefetcht0 [{weights_0} + {ahead} + \\line]",
                "prefetcht0 [{weights_1} + {ahead} + \\line]",
                ".endr",
                "3:",
                "tileloadd tmm5, [{rows_1} + {vector}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {rows_0}, 1024",
                "add {rows_1}, 1024",
                "add {weights_0}, 1024",
                "add {weights_1}, 1024",
                "dec {steps}",
                "cmp {steps}, {ahead_steps}",
                "cmove {ahead}, {beyond}",
                "test {steps}, {steps}",
                "jnz 2b",
                // The first sums and their rows have done their duty: these are the new ones.
                "mov {from}, {to}",
                "tilestored [{from} + {to_row}], tmm0",
                "tilestored [{from} + {to_row} + 64], tmm1",
                "mov {from_row}, {to_row}",
                "shl {from_row}, 4",
                "add {from}, {from_row}",
                "tilestored [{from} + {to_row}], tmm2",
                "tilestored [{from} + {to_row} + 64], tmm3",
                rows_0 = inout(reg) rows[0] => _,
                rows_1 = inout(reg) rows[1] => _,
                weights_0 = inout(reg) weights[0] => _,
                weights_1 = inout(reg) weights[1] => _,
                vector = in(reg) 64usize,
                from = inout(reg) from.first => _,
                from_below = in(reg) from.first.wrapping_byte_add(TILE_ROWS * from.row_bytes),
                from_row = inout(reg) from.row_bytes => _,
                to = in(reg) to.first,
                to_row = in(reg) to.row_bytes,
                ahead = inout(reg) ahead.within => _,
                beyond = in(reg) ahead.beyond,
                ahead_steps = const AHEAD_STEPS,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// As [`Self::add_two_by_two`] for one tile of rows with four panels: sixteen rows of 64 outputs.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    pub(super) unsafe fn add_one_by_four(
        &self,
        steps: usize,
        rows: *const u16,
        weights: [*const u32; 4],
        ahead: Ahead,
        from: Sums<*const f32>,
        to: Sums<*mut f32>,
    ) {
        // SAFETY: promised by the caller; the tile registers are used nowhere else.
        unsafe {
            asm!(
                "tileloadd tmm0, [{from} + {from_row}]",
                "tileloadd tmm1, [{from} + {from_row} + 64]",
                "tileloadd tmm2, [{from} + {from_row} + 128]",
                "tileloadd tmm3, [{from} + {from_row} + 192]",
                "2:",
                "tileloadd tmm4, [{rows} + {vector}]",
                "tileloadd tmm5, [{weights_0} + {vector}]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tileloadd tmm6, [{weights_1} + {vector}]",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tileloadd tmm7, [{weights_2} + {vector}]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "test {ahead}, {ahead}",
                "jz 3f",
                ".irp line, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960",
                "prefetcht0 [{weights_0} + {ahead} + \\line]",
                "prefetcht0 [{weights_1} + {ahead} + \\line]",
                "prefetcht0 [{weights_2} + {ahead} + \\line]",
                "prefetcht0 [{weights_3} + {ahead} + \\line]",
                ".endr",
                "3:",
                "tileloadd tmm5, [{weights_3} + {vector}]",
                "tdpbf16ps tmm3, tmm4, tmm5",
                "add {rows}, 1024",
                "add {weights_0}, 1024",
                "add {weights_1}, 1024",
                "add {weights_2}, 1024",
                "add {weights_3}, 1024",
                "dec {steps}",
                "cmp {steps}, {ahead_steps}",
                "cmove {ahead}, {beyond}",
                "test {steps}, {steps}",
                "jnz 2b",
                "tilestored [{to} + {to_row}], tmm0",
                "tilestored [{to} + {to_row} + 64], tmm1",
                "tilestored [{to} + {to_row} + 128], tmm2",
                "tilestored [{to} + {to_row} + 192], tmm3",
                rows = inout(reg) rows => _,
                weights_0 = inout(reg) weights[0] => _,
                weights_1 = inout(reg) weights[1] => _,
                weights_2 = inout(reg) weights[2] => _,
                weights_3 = inout(reg) weights[3] => _,
                vector = in(reg) 64usize,
                from = in(reg) from.first,
                from_row = in(reg) from.row_bytes,
                to = in(reg) to.first,
                to_row = in(reg) to.row_bytes,
                ahead = inout(reg) ahead.within => _,
                beyond = in(reg) ahead.beyond,
                ahead_steps = const AHEAD_STEPS,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// Begins sums of zero, for [`Self::multiply_two_by_two`], [`Self::multiply_one_by_four`] or
    /// [`Self::multiply_bytes`].
    ///
    /// From here to [`Self::store_two_by_two`] and the like sums stay in the tiles between blocks
    /// of assembly. The compiler has no use for these registers, and the system saves them; `&mut` keeps other
    /// products of this value apart.
    #[inline(always)]
    pub(super) fn begin(&mut self) {
        // SAFETY: there is a configuration; the tile registers are used nowhere else.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                options(nostack, nomem, preserves_flags),
            );
        }
    }

    /// One step of two tiles of sixteen rows with two tiles of weights; adds as [`Self::add_two_by_two`].
    ///
    /// # Safety
    /// The pointers cover a tile each.
    #[inline(always)]
    pub(super) unsafe fn multiply_two_by_two(
        &mut self,
        rows: [*const u16; 2],
        weights: [*const u32; 2],
    ) {
        // SAFETY: promised by the caller; the tile registers are used nowhere else.
        unsafe {
            asm!(
                "tileloadd tmm4, [{rows_0} + {vector}]",
                "tileloadd tmm6, [{weights_0} + {vector}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{weights_1} + {vector}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{rows_1} + {vector}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                rows_0 = in(reg) rows[0],
                rows_1 = in(reg) rows[1],
                weights_0 = in(reg) weights[0],
                weights_1 = in(reg) weights[1],
                vector = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    /// One step of one tile of rows, as many as are configured, with four tiles of weights.
    ///
    /// # Safety
    /// As [`Self::multiply_two_by_two`].
    #[inline(always)]
    pub(super) unsafe fn multiply_one_by_four(
        &mut self,
        rows: *const u16,
        weights: [*const u32; 4],
    ) {
        // SAFETY: promised by the caller; the tile registers are used nowhere else.
        unsafe {
            asm!(
                "tileloadd tmm4, [{rows} + {vector}]",
                "tileloadd tmm5, [{weights_0} + {vector}]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "tileloadd tmm6, [{weights_1} + {vector}]",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "tileloadd tmm7, [{weights_2} + {vector}]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "tileloadd tmm5, [{weights_3} + {vector}]",
                "tdpbf16ps tmm3, tmm4, tmm5",
                rows = in(reg) rows,
                weights_0 = in(reg) weights[0],
                weights_1 = in(reg) weights[1],
                weights_2 = in(reg) weights[2],
                weights_3 = in(reg) weights[3],
                vector = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly, preserves_flags),
            );
        }
    }

    /// Products of bytes: one step of 64 inputs of a tile of rows, as many as are configured, with the four tiles of
    /// weights that begin at `weights`, added to the sums that [`Self::begin`] began, which are exact `i32`.
    ///
    /// A tile of rows has 64 signed bytes for each, one of weights four inputs of sixteen outputs in each row. The first
    /// and third tile of weights are unsigned; the others are signed if `signed`, a constant.
    ///
    /// # Safety
    /// The pointers cover one and four tiles.
    #[inline(always)]
    pub(super) unsafe fn multiply_bytes(
        &mut self,
        signed: bool,
        rows: *const u8,
        weights: *const u8,
    ) {
        macro_rules! step {
            ($product:literal) => {
                // SAFETY: promised by the caller; the tile registers are used nowhere else.
                asm!(
                    "tileloadd tmm4, [{rows} + {vector}]",
                    "tileloadd tmm5, [{weights} + {vector}]",
                    "tdpbsud tmm0, tmm4, tmm5",
                    "tileloadd tmm6, [{weights} + {vector} + 1024]",
                    concat!($product, " tmm1, tmm4, tmm6"),
                    "tileloadd tmm7, [{weights} + {vector} + 2048]",
                    "tdpbsud tmm2, tmm4, tmm7",
                    "tileloadd tmm5, [{weights} + {vector} + 3072]",
                    concat!($product, " tmm3, tmm4, tmm5"),
                    rows = in(reg) rows,
                    weights = in(reg) weights,
                    vector = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, readonly, preserves_flags),
                )
            };
        }
        // SAFETY: promised by the caller.
        unsafe {
            if signed {
                step!("tdpbssd")
            } else {
                step!("tdpbsud")
            }
        }
    }

    /// Stores the sums of [`Self::multiply_bytes`], one tile after the other.
    ///
    /// # Safety
    /// `to` has room for four tiles.
    #[inline(always)]
    pub(super) unsafe fn store_whole(&mut self, to: *mut i32) {
        // SAFETY: promised by the caller.
        unsafe {
            asm!(
                "tilestored [{to} + {vector}], tmm0",
                "tilestored [{to} + {vector} + 1024], tmm1",
                "tilestored [{to} + {vector} + 2048], tmm2",
                "tilestored [{to} + {vector} + 3072], tmm3",
                to = in(reg) to,
                vector = in(reg) 64usize,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Stores the sums of [`Self::multiply_two_by_two`]: 32 rows of 32.
    ///
    /// # Safety
    /// `to` has the rows that it says.
    #[inline(always)]
    pub(super) unsafe fn store_two_by_two(&mut self, to: Sums<*mut f32>) {
        // SAFETY: promised by the caller.
        unsafe {
            asm!(
                "tilestored [{to} + {to_row}], tmm0",
                "tilestored [{to} + {to_row} + 64], tmm1",
                "tilestored [{to_below} + {to_row}], tmm2",
                "tilestored [{to_below} + {to_row} + 64], tmm3",
                to = in(reg) to.first,
                to_below = in(reg) to.first.wrapping_byte_add(TILE_ROWS * to.row_bytes),
                to_row = in(reg) to.row_bytes,
                options(nostack, preserves_flags),
            );
        }
    }

    /// Stores the sums of [`Self::multiply_one_by_four`]: rows of 64, as many as are configured.
    ///
    /// # Safety
    /// As [`Self::store_two_by_two`].
    #[inline(always)]
    pub(super) unsafe fn store_one_by_four(&mut self, to: Sums<*mut f32>) {
        // SAFETY: promised by the caller.
        unsafe {
            asm!(
                "tilestored [{to} + {to_row}], tmm0",
                "tilestored [{to} + {to_row} + 64], tmm1",
                "tilestored [{to} + {to_row} + 128], tmm2",
                "tilestored [{to} + {to_row} + 192], tmm3",
                to = in(reg) to.first,
                to_row = in(reg) to.row_bytes,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Asks for a tile of weights to be brought close. Any address will do.
#[inline(always)]
pub(super) fn prefetch_tile(tile: *const u32) {
    for row in 0..TILE_ROWS {
        // SAFETY: a hint, which cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(tile.wrapping_byte_add(row * 64).cast()) };
    }
}

/// Asks for a cache line that will be written. Any address will do.
#[inline(always)]
pub(super) fn prefetch_for_writing(p: *const f32) {
    // SAFETY: a hint, which cannot fault; every machine with tiles has it.
    unsafe {
        asm!("prefetchw [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there is a configuration; without one the system has less to save when threads change.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}
