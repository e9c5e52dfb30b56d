//! A GPU where there is none, for tests: `build.sh` compiles the kernels for the CPU, with a driver that smelt opens
//! like NVIDIA's.

use libloading::Library;
use smelt_kernels::Cuda;
use smelt_kernels::cuda::{SOURCES, architecture};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::{env, fs};

/// Builds the driver; the folder that has it, and a folder of machine code for it. Files of the folder
/// `SMELT_SIM_SOURCES` replace those of `cu/`: `mutate.sh` plants bugs that way.
pub(crate) fn build() -> (PathBuf, PathBuf) {
    let changed = env::var_os("SMELT_SIM_SOURCES");
    let name = if changed.is_some() { "simulator-changed" } else { "simulator" };
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&out).unwrap();
    let lock = File::create(out.join("lock")).unwrap();
    lock.lock().unwrap(); // another test process may build it too
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("kernels/sim/build.sh"));
    let script = script.into_iter().find(|path| path.exists()).expect("a folder above has the simulator");
    let built = Command::new("bash").arg(script).arg(&out).args(changed).output().expect("bash runs");
    assert!(built.status.success(), "the simulator is not built:\n{}", String::from_utf8_lossy(&built.stderr));

    // the simulated driver finds kernels by name, whatever the machine code
    let code = out.join("code");
    fs::create_dir_all(&code).unwrap();
    for (source, (major, minor)) in SOURCES.iter().flat_map(|source| [(8, 0), (9, 0)].map(|of| (source, of))) {
        let path = code.join(format!("{}.{}.cubin", source.name, architecture(major, minor)));
        fs::write(path, b"\x7fELF, simulated").unwrap();
    }
    (out, code)
}

/// The simulated driver of this process, opened.
#[allow(dead_code, reason = "as above")]
fn driver() -> &'static Library {
    static DRIVER: LazyLock<Library> = LazyLock::new(|| {
        let (out, code) = build();
        // SAFETY: whoever reads the environment from C is the driver, which is only opened here.
        unsafe { env::set_var("SMELT_KERNELS", &code) };
        // SAFETY: the driver only registers kernels when it is opened. It stays open, so that whoever asks for
        // `libcuda.so.1` gets it.
        unsafe { Library::new(out.join("libcuda.so.1")) }.expect("the simulated driver opens")
    });
    &DRIVER
}

/// The simulated GPU of this process.
#[allow(dead_code, reason = "some tests start programs that open it")]
pub(crate) fn gpu() -> Arc<Cuda> {
    static GPU: LazyLock<Arc<Cuda>> = LazyLock::new(|| {
        driver();
        Arc::new(Cuda::new(0).expect("the simulated GPU opens"))
    });
    GPU.clone()
}

/// Lets this process have `gpus` simulated GPUs and a simulated NCCL: called before the first of them is opened.
#[allow(dead_code, reason = "not every test communicates")]
pub(crate) fn with_nccl(gpus: usize) {
    let (out, _) = build();
    // SAFETY: as above.
    unsafe { env::set_var("SMELT_SIM_DEVICES", gpus.to_string()) };
    if env::var_os("SMELT_NCCL").is_none() {
        // SAFETY: as above.
        unsafe { env::set_var("SMELT_NCCL", out.join("libnccl.so.2")) };
    }
    driver();
}

/// A simulated GPU whose dense products in bf16 are those of a simulated cuBLASLt.
#[allow(dead_code, reason = "one test multiplies by it")]
pub(crate) fn gpu_with_cublaslt() -> Cuda {
    driver();
    let (out, _) = build();
    // SAFETY: as above.
    unsafe { env::set_var("SMELT_CUBLASLT", out.join("libcublasLt.so.13")) };
    Cuda::new(0).and_then(Cuda::with_cublaslt).expect("the simulated cuBLASLt opens")
}

/// What the driver counted so far: a JSON object.
#[allow(dead_code, reason = "not every test counts")]
pub(crate) fn report() -> String {
    // SAFETY: the function has this type; it writes at most as many bytes as the buffer has, with a zero at the end.
    unsafe {
        let report: libloading::Symbol<unsafe extern "C" fn(*mut u8, usize) -> usize> =
            driver().get(b"smelt_sim_report\0").expect("the driver reports");
        let mut buffer = vec![0; report(std::ptr::null_mut(), 0) + 1];
        report(buffer.as_mut_ptr(), buffer.len());
        buffer.pop();
        String::from_utf8(buffer).expect("JSON is text")
    }
}
