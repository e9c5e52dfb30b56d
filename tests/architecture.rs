//! The floors of the house: a crate sees only lower ones, and crates on one floor do not see each other.

use cargo_metadata::MetadataCommand;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn floors() -> BTreeMap<&'static str, u32> {
    let mut floors = BTreeMap::from([
        ("smelt-schemas", 1),
        ("smelt-store", 2),
        ("smelt-kernels", 3),
        ("smelt-words", 3),
        ("smelt-verify", 3),
        ("smelt-stage", 4),
        ("smelt-model", 4),
        ("smelt-text", 4),
        ("smelt-train", 5),
        ("smelt-generate", 5),
        ("smelt-checkpoint", 5),
        ("smelt-classify", 5),
        ("smelt-answer", 6),
        ("smelt-loop", 6),
        ("smelt-bench", 6),
        // These know stages only through their verbs and manifests, so they see nothing above floor 2.
        ("smelt", 3),
        ("smelt-query", 3),
        ("smelt-kubernetes", 3),
        ("smelt-tests", 8),
    ]);
    for stage in [
        "ingest",
        "import",
        "clean",
        "quality",
        "dedup",
        "decontaminate",
        "tokenize",
        "mix",
        "problems",
        "pretrain",
        "sft",
        "distill",
        "reward",
        "align",
        "evaluate",
    ] {
        floors.insert(Box::leak(format!("smelt-{stage}").into_boxed_str()), 7);
    }
    floors
}

fn metadata() -> cargo_metadata::Metadata {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    // crates of other platforms are not downloaded
    let rustc = std::process::Command::new("rustc").arg("-vV").output().expect("rustc starts");
    let about = String::from_utf8(rustc.stdout).expect("rustc writes text");
    let host = about.lines().find_map(|line| line.strip_prefix("host: ")).expect("rustc names its host");
    MetadataCommand::new()
        .manifest_path(manifest)
        .other_options(["--offline", "--filter-platform", host].map(str::to_owned).to_vec())
        .exec()
        .expect("cargo metadata answers")
}

#[test]
fn every_crate_sees_only_lower_floors() {
    let (floors, metadata) = (floors(), metadata());
    let members: Vec<_> = metadata.workspace_packages();
    let named: BTreeSet<&str> = members.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(named, floors.keys().copied().collect(), "every crate has a floor");
    for package in &members {
        for dependency in package.dependencies.iter().filter(|d| floors.contains_key(d.name.as_str())) {
            let (from, to) = (floors[package.name.as_str()], floors[dependency.name.as_str()]);
            assert!(to < from, "{} (floor {from}) sees {} (floor {to})", package.name, dependency.name);
        }
    }
}

#[test]
fn only_the_query_program_links_datafusion_and_the_runner_stays_small() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let sees = |name: &str| package.dependencies.iter().any(|d| d.name == name);
        assert_eq!(sees("datafusion"), package.name == "smelt-query", "{}", package.name);
        assert_eq!(sees("kube"), package.name == "smelt-kubernetes", "{}", package.name);
        if package.name == "smelt" {
            assert!(!sees("arrow") && !sees("parquet"));
        }
    }
}

/// An answer means the same in every stage, because one room asks and judges.
#[test]
fn stages_that_ask_or_train_leave_sampler_template_and_verifier_to_their_rooms() {
    let metadata = metadata();
    for package in metadata.workspace_packages() {
        let sees = |name: &str| package.dependencies.iter().any(|d| d.name == name);
        if ["smelt-sft", "smelt-reward", "smelt-distill", "smelt-align", "smelt-evaluate"]
            .contains(&package.name.as_str())
        {
            for room in ["smelt-generate", "smelt-text", "smelt-verify"] {
                assert!(!sees(room), "{} sees {room}", package.name);
            }
        }
        let trains = ["smelt-pretrain", "smelt-sft", "smelt-reward", "smelt-align"].contains(&package.name.as_str());
        assert_eq!(sees("smelt-loop"), trains, "{}", package.name);
    }
}

#[test]
fn the_columnar_crates_have_one_version_each() {
    let metadata = metadata();
    for name in ["arrow", "arrow-schema", "parquet", "object_store", "datafusion", "tokenizers", "zstd"] {
        let versions: Vec<String> =
            metadata.packages.iter().filter(|p| p.name == name).map(|p| p.version.to_string()).collect();
        assert_eq!(versions.len(), 1, "{name}: {versions:?}");
    }
}

#[test]
fn the_top_level_holds_the_drawn_folders_and_no_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let allowed = ["stages", "kernels", "pipelines", "schemas", "tests", "docs", "target", "artifacts"];
    for entry in std::fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().unwrap().is_dir() && !name.starts_with('.') {
            assert!(allowed.contains(&name.as_str()), "folder `{name}` at the top level");
        }
    }
}
