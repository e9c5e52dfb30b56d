//! Recorded decisions: the small sets of `tests/parity/data`, which every clone has, and the full ones where they lie.
//!
//! The full sets are found through `SMELT_PARITY_DATA`, else beside the repository (`../shared/parity/data`). Tests of
//! several crates include this file by its path.

#![allow(dead_code, reason = "not every test reads every kind of file")]

#[path = "say.rs"]
mod say;

pub(crate) use say::say;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One folder of recorded decisions.
#[derive(Clone, Debug)]
pub(crate) struct Set {
    folder: PathBuf,
    pub is_full: bool,
}

/// The small set, and the full one where it is.
pub(crate) fn sets() -> Vec<Set> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let beside = repository.join("../shared/parity/data");
    let full = std::env::var_os("SMELT_PARITY_DATA").map_or(beside, PathBuf::from);
    let mut sets = vec![Set { folder: repository.join("tests/parity/data"), is_full: false }];
    match full.is_dir() {
        true => sets.push(Set { folder: full, is_full: true }),
        false => say(&format!("only the repository's own cases: no {} (set SMELT_PARITY_DATA)", full.display())),
    }
    sets
}

impl Set {
    pub(crate) fn name(&self) -> &'static str {
        if self.is_full { "full set" } else { "small set" }
    }

    pub(crate) fn file(&self, name: &str) -> Vec<u8> {
        let path = self.folder.join(name);
        std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// One JSON value a line: `NAME.jsonl`, or in the full set `NAME.jsonl.zst`.
    pub(crate) fn records(&self, name: &str) -> Vec<Value> {
        let bytes = match self.is_full {
            true => zstd::decode_all(&self.file(&format!("{name}.jsonl.zst"))[..]).expect("zstd"),
            false => self.file(&format!("{name}.jsonl")),
        };
        let text = String::from_utf8(bytes).expect("UTF-8");
        // texts hold line separators that are no "\n"
        let records: Vec<Value> =
            text.split('\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).expect("JSON")).collect();
        assert!(records.len() >= 20, "{} records in {name} of the {}", records.len(), self.name());
        records
    }
}

pub(crate) fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("`{field}` is no text in {}", record["id"]))
}

/// Says how many cases agree, and fails if their share is below `floor`.
pub(crate) fn assert_share(set: &Set, what: &str, same: usize, all: usize, floor: f64) {
    let share = same as f64 / all as f64;
    say(&format!("{}: {what}: {same} of {all} = {:.2} %", set.name(), 100.0 * share));
    assert!(share >= floor, "{what}: {share}, expected at least {floor}");
}
