//! Answers of SQL: never short, never wrapped, in every format what was asked for.

use crate::support::{Bench, Said};
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::path::PathBuf;

fn csv(bench: &Bench, query: &str) -> Said {
    bench.smelt(&["sql", query, "--format", "csv"])
}

/// The files of a job's port, in the store of `bench`.
fn files(bench: &Bench, pipeline: &str, job: &str, port: &str) -> Vec<(String, PathBuf)> {
    let store = bench.store();
    let manifest = store.manifest(&store.pointer(pipeline, job).unwrap().unwrap().artifact).unwrap().unwrap();
    let key = |file| store.file_key(&manifest, port, file);
    manifest.ports[port].files.iter().map(key).map(|k| (k.clone(), bench.path(&format!("artifacts/{k}")))).collect()
}

#[test]
fn no_table_is_short_without_a_word() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  raw: { stage: STAGE(count), config: { rows: 300 } }\n  even: { stage: STAGE(merge), \
        each: { x: [0, 1] }, input: raw, run: { env: ['X${x}'] } }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    assert_eq!(csv(&bench, "select count(*) n from raw").ok().out, "n\n300\n");
    let refused = |what: &str, remedy: &str| {
        let said = csv(&bench, "select count(*) n from raw").fails(3).err;
        assert!(said.contains(what) && said.contains(remedy), "{what}: {said}");
        assert_eq!(csv(&bench, "select count(*) n from even").ok().out, "n\n300\n", "another table is whole");
    };
    let (key, path) = files(&bench, "p", "raw", "documents").remove(1);
    let whole = std::fs::read(&path).unwrap();
    let remedy = "hint: `smelt rerun raw` makes it again";

    std::fs::remove_file(&path).unwrap();
    refused(&format!("error: table `raw`: `{key}` is missing, its manifest says {} bytes\n", whole.len()), remedy);
    std::fs::write(&path, &whole[..100]).unwrap();
    refused(&format!("error: table `raw`: `{key}` has 100 bytes, its manifest says {}\n", whole.len()), remedy);
    // A page that is damaged, the length and the footer as they were.
    let mut damaged = whole.clone();
    damaged[4..100].fill(0xff);
    std::fs::write(&path, damaged).unwrap();
    let said = csv(&bench, "select * from raw").fails(3).err;
    assert!(said.contains(&format!("error: table `raw`: `{key}` has digest ")) && said.contains(remedy), "{said}");

    bench.smelt(&["rerun", "raw", "p.yaml"]).ok();
    assert_eq!(csv(&bench, "select count(*) n, max(length(text)) l from raw").ok().out, "n,l\n300,13\n");
    std::fs::remove_file(&files(&bench, "p", "even[x=1]", "documents")[0].1).unwrap();
    let said = csv(&bench, "select * from even").fails(3).err;
    assert!(said.contains("hint: `smelt rerun 'even[x=0]'` makes it again"), "both have one recipe: {said}");

    // The same for a manifest: of two instances one is lost.
    let store = bench.store();
    let a = store.pointer("p", "even[x=0]").unwrap().unwrap().artifact;
    std::fs::remove_file(bench.path(&format!("artifacts/artifacts/{}/{}/0.json", a.stage, a.fingerprint))).unwrap();
    for table in ["even", "even.drops"] {
        let said = csv(&bench, &format!("select * from {table}")).fails(3).err;
        let what =
            format!("error: table `{table}`: job `even[x=0]`: its artifact merge {}/0 is gone", a.fingerprint.short());
        assert!(said.contains(&what) && said.contains("hint: `smelt run` makes it again"), "{said}");
    }
    assert_eq!(csv(&bench, "select count(*) n from raw").ok().out, "n\n300\n");
}

#[test]
fn axes_are_numbers_where_they_were_written_so() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count), each: { seed: [0, 1, 10], rate: [0.5, 2], word: [x, '7'] \
        }, config: { seed: '${seed}', rows: 1, units: 1 }, run: { env: ['${word}_${rate}'] } }\n\
        report: select sum(seed + rate) s, max(word) w from a\n";
    let said = bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok().out;
    assert!(said.contains("| 59.0 | x |"), "{said}");
    assert_eq!(csv(&bench, "select distinct seed from a order by seed").ok().out, "seed\n0\n1\n10\n");
    let types = "select arrow_typeof(seed) s, arrow_typeof(rate) r, arrow_typeof(word) w from a limit 1";
    assert_eq!(csv(&bench, types).ok().out, "s,r,w\nInt64,Float64,Utf8\n");
}

#[test]
fn an_integer_that_overflows_is_an_error() {
    let bench = Bench::new();
    bench
        .pipeline("p.yaml", "name: p\njobs: { a: { stage: STAGE(count), config: { rows: 12 } } }\n")
        .smelt(&["run", "p.yaml"])
        .ok();
    let big = "9223372036854775807";
    let from = "from (select cast(id as bigint) n from a)";
    for query in [
        format!("select {big} + 1"),
        format!("select n * {big} {from}"),
        format!("select -{big} - 1 - n {from} order by 1"),
        format!("select -(n - {big} - 1) {from} where n = 0"),
        format!("select n {from} where n + {big} > 0"),
        format!("select sum(n * 800000000000000000) {from}"),
        format!("select n % 2, sum({big}) {from} group by 1"),
        format!("select sum(distinct n * 800000000000000000) {from}"),
        format!("select sum({big}) over (order by n) {from}"),
        "select sum(arrow_cast(x, 'UInt64')) from (values (18446744073709551615), (1)) as t(x)".to_owned(),
    ] {
        let said = csv(&bench, &query).fails(2).err;
        assert!(said.contains("overflow") && said.contains("decimal(38, 0)"), "{query}: {said}");
    }
    for (query, answer) in [
        (
            format!("select n + 1 as m, -n k, 7 - n, n * 2 {from} where n = 3"),
            "m,k,Int64(7) - n,n * Int64(2)\n4,-3,4,6\n",
        ),
        (format!("select sum(n), sum(n + 1) {from}"), "sum(n),sum(n + Int64(1))\n66,78\n"),
        (format!("select n % 3 k, sum(n) s {from} group by 1 order by 1"), "k,s\n0,18\n1,22\n2,26\n"),
        (format!("select sum(n) s {from} where n > 100"), "s\n\"\"\n"),
        // Far beyond on the way, and back.
        (format!("select sum(x) s from (values ({big}), ({big}), (-{big}), (-{big}), (5)) as t(x)"), "s\n5\n"),
        (format!("select sum(distinct n % 2) s {from}"), "s\n1\n"),
        (
            format!(
                "select sum(n) over (order by n rows between 1 preceding and current row) s {from} order by n limit 3"
            ),
            "s\n0\n1\n3\n",
        ),
        (format!("select sum(cast(n as double) / 2) s, avg(n) a, sum(n + 0.5) d {from}"), "s,a,d\n33.0,5.5,72.0\n"),
        (format!("select sum(cast(n as decimal(38, 0)) * {big}) s {from}"), "s\n608742554432415203262\n"),
        ("select date '2026-11-28' + interval '1 day' d, 3 - 5 x".to_owned(), "d,x\n2026-11-29,-2\n"),
    ] {
        let answer = if answer == "s\n\"\"\n" { "s\n\n" } else { answer };
        assert_eq!(csv(&bench, &query).ok().out, answer, "{query}");
    }
}

#[test]
fn json_operators_read_metadata() {
    let bench = Bench::new();
    let rows = "{\"text\": \"one one one\", \"k\": \"v\", \"n\": 3, \"deep\": {\"list\": [1, \"b\"]}}\n\
        {\"text\": \"two two two\", \"k\": \"w\"}\n";
    std::fs::write(bench.path("rows.jsonl"), rows).unwrap();
    bench
        .pipeline("p.yaml", "name: p\njobs: { raw: { stage: ingest, config: { paths: [rows.jsonl] } } }\n")
        .smelt(&["run", "p.yaml"])
        .ok();
    for (query, answer) in [
        ("select text from raw where metadata->>'k' = 'w'", "text\ntwo two two\n"),
        ("select metadata->>'k' k from raw order by 1", "k\nv\nw\n"),
        ("select cast(metadata->'n' as bigint) + 1 n from raw where metadata ? 'n'", "n\n4\n"),
        ("select metadata->'deep'->'list'->>1 b from raw where metadata->>'k' = 'v'", "b\nb\n"),
        (
            "select metadata->'deep' d, metadata->'n' n, metadata->'k' k from raw where metadata->>'k' = 'v'",
            "d,n,k\n\"{\"\"list\"\": [1, \"\"b\"\"]}\",3,\"\"\"v\"\"\"\n",
        ),
        ("select json_length(metadata->'deep'->'list') l from raw where metadata->>'k' = 'v'", "l\n2\n"),
    ] {
        let said = csv(&bench, query).ok().out;
        assert_eq!(said.replace(' ', ""), answer.replace(' ', ""), "{query}");
    }
    let file = ["--format", "parquet", "--output", "d.parquet"];
    bench.smelt(&[&["sql", "select metadata->'deep' d, text from raw"][..], &file].concat()).ok();
}

#[test]
fn every_format_keeps_nulls_apart_from_empty_texts() {
    let bench = Bench::new();
    bench
        .pipeline("p.yaml", "name: p\njobs: { a: { stage: STAGE(count), config: { rows: 900, units: 1 } } }\n")
        .smelt(&["run", "p.yaml"])
        .ok();
    let query = "select * from (values (1, '', null), (2, null, 'a,\"b')) as t(n, x, y) order by n";
    assert_eq!(csv(&bench, query).ok().out, "n,x,y\n1,\"\",\n2,,\"a,\"\"b\"\n");
    let json = bench.smelt(&["sql", query, "--format", "json"]).ok().out;
    assert_eq!(json, "[{\"n\":1,\"x\":\"\",\"y\":null},{\"n\":2,\"x\":null,\"y\":\"a,\\\"b\"}]\n");
    let file = ["--format", "parquet", "--output", "all.parquet"];
    bench.smelt(&[&["sql", "select * from a"][..], &file].concat()).ok();
    let reader = SerializedFileReader::new(std::fs::File::open(bench.path("all.parquet")).unwrap()).unwrap();
    let group = reader.metadata().row_group(0);
    assert!(group.columns().iter().all(|c| format!("{:?}", c.compression()).starts_with("ZSTD")), "{group:?}");
    assert!(group.compressed_size() < group.total_byte_size());
}

#[test]
fn a_reader_that_has_read_enough_is_no_error() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", "name: p\njobs: { a: { stage: STAGE(count) } }\n").smelt(&["run", "p.yaml"]).ok();
    let smelt = crate::support::programs().join("smelt");
    let script = format!(
        "'{}' sql 'select * from generate_series(1, 3000000)' --format csv | head -2; echo ${{PIPESTATUS[0]}}",
        smelt.display()
    );
    let mut command = std::process::Command::new("bash");
    let said: Said = command.args(["-c", &script]).current_dir(bench.folder.path()).output().unwrap().into();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("value\n1\n0\n", ""));
}

#[test]
fn a_store_may_lie_in_any_folder() {
    for folder in ["st/", "./st//", "with blank", "new\nline", "back\\slash", "per%cent#?&", "é", "a:b"] {
        let bench = Bench::new();
        let text = format!(
            "name: p\nstore: {}\njobs: {{ a: {{ stage: STAGE(count) }} }}\nreport: select count(*) n from a\n",
            serde_json::json!(folder)
        );
        let said = bench.pipeline("p.yaml", &text).smelt(&["run", "p.yaml"]).ok().out;
        assert!(said.contains("| 10 |"), "{folder}: {said}");
        assert!(bench.path(folder).join("artifacts").is_dir(), "{folder}");
        let sql = ["sql", "select count(*) n from a", "--format", "csv", "--store", folder];
        assert_eq!(bench.smelt(&sql).ok().out, "n\n10\n", "{folder}");
        bench.smelt(&["report", "p.yaml"]).ok();
        assert!(bench.smelt(&["run", "p.yaml"]).ok().out.contains("nothing to do"), "{folder}");
    }
}

#[test]
fn the_address_of_a_store_begins_where_it_says() {
    let bench = Bench::new();
    let run = |store: &str| -> Said {
        let text = format!("name: p\nstore: '{store}'\njobs: {{ a: {{ stage: STAGE(count) }} }}\n");
        let mut command = bench.pipeline("p.yaml", &text).command(&["run", "p.yaml"]);
        command.env("HOME", bench.path("home")).env("DATA", bench.path("data")).output().unwrap().into()
    };
    for (store, place) in [("~/st", "home/st"), ("${DATA}/st", "data/st"), ("${NOWHERE:-~}/other", "home/other")] {
        run(store).ok();
        assert!(bench.path(place).join("artifacts").is_dir(), "{store}");
    }
    assert!(!bench.path("~").exists() && !bench.path("${DATA}").exists());
    let said = run("${NOWHERE}/st").fails(2).err;
    assert!(
        said.contains("store `${NOWHERE}/st` needs the variable `NOWHERE`") && said.contains("p.yaml:2:8"),
        "{said}"
    );
}

const VIEWS: &str = "name: p\njobs: { a: { stage: STAGE(count), config: { rows: 12 } }, b: { stage: STAGE(count), \
    each: { x: [1, 2] }, config: { rows: '${x}' } } }\n";

#[test]
fn views_are_tables_for_the_report_and_for_sql() {
    let bench = Bench::new();
    let views = "views:\n  few: select id from a where cast(id as bigint) < 3\n  one: select * from few limit 1\n\
        report: select count(*) n from few\n";
    let said = bench.pipeline("p.yaml", &format!("{VIEWS}{views}")).smelt(&["run", "p.yaml"]).ok().out;
    assert!(said.contains("| 3 |"), "{said}");
    assert_eq!(csv(&bench, "select count(*) n from one").ok().out, "n\n1\n");
    assert_eq!(csv(&bench, "select f.id from few f join a on a.id = f.id order by 1 limit 1").ok().out, "id\n0000\n");
    let said = csv(&bench, "select * from fewer").fails(2).err;
    assert!(said.contains("there is no table `fewer`") && said.contains("few, one, smelt.artifacts"), "{said}");
    // A view that is changed is another one at the next run, without a job to do.
    let other = views.replace("< 3", "< 5");
    bench.pipeline("p.yaml", &format!("{VIEWS}{other}")).smelt(&["run", "p.yaml"]).ok();
    assert_eq!(csv(&bench, "select count(*) n from few").ok().out, "n\n5\n");

    for (views, words) in [
        ("views: { few: select idd from a }\n", "error: view `few`: "),
        ("views: { few: select from from }\n", "error: view `few`: "),
        ("views: { few: select * from nowhere }\n", "error: view `few`: there is no table `nowhere`"),
        ("views: { x: select * from y, y: select * from x }\n", "error: view `x` reads itself, by way of `x`, `y`"),
        ("views: { a: select 1 }\n", "error: `a` is a job and a view"),
        ("views: { smelt: select 1 }\n", "error: `smelt` is no name for a view"),
    ] {
        let said = bench.pipeline("q.yaml", &format!("{VIEWS}{views}")).smelt(&["check", "q.yaml"]).fails(2).err;
        assert!(said.contains(words) && said.contains("--> q.yaml:"), "{views}: {said}");
    }
}

#[test]
fn a_query_reads_the_records_that_it_needs_and_no_others() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", VIEWS).smelt(&["run", "p.yaml"]).ok();
    let jobs = "select base, axes, state, progress, written from smelt.jobs order by job";
    let rows = "base,axes,state,progress,written\na,,done,1.0,12\nb,\"{\"\"x\"\":1}\",done,1.0,1\n\
        b,\"{\"\"x\"\":2}\",done,1.0,2\n";
    assert_eq!(csv(&bench, jobs).ok().out, rows);
    let said = csv(&bench, "explain select id from a where id = '3'").ok().out;
    assert!(said.contains("predicate=") && said.contains("projection=[id]"), "{said}");
    let tables = "select table_name from information_schema.tables where table_schema = 'public' order by 1";
    assert_eq!(csv(&bench, tables).ok().out, "table_name\na\nb\n");

    // Records that are no JSON: who reads one of them says so.
    let damage = |key: &str| std::fs::write(bench.path(&format!("artifacts/{key}")), "no JSON").unwrap();
    damage("pipelines/p/b!5Bx=1!5D.json");
    assert_eq!(csv(&bench, "select count(*) n from a").ok().out, "n\n12\n");
    assert_eq!(csv(&bench, "select count(*) n from smelt.runs").ok().out, "n\n1\n");
    for query in ["select * from b", "select * from smelt.jobs", "select * from smelt.drops"] {
        let said = csv(&bench, query).fails(3).err;
        assert!(said.contains("pipelines/p/b!5Bx=1!5D.json"), "{query}: {said}");
    }
}

#[test]
fn lineage_says_what_was_made_of_what() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  raw: { stage: STAGE(count), config: { rows: 30 } }\n  even: { stage: STAGE(merge), \
        input: raw }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    let query = "select l.stage, l.input, l.from_stage, l.from_port, j.job from smelt.lineage l \
        join smelt.jobs j on j.fingerprint = l.from_fingerprint and j.edition = l.from_edition";
    let said = csv(&bench, query).ok().out;
    let line = said.lines().nth(1).unwrap();
    assert!(line.contains("merge,") && line.ends_with("count,documents,raw"), "{said}");
    assert_eq!(said.lines().count(), 2);
}
