//! What a stage with a model computes on.

pub use smelt_kernels::cuda::size;

use smelt_kernels::collective::Nccl;
use smelt_kernels::{Backend, Cpu, Cuda, DeviceError, Meta, cuda};
use smelt_model::{Library, Precision};
use smelt_stage::{Check, Context, Device, Doctor, Error, Stage};
use std::any::Any;
use std::sync::{Arc, Mutex, Once, PoisonError};

/// What a job computes on.
pub struct Opened {
    pub backend: Arc<dyn Backend>,
    /// Bytes that the tensors of one training may take: nine tenths of a GPU's memory, for its driver takes some and
    /// sizes are rounded up; half of the machine's, or of the cgroup's limit, on the CPU.
    pub memory: Option<u64>,
    /// On a GPU: whether it also attends in bf16.
    is_low: Option<bool>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Opened").field("memory", &self.memory).field("is_low", &self.is_low).finish_non_exhaustive()
    }
}

impl Opened {
    pub fn is_gpu(&self) -> bool {
        self.is_low.is_some()
    }

    /// Shapes alone, of the operations on this device.
    pub fn meta(&self) -> Meta {
        self.is_low.map_or_else(Meta::new, Meta::of_gpu)
    }
}

/// The backend of [`open`].
pub fn backend(cx: &Context, threads: usize, precision: Precision) -> Result<Arc<dyn Backend>, Error> {
    Ok(open(cx, threads, precision)?.backend)
}

/// The device that the job asks for. `threads`: of the CPU, when it is that. `auto` is the first GPU where there is
/// one, and says why where there is none. Below f32, attention and the output projection multiply in bf16 on a GPU.
pub fn open(cx: &Context, threads: usize, precision: Precision) -> Result<Opened, Error> {
    let by_cublaslt = precision == Precision::Bf16(Library::Cublaslt);
    let gpu = match cx.device() {
        Device::Cpu => None,
        Device::Cuda(number) => Some(Cuda::new(number).map_err(|e| of_device(&e))?),
        Device::Auto => match Cuda::new(0) {
            Ok(gpu) => Some(gpu),
            Err(e) => {
                cx.warn(&format!("this job computes on the CPU: {e}"));
                None
            }
        },
    };
    match gpu {
        None if by_cublaslt => {
            let what = "cuBLASLt is a library for NVIDIA GPUs, and this job computes on the CPU";
            Err(Error::config("/precision", what).hint("leave out `library`, or run the job with `device: cuda:0`"))
        }
        None => {
            cx.computes_on("cpu", |_| None);
            let memory = smelt_stage::total_memory().map(|bytes| bytes / 2);
            Ok(Opened { backend: Arc::new(Cpu::new(threads)), memory, is_low: None })
        }
        Some(gpu) => {
            cx.computes_on(&gpu.found().to_string(), explain);
            quiet();
            let (memory, is_low) = (Some(gpu.found().memory / 10 * 9), precision != Precision::Fp32);
            let gpu = if is_low { gpu.in_low_precision() } else { gpu };
            let gpu = if by_cublaslt { gpu.with_cublaslt().map_err(|e| of_device(&e))? } else { gpu };
            let backend: Arc<dyn Backend> = Arc::new(gpu);
            Ok(Opened { backend, memory, is_low: Some(is_low) })
        }
    }
}

/// A failure of the device is over with the process, so trying again may help; memory that does not suffice and a
/// driver that does not fit stay as they are.
fn of_device(error: &DeviceError) -> Error {
    let text = error.to_string();
    let would_fit = WOULD_FIT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let hint = would_fit.filter(|_| error.is_out_of_memory()).unwrap_or_else(|| error.hint().to_owned());
    if error.is_temporary() { Error::again(text) } else { Error::machine(text) }.hint(hint)
}

static WOULD_FIT: Mutex<Option<String>> = Mutex::new(None);

/// What to do should the device's memory not suffice, where the job knows better than the device: it is the hint then.
pub fn would_fit(hint: String) {
    *WOULD_FIT.lock().unwrap_or_else(PoisonError::into_inner) = Some(hint);
}

fn explain(payload: &(dyn Any + Send)) -> Option<Error> {
    DeviceError::of_panic(payload).map(of_device)
}

/// A device that fails is reported as the error that it is, not as a panic too.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if DeviceError::of_panic(info.payload()).is_none() {
                before(info);
            }
        }));
    });
}

/// What a stage with a model needs from the machine: also a GPU, where there is one. None is no fault.
pub fn needs_of<S: Stage>() -> Doctor {
    let mut doctor = smelt_stage::needs_of::<S>();
    let mut say = |name: &str, ok: bool, found: String, hint: Option<&str>| {
        doctor.checks.push(Check { name: name.into(), ok, found, hint: hint.map(Into::into) });
    };
    match cuda::find() {
        Err(e) => say("gpu", true, format!("none: {e}"), None),
        Ok(gpus) => {
            for gpu in &gpus {
                say("gpu", true, gpu.to_string(), None);
                match cuda::kernels_of(gpu) {
                    Ok(from) => say("gpu kernels", true, from, None),
                    Err(e) => say("gpu kernels", false, e.to_string(), Some(e.hint())),
                }
            }
            // only trainings over several GPUs need the one, and those that ask for it the other
            for (name, found) in [("nccl", Nccl::found()), ("cublaslt", Cuda::cublaslt())] {
                say(name, true, found.unwrap_or_else(|e| format!("none: {e}")), None);
            }
        }
    }
    doctor
}
