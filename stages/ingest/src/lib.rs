//! `ingest`: files to documents.
//!
//! Reads files that globs name, compressed with gzip or Zstandard or not: plain text, Markdown and source code, one
//! document per file; JSON lines and Parquet, one document per record. The fields `url` and `language` of a record
//! become the columns of these names. The first of `time`, `timestamp` and `date` that holds a time (ISO 8601, or a
//! column of times or dates in Parquet) becomes `time`. All other fields become `metadata`, a JSON object.
//!
//! Writes `documents` in the order of the files' names, and `drops`. The files are part of the job's fingerprint by
//! relative name and content: a changed file makes the job new, and the same files elsewhere give the same bytes.

pub mod error;
mod parquet;
pub mod paths;
pub mod read;
mod record;
pub mod select;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::files::{Found, Memory, expand, hash};
use smelt_stage::kinds::{Document, Documents, Drops};
use smelt_stage::{Context, Doctor, Error, Source, Stage, Unit, checks};

use crate::error::IngestError;
use crate::read::{Fields, Format, InvalidUtf8, Outcome, Raw};
use crate::select::{Limits, Selection};

/// Which files are read, and how much of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Globs: `*` and `?` inside a name, `**` across folders, `{a,b}` for either. `~`, `${NAME}` and `${NAME:-default}`
    /// are filled in.
    /// Documents are named from `/./` on, or from the last folder before the first wildcard.
    pub paths: Vec<String>,
    /// What the files hold; if not given, the ending of the name decides.
    #[serde(default)]
    pub format: FileFormat,
    /// The field or column that holds a record's text.
    #[serde(default = "text_field")]
    pub text_field: String,
    /// The field or column that identifies a record in its file; by default its number.
    #[serde(default)]
    pub id_field: Option<String>,
    /// What happens to documents that are not UTF-8.
    #[serde(default)]
    pub invalid_utf8: OnInvalid,
    /// Smallest document, in bytes.
    #[serde(default)]
    pub min_bytes: u64,
    /// Largest document, in bytes.
    #[serde(default)]
    pub max_bytes: Option<u64>,
    /// Largest share of a document's characters that are decimal digits, in [0, 1].
    #[serde(default)]
    pub max_digit_share: Option<f64>,
    /// Bytes of files to take from each glob; a hash of the names chooses the sample.
    #[serde(default)]
    pub per_glob: Option<u64>,
    /// Bytes of text to take in all.
    #[serde(default)]
    pub max_total_bytes: Option<u64>,
    /// Documents to take in all.
    #[serde(default)]
    pub max_documents: Option<u64>,
}

fn text_field() -> String {
    "text".to_owned()
}

/// How files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// `.jsonl` and `.ndjson` are JSON lines, `.parquet` is Parquet, anything else is text.
    #[default]
    Auto,
    /// One document per file.
    Text,
    /// One JSON object per line.
    Jsonl,
    /// One document per row.
    Parquet,
}

/// What happens to documents that are not UTF-8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnInvalid {
    /// The job stops and names file and byte.
    #[default]
    Error,
    /// The document is dropped.
    Drop,
    /// Bad bytes become U+FFFD.
    Replace,
}

impl Config {
    fn format_of(&self, name: &str) -> Format {
        match self.format {
            FileFormat::Auto => Format::of_name(name),
            FileFormat::Text => Format::Text,
            FileFormat::Jsonl => Format::Jsonl,
            FileFormat::Parquet => Format::Parquet,
        }
    }

    /// Whether a file is one document of the same size, so that limits apply without opening it.
    fn is_plain(&self, name: &str) -> bool {
        self.format_of(name) == Format::Text && !name.ends_with(".gz") && !name.ends_with(".zst")
    }

    /// The files to read, sorted by name.
    fn select(&self) -> Result<Selection, IngestError> {
        let mut globs = Vec::new();
        for path in &self.paths {
            let glob = expand(path, |name| std::env::var(name).ok())?;
            globs.push((path.clone(), paths::matches(&glob)?));
        }
        let limits = Limits {
            min_bytes: self.min_bytes,
            max_bytes: self.max_bytes,
            per_glob: self.per_glob,
            max_total_bytes: self.max_total_bytes,
            max_documents: self.max_documents,
        };
        select::select(globs, &limits, |file| self.is_plain(&file.name))
    }

    /// Why a document is left out although it was read: rule and value.
    fn fault(&self, text: &str) -> Option<(&'static str, f64)> {
        let bytes = text.len() as u64;
        if bytes < self.min_bytes {
            return Some(("too_small", bytes as f64));
        }
        if self.max_bytes.is_some_and(|max| bytes > max) {
            return Some(("too_large", bytes as f64));
        }
        let limit = self.max_digit_share?;
        let (digits, all) = text.chars().fold((0u64, 0u64), |(d, n), c| (d + u64::from(c.is_ascii_digit()), n + 1));
        let share = digits as f64 / all.max(1) as f64;
        (share > limit).then_some(("digits", share))
    }
}

smelt_stage::inputs! { pub struct Inputs {} }
smelt_stage::outputs! {
    pub struct Outputs { documents: Port<Documents>, drops: Port<Drops> }
}

#[derive(Debug)]
pub struct Ingest;

/// Files of a unit hold at least and at most about this many bytes.
const UNIT_BYTES: (u64, u64) = (1 << 20, 256 << 20);
/// Number of units, as long as their size stays between those bounds.
const UNITS: u64 = 64;

impl Stage for Ingest {
    const NAME: &'static str = "ingest";
    const VERSION: u32 = 2; // `time` of records, and `metadata` of Parquet
    const ABOUT: &'static str = "Reads text, Markdown, source code, JSON lines and Parquet as documents";
    const CORES: smelt_stage::Cores = smelt_stage::Cores::All;
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, _inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        if config.paths.is_empty() {
            return Err(
                Error::config("/paths", "no paths are given").hint("name files or globs, such as `docs/**/*.md`")
            );
        }
        if config.max_digit_share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
            return Err(Error::config("/max_digit_share", "the share of digits must be between 0 and 1"));
        }
        let selection = config.select()?;
        if selection.files.is_empty() {
            let globs: Vec<String> = config.paths.iter().map(|path| format!("`{path}`")).collect();
            let what = match selection.matched {
                0 => format!("no file matches {}", globs.join(", ")),
                n => format!("none of the {n} files that match {} is within the limits", globs.join(", ")),
            };
            return Err(Error::config("/paths", what).hint(
                "`**` matches folders at any depth, `*` does not cross them; relative paths begin where `smelt` runs",
            ));
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
        for glob in &selection.idle {
            cx.warn(&format!("no file matches `{glob}`"));
        }
        let files = &selection.files;
        let counts_records = config.max_documents.is_some() || config.max_total_bytes.is_some();
        let is_budgeted = counts_records && files.iter().any(|file| !config.is_plain(&file.name));
        let bounds = if is_budgeted { std::iter::once(0..files.len()).collect() } else { split(files) };
        // Limits that count records need one reader for all files; without them every unit is independent.
        let budget = Budget::new(&config);
        let records = cx.units("read", bounds.len(), |i, unit| {
            for at in bounds[i].clone() {
                let file = &files[at];
                // The fingerprint covers these bytes: others must not enter under their name.
                if hash(file)? != cx.sources()[at] {
                    return Err(changed(&file.name));
                }
                read_file(&config, file, &budget, &out, unit)?;
            }
            Ok(())
        })?;
        let (read, kept) = records.iter().fold((0, 0), |(r, w), unit| (r + unit.books.read, w + unit.books.written));
        cx.result("files", files.len() as f64);
        cx.result("files_matched", selection.matched as f64);
        if kept == 0 {
            let name = &files[0].name;
            return Err(Error::data(format!(
                "{read} documents were read and none was kept; the first file is `{name}`"
            ))
            .hint("loosen `min_bytes`, `max_bytes` or `max_digit_share`, or look at the files"));
        }
        Ok(())
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

/// What is left of the limits over all documents.
struct Budget {
    documents: AtomicU64,
    bytes: AtomicU64,
}

impl Budget {
    fn new(config: &Config) -> Self {
        let limit = |limit: Option<u64>| AtomicU64::new(limit.unwrap_or(u64::MAX));
        Budget { documents: limit(config.max_documents), bytes: limit(config.max_total_bytes) }
    }

    /// Takes room for a document; false when there is none.
    fn take(&self, bytes: u64) -> bool {
        let take = |left: &AtomicU64, n: u64| {
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(n)).is_ok()
        };
        take(&self.documents, 1) && take(&self.bytes, bytes)
    }
}

fn read_file(config: &Config, file: &Found, budget: &Budget, out: &Outputs, unit: &mut Unit) -> Result<(), Error> {
    let fields = Fields { text: &config.text_field, id: config.id_field.as_deref() };
    let invalid = match config.invalid_utf8 {
        OnInvalid::Error => InvalidUtf8::Error,
        OnInvalid::Drop => InvalidUtf8::Drop,
        OnInvalid::Replace => InvalidUtf8::Replace,
    };
    for outcome in read::documents(&file.name, &file.path, config.format_of(&file.name), fields, invalid)? {
        match outcome? {
            Outcome::InvalidUtf8 { id, offset } => {
                unit.count_read(1);
                unit.drop_row(&out.drops, &id, "invalid_utf8", Some(offset as f64), None)?;
            }
            Outcome::Document(raw) => match config.fault(&raw.text) {
                Some((rule, value)) => {
                    unit.count_read(1);
                    unit.drop_row(&out.drops, &raw.id, rule, Some(value), None)?;
                }
                None if budget.take(raw.text.len() as u64) => {
                    unit.count_read(1);
                    unit.keep(&out.documents, document(raw, &file.name))?;
                }
                None => return Ok(()),
            },
        }
    }
    Ok(())
}

fn document(raw: Raw, source: &str) -> Document {
    let mut document = Document::new(raw.id, raw.text, source);
    document.url = raw.url;
    document.language = raw.language;
    document.time = raw.time;
    document.metadata = raw.metadata;
    document
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
