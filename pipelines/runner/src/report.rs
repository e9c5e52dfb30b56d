//! What is in a job's artifact, for people: its books, what it dropped and why, languages, lengths, clusters.
//!
//! Everything below the books is SQL over the job's ports, as `smelt sql` would answer it.

use crate::diagnostic::{Diagnostic, Result};
use crate::query::{self, Answer, quoted};
use serde_json::Value;
use smelt_schemas::{Manifest, PortRecord, kind};
use smelt_store::{Pointer, Store};

/// Rows of a table at most; the rest is one `smelt sql` away.
const ROWS: usize = 20;
/// Characters of the longest bar.
const BAR: usize = 40;

/// Prints what is in the artifact of a job.
pub(crate) fn of_job(store: &Store, pipeline: &str, job: &str) -> Result<()> {
    let unknown = || {
        Diagnostic::pipeline(format!("job `{job}` of pipeline `{pipeline}` has not run in {}", store.address()))
            .hint("`smelt status` lists the jobs")
    };
    let pointer = store.pointer(pipeline, job)?.ok_or_else(unknown)?;
    let manifest = store.manifest(&pointer.artifact)?.ok_or_else(unknown)?;
    print!("{}", books(job, &manifest));
    for (title, sql) in sections(job, &pointer, &manifest) {
        println!("\n{title}");
        query::ask(store, pipeline, &sql, Answer::default())?;
    }
    Ok(())
}

fn books(job: &str, manifest: &Manifest) -> String {
    let (books, mut text) = (&manifest.books, format!("{job}, made by {}\n", manifest.stage));
    let mut line = |name: &str, rows: u64| {
        let share = 100.0 * rows as f64 / (books.read + books.derived).max(1) as f64;
        text += &format!("  {name:8} {rows:>14} rows  {share:6.2} %\n");
    };
    for (name, rows) in [
        ("read", books.read),
        ("derived", books.derived),
        ("written", books.written),
        ("dropped", books.dropped_total()),
    ] {
        if rows > 0 {
            line(name, rows);
        }
    }
    for (name, value) in &manifest.metrics {
        text += &format!("  {name} = {value}\n");
    }
    text
}

/// Titles and queries.
fn sections(job: &str, pointer: &Pointer, manifest: &Manifest) -> Vec<(String, String)> {
    let base = job.split('[').next().unwrap_or(job);
    let only: Vec<String> =
        pointer.axes.iter().map(|(axis, value)| format!("{} = {}", quoted(axis), literal(value))).collect();
    let only = if only.is_empty() { String::new() } else { format!(" where {}", only.join(" and ")) };
    let read = (manifest.books.read + manifest.books.derived).max(1);
    let mut sections = Vec::new();
    let filled = |port: &&PortRecord| port.files.iter().any(|file| file.rows != Some(0));
    for (name, port) in manifest.ports.iter().filter(|(_, port)| filled(port)) {
        let table = format!("{}.{}{only}", quoted(base), quoted(name));
        if port.kind.fits(&kind::drops()) {
            let query = format!(
                "select rule, count(*) as rows, round(100.0 * count(*) / {read}, 2) as \"% of read\", \
                 round(avg(value), 4) as \"mean value\", min(id) as example, max(id) as another \
                 from {table} group by rule order by rows desc limit {ROWS}"
            );
            sections.push(("Dropped, by rule".into(), query));
        } else if port.kind.fits(&kind::clusters()) {
            let stays = if only.is_empty() { " where stays" } else { " and stays" };
            let query = format!(
                "select cast(power(2, floor(log2(size))) as bigint) as \"from size\", count(*) as clusters, \
                 sum(size) as documents, max(document) as example from {table}{stays} group by 1 order by 1"
            );
            sections.push(("Clusters of duplicates, by size".into(), query));
        } else if port.kind.fits(&kind::hits()) {
            let query = format!(
                "select benchmark, count(distinct problem) as problems, count(distinct document) as documents, \
                 round(max(covered), 3) as \"most covered\" from {table} group by 1 order by 2 desc limit {ROWS}"
            );
            sections.push(("Problems of benchmarks that were found".into(), query));
        } else if port.kind.fits(&kind::documents()) {
            sections.push((format!("Languages of `{name}`"), by_language(&table, "length(text)", "characters")));
            sections.push((format!("Lengths of `{name}`, in characters"), by_length(&table, "length(text)")));
        } else if port.kind.fits(&kind::tokens()) {
            sections.push((format!("Languages of `{name}`"), by_language(&table, "array_length(ids)", "tokens")));
            sections.push((format!("Lengths of `{name}`, in tokens"), by_length(&table, "array_length(ids)")));
        }
    }
    sections
}

fn by_language(table: &str, length: &str, unit: &str) -> String {
    format!(
        "select coalesce(language, 'unknown') as language, count(*) as rows, sum({length}) as {unit}, \
         round(avg({length}), 1) as mean from {table} group by 1 order by rows desc, language limit {ROWS}"
    )
}

/// A histogram, each class twice as long as the one before.
fn by_length(table: &str, length: &str) -> String {
    format!(
        "select \"from\", rows, repeat('█', cast(ceil({BAR}.0 * rows / max(rows) over ()) as bigint)) as share from \
         (select cast(power(2, floor(log2(greatest({length}, 1)))) as bigint) as \"from\", count(*) as rows \
         from {table} group by 1) order by \"from\""
    )
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(text) => format!("'{}'", text.replace('\'', "''")),
        other => other.to_string(),
    }
}
