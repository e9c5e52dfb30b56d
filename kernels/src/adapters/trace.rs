//! Measures where the time of a step goes: passes every operation on and times it.

use crate::backend::*;
use crate::document_bounds::Documents;
use crate::downloads::{Copied, Downloads};
use crate::dtype::DType;
use crate::fp8::{Operand, Quantiser};
use crate::segments::Segments;
use crate::tensor::{Shape, Tensor};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often one operation was called, and the total time from call to return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub calls: u64,
    pub time: Duration,
}

/// A backend that times the operations of another one; results are those of the other.
pub struct Trace {
    inner: Arc<dyn Backend>,
    /// Ends an operation; without it the time is that of the call, which on a GPU is that of asking.
    wait: Option<Box<dyn Fn() + Send + Sync>>,
    spent: Mutex<BTreeMap<&'static str, Spent>>,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Trace").field("spent", &self.spent).finish_non_exhaustive()
    }
}

impl Trace {
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, wait: None, spent: Mutex::default() }
    }

    /// Calls `wait` behind each operation, so that its time is that of the device.
    #[must_use]
    pub fn waiting(self, wait: impl Fn() + Send + Sync + 'static) -> Self {
        Self { wait: Some(Box::new(wait)), ..self }
    }

    fn timed<R>(&self, operation: &'static str, work: impl FnOnce(&dyn Backend) -> R) -> R {
        let start = Instant::now();
        let result = work(self.inner.as_ref());
        self.wait.iter().for_each(|wait| wait());
        let time = start.elapsed();
        let mut spent = self.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = spent.entry(operation).or_default();
        entry.calls += 1;
        entry.time += time;
        result
    }

    /// The time spent since the last call of `take`, by operation, the longest first.
    pub fn take(&self) -> Vec<(&'static str, Spent)> {
        let spent = std::mem::take(&mut *self.spent.lock().unwrap_or_else(PoisonError::into_inner));
        let mut spent: Vec<_> = spent.into_iter().collect();
        spent.sort_by(|a, b| b.1.time.cmp(&a.1.time).then(a.0.cmp(b.0)));
        spent
    }
}

macro_rules! pass_on {
    ($($(#[$meta:meta])* fn $name:ident(&self $(, $arg:ident: $type:ty)* $(,)?) $(-> $result:ty)?;)*) => {
        impl Backend for Trace {
            $(fn $name(&self $(, $arg: $type)*) $(-> $result)? {
                self.timed(stringify!($name), |inner| inner.$name($($arg),*))
            })*
        }
    };
}

operations!(pass_on);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    #[test]
    fn a_traced_operation_gives_the_same_bits_and_is_counted() {
        let (cpu, trace) = (Cpu::new(1), Trace::new(Arc::new(Cpu::new(1))));
        let (x, gain) = (Tensor::new([2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]), Tensor::new([3], &[1.0f32; 3]));
        let (a, b) = (cpu.rms_norm(&x, &gain, 1e-6), trace.rms_norm(&x, &gain, 1e-6));
        assert_eq!(a.0.read::<f32>(), b.0.read::<f32>());
        trace.square_sum(&x, &mut Tensor::zeros([1], DType::F64));
        trace.rms_norm(&x, &gain, 1e-6);
        let mut spent: Vec<_> = trace.take().into_iter().map(|(name, spent)| (name, spent.calls)).collect();
        spent.sort();
        assert_eq!(spent, [("rms_norm", 2), ("square_sum", 1)]);
        assert!(trace.take().is_empty());
    }
}
