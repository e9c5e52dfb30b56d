//! Signatures and clusters against those recorded from datatrove, on documents with planted near-duplicates.

#[path = "../../../tests/parity/data.rs"]
mod data;

use data::{Set, say, sets, text};
use serde_json::Value;
use smelt_dedup::clusters::{Joining, ShingleSets, Sketch, Sketches, duplicates};
use smelt_dedup::minhash::MinHash;
use std::collections::{BTreeMap, BTreeSet};

const CASE: &str = "default_5gram_14x8_xxhash64";

/// What was recorded of signatures (`docs`) or of clusters (`removed`).
fn recorded(set: &Set, file: &str) -> Value {
    let file = if set.is_full { file } else { "dedup.json" };
    serde_json::from_slice::<Value>(&set.file(file)).unwrap()[CASE].take()
}

/// Words are not split by spaCy's tables here, so only documents of plain words agree; the floors are what was reached.
#[test]
fn signatures_are_the_recorded_ones_where_the_words_are() {
    sets().iter().for_each(check_signatures);
}

fn check_signatures(set: &Set) {
    let (documents, recorded) = (set.records("dedup_docs"), recorded(set, "dedup_signatures.json"));
    let minhash = MinHash::new(5, 112, 1);
    let texts: BTreeMap<&str, &str> = documents.iter().map(|d| (text(d, "id"), text(d, "text"))).collect();
    let (mut whole, mut hashes, mut all) = (0, 0, 0);
    for record in recorded["docs"].as_array().expect("documents") {
        let theirs: Vec<u64> = record["signature"].as_array().unwrap().iter().map(|h| h.as_u64().unwrap()).collect();
        let ours = minhash.signature(texts[record["id"].as_str().unwrap()]).unwrap();
        assert_eq!(ours.len(), theirs.len());
        let equal = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
        whole += usize::from(equal == theirs.len());
        hashes += equal;
        all += 1;
    }
    say(&format!("{}: {whole} of {all} signatures equal, {hashes} of {} hashes", set.name(), all * 112));
    let floor = if set.is_full { (27, 4373) } else { (4, 448) };
    assert!(whole >= floor.0 && hashes >= floor.1);
}

#[test]
fn clusters_join_the_pairs_that_the_recorded_ones_join() {
    sets().iter().for_each(check_clusters);
}

fn check_clusters(set: &Set) {
    let (documents, recorded) = (set.records("dedup_docs"), recorded(set, "dedup_minhash.json"));
    let minhash = MinHash::new(5, 112, 1);
    let mut sketches = Sketches::default();
    for (i, document) in documents.iter().enumerate() {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&(i as u64).to_le_bytes());
        sketches.push(Sketch::new(digest, [0, 0], minhash.signature(text(document, "text")).as_deref()));
    }
    let joining = Joining { exact: false, bands: 14, jaccard: 0.0, transitive: true };
    let removed = duplicates(&sketches, &ShingleSets::new(), joining).iter().filter(|d| d.is_some()).count();
    let theirs: BTreeSet<&str> = recorded["removed"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    say(&format!("{}: {removed} of {} removed, recorded {}", set.name(), documents.len(), theirs.len()));
    assert!(removed.abs_diff(theirs.len()) * 100 <= theirs.len(), "{removed} removed, recorded {}", theirs.len());
}
