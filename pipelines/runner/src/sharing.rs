//! `smelt push`, `pull`, `export`: artifacts in other stores and in plain folders.

use crate::artifacts::{self, Where};
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::query;
use crate::table::bytes;
use clap::Args;
use smelt_schemas::{ArtifactRef, ExitCode, Manifest};
use smelt_store::{Copied, Pointer, Store, Tag};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// What is copied.
#[derive(Args)]
pub(crate) struct Copy {
    /// The other store: a directory or a bucket, such as s3://bucket/prefix
    #[arg(value_name = "STORE")]
    other: String,
    /// Jobs, tags, or six or more digits of a fingerprint or digest; all jobs of the pipeline if none is named
    what: Vec<String>,
    #[command(flatten)]
    at: Where,
    /// Leave out what they were made from
    #[arg(long)]
    no_lineage: bool,
    /// Accept a store that knows no create-only put: nobody else writes to it meanwhile
    #[arg(long)]
    single_writer: bool,
}

#[derive(Args)]
pub(crate) struct Export {
    /// A job, a tag, or six or more digits of a fingerprint or of a port's digest
    artifact: String,
    /// A folder that is not there yet
    folder: PathBuf,
    /// Which port; the first one if not said
    #[arg(long)]
    port: Option<String>,
    #[command(flatten)]
    at: Where,
}

/// Which way artifacts go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Push,
    Pull,
}

/// What a copy is about: artifacts, each after what it was made from, and names that lead to them.
struct Cargo {
    artifacts: Vec<Manifest>,
    pointers: Vec<(String, String, Pointer)>,
    tags: Vec<(String, Tag)>,
}

pub(crate) fn copy(args: &Copy, way: Way) -> Result<()> {
    let mut other =
        Store::open(&args.other).map_err(|e| Diagnostic::from(e).at(Some(Place::named("STORE"))))?.hasty(true);
    let (mut own, is_single_writer) = query::store_and_commit(args.at.store.as_deref(), args.at.pipeline.as_deref())?;
    if way == Way::Pull {
        std::mem::swap(&mut own, &mut other);
    }
    let (from, to) = (own, other);
    let cargo = cargo(&from, args)?;
    // The pipeline's file speaks of its own store only.
    to.probe(args.single_writer || (way == Way::Pull && is_single_writer))?;
    let mut copied = Copied::default();
    for manifest in &cargo.artifacts {
        copied += from.copy_to(&to, manifest)?;
    }
    // Names come last: whoever follows one finds all of what it leads to.
    let mut moved = 0;
    for (pipeline, job, pointer) in &cargo.pointers {
        if to.pointer(pipeline, job)?.is_none_or(|found| found.artifact != pointer.artifact) {
            to.point(pipeline, job, pointer)?;
            moved += 1;
        }
    }
    for (name, tag) in &cargo.tags {
        if to.tag(name)?.is_none_or(|found| found.artifact != tag.artifact) {
            to.set_tag(name, tag)?;
            moved += 1;
        }
    }
    let verb = if way == Way::Push { "pushed to" } else { "pulled from" };
    let there = if copied.there > 0 { format!(", {} were there", copied.there) } else { String::new() };
    let resumed = match copied.resumed {
        0 => String::new(),
        n => format!("; {n} files were there from a copy that was broken off"),
    };
    let names = if moved > 0 { format!("; {moved} names now lead to them") } else { String::new() };
    let address = if way == Way::Push { to.address() } else { from.address() };
    println!(
        "{} artifacts {verb} {address}, {} in {} files{there}{resumed}{names}",
        copied.artifacts,
        bytes(copied.bytes),
        copied.files
    );
    Ok(())
}

fn cargo(from: &Store, args: &Copy) -> Result<Cargo> {
    let of_pipeline = |pipeline: &str| -> Result<Vec<(String, String, Pointer)>> {
        Ok(from.pointers()?.into_iter().filter(|(of, _, _)| of == pipeline).collect())
    };
    let (mut wanted, mut pointers, mut tags) = (Vec::new(), Vec::new(), Vec::new());
    if args.what.is_empty() {
        pointers = of_pipeline(&query::pipeline_name(from, args.at.pipeline.as_deref())?)?;
        for (_, job, pointer) in &pointers {
            wanted.push(manifest(from, &format!("job `{job}`"), &pointer.artifact)?);
        }
    }
    for what in &args.what {
        let found = artifacts::find(from, &args.at, what)?;
        if let Some(tag) = from.tag(what)?.filter(|tag| tag.artifact == found.artifact()) {
            tags.push((what.clone(), tag));
        }
        wanted.push(found);
    }
    // Each once, and after its inputs.
    let mut order: Vec<Manifest> = Vec::new();
    for manifest in wanted {
        let with = if args.no_lineage { vec![manifest] } else { from.ancestry(&manifest)? };
        for manifest in with {
            if !order.iter().any(|m| m.artifact() == manifest.artifact()) {
                order.push(manifest);
            }
        }
    }
    // The jobs that point at what goes along: on the other side `status` and `sql` know them.
    if !args.what.is_empty()
        && let Ok(pipeline) = query::pipeline_name(from, args.at.pipeline.as_deref())
    {
        let goes: BTreeSet<ArtifactRef> = order.iter().map(Manifest::artifact).collect();
        pointers = of_pipeline(&pipeline)?;
        pointers.retain(|(_, _, pointer)| goes.contains(&pointer.artifact));
    }
    Ok(Cargo { artifacts: order, pointers, tags })
}

fn manifest(store: &Store, what: &str, artifact: &ArtifactRef) -> Result<Manifest> {
    store.manifest(artifact)?.ok_or_else(|| {
        let (stage, short) = (&artifact.stage, artifact.fingerprint.short());
        let lost = format!("{what} points at {stage} {short}/{}, which is gone", artifact.edition);
        Diagnostic::new(ExitCode::Data, lost).hint("`smelt run` makes it again")
    })
}

pub(crate) fn export(args: &Export) -> Result<()> {
    let store = artifacts::open(&args.at)?;
    let found = artifacts::find(&store, &args.at, &args.artifact)?;
    let port = match &args.port {
        Some(port) if found.ports.contains_key(port) => port.clone(),
        Some(port) => {
            let ports: Vec<&str> = found.ports.keys().map(String::as_str).collect();
            return Err(Diagnostic::pipeline(format!("`{}` has no port `{port}`", args.artifact))
                .hint(format!("its ports: {}", ports.join(", "))));
        }
        None => found.ports.keys().next().cloned().unwrap_or_default(),
    };
    let written = store.export(&found, &port, &args.folder)?;
    let files = found.ports.get(&port).map_or(0, |record| record.files.len());
    println!("port {port} of {}: {files} files, {}, in {}", args.artifact, bytes(written), args.folder.display());
    Ok(())
}
