//! What Slurm says of its jobs. It forgets them, and its daemons come and go: a question that fails means that nothing
//! is known, never that a job failed.

use std::process::Command;

/// A job, or a task of an array, that waits or runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    /// Of the whole array, if it is one.
    pub id: u64,
    pub state: String,
    pub reason: String,
    pub comment: String,
}

/// How a job that Slurm still knows has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct End {
    pub state: String,
    pub reason: String,
    /// Exit status, or 128 and the number of the signal.
    pub status: i32,
    pub has_started: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// With the reason.
    Waits(String),
    Runs,
    /// One or more of its tasks, each that did not end well first.
    Ended(End),
    /// It is over, and Slurm does not know how.
    Forgotten,
    /// Slurm does not answer, and says this.
    Unknown(String),
}

/// A command of Slurm, without what a surrounding job of Slurm says about itself.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let leaks = name.to_str().is_some_and(|name| name.starts_with("SLURM_") && name != "SLURM_CONF");
        if leaks {
            command.env_remove(name);
        }
    }
    command
}

/// What a command prints, or why it failed, in one line.
pub(crate) fn ask(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("`{program}` cannot be started: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it failed and does not say why");
    // `slurm_load_jobs error: Unable to …`
    Err(last.rsplit("error: ").next().unwrap_or(last).trim().to_owned())
}

/// Everything of this user that waits or runs.
pub(crate) fn queued() -> Result<Vec<Task>, String> {
    let listing = ask(command("squeue").args(["--me", "--noheader", "--array", "--format=%F|%T|%r|%k"]))?;
    Ok(listing.lines().filter_map(task).collect())
}

fn task(line: &str) -> Option<Task> {
    let mut fields = line.splitn(4, '|').map(|field| field.trim().to_owned());
    let id = fields.next()?.parse().ok()?;
    Some(Task { id, state: fields.next()?, reason: fields.next()?, comment: fields.next()? })
}

/// What is known of job `id`, if `tasks` are those that wait or run.
pub(crate) fn look(id: u64, tasks: &[Task]) -> Seen {
    let mut own = tasks.iter().filter(|task| task.id == id).peekable();
    if own.peek().is_some() {
        return match own.clone().find(|task| !waits(&task.state)) {
            Some(_) => Seen::Runs,
            None => Seen::Waits(own.next().map(|task| task.reason.clone()).unwrap_or_default()),
        };
    }
    match ask(command("scontrol").args(["--oneliner", "show", "job", &id.to_string()])) {
        Ok(text) => shown(&text).unwrap_or(Seen::Forgotten),
        Err(why) if why.contains("Invalid job id") => accounted(id),
        Err(why) => Seen::Unknown(why),
    }
}

fn waits(state: &str) -> bool {
    matches!(state, "PENDING" | "REQUEUED" | "REQUEUE_FED" | "REQUEUE_HOLD" | "RESV_DEL_HOLD" | "SPECIAL_EXIT")
}

fn runs(state: &str) -> bool {
    matches!(state, "RUNNING" | "COMPLETING" | "CONFIGURING" | "SUSPENDED" | "STOPPED" | "SIGNALING" | "STAGE_OUT")
}

/// Reads `scontrol show job`: a line for the job, or for each task of it.
fn shown(text: &str) -> Option<Seen> {
    let field = |line: &str, name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    };
    let ends: Vec<End> = text
        .lines()
        .filter(|line| line.contains("JobState="))
        .map(|line| End {
            state: field(line, "JobState"),
            reason: field(line, "Reason"),
            status: status(&field(line, "ExitCode")),
            has_started: !matches!(field(line, "StartTime").as_str(), "" | "Unknown" | "None"),
        })
        .collect();
    summary(ends)
}

/// Reads `sacct`, where the cluster keeps accounts.
fn accounted(id: u64) -> Seen {
    let id = id.to_string();
    let args = ["--noheader", "--allocations", "--parsable2", "--jobs", &id, "--format=State,ExitCode,Start"];
    let Ok(text) = ask(command("sacct").args(args)) else { return Seen::Forgotten };
    let ends = text.lines().filter_map(|line| {
        let mut fields = line.split('|');
        // `CANCELLED by 0`
        let state = fields.next()?.split_whitespace().next()?.to_owned();
        let status = status(fields.next()?);
        let has_started = !matches!(fields.next(), None | Some("Unknown" | "None" | ""));
        Some(End { state, reason: String::new(), status, has_started })
    });
    summary(ends.collect()).unwrap_or(Seen::Forgotten)
}

/// What several tasks make together.
fn summary(ends: Vec<End>) -> Option<Seen> {
    if ends.iter().any(|end| runs(&end.state)) {
        return Some(Seen::Runs);
    }
    if let Some(end) = ends.iter().find(|end| waits(&end.state)) {
        return Some(Seen::Waits(end.reason.clone()));
    }
    let failed = ends.iter().find(|end| end.state != "COMPLETED");
    failed.or(ends.first()).cloned().map(Seen::Ended)
}

/// `exit:signal`
fn status(text: &str) -> i32 {
    let (exit, signal) = text.split_once(':').unwrap_or((text, "0"));
    let number = |text: &str| text.parse::<i32>().unwrap_or(0);
    if number(signal) > 0 { 128 + number(signal) } else { number(exit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(state: &str, reason: &str, status: i32, has_started: bool) -> Seen {
        Seen::Ended(End { state: state.into(), reason: reason.into(), status, has_started })
    }

    #[test]
    fn the_queue_is_read_by_its_fields_and_a_comment_may_hold_anything() {
        let found = task("12|PENDING|Resources|smelt r score[a=x|y] 1").unwrap();
        assert_eq!((found.id, found.reason.as_str()), (12, "Resources"));
        assert_eq!(found.comment, "smelt r score[a=x|y] 1");
        assert_eq!(task("slurm_load_jobs error"), None);
        let at = |state: &str, id| Task { id, state: state.into(), ..found.clone() };
        assert_eq!(look(12, &[at("PENDING", 12), at("RUNNING", 13)]), Seen::Waits("Resources".into()));
        assert_eq!(look(12, &[at("PENDING", 12), at("COMPLETING", 12)]), Seen::Runs, "one task of an array runs");
    }

    #[test]
    fn an_end_is_read_with_its_exit_status_or_signal() {
        let line = |fields: &str| format!("JobId=7 JobName=x UserId=a(1) {fields} Comment=smelt r base 1");
        let of = |fields: &str| shown(&line(fields)).unwrap();
        let time = "StartTime=2026-11-29T10:00:00";
        assert_eq!(
            of(&format!("JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0 {time}")),
            end("FAILED", "NonZeroExitCode", 3, true)
        );
        assert_eq!(of(&format!("JobState=FAILED Reason=x ExitCode=0:9 {time}")), end("FAILED", "x", 137, true));
        assert_eq!(
            of("JobState=CANCELLED Reason=Dependency ExitCode=0:0 StartTime=Unknown"),
            end("CANCELLED", "Dependency", 0, false)
        );
        assert_eq!(of("JobState=PENDING Reason=BeginTime ExitCode=0:0"), Seen::Waits("BeginTime".into()));
        // Of an array the task that did not end well counts, and one that runs before it.
        let tasks = |states: [&str; 2]| shown(&states.map(|s| line(&format!("JobState={s} ExitCode=0:0"))).join("\n"));
        assert_eq!(tasks(["COMPLETED", "NODE_FAIL"]), Some(end("NODE_FAIL", "", 0, false)));
        assert_eq!(tasks(["NODE_FAIL", "RUNNING"]), Some(Seen::Runs));
        assert_eq!(shown("No jobs in the system"), None);
    }
}
