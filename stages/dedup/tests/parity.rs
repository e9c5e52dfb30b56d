//! Signatures, clusters and kept documents against those recorded from datatrove, on documents with planted
//! near-duplicates.

#[path = "../../../tests/parity/data.rs"]
mod data;

use data::{Set, assert_share, say, sets, text};
use serde_json::Value;
use smelt_dedup::clusters::{Joining, Keeps, ShingleSets, Sketch, Sketches, duplicates};
use smelt_dedup::minhash::{MinHash, ShingleHash};
use std::collections::{BTreeMap, BTreeSet};

/// The settings that were recorded: name, words, bands, hashes a band, hash of a shingle.
const SETTINGS: [(&str, usize, usize, usize, ShingleHash); 3] = [
    ("default_5gram_14x8_xxhash64", 5, 14, 8, ShingleHash::Xxhash64),
    ("3gram_20x5_sha1_32", 3, 20, 5, ShingleHash::Sha1Short),
    ("5gram_450x20_xxhash64", 5, 450, 20, ShingleHash::Xxhash64),
];

/// What was recorded of signatures (`docs`) or of clusters (`removed`, `clusters`).
fn recorded(set: &Set, file: &str, name: &str) -> Value {
    let file = if set.is_full { file } else { "dedup.json" };
    serde_json::from_slice::<Value>(&set.file(file)).unwrap()[name].take()
}

fn minhash(words: usize, hashes: usize, hash: ShingleHash) -> MinHash {
    let mut minhash = MinHash::new(words, hashes, 1);
    minhash.hash = hash;
    minhash
}

#[test]
fn signatures_are_the_recorded_ones_to_the_bit() {
    sets().iter().for_each(check_signatures);
}

fn check_signatures(set: &Set) {
    let documents = set.records("dedup_docs");
    let texts: BTreeMap<&str, &str> = documents.iter().map(|d| (text(d, "id"), text(d, "text"))).collect();
    for (name, words, bands, hashes, hash) in SETTINGS {
        let recorded = recorded(set, "dedup_signatures.json", name);
        let Some(records) = recorded["docs"].as_array() else { continue };
        let minhash = minhash(words, bands * hashes, hash);
        for record in records {
            let theirs: Vec<u64> =
                record["signature"].as_array().unwrap().iter().map(|h| h.as_u64().unwrap()).collect();
            let ours = minhash.signature(texts[record["id"].as_str().unwrap()]).unwrap();
            assert_eq!(ours, theirs, "{name}: {}", record["id"]);
        }
        say(&format!("{}: {name}: {} signatures equal", set.name(), records.len()));
    }
}

#[test]
fn shingles_and_similarities_are_the_recorded_ones() {
    for set in sets().iter().filter(|set| set.is_full) {
        let documents = set.records("dedup_docs");
        let minhash = MinHash::new(5, 112, 1);
        let shingles: BTreeMap<&str, Vec<u64>> =
            documents.iter().map(|d| (text(d, "id"), minhash.shingles(text(d, "text")))).collect();
        for document in &documents {
            assert_eq!(document["n_distinct_shingles"], shingles[text(document, "id")].len(), "{}", document["id"]);
        }
        let lines = String::from_utf8(set.file("dedup_pairs.jsonl")).unwrap();
        for pair in lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            let exact = pair["shared"].as_f64().unwrap() / pair["union"].as_f64().unwrap();
            let (a, b) = (&shingles[text(&pair, "a")], &shingles[text(&pair, "b")]);
            assert_eq!(smelt_dedup::minhash::jaccard(a, b), exact, "{pair}");
        }
        say(&format!("{}: {} pairs of equal similarity", set.name(), lines.lines().count()));
    }
}

#[test]
fn clusters_and_kept_documents_are_the_recorded_ones() {
    sets().iter().for_each(check_clusters);
}

fn check_clusters(set: &Set) {
    let documents = set.records("dedup_docs");
    for (name, words, bands, hashes, hash) in SETTINGS {
        let recorded = recorded(set, "dedup_minhash.json", name);
        let minhash = minhash(words, bands * hashes, hash);
        let outcome = |keeps| {
            let mut sketches = Sketches::default();
            for document in &documents {
                let signature = minhash.signature(text(document, "text"));
                sketches.push(Sketch::new([0; 32], [0, 0], signature.as_deref(), keeps));
            }
            let joining = Joining { exact: false, bands, jaccard: 0.0, transitive: true, keeps };
            duplicates(&sketches, &ShingleSets::new(), joining)
        };
        let id = |i: usize| text(&documents[i], "id");
        let groups = |outcome: &[Option<smelt_dedup::clusters::Duplicate>]| -> BTreeSet<BTreeSet<&str>> {
            let mut groups: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
            for (i, found) in outcome.iter().enumerate() {
                if let Some(found) = found {
                    groups.entry(found.leader).or_default().extend([id(i), id(found.leader)]);
                }
            }
            groups.into_values().collect()
        };
        let list = |value: &Value| -> BTreeSet<String> {
            value.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
        };
        let clusters: BTreeSet<BTreeSet<String>> =
            recorded["clusters"].as_array().unwrap().iter().map(|cluster| list(&cluster["ids"])).collect();
        let owned = |groups: BTreeSet<BTreeSet<&str>>| -> BTreeSet<BTreeSet<String>> {
            groups.into_iter().map(|group| group.into_iter().map(str::to_owned).collect()).collect()
        };
        let (published, first) = (outcome(Keeps::Published), outcome(Keeps::First));
        assert_eq!(owned(groups(&published)), clusters, "{name}");
        assert_eq!(owned(groups(&first)), clusters, "{name}: who stays changes no cluster");
        let removed: BTreeSet<String> =
            published.iter().enumerate().filter(|(_, found)| found.is_some()).map(|(i, _)| id(i).to_owned()).collect();
        let theirs = list(&recorded["removed"]);
        let same =
            documents.iter().filter(|d| removed.contains(text(d, "id")) == theirs.contains(text(d, "id"))).count();
        say(&format!("{}: {name}: {} clusters equal", set.name(), clusters.len()));
        assert_share(set, &format!("{name}: documents kept or removed as recorded"), same, documents.len(), 1.0);
    }
}
