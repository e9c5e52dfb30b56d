//! The store over a real S3 protocol: a server in this process, on a free port of 127.0.0.1.

use crate::s3_server::{KEY, SECRET, Server};
use crate::support::{Bench, Said, digests};
use std::sync::OnceLock;
use std::time::Instant;

/// One that does nothing wrong, for all tests.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

const PIPELINE: &str = "
name: s3
jobs:
  a: { stage: STAGE(count), config: { rows: 40, units: 3 } }
  b: { stage: STAGE(merge), input: a }
  model: { stage: STAGE(train) }
report: select count(*) n from b
";

#[test]
fn a_directory_and_s3_give_the_same_digests() {
    let (server, bench) = (server(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    let said = server.smelt(&bench, SECRET, &["run", "p.yaml", "--store", "s3://bucket/same"]).ok().out;
    assert!(said.contains("| 20 |"), "the report was answered from S3: {said}");
    let digest = |store: &str| {
        let query = "select stage, port, digest from smelt.artifacts where port <> 'metrics' order by 1, 2";
        server.smelt(&bench, SECRET, &["sql", query, "--format", "csv", "--store", store]).ok().out
    };
    assert_eq!(digest("artifacts"), digest("s3://bucket/same"));
    assert_eq!(digests(&bench.store(), "s3").len(), 4);
    let again = server.smelt(&bench, SECRET, &["run", "p.yaml", "--store", "s3://bucket/same"]).ok().out;
    assert!(again.contains("nothing to do"), "{again}");
    assert!(
        server
            .smelt(&bench, SECRET, &["artifacts", "verify", "--store", "s3://bucket/same"])
            .ok()
            .out
            .starts_with("3 artifacts")
    );
}

/// Objects of a bucket are read as files are, and belong to the fingerprint.
#[test]
fn documents_come_from_a_bucket() {
    let (server, bench) = (server(), Bench::new());
    let raw = server.folder.path().join("bucket/raw/2024");
    std::fs::create_dir_all(&raw).unwrap();
    for i in 0..3 {
        let lines: String = (0..4).map(|j| format!("{{\"text\":\"document {i} {j}\"}}\n")).collect();
        std::fs::write(raw.join(format!("part-{i}.jsonl")), lines).unwrap();
    }
    let paths = "s3://bucket/raw/**/part-[02].jsonl";
    bench.pipeline(
        "p.yaml",
        &format!("name: p\njobs: {{ raw: {{ stage: ingest, config: {{ paths: [\"{paths}\"] }} }} }}"),
    );
    server.smelt(&bench, SECRET, &["run", "p.yaml"]).ok();
    let query = ["sql", "select id, text from raw order by id", "--format", "csv"];
    let rows = server.smelt(&bench, SECRET, &query).ok().out;
    assert_eq!(rows.lines().count(), 9, "{rows}");
    assert!(rows.contains("2024/part-0.jsonl#0,document 0 0\n") && rows.contains("2024/part-2.jsonl#3,document 2 3\n"));
    let again = server.smelt(&bench, SECRET, &["run", "p.yaml"]).ok().out;
    assert!(again.contains("nothing to do"), "{again}");
    std::fs::write(raw.join("part-2.jsonl"), "{\"text\":\"another\"}\n").unwrap();
    let later = server.smelt(&bench, SECRET, &["run", "p.yaml"]).ok().out;
    assert!(!later.contains("nothing to do"), "{later}");
    let refused = server.smelt(&bench, "wrong", &["plan", "p.yaml"]);
    assert!(refused.code != Some(0) && refused.err.contains("s3://bucket refuses"), "{refused:?}");
}

/// Phases of a job read the same files, which come over the wire once, and leave nothing behind.
#[test]
fn a_job_fetches_each_file_of_its_inputs_once() {
    let (server, bench) = (Server::start(), Bench::new());
    for file in 0..3 {
        let line = |i: u32| format!("{{\"text\":\"one of {file} documents that says {} and {i}\"}}\n", i * i);
        std::fs::create_dir_all(bench.path("data")).unwrap();
        let lines: String = (0..200).map(line).collect();
        std::fs::write(bench.path(&format!("data/{file}.jsonl")), lines).unwrap();
    }
    bench.pipeline(
        "p.yaml",
        "
name: once
jobs:
  raw: { stage: ingest, config: { paths: [data/*.jsonl] } }
  kept: { stage: dedup, input: raw, config: { keep_numbers: true } }
  tokens: { stage: tokenize, input: kept, config: { vocabulary: 300 } }
",
    );
    let scratch = tempfile::tempdir().unwrap();
    let mut run = bench.command(&["run", "p.yaml", "--store", "s3://bucket/once"]);
    let run = run.envs(server.environment(SECRET)).env("TMPDIR", scratch.path()).env_remove("SMELT_CACHE");
    Said::from(run.output().unwrap()).ok();
    let mut files: Vec<String> = server.reads().into_iter().map(|(path, _)| path).collect();
    files.retain(|path| path.contains("/documents/"));
    let reads = files.len();
    files.sort();
    files.dedup();
    assert!(files.len() >= 2 && reads == files.len(), "{reads} reads of {files:?}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

/// Over 1.2 GB in a bucket a query reads the footers, the columns and the pages that it needs. Parquet's own files are
/// counted alone, by the server.
#[test]
fn a_query_reads_what_it_needs_of_a_gigabyte_in_a_bucket() {
    let (server, bench) = (Server::start(), Bench::new());
    // Files of one put each: what the server keeps of an upload in parts has names that are too long for a disk.
    let config = "{ rows: 1000, units: 200, letters: 1600000 }";
    bench.pipeline("p.yaml", &format!("name: p\njobs:\n  wide: {{ stage: STAGE(count), config: {config} }}\n"));
    let smelt =
        |args: &[&str]| server.smelt(&bench, SECRET, &[args, &["--store", "s3://bucket/wide"]].concat()).ok().out;
    smelt(&["run", "p.yaml"]);
    let sizes = smelt(&["sql", "select sum(bytes) from smelt.artifacts where port = 'documents'", "--format", "csv"]);
    let whole: u64 = sizes.lines().nth(1).and_then(|sum| sum.parse().ok()).expect(&sizes);
    assert!(whole > 1_000_000_000, "{whole} bytes");
    for (query, answer, most) in [
        ("select count(*) n from wide", "1000", 0),
        ("select min(id) || max(id) n from wide", "00000999", 1 << 20),
        ("select count(distinct source) n from wide where id > '0100'", "1", 1 << 20),
        // Two texts of 1.6 MB among a thousand.
        ("select sum(length(text)) n from wide where id in ('0500', '0777')", "3200026", 8 << 20),
    ] {
        server.reads();
        assert_eq!(smelt(&["sql", query, "--format", "csv"]), format!("n\n{answer}\n"), "{query}");
        let reads = server.reads();
        let data = reads.iter().filter(|(path, _)| path.ends_with(".parquet"));
        let (count, bytes) = data.fold((0, 0), |(count, sum), (_, bytes)| (count + 1, sum + bytes));
        println!("{query}: {bytes} bytes of {whole} in {count} reads, {} reads in all", reads.len());
        // The end of each file holds its footer.
        let most = most + 200 * (64 << 10);
        assert!(bytes > 0 && bytes <= most, "{query}: {bytes} bytes in {count} reads");
    }
}

#[test]
fn the_smoke_pipeline_gives_the_same_digests_on_s3() {
    let (server, bench) = (server(), Bench::new());
    let digests = |store: &str| {
        let run = |args: &[&str]| -> Said {
            let mut command = Bench::bare(&crate::smoke::repository(), args);
            command.args(["--store", store]).envs(server.environment(SECRET)).output().unwrap().into()
        };
        run(&["run", "pipelines/smoke.yaml"]).ok();
        let query = "select stage, port, digest from smelt.artifacts where port <> 'metrics' order by 1, 2, 3";
        run(&["sql", query, "--format", "csv"]).ok().out
    };
    let here = digests(bench.path("artifacts").to_str().unwrap());
    // this server stores a key as a file name, so a key may have about 160 characters, not S3's 1024
    assert_eq!(digests("s3://bucket/m"), here);
    assert!(here.lines().count() > 30, "{here}");
}

#[test]
fn wrong_credentials_are_refused_and_never_shown() {
    let (server, bench) = (server(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE);
    let said = server.smelt(&bench, "wrong-secret", &["run", "p.yaml", "--store", "s3://bucket/refused"]).fails(6);
    assert!(
        said.err.contains("store s3://bucket/refused refuses") && said.err.contains("check AWS_ACCESS_KEY_ID"),
        "{}",
        said.err
    );
    assert!(!said.err.contains("wrong-secret") && !said.err.contains(KEY), "{}", said.err);
}

#[test]
fn of_eight_racing_writers_one_commits() {
    let (server, bench) = (server(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE);
    let start = || {
        let mut command =
            bench.command(&["run", "p.yaml", "--store", "s3://bucket/race", "--only", "b", "--cores", "1"]);
        command.envs(server.environment(SECRET)).stdout(std::process::Stdio::null()).spawn().unwrap()
    };
    let mut racers: Vec<_> = (0..8).map(|_| start()).collect();
    assert!(racers.iter_mut().all(|r| r.wait().unwrap().success()));
    let query = "select stage, edition, count(distinct fingerprint) n from smelt.artifacts group by 1, 2 order by 1";
    let said = server.smelt(&bench, SECRET, &["sql", query, "--format", "csv", "--store", "s3://bucket/race"]).ok().out;
    assert_eq!(said, "stage,edition,n\ncount,0,1\nmerge,0,1\n");
    // one attempt wins; a later one says that it adopted the manifest of the winner
    let ask = |args: &[&str]| server.smelt(&bench, SECRET, &[args, &["--store", "s3://bucket/race"]].concat());
    let runs = ask(&["sql", "select run from smelt.runs", "--format", "csv"]).ok().out;
    for job in ["a", "b"] {
        let mut won = std::collections::BTreeSet::new();
        for run in runs.lines().skip(1) {
            let said = ask(&["logs", job, "--events", "--run", run]).out;
            let events: Vec<serde_json::Value> =
                said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
            let of = |kind: &str| events.iter().rfind(|event| event["type"] == kind);
            if of("committed").is_some_and(|event| event["adopted"] == false) {
                won.insert(of("started").unwrap()["attempt"].to_string());
            }
        }
        assert_eq!(won.len(), 1, "job {job}: {won:?}");
    }
}

#[test]
fn a_missing_bucket_and_missing_credentials_are_told_apart() {
    let (server, bench) = (server(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE);
    let said = server.smelt(&bench, SECRET, &["run", "p.yaml", "--store", "s3://nowhere/x"]).fails(2).err;
    assert!(said.contains("bucket") && said.contains("nowhere") && said.contains("hint: "), "{said}");
    let of = |set: &[(&str, &str)]| -> Said {
        let mut command = bench.command(&["run", "p.yaml", "--store", "s3://bucket/profile"]);
        command.env("HOME", bench.folder.path()).envs(set.iter().copied()).output().unwrap().into()
    };
    let said = of(&[]).fails(6).err;
    assert!(said.contains("neither AWS_ACCESS_KEY_ID nor AWS_SECRET_ACCESS_KEY is set"), "{said}");
    assert!(said.contains("~/.aws has no keys for profile `default`"), "{said}");

    // The files of the AWS tools are read, by the runner, its stages and its queries.
    std::fs::create_dir(bench.path(".aws")).unwrap();
    let keys = format!("[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
    std::fs::write(bench.path(".aws/credentials"), keys).unwrap();
    let config = format!("[profile lab]\nregion = us-east-1\nendpoint_url = {}\n", server.address);
    std::fs::write(bench.path(".aws/config"), config).unwrap();
    assert!(of(&[]).fails(6).err.contains("profile `default`"));
    let said = of(&[("AWS_PROFILE", "lab")]).ok().out;
    assert!(said.contains("| 20 |"), "the report was answered: {said}");
}

#[test]
fn an_endpoint_without_a_scheme_is_refused() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", PIPELINE);
    let mut command = bench.command(&["run", "p.yaml", "--store", "s3://bucket/x"]);
    let keys = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let said: Said = command.envs(keys).env("AWS_ENDPOINT_URL", "minio:9000").output().unwrap().into();
    assert_eq!(
        said.fails(6).err,
        "error: `minio:9000`, which AWS_ENDPOINT_URL says, is no address of an S3 server: it does not begin with \
         http:// or https://\n  --> --store\nhint: write it as http://minio:9000 or https://s3.example.org\n"
    );
}

/// Nobody waits ten seconds to learn of a typing error; a server that has answered is waited for.
#[test]
fn a_server_that_is_not_there_is_told_soon() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", PIPELINE);
    // A port that was free a moment ago.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for args in [&["run", "p.yaml"][..], &["sql", "select 1"], &["artifacts", "list"], &["doctor"]] {
        let mut command = bench.command(args);
        command.args(["--store", "s3://bucket/x"]).env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        let begun = Instant::now();
        let said = Said::from(command.env("AWS_ENDPOINT_URL", &address).output().unwrap());
        let seconds = begun.elapsed().as_secs_f64();
        let said = format!("{}{}", said.out, said.err);
        assert!(said.contains("store s3://bucket/x does not answer: "), "{args:?}: {said}");
        assert!(said.contains("Connection refused"), "{args:?}: {said}");
        let hint = format!("hint: does a server listen at {address}, which AWS_ENDPOINT_URL says?\n");
        assert!(said.contains(&hint), "{args:?}: {said}");
        // The doctor starts every stage program besides.
        assert!(args[0] == "doctor" || seconds < 4.0, "{args:?} took {seconds} s");
    }
}

#[test]
fn a_stage_killed_on_s3_goes_on() {
    let (server, bench) = (server(), Bench::new());
    bench.pipeline("p.yaml", PIPELINE).smelt(&["run", "p.yaml"]).ok();
    for n in [1, 3, 6, 8] {
        let store = format!("s3://bucket/kill-{n}");
        let mut command = bench.command(&["run", "p.yaml", "--retries", "0", "--store", &store]);
        let killed = command
            .envs(server.environment(SECRET))
            .env("SMELT_KILL_AT_WRITE", format!("teststage-count:{n}"))
            .output()
            .unwrap();
        assert_eq!(killed.status.code(), Some(4));
        server.smelt(&bench, SECRET, &["run", "p.yaml", "--store", &store]).ok();
        let query = "select digest from smelt.artifacts where port <> 'metrics' order by stage, port";
        let of =
            |store: &str| server.smelt(&bench, SECRET, &["sql", query, "--format", "csv", "--store", store]).ok().out;
        assert_eq!(of(&store), of("artifacts"), "killed at write {n}");
    }
}
