//! One query, answered as a table, JSON, CSV or Parquet.

use crate::failure::Failure;
use crate::tables::failed;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use datafusion::prelude::{SQLOptions, SessionContext};
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use smelt_schemas::{ExitCode, QueryFormat, QueryRequest};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

pub(crate) async fn give(context: &SessionContext, request: &QueryRequest) -> Result<(), Failure> {
    // A query only reads: artifacts are immutable, and there is nothing else to change.
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let frame = context.sql_with_options(&request.sql, options).await.map_err(|e| explain(&e, request))?;
    if request.check {
        frame.create_physical_plan().await.map_err(|e| explain(&e, request))?;
        return Ok(());
    }
    let schema = frame.schema().as_arrow().clone();
    let mut rows = frame.execute_stream().await.map_err(|e| explain(&e, request))?;
    let machine = |e: String| Failure::new(ExitCode::Machine, format!("the answer cannot be written: {e}"));
    let mut out = BufWriter::new(std::io::stdout().lock());
    match request.format {
        QueryFormat::Table => {
            let mut batches = vec![RecordBatch::new_empty(schema.into())];
            while let Some(batch) = rows.next().await {
                batches.push(batch.map_err(failed)?);
            }
            let format = arrow::util::display::FormatOptions::new().with_null("");
            let table = pretty_format_batches_with_options(&batches, &format).map_err(|e| machine(e.to_string()))?;
            writeln!(out, "{table}").map_err(|e| machine(e.to_string()))?;
        }
        QueryFormat::Json => {
            let mut writer = arrow::json::ArrayWriter::new(&mut out);
            while let Some(batch) = rows.next().await {
                writer.write(&batch.map_err(failed)?).map_err(|e| machine(e.to_string()))?;
            }
            writer.finish().map_err(|e| machine(e.to_string()))?;
            drop(writer);
            writeln!(out).map_err(|e| machine(e.to_string()))?;
        }
        QueryFormat::Csv => {
            let mut writer = arrow::csv::WriterBuilder::new().with_header(true).build(&mut out);
            let flat = |batch: RecordBatch| flat(batch).map_err(|e| machine(e.to_string()));
            writer.write(&flat(RecordBatch::new_empty(schema.into()))?).map_err(|e| machine(e.to_string()))?;
            while let Some(batch) = rows.next().await {
                writer.write(&flat(batch.map_err(failed)?)?).map_err(|e| machine(e.to_string()))?;
            }
        }
        QueryFormat::Parquet => {
            let path = request
                .output
                .as_deref()
                .ok_or_else(|| Failure::new(ExitCode::Pipeline, "Parquet needs a file to go to"))?;
            let temporary = path.with_extension("smelt-tmp");
            let written = async {
                let file = std::fs::File::create(&temporary).map_err(|e| machine(e.to_string()))?;
                let mut writer = ArrowWriter::try_new(file, schema.into(), None).map_err(|e| machine(e.to_string()))?;
                while let Some(batch) = rows.next().await {
                    writer.write(&batch.map_err(failed)?).map_err(|e| machine(e.to_string()))?;
                }
                let file = writer.into_inner().map_err(|e| machine(e.to_string()))?;
                file.sync_all().and_then(|()| std::fs::rename(&temporary, path)).map_err(|e| machine(e.to_string()))
            };
            let result = written.await;
            if result.is_err() {
                drop(std::fs::remove_file(&temporary));
            }
            result?;
            eprintln!("{}", Path::display(path));
        }
    }
    out.flush().map_err(|e| machine(e.to_string()))
}

/// Lists and structs as JSON: a field of CSV is text.
fn flat(batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let as_text = |column: &ArrayRef| -> Result<ArrayRef, ArrowError> {
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
    };
    let columns = batch.columns().iter().map(as_text).collect::<Result<Vec<_>, _>>()?;
    let schema = batch.schema();
    let names = schema.fields().iter().map(|f| f.name());
    let fields: Vec<Field> = names.zip(&columns).map(|(n, c)| Field::new(n, c.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Says what a person can do about it: an unknown table lists the known ones.
fn explain(error: &DataFusionError, request: &QueryRequest) -> Failure {
    let text = error.strip_backtrace();
    let unknown = text.split_once("table '").and_then(|(_, rest)| rest.split_once("' not found")).map(|(name, _)| name);
    if let Some(name) = unknown {
        let name = name.trim_start_matches("datafusion.").trim_start_matches("public.");
        let mut known: Vec<String> = request
            .tables
            .iter()
            .map(|t| t.schema.as_ref().map_or_else(|| t.name.clone(), |s| format!("{s}.{}", t.name)))
            .chain(request.records.iter().map(|r| format!("{}.{}", r.schema, r.name)))
            .collect();
        known.sort();
        known.dedup();
        return Failure::new(ExitCode::Pipeline, format!("there is no table `{name}`"))
            .hint(format!("tables: {}", known.join(", ")));
    }
    Failure { place: place(&text), ..Failure::new(ExitCode::Pipeline, plain(&text)) }
}

/// Where in the query, as `line:column`: the parser has it in its text only, as ` at Line: 1, Column: 8`.
fn place(text: &str) -> Option<String> {
    let number = |name: &str| {
        let digits: String = text.split_once(name)?.1.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u64>().ok()
    };
    Some(format!("{}:{}", number("Line: ")?, number("Column: ")?))
}

/// The library's words without the names of its types: `SQL error: ParserError("…")` is `…`.
fn plain(text: &str) -> String {
    const KINDS: [&str; 5] = [
        "Error during planning: ",
        "SQL error: ",
        "Schema error: ",
        "This feature is not implemented: ",
        "Optimizer rule ",
    ];
    let mut text = text.trim();
    while let Some(rest) = KINDS.iter().find_map(|kind| text.strip_prefix(kind)) {
        text = rest;
    }
    let inner =
        ["ParserError(\"", "TokenizerError(\""].iter().find_map(|kind| text.strip_prefix(kind)?.strip_suffix("\")"));
    match inner {
        Some(inner) => inner.replace("\\\"", "\"").replace("\\\\", "\\"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ListBuilder, StringBuilder};

    #[test]
    fn an_error_of_the_parser_is_told_in_its_own_words() {
        let text = "SQL error: ParserError(\"Expected: an expression, found: EOF at Line: 1, Column: 8\")";
        assert_eq!(plain(text), "Expected: an expression, found: EOF at Line: 1, Column: 8");
        assert_eq!(place(text).as_deref(), Some("1:8"));
        assert_eq!(place("Schema error: No field named nam."), None);
        assert_eq!(plain("Schema error: No field named nam."), "No field named nam.");
    }

    #[test]
    fn a_list_is_one_field_of_csv() {
        let mut list = ListBuilder::new(StringBuilder::new());
        list.append_value([Some("a,b"), Some("c\"d")]);
        list.append_null();
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(StringArray::from(vec!["x", "y"])) as ArrayRef, false),
            ("tags", Arc::new(list.finish()) as ArrayRef, true),
        ]);
        let mut text = Vec::new();
        arrow::csv::WriterBuilder::new().build(&mut text).write(&flat(batch.unwrap()).unwrap()).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "id,tags\nx,\"[\"\"a,b\"\",\"\"c\\\"\"d\"\"]\"\ny,\n");
    }
}
