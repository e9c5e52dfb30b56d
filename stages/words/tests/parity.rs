//! Decisions recorded from the tools that define the rules: short texts with their simplified form and words.

#[path = "../../../tests/parity/data.rs"]
mod data;

use data::{say, sets, text};

#[test]
fn simplified_texts_are_the_recorded_ones() {
    for set in sets() {
        let records = set.records("words");
        for record in &records {
            assert_eq!(smelt_words::simplify(text(record, "text")), text(record, "simplified"), "in {}", record["id"]);
        }
        say(&format!("{}: {} texts", set.name(), records.len()));
    }
}

/// The simple splitter is not spaCy's; the floors are what it reached, so that a change for the worse shows.
#[test]
fn words_agree_with_the_recorded_ones_as_often_as_promised() {
    for set in sets() {
        let records = set.records("words");
        let agreement = |text_field: &str, words_field: &str| {
            let (mut same, mut all) = (0, 0);
            for record in &records {
                let ours: Vec<&str> = smelt_words::words(text(record, text_field)).collect();
                let theirs: Vec<&str> =
                    record[words_field].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
                same += common(&ours, &theirs);
                all += ours.len().max(theirs.len());
            }
            same as f64 / all as f64
        };
        let (plain, simplified) = (agreement("text", "words"), agreement("simplified", "simplified_words"));
        say(&format!(
            "{}: words in common of {} texts: {plain:.4} of plain text, {simplified:.4} of simplified text",
            set.name(),
            records.len()
        ));
        // the small set is mostly hand-made edge cases
        let floor = if set.is_full { (0.79, 0.96) } else { (0.61, 0.97) };
        assert!(plain > floor.0 && simplified > floor.1);
    }
}

/// Length of the longest common subsequence.
fn common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
