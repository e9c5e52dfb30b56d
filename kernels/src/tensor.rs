//! A contiguous row-major array whose clones share memory.
//!
//! Activations are `[N, D]`: tokens by features, the batch folded into N. Cloning only counts a reference. Writing a
//! tensor that has clones panics: it is our bug, and copying silently would hide the bug and its cost.

use crate::cuda::DeviceMemory;
use crate::dtype::{DType, Element};
use crate::e4m3::E4m3;
use crate::memory::Allocation;
use crate::place::{Device, Gauge, Taken};
use crate::view::View;
use half::bf16;
use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Up to four dims.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    dims: [usize; 4],
    rank: usize,
}

impl Shape {
    pub fn dims(&self) -> &[usize] {
        &self.dims[..self.rank]
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.dims().iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last dim.
    pub fn cols(&self) -> usize {
        self.dims().last().copied().unwrap_or(1)
    }

    /// All dims but the last, multiplied.
    pub fn rows(&self) -> usize {
        self.dims().iter().rev().skip(1).product()
    }
}

impl From<&[usize]> for Shape {
    fn from(from: &[usize]) -> Self {
        assert!(from.len() <= 4, "shape: {from:?} has more than four dims");
        let mut dims = [1; 4];
        dims[..from.len()].copy_from_slice(from);
        Self { dims, rank: from.len() }
    }
}

impl<const R: usize> From<[usize; R]> for Shape {
    fn from(from: [usize; R]) -> Self {
        from.as_slice().into()
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:?}", self.dims())
    }
}

#[derive(Clone)]
pub struct Tensor {
    buffer: Arc<Buffer>,
    shape: Shape,
}

struct Buffer {
    data: Data,
    device: Device,
    /// See [`Tensor::keep`].
    kept: OnceLock<Box<dyn Any + Send + Sync>>,
    /// See [`Tensor::derive`].
    derived: Mutex<Option<Derived>>,
}

/// What a device made of a tensor's values.
struct Derived {
    form: Arc<dyn Any + Send + Sync>,
    /// Cleared when the tensor is written.
    is_current: bool,
}

enum Data {
    F32(Allocation<f32>),
    F64(Allocation<f64>),
    Bf16(Allocation<bf16>),
    E4m3(Allocation<E4m3>),
    U32(Allocation<u32>),
    /// Memory that the host cannot reach.
    Device(DeviceMemory, DType),
    /// Shapes alone.
    Nothing(DType, #[allow(dead_code, reason = "counts until it is dropped")] Taken),
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &mut self.data {
            Data::F32(data) => f32::arena().give(std::mem::take(data)),
            Data::F64(data) => f64::arena().give(std::mem::take(data)),
            Data::Bf16(data) => bf16::arena().give(std::mem::take(data)),
            Data::E4m3(data) => E4m3::arena().give(std::mem::take(data)),
            Data::U32(data) => u32::arena().give(std::mem::take(data)),
            Data::Device(..) | Data::Nothing(..) => {}
        }
    }
}

impl Tensor {
    /// Memory of the host (inside an operation: of its device) with unspecified contents: the caller writes every
    /// element.
    pub fn empty(shape: impl Into<Shape>, dtype: DType) -> Self {
        let shape = shape.into();
        let data = match dtype {
            _ if Device::here() == Device::Meta => {
                Data::Nothing(dtype, Gauge::take((shape.len() * dtype.bytes()) as u64))
            }
            DType::F32 => Data::F32(f32::arena().take(shape.len(), f32::POISON)),
            DType::F64 => Data::F64(f64::arena().take(shape.len(), f64::POISON)),
            DType::Bf16 => Data::Bf16(bf16::arena().take(shape.len(), bf16::POISON)),
            DType::E4m3 => Data::E4m3(E4m3::arena().take(shape.len(), E4m3::POISON)),
            DType::U32 => Data::U32(u32::arena().take(shape.len(), u32::POISON)),
        };
        let (device, kept, derived) = (Device::here(), OnceLock::new(), Mutex::default());
        Self { buffer: Arc::new(Buffer { data, device, kept, derived }), shape }
    }

    /// Whether a clone of the tensor is alive, so that it must not be written.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.buffer) > 1
    }

    /// Where its memory is.
    pub fn device(&self) -> Device {
        self.buffer.device
    }

    /// Panics unless this thread may touch the memory.
    fn expect_here(&self, what: &str) {
        let (device, here) = (self.buffer.device, Device::here());
        assert!(
            device == here,
            "tensor: {what} by {here:?}, but its memory is {device:?}'s: it has to be copied there"
        );
    }

    pub fn zeros(shape: impl Into<Shape>, dtype: DType) -> Self {
        let mut tensor = Self::empty(shape, dtype);
        tensor.fill(0.0);
        tensor
    }

    /// Panics when a clone of the tensor is alive.
    pub(crate) fn fill(&mut self, value: f64) {
        match self.dtype() {
            DType::F32 => self.write::<f32>().fill(value as f32),
            DType::F64 => self.write::<f64>().fill(value),
            DType::Bf16 => self.write::<bf16>().fill(bf16::from_f32(value as f32)),
            DType::E4m3 => self.write::<E4m3>().fill(E4m3::from_f32(value as f32)),
            DType::U32 => self.write::<u32>().fill(value as u32),
        }
    }

    pub fn new<T: Element>(shape: impl Into<Shape>, values: &[T]) -> Self {
        let mut tensor = Self::empty(shape, T::DTYPE);
        assert_eq!(tensor.len(), values.len(), "tensor: {:?} given {} values", tensor.shape, values.len());
        tensor.write::<T>().copy_from_slice(values);
        tensor
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    pub fn dtype(&self) -> DType {
        match &self.buffer.data {
            Data::F32(_) => DType::F32,
            Data::F64(_) => DType::F64,
            Data::Bf16(_) => DType::Bf16,
            Data::E4m3(_) => DType::E4m3,
            Data::U32(_) => DType::U32,
            Data::Device(_, dtype) | Data::Nothing(dtype, _) => *dtype,
        }
    }

    pub fn len(&self) -> usize {
        self.shape.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn rows(&self) -> usize {
        self.shape.rows()
    }

    pub fn cols(&self) -> usize {
        self.shape.cols()
    }

    /// The dims, when there are `R` of them.
    pub fn dims<const R: usize>(&self, what: &str) -> [usize; R] {
        let dims = self.shape.dims();
        dims.try_into().unwrap_or_else(|_| panic!("{what}: expected {R} dims, found {dims:?}"))
    }

    /// Panics unless the shape is `shape`.
    pub fn expect(&self, what: &str, shape: impl Into<Shape>) {
        let shape = shape.into();
        assert!(self.shape == shape, "{what}: expected {shape:?}, found {:?}", self.shape);
    }

    /// The same memory under other dims.
    pub fn reshape(mut self, shape: impl Into<Shape>) -> Self {
        let shape = shape.into();
        assert_eq!(self.len(), shape.len(), "reshape: {:?} to {shape:?}", self.shape);
        self.shape = shape;
        self
    }

    /// Panics unless its memory is the host's, or inside an operation that of the operation's device.
    pub fn read<T: Element>(&self) -> &[T] {
        self.expect_here("read");
        let len = self.len();
        let any: &dyn Any = match &self.buffer.data {
            Data::F32(data) => data,
            Data::F64(data) => data,
            Data::Bf16(data) => data,
            Data::E4m3(data) => data,
            Data::U32(data) => data,
            Data::Device(..) | Data::Nothing(..) => panic!("tensor: the host has no memory for it"),
        };
        let data = any.downcast_ref::<Allocation<T>>();
        &data.unwrap_or_else(|| panic!("tensor: expected {:?}, found {:?}", T::DTYPE, self.dtype()))[..len]
    }

    /// As [`read`](Self::read), and panics when a clone of the tensor is alive.
    pub fn write<T: Element>(&mut self) -> &mut [T] {
        self.expect_here("written");
        let (len, found) = (self.len(), self.dtype());
        let buffer = self.buffer_to_write();
        let any: &mut dyn Any = match &mut buffer.data {
            Data::F32(data) => data,
            Data::F64(data) => data,
            Data::Bf16(data) => data,
            Data::E4m3(data) => data,
            Data::U32(data) => data,
            Data::Device(..) | Data::Nothing(..) => panic!("tensor: the host has no memory for it"),
        };
        let data = any.downcast_mut::<Allocation<T>>();
        &mut data.unwrap_or_else(|| panic!("tensor: expected {:?}, found {found:?}", T::DTYPE))[..len]
    }

    /// What was made of the old values is stale. Panics when a clone of the tensor is alive.
    fn buffer_to_write(&mut self) -> &mut Buffer {
        let buffer = Arc::get_mut(&mut self.buffer).expect("tensor: written while a clone of it is alive");
        buffer.kept = OnceLock::new();
        if let Some(derived) = buffer.derived.get_mut().unwrap_or_else(PoisonError::into_inner) {
            derived.is_current = false;
        }
        buffer
    }

    /// A tensor in the memory of `device`.
    pub(crate) fn of_device(device: Device, memory: DeviceMemory, shape: Shape, dtype: DType) -> Self {
        let (data, kept, derived) = (Data::Device(memory, dtype), OnceLock::new(), Mutex::default());
        Self { buffer: Arc::new(Buffer { data, device, kept, derived }), shape }
    }

    /// Where an operation of `device` reads it. Panics unless its memory is that device's.
    pub(crate) fn address(&self, device: Device) -> u64 {
        match &self.buffer.data {
            Data::Device(memory, _) if self.buffer.device == device => memory.address(),
            _ => panic!(
                "tensor: read by {device:?}, but its memory is {:?}'s: it has to be copied there",
                self.buffer.device
            ),
        }
    }

    /// As [`address`](Self::address), to be written.
    pub(crate) fn address_to_write(&mut self, device: Device) -> u64 {
        self.buffer_to_write();
        self.address(device)
    }

    /// The bytes of a tensor of the host.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self.dtype() {
            DType::F32 => bytemuck::cast_slice(self.read::<f32>()),
            DType::F64 => bytemuck::cast_slice(self.read::<f64>()),
            DType::Bf16 => bytemuck::cast_slice(self.read::<bf16>()),
            DType::E4m3 => bytemuck::cast_slice(self.read::<E4m3>()),
            DType::U32 => bytemuck::cast_slice(self.read::<u32>()),
        }
    }

    pub(crate) fn bytes_to_write(&mut self) -> &mut [u8] {
        match self.dtype() {
            DType::F32 => bytemuck::cast_slice_mut(self.write::<f32>()),
            DType::F64 => bytemuck::cast_slice_mut(self.write::<f64>()),
            DType::Bf16 => bytemuck::cast_slice_mut(self.write::<bf16>()),
            DType::E4m3 => bytemuck::cast_slice_mut(self.write::<E4m3>()),
            DType::U32 => bytemuck::cast_slice_mut(self.write::<u32>()),
        }
    }

    /// As a matrix `[rows, cols]`.
    pub fn view<T: Element>(&self) -> View<'_, T> {
        View::new(self.read(), self.rows(), self.cols())
    }

    /// A copy with memory of its own.
    pub fn copy(&self) -> Self {
        match self.dtype() {
            DType::F32 => Self::new(self.shape, self.read::<f32>()),
            DType::F64 => Self::new(self.shape, self.read::<f64>()),
            DType::Bf16 => Self::new(self.shape, self.read::<bf16>()),
            DType::E4m3 => Self::new(self.shape, self.read::<E4m3>()),
            DType::U32 => Self::new(self.shape, self.read::<u32>()),
        }
    }

    /// A copy in the memory of another device.
    pub(crate) fn carried(&self, from: Device, to: Device) -> Self {
        fn carry<T: Element>(x: &Tensor, from: Device, to: Device) -> Tensor {
            let values = from.within(|| x.read::<T>().to_vec());
            to.within(|| Tensor::new(x.shape, &values))
        }
        match self.dtype() {
            DType::F32 => carry::<f32>(self, from, to),
            DType::F64 => carry::<f64>(self, from, to),
            DType::Bf16 => carry::<bf16>(self, from, to),
            DType::E4m3 => carry::<E4m3>(self, from, to),
            DType::U32 => carry::<u32>(self, from, to),
        }
    }

    /// A copy in another element type, rounded to nearest even; a clone when the type is the same.
    pub fn cast(&self, dtype: DType) -> Self {
        if dtype == self.dtype() {
            return self.clone();
        }
        let values = self.to_f64();
        match dtype {
            DType::F32 => Self::new(self.shape, &values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
            DType::F64 => Self::new(self.shape, &values),
            // values that came from f32 are f32, so `as f32` rounds nothing and the bf16 is rounded once
            DType::Bf16 => Self::new(self.shape, &values.iter().map(|&x| bf16::from_f32(x as f32)).collect::<Vec<_>>()),
            DType::E4m3 => Self::new(self.shape, &values.iter().map(|&x| E4m3::from_f32(x as f32)).collect::<Vec<_>>()),
            DType::U32 => Self::new(self.shape, &values.iter().map(|&x| x as u32).collect::<Vec<_>>()),
        }
    }

    /// All elements as F64, one tensor after the other.
    pub(crate) fn concat(parts: &[&Tensor]) -> Self {
        let values: Vec<f64> = parts.iter().flat_map(|part| part.to_f64()).collect();
        Self::new([values.len()], &values)
    }

    pub fn to_f64(&self) -> Vec<f64> {
        match self.dtype() {
            DType::F32 => self.read::<f32>().iter().map(|&x| x.into()).collect(),
            DType::F64 => self.read::<f64>().to_vec(),
            DType::Bf16 => self.read::<bf16>().iter().map(|&x| x.into()).collect(),
            DType::E4m3 => self.read::<E4m3>().iter().map(|x| x.to_f32().into()).collect(),
            DType::U32 => self.read::<u32>().iter().map(|&x| x.into()).collect(),
        }
    }

    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype() {
            DType::F32 => self.read::<f32>().to_vec(),
            _ => self.to_f64().into_iter().map(|x| x as f32).collect(),
        }
    }

    /// Keeps what `make` returns until the tensor is written. Does nothing when something is kept already.
    pub(crate) fn keep<F: Any + Send + Sync>(&self, make: impl FnOnce() -> F) {
        self.buffer.kept.get_or_init(|| Box::new(make()));
    }

    pub(crate) fn kept<F: Any>(&self) -> Option<&F> {
        self.buffer.kept.get()?.downcast_ref()
    }

    /// The form that was derived last, for an operation that writes it together with the tensor; none while somebody
    /// holds it.
    pub(crate) fn take_derived<F: Any + Send + Sync>(&self) -> Option<F> {
        let mut slot = self.buffer.derived.lock().unwrap_or_else(PoisonError::into_inner);
        let derived = slot.take()?;
        match derived.form.downcast::<F>() {
            Ok(form) => Arc::into_inner(form),
            Err(form) => {
                *slot = Some(Derived { form, ..derived });
                None
            }
        }
    }

    /// Hands back the form of the tensor as it is now.
    pub(crate) fn put_derived<F: Any + Send + Sync>(&self, form: F) {
        let mut slot = self.buffer.derived.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(Derived { form: Arc::new(form), is_current: true });
    }

    /// What `make` returned the last time, if it `fits` and the tensor was not written since. Otherwise calls `make`,
    /// which gets the last one (unless somebody still holds it) so that it can reuse the memory.
    pub(crate) fn derive<F: Any + Send + Sync>(
        &self,
        fits: impl Fn(&F) -> bool,
        make: impl FnOnce(Option<F>) -> F,
    ) -> Arc<F> {
        let mut slot = self.buffer.derived.lock().unwrap_or_else(PoisonError::into_inner);
        let old = slot.take().and_then(|old| Some((old.form.downcast::<F>().ok()?, old.is_current)));
        let form = match old {
            Some((form, true)) if fits(&form) => form,
            old => Arc::new(make(old.and_then(|(form, _)| Arc::into_inner(form)))),
        };
        *slot = Some(Derived { form: form.clone(), is_current: true });
        form
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Tensor {:?} {:?}", self.dtype(), self.shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "written while a clone of it is alive")]
    fn writing_a_shared_tensor_panics() {
        let mut a = Tensor::zeros([2, 3], DType::F32);
        let _b = a.clone();
        a.write::<f32>()[0] = 1.0;
    }

    #[test]
    #[should_panic(expected = "expected F64, found F32")]
    fn reading_as_another_type_panics() {
        Tensor::zeros([2, 3], DType::F32).read::<f64>();
    }

    #[test]
    fn bf16_holds_what_rounding_to_nearest_even_says() {
        let x = Tensor::new([4], &[1.0f32, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.0]);
        let y = x.cast(DType::Bf16).to_f32();
        assert_eq!(y, [1.0, 1.0, 1.015625, 0.0]); // both ties go to the even neighbour
        assert!(y[3].is_sign_negative());
    }

    #[test]
    fn a_form_is_derived_once_until_the_tensor_is_written() {
        let mut w = Tensor::new([3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let first = w.derive(
            |_: &Vec<u8>| true,
            |old| {
                assert!(old.is_none());
                vec![1]
            },
        );
        let again = w.clone().derive(|form| *form == [1], |_| panic!("it was made already"));
        assert!(Arc::ptr_eq(&first, &again));
        drop((first, again));
        w.write::<f32>()[0] = 7.0;
        let anew = w.derive(
            |_: &Vec<u8>| true,
            |old| {
                assert_eq!(old, Some(vec![1])); // for its memory
                vec![2]
            },
        );
        assert_eq!(*anew, [2]);
        assert_eq!(*w.derive(|form: &Vec<u8>| *form == [3], |_| vec![3]), [3], "a form that does not fit is made anew");
    }

    #[test]
    fn writing_forgets_what_was_kept() {
        let mut w = Tensor::new([3, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        w.keep(|| 1u8);
        w.keep(|| 2u8);
        assert_eq!(w.kept::<u8>(), Some(&1));
        w.write::<f32>()[0] = 7.0;
        assert_eq!(w.kept::<u8>(), None);
    }
}
