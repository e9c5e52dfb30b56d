//! Files as people bring them: what is read, what is refused, and with which words.

#[path = "../../../tests/cases/data.rs"]
mod cases;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::fs::File;
use std::io::{BufReader, Read};

use cases::{Case, cases};
use serde_json::{Value, json};
use smelt_ingest::Ingest;
use smelt_stage::kinds::{Document, Documents, Drop, Drops};
use workshop::{Workshop, told};

/// What a case gives under a config, or the error as a person reads it.
fn ingest(workshop: &Workshop, case: &Case, mut config: Value) -> Result<(Vec<Document>, Vec<Drop>), String> {
    config["paths"] = json!([case.files()]);
    let manifest = workshop.run::<Ingest>(config, &[]).map_err(|e| told(&e))?;
    Ok((workshop.rows::<Documents>(&manifest, "documents"), workshop.rows::<Drops>(&manifest, "drops")))
}

/// Runs `check` on the known files of a kind, and tells what the others give.
fn each(name: &str, config: Value, check: impl Fn(&Case, Vec<Document>, Vec<Drop>)) {
    let workshop = Workshop::new(&format!("ingest-case-{name}"));
    for case in cases(name) {
        match ingest(&workshop, &case, config.clone()) {
            Ok((kept, dropped)) if case.is_known => check(&case, kept, dropped),
            Ok((kept, dropped)) => case.say(&format!("{} documents, {} drops", kept.len(), dropped.len())),
            Err(error) if case.is_known => panic!("{error}"),
            Err(error) => case.say(&error.replace('\n', "; ")),
        }
    }
}

fn warnings(workshop: &Workshop, case: &Case, mut config: Value) -> Vec<String> {
    config["paths"] = json!([case.files()]);
    workshop.warnings::<Ingest>(env!("CARGO_BIN_EXE_smelt-ingest"), config, &[])
}

fn lines(mut reader: impl Read) -> usize {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text.lines().filter(|line| !line.trim().is_empty()).count()
}

fn dropped(drops: &[Drop]) -> Vec<(&str, &str, f64)> {
    drops.iter().map(|d| (d.id.as_str(), d.rule.as_str(), d.value.unwrap_or(f64::NAN))).collect()
}

#[test]
fn packed_lines_are_read_whatever_the_name_says() {
    each("json-gz", json!({}), |case, kept, _| {
        let all = lines(flate2::read::GzDecoder::new(File::open(case.file()).unwrap()));
        assert_eq!((kept.len(), all), (40, 40));
    });
    each("jsonl-xz", json!({}), |case, kept, _| {
        let all = lines(lzma_rust2::XzReader::new(BufReader::new(File::open(case.file()).unwrap()), true));
        assert_eq!((kept.len(), all), (40, 40));
    });
    each("gz-zero-padding", json!({}), |_, kept, _| assert_eq!(kept.len(), 40));
}

#[test]
fn a_bad_record_stops_the_job_or_is_dropped_with_its_place() {
    each("lone-surrogate", json!({ "bad_records": "drop" }), |_, kept, drops| {
        assert_eq!(kept.len(), 2);
        assert_eq!(dropped(&drops), [("a.jsonl#1", "not_json", 2.0), ("a.jsonl#2", "not_json", 3.0)]);
        let detail = "`a.jsonl` line 2: half of a surrogate pair at column 26, which is no character";
        assert_eq!(drops[0].detail.as_deref(), Some(detail));
    });
    each("null-text-jsonl", json!({ "bad_records": "drop" }), |_, kept, drops| {
        assert_eq!(kept.iter().map(|d| d.text.as_str()).collect::<Vec<_>>(), ["one", "", "last"]);
        assert_eq!(dropped(&drops), [("a.jsonl#1", "no_text", 2.0), ("a.jsonl#2", "no_text", 3.0)]);
    });
    let workshop = Workshop::new("ingest-bad-records");
    let known = |name: &str| cases(name).swap_remove(0);
    let stop = |name: &str, config: Value| ingest(&workshop, &known(name), config).unwrap_err();
    assert_eq!(
        stop("lone-surrogate", json!({})),
        "`a.jsonl` line 2: half of a surrogate pair at column 26, which is no character\n\
         hint: a text was cut inside a character when it was written; or set `bad_records: drop` to leave such records \
         out"
    );
    assert_eq!(
        stop("null-text-jsonl", json!({})),
        "`a.jsonl` line 2: field `text` is null, expected a string\n\
         hint: set `bad_records: drop` to leave such records out"
    );
    assert_eq!(
        stop("null-text-jsonl", json!({ "bad_records": "drop", "max_bad_share": 0.1 })),
        "2 of 5 records are bad: 2 no_text; the first: `a.jsonl` line 2: field `text` is null, expected a string\n\
         hint: `max_bad_share` is 0.1, and this is 0.4000"
    );
    assert!(
        ingest(&workshop, &known("null-text-jsonl"), json!({ "bad_records": "drop", "max_bad_share": 0.4 })).is_ok()
    );
    assert_eq!(
        stop("lone-surrogate", json!({ "bad_records": "drop", "text_field": "body" })),
        "none of 4 records is kept: 2 no_text, 2 not_json; the first: `a.jsonl` line 1: no field `body`\n\
         hint: set `text_field`; the record has `text`"
    );
    assert_eq!(
        warnings(&workshop, &known("null-text-jsonl"), json!({ "bad_records": "drop" })),
        ["2 of 5 records are bad and left out: 2 no_text; the first: `a.jsonl` line 2: field `text` is null, \
             expected a string"]
    );
}

#[test]
fn numbers_that_json_has_no_place_for_stay_as_they_are_written() {
    each("nan-json", json!({}), |_, kept, _| {
        let metadata: Vec<&str> = kept.iter().map(|d| d.metadata.as_deref().unwrap()).collect();
        assert_eq!(metadata, [r#"{"score":0.5}"#, r#"{"score":"NaN"}"#, r#"{"score":"Infinity"}"#]);
    });
}

#[test]
fn a_dictionary_column_is_text() {
    each("parquet-dictionary-text", json!({}), |_, kept, _| {
        assert_eq!(kept.iter().map(|d| d.text.as_str()).collect::<Vec<_>>()[..2], ["one", "two"]);
        assert_eq!(kept.len(), 3);
    });
}

#[test]
fn columns_of_any_type_stand_in_metadata_or_are_left_out_with_a_warning() {
    let row = concat!(
        r#"{"f":"NaN","f16":1.5,"dec":"1234567890123456789012.34","m":{"k":1,"k2":2},"mi":{"1":"a"},"s":{"a":1},"#,
        r#""dur":"PT3S","t64":"01:02:03","u64":18446744073709551615,"i64":-9223372036854775808,"#,
        r#""ts":"2024-05-01T12:00:00Z","cat":"x","emb":[0.1,0.2],"b":true}"#
    );
    each("parquet-odd-metadata", json!({}), |_, kept, _| {
        assert_eq!(kept[0].metadata.as_deref(), Some(row));
        let second: Value = serde_json::from_str(kept[1].metadata.as_deref().unwrap()).unwrap();
        assert_eq!(second["f"], "Infinity");
        assert_eq!(second["i64"], 9_007_199_254_740_993_i64);
        assert_eq!(second["emb"], json!([0.3, "NaN"]));
    });
    each("parquet-odd-metadata", json!({ "metadata_fields": ["u64", "bin"] }), |_, kept, _| {
        assert_eq!(kept[0].metadata.as_deref(), Some(r#"{"bin":"00ff","u64":18446744073709551615}"#));
    });
    let (workshop, case) = (Workshop::new("ingest-odd"), cases("parquet-odd-metadata").swap_remove(0));
    let found = warnings(&workshop, &case, json!({}));
    assert_eq!(
        found[0],
        "column `bin` (Binary) of `a.parquet` cannot stand in `metadata` and is left out of 1 files; `metadata_fields` \
         names the columns to keep"
    );
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(warnings(&workshop, &case, json!({ "metadata_fields": [] })).is_empty());
    let refused = ingest(&workshop, &case, json!({ "metadata_fields": ["f17"] })).unwrap_err();
    assert!(
        refused
            .starts_with("`a.parquet` has no column `f17`, which `metadata_fields` names\nhint: the file has `text`"),
        "{refused}"
    );
    let refused = ingest(&workshop, &case, json!({ "text_field": "m" })).unwrap_err();
    assert!(refused.starts_with("`a.parquet`: column `m` has type Map("), "{refused}");
    assert_eq!(
        ingest(&workshop, &case, json!({ "text_field": "s.b", "bad_records": "drop" })).unwrap_err().lines().count(),
        2
    );
}

#[test]
fn a_mark_at_the_start_says_the_encoding_and_is_no_text() {
    each("utf16", json!({}), |_, kept, _| {
        assert_eq!(kept[0].text.trim_end(), "Hello, this was saved as Unicode in Notepad.");
        assert_eq!(kept[0].id, "a.txt");
    });
}

#[test]
fn a_repeated_id_names_both_records() {
    each("duplicate-ids", json!({ "id_field": "id", "bad_records": "drop" }), |_, kept, drops| {
        assert_eq!(kept.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["a.jsonl#0", "a.jsonl#1"]);
        assert_eq!(dropped(&drops), [("a.jsonl#2", "duplicate_id", 3.0), ("a.jsonl#3", "duplicate_id", 4.0)]);
        assert_eq!(drops[0].detail.as_deref(), Some("`a.jsonl` line 3: the `id` `0` is that of line 1 as well"));
    });
    let (workshop, case) = (Workshop::new("ingest-ids"), cases("duplicate-ids").swap_remove(0));
    let error = ingest(&workshop, &case, json!({ "id_field": "id" })).unwrap_err();
    assert_eq!(
        error,
        "`a.jsonl` line 3: the `id` `0` is that of line 1 as well\n\
         hint: choose a field without repeats, or leave `id_field` out to number records; or set `bad_records: drop` \
         to leave such records out"
    );
}

#[test]
fn real_times_are_read_and_others_stay_in_metadata_with_a_warning() {
    each("times", json!({}), |_, kept, _| {
        let without: Vec<usize> = (0..kept.len()).filter(|&i| kept[i].time.is_none()).collect();
        // 2024-02-30, 01/05/2024, 2024-05, a bare number
        assert_eq!(without, [3, 7, 8, 12]);
        assert!(kept.iter().all(|d| d.metadata.as_deref().is_some_and(|m| m.starts_with(r#"{"date":"#))));
        assert_eq!(kept[0].time.unwrap().0 / 1_000_000, -14_831_769_600);
    });
    let (workshop, case) = (Workshop::new("ingest-times"), cases("times").swap_remove(0));
    assert_eq!(
        warnings(&workshop, &case, json!({})),
        ["4 documents have no `time`, because what they say is none (it stays in `metadata`); the first is \
          \"2024-02-30\" in `a.jsonl#3`"]
    );
}
