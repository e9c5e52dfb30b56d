//! `ingest`: files to documents, and to conversations, prompts and preferences.
//!
//! Reads files that globs name, packed with gzip, Zstandard, bzip2 or xz or not: plain text, Markdown and source code,
//! one document per file; JSON lines and lists, CSV, Parquet, and the texts of crawls (WET), one document per record.
//! The fields `url` and `language` of a record become the columns of these names. The first of `time`, `timestamp` and
//! `date` that holds a time becomes `time`. All other fields become `metadata`, a JSON object.
//!
//! With `kind: conversations`, `prompts` or `preferences` the records are chats and go to the port of that name; the
//! other ports stay empty. One stage does all four because what is hard about them is one thing: names, packings,
//! encodings, broken records and columns of every type.
//!
//! Rows stand in the order of the files' names; what is left out goes to `drops`. The files are part of the job's
//! fingerprint by relative name and content: a changed file makes the job new, and the same files elsewhere give the
//! same bytes.

mod cell;
mod chat;
mod config;
pub mod error;
mod json;
mod parquet;
pub mod paths;
pub mod read;
mod record;
pub mod select;
mod sniff;
mod tally;
mod time;
mod unpack;
mod warc;
mod work;

use std::collections::BTreeMap;

use smelt_stage::files::{Found, Memory, hash};
use smelt_stage::kinds::{Conversations, Documents, Drops, Preferences, Prompts};
use smelt_stage::{Context, Doctor, Error, Source, Stage, checks};

pub use crate::chat::Names;
pub use crate::config::{Config, FileFormat, OnBad, OnInvalid, RecordKind};
use crate::tally::Tally;
use crate::work::{Budget, read_file};

smelt_stage::inputs! { pub struct Inputs {} }
smelt_stage::outputs! {
    pub struct Outputs {
        documents: Port<Documents>,
        conversations: Port<Conversations>,
        prompts: Port<Prompts>,
        preferences: Port<Preferences>,
        drops: Port<Drops>,
    }
}

#[derive(Debug)]
pub struct Ingest;

/// Files of a unit hold at least and at most about this many bytes.
const UNIT_BYTES: (u64, u64) = (1 << 20, 256 << 20);
/// Number of units, as long as their size stays between those bounds.
const UNITS: u64 = 64;

impl Stage for Ingest {
    const NAME: &'static str = "ingest";
    const VERSION: u32 = 4; // bzip2 and WARC are read
    const ABOUT: &'static str = "Reads text, JSON, CSV, Parquet and WET as documents or chats";
    const CORES: smelt_stage::Cores = smelt_stage::Cores::All;
    const SPREADS: bool = true;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, _inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        config.check()?;
        let selection = config.select()?;
        if selection.files.is_empty() {
            let globs: Vec<String> = config.paths.iter().map(|path| format!("`{path}`")).collect();
            let what = match selection.matched {
                0 => format!("no file matches {}", globs.join(", ")),
                n => format!("none of the {n} files that match {} is within the limits", globs.join(", ")),
            };
            let hint = selection.idle.into_iter().find_map(|idle| idle.hint).unwrap_or_else(|| {
                "`**` matches folders at any depth, `*` does not cross them; relative paths begin where `smelt` runs"
                    .into()
            });
            return Err(Error::config("/paths", what).hint(hint));
        }
        Ok(Memory::of_user().sources(&selection.files)?)
    }

    fn doctor() -> Doctor {
        let mut doctor = checks::machine(None);
        doctor.checks.push(checks::cache());
        doctor
    }

    fn run(config: Config, _inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        let selection = config.select()?;
        check_names(&selection.files, cx.sources())?;
        for idle in &selection.idle {
            let hint = idle.hint.as_ref().map_or(String::new(), |hint| format!(": {hint}"));
            cx.warn(&format!("no file matches `{}`{hint}", idle.glob));
        }
        if let Some(link) = selection.dead.first() {
            let (n, links) = (selection.dead.len(), if selection.dead.len() == 1 { "link" } else { "links" });
            cx.warn(&format!("{n} {links} to nothing left out, the first is `{link}`"));
        }
        let files = &selection.files;
        let counts_records = config.max_documents.is_some() || config.max_total_bytes.is_some();
        let is_budgeted = counts_records && files.iter().any(|file| !config.is_plain(file));
        let bounds = if is_budgeted { std::iter::once(0..files.len()).collect() } else { split(files) };
        // Limits that count records need one reader for all files; without them every unit is independent.
        let budget = Budget::new(&config);
        let records = cx.units("read", bounds.len(), |i, unit| {
            let mut tally = Tally::default();
            for at in bounds[i].clone() {
                let file = &files[at];
                // The fingerprint covers these bytes: others must not enter under their name.
                if hash(file)? != cx.sources()[at] {
                    return Err(changed(&file.name));
                }
                read_file(&config, file, &budget, &out, unit, &mut tally)?;
            }
            unit.set_detail(tally.to_json()?);
            Ok(())
        })?;
        cx.result("files", files.len() as f64);
        cx.result("files_matched", selection.matched as f64);
        let units: Vec<_> = records.iter().map(|unit| (unit.books.read, unit.books.written, &unit.detail)).collect();
        Tally::judge(&config, &files[0].name, &units, cx)
    }
}

/// Checks that the files are those that the job was planned with, by name and number.
fn check_names(files: &[Found], sources: &[Source]) -> Result<(), Error> {
    let (now, planned) = (files.iter().map(|file| &file.name), sources.iter().map(|source| &source.name));
    if let Some((now, planned)) = now.clone().zip(planned.clone()).find(|(now, planned)| now != planned) {
        return Err(changed(now.min(planned)));
    }
    match now.clone().nth(sources.len()).or_else(|| planned.clone().nth(files.len())) {
        Some(name) => Err(changed(name)),
        None => Ok(()),
    }
}

fn changed(name: &str) -> Error {
    Error::data(format!("`{name}` is not what it was when the job was planned")).hint("run the pipeline again")
}

/// Ranges of neighbouring files, from their sizes alone: each becomes a unit here and a file for the jobs that follow,
/// so there are enough of them for many workers and not too many for a store.
fn split(files: &[Found]) -> Vec<std::ops::Range<usize>> {
    let all: u64 = files.iter().map(|file| file.bytes).sum();
    let limit = (all / UNITS).clamp(UNIT_BYTES.0, UNIT_BYTES.1);
    let mut ranges = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, file) in files.iter().enumerate() {
        if i > start && bytes + file.bytes > limit {
            ranges.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += file.bytes;
    }
    if start < files.len() {
        ranges.push(start..files.len());
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(sizes: &[u64]) -> Vec<Found> {
        let file = |&bytes| Found { name: String::new(), path: Default::default(), bytes };
        sizes.iter().map(file).collect()
    }

    #[test]
    fn every_file_is_in_one_unit_of_its_size() {
        const MIB: u64 = 1 << 20;
        assert_eq!(split(&files(&[10, 10, 10])).len(), 1);
        assert_eq!(split(&files(&[MIB / 2; 5])), [0..2, 2..4, 4..5]);
        assert_eq!(split(&files(&[3 * MIB, 1, 3 * MIB])), [0..1, 1..2, 2..3]);
        assert_eq!(split(&files(&[])).len(), 0);
        // 6.4 GiB: 64 units of 100 MiB.
        assert_eq!(split(&files(&[10 * MIB; 640])).len(), 64);
    }
}
