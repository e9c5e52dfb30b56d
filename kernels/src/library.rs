//! Libraries that are opened at run time.

use crate::cuda::DeviceError;
use std::env;
use std::error::Error;
use std::ffi::OsString;

/// The file that the environment's `variable` names, or the first of `names` that the system finds, with the name by
/// which it was found. `what`: the library as people know it. `install`: what to do where there is none.
pub(crate) fn open(
    what: &str,
    variable: &str,
    names: &[&str],
    install: &str,
) -> Result<(libloading::Library, OsString), DeviceError> {
    let named = env::var_os(variable).filter(|name| !name.is_empty());
    let hint = match named {
        Some(_) => format!("set {variable} to the file `{}` of {what}, or unset it", names[0]),
        None => format!("install {what} ({install}) and set {variable} to its file `{}`", names[0]),
    };
    // whoever names a file wants that one and no other
    let names = named.map_or_else(|| names.iter().map(OsString::from).collect(), |name| vec![name]);
    let mut why = None;
    for name in names {
        // SAFETY: the libraries of NVIDIA only register themselves when they are opened.
        match unsafe { libloading::Library::new(&name) } {
            Ok(library) => return Ok((library, name)),
            Err(error) => why = why.or(Some(error)), // of the name that people know
        }
    }
    Err(failed(what, why, hint))
}

/// A library that cannot be used: `why` is the system's reason.
pub(crate) fn failed(what: &str, why: Option<libloading::Error>, hint: impl Into<String>) -> DeviceError {
    // the system's own words are the cause of libloading's
    let why = why.map(|error| error.source().map_or_else(|| error.to_string(), ToString::to_string));
    DeviceError::new(format!("{what} cannot be opened: {}", why.unwrap_or_default()), hint)
}

/// `library! { name: "symbol" (types) -> type; … }` makes a struct `Library` of functions, with the file's name.
macro_rules! library {
    ($($field:ident: $symbol:literal ($($type:ty),*) -> $result:ty;)*) => {
        /// Opened once and never closed: the library may have threads of its own.
        #[derive(Debug)]
        pub(super) struct Library {
            /// As it was asked for.
            pub(super) name: std::ffi::OsString,
            $(pub(super) $field: unsafe extern "C" fn($($type),*) -> $result,)*
            _open: libloading::Library,
        }

        impl Library {
            fn functions(open: libloading::Library, name: std::ffi::OsString) -> Result<Self, libloading::Error> {
                // SAFETY: the types are those of the library's header; pointers are used only while it is open,
                // because it is stored beside them.
                unsafe { Ok(Self { $($field: *open.get(concat!($symbol, "\0"))?,)* name, _open: open }) }
            }
        }
    };
}
pub(crate) use library;
