//! Tables of a request: ports as scans of their files, records as small tables in memory.

use crate::checked;
use crate::failure::Failure;
use crate::files;
use datafusion::arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::arrow::error::ArrowError;
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::common::TableReference;
use datafusion::common::config::Dialect;
use datafusion::datasource::MemTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::error::DataFusionError;
use datafusion::prelude::{DataFrame, SessionConfig, SessionContext, lit};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use object_store::local::LocalFileSystem;
use serde_json::Value;
use smelt_schemas::{ExitCode, QueryFile, QueryPart, QueryRequest, QueryTable, RecordTable, RecordType};
use smelt_store::Store;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) fn failed(e: DataFusionError) -> Failure {
    let said = e.strip_backtrace();
    overflow(&said).unwrap_or_else(|| Failure::new(ExitCode::Data, said))
}

/// The query's own fault: its integers do not fit.
pub(crate) fn overflow(said: &str) -> Option<Failure> {
    // Inside a scan the library tells the error as its programmers see it.
    let what = match (said.split_once("Arithmetic overflow: "), said.split_once("ArithmeticOverflow(\"")) {
        (Some((_, what)), _) => what.lines().next(),
        (None, Some((_, what))) => what.split('"').next(),
        (None, None) => return None,
    };
    let what = format!("Arithmetic overflow: {}", what.unwrap_or_default());
    let hint = "compute in a wider type, such as `cast(x as decimal(38, 0))` or `cast(x as double)`";
    Some(Failure::new(ExitCode::Pipeline, what).hint(hint))
}

/// The tables of a request, and those of them that its query reads.
pub(crate) struct Session<'a> {
    pub(crate) context: SessionContext,
    pub(crate) store: Store,
    pub(crate) read: Vec<&'a QueryTable>,
}

/// A session that knows every table of the request.
pub(crate) async fn register(request: &QueryRequest) -> Result<Session<'_>, Failure> {
    let store = Store::open(&request.store).map_err(|e| Failure::of(&e))?;
    let mut config = SessionConfig::new().with_information_schema(true);
    // JSON's operators are PostgreSQL's: elsewhere `a->>'k' = 'v'` would be `a->>('k' = 'v')`.
    if has_json_operator(&request.sql) {
        config.options_mut().sql_parser.dialect = Dialect::PostgreSQL;
    }
    config.options_mut().execution.parquet.pushdown_filters = true;
    let mut context = SessionContext::new_with_config(config);
    datafusion_functions_json::register_all(&mut context).map_err(failed)?;
    checked::register(&mut context).map_err(failed)?;
    let url = url::Url::parse(ROOT).map_err(|e| Failure::new(ExitCode::Bug, format!("`{ROOT}`: {e}")))?;
    let mut root = String::new();
    match (store.objects(), store.directory()) {
        (Some((objects, prefix)), _) => {
            root = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
            context.register_object_store(&url, objects);
        }
        // A store that is not there yet has no files to read.
        (None, Some(folder)) if folder.is_dir() => {
            let files = LocalFileSystem::new_with_prefix(folder)
                .map_err(|e| Failure::new(ExitCode::Machine, format!("store {}: {e}", store.address())))?;
            context.register_object_store(&url, Arc::new(files));
        }
        _ => {}
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
    let reference = |table: &QueryTable| match &table.schema {
        Some(schema) => TableReference::partial(schema.as_str(), table.name.as_str()),
        None => TableReference::bare(table.name.as_str()),
    };
    let is_read =
        |name: &TableReference| !request.check && named.iter().any(|n| n.resolved_eq(name) || name.resolved_eq(n));
    let read: Vec<&QueryTable> = request.tables.iter().filter(|table| is_read(&reference(table))).collect();
    refuse_lost(request, &named)?;
    files::check_sizes(&store, &read)?;
    for table in &request.tables {
        let name = reference(table);
        let provider = match is_read(&name) {
            true => port(&context, &root, table).await?,
            false => promised(table, &request.tables)?,
        };
        context.deregister_table(name.clone()).map_err(failed)?;
        context.register_table(name, provider).map_err(failed)?;
    }
    for records in &request.records {
        let name = TableReference::partial(records.schema.as_str(), records.name.as_str());
        context.register_table(name, record_table(records)?).map_err(failed)?;
    }
    Ok(Session { context, store, read })
}

/// Where the store stands for the session; no character of its own address has a meaning here.
const ROOT: &str = "smelt://store";

/// A table of a job whose manifest is gone would be short, or empty, without a word.
fn refuse_lost(request: &QueryRequest, named: &[TableReference]) -> Result<(), Failure> {
    for lost in request.lost.iter().filter(|_| !request.check) {
        let base = lost.job.split('[').next().unwrap_or_default();
        let is_of_it = |n: &&TableReference| n.schema().map_or(n.table() == base, |schema| schema == base);
        if let Some(table) = named.iter().find(is_of_it) {
            return Err(Failure::new(ExitCode::Data, format!("table `{table}`: job `{}`: {}", lost.job, lost.why))
                .hint("`smelt run` makes it again"));
        }
    }
    Ok(())
}

/// Whether a query uses an operator on JSON. In a text or a comment it is none.
fn has_json_operator(sql: &str) -> bool {
    let is_operator = |token: &Token| {
        matches!(token, Token::Arrow | Token::LongArrow | Token::HashArrow | Token::HashLongArrow | Token::Question)
    };
    Tokenizer::new(&PostgreSqlDialect {}, sql).tokenize().is_ok_and(|tokens| tokens.iter().any(is_operator))
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
        let constants = constant_types(of).into_iter().map(|(name, of)| Field::new(name, of, true));
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

/// The type of each constant column: that of its values, if they have one.
fn constant_types(table: &QueryTable) -> BTreeMap<&str, DataType> {
    let mut found: BTreeMap<&str, DataType> = BTreeMap::new();
    for (name, value) in table.parts.iter().flat_map(|part| &part.constants) {
        let of = match value {
            Value::Number(n) if n.is_i64() => DataType::Int64,
            Value::Number(_) => DataType::Float64,
            Value::Bool(_) => DataType::Boolean,
            _ => DataType::Utf8,
        };
        let known = found.entry(name).or_insert_with(|| of.clone());
        *known = match (&*known, of) {
            (a, b) if *a == b => b,
            (DataType::Int64 | DataType::Float64, DataType::Int64 | DataType::Float64) => DataType::Float64,
            _ => DataType::Utf8,
        };
    }
    found
}

fn constant(value: &Value, of: &DataType) -> ScalarValue {
    match of {
        DataType::Int64 => ScalarValue::Int64(value.as_i64()),
        DataType::Float64 => ScalarValue::Float64(value.as_f64()),
        DataType::Boolean => ScalarValue::Boolean(value.as_bool()),
        _ => ScalarValue::Utf8(Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))),
    }
}

/// `root`: of all keys, in the client of the store.
async fn port(context: &SessionContext, root: &str, table: &QueryTable) -> Result<Arc<dyn TableProvider>, Failure> {
    let mut whole: Option<DataFrame> = None;
    let types = constant_types(table);
    for part in &table.parts {
        let mut providers = Vec::new();
        if !part.files.is_empty() {
            providers.push(scan(context, root, table, part).await?);
        }
        if !part.rows.is_empty() || part.files.is_empty() {
            providers.push(in_memory(table, part)?);
        }
        if table.parts.len() == 1 && providers.len() == 1 && part.constants.is_empty() {
            return Ok(providers.remove(0));
        }
        for provider in providers {
            let mut frame = context.read_table(provider).map_err(failed)?;
            for (name, value) in &part.constants {
                frame = frame.with_column(name, lit(constant(value, &types[name.as_str()]))).map_err(failed)?;
            }
            whole = Some(match whole {
                None => frame,
                Some(before) => before.union_by_name(frame).map_err(failed)?,
            });
        }
    }
    whole
        .map(DataFrame::into_view)
        .ok_or_else(|| Failure::new(ExitCode::Bug, format!("table `{}` has no parts", table.name)))
}

/// Rows that are in no file.
fn in_memory(table: &QueryTable, part: &QueryPart) -> Result<Arc<dyn TableProvider>, Failure> {
    let schema = Arc::new(schema_of(table)?);
    let wrong = |e: ArrowError| Failure::new(ExitCode::Bug, format!("rows of table `{}`: {e}", table.name));
    let mut decoder = arrow::json::ReaderBuilder::new(schema.clone())
        .with_batch_size(part.rows.len().max(1))
        .build_decoder()
        .map_err(wrong)?;
    decoder.serialize(&part.rows).map_err(wrong)?;
    let batches = decoder.flush().map_err(wrong)?.into_iter().collect();
    Ok(Arc::new(MemTable::try_new(schema, vec![batches]).map_err(failed)?))
}

async fn scan(
    context: &SessionContext,
    root: &str,
    table: &QueryTable,
    part: &QueryPart,
) -> Result<Arc<dyn TableProvider>, Failure> {
    let listing = async |files: &[QueryFile]| {
        let urls = files.iter().map(|file| ListingTableUrl::parse(address(&format!("{root}{}", file.key))));
        let urls = urls.collect::<Result<Vec<_>, _>>()?;
        let options = ListingOptions::new(Arc::new(ParquetFormat::default())).with_file_extension("");
        let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options);
        config.infer_schema(&context.state()).await
    };
    match listing(&part.files).await {
        Ok(config) => Ok(Arc::new(ListingTable::try_new(config).map_err(failed)?)),
        Err(of_all) => {
            let (mut worst, mut error) = (&part.files[0].key, of_all);
            for file in &part.files {
                if let Err(e) = listing(std::slice::from_ref(file)).await {
                    (worst, error) = (&file.key, e);
                    break;
                }
            }
            let (name, said) = (files::name(table), error.strip_backtrace());
            Err(Failure::new(ExitCode::Data, format!("table `{name}`: `{worst}` cannot be read: {said}"))
                .hint(files::remedy(&part.job)))
        }
    }
}

/// A key as a URL; every character that could mean something there is escaped.
fn address(key: &str) -> String {
    key.bytes().fold(format!("{ROOT}/"), |mut url, b| {
        match b.is_ascii_alphanumeric() || b"-_./=,!".contains(&b) {
            true => url.push(b as char),
            false => url += &format!("%{b:02X}"),
        }
        url
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use smelt_schemas::kind;

    #[test]
    fn a_column_of_constants_has_the_type_of_its_values() {
        let of = |values: &[Value]| {
            let part = |v: &Value| QueryPart { constants: [("x".into(), v.clone())].into(), ..QueryPart::default() };
            let parts = values.iter().map(part).collect();
            let table = QueryTable { schema: None, name: "t".into(), kind: kind::documents(), parts };
            constant_types(&table)["x"].clone()
        };
        assert_eq!(of(&[json!(0), json!(10)]), DataType::Int64);
        assert_eq!(of(&[json!(1), json!(3e-4)]), DataType::Float64);
        assert_eq!(of(&[json!(true), json!(false)]), DataType::Boolean);
        assert_eq!(of(&[json!(1), json!("a")]), DataType::Utf8);
        assert_eq!(constant(&json!(1), &DataType::Utf8), ScalarValue::Utf8(Some("1".into())));
        assert_eq!(constant(&json!(1), &DataType::Float64), ScalarValue::Float64(Some(1.0)));
    }

    #[test]
    fn an_operator_on_json_is_known_from_a_text_that_holds_one() {
        for sql in ["select a->'k' from t", "select a->>'k' from t", "select 1 from t where a ? 'k'"] {
            assert!(has_json_operator(sql), "{sql}");
        }
        for sql in ["select 'why?' from t", "select '->' from t -- a->>'k'", "select \"a?\" > -1 from t", "select '"] {
            assert!(!has_json_operator(sql), "{sql}");
        }
    }

    #[test]
    fn any_key_is_one_address() {
        assert_eq!(address("a/b c#?%\\\n.parquet"), "smelt://store/a/b%20c%23%3F%25%5C%0A.parquet");
        assert_eq!(address("a!5Bx=1!5D/é"), "smelt://store/a!5Bx=1!5D/%C3%A9");
    }
}
