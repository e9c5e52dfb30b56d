//! Dense products in bf16 by NVIDIA's cuBLASLt, where a config asks for it.
//!
//! Its algorithm, and with it the order of a sum, changes with the number of rows. The kernels of our own, in
//! [`tensor_cores`](super::tensor_cores), give a row the same bits in any company.

use super::device::Cuda;
use super::error::DeviceError;
use crate::dtype::DType;
use crate::library::{self, library};
use crate::tensor::Tensor;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

/// `cublasStatus_t`
type Status = c_int;
const SUCCESS: Status = 0;

/// `cublasLtHandle_t` and the descriptors.
type Handle = *mut c_void;

/// `cublasLtMatmulAlgo_t`
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Choice {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

// of cublasLt.h and library_types.h
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
const COMPUTE_32F: c_int = 68;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
static OP_T: c_int = 1;

/// What NVIDIA recommends for Hopper.
static WORKSPACE: usize = 32 << 20;

library! {
    get_version: "cublasLtGetVersion" () -> usize;
    create: "cublasLtCreate" (*mut Handle) -> Status;
    destroy: "cublasLtDestroy" (Handle) -> Status;
    desc_create: "cublasLtMatmulDescCreate" (*mut Handle, c_int, c_int) -> Status;
    desc_set: "cublasLtMatmulDescSetAttribute" (Handle, c_int, *const c_void, usize) -> Status;
    desc_destroy: "cublasLtMatmulDescDestroy" (Handle) -> Status;
    layout_create: "cublasLtMatrixLayoutCreate" (*mut Handle, c_int, u64, u64, i64) -> Status;
    layout_destroy: "cublasLtMatrixLayoutDestroy" (Handle) -> Status;
    preference_create: "cublasLtMatmulPreferenceCreate" (*mut Handle) -> Status;
    preference_set: "cublasLtMatmulPreferenceSetAttribute" (Handle, c_int, *const c_void, usize) -> Status;
    preference_destroy: "cublasLtMatmulPreferenceDestroy" (Handle) -> Status;
    choose: "cublasLtMatmulAlgoGetHeuristic"
        (Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Choice, *mut c_int) -> Status;
    multiply: "cublasLtMatmul"
        (Handle, Handle, *const c_void, *const c_void, Handle, *const c_void, Handle, *const c_void, *const c_void,
         Handle, *mut c_void, Handle, *const Algorithm, *mut c_void, usize, *mut c_void) -> Status;
}

/// The file that `SMELT_CUBLASLT` names, or the first that the system finds.
fn open() -> Result<&'static Library, DeviceError> {
    static LIBRARY: OnceLock<Result<Library, DeviceError>> = OnceLock::new();
    let load = || {
        let names = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
        let (open, name) = library::open("cuBLASLt", "SMELT_CUBLASLT", &names, "`pip install nvidia-cublas`")?;
        Library::functions(open, name).map_err(|error| {
            let hint =
                "set SMELT_CUBLASLT to the file `libcublasLt.so.13` of CUDA 13 or `libcublasLt.so.12` of CUDA 12";
            library::failed("cuBLASLt", Some(error), hint)
        })
    };
    LIBRARY.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// One matrix of a product as the library sees it: by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Matrix {
    rows: usize,
    cols: usize,
    /// Elements from one column to the next.
    pitch: usize,
    is_transposed: bool,
}

/// `c = a·b`, or `c += a·b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Plan {
    a: Matrix,
    b: Matrix,
    c: Matrix,
    adds: bool,
}

/// A plan's descriptors, and the algorithm that the library chose for it.
struct Ready {
    product: Handle,
    layouts: [Handle; 3],
    choice: Choice,
}

/// The library on one device.
pub(super) struct CublasLt {
    library: &'static Library,
    handle: Handle,
    ready: Mutex<HashMap<Plan, Ready>>,
}

// SAFETY: the handle may be used from any thread; descriptors are behind a lock.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl fmt::Debug for CublasLt {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("CublasLt").field("library", &self.library.name).finish_non_exhaustive()
    }
}

fn expect(what: &str, status: Status) {
    if status != SUCCESS {
        let hint = "leave out `library: cublaslt`: smelt has kernels of its own for these products";
        DeviceError::new(format!("cuBLASLt failed to {what}: status {status}"), hint).raise();
    }
}

impl CublasLt {
    /// For the device whose context is current.
    fn new() -> Result<Self, DeviceError> {
        let (library, mut handle) = (open()?, std::ptr::null_mut());
        // SAFETY: writes one handle.
        let status = unsafe { (library.create)(&raw mut handle) };
        if status != SUCCESS {
            let hint = "leave out `library: cublaslt`, or install a version that fits the driver";
            return Err(DeviceError::new(
                format!("cuBLASLt ({}) does not start: status {status}", library.name.display()),
                hint,
            ));
        }
        Ok(Self { library, handle, ready: Mutex::default() })
    }

    fn prepare(&self, plan: &Plan) -> Ready {
        let (Library { desc_create, desc_set, layout_create, choose, .. }, mut product) =
            (self.library, std::ptr::null_mut());
        let layout = |of: Matrix, kind: c_int| {
            let mut layout = std::ptr::null_mut();
            // SAFETY: writes one handle.
            let made = unsafe { layout_create(&raw mut layout, kind, of.rows as u64, of.cols as u64, of.pitch as i64) };
            expect("describe a matrix", made);
            layout
        };
        let layouts = [layout(plan.a, R_16BF), layout(plan.b, R_16BF), layout(plan.c, R_32F)];
        let [a, b, c] = layouts;
        // SAFETY: each attribute is one `int` or `size_t`, as the library wants it; the handles were just made.
        unsafe {
            expect("describe a product", desc_create(&raw mut product, COMPUTE_32F, R_32F));
            for (which, _) in [(DESC_TRANSA, plan.a), (DESC_TRANSB, plan.b)].iter().filter(|(_, of)| of.is_transposed) {
                expect("describe a product", desc_set(product, *which, (&raw const OP_T).cast(), size_of::<c_int>()));
            }
            let (mut preference, mut choice, mut found) = (std::ptr::null_mut(), Choice::default(), 0);
            expect("describe a preference", (self.library.preference_create)(&raw mut preference));
            let most = (&raw const WORKSPACE).cast();
            let set = (self.library.preference_set)(preference, PREF_MAX_WORKSPACE_BYTES, most, size_of::<usize>());
            expect("limit its memory", set);
            let handle = self.handle;
            let chosen = choose(handle, product, a, b, c, c, preference, 1, &raw mut choice, &raw mut found);
            (self.library.preference_destroy)(preference);
            expect(&format!("find an algorithm for {plan:?}"), if found == 0 { choice.state.max(1) } else { chosen });
            Ready { product, layouts, choice }
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        let Library { desc_destroy, layout_destroy, destroy, .. } = self.library;
        // SAFETY: nobody uses the handles any more.
        unsafe {
            for ready in self.ready.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
                desc_destroy(ready.product);
                for layout in ready.layouts {
                    layout_destroy(layout);
                }
            }
            destroy(self.handle);
        }
    }
}

impl Cuda {
    /// Dense products in bf16 are cuBLASLt's: their sums have another order with other numbers of rows.
    pub fn with_cublaslt(mut self) -> Result<Self, DeviceError> {
        self.bind();
        self.cublaslt = Some(CublasLt::new()?);
        Ok(self)
    }

    /// Of the library that [`with_cublaslt`](Self::with_cublaslt) opens: version and file.
    pub fn cublaslt() -> Result<String, DeviceError> {
        // SAFETY: returns a number: 130100 is 13.1.0.
        open().map(|library| format!("cuBLASLt {}, {}", unsafe { (library.get_version)() }, library.name.display()))
    }

    /// `c = a·wᵀ`, a bf16 `[m, pitch]`, w `[n, pitch]`, of which the first k columns count; or `c += …`. False
    /// when the library is not asked for, or has no such product.
    pub(super) fn by_cublaslt_nt(
        &self,
        [a, w]: [&Tensor; 2],
        c: &mut Tensor,
        [m, n, k]: [usize; 3],
        adds: bool,
    ) -> bool {
        let a_side = Matrix { rows: k, cols: n, pitch: w.cols(), is_transposed: true };
        let b_side = Matrix { rows: k, cols: m, pitch: a.cols(), is_transposed: false };
        self.by_cublaslt([(w, a_side), (a, b_side)], c, [m, n, k], adds)
    }

    /// `c = a·w`, a bf16 `[m, pitch]`, w `[k, pitch]`.
    pub(super) fn by_cublaslt_nn(
        &self,
        [a, w]: [&Tensor; 2],
        c: &mut Tensor,
        [m, n, k]: [usize; 3],
        adds: bool,
    ) -> bool {
        let a_side = Matrix { rows: n, cols: k, pitch: w.cols(), is_transposed: false };
        let b_side = Matrix { rows: k, cols: m, pitch: a.cols(), is_transposed: false };
        self.by_cublaslt([(w, a_side), (a, b_side)], c, [m, n, k], adds)
    }

    /// `c = aᵀ·b`, a bf16 `[k, pitch]` of m columns, b of n.
    pub(super) fn by_cublaslt_tn(
        &self,
        [a, b]: [&Tensor; 2],
        c: &mut Tensor,
        [m, n, k]: [usize; 3],
        adds: bool,
    ) -> bool {
        let a_side = Matrix { rows: n, cols: k, pitch: b.cols(), is_transposed: false };
        let b_side = Matrix { rows: m, cols: k, pitch: a.cols(), is_transposed: true };
        self.by_cublaslt([(b, a_side), (a, b_side)], c, [m, n, k], adds)
    }

    /// By columns, `cᵀ [n, m] = a·b`.
    fn by_cublaslt(&self, [a, b]: [(&Tensor, Matrix); 2], c: &mut Tensor, [m, n, k]: [usize; 3], adds: bool) -> bool {
        let Some(CublasLt { library, handle, ready, .. }) = &self.cublaslt else { return false };
        if [m, n, k].contains(&0) {
            return false;
        }
        self.bind();
        let of_c = Matrix { rows: n, cols: m, pitch: n, is_transposed: false };
        let plan = Plan { a: a.1, b: b.1, c: of_c, adds };
        let mut ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
        let of_library = self.cublaslt.as_ref().expect("as above");
        let Ready { product, layouts, choice } = ready.entry(plan).or_insert_with(|| of_library.prepare(&plan));
        let mut workspace = self.make([choice.workspace.max(1)], DType::E4m3);
        let (one, beta) = (1f32, if adds { 1f32 } else { 0f32 });
        let address = |x: &Tensor| x.address(self.place()) as *const c_void;
        let to = c.address_to_write(self.place()) as *mut c_void;
        let [a_layout, b_layout, c_layout] = *layouts;
        // SAFETY: the layouts describe the tensors; alpha and beta are read before the call returns; the workspace is
        // given back in the order of the stream.
        let status = unsafe {
            (library.multiply)(
                *handle,
                *product,
                (&raw const one).cast(),
                address(a.0),
                a_layout,
                address(b.0),
                b_layout,
                (&raw const beta).cast(),
                to,
                c_layout,
                to,
                c_layout,
                &raw const choice.algorithm,
                workspace.address_to_write(self.place()) as *mut c_void,
                choice.workspace,
                self.stream().cast(),
            )
        };
        expect("multiply", status);
        true
    }
}
