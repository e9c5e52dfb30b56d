//! The vocabulary and the encodings recorded from Hugging Face's library.
//!
//! The folder is `../shared/parity/data` beside the workspace, or `SMELT_PARITY_DATA`; without it the tests say so.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use smelt_tokenize::bpe::{Bpe, Training};

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

fn records(name: &str) -> Option<Vec<Value>> {
    let text = String::from_utf8(zstd::decode_all(&file(name)?[..]).unwrap()).unwrap();
    Some(text.split('\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect())
}

#[test]
fn the_trained_vocabulary_is_the_recorded_one() {
    let (Some(documents), Some(sample), Some(recorded)) =
        (records("filters.jsonl.zst"), file("tokenizer_sample.json"), file("bpe4096_gpt2.json"))
    else {
        return;
    };
    let sample: Value = serde_json::from_slice(&sample).unwrap();
    let texts: BTreeMap<&str, &str> =
        documents.iter().map(|d| (d["id"].as_str().unwrap(), d["text"].as_str().unwrap())).collect();
    let texts: Vec<String> =
        sample["sample_docs"].as_array().unwrap().iter().map(|id| texts[id.as_str().unwrap()].to_owned()).collect();
    let training = Training { vocabulary: 4096, single_digits: false, min_frequency: 2, special: &["<|endoftext|>"] };
    let ours: Value =
        serde_json::from_str(&Bpe::train(texts.into_iter(), training).unwrap().to_json().unwrap()).unwrap();
    let theirs: Value = serde_json::from_slice(&recorded).unwrap();
    assert_eq!(ours["model"]["vocab"], theirs["model"]["vocab"]);
    assert_eq!(ours["model"]["merges"], theirs["model"]["merges"]);
}

#[test]
fn texts_have_the_recorded_ids_and_come_back() {
    let Some(records) = records("tokenizer_encodings.jsonl.zst") else { return };
    for name in ["bpe4096_gpt2", "bpe8192_dsv3"] {
        let bpe = Bpe::load(&file(&format!("{name}.json")).unwrap()).unwrap();
        let mut compared = 0;
        for record in &records {
            let text = record["text"].as_str().unwrap();
            if text.contains("<|endoftext|>") {
                continue; // special tokens are never found in text here
            }
            let theirs: Vec<u32> = record[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
                .collect();
            let ours = bpe.encode(&[text]).unwrap().swap_remove(0);
            assert_eq!(ours, theirs, "{name}, {text:?}");
            assert_eq!(bpe.decode(&ours).unwrap(), text);
            compared += 1;
        }
        assert!(compared > 100, "{name}: {compared}");
    }
}
