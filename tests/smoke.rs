//! The smoke pipeline: every real stage and the runner, killed and resumed.

use crate::support::{Bench, Said, digests};
use smelt_store::Store;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;
use tempfile::TempDir;

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `smelt` with a store, in the repository's folder: the pipeline reads documents from there. A training saves after
/// every step.
pub(crate) fn command(store: &Path, args: &[&str]) -> Command {
    let mut command = Bench::bare(&repository(), args);
    command.arg("--store").arg(store).env("SMELT_SAVE_SECONDS", "0");
    command
}

fn smelt(store: &Path, args: &[&str]) -> Said {
    command(store, args).output().expect("smelt starts").into()
}

pub(crate) fn open(folder: &Path) -> Store {
    Store::open(folder.to_str().expect("a test's path is text")).expect("a directory is a store")
}

/// The store of an undisturbed run, made once and never changed.
pub(crate) fn undisturbed() -> &'static Path {
    static STORE: OnceLock<TempDir> = OnceLock::new();
    let folder = STORE.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder for a test");
        smelt(folder.path(), &["run", "pipelines/smoke.yaml"]).ok();
        folder
    });
    folder.path()
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// How far a phase was at each of its progress events in the last run; empty if there were none.
fn progress(store: &Path, job: &str, phase: &str) -> Vec<u64> {
    let events = smelt(store, &["logs", job, "--events"]).out;
    let events = events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("events are JSON"));
    events.filter(|e| e["type"] == "progress" && e["phase"] == phase).filter_map(|e| e["done"].as_u64()).collect()
}

#[derive(Clone, Copy, PartialEq)]
enum Saving {
    AfterEveryStep,
    Beside,
}

/// Kills `program` right before each of its writes in turn, while it does `job` alone, and lets a second run go on. A
/// `training` saves after every step, or beside them.
#[track_caller]
fn killed_at_each_write(job: &str, program: &str, training: Option<Saving>) {
    let expected = digests(&open(undisturbed()), "smoke");
    let folder = tempfile::tempdir().unwrap();
    copy(undisturbed(), folder.path());
    let artifact = open(folder.path()).pointer("smoke", job).unwrap().unwrap().artifact;
    let recipe = folder.path().join("artifacts").join(&artifact.stage).join(artifact.fingerprint.to_string());
    let mut kills = 0;
    for n in 1.. {
        std::fs::remove_dir_all(&recipe).unwrap();
        std::fs::remove_dir_all(folder.path().join("runs")).unwrap();
        let args = ["run", "pipelines/smoke.yaml", "--only", job, "--retries", "0"];
        let mut first = command(folder.path(), &args);
        if training == Some(Saving::Beside) {
            first.env("SMELT_SAVE_SECONDS", "1e-9");
        }
        let first: Said = first.env("SMELT_KILL_AT_WRITE", format!("{program}:{n}")).output().unwrap().into();
        if first.code == Some(0) {
            break; // it writes less often than that
        }
        let first = first.fails(4);
        kills += 1;
        let before = progress(folder.path(), job, "train");
        let second = smelt(folder.path(), &args).ok();
        assert_eq!(digests(&open(folder.path()), "smoke"), expected, "{program} killed at write {n}: {first:?}");
        // The last write gives the lease back, after the commit: a kill there leaves nothing to do.
        let is_redone = training == Some(Saving::AfterEveryStep) && !second.out.contains("nothing to do");
        if let Some(last) = before.last().filter(|_| is_redone) {
            let after = progress(folder.path(), job, "train");
            // every step but the last is followed by a save: at most the current step is repeated
            assert!(after.first().is_none_or(|step| step >= last), "{program}:{n} went from {before:?} to {after:?}");
        }
    }
    assert!(
        kills >= 4,
        "{program} was killed {kills} times: lease, files, unit and manifest are more writes than that"
    );
    println!("{program}: killed at each of {kills} writes");
}

/// A line for every port of every job: `port stage version fingerprint digest`. The fingerprint stands for stage,
/// version, effective config, digests of the inputs and sources; so the digest may change only when it does.
pub(crate) fn published(store: &Store, pipeline: &str) -> String {
    let mut lines = BTreeMap::new();
    for (of, job, pointer) in store.pointers().unwrap() {
        let manifest = store.manifest(&pointer.artifact).unwrap().unwrap();
        for (port, record) in manifest.ports.iter().filter(|(_, p)| of == pipeline && p.kind.counts_as_output()) {
            let recipe = format!("{} {} {}", manifest.stage, manifest.version, manifest.fingerprint.short());
            lines.insert(format!("{job}.{port}"), format!("{job}.{port} {recipe} {}\n", record.digest));
        }
    }
    lines.into_values().collect()
}

/// Ports whose bytes changed although their recipe, with the version of the stage, is the same. These must never be
/// blessed.
fn broken_promises(published: &str, found: &str) -> Vec<String> {
    let split = |line: &str| line.rsplit_once(' ').map(|(recipe, digest)| (recipe.to_owned(), digest.to_owned()));
    let before: BTreeMap<String, String> = published.lines().filter_map(split).collect();
    let is_broken = |(recipe, digest): &(String, String)| before.get(recipe).is_some_and(|before| before != digest);
    let tell = |(recipe, _): (String, String)| {
        let mut words = recipe.split(' ');
        let mut word = || words.next().unwrap_or_default();
        let (port, stage, version) = (word(), word(), word());
        format!("{port}: `{stage}` version {version} gives other bytes from the same config and inputs")
    };
    found.lines().filter_map(split).filter(is_broken).map(tell).collect()
}

/// What a pipeline's jobs gave when it was last blessed.
pub(crate) fn golden(pipeline: &str) -> String {
    std::fs::read_to_string(golden_file(pipeline)).unwrap_or_default()
}

fn golden_file(pipeline: &str) -> PathBuf {
    repository().join(format!("tests/golden/{pipeline}.txt"))
}

/// Every stage at once: these bytes are promised for one version of a stage, on any machine. `SMELT_BLESS` writes what
/// is found, unless a promise is broken.
#[track_caller]
pub(crate) fn assert_published(store: &Store, pipeline: &str) {
    let (found, before) = (published(store, pipeline), golden(pipeline));
    let broken = broken_promises(&before, &found);
    assert!(
        broken.is_empty(),
        "{broken:#?}\nraise VERSION of the first of these stages; SMELT_BLESS writes nothing before"
    );
    if std::env::var_os("SMELT_BLESS").is_some() {
        return std::fs::write(golden_file(pipeline), &found).unwrap();
    }
    let changed: Vec<&str> = found.lines().filter(|line| !before.lines().any(|l| l == *line)).collect();
    assert_eq!(
        found, before,
        "other recipes than published: {changed:#?}\nif each is meant, SMELT_BLESS=1 cargo test --release -p \
            smelt-tests {pipeline}"
    );
}

#[test]
fn the_digests_are_the_published_ones() {
    assert_published(&open(undisturbed()), "smoke");
}

#[test]
fn bytes_that_change_while_their_recipe_does_not_cannot_be_blessed() {
    let line = |version: u32, recipe: &str, digest: &str| format!("clean.drops clean {version} {recipe} {digest}\n");
    let before = line(1, "aa", "01");
    assert_eq!(
        broken_promises(&before, &line(1, "aa", "02")),
        ["clean.drops: `clean` version 1 gives other bytes from the same config and inputs"]
    );
    for meant in [line(1, "aa", "01"), line(2, "ab", "02"), line(1, "ac", "02"), String::new()] {
        assert!(broken_promises(&before, &meant).is_empty(), "{meant}");
    }
    let other_port = "clean.documents clean 1 aa 02\n";
    assert!(broken_promises(&before, other_port).is_empty(), "a new port of the same job has no published bytes");
}

#[test]
fn data_stages_killed_at_each_of_their_writes_end_with_the_same_bytes() {
    for (job, program) in [
        ("raw", "smelt-ingest"),
        ("clean", "smelt-clean"),
        ("unique", "smelt-dedup"),
        ("tokens", "smelt-tokenize"),
        ("practice", "smelt-problems"),
    ] {
        killed_at_each_write(job, program, None);
    }
}

#[test]
fn trainings_killed_at_each_of_their_writes_end_with_the_same_bytes_and_redo_less_than_a_step() {
    for (job, program) in
        [("base", "smelt-pretrain"), ("short", "smelt-sft"), ("expert", "smelt-align"), ("judge", "smelt-reward")]
    {
        killed_at_each_write(job, program, Some(Saving::AfterEveryStep));
    }
}

#[test]
fn a_training_killed_while_it_saves_beside_its_steps_ends_with_the_same_bytes() {
    killed_at_each_write("base", "smelt-pretrain", Some(Saving::Beside));
}

#[test]
fn sampling_stages_killed_at_each_of_their_writes_end_with_the_same_bytes() {
    for (job, program) in [("chains", "smelt-distill"), ("score", "smelt-evaluate")] {
        killed_at_each_write(job, program, None);
    }
}

#[test]
fn the_runner_killed_at_twenty_moments_ends_with_the_digests_of_an_undisturbed_run() {
    let expected = digests(&open(undisturbed()), "smoke");
    let clock = Instant::now();
    smelt(tempfile::tempdir().unwrap().path(), &["run", "pipelines/smoke.yaml"]).ok();
    let whole = clock.elapsed();
    let mut killed = 0;
    for store in 0..5 {
        let folder = tempfile::tempdir().unwrap();
        for kill in 0..4 {
            let mut run = command(folder.path(), &["run", "pipelines/smoke.yaml"]);
            let mut child = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // what four runs do adds up to about three quarters of the whole; a multiplicative hash spreads the moments
            let moment = f64::from((4 * store + kill + 1u32).wrapping_mul(2_654_435_769)) / f64::from(u32::MAX);
            std::thread::sleep(whole.mul_f64(0.4 * moment));
            killed += u32::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        smelt(folder.path(), &["run", "pipelines/smoke.yaml"]).ok();
        assert_eq!(digests(&open(folder.path()), "smoke"), expected);
        assert!(smelt(folder.path(), &["run", "pipelines/smoke.yaml"]).ok().out.contains("nothing to do"));
        let verified = smelt(folder.path(), &["artifacts", "verify", "--deep"]).ok().out;
        assert!(verified.contains("every byte is as its manifest says"), "{verified}");
    }
    assert!(killed >= 15, "only {killed} of 20 kills met a running runner");
}

#[test]
fn what_a_training_cannot_be_is_refused_before_anything_runs() {
    let store = tempfile::tempdir().unwrap();
    for (set, text) in [
        ("ramp={from: 9, steps: 2}", "`from` is 9, expected 1 to `sequences`, 4"),
        ("weights=[1, 2]", "2 weights for 1 inputs of `tokens`"),
        ("weights=[0]", "0 is no share, expected more than 0"),
        ("fim_rate=1.5", "`config.fim_rate`: 1.5 is greater than the maximum of 1"),
        ("lr=-1", "`config.lr`: -1 is less than the minimum of 0"),
        ("optimizer.average=1", "`config.optimizer.average`: 1 is greater than or equal to the maximum of 1"),
        ("precision=fp4", "\"fp4\" is none of \"fp32\", \"bf16\", \"fp8\", { bf16 }, { fp8 }"),
    ] {
        let set = format!("base.config.{set}");
        let said = smelt(store.path(), &["check", "pipelines/smoke.yaml", "--set", &set]).fails(2).err;
        assert!(said.contains(text), "{set}: {said}");
    }
    for job in ["chains", "aligned", "judge", "score"] {
        for (format, setting) in [("fp8", "scaling: tensor"), ("bf16", "library: cublaslt")] {
            let set = format!("{job}.config.precision={{{format}: {{{setting}}}}}");
            let said = smelt(store.path(), &["check", "pipelines/smoke.yaml", "--set", &set]).fails(2).err;
            let text = format!("with `{setting}` an answer depends on the others that are computed beside it");
            assert!(said.contains(&text) && said.contains("leave that setting out"), "{set}: {said}");
        }
    }
}

#[test]
fn a_changed_value_redoes_its_job_and_what_hangs_on_its_bytes() {
    let folder = undisturbed();
    let plan = |set: &str| -> BTreeMap<String, String> {
        let said = smelt(folder, &["plan", "pipelines/smoke.yaml", "--set", set]).ok().out;
        let lines = said.lines().filter_map(|line| line.trim().split_once(' '));
        lines.map(|(job, state)| (job.to_owned(), state.trim().to_owned())).collect()
    };
    let seeded = plan("seed=5");
    for job in ["raw", "clean", "unique"] {
        assert_eq!(seeded[job], "cached", "{job} draws no random numbers");
    }
    assert_eq!(seeded["practice"], "new      config.seed: 0 -> 5");
    let longer = plan("short.config.epochs=2");
    assert_eq!(longer["short"], "new      config.epochs: 1.0 -> 2.0");
    assert_eq!(longer["score"], "after short");
    assert_eq!(longer.values().filter(|state| *state == "cached").count(), longer.len() - 3, "{longer:?}");
}

#[test]
fn queries_over_clean_and_the_drops_add_up_to_the_books() {
    let sql = |query: &str| smelt(undisturbed(), &["sql", query, "--pipeline", "smoke", "--format", "csv"]).ok().out;
    let table = sql("select source, count(*), sum(length(text)) from clean group by 1 order by 2 desc");
    assert!(table.lines().count() > 1, "{table}");
    let counted = sql("select job, rule, count(*) n from smelt.drops group by 1, 2 order by 1, 2");
    let store = open(undisturbed());
    let mut booked = String::from("job,rule,n\n");
    for (pipeline, job, pointer) in store.pointers().unwrap() {
        let manifest = store.manifest(&pointer.artifact).unwrap().unwrap();
        manifest.books.check().unwrap();
        assert_eq!(pipeline, "smoke");
        for (rule, n) in &manifest.books.dropped {
            booked += &format!("{job},{rule},{n}\n");
        }
    }
    assert_eq!(counted, booked);
}

/// Every second step and after the last, on what is held out; training itself gives the same bytes.
#[test]
fn trainings_are_evaluated_on_the_way_and_their_bytes_do_not_depend_on_it() {
    let folder = tempfile::tempdir().unwrap();
    copy(undisturbed(), folder.path());
    let mut text = std::fs::read_to_string(repository().join("pipelines/smoke.yaml")).unwrap();
    for (input, held_out) in [
        ("{ tokens: tokens, tokenizer: tokens.tokenizer", "heldout.validation"),
        ("{ model: base, conversations: short_chats", "long_chats"),
        ("{ model: expert_sft, prompts: prompts", "test"),
    ] {
        assert_eq!(text.matches(input).count(), 1, "smoke.yaml says `{input}` once");
        text = text.replace(input, &format!("{input}, validation: {held_out}"));
    }
    let pipeline = folder.path().join("evaluated.yaml");
    std::fs::write(&pipeline, text).unwrap();
    let model = |job: &str| {
        let store = open(folder.path());
        let manifest = store.manifest(&store.pointer("smoke", job).unwrap().unwrap().artifact).unwrap().unwrap();
        manifest.ports["model"].digest.clone()
    };
    let jobs = ["base", "short", "expert", "judge"];
    let before = jobs.map(model);
    let every: Vec<String> = jobs.iter().map(|job| format!("{job}.config.evaluate_every=2")).collect();
    let mut args = vec!["run", pipeline.to_str().unwrap()];
    every.iter().for_each(|set| args.extend(["--set", set.as_str()]));
    smelt(folder.path(), &args).ok();
    for (job, measure, expected) in [
        ("base", "validation_loss", &[2, 4, 6][..]),
        ("short", "validation_loss", &[2, 4]),
        ("expert", "validation_right", &[2, 3]),
        ("judge", "validation_accuracy", &[2, 4]),
    ] {
        let query = format!("select step from smelt.metrics where job = '{job}' and name = '{measure}' order by step");
        let said = smelt(folder.path(), &["sql", &query, "--format", "csv"]).ok().out;
        let steps: Vec<u64> = said.lines().filter_map(|line| line.parse().ok()).collect();
        assert_eq!(steps, expected, "{job}: {said}");
    }
    assert_eq!(jobs.map(model), before);

    // Of 2 layers with 4 experts each, at 6 steps: the mean of a layer is 1.
    let query = "select job, count(*) n, count(distinct layer) l, count(distinct expert) e, round(avg(load), 6) m \
        from smelt.expert_load group by job";
    let said = smelt(folder.path(), &["sql", query, "--format", "csv"]).ok().out;
    assert_eq!(said, "job,n,l,e,m\nbase,48,2,4,1.0\n");
}

#[test]
fn a_stage_in_python_takes_part() {
    let folder = tempfile::tempdir().unwrap();
    smelt(folder.path(), &["run", "pipelines/examples/python_stage.yaml"]).ok();
    let store = open(folder.path());
    let pointer = store.pointer("python_stage", "longest").unwrap().unwrap();
    let manifest = store.manifest(&pointer.artifact).unwrap().unwrap();
    assert_eq!(manifest.books.written, 12);
    assert_eq!(manifest.books.read, manifest.books.written + manifest.books.dropped["shorter"]);
    let key = store.file_key(&manifest, "listing", &manifest.ports["listing"].files[0]);
    let listing = std::fs::read_to_string(folder.path().join(key)).unwrap();
    assert_eq!(listing.lines().count(), 12);
}
