//! One query, answered as a table, JSON, CSV or Parquet.

use crate::Failure;
use crate::tables::failed;
use arrow::util::pretty::pretty_format_batches_with_options;
use datafusion::arrow::array::RecordBatch;
use datafusion::error::DataFusionError;
use datafusion::prelude::{SQLOptions, SessionContext};
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use smelt_schemas::{ExitCode, QueryFormat, QueryRequest};
use std::io::{BufWriter, Write};
use std::path::Path;

pub async fn give(context: &SessionContext, request: &QueryRequest) -> Result<(), Failure> {
    // A query reads; artifacts are immutable, and nothing else is here to be changed.
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let frame = context.sql_with_options(&request.sql, options).await.map_err(|e| explain(&e, request))?;
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
            writer.write(&RecordBatch::new_empty(schema.into())).map_err(|e| machine(e.to_string()))?;
            while let Some(batch) = rows.next().await {
                writer.write(&batch.map_err(failed)?).map_err(|e| machine(e.to_string()))?;
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
        let mut failure = Failure::new(ExitCode::Pipeline, format!("there is no table `{name}`"));
        failure.hint = Some(format!("tables: {}", known.join(", ")));
        return failure;
    }
    let text = text.trim_start_matches("Error during planning: ").trim_start_matches("SQL error: ").to_owned();
    Failure::new(ExitCode::Pipeline, text)
}
