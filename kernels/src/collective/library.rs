//! NCCL, opened at run time: its functions, and the numbers of its header that smelt uses.

use super::Reduce;
use crate::cuda::DeviceError;
use crate::dtype::DType;
use std::env;
use std::error::Error;
use std::ffi::{CStr, OsString, c_char, c_int, c_void};
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

macro_rules! library {
    ($($field:ident: $symbol:literal ($($type:ty),*) -> $result:ty;)*) => {
        /// Opened once and never closed: NCCL has threads of its own.
        #[derive(Debug)]
        pub(super) struct Library {
            /// As it was asked for.
            pub(super) name: OsString,
            /// 22703 is 2.27.3.
            pub(super) version: c_int,
            $(pub(super) $field: unsafe extern "C" fn($($type),*) -> $result,)*
            _open: libloading::Library,
        }

        fn functions(open: libloading::Library, name: OsString) -> Result<Library, libloading::Error> {
            // SAFETY: the types are those of `nccl.h`, the same in every version 2; pointers are used only while the
            // library is open, because it is stored beside them.
            unsafe { Ok(Library { $($field: *open.get(concat!($symbol, "\0"))?,)* name, version: 0, _open: open }) }
        }
    };
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

/// The library of this process: the file that `SMELT_NCCL` names, or the first that the system finds.
pub(super) fn open() -> Result<&'static Library, DeviceError> {
    static LIBRARY: OnceLock<Result<Library, DeviceError>> = OnceLock::new();
    LIBRARY.get_or_init(load).as_ref().map_err(Clone::clone)
}

fn load() -> Result<Library, DeviceError> {
    let named = env::var_os("SMELT_NCCL").filter(|name| !name.is_empty());
    let hint = match named {
        Some(_) => "set SMELT_NCCL to the file `libnccl.so.2` of NCCL, or unset it",
        None => "install NCCL (`pip install nvidia-nccl-cu12`) and set SMELT_NCCL to its file `libnccl.so.2`",
    };
    // whoever names a file wants that one and no other
    let names = named.map_or_else(|| vec!["libnccl.so.2".into(), "libnccl.so".into()], |name| vec![name]);
    let mut why = None;
    for name in names {
        // SAFETY: NCCL only registers itself when it is opened.
        let opened = unsafe { libloading::Library::new(&name) }.and_then(|open| functions(open, name));
        match opened {
            Ok(library) => return library.checked(),
            Err(error) => why = why.or(Some(error)), // of the name that people know
        }
    }
    // the system's own words are the cause of libloading's
    let why = why.map(|error| error.source().map_or_else(|| error.to_string(), ToString::to_string));
    let why = why.unwrap_or_default();
    Err(DeviceError::new(format!("NCCL cannot be opened: {why}"), hint))
}

impl Library {
    /// With its version, unless that is too old.
    fn checked(mut self) -> Result<Self, DeviceError> {
        // SAFETY: writes one number.
        let code = unsafe { (self.get_version)(&raw mut self.version) };
        if code != SUCCESS || self.version < OLDEST {
            let (found, least) = (version_text(self.version), version_text(OLDEST));
            return Err(DeviceError::new(
                format!("NCCL {found} ({}) is too old: smelt needs {least}", self.name.display()),
                "update it (`pip install -U nvidia-nccl-cu12`), or set SMELT_NCCL to the file of a newer one",
            ));
        }
        Ok(self)
    }

    /// For people: version and file.
    pub(super) fn describe(&self) -> String {
        format!("NCCL {}, {}", version_text(self.version), self.name.display())
    }

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
