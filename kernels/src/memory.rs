//! The arena: freed buffers are used again.
//!
//! A training step allocates the same sizes again and again. Fresh pages cost more than most operations here (the
//! system zeroes each), so a dropped buffer goes to the free list of its size class and is handed out again **with its
//! old contents**: whoever takes a buffer writes all of it. Debug builds fill it with NaN, so that a missed element
//! shows.
//!
//! Buffers are aligned to cache lines, because a vector that crosses two lines is read twice, and lie in pages of 2 MiB
//! where the system has them: a product reads columns, which with small pages would need a page per row.

use bytemuck::{Pod, Zeroable, cast_slice, cast_slice_mut};
use memmap2::{MmapMut, MmapRaw};
use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// Bytes kept for reuse per element type. Buffers beyond that are freed, except those cut from a slab: other parts of
/// the slab may be in use.
const LIMIT_BYTES: usize = 2 << 30;
/// Elements below which a buffer is not kept.
const SMALL: usize = 256;

/// A large page of x86 and of aarch64.
const PAGE: usize = 2 << 20;
/// Allocations from `CUT` bytes up to a page are cut from slabs.
const SLAB: usize = 8 * PAGE;
const CUT: usize = 4096;

/// A cache line; also the widest vector.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u32; 16]);

/// A slice on the heap, aligned for vectors.
pub struct Allocation<T> {
    memory: Backing,
    /// Of the memory, what the slice covers.
    bytes: Range<usize>,
    element: PhantomData<T>,
}

enum Backing {
    Lines(Vec<Line>),
    /// A range that no other allocation has.
    Pages(Arc<MmapRaw>),
}

/// Maps large pages; returns where the first whole one begins.
fn pages(bytes: usize) -> (Arc<MmapRaw>, usize) {
    let pages = MmapMut::map_anon(bytes.next_multiple_of(PAGE) + PAGE);
    let pages = pages.unwrap_or_else(|e| panic!("memory: the system has no {bytes} bytes more: {e}"));
    #[cfg(target_os = "linux")]
    drop(pages.advise(memmap2::Advice::HugePage)); // only a hint: small pages work too
    let start = pages.as_ptr().align_offset(PAGE);
    (Arc::new(pages.into()), start)
}

/// Cuts an allocation from the current slab. It is zero, because no part of a slab is given out twice; a slab is freed
/// with its last allocation.
fn cut(bytes: usize) -> (Arc<MmapRaw>, usize) {
    static CURRENT: Mutex<Option<(Arc<MmapRaw>, Range<usize>)>> = Mutex::new(None);
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if current.as_ref().is_none_or(|(_, rest)| rest.len() < bytes) {
        let (pages, start) = pages(SLAB);
        *current = Some((pages, start..start + SLAB));
    }
    let (pages, rest) = current.as_mut().expect("just set");
    let start = rest.start;
    // one line of padding: otherwise allocations of whole small pages would all begin in the same set of the cache
    rest.start = rest.end.min((start + bytes).next_multiple_of(size_of::<Line>()) + size_of::<Line>());
    (pages.clone(), start)
}

impl<T: Pod> Allocation<T> {
    /// Zeros. Parts of a large allocation that are never touched take no memory.
    pub fn new(len: usize) -> Self {
        const { assert!(align_of::<T>() <= align_of::<Line>()) };
        let bytes = len * size_of::<T>();
        if bytes < CUT {
            let lines = vec![Line::zeroed(); bytes.div_ceil(size_of::<Line>())];
            return Self { memory: Backing::Lines(lines), bytes: 0..bytes, element: PhantomData };
        }
        let (pages, start) = if bytes < PAGE { cut(bytes) } else { pages(bytes) };
        assert!(start + bytes <= pages.len());
        Self { memory: Backing::Pages(pages), bytes: start..start + bytes, element: PhantomData }
    }
}

impl<T> fmt::Debug for Allocation<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Allocation of {} bytes", self.bytes.len())
    }
}

impl<T> Default for Allocation<T> {
    fn default() -> Self {
        Self { memory: Backing::Lines(Vec::new()), bytes: 0..0, element: PhantomData }
    }
}

impl<T: Pod> Deref for Allocation<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let all = match &self.memory {
            Backing::Lines(lines) => &cast_slice(lines)[..self.bytes.len()],
            // SAFETY: inside the map, as `new` checked; the map lives as long as this; nobody else has this range.
            Backing::Pages(pages) => unsafe {
                std::slice::from_raw_parts(pages.as_ptr().add(self.bytes.start), self.bytes.len())
            },
        };
        cast_slice(all)
    }
}

impl<T: Pod> DerefMut for Allocation<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let all = match &mut self.memory {
            Backing::Lines(lines) => &mut cast_slice_mut(lines)[..self.bytes.len()],
            // SAFETY: as above, and the allocation is borrowed exclusively.
            Backing::Pages(pages) => unsafe {
                std::slice::from_raw_parts_mut(pages.as_mut_ptr().add(self.bytes.start), self.bytes.len())
            },
        };
        cast_slice_mut(all)
    }
}

pub struct Arena<T> {
    lists: LazyLock<Mutex<Lists<T>>>,
}

struct Lists<T> {
    by_class: HashMap<usize, Vec<Allocation<T>>>,
    bytes: usize,
}

/// Sizes are rounded up to a quarter of a power of two: at most 25 % is wasted, and sizes that differ little share a
/// list.
fn class(len: usize) -> usize {
    let quarter = (len.next_power_of_two() / 8).max(1);
    len.next_multiple_of(quarter)
}

impl<T> fmt::Debug for Arena<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Arena").finish_non_exhaustive()
    }
}

impl<T: Pod> Arena<T> {
    pub const fn new() -> Self {
        Self { lists: LazyLock::new(|| Mutex::new(Lists { by_class: HashMap::new(), bytes: 0 })) }
    }

    /// A buffer of at least `len` with unspecified contents; `poison` is what debug builds fill it with.
    pub fn take(&self, len: usize, poison: T) -> Allocation<T> {
        let class = if len < SMALL { len } else { class(len) };
        let found = if len < SMALL { None } else { self.find(class) };
        let mut buffer = found.unwrap_or_else(|| Allocation::new(class));
        if cfg!(debug_assertions) {
            buffer.fill(poison);
        }
        buffer
    }

    fn find(&self, class: usize) -> Option<Allocation<T>> {
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lists.by_class.get_mut(&class)?.pop()?;
        lists.bytes -= class * size_of::<T>();
        Some(found)
    }

    pub fn give(&self, buffer: Allocation<T>) {
        let class = buffer.len();
        if class < SMALL || class != self::class(class) {
            return;
        }
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = class * size_of::<T>();
        if bytes >= PAGE && lists.bytes + bytes > LIMIT_BYTES {
            return;
        }
        lists.bytes += bytes;
        lists.by_class.entry(class).or_default().push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allocation_is_zero_and_aligned_whatever_its_size() {
        for (len, align) in [(0, 1), (1, 64), (1000, 64), (PAGE / 4 - 1, 64), (PAGE / 4, PAGE), (PAGE, PAGE)] {
            let mut allocation = Allocation::<f32>::new(len);
            assert_eq!(allocation.len(), len);
            assert!(allocation.iter().all(|x| x.to_bits() == 0), "{len}");
            assert!(len == 0 || allocation.as_ptr().addr().is_multiple_of(align), "{len} at {:p}", allocation.as_ptr());
            allocation.fill(1.0);
        }
    }

    #[test]
    fn allocations_cut_from_one_slab_are_zero_and_do_not_overlap() {
        let len = |i: usize| 5_000 + 37 * i % 90_000;
        let mut allocations: Vec<Allocation<u32>> = Vec::new();
        for i in 0..400 {
            let mut allocation = Allocation::new(len(i));
            assert!(allocation.iter().all(|&x| x == 0), "allocation {i}");
            allocation.fill(i as u32);
            allocations.push(allocation);
            if i % 3 == 0 {
                allocations.remove(i / 9);
            }
        }
        for allocation in &allocations {
            assert!(
                allocation.len() == len(allocation[0] as usize) && allocation.iter().all(|x| *x == allocation[0]),
                "allocation {}",
                allocation[0]
            );
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
