//! What an input means: ports of other jobs, or committed artifacts.

use crate::diagnostic::{Diagnostic, Result, nearest};
use crate::digests;
use crate::load::draft::{Draft, Input};
use crate::load::instances::axes_words;
use crate::load::repeat::{LAST, PREVIOUS, is_of_previous};
use crate::programs::Program;
use smelt_schemas::{ArtifactRef, InputPort, InputRef};
use smelt_store::Store;
use std::collections::HashMap;

pub(super) fn unknown_port(draft: &Draft, program: &Program, name: &str) -> Diagnostic {
    let known: Vec<&str> = program.description.inputs.iter().map(|p| p.name.as_str()).collect();
    let error =
        Diagnostic::pipeline(format!("stage `{}` of job `{}` has no input `{name}`", draft.text.stage, draft.name));
    match known.as_slice() {
        [] => error.hint("it takes no input"),
        _ => error.hint(format!("its inputs: {}", known.join(", "))),
    }
}

/// The port that an input without a name goes to: the first one.
pub(super) fn main_port<'a>(draft: &Draft, program: &'a Program) -> Result<&'a InputPort> {
    program.description.inputs.first().ok_or_else(|| {
        Diagnostic::pipeline(format!("job `{}` has an input, but stage `{}` takes none", draft.name, draft.text.stage))
    })
}

pub(super) fn resolve_reference(
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
    let chosen = choose(base, axes, draft, drafts)?;
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

/// The instances of `base` that a job means: those that it names, else the one with its own axes, and of a repeated job
/// its own iteration, or the last.
pub(super) fn choose(base: &str, axes: Option<&str>, draft: &Draft, drafts: &[Draft]) -> Result<Vec<usize>> {
    if draft.iteration.is_none() && (base == PREVIOUS || axes.is_some_and(|axes| is_of_previous(&format!("[{axes}]"))))
    {
        let what = format!("job `{}` reads a previous iteration, and is not repeated", draft.name);
        return Err(Diagnostic::pipeline(what).hint("add `repeat: 3` and `first: JOB`, or name a job"));
    }
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
    if axes == Some("*") {
        return Ok(named);
    }
    let (axes, iteration) = match named.iter().filter_map(|&i| drafts[i].iteration).max() {
        Some(count) => of_iteration(base, axes, count, draft)?,
        None => (axes, None),
    };
    let named: Vec<usize> = named.into_iter().filter(|&i| drafts[i].iteration == iteration).collect();
    Ok(match axes {
        Some(wanted) => {
            let is_wanted = |i: &usize| !wanted.is_empty() && axes_words(&drafts[*i].axes) == wanted;
            let found: Vec<usize> = named.iter().copied().filter(is_wanted).collect();
            if found.is_empty() {
                let names: Vec<&str> = named.iter().map(|&i| drafts[i].name.as_str()).collect();
                return Err(Diagnostic::pipeline(format!(
                    "job `{}` reads `{base}[{wanted}]`, and there is no such instance",
                    draft.name
                ))
                .hint(format!("instances: {}", names.join(", "))));
            }
            found
        }
        // Axes that both jobs have are joined; an axis that only the producer has must be chosen explicitly.
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
    })
}

/// The axes and the iteration that a reference to a job with `count` iterations means.
fn of_iteration<'a>(
    base: &str,
    axes: Option<&'a str>,
    count: usize,
    draft: &Draft,
) -> Result<(Option<&'a str>, Option<usize>)> {
    // The iteration stands last: `[2]`, `[seed=1,2]`.
    let (rest, word) = match axes.map(|axes| (axes, axes.rsplit_once(','))) {
        Some((_, Some((rest, word)))) if !word.contains('=') => (Some(rest), Some(word)),
        Some((word, None)) if !word.contains('=') => (None, Some(word)),
        _ => (axes, None),
    };
    let number = match word {
        Some(LAST) => count,
        Some(word) => word.parse().map_err(|_| {
            Diagnostic::pipeline(format!("job `{}` reads `{base}[{word}]`, and there is no such iteration", draft.name))
                .hint(format!("iterations of `{base}`: 1 to {count}, `{PREVIOUS}`, `{LAST}`; `{base}[*]` is all"))
        })?,
        None => draft.iteration.unwrap_or(count),
    };
    if !(1..=count).contains(&number) {
        let times = if count == 1 { "1 iteration".to_owned() } else { format!("{count} iterations") };
        let what = format!("job `{}` reads `{base}[{number}]`, and `{base}` has {times}", draft.name);
        return Err(Diagnostic::pipeline(what).hint(match word {
            None => format!("give both jobs the same `repeat`, or name one: `{base}[{LAST}]`"),
            Some(_) => format!("`{base}[{LAST}]` is the last"),
        }));
    }
    Ok((rest, Some(number)))
}

/// `base`, `base.port`, `base[axes]`, `base[axes].port`
fn split_reference(reference: &str) -> Result<(&str, Option<&str>, Option<&str>)> {
    let bad = || {
        Diagnostic::pipeline(format!("`{reference}` is no input"))
            .hint("write a job, `job.port`, `job[*]`, `previous`, `tag:NAME` or `artifact:DIGEST`")
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

fn fixed(store: &Store, artifact: &ArtifactRef, port: Option<&str>, spec: &InputPort, shown: &str) -> Result<Input> {
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
    if let Some((manifest, of_port)) = digests::find(store, digest)? {
        return fixed(store, &manifest.artifact(), port.or(of_port.as_deref()), spec, shown);
    }
    Err(Diagnostic::pipeline(format!(
        "no artifact in {} has a fingerprint or digest that begins with `{digest}`",
        store.address()
    ))
    .hint("`smelt artifacts list` shows them; six digits are the least"))
}
