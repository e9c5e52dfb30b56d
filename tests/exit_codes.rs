//! A training that fails says whose turn it is, by four different exit codes.

use crate::smoke::{command, copy, open, undisturbed};
use crate::support::Said;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The undisturbed store without the artifact of `job`, and the folder that the artifact will have.
fn without(job: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    copy(undisturbed(), folder.path());
    let artifact = open(folder.path()).pointer("smoke", job).unwrap().unwrap().artifact;
    let recipe = folder.path().join("artifacts").join(&artifact.stage).join(artifact.fingerprint.to_string());
    std::fs::remove_dir_all(&recipe).unwrap();
    (folder, recipe)
}

fn arguments(job: &str) -> [&str; 6] {
    ["run", "pipelines/smoke.yaml", "--only", job, "--retries", "0"]
}

fn found(folder: &Path, name: &str) -> PathBuf {
    let entries = || std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let here = entries().find(|path| path.file_name().unwrap() == name && path.is_file());
    let below = || entries().filter(|path| path.is_dir()).map(|path| found(&path, name)).find(|path| path.is_file());
    here.or_else(below).unwrap_or_default()
}

#[test]
fn a_diverged_loss_asks_for_another_pipeline() {
    let (folder, _) = without("short");
    let mut command = command(folder.path(), &arguments("short"));
    let said: Said = command.args(["--set", "short.config.lr=1e30"]).output().unwrap().into();
    let said = said.fails(2);
    let is_named = [": the loss is NaN", ": the gradient's norm is NaN"].iter().any(|what| said.err.contains(what));
    assert!(is_named && said.err.contains("hint: lower the learning rate or the clipping norm"), "{said:?}");
}

#[test]
fn a_broken_input_asks_for_other_data() {
    let (folder, _) = without("short");
    let base = open(folder.path()).pointer("smoke", "base").unwrap().unwrap().artifact;
    let base = folder.path().join("artifacts").join(&base.stage).join(base.fingerprint.to_string());
    let weights = found(&base, "model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let said: Said = command(folder.path(), &arguments("short")).output().unwrap().into();
    let said = said.fails(3);
    assert!(said.err.contains("model.safetensors") && said.err.contains("hint: "), "{said:?}");
}

/// A save that names no state was written by a bug.
#[test]
fn a_save_without_a_state_is_a_bug() {
    let (folder, recipe) = without("base");
    // killed ever later, until there is a save
    let progress = (4..20).find_map(|n| {
        let mut first = command(folder.path(), &arguments("base"));
        let killed: Said = first.env("SMELT_KILL_AT_WRITE", format!("smelt-pretrain:{n}")).output().unwrap().into();
        killed.fails(4);
        Some(found(&recipe, "progress.json")).filter(|path| path.is_file())
    });
    let progress = progress.expect("a training that is killed later and later leaves a save");
    let mut saved: serde_json::Value = serde_json::from_slice(&std::fs::read(&progress).unwrap()).unwrap();
    saved["files"].as_object_mut().unwrap().remove("state").expect("the save had a state");
    std::fs::write(&progress, saved.to_string()).unwrap();
    let said: Said = command(folder.path(), &arguments("base")).output().unwrap().into();
    let said = said.fails(5);
    assert!(said.err.contains("a save of this training has no state"), "{said:?}");
}

/// A limit on the size of files fails a write as a full disk does.
#[test]
fn a_full_disk_asks_for_another_machine() {
    let (folder, _) = without("base");
    let plain = command(folder.path(), &arguments("base"));
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$@\"", "sh"]); // in blocks of 512 bytes
    limited.arg(plain.get_program()).args(plain.get_args());
    plain.get_envs().for_each(|(name, value)| match value {
        Some(value) => drop(limited.env(name, value)),
        None => drop(limited.env_remove(name)),
    });
    limited.current_dir(plain.get_current_dir().expect("the repository's folder"));
    let said: Said = limited.output().unwrap().into();
    let said = said.fails(6);
    assert!(said.err.contains(" is full: ") && said.err.contains("hint: free some space"), "{said:?}");
}
