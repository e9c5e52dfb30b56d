//! Lines, paragraphs and passages that are cut from documents that stay.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::collections::HashMap;

use serde_json::{Value, json};
use smelt_dedup::Dedup;
use smelt_schemas::{InputRef, Manifest};
use smelt_stage::kinds::{Documents, Drops};
use smelt_words::{parts, words};
use workshop::{Workshop, digests};

fn kept(workshop: &Workshop, manifest: &Manifest) -> Vec<(String, String)> {
    workshop.rows::<Documents>(manifest, "documents").into_iter().map(|d| (d.id, d.text)).collect()
}

fn run(workshop: &Workshop, mut config: Value, input: &InputRef, seen: &[InputRef]) -> Manifest {
    for field in ["exact", "near"] {
        config[field] = false.into();
    }
    workshop.run::<Dedup>(config, &[("documents", std::slice::from_ref(input)), ("seen", seen)]).unwrap()
}

fn removed(manifest: &Manifest) -> [f64; 4] {
    ["lines", "paragraphs", "passages", "characters"].map(|what| manifest.metrics[&format!("removed_{what}")])
}

#[test]
fn a_line_stays_where_it_stands_first() {
    let banner = "Accept all of our 12 cookies, please!";
    let documents = [
        ("a", format!("{banner}\nThe first document.\nshort\n")),
        ("b", "The second document is its own.\naccept ALL of our 99 cookies please\nshort\n\nAnd ends here.".into()),
        ("c", format!("{banner}\n  {banner}\n")),
        ("d", "The second document is its own.".to_owned()),
    ];
    let documents: Vec<(&str, &str)> = documents.iter().map(|(id, text)| (*id, text.as_str())).collect();
    for per_file in [1, 4] {
        let workshop = Workshop::new(&format!("dedup-lines-{per_file}"));
        let input = workshop.feed(&documents, per_file);
        let manifest = run(&workshop, json!({ "lines": {} }), &input, &[]);
        let expected = [documents[0].1, "The second document is its own.\nshort\n\nAnd ends here."];
        let texts: Vec<String> = kept(&workshop, &manifest).into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, expected);
        let drops = workshop.rows::<Drops>(&manifest, "drops");
        let told: Vec<(&str, &str, f64, &str)> = drops
            .iter()
            .map(|d| (d.id.as_str(), d.rule.as_str(), d.value.unwrap(), d.detail.as_deref().unwrap()))
            .collect();
        let expected =
            [("c", "little_left", 0.0, "characters left of 78"), ("d", "little_left", 0.0, "characters left of 31")];
        assert_eq!(told, expected);
        assert_eq!((manifest.books.read, manifest.books.written), (4, 2));
        // A line of 36 characters with its end, all of `c` and of `d`.
        assert_eq!(removed(&manifest), [4.0, 0.0, 0.0, f64::from(36 + 78 + 31)]);
        let longer = run(&workshop, json!({ "lines": { "min_chars": 32 } }), &input, &[]);
        assert_eq!(kept(&workshop, &longer).len(), 3, "`d` is shorter than that");
        let numbers = run(&workshop, json!({ "lines": {}, "keep_numbers": true }), &input, &[]);
        assert_eq!(kept(&workshop, &numbers)[1].1, documents[1].1);
        let most = run(&workshop, json!({ "lines": {}, "min_left": 0.65 }), &input, &[]);
        assert_eq!(kept(&workshop, &most).len(), 1, "of `b` 53 of 89 characters are left");
    }
}

#[test]
fn a_paragraph_stays_where_it_stands_first_and_what_was_seen_stood_before() {
    let workshop = Workshop::new("dedup-paragraphs");
    let seen = workshop.feed(&[("s", "It was seen\nbefore all others.\n"), ("t", "It was seen before all others.")], 1);
    let input = workshop.feed(
        &[("a", "Title\n\nIt was seen before all others.\n\nThe end of it."), ("b", "The end\nof it.\n\n\nMore.\n")],
        1,
    );
    let manifest = run(&workshop, json!({ "paragraphs": { "min_chars": 10 } }), &input, std::slice::from_ref(&seen));
    let own = |id: &str, text: &str| (id.to_owned(), text.to_owned());
    assert_eq!(kept(&workshop, &manifest), [own("a", "Title\n\nThe end of it."), own("b", "More.")]);
    assert_eq!(removed(&manifest)[..3], [0.0, 2.0, 0.0]);
    assert_eq!((manifest.books.read, manifest.books.written), (2, 2));
    let alone = run(&workshop, json!({ "paragraphs": { "min_chars": 10 } }), &input, &[]);
    assert_eq!(removed(&alone)[1], 1.0);
}

fn draw(state: &mut u64, n: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*state >> 33) % n
}

/// Documents of few words in which passages repeat, also inside a document, wrapped at random.
fn drawn(seed: u64) -> Vec<(String, String)> {
    let mut state = seed;
    let mut texts: Vec<Vec<String>> = Vec::new();
    for _ in 0..40 {
        let mut text: Vec<String> = Vec::new();
        for _ in 0..1 + draw(&mut state, 3) {
            let from = draw(&mut state, 40) as usize;
            match texts.get(from) {
                Some(other) => {
                    let start = draw(&mut state, other.len() as u64) as usize;
                    let length = draw(&mut state, 30) as usize;
                    text.extend(other[start..].iter().take(length).cloned());
                }
                None => text.extend((0..draw(&mut state, 25)).map(|_| format!("w{}", draw(&mut state, 30)))),
            }
            match draw(&mut state, 6) {
                0 => text.extend(vec!["ha".to_owned(); draw(&mut state, 40) as usize]),
                1 => text.push("漢字漢字漢字".to_owned()),
                _ => {}
            }
        }
        text.push("end".into());
        texts.push(text);
    }
    let joined = |text: &Vec<String>| {
        text.iter().map(|word| format!("{word}{}", [" ", "\n", "  ", " \n\n "][draw(&mut state, 4) as usize])).collect()
    };
    texts.iter().map(joined).enumerate().map(|(i, text)| (i.to_string(), text)).collect()
}

fn tokens(text: &str) -> Vec<&str> {
    words(text).flat_map(parts).collect()
}

/// What is left of each document: every run of `n` tokens is looked up among all of them.
fn obvious(texts: &[(String, String)], seen: usize, n: usize, keep_first: bool) -> Vec<Vec<&str>> {
    let texts: Vec<Vec<&str>> = texts.iter().map(|(_, text)| tokens(text)).collect();
    let mut places: HashMap<&[&str], Vec<(usize, usize)>> = HashMap::new();
    for (document, text) in texts.iter().enumerate() {
        for (at, run) in text.windows(n).enumerate() {
            places.entry(run).or_default().push((document, at));
        }
    }
    let mut gone: Vec<Vec<bool>> = texts.iter().map(|text| vec![false; text.len()]).collect();
    for places in places.values().filter(|places| places.len() > 1) {
        let first = places[0];
        for &(document, at) in places {
            let is_first = document == first.0 && at < first.1 + n;
            if !(keep_first && is_first) {
                gone[document][at..at + n].fill(true);
            }
        }
    }
    let left = texts.iter().zip(&gone).skip(seen);
    left.map(|(text, gone)| text.iter().zip(gone).filter(|(_, gone)| !**gone).map(|(word, _)| *word).collect())
        .collect()
}

#[test]
fn passages_are_those_of_the_obvious_search() {
    let mut cut = 0.0;
    for round in 0..6 {
        let mut workshop = Workshop::new(&format!("dedup-passages-{round}"));
        let texts = drawn(round);
        let seen = if round % 3 == 2 { 12 } else { 0 };
        let fed = |texts: &[(String, String)]| {
            let texts: Vec<(&str, &str)> = texts.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
            workshop.feed(&texts, 1 + 4 * round as usize)
        };
        let (before, input) = (fed(&texts[..seen.max(1)]), fed(&texts[seen..]));
        workshop.memory = (round % 2 == 1).then_some(1000);
        for (n, keep_first) in [(5, true), (8, false), (2, true)] {
            let config = json!({ "passages": { "words": n, "keep_first": keep_first } });
            let manifest = run(&workshop, config, &input, &[before.clone()][..usize::from(seen > 0)]);
            let found: HashMap<String, String> = kept(&workshop, &manifest).into_iter().collect();
            let expected = obvious(&texts, seen, n, keep_first);
            for ((id, text), expected) in texts[seen..].iter().zip(&expected) {
                match found.get(id) {
                    Some(found) => assert_eq!(&tokens(found), expected, "round {round}, {n} words: {id}: {text:?}"),
                    None => assert!(expected.is_empty(), "round {round}, {n} words: {id}: {text:?}"),
                }
            }
            assert_eq!(manifest.books.read, manifest.books.written + manifest.books.dropped_total());
            cut += removed(&manifest)[2];
        }
    }
    assert!(cut > 100.0, "{cut} passages were cut");
}

#[test]
fn pieces_are_sought_in_documents_that_stay() {
    let workshop = Workshop::new("dedup-pieces-stay");
    let line = "A line that stands in each of the three documents.";
    let input = workshop.feed(
        &[
            ("copy", &format!("{line}\none two")),
            ("a", line),
            ("b", line),
            ("longest", &format!("{line}\nand more than that")),
        ],
        1,
    );
    let config = json!({ "keeps": "longest", "lines": {}, "near": false });
    let manifest = workshop.run::<Dedup>(config, &[("documents", &[input])]).unwrap();
    // `b` goes for `a`; `a`, of which nothing is left, does not count as kept; the line stays in `copy`.
    let left: Vec<(String, String)> = kept(&workshop, &manifest);
    assert_eq!(left.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["copy", "longest"]);
    assert_eq!(left[1].1, "and more than that");
    assert_eq!(manifest.books.dropped, [("exact_duplicate".into(), 1), ("little_left".into(), 1)].into());
}

#[test]
fn threads_memory_workers_and_kills_change_no_byte() {
    let texts = drawn(77);
    let texts: Vec<(&str, &str)> = texts.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    let config = json!({
        "words": 3, "lines": { "min_chars": 5 }, "paragraphs": { "min_chars": 5 }, "passages": { "words": 6 },
    });
    let mut all = Vec::new();
    for (threads, memory) in [(1, None), (3, Some(1000))] {
        let mut workshop = Workshop::new(&format!("dedup-pieces-{threads}"));
        (workshop.threads, workshop.memory) = (threads, memory);
        let input = workshop.feed(&texts, 20);
        all.push(digests(&workshop.run::<Dedup>(config.clone(), &[("documents", &[input])]).unwrap()));
    }
    assert_eq!(all[0], all[1]);
    let workshop = Workshop::new("dedup-pieces-workers");
    let input = workshop.feed(&texts, 20);
    let kills = workshop.spread::<Dedup>(env!("CARGO_BIN_EXE_smelt-dedup"), config, &[("documents", &[input])]);
    assert!(kills >= 15, "killed {kills} times");
}
