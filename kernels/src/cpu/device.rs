//! The CPU as a device: its threads and its level.

use super::gemm::{Gemm, Level, wide};

/// Element operations below which an operation runs on one thread: waking another would cost more than it saves.
const SERIAL: usize = 1 << 15;

#[derive(Debug)]
pub struct Cpu {
    pub(super) gemm: Gemm,
}

impl Cpu {
    /// `threads` counts the caller; 0 means as many as the machine has cores.
    pub fn new(threads: usize) -> Self {
        let available = || std::thread::available_parallelism().map_or(1, |n| n.get());
        Self { gemm: Gemm::new(if threads == 0 { available() } else { threads }) }
    }

    /// The same on another CPU level, for tests.
    pub fn at(self, level: Level) -> Self {
        Self { gemm: self.gemm.at(level) }
    }

    pub fn threads(&self) -> usize {
        self.gemm.pool().threads()
    }

    /// Rows per task when a row costs `cost` element operations.
    pub(super) fn step(&self, rows: usize, cost: usize) -> usize {
        if rows * cost < SERIAL { rows.max(1) } else { rows.div_ceil(4 * self.threads()).max(1) }
    }

    /// Calls `work` for each of `tasks` on the threads, compiled for this CPU level.
    pub(super) fn each<I: Send>(&self, tasks: Vec<I>, work: impl Fn(I) + Sync) {
        let level = self.gemm.level();
        self.gemm.pool().each(tasks, |task| {
            wide(
                level,
                #[inline(always)]
                || work(task),
            )
        });
    }
}
