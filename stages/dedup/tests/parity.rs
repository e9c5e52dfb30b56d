//! Signatures, clusters and kept documents against those recorded from datatrove, on documents with planted
//! near-duplicates.

#[path = "../../../tests/parity/data.rs"]
mod data;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use data::{Set, assert_share, say, sets, text};
use serde_json::{Value, json};
use smelt_dedup::Dedup;
use smelt_dedup::minhash::{MinHash, ShingleHash};
use smelt_stage::kinds::Drops;
use std::collections::{BTreeMap, BTreeSet};
use workshop::Workshop;

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

/// The stage, over files of a few documents.
fn check_clusters(set: &Set) {
    let documents = set.records("dedup_docs");
    let workshop = Workshop::new(&format!("dedup-parity-{}", set.name().replace(' ', "-")));
    let texts: Vec<(&str, &str)> = documents.iter().map(|d| (text(d, "id"), text(d, "text"))).collect();
    let input = workshop.feed(&texts, 100);
    for (name, words, bands, hashes, hash) in SETTINGS {
        let recorded = recorded(set, "dedup_minhash.json", name);
        // Of each document that goes the one that stays.
        let outcome = |keeps: &str| -> BTreeMap<String, String> {
            let config = json!({
                "words": words, "bands": bands, "hashes": hashes, "hash": hash, "keeps": keeps, "transitive": true,
                "exact": false, "by_script": false,
            });
            let manifest = workshop.run::<Dedup>(config, &[("documents", std::slice::from_ref(&input))]).unwrap();
            let drops = workshop.rows::<Drops>(&manifest, "drops").into_iter();
            drops.map(|drop| (drop.id, drop.detail.unwrap())).collect()
        };
        let groups = |outcome: &BTreeMap<String, String>| -> BTreeSet<BTreeSet<String>> {
            let mut groups: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
            for (id, leader) in outcome {
                groups.entry(leader).or_default().extend([id.clone(), leader.clone()]);
            }
            groups.into_values().collect()
        };
        let list = |value: &Value| -> BTreeSet<String> {
            value.as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
        };
        let clusters: BTreeSet<BTreeSet<String>> =
            recorded["clusters"].as_array().unwrap().iter().map(|cluster| list(&cluster["ids"])).collect();
        let (published, first) = (outcome("published"), outcome("first"));
        assert_eq!(groups(&published), clusters, "{name}");
        assert_eq!(groups(&first), clusters, "{name}: who stays changes no cluster");
        let theirs = list(&recorded["removed"]);
        let goes = |id: &str| published.contains_key(id);
        let same = texts.iter().filter(|(id, _)| goes(id) == theirs.contains(*id)).count();
        say(&format!("{}: {name}: {} clusters equal", set.name(), clusters.len()));
        assert_share(set, &format!("{name}: documents kept or removed as recorded"), same, texts.len(), 1.0);
    }
}
