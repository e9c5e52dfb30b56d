//! Decisions recorded from the tools that define the rules: 232 short texts with their simplified form and words.
//!
//! The folder is `../shared/parity/data` beside the workspace, or `SMELT_PARITY_DATA`; without it the tests say so.

use std::path::PathBuf;

use serde_json::Value;

fn records(name: &str) -> Option<Vec<Value>> {
    let folder = std::env::var_os("SMELT_PARITY_DATA").map(PathBuf::from);
    let folder =
        folder.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/parity/data")));
    let Ok(packed) = std::fs::read(folder.join(name)) else {
        eprintln!("no parity data at {}: not compared (set SMELT_PARITY_DATA)", folder.display());
        return None;
    };
    let text = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
    Some(text.split('\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect())
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("`{field}` is no text in {}", record["id"]))
}

#[test]
fn simplified_texts_are_the_recorded_ones() {
    let Some(records) = records("words.jsonl.zst") else { return };
    assert!(records.len() > 200);
    for record in &records {
        assert_eq!(smelt_words::simplify(text(record, "text")), text(record, "simplified"), "in {}", record["id"]);
    }
}

/// The simple splitter is not spaCy's; the floors are what it reached, so that a change for the worse shows.
#[test]
fn words_agree_with_the_recorded_ones_as_often_as_promised() {
    let Some(records) = records("words.jsonl.zst") else { return };
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
    println!("words in common: {plain:.4} of plain text, {simplified:.4} of simplified text");
    assert!(plain > 0.79 && simplified > 0.96);
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
