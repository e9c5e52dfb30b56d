//! From a pipeline file to checked jobs: variables, `--set`, instances, stages, inputs, configs. Every error that can
//! be found before a job runs is reported here, with its place in the file.

mod condition;
mod configs;
mod connect;
mod draft;
mod file;
mod include;
mod inputs;
mod instances;
mod repeat;
mod report;
mod shape;
mod store;
mod typed;
mod units;
mod values;

pub(crate) use self::condition::Condition;
pub(crate) use self::draft::Input;
pub(crate) use self::file::{head, pipeline_file};
use self::include::Source;
pub(crate) use self::include::Texts;
pub(crate) use self::report::{Report, Views};
pub(crate) use self::store::{DEFAULT_STORE, StoreBy, open_store, store_address};
use self::values::{Set, substitute};
use crate::diagnostic::{Place, Result};
use crate::programs::Program;
use serde_json::{Map, Value};
use smelt_schemas::{CommitMode, OnFailure, Resolved, RunOptions};
use smelt_store::Cache;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A checked pipeline: jobs in an order in which each comes after its inputs.
pub(crate) struct Plan {
    pub name: String,
    pub file: String,
    /// The text of the file.
    pub text: String,
    /// The texts of the files that it includes.
    pub included: Texts,
    pub store: String,
    /// Who named the store.
    pub store_by: StoreBy,
    /// Whether the file says that its store has no create-only puts.
    pub single_writer: bool,
    /// The cache that the file names for its store.
    pub cache: Option<Cache>,
    /// What `--set`, `--vars` and SMELT_VAR_* changed, as `--set` would say it.
    pub set: Vec<String>,
    pub on_failure: OnFailure,
    pub views: Views,
    pub report: Option<Report>,
    pub jobs: Vec<Instance>,
}

impl Plan {
    /// The `--store` that a command on this pipeline's store needs; empty if it finds the store by itself.
    pub(crate) fn store_flag(&self) -> String {
        match self.store_by {
            StoreBy::CommandLine | StoreBy::File if self.store != DEFAULT_STORE => format!(" --store {}", self.store),
            _ => String::new(),
        }
    }
}

/// One instance of a job.
pub(crate) struct Instance {
    /// `score`, or `score[seed=1]`.
    pub name: String,
    pub base: String,
    pub axes: Map<String, Value>,
    pub program: Program,
    /// What each input port reads.
    pub inputs: BTreeMap<String, Vec<Input>>,
    /// It runs only if all of these hold.
    pub when: Vec<Condition>,
    pub resolved: Resolved,
    pub run: RunOptions,
    pub limits: Limits,
    /// Where the job stands in the file.
    pub place: Option<Place>,
}

impl Instance {
    /// Jobs that must be done before this one is: those that it reads, then those that its gate asks.
    pub(crate) fn needs(&self) -> impl Iterator<Item = usize> + '_ {
        let reads = self.inputs.values().flatten();
        let reads = reads.filter_map(|i| if let Input::Job { job, .. } = i { Some(*job) } else { None });
        reads.chain(self.when.iter().flat_map(|condition| condition.jobs.iter().copied()))
    }
}

/// Times and amounts of `run:`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// Seconds.
    pub timeout: Option<f64>,
    /// Seconds on a node of a cluster, until the job is queued again.
    pub stretch: Option<f64>,
    /// Seconds before the end of a stretch at which the job is told to save.
    pub grace: Option<f64>,
    /// Bytes.
    pub memory: Option<u64>,
}

/// What the command line says about a pipeline.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub store: Option<String>,
    /// `path=value`
    pub set: Vec<String>,
    /// Files of variables.
    pub vars: Vec<PathBuf>,
    /// Whether SMELT_VAR_* count. A recorded run has them among what was set.
    pub environment: bool,
}

pub(crate) fn load(file: &Path, options: &Options) -> Result<Plan> {
    load_texts(file, file::text(file)?, Source::Disk(Texts::new()), options)
}

/// The same for the texts that `file` and what it includes had when they were read.
pub(crate) fn load_recorded(file: &Path, text: String, included: Texts, options: &Options) -> Result<Plan> {
    load_texts(file, text, Source::Recorded(included), options)
}

fn load_texts(file: &Path, text: String, mut source: Source, options: &Options) -> Result<Plan> {
    let mut tree = file::tree(file, &text, &mut source)?;
    // What comes later counts more.
    let mut sets = if options.environment { Set::of_environment(environment(), &tree)? } else { Vec::new() };
    for file in &options.vars {
        sets.extend(Set::of_file(file, &tree)?);
    }
    for words in &options.set {
        sets.push(Set::parse(words, &tree)?);
    }
    // Variables first: if one of them is an object, a `--set` inside it changes only that field.
    sets.iter().filter(|s| s.job.is_none()).for_each(|s| s.apply(&mut tree));
    let vars = tree.value.get("vars").and_then(Value::as_object).cloned().unwrap_or_default();
    let fill = |value: &mut Value| substitute(value, &|name| vars.get(name).cloned());
    fill(&mut tree.value);
    sets.iter().filter(|s| s.job.is_some() && s.instance.is_none()).for_each(|s| s.apply(&mut tree));
    fill(&mut tree.value);
    typed::inherit(&mut tree);
    let value = std::mem::take(&mut tree.value);
    let pipeline = typed::typed(&tree, value)?;
    let drafts = instances::instances(&tree, &pipeline, &sets)?;
    let base = file.parent().unwrap_or(Path::new("."));
    let mut programs = HashMap::new();
    for draft in &drafts {
        if !programs.contains_key(&draft.text.stage) {
            let program = Program::load(&draft.text.stage, base).map_err(|e| e.at(draft.place(&tree, "/stage")))?;
            programs.insert(draft.text.stage.clone(), program);
        }
        instances::check_axes(&tree, draft, &programs[&draft.text.stage])?;
    }
    let in_file = pipeline.store.as_ref().map(|store| store.url.as_str());
    let (address, store_by) = store_address(options.store.as_deref(), in_file);
    let store = open_store(&address, store_by, tree.place("/store"))?;
    let jobs = connect::connect(&tree, &pipeline, drafts, &programs, &store)?;
    let place = |name: &String| (name.clone(), tree.place(&format!("/views/{name}")));
    let places = pipeline.views.keys().map(place).collect();
    let views = Views { sql: pipeline.views.into_iter().collect(), places };
    // What the file says of its own store says nothing of another one.
    let own_store = pipeline.store.filter(|_| store_by == StoreBy::File).unwrap_or_default();
    let cache = store::cache(&own_store).map_err(|e| e.at(tree.place("/store/cache")))?;
    let report = pipeline.report.map(|sql| Report { sql, place: tree.place("/report"), text: text.clone() });
    Ok(Plan {
        name: pipeline.name,
        file: file.display().to_string(),
        text,
        included: source.texts(),
        store: address,
        store_by,
        single_writer: own_store.commit == CommitMode::SingleWriter,
        cache,
        set: sets.into_iter().map(|set| set.words).collect(),
        on_failure: pipeline.on_failure,
        views,
        report,
        jobs,
    })
}

/// Variables of the environment that are text.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::diagnostic::Place;
    use std::sync::Arc;

    /// A job that reads nothing, of a stage that is nowhere.
    pub(crate) fn instance(name: &str, run: RunOptions, limits: Limits) -> Instance {
        let description = serde_json::json!({
            "protocol": 1, "name": "stage", "version": 1, "about": "", "outputs": [], "config": {},
        });
        let description = Arc::new(serde_json::from_value(description).unwrap());
        Instance {
            name: name.into(),
            base: name.split('[').next().unwrap_or(name).into(),
            axes: Map::new(),
            program: Program { path: PathBuf::from("/stage"), description },
            inputs: BTreeMap::new(),
            when: Vec::new(),
            resolved: Resolved { config: Value::Null, outputs: Vec::new(), sources: Vec::new() },
            run,
            limits,
            place: Some(Place { file: "p.yaml".into(), line: 3, column: 5 }),
        }
    }
}
