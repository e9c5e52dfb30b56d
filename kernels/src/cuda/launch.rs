//! Launches kernels.

use super::device::Cuda;
use super::error::DeviceError;
use super::tensor_cores::TensorMap;
use crate::tensor::Tensor;
use cudarc::driver::result;
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

impl Arg {
    fn pointer(&self) -> *mut c_void {
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
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        // SAFETY: the arguments have the types of the kernel's parameters, and the driver copies them before it
        // returns; the tensors behind the addresses are given back to the arena in the order of this stream.
        let launched = unsafe {
            result::launch_kernel(
                kernel.function,
                (x, y, z),
                (kernel.threads, 1, 1),
                shared as u32,
                self.stream(),
                &mut pointers,
            )
        };
        if let Err(error) = launched {
            DeviceError::of_driver(&format!("run the kernel `{name}`"), error).raise();
        }
    }

    /// Launches enough blocks of 256 threads for `count` elements, in a loop over elements where there are many.
    pub(super) fn each(&self, name: &'static str, count: usize, args: &[Arg]) {
        let most = 32 * self.found().multiprocessors as usize;
        self.launch(name, [count.div_ceil(256).min(most), 1, 1], 0, args);
    }
}
