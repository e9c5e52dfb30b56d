//! The record of what a job committed.

use crate::digest::Digest;
use crate::exit::ExitCode;
use crate::fault::Fault;
use crate::invocation::{ArtifactRef, InputRef};
use crate::kind::Kind;
use crate::stage::Source;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One edition of one recipe. Created last: before it exists, nothing exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    pub protocol: u32,
    pub stage: String,
    pub version: u32,
    pub fingerprint: Digest,
    pub edition: u32,
    /// The attempt whose files these are: `attempts/<attempt>/files/<path>` beside this manifest.
    pub attempt: String,
    pub config: Value,
    #[serde(default)]
    pub inputs: BTreeMap<String, Vec<InputRef>>,
    #[serde(default)]
    pub sources: Vec<Source>,
    /// In the order in which the stage names them.
    pub ports: IndexMap<String, PortRecord>,
    pub books: Books,
    /// Last value of each metric.
    #[serde(default)]
    pub metrics: BTreeMap<String, f64>,
    pub provenance: Provenance,
}

impl Manifest {
    pub fn artifact(&self) -> ArtifactRef {
        ArtifactRef { stage: self.stage.clone(), fingerprint: self.fingerprint.clone(), edition: self.edition }
    }
    /// Bytes of all files of all ports.
    pub fn bytes(&self) -> u64 {
        self.ports.values().flat_map(|p| &p.files).map(|f| f.bytes).sum()
    }
    /// Whether `other` holds the same bytes: the digests of the ports that count are equal.
    pub fn reproduces(&self, other: &Manifest) -> bool {
        let digests = |m: &Manifest| {
            let counted = m.ports.iter().filter(|(_, p)| p.kind.counts_as_output());
            counted.map(|(n, p)| (n.clone(), p.digest.clone())).collect::<BTreeMap<_, _>>()
        };
        digests(self) == digests(other)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortRecord {
    pub kind: Kind,
    pub digest: Digest,
    pub files: Vec<FileRecord>,
    /// Names the tokenizer that the port's ids were made with, where its stage says so: ids of one mean nothing to
    /// another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
}

impl PortRecord {
    /// Sorts `files` by path and takes their digest.
    pub fn new(kind: Kind, mut files: Vec<FileRecord>) -> Self {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Self { digest: port_digest(&kind, &files), kind, files, tokenizer: None }
    }
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
    /// `None` when a file's rows are not counted.
    pub fn rows(&self) -> Option<u64> {
        self.files.iter().map(|f| f.rows).sum()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileRecord {
    /// Inside the port: `00000.parquet`, `model.safetensors`.
    pub path: String,
    pub bytes: u64,
    pub blake3: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Where it lies inside the port's folder, if not at `path`: a worker that redoes what another one may still be
    /// writing writes beside it. No part of the digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

impl FileRecord {
    /// Where it lies inside the port's folder.
    pub fn place(&self) -> &str {
        self.at.as_deref().unwrap_or(&self.path)
    }
}

/// blake3 over kind, major version and the sorted (path, bytes, blake3) of the files. Rows, attempts and times are
/// no part of it; nor is the minor version: an optional column changes the bytes anyway.
pub fn port_digest(kind: &Kind, files: &[FileRecord]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{} {}\n", kind.name, kind.major).as_bytes());
    for f in files {
        hasher.update(format!("{}\0{}\0{}\n", f.path, f.bytes, f.blake3).as_bytes());
    }
    hasher.finalize().into()
}

/// Where every row went: `read + derived = written + Σ dropped`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Books {
    pub read: u64,
    /// Rows that this job created.
    #[serde(default)]
    pub derived: u64,
    pub written: u64,
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{read} rows were read and {derived} derived, but {written} were written and {dropped} dropped: \
     {} {}", read.saturating_add(*derived).abs_diff(written.saturating_add(*dropped)),
    if read + derived > written + dropped { "were neither written nor dropped" } else { "too many came out" }
)]
pub struct UnbalancedBooks {
    read: u64,
    derived: u64,
    written: u64,
    dropped: u64,
}

impl Fault for UnbalancedBooks {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Bug
    }
}

impl Books {
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }
    pub fn check(&self) -> Result<(), UnbalancedBooks> {
        let Self { read, derived, written, .. } = *self;
        let dropped = self.dropped_total();
        if read + derived == written + dropped {
            Ok(())
        } else {
            Err(UnbalancedBooks { read, derived, written, dropped })
        }
    }
    pub fn add(&mut self, other: &Books) {
        self.read += other.read;
        self.derived += other.derived;
        self.written += other.written;
        for (rule, n) in &other.dropped {
            *self.dropped.entry(rule.clone()).or_default() += n;
        }
    }
    /// `548 kept, 64 dropped: 33 too_short, 31 language`, most frequent first.
    pub fn summary(&self, rows: &str) -> String {
        if self.dropped.is_empty() {
            return format!("{} {rows}", self.written);
        }
        let mut by_count: Vec<_> = self.dropped.iter().collect();
        by_count.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        let shown: Vec<_> = by_count.iter().take(4).map(|(rule, n)| format!("{n} {rule}")).collect();
        let more = if by_count.len() > 4 { ", …" } else { "" };
        format!("{} {rows} kept, {} dropped: {}{more}", self.written, self.dropped_total(), shown.join(", "))
    }
}

/// How, where and when; never a secret, never part of an identity.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Provenance {
    pub run: String,
    pub job: String,
    /// smelt's version.
    pub smelt: String,
    /// blake3 of the stage's program.
    pub binary: Option<Digest>,
    pub host: String,
    /// Seconds since 1970, UTC.
    pub started: f64,
    /// Time that all processes of this attempt worked.
    pub seconds: f64,
    pub peak_memory_bytes: u64,
    pub threads: usize,
    /// Vector level of the CPU: `avx512`, `avx2`, `portable`.
    pub cpu: String,
    /// What it computed on, for stages with a model: `cpu`, or a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How often the attempt was resumed.
    #[serde(default)]
    pub resumed: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unbalanced_books_say_how_many_rows_are_missing() {
        let mut books = Books { read: 10_240, written: 10_000, ..Books::default() };
        books.dropped.insert("language".into(), 239);
        let text = books.check().unwrap_err().to_string();
        assert_eq!(
            text,
            "10240 rows were read and 0 derived, but 10000 were written and 239 dropped: 1 were neither written nor \
                dropped"
        );
        books.dropped.insert("too_short".into(), 1);
        assert_eq!(books.check(), Ok(()));
        assert_eq!(books.summary("documents"), "10000 documents kept, 240 dropped: 239 language, 1 too_short");
    }

    /// Books of a unit that loses no row.
    fn balanced() -> impl Strategy<Value = Books> {
        let dropped = prop::collection::btree_map("[a-z]{1,3}", 0..1000u64, 0..5);
        (0..1000u64, 0..1000u64, dropped).prop_map(|(written, derived, dropped)| {
            let out: u64 = written + dropped.values().sum::<u64>();
            let derived = derived.min(out);
            Books { read: out - derived, derived, written, dropped }
        })
    }

    proptest! {
        #[test]
        fn books_that_balance_balance_in_sum_and_one_lost_row_shows(units in prop::collection::vec(balanced(), 1..8)) {
            let mut sum = Books::default();
            for books in &units {
                prop_assert_eq!(books.check(), Ok(()));
                sum.add(books);
            }
            prop_assert_eq!(sum.check(), Ok(()));
            let lost = Books { read: sum.read + 1, ..sum };
            prop_assert!(lost.check().unwrap_err().to_string().ends_with(": 1 were neither written nor dropped"));
        }
    }

    #[test]
    fn the_digest_of_a_port_is_of_paths_and_bytes_alone() {
        let file =
            |path: &str, rows| FileRecord { path: path.into(), bytes: 3, blake3: Digest::of(b"abc"), rows, at: None };
        let kind = crate::kind::documents();
        let a = PortRecord::new(kind.clone(), vec![file("b", Some(1)), file("a", None)]);
        let b = PortRecord::new(kind.clone(), vec![file("a", Some(7)), file("b", None)]);
        assert_eq!(a.digest, b.digest);
        assert_ne!(a.digest, PortRecord::new(kind, vec![file("a", None)]).digest);
        assert_ne!(a.digest, PortRecord::new(crate::kind::drops(), a.files.clone()).digest);
    }
}
