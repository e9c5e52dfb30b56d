//! Prefetching: brings memory into the cache before it is read or written.

/// Prefetches a cache line. The address need not be valid.
#[inline(always)]
pub(crate) fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; it reads nothing and never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast())
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Prefetches `len` elements, at an address that need not be valid. For strided access: hardware prefetchers do not
/// predict it.
#[inline(always)]
pub(crate) fn prefetch_run<T>(first: *const T, len: usize) {
    for line in (0..len * size_of::<T>()).step_by(64) {
        prefetch(first.wrapping_byte_add(line));
    }
}
