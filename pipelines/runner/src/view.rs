//! What a person sees of a run: a redrawn block on a terminal, one plain line per event elsewhere.

use crate::table::{duration, thousands};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Auto,
    /// Errors only.
    Quiet,
    /// One JSON object a line.
    Json,
}

pub(crate) struct View {
    look: Look,
    widths: (usize, usize),
    running: Mutex<HashMap<String, Running>>,
}

enum Look {
    Terminal(MultiProgress),
    Plain,
    Quiet,
    Json,
}

struct Running {
    bar: Option<ProgressBar>,
    started: Instant,
    shown: Instant,
    /// Where this process began to count: after a resume the rate covers only its own work.
    first: Option<(String, u64)>,
}

/// A plain log gets a line of progress this often.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// `done` of `total` `unit`s of a phase.
pub(crate) struct Progress<'a> {
    pub phase: &'a str,
    pub done: u64,
    pub total: Option<u64>,
    pub unit: &'a str,
    pub note: &'a str,
}

impl View {
    pub(crate) fn new(mode: Mode, jobs: impl Iterator<Item = (usize, usize)>) -> Self {
        let look = match mode {
            Mode::Quiet => Look::Quiet,
            Mode::Json => Look::Json,
            Mode::Auto if std::io::stdout().is_terminal() => Look::Terminal(MultiProgress::new()),
            Mode::Auto => Look::Plain,
        };
        let widths = jobs.fold((4, 5), |(a, b), (name, stage)| (a.max(name), b.max(stage)));
        Self { look, widths, running: Mutex::default() }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, Running>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn say(&self, line: &str, facts: serde_json::Value) {
        match &self.look {
            Look::Quiet => {}
            Look::Json => write_line(&facts.to_string()),
            Look::Plain => write_line(line),
            Look::Terminal(block) => {
                if block.println(line).is_err() {
                    write_line(line);
                }
            }
        }
    }

    fn columns(&self, state: &str, name: &str, stage: &str) -> String {
        format!("  {state:<8} {name:<0$} {stage:<1$}", self.widths.0, self.widths.1)
    }

    pub(crate) fn note(&self, text: &str) {
        self.say(text, json!({ "event": "note", "text": text }));
    }

    pub(crate) fn started(&self, name: &str, stage: &str, why: &str) {
        let (bar, now) = (self.bar(name, stage), Instant::now());
        self.running().insert(name.into(), Running { bar, started: now, shown: now, first: None });
        if !matches!(self.look, Look::Terminal(_)) {
            self.say(
                &format!("{}  {why}", self.columns("start", name, stage)),
                json!({ "event": "started", "job": name, "stage": stage, "why": why }),
            );
        }
    }

    fn bar(&self, name: &str, stage: &str) -> Option<ProgressBar> {
        let Look::Terminal(block) = &self.look else { return None };
        let bar = block.add(ProgressBar::new_spinner());
        let style = ProgressStyle::with_template("{prefix}  {spinner} {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        bar.set_style(style);
        bar.set_prefix(self.columns("running", name, stage));
        bar.enable_steady_tick(Duration::from_millis(200));
        Some(bar)
    }

    /// How far a job is; the rate is since this process began.
    pub(crate) fn progress(&self, name: &str, stage: &str, Progress { phase, done, total, unit, note }: Progress) {
        let mut running = self.running();
        let Some(job) = running.get_mut(name) else { return };
        let first = match &job.first {
            Some((p, first)) if p == phase => *first,
            _ => {
                job.first = Some((phase.into(), done));
                job.started = Instant::now();
                done
            }
        };
        let seconds = job.started.elapsed().as_secs_f64();
        let rate = (done - first.min(done)) as f64 / seconds.max(1e-3);
        let mut text = match total {
            Some(total) => format!("{unit} {}/{}", thousands(done), thousands(total)),
            None => format!("{} {unit}", thousands(done)),
        };
        if !note.is_empty() {
            text += &format!("  {note}");
        }
        if seconds > 1.0 && rate > 0.0 {
            let shown = if rate >= 100.0 { thousands(rate as u64) } else { format!("{rate:.1}") };
            text += &format!("  {shown} {unit}/s");
            if let Some(total) = total.filter(|t| *t > done) {
                text += &format!("  {} left", duration((total - done) as f64 / rate));
            }
        }
        match &job.bar {
            Some(bar) => bar.set_message(text),
            None => {
                let due = job.shown.elapsed() >= PLAIN_EVERY;
                if matches!(self.look, Look::Json) || due {
                    job.shown = Instant::now();
                    drop(running);
                    let facts = json!({
                        "event": "progress", "job": name, "phase": phase, "done": done, "total": total, "unit": unit,
                        "note": note
                    });
                    self.say(&format!("{}  {text}", self.columns("running", name, stage)), facts);
                }
            }
        }
    }

    fn end(&self, name: &str) -> f64 {
        let Some(job) = self.running().remove(name) else { return 0.0 };
        if let Some(bar) = job.bar {
            bar.finish_and_clear();
        }
        job.started.elapsed().as_secs_f64()
    }

    pub(crate) fn done(&self, name: &str, stage: &str, summary: &str, seconds: f64) {
        self.end(name);
        let line = format!("{}  {summary}  {}", self.columns("done", name, stage), duration(seconds));
        self.say(
            &line,
            json!({ "event": "done", "job": name, "stage": stage, "summary": summary, "seconds": seconds }),
        );
    }

    pub(crate) fn cached(&self, name: &str, stage: &str, summary: &str) {
        let line = format!("{}  {summary}", self.columns("cached", name, stage));
        self.say(&line, json!({ "event": "cached", "job": name, "stage": stage, "summary": summary }));
    }

    /// A cluster has it, and it does not run yet.
    pub(crate) fn queued(&self, name: &str, stage: &str, how: &str) {
        let line = format!("{}  {how}", self.columns("queued", name, stage));
        self.say(&line, json!({ "event": "queued", "job": name, "stage": stage, "how": how }));
    }

    pub(crate) fn skipped(&self, name: &str, stage: &str, why: &str) {
        let line = format!("{}  {why}", self.columns("skipped", name, stage));
        self.say(&line, json!({ "event": "skipped", "job": name, "stage": stage, "why": why }));
    }

    pub(crate) fn failed(&self, name: &str, stage: &str, why: &str) {
        self.end(name);
        let line = format!("{}  {why}", self.columns("failed", name, stage));
        self.say(&line, json!({ "event": "failed", "job": name, "stage": stage, "why": why }));
    }

    pub(crate) fn again(&self, name: &str, stage: &str, why: &str, wait: f64) {
        let line = format!("{}  {why}; trying again in {}", self.columns("again", name, stage), duration(wait));
        self.say(&line, json!({ "event": "again", "job": name, "why": why, "seconds": wait }));
    }

    pub(crate) fn warning(&self, name: &str, stage: &str, message: &str) {
        let line = format!("{}  {message}", self.columns("warning", name, stage));
        self.say(&line, json!({ "event": "warning", "job": name, "message": message }));
    }
}

/// A closed pipe does not stop the work.
fn write_line(line: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{line}").and_then(|()| out.flush()));
}
