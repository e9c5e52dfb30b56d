//! Recall by injection: copies of drawn documents, each changed in one way, and how many of them `dedup` finds.

use std::collections::HashMap;

use serde_json::{Value, json};
use smelt_dedup::Dedup;
use smelt_dedup::minhash::{MinHash, jaccard};
use smelt_stage::kinds::{Documents, Drops};

use crate::workshop::Workshop;

/// How a copy differs from its original.
pub(crate) const WAYS: [(&str, Change); 13] = [
    ("not at all", Change::Nothing),
    ("wrapped at another width", Change::Wrapped),
    ("in capitals", Change::Capitals),
    ("other marks", Change::Marks),
    ("other numbers", Change::Numbers),
    ("marks, numbers, case and width", Change::All),
    ("1 % of words replaced", Change::Words(1)),
    ("2 % of words replaced", Change::Words(2)),
    ("5 % of words replaced", Change::Words(5)),
    ("10 % of words replaced", Change::Words(10)),
    ("20 % of words replaced", Change::Words(20)),
    ("its first half, then new text", Change::Half),
    ("a passage of 60 words in new text", Change::Passage),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    Wrapped,
    Capitals,
    Marks,
    Numbers,
    All,
    /// Percent.
    Words(usize),
    Half,
    Passage,
}

/// What was found of the copies of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Recall {
    pub planted: usize,
    /// Dropped for their originals by `exact`, and by `near` with FineWeb's parameters.
    pub equal: usize,
    pub near: usize,
    /// What `near` is expected to find, by the similarities of their shingles, and the standard deviation.
    pub expected: f64,
    pub deviation: f64,
    /// Share of the copies' words that `passages` cuts.
    pub cut: f64,
}

struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }

    /// A third of all words are common ones.
    fn word(&mut self) -> String {
        const SYLLABLES: [&str; 12] = ["ba", "ke", "li", "mo", "nu", "pra", "se", "ti", "vo", "cha", "go", "ster"];
        let mut number = if self.below(3) == 0 { self.below(100) } else { self.below(50_000) };
        let mut word = String::new();
        while number > 0 || word.is_empty() {
            word += SYLLABLES[number % 12];
            number /= 12;
        }
        word
    }

    /// Words in sentences with commas and numbers.
    fn words(&mut self, count: usize) -> Vec<String> {
        let mut words = Vec::with_capacity(count);
        let mut left = 0;
        for _ in 0..count {
            let mut word = if self.below(25) == 0 { self.below(3000).to_string() } else { self.word() };
            if left == 0 {
                left = 6 + self.below(15);
                word[..1].make_ascii_uppercase();
            }
            left -= 1;
            match (left, self.below(10)) {
                (0, _) => word.push('.'),
                (_, 0) => word.push(','),
                _ => {}
            }
            words.push(word);
        }
        words
    }
}

/// Lines of at most `width` characters.
fn wrapped(words: &[String], width: usize) -> String {
    let (mut text, mut line) = (String::new(), 0);
    for word in words {
        if line > 0 && line + 1 + word.len() > width {
            text.push('\n');
            line = 0;
        } else if line > 0 {
            text.push(' ');
            line += 1;
        }
        text += word;
        line += word.len();
    }
    text
}

fn changed(change: Change, original: &[String], draw: &mut Draw) -> String {
    let marks = |text: &str| text.replace('.', "!").replace(',', ";").replace('\n', "\n- ");
    let numbers = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "7");
    let text = wrapped(original, 80);
    match change {
        Change::Nothing => text,
        Change::Wrapped => wrapped(original, 55).replace('\n', " \r\n"),
        Change::Capitals => text.to_uppercase(),
        Change::Marks => marks(&text),
        Change::Numbers => numbers(&text),
        Change::All => marks(&numbers(&wrapped(original, 55).to_uppercase())),
        Change::Words(percent) => {
            let mut words = original.to_vec();
            let mut places: Vec<usize> = (0..words.len()).collect();
            for i in 0..(words.len() * percent).div_ceil(100) {
                let chosen = i + draw.below(places.len() - i);
                places.swap(i, chosen);
                words[places[i]] = format!("{}x", draw.word()); // no word of any original ends so
            }
            wrapped(&words, 80)
        }
        Change::Half => {
            let half = original.len() / 2;
            let new = draw.words(original.len() - half);
            wrapped(&[&original[..half], &new].concat(), 80)
        }
        Change::Passage => {
            let (at, half) = (draw.below(original.len() - 60), original.len() / 2);
            let new = draw.words(2 * half);
            wrapped(&[&new[..half], &original[at..at + 60], &new[half..]].concat(), 80)
        }
    }
}

/// Plants `copies` of each kind, and as many originals, of 120 to 400 words. Returns what was found, and how many
/// documents that are no copies were dropped.
pub(crate) fn recall(workshop: &Workshop, copies: usize) -> (Vec<Recall>, usize) {
    let mut draw = Draw(1);
    let (mut originals, mut planted) = (Vec::new(), Vec::new());
    for (way, (_, change)) in WAYS.iter().enumerate() {
        for i in 0..copies {
            let length = 120 + draw.below(281);
            let original = draw.words(length);
            planted.push((format!("{way} {i}"), changed(*change, &original, &mut draw)));
            originals.push((format!("original {way} {i}"), wrapped(&original, 80)));
        }
    }
    let all: Vec<(&str, &str)> =
        originals.iter().chain(&planted).map(|(id, text)| (id.as_str(), text.as_str())).collect();
    let input = workshop.feed(&all, 1000);
    let run = |config: Value| workshop.run::<Dedup>(config, &[("documents", std::slice::from_ref(&input))]).unwrap();
    // Of each document that goes the one that stays.
    let leaders = |config: Value| -> HashMap<String, String> {
        let drops = workshop.rows::<Drops>(&run(config), "drops");
        drops.into_iter().map(|drop| (drop.id, drop.detail.unwrap())).collect()
    };
    let (equal, near) = (leaders(json!({ "near": false })), leaders(json!({ "exact": false })));
    let cut = run(json!({ "exact": false, "near": false, "passages": {} }));
    let left: HashMap<String, String> =
        workshop.rows::<Documents>(&cut, "documents").into_iter().map(|d| (d.id, d.text)).collect();
    let minhash = {
        let mut minhash = MinHash::new(5, 14 * 8, 1);
        minhash.by_script = true;
        minhash
    };
    let words = |text: &str| text.split_whitespace().count() as f64;
    let of_way = |way: usize| {
        let range = way * copies..(way + 1) * copies;
        let pairs = || originals[range.clone()].iter().zip(&planted[range.clone()]);
        let found = |leaders: &HashMap<String, String>| {
            pairs().filter(|(original, copy)| leaders.get(&copy.0) == Some(&original.0)).count()
        };
        let chances = pairs().map(|(original, copy)| {
            let similarity = jaccard(&minhash.shingles(&original.1), &minhash.shingles(&copy.1));
            1.0 - (1.0 - similarity.powi(8)).powi(14)
        });
        let chances: Vec<f64> = chances.collect();
        let texts = |id: &String| left.get(id).map_or(0.0, |text| words(text));
        Recall {
            planted: copies,
            equal: found(&equal),
            near: found(&near),
            expected: chances.iter().sum(),
            deviation: chances.iter().map(|chance| chance * (1.0 - chance)).sum::<f64>().sqrt(),
            cut: 1.0
                - pairs().map(|(_, copy)| texts(&copy.0)).sum::<f64>() / pairs().map(|(_, c)| words(&c.1)).sum::<f64>(),
        }
    };
    let all = (0..WAYS.len()).map(of_way).collect();
    let dropped =
        |leaders: &HashMap<String, String>| originals.iter().filter(|(id, _)| leaders.contains_key(id)).count();
    let shortened = originals.iter().filter(|(id, text)| left.get(id) != Some(text)).count();
    (all, dropped(&equal) + dropped(&near) + shortened)
}

/// A table of what was found, a line a kind.
pub(crate) fn table(recalls: &[Recall]) -> String {
    let mut table = format!(
        "{:34}{:>9}{:>9}{:>9}{:>12}{:>16}\n",
        "a copy, changed", "planted", "exact", "near", "(expected)", "words cut"
    );
    for ((name, _), recall) in WAYS.iter().zip(recalls) {
        let Recall { planted, equal, near, expected, deviation, cut, .. } = recall;
        let percent = |n: f64| format!("{:.1} %", 100.0 * n / *planted as f64);
        let expected = format!("{} ± {:.1}", percent(*expected), 100.0 * deviation / *planted as f64);
        table += &format!(
            "{name:34}{planted:>9}{:>9}{:>9}{expected:>15}{:>13.1} %\n",
            percent(*equal as f64),
            percent(*near as f64),
            100.0 * cut
        );
    }
    table
}
