//! Small inputs of the kinds that people bring: those of `tests/cases/data`, which every clone has; the same beside the
//! repository, `../shared/cases/data`; and with `SMELT_CASES=folder` others of these kinds, in folders of these names.
//! Tests of several crates include this file by its path.

#![allow(dead_code, reason = "not every test takes everything")]

#[path = "../parity/say.rs"]
mod say;

pub(crate) use say::say;
use std::path::{Path, PathBuf};

/// One folder with the files of a case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub name: String,
    pub folder: PathBuf,
    /// Whether the files are those that the expectations were written for.
    pub is_known: bool,
}

impl Case {
    /// The pattern that names its files.
    pub(crate) fn files(&self) -> String {
        format!("{}/*", self.folder.display())
    }

    /// Its only file, if it has one.
    pub(crate) fn file(&self) -> PathBuf {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&self.folder).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.swap_remove(0)
    }

    pub(crate) fn say(&self, what: &str) {
        say(&format!("{}: {what}", self.folder.display()));
    }
}

/// The folders of one kind; the large kinds are not in every clone.
pub(crate) fn cases(name: &str) -> Vec<Case> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let known = [repository.join("tests/cases/data"), repository.join("../shared/cases/data")];
    let others = std::env::var_os("SMELT_CASES").map(|folder| repository.join(folder));
    let of = |folder: PathBuf, is_known| Case { name: name.into(), folder: folder.join(name), is_known };
    let all = known.into_iter().map(|folder| of(folder, true)).chain(others.map(|folder| of(folder, false)));
    all.filter(|case| case.folder.is_dir()).collect()
}
