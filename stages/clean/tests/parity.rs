//! Decisions recorded from datatrove, rule by rule.

#[path = "../../../tests/parity/data.rs"]
mod data;

use data::{Set, say, sets};
use serde_json::Value;
use smelt_clean::language::identify;
use smelt_clean::pii::{StandIns, mask};
use smelt_clean::rules::Rules;

#[test]
fn personal_data_is_masked_as_recorded() {
    sets().iter().for_each(check_personal_data);
}

fn check_personal_data(set: &Set) {
    let records = set.records("filters");
    let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let emails = own(&["email@example.com", "firstname.lastname@example.org"]);
    let ipv4 =
        own(&["22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11", "18.104.22.168"]);
    // An address beside a letter of another script is one here: datatrove's `\b` passes over it.
    let beside_letters = regex::Regex::new(r"[\p{L}&&[^\x00-\x7f]][A-Za-z0-9.]+@[A-Za-z0-9]").unwrap();
    let (mut changed, mut beside) = (0, 0);
    for record in &records {
        let text = record["text"].as_str().unwrap();
        let theirs = record.get("pii").and_then(Value::as_str).unwrap_or(text);
        let (ours, found) = mask(text, &StandIns { emails: &emails, ipv4: &ipv4, ipv6: &[], phones: &[] });
        if beside_letters.is_match(text) && ours != theirs {
            beside += 1;
            continue;
        }
        assert_eq!(ours, theirs, "in {}", record["id"]);
        changed += usize::from(found > 0);
    }
    say(&format!(
        "{}: {changed} of {} texts hold personal data, {beside} more beside letters",
        set.name(),
        records.len()
    ));
    assert!(beside * 10 <= changed, "{beside} texts differ");
    assert!(changed > if set.is_full { 100 } else { 10 });
}

/// Only the words differ from the recorded ones, so most decisions agree; the floors are what was reached.
#[test]
fn filter_decisions_agree_as_often_as_promised() {
    sets().iter().for_each(check_decisions);
}

fn check_decisions(set: &Set) {
    let records = set.records("filters");
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
            let kept = record[field][0].as_bool().unwrap();
            same += usize::from(rules.judge(text).is_none() == kept);
        }
        let agreement = same as f64 / records.len() as f64;
        say(&format!("{}: {field}: {agreement:.4} of {} decisions agree", set.name(), records.len()));
        assert!(agreement > floor, "{field}: {agreement}");
    }
}

#[test]
fn languages_are_found_in_noisy_documents() {
    sets().iter().for_each(check_languages);
}

fn check_languages(set: &Set) {
    let records = set.records("filters");
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
    say(&format!("{}: {same} of {all} languages as recorded; the most frequent others {wrong:?}", set.name()));
    assert!(same as f64 / all as f64 > 0.87);
}
