//! Working memory of tasks.

use crate::dtype::Element;
use crate::memory::Allocation;

/// Working memory of a task, from the arena; contents unspecified.
pub(super) struct Scratch<T: Element>(pub(super) Allocation<T>);

impl<T: Element> Scratch<T> {
    pub(super) fn new(len: usize) -> Self {
        Self(T::arena().take(len, T::POISON))
    }
}

impl<T: Element> Drop for Scratch<T> {
    fn drop(&mut self) {
        T::arena().give(std::mem::take(&mut self.0));
    }
}
