//! Texts that other tools destroy, leak or drop.

#[path = "../../../tests/cases/data.rs"]
mod cases;
mod workshop;

use cases::{Case, cases};
use serde_json::{Value, json};
use smelt_clean::Clean;
use smelt_clean::rules::Rules;
use smelt_stage::kinds::Documents;
use workshop::Workshop;

fn texts(case: &Case) -> Vec<String> {
    let text = std::fs::read_to_string(case.file()).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.map(|record| record["text"].as_str().unwrap().to_owned()).collect()
}

/// What is left of the texts, in order.
fn clean(workshop: &Workshop, texts: &[String], config: Value) -> Vec<String> {
    let named: Vec<(String, &str)> = texts.iter().enumerate().map(|(i, text)| (i.to_string(), text.as_str())).collect();
    let documents: Vec<(&str, &str)> = named.iter().map(|(id, text)| (id.as_str(), *text)).collect();
    let input = workshop.feed(&documents, 64);
    let manifest = workshop.run::<Clean>(config, &[("documents", &[input])]).unwrap();
    workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.text).collect()
}

#[test]
fn personal_data_is_found_beside_every_script_and_arithmetic_stays() {
    let workshop = Workshop::new("clean-pii-cases");
    let rules = serde_json::to_value(Rules::none()).unwrap();
    let one = |text: &str| json!([text]);
    let pii = json!({ "emails": one("MAIL"), "ipv4": one("V4"), "ipv6": one("V6"), "phones": one("PHONE") });
    for case in cases("pii-unicode") {
        let before = texts(&case);
        let after =
            clean(&workshop, &before, json!({ "rules": rules, "pii": pii, "nfc": false, "strip_control": false }));
        let changed: Vec<(&str, &str)> =
            before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, b)| (a.as_str(), b.as_str())).collect();
        case.say(&format!("{} of {} texts changed", changed.len(), before.len()));
        if !case.is_known {
            continue;
        }
        let masked = |text: &str| after[before.iter().position(|t| t == text).expect("the text is there")].as_str();
        for (text, expected) in [
            ("联系alice@example.net谢谢", "联系MAIL谢谢"),
            ("почтаivan@example.net", "почтаMAIL"),
            ("メールはtaro@example.co.jpまで", "メールはMAILまで"),
            ("地址8.8.4.4在此", "地址V4在此"),
            ("call +14155550123 now", "call PHONE now"),
            ("call +1 415 555 0123 now", "call PHONE now"),
            ("tel:+49301234567", "tel:PHONE"),
            ("+8613800138000", "PHONE"),
            ("+86 138 0013 8000", "PHONE"),
            ("bob@例え.jp", "MAIL"),
            ("[2a00:1450:4001:81b::200e]:443", "[V6]:443"),
        ] {
            assert_eq!(masked(text), expected);
        }
        for text in [
            "npm i @types/node@18.0.0",
            "foo@1.2.3",
            "x = a + (123) 456-7890",
            "1+2 33 44 55",
            "sum +12 3456 7890 items",
            "+1 234 567 890 123 456",
            "time 20:01:02",
            "2024:05:01 12:00",
            "std::vec::Vec",
            "x@y",
        ] {
            assert_eq!(masked(text), text);
        }
    }
}

#[test]
fn prose_without_blanks_passes_the_default_rules() {
    let workshop = Workshop::new("clean-cjk-cases");
    for case in cases("dedup-cjk") {
        let before = texts(&case);
        let after = clean(&workshop, &before, json!({}));
        case.say(&format!("{} of {} texts kept", after.len(), before.len()));
        assert!(!case.is_known || before.len() == after.len(), "{} of {}", after.len(), before.len());
    }
}
