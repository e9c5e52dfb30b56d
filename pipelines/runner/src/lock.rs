//! The lock of a pipeline: which stage programs it is run with.
//!
//! It lies beside the pipeline's file, `quickstart.lock` beside `quickstart.yaml`, and is meant to be committed with
//! it. `smelt lock` writes it; `smelt run --locked` runs with these programs or not at all. A program is told by its
//! digest, because a version is what its author says: two builds of one version may differ.

use crate::diagnostic::{Diagnostic, Result};
use crate::load::Plan;
use crate::programs::Program;
use crate::yaml;
use serde::{Deserialize, Serialize};
use smelt_schemas::{Digest, ExitCode};
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, Metadata};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Of the form of the file.
const VERSION: u32 = 1;

const HEAD: &str = "# Written by `smelt lock`. `smelt run --locked` runs with these programs or not at all.\n";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Lock {
    version: u32,
    stages: BTreeMap<String, Pin>,
}

/// What a stage's program is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pin {
    /// The stage's version, as it describes itself.
    version: u32,
    /// blake3 of the program, which the manifests of what it makes have as `binary`.
    digest: Digest,
}

/// Where the lock of a pipeline's file lies.
pub(crate) fn file(pipeline: &str) -> PathBuf {
    Path::new(pipeline).with_extension("lock")
}

/// `smelt lock`: writes down which programs the pipeline would run with now.
pub(crate) fn write(plan: &Plan) -> Result<()> {
    let (path, now) = (file(&plan.file), Lock::of(plan, &mut Hashes::of_user())?);
    let shown = path.display();
    let before = Lock::read(&path).ok().map(|(lock, _)| lock);
    let changed = now.changes(before.as_ref());
    let stages = format!("{} stage{}", now.stages.len(), if now.stages.len() == 1 { "" } else { "s" });
    if before.as_ref() == Some(&now) {
        println!("{shown}: {stages}, unchanged");
        return Ok(());
    }
    let text = serde_saphyr::to_string(&now).expect("a lock is plain data");
    replace(&path, &format!("{HEAD}{text}"))
        .map_err(|e| Diagnostic::new(ExitCode::Machine, format!("`{shown}` cannot be written: {e}")))?;
    println!("{shown}: {stages}{changed}");
    Ok(())
}

/// `smelt run --locked`: the lock of a pipeline whose programs are all what it says.
pub(crate) fn checked(plan: &Plan) -> Result<Lock> {
    let path = file(&plan.file);
    let shown = path.display();
    if !path.exists() {
        return Err(Diagnostic::pipeline(format!("`--locked`: there is no `{shown}`"))
            .hint(format!("`smelt lock {}` writes it", plan.file)));
    }
    let (lock, tree) = Lock::read(&path)?;
    lock.check(plan).map_err(|(stage, error)| error.at(tree.key_place(&format!("/stages/{stage}"))))?;
    Ok(lock)
}

impl Lock {
    fn of(plan: &Plan, hashes: &mut Hashes) -> Result<Self> {
        let mut stages: BTreeMap<String, Pin> = BTreeMap::new();
        let mut paths: BTreeMap<&str, &Path> = BTreeMap::new();
        for job in &plan.jobs {
            let Program { path, description } = &job.program;
            let (name, before) = (description.name.as_str(), paths.get(description.name.as_str()));
            if before == Some(&path.as_path()) {
                continue;
            }
            let pin = Pin { version: description.version, digest: hashes.of(path)? };
            if let (Some(other), true) = (before, stages.get(name).is_some_and(|known| *known != pin)) {
                let (path, other) = (path.display(), other.display());
                return Err(Diagnostic::pipeline(format!(
                    "two programs call themselves stage `{name}`: {other}, {path}"
                ))
                .at(job.place.clone())
                .hint("a lock needs one program for a name: let one of them describe itself by another"));
            }
            paths.insert(name, path);
            stages.insert(name.to_owned(), pin);
        }
        Ok(Self { version: VERSION, stages })
    }

    fn read(path: &Path) -> Result<(Self, yaml::Tree)> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|e| Diagnostic::new(ExitCode::Machine, format!("`{shown}` cannot be read: {e}")))?;
        let tree = yaml::parse(&text, &shown)?;
        let bad = |why: String| {
            Diagnostic::pipeline(format!("`{shown}` is no lock: {why}")).hint("`smelt lock` writes it anew")
        };
        let lock: Self = serde_json::from_value(tree.value.clone()).map_err(|e| bad(e.to_string()))?;
        match lock.version {
            VERSION => Ok((lock, tree)),
            other => Err(bad(format!("it has version {other}, this smelt knows {VERSION}"))),
        }
    }

    /// Whether every stage's program is what this lock says; else the first stage that is not, and the error.
    pub(crate) fn check(&self, plan: &Plan) -> std::result::Result<(), (String, Diagnostic)> {
        let now = Self::of(plan, &mut Hashes::of_user()).map_err(|e| (String::new(), e))?;
        let others = |(name, pin): &(&String, &Pin)| self.stages.get(*name) != Some(*pin);
        let mut others = now.stages.iter().filter(others);
        let Some((name, found)) = others.next() else { return Ok(()) };
        let lock = file(&plan.file);
        let lock = lock.display();
        let path = plan.jobs.iter().find(|job| job.program.description.name == *name);
        let path = path.map_or_else(String::new, |job| job.program.path.display().to_string());
        let mut what = match self.stages.get(name) {
            Some(Pin { version, digest }) => {
                let (wanted, is) = (digest.short(), found.digest.short());
                let (now, is_in) = (found.version, format!("`{path}`"));
                format!(
                    "stage `{name}` is not the program of `{lock}`: version {version} with digest {wanted} there, \
                     version {now} with digest {is} in {is_in}"
                )
            }
            None => format!("stage `{name}` is not in `{lock}`"),
        };
        let more: Vec<String> = others.map(|(name, _)| format!("`{name}`")).collect();
        if !more.is_empty() {
            what += &format!("; nor {} {}", if more.len() == 1 { "is" } else { "are" }, more.join(", "));
        }
        let hint =
            format!("install the programs of the lock, or `smelt lock {}` takes those that are there", plan.file);
        Err((name.clone(), Diagnostic::new(ExitCode::Machine, what).hint(hint)))
    }

    /// Which stages are not what they were, in words.
    fn changes(&self, before: Option<&Self>) -> String {
        let Some(before) = before else { return String::new() };
        let new = self.stages.iter().filter(|(name, pin)| before.stages.get(*name) != Some(*pin)).map(|(name, _)| name);
        let gone = before.stages.keys().filter(|name| !self.stages.contains_key(*name));
        let list = |names: Vec<&String>, what: &str| match names.as_slice() {
            [] => String::new(),
            names => format!("; {what}: {}", names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")),
        };
        list(new.collect(), "changed") + &list(gone.collect(), "gone")
    }
}

/// Puts a file in the place of another at once.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", smelt_store::unique()));
    let new = path.with_file_name(name);
    let written = File::create(&new)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        drop(std::fs::remove_file(&new)); // it may not be there
    }
    written
}

/// Digests of programs, remembered by this user from one run to the next: 50 MB are not read again when nothing runs.
/// A program whose device, inode, size and both times are unchanged is the same one. One that changed in the last
/// seconds is not remembered: a second change within one tick of the clock would not show.
struct Hashes {
    file: Option<PathBuf>,
    known: HashMap<String, Digest>,
}

const AT_REST: Duration = Duration::from_secs(5);

impl Hashes {
    /// In `smelt/programs` of the cache folder.
    fn of_user() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
        Self::at(cache.map(|cache| cache.join("smelt/programs")))
    }

    fn at(file: Option<PathBuf>) -> Self {
        let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        let known = text.lines().filter_map(|line| line.split_once(' '));
        let known = known.filter_map(|(key, digest)| Some((key.to_owned(), Digest::try_from(digest.to_owned()).ok()?)));
        Self { known: known.collect(), file }
    }

    fn of(&mut self, program: &Path) -> Result<Digest> {
        let cannot = |e: std::io::Error| {
            Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be read: {e}", program.display()))
        };
        let before = key(&std::fs::metadata(program).map_err(cannot)?);
        if let Some(digest) = self.known.get(&before) {
            return Ok(digest.clone());
        }
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut File::open(program).map_err(cannot)?, &mut hasher).map_err(cannot)?;
        let digest: Digest = hasher.finalize().into();
        let after = std::fs::metadata(program).map_err(cannot)?;
        if key(&after) == before && is_at_rest(&after) {
            self.keep(&format!("{before} {}\n", digest.as_str()));
            self.known.insert(before, digest.clone());
        }
        Ok(digest)
    }

    /// Appends in one write. If that fails, the next run only takes longer.
    fn keep(&self, line: &str) {
        let Some(file) = &self.file else { return };
        drop(std::fs::create_dir_all(file.parent().unwrap_or(file)));
        drop(File::options().create(true).append(true).open(file).and_then(|mut file| file.write_all(line.as_bytes())));
    }
}

fn key(meta: &Metadata) -> String {
    let (m, c) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    format!("{}:{}:{}:{}.{:09}:{}.{:09}", meta.dev(), meta.ino(), meta.size(), m.0, m.1, c.0, c.1)
}

fn is_at_rest(meta: &Metadata) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let newest = u64::try_from(meta.mtime().max(meta.ctime())).unwrap_or(u64::MAX);
    newest.saturating_add(AT_REST.as_secs()) < now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_lies_unchanged_is_hashed_once() {
        let folder = std::env::temp_dir().join(format!("smelt-lock-{}", smelt_store::unique()));
        std::fs::create_dir_all(&folder).unwrap();
        let (program, memory) = (folder.join("stage"), folder.join("cache/programs"));
        std::fs::write(&program, b"first").unwrap();
        let mut hashes = Hashes::at(Some(memory.clone()));
        assert_eq!(hashes.of(&program).unwrap(), Digest::of(b"first"));
        assert!(!memory.exists(), "it may change within this second");
        // What is remembered is believed, so a wrong memory shows that nothing was read.
        let key = key(&std::fs::metadata(&program).unwrap());
        hashes.keep(&format!("{key} {}\ntorn", Digest::of(b"other").as_str()));
        assert_eq!(Hashes::at(Some(memory.clone())).of(&program).unwrap(), Digest::of(b"other"));
        std::fs::write(&program, b"second!").unwrap();
        assert_eq!(Hashes::at(Some(memory)).of(&program).unwrap(), Digest::of(b"second!"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_lock_is_replaced_at_once_and_leaves_nothing_behind() {
        let folder = std::env::temp_dir().join(format!("smelt-lock-{}", smelt_store::unique()));
        std::fs::create_dir_all(&folder).unwrap();
        let pin = Pin { version: 3, digest: Digest::of(b"program") };
        let lock = Lock { version: VERSION, stages: [("clean".to_owned(), pin)].into() };
        let text = format!("{HEAD}{}", serde_saphyr::to_string(&lock).unwrap());
        let path = folder.join("p.lock");
        replace(&path, "old").unwrap();
        replace(&path, &text).unwrap();
        let (read, tree) = Lock::read(&path).unwrap();
        assert_eq!(read, lock);
        assert_eq!(tree.key_place("/stages/clean").unwrap().line, 4);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        std::fs::write(&path, "version: 7\nstages: {}\n").unwrap();
        let said = Lock::read(&path).unwrap_err().to_string();
        assert!(said.contains("is no lock: it has version 7, this smelt knows 1\nhint: `smelt lock` writes"), "{said}");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
