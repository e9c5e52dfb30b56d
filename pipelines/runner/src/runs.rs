//! `smelt runs` and `smelt compare`: what happened in a store, and what differs between two runs.

use crate::diagnostic::{Diagnostic, Result, nearest};
use crate::plan;
use crate::table::{Format, Listing, Measure};
use serde_json::{Value, json};
use smelt_schemas::{ArtifactRef, Manifest};
use smelt_store::{RunRecord, Store};
use std::collections::{BTreeMap, BTreeSet};

/// Lists runs, newest last; `pipeline`: only this one's.
pub(crate) fn list(store: &Store, pipeline: Option<&str>, format: Format) -> Result<()> {
    let mut listing = Listing::new(&[
        ("run", Measure::Plain),
        ("pipeline", Measure::Plain),
        ("state", Measure::Plain),
        ("started", Measure::Time),
        ("took", Measure::Seconds),
        ("ran", Measure::Plain),
        ("cached", Measure::Plain),
        ("failed", Measure::Plain),
        ("set", Measure::Plain),
    ]);
    for run in store.runs()?.iter().filter(|run| pipeline.is_none_or(|pipeline| run.pipeline == pipeline)) {
        let count = |state: &str| run.jobs.iter().filter(|job| job["state"] == state).count();
        let failed = run.jobs.iter().filter(|job| job["state"] == "failed").filter_map(|job| job["job"].as_str());
        listing.row(vec![
            json!(run.run),
            json!(run.pipeline),
            json!(run.state.word()),
            json!(run.started),
            json!(run.ended.map(|ended| ended - run.started)),
            json!(count("done")),
            json!(count("cached")),
            json!(failed.collect::<Vec<_>>().join(" ")),
            json!(run.set.join(" ")),
        ]);
    }
    if listing.is_empty() && format == Format::Table {
        println!("no run in {}", store.address());
        return Ok(());
    }
    print!("{}", listing.text(format));
    Ok(())
}

/// A job in one of two runs.
type Side = Option<Manifest>;

/// Prints what two runs have in common and what not: artifacts, configs, results.
pub(crate) fn compare(store: &Store, names: [&str; 2], format: Format) -> Result<()> {
    let runs = store.runs()?;
    let [a, b] = names.map(|name| find(&runs, name, store));
    let (a, b) = (jobs(store, a?)?, jobs(store, b?)?);
    let all: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let side = |of: &BTreeMap<String, Side>, job: &String| of.get(job).cloned().flatten();
    let mut listing = Listing::new(&[
        ("job", Measure::Plain),
        ("what", Measure::Plain),
        (FIRST, Measure::Plain),
        (SECOND, Measure::Plain),
        ("difference", Measure::Plain),
    ]);
    let mut equal = Vec::new();
    for job in all {
        match (side(&a, job), side(&b, job)) {
            (Some(a), Some(b)) if a.artifact() == b.artifact() => equal.push(job.as_str()),
            (a, b) => differences(job, &a, &b, &mut listing),
        }
    }
    if format == Format::Table && !equal.is_empty() {
        println!("the same artifact in both: {}", equal.join(", "));
    }
    match listing.is_empty() && format == Format::Table {
        true => println!("nothing differs"),
        false => print!("{}", listing.text(format)),
    }
    Ok(())
}

const FIRST: &str = "first";
const SECOND: &str = "second";

/// A run by its name, or by a beginning of it that only one has.
fn find<'a>(runs: &'a [RunRecord], name: &str, store: &Store) -> Result<&'a RunRecord> {
    let begins: Vec<&RunRecord> = runs.iter().filter(|run| run.run.starts_with(name)).collect();
    if let Some(run) = begins.iter().find(|run| run.run == name).or(match begins.as_slice() {
        [one] => Some(one),
        _ => None,
    }) {
        return Ok(run);
    }
    if let [first, second, ..] = begins.as_slice() {
        let what = format!("`{name}` begins {} runs, such as {} and {}", begins.len(), first.run, second.run);
        return Err(Diagnostic::pipeline(what).hint("write more of the name"));
    }
    let error = Diagnostic::pipeline(format!("there is no run `{name}` in {}", store.address()));
    Err(match nearest(name, runs.iter().map(|run| run.run.as_str())) {
        Some(near) => error.hint(format!("is `{near}` meant?")),
        None => error.hint("`smelt runs` lists them"),
    })
}

/// The jobs of a run, and what they made if it is still there.
fn jobs(store: &Store, run: &RunRecord) -> Result<BTreeMap<String, Side>> {
    let mut found = BTreeMap::new();
    for facts in &run.jobs {
        let Some(job) = facts["job"].as_str() else { continue };
        let artifact = serde_json::from_value::<ArtifactRef>(facts.clone()).ok();
        let manifest = match artifact.map(|artifact| store.manifest(&artifact)) {
            None | Some(Err(smelt_store::Error::Corrupt { .. })) => None,
            Some(manifest) => manifest?,
        };
        found.insert(job.to_owned(), manifest);
    }
    Ok(found)
}

fn differences(job: &str, a: &Side, b: &Side, listing: &mut Listing) {
    let mut row = |what: &str, a: Value, b: Value| {
        let difference = match (a.as_f64(), b.as_f64()) {
            (Some(a), Some(b)) => json!(b - a),
            _ => Value::Null,
        };
        listing.row(vec![json!(job), json!(what), a, b, difference]);
    };
    let short = |side: &Side| match side {
        Some(m) => json!(format!("{}/{}", m.fingerprint.short(), m.edition)),
        None => json!("did not run"),
    };
    row("artifact", short(a), short(b));
    let (Some(a), Some(b)) = (a, b) else { return };
    if a.stage != b.stage || a.version != b.version {
        row("stage", json!(format!("{} {}", a.stage, a.version)), json!(format!("{} {}", b.stage, b.version)));
    }
    let mut changed = Vec::new();
    plan::fields("config", &a.config, &b.config, &mut changed);
    for (field, before, now) in changed {
        row(&field, json!(before), json!(now));
    }
    let ports: BTreeSet<&String> = a.ports.keys().chain(b.ports.keys()).collect();
    for name in ports {
        let digest = |m: &Manifest| m.ports.get(name).map(|port| json!(port.digest.short())).unwrap_or_default();
        if a.ports.get(name).is_some_and(|port| port.kind.counts_as_output()) && digest(a) != digest(b) {
            row(&format!("port {name}"), digest(a), digest(b));
        }
    }
    let names: BTreeSet<&String> = a.metrics.keys().chain(b.metrics.keys()).collect();
    for name in names {
        let value = |m: &Manifest| m.metrics.get(name).map(|value| json!(value)).unwrap_or_default();
        if value(a) != value(b) {
            row(name, value(a), value(b));
        }
    }
    row("seconds", json!(a.provenance.seconds), json!(b.provenance.seconds));
}
