//! Buffers of numbers that begin at a cache line, in large pages where the system has them.
//!
//! A vector load that crosses a cache line costs two accesses, and a pass over gigabytes of weights in
//! 4 KiB pages spends a good part of its time looking pages up; in a virtual machine twice over.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use half::{bf16, f16};
use memmap2::MmapMut;

/// Types for which all bits are valid and zero bits are the number zero, aligned to at most 64 bytes.
///
/// # Safety
/// The type is as it says.
pub(super) unsafe trait Number: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers.
unsafe impl Number for f32 {}
// SAFETY: as above.
unsafe impl Number for u8 {}
// SAFETY: as above.
unsafe impl Number for u16 {}
// SAFETY: as above.
unsafe impl Number for u32 {}
// SAFETY: a transparent wrapper of `u16`.
unsafe impl Number for f16 {}
// SAFETY: as above.
unsafe impl Number for bf16 {}

/// From this size on a buffer has pages of its own.
const LARGE: usize = 4 << 20;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

enum Memory {
    Lines(Vec<Line>),
    Pages(MmapMut),
}

/// `len` numbers, at first zeros, at a multiple of 64 bytes. Pages get memory when they are first written.
pub(super) struct AlignedBuffer<T> {
    memory: Memory,
    len: usize,
    number: PhantomData<T>,
}

impl<T: Number> AlignedBuffer<T> {
    pub(super) fn zeros(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        Self {
            memory: Self::pages(bytes).unwrap_or_else(|| {
                Memory::Lines(vec![Line([0; 64]); bytes.div_ceil(size_of::<Line>())])
            }),
            len,
            number: PhantomData,
        }
    }

    fn pages(bytes: usize) -> Option<Memory> {
        if bytes < LARGE {
            return None;
        }
        let map = MmapMut::map_anon(bytes).ok()?;
        // A hint: without large pages everything works, slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Some(Memory::Pages(map))
    }

    /// Adds `more` at the end.
    pub(super) fn append(&mut self, more: &[T]) {
        let mut both = Self::zeros(self.len + more.len());
        both[..self.len].copy_from_slice(self);
        both[self.len..].copy_from_slice(more);
        *self = both;
    }

    /// Makes room for `len` numbers; what was there is lost if it had less.
    pub(super) fn reserve(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeros(len);
        }
    }
}

impl<T: Number> Default for AlignedBuffer<T> {
    fn default() -> Self {
        Self::zeros(0)
    }
}

impl<T: Number> Deref for AlignedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let start = match &self.memory {
            Memory::Lines(lines) => lines.as_ptr().cast(),
            Memory::Pages(map) => map.as_ptr().cast(),
        };
        // SAFETY: the memory holds `len` numbers, aligned, and all bits are valid.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl<T: Number> DerefMut for AlignedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let start = match &mut self.memory {
            Memory::Lines(lines) => lines.as_mut_ptr().cast(),
            Memory::Pages(map) => map.as_mut_ptr().cast(),
        };
        // SAFETY: as above, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_writable() {
        for len in [0, 1, 15, 16, 1000, (LARGE / 4) + 3] {
            let mut buffer = AlignedBuffer::<f32>::zeros(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_ptr().addr().is_multiple_of(64));
            assert!(buffer.iter().all(|&x| x == 0.0));
            if let Some(last) = buffer.last_mut() {
                *last = 7.0;
                assert_eq!(buffer[len - 1], 7.0);
            }
            let before = buffer.to_vec();
            buffer.append(&[1.0, 2.0]);
            assert_eq!(buffer[..len], before);
            assert_eq!(buffer[len..], [1.0, 2.0]);
            let len = len + 2;
            buffer.reserve(len / 2);
            assert_eq!(buffer.len(), len);
            buffer.reserve(len + 1);
            assert!(buffer.iter().all(|&x| x == 0.0));
        }
    }
}
