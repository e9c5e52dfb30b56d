//! The report as one HTML file that needs nothing else: jobs, times, drops, curves, load of the experts, scores,
//! lineage, environment.
//!
//! Charts are drawn by Apache ECharts, of which `html/charts.min.js` holds what the page uses.

use crate::diagnostic::{Diagnostic, Result};
use crate::load::{Input, Instance, Plan};
use crate::query;
use serde_json::{Value, json};
use smelt_schemas::{ExitCode, Manifest, kind};
use smelt_store::{Error, RunRecord, RunState, Store};
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

/// Points of a curve at most: more than a screen has columns.
const POINTS: usize = 500;
/// Runs of the pipeline, the newest.
const RUNS: usize = 30;

const PAGE: &str = include_str!("html/page.html");
const SCRIPT: &str = include_str!("html/page.js");
const CHARTS: &str = include_str!("html/charts.min.js");

/// Writes the report of a pipeline; the file appears when it is whole.
pub(crate) fn write(store: &Store, plan: &Plan, path: &Path) -> Result<()> {
    let page = page(&data(store, plan)?);
    let temporary = path.with_extension("smelt-tmp");
    let written = std::fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(page.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|e| {
        drop(std::fs::remove_file(&temporary));
        Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be written: {e}", path.display()))
    })
}

fn page(data: &Value) -> String {
    // In a script nothing ends the element but `</`, and JSON may write `<` as an escape.
    let data = data.to_string().replace('<', "\\u003c");
    let (head, rest) = PAGE.split_once("DATA").expect("the page has a place for its data");
    let (middle, rest) = rest.split_once("CHARTS").expect("the page has a place for its charts");
    let (before, end) = rest.split_once("PAGE").expect("the page has a place for its script");
    [head, &data, middle, CHARTS, before, SCRIPT, end].concat()
}

fn data(store: &Store, plan: &Plan) -> Result<Value> {
    let mut runs: Vec<RunRecord> = store.runs()?.into_iter().filter(|run| run.pipeline == plan.name).collect();
    let last = runs.pop();
    // Of the last run: `failed`, or `skipped` by a gate.
    let ended = |job: &str| {
        let of_job = last.iter().flat_map(|run| &run.jobs).filter(|facts| facts["job"] == job);
        of_job.filter_map(|facts| facts["state"].as_str()).find(|state| ["failed", "skipped"].contains(state))
    };
    let running = |job: &str| {
        let live = last.iter().filter(|run| run.state == RunState::Running);
        live.flat_map(|run| &run.running).any(|running| running.job == job)
    };
    let (mut jobs, mut scores, mut is_done) = (Vec::new(), BTreeSet::new(), false);
    for job in &plan.jobs {
        let pointer = store.pointer(&plan.name, &job.name)?;
        let manifest = match pointer.map(|pointer| store.manifest(&pointer.artifact)) {
            None | Some(Ok(None) | Err(Error::Corrupt { .. })) => None,
            Some(found) => found?,
        };
        is_done |= manifest.is_some();
        let state = match (&manifest, ended(&job.name)) {
            _ if running(&job.name) => "running",
            (_, Some(state)) => state,
            (Some(_), None) => "done",
            (None, None) => "waiting",
        };
        for (port, record) in manifest.iter().flat_map(|manifest| &manifest.ports) {
            if record.kind.fits(&kind::scores()) {
                scores.insert((job.base.clone(), port.clone()));
            }
        }
        jobs.push(self::job(plan, job, state, manifest.as_ref()));
    }
    let rows = |sql: &str| match is_done {
        true => query::rows(store, &plan.name, sql),
        false => Ok(Vec::new()),
    };
    let curves = rows(&format!(
        "select job, name, step, value from (select *, row_number() over (partition by job, name order by step) as i, \
         count(*) over (partition by job, name) as n from smelt.metrics where not starts_with(name, 'expert_load.')) \
         where i = n or (i - 1) % greatest(1, n / {POINTS}) = 0 order by job, name, step"
    ))?;
    let loads = rows("select job, layer, step, expert, load from smelt.expert_load order by job, layer, step, expert")?;
    let mut told = Vec::new();
    for (base, port) in scores {
        let table = format!("{}.{}", query::quoted(&base), query::quoted(&port));
        told.extend(rows(&format!(
            "select '{base}' as job, model, benchmark, metric, value, standard_error, n from {table}"
        ))?);
    }
    let run = |run: &RunRecord| {
        let (state, ended) = (run.state.word(), run.ended);
        json!({"run": run.run, "state": state, "started": run.started, "ended": ended})
    };
    runs.extend(last);
    Ok(json!({
        "pipeline": plan.name,
        "file": plan.file,
        "store": store.address(),
        "time": smelt_store::now(),
        "version": env!("CARGO_PKG_VERSION"),
        "jobs": jobs,
        "curves": grouped(&curves, &["job", "name"], |rows| {
            json!({"points": rows.iter().map(|row| json!([row["step"], row["value"]])).collect::<Vec<_>>()})
        }),
        "expert_load": grouped(&loads, &["job", "layer"], |rows| {
            let mut steps: Vec<u64> = rows.iter().filter_map(|row| row["step"].as_u64()).collect();
            steps.dedup();
            let place = |row: &Value| row["step"].as_u64().and_then(|step| steps.binary_search(&step).ok());
            let cells = rows.iter().map(|row| json!([place(row), row["expert"], row["load"]]));
            json!({"cells": cells.collect::<Vec<_>>(), "steps": steps})
        }),
        "scores": told,
        "runs": runs.iter().rev().take(RUNS).map(run).collect::<Vec<_>>(),
    }))
}

/// Neighbouring rows with equal values of `keys`, each group as an object with these and what `tell` says of it.
fn grouped(rows: &[Value], keys: &[&str], tell: impl Fn(&[Value]) -> Value) -> Vec<Value> {
    let groups = rows.chunk_by(|a, b| keys.iter().all(|key| a[key] == b[key]));
    let told = groups.map(|group| {
        let mut told = tell(group);
        keys.iter().for_each(|key| told[key] = group[0][key].clone());
        told
    });
    told.collect()
}

fn job(plan: &Plan, job: &Instance, state: &str, manifest: Option<&Manifest>) -> Value {
    let inputs = job.inputs.values().flatten().map(|input| match input {
        Input::Job { job, .. } => plan.jobs[*job].name.clone(),
        Input::Fixed(input) => format!("{} {}", input.artifact.stage, input.artifact.fingerprint.short()),
    });
    let mut inputs: Vec<String> = inputs.collect();
    inputs.sort();
    inputs.dedup();
    let mut told = json!({
        "name": job.name,
        "stage": job.program.description.name,
        "state": state,
        "inputs": inputs,
        "drops": {},
        "results": {},
        "ports": [],
    });
    if let Some(m) = manifest {
        let p = &m.provenance;
        let ports = m.ports.iter().map(|(name, port)| json!({"name": name, "digest": port.digest}));
        let more = json!({
            "fingerprint": m.fingerprint,
            "edition": m.edition,
            "version": m.version,
            "run": p.run,
            "smelt": p.smelt,
            "binary": p.binary,
            "host": p.host,
            "cpu": p.cpu,
            "device": p.device,
            "threads": p.threads,
            "resumed": p.resumed,
            "started": p.started,
            "seconds": p.seconds,
            "peak_memory_bytes": p.peak_memory_bytes,
            "read": m.books.read,
            "derived": m.books.derived,
            "written": m.books.written,
            "dropped": m.books.dropped_total(),
            "drops": m.books.dropped,
            "results": m.metrics,
            "bytes": m.bytes(),
            "ports": ports.collect::<Vec<_>>(),
        });
        if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
            told.extend(more);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_of_a_pipeline_ends_the_script_that_holds_it() {
        let page = page(&json!({"pipeline": "</script><b>", "jobs": []}));
        assert!(page.contains("\\u003c/script>\\u003cb>") && !page.contains("</script><b>"));
        assert_eq!(page.matches("</script>").count(), 3);
    }

    #[test]
    fn neighbouring_rows_are_one_group() {
        let rows = [json!({"a": 1, "b": 2}), json!({"a": 1, "b": 3}), json!({"a": 2, "b": 4})];
        let grouped = grouped(&rows, &["a"], |rows| json!({"n": rows.len()}));
        assert_eq!(grouped, [json!({"a": 1, "n": 2}), json!({"a": 2, "n": 1})]);
    }
}
