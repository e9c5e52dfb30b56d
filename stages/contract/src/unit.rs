//! One indivisible piece of a job's work: what it writes, and its books.

use crate::error::Error;
use crate::kinds::{Drop as DropRow, Drops, KindType, Table};
use crate::port::Port;
use crate::shard::{AnyShard, Shard};
use crate::work::WorkFile;
use smelt_schemas::Books;
use smelt_store::{Attempt, Store, UnitRecord, Upload, WorkRecord, safe_name};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};

/// Nothing that a unit writes counts before the unit is committed, which happens when its closure returns `Ok`.
pub struct Unit<'a> {
    attempt: &'a Attempt,
    phase: &'a str,
    /// Names the shards of this unit: the same for any number of workers.
    name: String,
    index: usize,
    /// Files of a turn after the first lie in a folder of their own.
    turn: u32,
    shards: Vec<(&'static str, Box<dyn AnyShard>)>,
    record: UnitRecord,
}

impl fmt::Debug for Unit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Unit({}, {:?})", self.name, self.record.books)
    }
}

impl<'a> Unit<'a> {
    pub(crate) fn new(attempt: &'a Attempt, phase: &'a str, name: String, index: usize, turn: u32) -> Self {
        Self { attempt, phase, name, index, turn, shards: Vec::new(), record: UnitRecord::default() }
    }

    /// Where a file of a port lies in its folder, if not at its path.
    fn place_of(&self, path: &str) -> Option<String> {
        (self.turn > 0).then(|| format!("turn{}/{path}", self.turn))
    }

    fn upload(&self, port: &str, path: &str) -> Result<Upload, Error> {
        Ok(self.attempt.upload(port, self.place_of(path).as_deref().unwrap_or(path))?)
    }

    /// 0, 1, … in its phase.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Counts rows that were read.
    pub fn count_read(&mut self, rows: u64) {
        self.record.books.read += rows;
    }

    /// Counts rows that were created here.
    pub fn count_derived(&mut self, rows: u64) {
        self.record.books.derived += rows;
    }

    /// Counts rows that become part of something larger, such as documents inside a checkpoint.
    pub fn count_written(&mut self, rows: u64) {
        self.record.books.written += rows;
    }

    /// Counts rows that were dropped without a row in a `drops` port.
    pub fn count_dropped(&mut self, rule: &str, rows: u64) {
        *self.record.books.dropped.entry(rule.into()).or_default() += rows;
    }

    /// Writes a row, and counts it in the books.
    pub fn keep<K: Table>(&mut self, port: &Port<K>, row: K::Row) -> Result<(), Error> {
        self.record.books.written += 1;
        self.write(port, row)
    }

    /// Writes what a filter left out, and counts it in the books under its rule.
    pub fn drop_row(
        &mut self,
        port: &Port<Drops>,
        id: &str,
        rule: &str,
        value: Option<f64>,
        detail: Option<String>,
    ) -> Result<(), Error> {
        self.count_dropped(rule, 1);
        self.write(port, DropRow { id: id.into(), rule: rule.into(), value, detail })
    }

    /// Writes a row that the books do not count.
    pub fn write<K: Table>(&mut self, port: &Port<K>, row: K::Row) -> Result<(), Error> {
        let at = match self.shards.iter().position(|(name, _)| *name == port.name) {
            Some(at) => at,
            None => {
                let path = format!("{}.parquet", self.name);
                let upload = self.upload(port.name, &path)?;
                self.shards.push((port.name, Box::new(Shard::<K>::new(upload, path))));
                self.shards.len() - 1
            }
        };
        let shard = self.shards[at].1.as_any().downcast_mut::<Shard<K>>();
        shard.expect("a port has one kind").write(row)
    }

    /// Opens a file of a port that is not a table; end it with `PortFile::finish`.
    pub fn file<K: KindType>(&self, port: &Port<K>, path: &str) -> Result<PortFile, Error> {
        let upload = self.upload(port.name, path)?;
        Ok(PortFile { upload, port: port.name, path: path.into(), store: self.attempt.store().clone() })
    }

    /// Writes a whole file of a port that is not a table.
    pub fn put<K: KindType>(&mut self, port: &Port<K>, path: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut file = self.file(port, path)?;
        let written = file.write_all(bytes);
        written.map_err(|e| file.error(e))?;
        file.finish(self)
    }

    /// Opens a file for the units of later phases, which find it by its name in the record of this one; end it with
    /// `WorkFile::finish`. It belongs to no port, and is gone once the job is committed.
    pub fn work_file(&self, name: &str) -> Result<WorkFile, Error> {
        let path = format!("{:06}/{name}", self.index);
        let place = self.place_of(&path).unwrap_or(path);
        WorkFile::open(self.attempt, name, format!("{}/{place}", safe_name(self.phase)))
    }

    pub(crate) fn add_work(&mut self, record: WorkRecord) {
        self.record.work.push(record);
    }

    /// The value of a metric in the manifest.
    pub fn metric(&mut self, name: &str, value: f64) {
        self.record.metrics.insert(name.into(), value);
    }

    /// A small result that a later phase reads from the committed record; what is large goes to a `work_file`.
    pub fn set_detail(&mut self, detail: serde_json::Value) {
        self.record.detail = detail;
    }

    pub fn books(&self) -> &Books {
        &self.record.books
    }

    pub(crate) fn finish(mut self) -> Result<UnitRecord, Error> {
        for (port, shard) in std::mem::take(&mut self.shards) {
            let mut file = shard.finish()?;
            file.at = self.place_of(&file.path);
            self.record.files.entry(port.into()).or_default().push(file);
        }
        Ok(self.record)
    }
}

/// A file of a port while it is written.
#[derive(Debug)]
pub struct PortFile {
    upload: Upload,
    port: &'static str,
    path: String,
    store: Store,
}

impl PortFile {
    /// Turns the error of a write into a stage error, with its exit code.
    pub fn error(&self, error: io::Error) -> Error {
        smelt_store::Error::from_write(error, &self.store, &self.path).into()
    }

    pub fn finish(self, unit: &mut Unit) -> Result<(), Error> {
        let mut record = self.upload.finish(&self.path)?;
        record.at = unit.place_of(&self.path);
        let files: &mut BTreeMap<_, Vec<_>> = &mut unit.record.files;
        files.entry(self.port.into()).or_default().push(record);
        Ok(())
    }
}

impl Write for PortFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.upload.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.upload.flush()
    }
}
