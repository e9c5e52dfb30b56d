//! The arena: buffers that come back.
//!
//! A training step asks for the same sizes again and again. Fresh pages cost more than most operations here (the kernel
//! zeroes each), so a dropped buffer waits in a list of its size class and the next taker gets it **with its old
//! contents**: who takes a buffer writes all of it. Debug builds fill it with NaN, so that a missed element shows.
//!
//! Buffers begin at a cache line, for a vector that straddles two is read twice; large ones lie in pages of 2 MiB where the system has them,
//! for products walk down columns, a page per row.

use bytemuck::Zeroable;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Bytes kept for reuse per element type; what comes back beyond that is freed.
const LIMIT_BYTES: usize = 2 << 30;
/// Below this a buffer is not worth the list.
const SMALL: usize = 256;

const LINE: usize = 64;
/// A large page of x86 and of aarch64.
const PAGE: usize = 2 << 20;

/// A slice on the heap, aligned for vectors.
pub struct Block<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: it owns what it points to, as a `Vec` does.
unsafe impl<T: Send> Send for Block<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Block<T> {}

impl<T> Block<T> {
    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len * size_of::<T>(), LINE).expect("a block is smaller than the address space")
    }
}

impl<T: Zeroable> Block<T> {
    /// Zeros.
    pub fn new(len: usize) -> Self {
        const { assert!(align_of::<T>() <= LINE) };
        let layout = Self::layout(len);
        let start = match layout.size() {
            0 => return Self::default(),
            bytes if bytes >= PAGE => map(bytes),
            // SAFETY: the layout is not empty.
            _ => unsafe { alloc_zeroed(layout) },
        };
        let start = NonNull::new(start.cast::<T>()).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, len }
    }
}

impl<T> Default for Block<T> {
    fn default() -> Self {
        Self { start: NonNull::dangling(), len: 0 }
    }
}

impl<T> Drop for Block<T> {
    fn drop(&mut self) {
        let (layout, start) = (Self::layout(self.len), self.start.as_ptr().cast());
        match layout.size() {
            0 => {}
            bytes if bytes >= PAGE => unmap(start, bytes),
            // SAFETY: allocated by `new` with this layout.
            _ => unsafe { dealloc(start, layout) },
        }
    }
}

/// Zeroed memory from the system, which begins at a large page; null if there is none. What is not touched takes no memory.
fn map(bytes: usize) -> *mut u8 {
    // SAFETY: a new private mapping; what is given back of it lies outside of what is returned.
    unsafe {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let start = libc::mmap(std::ptr::null_mut(), whole(bytes) + PAGE, access, kind, -1, 0);
        if start == libc::MAP_FAILED {
            return std::ptr::null_mut();
        }
        let before = start.align_offset(PAGE);
        if before > 0 {
            libc::munmap(start, before);
        }
        libc::munmap(start.byte_add(before + whole(bytes)), PAGE - before);
        let start = start.byte_add(before);
        #[cfg(target_os = "linux")]
        libc::madvise(start, whole(bytes), libc::MADV_HUGEPAGE); // a wish: small pages do as well
        start.cast()
    }
}

fn unmap(start: *mut u8, bytes: usize) {
    // SAFETY: what `map` returned for as many bytes, and nobody holds it any more.
    unsafe { libc::munmap(start.cast(), whole(bytes)) };
}

fn whole(bytes: usize) -> usize {
    bytes.next_multiple_of(PAGE)
}

impl<T> Deref for Block<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements from `start` are this block's and were valid from the first: `Zeroable`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Block<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
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

impl<T: Zeroable + Copy> Arena<T> {
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
        for (len, align) in [(0, 1), (1, LINE), (1000, LINE), (PAGE / 4 - 1, LINE), (PAGE / 4, PAGE), (PAGE, PAGE)] {
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
