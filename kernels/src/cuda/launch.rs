//! Launches kernels.

use super::device::Cuda;
use super::tensor_cores::TensorMap;
use crate::tensor::Tensor;
use std::ffi::c_void;

/// One argument, of the type that the kernel's parameter has.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    /// A pointer to device memory; 0 is null.
    Address(u64),
    /// `int`
    Int(i32),
    /// `i64`
    Long(i64),
    /// `u64`
    Bits(u64),
    Float(f32),
    Double(f64),
    /// `TENSOR_MAP`
    Map(TensorMap),
}

/// To the bit.
impl PartialEq for Arg {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Arg::Address(a), Arg::Address(b)) | (Arg::Bits(a), Arg::Bits(b)) => a == b,
            (Arg::Int(a), Arg::Int(b)) => a == b,
            (Arg::Long(a), Arg::Long(b)) => a == b,
            (Arg::Float(a), Arg::Float(b)) => a.to_bits() == b.to_bits(),
            (Arg::Double(a), Arg::Double(b)) => a.to_bits() == b.to_bits(),
            (Arg::Map(a), Arg::Map(b)) => a == b,
            _ => false,
        }
    }
}

impl Arg {
    pub(super) fn pointer(&self) -> *mut c_void {
        match self {
            Arg::Address(x) | Arg::Bits(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Int(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Long(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Float(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Double(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Arg::Map(x) => std::ptr::from_ref(x).cast_mut().cast(),
        }
    }
}

/// An `int` parameter.
pub(super) fn int(x: usize) -> Arg {
    Arg::Int(i32::try_from(x).unwrap_or_else(|_| panic!("cuda: {x} does not fit into the kernel's int")))
}

/// An `i64` parameter.
pub(super) fn long(x: usize) -> Arg {
    Arg::Long(x as i64)
}

/// An `int` parameter that is 0 or 1.
pub(super) fn flag(x: bool) -> Arg {
    Arg::Int(x.into())
}

impl Cuda {
    /// A pointer to what the kernel reads.
    pub(super) fn read(&self, x: &Tensor) -> Arg {
        Arg::Address(x.address(self.place()))
    }

    /// A pointer to what the kernel writes.
    pub(super) fn write(&self, x: &mut Tensor) -> Arg {
        Arg::Address(x.address_to_write(self.place()))
    }

    /// Launches `grid` blocks with so many bytes of dynamic shared memory; an empty grid does nothing. The host does
    /// not wait.
    pub(super) fn launch(&self, name: &'static str, grid: [usize; 3], shared: usize, args: &[Arg]) {
        if grid.contains(&0) {
            return;
        }
        self.bind();
        let kernel = self.kernel(name, shared);
        let [x, y, z] = grid.map(|blocks| blocks as u32);
        assert!(
            grid[0] < 1 << 31 && grid[1] < 1 << 16 && grid[2] < 1 << 16,
            "cuda: `{name}` has no grid of {grid:?} blocks"
        );
        self.enqueue(name, kernel, [x, y, z], shared as u32, args);
    }

    /// Launches enough blocks of 256 threads for `count` elements, in a loop over elements where there are many.
    pub(super) fn each(&self, name: &'static str, count: usize, args: &[Arg]) {
        let most = 32 * self.found().multiprocessors as usize;
        self.launch(name, [count.div_ceil(256).min(most), 1, 1], 0, args);
    }

    /// The same for a kernel that goes by `EACH_ROW` and `EACH_COLUMN` of `../../cu/math.cuh`.
    pub(super) fn each_row(&self, name: &'static str, [rows, cols]: [usize; 2], args: &[Arg]) {
        let (most, row_threads) = (32 * self.found().multiprocessors as usize, cols.clamp(1, 256).next_power_of_two());
        self.launch(name, [rows.div_ceil(256 / row_threads).min(most), 1, 1], 0, args);
    }

    /// The same for a kernel that goes by `EACH_TOKEN` of `../../cu/rows.cu`.
    pub(super) fn each_token(&self, name: &'static str, tokens: usize, args: &[Arg]) {
        let most = 32 * self.found().multiprocessors as usize;
        self.launch(name, [tokens.div_ceil(8).min(most), 1, 1], 0, args);
    }
}
