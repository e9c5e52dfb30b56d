//! Unique names.

use crate::clock::now;
use std::sync::atomic::{AtomicU64, Ordering};

/// Twelve hexadecimal digits that no other process draws.
pub fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut seed = [0u8; 16];
    if let Ok(mut f) = std::fs::File::open("/dev/urandom") {
        // A short read leaves the clock, the pid and the counter to tell processes apart.
        std::io::Read::read_exact(&mut f, &mut seed).unwrap_or_default();
    }
    let text = format!("{seed:?} {} {} {}", now(), std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    blake3::hash(text.as_bytes()).to_hex()[..12].to_owned()
}
