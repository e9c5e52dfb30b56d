//! The state of a training as safetensors: parameters, moments, the step, the moving average and the guard's snapshot.
//! Nothing else has a state.
//!
//! A tensor has its name in a checkpoint behind a prefix: `w.`, `m.`, `v.`, `average.`, and `kept.w.` … for the
//! guard's snapshot. The file does not depend on how the model packs tensors in memory, so a rank that holds other
//! experts finds its own. A state may consist of several files, each with a *span* of every tensor: its elements
//! `start..end`, flat. Any number of ranks can read what any other number wrote.

use crate::optimizer::Moment;
use crate::{Error, Optimizer, Trainer};
use bytemuck::cast_slice;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};
use smelt_kernels::{DType, Downloads, Tensor, bf16};
use smelt_model::{Params, Spec, write_tensors};
use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::ops::Range;

const NUMBERS: &str = "training";
const LOSSES: &str = "guard.losses";
/// Field of the numbers: where the spans of a file begin, by tensor; absent in a file with whole tensors.
const STARTS: &str = "starts";

/// Elements of a tensor of `length` in part `part` of `parts`.
fn span(length: usize, part: usize, parts: usize) -> Range<usize> {
    length * part / parts..length * (part + 1) / parts
}

impl Trainer {
    /// Everything that the next step depends on, bit for bit.
    pub fn save(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write_part(0, 1, &mut bytes).expect("memory takes every byte");
        bytes
    }

    /// The same, written by whoever has it, while the training goes on. On a device that copies beside its operations
    /// the host waits for nothing here; elsewhere the bytes are made now.
    pub fn save_beside(&mut self) -> Save {
        let (contents, tensors) = self.contents();
        let downloads = self.backend().download_beside(&tensors);
        match downloads.copied() {
            Some(copied) => {
                self.copied = Some(copied);
                Save(Saved::Beside(contents, downloads))
            }
            None => {
                let mut bytes = Vec::new();
                let written = downloads.bytes().map(|of_tensors| contents.write(&of_tensors, 0, 1, &mut bytes));
                written.expect("the copies are there").expect("memory takes every byte");
                Save(Saved::Bytes(bytes))
            }
        }
    }

    /// What [`save`](Self::save) gives as `parts` files, of which this is number `part`; written tensor by tensor.
    pub fn write_part(&self, part: usize, parts: usize, out: &mut impl Write) -> io::Result<()> {
        assert!(part < parts, "write_part: part {part} of {parts}");
        let (contents, tensors) = self.contents();
        let here: Vec<Tensor> = tensors.iter().map(|tensor| self.backend().download(tensor)).collect();
        let bytes: Vec<&[u8]> = here.iter().map(bytes_of).collect();
        contents.write(&bytes, part, parts, out)
    }

    /// The tensors of a state, and what it says of them.
    fn contents(&self) -> (Contents, Vec<&Tensor>) {
        let (mut listed, mut tensors) = (Vec::new(), Vec::new());
        list("", &self.params, &self.optimizer, &mut listed, &mut tensors);
        let mut numbers =
            json!({ "step": self.steps, "updates": self.optimizer.updates, "skipped": self.spikes.skipped });
        if let Some((params, optimizer)) = &self.spikes.kept {
            list("kept.", params, optimizer, &mut listed, &mut tensors);
            numbers["kept"] = optimizer.updates.into();
        }
        (Contents { listed, numbers, losses: self.spikes.losses.iter().copied().collect() }, tensors)
    }

    /// Goes on where `bytes` were saved. On an error the trainer is as it was.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.restore_parts(&[bytes])
    }

    /// The same from all parts of a state, in any order, however many there are.
    pub fn restore_parts(&mut self, parts: &[&[u8]]) -> Result<(), Error> {
        let files = parts.iter().map(|bytes| StateFile::read(bytes)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = files.first() else { return Err(state("there is no file of it".into())) };
        let own = |numbers: &Value| {
            [&numbers["step"], &numbers["updates"], &numbers["skipped"], &numbers["kept"]].map(Value::clone)
        };
        if let Some(other) = files.iter().find(|file| own(&file.numbers) != own(&first.numbers)) {
            let (a, b) = (&first.numbers["step"], &other.numbers["step"]);
            return Err(state(format!("its files were saved at different steps, {a} and {b}")));
        }
        let number = |name: &str| first.numbers[name].as_u64().ok_or_else(|| state(format!("it names no {name}")));
        let (params, mut optimizer) = self.pull(&files, "")?;
        let (steps, skipped) = (number("step")?, number("skipped")?);
        optimizer.updates = number("updates")?;
        let kept = match first.numbers.get("kept").is_some() {
            true => {
                let (params, mut optimizer) = self.pull(&files, "kept.")?;
                optimizer.updates = number("kept")?;
                Some((params, optimizer))
            }
            false => None,
        };
        let losses = first.file.tensor(LOSSES).ok();
        let losses = losses.iter().flat_map(|view| view.data().as_chunks().0.iter().map(|&x| f64::from_le_bytes(x)));
        self.spikes = crate::guard::Spikes { losses: losses.collect(), skipped, kept };
        (self.params, self.optimizer, self.steps) = (params, optimizer, steps);
        Ok(())
    }

    /// Parameters and optimizer under `prefix`, shaped like this trainer's; `updates` is left at 0.
    fn pull(&self, files: &[StateFile], prefix: &str) -> Result<(Params, Optimizer), Error> {
        let backend = self.backend().as_ref();
        let mut params = self.params.copy_on(backend);
        let mut optimizer = Optimizer { updates: 0, ..self.optimizer.copy_on(backend) };
        for (p, spec, like) in self.params.iter() {
            let pull = |kind: &str, like: &Tensor| {
                read(files, &format!("{prefix}{kind}"), spec, like).map(|values| backend.upload(&values))
            };
            *params.get_mut(p) = pull("w", like)?;
            if let Some(Moment { m, v }) = &mut optimizer.moments[p.index()] {
                (*m, *v) = (pull("m", m)?, pull("v", v)?);
            }
            if let Some(average) = &mut optimizer.average {
                *average.get_mut(p) = pull("average", like)?;
            }
        }
        Ok((params, optimizer))
    }
}

/// One file of a state.
struct StateFile<'a> {
    file: SafeTensors<'a>,
    numbers: Value,
}

impl<'a> StateFile<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| state(error.to_string()))?;
        let numbers = header.metadata().as_ref().and_then(|metadata| metadata.get(NUMBERS));
        let numbers: Value = numbers.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let file = SafeTensors::deserialize(bytes).map_err(|error| state(error.to_string()))?;
        Ok(Self { file, numbers })
    }

    /// Where its span of tensor `name` begins; None for a whole tensor.
    fn start(&self, name: &str) -> Option<usize> {
        self.numbers.get(STARTS)?.get(name)?.as_u64().map(|start| start as usize)
    }
}

fn state(what: String) -> Error {
    Error::State { what }
}

/// One tensor of a state: elements `place` of a tensor in memory.
struct Listed {
    name: String,
    dims: Vec<usize>,
    dtype: Dtype,
    /// Which of the tensors in memory.
    tensor: usize,
    place: Range<usize>,
}

/// A state but for the values of its tensors.
struct Contents {
    listed: Vec<Listed>,
    numbers: Value,
    losses: Vec<f64>,
}

/// A state that is written beside the training: see [`Trainer::save_beside`].
pub struct Save(Saved);

enum Saved {
    Bytes(Vec<u8>),
    Beside(Contents, Downloads),
}

impl fmt::Debug for Save {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Save").field("is_beside", &matches!(self.0, Saved::Beside(..))).finish()
    }
}

impl Save {
    /// Waits for the device, if its copies are not there yet. A device that failed panics, as in an operation.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        match &self.0 {
            Saved::Bytes(bytes) => out.write_all(bytes),
            Saved::Beside(contents, downloads) => {
                let bytes = downloads.bytes().unwrap_or_else(|error| std::panic::panic_any(error));
                contents.write(&bytes, 0, 1, out)
            }
        }
    }
}

fn bytes_of(tensor: &Tensor) -> &[u8] {
    match tensor.dtype() {
        DType::Bf16 => cast_slice(tensor.read::<bf16>()),
        _ => cast_slice(tensor.read::<f32>()),
    }
}

fn list<'a>(
    prefix: &str,
    params: &'a Params,
    optimizer: &'a Optimizer,
    listed: &mut Vec<Listed>,
    tensors: &mut Vec<&'a Tensor>,
) {
    for (p, spec, value) in params.iter() {
        let mut of_one = vec![("w", value)];
        of_one.extend(optimizer.moments[p.index()].iter().flat_map(|Moment { m, v }| [("m", m), ("v", v)]));
        of_one.extend(optimizer.average.as_ref().map(|average| ("average", average.get(p))));
        for (kind, tensor) in of_one {
            listed.extend(spec.spans().map(|(part, place)| Listed {
                name: format!("{prefix}{kind}.{}", part.name),
                dims: part.shape.clone(),
                dtype: if tensor.dtype() == DType::Bf16 { Dtype::BF16 } else { Dtype::F32 },
                tensor: tensors.len(),
                place,
            }));
            tensors.push(tensor);
        }
    }
}

impl Contents {
    /// Part `part` of `parts`; `tensors` has the bytes of the tensors in memory.
    fn write(&self, tensors: &[&[u8]], part: usize, parts: usize, out: &mut (impl Write + ?Sized)) -> io::Result<()> {
        let (mut views, mut starts, mut numbers) = (Vec::new(), Map::new(), self.numbers.clone());
        for Listed { name, dims, dtype, tensor, place } in &self.listed {
            let (span, size) = (span(place.len(), part, parts), dtype.bitsize() / 8);
            let bytes = &tensors[*tensor][(place.start + span.start) * size..(place.start + span.end) * size];
            let dims = if parts == 1 { dims.clone() } else { vec![span.len()] };
            if parts > 1 {
                starts.insert(name.clone(), span.start.into());
            }
            views.push((name.clone(), TensorView::new(*dtype, dims, bytes).expect("a tensor's bytes fit its shape")));
        }
        if parts > 1 {
            numbers[STARTS] = starts.into();
        }
        // one entry: the file's metadata have no order of their own
        let metadata = HashMap::from([(NUMBERS.to_owned(), numbers.to_string())]);
        if !self.losses.is_empty() {
            let view = TensorView::new(Dtype::F64, vec![self.losses.len()], cast_slice(&self.losses));
            views.push((LOSSES.to_owned(), view.expect("8 bytes per loss")));
        }
        write_tensors(views, Some(metadata), out)
    }
}

/// A tensor in memory from its parts, each from the spans of all files, which must cover it once.
fn read(files: &[StateFile], kind: &str, spec: &Spec, like: &Tensor) -> Result<Tensor, Error> {
    let dtype = if like.dtype() == DType::Bf16 { Dtype::BF16 } else { Dtype::F32 };
    let mut bytes = Vec::with_capacity(like.len() * dtype.bitsize() / 8);
    for part in &spec.parts {
        read_part(files, &format!("{kind}.{}", part.name), dtype, &part.shape, &mut bytes)?;
    }
    Ok(match like.dtype() {
        DType::Bf16 => {
            let bits = bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes));
            Tensor::new(like.shape(), &bits.map(bf16::from_bits).collect::<Vec<_>>())
        }
        _ => {
            let values = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
            Tensor::new(like.shape(), &values.collect::<Vec<f32>>())
        }
    })
}

fn read_part(files: &[StateFile], name: &str, dtype: Dtype, shape: &[usize], bytes: &mut Vec<u8>) -> Result<(), Error> {
    let (mut spans, length) = (Vec::new(), shape.iter().product::<usize>());
    for state_file in files {
        let Ok(view) = state_file.file.tensor(name) else { continue };
        if view.dtype() != dtype {
            return Err(state(format!("`{name}` is {:?}, the optimizer keeps {dtype:?}", view.dtype())));
        }
        let start = state_file.start(name);
        if start.is_none() && view.shape() != shape {
            return Err(state(format!("`{name}` has shape {:?}, the model {shape:?}", view.shape())));
        }
        spans.push((start.unwrap_or(0), view.shape().iter().product::<usize>(), view));
    }
    if spans.is_empty() {
        return Err(state(format!("`{name}` is missing")));
    }
    spans.sort_by_key(|&(start, count, _)| (start, count)); // an empty span comes before one that begins where it does
    let mut covered = 0;
    for (start, count, view) in spans {
        if start != covered {
            return Err(state(format!("`{name}` has elements up to {covered}, and then from {start}")));
        }
        bytes.extend_from_slice(view.data());
        covered += count;
    }
    if covered != length {
        return Err(state(format!("`{name}` has {covered} elements, the model {length}")));
    }
    Ok(())
}
