//! Decisions recorded from datatrove on 4210 documents, rule by rule.
//!
//! The folder is `../shared/parity/data` beside the workspace, or `SMELT_PARITY_DATA`; without it the tests say so.

use std::path::PathBuf;

use serde_json::Value;
use smelt_clean::language::identify;
use smelt_clean::pii::{StandIns, mask};
use smelt_clean::rules::Rules;

fn records() -> Option<Vec<Value>> {
    let folder = std::env::var_os("SMELT_PARITY_DATA").map(PathBuf::from);
    let folder =
        folder.unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/parity/data")));
    let Ok(packed) = std::fs::read(folder.join("filters.jsonl.zst")) else {
        eprintln!("no parity data at {}: not compared (set SMELT_PARITY_DATA)", folder.display());
        return None;
    };
    let text = String::from_utf8(zstd::decode_all(&packed[..]).unwrap()).unwrap();
    Some(text.split('\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect())
}

#[test]
fn personal_data_is_masked_as_recorded() {
    let Some(records) = records() else { return };
    let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let emails = own(&["email@example.com", "firstname.lastname@example.org"]);
    let ipv4 =
        own(&["22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11", "18.104.22.168"]);
    let mut changed = 0;
    for record in &records {
        let text = record["text"].as_str().unwrap();
        let theirs = record.get("pii").and_then(Value::as_str).unwrap_or(text);
        let (ours, found) = mask(text, &StandIns { emails: &emails, ipv4: &ipv4, ipv6: &[], phones: &[] });
        assert_eq!(ours, theirs, "in {}", record["id"]);
        changed += usize::from(found > 0);
    }
    println!("{changed} of {} texts hold personal data", records.len());
    assert!(changed > 100);
}

/// Only the words differ from the recorded ones, so most decisions agree; the floors are what was reached.
#[test]
fn filter_decisions_agree_as_often_as_promised() {
    let Some(records) = records() else { return };
    let quality = Rules {
        max_repeated_paragraphs: None,
        max_repeated_paragraph_characters: None,
        max_repeated_lines: None,
        max_repeated_line_characters: None,
        max_top_runs: vec![],
        max_repeated_runs: vec![],
        ..Rules::gopher()
    };
    let repetition = Rules {
        max_repeated_paragraphs: Rules::gopher().max_repeated_paragraphs,
        max_repeated_paragraph_characters: Rules::gopher().max_repeated_paragraph_characters,
        max_repeated_lines: Rules::gopher().max_repeated_lines,
        max_repeated_line_characters: Rules::gopher().max_repeated_line_characters,
        max_top_runs: Rules::gopher().max_top_runs,
        max_repeated_runs: Rules::gopher().max_repeated_runs,
        ..Rules::none()
    };
    for (field, rules, floor) in
        [("gopher_rep", repetition, 0.93), ("gopher_qual", quality, 0.94), ("fineweb", Rules::fineweb(), 0.98)]
    {
        let mut same = 0;
        for record in &records {
            let text = record["text"].as_str().unwrap();
            let words: Vec<&str> = smelt_words::words(text).collect();
            let kept = record[field][0].as_bool().unwrap();
            same += usize::from(rules.judge(text, &words).is_none() == kept);
        }
        let agreement = same as f64 / records.len() as f64;
        println!("{field}: {agreement:.4} of {} decisions agree", records.len());
        assert!(agreement > floor, "{field}: {agreement}");
    }
}

#[test]
fn languages_are_found_in_noisy_documents() {
    let Some(records) = records() else { return };
    let (mut same, mut all) = (0, 0);
    let mut wrong: std::collections::BTreeMap<(String, &str), usize> = std::collections::BTreeMap::new();
    for record in records.iter().filter(|r| r["made"] == false) {
        let text = record["text"].as_str().unwrap();
        let expected = record["lang"].as_str().unwrap();
        let Some(found) = identify(text).filter(|_| text.len() > 200) else { continue };
        all += 1;
        if found.code == expected {
            same += 1;
        } else {
            *wrong.entry((expected.to_owned(), found.code)).or_default() += 1;
        }
    }
    let mut wrong: Vec<_> = wrong.into_iter().map(|(pair, n)| (n, pair)).collect();
    wrong.sort_by_key(|&(n, _)| std::cmp::Reverse(n));
    wrong.truncate(6);
    println!("{same} of {all} languages as recorded; the most frequent others {wrong:?}");
    assert!(same as f64 / all as f64 > 0.87);
}
