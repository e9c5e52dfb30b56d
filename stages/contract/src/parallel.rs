//! Work on many things at a time whose results come in order.

use crate::error::Error;
use crate::lock::lock;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What `work` gives for each of `0..count`, in order, `threads` at a time. After an error no more is begun; of several
/// errors the first in order is returned.
pub fn in_parallel<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(count)));
    let worker = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return;
            }
            let result = work(i);
            if result.is_err() {
                next.store(count, Ordering::Relaxed);
            }
            lock(&done).push((i, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(worker);
        }
        worker();
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_an_error_ends_the_work() {
        for threads in [1, 3] {
            assert_eq!(in_parallel(threads, 100, |i| Ok(i * i)).unwrap(), (0..100).map(|i| i * i).collect::<Vec<_>>());
            let begun = AtomicUsize::new(0);
            let error = in_parallel(threads, 100_000, |i| {
                begun.fetch_add(1, Ordering::Relaxed);
                if i >= 7 { Err(Error::data(format!("{i} is bad"))) } else { Ok(()) }
            });
            assert_eq!(error.unwrap_err().to_string(), "7 is bad");
            assert!(begun.into_inner() < 100_000);
        }
        assert_eq!(in_parallel(4, 0, |_| Ok(())).unwrap(), []);
    }
}
