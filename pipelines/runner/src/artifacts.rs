//! `smelt artifacts`: what a store holds, where it came from, whether it is whole, what of it may go.

use crate::diagnostic::{Diagnostic, Result};
use crate::table::{Format, Listing, Measure, bytes, duration, time};
use crate::{digests, query};
use clap::Subcommand;
use serde_json::json;
use smelt_schemas::{ArtifactRef, Books, ExitCode, Kind, Manifest};
use smelt_store::{GcRules, Store, Tag, now};
use std::collections::BTreeMap;

#[derive(clap::Args, Clone)]
pub(crate) struct Where {
    /// A directory or a bucket, such as s3://bucket/prefix; overrides SMELT_STORE
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) store: Option<String>,
    /// The pipeline whose job names are meant; the one that ran last if not said
    #[arg(long)]
    pub(crate) pipeline: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Every committed artifact
    List {
        #[command(flatten)]
        at: Where,
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// One artifact: ports, files, books, config, provenance
    Show {
        /// A job, a tag, or six or more digits of a fingerprint or of a port's digest
        artifact: String,
        #[command(flatten)]
        at: Where,
        /// `json` prints the manifest
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
    /// What an artifact was made from, back to the sources
    Lineage {
        artifact: String,
        #[command(flatten)]
        at: Where,
    },
    /// Look whether all files are there, as long as their manifests say; all artifacts if none is named
    Verify {
        artifact: Vec<String>,
        #[command(flatten)]
        at: Where,
        /// Read every byte and compare it with the digests
        #[arg(long)]
        deep: bool,
    },
    /// Say what no tag and no pipeline reaches any more, which attempts were abandoned, and what killed processes left;
    /// with --delete, delete it
    Gc {
        #[command(flatten)]
        at: Where,
        /// Delete it; without this, nothing is changed
        #[arg(long)]
        delete: bool,
        /// Keep what is younger than this many hours
        #[arg(long, default_value_t = 24.0)]
        older_than: f64,
        /// Keep this many of the newest artifacts of each job, beside what tags and pipelines point at
        #[arg(long, default_value_t = 1, value_name = "N")]
        keep: usize,
    },
    /// Give an artifact a name that keeps it: `smelt artifacts tag best aligned`
    Tag {
        /// Without an artifact, lists all tags
        name: Option<String>,
        artifact: Option<String>,
        #[command(flatten)]
        at: Where,
        /// Remove the tag
        #[arg(long)]
        delete: bool,
        #[arg(long, value_enum, default_value = "table")]
        format: Format,
    },
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::List { at, format } => list(&open(&at)?, format),
        Command::Show { artifact, at, format } => show(&find(&open(&at)?, &at, &artifact)?, format),
        Command::Lineage { artifact, at } => {
            let store = open(&at)?;
            lineage(&store, &find(&store, &at, &artifact)?, 0)
        }
        Command::Verify { artifact, at, deep } => verify(&open(&at)?, &at, &artifact, deep),
        Command::Gc { at, delete, older_than, keep } => {
            let age = older_than * 3600.0;
            gc(&open(&at)?, delete, &GcRules { attempt_age: age, artifact_age: age, newest: keep })
        }
        Command::Tag { name: None, at, format, .. } => tags(&open(&at)?, format),
        Command::Tag { name: Some(name), artifact, at, delete, .. } => tag(&open(&at)?, &at, &name, artifact, delete),
    }
}

pub(crate) fn open(at: &Where) -> Result<Store> {
    query::store_of(at.store.as_deref(), at.pipeline.as_deref())
}

/// The artifact that a person means by a job's name, a tag, or the beginning of a digest.
pub(crate) fn find(store: &Store, at: &Where, wanted: &str) -> Result<Manifest> {
    let gone = || Diagnostic::new(ExitCode::Data, format!("what `{wanted}` names is gone from {}", store.address()));
    if let Some(tag) = store.tag(wanted)? {
        return store.manifest(&tag.artifact)?.ok_or_else(gone);
    }
    let pipeline = query::pipeline_name(store, at.pipeline.as_deref()).ok();
    if let Some(pipeline) = &pipeline
        && let Some(pointer) = store.pointer(pipeline, wanted)?
    {
        return store.manifest(&pointer.artifact)?.ok_or_else(gone);
    }
    if let Some((found, _)) = digests::find(store, wanted)? {
        return Ok(found);
    }
    // A job with `each` or `repeat` has an artifact for each instance.
    let is_instance = |job: &str| job.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('['));
    let jobs = pipeline.map(|pipeline| store.jobs_of(&pipeline)).transpose()?.unwrap_or_default();
    let instances: Vec<String> = jobs.iter().filter(|job| is_instance(job)).map(|job| format!("`{job}`")).collect();
    if !instances.is_empty() {
        let what = format!("job `{wanted}` has {} instances, each with an artifact", instances.len());
        return Err(Diagnostic::pipeline(what).hint(format!("name one: {}", instances.join(", "))));
    }
    Err(Diagnostic::pipeline(format!("`{wanted}` is no job, tag or digest in {}", store.address()))
        .hint("`smelt artifacts list` shows what is there"))
}

/// Whether a port is a table that its stage is for.
fn is_result(kind: &Kind) -> bool {
    kind.schema().is_some() && kind.counts_as_output() && kind.name != "drops"
}

fn list(store: &Store, format: Format) -> Result<()> {
    let mut named: BTreeMap<ArtifactRef, Vec<String>> = BTreeMap::new();
    for (name, artifact) in names(store)? {
        named.entry(artifact).or_default().push(name);
    }
    let mut listing = Listing::new(&[
        ("stage", Measure::Plain),
        ("artifact", Measure::Plain),
        ("made", Measure::Time),
        ("size", Measure::Bytes),
        ("rows", Measure::Plain),
        ("named", Measure::Plain),
    ]);
    let (mut found, damaged) = store.manifests()?;
    for (_, error) in &damaged {
        eprintln!("warning: {error}");
    }
    found.sort_by(|a, b| a.provenance.started.total_cmp(&b.provenance.started));
    for m in &found {
        let named = named.get(&m.artifact()).map_or_else(String::new, |n| n.join(" "));
        listing.row(vec![
            json!(m.stage),
            json!(format!("{}/{}", m.fingerprint.short(), m.edition)),
            json!(m.provenance.started),
            json!(m.bytes()),
            // Of its largest table; null if there is none, as of a checkpoint.
            json!(m.ports.values().filter(|p| is_result(&p.kind)).filter_map(|p| p.rows()).max()),
            json!(named),
        ]);
    }
    if listing.is_empty() && format == Format::Table {
        println!("{} holds nothing yet", store.address());
        return Ok(());
    }
    print!("{}", listing.text(format));
    Ok(())
}

fn show(m: &Manifest, format: Format) -> Result<()> {
    if format == Format::Json {
        println!("{}", serde_json::to_string_pretty(m).expect("a manifest is plain data"));
        return Ok(());
    }
    println!("{} {}/{}", m.stage, m.fingerprint, m.edition);
    let p = &m.provenance;
    println!("  made     {} on {} by smelt {}, job {} of run {}", time(p.started), p.host, p.smelt, p.job, p.run);
    println!(
        "  took     {}, {} threads, {} at most, {}",
        duration(p.seconds),
        p.threads,
        bytes(p.peak_memory_bytes),
        p.cpu
    );
    if let Some(device) = &p.device {
        println!("  computed on {device}");
    }
    println!("  config   {}", m.config);
    for (port, inputs) in &m.inputs {
        for i in inputs {
            println!(
                "  input    {port} = {} {}/{} port {} ({})",
                i.artifact.stage,
                i.artifact.fingerprint.short(),
                i.artifact.edition,
                i.port,
                i.digest.short()
            );
        }
    }
    if !m.sources.is_empty() {
        println!("  sources  {} files, {}", m.sources.len(), bytes(m.sources.iter().map(|s| s.bytes).sum()));
    }
    if m.books != Books::default() {
        println!("  books    {} read + {} derived = {}", m.books.read, m.books.derived, m.books.summary("rows"));
    }
    for (name, value) in &m.metrics {
        println!("  metric   {name} = {value}");
    }
    for (name, port) in &m.ports {
        println!(
            "  port     {name}: {}, digest {}, {} files, {}",
            port.kind,
            port.digest.short(),
            port.files.len(),
            bytes(port.bytes())
        );
        for f in &port.files {
            let rows = f.rows.map_or_else(String::new, |r| format!(", {r} rows"));
            println!("             {}  {}{rows}", f.path, bytes(f.bytes));
        }
    }
    Ok(())
}

fn lineage(store: &Store, m: &Manifest, depth: usize) -> Result<()> {
    println!(
        "{:depth$}{} {}/{}  {}",
        "",
        m.stage,
        m.fingerprint.short(),
        m.edition,
        time(m.provenance.started),
        depth = depth * 2
    );
    if !m.sources.is_empty() {
        println!("{:depth$}{} source files, first {}", "", m.sources.len(), m.sources[0].name, depth = depth * 2 + 2);
    }
    for (port, inputs) in &m.inputs {
        for input in inputs {
            print!("{:depth$}{port}: ", "", depth = depth * 2 + 2);
            match store.manifest(&input.artifact)? {
                Some(made) => {
                    println!("port {} ({})", input.port, input.digest.short());
                    lineage(store, &made, depth + 2)?;
                }
                None => println!(
                    "{} {}/{} is gone",
                    input.artifact.stage,
                    input.artifact.fingerprint.short(),
                    input.artifact.edition
                ),
            }
        }
    }
    Ok(())
}

fn verify(store: &Store, at: &Where, wanted: &[String], deep: bool) -> Result<()> {
    let (manifests, damaged) = match wanted {
        [] => store.manifests()?,
        wanted => (wanted.iter().map(|w| find(store, at, w)).collect::<Result<_>>()?, Vec::new()),
    };
    let scratch = std::env::temp_dir();
    let mut bad = damaged.len();
    for (artifact, error) in &damaged {
        println!("{} {}/{}: {error}", artifact.stage, artifact.fingerprint.short(), artifact.edition);
    }
    for m in &manifests {
        let troubles = if deep { store.verify(m, &scratch)? } else { store.look_over(m)? };
        for trouble in troubles {
            bad += 1;
            println!("{} {}/{}: {trouble}", m.stage, m.fingerprint.short(), m.edition);
        }
    }
    if wanted.is_empty() {
        // A name that leads nowhere is damage too: a run that reads it would stop.
        for (name, artifact) in names(store)? {
            if !manifests.iter().any(|m| m.artifact() == artifact) && !damaged.iter().any(|(a, _)| *a == artifact) {
                bad += 1;
                let (stage, short) = (&artifact.stage, artifact.fingerprint.short());
                println!("{stage} {short}/{}: {name} names it, and it is gone", artifact.edition);
            }
        }
    }
    let total: u64 = manifests.iter().map(Manifest::bytes).sum();
    match (bad, deep) {
        (0, true) => println!("{} artifacts, {}: every byte is as its manifest says", manifests.len(), bytes(total)),
        (0, false) => println!(
            "{} artifacts, {}: every file is there, as long as its manifest says; `--deep` reads their bytes",
            manifests.len(),
            bytes(total)
        ),
        (n, _) => {
            return Err(Diagnostic::new(ExitCode::Data, format!("{n} files are damaged"))
                .hint("`smelt rerun JOB` makes a new edition"));
        }
    }
    Ok(())
}

/// Every name of an artifact: `pipeline.job`, `tag:NAME`.
fn names(store: &Store) -> Result<Vec<(String, ArtifactRef)>> {
    let jobs = store.pointers()?.into_iter().map(|(pipeline, job, p)| (format!("{pipeline}.{job}"), p.artifact));
    let tags = store.tags()?.into_iter().map(|(tag, t)| (format!("tag:{tag}"), t.artifact));
    Ok(jobs.chain(tags).collect())
}

fn gc(store: &Store, delete: bool, rules: &GcRules) -> Result<()> {
    let plan = store.plan_gc(rules)?;
    for a in &plan.artifacts {
        println!("artifact {} {}/{}", a.stage, a.fingerprint.short(), a.edition);
    }
    for a in &plan.attempts {
        println!("attempt  {a}");
    }
    for key in plan.leftovers.folders.iter().chain(&plan.leftovers.files) {
        println!("leftover {key}");
    }
    if delete {
        store.gc(&plan)?;
    }
    let (artifacts, attempts) = (plan.artifacts.len(), plan.attempts.len());
    let leftovers = plan.leftovers.folders.len() + plan.leftovers.files.len();
    let more = if leftovers > 0 { format!(", and {leftovers} leftovers inside others") } else { String::new() };
    let verb = match (delete, artifacts + attempts + leftovers) {
        (true, _) => "deleted",
        (false, 0) => "would go",
        (false, _) => "would go; `--delete` deletes them",
    };
    println!("{artifacts} artifacts and {attempts} attempts{more}, {}, {verb}", bytes(plan.bytes));
    Ok(())
}

fn tags(store: &Store, format: Format) -> Result<()> {
    let columns =
        [("tag", Measure::Plain), ("stage", Measure::Plain), ("artifact", Measure::Plain), ("set", Measure::Time)];
    let mut listing = Listing::new(&columns);
    for (name, t) in store.tags()? {
        let artifact = format!("{}/{}", t.artifact.fingerprint.short(), t.artifact.edition);
        listing.row(vec![json!(name), json!(t.artifact.stage), json!(artifact), json!(t.time)]);
    }
    print!("{}", listing.text(format));
    Ok(())
}

fn tag(store: &Store, at: &Where, name: &str, artifact: Option<String>, delete: bool) -> Result<()> {
    match (artifact, delete) {
        (_, true) => store.delete_tag(name)?,
        (Some(artifact), false) => {
            let artifact = find(store, at, &artifact)?.artifact();
            let before = store.tag(name)?.map(|tag| tag.artifact);
            store.set_tag(name, &Tag { artifact: artifact.clone(), time: now() })?;
            let shown = |a: &ArtifactRef| format!("{} {}/{}", a.stage, a.fingerprint.short(), a.edition);
            println!(
                "tag:{name} is {}{}",
                shown(&artifact),
                match before {
                    None => String::new(),
                    Some(before) if before == artifact => ", as before".into(),
                    Some(before) => format!(", moved from {}", shown(&before)),
                }
            );
        }
        (None, false) => {
            let t = store.tag(name)?.ok_or_else(|| {
                Diagnostic::pipeline(format!("there is no tag `{name}`")).hint("`smelt artifacts tag` lists them")
            })?;
            println!("{} {}/{}", t.artifact.stage, t.artifact.fingerprint, t.artifact.edition);
        }
    }
    Ok(())
}
