//! From a pipeline file to checked jobs: variables, `--set`, instances, stages, inputs, configs. Every error that can
//! be found before a job runs is reported here, with its place in the file.

mod draft;
mod inputs;
mod shape;
mod values;

use self::draft::Draft;
pub(crate) use self::draft::Input;
use self::inputs::{main_port, resolve_reference, unknown_port};
use self::shape::{Schemas, wrong_type};
use self::values::{Set, from_environment, substitute, unfilled};
use crate::diagnostic::{Diagnostic, Place, Result, nearest};
use crate::programs::{Answer, Program};
use crate::yaml::{self, Tree};
use indexmap::IndexMap;
use serde_json::{Map, Value};
use smelt_schemas::{
    Arity, CommitMode, Device, Each, ExitCode, Job, Pipeline, Problem, ResolveRequest, Resolved, RunOptions,
    StoreConfig, parse_bytes,
};
use smelt_store::{CACHE_BYTES, Cache, Store};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A checked pipeline: jobs in an order in which each comes after its inputs.
pub(crate) struct Plan {
    pub name: String,
    pub file: String,
    pub store: String,
    /// Who named the store.
    pub store_by: StoreBy,
    /// Whether the file says that its store has no create-only puts.
    pub single_writer: bool,
    /// The cache that the file names for its store.
    pub cache: Option<Cache>,
    /// What `--set` changed.
    pub set: Vec<String>,
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

/// Names for queries, and their place in the file.
pub(crate) struct Views {
    pub sql: BTreeMap<String, String>,
    pub place: Option<Place>,
}

/// SQL whose answer is printed last, and its place in the file.
pub(crate) struct Report {
    pub sql: String,
    place: Option<Place>,
    /// The text of the pipeline file.
    text: String,
}

impl Report {
    /// Turns a place in the query into a place in the file, both counted from 1; the place of the whole query if it
    /// cannot be found.
    pub(crate) fn place(&self, line: u64, column: u64) -> Option<Place> {
        let of_query = self.place.clone()?;
        let exact = || {
            let wanted = self.sql.lines().nth(line.checked_sub(1)? as usize)?.trim_end();
            let indent = wanted.len() - wanted.trim_start().len();
            let skipped = of_query.line.checked_sub(1)? as usize;
            let (above, found) =
                self.text.lines().enumerate().skip(skipped).find(|(_, l)| l.contains(wanted.trim()))?;
            let before = found[..found.find(wanted.trim())?].chars().count() as u64;
            Some((above as u64 + 1, (before + column).checked_sub(indent as u64)?))
        };
        Some(exact().map_or(of_query.clone(), |(line, column)| Place { line, column, ..of_query }))
    }
}

/// Who said where artifacts are kept; the first of these that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreBy {
    CommandLine,
    Environment,
    File,
    Nobody,
}

/// Where artifacts are kept, and who said so. `in_file`: the pipeline's own `store:`.
pub(crate) fn store_address(given: Option<&str>, in_file: Option<&str>) -> (String, StoreBy) {
    let environment = std::env::var("SMELT_STORE").ok().filter(|s| !s.is_empty());
    match (given, environment, in_file) {
        (Some(given), _, _) => (given.into(), StoreBy::CommandLine),
        (None, Some(set), _) => (set, StoreBy::Environment),
        (None, None, Some(own)) => (own.into(), StoreBy::File),
        (None, None, None) => (DEFAULT_STORE.into(), StoreBy::Nobody),
    }
}

/// Opens a store. The error of a bad address names where the address came from. `place`: of the pipeline's `store:`.
pub(crate) fn open_store(address: &str, by: StoreBy, place: Option<Place>) -> Result<Store> {
    let opened = from_environment(address).and_then(|address| Ok(Store::open(&address)?));
    opened.map_err(|error| {
        error.at(match by {
            StoreBy::CommandLine => Some(Place::named("--store")),
            StoreBy::Environment => Some(Place::named("SMELT_STORE")),
            StoreBy::File => place,
            StoreBy::Nobody => None,
        })
    })
}

/// The cache of a pipeline's store. SMELT_CACHE overrides it.
fn cache(store: &StoreConfig) -> Result<Option<Cache>> {
    let Some(config) = store.cache.as_ref().filter(|_| std::env::var_os("SMELT_CACHE").is_none()) else {
        return Ok(None);
    };
    let bytes = match &config.size {
        None => CACHE_BYTES,
        Some(size) => parse_bytes(size).ok_or_else(|| {
            Diagnostic::pipeline(format!("`{size}` is no size of a cache")).hint("write `500MiB` or `50GiB`")
        })?,
    };
    let path = from_environment(&config.path)?;
    let folder = match path.strip_prefix("~/") {
        Some(rest) => Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(rest),
        None => PathBuf::from(path),
    };
    Ok(Some(Cache::new(&folder, bytes)?))
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
    pub resolved: Resolved,
    pub run: RunOptions,
    pub timeout: Option<f64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Where the job stands in the file.
    pub place: Option<Place>,
}

/// What the command line says about a pipeline.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub store: Option<String>,
    /// `path=value`
    pub set: Vec<String>,
}

/// More processes on one machine are a slip of the pen.
const MOST_WORKERS: usize = 1024;
/// Below this, buffers of files take more than what is sorted.
const LEAST_MEMORY: (&str, u64) = ("64MiB", 64 << 20);

/// Where artifacts are kept unless somebody says otherwise.
pub(crate) const DEFAULT_STORE: &str = "artifacts";

/// A pipeline's name, and the store that its file names.
pub(crate) struct Head {
    pub name: String,
    pub store: Option<String>,
}

/// Reads the name and the store of a file, and checks nothing else.
pub(crate) fn head(file: &Path) -> Result<Head> {
    let (mut tree, _) = read(file)?;
    let vars = tree.value.get("vars").and_then(Value::as_object).cloned().unwrap_or_default();
    substitute(&mut tree.value, &|name| vars.get(name).cloned());
    let text = |of: Option<&Value>| of.and_then(Value::as_str).map(str::to_owned);
    let store = tree.value.get("store");
    let store = text(store).or_else(|| text(store?.get("url")));
    Ok(Head { name: text(tree.value.get("name")).unwrap_or_default(), store })
}

/// A file as a tree, and its text.
fn read(file: &Path) -> Result<(Tree, String)> {
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| {
        let error = Diagnostic::pipeline(format!("pipeline `{shown}` cannot be read: {e}"));
        if file.extension().is_none() {
            error.hint("name the YAML file, such as `pipelines/quickstart.yaml`")
        } else {
            error
        }
    })?;
    let tree = yaml::parse(&text, &shown)?;
    if tree.value.is_null() {
        return Err(Diagnostic::pipeline(format!("pipeline `{shown}` is empty"))
            .hint("`name: NAME` and `jobs: { JOB: { stage: STAGE } }` are the least it says"));
    }
    Ok((tree, text))
}

pub(crate) fn load(file: &Path, options: &Options) -> Result<Plan> {
    let (mut tree, text) = read(file)?;
    let sets = options.set.iter().map(|words| Set::parse(words, &tree)).collect::<Result<Vec<_>>>()?;
    // Variables first: if one of them is an object, a `--set` inside it changes only that field.
    sets.iter().filter(|s| s.job.is_none()).for_each(|s| s.apply(&mut tree));
    let vars = tree.value.get("vars").and_then(Value::as_object).cloned().unwrap_or_default();
    let fill = |value: &mut Value| substitute(value, &|name| vars.get(name).cloned());
    fill(&mut tree.value);
    sets.iter().filter(|s| s.job.is_some() && s.instance.is_none()).for_each(|s| s.apply(&mut tree));
    fill(&mut tree.value);
    let value = std::mem::take(&mut tree.value);
    let pipeline = typed(&tree, value)?;
    let drafts = instances(&tree, &pipeline, &sets)?;
    let base = file.parent().unwrap_or(Path::new("."));
    let mut programs = HashMap::new();
    for draft in &drafts {
        if !programs.contains_key(&draft.text.stage) {
            let program = Program::load(&draft.text.stage, base).map_err(|e| e.at(draft.place(&tree, "/stage")))?;
            programs.insert(draft.text.stage.clone(), program);
        }
        check_axes(&tree, draft, &programs[&draft.text.stage])?;
    }
    let in_file = pipeline.store.as_ref().map(|store| store.url.as_str());
    let (address, store_by) = store_address(options.store.as_deref(), in_file);
    let store = open_store(&address, store_by, tree.place("/store"))?;
    let jobs = connect(&tree, &pipeline, drafts, &programs, &store)?;
    let views = Views { sql: pipeline.views.into_iter().collect(), place: tree.place("/views") };
    let report = pipeline.report.map(|sql| Report { sql, place: tree.place("/report"), text });
    // What the file says of its own store says nothing of another one.
    let own_store = pipeline.store.filter(|_| store_by == StoreBy::File).unwrap_or_default();
    let cache = cache(&own_store).map_err(|e| e.at(tree.place("/store/cache")))?;
    Ok(Plan {
        name: pipeline.name,
        file: file.display().to_string(),
        store: address,
        store_by,
        single_writer: own_store.commit == CommitMode::SingleWriter,
        cache,
        set: options.set.clone(),
        views,
        report,
        jobs,
    })
}

/// What is called so is a name in SQL, where jobs are schemas.
fn check_name(kind: &str, name: &str, place: Option<Place>) -> Result<()> {
    let good = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let taken = ["smelt", "public", "information_schema"].contains(&name);
    if good && !taken {
        return Ok(());
    }
    Err(Diagnostic::pipeline(format!("`{name}` is no name for a {kind}")).at(place).hint(match taken {
        true => "SQL has another use for it",
        false => "begin with a lower-case letter, go on with lower-case letters, digits and `_`",
    }))
}

fn typed(tree: &Tree, value: Value) -> Result<Pipeline> {
    let pipeline: Pipeline = serde_path_to_error::deserialize(value).map_err(|e| {
        let pointer: String = e.path().iter().map(|s| format!("/{s}").replace("/[", "/").replace(']', "")).collect();
        let text = e.inner().to_string();
        let unknown =
            text.strip_prefix("unknown field `").and_then(|t| Some((t.split_once('`')?.0.to_owned(), t.to_owned())));
        match unknown {
            Some((name, rest)) => {
                let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
                let place = tree.key_place(&pointer);
                let error = Diagnostic::pipeline(format!("unknown key `{name}`")).at(place);
                match nearest(&name, known.iter().copied()) {
                    Some(near) => error.hint(format!("is `{near}` meant?")),
                    None => error.hint(format!("known keys: {}", known.join(", "))),
                }
            }
            None => wrong_type(&pointer.trim_start_matches('/').replace('/', "."), &text).at(tree.place(&pointer)),
        }
    })?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if !pipeline.name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !pipeline.name.bytes().all(good) {
        return Err(Diagnostic::pipeline(format!("`{}` is no name for a pipeline", pipeline.name))
            .at(tree.place("/name"))
            .hint("begin with a letter or digit, go on with letters, digits, `-`, `_` and `.`"));
    }
    for name in pipeline.views.keys() {
        let place = tree.key_place(&format!("/views/{name}"));
        if pipeline.jobs.contains_key(name) {
            return Err(Diagnostic::pipeline(format!("`{name}` is a job and a view"))
                .at(place)
                .hint("give the view another name"));
        }
        check_name("view", name, place)?;
    }
    for (name, job) in &pipeline.jobs {
        for (kind, name, pointer) in std::iter::once(("job", name, format!("/jobs/{name}")))
            .chain(job.each.keys().map(|a| ("axis", a, format!("/jobs/{name}/each/{a}"))))
        {
            check_name(kind, name, tree.key_place(&pointer))?;
        }
        let refuse = |field: &str, what: &str, hint: &str| {
            let place = tree.place(&format!("/jobs/{name}/run/{field}"));
            Err(Diagnostic::pipeline(format!("job `{name}`: {what}")).at(place).hint(hint))
        };
        if job.run.threads == Some(0) {
            return refuse(
                "threads",
                "no job runs on 0 threads",
                "say 1 or more, or leave it out for what the stage takes",
            );
        }
        let workers = job.run.workers.unwrap_or(1);
        if !(1..=MOST_WORKERS).contains(&workers) {
            return refuse(
                "workers",
                &format!("{workers} processes cannot do it together, expected 1 to {MOST_WORKERS}"),
                "leave it out for one; each takes at least one thread",
            );
        }
        if job.run.save.seconds.is_nan() || job.run.save.seconds < 0.0 {
            let what = format!("{} seconds lie between no two saves", job.run.save.seconds);
            return refuse("save/seconds", &what, "say 0 to save after every step, or more");
        }
        if job.run.save.last == 0 {
            return refuse("save/last", "with 0 saves there is nothing to continue from", "say 1 or more");
        }
    }
    if pipeline.jobs.is_empty() {
        return Err(Diagnostic::pipeline("the pipeline has no jobs").at(tree.place("/jobs")));
    }
    Ok(pipeline)
}

/// An axis is a column of the job's tables, so it must not hide one of theirs.
fn check_axes(tree: &Tree, draft: &Draft, program: &Program) -> Result<()> {
    for port in &program.description.outputs {
        let Some(schema) = port.kind.schema() else { continue };
        if let Some(axis) = draft.axes.keys().find(|a| schema.field_with_name(a).is_ok()) {
            let (port, kind) = (&port.name, &port.kind.name);
            return Err(Diagnostic::pipeline(format!(
                "axis `{axis}` of job `{}` would hide the column `{axis}` of its {kind} (port `{port}`)",
                draft.base
            ))
            .at(tree.key_place(&format!("/jobs/{}/each/{axis}", draft.base)))
            .hint("give the axis another name"));
        }
    }
    Ok(())
}

/// Every combination of a job's axes, the last axis fastest.
fn instances(tree: &Tree, pipeline: &Pipeline, sets: &[Set]) -> Result<Vec<Draft>> {
    let mut drafts: Vec<Draft> = Vec::new();
    for (base, text) in &pipeline.jobs {
        let mut combinations = vec![IndexMap::new()];
        for (axis, values) in &text.each {
            if values.is_empty() {
                let place = tree.place(&format!("/jobs/{base}/each/{axis}"));
                return Err(Diagnostic::pipeline(format!("axis `{axis}` of job `{base}` has no values")).at(place));
            }
            combinations = combinations
                .into_iter()
                .flat_map(|c: IndexMap<String, Value>| {
                    values.iter().map(move |v| {
                        let mut c = c.clone();
                        c.insert(axis.clone(), v.clone());
                        c
                    })
                })
                .collect();
        }
        // An instance has its own values; the lists of all would make a thousand instances a million values.
        let plain = serde_json::to_value(Job { each: Each::default(), ..text.clone() }).expect("a job is plain data");
        for axes in combinations {
            let name = instance_name(base, &axes);
            let mut value = plain.clone();
            substitute(&mut value, &|name| axes.get(name).cloned());
            let mut own = Tree::of(value);
            let mut set = Vec::new();
            for s in sets.iter().filter(|s| s.instance.as_ref() == Some(&name)) {
                s.apply(&mut own);
                set.push((s.pointer.clone(), s.words.clone()));
            }
            let value = own.value;
            if let Some((pointer, name)) = unfilled(&value, &format!("/jobs/{base}")) {
                let error =
                    Diagnostic::pipeline(format!("`${{{name}}}` is neither in `vars` nor an axis of job `{base}`"));
                return Err(error
                    .at(tree.place(&pointer))
                    .hint("add it under `vars:`, or write an environment variable in capitals"));
            }
            let text: Job = serde_path_to_error::deserialize(value).map_err(|e| {
                let given = set.last().map(|(_, words)| Place::named(format!("--set {words}")));
                wrong_type(&format!("{name}.{}", e.path()), &e.inner().to_string())
                    .at(given)
                    .at(tree.place(&format!("/jobs/{base}")))
            })?;
            drafts.push(Draft { name, base: base.clone(), axes, text, set });
        }
    }
    for s in sets {
        let (Some(job), Some(instance)) = (&s.job, &s.instance) else { continue };
        if !drafts.iter().any(|d| d.name == *instance) {
            let known: Vec<&str> = drafts.iter().filter(|d| d.base == *job).map(|d| d.name.as_str()).collect();
            return Err(Diagnostic::pipeline(format!("there is no instance `{instance}`"))
                .at(Some(Place::named(format!("--set {}", s.words))))
                .hint(format!("instances: {}", known.join(", "))));
        }
    }
    Ok(drafts)
}

fn instance_name(base: &str, axes: &IndexMap<String, Value>) -> String {
    if axes.is_empty() {
        return base.into();
    }
    let show = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let parts: Vec<String> = axes.iter().map(|(k, v)| format!("{k}={}", show(v))).collect();
    format!("{base}[{}]", parts.join(","))
}

fn connect(
    tree: &Tree,
    pipeline: &Pipeline,
    drafts: Vec<Draft>,
    programs: &HashMap<String, Program>,
    store: &Store,
) -> Result<Vec<Instance>> {
    // 1. What each reference means: other drafts, or committed artifacts.
    let mut all_inputs: Vec<BTreeMap<String, Vec<Input>>> = Vec::new();
    for draft in &drafts {
        let program = &programs[&draft.text.stage];
        let mut inputs: BTreeMap<String, Vec<Input>> = BTreeMap::new();
        for (port, references) in &draft.text.input.0 {
            let pointer = port.as_ref().map_or_else(|| "/input".to_owned(), |p| format!("/input/{p}"));
            let at = |e: Diagnostic| e.at(draft.place(tree, &pointer));
            let spec = match port {
                Some(name) => {
                    program.description.input(name).ok_or_else(|| unknown_port(draft, program, name)).map_err(at)?
                }
                None => main_port(draft, program).map_err(at)?,
            };
            for reference in references {
                let found = resolve_reference(reference, draft, spec, &drafts, programs, store).map_err(at)?;
                inputs.entry(spec.name.clone()).or_default().extend(found);
            }
            let n = inputs.get(&spec.name).map_or(0, Vec::len);
            if n > 1 && matches!(spec.arity, Arity::One | Arity::Optional) {
                return Err(at(Diagnostic::pipeline(format!(
                    "job `{}`: input `{}` takes one artifact, {n} are given",
                    draft.name, spec.name
                ))));
            }
        }
        for spec in &program.description.inputs {
            if matches!(spec.arity, Arity::One | Arity::List) && !inputs.contains_key(&spec.name) {
                let error = Diagnostic::pipeline(format!(
                    "job `{}` has no input `{}`; stage `{}` needs {} there",
                    draft.name, spec.name, draft.text.stage, spec.kind
                ));
                return Err(error
                    .at(tree.key_place(&format!("/jobs/{}", draft.base)))
                    .hint(format!("add `input: {{ {}: … }}`", spec.name)));
            }
        }
        all_inputs.push(inputs);
    }
    // 2. An order in which every job comes after its inputs; ties keep the file's order.
    let order = sort(tree, &drafts, &all_inputs)?;
    let place_of: HashMap<usize, usize> = order.iter().enumerate().map(|(new, &old)| (old, new)).collect();
    // 3. Configs: checked by the schema first, because its errors name the field, then by the stage.
    let mut resolved = resolve_configs(tree, pipeline, &drafts, &order, programs, &all_inputs, store)?;
    let mut drafts: Vec<Option<Draft>> = drafts.into_iter().map(Some).collect();
    let mut jobs = Vec::new();
    for &old in &order {
        let draft = drafts[old].take().expect("each draft is taken once");
        let program = programs[&draft.text.stage].clone();
        let resolved = resolved[old].take().expect("each config is resolved once");
        let mut inputs = std::mem::take(&mut all_inputs[old]);
        for input in inputs.values_mut().flatten() {
            if let Input::Job { job, .. } = input {
                *job = place_of[job];
            }
        }
        let refused = |what: String, field: &str, hint: &str| {
            Diagnostic::pipeline(what).at(draft.place(tree, &format!("/run/{field}"))).hint(hint)
        };
        let timeout = draft.text.run.timeout.as_deref().map(|t| {
            seconds(t).ok_or_else(|| refused(format!("`{t}` is no time"), "timeout", "write `90s`, `30m` or `2h`"))
        });
        let memory = draft.text.run.memory.as_deref().map(|m| {
            let what = || format!("`{m}` is no memory to work in, expected {} or more", LEAST_MEMORY.0);
            let least = |bytes: &u64| *bytes >= LEAST_MEMORY.1;
            parse_bytes(m).filter(least).ok_or_else(|| refused(what(), "memory", "write `512MiB` or `4GiB`"))
        });
        jobs.push(Instance {
            place: tree.key_place(&format!("/jobs/{}", draft.base)),
            timeout: timeout.transpose()?,
            memory: memory.transpose()?,
            name: draft.name,
            base: draft.base,
            axes: draft.axes.into_iter().collect(),
            program,
            inputs,
            resolved,
            run: draft.text.run,
        });
    }
    Ok(jobs)
}

fn seconds(text: &str) -> Option<f64> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let factor = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    number.trim().parse::<f64>().ok().filter(|n| *n > 0.0).map(|n| n * factor)
}

fn sort(tree: &Tree, drafts: &[Draft], inputs: &[BTreeMap<String, Vec<Input>>]) -> Result<Vec<usize>> {
    let needs = |i: usize| {
        inputs[i].values().flatten().filter_map(|x| if let Input::Job { job, .. } = x { Some(*job) } else { None })
    };
    let (mut done, mut order) = (vec![false; drafts.len()], Vec::new());
    while order.len() < drafts.len() {
        let Some(next) = (0..drafts.len()).find(|&i| !done[i] && needs(i).all(|n| done[n])) else {
            // Every open job has an open input: following them closes a circle.
            let mut path = vec![(0..drafts.len()).find(|&i| !done[i]).expect("some job is open")];
            loop {
                let next = needs(path[path.len() - 1]).find(|&n| !done[n]).expect("an open job has an open input");
                if let Some(start) = path.iter().position(|&p| p == next) {
                    let mut names: Vec<&str> = path[start..].iter().map(|&i| drafts[i].name.as_str()).collect();
                    names.push(names[0]);
                    names.reverse();
                    let place = drafts[next].place(tree, "/input");
                    return Err(Diagnostic::pipeline(format!("jobs wait for each other: {}", names.join(" -> ")))
                        .at(place)
                        .hint("let one of them read something else"));
                }
                path.push(next);
            }
        };
        done[next] = true;
        order.push(next);
    }
    Ok(order)
}

/// A draft, by its place, and what its stage is asked.
type Asked = (usize, ResolveRequest);

/// The effective config of each draft. Jobs of one stage are asked for together, because a process for each of a
/// thousand instances takes longer than all the rest; stages are asked at the same time.
fn resolve_configs(
    tree: &Tree,
    pipeline: &Pipeline,
    drafts: &[Draft],
    order: &[usize],
    programs: &HashMap<String, Program>,
    inputs: &[BTreeMap<String, Vec<Input>>],
    store: &Store,
) -> Result<Vec<Option<Resolved>>> {
    let mut schemas = Schemas::default();
    let mut groups: IndexMap<(&str, &[String]), Vec<Asked>> = IndexMap::new();
    for &i in order {
        let draft = &drafts[i];
        let program = &programs[&draft.text.stage];
        let mut config: Map<String, Value> = draft.text.config.clone();
        if program.description.takes_seed() && !config.contains_key("seed") {
            config.insert("seed".into(), pipeline.seed.into());
        }
        let config = Value::Object(config);
        schemas.check(tree, draft, &program.description.config, &config)?;
        if draft.text.run.device != Device::Cpu && !program.description.devices {
            let (device, stage) = (draft.text.run.device, &program.description.name);
            let place = tree.place(&format!("/jobs/{}/run/device", draft.base));
            return Err(Diagnostic::pipeline(format!("job `{}`: `{stage}` has nothing to do on {device}", draft.name))
                .at(place)
                .hint("only stages with a model compute on a GPU: leave `device` out here"));
        }
        if draft.text.run.workers.is_some_and(|workers| workers > 1) && !program.description.spreads {
            let stage = &program.description.name;
            let what = format!("job `{}`: `{stage}` cannot be spread over several workers", draft.name);
            let place = tree.place(&format!("/jobs/{}/run/workers", draft.base));
            return Err(Diagnostic::pipeline(what)
                .at(place)
                .hint("leave `workers` out here: `threads` says how many cores its one process may use"));
        }
        let counts = inputs[i].iter().map(|(port, list)| (port.clone(), list.len())).collect();
        let request = ResolveRequest { config, inputs: counts, store: Some(store.address().into()) };
        groups.entry((&draft.text.stage, &draft.text.run.env)).or_default().push((i, request));
    }
    let mut answers: Vec<Option<Answer>> = drafts.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let asked: Vec<_> = groups
            .into_iter()
            .map(|((stage, env), group)| {
                let (places, requests): (Vec<usize>, Vec<ResolveRequest>) = group.into_iter().unzip();
                (places, scope.spawn(move || programs[stage].resolve_all(&requests, env)))
            })
            .collect();
        for (places, answer) in asked {
            let given = answer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            places.into_iter().zip(given).for_each(|(i, answer)| answers[i] = Some(answer));
        }
    });
    let mut resolved: Vec<Option<Resolved>> = drafts.iter().map(|_| None).collect();
    for &i in order {
        let answer = answers[i].take().expect("every draft was asked for");
        resolved[i] = Some(answer.map_err(|refused| refusal(tree, &drafts[i], refused))?);
    }
    Ok(resolved)
}

/// What a stage says against a config, with its place in the file.
fn refusal(tree: &Tree, draft: &Draft, refused: std::result::Result<(ExitCode, Problem), Diagnostic>) -> Diagnostic {
    match refused {
        Ok((code, problem)) => {
            let field = problem.field.unwrap_or_default();
            let dotted = field.trim_start_matches('/').replace('/', ".");
            let shown = if dotted.is_empty() { String::new() } else { format!(", `config.{dotted}`") };
            let error = Diagnostic::new(code, format!("job `{}`{shown}: {}", draft.name, problem.message))
                .at(draft.place(tree, &format!("/config{field}")));
            if let Some(hint) = problem.hint { error.hint(hint) } else { error }
        }
        Err(bug) => bug.at(tree.key_place(&format!("/jobs/{}", draft.base))),
    }
}

/// YAML files here and under `pipelines/`.
pub(crate) fn pipeline_files() -> Vec<PathBuf> {
    let found = |folder: &str| {
        let items = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
        let mut files: Vec<PathBuf> =
            items.filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml")).collect();
        files.sort();
        files.into_iter().map(|p| p.strip_prefix(".").map(Path::to_path_buf).unwrap_or(p))
    };
    found(".").chain(found("pipelines")).collect()
}

/// The file a person means: as given, or the one YAML file here or under `pipelines/`.
pub(crate) fn pipeline_file(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_path_buf());
    }
    let all = pipeline_files();
    match all.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Diagnostic::pipeline("which pipeline? no YAML file is here or in `pipelines/`")
            .hint("name one, such as `path/to/pipeline.yaml`")),
        several => {
            let names: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            Err(Diagnostic::pipeline("which pipeline? there are several, and none is named")
                .hint(format!("name one of {}", names.join(", "))))
        }
    }
}
