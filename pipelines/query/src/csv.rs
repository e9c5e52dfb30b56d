//! Answers as CSV: an empty text is `""`, null is nothing. Arrow's own writer makes both the same.

use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::error::ArrowError;
use std::io::{self, Write};
use std::sync::Arc;

/// Writes every row; the error says what is wrong.
pub(crate) fn write_rows(out: &mut impl Write, batch: &RecordBatch) -> Result<(), String> {
    let columns = batch.columns().iter().map(flat).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let options = FormatOptions::default().with_display_error(false);
    let formatters = columns.iter().map(|column| ArrayFormatter::try_new(column.as_ref(), &options));
    let formatters = formatters.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    let mut cells = vec![None; columns.len()];
    for row in 0..batch.num_rows() {
        for ((cell, column), formatter) in cells.iter_mut().zip(&columns).zip(&formatters) {
            *cell = match column.is_null(row) {
                true => None,
                false => Some(formatter.value(row).try_to_string().map_err(|e| e.to_string())?),
            };
        }
        write_line(out, cells.iter().map(Option::as_deref)).map_err(|e| e.to_string())?;
    }
    Ok(())
}

pub(crate) fn write_line<'a>(out: &mut impl Write, cells: impl Iterator<Item = Option<&'a str>>) -> io::Result<()> {
    for (i, cell) in cells.enumerate() {
        if i > 0 {
            out.write_all(b",")?;
        }
        match cell {
            None => {}
            Some(text) if text.is_empty() || text.contains([',', '"', '\n', '\r']) => {
                write!(out, "\"{}\"", text.replace('"', "\"\""))?;
            }
            Some(text) => out.write_all(text.as_bytes())?,
        }
    }
    out.write_all(b"\n")
}

/// Lists and structs as JSON: a field of CSV is text.
fn flat(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !column.data_type().is_nested() {
        return Ok(column.clone());
    }
    let one = RecordBatch::try_from_iter_with_nullable([("v", column.clone(), true)])?;
    let mut text = Vec::new();
    let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(&mut text);
    writer.write(&one)?;
    writer.finish()?;
    drop(writer);
    let text = String::from_utf8(text).map_err(|e| ArrowError::JsonError(e.to_string()))?;
    let value = |line: &str| line.strip_prefix("{\"v\":")?.strip_suffix('}').map(str::to_owned);
    Ok(Arc::new(text.lines().map(|line| value(line).filter(|v| v != "null")).collect::<StringArray>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, ListBuilder, StringBuilder};

    #[test]
    fn a_list_is_one_field_and_an_empty_text_is_not_null() {
        let mut list = ListBuilder::new(StringBuilder::new());
        list.append_value([Some("a,b"), Some("c\"d")]);
        list.append_null();
        list.append_value([None::<&str>; 0]);
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(StringArray::from(vec![Some("x"), Some(""), None])) as ArrayRef, true),
            ("tags", Arc::new(list.finish()) as ArrayRef, true),
            ("n", Arc::new(Float64Array::from(vec![Some(0.5), None, Some(1e300)])) as ArrayRef, true),
        ]);
        let mut text = Vec::new();
        write_rows(&mut text, &batch.unwrap()).unwrap();
        let expected = "x,\"[\"\"a,b\"\",\"\"c\\\"\"d\"\"]\",0.5\n\"\",,\n,[],1e300\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
