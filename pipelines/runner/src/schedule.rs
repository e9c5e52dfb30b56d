//! Which jobs can be looked at next: each once, as soon as all that it needs is settled.

use std::collections::BTreeSet;

pub(crate) struct Schedule {
    /// For each job, how many of those that it needs are not settled.
    open: Vec<usize>,
    /// For each job, those that need it.
    needed_by: Vec<Vec<usize>>,
    /// Jobs whose needs are settled and that are not themselves.
    due: BTreeSet<usize>,
    settled: Vec<bool>,
}

impl Schedule {
    /// `needs`: for each job, those before it in this order that must be settled first. Jobs that are not `wanted`
    /// count as settled.
    pub(crate) fn new(needs: impl Iterator<Item = impl Iterator<Item = usize>>, wanted: &[bool]) -> Self {
        let mut schedule = Self {
            open: vec![0; wanted.len()],
            needed_by: vec![Vec::new(); wanted.len()],
            due: BTreeSet::new(),
            settled: wanted.iter().map(|wanted| !wanted).collect(),
        };
        for (job, needs) in needs.enumerate() {
            let needs: BTreeSet<usize> = needs.filter(|&need| wanted[need]).collect();
            schedule.open[job] = needs.len();
            needs.iter().for_each(|&need| schedule.needed_by[need].push(job));
        }
        schedule.due = (0..wanted.len()).filter(|&job| wanted[job] && schedule.open[job] == 0).collect();
        schedule
    }

    /// The first due job at or after a place.
    pub(crate) fn due_from(&self, place: usize) -> Option<usize> {
        self.due.range(place..).next().copied()
    }

    /// This job is looked at, and will not be again.
    pub(crate) fn start(&mut self, job: usize) {
        self.due.remove(&job);
    }

    /// This job is done, skipped or failed: those that need only it may be looked at.
    pub(crate) fn settle(&mut self, job: usize) {
        self.due.remove(&job);
        if std::mem::replace(&mut self.settled[job], true) {
            return;
        }
        for &next in &self.needed_by[job] {
            self.open[next] -= 1;
            if self.open[next] == 0 && !self.settled[next] {
                self.due.insert(next);
            }
        }
    }

    /// Whether every job is settled.
    pub(crate) fn is_over(&self) -> bool {
        self.settled.iter().all(|settled| *settled)
    }

    /// Jobs that wait for others.
    pub(crate) fn waiting(&self) -> Vec<usize> {
        (0..self.open.len()).filter(|&job| !self.settled[job] && self.open[job] > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0 <- 1 <- 3, 0 <- 2 <- 3; 4 alone.
    fn diamond(wanted: [bool; 5]) -> Schedule {
        let needs = [vec![], vec![0], vec![0, 0], vec![1, 2], vec![]];
        Schedule::new(needs.into_iter().map(Vec::into_iter), &wanted)
    }

    #[test]
    fn a_job_is_due_once_when_all_that_it_needs_is_settled() {
        let mut schedule = diamond([true; 5]);
        let due = |schedule: &Schedule| schedule.due.iter().copied().collect::<Vec<_>>();
        assert_eq!((due(&schedule), schedule.waiting()), (vec![0, 4], vec![1, 2, 3]));
        schedule.start(0);
        assert_eq!((due(&schedule), schedule.due_from(0)), (vec![4], Some(4)));
        schedule.settle(0);
        schedule.settle(0);
        assert_eq!(due(&schedule), [1, 2, 4]);
        schedule.settle(2);
        assert_eq!(due(&schedule), [1, 4]);
        schedule.settle(1);
        assert_eq!((due(&schedule), schedule.due_from(4)), (vec![3, 4], Some(4)));
        assert!(!schedule.is_over());
        schedule.settle(3);
        schedule.settle(4);
        assert!(schedule.is_over());
    }

    #[test]
    fn jobs_that_are_not_wanted_count_as_settled() {
        let mut schedule = diamond([true, true, false, false, false]);
        schedule.settle(0);
        assert_eq!((schedule.due_from(0), schedule.due_from(2)), (Some(1), None));
        schedule.settle(1);
        assert!(schedule.is_over());
    }
}
