//! A pipeline in several files, and parameters from files and from the environment.

use crate::support::{Bench, Said};
use smelt_schemas::Manifest;

fn manifest(bench: &Bench, job: &str) -> Manifest {
    let store = bench.store();
    let pointer = store.pointer("p", job).unwrap().expect("the job is done");
    store.manifest(&pointer.artifact).unwrap().expect("its manifest is there")
}

const MAIN: &str = "name: p
include: [parts/data.yaml, parts/views.yaml]
vars: { rows: 6 }
jobs:
  even: { stage: STAGE(merge), input: raw }
report: select count(*) as n from few
";
const DATA: &str = "include: common.yaml
jobs:
  raw: { stage: STAGE(count), config: { rows: '${rows}', seed: '${lot}' } }
";
const COMMON: &str = "name: alone
vars: { rows: 10, lot: 7 }
";
const VIEWS: &str = "include: ../parts/common.yaml
views: { few: select * from even }
";

fn bench() -> Bench {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("parts")).unwrap();
    for (file, text) in [("p.yaml", MAIN), ("parts/data.yaml", DATA), ("parts/common.yaml", COMMON)] {
        bench.pipeline(file, text);
    }
    bench.pipeline("parts/views.yaml", VIEWS);
    bench
}

#[test]
fn jobs_views_and_variables_of_several_files_are_one_pipeline() {
    let bench = bench();
    let said = bench.smelt(&["run", "p.yaml"]).ok().out;
    assert!(said.contains("| 3 |"), "{said}");
    let raw = manifest(&bench, "raw");
    // What the first file says of a variable counts, and what only a common file says counts as well.
    assert_eq!((raw.config["rows"].as_u64(), raw.config["seed"].as_u64()), (Some(6), Some(7)));
    // The jobs of included files come first.
    let plan = bench.smelt(&["plan", "p.yaml"]).ok().out;
    assert!(plan.starts_with("  raw   cached\n  even  cached\n"), "{plan}");
    // `--set` reaches into an included file, and a store may be named by a variable of one.
    let plan = bench.smelt(&["plan", "p.yaml", "--set", "raw.config.units=2", "--set", "vars.lot=8"]).ok().out;
    assert!(plan.contains("config.units: 3 -> 2") && plan.contains("config.seed: 7 -> 8"), "{plan}");
    bench.pipeline("p.yaml", &MAIN.replace("vars:", "store: 'store-${lot}'\nvars:"));
    bench.smelt(&["run", "p.yaml"]).ok();
    assert!(bench.path("store-7/pipelines").exists());
    assert!(bench.smelt(&["sql", "select count(*) as n from even", "--pipeline", "p.yaml"]).ok().out.contains("| 3 |"));
    // Another machine does a recorded run with the texts that the files had.
    let run = bench.smelt(&["runs", "--store", "store-7", "--format", "csv"]).ok().out;
    let run = run.lines().nth(1).unwrap().split(',').next().unwrap().to_owned();
    std::fs::remove_dir_all(bench.path("parts")).unwrap();
    bench.smelt(&["exec", &run, "even", "--store", "store-7"]).ok();
}

#[test]
fn a_program_that_an_included_file_names_by_its_path_lies_beside_that_file() {
    let bench = bench();
    let program = |name: &str| crate::support::programs().join(format!("teststage-{name}"));
    std::os::unix::fs::symlink(program("count"), bench.path("parts/own")).unwrap();
    bench.pipeline("parts/data.yaml", &DATA.replace("STAGE(count)", "./own"));
    bench.smelt(&["run", "p.yaml"]).ok();
}

#[test]
fn what_is_wrong_in_an_included_file_is_told_with_its_place_there() {
    let refused = |file: &str, text: &str| {
        let bench = bench();
        bench.pipeline(file, text).smelt(&["check", "p.yaml"]).fails(2).err
    };
    let config = DATA.replace("config: { rows", "config: { rws: 1, rows");
    let said = refused("parts/data.yaml", &config);
    assert!(said.starts_with("error: job `raw`: stage "), "{said}");
    assert!(said.contains("has no config field `rws`\n  --> parts/data.yaml:3:"), "{said}");
    let said = refused("parts/views.yaml", "views: { few: select idd from even }\n");
    assert!(said.contains("error: view `few`: ") && said.contains("  --> parts/views.yaml:1:15\n"), "{said}");
    let said = refused("parts/common.yaml", "vars: { rows: 10, lot: x }\n");
    assert!(said.contains("`config.seed`: \"x\" is not") && said.contains("  --> parts/data.yaml:3:"), "{said}");
    let cases = [
        (
            "p.yaml",
            MAIN.replace("parts/views.yaml", "parts/vews.yaml"),
            "error: `parts/vews.yaml` cannot be included: No such file or directory (os error 2)\n  --> p.yaml:2:28\n\
             hint: a path is relative to the file that includes it\n",
        ),
        (
            "p.yaml",
            MAIN.replace("[parts/data.yaml, parts/views.yaml]", "{ a: b }"),
            "error: `{\"a\":\"b\"}` is no file to include: write its path\n  --> p.yaml:2:10\n",
        ),
        (
            "parts/common.yaml",
            "include: ../p.yaml\n".to_owned(),
            "error: files include each other: p.yaml -> parts/data.yaml -> parts/common.yaml -> p.yaml\n  --> \
             parts/common.yaml:1:10\nhint: take one of these includes out\n",
        ),
        (
            "parts/common.yaml",
            "include: common.yaml\n".to_owned(),
            "error: files include each other: parts/common.yaml -> parts/common.yaml\n  --> parts/common.yaml:1:10\n\
             hint: take one of these includes out\n",
        ),
        (
            "parts/data.yaml",
            DATA.replace("  raw:", "  even: { stage: STAGE(count) }\n  raw:"),
            "error: job `even` is in another file too: parts/data.yaml:3:3\n  --> p.yaml:5:3\nhint: give one of them \
             another name, or take it out\n",
        ),
        (
            "parts/views.yaml",
            "vars: { lot: 1 }\nviews: { few: select * from even }\n".to_owned(),
            "error: variable `lot` is in another file too: parts/common.yaml:2:19\n  --> parts/views.yaml:1:9\nhint: \
             give one of them another name, or take it out\n",
        ),
        (
            "parts/views.yaml",
            format!("{VIEWS}run: {{ cores: 1 }}\n"),
            "error: an included file has no `run`\n  --> parts/views.yaml:3:1\nhint: it may have `vars`, `jobs`, \
             `views` and `include`; the rest stands in the file that includes it\n",
        ),
        (
            "parts/views.yaml",
            "vews: { few: select * from even }\n".to_owned(),
            "error: an included file has no `vews`\n  --> parts/views.yaml:1:1\nhint: is `views` meant?\n",
        ),
        (
            "parts/views.yaml",
            "jobs: [a]\n".to_owned(),
            "error: `jobs` is no map of names\n  --> parts/views.yaml:1:7\nhint: write `name: …` lines below it\n",
        ),
        (
            "parts/views.yaml",
            "views: { few: 1\n".to_owned(),
            "hint: close every `{`, `[` and quote that is opened, with `,` between items\n",
        ),
    ];
    for (file, text, expected) in cases {
        let said = refused(file, &text);
        assert!(said.ends_with(expected) && said.starts_with("error: "), "{file}\n{text}\n{said}");
    }
}

#[test]
fn variables_come_from_files_and_the_environment_and_the_nearest_word_counts() {
    let bench = bench();
    let rows = |args: &[&str], variables: &[(&str, &str)]| {
        let mut command = bench.command(&[&["run", "p.yaml", "--quiet"][..], args].concat());
        Said::from(command.envs(variables.iter().copied()).output().unwrap()).ok();
        manifest(&bench, "raw").config["rows"].as_u64().unwrap()
    };
    std::fs::write(bench.path("large.yaml"), "rows: 12\n").unwrap();
    std::fs::write(bench.path("huge.yaml"), "rows: 14\n").unwrap();
    // A variable that this pipeline has not may be meant for another one.
    let environment = [("SMELT_VAR_rows", "8"), ("SMELT_VAR_others", "1")];
    assert_eq!(rows(&[], &environment), 8);
    assert_eq!(rows(&["--vars", "large.yaml"], &environment), 12);
    assert_eq!(rows(&["--vars", "large.yaml", "--vars", "huge.yaml"], &environment), 14);
    assert_eq!(rows(&["--vars", "large.yaml", "--set", "vars.rows=16"], &environment), 16);
    // The record of the run has what was given, as `--set` says it: `status` and a node of a cluster need no more.
    let record = bench.store().runs().unwrap().pop().unwrap();
    assert_eq!(record.set, ["vars.rows=8", "vars.rows=12", "vars.rows=16"]);
    let status = bench.smelt(&["status"]).ok().out;
    assert!(status.contains("raw   count  done"), "{status}");

    let refused = |args: &[&str], variable: &str| {
        let mut command = bench.command(&[&["check", "p.yaml"][..], args].concat());
        Said::from(command.env("SMELT_VAR_rows", variable).output().unwrap()).fails(2).err
    };
    let said = refused(&[], "many");
    assert!(said.contains("`config.rows`: \"many\" is not") && said.contains("  --> parts/data.yaml:3:"), "{said}");
    std::fs::write(bench.path("large.yaml"), "# a slip\nrws: 12\n").unwrap();
    assert_eq!(
        refused(&["--vars", "large.yaml"], "1"),
        "error: there is no variable `rws`\n  --> large.yaml:2:1\nhint: is `vars.rows` meant?\n"
    );
    std::fs::write(bench.path("large.yaml"), "[rows]\n").unwrap();
    assert_eq!(
        refused(&["--vars", "large.yaml"], "1"),
        "error: `large.yaml` is no map of variables\n  --> large.yaml:1:1\nhint: write `name: value` lines, without \
         `vars:` above them\n"
    );
    assert_eq!(
        refused(&["--vars", "none.yaml"], "1"),
        "error: variables of `none.yaml` cannot be read: No such file or directory (os error 2)\n  --> --vars \
         none.yaml\n"
    );
}
