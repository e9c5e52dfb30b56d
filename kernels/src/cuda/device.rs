//! A GPU as a device: its context, its stream, its memory, and the kernels loaded so far.

use super::compiler::{architecture, machine_code};
use super::cublaslt::CublasLt;
use super::error::{DeviceError, expect, name_of};
use super::graphs::Graphs;
use super::landing::Landings;
use super::memory::Arena;
use super::operations::running;
use super::sources::SOURCES;
use super::uploads::Uploads;
use crate::dtype::DType;
use crate::place::Device;
use crate::tensor::{Shape, Tensor};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The oldest driver whose CUDA the kernels are compiled for: 12.3 knows everything that they use of sm_90a.
const OLDEST_DRIVER: i32 = 12_030;

/// What there is to run on.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    pub number: u32,
    pub name: String,
    /// Compute capability.
    pub major: i32,
    pub minor: i32,
    /// Bytes of memory.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// The CUDA that its driver speaks: 13000 is 13.0.
    pub driver: i32,
}

impl Found {
    /// Bytes of shared memory that a block may have (CUDA C++ Programming Guide, compute capabilities).
    pub(super) fn shared_memory(&self) -> usize {
        match (self.major, self.minor) {
            (8, 0 | 7) => 163 << 10,
            (9..=11, _) => 227 << 10,
            _ => 99 << 10,
        }
    }

    /// Whether it is Hopper, whose tensor cores have kernels of their own.
    pub(super) fn is_sm90(&self) -> bool {
        (self.major, self.minor) == (9, 0)
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { number, name, major, minor, memory, driver, .. } = self;
        let (gib, driver) = (*memory as f64 / (1u64 << 30) as f64, (driver / 1000, driver % 1000 / 10));
        write!(
            f,
            "cuda:{number}, {name}, compute capability {major}.{minor}, {gib:.1} GiB, driver for CUDA {}.{}",
            driver.0, driver.1
        )
    }
}

/// The GPUs of this machine that smelt can use. An error says why there is none.
pub fn find() -> Result<Vec<Found>, DeviceError> {
    // SAFETY: opening the driver only registers it; nothing is called without it.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::new(
            "this machine has no NVIDIA driver: libcuda.so.1 is not found",
            "install the driver, or use `device: cpu`",
        ));
    }
    let none = |name: &str| {
        let found = format!("the NVIDIA driver finds no GPU: {name}");
        DeviceError::new(found, "see what `nvidia-smi` says, or use `device: cpu`")
    };
    result::init().map_err(|error| none(&name_of(error)))?;
    let mut driver = 0;
    // SAFETY: writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().map_err(|error| none(&name_of(error)))?;
    if driver < OLDEST_DRIVER {
        return Err(DeviceError::new(
            format!("the NVIDIA driver speaks CUDA {}.{}; smelt needs 12.3", driver / 1000, driver % 1000 / 10),
            "update the driver to 545 or newer, or use `device: cpu`",
        ));
    }
    let count = result::device::get_count().map_err(|error| none(&name_of(error)))?;
    if count == 0 {
        return Err(none("it counts 0"));
    }
    let describe = |number: i32| -> Result<Found, result::DriverError> {
        let device = result::device::get(number)?;
        // SAFETY: the device was just got.
        let attribute = |which| unsafe { result::device::get_attribute(device, which) };
        use sys::CUdevice_attribute as Attribute;
        Ok(Found {
            number: number as u32,
            name: result::device::get_name(device)?,
            major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            // SAFETY: as above.
            memory: unsafe { result::device::total_mem(device) }? as u64,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            driver,
        })
    };
    (0..count).map(describe).collect::<Result<_, _>>().map_err(|error| none(&name_of(error)))
}

/// Dynamic shared memory that a kernel may use without being allowed to: 48 KiB, less what kernels that use both have
/// of static shared memory.
const GRANTED: usize = 44 << 10;

/// A kernel that is ready to be launched.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kernel {
    pub function: sys::CUfunction,
    /// Of a block.
    pub threads: u32,
    /// Dynamic shared memory that was allowed so far.
    pub shared: usize,
}

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Kernel {}

/// Page-locked memory of the host: the driver copies to other memory in two steps and waits in each.
#[derive(Debug)]
struct Locked(*mut u8);

// SAFETY: it is behind a lock.
unsafe impl Send for Locked {}

/// Bytes of page-locked memory: what a step tells the host is far less.
const LOCKED: usize = 1 << 20;

/// What may have gone wrong beside the device's own operations: a communicator.
pub(crate) trait Watched: Send + Sync {
    /// Whether what the device computed so far can be trusted.
    fn look(&self) -> Result<(), DeviceError>;
}

/// The operations on one GPU.
pub struct Cuda {
    found: Found,
    pub(super) handle: sys::CUdevice,
    context: sys::CUcontext,
    pub(super) stream: sys::CUstream,
    graphs: Mutex<Graphs>,
    arena: Arc<Arena>,
    uploads: Mutex<Uploads>,
    pub(super) landings: Mutex<Option<Arc<Landings>>>,
    kernels: Mutex<HashMap<&'static str, Kernel>>,
    locked: Mutex<Locked>,
    watched: Mutex<Vec<Weak<dyn Watched>>>,
    is_low: bool,
    is_poisoned: bool,
    pub(super) cublaslt: Option<CublasLt>,
}

// SAFETY: the driver's handles may be used from any thread whose current context is the device's, which `bind` sees to.
unsafe impl Send for Cuda {}
// SAFETY: as above; what changes is behind a lock.
unsafe impl Sync for Cuda {}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Cuda").field("found", &self.found).finish_non_exhaustive()
    }
}

impl Cuda {
    /// The GPU with this number.
    pub fn new(number: u32) -> Result<Self, DeviceError> {
        let all = find()?;
        let count = all.len();
        let found = all.into_iter().nth(number as usize).ok_or_else(|| {
            let known = if count == 1 { "cuda:0".into() } else { format!("one of cuda:0 to cuda:{}", count - 1) };
            let hint = format!("use {known}, or `device: auto`");
            DeviceError::new(format!("there is no GPU cuda:{number}: this machine has {count}"), hint)
        })?;
        if found.major < 8 {
            return Err(DeviceError::new(
                format!("{found} is too old: the kernels need compute capability 8.0"),
                "use `device: cpu`",
            ));
        }
        let failed = |what: &'static str| move |error| DeviceError::of_driver(what, error);
        let handle = result::device::get(number as i32).map_err(failed("open the device"))?;
        // SAFETY: the device was just got; the context is released when this is dropped.
        let context = unsafe { result::primary_ctx::retain(handle) }.map_err(failed("make a context"))?;
        // SAFETY: the context was just made.
        unsafe { result::ctx::set_current(context) }.map_err(failed("use its context"))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        let stream = stream.map_err(failed("make a stream"))?;
        // SAFETY: freed when this is dropped.
        let locked = unsafe { result::malloc_host(LOCKED, 0) }.map_err(failed("lock memory of the host"))?;
        let locked = Mutex::new(Locked(locked.cast()));
        let uploads = Mutex::new(Uploads::new().map_err(failed("prepare copies to it"))?);
        Ok(Self {
            found,
            handle,
            context,
            stream,
            graphs: Mutex::new(Graphs::new()),
            arena: Arc::default(),
            uploads,
            landings: Mutex::default(),
            kernels: Mutex::default(),
            locked,
            watched: Mutex::default(),
            is_low: false,
            is_poisoned: false,
            cublaslt: None,
        })
    }

    /// Also attention and the output projection multiply in bf16, where the tensor cores have kernels for them: for
    /// trainings whose other products are in bf16 or FP8. (DeepSeek-V3 keeps these two in bf16 beside FP8, §3.3.1.)
    #[must_use]
    pub fn in_low_precision(mut self) -> Self {
        self.is_low = true;
        self
    }

    /// Launches kernels one by one, also where the same ones come again.
    #[must_use]
    pub fn without_graphs(mut self) -> Self {
        self.graphs.get_mut().unwrap_or_else(PoisonError::into_inner).close();
        self
    }

    /// New tensors hold NaN in every format until an operation writes them: for checks.
    #[must_use]
    pub fn poisoned(mut self) -> Self {
        self.is_poisoned = true;
        self
    }

    pub(super) fn is_low(&self) -> bool {
        self.is_low
    }

    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The most bytes that tensors took at once since the last call.
    pub fn take_peak(&self) -> usize {
        self.arena.take_peak()
    }

    /// Waits until everything that was asked for is computed. Ends the operation when a communication failed: then the
    /// device goes on without it, and what it computed is not to be used.
    pub fn wait(&self) {
        self.bind();
        // SAFETY: the stream is this device's.
        expect("compute", unsafe { result::stream::synchronize(self.stream()) });
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|one| one.strong_count() > 0);
        let all: Vec<_> = watched.iter().filter_map(Weak::upgrade).collect();
        drop(watched);
        for one in all {
            one.look().unwrap_or_else(|error| error.raise());
        }
    }

    /// Looks at `one` whenever the host waits, as long as it lives.
    pub(crate) fn watch(&self, one: Weak<dyn Watched>) {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).push(one);
    }

    /// Waits until everything that was asked for is computed, and copies from the device.
    pub(super) fn copy_to_host(&self, from: u64, to: &mut [u8]) {
        self.bind();
        if to.len() > LOCKED {
            // SAFETY: the memory is as long as the tensor and lives until the stream has written it.
            expect("copy to the host", unsafe { result::memcpy_dtoh_async(to, from, self.stream()) });
            return self.wait();
        }
        if to.is_empty() {
            return self.wait();
        }
        let locked = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: nobody else has the locked memory, which is longer, until the lock is released.
        let between = unsafe { std::slice::from_raw_parts_mut(locked.0, to.len()) };
        // SAFETY: as above; the wait is below.
        expect("copy to the host", unsafe { result::memcpy_dtoh_async(between, from, self.stream()) });
        self.wait();
        to.copy_from_slice(between);
    }

    /// The stream, for what is no launch: all launches asked for so far are in it.
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.submit();
        self.stream
    }

    pub(super) fn graphs(&self) -> &Mutex<Graphs> {
        &self.graphs
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    pub(super) fn uploads(&self) -> &Mutex<Uploads> {
        &self.uploads
    }

    pub(crate) fn place(&self) -> Device {
        Device::Cuda(self.found.number)
    }

    /// Makes the device's context that of this thread.
    pub(crate) fn bind(&self) {
        expect("use its context", self.try_bind());
    }

    pub(super) fn try_bind(&self) -> Result<(), result::DriverError> {
        // SAFETY: the context lives as long as this.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// Unspecified contents.
    pub(crate) fn make(&self, shape: impl Into<Shape>, dtype: DType) -> Tensor {
        let shape = shape.into();
        self.bind();
        let what = || format!("{dtype:?} {:?} of `{}`", shape.dims(), running());
        let bytes = shape.len() * dtype.bytes();
        let memory = self.arena.take(bytes, what, || self.submit());
        if self.is_poisoned && bytes > 0 {
            // SAFETY: the memory is as long, and operations that used it before are in the same stream.
            let filled = unsafe { result::memset_d8_async(memory.address(), 0xff, bytes, self.stream()) };
            expect("fill memory", filled);
        }
        Tensor::of_device(self.place(), memory, shape, dtype)
    }

    pub(super) fn like(&self, x: &Tensor) -> Tensor {
        self.make(x.shape(), x.dtype())
    }

    /// The kernel, loaded when it is first used, and allowed to use so much dynamic shared memory.
    pub(super) fn kernel(&self, name: &'static str, shared: usize) -> Kernel {
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if !kernels.contains_key(name) {
            self.load(name, &mut kernels);
        }
        let kernel = kernels.get_mut(name).expect("its file was just loaded");
        if shared > kernel.shared {
            use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as SIZE;
            // SAFETY: the function belongs to a module that is never unloaded.
            let allowed = unsafe { result::function::set_function_attribute(kernel.function, SIZE, shared as i32) };
            expect(&format!("give `{name}` {shared} bytes of shared memory"), allowed);
            kernel.shared = shared;
        }
        *kernel
    }

    /// Loads all kernels of the file that has this one.
    fn load(&self, name: &'static str, kernels: &mut HashMap<&'static str, Kernel>) {
        let source = SOURCES.iter().find(|source| source.kernels().any(|(kernel, _)| kernel == name));
        let source = source.unwrap_or_else(|| panic!("cuda: there is no kernel `{name}`"));
        let architecture = architecture(self.found.major, self.found.minor);
        let code = machine_code(source, &architecture).unwrap_or_else(|error| error.raise());
        // SAFETY: machine code carries its own length; the driver copies it. Modules are never unloaded.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) };
        let module = expect(&format!("load the kernels `{}`", source.name), module);
        for (kernel, threads) in source.kernels() {
            let symbol = CString::new(kernel).expect("names hold no zero bytes");
            // SAFETY: the module was just loaded.
            let function = unsafe { result::module::get_function(module, symbol) };
            let function = expect(&format!("find the kernel `{kernel}`"), function);
            kernels.insert(kernel, Kernel { function, threads, shared: GRANTED });
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // SAFETY: nothing uses the stream any more. Tensors that are still alive keep their memory until the context
        // goes with the process. Errors are those of a device that is already gone.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::stream::synchronize(self.stream);
            self.cublaslt = None;
            self.graphs.get_mut().unwrap_or_else(PoisonError::into_inner).close();
            self.uploads.get_mut().unwrap_or_else(PoisonError::into_inner).close();
            self.arena.release();
            let locked = self.locked.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = result::free_host(locked.0.cast());
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.handle);
        }
    }
}
