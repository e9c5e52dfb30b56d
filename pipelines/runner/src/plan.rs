//! What would run, and why: each job is cached, new, after another, or skipped.

use crate::diagnostic::Result;
use crate::load::{Input, Instance, Plan};
use serde_json::Value;
use smelt_schemas::{Digest, InputRef, Manifest, Source, fingerprint};
use smelt_store::{Error, Store, without_secrets};
use std::collections::BTreeMap;

/// Whether a job's work is there already.
#[derive(Debug)]
pub(crate) enum State {
    Cached(Box<Manifest>),
    /// Must run; says why.
    New(String),
    /// Must run as the next edition: an unreadable manifest occupies the name of this one.
    Damaged,
    /// Not known before this job has run.
    After(String),
    /// Must not run; says why.
    Skipped(String),
    /// A cluster has it, in these words.
    Submitted(String),
    /// A cluster had it, and does not answer; says how.
    Unknown(String),
}

impl State {
    /// In a word, and why.
    pub(crate) fn words(&self) -> (&'static str, &str) {
        match self {
            Self::Cached(_) => ("cached", ""),
            Self::New(why) => ("new", why),
            Self::Damaged => ("new", "its manifest is damaged"),
            Self::After(input) => ("after", input),
            Self::Skipped(why) => ("skipped", why),
            Self::Submitted(how) => ("submitted", how),
            Self::Unknown(why) => ("unknown", why),
        }
    }
}

/// A job's inputs and address, once they are known.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub inputs: BTreeMap<String, Vec<InputRef>>,
    pub fingerprint: Digest,
}

/// The manifest of each finished job; `None` for those that are not done.
pub(crate) type Done = Vec<Option<Manifest>>;

/// The recipe of `job`, or the name of the first input that is not there yet.
pub(crate) fn recipe(plan: &Plan, job: &Instance, done: &Done) -> std::result::Result<Recipe, String> {
    let mut inputs = BTreeMap::new();
    for (port, list) in &job.inputs {
        let mut refs = Vec::new();
        for input in list {
            refs.push(match input {
                Input::Fixed(input) => input.clone(),
                Input::Job { job, port } => {
                    let manifest = done[*job].as_ref().ok_or_else(|| plan.jobs[*job].name.clone())?;
                    let record = &manifest.ports[port];
                    InputRef {
                        artifact: manifest.artifact(),
                        port: port.clone(),
                        kind: record.kind.clone(),
                        digest: record.digest.clone(),
                    }
                }
            });
        }
        inputs.insert(port.clone(), refs);
    }
    let d = &job.program.description;
    let fingerprint = fingerprint(&d.name, d.version, &job.resolved.config, &inputs, &job.resolved.sources);
    Ok(Recipe { inputs, fingerprint })
}

/// Whether a job may run, once all that it needs is settled.
pub(crate) enum Gate {
    Open,
    /// This job is not done yet.
    Waits(String),
    /// It is to be skipped; says why.
    Closed(String),
}

/// `lost`: jobs that never will be done.
pub(crate) fn gate(plan: &Plan, job: &Instance, done: &Done, lost: &[bool]) -> Result<Gate> {
    if let Some(need) = job.needs().find(|&need| lost[need]) {
        return Ok(Gate::Closed(format!("after {}", plan.jobs[need].name)));
    }
    if let Some(need) = job.needs().find(|&need| done[need].is_none()) {
        return Ok(Gate::Waits(plan.jobs[need].name.clone()));
    }
    for condition in &job.when {
        for &of in &condition.jobs {
            let manifest = done[of].as_ref().expect("every need is done");
            let closed = condition.closed_by(&plan.jobs[of].name, manifest);
            if let Some(why) = closed.map_err(|e| e.at(job.place.clone()))? {
                return Ok(Gate::Closed(why));
            }
        }
    }
    Ok(Gate::Open)
}

/// There is a manifest, and it cannot be read.
struct Damaged;

/// A manifest that cannot be read does not count: its job runs again. Any other error of the store is returned.
fn readable(found: smelt_store::Result<Option<Manifest>>) -> Result<std::result::Result<Option<Manifest>, Damaged>> {
    match found {
        Ok(found) => Ok(Ok(found)),
        Err(Error::Corrupt { .. }) => Ok(Err(Damaged)),
        Err(e) => Err(e.into()),
    }
}

/// Looks a recipe up: the edition that the pipeline's pointer names, else the newest. The second value: the pointer
/// names it already.
pub(crate) fn look_up(store: &Store, plan: &Plan, job: &Instance, recipe: &Recipe) -> Result<(State, bool)> {
    let pointer = store.pointer(&plan.name, &job.name)?;
    let stage = &job.program.description.name;
    if let Some(pointer) = &pointer
        && (&pointer.artifact.stage, &pointer.artifact.fingerprint) == (stage, &recipe.fingerprint)
        && let Ok(Some(manifest)) = readable(store.manifest(&pointer.artifact))?
    {
        return Ok((State::Cached(Box::new(manifest)), true));
    }
    let new = |why: &str| Ok((State::New(why.into()), false));
    match readable(store.newest(stage, &recipe.fingerprint))? {
        Ok(Some(manifest)) => return Ok((State::Cached(Box::new(manifest)), false)),
        Ok(None) => {}
        Err(Damaged) => return Ok((State::Damaged, false)),
    }
    let Some(pointer) = pointer else { return new("first run") };
    if pointer.artifact.fingerprint == recipe.fingerprint {
        return new("its manifest is gone");
    }
    new(&match readable(store.manifest(&pointer.artifact))? {
        Ok(Some(before)) => difference(&before, job, recipe),
        Ok(None) => "its last manifest is gone".into(),
        Err(Damaged) => "its last manifest is damaged".into(),
    })
}

/// What differs between a job's last manifest and its recipe now.
fn difference(before: &Manifest, job: &Instance, now: &Recipe) -> String {
    let d = &job.program.description;
    if before.stage != d.name {
        return format!("stage: {} -> {}", before.stage, d.name);
    }
    let mut found = Vec::new();
    if before.version != d.version {
        found.push(format!("stage version: {} -> {}", before.version, d.version));
    }
    let mut changed = Vec::new();
    fields("config", &before.config, &job.resolved.config, &mut changed);
    found.extend(changed.into_iter().map(|(field, before, now)| format!("{field}: {before} -> {now}")));
    for (port, refs) in &now.inputs {
        let digests = |refs: &[InputRef]| refs.iter().map(|r| r.digest.clone()).collect::<Vec<_>>();
        let old = before.inputs.get(port).map(|r| digests(r));
        if old.as_ref() != Some(&digests(refs)) {
            found.push(format!("input {port}"));
        }
    }
    found.extend(before.inputs.keys().filter(|p| !now.inputs.contains_key(*p)).map(|p| format!("input {p}: gone")));
    found.extend(sources(&before.sources, &job.resolved.sources));
    if found.is_empty() { "its recipe changed".into() } else { found.join(", ") }
}

/// Fields that differ, each with its value before and now.
pub(crate) fn fields(path: &str, before: &Value, now: &Value, found: &mut Vec<(String, String, String)>) {
    match (before, now) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in b {
                fields(&format!("{path}.{key}"), a.get(key).unwrap_or(&Value::Null), value, found);
            }
            for key in a.keys().filter(|k| !b.contains_key(*k)) {
                fields(&format!("{path}.{key}"), &a[key], &Value::Null, found);
            }
        }
        (a, b) if a == b || (a.as_f64().is_some() && a.as_f64() == b.as_f64()) => {}
        (a, b) => {
            let show = |v: &Value| match v {
                Value::Null => "default".to_owned(),
                v => without_secrets(&v.to_string()),
            };
            found.push((path.to_owned(), show(a), show(b)));
        }
    }
}

fn sources(before: &[Source], now: &[Source]) -> Option<String> {
    let map = |s: &[Source]| s.iter().map(|s| (s.name.clone(), s.version.clone())).collect::<BTreeMap<_, _>>();
    let (before, now) = (map(before), map(now));
    let changed = now.iter().filter(|(n, v)| before.get(*n).is_some_and(|b| b != *v)).map(|(n, _)| n);
    let added = now.keys().filter(|n| !before.contains_key(*n));
    let removed = before.keys().filter(|n| !now.contains_key(*n));
    let (changed, added, removed): (Vec<_>, Vec<_>, Vec<_>) = (changed.collect(), added.collect(), removed.collect());
    let first = changed.first().or(added.first()).or(removed.first())?;
    Some(format!("sources: {} changed, {} added, {} removed, first {first}", changed.len(), added.len(), removed.len()))
}

/// The state of every job as things are now.
pub(crate) fn states(store: &Store, plan: &Plan) -> Result<(Vec<State>, Done)> {
    let every = vec![true; plan.jobs.len()];
    states_of(store, plan, &every)
}

/// The states of some jobs, which include all that they need; the others are after nothing.
pub(crate) fn states_of(store: &Store, plan: &Plan, wanted: &[bool]) -> Result<(Vec<State>, Done)> {
    let mut done: Done = vec![None; plan.jobs.len()];
    let mut skipped = vec![false; plan.jobs.len()];
    let mut states = Vec::new();
    for (i, job) in plan.jobs.iter().enumerate() {
        if !wanted[i] {
            states.push(State::After(String::new()));
            continue;
        }
        let state = match gate(plan, job, &done, &skipped)? {
            Gate::Closed(why) => State::Skipped(why),
            Gate::Waits(need) => State::After(need),
            Gate::Open => match recipe(plan, job, &done) {
                Ok(recipe) => look_up(store, plan, job, &recipe)?.0,
                Err(input) => State::After(input),
            },
        };
        skipped[i] = matches!(state, State::Skipped(_));
        if let State::Cached(manifest) = &state {
            done[i] = Some((**manifest).clone());
        }
        states.push(state);
    }
    Ok((states, done))
}

/// What this job made the last time, if the store knows.
pub(crate) fn last(store: &Store, plan: &Plan, job: &Instance) -> Option<Manifest> {
    let pointer = store.pointer(&plan.name, &job.name).ok()??;
    store.manifest(&pointer.artifact).ok()?
}

/// Jobs that `wanted` needs, itself included; `wanted` names a job or an instance.
pub(crate) fn needed(plan: &Plan, wanted: &[String]) -> Result<Vec<bool>> {
    let mut keep = vec![false; plan.jobs.len()];
    let mut open: Vec<usize> = named(plan, wanted)?;
    while let Some(i) = open.pop() {
        if !std::mem::replace(&mut keep[i], true) {
            open.extend(plan.jobs[i].needs());
        }
    }
    Ok(keep)
}

/// The jobs that a rerun of `again` concerns: these, what they need, and of the jobs that read their results those that
/// are done. Jobs that never ran are left alone.
pub(crate) fn redone(store: &Store, plan: &Plan, again: &[usize]) -> Result<Vec<bool>> {
    let (states, _) = states(store, plan)?;
    let mut below = vec![false; plan.jobs.len()];
    again.iter().for_each(|&i| below[i] = true);
    for i in 0..plan.jobs.len() {
        below[i] |= matches!(states[i], State::Cached(_)) && plan.jobs[i].needs().any(|n| below[n]);
    }
    let names: Vec<String> = (0..below.len()).filter(|&i| below[i]).map(|i| plan.jobs[i].name.clone()).collect();
    needed(plan, &names)
}

/// Jobs that need one of `wanted`, including these, and everything that those need.
pub(crate) fn from(plan: &Plan, wanted: &[String]) -> Result<Vec<bool>> {
    let names: Vec<String> = below(plan, wanted)?.into_iter().map(|i| plan.jobs[i].name.clone()).collect();
    needed(plan, &names)
}

/// Places of the jobs that need one of `wanted`, and of these.
pub(crate) fn below(plan: &Plan, wanted: &[String]) -> Result<Vec<usize>> {
    let mut keep = vec![false; plan.jobs.len()];
    for i in named(plan, wanted)? {
        keep[i] = true;
    }
    for i in 0..plan.jobs.len() {
        keep[i] |= plan.jobs[i].needs().any(|n| keep[n]);
    }
    Ok((0..keep.len()).filter(|&i| keep[i]).collect())
}

/// Places of the jobs that `wanted` names: an instance, or all instances of a job.
pub(crate) fn named(plan: &Plan, wanted: &[String]) -> Result<Vec<usize>> {
    let mut found = Vec::new();
    for name in wanted {
        let these: Vec<usize> = (0..plan.jobs.len())
            .filter(|&i| plan.jobs[i].name == *name || plan.jobs[i].base == name.trim_end_matches("[*]"))
            .collect();
        if these.is_empty() {
            let mut known: Vec<&str> = plan.jobs.iter().map(|j| j.base.as_str()).collect();
            known.dedup();
            let error = crate::diagnostic::Diagnostic::pipeline(format!("there is no job `{name}` in {}", plan.file));
            return Err(match crate::diagnostic::nearest(name, known.iter().copied()) {
                Some(near) => error.hint(format!("is `{near}` meant?")),
                None => error.hint(format!("jobs: {}", known.join(", "))),
            });
        }
        found.extend(these);
    }
    Ok(found)
}
