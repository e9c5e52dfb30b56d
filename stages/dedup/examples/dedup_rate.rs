//! How fast one core makes signatures: `cargo run --release -p smelt-dedup --example dedup_rate`.

#[path = "../../../tests/parity/rate.rs"]
mod rate;

use smelt_dedup::minhash::{MinHash, Scratch};

fn main() {
    let texts = rate::texts();
    let published = MinHash::new(5, 14 * 8, 1);
    let mut by_script = MinHash::new(5, 14 * 8, 1);
    by_script.by_script = true;
    let mut scratch = Scratch::default();
    for (what, minhash) in [("signatures", published), ("own signatures", by_script)] {
        rate::measure(what, &texts, |text| {
            usize::from(minhash.signature_of_simple(&minhash.simple(text), &mut scratch).is_some())
        });
    }
    rate::measure("simple form", &texts, |text| smelt_words::simplify(text).len());
}
