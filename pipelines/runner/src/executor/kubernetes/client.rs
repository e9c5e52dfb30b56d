//! `smelt-kubernetes`, the program that talks to the cluster.

use crate::child;
use crate::diagnostic::{Diagnostic, Result};
use serde_json::Value;
use smelt_schemas::{Check, ClusterJob, ExitCode};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What the program said when it ended.
pub(crate) struct Failed {
    pub code: ExitCode,
    pub words: String,
}

impl Failed {
    pub(crate) fn told(self, what: &str) -> Diagnostic {
        let hint = match self.code {
            ExitCode::Again => "start again when `kubectl get jobs` answers",
            ExitCode::Machine => "`kubectl auth can-i create jobs` says whether you may",
            _ => "`run:` says what the job is made of",
        };
        Diagnostic::new(self.code, format!("Kubernetes {what}: {}", self.words)).hint(hint)
    }
}

pub(crate) struct Client {
    namespace: Option<String>,
}

impl Client {
    pub(crate) fn new(namespace: Option<String>) -> Self {
        Self { namespace }
    }

    fn command(&self, verb: &str) -> Result<Command> {
        let mut command = Command::new(crate::programs::helper("kubernetes")?);
        command.arg(verb).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.args(self.namespace.iter().flat_map(|namespace| ["--namespace", namespace.as_str()]));
        Ok(command)
    }

    fn ask(&self, verb: &str, argument: Option<&str>, input: &str) -> std::result::Result<String, Failed> {
        let not_started = |words: String| Failed { code: ExitCode::Machine, words };
        let mut command = self.command(verb).map_err(|e| not_started(e.message))?;
        command.args(argument).stdin(Stdio::piped());
        let cannot = |e| not_started(format!("`smelt-kubernetes` cannot be started: {e}"));
        let output = child::ask(&mut command, input.as_bytes()).map_err(cannot)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let words = if said.is_empty() { format!("`smelt-kubernetes` {}", child::how(output.status)) } else { said };
        Err(Failed { code: ExitCode::of_process(output.status.code()), words })
    }

    /// The Jobs that a selector finds.
    pub(crate) fn list(&self, selector: &str) -> std::result::Result<Vec<ClusterJob>, Failed> {
        let lines = self.ask("list", Some(selector), "")?;
        Ok(lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// What of a cluster there is, and what of it works; nothing where no cluster is known.
    pub(crate) fn checks(&self) -> std::result::Result<Vec<Check>, Failed> {
        let lines = self.ask("doctor", None, "")?;
        Ok(lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Creates the objects of one job.
    pub(crate) fn submit(&self, objects: &[Value]) -> std::result::Result<(), Failed> {
        self.ask("submit", None, &Value::from(objects).to_string()).map(drop)
    }

    /// Deletes what a selector finds: the names of the Jobs that were not over.
    pub(crate) fn cancel(&self, selector: &str) -> std::result::Result<Vec<String>, Failed> {
        Ok(self.ask("cancel", Some(selector), "")?.lines().map(str::to_owned).collect())
    }
}

/// What the program tells of the Jobs of a run, for as long as this value lives.
pub(crate) struct Watch {
    client: Client,
    selector: String,
    child: Option<Child>,
    heard: Arc<Mutex<Heard>>,
    started: Option<Instant>,
}

#[derive(Default)]
struct Heard {
    jobs: BTreeMap<String, ClusterJob>,
    /// Why nothing more is heard.
    over: Option<String>,
}

/// Time between two tries to watch.
const AGAIN: Duration = Duration::from_secs(5);

impl Watch {
    pub(crate) fn new(client: Client, selector: &str) -> Self {
        Self { client, selector: selector.into(), child: None, heard: Arc::default(), started: None }
    }

    /// What was last heard of a Job; starts the program, or starts it again a while after it has ended.
    pub(crate) fn look(&mut self, name: &str) -> std::result::Result<Option<ClusterJob>, String> {
        let over = self.heard().over.clone();
        if self.child.is_none() || over.is_some() {
            if self.started.is_none_or(|started| started.elapsed() > AGAIN) {
                self.start().map_err(|e| e.message)?;
            } else if let Some(why) = over {
                return Err(why);
            }
        }
        Ok(self.heard().jobs.get(name).cloned())
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&mut self) -> Result<()> {
        self.end();
        self.started = Some(Instant::now());
        let mut command = self.client.command("watch")?;
        let lost = |e| Diagnostic::new(ExitCode::Machine, format!("`smelt-kubernetes` cannot be started: {e}"));
        // It ends when its input does, which this process holds.
        let mut child = command.arg(&self.selector).stdin(Stdio::piped()).spawn().map_err(lost)?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        self.child = Some(child);
        // What was known of Jobs is told again.
        self.heard = Arc::default();
        let heard = self.heard.clone();
        std::thread::spawn(move || {
            for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(|line| line.ok()) {
                if let Ok(job) = serde_json::from_str::<ClusterJob>(&line) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).jobs.insert(job.name.clone(), job);
                }
            }
            let mut words = String::new();
            err.into_iter().for_each(|mut err| drop(err.read_to_string(&mut words)));
            let words =
                if words.trim().is_empty() { "`smelt-kubernetes` ended".into() } else { words.trim().to_owned() };
            heard.lock().unwrap_or_else(PoisonError::into_inner).over = Some(words);
        });
        Ok(())
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}
