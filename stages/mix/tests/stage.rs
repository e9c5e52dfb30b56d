//! The stage as a runner runs it.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smelt_mix::Mix;
use smelt_schemas::{InputRef, Manifest};
use smelt_stage::kinds::{Drops, TokenRow, Tokens};
use smelt_stage::{Context, Error, Stage};
use std::collections::BTreeMap;
use workshop::{Workshop, digests, told};

/// 40 German documents of 10 tokens from `web/a`, 60 Chinese ones of 5 from `web/b`.
fn web() -> Vec<TokenRow> {
    let row = |i: u32| {
        let (source, language, count) = if i < 40 { ("web/a", "de", 10) } else { ("web/b", "zh", 5) };
        let (document, ids) = (format!("web {i}"), (0..count).map(|k| 1000 * i + k).collect());
        TokenRow { document, source: source.into(), language: Some(language.into()), bytes: 20, ids }
    };
    (0..100).map(row).collect()
}

/// 30 documents of 20 tokens, in no language.
fn code() -> Vec<TokenRow> {
    let row = |i: u32| TokenRow {
        document: format!("code {i}"),
        source: "code".into(),
        language: None,
        bytes: 50,
        ids: (0..20).map(|k| 500_000 + 1000 * i + k).collect(),
    };
    (0..30).map(row).collect()
}

/// Writes one of the two.
struct Feed;

#[derive(Serialize, Deserialize, JsonSchema)]
struct FeedConfig {
    web: bool,
    per_file: usize,
}

smelt_stage::inputs! { struct NoInputs {} }
smelt_stage::outputs! { struct Fed { tokens: Port<Tokens> } }

impl Stage for Feed {
    const NAME: &'static str = "feed";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Writes rows of this test";
    type Config = FeedConfig;
    type Inputs = NoInputs;
    type Outputs = Fed;

    fn run(config: FeedConfig, _inputs: NoInputs, out: Fed, cx: &Context) -> Result<(), Error> {
        let rows = if config.web { web() } else { code() };
        let files: Vec<&[TokenRow]> = rows.chunks(config.per_file).collect();
        cx.units("feed", files.len(), |i, unit| {
            unit.count_derived(files[i].len() as u64);
            files[i].iter().try_for_each(|row| unit.keep(&out.tokens, row.clone()))
        })?;
        Ok(())
    }
}

/// Both, with so many rows in a file.
fn fed_by(workshop: &Workshop, per_file: usize) -> [InputRef; 2] {
    [true, false].map(|web| {
        let manifest = workshop.run::<Feed>(json!({ "web": web, "per_file": per_file }), &[]).unwrap();
        workshop.port(&manifest, "tokens")
    })
}

fn fed(workshop: &Workshop) -> [InputRef; 2] {
    fed_by(workshop, 17)
}

fn run(workshop: &Workshop, config: Value) -> Manifest {
    workshop.run::<Mix>(config, &[("tokens", &fed(workshop))]).unwrap()
}

fn count(rows: &[TokenRow]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    rows.iter().for_each(|row| *counts.entry(row.document.clone()).or_default() += 1);
    counts
}

#[test]
fn without_parts_every_document_is_written_once_in_an_order_of_the_seed() {
    let workshop = Workshop::new("mix-all");
    let written: Vec<Vec<TokenRow>> =
        [0, 1].map(|seed| workshop.rows::<Tokens>(&run(&workshop, json!({ "seed": seed })), "tokens")).into();
    let all: Vec<TokenRow> = web().into_iter().chain(code()).collect();
    assert!(written[0] != written[1] && written[0] != all);
    for mut rows in written {
        let by_id = |row: &TokenRow| row.document.clone();
        let mut expected = all.clone();
        rows.sort_by_key(by_id);
        expected.sort_by_key(by_id);
        assert_eq!(rows, expected);
    }
    // Neighbours come from both inputs.
    let rows = workshop.rows::<Tokens>(&run(&workshop, json!({})), "tokens");
    let changes = rows.windows(2).filter(|pair| (pair[0].source == "code") != (pair[1].source == "code")).count();
    assert!((25..60).contains(&changes), "{changes}"); // 46 on average
}

#[test]
fn parts_are_written_as_often_as_asked_and_the_rest_by_shares_of_the_budget() {
    let workshop = Workshop::new("mix-parts");
    let parts = json!([
        { "name": "chinese", "languages": ["zh", "ja"], "weight": 1, "max_epochs": 4 },
        { "name": "code", "input": 1, "epochs": 2.5 },
        { "name": "german", "source": "web/*", "weight": 1 },
    ]);
    let manifest = run(&workshop, json!({ "budget": 2100, "parts": parts }));
    let rows = workshop.rows::<Tokens>(&manifest, "tokens");
    let counts = count(&rows);
    // 600 tokens of code are written 2.5 times, and 600 of the budget are left for two equal shares.
    let of = |prefix: &str, i: std::ops::Range<u32>| -> Vec<usize> {
        i.map(|i| counts.get(&format!("{prefix} {i}")).copied().unwrap_or_default()).collect()
    };
    assert!(of("code", 0..30).iter().all(|&n| n == 2 || n == 3));
    assert!(of("web", 40..100).iter().all(|&n| n == 1), "300 Chinese tokens are the whole share");
    assert!(of("web", 0..40).iter().all(|&n| n <= 1), "300 of 400 German ones");
    let tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    assert!((1900..2300).contains(&tokens), "{tokens}");
    assert_eq!(manifest.metrics["tokens"], tokens as f64);
    assert_eq!((manifest.metrics["tokens.chinese"], manifest.metrics["epochs.chinese"]), (300.0, 1.0));
    let german = manifest.metrics["tokens.german"];
    assert!((220.0..380.0).contains(&german), "{german}");
    assert_eq!(manifest.metrics["share.german"], german / tokens as f64);
    // The books: read and made by repetition, written and dropped.
    let books = &manifest.books;
    let dropped: u64 = books.dropped.values().sum();
    assert_eq!((books.read, books.written), (130, rows.len() as u64));
    assert_eq!(books.read + books.derived, books.written + dropped);
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    assert!(!drops.is_empty() && drops.len() as u64 == dropped);
    assert!(drops.iter().all(|drop| {
        (drop.rule.as_str(), drop.value, drop.detail.as_deref()) == ("mixture", Some(0.75), Some("german"))
    }));
}

#[test]
fn what_no_part_fits_is_left_out_and_the_first_part_that_fits_decides() {
    let workshop = Workshop::new("mix-none");
    let parts = json!([
        { "name": "a", "source": "*/?", "languages": ["de"], "epochs": 1 },
        { "name": "b", "source": "web/a", "input": 1, "epochs": 1 },
    ]);
    let error = told(&workshop.run::<Mix>(json!({ "parts": parts }), &[("tokens", &fed(&workshop))]).unwrap_err());
    assert_eq!(
        error,
        "part `b` has not one token\nhint: `smelt sql` shows which sources and languages there are; an earlier part \
         may take its documents"
    );
    let manifest = run(&workshop, json!({ "parts": [parts[0]] }));
    assert_eq!((manifest.books.written, manifest.books.dropped["no_part"]), (40, 90));
}

#[test]
fn bytes_depend_on_neither_threads_nor_memory_nor_how_the_input_is_cut() {
    let mut all = Vec::new();
    for (threads, memory, rows) in [(1, None, 17), (3, Some(4000), 17), (2, None, 7)] {
        let mut workshop = Workshop::new(&format!("mix-bytes-{threads}"));
        (workshop.threads, workshop.memory) = (threads, memory);
        let inputs = fed_by(&workshop, rows);
        let config = json!({ "parts": [{ "name": "all", "epochs": 1.5 }] });
        let manifest = workshop.run::<Mix>(config, &[("tokens", &inputs)]).unwrap();
        all.push(digests(&manifest).into_iter().filter(|port| port.starts_with("tokens")).collect::<Vec<_>>());
    }
    assert!(all[0] == all[1] && all[0] == all[2], "{all:?}");
    assert_eq!(Mix::VERSION, 1);
    let golden = "tokens 41b6c45a3b889504538fe5f2ededa72f735e66b3de23da48d6b25420c17a44c5";
    assert_eq!(all[0], [golden], "the bytes changed: raise VERSION and write the new digest here");
}

#[test]
fn a_mixture_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("mix-kill");
    let config = json!({ "parts": [{ "name": "all", "epochs": 1.5 }] });
    let kills =
        workshop.kill_at_every_write::<Mix>(env!("CARGO_BIN_EXE_smelt-mix"), config, &[("tokens", &fed(&workshop))]);
    assert!(kills > 20, "{kills}");
}

#[test]
fn configs_that_cannot_work_say_why() {
    let workshop = Workshop::new("mix-refused");
    let refuse = |config: Value| told(&workshop.resolve::<Mix>(config, &[("tokens", &fed(&workshop))]).unwrap_err());
    let part = |fields: Value| {
        let mut part = json!({ "name": "web" });
        part.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({ "parts": [part] })
    };
    for (config, says) in [
        (
            part(json!({})),
            "part `web` must have either `epochs` or `weight`\n\
             hint: `epochs: 1` writes it whole, `weight: 1` gives it its share",
        ),
        (part(json!({ "epochs": 0 })), "0 is no number of times, expected more than 0"),
        (part(json!({ "weight": -1 })), "-1 is no share, expected more than 0"),
        (part(json!({ "weight": 1, "max_epochs": 0 })), "0 is no number of times, expected more than 0"),
        (part(json!({ "weight": 1, "input": 2 })), "there is no input 2 of `tokens`, they are 0 to 1"),
        (part(json!({ "weight": 1, "name": "a b" })), "`a b` is no name, expected letters, digits, `_` and `-`"),
        (
            part(json!({ "weight": 1, "source": "a**b" })),
            "it is no pattern: Pattern syntax error near position 0: recursive wildcards must form a single path \
             component",
        ),
        (
            json!({ "parts": [{ "name": "a", "epochs": 1 }, { "name": "a", "epochs": 1 }] }),
            "there are two parts called `a`",
        ),
    ] {
        assert_eq!(refuse(config), says);
    }
    assert_eq!(
        told(&workshop.resolve::<Mix>(json!({}), &[]).unwrap_err()),
        "`mix` reads tokens, but no input is given\nhint: set `tokens: JOB`"
    );
    let config = json!({ "budget": 1000, "parts": [{ "name": "all", "epochs": 2 }] });
    assert_eq!(
        told(&workshop.run::<Mix>(config, &[("tokens", &fed(&workshop))]).unwrap_err()),
        "the parts with `epochs` have 2600 tokens in all, more than the budget of 1000\nhint: raise it, or write these \
         parts fewer times"
    );
    let config = json!({ "budget": 5000, "parts": [{ "name": "all", "weight": 1, "max_epochs": 2 }] });
    let warnings = workshop.warnings::<Mix>(env!("CARGO_BIN_EXE_smelt-mix"), config, &[("tokens", &fed(&workshop))]);
    assert_eq!(
        warnings,
        ["2600 of the 5000 tokens of the budget are there: part `all` is written 2 times, its `max_epochs`, and the \
          shares of the others go by it"]
    );
}
