//! NCCL, opened at run time: its functions, and the numbers of its header that smelt uses.

use super::Reduce;
use crate::cuda::DeviceError;
use crate::dtype::DType;
use crate::library::{self, library};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

/// 2.19 is the first that is built for CUDA 12.3, which the driver has to speak anyway. Older ones have the functions
/// too; nobody has to test them.
const OLDEST: c_int = 21_900;

/// `ncclResult_t`
pub(super) type Code = c_int;
pub(super) const SUCCESS: Code = 0;
/// Of a communicator whose calls return before they are done.
pub(super) const IN_PROGRESS: Code = 7;

/// `ncclComm_t`, `cudaStream_t`
pub(super) type Handle = *mut c_void;

/// `ncclUniqueId`, which is passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Id(pub [u8; 128]);

/// `ncclDataType_t`. E4M3 travels as bytes: every version and every GPU moves them, whereas the type of its own came
/// with 2.24.
pub(super) fn type_of(dtype: DType) -> c_int {
    match dtype {
        DType::E4m3 => 1,
        DType::U32 => 3,
        DType::F32 => 7,
        DType::F64 => 8,
        DType::Bf16 => 9,
    }
}

/// `ncclRedOp_t`
pub(super) fn operation_of(reduce: Reduce) -> c_int {
    match reduce {
        Reduce::Sum => 0,
        Reduce::Max => 2,
        Reduce::Mean => 4,
    }
}

library! {
    get_version: "ncclGetVersion" (*mut c_int) -> Code;
    get_unique_id: "ncclGetUniqueId" (*mut Id) -> Code;
    init_rank: "ncclCommInitRank" (*mut Handle, c_int, Id, c_int) -> Code;
    destroy: "ncclCommDestroy" (Handle) -> Code;
    abort: "ncclCommAbort" (Handle) -> Code;
    async_error: "ncclCommGetAsyncError" (Handle, *mut Code) -> Code;
    error_string: "ncclGetErrorString" (Code) -> *const c_char;
    last_error: "ncclGetLastError" (Handle) -> *const c_char;
    group_start: "ncclGroupStart" () -> Code;
    group_end: "ncclGroupEnd" () -> Code;
    send: "ncclSend" (*const c_void, usize, c_int, c_int, Handle, Handle) -> Code;
    receive: "ncclRecv" (*mut c_void, usize, c_int, c_int, Handle, Handle) -> Code;
    all_reduce: "ncclAllReduce" (*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> Code;
    all_gather: "ncclAllGather" (*const c_void, *mut c_void, usize, c_int, Handle, Handle) -> Code;
    reduce_scatter: "ncclReduceScatter" (*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> Code;
}

/// The library of this process, and its version (22703 is 2.27.3): the file that `SMELT_NCCL` names, or the first that
/// the system finds.
pub(super) fn open() -> Result<&'static (Library, c_int), DeviceError> {
    static LIBRARY: OnceLock<Result<(Library, c_int), DeviceError>> = OnceLock::new();
    LIBRARY.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<(Library, c_int), DeviceError> {
    let install = "`pip install nvidia-nccl-cu12`";
    let (open, name) = library::open("NCCL", "SMELT_NCCL", &["libnccl.so.2", "libnccl.so"], install)?;
    let library = Library::functions(open, name).map_err(|error| {
        library::failed("NCCL", Some(error), "update it, or set SMELT_NCCL to the file `libnccl.so.2` of another one")
    })?;
    let mut version = 0;
    // SAFETY: writes one number.
    let code = unsafe { (library.get_version)(&raw mut version) };
    if code != SUCCESS || version < OLDEST {
        let (found, least) = (version_text(version), version_text(OLDEST));
        return Err(DeviceError::new(
            format!("NCCL {found} ({}) is too old: smelt needs {least}", library.name.display()),
            "update it (`pip install -U nvidia-nccl-cu12`), or set SMELT_NCCL to the file of a newer one",
        ));
    }
    Ok((library, version))
}

impl Library {
    /// What NCCL says about `code`, in its words; `communicator` may be null.
    pub(super) fn explain(&self, code: Code, communicator: Handle) -> String {
        // SAFETY: both return constant strings, or ones that live as long as the library.
        let [what, detail] = unsafe { [(self.error_string)(code), (self.last_error)(communicator)] }.map(|text| {
            // SAFETY: a string of C, or null.
            let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) });
            text.map(|text| text.to_string_lossy().trim().to_owned()).unwrap_or_default()
        });
        if detail.is_empty() { what } else { format!("{what}: {detail}") }
    }
}

/// For people: version and file.
pub(super) fn describe((library, version): &(Library, c_int)) -> String {
    format!("NCCL {}, {}", version_text(*version), library.name.display())
}

/// `NCCL_VERSION_CODE` has had two forms.
fn version_text(code: c_int) -> String {
    let unit = if code < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", code / unit, code % unit / 100, code % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_written_as_people_know_them() {
        assert_eq!([2804, 21_900, 22_703].map(version_text), ["2.8.4", "2.19.0", "2.27.3"]);
    }
}
