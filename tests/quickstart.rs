//! The whole quickstart, once: it does what the README promises.

use crate::smoke::{assert_published, repository};
use crate::support::{Bench, Said};
use smelt_store::Store;
use std::collections::BTreeSet;
use std::path::Path;

fn smelt(store: &Path, args: &[&str]) -> Said {
    Bench::bare(&repository(), args).arg("--store").arg(store).output().expect("smelt starts").into()
}

/// `name-version` of each crate whose text a pipeline reads.
fn crates(pipeline: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(repository().join("pipelines").join(pipeline)).unwrap();
    let after = text.lines().filter_map(|line| line.split_once("/./"));
    after.filter_map(|(_, rest)| rest.split_once("/{").map(|(name, _)| name.to_owned())).collect()
}

#[test]
fn the_crates_that_pipelines_read_are_those_that_the_build_downloads() {
    let lock = std::fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    let mut locked = BTreeSet::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find(|line| line.starts_with(&format!("{name} = ")));
            line.and_then(|line| line.split('"').nth(1)).unwrap_or_default().to_owned()
        };
        locked.insert(format!("{}-{}", field("name"), field("version")));
    }
    for (pipeline, count) in [
        ("quickstart.yaml", 30),
        ("smoke.yaml", 1),
        ("ablations/balance.yaml", 10),
        ("ablations/mtp.yaml", 10),
        ("ablations/fp8.yaml", 10),
    ] {
        let read = crates(pipeline);
        assert_eq!(read.len(), count, "{pipeline}");
        let gone: Vec<_> = read.difference(&locked).collect();
        assert!(gone.is_empty(), "pipelines/{pipeline} reads {gone:?}, and Cargo.lock has other versions");
    }
}

/// Rows of a query, as numbers where they are.
fn rows(store: &Path, query: &str) -> Vec<Vec<String>> {
    let said = smelt(store, &["sql", query, "--pipeline", "quickstart", "--format", "csv"]).ok().out;
    said.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or_else(|_| panic!("`{text}` is no number"))
}

#[test]
fn the_quickstart_tells_its_story() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path();
    let said = smelt(store, &["run", "pipelines/quickstart.yaml"]).ok().out;
    println!("{said}");

    // every row is accounted for
    let open = Store::open(store.to_str().unwrap()).unwrap();
    let manifests: Vec<_> = open
        .pointers()
        .unwrap()
        .into_iter()
        .map(|(_, job, pointer)| (job, open.manifest(&pointer.artifact).unwrap().unwrap()))
        .collect();
    assert_eq!(manifests.len(), 22);
    for (job, manifest) in &manifests {
        manifest.books.check().unwrap_or_else(|e| panic!("{job}: {e}"));
    }

    // and every byte is the published one
    assert_published(&open, "quickstart");

    // the loss falls
    let curve = rows(store, "select value from smelt.metrics where job = 'base' and name = 'loss' order by step");
    let mean = |rows: &[Vec<String>]| rows.iter().map(|row| number(&row[0])).sum::<f64>() / rows.len() as f64;
    assert_eq!(curve.len(), 2500);
    assert!(mean(&curve[2400..]) < 0.5 * mean(&curve[..20]), "{} {}", mean(&curve[2400..]), mean(&curve[..20]));

    // each stage helps by more than twice the error of the difference, problem by problem
    let gain = |pair: &str, metric: &str| {
        let query = format!("select value, standard_error from score where model = '{pair}' and metric = '{metric}'");
        let found = rows(store, &query);
        assert_eq!(found.len(), 1, "{pair}: {metric}");
        let (value, error) = (number(&found[0][0]), number(&found[0][1]));
        assert!(value > 2.0 * error, "{pair}: {metric} {value} ± {error}");
    };
    gain("expert before GRPO - short", "avg@8");
    gain("expert - expert before GRPO", "avg@8");
    gain("aligned - distilled", "avg@8");
    gain("aligned - short", "avg@8");
    gain("aligned - distilled, prompted", "avg@8");

    // aligned, the model answers at length without being asked
    let length = |model: &str| {
        let query = format!("select value from score where model = '{model}' and metric = 'tokens_per_answer'");
        number(&rows(store, &query)[0][0])
    };
    assert!(length("aligned") > 2.0 * length("distilled"), "{} {}", length("aligned"), length("distilled"));

    let again = smelt(store, &["run", "pipelines/quickstart.yaml"]).ok().out;
    assert!(again.starts_with("quickstart: nothing to do, 22 jobs cached"), "{again}");
}
