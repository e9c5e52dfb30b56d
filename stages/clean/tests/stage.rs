//! The stage as a runner runs it.

mod workshop;

use serde_json::{Value, json};
use smelt_clean::Clean;
use smelt_stage::Stage;
use smelt_stage::kinds::{Documents, Drops};
use workshop::{Workshop, digests, told};

const PROSE: &str = "The compiler checks every borrow before the program may run, and it tells with some care what is \
                     wrong and where. Write to jane@example.net about it, or look at 8.8.8.8 for the notes of the \
                     team.";

fn documents() -> Vec<(String, String)> {
    let german = "Der Übersetzer prüft jede Ausleihe, bevor das Programm laufen darf, und er sagt mit einiger \
                  Sorgfalt, \
                  was falsch ist und an welcher Stelle es steht, damit man es leicht finden und verbessern kann.";
    let code = "/// Adds.\npub fn add(a: u32, b: u32) -> u32 {\n    let sum = a.checked_add(b);\n    \
        sum.unwrap_or(u32::MAX)\n}\n\n\
                #[test]\nfn adds() {\n    assert_eq!(add(1, 2), 3);\n}\n";
    [
        ("prose", PROSE),
        ("accent", "cafe\u{301} \r\n"),
        ("german", german),
        ("code", code),
        ("short", "too few words"),
        ("spam", &"buy now ".repeat(40)),
        ("control", &format!("{PROSE}\u{0}\u{7}\r\nAnd a second line.\r\n")),
    ]
    .map(|(id, text)| (id.to_owned(), text.to_owned()))
    .to_vec()
}

fn fed(workshop: &Workshop) -> smelt_schemas::InputRef {
    let documents = documents();
    let borrowed: Vec<(&str, &str)> = documents.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    workshop.feed(&borrowed, 3)
}

/// The bytes of this input under the default config. Whoever changes them raises the stage's version.
#[test]
fn bytes_change_only_with_the_version() {
    let mut all = Vec::new();
    for threads in [1, 3] {
        let mut workshop = Workshop::new(&format!("clean-golden-{threads}"));
        workshop.threads = threads;
        let input = fed(&workshop);
        let manifest = workshop.run::<Clean>(json!({}), &[("documents", &[input])]).unwrap();
        all.push(digests(&manifest));
    }
    assert_eq!(all[0], all[1], "threads change bytes");
    assert_eq!(Clean::VERSION, 3);
    let golden = [
        "documents 794833e8d0f73ca4b9e700d9a39adb26ac5acb9985f4447b6ceea77ea6f789bf",
        "drops b6a5c9306718322f531a162343aab81f0aa6f02f2c04643045138200952c7a76",
    ];
    assert_eq!(all[0], golden, "the bytes changed: raise VERSION and write the new digests here");
}

#[test]
fn every_document_is_kept_or_dropped_with_its_rule() {
    let workshop = Workshop::new("clean-rules");
    let input = fed(&workshop);
    let config = json!({ "languages": ["en"] });
    let manifest = workshop.run::<Clean>(config, &[("documents", &[input])]).unwrap();
    let kept = workshop.rows::<Documents>(&manifest, "documents");
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    assert_eq!(kept.len() + drops.len(), documents().len());
    let prose = kept.iter().find(|d| d.id == "prose").expect("prose stays");
    assert_eq!(prose.language.as_deref(), Some("en"));
    assert!(prose.text.contains("Write to email@example.com about it, or look at 192.0.2.1 for"), "{}", prose.text);
    let control = kept.iter().find(|d| d.id == "control").expect("control stays");
    assert!(control.text.ends_with("of the team.\nAnd a second line.\n"), "{:?}", control.text);
    let rule = |id: &str| drops.iter().find(|d| d.id == id).map(|d| (d.rule.as_str(), d.detail.as_deref()));
    assert_eq!(rule("german"), Some(("language", Some("de"))));
    assert!(rule("spam").is_some() && rule("short").is_some(), "{drops:?}");
    assert_eq!(manifest.books.read, 7);
    assert_eq!(manifest.metrics["masked"], 4.0);
}

#[test]
fn a_limit_of_null_turns_its_rule_off() {
    let workshop = Workshop::new("clean-null");
    let input = fed(&workshop);
    let rules: Value = serde_json::to_value(smelt_clean::rules::Rules::none()).unwrap();
    let config = json!({ "rules": rules, "pii": { "emails": [], "ipv4": [], "ipv6": [], "phones": [] } });
    let manifest = workshop.run::<Clean>(config, &[("documents", &[input])]).unwrap();
    let kept = workshop.rows::<Documents>(&manifest, "documents");
    assert_eq!(kept.len(), 7);
    assert_eq!(kept[1].text, "café \n");
    assert_eq!(kept[0].text, PROSE);
}

#[test]
fn a_preset_says_what_the_config_does_not() {
    let workshop = Workshop::new("clean-preset");
    let resolve = |config: Value| workshop.resolve::<Clean>(config, &[]).unwrap();
    let own = resolve(json!({}));
    assert_eq!(
        (&own["nfc"], &own["rules"]["min_words"], &own["rules"]["c4"]),
        (&json!(true), &json!(20.0), &json!(null))
    );
    assert!(own.get("preset").is_none());
    let changed = resolve(json!({
        "preset": "fineweb", "nfc": true,
        "rules": { "min_words": 30, "max_hashes": null, "c4": { "min_sentences": 3 } },
        "pii": { "phones": ["PHONE"] }
    }));
    assert_eq!((&changed["nfc"], &changed["strip_control"]), (&json!(true), &json!(false)));
    let rules = &changed["rules"];
    assert_eq!(
        (&rules["min_words"], &rules["max_hashes"], &rules["max_words"]),
        (&json!(30.0), &json!(null), &json!(100_000.0))
    );
    assert_eq!((&rules["c4"]["min_sentences"], &rules["c4"]["end_mark"]), (&json!(3), &json!(false)));
    assert_eq!((&changed["pii"]["phones"], &changed["pii"]["published"]), (&json!(["PHONE"]), &json!(true)));
    assert_eq!(resolve(changed.clone()), changed, "an effective config is its own");
}

/// What C4's rules leave is judged and masked further, and is the document.
#[test]
fn a_preset_changes_documents_as_datatrove_does() {
    let workshop = Workshop::new("clean-fineweb");
    let text = "The harbour opens at five, and the first boats that leave have their lamps still lit.\r\n\
                We use cookies on this site.\n\
                Ask the man at 8.8.8.8 for a berth; he keeps the book of the quay and all of its keys.[3]\n\
                By noon most nets hang to dry on the wall, with the gulls above them waiting for a chance.\n\
                Nobody sells fish after three, since ice costs more than a walk to the next town would.\n\
                In winter the same lamps burn until nine and the keeper reads old letters in his hut.\n";
    let input = workshop.feed(&[("page", text), ("short", "Too short.")], 2);
    let manifest = workshop.run::<Clean>(json!({ "preset": "fineweb" }), &[("documents", &[input])]).unwrap();
    let kept = workshop.rows::<Documents>(&manifest, "documents");
    assert_eq!(kept.len(), 1, "{:?}", workshop.rows::<Drops>(&manifest, "drops"));
    let expected = text.replace("\r\n", "\n").replace("We use cookies on this site.\n", "").replace("[3]", "");
    assert_eq!(kept[0].text, expected.replace("8.8.8.8", "22.214.171.124").trim_end());
}

#[test]
fn an_output_without_documents_is_an_error_that_counts_the_rules() {
    let workshop = Workshop::new("clean-empty");
    let input = workshop.feed(&[("a", "too few words"), ("b", ""), ("c", "1 2 3")], 2);
    let error = workshop.run::<Clean>(json!({}), &[("documents", &[input])]).unwrap_err();
    assert_eq!(
        told(&error),
        "none of 3 documents is left: 1 empty, 2 too_few_words\n\
         hint: loosen these limits under `rules`, or set them to null"
    );
}

#[test]
fn wrong_configs_are_refused_before_anything_runs() {
    let workshop = Workshop::new("clean-config");
    let refuse = |config: Value| {
        let error = workshop.resolve::<Clean>(config, &[]).unwrap_err();
        (error.problem().field.clone().unwrap_or_default(), told(&error))
    };
    let (field, text) = refuse(json!({ "languages": ["en", "english"] }));
    assert_eq!(field, "/languages/1");
    assert!(
        text.starts_with("`english` is no language that can be told apart\nhint: known are af, ak, am, "),
        "{text}"
    );
    let (field, text) = refuse(json!({ "min_language_confidence": 65 }));
    assert_eq!((field.as_str(), text.as_str()), ("/min_language_confidence", "65 is no confidence, expected 0 to 1"));
    let (field, text) = refuse(json!({ "rules": { "max_top_runs": [{ "n": 0, "share": 0.1 }] } }));
    assert_eq!((field.as_str(), text.as_str()), ("/rules/max_top_runs/0/n", "a run of 0 words, expected at least 1"));
    let (field, text) = refuse(json!({ "rules": { "min_wrods": 3 } }));
    assert_eq!(field, "/rules/min_wrods");
    assert!(
        text.starts_with("unknown field `min_wrods`, expected one of `by_script`, `length_first`, `min_words`"),
        "{text}"
    );
    let (field, text) = refuse(json!({ "preset": "c4", "rules": { "c4": { "min_sentences": "many" } } }));
    assert_eq!(field, "/rules/c4/min_sentences");
    assert_eq!(text, "invalid type: string \"many\", expected u64");
    let (_, text) = refuse(json!({ "preset": "finweb" }));
    assert_eq!(text, "unknown variant `finweb`, expected one of `fineweb`, `gopher`, `c4`");
}

#[test]
fn a_job_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("clean-kills");
    let input = fed(&workshop);
    let kills =
        workshop.kill_at_every_write::<Clean>(env!("CARGO_BIN_EXE_smelt-clean"), json!({}), &[("documents", &[input])]);
    // A lease, a shard and a record of each unit, the manifest.
    assert!(kills >= 8, "killed {kills} times");
}

#[test]
fn many_workers_with_kills_end_with_the_same_bytes() {
    let workshop = Workshop::new("clean-workers");
    let input = fed(&workshop);
    let config = json!({});
    let kills = workshop.spread::<Clean>(env!("CARGO_BIN_EXE_smelt-clean"), config, &[("documents", &[input])]);
    assert!(kills >= 15, "killed {kills} times");
}

/// The columns beyond those of a document, by name, of every row in order.
fn columns(workshop: &Workshop, manifest: &smelt_schemas::Manifest) -> Vec<(String, Vec<String>)> {
    use arrow::util::display::array_value_to_string;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let mut all: Vec<(String, Vec<String>)> = Vec::new();
    for file in &manifest.ports["documents"].files {
        let bytes = bytes::Bytes::from(workshop.file(manifest, "documents", &file.path));
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()).skip(7) {
                let values = (0..batch.num_rows()).map(|row| array_value_to_string(column, row).unwrap());
                match all.iter_mut().find(|(name, _)| name == field.name()) {
                    Some((_, known)) => known.extend(values),
                    None => all.push((field.name().clone(), values.collect())),
                }
            }
        }
    }
    all
}

#[test]
fn an_annotation_keeps_all_and_says_what_the_rules_see() {
    let mut found = Vec::new();
    for threads in [1, 3] {
        let mut workshop = Workshop::new(&format!("clean-annotate-{threads}"));
        workshop.threads = threads;
        let input = fed(&workshop);
        let inputs: &[(&str, &[smelt_schemas::InputRef])] = &[("documents", &[input])];
        let all = workshop.run::<Clean>(json!({ "annotate": true }), inputs).unwrap();
        let strict = workshop.run::<Clean>(json!({}), inputs).unwrap();
        let drops = workshop.rows::<Drops>(&strict, "drops");
        let rows = workshop.rows::<Documents>(&all, "documents");
        assert_eq!((rows.len(), all.books.read, all.books.written), (7, 7, 7));
        let columns = columns(&workshop, &all);
        let column =
            |name: &str| &columns.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("{name}")).1;
        for (i, row) in rows.iter().enumerate() {
            let dropped = drops.iter().find(|drop| drop.id == row.id);
            assert_eq!(column("rule")[i], dropped.map_or("", |drop| drop.rule.as_str()), "{}", row.id);
            if let Some(drop) = dropped.filter(|drop| drop.rule != "language") {
                assert_eq!(column(&drop.rule)[i].parse::<f64>().ok(), drop.value, "{drop:?}");
            }
        }
        assert_eq!(columns.len(), 33, "{:?}", columns.iter().map(|c| &c.0).collect::<Vec<_>>());
        let prose = rows.iter().find(|row| row.id == "prose").unwrap();
        assert_eq!((prose.text.as_str(), prose.language.as_deref()), (PROSE, Some("en")), "not masked");
        let control = rows.iter().find(|row| row.id == "control").unwrap();
        assert!(control.text.ends_with("second line.\n"), "its form is that of any document");
        found.push(digests(&all));

        // A stage behind it passes the columns on, and an annotation replaces those that are there.
        let again = workshop.port(&all, "documents");
        let inputs: &[(&str, &[smelt_schemas::InputRef])] = &[("documents", &[again])];
        let kept = workshop.run::<Clean>(json!({ "languages": ["en", "de"] }), inputs).unwrap();
        assert_eq!(self::columns(&workshop, &kept).len(), 33);
        let twice = workshop.run::<Clean>(json!({ "annotate": true, "preset": "gopher" }), inputs).unwrap();
        assert_eq!(self::columns(&workshop, &twice).len(), 33);
    }
    assert_eq!(found[0], found[1], "threads change bytes");
}

#[test]
fn urls_on_a_blocklist_are_dropped_and_mojibake_is_turned_back() {
    let workshop = Workshop::new("clean-blocklist");
    let list = workshop.folder().join("domains");
    std::fs::write(&list, "bad.example\n").unwrap();
    let text = PROSE.replace("with some care", "with some cafÃ© in dÃ©jÃ\u{a0} vu");
    let documents = ["a", "b", "c", "d"].map(|id| (id, &text));
    let input = workshop.feed_with(json!({
        "documents": documents,
        "per_file": 2,
        "urls": {
            "a": "https://www.bad.example/x", "b": "https://good.example/casino", "c": "https://good.example/"
        },
    }));
    let config = json!({
        "blocklist": { "files": [list.to_str().unwrap()], "words": ["casino"] }, "repair_mojibake": true
    });
    let manifest = workshop.run::<Clean>(config, &[("documents", &[input])]).unwrap();
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    let told_of: Vec<(&str, &str, &str)> =
        drops.iter().map(|d| (d.id.as_str(), d.rule.as_str(), d.detail.as_deref().unwrap())).collect();
    assert_eq!(told_of, [("a", "url_domain", "bad.example"), ("b", "url_word", "casino")]);
    let rows = workshop.rows::<Documents>(&manifest, "documents");
    assert!(rows.iter().all(|row| row.text.contains("with some café in déjà vu")), "{}", rows[0].text);
}
