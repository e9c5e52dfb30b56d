//! The stage as a runner runs it.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use smelt_ingest::{Config, Ingest};
use smelt_stage::Stage;
use smelt_stage::kinds::{Documents, Drops};
use workshop::{Workshop, digests, told};

/// A folder as cargo's registry has it: crates of two versions under a folder whose name differs between machines.
fn registry(root: &Path, host: &str) -> String {
    let crates = root.join("registry/src").join(host);
    let write = |name: &str, bytes: &[u8]| {
        let path = crates.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for i in 0..20 {
        write(
            &format!("alpha-1.0.{i}/src/lib.rs"),
            format!("//! crate {i}\n{}", "fn f() {}\n".repeat(10 + i)).as_bytes(),
        );
    }
    write("alpha-1.0.0/README.md", "# Alpha\n\nSome words.\n".as_bytes());
    write("alpha-1.0.0/.hidden/x.rs", b"hidden");
    write("beta-2.0.0/src/lib.rs", b"// beta\n");
    write("beta-2.0.0/src/table.rs", "1, 2, 3, 4,\n".repeat(20).as_bytes());
    root.to_str().unwrap().to_owned()
}

fn paths(root: &str) -> Value {
    json!([format!("{root}/registry/src/*/./alpha-1*/**/*.rs"), format!("{root}/registry/src/*/./*/README.md")])
}

/// The bytes of this folder wherever it lies. Whoever changes them raises the stage's version.
#[test]
fn bytes_change_only_with_the_version() {
    let mut all = Vec::new();
    for (threads, host) in [(1, "index.crates.io-1949cf8c6b5b557f"), (3, "github.com-1ecc6299db9ec823")] {
        let mut workshop = Workshop::new(&format!("ingest-golden-{threads}"));
        workshop.threads = threads;
        let root = registry(workshop.folder(), host);
        all.push(digests(&workshop.run::<Ingest>(json!({ "paths": paths(&root) }), &[]).unwrap()));
    }
    assert_eq!(all[0], all[1], "threads or folders change bytes");
    assert_eq!(Ingest::VERSION, 5);
    let golden = [
        "documents e2b2dcfd7178b3ba43a3fec4228b71f8d205883acaedc772a5f5f16454cf66b2",
        "conversations c91c4cfb7a881f0fc59dff04e4683d5b180b6ff9fc69f72f39a27040a72e692a",
        "prompts 44378856dfc343148300958e778257554b44b973ec7b354d156410c6f33ac833",
        "preferences 033621be95346b2ffe9e976e728b01f944eeecc970d3487410bc322682f4c39e",
        "drops e603cc303293775d017c4479eca8e30b4410be5485688d3bca70c8d2b411de26",
    ];
    assert_eq!(all[0], golden, "the bytes changed: raise VERSION and write the new digests here");
}

#[test]
fn documents_are_named_from_the_marker_on() {
    let workshop = Workshop::new("ingest-names");
    let root = registry(workshop.folder(), "host");
    let manifest = workshop.run::<Ingest>(json!({ "paths": paths(&root) }), &[]).unwrap();
    let rows = workshop.rows::<Documents>(&manifest, "documents");
    assert_eq!(rows.len(), 21);
    assert!(rows.is_sorted_by_key(|row| row.id.clone()));
    assert_eq!((rows[0].id.as_str(), rows[0].source.as_str()), ("alpha-1.0.0/README.md", "alpha-1.0.0/README.md"));
    assert_eq!(rows[1].id, "alpha-1.0.0/src/lib.rs");
}

#[test]
fn sources_are_names_and_contents_and_nothing_else() {
    let workshop = Workshop::new("ingest-sources");
    let sources = |host: &str| {
        let folder = workshop.folder().join(format!("at-{host}"));
        let mut config: Config = serde_json::from_value(json!({ "paths": paths(&registry(&folder, host)) })).unwrap();
        Ingest::resolve(&mut config, &Default::default()).unwrap()
    };
    let (here, there) = (sources("a"), sources("b"));
    assert_eq!(here, there);
    assert_eq!(here.len(), 21);
    assert_eq!(here[0].version, blake3::hash(b"# Alpha\n\nSome words.\n").to_hex().to_string());
    let changed = workshop.folder().join("at-a/registry/src/a/alpha-1.0.0/README.md");
    fs::write(&changed, "# Alpha\n\nSome wards.\n").unwrap();
    let folder = workshop.folder().join("at-a");
    let mut config: Config = serde_json::from_value(json!({ "paths": paths(folder.to_str().unwrap()) })).unwrap();
    let after = Ingest::resolve(&mut config, &Default::default()).unwrap();
    assert_eq!(here.iter().zip(&after).filter(|(a, b)| a != b).count(), 1);
}

#[test]
fn files_that_change_between_plan_and_run_stop_the_job() {
    let workshop = Workshop::new("ingest-changed");
    let file = |name: &str| workshop.folder().join(name);
    fs::write(file("a.md"), "one").unwrap();
    fs::write(file("b.md"), "two").unwrap();
    let config = json!({ "paths": [file("*.md")] });
    let run = |change: &dyn Fn()| {
        let (config, sources) = workshop.resolve_sources::<Ingest>(config.clone(), &[]).unwrap();
        change();
        workshop.run_resolved::<Ingest>(config, sources, &[]).map_err(|e| told(&e)).map(|m| m.books.written)
    };
    let stopped =
        |name: &str| Err(format!("`{name}` is not what it was when the job was planned\nhint: run the pipeline again"));
    assert_eq!(run(&|| fs::write(file("b.md"), "owt").unwrap()), stopped("b.md"));
    assert_eq!(run(&|| fs::write(file("ab.md"), "new").unwrap()), stopped("ab.md"));
    assert_eq!(run(&|| fs::remove_file(file("b.md")).unwrap()), stopped("b.md"));
    assert_eq!(run(&|| ()), Ok(2));
}

#[test]
fn what_is_left_out_is_told_by_rule_and_value() {
    let workshop = Workshop::new("ingest-drops");
    let root = registry(workshop.folder(), "host");
    fs::write(workshop.folder().join("registry/src/host/beta-2.0.0/src/bad.rs"), b"abc\xff").unwrap();
    let config = json!({
        "paths": [format!("{root}/registry/src/*/./beta*/**/*.rs")], "invalid_utf8": "drop", "max_digit_share": 0.1
    });
    let manifest = workshop.run::<Ingest>(config, &[]).unwrap();
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    let found: Vec<(&str, &str, Option<f64>)> =
        drops.iter().map(|d| (d.id.as_str(), d.rule.as_str(), d.value)).collect();
    assert_eq!(
        found,
        [("beta-2.0.0/src/bad.rs", "invalid_utf8", Some(3.0)), ("beta-2.0.0/src/table.rs", "digits", Some(4.0 / 12.0)),]
    );
    assert_eq!((manifest.books.read, manifest.books.written), (3, 1));
}

#[test]
fn limits_hold_for_files_and_for_records() {
    let workshop = Workshop::new("ingest-limits");
    let root = registry(workshop.folder(), "host");
    let written = |config: Value| workshop.run::<Ingest>(config, &[]).unwrap().books.written;
    assert_eq!(written(json!({ "paths": paths(&root), "max_documents": 5 })), 5);
    assert_eq!(written(json!({ "paths": paths(&root), "min_bytes": 250 })), 6);
    let either = json!([format!("{root}/registry/src/*/./{{alpha-1.0.[01],beta-2*}}/src/lib.rs")]);
    assert_eq!(written(json!({ "paths": either })), 3);
    let lines: String = (0..100).map(|i| format!("{{\"text\":\"record {i:02}\"}}\n")).collect();
    fs::write(workshop.folder().join("r.jsonl"), lines).unwrap();
    let records = json!([format!("{root}/*.jsonl")]);
    assert_eq!(written(json!({ "paths": records, "max_documents": 30 })), 30);
    assert_eq!(written(json!({ "paths": records, "max_total_bytes": 95 })), 10);
}

#[test]
fn an_empty_corpus_names_the_globs() {
    let workshop = Workshop::new("ingest-empty");
    let refuse = |config: Value| told(&workshop.resolve::<Ingest>(config, &[]).unwrap_err());
    assert_eq!(
        refuse(json!({ "paths": ["/nowhere/*.md", "/nowhere/**/*.rs"] })),
        "no file matches `/nowhere/*.md`, `/nowhere/**/*.rs`\n\
         hint: `**` matches folders at any depth, `*` does not cross them; relative paths begin where `smelt` runs"
    );
    assert_eq!(refuse(json!({ "paths": [] })), "no paths are given\nhint: name files or globs, such as `docs/**/*.md`");
    let root = registry(workshop.folder(), "host");
    let text = refuse(json!({ "paths": [format!("{root}/**/*.md")], "min_bytes": 1000 }));
    assert!(text.starts_with("none of the 1 files that match `"), "{text}");
    let all =
        json!({ "paths": [format!("{root}/registry/src/*/./beta*/**/*.rs")], "max_digit_share": 0.0, "min_bytes": 9 });
    let error = workshop.run::<Ingest>(all, &[]).unwrap_err();
    assert!(
        told(&error)
            .starts_with("1 documents were read and none was kept; the first file is `beta-2.0.0/src/table.rs`\n"),
        "{error}"
    );
    fs::write(workshop.folder().join("empty.jsonl"), "\n\n").unwrap();
    let error = workshop.run::<Ingest>(json!({ "paths": [workshop.folder().join("*.jsonl")] }), &[]).unwrap_err();
    assert_eq!(
        told(&error),
        "the files hold no records; the first is `empty.jsonl`\nhint: they are empty, or hold nothing but blank lines"
    );
}

#[test]
fn paths_that_cannot_work_say_what_to_write() {
    let workshop = Workshop::new("ingest-paths");
    let root = workshop.folder().to_str().unwrap().to_owned();
    fs::create_dir_all(workshop.folder().join("data/2024")).unwrap();
    fs::write(workshop.folder().join("data/2024/a.md"), "text").unwrap();
    let refuse = |path: String| told(&workshop.resolve::<Ingest>(json!({ "paths": [path] }), &[]).unwrap_err());
    assert_eq!(
        refuse("ftp://host/raw/*.parquet".into()),
        "`ftp://host/raw/*.parquet` is an address of a kind that is not read; s3://, https:// and http:// are\n\
         hint: fetch the files first, and write where they lie"
    );
    assert_eq!(
        refuse("https://host.example/raw/*.parquet".into()),
        "`https://host.example/raw/*.parquet` has a wildcard, and a web server does not say what files it has\n\
         hint: name each file; `{1,2,3}` stands for several"
    );
    assert_eq!(
        refuse("https://ada:hunter2@host.example/a.jsonl".into()),
        "`https://host.example/…` cannot be read from: it holds a user or a password, which would stand in the pipeline"
    );
    assert_eq!(
        refuse(format!("{root}/data/")),
        format!("`{root}/data/` is a folder\nhint: `{root}/data/**/*` names all files below it")
    );
    assert_eq!(
        refuse(format!("{root}/dat*")),
        format!(
            "no file matches `{root}/dat*`\nhint: it matches 1 folders: `{root}/dat*/**/*` names the files below them"
        )
    );
    assert!(refuse("$HOME/x/*.md".into()).ends_with("hint: a variable is written with braces: `${HOME}`"));
    assert!(refuse(format!("{root}/[2024]/*")).contains("a name with brackets is written `[[]2024]`"));
    let config = json!({ "paths": [format!("{root}/data/**"), format!("{root}/da[t]a/2024/a.md")] });
    assert_eq!(workshop.run::<Ingest>(config, &[]).unwrap().books.written, 2);
}

#[test]
fn links_in_a_circle_and_links_to_nothing_do_no_harm() {
    use std::os::unix::fs::symlink;
    let workshop = Workshop::new("ingest-links");
    let data = workshop.folder().join("data");
    fs::create_dir_all(data.join("deep")).unwrap();
    fs::create_dir_all(workshop.folder().join("elsewhere")).unwrap();
    fs::write(data.join("deep/a.md"), "text").unwrap();
    fs::write(workshop.folder().join("elsewhere/b.md"), "linked").unwrap();
    symlink(&data, data.join("deep/circle")).unwrap();
    symlink("deep", data.join("again")).unwrap();
    symlink(workshop.folder().join("elsewhere"), data.join("other")).unwrap();
    symlink("nowhere.md", data.join("dead.md")).unwrap();
    symlink("self.md", data.join("self.md")).unwrap();
    let config = json!({ "paths": [data.join("**/*.md")] });
    let manifest = workshop.run::<Ingest>(config.clone(), &[]).unwrap();
    let ids: Vec<String> = workshop.rows::<Documents>(&manifest, "documents").into_iter().map(|d| d.id).collect();
    assert_eq!(ids, ["deep/a.md", "other/b.md"]);
    let warnings = workshop.warnings::<Ingest>(env!("CARGO_BIN_EXE_smelt-ingest"), config, &[]);
    assert_eq!(warnings, ["2 links to nothing left out, the first is `dead.md`"]);
}

#[test]
fn a_file_name_that_is_no_utf8_is_written_with_escapes() {
    use std::os::unix::ffi::OsStrExt;
    let workshop = Workshop::new("ingest-names-latin1");
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.md");
    if fs::write(workshop.folder().join(name), "text").is_err() {
        return; // a file system that allows no such name
    }
    let manifest = workshop.run::<Ingest>(json!({ "paths": [workshop.folder().join("*.md")] }), &[]).unwrap();
    assert_eq!(workshop.rows::<Documents>(&manifest, "documents")[0].id, "caf\\xe9.md");
}

#[test]
fn files_that_are_not_read_stop_the_job_or_are_dropped() {
    let workshop = Workshop::new("ingest-foreign");
    fs::write(workshop.folder().join("a.md"), "text").unwrap();
    fs::write(workshop.folder().join("b.zip"), b"PK\x03\x04\0\0").unwrap();
    let config = |policy: &str| json!({ "paths": [workshop.folder().join("*.*")], "bad_records": policy });
    let error = workshop.run::<Ingest>(config("stop"), &[]).unwrap_err();
    assert!(
        told(&error).starts_with("`b.zip` is a ZIP archive or an Office document: it is not read\nhint: "),
        "{error}"
    );
    let manifest = workshop.run::<Ingest>(config("drop"), &[]).unwrap();
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    assert_eq!((drops[0].id.as_str(), drops[0].rule.as_str()), ("b.zip", "not_supported"));
    assert_eq!((manifest.books.read, manifest.books.written), (2, 1));
}

#[test]
fn two_files_of_one_name_are_refused_unless_they_are_equal() {
    let workshop = Workshop::new("ingest-twice");
    for (folder, text) in [("a", "one"), ("b", "two"), ("c", "one")] {
        fs::create_dir_all(workshop.folder().join(folder)).unwrap();
        fs::write(workshop.folder().join(folder).join("x.md"), text).unwrap();
    }
    let glob = |name: &str| format!("{}/{name}/*.md", workshop.folder().display());
    let told = told(&workshop.resolve::<Ingest>(json!({ "paths": [glob("a"), glob("b")] }), &[]).unwrap_err());
    assert!(told.starts_with("two files would be called `x.md`: `"), "{told}");
    assert!(told.ends_with("\nhint: end the root of their globs with `/./` further to the left"), "{told}");
    let manifest = workshop.run::<Ingest>(json!({ "paths": [glob("a"), glob("c")] }), &[]).unwrap();
    assert_eq!(manifest.books.written, 1);
}

#[test]
fn bad_bytes_stop_the_job_and_are_the_datas_fault() {
    let workshop = Workshop::new("ingest-bad");
    fs::write(workshop.folder().join("bad.md"), b"0123456789\xfe").unwrap();
    let config = json!({ "paths": [workshop.folder().join("*.md")] });
    let error = workshop.run::<Ingest>(config, &[]).unwrap_err();
    assert_eq!(error.exit_code(), smelt_schemas::ExitCode::Data);
    assert_eq!(
        told(&error),
        "`bad.md` is not UTF-8: byte 0xfe at offset 10\n\
         hint: convert the file, `iconv -f latin1 -t utf-8`, or set `invalid_utf8` to `drop` or `replace`; or set \
         `bad_records: drop` to leave such records out"
    );
}

#[test]
fn a_file_that_ends_too_early_is_the_datas_fault_and_its_place_is_told() {
    let workshop = Workshop::new("ingest-truncated");
    fs::write(workshop.folder().join("cut.parquet"), b"PAR1 and no more").unwrap();
    fs::write(workshop.folder().join("cut.jsonl"), "{\"text\":\"whole\"}\n{\"text\":\"cu").unwrap();
    for (name, place) in [("cut.parquet", "cut.parquet"), ("cut.jsonl", "cut.jsonl:2")] {
        let error = workshop.run::<Ingest>(json!({ "paths": [workshop.folder().join(name)] }), &[]).unwrap_err();
        assert_eq!(error.exit_code(), smelt_schemas::ExitCode::Data, "{error}");
        assert_eq!(error.problem().place.as_deref(), Some(place), "{error}");
    }
}

#[test]
fn a_job_killed_at_each_of_its_writes_ends_with_the_same_bytes() {
    let workshop = Workshop::new("ingest-kills");
    let root = registry(workshop.folder(), "host");
    let kills = workshop.kill_at_every_write::<Ingest>(
        env!("CARGO_BIN_EXE_smelt-ingest"),
        json!({ "paths": paths(&root) }),
        &[],
    );
    // A lease, a shard and a record of each unit, the manifest.
    assert!(kills >= 4, "killed {kills} times");
}

#[test]
fn many_workers_with_kills_end_with_the_same_bytes() {
    let workshop = Workshop::new("ingest-workers");
    let root = registry(workshop.folder(), "host");
    let config = json!({ "paths": paths(&root) });
    let kills = workshop.spread::<Ingest>(env!("CARGO_BIN_EXE_smelt-ingest"), config, &[]);
    assert!(kills >= 10, "killed {kills} times");
}

/// Many threads read parts of one file, and give what one reader gives.
#[test]
fn a_large_file_is_read_in_parts_with_the_same_rows() {
    let workshop = Workshop::new("ingest-parts");
    let folder = workshop.folder().join("data");
    fs::create_dir_all(&folder).unwrap();
    let line = |i: usize| format!("{{\"text\":\"{i} {}\",\"n\":{i}}}\n", "word ".repeat(i % 400));
    let lines: String = (0..40_000).map(line).collect();
    assert!(lines.len() > 36 << 20, "{}", lines.len());
    fs::write(folder.join("large.jsonl"), lines.replace("{\"text\":\"777 ", "{\"text:\"777 ")).unwrap();
    fs::write(folder.join("small.txt"), "a text").unwrap();
    let config = json!({ "paths": [format!("{}/*", folder.display())], "bad_records": "drop" });
    let manifest = workshop.run::<Ingest>(config.clone(), &[]).unwrap();
    assert!(manifest.ports["documents"].files.len() > 20, "many units");
    // A limit on documents keeps the file whole.
    let whole = Workshop::new("ingest-parts-whole");
    let named =
        json!({ "paths": [format!("{}/*", folder.display())], "bad_records": "drop", "max_documents": 1_000_000 });
    let one = whole.run::<Ingest>(named, &[]).unwrap();
    let rows = |workshop: &Workshop, manifest| workshop.rows::<Documents>(manifest, "documents");
    let (in_parts, at_once) = (rows(&workshop, &manifest), rows(&whole, &one));
    assert_eq!(in_parts.len(), 40_000);
    assert!(in_parts == at_once, "the same rows in the same order");
    assert_eq!(in_parts[39_999 - 1].id, "large.jsonl#39999");
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    assert_eq!((drops.len(), drops[0].id.as_str(), drops[0].value), (1, "large.jsonl#777", Some(778.0)));

    // A file that changes after its parts were found stops the job.
    let (resolved, sources) = workshop.resolve_sources::<Ingest>(config, &[]).unwrap();
    fs::write(folder.join("large.jsonl"), &lines).unwrap();
    let other = Workshop::new("ingest-parts-changed");
    let error = told(&other.run_resolved::<Ingest>(resolved, sources, &[]).unwrap_err());
    assert!(error.starts_with("`large.jsonl` is not what it was when the job was planned"), "{error}");
}

#[test]
fn row_groups_of_a_large_file_are_read_in_parts_with_the_same_rows() {
    use arrow::array::{RecordBatch, StringArray};
    use parquet::arrow::ArrowWriter;
    use std::sync::Arc;
    let workshop = Workshop::new("ingest-groups");
    let path = workshop.folder().join("large.parquet");
    let text = |i: usize| format!("{i} {}", blake3::hash(&i.to_le_bytes()).to_hex().repeat(20));
    let batch = |from: usize| {
        let texts = StringArray::from_iter_values((from..from + 2000).map(text));
        RecordBatch::try_from_iter([("text", Arc::new(texts) as _)]).unwrap()
    };
    let mut writer = ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch(0).schema(), None).unwrap();
    for from in (0..30_000).step_by(2000) {
        writer.write(&batch(from)).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
    assert!(fs::metadata(&path).unwrap().len() > 33 << 20);
    let manifest = workshop.run::<Ingest>(json!({ "paths": [path.to_str().unwrap()] }), &[]).unwrap();
    assert_eq!(manifest.ports["documents"].files.len(), 15);
    let rows = workshop.rows::<Documents>(&manifest, "documents");
    assert_eq!(rows.len(), 30_000);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!((row.id.as_str(), &row.text), (format!("large.parquet#{i}").as_str(), &text(i)));
    }
}

/// What a hostile file costs is bounded, and what it is is said.
#[test]
fn bombs_and_endless_records_are_bad_records() {
    use std::io::Write;
    let workshop = Workshop::new("ingest-hostile");
    let folder = workshop.folder().join("data");
    fs::create_dir_all(&folder).unwrap();
    let megabyte = vec![b'a'; 1 << 20];
    let bomb = |name: &str, start: &[u8], end: &[u8], layers: usize| {
        let mut bytes = {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(start).unwrap();
            (0..300).for_each(|_| packed.write_all(&megabyte).unwrap());
            packed.write_all(end).unwrap();
            packed.finish().unwrap()
        };
        for _ in 1..layers {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(&bytes).unwrap();
            bytes = packed.finish().unwrap();
        }
        fs::write(folder.join(name), bytes).unwrap();
    };
    bomb("line.jsonl.gz", b"{\"text\":\"first\"}\n{\"text\":\"", b"\"}\n{\"text\":\"last\"}\n", 1);
    bomb("list.json.gz", b"[{\"text\":\"", b"\"},{\"text\":\"after\"}]", 1);
    bomb("nested.jsonl.gz", b"{\"text\":\"", b"\"}", 6);
    bomb("row.csv.gz", b"text\nfirst\n\"", b"", 1);
    bomb("whole.txt.gz", b"", b"", 2);
    let config = json!({ "paths": [format!("{}/*", folder.display())], "bad_records": "drop" });
    // Every file but the table, whose damage has no end.
    let some = json!({ "paths": [format!("{}/[lnw]*", folder.display())], "bad_records": "drop" });
    let manifest = workshop.run::<Ingest>(some, &[]).unwrap();
    let rows = workshop.rows::<Documents>(&manifest, "documents");
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    assert_eq!(texts, ["first", "last", "after"]);
    let drops = workshop.rows::<Drops>(&manifest, "drops");
    let told_of: Vec<&str> = drops.iter().map(|drop| drop.detail.as_deref().unwrap()).collect();
    assert_eq!(
        told_of,
        [
            "`line.jsonl.gz` line 2: a line has more than 256 MiB",
            "`list.json.gz` line 1: an element has more than 256 MiB",
            "`nested.jsonl.gz` is packed in itself more than 4 times: it is not read",
            "`whole.txt.gz` is one document of more than 256 MiB",
        ]
    );
    let error = told(&workshop.run::<Ingest>(config, &[]).unwrap_err());
    assert_eq!(error, "`row.csv.gz` is damaged: a row has more than 256 MiB: do its quotes end?");
}
