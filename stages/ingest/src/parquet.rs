//! Rows of a Parquet file as documents.

use std::fs::File;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow_json::LineDelimitedWriter;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use smelt_stage::kinds::Micros;

use crate::error::IngestError;
use crate::record::{Fields, Raw, TIME_FIELDS, time};

/// Iterator over the rows of one file. Columns that are not columns of `documents` go into `metadata`, as with JSON
/// lines.
pub(crate) struct ParquetRows<'a> {
    name: &'a str,
    fields: Fields<'a>,
    batches: ParquetRecordBatchReader,
    batch: Option<RecordBatch>,
    /// Of the batch's rows.
    metadata: Vec<Option<String>>,
    times: Vec<Option<Micros>>,
    /// Next row, within the batch and within the file.
    row: usize,
    number: u64,
}

impl<'a> ParquetRows<'a> {
    pub(crate) fn open(name: &'a str, file: File, fields: Fields<'a>) -> Result<Self, IngestError> {
        let damaged = |e: parquet::errors::ParquetError| {
            IngestError::data(name, format!("`{name}` is no whole Parquet file: {e}"))
                .with_hint("fetch the file again, or leave it out of `paths`")
        };
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(damaged)?;
        let columns = builder.schema().fields();
        for wanted in [Some(fields.text), fields.id].into_iter().flatten() {
            if columns.iter().all(|column| column.name() != wanted) {
                let known: Vec<String> = columns.iter().map(|column| format!("`{}`", column.name())).collect();
                return Err(IngestError::data(name, format!("`{name}` has no column `{wanted}`"))
                    .with_hint(format!("set `text_field` or `id_field`; the file has {}", known.join(", "))));
            }
        }
        let batches = builder.with_batch_size(256).build().map_err(damaged)?;
        Ok(ParquetRows {
            name,
            fields,
            batches,
            batch: None,
            metadata: Vec::new(),
            times: Vec::new(),
            row: 0,
            number: 0,
        })
    }

    fn take_up(&mut self, batch: RecordBatch) -> Result<(), ArrowError> {
        let own = [self.fields.text, self.fields.id.unwrap_or(self.fields.text), "url", "language"];
        (self.metadata, self.times, self.row) = (metadata(&batch, &own)?, times(&batch)?, 0);
        self.batch = Some(batch);
        Ok(())
    }

    /// What is wrong at the next row.
    fn wrong(&self, what: String) -> IngestError {
        IngestError::data(format!("{}:{}", self.name, self.number), what)
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
        let (time, metadata) = (self.times[self.row], self.metadata[self.row].clone());
        Ok(Raw { id, text, url: get("url")?, language: get("language")?, time, metadata })
    }
}

impl Iterator for ParquetRows<'_> {
    type Item = Result<Raw, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(batch) = self.batch.as_ref().filter(|batch| self.row < batch.num_rows()) {
                let document = self.document(batch).map_err(|e| self.wrong(format!("`{}` {e}", self.name)));
                self.row += 1;
                self.number += 1;
                return Some(document);
            }
            let batch = self.batches.next()?;
            match batch.and_then(|batch| self.take_up(batch)) {
                Ok(()) => {}
                Err(e) => {
                    return Some(Err(self.wrong(format!("`{}` is damaged after row {}: {e}", self.name, self.number))));
                }
            }
        }
    }
}

/// The columns besides `own`, a JSON object for each row; what is null is left out of it.
fn metadata(batch: &RecordBatch, own: &[&str]) -> Result<Vec<Option<String>>, ArrowError> {
    let schema = batch.schema();
    let others: Vec<usize> =
        (0..batch.num_columns()).filter(|&i| !own.contains(&schema.field(i).name().as_str())).collect();
    if others.is_empty() {
        return Ok(vec![None; batch.num_rows()]);
    }
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(&batch.project(&others)?)?;
    writer.finish()?;
    let lines = String::from_utf8(writer.into_inner()).map_err(|e| ArrowError::JsonError(e.to_string()))?;
    Ok(lines.lines().map(|line| (line != "{}").then(|| line.to_owned())).collect())
}

/// Of each row, the first of `TIME_FIELDS` that is a time or a text that says one.
fn times(batch: &RecordBatch) -> Result<Vec<Option<Micros>>, ArrowError> {
    let mut times = vec![None; batch.num_rows()];
    for column in TIME_FIELDS.iter().filter_map(|field| batch.column_by_name(field)) {
        let is_time = matches!(column.data_type(), DataType::Timestamp(..) | DataType::Date32 | DataType::Date64);
        let is_text = matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        // without a zone both are counted in UTC, as in the column they go into
        let column = match is_time {
            true => cast(column, &DataType::Timestamp(TimeUnit::Microsecond, None))?,
            false => column.clone(),
        };
        for (row, found) in times.iter_mut().enumerate().filter(|(row, found)| found.is_none() && column.is_valid(*row))
        {
            *found = match is_time {
                true => Some(Micros(column.as_primitive::<TimestampMicrosecondType>().value(row))),
                false if is_text => string(&column, row).ok().flatten().and_then(|text| time(&text)),
                false => None,
            };
        }
    }
    Ok(times)
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
