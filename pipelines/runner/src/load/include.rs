//! `include:` one pipeline in several files: jobs, views and variables of each become those of one tree.

use crate::diagnostic::{Diagnostic, Place, Result, nearest};
use crate::yaml::{self, Order, Tree, escaped};
use serde_json::{Map, Value};
use smelt_schemas::Include;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// The texts of included files, by their path as it is shown.
pub(crate) type Texts = BTreeMap<String, String>;

/// Where a tree finds the texts of the files that it includes.
pub(crate) enum Source {
    /// On the disk; what was read is kept.
    Disk(Texts),
    /// As they were when a run began.
    Recorded(Texts),
}

impl Source {
    pub(crate) fn texts(self) -> Texts {
        match self {
            Self::Disk(texts) | Self::Recorded(texts) => texts,
        }
    }

    fn read(&mut self, path: &str) -> std::io::Result<String> {
        match self {
            Self::Disk(texts) => {
                let text = std::fs::read_to_string(path)?;
                texts.insert(path.to_owned(), text.clone());
                Ok(text)
            }
            Self::Recorded(texts) => texts.get(path).cloned().ok_or_else(|| std::io::ErrorKind::NotFound.into()),
        }
    }
}

/// Sections that an included file has, and what an entry of each is called.
const SECTIONS: [(&str, &str); 3] = [("vars", "variable"), ("jobs", "job"), ("views", "view")];

/// Gives `tree`, which was read from `file`, what the files have that it includes.
pub(super) fn include(tree: &mut Tree, file: &Path, source: &mut Source) -> Result<()> {
    let file = plain(file);
    let mut reader = Reader { source, open: vec![file.clone()], done: BTreeSet::from([file.clone()]) };
    reader.fill(tree, &file)
}

struct Reader<'a> {
    source: &'a mut Source,
    /// Files that are being read, each included by the one before.
    open: Vec<PathBuf>,
    /// A file that two others include counts once.
    done: BTreeSet<PathBuf>,
}

impl Reader<'_> {
    fn fill(&mut self, tree: &mut Tree, file: &Path) -> Result<()> {
        let Some(given) = tree.value.get("include").cloned() else { return Ok(()) };
        let named = Include::try_from(given).map_err(|e| Diagnostic::pipeline(e).at(tree.place("/include")))?;
        let mut whole = Tree::of(Value::Object(Map::new()));
        for (n, name) in named.0.iter().enumerate() {
            let at = |tree: &Tree| tree.place(&format!("/include/{n}"));
            let path = plain(&file.parent().unwrap_or(Path::new("")).join(name));
            if self.open.contains(&path) {
                let chain = self.open.iter().skip_while(|open| **open != path).chain([&path]);
                let chain: Vec<String> = chain.map(|open| open.display().to_string()).collect();
                return Err(Diagnostic::pipeline(format!("files include each other: {}", chain.join(" -> ")))
                    .at(at(tree))
                    .hint("take one of these includes out"));
            }
            if !self.done.insert(path.clone()) {
                continue;
            }
            let part = self.part(&path, name).map_err(|e| e.at(at(tree)))?;
            merge(&mut whole, &part)?;
        }
        for (section, what) in SECTIONS {
            // What this file says of a variable counts before what it includes.
            if let Some(entry) = entries(tree, section).find(|entry| what != "variable" && whole.has(section, entry)) {
                return Err(twice(what, &entry, &whole, section, tree));
            }
        }
        SECTIONS.iter().for_each(|(section, _)| tree.take(section, &whole, Order::Before));
        Ok(())
    }

    /// An included file, with all that it includes itself.
    fn part(&mut self, path: &Path, name: &str) -> Result<Tree> {
        let shown = path.display().to_string();
        let text = self.source.read(&shown).map_err(|e| {
            Diagnostic::pipeline(format!("`{shown}` cannot be included: {e}"))
                .hint("a path is relative to the file that includes it")
        })?;
        let mut part = yaml::parse(&text, &shown)?;
        let keys: Vec<String> = part.value.as_object().into_iter().flat_map(|map| map.keys().cloned()).collect();
        if keys.is_empty() && !part.value.is_object() && !part.value.is_null() {
            return Err(Diagnostic::pipeline(format!("`{shown}` holds no keys")).at(part.place("")).hint(KEYS));
        }
        // A name makes it a pipeline that can be run alone; here it is none.
        let known = ["name", "include", "vars", "jobs", "views"];
        if let Some(key) = keys.iter().find(|key| !known.contains(&key.as_str())) {
            let error =
                Diagnostic::pipeline(format!("an included file has no `{key}`")).at(part.key_place(&format!("/{key}")));
            return Err(match nearest(key, known).filter(|_| !TOP.contains(&key.as_str())) {
                Some(near) => error.hint(format!("is `{near}` meant?")),
                None => error.hint(KEYS),
            });
        }
        for (section, _) in SECTIONS {
            if part.value.get(section).is_some_and(|value| !value.is_object() && !value.is_null()) {
                return Err(Diagnostic::pipeline(format!("`{section}` is no map of names"))
                    .at(part.place(&format!("/{section}")))
                    .hint("write `name: …` lines below it"));
            }
        }
        self.open.push(path.to_path_buf());
        self.fill(&mut part, path)?;
        self.open.pop();
        programs_beside(&mut part, name);
        Ok(part)
    }
}

/// Keys that only the first file has.
const TOP: [&str; 5] = ["store", "seed", "run", "on_failure", "report"];
const KEYS: &str = "it may have `vars`, `jobs`, `views` and `include`; the rest stands in the file that includes it";

fn entries<'a>(tree: &'a Tree, section: &str) -> impl Iterator<Item = String> + 'a {
    tree.value.get(section).and_then(Value::as_object).into_iter().flat_map(|map| map.keys().cloned())
}

/// Adds what another file has to what those before it have.
fn merge(whole: &mut Tree, part: &Tree) -> Result<()> {
    for (section, what) in SECTIONS {
        if let Some(entry) = entries(part, section).find(|entry| whole.has(section, entry)) {
            return Err(twice(what, &entry, whole, section, part));
        }
    }
    SECTIONS.iter().for_each(|(section, _)| whole.take(section, part, Order::After));
    Ok(())
}

fn twice(what: &str, entry: &str, first: &Tree, section: &str, second: &Tree) -> Diagnostic {
    let pointer = format!("/{section}/{}", escaped(entry));
    let before = first.key_place(&pointer).map(|Place { file, line, column }| format!("{file}:{line}:{column}"));
    let before = before.unwrap_or_default();
    Diagnostic::pipeline(format!("{what} `{entry}` is in another file too: {before}"))
        .at(second.key_place(&pointer))
        .hint("give one of them another name, or take it out")
}

/// Programs that an included file names by a path are beside it.
fn programs_beside(part: &mut Tree, name: &str) {
    let Some(folder) = Path::new(name).parent().filter(|folder| !folder.as_os_str().is_empty()) else { return };
    let jobs = part.value.get_mut("jobs").and_then(Value::as_object_mut).into_iter().flatten();
    for stage in jobs.filter_map(|(_, job)| job.get_mut("stage")) {
        if let Some(path) = stage.as_str().filter(|path| path.contains('/')) {
            *stage = folder.join(path).display().to_string().into();
        }
    }
}

/// A path without `.` and, where they end nothing unknown, `..`.
fn plain(path: &Path) -> PathBuf {
    let mut parts: Vec<Component> = Vec::new();
    for part in path.components() {
        match (part, parts.last()) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.into_iter().collect()
}
