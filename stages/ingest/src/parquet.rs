//! Rows of a Parquet file as records.

use std::collections::VecDeque;
use std::fs::File;
use std::panic::AssertUnwindSafe;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use serde_json::{Map, Value};

use crate::cell;
use crate::error::IngestError;
use crate::parts::Part;
use crate::read::{Item, Outcome, Reading, text_of};
use crate::record::{Place, Record, TIME_FIELDS};

/// Iterator over the rows of one file, in batches. A column that a document needs is read as text; of the others those
/// that are kept, as JSON. A column of a type that JSON cannot hold is left out.
pub(crate) struct ParquetRows<'a> {
    name: &'a str,
    reading: Reading<'a>,
    batches: ParquetRecordBatchReader,
    ready: VecDeque<Outcome>,
    number: u64,
    is_over: bool,
}

/// The columns of a file that cannot stand in `metadata`, if they are among those that are kept.
fn left_out(schema: &Schema, reading: Reading<'_>) -> Vec<String> {
    let own = |name: &str| name == reading.fields.text || reading.fields.id == Some(name);
    let is_kept = |name: &str| reading.fields.metadata.is_none_or(|kept| kept.iter().any(|k| k == name));
    let others = schema.fields().iter().filter(|field| !own(field.name()) && is_kept(field.name()));
    let unfit = others.filter(|field| !cell::fits(field.data_type(), reading.fields.metadata.is_some()));
    unfit.map(|field| format!("`{}` ({})", field.name(), short(field.data_type()))).collect()
}

/// The name of a type without what is inside.
fn short(of: &DataType) -> String {
    let text = of.to_string();
    text.split(['(', '<']).next().unwrap_or(&text).to_owned()
}

/// The library panics at some lies of a damaged file, such as a type of Arrow that there is not, a negative place of a
/// column, or more bits to a value than its type has. The reader that panicked must not be used again.
pub(crate) fn unless_it_panics<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(read)).map_err(|_| "it contradicts itself".into())
}

impl<'a> ParquetRows<'a> {
    /// The rows, of the whole file or of a part, and the columns that are left out.
    pub(crate) fn open(
        name: &'a str,
        file: File,
        reading: Reading<'a>,
        part: Option<&Part>,
    ) -> Result<(Self, Vec<String>), IngestError> {
        let damaged = |e: ParquetError| {
            IngestError::data(name, format!("`{name}` is no whole Parquet file: {e}"))
                .with_hint("fetch the file again, or leave it out of `paths`")
        };
        let opened = unless_it_panics(|| ParquetRecordBatchReaderBuilder::try_new(file));
        let builder = opened.unwrap_or_else(|why| Err(ParquetError::General(why))).map_err(damaged)?;
        let schema = builder.schema().clone();
        let known =
            || schema.fields().iter().map(|column| format!("`{}`", column.name())).collect::<Vec<_>>().join(", ");
        let wanted = [(!reading.only_records).then_some(reading.fields.text), reading.fields.id];
        for wanted in wanted.into_iter().flatten() {
            let Some(field) = leaf(schema.fields(), wanted) else {
                return Err(IngestError::data(name, format!("`{name}` has no column `{wanted}`"))
                    .with_hint(format!("set `text_field` or `id_field`; the file has {}", known())));
            };
            if !cell::is_text(field.data_type()) {
                let what = format!("`{name}`: column `{wanted}` has type {}, expected text", field.data_type());
                return Err(IngestError::data(name, what)
                    .with_hint("name the column or the field inside it that holds the text, such as `a.b`"));
            }
        }
        if let Some(missing) = reading
            .fields
            .metadata
            .and_then(|kept| kept.iter().find(|kept| schema.fields().iter().all(|column| column.name() != *kept)))
        {
            return Err(IngestError::data(
                name,
                format!("`{name}` has no column `{missing}`, which `metadata_fields` names"),
            )
            .with_hint(format!("the file has {}", known())));
        }
        let roots = schema.fields().iter().enumerate().filter(|(_, field)| needs(field, reading)).map(|(i, _)| i);
        let mask = ProjectionMask::roots(builder.parquet_schema(), roots.collect::<Vec<_>>());
        let builder = match part {
            Some(part) => builder.with_row_groups(part.groups.clone().collect()),
            None => builder,
        };
        let built = unless_it_panics(|| builder.with_batch_size(256).with_projection(mask).build());
        let batches = built.unwrap_or_else(|why| Err(ParquetError::General(why))).map_err(damaged)?;
        let number = part.map_or(0, |part| part.before);
        let left_out = left_out(&schema, reading);
        Ok((ParquetRows { name, reading, batches, ready: VecDeque::new(), number, is_over: false }, left_out))
    }

    fn place(&self) -> Place {
        Place { file: self.name.into(), number: Some(self.number), unit: "row", at: self.number }
    }

    fn take_up(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let Reading { fields, only_records, replace, .. } = self.reading;
        let texts = [(!only_records).then_some(fields.text), fields.id];
        let mut named: Vec<(&str, ArrayRef)> = Vec::new();
        let mut root = StructArray::from(batch.clone());
        for path in texts.into_iter().flatten() {
            if let Some((column, rest)) = extract(&root, path) {
                named.push((path, cell::plain(&column)?));
                root = rest;
            }
        }
        let others: Vec<(&str, ArrayRef)> = root
            .column_names()
            .into_iter()
            .zip(root.columns())
            .filter(|(_, column)| cell::fits(column.data_type(), fields.metadata.is_some()))
            .map(|(name, column)| Ok((name, cell::plain(column)?)))
            .collect::<Result<_, ArrowError>>()?;
        for row in 0..batch.num_rows() {
            let place = self.place();
            self.number += 1;
            let mut record = Map::new();
            let mut bad = None;
            for (name, column) in &named {
                match cell::bytes(column, row).map(|bytes| text_of(bytes, 0, &place, replace)) {
                    None => drop(record.insert((*name).to_owned(), Value::Null)),
                    Some(Ok(text)) => drop(record.insert((*name).to_owned(), text.into())),
                    Some(Err(e)) => bad = bad.or(Some(e)),
                }
            }
            for (name, column) in &others {
                let value = cell::json(column, row);
                if !value.is_null() {
                    record.insert((*name).to_owned(), value);
                }
            }
            self.ready.push_back(match bad {
                Some(bad) => Err(bad),
                None => Ok(Item::Record(Record { place, fields: record })),
            });
        }
        Ok(())
    }
}

/// Whether a column is read at all.
fn needs(field: &Field, reading: Reading<'_>) -> bool {
    let fields = reading.fields;
    let is_root =
        |path: &str| path == field.name() || path.split_once('.').is_some_and(|(root, _)| root == field.name());
    let is_own = is_root(fields.text) || fields.id.is_some_and(is_root);
    let is_column = ["url", "language"].iter().chain(&TIME_FIELDS).any(|name| name == field.name());
    let is_kept = fields.metadata.is_none_or(|kept| kept.iter().any(|name| name == field.name()));
    is_own
        || ((is_kept || is_column || reading.only_records) && cell::fits(field.data_type(), fields.metadata.is_some()))
}

/// The field that a name or a path `a.b` leads to.
fn leaf<'f>(fields: &'f arrow::datatypes::Fields, path: &str) -> Option<&'f Field> {
    if let Some((_, field)) = fields.find(path) {
        return Some(field);
    }
    let (root, rest) = path.split_once('.')?;
    match fields.find(root)?.1.data_type() {
        DataType::Struct(inside) => leaf(inside, rest),
        _ => None,
    }
}

/// The column that a path leads to, and what is left beside it. A value is null where a part of the path is.
fn extract(table: &StructArray, path: &str) -> Option<(ArrayRef, StructArray)> {
    let (fields, mut columns, nulls) = table.clone().into_parts();
    let mut fields: Vec<_> = fields.iter().cloned().collect();
    let found = match fields.iter().position(|field| field.name() == path) {
        Some(at) => {
            fields.remove(at);
            columns.remove(at)
        }
        None => {
            let (root, rest) = path.split_once('.')?;
            let at = fields.iter().position(|field| field.name() == root)?;
            let (found, left) = extract(columns[at].as_struct_opt()?, rest)?;
            if left.num_columns() == 0 {
                fields.remove(at);
                columns.remove(at);
            } else {
                fields[at] = Field::new(root, left.data_type().clone(), true).into();
                columns[at] = std::sync::Arc::new(left);
            }
            found
        }
    };
    let found = match &nulls {
        None => found,
        // a struct that is null holds nothing, whatever its columns say
        Some(nulls) => {
            let both = arrow::buffer::NullBuffer::union(Some(nulls), found.nulls());
            arrow::array::make_array(found.to_data().into_builder().nulls(both).build().ok()?)
        }
    };
    let left = match columns.is_empty() {
        true => StructArray::new_empty_fields(table.len(), nulls),
        false => StructArray::try_new(fields.into(), columns, nulls).ok()?,
    };
    Some((found, left))
}

impl Iterator for ParquetRows<'_> {
    type Item = Result<Outcome, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            if let Some(ready) = self.ready.pop_front() {
                return Some(Ok(ready));
            }
            let taken = unless_it_panics(|| match self.batches.next() {
                Some(batch) => batch.and_then(|batch| self.take_up(&batch)),
                None => {
                    self.is_over = true;
                    Ok(())
                }
            });
            if let Err(e) = taken.unwrap_or_else(|why| Err(ArrowError::ParquetError(why))) {
                self.is_over = true;
                let what = format!("`{}` is damaged after row {}: {e}", self.name, self.number);
                return Some(Err(IngestError::data(format!("{}:{}", self.name, self.number), what)
                    .with_hint("fetch the file again, or leave it out of `paths`")));
            }
        }
        None
    }
}
