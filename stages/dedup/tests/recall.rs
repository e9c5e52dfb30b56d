//! How many planted copies are found: `cargo test --release -p smelt-dedup --test recall` prints it.

mod planted;
#[path = "../../../tests/parity/say.rs"]
mod say;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use planted::{Change, WAYS, recall, table};
use workshop::Workshop;

#[test]
fn planted_copies_are_found_as_often_as_their_similarity_says() {
    let (recalls, wrong) = recall(&Workshop::new("dedup-recall"), 100);
    say::say(&format!("recall of planted copies\n{}", table(&recalls)));
    assert_eq!(wrong, 0, "documents that are no copies went, or lost a passage");
    for ((name, change), found) in WAYS.iter().zip(recalls) {
        let same_words = matches!(change, Change::Nothing | Change::Wrapped);
        assert_eq!(found.equal, if same_words { found.planted } else { 0 }, "{name}: {found:?}");
        // Bands are independent but for the hash functions: four standard deviations, and one copy.
        let off = (found.near as f64 - found.expected).abs();
        assert!(off <= 4.0 * found.deviation + 1.0, "{name}: {found:?}");
        match change {
            Change::Nothing | Change::Wrapped => assert_eq!((found.near, found.cut), (found.planted, 1.0)),
            Change::Capitals | Change::Marks | Change::Numbers | Change::All => assert_eq!(found.near, found.planted),
            Change::Half => assert!((0.45..0.55).contains(&found.cut), "{name}: {found:?}"),
            // 60 of 180 to 460 words.
            Change::Passage => assert!((0.15..0.25).contains(&found.cut), "{name}: {found:?}"),
            Change::Words(_) => {}
        }
    }
}
