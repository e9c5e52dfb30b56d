//! Tables of a request: ports as scans of their files, records as small tables in memory.

use crate::failure::Failure;
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

pub(crate) fn failed(e: DataFusionError) -> Failure {
    Failure::new(ExitCode::Data, e.strip_backtrace())
}

/// A session that knows every table of the request.
pub(crate) async fn register(request: &QueryRequest) -> Result<SessionContext, Failure> {
    let store = Store::open(&request.store).map_err(|e| Failure::of(&e))?;
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
    // Only files of tables that the query names are opened: a damaged file does not block queries of other tables.
    let named = named(&context, &request.sql);
    for table in &request.tables {
        let name = match &table.schema {
            Some(schema) => TableReference::partial(schema.as_str(), table.name.as_str()),
            None => TableReference::bare(table.name.as_str()),
        };
        let is_read = !request.check && named.iter().any(|n| n.resolved_eq(&name) || name.resolved_eq(n));
        let provider = match is_read {
            true => port(&context, &store, table).await?,
            false => promised(table, &request.tables)?,
        };
        context.deregister_table(name.clone()).map_err(failed)?;
        context.register_table(name, provider).map_err(failed)?;
    }
    for records in &request.records {
        let name = TableReference::partial(records.schema.as_str(), records.name.as_str());
        context.register_table(name, record_table(records)?).map_err(failed)?;
    }
    Ok(context)
}

/// Tables that a query names; none if it cannot be parsed, which planning reports.
fn named(context: &SessionContext, sql: &str) -> Vec<TableReference> {
    let state = context.state();
    let dialect = state.config().options().sql_parser.dialect;
    let statement = state.sql_to_statement(sql, &dialect);
    statement.and_then(|statement| state.resolve_table_references(&statement)).unwrap_or_default()
}

/// A table without rows that has the columns of all tables of its name: a job's own name means the first of its ports
/// that has rows, which is not known before the job has run.
fn promised(table: &QueryTable, all: &[QueryTable]) -> Result<Arc<dyn TableProvider>, Failure> {
    let mut fields: Vec<Field> = Vec::new();
    for of in all.iter().filter(|t| (&t.schema, &t.name) == (&table.schema, &table.name)) {
        let schema = schema_of(of)?;
        let constants = of.parts.iter().flat_map(|part| part.constants.keys());
        let constants = constants.map(|name| Field::new(name, DataType::Utf8, true));
        for field in schema.fields().iter().map(|f| f.as_ref().clone()).chain(constants) {
            if !fields.iter().any(|f| f.name() == field.name()) {
                fields.push(field);
            }
        }
    }
    Ok(Arc::new(MemTable::try_new(Arc::new(Schema::new(fields)), vec![vec![]]).map_err(failed)?))
}

fn schema_of(table: &QueryTable) -> Result<Schema, Failure> {
    table.kind.schema().ok_or_else(|| Failure::new(ExitCode::Bug, format!("{} is no table", table.kind)))
}

/// The part of a URL of this store before a key.
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
    if part.files.is_empty() {
        let empty = MemTable::try_new(Arc::new(schema_of(table)?), vec![vec![]]).map_err(failed)?;
        return Ok(Arc::new(empty));
    }
    let root = root(store);
    let listing = async |files: &[(String, u64)]| {
        let urls = files.iter().map(|(key, _)| ListingTableUrl::parse(address(&root, key)));
        let urls = urls.collect::<Result<Vec<_>, _>>()?;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension(".parquet");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options);
        config.infer_schema(&context.state()).await
    };
    match listing(&part.files).await {
        Ok(config) => Ok(Arc::new(ListingTable::try_new(config).map_err(failed)?)),
        Err(of_all) => {
            let (mut worst, mut error) = (&part.files[0].0, of_all);
            for file in &part.files {
                if let Err(e) = listing(std::slice::from_ref(file)).await {
                    (worst, error) = (&file.0, e);
                    break;
                }
            }
            let name = table.schema.as_ref().map_or(table.name.clone(), |schema| format!("{schema}.{}", table.name));
            let what = format!("table `{name}`: `{worst}` cannot be read: {}", error.strip_backtrace());
            Err(Failure::new(ExitCode::Data, what)
                .hint("`smelt artifacts verify` lists what is damaged; `smelt rerun JOB` recomputes it"))
        }
    }
}

/// A key as a URL; characters with a meaning in URLs are escaped.
fn address(root: &str, key: &str) -> String {
    let escape = |text: &str| text.replace('%', "%25").replace('?', "%3F").replace('#', "%23").replace(' ', "%20");
    match root.split_once("://") {
        Some((scheme, rest)) => format!("{scheme}://{}/{}", escape(rest), escape(key)),
        None => format!("{root}/{key}"),
    }
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
