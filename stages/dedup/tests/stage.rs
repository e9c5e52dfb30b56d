//! The stage as a runner runs it.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use serde_json::{Value, json};
use smelt_dedup::Dedup;
use smelt_stage::Stage;
use smelt_stage::kinds::{ClusterRow, Clusters, Documents, Drops};
use workshop::{Workshop, digests, told};

/// Fifty sentences; `change` puts another word into one of them.
fn essay(subject: &str, change: Option<usize>) -> String {
    let verbs = ["holds", "moves", "finds", "takes", "gives", "turns", "keeps"];
    let sentence = |i: usize| {
        let verb = if change == Some(i) { "zaps" } else { verbs[i % 7] };
        format!("The {subject} of part {} {verb} what the {} needs.\n", letters(i), letters(i * 31 + 7))
    };
    (0..50).map(sentence).collect()
}

/// A word for a number: digits would all be folded to 0.
fn letters(mut i: usize) -> String {
    let mut word = String::from("w");
    while i > 0 {
        word.push((b'a' + (i % 26) as u8) as char);
        i /= 26;
    }
    word
}

fn documents() -> Vec<(String, String)> {
    let own = |id: &str, text: String| (id.to_owned(), text);
    vec![
        own("one", essay("lever", None)),
        own("two", essay("wheel", None)),
        own("near one", essay("lever", Some(20))),
        own("copy of two", essay("wheel", None).replace('\n', "\r\n")),
        own("short", "too short".into()),
        own("also short", "too  short\n".into()),
        own("nearer one", essay("lever", Some(21))),
    ]
}

fn fed(workshop: &Workshop, per_file: usize) -> smelt_schemas::InputRef {
    let documents = documents();
    let borrowed: Vec<(&str, &str)> = documents.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    workshop.feed(&borrowed, per_file)
}

/// The bytes of this input under the default config. Whoever changes them raises the stage's version.
#[test]
fn bytes_change_only_with_the_version() {
    let mut all = Vec::new();
    // Memory for everything, or for a document at a time.
    for (threads, memory) in [(1, None), (3, Some(1000))] {
        let mut workshop = Workshop::new(&format!("dedup-golden-{threads}"));
        (workshop.threads, workshop.memory) = (threads, memory);
        let input = fed(&workshop, 2);
        all.push(digests(&workshop.run::<Dedup>(json!({}), &[("documents", &[input])]).unwrap()));
    }
    assert_eq!(all[0], all[1], "threads or memory change bytes");
    assert_eq!(Dedup::VERSION, 5);
    let golden = [
        "documents 1c2eab74387458bb84d151636697acedd9a9ab7ecf9dfc248a3d58a87a086807",
        "drops dd7d76d5e5bcd446e3765882914a06b6783adc3a13a8702125a9bfd38e5eb5ce",
        "clusters 3bf00801ab1ed0aec5974b8f48912dbed70b3dc035e49c3e30104aef5baf3153",
    ];
    assert_eq!(all[0], golden, "the bytes changed: raise VERSION and write the new digests here");
}

#[test]
fn drops_name_their_leader_and_similarity() {
    let workshop = Workshop::new("dedup-drops");
    let input = fed(&workshop, 3);
    let manifest = workshop.run::<Dedup>(json!({}), &[("documents", &[input])]).unwrap();
    let kept: Vec<String> = workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect();
    assert_eq!(kept, ["one", "two", "short"]);
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    let told: Vec<(&str, &str, &str)> =
        drops.iter().map(|d| (d.id.as_str(), d.rule.as_str(), d.detail.as_deref().unwrap())).collect();
    assert_eq!(
        told,
        [
            ("near one", "near_duplicate", "one"),
            ("copy of two", "exact_duplicate", "two"),
            ("also short", "exact_duplicate", "short"),
            ("nearer one", "near_duplicate", "one"),
        ]
    );
    // One word in 450 changed: 5 of about 450 shingles on either side.
    assert!(drops[0].value.unwrap() > 0.9 && drops[0].value.unwrap() < 1.0, "{:?}", drops[0]);
    assert_eq!(drops[1].value, Some(1.0));
    assert_eq!((manifest.books.read, manifest.books.written), (7, 3));
}

#[test]
fn clusters_say_who_went_with_whom() {
    // Files of one document, so that a cluster's members come from several of them.
    for per_file in [1, 7] {
        let workshop = Workshop::new(&format!("dedup-clusters-{per_file}"));
        let input = fed(&workshop, per_file);
        let manifest = workshop.run::<Dedup>(json!({}), &[("documents", &[input])]).unwrap();
        let rows = workshop.rows::<Clusters>(&manifest, "clusters");
        let similarity = |id: &str| {
            let drops = workshop.rows::<Drops>(&manifest, "drops");
            drops.into_iter().find(|drop| drop.id == id).unwrap().value
        };
        let row = |cluster, document: &str, goes: Option<(&str, &str)>, size| ClusterRow {
            cluster,
            document: document.into(),
            stays: goes.is_none(),
            leader: goes.map(|(leader, _)| leader.into()),
            rule: goes.map(|(_, rule)| rule.into()),
            similarity: goes.filter(|(_, rule)| *rule == "near_duplicate").and_then(|_| similarity(document)),
            size,
        };
        let expected = [
            row(0, "one", None, 3),
            row(0, "near one", Some(("one", "near_duplicate")), 3),
            row(0, "nearer one", Some(("one", "near_duplicate")), 3),
            row(1, "two", None, 2),
            row(1, "copy of two", Some(("two", "exact_duplicate")), 2),
            row(4, "short", None, 2),
            row(4, "also short", Some(("short", "exact_duplicate")), 2),
        ];
        assert_eq!(rows, expected);
        assert!(rows[1].similarity.is_some_and(|similarity| similarity > 0.9));
    }
}

#[test]
fn the_first_input_wins_and_files_do_not_matter() {
    let workshop = Workshop::new("dedup-inputs");
    let (a, b) =
        (workshop.feed(&[("a", "equal text"), ("c", "other text")], 1), workshop.feed(&[("b", "equal text")], 1));
    let ids = |inputs: &[smelt_schemas::InputRef]| -> Vec<String> {
        let manifest = workshop.run::<Dedup>(json!({}), &[("documents", inputs)]).unwrap();
        workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect()
    };
    assert_eq!(ids(&[a.clone(), b.clone()]), ["a", "c"]);
    assert_eq!(ids(&[b, a]), ["b", "c"]);
}

/// Three versions of an essay, a copy of one of them, and a text of its own.
fn versions(workshop: &Workshop, per_file: usize) -> smelt_schemas::InputRef {
    let (essay, changed) = (essay("lever", None), essay("lever", Some(20)));
    workshop.feed_with(json!({
        "documents": [
            ["a", essay], ["b", format!("{changed}One more.")], ["c", changed], ["other", "a text of its own"],
            ["d", essay],
        ],
        "per_file": per_file,
        "times": { "a": 30, "b": 20, "c": 10, "d": 10 },
        "metadata": {
            "a": { "score": 1, "other": { "score": "2.5" } }, "b": { "score": -3 }, "c": { "score": 7 },
            "d": { "score": 7, "other": { "score": "NaN" } },
        },
    }))
}

#[test]
fn the_document_that_a_rule_names_stays() {
    let rules = [
        (json!("first"), "a"),
        (json!("longest"), "b"),
        (json!("earliest"), "c"),
        (json!({ "highest": "score" }), "c"),
        (json!({ "highest": "other.score" }), "a"),
    ];
    for (per_file, memory) in [(1, Some(1000)), (2, None), (5, None)] {
        let mut workshop = Workshop::new(&format!("dedup-keeps-{per_file}"));
        workshop.memory = memory;
        let input = versions(&workshop, per_file);
        for (keeps, stays) in &rules {
            for how in [json!({}), json!({ "jaccard": 0.5 }), json!({ "transitive": true })] {
                let mut config = how.clone();
                config["keeps"] = keeps.clone();
                let inputs = [("documents", std::slice::from_ref(&input))];
                let manifest = workshop.run::<Dedup>(config, &inputs).unwrap();
                let kept: Vec<String> =
                    workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect();
                let mut expected = [*stays, "other"];
                expected.sort_unstable();
                assert_eq!(kept, expected, "{keeps} {how}");
                let drops = workshop.rows::<Drops>(&manifest, "drops");
                assert!(drops.iter().all(|drop| drop.detail.as_deref() == Some(stays)), "{keeps} {how}: {drops:?}");
                let similar = drops.iter().all(|drop| drop.value.is_some_and(|value| value > 0.8));
                assert!(similar && drops.len() == 3, "{keeps} {how}: {drops:?}");
            }
        }
    }
}

#[test]
fn a_rule_says_when_documents_lack_what_it_asks_for() {
    let workshop = Workshop::new("dedup-lacking");
    let input = versions(&workshop, 2);
    let inputs = [("documents", std::slice::from_ref(&input))];
    let error = workshop.run::<Dedup>(json!({ "keeps": { "highest": "quality" } }), &inputs).unwrap_err();
    assert_eq!(error.problem().field.as_deref(), Some("/keeps"));
    assert_eq!(
        told(&error),
        "none of 5 documents has a number `quality`, as a column or in `metadata`\n\
         hint: name what they have, or let the `first` or the `longest` document stay"
    );
    let program = env!("CARGO_BIN_EXE_smelt-dedup");
    let warned = |keeps: Value| workshop.warnings::<Dedup>(program, json!({ "keeps": keeps }), &inputs);
    assert_eq!(warned(json!("earliest")), ["documents without a `time`: 1 of 5; they stay only among others without"]);
    assert!(warned(json!("longest")).is_empty());
}

#[test]
fn pages_of_one_url_are_one_document() {
    let workshop = Workshop::new("dedup-urls");
    let input = workshop.feed_with(json!({
        "documents": [
            ["a", "one version of this page"], ["b", "quite another text"], ["c", "a third version of that page"],
            ["d", "no address"], ["e", "no address either"], ["f", "quite  another text"], ["g", "the page of before"],
        ],
        "per_file": 2,
        "urls": {
            "a": "http://www.example.com/a/", "b": "https://example.com/b", "c": "https://example.com/a#top",
            "f": "https://example.com/f", "g": "example.com/f",
        },
    }));
    let inputs = [("documents", std::slice::from_ref(&input))];
    let outcome = |config: Value| -> Vec<(String, String, Option<String>, Option<f64>)> {
        let manifest = workshop.run::<Dedup>(config, &inputs).unwrap();
        let drops = workshop.rows::<Drops>(&manifest, "drops");
        drops.into_iter().map(|drop| (drop.id, drop.rule, drop.detail, drop.value)).collect()
    };
    let drop = |id: &str, rule: &str, leader: &str, value: Option<f64>| {
        (id.to_owned(), rule.to_owned(), Some(leader.to_owned()), value)
    };
    let of_c = drop("c", "same_url", "a", None);
    let of_f = drop("f", "exact_duplicate", "b", Some(1.0));
    // `g` has the URL of `f`, which goes for another page: it stays, but for whom groups are transitive.
    assert_eq!(outcome(json!({ "url": true, "near": false })), [of_c.clone(), of_f.clone()]);
    let of_g = drop("g", "near_duplicate", "b", None);
    assert_eq!(outcome(json!({ "url": true, "near": false, "transitive": true })), [of_c.clone(), of_f, of_g]);
    let unlike = drop("c", "same_url", "a", Some(0.0));
    assert_eq!(outcome(json!({ "url": true, "exact": false, "jaccard": 0.9 }))[0], unlike);
    let pages = outcome(json!({ "url": true, "near": false, "exact": false }));
    assert_eq!(pages, [of_c, drop("g", "same_url", "f", None)]);
}

#[test]
fn what_was_seen_before_is_dropped_and_not_written_again() {
    for (per_file, memory) in [(1, Some(1000)), (3, None)] {
        let mut workshop = Workshop::new(&format!("dedup-seen-{per_file}"));
        workshop.memory = memory;
        let first = workshop.run::<Dedup>(json!({}), &[("documents", &[fed(&workshop, per_file)])]).unwrap();
        let seen = workshop.port(&first, "documents");
        let (lever, wheel, crank) = (essay("lever", Some(30)), essay("wheel", None), essay("crank", None));
        let longer = format!("{crank}And a line.");
        let new = [
            ("near", lever.as_str()),
            ("new", &crank),
            ("same", &wheel),
            ("newer", &longer),
            ("newest", "a text of its own"),
        ];
        let new = workshop.feed(&new, per_file);
        for (keeps, stays, goes) in [("first", "new", "newer"), ("longest", "newer", "new")] {
            for how in [json!({}), json!({ "jaccard": 0.7 }), json!({ "transitive": true })] {
                let mut config = how.clone();
                config["keeps"] = keeps.into();
                let inputs = [("documents", std::slice::from_ref(&new)), ("seen", std::slice::from_ref(&seen))];
                let manifest = workshop.run::<Dedup>(config, &inputs).unwrap();
                let kept = workshop.rows::<Documents>(&manifest, "documents");
                assert_eq!(kept.into_iter().map(|d| d.id).collect::<Vec<_>>(), [stays, "newest"], "{keeps} {how}");
                let mut told: Vec<[String; 3]> = workshop
                    .rows::<Drops>(&manifest, "drops")
                    .into_iter()
                    .map(|drop| [drop.id, drop.rule, drop.detail.unwrap()])
                    .collect();
                told.sort();
                let mut expected = [
                    ["near", "seen_near_duplicate", "one"],
                    [goes, "near_duplicate", stays],
                    ["same", "seen_exact_duplicate", "two"],
                ];
                expected.sort_unstable();
                assert_eq!(told, expected, "{keeps} {how}");
                assert_eq!((manifest.books.read, manifest.books.written), (5, 2));
                let clusters = workshop.rows::<Clusters>(&manifest, "clusters");
                let leaders: Vec<(u64, &str, u64)> =
                    clusters.iter().filter(|c| c.stays).map(|c| (c.cluster, c.document.as_str(), c.size)).collect();
                let own = if keeps == "first" { 4 } else { 6 };
                assert_eq!(leaders, [(0, "one", 2), (1, "two", 2), (own, stays, 2)], "{keeps} {how}");
            }
        }
    }
}

#[test]
fn near_and_exact_can_be_turned_off() {
    let workshop = Workshop::new("dedup-modes");
    let kept = |config: Value| {
        let input = fed(&workshop, 7);
        let manifest = workshop.run::<Dedup>(config, &[("documents", &[input])]).unwrap();
        manifest.books.written
    };
    assert_eq!(kept(json!({ "near": false })), 5);
    // Texts of fewer than five words have no signature; the equal long ones have equal signatures.
    assert_eq!(kept(json!({ "exact": false })), 4);
    assert_eq!(kept(json!({ "jaccard": 1.0 })), 5);
}

#[test]
fn wrong_configs_are_refused_before_anything_runs() {
    let workshop = Workshop::new("dedup-config");
    let input = workshop.feed(&[("x", "")], 1);
    let refuse = |config: Value| {
        let error = workshop.resolve::<Dedup>(config, &[("documents", std::slice::from_ref(&input))]).unwrap_err();
        (error.problem().field.clone().unwrap_or_default(), told(&error))
    };
    let expected = |field: &str, text: &str| (field.to_owned(), text.to_owned());
    assert_eq!(refuse(json!({ "jaccard": 80 })), expected("/jaccard", "80 is no similarity, expected 0 to 1"));
    assert_eq!(refuse(json!({ "bands": 0 })), expected("/bands", "0 is out of range, expected 1 to 10000"));
    let (field, text) = refuse(json!({ "exact": false, "near": false }));
    assert_eq!(field, "/near");
    assert!(text.starts_with("neither equal nor nearly equal documents are sought\nhint: "), "{text}");
    let (field, text) = refuse(json!({ "keeps": "published" }));
    assert_eq!(field, "/keeps");
    assert_eq!(
        text,
        "`published` clusters are those of all candidates and of nothing else\n\
         hint: set `transitive: true`, `exact: false` and `jaccard: 0` with it, or leave `keeps` out"
    );
    let published = json!({ "keeps": "published", "transitive": true, "exact": false });
    let inputs = [("documents", std::slice::from_ref(&input)), ("seen", std::slice::from_ref(&input))];
    assert_eq!(
        told(&workshop.resolve::<Dedup>(published, &inputs).unwrap_err()),
        "`published` may let a document go that was seen before\nhint: leave `keeps` out, or the input `seen`"
    );
    let error = workshop.resolve::<Dedup>(json!({}), &[]).unwrap_err();
    assert_eq!(told(&error), "`dedup` reads documents, but no input is given\nhint: set `input: JOB`");
}

#[test]
fn a_job_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("dedup-kills");
    let input = fed(&workshop, 3);
    let kills =
        workshop.kill_at_every_write::<Dedup>(env!("CARGO_BIN_EXE_smelt-dedup"), json!({}), &[("documents", &[input])]);
    // A lease, a shard and a record of each unit, the manifest.
    assert!(kills >= 11, "killed {kills} times");
}

#[test]
fn many_workers_with_kills_end_with_the_same_bytes() {
    let workshop = Workshop::new("dedup-workers");
    let input = fed(&workshop, 1);
    let seen = workshop.feed(&[("seen", "too short"), ("also seen", &essay("wheel", Some(7)))], 1);
    for (config, seen) in [(json!({}), &[][..]), (json!({ "keeps": "longest" }), std::slice::from_ref(&seen))] {
        let inputs = [("documents", std::slice::from_ref(&input)), ("seen", seen)];
        let kills = workshop.spread::<Dedup>(env!("CARGO_BIN_EXE_smelt-dedup"), config, &inputs);
        assert!(kills >= 15, "killed {kills} times");
    }
}
