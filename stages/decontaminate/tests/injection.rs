//! What is found of problems that were planted in documents, as they are and changed in many ways.
//!
//! Problems are passages of recorded documents with even numbers, hosts those with odd ones. Both are real
//! text; hosts that have something of a problem by themselves are left out, and their number is printed.

#[path = "../../../tests/parity/data.rs"]
mod data;
mod problems;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::slice::from_ref;

use problems::Feed;
use serde_json::{Value, json};
use smelt_decontaminate::Decontaminate;
use smelt_stage::kinds::{Hit, Hits};
use smelt_words::{Folder, WORD_QUARTERS, unspaced};
use workshop::Workshop;

/// Characters of a host around a plant.
const HOST: usize = 1500;

struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

/// The n-grams of a text in the slow and obvious way.
fn ngrams(text: &str) -> BTreeSet<String> {
    let (mut words, mut folder, mut form) = (Vec::new(), Folder::new(text, false), String::new());
    while let Some(word) = folder.next_word(&mut form) {
        words.push((std::mem::take(&mut form), word.quarters));
    }
    let mut found = BTreeSet::new();
    for end in 1..=words.len() {
        let mut held = 0;
        for start in (0..end).rev() {
            held += words[start].1;
            if held >= 13 * WORD_QUARTERS {
                let run: Vec<&str> = words[start..end].iter().map(|(form, _)| form.as_str()).collect();
                found.insert(run.join(" "));
                break;
            }
        }
    }
    found
}

/// The words of a text, each between two blanks.
fn folded(text: &str) -> String {
    let (mut folder, mut form) = (Folder::new(text, false), " ".to_owned());
    while folder.next_word(&mut form).is_some() {
        form.push(' ');
    }
    form
}

fn quarters(text: &str) -> u32 {
    let (mut folder, mut form) = (Folder::new(text, false), String::new());
    std::iter::from_fn(|| folder.next_word(&mut form)).map(|word| word.quarters).sum()
}

/// Texts as problems and as hosts.
struct Corpus {
    problems: Vec<String>,
    /// Of 8 to 12 words.
    short: Vec<String>,
    hosts: Vec<String>,
    /// Passages of the problems' documents that are no problems.
    others: Vec<String>,
    /// Hosts that share an n-gram with a problem by themselves.
    natural: Vec<String>,
}

fn is_unspaced(text: &str) -> bool {
    2 * text.chars().filter(|&c| unspaced(c).is_some()).count() > text.chars().count()
}

/// Some words of a text, or twice as many characters where there are no blanks.
fn passage(text: &str, lengths: Range<usize>, draw: &mut Draw) -> Option<String> {
    let length = lengths.start + draw.below(lengths.len());
    if is_unspaced(text) {
        let (length, characters) = (2 * length, text.chars().count());
        let skip = draw.below(characters.checked_sub(length)? + 1);
        return Some(text.chars().skip(skip).take(length).collect());
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let start = draw.below(words.len().checked_sub(length)? + 1);
    Some(words[start..start + length].join(" "))
}

impl Corpus {
    fn of(set: &data::Set) -> Self {
        let records = set.records("filters");
        let texts: Vec<&str> = records.iter().filter(|r| r["made"] == false).map(|r| data::text(r, "text")).collect();
        let mut draw = Draw(7);
        let (mut problems, mut others, mut known) = (Vec::new(), Vec::new(), BTreeSet::new());
        let (mut short, mut seen) = (Vec::new(), BTreeSet::new());
        // Every second document of a full set is enough.
        let each = if set.is_full { 4 } else { 2 };
        for text in texts.iter().step_by(each) {
            for list in [&mut problems, &mut others] {
                let Some(drawn) = passage(text, 20..80, &mut draw) else { continue };
                let of = ngrams(&drawn);
                // Tables of numbers have few words, and passages of one text may overlap.
                if of.len() >= 5 && of.is_disjoint(&known) {
                    known.extend(of);
                    list.push(drawn);
                }
            }
            short.extend(passage(text, 8..12, &mut draw));
        }
        // As many folded words, with letters in them, and not in another problem.
        short.retain(|text| {
            let words = folded(text);
            let is_short = ngrams(text).is_empty() && quarters(text) >= 8 * WORD_QUARTERS;
            is_short && words.chars().filter(|c| c.is_alphabetic()).count() > words.len() / 4 && seen.insert(words)
        });
        let sought: BTreeSet<String> = problems.iter().flat_map(|problem| ngrams(problem)).collect();
        let cut = |text: &&str| text.chars().take(HOST).collect::<String>();
        let (natural, hosts) =
            texts.iter().skip(1).step_by(2).map(cut).filter(|host| !host.trim().is_empty()).partition(|host| {
                !ngrams(host).is_disjoint(&sought) || {
                    let host = folded(host);
                    seen.iter().any(|short| host.contains(short))
                }
            });
        others.retain(|text| {
            let text = folded(text);
            !seen.iter().any(|short| text.contains(short))
        });
        Self { problems, short, hosts, others, natural }
    }
}

/// Puts `plant` into a host between two words.
fn planted(host: &str, plant: &str, draw: &mut Draw) -> String {
    let blanks: Vec<usize> = host.match_indices([' ', '\n']).map(|(at, _)| at).collect();
    let at = if blanks.is_empty() { host.len() } else { blanks[draw.below(blanks.len())] };
    format!("{}\n\n{plant}\n\n{}", &host[..at], &host[at..])
}

fn wrapped(text: &str, draw: &mut Draw) -> String {
    let (mut out, mut column, width) = ("> ".to_owned(), 0, 20 + draw.below(40));
    for c in text.chars() {
        column += 1;
        let is_blank = c.is_whitespace();
        match column > width && (is_blank || unspaced(c).is_some()) {
            true => {
                out.push_str("\r\n> ");
                out.extend((!is_blank).then_some(c));
                column = 0;
            }
            false if is_blank => out.push_str(["  ", "\t", "\u{a0}", " "][draw.below(4)]),
            false => out.push(c),
        }
    }
    out
}

/// Other marks around the same words: typographic, full-width or none, and emphasis.
fn marked(text: &str, draw: &mut Draw) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '"' => out.push_str(["“", "«", " ", "*"][draw.below(4)]),
            '\'' | '’' => out.push_str(["’", "'", "", "`"][draw.below(4)]),
            '-' => out.push_str(["–", " - ", "—", "/"][draw.below(4)]),
            '。' | '，' | '、' => out.push_str([". ", ",", "…", "；"][draw.below(4)]),
            '.' | ';' | ':' | '!' | '?' => out.push_str([" ", "... ", "。", " — "][draw.below(4)]),
            ' ' => out.push_str([" ", ", ", " *", "** "][draw.below(4)]),
            '(' | ')' | '[' | ']' | '{' | '}' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A capital for each letter, or for the first of each word, or for none; or full-width letters.
fn cased(text: &str, draw: &mut Draw) -> String {
    match draw.below(4) {
        0 => text.to_uppercase(),
        1 => text.to_lowercase(),
        2 => text
            .split(' ')
            .map(|word| {
                let first = word.chars().next().map(char::to_uppercase).into_iter().flatten();
                first.chain(word.chars().skip(1)).collect::<String>()
            })
            .collect::<Vec<_>>()
            .join(" "),
        _ => text
            .chars()
            .map(|c| if c.is_ascii_alphabetic() { char::from_u32(c as u32 + 0xfee0).unwrap() } else { c })
            .collect(),
    }
}

fn renumbered(text: &str, draw: &mut Draw) -> String {
    text.chars().map(|c| if c.is_ascii_digit() { char::from(b'1' + draw.below(9) as u8) } else { c }).collect()
}

/// Every n-th word is another one.
fn reworded(text: &str, n: usize) -> String {
    if is_unspaced(text) {
        return text.chars().enumerate().map(|(i, c)| if i % (2 * n) == 2 * n - 1 { '鼯' } else { c }).collect();
    }
    let other = |(i, word)| if i % n == n - 1 { "whatsoever" } else { word };
    text.split(' ').enumerate().map(other).collect::<Vec<_>>().join(" ")
}

fn half(text: &str) -> String {
    text.chars().take(text.chars().count() / 2).collect()
}

type Change = fn(&str, &mut Draw) -> String;

/// What is done to a problem, and whether every such copy is found.
type Kind = (&'static str, Change, bool);

/// The last four leave nothing of a short problem, or change nothing.
const CHANGES: [Kind; 10] = [
    ("as it is", |text, _| text.into(), true),
    ("wrapped anew", wrapped, true),
    ("other case and width", cased, true),
    ("other marks", marked, true),
    (
        "all of these",
        |text, draw| {
            let text = marked(text, draw);
            let text = cased(&text, draw);
            wrapped(&text, draw)
        },
        true,
    ),
    ("other digits", renumbered, false),
    ("the first half", |text, _| half(text), false),
    ("every 20th word another", |text, _| reworded(text, 20), false),
    ("every 14th word another", |text, _| reworded(text, 14), false),
    ("every 13th word another", |text, _| reworded(text, 13), false),
];

/// Hits of the stage in these documents.
fn hits(workshop: &Workshop, problems: &[String], documents: &[(String, String)], config: Value) -> Vec<Hit> {
    let rows: Vec<[String; 3]> =
        problems.iter().enumerate().map(|(i, text)| [i.to_string(), text.clone(), String::new()]).collect();
    let fed = workshop.run::<Feed>(json!({ "prompts": rows }), &[]).unwrap();
    let borrowed: Vec<(&str, &str)> = documents.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
    let (input, prompts) = (workshop.feed(&borrowed, 500), workshop.port(&fed, "prompts"));
    let inputs: &[(&str, &[smelt_schemas::InputRef])] =
        &[("documents", from_ref(&input)), ("prompts", from_ref(&prompts))];
    let manifest = workshop.run::<Decontaminate>(config, inputs).unwrap();
    assert_eq!(manifest.books.read, documents.len() as u64);
    workshop.rows::<Hits>(&manifest, "hits")
}

/// Plants every change of every problem in a host, and says how many are found and what else is.
fn inject(set: &data::Set, what: &str, problems: &[String], changes: &[Kind], corpus: &Corpus, config: Value) {
    let mut draw = Draw(11);
    let mut documents: Vec<(String, String)> = Vec::new();
    let mut plant = |id: String, text: &str, draw: &mut Draw| {
        let host = &corpus.hosts[draw.below(corpus.hosts.len())];
        documents.push((id, planted(host, text, draw)));
    };
    for (kind, (_, change, _)) in changes.iter().enumerate() {
        for (i, problem) in problems.iter().enumerate() {
            let changed = change(problem, &mut draw);
            plant(format!("{kind} {i}"), &changed, &mut draw);
        }
    }
    for (i, other) in corpus.others.iter().enumerate() {
        plant(format!("other {i}"), other, &mut draw);
    }
    let workshop = Workshop::new(&format!("injection-{}-{}", set.is_full, what.replace(' ', "-")));
    let hits = hits(&workshop, problems, &documents, config.clone());
    let mut right: BTreeMap<usize, usize> = BTreeMap::new();
    let mut others = Vec::new();
    for hit in &hits {
        match hit.document.split_once(' ') {
            Some((kind, i)) if i == hit.problem && kind != "other" => {
                *right.entry(kind.parse().unwrap()).or_default() += 1;
            }
            _ => others.push(hit),
        }
    }
    let share = |part: usize, all: usize| format!("{part} of {all} = {:.2} %", 100.0 * part as f64 / all as f64);
    let title = format!("{}: {what}", set.name());
    for (kind, (change, _, is_promised)) in changes.iter().enumerate() {
        let found = right.get(&kind).copied().unwrap_or_default();
        data::say(&format!("{title}: recall of {change}: {}", share(found, problems.len())));
        // Folded, a passage of numbers alone is not sought, and marks inside of numbers make others of them.
        let must = *is_promised && config["fold_numbers"] != true;
        assert!(!must || found == problems.len(), "{title}: {change}: {found} of {}", problems.len());
    }
    let of = |change: &str| right[&changes.iter().position(|kind| kind.0 == change).unwrap()];
    assert!(config["fold_numbers"] != true || of("other digits") == of("as it is"), "{title}");
    let planted = hits.len() - others.len();
    data::say(&format!("{title}: precision: {}", share(planted, hits.len())));
    if config["fold_numbers"] == true {
        return; // passages that differ in numbers are then of each other
    }
    // What else is found has an n-gram of the problem indeed, by chance: one of renumbered lines, for example.
    for hit in &others {
        let (_, text) = documents.iter().find(|(id, _)| *id == hit.document).unwrap();
        let problem = &problems[hit.problem.parse::<usize>().unwrap()];
        let has = !ngrams(text).is_disjoint(&ngrams(problem)) || folded(text).contains(&folded(problem));
        assert!(has, "{hit:?} in {text}");
    }
    assert!(others.len() * 500 <= hits.len(), "{title}: {} of {} hits were not planted", others.len(), hits.len());
}

#[test]
fn planted_copies_are_found_however_they_are_set() {
    for set in data::sets() {
        let corpus = Corpus::of(&set);
        let (problems, short) = (&corpus.problems, &corpus.short);
        data::say(&format!(
            "{}: {} problems, {} short ones, {} hosts; {} hosts more have one by themselves",
            set.name(),
            problems.len(),
            short.len(),
            corpus.hosts.len(),
            corpus.natural.len()
        ));
        let report = json!({ "action": "report" });
        inject(&set, "problems", problems, &CHANGES, &corpus, report.clone());
        inject(&set, "short problems", short, &CHANGES[..6], &corpus, report);
        let folded = json!({ "action": "report", "fold_numbers": true });
        inject(&set, "problems with folded numbers", problems, &CHANGES, &corpus, folded);
    }
}

/// The rolling hashes, the table of bits and the forgetting of words change nothing.
#[test]
fn the_documents_found_are_those_of_a_plain_set_of_ngrams() {
    for set in data::sets() {
        let corpus = Corpus::of(&set);
        let sought: BTreeSet<String> = corpus.problems.iter().flat_map(|problem| ngrams(problem)).collect();
        let texts = corpus.natural.iter().chain(&corpus.hosts).chain(&corpus.problems).chain(&corpus.others);
        let documents: Vec<(String, String)> =
            texts.enumerate().map(|(i, text)| (i.to_string(), text.clone())).collect();
        let expected: BTreeSet<&str> = documents
            .iter()
            .filter(|(_, text)| !ngrams(text).is_disjoint(&sought))
            .map(|(id, _)| id.as_str())
            .collect();
        let workshop = Workshop::new(&format!("injection-set-{}", set.is_full));
        let hits = hits(&workshop, &corpus.problems, &documents, json!({ "action": "report" }));
        let found: BTreeSet<&str> = hits.iter().map(|hit| hit.document.as_str()).collect();
        data::say(&format!(
            "{}: {} of {} documents have an n-gram of a problem",
            set.name(),
            found.len(),
            documents.len()
        ));
        assert_eq!(found, expected);
        assert!(found.len() >= corpus.problems.len());
        // How much of a problem: its n-grams that the document has.
        let text = |id: &str| &documents[id.parse::<usize>().unwrap()].1;
        for hit in hits.iter().step_by(7) {
            let of = ngrams(&corpus.problems[hit.problem.parse::<usize>().unwrap()]);
            let shared = of.intersection(&ngrams(text(&hit.document))).count();
            assert!(hit.ngrams >= shared as u64, "{hit:?}: {shared}");
            assert!(hit.ngrams == shared as u64 || of.len() < hit.ngrams as usize + shared, "{hit:?}: {shared}");
        }
    }
}
