//! One query, answered as a table, JSON, CSV or Parquet.

use crate::ballista::{self, Rows};
use crate::failure::{Failure, failed, overflow};
use crate::session::{Session, only_reads};
use crate::{csv, files};
use arrow::json::WriterBuilder;
use arrow::json::writer::JsonArray;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Field;
use datafusion::common::Column;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::Expr;
use datafusion::prelude::DataFrame;
use datafusion_functions_json::JSON_UNION_DATA_TYPE;
use datafusion_functions_json::functions::json_union_to_text;
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use smelt_schemas::{ExitCode, Fault, QueryFormat, QueryRequest};
use std::io::{BufWriter, Write};
use std::path::Path;

pub(crate) async fn give(session: &Session, request: &QueryRequest) -> Result<(), Failure> {
    let planned = session.context.sql_with_options(&request.sql, only_reads()).await;
    let frame = planned.and_then(json_as_text).map_err(|e| explain(&e, session))?;
    if request.planned.is_some() {
        frame.create_physical_plan().await.map_err(|e| explain(&e, session))?;
        return Ok(());
    }
    write(frame, session, request).await.map_err(|e| match e.exit_code() {
        ExitCode::Data => files::explain(&session.store, &session.read, e),
        _ => e,
    })
}

/// `metadata->'k'` is a union of JSON's types, which no format can hold: it leaves the query as JSON text.
fn json_as_text(frame: DataFrame) -> Result<DataFrame, DataFusionError> {
    let is_json = |field: &Field| *field.data_type() == *JSON_UNION_DATA_TYPE;
    if !frame.schema().fields().iter().any(|field| is_json(field)) {
        return Ok(frame);
    }
    let columns = frame.schema().iter().map(|(table, field)| {
        let column = Expr::Column(Column::new(table.cloned(), field.name()));
        match is_json(field) {
            true => json_union_to_text(column).alias(field.name()),
            false => column,
        }
    });
    let columns: Vec<Expr> = columns.collect();
    frame.select(columns)
}

/// The rows that answer, of this machine or of a cluster.
async fn rows(frame: DataFrame, session: &Session, request: &QueryRequest) -> Result<Rows, Failure> {
    let folder = session.store.directory();
    if let Some(scheduler) = &request.ballista
        && let Some(rows) = ballista::ask(scheduler, &frame, &request.pipeline, folder.as_deref()).await?
    {
        return Ok(rows);
    }
    let rows = frame.execute_stream().await.map_err(|e| explain(&e, session))?;
    Ok(Box::pin(rows.map(|batch| batch.map_err(failed))))
}

async fn write(frame: DataFrame, session: &Session, request: &QueryRequest) -> Result<(), Failure> {
    let schema = frame.schema().as_arrow().clone();
    let mut rows = rows(frame, session, request).await?;
    let machine = |e: String| Failure::new(ExitCode::Machine, format!("the answer cannot be written: {e}"));
    let mut out = BufWriter::new(std::io::stdout().lock());
    match request.format {
        QueryFormat::Table => {
            let mut batches = vec![RecordBatch::new_empty(schema.into())];
            while let Some(batch) = rows.next().await {
                batches.push(batch?);
            }
            let format = FormatOptions::new().with_null("");
            let table = pretty_format_batches_with_options(&batches, &format).map_err(|e| machine(e.to_string()))?;
            writeln!(out, "{table}").map_err(|e| machine(e.to_string()))?;
        }
        QueryFormat::Json => {
            let builder = WriterBuilder::new().with_explicit_nulls(true);
            let mut writer = builder.build::<_, JsonArray>(&mut out);
            while let Some(batch) = rows.next().await {
                writer.write(&batch?).map_err(|e| machine(e.to_string()))?;
            }
            writer.finish().map_err(|e| machine(e.to_string()))?;
            drop(writer);
            writeln!(out).map_err(|e| machine(e.to_string()))?;
        }
        QueryFormat::Csv => {
            let names = schema.fields().iter().map(|f| f.name().as_str());
            csv::write_line(&mut out, names.map(Some)).map_err(|e| machine(e.to_string()))?;
            while let Some(batch) = rows.next().await {
                csv::write_rows(&mut out, &batch?).map_err(machine)?;
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
                let compressed =
                    WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
                let mut writer =
                    ArrowWriter::try_new(file, schema.into(), Some(compressed)).map_err(|e| machine(e.to_string()))?;
                while let Some(batch) = rows.next().await {
                    writer.write(&batch?).map_err(|e| machine(e.to_string()))?;
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

/// Says what a person can do about it: an unknown table lists the known ones.
pub(crate) fn explain(error: &DataFusionError, session: &Session) -> Failure {
    let text = error.strip_backtrace();
    if let Some(failure) = overflow(&text) {
        return failure;
    }
    let unknown = text.split_once("table '").and_then(|(_, rest)| rest.split_once("' not found")).map(|(name, _)| name);
    if let Some(name) = unknown {
        let name = name.trim_start_matches("datafusion.").trim_start_matches("public.");
        let failure = Failure::new(ExitCode::Pipeline, format!("there is no table `{name}`"));
        // A thread of its own: it waits for the store.
        let known = std::thread::scope(|scope| scope.spawn(|| session.known()).join());
        return match known {
            Ok(Ok(known)) => failure.hint(format!("tables: {}", known.join(", "))),
            _ => failure,
        };
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

    #[test]
    fn an_error_of_the_parser_is_told_in_its_own_words() {
        let text = "SQL error: ParserError(\"Expected: an expression, found: EOF at Line: 1, Column: 8\")";
        assert_eq!(plain(text), "Expected: an expression, found: EOF at Line: 1, Column: 8");
        assert_eq!(place(text).as_deref(), Some("1:8"));
        assert_eq!(place("Schema error: No field named nam."), None);
        assert_eq!(plain("Schema error: No field named nam."), "No field named nam.");
    }
}
