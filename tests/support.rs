//! Programs, folders and pipelines for tests.

use smelt_store::Store;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The folder of the programs: where this test's own program lies, wherever the target folder is. `cargo test` builds
/// no program of other packages, so the first test that asks builds them.
pub(crate) fn programs() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let own = std::env::current_exe().expect("a test has a program");
        let folder = own.parent().and_then(Path::parent).expect("it lies in <profile>/deps").to_path_buf();
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--workspace", "--bins", "--quiet"])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        // The variables that cargo sets for a test would reach the build scripts; some of these would run again, and
        // half of the workspace would be compiled again.
        let of_package =
            |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|p| name.starts_with(p));
        for (name, _) in std::env::vars().filter(|(name, _)| of_package(name)) {
            build.env_remove(name);
        }
        build.env("CARGO_TARGET_DIR", folder.parent().expect("a profile lies in the target folder"));
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().expect("cargo starts").success(), "the programs do not build");
        folder
    })
}

/// A folder with a store, to run pipelines in.
pub(crate) struct Bench {
    pub folder: TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub out: String,
    pub err: String,
    pub code: Option<i32>,
}

impl From<Output> for Said {
    fn from(o: Output) -> Self {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        Self { out: text(&o.stdout), err: text(&o.stderr), code: o.status.code() }
    }
}

impl Said {
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder for a test") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `name`; `STAGE(x)` becomes the path of the test's stage `x`.
    pub(crate) fn pipeline(&self, name: &str, text: &str) -> &Self {
        let programs = programs().display().to_string();
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("STAGE(") {
            let (stage, after) = after.split_once(')').expect("STAGE( is closed");
            out += &format!("{before}{programs}/teststage-{stage}");
            rest = after;
        }
        std::fs::write(self.path(name), out + rest).expect("a test's folder can be written");
        self
    }

    /// `smelt` in this folder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        Self::bare(self.folder.path(), args)
    }

    /// `smelt` in any folder, without the SMELT_* and AWS_* variables of this machine.
    pub(crate) fn bare(folder: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(programs().join("smelt"));
        command.args(args).current_dir(folder);
        for (name, _) in std::env::vars() {
            if name.starts_with("SMELT_") || name.starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
    }

    pub(crate) fn smelt(&self, args: &[&str]) -> Said {
        self.command(args).output().expect("smelt starts").into()
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(self.path("artifacts").to_str().expect("a test's path is text")).expect("a directory is a store")
    }
}

/// Waits for a condition; after a minute the test fails and says for what it waited.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(60), "waited a minute for this: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Digest of every port of every job that a pipeline points at.
pub(crate) fn digests(store: &Store, pipeline: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (of, job, pointer) in store.pointers().expect("pointers are read") {
        if of == pipeline {
            let manifest = store.manifest(&pointer.artifact).expect("it is read").expect("it is there");
            for (port, record) in manifest.ports.iter().filter(|(_, p)| p.kind.counts_as_output()) {
                found.insert(format!("{job}.{port}"), record.digest.to_string());
            }
        }
    }
    found
}

/// Names of files below a folder that nobody should see.
pub(crate) fn leftovers(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().contains("smelt-tmp") {
                found.push(path.display().to_string());
            }
        }
    }
    found
}
