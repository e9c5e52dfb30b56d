//! What people see: plans, listings, and errors with their places.

use crate::support::{Bench, programs};

const PIPELINE: &str = "name: tiny
seed: 3
vars: { rows: 12 }
jobs:
  raw: { stage: STAGE(count), config: { rows: \"${rows}\" } }
  even: { stage: STAGE(merge), input: raw }
  beside: { stage: STAGE(count), config: { seed: 9 } }
";

fn tiny() -> Bench {
    let bench = Bench::new();
    bench.pipeline("tiny.yaml", PIPELINE);
    bench
}

#[test]
fn plan_of_tiny_names_the_changed_field() {
    let bench = tiny();
    let first = bench.smelt(&["plan", "tiny.yaml"]).ok().out;
    let expected = [
        "  raw     new      first run",
        "  even    after raw",
        "  beside  new      first run",
        "  2 new, 0 cached, 1 after them; nothing was run\n",
    ];
    assert_eq!(first, expected.join("\n"));
    bench.smelt(&["run", "tiny.yaml"]).ok();
    let changed = bench.smelt(&["plan", "tiny.yaml", "--set", "raw.config.rows=14"]).ok().out;
    let expected = [
        "  raw     new      config.rows: 12 -> 14",
        "  even    after raw",
        "  beside  cached",
        "  1 new, 1 cached, 1 after them; nothing was run\n",
    ];
    assert_eq!(changed, expected.join("\n"));
    let seeded = bench.smelt(&["plan", "tiny.yaml", "--set", "seed=4"]).ok().out;
    assert!(seeded.contains("config.seed: 3 -> 4") && seeded.contains("beside  cached"), "{seeded}");
}

#[test]
fn a_second_run_does_nothing_and_a_deleted_manifest_runs_its_job_alone() {
    let bench = tiny();
    bench.smelt(&["run", "tiny.yaml"]).ok();
    let again = bench.smelt(&["run", "tiny.yaml"]).ok().out;
    assert!(again.starts_with("tiny: nothing to do, 3 jobs cached"), "{again}");
    let store = bench.store();
    let a = store.pointer("tiny", "raw").unwrap().unwrap().artifact;
    std::fs::remove_file(bench.path(&format!("artifacts/artifacts/{}/{}/{}.json", a.stage, a.fingerprint, a.edition)))
        .unwrap();
    assert!(bench.smelt(&["plan", "tiny.yaml"]).ok().out.contains("raw     new      its manifest is gone"));
    let said = bench.smelt(&["run", "tiny.yaml"]).ok().out;
    assert!(said.contains("1 jobs in") && said.contains("2 cached"), "{said}");
}

#[test]
fn only_and_from_choose_their_jobs() {
    let bench = tiny();
    let only = bench.smelt(&["run", "tiny.yaml", "--only", "even"]).ok().out;
    assert!(only.contains("2 jobs in"), "{only}");
    assert_eq!(bench.store().pointer("tiny", "beside").unwrap(), None);
    let from = bench.smelt(&["run", "tiny.yaml", "--from", "raw", "--set", "vars.rows=14"]).ok().out;
    assert!(from.contains("2 jobs in"), "{from}");
}

/// Checks that a wrong pipeline is refused at `place`, with `words` in the message.
fn refused(text: &str, place: &str, words: &str) {
    let bench = Bench::new();
    let said = bench.pipeline("bad.yaml", text).smelt(&["run", "bad.yaml"]).fails(2);
    assert!(
        said.err.contains(&format!("--> bad.yaml:{place}\n")) || said.err.ends_with(&format!("--> bad.yaml:{place}\n")),
        "place: {}",
        said.err
    );
    assert!(said.err.contains(words), "words: {}", said.err);
    assert!(!bench.path("artifacts").exists(), "nothing is written for a pipeline that is wrong");
}

#[test]
fn a_wrong_pipeline_says_what_where_and_what_to_do() {
    refused(
        "name: p\njobs:\n  a: { stage: STAGE(count), confg: {} }\n",
        &format!("3:{}", 33 + programs().display().to_string().len()),
        "unknown key `confg`",
    );
    refused("name: p\njobs:\n  a:\n    stage: dedupp\n", "4:12", "stage `dedupp` is unknown");
    refused("name: p\njobs:\n  a:\n    stage: dedupp\n", "4:12", "hint: is `dedup` meant?");
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(count)\n    config:\n      row: 3\n",
        "6:7",
        "stage `STAGE` has no config field `row`".split("`STAGE`").next().unwrap(),
    );
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(count)\n    config:\n      row: 3\n",
        "6:7",
        "hint: is `rows` meant?",
    );
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(count)\n    config: { rows: many }\n",
        "5:21",
        "\"many\" is not of type \"integer\"",
    );
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(count)\n    config: { rows: 2000 }\n",
        "5:21",
        "2000 rows are too many",
    );
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(count)\n    config: { rows: 2000 }\n",
        "5:21",
        "hint: ask for 1000 at most",
    );
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(merge)\n    input: b\n",
        "5:12",
        "job `a` reads `b`, and there is no such job",
    );
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(merge)\n    input: b\n  b:\n    stage: STAGE(merge)\n    input: a\n",
        "5:12",
        "jobs wait for each other: a -> b -> a",
    );
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(train)\n  b:\n    stage: STAGE(merge)\n    input: a\n",
        "7:12",
        "job `b` reads documents, but `a` gives checkpoint",
    );
    refused(
        "name: p\njobs:\n  a:\n    stage: STAGE(count)\n    config: { rows: \"${row}\" }\n",
        "5:21",
        "`${row}` is neither in `vars` nor an axis of job `a`",
    );
    for memory in ["4GB", "1MiB"] {
        refused(
            &format!("name: p\njobs:\n  a:\n    stage: STAGE(count)\n    run: {{ memory: {memory} }}\n"),
            "5:20",
            &format!("`{memory}` is no memory to work in, expected 64MiB or more"),
        );
    }
    refused("name: p\njobs:\n  A:\n    stage: STAGE(count)\n", "3:3", "`A` is no name for a job");
    refused("name: p\njobs: {\n", "2:7", "unclosed bracket");
}

#[test]
fn a_variable_that_is_not_there_cannot_be_set() {
    let bench = tiny();
    let said = |set: &str| bench.smelt(&["check", "tiny.yaml", "--set", set]).fails(2).err;
    assert_eq!(
        said("vars.rowss=3"),
        "error: there is no variable `rowss`\n  --> --set vars.rowss=3\nhint: is `vars.rows` meant?\n"
    );
    assert!(said("vars.quite_different=3").contains("hint: variables: rows\n"));
    assert!(said("vars.rows.x=3").contains("variable `rows` has no fields"));
    assert!(said("sed=3").contains("there is no job `sed`"));
    assert!(said("raw.confg.rows=3").contains("unknown key `confg`"));
    assert!(said("raw.config.row=3").contains("is `rows` meant?"));
    // One that the file uses and leaves to the command line.
    let text = PIPELINE.replace("vars: { rows: 12 }\n", "");
    bench.pipeline("tiny.yaml", &text).smelt(&["check", "tiny.yaml", "--set", "vars.rows=3"]).ok();
    assert!(said("vars.row=3").contains("is `vars.rows` meant?"));
}

#[test]
fn a_glob_over_its_own_store_is_refused_before_anything_runs() {
    let bench = Bench::new();
    std::fs::write(bench.path("a.md"), "A text of some words, all of them plain.\n").unwrap();
    let text =
        |paths: &str| format!("name: p\njobs:\n  raw:\n    stage: ingest\n    config: {{ paths: ['{paths}'] }}\n");
    for paths in ["**/*", "./**/*.parquet", "art*/**/*.json"] {
        let said = bench.pipeline("p.yaml", &text(paths)).smelt(&["run", "p.yaml"]).fails(2).err;
        let store = bench.folder.path().canonicalize().unwrap().join("artifacts");
        let what = format!("`{paths}` covers the store of this pipeline, {}", store.display());
        assert!(said.contains(&what) && said.contains("keep the store elsewhere"), "{said}");
        assert!(!store.exists());
    }
    bench.pipeline("p.yaml", &text("**/*.md")).smelt(&["run", "p.yaml"]).ok();
    bench.pipeline("p.yaml", &text("**/*")).smelt(&["check", "p.yaml", "--store", "/tmp/elsewhere"]).ok();
}

#[test]
fn each_makes_instances_and_equal_axes_join() {
    let bench = Bench::new();
    let text = "name: e\njobs:\n  raw: { stage: STAGE(count), each: { seed: [1, 2], rows: [4, 6] }, config: { seed: \
        \"${seed}\", rows: \"${rows}\" } }
  even: { stage: STAGE(merge), each: { seed: [1, 2], rows: [4, 6] }, input: raw }\n  all: { stage: STAGE(merge), \
  input: \"even[*]\" }\n  one: { stage: STAGE(merge), input: \"raw[seed=2,rows=6]\" }\n";
    bench.pipeline("e.yaml", text).smelt(&["run", "e.yaml"]).ok();
    let store = bench.store();
    let rows =
        |job: &str| store.manifest(&store.pointer("e", job).unwrap().unwrap().artifact).unwrap().unwrap().books.read;
    assert_eq!([rows("even[seed=1,rows=4]"), rows("even[seed=2,rows=6]"), rows("all"), rows("one")], [4, 6, 10, 6]);
    let said = bench
        .smelt(&["sql", "select seed, rows, count(*) n from even group by 1, 2 order by 1, 2", "--format", "csv"])
        .ok()
        .out;
    assert_eq!(said, "seed,rows,n\n1,4,2\n1,6,3\n2,4,2\n2,6,3\n");
    let text = "name: e\njobs:\n  raw: { stage: STAGE(count), each: { seed: [1, 2] }, config: { seed: \"${seed}\" } \
        }\n  even:\n    stage: STAGE(merge)\n    input: raw\n";
    let said = bench.pipeline("f.yaml", text).smelt(&["check", "f.yaml"]).fails(2).err;
    assert!(said.contains("read all with `raw[*]`, or give `even` the same axis"), "{said}");
    // A sweep that sweeps nothing.
    let text = "name: e\njobs:\n  raw:\n    stage: STAGE(count)\n    each: { seed: [1, 2] }\n";
    let said = bench.pipeline("f.yaml", text).smelt(&["check", "f.yaml"]).fails(2).err;
    let expected = "error: axis `seed` of job `raw` changes nothing\n  --> f.yaml:5:13\n\
        hint: say where its value goes, such as `config: { seed: \"${seed}\" }`\n";
    assert_eq!(said, expected);
    let set = ["check", "f.yaml", "--set", "raw[seed=2].config.seed=7"];
    bench.smelt(&set).ok();
}

#[test]
fn sql_reads_ports_and_records_and_lists_the_tables_it_knows() {
    let bench = tiny();
    bench.smelt(&["run", "tiny.yaml"]).ok();
    let sql = |q: &str| bench.smelt(&["sql", q, "--format", "csv"]);
    assert_eq!(sql("select count(*) n, sum(length(text)) l from even").ok().out, "n,l\n6,67\n");
    assert_eq!(sql("select rule, count(*) n from even.drops group by 1").ok().out, "rule,n\nodd,6\n");
    assert_eq!(
        sql("select job, read, written, dropped from smelt.jobs where job = 'even'").ok().out,
        "job,read,written,dropped\neven,12,6,6\n"
    );
    assert_eq!(sql("select job, count(*) n from smelt.drops group by 1").ok().out, "job,n\neven,6\n");
    assert_eq!(sql("select state, jobs from smelt.runs").ok().out, "state,jobs\ndone,3\n");
    let unknown = sql("select * from evn").fails(2).err;
    assert!(
        unknown.starts_with(
            "error: there is no table `evn`\nhint: tables: beside, beside.documents, even, \
        even.documents, even.drops, raw"
        ),
        "{unknown}"
    );
    let refused = sql("drop table even").fails(2).err;
    assert!(refused.contains("DDL not supported"), "{refused}");
    let parquet = bench.smelt(&["sql", "select id from even", "--format", "parquet", "--output", "ids.parquet"]).ok();
    assert!(
        parquet.err.contains("ids.parquet") && std::fs::read(bench.path("ids.parquet")).unwrap().starts_with(b"PAR1")
    );
}

#[test]
fn artifacts_are_listed_shown_traced_verified_tagged_and_collected() {
    let bench = tiny();
    bench.smelt(&["run", "tiny.yaml"]).ok();
    assert!(bench.smelt(&["artifacts", "list"]).ok().out.contains("tiny.even"));
    assert!(
        bench
            .smelt(&["artifacts", "show", "even"])
            .ok()
            .out
            .contains("books    12 read + 0 derived = 6 rows kept, 6 dropped: 6 odd")
    );
    let lineage = bench.smelt(&["artifacts", "lineage", "even"]).ok().out;
    assert!(lineage.starts_with("merge ") && lineage.contains("count "), "{lineage}");
    let tag = |job: &str| bench.smelt(&["artifacts", "tag", "best", job]).ok().out;
    let (first, other) = (tag("even"), tag("raw"));
    assert!(first.starts_with("tag:best is merge ") && !first.contains("moved"), "{first}");
    assert!(other.starts_with("tag:best is count ") && other.contains("/0, moved from merge "), "{other}");
    assert!(tag("raw").ends_with(", as before\n"));
    tag("even");
    assert!(bench.smelt(&["artifacts", "tag"]).ok().out.contains("best"));
    assert!(bench.smelt(&["artifacts", "verify"]).ok().out.starts_with("3 artifacts, "));
    // A pipeline may read the tag; gc deletes an old edition that nothing names, and keeps what the tag reaches.
    bench
        .pipeline("t.yaml", "name: t\njobs: { a: { stage: STAGE(merge), input: 'tag:best' } }\n")
        .smelt(&["run", "t.yaml"])
        .ok();
    bench.smelt(&["run", "tiny.yaml", "--set", "vars.rows=20", "--set", "beside.config.seed=10"]).ok();
    let would = bench.smelt(&["artifacts", "gc", "--older-than", "0"]).ok().out;
    assert!(would.contains("would go; `--delete` deletes them"), "{would}");
    assert!(bench.smelt(&["artifacts", "verify"]).ok().out.starts_with("7 artifacts, "), "nothing was deleted");
    let gone = bench.smelt(&["artifacts", "gc", "--older-than", "0", "--delete"]).ok().out;
    assert!(gone.contains("1 artifacts and 0 attempts"), "only `beside` with seed 9 is unreachable: {gone}");
    assert!(bench.smelt(&["artifacts", "verify", "--deep"]).ok().out.starts_with("6 artifacts, "));
    // Damage is found, named, and repaired by a rerun.
    let store = bench.store();
    let m = store.manifest(&store.pointer("tiny", "even").unwrap().unwrap().artifact).unwrap().unwrap();
    let key = store.file_key(&m, "documents", &m.ports["documents"].files[0]);
    let path = bench.path(&format!("artifacts/{key}"));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 7]).unwrap();
    let said = bench.smelt(&["artifacts", "verify"]).fails(3);
    assert!(said.out.contains("its manifest says") && said.err.contains("1 files are damaged"), "{said:?}");
    bench.pipeline(
        "u.yaml",
        "name: u\nvars: { rows: 20 }\nseed: 3\njobs:\n  raw: { stage: STAGE(count), config: { \
        rows: 20 } }\n  even: { stage: STAGE(merge), input: raw }\n  more: { stage: STAGE(merge), input: even }\n",
    );
    let said = bench.smelt(&["run", "u.yaml"]).fails(3).err;
    assert!(said.contains("its manifest says") && said.contains("`smelt rerun` recomputes it"), "{said}");
    bench.smelt(&["rerun", "even", "u.yaml"]).ok();
}

#[test]
fn status_logs_schema_and_doctor_answer() {
    let bench = tiny();
    bench.smelt(&["run", "tiny.yaml", "--only", "even"]).ok();
    let status = bench.smelt(&["status", "tiny.yaml"]).ok().out;
    assert!(status.contains("beside  count  new") && status.contains("last run"), "{status}");
    let json: serde_json::Value =
        serde_json::from_str(&bench.smelt(&["status", "tiny.yaml", "--format", "json"]).ok().out).unwrap();
    assert_eq!(json[1]["state"], "done");
    assert!(bench.smelt(&["schema", "documents"]).ok().out.contains("id: Utf8 not null"));
    assert!(bench.smelt(&["schema", "pipeline"]).ok().out.contains("\"$schema\""));
    assert!(bench.smelt(&["schema", "documnts"]).fails(2).err.contains("is `documents` meant?"));
    assert!(bench.smelt(&["doctor"]).ok().out.contains("create-only puts hold"));
    assert!(bench.smelt(&["logs", "nothing"]).fails(2).err.contains("no run in artifacts has a log of job `nothing`"));
}

#[test]
fn a_store_that_cannot_be_written_or_is_full_is_the_machines_fault() {
    let bench = tiny();
    std::fs::write(bench.path("file"), "x").unwrap();
    let said = bench.smelt(&["run", "tiny.yaml", "--store", "file"]).fails(2).err;
    assert!(said.contains("`file` is no store: it is a file, not a directory"), "{said}");
    // /proc accepts no folder from anybody, not even from root.
    let said = bench.smelt(&["run", "tiny.yaml", "--store", "/proc/smelt"]).fails(6).err;
    assert!(said.contains("store /proc/smelt"), "{said}");
    // A limit on the size of files simulates a full disk: the same call fails, with another error number.
    let mut limited = std::process::Command::new("bash");
    let smelt = programs().join("smelt");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "bash"]).arg(smelt).args([
        "run",
        "tiny.yaml",
        "--set",
        "vars.rows=1000",
        "--set",
        "raw.config.units=1",
    ]);
    let said: crate::support::Said = limited.current_dir(bench.folder.path()).output().unwrap().into();
    let said = said.fails(6).err;
    assert!(said.contains("is full") && said.contains("free some space"), "{said}");
    assert_eq!(crate::support::leftovers(&bench.path("artifacts")), Vec::<String>::new());
}

#[test]
fn a_rerun_leaves_alone_what_never_ran() {
    let bench = tiny();
    bench.smelt(&["run", "tiny.yaml", "--only", "even"]).ok();
    let said = bench.smelt(&["rerun", "raw", "tiny.yaml"]).ok().out;
    assert!(said.contains("reproduced") && said.contains("1 jobs in") && !said.contains("beside"), "{said}");
    assert_eq!(bench.store().pointer("tiny", "beside").unwrap(), None);
}

#[test]
fn the_pipeline_that_ran_last_is_meant_where_none_is_named() {
    let bench = tiny();
    bench.pipeline("other.yaml", "name: other\nreport: select 7 as seven\njobs: { a: { stage: STAGE(count) } }\n");
    let which = bench.smelt(&["status"]).fails(2).err;
    assert!(which.contains("which pipeline?") && which.contains("other.yaml, tiny.yaml"), "{which}");
    bench.smelt(&["run", "tiny.yaml", "--set", "vars.rows=14", "--only", "raw"]).ok();
    let status = bench.smelt(&["status"]).ok().out;
    assert!(status.contains("14 rows") && status.contains("tiny.yaml, last run"), "as it was run: {status}");
    bench.smelt(&["run", "other.yaml", "--store", "elsewhere"]).ok();
    assert!(bench.smelt(&["report", "--store", "elsewhere"]).ok().out.contains("| 7     |"));
    assert!(bench.smelt(&["status"]).ok().out.contains("tiny.yaml, last run"), "of this store");
    let none = bench.smelt(&["logs", "a", "--pipeline", "tiny.yaml", "--store", "elsewhere"]).fails(2).err;
    assert!(none.contains("pipeline `tiny`") || none.contains("no run in"), "{none}");
}

#[test]
fn a_report_is_checked_before_the_jobs_run_that_it_tells_of() {
    let report = |sql: &str| {
        format!(
            "name: p\nreport: |\n  {sql}\njobs: {{ a: {{ stage: STAGE(merge), input: b }}, b: {{ stage: STAGE(count) \
                }} }}\n"
        )
    };
    for (sql, place, words) in [
        ("selct id from a", "3:3", "`report`: Expected: an SQL statement, found: selct"),
        ("select id from aa", "3:3", "`report`: there is no table `aa`"),
        ("select nothing from a", "3:3", "`report`: No field named nothing"),
    ] {
        let bench = Bench::new();
        for verb in ["check", "run"] {
            let said = bench.pipeline("p.yaml", &report(sql)).smelt(&[verb, "p.yaml"]).fails(2).err;
            assert!(said.contains(words) && said.contains(&format!("--> p.yaml:{place}")), "{sql}: {said}");
        }
        assert!(bench.store().artifacts().unwrap().is_empty(), "{sql}");
    }
    let bench = Bench::new();
    let sql = "select count(*) n, sum(d.value) v from a join a.documents b on a.id = b.id left join smelt.drops d on \
        d.id = a.id";
    let said = bench.pipeline("p.yaml", &report(sql)).smelt(&["run", "p.yaml"]).ok().out;
    assert!(said.contains("| n"), "{said}");
}

#[test]
fn one_damaged_file_stands_in_nobody_elses_way() {
    let bench = tiny();
    bench.smelt(&["run", "tiny.yaml"]).ok();
    let store = bench.store();
    let manifest = |job: &str| store.manifest(&store.pointer("tiny", job).unwrap().unwrap().artifact).unwrap().unwrap();
    let beside = manifest("beside");
    let key = store.file_key(&beside, "documents", &beside.ports["documents"].files[0]);
    let path = bench.path(&format!("artifacts/{key}"));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let sql = |q: &str| bench.smelt(&["sql", q, "--format", "csv"]);
    assert_eq!(sql("select count(*) n from even").ok().out, "n\n6\n");
    let said = sql("select * from beside").fails(3).err;
    let what = format!("table `beside`: `{key}` has {} bytes, its manifest says {}", bytes.len() / 2, bytes.len());
    assert!(said.contains(&what) && said.contains("`smelt rerun beside` makes it again"), "{said}");

    // with a truncated manifest its job is new, as the next edition, and everything else is still listed
    let raw = manifest("raw").artifact();
    let path = bench.path(&format!("artifacts/artifacts/{}/{}/0.json", raw.stage, raw.fingerprint));
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 3]).unwrap();
    assert!(bench.smelt(&["plan", "tiny.yaml"]).ok().out.contains("raw     new      its manifest is damaged"));
    let said = bench.smelt(&["artifacts", "verify"]).fails(3);
    assert!(said.out.contains(raw.fingerprint.short()) && said.err.contains("2 files are damaged"), "{said:?}");
    assert!(bench.smelt(&["artifacts", "list"]).ok().out.contains("tiny.even"));
    assert_eq!(sql("select count(*) n from even").ok().out, "n\n6\n");
    bench.smelt(&["run", "tiny.yaml"]).ok();
    assert_eq!(store.pointer("tiny", "raw").unwrap().unwrap().artifact.edition, 1);
    assert!(bench.smelt(&["run", "tiny.yaml"]).ok().out.contains("nothing to do"));
}

#[test]
fn listings_give_programs_numbers_and_csv_holds_lists() {
    let bench = tiny();
    bench.smelt(&["run", "tiny.yaml"]).ok();
    bench.smelt(&["artifacts", "tag", "best", "even"]).ok();
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&bench.smelt(&[args, &["--format", "json"]].concat()).ok().out).unwrap()
    };
    assert!(json(&["status", "tiny.yaml"])[0]["took"].is_f64());
    let listed = json(&["artifacts", "list"]);
    assert!(listed[0]["size"].is_u64());
    let is_named = |a: &serde_json::Value, job: &str| a["named"].to_string().contains(job);
    let rows = |job: &str| listed.as_array().unwrap().iter().find(|a| is_named(a, job)).unwrap()["rows"].clone();
    assert_eq!((rows("tiny.even"), rows("tiny.raw")), (6.into(), 12.into()), "of the first port");
    assert!(json(&["artifacts", "tag"])[0]["set"].is_f64());
    let lists = bench.smelt(&["sql", "select make_array(1, 2) as l, 'x' as x", "--format", "csv"]).ok().out;
    assert_eq!(lists, "l,x\n\"[1,2]\",x\n");
}

/// A stage with `io: files`: a shell script that describes itself and then does `run`.
pub(crate) fn files_stage(bench: &Bench, run: &str) {
    use std::os::unix::fs::PermissionsExt;
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = describe ]; then echo '{{\"protocol\": 1, \"name\": \"sh\", \"version\": 1, \
            \"about\": \"a test\", \
         \"io\": \"files\", \"inputs\": [{{\"name\": \"documents\", \"kind\": \"documents@1.0\", \"arity\": \
         \"one\"}}], \"outputs\": \
         [{{\"name\": \"documents\", \"kind\": \"documents@1.0\"}}], \"config\": {{}}}}'; exit 0; fi\n{run}\n"
    );
    let path = bench.path("stage.sh");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    bench.pipeline(
        "p.yaml",
        "name: p\njobs: { a: { stage: STAGE(count), config: { rows: 12 } }, b: { stage: ./stage.sh, input: a } }\n",
    );
}

#[test]
fn what_a_stage_of_files_says_and_leaves_is_believed_after_a_look() {
    let path_of = |what: &str| format!("$(sed -n 's/.*\"\\(\\/[^\"]*{what}[^\"]*\\)\".*/\\1/p' \"$2\" | head -1)");
    let copy = format!("cp {} {}/a.parquet", path_of("parquet"), path_of("out\\/documents"));

    let bench = Bench::new();
    files_stage(
        &bench,
        "echo '{\"type\": \"error\", \"code\": \"data\", \"message\": \"row 7 is no row\", \"hint\": \"look at row \
            7\"}'; exit 3",
    );
    let said = bench.smelt(&["run", "p.yaml"]).fails(3).err;
    assert!(said.contains("job `b` failed: row 7 is no row") && said.contains("hint: look at row 7"), "{said}");

    let bench = Bench::new();
    files_stage(&bench, &format!("echo nothing > {}/a.parquet", path_of("out\\/documents")));
    let said = bench.smelt(&["run", "p.yaml"]).fails(3).err;
    let words = "left in port `documents` `a.parquet`, which should hold documents@1.0: it is no whole Parquet file";
    assert!(said.contains(words) && said.contains("`smelt schema documents`"), "{said}");

    let bench = Bench::new();
    files_stage(&bench, &copy);
    bench.smelt(&["run", "p.yaml"]).ok();
    let store = bench.store();
    let manifest = store.manifest(&store.pointer("p", "b").unwrap().unwrap().artifact).unwrap().unwrap();
    assert_eq!(
        manifest.ports["documents"].rows(),
        Some(4),
        "rows of the first file, counted for a program that does not say"
    );
}

#[test]
fn a_path_may_name_a_variable_that_the_job_lets_through() {
    let bench = Bench::new();
    std::fs::write(bench.path("a.md"), "A text of some words, all of them plain.\n").unwrap();
    let text = |run: &str| {
        format!("name: p\njobs: {{ raw: {{ stage: ingest, config: {{ paths: ['${{MY_TEXTS}}/*.md'] }}{run} }} }}\n")
    };
    let smelt = |args: &[&str]| -> crate::support::Said {
        bench.command(args).env("MY_TEXTS", bench.folder.path()).output().unwrap().into()
    };
    bench.pipeline("p.yaml", &text(""));
    let said = smelt(&["check", "p.yaml"]).fails(2).err;
    assert!(
        said.contains("`MY_TEXTS`, which a stage does not see") && said.contains("run: { env: [MY_TEXTS] }"),
        "{said}"
    );
    bench.pipeline("p.yaml", &text(", run: { env: [MY_TEXTS] }"));
    smelt(&["run", "p.yaml"]).ok();
}
