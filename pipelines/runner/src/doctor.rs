//! What `smelt doctor` says of this machine beside the stages' own needs: disk, limits of memory, Kubernetes, Slurm.

use crate::executor::cgroup::Cgroups;
use crate::executor::kubernetes::client::Client;
use crate::executor::slurm::queue::{ask, command};
use crate::table::bytes;
use smelt_schemas::Check;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// smelt works, and not everything does.
    Note,
    Bad,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub verdict: Verdict,
    pub name: String,
    pub found: String,
    /// What to do, unless it is good.
    pub hint: String,
}

fn finding(verdict: Verdict, name: &str, found: impl Into<String>, hint: &str) -> Finding {
    Finding { verdict, name: name.into(), found: found.into(), hint: hint.into() }
}

/// Space in the store below which a job may not get far; bytes.
const LEAST_SPACE: u64 = 1 << 30;

/// `store`: its folder, if it is one. `namespace`: of Kubernetes, if it is not the kubeconfig's own.
pub(crate) fn machine(store: Option<&Path>, namespace: Option<String>) -> Vec<Finding> {
    let mut all: Vec<Finding> = store.map(space).into_iter().collect();
    all.push(memory_limits(Cgroups::here()));
    all.extend(kubernetes(namespace));
    all.extend(slurm(store));
    all
}

fn space(store: &Path) -> Finding {
    let hint = "free some, or keep artifacts elsewhere: `--store`, or `store:` in the pipeline";
    match free(&existing(store)) {
        Ok(free) => {
            let verdict = if free < LEAST_SPACE { Verdict::Bad } else { Verdict::Good };
            finding(verdict, "store space", format!("{}: {} free", store.display(), bytes(free)), hint)
        }
        Err(e) => finding(Verdict::Bad, "store space", format!("{} cannot be asked: {e}", store.display()), hint),
    }
}

/// The folder itself, or the nearest one above that is there.
fn existing(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/")).to_path_buf()
}

fn free(folder: &Path) -> std::io::Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut about = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: a string that ends in zero, and a struct that the call fills when it returns 0.
    match unsafe { libc::statvfs(path.as_ptr(), about.as_mut_ptr()) } {
        // SAFETY: it was filled.
        0 => Ok(unsafe { about.assume_init() }).map(|about| about.f_bavail * about.f_frsize),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn memory_limits(groups: Result<Cgroups, String>) -> Finding {
    let name = "memory limits";
    match groups {
        Ok(Cgroups { folder }) => {
            let found = format!("jobs with `memory` are held to it, by cgroups in {}", folder.display());
            finding(Verdict::Good, name, found, "")
        }
        Err(why) => finding(
            Verdict::Note,
            name,
            format!("jobs are not held to their `memory`: {why}"),
            "where systemd runs, `systemd-run --user --scope smelt run …` may make cgroups; a container needs \
             /sys/fs/cgroup writable",
        ),
    }
}

/// Nothing but a note where no cluster is known.
fn kubernetes(namespace: Option<String>) -> Vec<Finding> {
    let name = "Kubernetes";
    match Client::new(namespace).checks() {
        Ok(checks) if checks.is_empty() => vec![finding(
            Verdict::Note,
            name,
            "no cluster is known here: jobs run on this machine",
            "to use one, let KUBECONFIG or ~/.kube/config name it",
        )],
        Ok(checks) => checks
            .into_iter()
            .map(|Check { name, ok, found, hint }| {
                let verdict = if ok { Verdict::Good } else { Verdict::Bad };
                finding(verdict, &name, found, &hint.unwrap_or_default())
            })
            .collect(),
        Err(failed) => {
            let hint = "`kubectl version` says more; is the kubeconfig right?";
            vec![finding(Verdict::Bad, name, failed.words, hint)]
        }
    }
}

/// Nothing but a note where there is no Slurm.
fn slurm(store: Option<&Path>) -> Vec<Finding> {
    let name = "Slurm";
    let version = |program: &str| ask(command(program).arg("--version")).map(|said| said.trim().to_owned());
    let found = match version("sbatch") {
        Ok(found) => found,
        Err(_) => {
            let found = "`sbatch` is not in PATH: jobs run on this machine";
            return vec![finding(
                Verdict::Note,
                name,
                found,
                "to use a cluster, start smelt on one of its login nodes",
            )];
        }
    };
    let mut all = vec![finding(Verdict::Good, name, found, "")];
    let missing = ["squeue", "scontrol", "scancel", "sinfo"].into_iter().filter(|program| version(program).is_err());
    let missing: Vec<&str> = missing.collect();
    if !missing.is_empty() {
        let found = format!("{} cannot be started", missing.join(", "));
        all.push(finding(Verdict::Bad, "  programs", found, "install all of Slurm's client programs on this node"));
        return all;
    }
    all.push(controller());
    if all.iter().all(|finding| finding.verdict != Verdict::Bad) {
        all.extend([partitions(), accounting()]);
    }
    all.extend(store.and_then(visible));
    all
}

fn controller() -> Finding {
    let hint = "`scontrol ping` asks it; is `slurmctld` running, and SLURM_CONF right?";
    // It says which controllers there are on standard output, also where none is up and it ends with an error.
    let said = command("scontrol").arg("ping").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = said.lines().find(|line| line.contains(" is UP")).or(said.lines().next());
    match line.map(str::trim) {
        Some(line) if line.ends_with(" is UP") => finding(Verdict::Good, "  controller", line, ""),
        Some(line) => finding(Verdict::Bad, "  controller", line, hint),
        None => {
            let why = ask(command("scontrol").arg("ping")).err().unwrap_or_default();
            finding(Verdict::Bad, "  controller", format!("does not answer: {why}"), hint)
        }
    }
}

fn partitions() -> Finding {
    let name = "  partitions";
    let listed = match ask(command("sinfo").args(["--noheader", "--format=%P|%a|%D|%l"])) {
        Ok(listed) => listed,
        Err(why) => return finding(Verdict::Bad, name, format!("cannot be listed: {why}"), "`sinfo` lists them"),
    };
    let mut is_up = false;
    let shown = listed.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [name, state, nodes, limit] = fields[..] else { return None };
        is_up |= state == "up";
        let nodes = if nodes == "1" { "1 node".to_owned() } else { format!("{nodes} nodes") };
        let limit = if limit == "infinite" { String::new() } else { format!(", at most {limit}") };
        let state = if state == "up" { String::new() } else { format!(", {state}") };
        Some(format!("{name} ({nodes}{limit}{state})"))
    });
    let shown: Vec<String> = shown.collect();
    match (shown.is_empty(), is_up) {
        (true, _) => finding(Verdict::Bad, name, "there are none", "the cluster needs a partition: ask who runs it"),
        (_, false) => finding(Verdict::Bad, name, shown.join(", "), "none is up: ask who runs the cluster"),
        _ => finding(Verdict::Good, name, shown.join(", "), ""),
    }
}

/// Without it the state of a job is asked of `squeue` and `scontrol` alone.
fn accounting() -> Finding {
    match ask(command("sacct").args(["--noheader", "--allocations", "--format=JobID"])) {
        Ok(_) => finding(Verdict::Good, "  accounting", "`sacct` answers", ""),
        Err(why) => finding(
            Verdict::Note,
            "  accounting",
            format!("none: {why}"),
            "smelt works without; it takes a job that Slurm has forgotten for lost, and submits it again",
        ),
    }
}

/// Whether nodes are likely to see a folder; nothing if it is on a file system that machines share.
fn visible(store: &Path) -> Option<Finding> {
    let kind = local_file_system(&existing(store))?;
    Some(finding(
        Verdict::Note,
        "  store",
        format!("{} lies on a disk of this machine ({kind}), which the cluster's nodes may not see", store.display()),
        "keep artifacts in a folder that all nodes see, or in a bucket",
    ))
}

/// The name of a file system that one machine has for itself.
fn local_file_system(folder: &Path) -> Option<&'static str> {
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut about = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a string that ends in zero, and a struct that the call fills when it returns 0.
    if unsafe { libc::statfs(path.as_ptr(), about.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: it was filled.
    let kind = unsafe { about.assume_init() }.f_type as u32;
    // Of linux/magic.h.
    Some(match kind {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlay",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_memory_that_does_not_hold_is_a_note_with_what_to_do() {
        let found = memory_limits(Err("this user may make no groups above /x".into()));
        assert_eq!(found.verdict, Verdict::Note);
        assert_eq!(found.found, "jobs are not held to their `memory`: this user may make no groups above /x");
        assert!(found.hint.starts_with("where systemd runs, `systemd-run --user --scope smelt run …`"));
        let found = memory_limits(Ok(Cgroups { folder: "/sys/fs/cgroup/user".into() }));
        assert_eq!(found.found, "jobs with `memory` are held to it, by cgroups in /sys/fs/cgroup/user");
        assert_eq!(found.verdict, Verdict::Good);
    }

    #[test]
    fn the_space_of_a_store_that_is_not_there_yet_is_that_of_the_folder_above() {
        let found = space(&std::env::temp_dir().join("smelt-none/deeper"));
        assert!(found.found.ends_with(" free"), "{found:?}");
        assert_eq!(existing(Path::new("/proc/none/deeper")), Path::new("/proc"));
    }
}
