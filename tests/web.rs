//! From pages to tokens, as `pipelines/web.yaml` and the README have it.

use crate::smoke::repository;
use crate::support::{Bench, Said};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

/// `smelt` in the repository's folder, where the pipeline finds its pages.
fn smelt(store: &Path, pages: Option<&str>, args: &[&str]) -> Said {
    let mut command = Bench::bare(&repository(), args);
    command.arg("--store").arg(store).env_remove("PAGES").envs(pages.map(|pages| ("PAGES", pages)));
    command.output().expect("smelt starts").into()
}

#[test]
fn pages_become_tokens_and_every_page_is_accounted_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    smelt(store, None, &["run", "pipelines/web.yaml"]).ok();
    let rows = |query: &str| smelt(store, None, &["sql", query, "--format", "csv"]).ok().out;
    let dropped = rows("select job, rule, count(*) from smelt.drops group by 1, 2 order by 1, 2");
    let expected = [
        "clean,letter_words,4",
        "pages,http_status,1",
        "pages,no_main_text,1",
        "pages,not_html,1",
        "unique,near_duplicate,1",
    ];
    assert_eq!(dropped.lines().skip(1).collect::<Vec<_>>(), expected);
    // 19 pages were answered.
    for (table, kept) in [
        ("pages", "16"),
        ("clean", "12"),
        ("unique.documents", "11"),
        ("tokens.tokens", "10"),
        ("tokens.validation", "1"),
    ] {
        assert_eq!(rows(&format!("select count(*) from {table}")).lines().last(), Some(kept), "{table}");
    }
    let results = rows("select name, value from smelt.results where job = 'tokens' and value = 1024");
    assert_eq!(results.lines().last(), Some("vocabulary,1024.0"));

    // What a person reads of it.
    let report = smelt(store, None, &["report", "pipelines/web.yaml", "--job", "clean", "--job", "tokens"]).ok().out;
    let has = |words: &[&str]| {
        report.lines().any(|line| words.iter().all(|word| line.split_whitespace().any(|found| found == *word)))
    };
    assert!(has(&["dropped", "4", "rows", "25.00", "%"]) && has(&["letter_words", "4", "25.0"]), "{report}");
    assert!(has(&["en", "12"]) && has(&["en", "10"]) && has(&["vocabulary", "=", "1024"]), "{report}");
    assert!(report.contains("Lengths of `documents`, in characters") && report.contains(&"█".repeat(40)), "{report}");
    let unknown = smelt(store, None, &["report", "pipelines/web.yaml", "--job", "clen"]).fails(2).err;
    assert!(unknown.starts_with("error: job `clen` of pipeline `web` has not run in "), "{unknown}");

    // Others' pages, as the file's first lines say.
    let own = "tests/parity/pages/site/*.html";
    let said = smelt(store, Some(own), &["run", "pipelines/web.yaml"]).ok().out;
    assert!(said.contains("pages  ingest    3 rows, "), "{said}");
}

/// Two of three problems of a benchmark quote pages: these become no tokens, and `hits` says why.
#[test]
fn what_a_benchmark_asks_becomes_no_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    smelt(store, None, &["run", "pipelines/examples/decontaminate.yaml"]).ok();
    let rows = |query: &str| smelt(store, None, &["sql", query, "--format", "csv"]).ok().out;
    let hits = rows("select document, benchmark, problem, ngrams from apart.hits order by 1, 3");
    let expected = ["crawl.warc.gz#6,quotes,benchmark.jsonl#1,1", "site/page0.html,quotes,benchmark.jsonl#0,10"];
    assert_eq!(hits.lines().skip(1).collect::<Vec<_>>(), expected);
    let dropped = rows("select job, rule, count(*) from smelt.drops where job = 'apart' group by 1, 2");
    assert_eq!(dropped.lines().last(), Some("apart,contaminated,2"));
    let counts = "select (select count(*) from unique) - (select count(*) from apart) as gone, \
                  (select count(*) from apart) - (select count(*) from t) as lost, \
                  (select count(*) from t where document in (select document from apart.hits)) as kept";
    let counts =
        format!("with t as (select document from tokens union all select document from tokens.validation) {counts}");
    assert_eq!(rows(&counts).lines().last(), Some("2,0,0"));
}

/// The README's way to choose limits.
#[test]
fn what_a_rule_sees_is_asked_before_anything_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let pipeline = folder.path().join("p.yaml");
    let text = "name: p\njobs:\n  \
        raw: { stage: ingest, config: { paths: [\"tests/parity/pages/./**/*.{html,warc.gz}\"] } }\n  \
        clean: { stage: clean, input: raw, config: { preset: fineweb, annotate: true } }\n";
    std::fs::write(&pipeline, text).unwrap();
    let store = folder.path().join("store");
    smelt(&store, None, &["run", pipeline.to_str().unwrap()]).ok();
    let rows = |query: &str| smelt(&store, None, &["sql", query, "--format", "csv"]).ok().out;
    let would = rows("select rule, count(*) from clean group by 1 order by 2 desc");
    assert_eq!(would.lines().skip(1).collect::<Vec<_>>(), [",12", "letter_words,4"]);
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let query = "select count(*) filter (where letter_words < 0.8) as now,";
    let rest = "count(*) filter (where letter_words < 0.6) as looser, count(*) from clean";
    assert!(readme.contains(query) && readme.contains(rest), "the README has this query");
    assert_eq!(rows(&format!("{query} {rest}")).lines().last(), Some("4,0,16"));
}

/// Standard input is a source like a file: the same bytes are not read again, others are.
#[test]
fn documents_come_from_standard_input() {
    let bench = Bench::new();
    let raw = r#"raw: { stage: ingest, config: { paths: ["-"] } }"#;
    bench.pipeline("p.yaml", &format!("name: p\nstore: artifacts\njobs:\n  {raw}\n"));
    let lines = |n: usize| (0..n).map(|i| format!("{{\"text\":\"text {i}\"}}\n")).collect::<String>();
    let temporary = tempfile::tempdir().unwrap();
    let smelt = |args: &[&str], input: &str| -> Said {
        let mut command = bench.command(args);
        command.env("TMPDIR", temporary.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that does not read its input closes it.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        child.wait_with_output().unwrap().into()
    };
    let said = smelt(&["run", "p.yaml", "--stdin"], &lines(3)).ok().out;
    assert!(said.contains("raw  ingest  3 rows, "), "{said}");
    let count = smelt(&["sql", "select id, text from raw order by id", "--format", "csv"], "").ok().out;
    assert_eq!(count, "id,text\nstdin#0,text 0\nstdin#1,text 1\nstdin#2,text 2\n");
    assert!(smelt(&["plan", "p.yaml", "--stdin"], &lines(3)).ok().out.contains("raw  cached"));
    let plan = smelt(&["plan", "p.yaml", "--stdin"], &lines(4)).ok().out;
    assert!(plan.contains("raw  new      sources: 1 changed, 0 added, 0 removed, first stdin"), "{plan}");
    let said = smelt(&["run", "p.yaml"], &lines(3)).fails(2).err;
    assert!(said.contains("`-` is standard input, and none was given"), "{said}");
    assert!(said.contains("add `--stdin`: `zcat data.jsonl.gz | smelt run --stdin`"), "{said}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "no copy is left");
}
