//! What jobs share on this machine: cores, memory and GPUs, handed out together.

use crate::diagnostic::{Diagnostic, Result};
use crate::load::Instance;
use crate::table::bytes;
use smelt_schemas::{Cores, Device};
use std::collections::BTreeSet;

/// What all running jobs may take together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    pub cores: usize,
    /// Bytes.
    pub memory: u64,
    /// As `CUDA_VISIBLE_DEVICES` names them.
    pub gpus: Vec<String>,
    /// Somebody said how many GPUs there are; otherwise it is what this machine shows.
    pub gpus_are_given: bool,
}

/// What the command line says of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Given {
    pub cores: Option<usize>,
    /// Bytes.
    pub memory: Option<u64>,
    pub gpus: Option<usize>,
}

impl Budget {
    /// What this machine has, as far as nothing else is given. On a node of Slurm it is what the job was granted.
    pub(crate) fn of_machine(given: Given) -> Self {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<usize>().ok());
        let granted = number("SLURM_CPUS_PER_TASK").or_else(|| number("SLURM_CPUS_ON_NODE"));
        let cores = granted.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
        let mut gpus = visible_gpus();
        if let Some(count) = given.gpus {
            gpus.truncate(count);
            gpus.extend((gpus.len()..count).map(|number| number.to_string()));
        }
        Self {
            cores: given.cores.unwrap_or(cores).max(1),
            memory: given.memory.unwrap_or_else(machine_memory),
            gpus,
            gpus_are_given: given.gpus.is_some(),
        }
    }

    /// What a job takes while it runs: never more cores than there are, because it may use fewer.
    pub(crate) fn claim(&self, job: &Instance) -> Claim {
        let cores = job.run.cores.unwrap_or(match job.program.description.cores {
            Cores::One => 1,
            Cores::All => self.cores,
        });
        let gpus = match (job.run.gpus, job.run.device) {
            (_, Device::Cuda(number)) => Gpus::This(number as usize),
            (Some(count), _) => Gpus::Any(count),
            // Without a GPU it computes on the CPU.
            (None, Device::Auto) => Gpus::Any(self.gpus.len().min(1)),
            (None, Device::Cpu) => Gpus::Any(0),
        };
        let cores = cores.max(job.run.workers.unwrap_or(1)).clamp(1, self.cores);
        Claim { cores, memory: job.limits.memory.unwrap_or(0), gpus }
    }

    /// An error if a job could never run, however long it waits.
    pub(crate) fn check(&self, job: &Instance) -> Result<()> {
        let claim = self.claim(job);
        let refuse = |needs: String, has: String, hint: &str| {
            let what = format!("job `{}` needs {needs}, and this run has {has}", job.name);
            Err(Diagnostic::pipeline(what).at(job.place.clone()).hint(hint))
        };
        if claim.memory > self.memory {
            return refuse(
                format!("{} of memory", bytes(claim.memory)),
                bytes(self.memory),
                "say less in its `run: { memory: … }`, or give the run more with `--memory`",
            );
        }
        let hint = "`--gpus N` says how many there are; `run: { executor: slurm }` runs it on a cluster";
        match claim.gpus {
            Gpus::Any(count) if count > self.gpus.len() => refuse(gpus(count), self.gpus.len().to_string(), hint),
            // What a machine does not show may still be there; its driver knows.
            Gpus::This(number) if self.gpus_are_given && number >= self.gpus.len() => {
                refuse(format!("the GPU cuda:{number}"), gpus(self.gpus.len()), hint)
            }
            _ => Ok(()),
        }
    }
}

fn gpus(count: usize) -> String {
    if count == 1 { "1 GPU".into() } else { format!("{count} GPUs") }
}

/// What a job takes of the budget.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    pub cores: usize,
    /// Bytes.
    pub memory: u64,
    pub gpus: Gpus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gpus {
    Any(usize),
    /// By its place among those of the budget.
    This(usize),
}

impl Default for Gpus {
    fn default() -> Self {
        Self::Any(0)
    }
}

/// What a running job holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    pub cores: usize,
    /// Bytes.
    pub memory: u64,
    gpus: Vec<usize>,
    /// What its processes see as `CUDA_VISIBLE_DEVICES`; `None` leaves it as it is here.
    pub visible: Option<String>,
}

impl Granted {
    /// What a cluster granted counts, where one did: it has set the GPUs that are seen.
    pub(crate) fn of_cluster(self, is_there: bool, claim: &Claim) -> Self {
        if is_there { Self { cores: claim.cores, memory: claim.memory, ..Self::default() } } else { self }
    }
}

/// What is left of a budget.
pub(crate) struct Free {
    budget: Budget,
    cores: usize,
    memory: u64,
    taken: BTreeSet<usize>,
}

impl Free {
    pub(crate) fn all_of(budget: Budget) -> Self {
        Self { cores: budget.cores, memory: budget.memory, taken: BTreeSet::new(), budget }
    }

    /// All that a job claims, or nothing.
    pub(crate) fn take(&mut self, claim: &Claim) -> Option<Granted> {
        let gpus: Vec<usize> = match claim.gpus {
            Gpus::This(number) => Some(number).filter(|number| !self.taken.contains(number)).into_iter().collect(),
            Gpus::Any(count) => {
                (0..self.budget.gpus.len()).filter(|gpu| !self.taken.contains(gpu)).take(count).collect()
            }
        };
        let wanted = match claim.gpus {
            Gpus::This(_) => 1,
            Gpus::Any(count) => count,
        };
        if claim.cores > self.cores || claim.memory > self.memory || gpus.len() < wanted {
            return None;
        }
        self.cores -= claim.cores;
        self.memory -= claim.memory;
        self.taken.extend(&gpus);
        let visible = match claim.gpus {
            // It names the GPU itself, by its number on this machine.
            Gpus::This(_) => None,
            // Where there may be a GPU and this run is not to use it.
            Gpus::Any(0) => self.budget.gpus_are_given.then(String::new),
            Gpus::Any(_) => Some(gpus.iter().map(|gpu| self.budget.gpus[*gpu].as_str()).collect::<Vec<_>>().join(",")),
        };
        Some(Granted { cores: claim.cores, memory: claim.memory, gpus, visible })
    }

    pub(crate) fn give_back(&mut self, granted: &Granted) {
        self.cores += granted.cores;
        self.memory += granted.memory;
        self.taken.retain(|gpu| !granted.gpus.contains(gpu));
    }
}

/// The GPUs that this process may use, as far as the system shows them without a driver.
fn visible_gpus() -> Vec<String> {
    if let Ok(named) = std::env::var("CUDA_VISIBLE_DEVICES") {
        return named.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    }
    let files = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        files.filter_map(|file| file.file_name().to_str()?.strip_prefix("nvidia")?.parse().ok()).collect();
    numbers.sort_unstable();
    (0..numbers.len()).map(|number| number.to_string()).collect()
}

/// Bytes of this machine, or of the container it is; without either any job fits.
fn machine_memory() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let kilobytes = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let total = read("/proc/meminfo").lines().find(|line| line.starts_with("MemTotal:")).and_then(kilobytes);
    let limit = read("/sys/fs/cgroup/memory.max").trim().parse::<u64>().ok();
    let total = total.map(|kilobytes| kilobytes * 1024);
    total.into_iter().chain(limit).min().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget { cores: 4, memory: 1000, gpus: vec!["2".into(), "GPU-7".into()], gpus_are_given: false }
    }

    fn claim(cores: usize, memory: u64, gpus: Gpus) -> Claim {
        Claim { cores, memory, gpus }
    }

    #[test]
    fn a_job_gets_all_that_it_claims_or_nothing() {
        let mut free = Free::all_of(budget());
        let first = free.take(&claim(1, 600, Gpus::Any(1))).unwrap();
        assert_eq!(first.visible.as_deref(), Some("2"));
        assert_eq!(free.take(&claim(1, 600, Gpus::Any(1))), None, "memory");
        assert_eq!(free.take(&claim(4, 0, Gpus::Any(1))), None, "cores");
        assert_eq!(free.take(&claim(1, 0, Gpus::Any(2))), None, "GPUs");
        let second = free.take(&claim(3, 400, Gpus::Any(1))).unwrap();
        assert_eq!(second.visible.as_deref(), Some("GPU-7"));
        free.give_back(&first);
        free.give_back(&second);
        assert_eq!(free.take(&claim(4, 1000, Gpus::Any(2))).unwrap().visible.as_deref(), Some("2,GPU-7"));
    }

    #[test]
    fn a_gpu_that_is_named_has_one_job_at_a_time_also_where_nobody_counts_them() {
        let mut free = Free::all_of(Budget { gpus: Vec::new(), ..budget() });
        let first = free.take(&claim(1, 0, Gpus::This(3))).unwrap();
        assert_eq!((free.take(&claim(1, 0, Gpus::This(3))), first.visible.clone()), (None, None));
        assert!(free.take(&claim(1, 0, Gpus::This(1))).is_some());
        free.give_back(&first);
        assert!(free.take(&claim(1, 0, Gpus::This(3))).is_some());
    }

    #[test]
    fn jobs_without_a_gpu_are_shown_none_where_somebody_said_how_many_there_are() {
        let plain = claim(1, 0, Gpus::Any(0));
        assert_eq!(Free::all_of(budget()).take(&plain).unwrap().visible, None);
        let given = Budget { gpus_are_given: true, ..budget() };
        assert_eq!(Free::all_of(given).take(&plain).unwrap().visible.as_deref(), Some(""));
    }
}
