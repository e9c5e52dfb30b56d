//! Launches go to the driver in batches, and a batch that comes again is a CUDA graph.
//!
//! A step of training or of generation asks for the same kernels again and again. A launch costs the host some
//! microseconds; a graph of 256 of them costs as much as a few, and the device goes from one to the next without
//! asking. What a batch is does not depend on what the kernels read: where the same kernels come in the same order, the
//! graph of the last time is launched, with the grids and parameters that changed (tensors at other addresses, other
//! numbers of rows). The first time, and where no order comes twice, kernels are launched one by one.

use super::device::{Cuda, Kernel};
use super::error::DeviceError;
use super::launch::Arg;
use cudarc::driver::{DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::PoisonError;
use std::{env, fmt};

/// Launches of a batch: the device begins when the host has asked for so many.
const MOST: usize = 256;
/// A shorter batch is not worth a graph.
const LEAST: usize = 8;
/// Orders of kernels that are remembered.
const REMEMBERED: usize = 256;

/// One launch, with its arguments among those of its batch.
#[derive(Clone, Debug)]
struct Launch {
    name: &'static str,
    kernel: Kernel,
    grid: [u32; 3],
    shared: u32,
    args: Range<usize>,
}

/// Launches in their order.
#[derive(Clone, Debug, Default)]
struct Batch {
    launches: Vec<Launch>,
    args: Vec<Arg>,
}

impl Batch {
    /// What makes it the same graph: its kernels.
    fn kernels(&self) -> impl Iterator<Item = (&'static str, u32)> {
        self.launches.iter().map(|launch| (launch.name, launch.shared))
    }

    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.kernels().for_each(|kernel| kernel.hash(&mut hasher));
        hasher.finish()
    }

    fn args_of(&self, launch: &Launch) -> &[Arg] {
        &self.args[launch.args.clone()]
    }

    fn pointers(&self, launch: &Launch) -> Vec<*mut c_void> {
        self.args_of(launch).iter().map(Arg::pointer).collect()
    }

    /// As a node of a graph; `pointers` are its arguments'.
    fn node(launch: &Launch, pointers: &mut [*mut c_void]) -> sys::CUDA_KERNEL_NODE_PARAMS {
        let [x, y, z] = launch.grid;
        sys::CUDA_KERNEL_NODE_PARAMS {
            func: launch.kernel.function,
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.kernel.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            kernelParams: pointers.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        }
    }
}

/// A batch that came twice.
#[derive(Debug)]
struct Graph {
    /// As it was launched last.
    batch: Batch,
    nodes: Vec<sys::CUgraphNode>,
    graph: sys::CUgraph,
    ready: sys::CUgraphExec,
}

// SAFETY: handles of the driver; they are behind a lock.
unsafe impl Send for Graph {}

impl Graph {
    fn new(batch: &Batch) -> Result<Self, DriverError> {
        let mut of =
            Self { batch: batch.clone(), nodes: Vec::new(), graph: std::ptr::null_mut(), ready: std::ptr::null_mut() };
        // SAFETY: each call writes one handle, and copies the arguments before it returns.
        unsafe {
            sys::cuGraphCreate(&raw mut of.graph, 0).result()?;
            for launch in &batch.launches {
                let (mut node, mut pointers) = (std::ptr::null_mut(), batch.pointers(launch));
                let after = of.nodes.last().map_or(std::ptr::null(), std::ptr::from_ref);
                let params = Batch::node(launch, &mut pointers);
                let count = usize::from(!after.is_null());
                sys::cuGraphAddKernelNode_v2(&raw mut node, of.graph, after, count, &raw const params).result()?;
                of.nodes.push(node);
            }
            sys::cuGraphInstantiateWithFlags(&raw mut of.ready, of.graph, 0).result()?;
        }
        Ok(of)
    }

    /// Gives the graph the grids and arguments of a batch of the same kernels.
    fn update(&mut self, batch: &Batch) -> Result<(), DriverError> {
        for ((launch, old), &node) in batch.launches.iter().zip(&self.batch.launches).zip(&self.nodes) {
            let is_same = launch.grid == old.grid && batch.args_of(launch) == self.batch.args_of(old);
            if !is_same {
                let mut pointers = batch.pointers(launch);
                let params = Batch::node(launch, &mut pointers);
                // SAFETY: the node is the graph's; the arguments are copied before the call returns, and graphs that
                // are on their way keep theirs.
                unsafe { sys::cuGraphExecKernelNodeSetParams_v2(self.ready, node, &raw const params).result()? };
            }
        }
        self.batch.clone_from(batch);
        Ok(())
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the driver keeps what is on its way. Errors are those of a device that is already gone.
        unsafe {
            if !self.ready.is_null() {
                let _ = sys::cuGraphExecDestroy(self.ready).result();
            }
            if !self.graph.is_null() {
                let _ = sys::cuGraphDestroy(self.graph).result();
            }
        }
    }
}

/// The launches that the driver does not know yet, and the batches that came before.
#[derive(Default)]
pub(super) struct Graphs {
    pending: Batch,
    /// By their keys; None for those that came once.
    known: HashMap<u64, Option<Graph>>,
    /// Nothing is held back: `SMELT_GRAPHS=0`, or a driver that refused a graph.
    is_off: bool,
}

impl fmt::Debug for Graphs {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Graphs").field("known", &self.known.len()).field("is_off", &self.is_off).finish_non_exhaustive()
    }
}

impl Graphs {
    pub(super) fn new() -> Self {
        Self { is_off: env::var_os("SMELT_GRAPHS").is_some_and(|value| value == "0"), ..Self::default() }
    }

    /// Launches the batch as a graph. False when it is none: it comes for the first time, is short, or the driver
    /// refuses it.
    fn launch(&mut self, batch: &Batch, stream: sys::CUstream) -> bool {
        if self.is_off || batch.launches.len() < LEAST {
            return false;
        }
        let key = batch.key();
        if !self.known.contains_key(&key) && self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        let Some(known) = self.known.get_mut(&key) else {
            self.known.insert(key, None);
            return false;
        };
        let made = match known {
            Some(graph) if graph.batch.kernels().ne(batch.kernels()) => return false, // of the same key by chance
            Some(graph) => graph.update(batch).map(|()| &*graph),
            None => Graph::new(batch).map(|graph| &*known.insert(graph)),
        };
        // SAFETY: the graph is whole, and its arguments are the batch's.
        let launched = made.and_then(|graph| unsafe { sys::cuGraphLaunch(graph.ready, stream).result() });
        if launched.is_err() {
            // launched one by one, the kernels show what is wrong, if it is not the graph
            self.known.clear();
            self.is_off = true;
        }
        launched.is_ok()
    }

    /// Nothing is launched any more, and no graph is left.
    pub(super) fn close(&mut self) {
        *self = Self { is_off: true, ..Self::default() };
    }
}

impl Cuda {
    /// Asks for a launch, behind those asked for before.
    pub(super) fn enqueue(&self, name: &'static str, kernel: Kernel, grid: [u32; 3], shared: u32, args: &[Arg]) {
        let is_full = {
            let mut graphs = self.graphs().lock().unwrap_or_else(PoisonError::into_inner);
            let Graphs { pending: Batch { launches, args: all }, is_off, .. } = &mut *graphs;
            let start = all.len();
            all.extend_from_slice(args);
            launches.push(Launch { name, kernel, grid, shared, args: start..all.len() });
            *is_off || launches.len() >= MOST
        };
        if is_full {
            self.submit();
        }
    }

    /// Hands to the driver what was asked for so far. Whoever puts something else into the stream does this before.
    pub(super) fn submit(&self) {
        let mut graphs = self.graphs().lock().unwrap_or_else(PoisonError::into_inner);
        let batch = std::mem::take(&mut graphs.pending);
        if !batch.launches.is_empty() && !graphs.launch(&batch, self.stream) {
            for launch in &batch.launches {
                self.launch_now(launch, &batch);
            }
        }
        // still locked: what another thread asks for and gives back now is not in the stream
        self.arena().record_unused(self.stream);
    }

    fn launch_now(&self, launch: &Launch, batch: &Batch) {
        let (Launch { name, kernel, grid: [x, y, z], shared, .. }, mut pointers) = (launch, batch.pointers(launch));
        // SAFETY: the arguments have the types of the kernel's parameters, and the driver copies them before it
        // returns; the tensors behind the addresses are given back to the arena in the order of this stream.
        let launched = unsafe {
            let threads = (kernel.threads, 1, 1);
            result::launch_kernel(kernel.function, (*x, *y, *z), threads, *shared, self.stream, &mut pointers)
        };
        if let Err(error) = launched {
            DeviceError::of_driver(&format!("run the kernel `{name}`"), error).raise();
        }
    }
}
