//! Who holds something in a store: one process, told apart from every other, also by another machine.

use crate::unique::unique;
use serde::{Deserialize, Serialize};

/// One process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Random, another one for each process.
    pub id: String,
    pub host: String,
    /// Changes when the host restarts.
    pub boot: String,
    /// The namespace that `pid` is a number in: containers of one host share host name and boot, and not this. Empty
    /// where the system does not say, and in records of earlier versions; such an owner is never judged by its pid.
    #[serde(default)]
    pub pids: String,
    pub pid: u32,
    /// Clock ticks from boot to the start of the process: tells a reused pid from the old one.
    pub pid_start: u64,
}

impl Owner {
    pub fn this_process() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let link = |path: &str| std::fs::read_link(path).ok().and_then(|target| target.to_str().map(str::to_owned));
        let pid = std::process::id();
        // A /proc that belongs to another namespace shows this process under another number, or not at all.
        let is_ours = link("/proc/self").is_some_and(|own| own == pid.to_string());
        Self {
            id: unique(),
            host: read("/proc/sys/kernel/hostname"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            pids: link("/proc/self/ns/pid").filter(|_| is_ours).unwrap_or_default(),
            pid,
            pid_start: match state_of(pid) {
                State::Runs { since } => since,
                State::Unknown | State::Ended => 0,
            },
        }
    }

    /// True if this owner ran on this boot of this host, among the processes that are seen here, and has ended.
    pub fn is_gone(&self, me: &Owner) -> bool {
        let same = |of: fn(&Owner) -> &str| !of(self).is_empty() && of(self) == of(me);
        let is_here = same(|o| &o.boot) && same(|o| &o.pids) && self.host == me.host;
        is_here
            && match state_of(self.pid) {
                State::Ended => true,
                State::Runs { since } => since != self.pid_start,
                State::Unknown => false,
            }
    }
}

enum State {
    Runs {
        since: u64,
    },
    Ended,
    /// It is there, but this process may not see more: /proc can hide the processes of other users.
    Unknown,
}

fn state_of(pid: u32) -> State {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        // SAFETY: signal 0 is only a question.
        let is_there = unsafe { libc::kill(pid as i32, 0) } == 0
            || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
        return if is_there { State::Unknown } else { State::Ended };
    };
    // Fields are counted after the name, which may hold blanks; field 22 is the start.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    match (fields.first(), fields.get(19).and_then(|start| start.parse().ok())) {
        (Some(&"Z"), _) => State::Ended, // its parent has not waited for it yet
        (_, Some(since)) => State::Runs { since },
        _ => State::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_ended_is_gone_and_one_that_runs_is_not() {
        let me = Owner::this_process();
        assert!(!me.is_gone(&me) && !me.pids.is_empty() && me.pid_start > 0);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = Owner { pid: child.id(), pid_start: 1, ..me.clone() };
        child.wait().unwrap();
        assert!(ended.is_gone(&me));
        assert!(!Owner { host: "elsewhere".into(), ..ended }.is_gone(&me), "another host cannot be asked");
    }

    #[test]
    fn a_process_of_another_container_is_never_judged_by_its_number() {
        let me = Owner::this_process();
        let gone = Owner { pid_start: me.pid_start + 1, ..me.clone() };
        assert!(gone.is_gone(&me));
        for pids in ["pid:[1]", ""] {
            let other = Owner { pids: pids.into(), ..gone.clone() };
            assert!(!other.is_gone(&me) && !other.is_gone(&Owner { pids: String::new(), ..me.clone() }), "{pids:?}");
        }
        // A record of an earlier version has no such field.
        let mut before = serde_json::to_value(&gone).unwrap();
        before.as_object_mut().unwrap().remove("pids");
        assert!(!serde_json::from_value::<Owner>(before).unwrap().is_gone(&me));
    }
}
