//! A job as `sbatch` takes it: options and a script.

use crate::load::Instance;
use smelt_schemas::Device;
use std::path::Path;

/// What a job is submitted with.
pub(crate) struct Batch<'a> {
    pub pipeline: &'a str,
    pub run: &'a str,
    pub job: &'a Instance,
    /// How often it was submitted in this run, this time included.
    pub number: u32,
    /// Ids of the jobs that must end well before.
    pub after: &'a [u64],
    /// The folder of the run, and the file for what Slurm and the script say.
    pub folder: &'a Path,
    pub output: &'a str,
    pub smelt: &'a Path,
    pub store: &'a str,
}

/// A job is told to save so many seconds before its time limit, if nothing else is said.
const GRACE: f64 = 120.0;

/// Names a submission in Slurm's queue, so that a runner finds it again.
pub(crate) fn comment(run: &str, job: &str, number: u32) -> String {
    format!("smelt {run} {} {number}", smelt_store::safe_name(job))
}

/// The run, the job and the number of a comment.
pub(crate) fn parse_comment(comment: &str) -> Option<(&str, &str, u32)> {
    let mut words = comment.strip_prefix("smelt ")?.split(' ');
    let (run, job, number) = (words.next()?, words.next()?, words.next()?.parse().ok()?);
    words.next().is_none().then_some((run, job, number))
}

impl Batch<'_> {
    pub(crate) fn options(&self) -> Vec<String> {
        let (job, run) = (self.job, &self.job.run);
        let mut options = vec![
            "--parsable".into(),
            format!("--job-name={}.{}", self.pipeline, job.name),
            format!("--comment={}", comment(self.run, &job.name, self.number)),
            format!("--chdir={}", self.folder.display()),
            format!("--output={}", self.output),
            // A job that is queued again goes on in the same file.
            "--open-mode=append".into(),
            "--requeue".into(),
            // Otherwise what comes after a failed job waits for ever.
            "--kill-on-invalid-dep=yes".into(),
        ];
        let mut add = |name: &str, value: Option<String>| {
            options.extend(value.map(|value| format!("--{name}={value}")));
        };
        let workers = run.workers.unwrap_or(1).max(1);
        let nodes = run.nodes.unwrap_or(1);
        add("partition", run.partition.clone());
        add("nodes", Some(nodes.to_string()));
        add("ntasks", Some(nodes.to_string()));
        add("cpus-per-task", run.cores.map(|cores| cores.div_ceil(workers).to_string()));
        add("mem", job.limits.memory.map(|bytes| format!("{}M", bytes.div_ceil(workers as u64).div_ceil(1 << 20))));
        let gpus = run.gpus.unwrap_or(usize::from(run.device != Device::Cpu));
        add("gpus-per-node", (gpus > 0).then(|| gpus.to_string()));
        add("time", job.limits.stretch.map(|seconds| ((seconds / 60.0).ceil() as u64).to_string()));
        let grace = job.limits.grace.unwrap_or_else(|| {
            // Of a short stretch no more than a fifth.
            job.limits.stretch.map_or(GRACE, |seconds| GRACE.min(seconds / 5.0))
        });
        // The shell of the script becomes smelt; the tasks of several nodes are reached without it.
        let whom = if nodes > 1 { "" } else { "B:" };
        add("signal", Some(format!("{whom}USR1@{}", grace.ceil() as u64)));
        add("array", (workers > 1).then(|| format!("0-{}", workers - 1)));
        let ids: Vec<String> = self.after.iter().map(u64::to_string).collect();
        add("dependency", (!ids.is_empty()).then(|| format!("afterok:{}", ids.join(":"))));
        options.extend(run.sbatch.iter().cloned());
        options
    }

    pub(crate) fn script(&self) -> String {
        let run = &self.job.run;
        let setup = run.setup.as_deref().map(|lines| format!("{}\n", lines.trim_end())).unwrap_or_default();
        let ranks = if run.nodes.unwrap_or(1) > 1 { "srun --kill-on-bad-exit=1 " } else { "" };
        let container = run.container.as_deref().map(|command| format!("{} ", command.trim())).unwrap_or_default();
        let smelt = quoted(&self.smelt.display().to_string());
        let (job, store) = (quoted(&self.job.name), quoted(self.store));
        let (run, number) = (self.run, self.number);
        // `exec`: signals and the exit status are those of smelt.
        format!(
            "#!/bin/sh\n{setup}exec {ranks}{container}{smelt} exec {run} {job} --store {store} --number {number} \
             --quiet\n"
        )
    }
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Limits, tests::instance};
    use smelt_schemas::RunOptions;

    fn batch<'a>(job: &'a Instance, after: &'a [u64]) -> Batch<'a> {
        Batch {
            pipeline: "web",
            run: "20261129-101112.345-ab12",
            job,
            number: 2,
            after,
            folder: Path::new("/home/a b"),
            output: "/store/log.txt",
            smelt: Path::new("/opt/smelt"),
            store: "s3://bucket/it's",
        }
    }

    #[test]
    fn a_plain_job_asks_for_one_task() {
        let job = instance("base", RunOptions::default(), Limits::default());
        let expected = "--parsable\n--job-name=web.base\n--comment=smelt 20261129-101112.345-ab12 base 2\n\
            --chdir=/home/a b\n--output=/store/log.txt\n--open-mode=append\n--requeue\n--kill-on-invalid-dep=yes\n\
            --nodes=1\n--ntasks=1\n--signal=B:USR1@120";
        assert_eq!(batch(&job, &[]).options().join("\n"), expected);
        let expected = "#!/bin/sh\nexec /opt/smelt exec 20261129-101112.345-ab12 base --store 's3://bucket/it'\\''s' \
            --number 2 --quiet\n";
        assert_eq!(batch(&job, &[]).script(), expected);
    }

    #[test]
    fn what_run_says_becomes_options() {
        let run = RunOptions {
            cores: Some(8),
            gpus: Some(2),
            partition: Some("gpu".into()),
            container: Some("apptainer exec --nv smelt.sif".into()),
            setup: Some("module load cuda\nulimit -n 4096\n".into()),
            sbatch: vec!["--account=lab".into()],
            ..RunOptions::default()
        };
        let limits = Limits { stretch: Some(5430.0), memory: Some((64 << 30) + 1), ..Limits::default() };
        let job = instance("tune[seed=1]", run, limits);
        let options = batch(&job, &[7, 9]).options();
        let expected = "--partition=gpu --nodes=1 --ntasks=1 --cpus-per-task=8 --mem=65537M --gpus-per-node=2 \
            --time=91 --signal=B:USR1@120 --dependency=afterok:7:9 --account=lab";
        assert_eq!(options[8..].join(" "), expected);
        let script = batch(&job, &[]).script();
        let expected = "#!/bin/sh\nmodule load cuda\nulimit -n 4096\nexec apptainer exec --nv smelt.sif /opt/smelt \
            exec 20261129-101112.345-ab12 'tune[seed=1]' --store 's3://bucket/it'\\''s' --number 2 --quiet\n";
        assert_eq!(script, expected);
    }

    #[test]
    fn workers_are_tasks_of_an_array_and_share_what_the_job_has() {
        let run = RunOptions { workers: Some(3), cores: Some(8), ..RunOptions::default() };
        let limits = Limits { memory: Some(3 << 30), stretch: Some(60.0), ..Limits::default() };
        let job = instance("clean", run, limits);
        let expected = "--nodes=1 --ntasks=1 --cpus-per-task=3 --mem=1024M --time=1 --signal=B:USR1@12 --array=0-2";
        assert_eq!(batch(&job, &[]).options()[8..].join(" "), expected);
    }

    #[test]
    fn ranks_are_started_by_srun_and_signalled_without_the_shell() {
        let run = RunOptions { nodes: Some(2), ..RunOptions::default() };
        let job = instance("base", run, Limits { grace: Some(300.0), ..Limits::default() });
        assert_eq!(batch(&job, &[]).options()[8..].join(" "), "--nodes=2 --ntasks=2 --signal=USR1@300");
        assert!(batch(&job, &[]).script().contains("\nexec srun --kill-on-bad-exit=1 /opt/smelt exec "));
    }

    #[test]
    fn a_comment_names_run_job_and_number() {
        let words = comment("r1", "score[seed=1]", 3);
        let (run, job, number) = parse_comment(&words).unwrap();
        assert_eq!((run, job, number), ("r1", smelt_store::safe_name("score[seed=1]").as_str(), 3));
        for other in ["", "smelt", "smelt a b", "smelt a b c", "smelt a b 1 d", "my job"] {
            assert_eq!(parse_comment(other), None, "{other}");
        }
    }
}
