//! Corpora on which other tools drop too much, or too little.

#[path = "../../../tests/cases/data.rs"]
mod cases;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use cases::{Case, cases};
use serde_json::{Value, json};
use smelt_dedup::Dedup;
use smelt_dedup::minhash::{MinHash, jaccard};
use smelt_schemas::InputRef;
use smelt_stage::kinds::{Documents, Drop, Drops};
use workshop::Workshop;

fn texts(case: &Case) -> Vec<String> {
    let text = std::fs::read_to_string(case.file()).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.map(|record| record["text"].as_str().unwrap().to_owned()).collect()
}

/// The texts as documents `0`, `1`, ….
fn fed(workshop: &Workshop, texts: &[String]) -> InputRef {
    let named: Vec<(String, &str)> = texts.iter().enumerate().map(|(i, text)| (i.to_string(), text.as_str())).collect();
    let documents: Vec<(&str, &str)> = named.iter().map(|(id, text)| (id.as_str(), *text)).collect();
    workshop.feed(&documents, 64)
}

fn dedup(workshop: &Workshop, texts: &[String], config: Value) -> (Vec<String>, Vec<Drop>) {
    let manifest = workshop.run::<Dedup>(config, &[("documents", &[fed(workshop, texts)])]).unwrap();
    let kept = workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect();
    (kept, workshop.rows::<Drops>(&manifest, "drops"))
}

/// Windows of 200 words, each ten words on: neighbours are 0.9 alike, the first and the tenth not at all.
fn chain() -> Vec<String> {
    let mut state = 1u64;
    let mut draw = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let syllables = ["ka", "lo", "mi", "nu", "pe", "ra", "si", "to", "vu", "wa"];
    let words: Vec<String> = (0..1200).map(|_| (0..3).map(|_| syllables[draw(10) as usize]).collect()).collect();
    (0..100).map(|i| words[10 * i..10 * i + 200].join(" ")).collect()
}

#[test]
fn what_goes_is_as_similar_to_what_stays_as_the_config_asks() {
    let workshop = Workshop::new("dedup-chain");
    let mut all = vec![(chain(), true)];
    all.extend(cases("dedup-chain").iter().map(|case| (texts(case), case.is_known)));
    let minhash = MinHash::new(5, 1, 1);
    for (texts, is_known) in all {
        let similarity = |drop: &Drop| {
            let text = |id: &str| &texts[id.parse::<usize>().unwrap()];
            jaccard(&minhash.shingles(text(&drop.id)), &minhash.shingles(text(drop.detail.as_deref().unwrap())))
        };
        let (kept, drops) = dedup(&workshop, &texts, json!({ "jaccard": 0.8 }));
        for drop in &drops {
            assert!(similarity(drop) >= 0.8, "{drop:?}");
            assert_eq!(drop.value, Some(similarity(drop)));
        }
        cases::say(&format!("a chain: {} kept, {} dropped", kept.len(), drops.len()));
        if is_known {
            // Every third window stays, or a little more: candidates are found by chance.
            assert!((33..60).contains(&kept.len()), "{}", kept.len());
            let (kept, drops) = dedup(&workshop, &texts, json!({ "jaccard": 0.8, "transitive": true }));
            assert!(kept.len() < 10, "{}", kept.len());
            assert!(drops.iter().all(|drop| drop.value == Some(similarity(drop))), "the similarity is the real one");
        }
    }
}

#[test]
fn sums_that_differ_in_numbers_are_kept_apart_when_asked_and_told_when_not() {
    let workshop = Workshop::new("dedup-numbers");
    for case in cases("dedup-templated-numbers") {
        let texts = texts(&case);
        let (folded, _) = dedup(&workshop, &texts, json!({}));
        let (apart, _) = dedup(&workshop, &texts, json!({ "keep_numbers": true, "jaccard": 0.8 }));
        case.say(&format!("{} of {} kept, {} with keep_numbers", folded.len(), texts.len(), apart.len()));
        if case.is_known {
            assert_eq!((folded.len(), apart.len()), (1, 200));
            let input = fed(&workshop, &texts);
            let program = env!("CARGO_BIN_EXE_smelt-dedup");
            let told = workshop.warnings::<Dedup>(program, json!({}), &[("documents", std::slice::from_ref(&input))]);
            assert_eq!(
                told,
                ["199 of 199 near-duplicates differ from the document that stays in their numbers alone: \
                  `keep_numbers: true` keeps such documents"]
            );
            let apart = json!({ "keep_numbers": true, "jaccard": 0.8 });
            assert!(workshop.warnings::<Dedup>(program, apart, &[("documents", &[input])]).is_empty());
        }
    }
}

#[test]
fn near_duplicates_are_found_in_scripts_without_blanks() {
    let workshop = Workshop::new("dedup-cjk");
    for case in cases("dedup-cjk") {
        let (kept, drops) = dedup(&workshop, &texts(&case), json!({}));
        case.say(&format!("{} kept, {} dropped", kept.len(), drops.len()));
        if case.is_known {
            assert_eq!(kept, ["0", "2", "4"]);
            let leaders: Vec<&str> = drops.iter().map(|drop| drop.detail.as_deref().unwrap()).collect();
            assert_eq!(leaders, ["0", "2", "4"]);
            assert!(drops.iter().all(|drop| drop.value.unwrap() > 0.7), "{drops:?}");
        }
    }
}
