//! From the tree to typed jobs: keys, names, and what `run:` may say.

use super::repeat::PREVIOUS;
use super::shape::wrong_type;
use crate::diagnostic::{Diagnostic, Place, Result, nearest};
use crate::yaml::Tree;
use serde_json::Value;
use smelt_schemas::{Executor, Pipeline, RunOptions};

/// More processes on one machine are a slip of the pen.
const MOST_WORKERS: usize = 1024;

/// Gives every job what the pipeline's `run:` says and its own does not.
pub(super) fn inherit(tree: &mut Tree) {
    let names = |value: Option<&Value>| -> Vec<String> {
        value.and_then(Value::as_object).into_iter().flat_map(|map| map.keys().cloned()).collect()
    };
    let options = names(tree.value.get("run"));
    for job in names(tree.value.get("jobs")) {
        let of_job = &mut tree.value["jobs"][&job];
        let Some(own) = of_job.as_object_mut().map(|job| job.entry("run").or_insert_with(|| serde_json::json!({})))
        else {
            continue;
        };
        let Some(own) = own.as_object().map(|own| own.keys().cloned().collect::<Vec<_>>()) else { continue };
        let has = |option: &str| own.iter().any(|name| name == option);
        // Two names of one option.
        let says = |option: &str| match option {
            "cores" | "threads" => has("cores") || has("threads"),
            option => has(option),
        };
        for option in options.iter().filter(|option| !says(option)) {
            tree.copy(&format!("/run/{option}"), &format!("/jobs/{job}/run/{option}"));
        }
    }
}

/// Whether a job has an option of `run:` from the pipeline and not from its own.
pub(super) fn is_inherited(tree: &Tree, job: &str, option: &str) -> bool {
    tree.place(&format!("/jobs/{job}/run/{option}")) == tree.place(&format!("/run/{option}"))
}

pub(super) fn typed(tree: &Tree, value: Value) -> Result<Pipeline> {
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
        if name == PREVIOUS {
            return Err(Diagnostic::pipeline(format!("`{name}` is no name for a job"))
                .at(tree.key_place(&format!("/jobs/{name}")))
                .hint("in a job with `repeat` it is the iteration before: give the job another name"));
        }
        for (kind, name, pointer) in std::iter::once(("job", name, format!("/jobs/{name}")))
            .chain(job.each.keys().map(|a| ("axis", a, format!("/jobs/{name}/each/{a}"))))
        {
            check_name(kind, name, tree.key_place(&pointer))?;
        }
        check_run(tree, name, &job.run)?;
    }
    if pipeline.jobs.is_empty() {
        return Err(Diagnostic::pipeline("the pipeline has no jobs").at(tree.place("/jobs")));
    }
    Ok(pipeline)
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

/// What no job may say under `run:`, whatever its stage.
fn check_run(tree: &Tree, job: &str, run: &RunOptions) -> Result<()> {
    let refuse = |option: &str, what: &str, hint: &str| {
        let place = tree.place(&format!("/jobs/{job}/run/{option}"));
        Err(Diagnostic::pipeline(format!("job `{job}`: {what}")).at(place).hint(hint))
    };
    if run.cores == Some(0) {
        return refuse("cores", "no job runs on 0 cores", "say 1 or more, or leave it out for what the stage takes");
    }
    let workers = run.workers.unwrap_or(1);
    if !(1..=MOST_WORKERS).contains(&workers) {
        return refuse(
            "workers",
            &format!("{workers} processes cannot do it together, expected 1 to {MOST_WORKERS}"),
            "leave it out for one; each takes at least one core",
        );
    }
    if run.nodes == Some(0) {
        return refuse("nodes", "no job runs on 0 nodes", "say 1 or more, or leave it out for one");
    }
    if run.nodes.is_some_and(|nodes| nodes > 1) && workers > 1 {
        return refuse(
            "nodes",
            "it has several nodes and several workers",
            "`workers` share units of data, `nodes` compute one thing together: say one of them",
        );
    }
    if run.executor == Executor::Local && run.nodes.is_some_and(|nodes| nodes > 1) {
        return refuse("nodes", "several nodes need a cluster", "add `executor: slurm`, or `kubernetes`");
    }
    if run.save.seconds.is_nan() || run.save.seconds < 0.0 {
        let what = format!("{} seconds lie between no two saves", run.save.seconds);
        return refuse("save/seconds", &what, "say 0 to save after every step, or more");
    }
    if run.save.last == 0 {
        return refuse("save/last", "with 0 saves there is nothing to continue from", "say 1 or more");
    }
    Ok(())
}
