//! Limits of memory by the kernel's control groups (cgroup v2), where this process may make some.
//!
//! Without them a job that takes more than it said takes it from the others, until the kernel ends whatever it likes.
//! A limit of the shell (`setrlimit`) is no substitute: it counts addresses, not memory, and of each process alone.

use crate::table::bytes;
use smelt_schemas::Problem;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const ROOT: &str = "/sys/fs/cgroup";
const PREFIX: &str = "smelt-";

/// A group in which this process may make others that have a limit of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroups {
    pub folder: PathBuf,
}

impl Cgroups {
    /// Of this machine and process; else why there is none.
    pub(crate) fn here() -> Result<Self, String> {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::find(Path::new(ROOT), &own)
    }

    /// `own`: what /proc/self/cgroup says.
    fn find(root: &Path, own: &str) -> Result<Self, String> {
        let has_memory = |folder: &Path, file: &str| {
            let names = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
            names.split_whitespace().any(|name| name == "memory")
        };
        if !has_memory(root, "cgroup.controllers") {
            return Err(format!("{} has no cgroups (version 2) that count memory", root.display()));
        }
        let path = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        // In a container the path may be one of the machine outside.
        let own = Some(root.join(path)).filter(|own| !path.is_empty() && own.is_dir());
        let own = own.unwrap_or_else(|| root.to_path_buf());
        let above = own.ancestors().take_while(|folder| folder.starts_with(root));
        // A group hands memory on to those in it, and a process moves between them if it may write the list of the
        // group above both. The own group never does: a group that has processes hands nothing on.
        let is_ours = |folder: &&Path| may_write(folder) && may_write(&folder.join("cgroup.procs"));
        let mut given = above.filter(|folder| has_memory(folder, "cgroup.subtree_control"));
        match given.find(is_ours) {
            Some(folder) => Ok(Self { folder: folder.to_path_buf() }),
            None => Err(format!("this user may make no groups above {}", own.display())),
        }
    }

    /// A group for one job.
    pub(crate) fn group(&self, run: &str, job: &str, bytes: u64) -> io::Result<Group> {
        let name = format!("{PREFIX}{}-{run}-{}", std::process::id(), smelt_store::safe_name(job));
        let folder = self.folder.join(name);
        std::fs::create_dir(&folder)?;
        let group = Group { folder };
        std::fs::write(group.folder.join("memory.max"), bytes.to_string())?;
        // All of its processes end together, so that none waits for one that is gone. Older kernels end one.
        drop(std::fs::write(group.folder.join("memory.oom.group"), "1"));
        Ok(group)
    }

    /// Removes groups of runners that were killed. One that still has processes stays.
    pub(crate) fn sweep(&self) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<i32>().ok());
            if pid.is_some_and(is_gone) {
                drop(std::fs::remove_dir(entry.path()));
            }
        }
    }
}

fn is_gone(pid: i32) -> bool {
    // SAFETY: signal 0 only asks whether the process is there.
    let asked = unsafe { libc::kill(pid, 0) };
    asked != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
}

fn may_write(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a string that ends in zero and lives during the call.
    unsafe { libc::access(path.as_ptr(), libc::W_OK) == 0 }
}

/// The group of a job's processes; with this value it and what is left in it end.
pub(crate) struct Group {
    folder: PathBuf,
}

/// What the kernel counted when it ended processes of a group for their memory; bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    pub limit: u64,
    /// Kernels before 5.19 do not say.
    pub peak: Option<u64>,
}

impl Exceeded {
    /// What became of a job that asked for so much memory.
    pub(crate) fn problem(self, asked: &str) -> Problem {
        let peak = self.peak.map_or_else(String::new, |peak| format!(", of which it had taken {}", bytes(peak)));
        let limit = bytes(self.limit);
        Problem {
            message: format!(
                "it was killed because it needs more than its `memory: {asked}`, a limit of {limit}{peak}"
            ),
            hint: Some("give it more with `run: { memory: … }`, or less to do at once; saved work is kept".into()),
            ..Problem::default()
        }
    }
}

impl Group {
    /// The process that `command` starts will be in this group, and so will its children.
    pub(crate) fn enter(&self, command: &mut Command) -> io::Result<()> {
        let list: File = OpenOptions::new().create(true).append(true).open(self.folder.join("cgroup.procs"))?;
        // SAFETY: between fork and exec one plain system call, on a descriptor that the closure keeps open.
        unsafe {
            command.pre_exec(move || match libc::write(list.as_raw_fd(), b"0".as_ptr().cast(), 1) {
                1 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        Ok(())
    }

    /// Whether the kernel ended processes of this group because they took more than its limit.
    pub(crate) fn exceeded(&self) -> Option<Exceeded> {
        let number = |file: &str| std::fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok();
        let events = std::fs::read_to_string(self.folder.join("memory.events")).unwrap_or_default();
        let count = |line: &str| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok();
        let kills = events.lines().find_map(count).unwrap_or(0);
        (kills > 0).then(|| Some(Exceeded { limit: number("memory.max")?, peak: number("memory.peak") }))?
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(std::fs::write(self.folder.join("cgroup.kill"), "1"));
        let until = Instant::now() + Duration::from_secs(2);
        // A process that was killed is in its group until it is gone.
        while std::fs::remove_dir(&self.folder).is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy) {
            if Instant::now() > until {
                return; // a later run sweeps it
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like the kernel's, with groups and what each hands on.
    fn tree(groups: &[(&str, &str, &str)]) -> PathBuf {
        let root = std::env::temp_dir().join(format!("smelt-cgroup-{}", smelt_store::unique()));
        for (path, controllers, given) in groups {
            let folder = root.join(path);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("cgroup.controllers"), controllers).unwrap();
            std::fs::write(folder.join("cgroup.subtree_control"), given).unwrap();
            std::fs::write(folder.join("cgroup.procs"), "").unwrap();
        }
        root
    }

    #[test]
    fn groups_are_made_in_the_nearest_group_that_hands_memory_on() {
        let root = tree(&[
            ("", "cpu memory pids", "memory"),
            ("user", "memory pids", "memory pids"),
            ("user/session", "memory", ""),
            ("bare", "pids", ""),
        ]);
        let find = |own: &str| Cgroups::find(&root, own).map(|found| found.folder);
        assert_eq!(find("12:cpu:/x\n0::/user/session\n"), Ok(root.join("user")));
        assert_eq!(find("0::/user\n"), Ok(root.join("user")));
        assert_eq!(find("0::/bare\n"), Ok(root.clone()));
        assert_eq!(find("0::/of/the/machine/outside\n"), Ok(root.clone()), "a container");
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn without_memory_or_the_right_to_make_groups_the_reason_is_told() {
        let root = tree(&[("", "cpu pids", "cpu")]);
        let shown = root.display();
        let said = Cgroups::find(&root, "0::/").unwrap_err();
        assert_eq!(said, format!("{shown} has no cgroups (version 2) that count memory"));
        std::fs::write(root.join("cgroup.controllers"), "memory").unwrap();
        let none = format!("this user may make no groups above {shown}");
        assert_eq!(Cgroups::find(&root, "0::/").unwrap_err(), none, "no group hands memory on");
        std::fs::write(root.join("cgroup.subtree_control"), "memory").unwrap();
        assert!(Cgroups::find(&root, "0::/").is_ok());
        // Nobody may write a list that is not there.
        std::fs::remove_file(root.join("cgroup.procs")).unwrap();
        assert_eq!(Cgroups::find(&root, "0::/").unwrap_err(), none);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_process_enters_its_group_before_its_program_starts_and_the_kernel_says_what_it_took() {
        let root = tree(&[("", "memory", "memory")]);
        let cgroups = Cgroups { folder: root.clone() };
        let group = cgroups.group("20260101", "tokens[seed=1]", 64 << 20).unwrap();
        let read = |file: &str| std::fs::read_to_string(group.folder.join(file)).unwrap();
        assert_eq!((read("memory.max").as_str(), read("memory.oom.group").as_str()), ("67108864", "1"));
        let mut command = Command::new("cat");
        group.enter(command.arg(group.folder.join("cgroup.procs"))).unwrap();
        assert_eq!(command.output().unwrap().stdout, b"0", "its program sees that it has entered");
        assert_eq!(group.exceeded(), None, "nothing was counted yet");
        std::fs::write(group.folder.join("memory.events"), "low 0\nmax 7\noom 1\noom_kill 0\n").unwrap();
        assert_eq!(group.exceeded(), None, "it was near its limit, and lived");
        std::fs::write(group.folder.join("memory.events"), "low 0\nmax 7\noom 1\noom_kill 2\n").unwrap();
        assert_eq!(group.exceeded(), Some(Exceeded { limit: 67_108_864, peak: None }));
        std::fs::write(group.folder.join("memory.peak"), "67100000\n").unwrap();
        let exceeded = group.exceeded().unwrap();
        assert_eq!(exceeded, Exceeded { limit: 67_108_864, peak: Some(67_100_000) });
        let told = exceeded.problem("64MiB");
        assert_eq!(
            told.message,
            "it was killed because it needs more than its `memory: 64MiB`, a limit of 67.1 MB, of which it had taken \
             67.1 MB"
        );
        assert!(told.hint.unwrap().starts_with("give it more with `run: { memory: … }`"));
        drop(group);
        // A runner that is gone left a group, one that lives has another.
        let (gone, lives) = (root.join("smelt-999999999-r-a"), root.join(format!("smelt-{}-r-a", std::process::id())));
        std::fs::create_dir(&gone).unwrap();
        std::fs::create_dir(&lives).unwrap();
        cgroups.sweep();
        assert!(!gone.exists() && lives.exists());
        std::fs::remove_dir_all(root).unwrap();
    }
}
