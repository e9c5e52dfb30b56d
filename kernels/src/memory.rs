//! The arena: buffers that come back.
//!
//! A training step asks for the same sizes again and again. Fresh pages cost more than most operations here (the kernel
//! zeroes each), so a dropped buffer waits in a list of its size class and the next taker gets it **with its old
//! contents**: who takes a buffer writes all of it. Debug builds fill it with NaN, so that a missed element shows.
//!
//! Buffers begin at a cache line, for a vector that straddles two is read twice; large ones lie in pages of 2 MiB where the system has them,
//! for products walk down columns, a page per row.

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use memmap2::MmapMut;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{LazyLock, Mutex, PoisonError};

/// Bytes kept for reuse per element type; what comes back beyond that is freed.
const LIMIT_BYTES: usize = 2 << 30;
/// Below this a buffer is not worth the list.
const SMALL: usize = 256;

/// A large page of x86 and of aarch64.
const PAGE: usize = 2 << 20;

/// A cache line, and a vector of the widest kind.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Line(pub [u32; 16]);

/// A slice on the heap, aligned for vectors.
pub struct Block<T> {
    memory: Memory,
    /// Of the memory, what the slice covers.
    bytes: Range<usize>,
    element: PhantomData<T>,
}

enum Memory {
    Lines(Vec<Line>),
    Pages(MmapMut),
}

impl<T: Pod> Block<T> {
    /// Zeros. What is not touched of a large block takes no memory.
    pub fn new(len: usize) -> Self {
        const { assert!(align_of::<T>() <= align_of::<Line>()) };
        let bytes = len * size_of::<T>();
        let (memory, start) = if bytes < PAGE {
            (Memory::Lines(vec![Line::zeroed(); bytes.div_ceil(size_of::<Line>())]), 0)
        } else {
            let pages = MmapMut::map_anon(bytes.next_multiple_of(PAGE) + PAGE);
            let pages = pages.unwrap_or_else(|e| panic!("memory: the system has no {bytes} bytes more: {e}"));
            #[cfg(target_os = "linux")]
            drop(pages.advise(memmap2::Advice::HugePage)); // a wish: small pages do as well
            let start = pages.as_ptr().align_offset(PAGE);
            (Memory::Pages(pages), start)
        };
        Self { memory, bytes: start..start + bytes, element: PhantomData }
    }
}

impl<T> Default for Block<T> {
    fn default() -> Self {
        Self { memory: Memory::Lines(Vec::new()), bytes: 0..0, element: PhantomData }
    }
}

impl<T: Pod> Deref for Block<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let all = match &self.memory {
            Memory::Lines(lines) => cast_slice(lines),
            Memory::Pages(pages) => &pages[..],
        };
        cast_slice(&all[self.bytes.clone()])
    }
}

impl<T: Pod> DerefMut for Block<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let all = match &mut self.memory {
            Memory::Lines(lines) => cast_slice_mut(lines),
            Memory::Pages(pages) => &mut pages[..],
        };
        cast_slice_mut(&mut all[self.bytes.clone()])
    }
}

pub struct Arena<T> {
    lists: LazyLock<Mutex<Lists<T>>>,
}

struct Lists<T> {
    by_class: HashMap<usize, Vec<Block<T>>>,
    bytes: usize,
}

/// Sizes are rounded up to a quarter of a power of two: at most 25 % is wasted, and sizes that differ little share a list.
fn class(len: usize) -> usize {
    let quarter = (len.next_power_of_two() / 8).max(1);
    len.next_multiple_of(quarter)
}

impl<T: Pod> Arena<T> {
    pub const fn new() -> Self {
        Self { lists: LazyLock::new(|| Mutex::new(Lists { by_class: HashMap::new(), bytes: 0 })) }
    }

    /// A buffer of at least `len` with unspecified contents; `poison` is what debug builds fill it with.
    pub fn take(&self, len: usize, poison: T) -> Block<T> {
        let class = if len < SMALL { len } else { class(len) };
        let found = if len < SMALL { None } else { self.find(class) };
        let mut buffer = found.unwrap_or_else(|| Block::new(class));
        if cfg!(debug_assertions) {
            buffer.fill(poison);
        }
        buffer
    }

    fn find(&self, class: usize) -> Option<Block<T>> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lists.by_class.get_mut(&class)?.pop()?;
        lists.bytes -= class * size_of::<T>();
        Some(found)
    }

    pub fn give(&self, buffer: Block<T>) {
        let class = buffer.len();
        if class < SMALL || class != self::class(class) {
            return;
        }
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.bytes + class * size_of::<T>() > LIMIT_BYTES {
            return;
        }
        lists.bytes += class * size_of::<T>();
        lists.by_class.entry(class).or_default().push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_zero_and_aligned_whatever_its_size() {
        for (len, align) in [(0, 1), (1, 64), (1000, 64), (PAGE / 4 - 1, 64), (PAGE / 4, PAGE), (PAGE, PAGE)] {
            let mut block = Block::<f32>::new(len);
            assert_eq!(block.len(), len);
            assert!(block.iter().all(|x| x.to_bits() == 0), "{len}");
            assert!(len == 0 || block.as_ptr().addr().is_multiple_of(align), "{len} at {:p}", block.as_ptr());
            block.fill(1.0);
        }
    }

    #[test]
    fn the_arena_gives_a_buffer_again() {
        static ARENA: Arena<f32> = Arena::new();
        let first = ARENA.take(1000, f32::NAN);
        let at = first.as_ptr();
        ARENA.give(first);
        assert_eq!(ARENA.take(990, f32::NAN).as_ptr(), at, "990 and 1000 are of one class");
    }
}
