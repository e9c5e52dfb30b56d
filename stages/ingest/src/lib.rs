//! `ingest`: files to documents, and to conversations, prompts and preferences.
//!
//! Reads files that globs name, packed with gzip, Zstandard, bzip2 or xz or not: plain text, Markdown, source code
//! and HTML, one document per file; JSON lines and lists, CSV, Parquet, and crawls as pages (WARC) or as texts (WET),
//! one document per record. Of pages it is the main text.
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
mod html;
mod http;
mod json;
mod layout;
mod parquet;
pub mod parts;
pub mod paths;
pub mod read;
mod record;
pub mod remote;
pub mod select;
mod sniff;
mod tally;
mod time;
mod unpack;
mod warc;
mod work;

use std::collections::BTreeMap;
use std::ops::Range;

use smelt_stage::files::{Found, Memory, hash};
use smelt_stage::kinds::{Conversations, Documents, Drops, Preferences, Prompts};
use smelt_stage::{Context, Doctor, Error, LocalFile, Source, Stage, checks};

pub use crate::chat::Names;
pub use crate::config::{Config, FileFormat, OnBad, OnInvalid, RecordKind};
use crate::error::IngestError;
use crate::parts::{Part, Parted};
use crate::remote::Remotes;
use crate::select::Selection;
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
/// Files above this are read in parts, where they can be.
const PART_BYTES: u64 = 32 << 20;
/// Number of units, as long as their size stays between those bounds.
const UNITS: u64 = 64;

impl Stage for Ingest {
    const NAME: &'static str = "ingest";
    const VERSION: u32 = 5; // pages give their main text
    const ABOUT: &'static str = "Reads text, HTML, JSON, CSV, Parquet, WARC and WET as documents or chats";
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
        sources(&selection)
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
        let is_budgeted = counts_records && files.iter().any(|file| !config.is_plain(file, &selection.remotes));
        // Limits that count records need one reader for all files; without them every unit is independent.
        let pieces = if is_budgeted { vec![Piece::Files(0..files.len())] } else { pieces(&config, files, cx)? };
        let budget = Budget::new(&config);
        let records = cx.units("read", pieces.len(), |i, unit| {
            let mut tally = Tally::default();
            // The fingerprint covers the bytes of the files: others must not enter under their name.
            match &pieces[i] {
                Piece::Files(range) => {
                    for at in range.clone() {
                        let copy = verified(&files[at], &cx.sources()[at], &selection.remotes, cx)?;
                        let path = copy.as_ref().map_or(files[at].path.as_path(), LocalFile::path);
                        let file = Found { path: path.to_owned(), ..files[at].clone() };
                        read_file(&config, (&file, None), &budget, &out, unit, &mut tally)?;
                    }
                }
                Piece::Part(at, part) => {
                    let file = &files[*at];
                    let cannot = |source| IngestError::Read { name: file.name.clone(), source };
                    if !part.is_unchanged(&file.path).map_err(cannot)? {
                        return Err(changed(&file.name));
                    }
                    read_file(&config, (file, Some(part)), &budget, &out, unit, &mut tally)?;
                }
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

/// What the files are: local ones by their bytes, the others by what their server says.
fn sources(selection: &Selection) -> Result<Vec<Source>, Error> {
    let version = |file: &Found| selection.remotes.version(file);
    let local: Vec<Found> = selection.files.iter().filter(|file| version(file).is_none()).cloned().collect();
    let mut local = Memory::of_user().sources(&local)?.into_iter();
    let source = |file: &Found| match version(file) {
        Some(version) => Some(Source { name: file.name.clone(), bytes: file.bytes, version: version.to_owned() }),
        None => local.next(),
    };
    Ok(selection.files.iter().filter_map(source).collect())
}

/// Checks that a file is what the job was planned with. A remote one is copied to this machine.
fn verified(file: &Found, planned: &Source, remotes: &Remotes, cx: &Context) -> Result<Option<LocalFile>, Error> {
    match remotes.version(file) {
        None if hash(file)? == *planned => Ok(None),
        Some(version) if version == planned.version => {
            let copy = remotes.fetch(file, cx.scratch()).map_err(|e| IngestError::remote(&file.name, &e))?;
            copy.map(Some).ok_or_else(|| changed(&file.name))
        }
        _ => Err(changed(&file.name)),
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

/// What a unit reads.
#[derive(Debug)]
enum Piece {
    /// Neighbouring files.
    Files(Range<usize>),
    /// A part of a file.
    Part(usize, Part),
}

/// The pieces of all files, in order. A phase of its own finds the parts of large files.
fn pieces(config: &Config, files: &[Found], cx: &Context) -> Result<Vec<Piece>, Error> {
    let limit = unit_bytes(files);
    let large: Vec<(usize, Parted)> = (0..files.len())
        .filter(|&i| files[i].bytes > PART_BYTES.max(2 * limit))
        .filter_map(|i| Some((i, parts::parted(&files[i].name, &files[i].path, config.reading())?)))
        .collect();
    let found = match large.is_empty() {
        true => Vec::new(),
        false => cx.units("look", large.len(), |i, unit| {
            let (at, kind) = large[i];
            let (parts, whole) = parts::find(&files[at].name, &files[at].path, kind, limit)?;
            if whole != cx.sources()[at].version {
                return Err(changed(&files[at].name));
            }
            let parts = serde_json::to_value(parts).map_err(|e| Error::bug(format!("parts are plain data: {e}")))?;
            unit.set_detail(parts);
            Ok(())
        })?,
    };
    let (mut pieces, mut next) = (Vec::new(), 0);
    for ((at, _), record) in large.iter().zip(&found) {
        pieces.extend(split(&files[next..*at], limit).into_iter().map(|r| Piece::Files(next + r.start..next + r.end)));
        let parts: Vec<Part> = serde_json::from_value(record.detail.clone())
            .map_err(|e| Error::bug(format!("a committed unit holds no parts: {e}")))?;
        pieces.extend(parts.into_iter().map(|part| Piece::Part(*at, part)));
        next = at + 1;
    }
    pieces.extend(split(&files[next..], limit).into_iter().map(|r| Piece::Files(next + r.start..next + r.end)));
    Ok(pieces)
}

/// About how many bytes a unit reads.
fn unit_bytes(files: &[Found]) -> u64 {
    let all: u64 = files.iter().map(|file| file.bytes).sum();
    (all / UNITS).clamp(UNIT_BYTES.0, UNIT_BYTES.1)
}

/// Ranges of neighbouring files, from their sizes alone: each becomes a unit here and a file for the jobs that follow,
/// so there are enough of them for many workers and not too many for a store.
fn split(files: &[Found], limit: u64) -> Vec<Range<usize>> {
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
        let own = |sizes: &[u64]| split(&files(sizes), unit_bytes(&files(sizes)));
        assert_eq!(own(&[10, 10, 10]).len(), 1);
        assert_eq!(own(&[MIB / 2; 5]), [0..2, 2..4, 4..5]);
        assert_eq!(own(&[3 * MIB, 1, 3 * MIB]), [0..1, 1..2, 2..3]);
        assert_eq!(own(&[]).len(), 0);
        // 6.4 GiB: 64 units of 100 MiB.
        assert_eq!(own(&[10 * MIB; 640]).len(), 64);
    }
}
