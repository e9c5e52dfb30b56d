//! The instances of a job: one for each combination of the values of its axes, and for each of its iterations.

use super::draft::Draft;
use super::repeat::{self, ITERATION};
use super::shape::wrong_type;
use super::values::{Set, substitute, unfilled};
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::programs::Program;
use crate::yaml::Tree;
use indexmap::IndexMap;
use serde_json::Value;
use smelt_schemas::{Each, Job, Pipeline};
use std::collections::BTreeSet;

/// Every combination of a job's axes, the last axis fastest, and of each the iterations.
pub(super) fn instances(tree: &Tree, pipeline: &Pipeline, sets: &[Set]) -> Result<Vec<Draft>> {
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
        let iterations = repeat::iterations(tree, base, text)?;
        // An instance has its own values; the lists of all would make a thousand instances a million values.
        let plain = serde_json::to_value(Job { each: Each::default(), ..text.clone() }).expect("a job is plain data");
        let every = combinations.iter().flat_map(|axes| iterations.iter().map(move |iteration| (axes, *iteration)));
        for (axes, iteration) in every {
            let name = instance_name(base, axes, iteration);
            let mut value = plain.clone();
            let number = |name: &str| iteration.filter(|_| name == ITERATION).map(Value::from);
            substitute(&mut value, &|name| axes.get(name).cloned().or_else(|| number(name)));
            let mut own = Tree::of(value);
            let mut set = Vec::new();
            for s in sets.iter().filter(|s| s.instance.as_ref() == Some(&name)) {
                s.apply(&mut own);
                set.push((s.pointer.clone(), s.said.clone()));
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
                let given = set.last().map(|(_, said)| Place::named(said));
                wrong_type(&format!("{name}.{}", e.path()), &e.inner().to_string())
                    .at(given)
                    .at(tree.place(&format!("/jobs/{base}")))
            })?;
            let inputs = repeat::readings(tree, pipeline, base, &text, iteration)?;
            let when = repeat::conditions(base, &text, iteration);
            drafts.push(Draft { name, base: base.clone(), axes: axes.clone(), iteration, text, inputs, when, set });
        }
    }
    for (base, text) in pipeline.jobs.iter().filter(|(_, text)| !text.each.is_empty()) {
        check_use(tree, pipeline, base, text, &drafts)?;
    }
    for s in sets {
        let (Some(job), Some(instance)) = (&s.job, &s.instance) else { continue };
        if !drafts.iter().any(|d| d.name == *instance) {
            let known: Vec<&str> = drafts.iter().filter(|d| d.base == *job).map(|d| d.name.as_str()).collect();
            return Err(Diagnostic::pipeline(format!("there is no instance `{instance}`"))
                .at(Some(Place::named(&s.said)))
                .hint(format!("instances: {}", known.join(", "))));
        }
    }
    Ok(drafts)
}

/// An error if instances of a job would be the same but for their names: a sweep that sweeps nothing.
fn check_use(tree: &Tree, pipeline: &Pipeline, base: &str, text: &Job, drafts: &[Draft]) -> Result<()> {
    let own: Vec<&Draft> = drafts.iter().filter(|draft| draft.base == base).collect();
    let said = serde_json::to_string(&Job { each: Each::default(), ..text.clone() }).expect("a job is plain data");
    let references = own.iter().flat_map(|draft| draft.inputs.iter().flat_map(|reading| &reading.references));
    let read: BTreeSet<&str> = references.filter_map(|reference| reference.split(['[', '.']).next()).collect();
    let unused = text.each.iter().find(|(axis, values)| {
        let is_read = read.iter().filter(|job| **job != base).filter_map(|job| pipeline.jobs.get(*job));
        let is_shared = is_read.into_iter().any(|job| job.each.contains_key(*axis));
        let is_set = own.iter().any(|draft| !draft.set.is_empty());
        values.len() > 1 && !said.contains(&format!("${{{axis}}}")) && !is_shared && !is_set
    });
    match unused {
        Some((axis, _)) => Err(Diagnostic::pipeline(format!("axis `{axis}` of job `{base}` changes nothing"))
            .at(tree.key_place(&format!("/jobs/{base}/each/{axis}")))
            .hint(format!("say where its value goes, such as `config: {{ {axis}: \"${{{axis}}}\" }}`"))),
        None => Ok(()),
    }
}

fn instance_name(base: &str, axes: &IndexMap<String, Value>, iteration: Option<usize>) -> String {
    let number = iteration.map(|number| number.to_string());
    let parts: Vec<String> =
        Some(axes_words(axes)).filter(|words| !words.is_empty()).into_iter().chain(number).collect();
    if parts.is_empty() { base.into() } else { format!("{base}[{}]", parts.join(",")) }
}

/// `seed=1,lr=0.1`
pub(super) fn axes_words(axes: &IndexMap<String, Value>) -> String {
    let show = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    axes.iter().map(|(k, v)| format!("{k}={}", show(v))).collect::<Vec<_>>().join(",")
}

/// An axis is a column of the job's tables, so it must not hide one of theirs.
pub(super) fn check_axes(tree: &Tree, draft: &Draft, program: &Program) -> Result<()> {
    for port in &program.description.outputs {
        let Some(schema) = port.kind.schema() else { continue };
        let iteration = draft.iteration.map(|_| ITERATION);
        let mut axes = draft.axes.keys().map(String::as_str).chain(iteration);
        if let Some(axis) = axes.find(|a| schema.field_with_name(a).is_ok()) {
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
