//! Any CPU: sixteen scalar chains side by side, which the compiler may vectorise but not reorder.

#![allow(clippy::undocumented_unsafe_blocks, reason = "one SAFETY comment speaks for a trait's methods")]

use super::cells::{Bf16, Cells};
use super::kernel::{self, micro};
use std::marker::PhantomData;

#[derive(Clone, Copy)]
pub(super) struct Lanes<T>([f32; 16], PhantomData<T>);

impl<T: Cells> kernel::Lanes for Lanes<T> {
    type Cells = [u32; 16];
    const ROWS: usize = 4;
    const VECTORS: usize = 1;
    // SAFETY, of all: pointers as `RegisterTile` says.
    #[inline(always)]
    unsafe fn load(c: *const f32) -> Self {
        unsafe { Self(c.cast::<[f32; 16]>().read_unaligned(), PhantomData) }
    }
    #[inline(always)]
    unsafe fn store(self, c: *mut f32) {
        unsafe { c.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 16], PhantomData)
    }
    #[inline(always)]
    unsafe fn cells(b: *const u32) -> Self::Cells {
        unsafe { b.cast::<[u32; 16]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn splat(a: *const u32) -> Self::Cells {
        unsafe { [a.read(); 16] }
    }
    #[inline(always)]
    unsafe fn step(mut self, a: Self::Cells, b: Self::Cells) -> Self {
        for lane in 0..16 {
            self.0[lane] = T::step(self.0[lane], a[lane], b[lane]);
        }
        self
    }
}

micro!(F32_TILES, Lanes<f32>);
micro!(BF16_TILES, Lanes<Bf16>);
