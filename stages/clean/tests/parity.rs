//! Decisions recorded from datatrove, rule by rule.

#[path = "../../../tests/parity/data.rs"]
mod data;

use data::{Set, assert_share, say, sets, text};
use serde_json::{Value, json};
use smelt_clean::language::identify;
use smelt_clean::pii::mask;
use smelt_clean::rules::Judge;
use smelt_clean::{Clean, Config, Settled};
use smelt_stage::Stage;
use std::collections::BTreeMap;

/// What is done under a config, as a pipeline would give it.
fn settled(config: Value) -> Settled {
    let mut config: Config = serde_json::from_value(config).unwrap();
    Clean::resolve(&mut config, &BTreeMap::new()).unwrap();
    config.settle().unwrap()
}

#[test]
fn personal_data_is_masked_as_recorded() {
    sets().iter().for_each(check_personal_data);
}

fn check_personal_data(set: &Set) {
    let records = set.records("filters");
    let (published, own) = (settled(json!({ "preset": "fineweb" })).pii, settled(json!({})).pii);
    let own = smelt_clean::pii::Pii {
        emails: published.emails.clone(),
        ipv4: published.ipv4.clone(),
        ipv6: vec![],
        phones: vec![],
        ..own
    };
    let (mut same, mut same_by_own, mut changed) = (0, 0, 0);
    for record in &records {
        let text = text(record, "text");
        let theirs = record.get("pii").and_then(Value::as_str).unwrap_or(text);
        let (ours, found) = mask(text, &published);
        same += usize::from(ours == theirs);
        same_by_own += usize::from(mask(text, &own).0 == theirs);
        changed += usize::from(found > 0);
    }
    say(&format!(
        "{}: {changed} texts hold personal data; smelt's own patterns leave {same_by_own} as recorded",
        set.name()
    ));
    assert!(changed > if set.is_full { 100 } else { 10 });
    assert_share(set, "texts masked as recorded", same, records.len(), 0.998);
}

/// Nothing but the rules of one published filter: its preset with the others turned off.
fn only(filter: &str) -> Settled {
    let repetition = json!({
        "max_repeated_paragraphs": null, "max_repeated_paragraph_characters": null, "max_repeated_lines": null,
        "max_repeated_line_characters": null, "max_top_runs": [], "max_repeated_runs": []
    });
    let quality = json!({
        "min_words": null, "max_words": null, "min_word_length": null, "max_word_length": null, "max_hashes": null,
        "max_ellipses": null, "max_bullet_lines": null, "max_ellipsis_lines": null, "min_letter_words": null,
        "min_stop_words": null
    });
    let both = |a: &Value, b: Value| {
        let fields = a.as_object().unwrap().iter().chain(b.as_object().unwrap());
        Value::Object(fields.map(|(name, value)| (name.clone(), value.clone())).collect())
    };
    settled(match filter {
        "gopher_rep" => json!({ "preset": "gopher", "rules": quality }),
        "gopher_qual" => json!({ "preset": "gopher", "rules": repetition }),
        "c4" => json!({ "preset": "c4" }),
        "c4_noterm" => json!({ "preset": "c4", "rules": { "c4": { "end_mark": false } } }),
        "c4_par" => json!({ "preset": "c4", "rules": { "c4": null, "min_long_lines": 3 } }),
        "fineweb" => json!({ "preset": "fineweb", "rules": both(&quality, both(&repetition, json!({ "c4": null }))) }),
        other => panic!("no filter {other}"),
    })
}

/// The name that datatrove gives to the reason of a drop.
fn recorded_name(filter: &str, rule: &str) -> String {
    let name = match rule {
        "repeated_paragraphs" => "dup_para_frac",
        "repeated_paragraph_characters" => "dup_para_char_frac",
        "repeated_lines" => "dup_line_frac",
        "repeated_line_characters" => "dup_line_char_frac",
        "too_few_words" => "gopher_short_doc",
        "too_many_words" => "gopher_long_doc",
        "words_too_short" => "gopher_below_avg_threshold",
        "words_too_long" => "gopher_above_avg_threshold",
        "hashes" => "gopher_too_many_hashes",
        "ellipses" => "gopher_too_many_ellipsis",
        "bullet_lines" => "gopher_too_many_bullets",
        "ellipsis_lines" => "gopher_too_many_end_ellipsis",
        "letter_words" => "gopher_below_alpha_threshold",
        "stop_words" => "gopher_enough_stop_words",
        "sentences" => "too_few_sentences",
        "long_lines" => "< 3 paragraphs",
        "terminated_lines" => "line_punct_ratio",
        "short_lines" => "short_line_ratio",
        "repeated_in_lines" => "char_dup_ratio",
        "line_feeds" => "list_ratio",
        "lorem_ipsum" | "curly_bracket" | "empty" => rule,
        _ => match (rule.strip_prefix("top_run_of_"), rule.strip_prefix("repeated_runs_of_")) {
            (Some(n), _) => return format!("top_{n}_gram"),
            (_, Some(n)) => return format!("duplicated_{n}_n_grams"),
            _ => panic!("{filter}: no recorded name of {rule}"),
        },
    };
    name.to_owned()
}

#[test]
fn filters_decide_as_recorded() {
    sets().iter().for_each(check_decisions);
}

fn check_decisions(set: &Set) {
    let records = set.records("filters");
    let mut judge = Judge::default();
    for filter in ["gopher_rep", "gopher_qual", "c4", "c4_noterm", "c4_par", "fineweb"] {
        let rules = only(filter).rules;
        let (mut decisions, mut reasons, mut texts, mut kept) = (0, 0, 0, 0);
        let mut others: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
        for record in &records {
            let before = text(record, "text");
            let is_kept = record[filter][0].as_bool().unwrap();
            let reason = record[filter][1].as_str().unwrap_or("kept");
            let judged = judge.judge(&rules, before);
            let found = judged.as_ref().map_or_else(|fault| recorded_name(filter, &fault.rule), |_| "kept".into());
            decisions += usize::from(is_kept == judged.is_ok());
            reasons += usize::from(reason == found);
            if reason != found {
                others.entry((reason.to_owned(), found)).or_default().push(text(record, "id"));
            }
            if let (true, Ok(left)) = (is_kept, judged) {
                let theirs = record.get(format!("{filter}_text")).and_then(Value::as_str).unwrap_or(before);
                texts += usize::from(left == theirs);
                kept += 1;
            }
        }
        for ((reason, found), ids) in others {
            say(&format!("{}: {filter}: {reason} recorded, {found} found: {}", set.name(), ids.join(" ")));
        }
        assert_share(set, &format!("{filter}: equal decisions"), decisions, records.len(), 0.998);
        assert_share(set, &format!("{filter}: equal reasons"), reasons, records.len(), 0.995);
        if filter.starts_with("c4") {
            assert_share(set, &format!("{filter}: equal texts of kept documents"), texts, kept, 0.998);
        }
    }
}

/// The chain of a preset is its filters one after the other, each on what the one before left.
#[test]
fn a_chain_is_its_filters_in_order() {
    for set in sets() {
        let (mut judge, mut kept) = (Judge::default(), 0);
        let chain = settled(json!({ "preset": "fineweb" })).rules;
        let filters = ["gopher_rep", "gopher_qual", "c4_noterm", "fineweb"].map(|filter| only(filter).rules);
        for record in set.records("filters") {
            let mut left = Ok(text(&record, "text").to_owned());
            for rules in &filters {
                left = left.and_then(|text| judge.judge(rules, &text).map(|text| text.into_owned()));
            }
            let found = judge.judge(&chain, text(&record, "text")).map(|text| text.into_owned());
            assert_eq!(found, left, "in {}", record["id"]);
            kept += usize::from(found.is_ok());
        }
        assert!(kept > if set.is_full { 100 } else { 10 }, "{kept} kept");
    }
}

#[test]
fn languages_are_found_in_noisy_documents() {
    sets().iter().for_each(check_languages);
}

fn check_languages(set: &Set) {
    let records = set.records("filters");
    let (mut same, mut all) = (0, 0);
    let mut wrong: BTreeMap<(String, &str), usize> = BTreeMap::new();
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
