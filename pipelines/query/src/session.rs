//! The session that answers a query: ports as scans of their files, records as small tables in memory, views.
//!
//! What the query does not name is neither read nor there.

use crate::answer;
use crate::checked;
use crate::failure::{Failure, failed};
use crate::files;
use crate::named::{self, Named};
use crate::ports::{self, Lost, Part, Table, Tables, base};
use crate::system::{self, System};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::error::ArrowError;
use datafusion::catalog::{MemorySchemaProvider, TableProvider};
use datafusion::common::{ScalarValue, TableReference};
use datafusion::datasource::MemTable;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::prelude::{DataFrame, SQLOptions, SessionConfig, SessionContext, lit};
use object_store::local::LocalFileSystem;
use serde_json::Value;
use smelt_schemas::{ExitCode, PlannedPort, QueryRequest};
use smelt_store::{Pointer, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where the store stands for the session; no character of its own address has a meaning here.
const ROOT: &str = "smelt://store/";

/// `smelt.expert_load`: how many tokens each expert of a layer took, as a share of the mean.
const EXPERT_LOAD: &str = "select job, step, cast(split_part(name, '.', 2) as bigint) as layer, \
    cast(split_part(name, '.', 3) as bigint) as expert, value as load \
    from smelt.metrics where starts_with(name, 'expert_load.')";

/// What a query may read.
pub(crate) struct Session {
    pub(crate) context: SessionContext,
    pub(crate) store: Store,
    /// The tables that it reads, once they are registered.
    pub(crate) read: Vec<Table>,
    pipeline: String,
    views: BTreeMap<String, String>,
    planned: Option<Vec<PlannedPort>>,
    named: Named,
    /// What the URL of a file is before its key.
    root: String,
}

/// What the store has of the tables that a query names.
pub(crate) struct Gathered {
    records: Vec<System>,
    tables: Vec<Table>,
}

/// A query only reads: artifacts are immutable, and there is nothing else to change.
pub(crate) fn only_reads() -> SQLOptions {
    SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false)
}

impl Session {
    /// A session without tables.
    pub(crate) fn open(request: &QueryRequest) -> Result<Self, Failure> {
        let of_store = |e| Failure::of(&e);
        let store = Store::open(&request.store).map_err(of_store)?;
        let views = match &request.planned {
            Some(_) => request.views.clone(),
            None => store.views(&request.pipeline).map_err(of_store)?,
        };
        let mut config = SessionConfig::new().with_information_schema(true);
        let texts: Vec<&str> = views.values().map(String::as_str).chain([request.sql.as_str()]).collect();
        config.options_mut().sql_parser.dialect = named::dialect(&texts.join("\n;"));
        config.options_mut().execution.parquet.pushdown_filters = true;
        // What is read of the end of a file at first. A footer has some kilobytes, and of a small column there is
        // often nothing else to read.
        config.options_mut().execution.parquet.metadata_size_hint = Some(64 << 10);
        let mut context = SessionContext::new_with_config(config);
        datafusion_functions_json::register_all(&mut context).map_err(failed)?;
        checked::register(&mut context).map_err(failed)?;
        let root = match &request.ballista {
            Some(_) => shared_root(&context, &store)?,
            None => register_store(&context, &store)?,
        };
        let named = Named::of(&context, &request.sql, &views, request.planned.is_some())?;
        let (pipeline, planned) = (request.pipeline.clone(), request.planned.clone());
        Ok(Self { context, store, read: Vec::new(), pipeline, views, planned, named, root })
    }

    /// Reads the records that the query needs. It waits for the store, which the threads of a runtime may not do.
    pub(crate) fn gather(&self) -> Result<Gathered, Failure> {
        let tables = self.ports()?;
        let read: Vec<&Table> = tables.iter().filter(|table| self.reads(table)).collect();
        files::check_sizes(&self.store, &read)?;
        Ok(Gathered { records: self.records()?, tables })
    }

    /// Registers what was gathered, and the views over it.
    pub(crate) async fn register(&mut self, gathered: Gathered) -> Result<(), Failure> {
        for table in &gathered.records {
            self.add(Some("smelt"), table.name, table.table()?)?;
        }
        for table in &gathered.tables {
            let provider = match self.reads(table) {
                true => port(&self.context, &self.root, table).await?,
                false => promised(table, &gathered.tables)?,
            };
            self.add(table.schema.as_deref(), &table.name, provider)?;
        }
        self.read = gathered.tables.into_iter().filter(|table| self.reads(table)).collect();
        self.register_views().await
    }

    fn reads(&self, table: &Table) -> bool {
        self.planned.is_none() && self.named.has(table.schema.as_deref(), &table.name)
    }

    fn add(&self, schema: Option<&str>, name: &str, table: Arc<dyn TableProvider>) -> Result<(), Failure> {
        let name = match schema {
            Some(schema) => TableReference::partial(schema, name),
            None => TableReference::bare(name),
        };
        if let Some(schema) = schema {
            let bug = || Failure::new(ExitCode::Bug, "a session has its own catalog");
            let catalog = self.context.catalog("datafusion").ok_or_else(bug)?;
            if catalog.schema(schema).is_none() {
                catalog.register_schema(schema, Arc::new(MemorySchemaProvider::new())).map_err(failed)?;
            }
        }
        self.context.deregister_table(name.clone()).map_err(failed)?;
        self.context.register_table(name, table).map(drop).map_err(failed)
    }

    /// Tables that are made of the store's records.
    fn records(&self) -> Result<Vec<System>, Failure> {
        let (store, of_store) = (&self.store, |e| Failure::of(&e));
        let all_jobs = || {
            let (jobs, lost) = ports::jobs(store, store.pointers().map_err(of_store)?)?;
            lost.iter().filter(|lost| lost.pipeline == self.pipeline).for_each(Lost::warn);
            Ok::<_, Failure>(jobs)
        };
        let mut records = Vec::new();
        for name in system::NAMES {
            let is_read = self.planned.is_none() && self.named.has(Some("smelt"), name);
            records.push(match name {
                _ if !is_read => system::empty(name),
                "jobs" => system::jobs(&all_jobs()?, &store.live(None).map_err(of_store)?),
                "results" => system::results(&all_jobs()?),
                "runs" => system::runs(store)?,
                "artifacts" => system::artifacts(&manifests(store)?),
                _ => system::lineage(&manifests(store)?),
            });
        }
        Ok(records)
    }

    /// Ports of the jobs that the query names, or of all if it asks which there are.
    fn ports(&self) -> Result<Vec<Table>, Failure> {
        let (named, mut tables) = (&self.named, Tables::default());
        match &self.planned {
            Some(ports) => ports.iter().for_each(|port| tables.add_planned(port)),
            None => {
                let is_meant = |job: &str| named.all || named.has_shared() || named.has_job(base(job));
                let (found, lost) = ports::jobs(&self.store, self.pointers(is_meant)?)?;
                self.refuse(&lost)?;
                // The events of a long training are long: they are read only for a query about curves.
                let live = match named.has_curves() {
                    true => self.store.live(Some(&self.pipeline)).map_err(|e| Failure::of(&e))?,
                    false => Vec::new(),
                };
                for job in &found {
                    let is_live = live.iter().any(|live| live.running.job == job.name);
                    tables.add_job(&self.store, job, is_live);
                }
                let mut live = live.iter().filter(|live| is_meant(&live.running.job));
                live.try_for_each(|live| tables.add_live(&self.store, live))?;
            }
        }
        tables.add_empty();
        Ok(tables.0)
    }

    /// A table of a job whose manifest is gone would be short, or empty, without a word.
    fn refuse(&self, lost: &[Lost]) -> Result<(), Failure> {
        for lost in lost {
            let base = base(&lost.job);
            let is_of_it = |n: &TableReference| n.schema().map_or(n.table() == base, |schema| schema == base);
            if let Some(table) = self.named.find(is_of_it) {
                return Err(Failure::new(ExitCode::Data, format!("table `{table}`: job `{}`: {}", lost.job, lost.why))
                    .hint("`smelt run` makes it again"));
            }
            lost.warn();
        }
        Ok(())
    }

    async fn register_views(&self) -> Result<(), Failure> {
        let is_meant = self.named.all || self.named.has(Some("smelt"), "expert_load");
        let expert_load = is_meant.then_some((Some("smelt"), "expert_load", EXPERT_LOAD));
        let own = self.named.views.iter().map(|name| (None, name.as_str(), self.views[name].as_str()));
        for (schema, name, sql) in expert_load.into_iter().chain(own) {
            let planned = self.context.sql_with_options(sql, only_reads()).await;
            let view = planned.map_err(|e| answer::explain(&e, self).about(&format!("view `{name}`")))?;
            self.add(schema, name, view.into_view())?;
        }
        Ok(())
    }

    /// Where the jobs of the pipeline point of which `is_meant` holds.
    fn pointers(&self, is_meant: impl Fn(&str) -> bool) -> Result<Vec<(String, String, Pointer)>, Failure> {
        let names = self.store.jobs_of(&self.pipeline).map_err(|e| Failure::of(&e))?;
        let meant: Vec<String> = names.into_iter().filter(|name| is_meant(name)).collect();
        let found = crate::at_once(meant, |job| {
            let pointer = self.store.pointer(&self.pipeline, &job);
            pointer.map(|pointer| Some((self.pipeline.clone(), job, pointer?)))
        });
        found.into_iter().filter_map(Result::transpose).map(|found| found.map_err(|e| Failure::of(&e))).collect()
    }

    /// The names of all tables, for the error about one that is not there.
    pub(crate) fn known(&self) -> Result<Vec<String>, Failure> {
        let mut tables = Tables::default();
        match &self.planned {
            Some(ports) => ports.iter().for_each(|port| tables.add_planned(port)),
            None => {
                let (found, _) = ports::jobs(&self.store, self.pointers(|_| true)?)?;
                found.iter().for_each(|job| tables.add_job(&self.store, job, false));
            }
        }
        tables.add_empty();
        let records = system::NAMES.into_iter().chain(["expert_load"]).map(|name| format!("smelt.{name}"));
        let ports = tables.0.iter().map(files::name);
        let mut known: Vec<String> = ports.chain(records).chain(self.views.keys().cloned()).collect();
        known.sort();
        known.dedup();
        Ok(known)
    }
}

/// Gives the session the client of the store. All URLs of its files begin with the answer.
fn register_store(context: &SessionContext, store: &Store) -> Result<String, Failure> {
    let url = parsed(ROOT)?;
    match (store.objects(), store.directory()) {
        (Some((objects, prefix)), _) => {
            context.register_object_store(&url, objects);
            Ok(under(ROOT, prefix))
        }
        // A store that is not there yet has no files to read.
        (None, Some(folder)) if folder.is_dir() => {
            let files = LocalFileSystem::new_with_prefix(folder)
                .map_err(|e| Failure::new(ExitCode::Machine, format!("store {}: {e}", store.address())))?;
            context.register_object_store(&url, Arc::new(files));
            Ok(ROOT.into())
        }
        _ => Ok(ROOT.into()),
    }
}

/// The same for a plan that other machines read: the files' URLs are those that any program knows.
fn shared_root(context: &SessionContext, store: &Store) -> Result<String, Failure> {
    let refused = |why: String| {
        Failure::new(ExitCode::Pipeline, why).hint("leave out `--ballista`, or put the store into a bucket on S3")
    };
    if let Some(folder) = store.directory() {
        let whole = folder.canonicalize().map_err(|e| refused(format!("store {}: {e}", store.address())))?;
        let whole = whole.to_str().ok_or_else(|| refused(format!("store {}: no UTF-8", store.address())))?;
        return Ok(under("file:///", whole.trim_matches('/')));
    }
    let bucket = store.address().strip_prefix("s3://").and_then(|rest| rest.split('/').next());
    match (bucket, store.objects()) {
        (Some(bucket), Some((objects, prefix))) => {
            let root = format!("s3://{bucket}/");
            context.register_object_store(&parsed(&root)?, objects);
            Ok(under(&root, prefix))
        }
        _ => Err(refused(format!("Ballista's executors read folders and S3, and not {}", store.address()))),
    }
}

fn parsed(url: &str) -> Result<url::Url, Failure> {
    url::Url::parse(url).map_err(|e| Failure::new(ExitCode::Bug, format!("`{url}`: {e}")))
}

fn under(root: &str, prefix: &str) -> String {
    match prefix.is_empty() {
        true => root.to_owned(),
        false => format!("{root}{}/", escaped(prefix)),
    }
}

/// Every manifest that can be read.
fn manifests(store: &Store) -> Result<Vec<smelt_schemas::Manifest>, Failure> {
    let artifacts = store.artifacts().map_err(|e| Failure::of(&e))?;
    let found = crate::at_once(artifacts, |artifact| store.manifest(&artifact));
    let readable = found.into_iter().filter(|found| !matches!(found, Err(smelt_store::Error::Corrupt { .. })));
    readable.filter_map(Result::transpose).map(|found| found.map_err(|e| Failure::of(&e))).collect()
}

/// A table without rows that has the columns of all tables of its name: a job's own name means the first of its ports
/// that has rows, which is not known before the job has run.
fn promised(table: &Table, all: &[Table]) -> Result<Arc<dyn TableProvider>, Failure> {
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

fn schema_of(table: &Table) -> Result<Schema, Failure> {
    table.kind.schema().ok_or_else(|| Failure::new(ExitCode::Bug, format!("{} is no table", table.kind)))
}

/// The type of each constant column: that of its values, if they have one.
fn constant_types(table: &Table) -> BTreeMap<&str, DataType> {
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

/// `root`: what the URLs of its files are before the key.
async fn port(context: &SessionContext, root: &str, table: &Table) -> Result<Arc<dyn TableProvider>, Failure> {
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
fn in_memory(table: &Table, part: &Part) -> Result<Arc<dyn TableProvider>, Failure> {
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
    table: &Table,
    part: &Part,
) -> Result<Arc<dyn TableProvider>, Failure> {
    let listing = async |files: &[ports::File]| {
        let urls = files.iter().map(|file| ListingTableUrl::parse(format!("{root}{}", escaped(&file.key))));
        let urls = urls.collect::<Result<Vec<_>, _>>()?;
        // A format that is not told keeps settings of its own.
        let format = ParquetFormat::default().with_options(context.state().default_table_options().parquet);
        let options = ListingOptions::new(Arc::new(format)).with_file_extension("");
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

/// A key as part of a URL; every character that could mean something there is escaped.
fn escaped(key: &str) -> String {
    key.bytes().fold(String::new(), |mut url, b| {
        match b.is_ascii_alphanumeric() || b"-_./=,!".contains(&b) {
            true => url.push(b as char),
            false => url += &format!("%{b:02X}"),
        }
        url
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use smelt_schemas::kind;

    #[test]
    fn a_column_of_constants_has_the_type_of_its_values() {
        let of = |values: &[Value]| {
            let part =
                |v: &Value| Part { constants: [("x".to_owned(), v.clone())].into_iter().collect(), ..Part::default() };
            let parts = values.iter().map(part).collect();
            let table = Table { schema: None, name: "t".into(), kind: kind::documents(), parts };
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
    fn any_key_is_one_path_of_a_url() {
        assert_eq!(escaped("a/b c#?%\\\n.parquet"), "a/b%20c%23%3F%25%5C%0A.parquet");
        assert_eq!(escaped("a!5Bx=1!5D/é"), "a!5Bx=1!5D/%C3%A9");
    }
}
