//! Signatures and clusters against those recorded from datatrove, on 968 documents with planted near-duplicates.
//!
//! The folder is `../shared/parity/data` beside the workspace, or `SMELT_PARITY_DATA`; without it the tests say so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;
use smelt_dedup::clusters::{Joining, Sketch, Sketches, duplicates};
use smelt_dedup::minhash::MinHash;

const CASE: &str = "default_5gram_14x8_xxhash64";

fn file(name: &str) -> Option<Vec<u8>> {
    let folder = std::env::var_os("SMELT_PARITY_DATA").map(PathBuf::from);
    let folder =
        folder.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/parity/data")));
    let read = std::fs::read(folder.join(name)).ok();
    if read.is_none() {
        eprintln!("no parity data at {}: not compared (set SMELT_PARITY_DATA)", folder.display());
    }
    read
}

fn documents() -> Option<Vec<(String, String)>> {
    let text = String::from_utf8(zstd::decode_all(&file("dedup_docs.jsonl.zst")?[..]).unwrap()).unwrap();
    let record = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        (record["id"].as_str().unwrap().to_owned(), record["text"].as_str().unwrap().to_owned())
    };
    Some(text.split('\n').filter(|l| !l.is_empty()).map(record).collect())
}

fn json(name: &str) -> Option<Value> {
    Some(serde_json::from_slice(&file(name)?).unwrap())
}

/// Words are not split by spaCy's tables here, so only documents of plain words agree; the floors are what was reached.
#[test]
fn signatures_are_the_recorded_ones_where_the_words_are() {
    let (Some(documents), Some(recorded)) = (documents(), json("dedup_signatures.json")) else { return };
    let minhash = MinHash::new(5, 112, 1);
    let texts: BTreeMap<&str, &str> = documents.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    let (mut whole, mut hashes, mut all) = (0, 0, 0);
    for record in recorded[CASE]["docs"].as_array().expect("40 documents") {
        let theirs: Vec<u64> = record["signature"].as_array().unwrap().iter().map(|h| h.as_u64().unwrap()).collect();
        let ours = minhash.signature(texts[record["id"].as_str().unwrap()]).unwrap();
        assert_eq!(ours.len(), theirs.len());
        let equal = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
        whole += usize::from(equal == theirs.len());
        hashes += equal;
        all += 1;
    }
    println!("{whole} of {all} signatures equal, {hashes} of {} hashes", all * 112);
    assert!(whole >= 27 && hashes >= 4373);
}

#[test]
fn clusters_join_the_pairs_that_the_recorded_ones_join() {
    let (Some(documents), Some(recorded)) = (documents(), json("dedup_minhash.json")) else { return };
    let minhash = MinHash::new(5, 112, 1);
    let mut sketches = Sketches::default();
    for (i, (_, text)) in documents.iter().enumerate() {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&(i as u64).to_le_bytes());
        sketches.push(Sketch::new(digest, minhash.signature(text).as_deref()));
    }
    let joining = Joining { exact: false, bands: 14, jaccard: 0.0 };
    let removed = duplicates(&sketches, joining).iter().filter(|d| d.is_some()).count();
    let theirs: BTreeSet<&str> =
        recorded[CASE]["removed"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    println!("{removed} removed, recorded {}", theirs.len());
    assert!(removed.abs_diff(theirs.len()) * 100 <= theirs.len(), "{removed} removed, recorded {}", theirs.len());
}
