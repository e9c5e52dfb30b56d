//! `pytorch_model.bin`: a zip of a pickle and raw storages, as `torch.save` writes a dict of tensors since PyTorch 1.6.
//!
//! A pickle is a program, and running a stranger's is dangerous. This reader knows the instructions that a dict of
//! tensors takes and the handful of names that rebuild one; anything else is refused by name, and nothing is run. The
//! format: CPython's pickletools.py, and torch/serialization.py.

use crate::Error;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use zip::{CompressionMethod, ZipArchive};

#[derive(Clone, Debug, PartialEq)]
enum Object {
    None,
    Mark,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Tuple(Vec<Object>),
    List(Vec<Object>),
    Dict(Vec<(Object, Object)>),
    /// `module.name`
    Global(String),
    Storage {
        dtype: Dtype,
        key: String,
    },
    Tensor {
        dtype: Dtype,
        key: String,
        offset: usize,
        shape: Vec<usize>,
        stride: Vec<usize>,
    },
}

/// Raw bytes by key.
type Storages<'a> = HashMap<String, &'a [u8]>;
type Tensors<'a> = HashMap<String, TensorView<'a>>;

/// The tensors of one file, by name.
pub(crate) fn tensors<'a>(file: &str, bytes: &'a [u8]) -> Result<Tensors<'a>, Error> {
    let refuse = |what: String| Error::Foreign {
        file: file.into(),
        what,
        hint: "load it in PyTorch and save the state dict with `safetensors.torch.save_file`",
    };
    let (program, storages) = unzip(bytes).map_err(refuse)?;
    let dict = match run(program).map_err(refuse)? {
        Object::Dict(dict) => dict,
        other => return Err(refuse(format!("holds {other:?}, and not a dict of tensors"))),
    };
    let mut found = HashMap::new();
    for (name, tensor) in dict {
        let (Object::Text(name), Object::Tensor { dtype, key, offset, shape, stride }) = (name, tensor) else {
            return Err(refuse("holds more than tensors by name".into()));
        };
        let storage = storages.get(&key).ok_or_else(|| refuse(format!("names the storage {key}, which is missing")))?;
        if !is_contiguous(&shape, &stride) {
            return Err(refuse(format!("holds `{name}` with the strides {stride:?} for the shape {shape:?}")));
        }
        let size = dtype.bitsize() / 8;
        let count = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let end = count.and_then(|n| n.checked_add(offset)?.checked_mul(size));
        let view = end
            .and_then(|end| storage.get(offset * size..end))
            .and_then(|data| TensorView::new(dtype, shape.clone(), data).ok());
        let view = view.ok_or_else(|| refuse(format!("holds too few bytes for `{name}` of shape {shape:?}")))?;
        found.insert(name, view);
    }
    Ok(found)
}

fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    let mut expected = 1;
    shape.len() == stride.len()
        && shape.iter().zip(stride).rev().all(|(&dim, &step)| {
            let fits = dim <= 1 || step == expected;
            expected *= dim.max(1);
            fits
        })
}

/// The program, and the storages by their keys.
fn unzip(bytes: &[u8]) -> Result<(&[u8], Storages<'_>), String> {
    let mut zip = ZipArchive::new(Cursor::new(bytes))
        .map_err(|error| format!("is no file of `torch.save` since PyTorch 1.6: {error}"))?;
    let (mut program, mut storages) = (None, HashMap::new());
    for i in 0..zip.len() {
        let entry = zip.by_index_raw(i).map_err(|error| format!("is a damaged zip: {error}"))?;
        let name = entry.name().split_once('/').map_or("", |(_, name)| name).to_owned();
        if entry.compression() != CompressionMethod::Stored {
            return Err(format!("holds `{name}` compressed, which `torch.save` does not write"));
        }
        let place = entry.data_start().map(|start| Range { start, end: start.saturating_add(entry.size()) });
        let place = place.ok_or_else(|| format!("does not say where `{name}` lies"))?;
        let content = bytes.get(place.start as usize..place.end as usize);
        let content = content.ok_or_else(|| format!("ends before the end of `{name}`"))?;
        match name.as_str() {
            "data.pkl" => program = Some(content),
            "byteorder" if content != b"little" => return Err("was written on a big-endian machine".into()),
            _ => drop(name.strip_prefix("data/").map(|key| storages.insert(key.to_owned(), content))),
        }
    }
    Ok((program.ok_or("holds no data.pkl")?, storages))
}

/// What is left to read of a program.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.0.split_at_checked(n).ok_or("is a pickle that ends too early")?;
        self.0 = rest;
        Ok(head)
    }

    fn number<const N: usize>(&mut self) -> Result<u64, String> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self, length: u64) -> Result<Object, String> {
        let bytes = self.take(usize::try_from(length).map_err(|e| e.to_string())?)?;
        Ok(Object::Text(String::from_utf8_lossy(bytes).into_owned()))
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.0.iter().position(|&byte| byte == b'\n').ok_or("is a pickle that ends too early")?;
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(line)
    }
}

#[derive(Default)]
struct Machine {
    stack: Vec<Object>,
    memo: HashMap<u64, Object>,
}

impl Machine {
    fn pop(&mut self) -> Result<Object, String> {
        self.stack.pop().ok_or_else(|| "is a damaged pickle".into())
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Object>, String> {
        let mark = self.stack.iter().rposition(|object| *object == Object::Mark).ok_or("is a damaged pickle")?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn pop_tuple(&mut self, n: usize) -> Result<Object, String> {
        let start = self.stack.len().checked_sub(n).ok_or("is a damaged pickle")?;
        Ok(Object::Tuple(self.stack.split_off(start)))
    }

    fn memoize(&mut self, at: u64) -> Result<(), String> {
        let top = self.stack.last().ok_or("is a damaged pickle")?;
        // what is filled later is never asked for again by `torch.save`
        self.memo.insert(at, top.clone());
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Object>) -> Result<(), String> {
        let Some(Object::Dict(dict)) = self.stack.last_mut() else { return Err("is a damaged pickle".into()) };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            dict.push((key, value));
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Object>) -> Result<(), String> {
        let Some(Object::List(list)) = self.stack.last_mut() else { return Err("is a damaged pickle".into()) };
        list.extend(items);
        Ok(())
    }
}

fn run(program: &[u8]) -> Result<Object, String> {
    let (mut reader, mut machine) = (Reader(program), Machine::default());
    loop {
        let instruction = reader.take(1)?[0];
        let push = match instruction {
            b'.' => return machine.pop(),
            0x80 => (reader.take(1)?, None).1,
            0x95 => (reader.take(8)?, None).1,
            b'(' => Some(Object::Mark),
            b'N' => Some(Object::None),
            0x88 => Some(Object::Bool(true)),
            0x89 => Some(Object::Bool(false)),
            b'}' => Some(Object::Dict(Vec::new())),
            b']' => Some(Object::List(Vec::new())),
            b')' => Some(Object::Tuple(Vec::new())),
            b't' => Some(Object::Tuple(machine.pop_to_mark()?)),
            n @ 0x85..=0x87 => Some(machine.pop_tuple(usize::from(n) - 0x84)?),
            b'J' => Some(Object::Int((reader.number::<4>()? as u32 as i32).into())),
            b'K' => Some(Object::Int(reader.number::<1>()? as i64)),
            b'M' => Some(Object::Int(reader.number::<2>()? as i64)),
            b'G' => Some(Object::Float(f64::from_be_bytes(reader.take(8)?.try_into().expect("8 bytes")))),
            0x8a => {
                let length = reader.number::<1>()? as usize;
                let bytes = reader.take(length)?;
                if length > 8 {
                    return Err("holds a whole number of more than 64 bits".into());
                }
                let fill = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { 0xff } else { 0 };
                let mut wide = [fill; 8];
                wide[..length].copy_from_slice(bytes);
                Some(Object::Int(i64::from_le_bytes(wide)))
            }
            b'X' => (reader.number::<4>().and_then(|n| reader.text(n)).map(Some))?,
            0x8c => (reader.number::<1>().and_then(|n| reader.text(n)).map(Some))?,
            0x8d => (reader.number::<8>().and_then(|n| reader.text(n)).map(Some))?,
            b'q' => (machine.memoize(reader.number::<1>()?)?, None).1,
            b'r' => (machine.memoize(reader.number::<4>()?)?, None).1,
            0x94 => (machine.memoize(machine.memo.len() as u64)?, None).1,
            b'h' => Some(machine.memo.get(&reader.number::<1>()?).cloned().ok_or("is a damaged pickle")?),
            b'j' => Some(machine.memo.get(&reader.number::<4>()?).cloned().ok_or("is a damaged pickle")?),
            b'c' => Some(Object::Global(format!("{}.{}", reader.line()?, reader.line()?))),
            0x93 => match (machine.pop()?, machine.pop()?) {
                (Object::Text(name), Object::Text(module)) => Some(Object::Global(format!("{module}.{name}"))),
                _ => return Err("is a damaged pickle".into()),
            },
            b'Q' => Some(storage(machine.pop()?)?),
            b'R' => {
                let (arguments, function) = (machine.pop()?, machine.pop()?);
                Some(call(function, arguments)?)
            }
            b'b' => (machine.pop()?, None).1, // the metadata of a state dict: versions of modules
            b's' => {
                let (value, key) = (machine.pop()?, machine.pop()?);
                (machine.set_items(vec![key, value])?, None).1
            }
            b'u' => {
                let items = machine.pop_to_mark()?;
                (machine.set_items(items)?, None).1
            }
            b'a' => {
                let item = machine.pop()?;
                (machine.append(vec![item])?, None).1
            }
            b'e' => {
                let items = machine.pop_to_mark()?;
                (machine.append(items)?, None).1
            }
            other => return Err(format!("holds the pickle instruction 0x{other:02x}, which no dict of tensors needs")),
        };
        machine.stack.extend(push);
    }
}

/// `('storage', torch.FloatStorage, key, device, elements)`
fn storage(id: Object) -> Result<Object, String> {
    let Object::Tuple(parts) = &id else { return Err(format!("names {id:?} as a storage")) };
    let [Object::Text(kind), Object::Global(class), Object::Text(key), ..] = parts.as_slice() else {
        return Err(format!("names {id:?} as a storage"));
    };
    let dtype = match class.as_str() {
        "torch.FloatStorage" => Dtype::F32,
        "torch.HalfStorage" => Dtype::F16,
        "torch.BFloat16Storage" => Dtype::BF16,
        "torch.DoubleStorage" => Dtype::F64,
        "torch.LongStorage" => Dtype::I64,
        "torch.IntStorage" => Dtype::I32,
        "torch.ByteStorage" => Dtype::U8,
        "torch.BoolStorage" => Dtype::BOOL,
        other => return Err(format!("holds a `{other}`, which is no plain storage")),
    };
    if kind != "storage" {
        return Err(format!("names {id:?} as a storage"));
    }
    Ok(Object::Storage { dtype, key: key.clone() })
}

/// What rebuilds a tensor or an empty dict; nothing else may be called.
fn call(function: Object, arguments: Object) -> Result<Object, String> {
    let (Object::Global(name), Object::Tuple(arguments)) = (&function, &arguments) else {
        return Err("is a damaged pickle".into());
    };
    let sizes = |object: &Object| -> Option<Vec<usize>> {
        let Object::Tuple(items) = object else { return None };
        items.iter().map(|item| if let Object::Int(n) = item { usize::try_from(*n).ok() } else { None }).collect()
    };
    match (name.as_str(), arguments.as_slice()) {
        ("collections.OrderedDict", []) => Ok(Object::Dict(Vec::new())),
        ("torch._utils._rebuild_parameter", [tensor @ Object::Tensor { .. }, ..]) => Ok(tensor.clone()),
        (
            "torch._utils._rebuild_tensor_v2",
            [Object::Storage { dtype, key }, Object::Int(offset), shape, stride, ..],
        ) => {
            let rebuilt = (usize::try_from(*offset).ok(), sizes(shape), sizes(stride));
            let (Some(offset), Some(shape), Some(stride)) = rebuilt else { return Err("is a damaged pickle".into()) };
            Ok(Object::Tensor { dtype: *dtype, key: key.clone(), offset, shape, stride })
        }
        _ => Err(format!("asks to call `{name}`, which is no part of a plain tensor: it was not run")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    fn archive(program: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
        let files = storages.iter().map(|(key, bytes)| (format!("archive/data/{key}"), *bytes));
        for (name, bytes) in files.chain([("archive/data.pkl".to_owned(), program)]) {
            zip.start_file(name, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn text(what: &str) -> Vec<u8> {
        [b"X", &(what.len() as u32).to_le_bytes()[..], what.as_bytes()].concat()
    }

    /// A dict of one tensor `w`, as `torch.save` writes it, with what rebuilds it.
    fn program(function: &str, shape: [u8; 2], stride: [u8; 2]) -> Vec<u8> {
        let pair = |[a, b]: [u8; 2]| vec![b'K', a, b'K', b, 0x86];
        let storage = [
            b"(".to_vec(),
            text("storage"),
            b"ctorch\nFloatStorage\n".to_vec(),
            text("0"),
            text("cpu"),
            b"K\x06tQ".to_vec(),
        ];
        [
            b"\x80\x02}q\x00(".to_vec(),
            text("w"),
            format!("c{}\n", function.replacen('.', "\n", 1).replace(' ', ".")).into_bytes(),
            b"(".to_vec(),
            storage.concat(),
            b"K\x01".to_vec(),
            pair(shape),
            pair(stride),
            b"\x89ccollections\nOrderedDict\n)RtRu.".to_vec(),
        ]
        .concat()
    }

    const REBUILD: &str = "torch _utils._rebuild_tensor_v2";

    #[test]
    fn a_dict_of_tensors_is_read() {
        let values: Vec<u8> = (0..6u8).flat_map(|x| f32::from(x).to_le_bytes()).collect();
        let bytes = archive(&program(REBUILD, [2, 2], [2, 1]), &[("0", &values)]);
        let found = tensors("pytorch_model.bin", &bytes).unwrap();
        let view = &found["w"];
        assert_eq!((view.dtype(), view.shape(), view.data()), (Dtype::F32, &[2, 2][..], &values[4..20]));
    }

    #[test]
    fn what_is_no_plain_tensor_is_refused_and_not_run() {
        let values = [0; 24];
        let error = |program: &[u8]| {
            let bytes = archive(program, &[("0", &values)]);
            tensors("pytorch_model.bin", &bytes).unwrap_err().to_string()
        };
        assert_eq!(
            error(&program("os.system", [2, 2], [2, 1])),
            "`pytorch_model.bin` asks to call `os.system`, which is no part of a plain tensor: it was not run"
        );
        assert!(error(&program(REBUILD, [2, 2], [1, 2])).contains("`w` with the strides [1, 2] for the shape [2, 2]"));
        assert!(error(&program(REBUILD, [3, 2], [2, 1])).contains("too few bytes for `w` of shape [3, 2]"));
        assert!(error(b"\x80\x02N.").contains("holds None, and not a dict of tensors"));
        assert!(error(b"\x80\x02(").contains("ends too early"));
        assert!(error(b"i").contains("instruction 0x69"));
        let old = tensors("pytorch_model.bin", b"\x80\x02\x8a\x0al").unwrap_err().to_string();
        assert!(old.starts_with("`pytorch_model.bin` is no file of `torch.save` since PyTorch 1.6: "), "{old}");
    }
}
