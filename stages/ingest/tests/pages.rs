//! Main texts of pages: the small site and crawl of `tests/parity/pages`, whose texts are known, and where the full set
//! lies what trafilatura 1.11 takes from real pages (its licences do not let them be copied here).

#[path = "../../../tests/parity/data.rs"]
mod data;
#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::collections::HashMap;
use std::path::Path;

use data::{say, sets, text};
use serde_json::{Value, json};
use smelt_ingest::Ingest;
use smelt_stage::kinds::{Documents, Drops};
use workshop::{Workshop, digests};

/// How many words, with repeats, two texts have in common: precision and recall of `found`.
fn words_in_common(found: &str, expected: &str) -> (f64, f64) {
    let count = |text: &str| {
        let mut words: HashMap<String, i64> = HashMap::new();
        let separated = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        separated.for_each(|word| *words.entry(word.to_owned()).or_default() += 1);
        words
    };
    let (found, expected) = (count(found), count(expected));
    let common: i64 = found.iter().map(|(word, n)| n.min(expected.get(word).unwrap_or(&0))).sum();
    let share = |words: &HashMap<String, i64>| common as f64 / words.values().sum::<i64>().max(1) as f64;
    (share(&found), share(&expected))
}

fn f1((precision, recall): (f64, f64)) -> f64 {
    if precision + recall == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}

fn pages() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/pages")
}

#[test]
fn pages_of_known_texts_give_these_and_the_others_a_reason() {
    let mut all = Vec::new();
    for threads in [1, 3] {
        let mut workshop = Workshop::new(&format!("ingest-pages-{threads}"));
        workshop.threads = threads;
        let paths = json!({ "paths": [format!("{}/./**/*.{{html,warc.gz}}", pages().display())] });
        let manifest = workshop.run::<Ingest>(paths, &[]).unwrap();
        all.push(digests(&manifest));
        let rows = workshop.rows::<Documents>(&manifest, "documents");
        let known = std::fs::read_to_string(pages().join("pages.jsonl")).unwrap();
        let known: Vec<Value> = known.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), known.len());
        let (mut lines, mut exact) = (0, 0);
        for page in &known {
            let id = page["id"].as_str().unwrap();
            let row = rows.iter().find(|row| row.id == id).unwrap_or_else(|| panic!("{id}"));
            let planted: Vec<&str> = page["paragraphs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
            let (precision, recall) = words_in_common(&row.text, &planted.join("\n"));
            assert!(precision > 0.96 && recall > 0.999, "{id}: precision {precision}, recall {recall}\n{}", row.text);
            lines += planted.len();
            exact += planted.iter().filter(|part| row.text.lines().any(|line| line == **part)).count();
            assert!(!row.text.contains("cookies") && !row.text.contains("Most read"), "{}", row.text);
            let metadata: Value = serde_json::from_str(row.metadata.as_deref().unwrap()).unwrap();
            assert!(metadata["title"].as_str().unwrap().starts_with(page["title"].as_str().unwrap()), "{metadata}");
        }
        assert_eq!(exact, lines, "every paragraph is one line");
        let drops = workshop.rows::<Drops>(&manifest, "drops");
        let rules: Vec<&str> = drops.iter().map(|drop| drop.rule.as_str()).collect();
        assert_eq!(rules, ["no_main_text", "http_status", "not_html"]);
    }
    assert_eq!(all[0], all[1], "threads change bytes");
}

#[test]
fn main_texts_agree_with_those_of_trafilatura() {
    let Some(set) = sets().into_iter().find(|set| set.is_full) else { return };
    let records = set.records("extract");
    let workshop = Workshop::new("ingest-extract");
    let folder = workshop.folder().join("pages");
    std::fs::create_dir_all(&folder).unwrap();
    for record in &records {
        std::fs::write(folder.join(format!("{}.html", text(record, "id"))), text(record, "html")).unwrap();
    }
    let bytes: usize = records.iter().map(|record| text(record, "html").len()).sum();
    let begun = std::time::Instant::now();
    let manifest = workshop.run::<Ingest>(json!({ "paths": [format!("{}/*", folder.display())] }), &[]).unwrap();
    let seconds = begun.elapsed().as_secs_f64();
    let rows = workshop.rows::<Documents>(&manifest, "documents");
    let found: HashMap<&str, &str> =
        rows.iter().map(|row| (row.id.trim_end_matches(".html"), row.text.as_str())).collect();
    let both: Vec<(f64, f64)> = records
        .iter()
        .map(|record| words_in_common(found.get(text(record, "id")).unwrap_or(&""), text(record, "trafilatura")))
        .collect();
    let mean = |of: fn(&(f64, f64)) -> f64| both.iter().map(of).sum::<f64>() / both.len() as f64;
    let (all, precision, recall) = (mean(|&both| f1(both)), mean(|both| both.0), mean(|both| both.1));
    say(&format!(
        "main text of {} pages against trafilatura 1.11 ({}): mean F1 of words {all:.3}, precision {precision:.3}, \
         recall {recall:.3}; {:.1} MB of HTML in {seconds:.1} s",
        records.len(),
        set.name(),
        bytes as f64 / 1e6
    ));
    assert!(all >= 0.92 && recall >= 0.95, "F1 {all}, recall {recall}");
}
