//! A pipeline file to checked jobs: variables, `--set`, instances, stages, inputs, configs. Everything that can be
//! wrong before a job runs is said here, with its place in the file.

use crate::diagnostic::{Diagnostic, Place, Result, nearest};
use crate::programs::Program;
use crate::yaml::{self, Tree};
use indexmap::IndexMap;
use jsonschema::error::ValidationErrorKind;
use serde_json::{Map, Value};
use smelt_schemas::{
    Arity, Digest, InputPort, InputRef, Job as JobText, Pipeline, ResolveRequest, Resolved, RunOptions,
};
use smelt_store::Store;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A checked pipeline: jobs in an order in which each comes after its inputs.
pub struct Plan {
    pub name: String,
    pub file: String,
    pub store: String,
    pub report: Option<String>,
    pub jobs: Vec<Job>,
}

/// One instance of a job.
pub struct Job {
    /// `score`, or `score[seed=1]`.
    pub name: String,
    pub base: String,
    pub program: Program,
    /// What each input port reads.
    pub inputs: BTreeMap<String, Vec<Input>>,
    pub resolved: Resolved,
    pub run: RunOptions,
    pub timeout: Option<f64>,
    /// Where the job stands in the file.
    pub place: Option<Place>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A port of another job, by its place in `Plan::jobs`.
    Job { job: usize, port: String },
    /// A committed artifact: `tag:NAME`, `artifact:DIGEST`.
    Fixed(InputRef),
}

/// What the command line says about a pipeline.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub store: Option<String>,
    /// `path=value`
    pub set: Vec<String>,
}

/// Where artifacts are kept unless somebody says otherwise.
pub const DEFAULT_STORE: &str = "artifacts";

/// An instance before its stage and inputs are known.
struct Draft {
    name: String,
    base: String,
    axes: IndexMap<String, Value>,
    text: JobText,
}

pub fn load(file: &Path, options: &Options) -> Result<Plan> {
    let shown = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|e| {
        let error = Diagnostic::pipeline(format!("pipeline `{shown}` cannot be read: {e}"));
        if file.extension().is_none() {
            error.hint("name the YAML file, such as `pipelines/quickstart.yaml`")
        } else {
            error
        }
    })?;
    let mut tree = yaml::parse(&text, &shown)?;
    apply_sets(&mut tree, &options.set)?;
    let vars = tree.value.get("vars").and_then(Value::as_object).cloned().unwrap_or_default();
    let mut value = std::mem::take(&mut tree.value);
    substitute(&mut value, &|name| vars.get(name).cloned());
    let pipeline = typed(&tree, value)?;
    let drafts = instances(&tree, &pipeline)?;
    let base = file.parent().unwrap_or(Path::new("."));
    let mut programs = HashMap::new();
    for draft in &drafts {
        if !programs.contains_key(&draft.text.stage) {
            let program = Program::load(&draft.text.stage, base)
                .map_err(|e| e.at(tree.place(&format!("/jobs/{}/stage", draft.base))))?;
            programs.insert(draft.text.stage.clone(), program);
        }
    }
    let address = options.store.clone().or_else(|| std::env::var("SMELT_STORE").ok().filter(|s| !s.is_empty()));
    let address = address.or_else(|| pipeline.store.clone()).unwrap_or_else(|| DEFAULT_STORE.into());
    let store = Store::open(&address).map_err(|e| Diagnostic::from(e).at(tree.place("/store")))?;
    let jobs = connect(&tree, &pipeline, drafts, &programs, &store)?;
    Ok(Plan { name: pipeline.name, file: shown, store: address, report: pipeline.report, jobs })
}

/// `job.config.field=value`, or `seed=3`, `vars.x=…`, `store=…`.
fn apply_sets(tree: &mut Tree, sets: &[String]) -> Result<()> {
    for set in sets {
        let (path, text) = set.split_once('=').ok_or_else(|| {
            Diagnostic::pipeline(format!("`--set {set}` has no `=`")).hint("write `--set job.config.field=value`")
        })?;
        let mut parts: Vec<&str> = path.split('.').collect();
        let jobs: Vec<String> =
            tree.value.get("jobs").and_then(Value::as_object).map(|j| j.keys().cloned().collect()).unwrap_or_default();
        const TOP: [&str; 5] = ["name", "store", "seed", "vars", "report"];
        if !TOP.contains(&parts[0]) {
            if !jobs.iter().any(|j| j == parts[0]) {
                let error = Diagnostic::pipeline(format!("`--set {path}`: there is no job `{}`", parts[0]));
                return Err(match nearest(parts[0], jobs.iter().map(String::as_str)) {
                    Some(near) => error.hint(format!("is `{near}` meant?")),
                    None => error.hint(format!("jobs: {}", jobs.join(", "))),
                });
            }
            parts.insert(0, "jobs");
        }
        let pointer: String = parts.iter().map(|p| format!("/{}", p.replace('~', "~0").replace('/', "~1"))).collect();
        let mut value = yaml::parse_value(text);
        // One path where the file has a list is a list of one.
        if tree.value.pointer(&pointer).is_some_and(Value::is_array) && !value.is_array() {
            value = Value::Array(vec![value]);
        }
        tree.set(&pointer, value);
    }
    Ok(())
}

/// Replaces `${name}` by what `look_up` knows. A string that is nothing else takes the value's own type. Unknown names
/// stay, and so do names in capitals, which are the stages' to read.
fn substitute(value: &mut Value, look_up: &dyn Fn(&str) -> Option<Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|v| substitute(v, look_up)),
        Value::Object(map) => map.values_mut().for_each(|v| substitute(v, look_up)),
        Value::String(text) => {
            if let Some(whole) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}')).filter(|t| !t.contains('$'))
                && let Some(found) = look_up(whole)
            {
                *value = found;
                return;
            }
            let (mut out, mut rest) = (String::new(), text.as_str());
            while let Some((before, name, after)) = variable(rest) {
                out += before;
                match look_up(name) {
                    Some(Value::String(s)) => out += &s,
                    Some(other) => out += &other.to_string(),
                    None => out += &format!("${{{name}}}"),
                }
                rest = after;
            }
            *text = out + rest;
        }
        _ => {}
    }
}

/// Text before the first `${name}`, the name, text after it.
fn variable(text: &str) -> Option<(&str, &str, &str)> {
    let start = text.find("${")?;
    let end = start + text[start..].find('}')?;
    Some((&text[..start], &text[start + 2..end], &text[end + 1..]))
}

/// The first `${name}` in lower case that nothing filled, with the pointer of its value.
fn unfilled(value: &Value, pointer: &str) -> Option<(String, String)> {
    match value {
        Value::Array(items) => items.iter().enumerate().find_map(|(i, v)| unfilled(v, &format!("{pointer}/{i}"))),
        Value::Object(map) => map.iter().find_map(|(k, v)| unfilled(v, &format!("{pointer}/{k}"))),
        Value::String(text) => {
            let mut rest = text.as_str();
            while let Some((_, name, after)) = variable(rest) {
                if name.starts_with(|c: char| c.is_ascii_lowercase()) {
                    return Some((pointer.into(), name.into()));
                }
                rest = after;
            }
            None
        }
        _ => None,
    }
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
            None => Diagnostic::pipeline(format!("`{}`: {text}", pointer.trim_start_matches('/').replace('/', ".")))
                .at(tree.place(&pointer)),
        }
    })?;
    for (name, job) in &pipeline.jobs {
        for (kind, name, pointer) in std::iter::once(("job", name, format!("/jobs/{name}")))
            .chain(job.each.keys().map(|a| ("axis", a, format!("/jobs/{name}/each/{a}"))))
        {
            let good = name.starts_with(|c: char| c.is_ascii_lowercase())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if !good || name == "smelt" {
                return Err(Diagnostic::pipeline(format!("`{name}` is no name for a {kind}"))
                    .at(tree.key_place(&pointer))
                    .hint("begin with a lower-case letter, go on with lower-case letters, digits and `_`; `smelt` is taken"));
            }
        }
    }
    if pipeline.jobs.is_empty() {
        return Err(Diagnostic::pipeline("the pipeline has no jobs").at(tree.place("/jobs")));
    }
    Ok(pipeline)
}

/// Every combination of a job's axes, the last axis fastest.
fn instances(tree: &Tree, pipeline: &Pipeline) -> Result<Vec<Draft>> {
    let mut drafts = Vec::new();
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
        for axes in combinations {
            let mut value = serde_json::to_value(text).expect("a job is plain data");
            substitute(&mut value, &|name| axes.get(name).cloned());
            if let Some((pointer, name)) = unfilled(&value, &format!("/jobs/{base}")) {
                let error =
                    Diagnostic::pipeline(format!("`${{{name}}}` is neither in `vars` nor an axis of job `{base}`"));
                return Err(error
                    .at(tree.place(&pointer))
                    .hint("add it under `vars:`, or write an environment variable in capitals"));
            }
            let text: JobText = serde_json::from_value(value).map_err(|e| {
                Diagnostic::pipeline(format!("job `{base}`: {e}")).at(tree.place(&format!("/jobs/{base}")))
            })?;
            drafts.push(Draft { name: instance_name(base, &axes), base: base.clone(), axes, text });
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
) -> Result<Vec<Job>> {
    // 1. What each reference means: other drafts, or committed artifacts.
    let mut all_inputs: Vec<BTreeMap<String, Vec<Input>>> = Vec::new();
    for draft in &drafts {
        let program = &programs[&draft.text.stage];
        let mut inputs: BTreeMap<String, Vec<Input>> = BTreeMap::new();
        for (port, references) in &draft.text.input.0 {
            let pointer = match port {
                Some(p) => format!("/jobs/{}/input/{p}", draft.base),
                None => format!("/jobs/{}/input", draft.base),
            };
            let at = |e: Diagnostic| e.at(tree.place(&pointer));
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
    // 3. Configs, checked by the schema first, for its errors name the field, then by the stage.
    let mut drafts: Vec<Option<Draft>> = drafts.into_iter().map(Some).collect();
    let mut jobs = Vec::new();
    for &old in &order {
        let draft = drafts[old].take().expect("each draft is taken once");
        let program = programs[&draft.text.stage].clone();
        let mut inputs = std::mem::take(&mut all_inputs[old]);
        for input in inputs.values_mut().flatten() {
            if let Input::Job { job, .. } = input {
                *job = place_of[job];
            }
        }
        let resolved = resolve_config(tree, pipeline, &draft, &program, &inputs)?;
        let timeout = draft.text.run.timeout.as_deref().map(|t| {
            seconds(t).ok_or_else(|| {
                let place = tree.place(&format!("/jobs/{}/run/timeout", draft.base));
                Diagnostic::pipeline(format!("`{t}` is no time")).at(place).hint("write `90s`, `30m` or `2h`")
            })
        });
        jobs.push(Job {
            place: tree.key_place(&format!("/jobs/{}", draft.base)),
            timeout: timeout.transpose()?,
            name: draft.name,
            base: draft.base,
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

fn unknown_port(draft: &Draft, program: &Program, name: &str) -> Diagnostic {
    let known: Vec<&str> = program.description.inputs.iter().map(|p| p.name.as_str()).collect();
    let error =
        Diagnostic::pipeline(format!("stage `{}` of job `{}` has no input `{name}`", draft.text.stage, draft.name));
    match known.as_slice() {
        [] => error.hint("it takes no input"),
        _ => error.hint(format!("its inputs: {}", known.join(", "))),
    }
}

/// The port that an input without a name goes to: the first one.
fn main_port<'a>(draft: &Draft, program: &'a Program) -> Result<&'a InputPort> {
    program.description.inputs.first().ok_or_else(|| {
        Diagnostic::pipeline(format!("job `{}` has an input, but stage `{}` takes none", draft.name, draft.text.stage))
    })
}

fn resolve_reference(
    reference: &str,
    draft: &Draft,
    spec: &InputPort,
    drafts: &[Draft],
    programs: &HashMap<String, Program>,
    store: &Store,
) -> Result<Vec<Input>> {
    if let Some(rest) = reference.strip_prefix("tag:") {
        let (name, port) = rest.split_once('.').map_or((rest, None), |(n, p)| (n, Some(p)));
        let tag = store.tag(name)?.ok_or_else(|| {
            Diagnostic::pipeline(format!("there is no tag `{name}` in {}", store.address()))
                .hint("`smelt artifacts tag NAME JOB` makes one")
        })?;
        return fixed(store, &tag.artifact, port, spec, reference).map(|i| vec![i]);
    }
    if let Some(rest) = reference.strip_prefix("artifact:") {
        let (digest, port) = rest.split_once('.').map_or((rest, None), |(n, p)| (n, Some(p)));
        return by_digest(store, digest, port, spec, reference).map(|i| vec![i]);
    }
    let (base, axes, port) = split_reference(reference)?;
    let named: Vec<usize> = (0..drafts.len()).filter(|&i| drafts[i].base == base).collect();
    if named.is_empty() {
        let mut known: Vec<&str> = drafts.iter().map(|d| d.base.as_str()).collect();
        known.dedup();
        let error = Diagnostic::pipeline(format!("job `{}` reads `{base}`, and there is no such job", draft.name));
        return Err(match nearest(base, known.iter().copied()) {
            Some(near) => error.hint(format!("is `{near}` meant?")),
            None => error.hint(format!("jobs: {}", known.join(", "))),
        });
    }
    let chosen: Vec<usize> = match axes {
        Some("*") => named,
        Some(wanted) => {
            let full = format!("{base}[{wanted}]");
            let found: Vec<usize> = named.iter().copied().filter(|&i| drafts[i].name == full).collect();
            if found.is_empty() {
                let names: Vec<&str> = named.iter().map(|&i| drafts[i].name.as_str()).collect();
                return Err(Diagnostic::pipeline(format!(
                    "job `{}` reads `{full}`, and there is no such instance",
                    draft.name
                ))
                .hint(format!("instances: {}", names.join(", "))));
            }
            found
        }
        // Axes that both have join; an axis that only the producer has needs a word.
        None => {
            if let Some(missing) = drafts[named[0]].axes.keys().find(|a| !draft.axes.contains_key(*a)) {
                return Err(Diagnostic::pipeline(format!(
                    "job `{}` reads `{base}`, which is made for each `{missing}`",
                    draft.name
                ))
                .hint(format!("read all with `{base}[*]`, or give `{}` the same axis", draft.base)));
            }
            let joined = |i: &usize| drafts[*i].axes.iter().all(|(a, v)| draft.axes.get(a) == Some(v));
            let found: Vec<usize> = named.iter().copied().filter(joined).collect();
            if found.is_empty() {
                return Err(Diagnostic::pipeline(format!("`{}` has no matching instance of `{base}`", draft.name))
                    .hint("give both jobs the same values"));
            }
            found
        }
    };
    chosen
        .into_iter()
        .map(|job| {
            let producer = &programs[&drafts[job].text.stage].description;
            let output = match port {
                Some(name) => producer.output(name).ok_or_else(|| {
                    let known: Vec<&str> = producer.outputs.iter().map(|p| p.name.as_str()).collect();
                    Diagnostic::pipeline(format!("job `{base}` has no port `{name}`"))
                        .hint(format!("its ports: {}", known.join(", ")))
                })?,
                None => producer
                    .outputs
                    .iter()
                    .find(|o| o.kind.fits(&spec.kind))
                    .or(producer.outputs.first())
                    .ok_or_else(|| Diagnostic::pipeline(format!("job `{base}` gives nothing")))?,
            };
            if !output.kind.fits(&spec.kind) {
                let error = Diagnostic::pipeline(format!(
                    "job `{}` reads {}, but `{base}` gives {}",
                    draft.name, spec.kind.name, output.kind.name
                ));
                return Err(match (output.kind.name.as_str(), spec.kind.name.as_str()) {
                    ("documents", "tokens") => error.hint("run `tokenize` between them"),
                    ("tokens", "checkpoint") => error.hint("run `pretrain` between them"),
                    _ => error,
                });
            }
            Ok(Input::Job { job, port: output.name.clone() })
        })
        .collect()
}

/// `base`, `base.port`, `base[axes]`, `base[axes].port`
fn split_reference(reference: &str) -> Result<(&str, Option<&str>, Option<&str>)> {
    let bad = || {
        Diagnostic::pipeline(format!("`{reference}` is no input"))
            .hint("write a job, `job.port`, `job[*]`, `tag:NAME` or `artifact:DIGEST`")
    };
    let (base, axes, rest) = match reference.find('[') {
        Some(open) => {
            let close = reference.rfind(']').filter(|&c| c > open).ok_or_else(bad)?;
            (&reference[..open], Some(&reference[open + 1..close]), &reference[close + 1..])
        }
        None => {
            let end = reference.find('.').unwrap_or(reference.len());
            (&reference[..end], None, &reference[end..])
        }
    };
    match rest {
        "" => Ok((base, axes, None)),
        rest => Ok((base, axes, Some(rest.strip_prefix('.').filter(|p| !p.is_empty()).ok_or_else(bad)?))),
    }
}

fn fixed(
    store: &Store,
    artifact: &smelt_schemas::ArtifactRef,
    port: Option<&str>,
    spec: &InputPort,
    shown: &str,
) -> Result<Input> {
    let manifest = store
        .manifest(artifact)?
        .ok_or_else(|| Diagnostic::pipeline(format!("what `{shown}` names is gone from {}", store.address())))?;
    let found = match port {
        Some(name) => manifest.ports.get_key_value(name),
        None => manifest.ports.iter().find(|(_, p)| p.kind.fits(&spec.kind)),
    };
    let (name, record) = found.filter(|(_, p)| p.kind.fits(&spec.kind)).ok_or_else(|| {
        let has: Vec<String> = manifest.ports.iter().map(|(n, p)| format!("{n} ({})", p.kind)).collect();
        Diagnostic::pipeline(format!("`{shown}` gives no {}", spec.kind)).hint(format!("its ports: {}", has.join(", ")))
    })?;
    Ok(Input::Fixed(InputRef {
        artifact: artifact.clone(),
        port: name.clone(),
        kind: record.kind.clone(),
        digest: record.digest.clone(),
    }))
}

fn by_digest(store: &Store, digest: &str, port: Option<&str>, spec: &InputPort, shown: &str) -> Result<Input> {
    let matches = |d: &Digest| digest.len() >= 6 && d.as_str().starts_with(digest);
    for artifact in store.artifacts()? {
        if matches(&artifact.fingerprint) {
            return fixed(store, &artifact, port, spec, shown);
        }
        let Some(manifest) = store.manifest(&artifact)? else { continue };
        if let Some((name, _)) = manifest.ports.iter().find(|(_, p)| matches(&p.digest)) {
            return fixed(store, &artifact, Some(port.unwrap_or(name)), spec, shown);
        }
    }
    Err(Diagnostic::pipeline(format!(
        "no artifact in {} has a fingerprint or digest that begins with `{digest}`",
        store.address()
    ))
    .hint("`smelt artifacts list` shows them; six digits are the least"))
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
                    let place = tree.place(&format!("/jobs/{}/input", drafts[next].base));
                    return Err(
                        Diagnostic::pipeline(format!("jobs wait for each other: {}", names.join(" -> "))).at(place)
                    );
                }
                path.push(next);
            }
        };
        done[next] = true;
        order.push(next);
    }
    Ok(order)
}

fn resolve_config(
    tree: &Tree,
    pipeline: &Pipeline,
    draft: &Draft,
    program: &Program,
    inputs: &BTreeMap<String, Vec<Input>>,
) -> Result<Resolved> {
    let pointer = format!("/jobs/{}/config", draft.base);
    let mut config: Map<String, Value> = draft.text.config.clone();
    if program.description.takes_seed() && !config.contains_key("seed") {
        config.insert("seed".into(), pipeline.seed.into());
    }
    let config = Value::Object(config);
    check_schema(tree, &pointer, draft, &program.description.config, &config)?;
    let counts = inputs.iter().map(|(port, list)| (port.clone(), list.len())).collect();
    program.resolve(&ResolveRequest { config, inputs: counts }).map_err(|e| match e {
        Ok((code, problem)) => {
            let field = problem.field.unwrap_or_default();
            let dotted = field.trim_start_matches('/').replace('/', ".");
            let shown = if dotted.is_empty() { String::new() } else { format!(", `config.{dotted}`") };
            let error = Diagnostic::new(code, format!("job `{}`{shown}: {}", draft.name, problem.message))
                .at(tree.place(&format!("{pointer}{field}")));
            if let Some(hint) = problem.hint { error.hint(hint) } else { error }
        }
        Err(bug) => bug.at(tree.key_place(&format!("/jobs/{}", draft.base))),
    })
}

fn check_schema(tree: &Tree, pointer: &str, draft: &Draft, schema: &Value, config: &Value) -> Result<()> {
    if schema.is_null() {
        return Ok(());
    }
    let validator = jsonschema::validator_for(schema).map_err(|e| {
        Diagnostic::new(
            smelt_schemas::ExitCode::Bug,
            format!("stage `{}` has no valid config schema: {e}", draft.text.stage),
        )
    })?;
    let Some(error) = validator.iter_errors(config).next() else { return Ok(()) };
    let path = error.instance_path().to_string();
    let parent = path.trim_start_matches('/').replace('/', ".");
    let stage = &draft.text.stage;
    // Name the unknown field itself, not the object it stands in.
    let object = config.pointer(&path).and_then(Value::as_object);
    let known = known_fields(schema, &path);
    if let (Some(object), Some(known)) = (object, known)
        && let Some(name) = object.keys().find(|k| !known.iter().any(|n| n == *k))
    {
        let within = if parent.is_empty() { String::new() } else { format!(" in `{parent}`") };
        let error =
            Diagnostic::pipeline(format!("job `{}`: stage `{stage}` has no config field `{name}`{within}", draft.name))
                .at(tree.key_place(&format!("{pointer}{path}/{name}")));
        return Err(match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("is `{near}` meant?")),
            None if known.is_empty() => error.hint("it has none"),
            None => error.hint(format!("its fields: {}", known.join(", "))),
        });
    }
    let forms = at_path(schema, &path).map(|at| forms(schema, at)).unwrap_or_default();
    let what = match (error.kind(), forms.as_slice()) {
        (ValidationErrorKind::AnyOf { .. } | ValidationErrorKind::OneOfNotValid { .. }, [_, ..]) => {
            format!("{} is none of {}", error.instance(), forms.join(", "))
        }
        _ => error.to_string(),
    };
    Err(Diagnostic::pipeline(format!("job `{}`: `config.{parent}`: {what}", draft.name))
        .at(tree.place(&format!("{pointer}{path}"))))
}

/// What a value may be, of a schema that lists its forms: constants, `{ fields }`, or names of types.
fn forms(root: &Value, schema: &Value) -> Vec<String> {
    let schema = dereference(root, schema);
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    if let Some(choices) = list("anyOf").or(list("oneOf")) {
        return choices.iter().flat_map(|choice| forms(root, choice)).collect();
    }
    if let Some(values) = list("enum") {
        return values.iter().map(Value::to_string).collect();
    }
    if let Some(value) = schema.get("const") {
        return vec![value.to_string()];
    }
    match (schema.get("properties").and_then(Value::as_object), schema.get("type").and_then(Value::as_str)) {
        (Some(fields), _) => vec![format!("{{ {} }}", fields.keys().cloned().collect::<Vec<_>>().join(", "))],
        (None, Some(name)) => vec![name.to_owned()],
        (None, None) => Vec::new(),
    }
}

/// The schema of the value at `path`, where every step is a field.
fn at_path<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/')
        .skip(1)
        .try_fold(root, |schema, part| Some(dereference(root, schema.pointer(&format!("/properties/{part}"))?)))
}

/// Names of the properties that a schema knows for the object at `path`, if it closes the list.
fn known_fields(root: &Value, path: &str) -> Option<Vec<String>> {
    let schema = dereference(root, at_path(root, path)?);
    (schema.get("additionalProperties") == Some(&Value::Bool(false))).then(|| {
        schema.get("properties").and_then(Value::as_object).map(|p| p.keys().cloned().collect()).unwrap_or_default()
    })
}

fn dereference<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str).and_then(|r| root.pointer(r.trim_start_matches('#'))) {
        Some(found) => dereference(root, found),
        None => schema,
    }
}

/// The file a person means: as given, or the one YAML file of that name under `pipelines/`.
pub fn pipeline_file(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_path_buf());
    }
    let found = |folder: &str| -> Vec<PathBuf> {
        let items = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
        items.filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml")).collect()
    };
    let all = [found("."), found("pipelines")].concat();
    match all.as_slice() {
        [one] => Ok(one.clone()),
        _ => Err(Diagnostic::pipeline("which pipeline? none is named")
            .hint("name the YAML file, such as `pipelines/quickstart.yaml`")),
    }
}
