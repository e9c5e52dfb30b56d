//! The vocabulary and the encodings recorded from Hugging Face's library.

#[path = "../../../tests/parity/data.rs"]
mod data;

use data::{Set, say, sets, text};
use serde_json::Value;
use smelt_text::encoder::Pattern;
use smelt_tokenize::bpe::{Bpe, Training};
use std::collections::BTreeMap;

/// What a recorded vocabulary was trained on.
fn sample(set: &Set) -> Vec<String> {
    let documents = set.records("filters");
    if !set.is_full {
        let real = documents.iter().filter(|d| d["made"] == false);
        return real.map(|d| text(d, "text").to_owned()).collect();
    }
    let texts: BTreeMap<&str, &str> = documents.iter().map(|d| (text(d, "id"), text(d, "text"))).collect();
    let sample: Value = serde_json::from_slice(&set.file("tokenizer_sample.json")).unwrap();
    sample["sample_docs"].as_array().unwrap().iter().map(|id| texts[id.as_str().unwrap()].to_owned()).collect()
}

#[test]
fn the_trained_vocabulary_is_the_recorded_one() {
    for set in sets() {
        let recorded = if set.is_full {
            &[(4096, "bpe4096_gpt2.json", Pattern::Gpt2), (8192, "bpe8192_dsv3.json", Pattern::DeepseekV3)][..]
        } else {
            &[(700, "bpe700.json", Pattern::Gpt2)]
        };
        let texts = sample(&set);
        for &(vocabulary, name, pattern) in recorded {
            let special = &["<|endoftext|>"];
            let training = Training { vocabulary, pattern, min_frequency: 2, special, memory: u64::MAX };
            let (bpe, losses) = Bpe::train(texts.iter().cloned(), training).unwrap();
            let ours: Value = serde_json::from_str(&bpe.to_json().unwrap()).unwrap();
            let theirs: Value = serde_json::from_slice(&set.file(name)).unwrap();
            assert_eq!(ours["model"]["vocab"], theirs["model"]["vocab"]);
            assert_eq!(ours["model"]["merges"], theirs["model"]["merges"]);
            let (count, cut) = (texts.len(), losses.cut.pieces);
            say(&format!("{}: {vocabulary} tokens of {count} texts, {cut} pieces cut", set.name()));
        }
    }
}

#[test]
fn texts_have_the_recorded_ids_and_come_back() {
    for set in sets() {
        let names = if set.is_full { &["bpe4096_gpt2", "bpe8192_dsv3"][..] } else { &["bpe700"] };
        let records = set.records(if set.is_full { "tokenizer_encodings" } else { "encodings" });
        for name in names {
            let bpe = Bpe::load(&set.file(&format!("{name}.json"))).unwrap();
            let mut compared = 0;
            for record in &records {
                let text = text(record, "text");
                if text.contains("<|endoftext|>") {
                    continue; // special tokens are never found in text here
                }
                let ids = record[name].as_array().unwrap().iter();
                let theirs: Vec<u32> = ids.map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect();
                let ours = bpe.encode(&[text]).unwrap().swap_remove(0);
                assert_eq!(ours, theirs, "{name}, {text:?}");
                assert_eq!(bpe.decode(&ours).unwrap(), text);
                compared += 1;
            }
            say(&format!("{}: {compared} texts by {name}", set.name()));
            assert!(compared > if set.is_full { 100 } else { 20 }, "{name}: {compared}");
        }
    }
}
