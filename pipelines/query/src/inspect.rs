//! Checks Parquet files that a program with `io: files` wrote: are their columns those of the kind, how many rows are
//! there?

use crate::failure::Failure;
use datafusion::arrow::datatypes::{DataType, Schema};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use smelt_schemas::{ExitCode, InspectAnswer, InspectRequest};
use std::fs::File;
use std::path::Path;

/// Reads an [`InspectRequest`] and prints its [`InspectAnswer`].
pub(crate) fn answer(request: &[u8]) -> Result<(), Failure> {
    let request: InspectRequest = serde_json::from_slice(request)
        .map_err(|e| Failure::new(ExitCode::Pipeline, format!("this is no request: {e}")))?;
    let schema = request.kind.schema();
    let schema = schema.ok_or_else(|| Failure::new(ExitCode::Bug, format!("{} is no table", request.kind)))?;
    let rows = request.files.iter().map(|file| {
        rows(file, &schema).map_err(|what| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            Failure::new(ExitCode::Data, format!("`{name}`, which should hold {}: {what}", request.kind))
                .hint(format!("`smelt schema {}` prints its columns", request.kind.name))
        })
    });
    let answer = InspectAnswer { rows: rows.collect::<Result<_, _>>()? };
    println!("{}", serde_json::to_string(&answer).expect("an answer is plain data"));
    Ok(())
}

fn rows(file: &Path, wanted: &Schema) -> Result<u64, String> {
    let opened = File::open(file).map_err(|e| e.to_string())?;
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(opened).map_err(|e| format!("it is no whole Parquet file: {e}"))?;
    for field in wanted.fields() {
        match reader.schema().field_with_name(field.name()) {
            Err(_) if field.is_nullable() => {}
            Err(_) => return Err(format!("it has no column `{}`", field.name())),
            Ok(found) if is_like(found.data_type(), field.data_type()) => {}
            Ok(found) => {
                return Err(format!(
                    "column `{}` is {}, expected {}",
                    field.name(),
                    found.data_type(),
                    field.data_type()
                ));
            }
        }
    }
    Ok(reader.metadata().file_metadata().num_rows().try_into().unwrap_or(0))
}

/// Whether the types are the same; the names of list items and whether they may be null do not matter.
fn is_like(found: &DataType, wanted: &DataType) -> bool {
    match (found, wanted) {
        (DataType::List(a), DataType::List(b)) => is_like(a.data_type(), b.data_type()),
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| a.name() == b.name() && is_like(a.data_type(), b.data_type()))
        }
        (DataType::Map(a, _), DataType::Map(b, _)) => is_like(a.data_type(), b.data_type()),
        (a, b) => a == b,
    }
}
