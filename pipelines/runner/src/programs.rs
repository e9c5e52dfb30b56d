//! Stage programs: where they are, and how they describe themselves.

use crate::child;
use crate::diagnostic::{Diagnostic, Result, nearest};
use serde_json::{Map, Value, json};
use smelt_schemas::{
    Description, Doctor, Estimate, ExitCode, Io, PROTOCOL, Problem, ResolveAnswer, ResolveRequest, Resolved,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A stage program that answered `describe`.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub path: PathBuf,
    /// Shared by all instances of a job.
    pub description: Arc<Description>,
}

/// Folders that hold stage programs: the one this program is in, then PATH.
fn folders() -> Vec<PathBuf> {
    let own =
        std::env::current_exe().ok().and_then(|p| p.canonicalize().ok()).and_then(|p| Some(p.parent()?.to_path_buf()));
    let path = std::env::var_os("PATH").unwrap_or_default();
    own.into_iter().chain(std::env::split_paths(&path)).collect()
}

/// Finds `smelt-NAME`. With a `/` in it, `name` is a file relative to `base`.
pub(crate) fn locate(name: &str, base: &Path) -> Result<PathBuf> {
    if name.contains('/') {
        let path = base.join(name);
        return match path.is_file() {
            true => Ok(path),
            false => Err(Diagnostic::pipeline(format!("stage `{name}` is no file beside the pipeline"))),
        };
    }
    let file = format!("smelt-{name}");
    if let Some(found) = folders().into_iter().map(|f| f.join(&file)).find(|p| p.is_file()) {
        return Ok(found);
    }
    let known = known();
    let error =
        Diagnostic::pipeline(format!("stage `{name}` is unknown: no program `{file}` beside `smelt` or in PATH"));
    Err(match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("is `{near}` meant?")),
        None if known.is_empty() => error.hint("build all programs: `cargo build --release`"),
        None => error.hint(format!("known stages: {}", known.iter().cloned().collect::<Vec<_>>().join(", "))),
    })
}

/// Programs beside `smelt` that are not stages.
const HELPERS: [&str; 3] = ["query", "bench", "kubernetes"];

/// Where a helper lies.
pub(crate) fn helper(name: &str) -> Result<PathBuf> {
    locate(name, Path::new(".")).map_err(|_| {
        Diagnostic::new(ExitCode::Machine, format!("`smelt-{name}` is not beside `smelt` or in PATH"))
            .hint("build all programs: `cargo build --release`")
    })
}

/// Names of the stages beside this program.
pub(crate) fn known() -> BTreeSet<String> {
    let own = folders().into_iter().next();
    let names = own.and_then(|f| std::fs::read_dir(f).ok()).into_iter().flatten().flatten();
    names
        .filter_map(|e| e.file_name().to_str()?.strip_prefix("smelt-").map(str::to_owned))
        .filter(|n| !HELPERS.contains(&n.as_str()) && !n.contains('.'))
        .collect()
}

/// Gives a stage's process the variables that it may see. They are the same for every verb, so that `run` finds the
/// files that `resolve` found. Other secrets do not reach it. `named`: the job's `run.env`.
pub(crate) fn environment(command: &mut Command, named: &[String]) {
    const NAMES: [&str; 24] = [
        "PATH",
        "HOME",
        "USER",
        "TMPDIR",
        "LANG",
        "TZ",
        "RUST_BACKTRACE",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "GCE_METADATA_HOST",
        "IDENTITY_ENDPOINT",
        "IDENTITY_HEADER",
        "VIRTUAL_ENV",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "no_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
    ];
    const PREFIXES: [&str; 10] =
        ["AWS_", "GOOGLE_", "AZURE_", "SMELT_", "CARGO_", "LC_", "PYTHON", "CUDA_", "NVIDIA_", "NCCL_"];
    command.env_clear();
    for (name, value) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        if NAMES.contains(&text) || PREFIXES.iter().any(|p| text.starts_with(p)) || named.iter().any(|e| e == text) {
            command.env(&name, value);
        }
    }
}

impl Program {
    /// The command for a verb of this program, with the variables that a job may see.
    fn verb(&self, verb: &str, named: &[String]) -> Command {
        let mut command = Command::new(&self.path);
        command.arg(verb);
        environment(&mut command, named);
        command
    }

    pub(crate) fn load(name: &str, base: &Path) -> Result<Self> {
        let path = locate(name, base)?;
        let bug = |what: String| Diagnostic::new(ExitCode::Bug, format!("stage `{name}` ({}) {what}", path.display()));
        let mut describe = Command::new(&path);
        environment(&mut describe, &[]);
        let answer = child::ask(describe.arg("describe"), b"");
        let answer = answer.map_err(|e| bug(format!("cannot be started: {e}")).hint("is it executable?"))?;
        if !answer.status.success() {
            let said = String::from_utf8_lossy(&answer.stderr);
            return Err(bug(format!("failed at `describe`: {}", said.trim())));
        }
        let description: Description = serde_json::from_slice(&answer.stdout)
            .map_err(|e| bug(format!("does not answer `describe` as a stage does: {e}")))?;
        if description.protocol != PROTOCOL {
            return Err(bug(format!("speaks protocol {}, this smelt {PROTOCOL}", description.protocol))
                .hint("build both from one source: `cargo build --release`"));
        }
        Ok(Self { path, description: Arc::new(description) })
    }

    /// The effective configs, in order, from as few processes as the stage allows. `named`: the jobs' `run.env`.
    pub(crate) fn resolve_all(&self, requests: &[ResolveRequest], named: &[String]) -> Vec<Answer> {
        if let ([_, _, ..], true) = (requests, self.description.resolves_lists) {
            let text = serde_json::to_vec(requests).expect("requests are plain data");
            let answer = child::ask(self.verb("resolve", named).arg("-"), &text).ok().filter(|a| a.status.success());
            let answers = answer.and_then(|a| serde_json::from_slice::<Vec<ResolveAnswer>>(&a.stdout).ok());
            if let Some(answers) = answers.filter(|answers| answers.len() == requests.len()) {
                let answer = |answer| match answer {
                    ResolveAnswer::Resolved(resolved) => Ok(resolved),
                    ResolveAnswer::Refused { code, problem } => Err(Ok((code, problem))),
                };
                return answers.into_iter().map(answer).collect();
            }
            // One of them ended the process; alone it says so.
        }
        requests.iter().map(|request| self.resolve(request, named)).collect()
    }

    fn resolve(&self, request: &ResolveRequest, named: &[String]) -> Answer {
        if self.description.io == Io::Files {
            let mut config = request.config.clone();
            fill_defaults(&mut config, &self.description.config);
            return Ok(Resolved { config, outputs: self.description.outputs.clone(), sources: Vec::new() });
        }
        let bug =
            |what: String| Err(Diagnostic::new(ExitCode::Bug, format!("stage `{}` {what}", self.description.name)));
        let text = serde_json::to_vec(request).expect("a request is plain data");
        let answer = child::ask(self.verb("resolve", named).arg("-"), &text)
            .map_err(|e| bug(format!("cannot be started: {e}")))?;
        if answer.status.success() {
            return serde_json::from_slice(&answer.stdout)
                .map_err(|e| bug(format!("does not answer `resolve` as a stage does: {e}")));
        }
        match serde_json::from_slice::<Problem>(&answer.stdout) {
            Ok(problem) => Err(Ok((child::code(answer.status), problem))),
            Err(_) => {
                let said = String::from_utf8_lossy(&answer.stderr);
                Err(bug(format!("failed at `resolve`: {}: {}", child::how(answer.status), said.trim())))
            }
        }
    }

    /// What a job of this config costs, as far as the config tells.
    /// `vocabulary`: of its tokenizer, if the pipeline tells.
    pub(crate) fn estimate(&self, config: &Value, vocabulary: Option<u64>, named: &[String]) -> Result<Estimate> {
        if self.description.io == Io::Files {
            return Ok(Estimate::default());
        }
        let request = ResolveRequest { config: config.clone(), inputs: BTreeMap::new(), store: None, vocabulary };
        let text = serde_json::to_vec(&request).expect("a request is plain data");
        let bug = |what: String| Diagnostic::new(ExitCode::Bug, format!("stage `{}` {what}", self.description.name));
        let answer = child::ask(self.verb("estimate", named).arg("-"), &text)
            .map_err(|e| bug(format!("cannot be started: {e}")))?;
        serde_json::from_slice(&answer.stdout)
            .map_err(|e| bug(format!("does not answer `estimate` as a stage does: {e}")))
    }

    pub(crate) fn doctor(&self) -> Doctor {
        let answer = child::ask(&mut self.verb("doctor", &[]), b"");
        answer.ok().and_then(|a| serde_json::from_slice(&a.stdout).ok()).unwrap_or_default()
    }
}

/// What `resolve` says; a problem of the config comes as `Err(Ok(problem))`.
pub(crate) type Answer = std::result::Result<Resolved, std::result::Result<(ExitCode, Problem), Diagnostic>>;

/// Fills in the defaults of a schema: what `resolve` does, for stages without that verb.
fn fill_defaults(config: &mut Value, schema: &Value) {
    if config.is_null() {
        *config = json!({});
    }
    let (Some(config), Some(properties)) =
        (config.as_object_mut(), schema.get("properties").and_then(Value::as_object))
    else {
        return;
    };
    let mut filled = Map::new();
    for (name, field) in properties {
        if let Some(value) = config.remove(name).or_else(|| field.get("default").cloned()) {
            filled.insert(name.clone(), value);
        }
    }
    filled.append(config);
    *config = filled;
}
