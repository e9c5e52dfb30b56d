//! One Parquet file of a port while it is written.
//!
//! The bytes depend on the rows alone: row count and weight decide where a batch ends, `created_by` is constant.

use crate::error::Error;
use crate::kinds::{Extra, Table};
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use smelt_schemas::FileRecord;
use smelt_store::Upload;
use std::sync::Arc;

const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

/// Bytes of a page of a column that is read at random: what one read decodes.
const RANDOM_PAGE: usize = 64 << 10;

pub(crate) fn properties<K: Table>() -> WriterPropertiesBuilder {
    let builder = WriterProperties::builder()
        .set_created_by("smelt".into())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("3 is a level of zstd")))
        .set_max_row_group_row_count(Some(1 << 16))
        .set_max_row_group_bytes(Some(64 << 20));
    let Some(random) = K::RANDOM else { return builder };
    let leaf = ColumnPath::new([random, "list", "item"].map(str::to_owned).to_vec());
    builder.set_column_dictionary_enabled(leaf.clone(), false).set_column_data_page_size_limit(leaf, RANDOM_PAGE)
}

pub(crate) struct Shard<K: Table> {
    path: String,
    upload: Option<Upload>,
    writer: Option<ArrowWriter<Upload>>,
    schema: SchemaRef,
    extra_columns: usize,
    rows: Vec<K::Row>,
    weight: usize,
    written: u64,
}

impl<K: Table> Shard<K> {
    pub(crate) fn new(upload: Upload, path: String) -> Self {
        let (schema, rows) = (K::schema(), Vec::new());
        Self { path, upload: Some(upload), writer: None, schema, extra_columns: 0, rows, weight: 0, written: 0 }
    }

    pub(crate) fn write(&mut self, row: K::Row) -> Result<(), Error> {
        self.weight += K::weight(&row);
        self.rows.push(row);
        if self.rows.len() >= BATCH_ROWS || self.weight >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let none = Extra::default();
        let extras: Vec<&Extra> = self.rows.iter().map(|r| K::extra(r).unwrap_or(&none)).collect();
        // The first batch decides which additional columns the file has.
        if let Some(upload) = self.upload.take() {
            let fields = Extra::fields(extras.iter().copied());
            self.extra_columns = fields.len();
            let known = K::schema();
            let all = known.fields().iter().map(|f| f.as_ref().clone()).chain(fields).collect::<Vec<_>>();
            self.schema = Arc::new(Schema::new(all));
            self.writer = Some(ArrowWriter::try_new(upload, self.schema.clone(), Some(properties::<K>().build()))?);
        }
        let mut columns = K::columns(&self.rows);
        for field in &self.schema.fields()[self.schema.fields().len() - self.extra_columns..] {
            columns.push(Extra::column(&extras, field));
        }
        if !self.rows.is_empty() {
            let batch = RecordBatch::try_new(self.schema.clone(), columns)?;
            self.writer.as_mut().expect("made above").write(&batch)?;
        }
        self.written += self.rows.len() as u64;
        self.rows.clear();
        self.weight = 0;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<FileRecord, Error> {
        self.flush()?;
        let writer = self.writer.take().expect("flush makes it");
        let mut record = writer.into_inner()?.finish(&self.path)?;
        record.rows = Some(self.written);
        Ok(record)
    }
}

/// Shards of different kinds in one list.
pub(crate) trait AnyShard: Send {
    fn finish(self: Box<Self>) -> Result<FileRecord, Error>;
    fn as_any(&mut self) -> &mut dyn std::any::Any;
}

impl<K: Table> AnyShard for Shard<K> {
    fn finish(self: Box<Self>) -> Result<FileRecord, Error> {
        Shard::finish(*self)
    }
    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
