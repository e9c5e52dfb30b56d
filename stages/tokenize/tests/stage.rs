//! The stage as a runner runs it.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use serde_json::{Value, json};
use smelt_stage::Stage;
use smelt_stage::kinds::{Drops, Tokens};
use smelt_tokenize::Tokenize;
use smelt_tokenize::bpe::Bpe;
use workshop::{Workshop, digests, told};

fn documents(name: &str, n: usize) -> Vec<(String, String)> {
    let text = |i: usize| format!("fn {name}_{i}(x: u32) -> u32 {{ x + {} }} // ünïcode {i}\n", i * 37);
    (0..n).map(|i| (format!("{name}/{i}"), text(i).repeat(1 + i % 3))).collect()
}

fn fed(workshop: &Workshop, name: &str, n: usize) -> smelt_schemas::InputRef {
    let documents = documents(name, n);
    let borrowed: Vec<(&str, &str)> = documents.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    workshop.feed(&borrowed, 30)
}

/// The bytes of this input, for any number of threads and in every process (the trainer's hash maps have another seed
/// in each). Whoever changes them raises the stage's version.
#[test]
fn bytes_change_only_with_the_version() {
    let mut all = Vec::new();
    for threads in [1, 3] {
        let mut workshop = Workshop::new(&format!("tokenize-golden-{threads}"));
        workshop.threads = threads;
        let input = fed(&workshop, "golden", 100);
        let config = json!({ "vocabulary": 400, "validation": 0.1 });
        all.push(digests(&workshop.run::<Tokenize>(config, &[("documents", &[input])]).unwrap()));
    }
    assert_eq!(all[0], all[1], "threads change bytes");
    assert_eq!(Tokenize::VERSION, 4);
    let golden = [
        "tokens 4e0eac66de413e6d78f4b722d0666744793a807e888d6eb52c4fbfcf520d7fd0",
        "validation 80c613b4a5a824258a1d7c5ff0e4903ff62d87cf1cecff845e74cb209c40e0b6",
        "tokenizer d2c473d524a9b5bae3b2f9f39747a911edc8d786abe5ad5e846a4eedb929b372",
        "drops e603cc303293775d017c4479eca8e30b4410be5485688d3bca70c8d2b411de26",
    ];
    assert_eq!(all[0], golden, "the bytes changed: raise VERSION and write the new digests here");
}

#[test]
fn every_document_is_in_tokens_or_validation_and_comes_back() {
    let workshop = Workshop::new("tokenize-all");
    let input = fed(&workshop, "a", 200);
    let config = json!({ "vocabulary": 400, "validation": 0.2 });
    let manifest = workshop.run::<Tokenize>(config, &[("documents", &[input])]).unwrap();
    let bpe = Bpe::load(&workshop.file(&manifest, "tokenizer", "tokenizer.json")).unwrap();
    let (train, held) =
        (workshop.rows::<Tokens>(&manifest, "tokens"), workshop.rows::<Tokens>(&manifest, "validation"));
    assert_eq!(train.len() + held.len(), 200);
    // Standard deviation 6: four of them.
    assert!((16..64).contains(&held.len()), "{}", held.len());
    let texts = documents("a", 200);
    for row in train.iter().chain(&held) {
        let (_, text) = texts.iter().find(|(id, _)| *id == row.document).unwrap();
        assert_eq!(&bpe.decode(&row.ids).unwrap(), text);
        assert_eq!((row.bytes, row.source.as_str()), (text.len() as u64, "feed"));
    }
    let ids: usize = train.iter().chain(&held).map(|row| row.ids.len()).sum();
    assert_eq!(manifest.metrics["tokens"], ids as f64);
    let config: Value =
        serde_json::from_slice(&workshop.file(&manifest, "tokenizer", "tokenizer_config.json")).unwrap();
    assert_eq!(config["eos_token"], "<|eos|>");
}

#[test]
fn a_shuffle_changes_the_order_alone_and_depends_on_neither_files_nor_memory() {
    let mut workshop = Workshop::new("tokenize-shuffle");
    let documents = documents("a", 300);
    let borrowed: Vec<(&str, &str)> = documents.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    let (input, other) = (workshop.feed(&borrowed, 40), workshop.feed(&borrowed, 7));
    let run = |workshop: &Workshop, input: &smelt_schemas::InputRef, shuffle: Value| {
        let config = json!({ "vocabulary": 300, "validation": 0.1, "shuffle": shuffle });
        let manifest = workshop.run::<Tokenize>(config, &[("documents", std::slice::from_ref(input))]).unwrap();
        assert_eq!((manifest.books.read, manifest.books.written), (300, 300));
        (workshop.rows::<Tokens>(&manifest, "tokens"), workshop.rows::<Tokens>(&manifest, "validation"))
    };
    let (plain, held_out) = run(&workshop, &input, Value::Null);
    let (mut shuffled, same) = run(&workshop, &input, json!(5));
    assert_eq!(held_out, same);
    let rows: Vec<&str> = shuffled.iter().map(|row| row.document.as_str()).collect();
    let places: Vec<usize> = rows.iter().map(|id| id.trim_start_matches("a/").parse().unwrap()).collect();
    let near = places.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 10).count();
    assert!(near < 45, "{near} neighbours stayed near each other"); // 17 on average
    assert_ne!(run(&workshop, &input, json!(6)).0, shuffled);
    (workshop.threads, workshop.memory) = (1, Some(10_000)); // a few rows
    assert_eq!(run(&workshop, &other, json!(5)).0, shuffled);
    shuffled.sort_by_key(|row| plain.iter().position(|other| other.document == row.document));
    assert_eq!(shuffled, plain);
}

#[test]
fn fertility_is_told_by_language() {
    let workshop = Workshop::new("tokenize-fertility");
    let input = fed(&workshop, "a", 50);
    let manifest = workshop.run::<Tokenize>(json!({ "vocabulary": 300 }), &[("documents", &[input])]).unwrap();
    let of = |name: &str| manifest.metrics[name];
    let (rows, held_out) =
        (workshop.rows::<Tokens>(&manifest, "tokens"), workshop.rows::<Tokens>(&manifest, "validation"));
    let bytes: u64 = rows.iter().chain(&held_out).map(|row| row.bytes).sum();
    assert_eq!(of("bytes_per_token"), bytes as f64 / of("tokens"));
    assert!((1.0..8.0).contains(&of("tokens_per_word")), "{}", of("tokens_per_word"));
    assert!(!manifest.metrics.keys().any(|name| name.contains('.')), "no language is named: {:?}", manifest.metrics);
}

#[test]
fn a_given_tokenizer_is_used_and_passed_on_unchanged() {
    let workshop = Workshop::new("tokenize-given");
    let input = fed(&workshop, "a", 50);
    let first = workshop.run::<Tokenize>(json!({ "vocabulary": 300 }), &[("documents", &[input])]).unwrap();
    let tokenizer = workshop.port(&first, "tokenizer");
    let other = workshop.feed(&[("x", "zebra crossing")], 1);
    let inputs = [("documents", &[other][..]), ("tokenizer", &[tokenizer][..])];
    let second = workshop.run::<Tokenize>(json!({ "validation": 0.0 }), &inputs).unwrap();
    assert_eq!(first.ports["tokenizer"].digest, second.ports["tokenizer"].digest);
    let bpe = Bpe::load(&workshop.file(&first, "tokenizer", "tokenizer.json")).unwrap();
    assert_eq!(workshop.rows::<Tokens>(&second, "tokens")[0].ids, bpe.encode(&["zebra crossing"]).unwrap()[0]);
}

#[test]
fn weights_set_what_is_learnt_and_what_is_written() {
    let workshop = Workshop::new("tokenize-weights");
    let (a, b) = (fed(&workshop, "a", 300), workshop.feed(&[("q", &"quxquxqux ".repeat(200))], 1));
    let config = json!({ "vocabulary": 300, "validation": 0.0, "learn_weights": [1, 0], "weights": [0, 1] });
    let manifest = workshop.run::<Tokenize>(config, &[("documents", &[a.clone(), b])]).unwrap();
    let bpe = Bpe::load(&workshop.file(&manifest, "tokenizer", "tokenizer.json")).unwrap();
    assert_eq!(bpe.encode(&["qux"]).unwrap()[0].len(), 3, "nothing was learnt from the second input");
    assert_eq!(manifest.books.dropped["mixture"], 300);
    assert_eq!(manifest.books.written, 1);

    let c = fed(&workshop, "c", 900);
    let config = json!({ "vocabulary": 300, "validation": 0.0, "weights": [1, 1] });
    let manifest = workshop.run::<Tokenize>(config, &[("documents", &[a, c])]).unwrap();
    let rows = workshop.rows::<Tokens>(&manifest, "tokens");
    let of = |name: &str| -> usize {
        rows.iter().filter(|row| row.document.starts_with(name)).map(|row| row.ids.len()).sum()
    };
    let ratio = of("c/") as f64 / of("a/") as f64;
    assert_eq!(rows.iter().filter(|row| row.document.starts_with("a/")).count(), 300);
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    assert_eq!(drops.len() as u64, manifest.books.dropped["mixture"]);
    let share = |drop: &smelt_stage::kinds::Drop| drop.value.unwrap();
    assert!(
        drops.iter().all(|drop| drop.id.starts_with("c/") && drop.rule == "mixture" && share(drop) == share(&drops[0]))
    );
    // three times as many texts, nearly as long as those of `a`
    assert!((share(&drops[0]) - 1.0 / 3.0).abs() < 0.03, "{}", share(&drops[0]));
    // 300 of 900 documents, chosen one by one: standard deviation 5 %; four of them.
    assert!((ratio - 1.0).abs() < 0.2, "{ratio}");
}

#[test]
fn a_mixture_that_leaves_out_most_of_an_input_and_an_empty_validation_are_told() {
    let workshop = Workshop::new("tokenize-warnings");
    let (few, many) = (workshop.feed(&[("a", "ten little words")], 1), fed(&workshop, "b", 90));
    let warnings = |config: Value, inputs: &[smelt_schemas::InputRef]| {
        workshop.warnings::<Tokenize>(env!("CARGO_BIN_EXE_smelt-tokenize"), config, &[("documents", inputs)])
    };
    let found = warnings(json!({ "vocabulary": 300, "weights": [1, 1] }), &[few.clone(), many.clone()]);
    assert_eq!(found.len(), 2, "{found:#?}");
    let left_out = "of input 2 of `documents` (`feed`): it has ";
    assert!(found[0].starts_with("`weights` leave out 99.") && found[0].contains(left_out), "{}", found[0]);
    assert!(
        found[0].contains(", input 1 of `documents` (`feed`) only ") && found[0].ends_with(" for 1"),
        "{}",
        found[0]
    );
    assert!(found[1].starts_with("`validation` is empty: of "), "{}", found[1]);
    assert_eq!(
        warnings(json!({ "vocabulary": 300 }), std::slice::from_ref(&few)),
        ["`validation` is empty: of 1 documents 0.1 were to be held out on average, and none was: raise \
                `validation`, now 0.05"]
    );
    assert!(warnings(json!({ "vocabulary": 300, "validation": 0 }), std::slice::from_ref(&few)).is_empty());
    assert!(
        warnings(json!({ "vocabulary": 300, "weights": [0, 1] }), &[few, many]).is_empty(),
        "a weight of 0 says so itself"
    );
}

#[test]
fn a_document_that_spells_special_tokens_is_text() {
    let workshop = Workshop::new("tokenize-special");
    let input = workshop.feed(&[("x", "a <|eos|> b <|user|> c\0\u{feff}")], 1);
    let manifest =
        workshop.run::<Tokenize>(json!({ "vocabulary": 265, "validation": 0.0 }), &[("documents", &[input])]).unwrap();
    let rows = workshop.rows::<Tokens>(&manifest, "tokens");
    assert!(rows[0].ids.iter().all(|&id| id >= 9), "{:?}", rows[0].ids);
}

#[test]
fn wrong_configs_and_empty_texts_are_refused() {
    let workshop = Workshop::new("tokenize-config");
    let one = workshop.feed(&[("x", "")], 1);
    let refuse = |config: Value| {
        let error = workshop.resolve::<Tokenize>(config, &[("documents", std::slice::from_ref(&one))]).unwrap_err();
        (error.problem().field.clone().unwrap_or_default(), told(&error))
    };
    let expected = |field: &str, text: &str| (field.to_owned(), text.to_owned());
    assert_eq!(
        refuse(json!({ "vocabulary": 100 })),
        expected(
            "/vocabulary",
            "100 tokens are too few, expected at least 265\nhint: 256 bytes and 9 special tokens are always there"
        )
    );
    assert_eq!(
        refuse(json!({ "validation": 1 })),
        expected("/validation", "1 is no share to hold out, expected 0 to below 1")
    );
    assert_eq!(
        refuse(json!({ "weights": [1, 2] })),
        expected("/weights", "2 weights for 1 inputs\nhint: give one weight per input, in their order")
    );
    assert_eq!(
        refuse(json!({ "learn_weights": [0] })),
        expected("/learn_weights", "weights must be 0 or more, and one of them above 0")
    );
    let error = workshop.run::<Tokenize>(json!({}), &[("documents", std::slice::from_ref(&one))]).unwrap_err();
    assert_eq!(told(&error), "the documents hold no text: not one token was written");
}

#[test]
fn a_job_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("tokenize-kills");
    let input = fed(&workshop, "a", 60);
    let kills = workshop.kill_at_every_write::<Tokenize>(
        env!("CARGO_BIN_EXE_smelt-tokenize"),
        json!({ "vocabulary": 300, "weights": [1], "shuffle": 5 }),
        &[("documents", &[input])],
    );
    // A lease, a shard and a record of each unit, the manifest.
    assert!(kills >= 12, "killed {kills} times");
}

#[test]
fn many_workers_with_kills_end_with_the_same_bytes() {
    let workshop = Workshop::new("tokenize-workers");
    let input = fed(&workshop, "a", 60);
    let config = json!({ "vocabulary": 300, "weights": [1] });
    let kills = workshop.spread::<Tokenize>(env!("CARGO_BIN_EXE_smelt-tokenize"), config, &[("documents", &[input])]);
    assert!(kills >= 15, "killed {kills} times");
}
