//! Measures what one core does, in megabytes of text per second of its own time, on the recorded documents.
//!
//! Examples of several crates include this file by its path; `bench_with_datatrove.py` reads what they print.

#[path = "data.rs"]
mod data;

use std::time::Instant;

/// The texts as they were found (not the edge cases made of them), and their megabytes.
pub(crate) fn texts() -> (Vec<String>, f64) {
    let set = data::sets().pop().expect("there is a small set at least");
    let records = set.records("filters");
    let texts: Vec<String> =
        records.iter().filter(|r| r["made"] == false).map(|r| data::text(r, "text").to_owned()).collect();
    let megabytes = texts.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    data::say(&format!("{}: {} texts, {megabytes:.2} MB", set.name(), texts.len()));
    (texts, megabytes)
}

/// Does `work` on every text, in five rounds of at least a quarter of a second, since the clock is coarse. Prints the
/// best rate and the sum of what `work` gave. Names on the command line measure only those.
pub(crate) fn measure(what: &str, (texts, megabytes): &(Vec<String>, f64), mut work: impl FnMut(&str) -> usize) {
    let mut wanted = std::env::args().skip(1).peekable();
    if wanted.peek().is_some() && !wanted.any(|name| name == what) {
        return;
    }
    let (mut best, mut sum) = (f64::MAX, 0);
    for _ in 0..5 {
        let (start, mut passes, mut seconds) = (Clock::now(), 0.0, 0.0);
        while seconds < 0.25 {
            sum = texts.iter().map(|text| work(text)).sum();
            (passes, seconds) = (passes + 1.0, start.seconds());
        }
        best = best.min(seconds / passes);
    }
    println!("{}", serde_json::json!({ "what": what, "megabytes_per_second": megabytes / best, "sum": sum }));
}

/// The time that this thread ran; where the system does not tell, the time that passed.
struct Clock {
    ran: Option<f64>,
    passed: Instant,
}

impl Clock {
    fn now() -> Self {
        Clock { ran: ran(), passed: Instant::now() }
    }

    fn seconds(&self) -> f64 {
        match (self.ran, ran()) {
            (Some(before), Some(after)) => after - before,
            _ => self.passed.elapsed().as_secs_f64(),
        }
    }
}

fn ran() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e9)
}
