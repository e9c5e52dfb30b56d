//! Input ports: committed artifacts, verified before a byte of them is used.

use crate::Mapped;
use crate::error::Error;
use crate::kinds::{KindType, Table, View};
use arrow::array::RecordBatch;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use smelt_schemas::{Arity, Digest, FileRecord, InputPort, InputRef, Manifest, PortRecord};
use smelt_store::{LocalFile, Store};
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

/// The input ports of a stage; `inputs!` writes it.
pub trait Inputs: Sized + Send + Sync {
    fn specs() -> Vec<InputPort>;
    fn connect(from: &Connections) -> Result<Self, Error>;
}

/// What an invocation connects to each port.
#[derive(Debug)]
pub struct Connections {
    pub(crate) store: Store,
    pub(crate) scratch: PathBuf,
    pub(crate) inputs: BTreeMap<String, Vec<InputRef>>,
}

/// A committed port of another job.
pub struct Artifact<K> {
    store: Store,
    scratch: PathBuf,
    name: String,
    port: String,
    manifest: Arc<Manifest>,
    record: PortRecord,
    kind: PhantomData<fn() -> K>,
}

/// What can stand in an `Inputs`: an artifact, an optional one, a list.
pub trait Connected: Sized {
    fn spec(name: &str) -> InputPort;
    fn connect(name: &str, from: &Connections) -> Result<Self, Error>;
}

fn spec<K: KindType>(name: &str, arity: Arity) -> InputPort {
    InputPort { name: name.into(), kind: K::kind(), arity }
}

fn open_all<K: KindType>(name: &str, from: &Connections) -> Result<Vec<Artifact<K>>, Error> {
    let refs = from.inputs.get(name).map(Vec::as_slice).unwrap_or_default();
    refs.iter().map(|r| Artifact::open(name, r, from)).collect()
}

impl<K: KindType> Connected for Artifact<K> {
    fn spec(name: &str) -> InputPort {
        spec::<K>(name, Arity::One)
    }
    fn connect(name: &str, from: &Connections) -> Result<Self, Error> {
        let mut all = open_all(name, from)?;
        match (all.pop(), all.len()) {
            (Some(one), 0) => Ok(one),
            (_, n) => Err(Error::bug(format!("input `{name}` takes one artifact, {} were given", n))),
        }
    }
}

impl<K: KindType> Connected for Option<Artifact<K>> {
    fn spec(name: &str) -> InputPort {
        spec::<K>(name, Arity::Optional)
    }
    fn connect(name: &str, from: &Connections) -> Result<Self, Error> {
        Ok(open_all(name, from)?.pop())
    }
}

impl<K: KindType> Connected for Vec<Artifact<K>> {
    fn spec(name: &str) -> InputPort {
        spec::<K>(name, Arity::OptionalList)
    }
    fn connect(name: &str, from: &Connections) -> Result<Self, Error> {
        open_all(name, from)
    }
}

impl<K> fmt::Debug for Artifact<K> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Artifact({} {} port {})", self.manifest.stage, self.manifest.fingerprint.short(), self.port)
    }
}

impl<K: KindType> Artifact<K> {
    fn open(name: &str, input: &InputRef, from: &Connections) -> Result<Self, Error> {
        let manifest = from.store.manifest(&input.artifact)?.ok_or_else(|| {
            let a = &input.artifact;
            Error::data(format!(
                "input `{name}`: edition {} of {} {} is not in {}",
                a.edition,
                a.stage,
                a.fingerprint.short(),
                from.store.address()
            ))
            .hint("run the pipeline again: missing parts are recomputed")
        })?;
        let record =
            manifest.ports.get(&input.port).cloned().ok_or_else(|| {
                Error::bug(format!("input `{name}`: {} has no port `{}`", manifest.stage, input.port))
            })?;
        if !record.kind.fits(&K::kind()) {
            return Err(Error::data(format!(
                "input `{name}` reads {}, but {} gives {}",
                K::kind(),
                manifest.stage,
                record.kind
            )));
        }
        let (store, scratch) = (from.store.clone(), from.scratch.clone());
        let manifest = Arc::new(manifest);
        Ok(Self { store, scratch, name: name.into(), port: input.port.clone(), manifest, record, kind: PhantomData })
    }

    /// Files in the order of their paths.
    pub fn files(&self) -> &[FileRecord] {
        &self.record.files
    }

    pub fn digest(&self) -> &Digest {
        &self.record.digest
    }

    /// What it is called in messages: ``input `tokens` ``.
    pub fn label(&self) -> String {
        format!("input `{}`", self.name)
    }

    /// Names the tokenizer that its ids were made with, where the job that made it said so.
    pub fn tokenizer(&self) -> Option<&str> {
        self.record.tokenizer.as_deref()
    }

    /// The record of the job that made it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn bytes(&self) -> u64 {
        self.record.bytes()
    }

    /// File number `i` on this machine, verified.
    pub fn fetch(&self, i: usize) -> Result<LocalFile, Error> {
        let file = &self.record.files[i];
        Ok(self.store.fetch(&self.store.file_key(&self.manifest, &self.port, file), file, &self.scratch)?)
    }

    /// The bytes of the file called `path`, verified.
    pub fn bytes_of(&self, path: &str) -> Result<Vec<u8>, Error> {
        Ok(self.map(path)?.to_vec())
    }

    /// The same, read when they are used.
    pub fn map(&self, path: &str) -> Result<Mapped, Error> {
        let i = self.record.files.iter().position(|f| f.path == path).ok_or_else(|| {
            let has: Vec<&str> = self.record.files.iter().map(|f| f.path.as_str()).collect();
            Error::data(format!("input `{}` has no file `{path}`; it has {}", self.name, has.join(", ")))
        })?;
        Mapped::open(self.fetch(i)?)
    }
}

impl<K: Table> Artifact<K> {
    /// How many rows file number `i` has.
    pub fn rows(&self, i: usize) -> Result<u64, Error> {
        match self.record.files[i].rows {
            Some(rows) => Ok(rows),
            None => self.read(i)?.try_fold(0, |rows, row| row.map(|_| rows + 1)),
        }
    }

    /// The rows of file number `i`, in order.
    pub fn read(&self, i: usize) -> Result<Rows<K::Row>, Error> {
        Rows::open(self.fetch(i)?, self.what(i), None, K::rows)
    }

    /// The same with some columns alone; the others are not decoded.
    pub fn view<V: View<Of = K>>(&self, i: usize) -> Result<Rows<V>, Error> {
        Rows::open(self.fetch(i)?, self.what(i), Some(V::COLUMNS), V::rows)
    }

    fn what(&self, i: usize) -> String {
        format!("`{}` of input `{}`", self.record.files[i].path, self.name)
    }

    /// The rows of all files, in order.
    pub fn read_all(&self) -> impl Iterator<Item = Result<K::Row, Error>> + '_ {
        (0..self.record.files.len()).flat_map(|i| unless_failed(self.read(i)))
    }

    /// The same with some columns alone.
    pub fn view_all<V: View<Of = K>>(&self) -> impl Iterator<Item = Result<V, Error>> + '_ {
        (0..self.record.files.len()).flat_map(|i| unless_failed(self.view(i)))
    }
}

/// Rows, or why there are none as the only item.
fn unless_failed<R>(rows: Result<Rows<R>, Error>) -> impl Iterator<Item = Result<R, Error>> {
    let (rows, error) = match rows {
        Ok(rows) => (Some(rows), None),
        Err(e) => (None, Some(Err(e))),
    };
    rows.into_iter().flatten().chain(error)
}

/// Rows of one Parquet file.
pub struct Rows<R> {
    batches: ParquetRecordBatchReader,
    decode: fn(&RecordBatch) -> Result<Vec<R>, String>,
    rows: std::vec::IntoIter<R>,
    what: String,
    _file: LocalFile,
}

impl<R> fmt::Debug for Rows<R> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Rows of {}", self.what)
    }
}

impl<R> Rows<R> {
    fn open(
        file: LocalFile,
        what: String,
        columns: Option<&[&str]>,
        decode: fn(&RecordBatch) -> Result<Vec<R>, String>,
    ) -> Result<Self, Error> {
        let opened = std::fs::File::open(file.path()).map_err(|e| Error::machine(format!("{what}: {e}")))?;
        let unreadable = |e: ParquetError| Error::of_table(&format!("{what} is no readable Parquet"), &e);
        let builder = ParquetRecordBatchReaderBuilder::try_new(opened).map_err(unreadable)?;
        let mask = match columns {
            Some(columns) => ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied()),
            None => ProjectionMask::all(),
        };
        let batches = builder.with_projection(mask).with_batch_size(1024).build().map_err(unreadable)?;
        Ok(Self { batches, decode, rows: Vec::new().into_iter(), what, _file: file })
    }
}

impl<R> Iterator for Rows<R> {
    type Item = Result<R, Error>;
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            match self.batches.next()? {
                Err(e) => return Some(Err(Error::of_table(&format!("{} is no readable Parquet", self.what), &e))),
                Ok(batch) => match (self.decode)(&batch) {
                    Ok(rows) => self.rows = rows.into_iter(),
                    Err(e) => return Some(Err(Error::data(format!("{}: {e}", self.what)))),
                },
            }
        }
    }
}
