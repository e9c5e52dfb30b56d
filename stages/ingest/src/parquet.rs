//! Rows of a Parquet file as documents.

use std::fs::File;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::error::IngestError;
use crate::read::{Fields, Raw};

/// Iterator over the rows of one file. Only the columns for text, id, `url` and `language` are read.
pub(crate) struct ParquetRows<'a> {
    name: &'a str,
    fields: Fields<'a>,
    batches: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// Next row, within the batch and within the file.
    row: usize,
    number: u64,
}

impl<'a> ParquetRows<'a> {
    pub(crate) fn open(name: &'a str, file: File, fields: Fields<'a>) -> Result<Self, IngestError> {
        let damaged = |e: parquet::errors::ParquetError| {
            IngestError::Data(format!(
                "`{name}` is no whole Parquet file: {e}\nhint: fetch the file again, or leave it out of `paths`"
            ))
        };
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
        let columns = builder.schema().fields();
        for wanted in [Some(fields.text), fields.id].into_iter().flatten() {
            if columns.iter().all(|column| column.name() != wanted) {
                let known: Vec<String> = columns.iter().map(|column| format!("`{}`", column.name())).collect();
                return Err(IngestError::Data(format!(
                    "`{name}` has no column `{wanted}`\nhint: set `text_field` or `id_field`; the file has {}",
                    known.join(", ")
                )));
            }
        }
        let wanted = [fields.text, fields.id.unwrap_or(fields.text), "url", "language"];
        let roots: Vec<usize> =
            columns.iter().enumerate().filter(|(_, c)| wanted.contains(&c.name().as_str())).map(|(i, _)| i).collect();
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
        let batches = builder.with_projection(mask).with_batch_size(256).build().map_err(damaged)?;
        Ok(ParquetRows { name, fields, batches, batch: None, row: 0, number: 0 })
    }

    fn document(&self, batch: &RecordBatch) -> Result<Raw, String> {
        let get = |field: &str| match batch.column_by_name(field) {
            None => Ok(None),
            Some(column) => string(column, self.row).map_err(|e| format!("row {}, column `{field}`: {e}", self.number)),
        };
        let text = get(self.fields.text)?
            .ok_or_else(|| format!("row {}, column `{}`: null, expected text", self.number, self.fields.text))?;
        let id = match self.fields.id {
            None => self.number.to_string(),
            Some(field) => get(field)?.ok_or_else(|| format!("row {}, column `{field}`: null", self.number))?,
        };
        let id = format!("{}#{id}", self.name);
        Ok(Raw { id, text, url: get("url")?, language: get("language")?, metadata: None })
    }
}

impl Iterator for ParquetRows<'_> {
    type Item = Result<Raw, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = self.batch.as_ref().filter(|batch| self.row < batch.num_rows()) {
                let document = self.document(batch).map_err(|e| IngestError::Data(format!("`{}` {e}", self.name)));
                self.row += 1;
                self.number += 1;
                return Some(document);
            }
            self.row = 0;
            match self.batches.next()? {
                Ok(batch) => self.batch = Some(batch),
                Err(e) => {
                    let what = format!("`{}` is damaged after row {}: {e}", self.name, self.number);
                    return Some(Err(IngestError::Data(what)));
                }
            }
        }
    }
}

/// One value of a text or whole-number column.
fn string(column: &ArrayRef, row: usize) -> Result<Option<String>, String> {
    use arrow::datatypes::{Int32Type, Int64Type, UInt32Type, UInt64Type};
    if column.is_null(row) {
        return Ok(None);
    }
    Ok(Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        DataType::LargeUtf8 => column.as_string::<i64>().value(row).to_owned(),
        DataType::Utf8View => column.as_string_view().value(row).to_owned(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row).to_string(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row).to_string(),
        other => return Err(format!("type {other}, expected text")),
    }))
}
