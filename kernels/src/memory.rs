//! The arena: buffers that come back.
//!
//! A training step asks for the same sizes again and again. Fresh pages cost more than most operations here (the kernel
//! zeroes each), so a dropped buffer waits in a list of its size class and the next taker gets it **with its old
//! contents**: who takes a buffer writes all of it. Debug builds fill it with NaN, so that a missed element shows.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Bytes kept for reuse per element type; what comes back beyond that is freed.
const LIMIT_BYTES: usize = 2 << 30;
/// Below this a buffer is not worth the list.
const SMALL: usize = 256;

pub struct Arena<T> {
    lists: LazyLock<Mutex<Lists<T>>>,
}

struct Lists<T> {
    by_class: HashMap<usize, Vec<Vec<T>>>,
    bytes: usize,
}

/// Sizes are rounded up to a quarter of a power of two: at most 25 % is wasted, and sizes that differ little share a list.
fn class(len: usize) -> usize {
    let quarter = (len.next_power_of_two() / 8).max(1);
    len.next_multiple_of(quarter)
}

impl<T: Copy + Default> Arena<T> {
    pub const fn new() -> Self {
        Self { lists: LazyLock::new(|| Mutex::new(Lists { by_class: HashMap::new(), bytes: 0 })) }
    }

    /// A buffer of at least `len` with unspecified contents; `poison` is what debug builds fill it with.
    pub fn take(&self, len: usize, poison: T) -> Vec<T> {
        if len < SMALL {
            return vec![if cfg!(debug_assertions) { poison } else { T::default() }; len];
        }
        let class = class(len);
        let found = {
            let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
            let found = lists.by_class.get_mut(&class).and_then(Vec::pop);
            lists.bytes -= found.as_ref().map_or(0, |_| class * size_of::<T>());
            found
        };
        let mut buffer = found.unwrap_or_else(|| vec![T::default(); class]);
        if cfg!(debug_assertions) {
            buffer.fill(poison);
        }
        buffer
    }

    pub fn give(&self, buffer: Vec<T>) {
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
