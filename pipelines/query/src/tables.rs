//! Tables of a request: ports as scans of their files, records as small tables in memory.

use crate::Failure;
use datafusion::arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::TableReference;
use datafusion::datasource::MemTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext, lit};
use serde_json::Value;
use smelt_schemas::{ExitCode, QueryPart, QueryRequest, QueryTable, RecordTable, RecordType};
use smelt_store::Store;
use std::sync::Arc;

pub fn failed(e: DataFusionError) -> Failure {
    Failure::new(ExitCode::Data, e.strip_backtrace())
}

/// A session that knows every table of the request.
pub async fn register(request: &QueryRequest) -> Result<SessionContext, Failure> {
    let store = Store::open(&request.store).map_err(|e| Failure {
        code: e.exit_code(),
        message: e.to_string(),
        hint: e.hint(),
    })?;
    let mut config = SessionConfig::new().with_information_schema(true);
    config.options_mut().execution.parquet.pushdown_filters = true;
    let context = SessionContext::new_with_config(config);
    if let Some((objects, _)) = store.objects() {
        let address = root(&store);
        let url = url::Url::parse(&address).map_err(|e| Failure::new(ExitCode::Bug, format!("`{address}`: {e}")))?;
        context.register_object_store(&url, objects);
    }
    let catalog =
        context.catalog("datafusion").ok_or_else(|| Failure::new(ExitCode::Bug, "a session has its own catalog"))?;
    let schemas = request
        .tables
        .iter()
        .filter_map(|t| t.schema.as_deref())
        .chain(request.records.iter().map(|r| r.schema.as_str()));
    for schema in schemas {
        if catalog.schema(schema).is_none() {
            catalog.register_schema(schema, Arc::new(MemorySchemaProvider::new())).map_err(failed)?;
        }
    }
    for table in &request.tables {
        let provider = port(&context, &store, table).await?;
        let name = match &table.schema {
            Some(schema) => TableReference::partial(schema.as_str(), table.name.as_str()),
            None => TableReference::bare(table.name.as_str()),
        };
        context.register_table(name, provider).map_err(failed)?;
    }
    for records in &request.records {
        let name = TableReference::partial(records.schema.as_str(), records.name.as_str());
        context.register_table(name, record_table(records)?).map_err(failed)?;
    }
    Ok(context)
}

/// What comes before a key in a URL of this store.
fn root(store: &Store) -> String {
    match store.directory() {
        Some(folder) => format!("file://{}", folder.display()),
        None => store.address().to_owned(),
    }
}

async fn port(context: &SessionContext, store: &Store, table: &QueryTable) -> Result<Arc<dyn TableProvider>, Failure> {
    let mut whole: Option<DataFrame> = None;
    for part in &table.parts {
        let provider = scan(context, store, table, part).await?;
        if table.parts.len() == 1 && part.constants.is_empty() {
            return Ok(provider);
        }
        let mut frame = context.read_table(provider).map_err(failed)?;
        for (name, value) in &part.constants {
            frame = frame.with_column(name, lit(value.as_str())).map_err(failed)?;
        }
        whole = Some(match whole {
            None => frame,
            Some(before) => before.union_by_name(frame).map_err(failed)?,
        });
    }
    whole
        .map(DataFrame::into_view)
        .ok_or_else(|| Failure::new(ExitCode::Bug, format!("table `{}` has no parts", table.name)))
}

async fn scan(
    context: &SessionContext,
    store: &Store,
    table: &QueryTable,
    part: &QueryPart,
) -> Result<Arc<dyn TableProvider>, Failure> {
    let promised =
        || table.kind.schema().ok_or_else(|| Failure::new(ExitCode::Bug, format!("{} is no table", table.kind)));
    if part.files.is_empty() {
        let empty = MemTable::try_new(Arc::new(promised()?), vec![vec![]]).map_err(failed)?;
        return Ok(Arc::new(empty));
    }
    let root = root(store);
    let urls = part
        .files
        .iter()
        .map(|(key, _)| ListingTableUrl::parse(format!("{root}/{key}")).map_err(failed))
        .collect::<Result<Vec<_>, _>>()?;
    let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options);
    let unreadable = |e: DataFusionError| {
        let mut failure =
            Failure::new(ExitCode::Data, format!("`{}` cannot be read: {}", part.files[0].0, e.strip_backtrace()));
        failure.hint = Some("`smelt artifacts verify` lists what is damaged".into());
        failure
    };
    let config = config.infer_schema(&context.state()).await.map_err(unreadable)?;
    Ok(Arc::new(ListingTable::try_new(config).map_err(failed)?))
}

fn record_table(records: &RecordTable) -> Result<Arc<dyn TableProvider>, Failure> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (i, (name, of)) in records.columns.iter().enumerate() {
        let cells = records.rows.iter().map(|r| r.get(i).unwrap_or(&Value::Null));
        let column: ArrayRef = match of {
            RecordType::Text => Arc::new(cells.map(Value::as_str).collect::<StringArray>()),
            RecordType::Integer => Arc::new(cells.map(Value::as_i64).collect::<Int64Array>()),
            RecordType::Number => Arc::new(cells.map(Value::as_f64).collect::<Float64Array>()),
            RecordType::Time => {
                let micros = cells.map(|v| v.as_f64().map(|s| (s * 1e6) as i64));
                Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
            }
        };
        let data_type = match of {
            RecordType::Time => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            _ => column.data_type().clone(),
        };
        fields.push(Field::new(name, data_type, true));
        columns.push(column);
    }
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|e| failed(e.into()))?;
    Ok(Arc::new(MemTable::try_new(schema, vec![vec![batch]]).map_err(failed)?))
}
