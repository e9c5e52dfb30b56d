//! The pipeline file: which one is meant, and its text as a tree.

use super::include::{Source, Texts, include};
use super::values::substitute;
use crate::diagnostic::{Diagnostic, Result};
use crate::yaml::{self, Tree};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A pipeline's name, and the store that its file names.
pub(crate) struct Head {
    pub name: String,
    pub store: Option<String>,
    /// Of that store.
    pub single_writer: bool,
}

/// Reads the name and the store of a file, and checks nothing else.
pub(crate) fn head(file: &Path) -> Result<Head> {
    let mut tree = tree(file, &text(file)?, &mut Source::Disk(Texts::new()))?;
    let vars = tree.value.get("vars").and_then(Value::as_object).cloned().unwrap_or_default();
    substitute(&mut tree.value, &|name| vars.get(name).cloned());
    let text = |of: Option<&Value>| of.and_then(Value::as_str).map(str::to_owned);
    let store = tree.value.get("store");
    let single_writer = store.and_then(|store| store.get("commit")).is_some_and(|commit| commit == "single_writer");
    let store = text(store).or_else(|| text(store?.get("url")));
    Ok(Head { name: text(tree.value.get("name")).unwrap_or_default(), store, single_writer })
}

/// The text of a pipeline file.
pub(super) fn text(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).map_err(|e| {
        let error = Diagnostic::pipeline(format!("pipeline `{}` cannot be read: {e}", file.display()));
        if file.extension().is_none() {
            error.hint("name the YAML file, such as `pipelines/quickstart.yaml`")
        } else {
            error
        }
    })
}

/// The text of `file` as a tree, with what it includes.
pub(super) fn tree(file: &Path, text: &str, source: &mut Source) -> Result<Tree> {
    let shown = file.display().to_string();
    let mut tree = yaml::parse(text, &shown)?;
    if tree.value.is_null() {
        return Err(Diagnostic::pipeline(format!("pipeline `{shown}` is empty"))
            .hint("`name: NAME` and `jobs: { JOB: { stage: STAGE } }` are the least it says"));
    }
    include(&mut tree, file, source)?;
    Ok(tree)
}

/// YAML files here and under `pipelines/`.
fn pipeline_files() -> Vec<PathBuf> {
    let found = |folder: &str| {
        let items = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
        let mut files: Vec<PathBuf> =
            items.filter(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml")).collect();
        files.sort();
        files.into_iter().map(|p| p.strip_prefix(".").map(Path::to_path_buf).unwrap_or(p))
    };
    found(".").chain(found("pipelines")).collect()
}

/// The file a person means: as given, or the one YAML file here or under `pipelines/`.
pub(crate) fn pipeline_file(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_path_buf());
    }
    let all = pipeline_files();
    match all.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Diagnostic::pipeline("which pipeline? no YAML file is here or in `pipelines/`")
            .hint("name one, such as `path/to/pipeline.yaml`")),
        several => {
            let names: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            Err(Diagnostic::pipeline("which pipeline? there are several, and none is named")
                .hint(format!("name one of {}", names.join(", "))))
        }
    }
}
