//! Machine code for the kernels: prebuilt, from the disk cache, or compiled by NVRTC, which is opened at run time.

use super::cubin::Cubin;
use super::device::Found;
use super::error::DeviceError;
use super::sources::{HEADERS, SOURCES, Source};
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::{env, fs, io, process, ptr};

include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

/// Without contraction of a·b + c every rounding is where the source has it: the GPU computes what the CPU and the
/// simulator compute.
const OPTIONS: &[&str] = &["--std=c++17", "--fmad=false"];

/// What the compiler made of one file of kernels.
#[derive(Debug)]
pub struct Compiled {
    /// Machine code for one architecture.
    pub cubin: Vec<u8>,
    /// Registers, spills and shared memory of each kernel, when asked for.
    pub log: String,
}

/// The architecture of a compute capability, with everything that is its own.
pub fn architecture(major: i32, minor: i32) -> String {
    format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
}

/// Machine code of `source`, from the first place that has it: the folder `SMELT_KERNELS`, what was embedded when
/// smelt was built, the user's cache, the compiler.
pub(super) fn machine_code(source: &Source, architecture: &str) -> Result<Vec<u8>, DeviceError> {
    if let Some(code) = prebuilt(source, architecture) {
        return code;
    }
    let cached = cache_path(source, architecture);
    if let Some(code) = cached.as_ref().and_then(|path| fs::read(path).ok()) {
        return Ok(code);
    }
    let code = compile(source, architecture, &[])?.cubin;
    if let Some(path) = cached {
        drop(put(&path, &code)); // only a cache: without it the next start compiles again
    }
    Ok(code)
}

/// Machine code that nobody has to compile: from the folder `SMELT_KERNELS`, or embedded.
pub(super) fn prebuilt(source: &Source, architecture: &str) -> Option<Result<Vec<u8>, DeviceError>> {
    if let Some(folder) = env::var_os("SMELT_KERNELS") {
        let path = Path::new(&folder).join(format!("{}.{architecture}.cubin", source.name));
        return Some(fs::read(&path).map_err(|e| {
            DeviceError::new(
                format!("the kernels `{}` cannot be read from {}: {e}", source.name, path.display()),
                "unset SMELT_KERNELS to use what is embedded or to compile them",
            )
        }));
    }
    let embedded = CUBINS.iter().find(|(name, of, _)| *name == source.name && *of == architecture);
    embedded.map(|(.., code)| Ok(code.to_vec()))
}

/// Where the machine code of the kernels for a GPU comes from.
pub fn kernels_of(gpu: &Found) -> Result<String, DeviceError> {
    let architecture = architecture(gpu.major, gpu.minor);
    if let Some(folder) = env::var_os("SMELT_KERNELS") {
        return Ok(format!("for {architecture}, from {}", Path::new(&folder).display()));
    }
    if SOURCES.iter().filter(|s| s.runs_on(gpu)).all(|s| CUBINS.iter().any(|c| (c.0, c.1) == (s.name, &architecture))) {
        let made_by = CUBINS.first().and_then(|(.., code)| Cubin::read(code)?.made_by);
        let made_by = made_by.map_or(String::new(), |release| format!(", made by CUDA {release}"));
        return Ok(format!("for {architecture}, embedded{made_by}"));
    }
    let path = open_compiler().ok_or_else(|| no_compiler(&architecture))?;
    Ok(format!("for {architecture}, compiled by {}", path.display()))
}

fn no_compiler(architecture: &str) -> DeviceError {
    DeviceError::new(
        format!("there is no machine code of the kernels for {architecture}, and no NVRTC to compile them"),
        "install NVRTC (`pip install nvidia-cuda-nvrtc`) and set SMELT_CUDA_HOME to the folder above its `lib`",
    )
}

/// Named by everything that decides the code.
fn cache_path(source: &Source, architecture: &str) -> Option<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")))?;
    let mut hash = blake3::Hasher::new();
    let parts = HEADERS.iter().map(|(_, text)| *text).chain([source.text, architecture]).chain(OPTIONS.iter().copied());
    parts.for_each(|part| {
        hash.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    });
    Some(base.join("smelt/kernels").join(format!("{}-{}.cubin", source.name, &hash.finalize().to_hex()[..32])))
}

/// Nothing half written is ever visible under `path`.
fn put(path: &Path, code: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let beside = path.with_extension(format!("{}.part", process::id()));
    fs::write(&beside, code)?;
    fs::rename(&beside, path).inspect_err(|_| drop(fs::remove_file(&beside)))
}

/// Where NVRTC may be: below `SMELT_CUDA_HOME`, `CUDA_HOME` or `CUDA_PATH`, where the system looks, and where CUDA is
/// usually installed.
fn candidates() -> Vec<PathBuf> {
    const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
    let homes = ["SMELT_CUDA_HOME", "CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let folders = homes.flat_map(|home| [home.join("lib"), home.join("lib64")]);
    let folders = folders.chain(["".into(), "/usr/local/cuda/lib64".into()]);
    folders.flat_map(|folder| NAMES.map(|name| folder.join(name))).collect()
}

/// Opens NVRTC and what it opens by bare name when it compiles, so that both are found wherever they are; says from
/// where, or that there is none.
pub fn open_compiler() -> Option<PathBuf> {
    // SAFETY: these libraries only register themselves when they are opened.
    let open = |path: &Path| unsafe { libloading::Library::new(path) }.map(std::mem::forget).is_ok();
    let found = candidates().into_iter().find(|path| open(path))?;
    let beside = found.parent().filter(|folder| !folder.as_os_str().is_empty()).map(fs::read_dir);
    for entry in beside.into_iter().flatten().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libnvrtc-builtins.so") {
            open(&entry.path());
        }
    }
    Some(found)
}

/// Compiles for an architecture as `sm_90a`; `options` are added to those that all kernels are compiled with.
pub fn compile(source: &Source, architecture: &str, options: &[&str]) -> Result<Compiled, DeviceError> {
    if open_compiler().is_none() {
        return Err(no_compiler(architecture));
    }
    let failed = |what: &str, log: &str| {
        DeviceError::new(
            format!("NVRTC cannot {what} `{}` for {architecture}\n{log}", source.name),
            "this is a bug in smelt, or a compiler that is too old: it wants NVRTC 12.3 or newer",
        )
    };
    let text = |text: &str| CString::new(text).expect("sources hold no zero bytes");
    let (program_text, name) = (text(source.text), text(&format!("{}.cu", source.name)));
    let (names, headers): (Vec<_>, Vec<_>) = HEADERS.iter().map(|(name, content)| (text(name), text(content))).unzip();
    let target = format!("--gpu-architecture={architecture}");
    let options: Vec<_> = OPTIONS.iter().chain(options).copied().chain([target.as_str()]).map(text).collect();
    let pointers = |texts: &[CString]| -> Vec<*const c_char> { texts.iter().map(|text| text.as_ptr()).collect() };
    let (names, headers, options) = (pointers(&names), pointers(&headers), pointers(&options));
    let is_good = |result: sys::nvrtcResult| result == sys::nvrtcResult::NVRTC_SUCCESS;

    // SAFETY: every pointer is to memory that outlives the call; the buffers are as long as NVRTC said.
    unsafe {
        let mut program = ptr::null_mut();
        let created = sys::nvrtcCreateProgram(
            &raw mut program,
            program_text.as_ptr(),
            name.as_ptr(),
            HEADERS.len() as i32,
            headers.as_ptr(),
            names.as_ptr(),
        );
        if !is_good(created) {
            return Err(failed("begin with", &format!("{created:?}")));
        }
        let compiled = sys::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
        let mut length = 0;
        sys::nvrtcGetProgramLogSize(program, &raw mut length);
        let mut log = vec![0u8; length.max(1)];
        sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
        let log = CStr::from_bytes_until_nul(&log).map_or(String::new(), |log| log.to_string_lossy().into_owned());
        let mut cubin = Vec::new();
        let mut is_complete = is_good(compiled) && is_good(sys::nvrtcGetCUBINSize(program, &raw mut length));
        if is_complete {
            cubin.resize(length, 0);
            is_complete = is_good(sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()));
        }
        sys::nvrtcDestroyProgram(&raw mut program);
        if is_complete { Ok(Compiled { cubin, log }) } else { Err(failed("compile", &log)) }
    }
}
