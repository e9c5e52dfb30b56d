//! Decisions recorded from the tools that define the rules: texts with their simplified form, words and sentences.

#[path = "../../../tests/parity/data.rs"]
mod data;

use data::{Set, assert_share, say, sets, text};
use serde_json::Value;
use smelt_words::{EnglishWords, count_sentences, english_words, simplify};

#[test]
fn simplified_texts_are_the_recorded_ones() {
    for set in sets() {
        let records = set.records("words");
        for record in &records {
            assert_eq!(simplify(text(record, "text")), text(record, "simplified"), "in {}", record["id"]);
        }
        say(&format!("{}: {} texts", set.name(), records.len()));
    }
}

#[test]
fn words_and_sentences_are_the_recorded_ones() {
    sets().iter().for_each(check_words);
}

fn check_words(set: &Set) {
    let records = set.records("words");
    let (mut same, mut all, mut sentences, mut wrong) = (0, 0, 0, Vec::new());
    for record in &records {
        for (form, field) in [("text", "words"), ("simplified", "simplified_words")] {
            let ours = english_words(text(record, form));
            let theirs: Vec<&str> =
                record[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
            let common = common(&ours, &theirs);
            same += common;
            all += ours.len().max(theirs.len());
            if common < ours.len().max(theirs.len()) && wrong.len() < 20 {
                let at = ours.iter().zip(&theirs).position(|(a, b)| a != b).unwrap_or(ours.len().min(theirs.len()));
                let window = |words: &[&str]| format!("{:?}", &words[at.saturating_sub(2)..words.len().min(at + 4)]);
                wrong.push(format!("{} {field}: {} for {}", record["id"], window(&ours), window(&theirs)));
            }
        }
        let text = text(record, "text");
        let ours = count_sentences(text, EnglishWords::default().split(text));
        sentences += usize::from(ours == record["sentences"].as_array().unwrap().len());
    }
    wrong.iter().for_each(|line| say(line));
    assert_share(set, "words in common", same, all, 0.999);
    assert_share(set, "texts with equal counts of sentences", sentences, records.len(), 0.998);
}

#[test]
fn whole_documents_have_the_recorded_words_and_sentences() {
    sets().iter().for_each(check_documents);
}

fn check_documents(set: &Set) {
    let records = set.records("filters");
    let (mut same, mut sentences, mut simplified) = (0, 0, 0);
    let mut splitter = EnglishWords::default();
    for record in &records {
        let text = text(record, "text");
        let words = splitter.split(text);
        let joined: Vec<&str> = words.iter().map(|word| word.of(text)).collect();
        let digest = |text: &str| Value::from(short_sha256(text));
        same += usize::from(digest(&joined.join("\n")) == record["words_sha"]);
        sentences += usize::from(record["n_sentences"] == count_sentences(text, words));
        simplified += usize::from(digest(&simplify(text)) == record["simplified_sha"]);
    }
    assert_share(set, "documents with equal words", same, records.len(), 0.998);
    assert_share(set, "documents with equal counts of sentences", sentences, records.len(), 0.998);
    assert_share(set, "documents with equal simplified text", simplified, records.len(), 0.998);
}

fn short_sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
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
