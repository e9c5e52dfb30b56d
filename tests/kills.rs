//! Kills at random moments: of the runner, of its stages, of several workers of one job. However often, the run after
//! them ends with the digests of an undisturbed run, nothing half written is ever seen, and `gc` finds what was left.

use crate::smoke::{command, golden, open, published, repository};
use crate::support::{Said, leftovers};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Processes below `runner`, at any depth, that are programs of ours.
fn stages(runner: u32) -> Vec<i32> {
    let mut parents = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        // It may have ended since the listing. The name is in parentheses, and may hold blanks.
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let parent = rest.split_whitespace().nth(1).and_then(|parent| parent.parse::<u32>().ok());
        parents.insert(pid, (parent.unwrap_or(0), name.contains("(smelt-")));
    }
    let below = |mut pid: u32| {
        while let Some((parent, _)) = parents.get(&pid) {
            if *parent == runner {
                return true;
            }
            pid = *parent;
        }
        false
    };
    parents.iter().filter(|(pid, (_, ours))| *ours && below(**pid)).map(|(pid, _)| *pid as i32).collect()
}

/// Draws that follow from the seed alone.
struct Draws(u64);

impl Draws {
    /// In [0, 1).
    fn next(&mut self) -> f64 {
        self.0 += 1;
        let hash = blake3::hash(&self.0.to_le_bytes());
        let bits = u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash is longer than that"));
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Nothing half written is seen: every manifest and every name leads to whole files.
fn nothing_is_half(folder: &Path, kill: usize) {
    let store = open(folder);
    let (manifests, damaged) = store.manifests().unwrap();
    assert!(damaged.is_empty(), "after kill {kill}: {damaged:?}");
    for manifest in manifests {
        assert_eq!(store.look_over(&manifest).unwrap(), Vec::<String>::new(), "after kill {kill}");
    }
    for (_, job, pointer) in store.pointers().unwrap() {
        assert!(store.manifest(&pointer.artifact).unwrap().is_some(), "`{job}` after kill {kill}");
    }
}

/// A pipeline that is killed again and again.
struct Victim {
    name: &'static str,
    /// Between two saves of a training.
    save_seconds: &'static str,
    /// A kill comes after up to so many seconds.
    longest: f64,
}

const SMOKE: Victim = Victim { name: "smoke", save_seconds: "0", longest: 3.0 };

const QUICKSTART: Victim = Victim { name: "quickstart", save_seconds: "2", longest: 12.0 };

/// Kills so often; every run that nobody kills in time is checked, and the next one begins in an empty store.
fn survives(victim: &Victim, kills: usize, seed: u64) {
    let name = victim.name;
    let text = std::fs::read_to_string(repository().join(format!("pipelines/{name}.yaml"))).unwrap();
    // Of a job with three workers some are killed and others go on.
    let shared = text.replace("{ stage: clean, input: raw", "{ run: { workers: 3 }, stage: clean, input: raw");
    assert_ne!(shared, text);
    let (mut draws, mut killed, mut stages_killed, mut ended) = (Draws(seed << 32), 0, 0, 0);
    let clock = Instant::now();
    while killed < kills || ended == 0 {
        let folder = tempfile::tempdir().unwrap();
        let pipeline = folder.path().join(format!("{name}.yaml"));
        std::fs::write(&pipeline, &shared).unwrap();
        loop {
            let mut run = command(folder.path(), &["run", pipeline.to_str().unwrap(), "--retries", "0"]);
            run.env("SMELT_SAVE_SECONDS", victim.save_seconds);
            let mut runner = run.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            // Ever later, so that each store is finished at some time.
            std::thread::sleep(Duration::from_secs_f64(0.05 + victim.longest * draws.next()));
            let at_work = stages(runner.id());
            if killed < kills && runner.try_wait().unwrap().is_none() {
                killed += 1;
                match at_work.get((draws.next() * 2.0 * at_work.len() as f64) as usize) {
                    Some(stage) => {
                        // SAFETY: a signal to a process that this test's runner has started.
                        unsafe { libc::kill(*stage, libc::SIGKILL) };
                        stages_killed += 1;
                    }
                    None => runner.kill().unwrap(),
                }
            }
            let status = runner.wait().unwrap();
            nothing_is_half(folder.path(), killed);
            if status.success() {
                break;
            }
        }
        ended += 1;
        let smelt = |args: &[&str]| -> Said { command(folder.path(), args).output().unwrap().into() };
        assert_eq!(published(&open(folder.path()), name), golden(name), "after kill {killed}");
        smelt(&["artifacts", "verify", "--deep"]).ok();
        smelt(&["artifacts", "gc", "--older-than", "0", "--delete"]).ok();
        let again = smelt(&["artifacts", "gc", "--older-than", "0"]).ok().out;
        assert!(again.starts_with("0 artifacts and 0 attempts, 0 B"), "after kill {killed}: {again}");
        assert_eq!(leftovers(folder.path()), Vec::<String>::new());
        smelt(&["artifacts", "verify", "--deep"]).ok();
        assert!(smelt(&["run", pipeline.to_str().unwrap()]).ok().out.contains("nothing to do"));
        println!("{name}: {killed} kills so far, {ended} runs ended, {} s", clock.elapsed().as_secs());
    }
    let seconds = clock.elapsed().as_secs();
    println!("{name}: {killed} kills, {stages_killed} of them of stages; {ended} runs ended, {seconds} s");
    assert!(kills < 50 || stages_killed * 4 > kills, "{stages_killed} of {kills} kills were of stages");
}

#[test]
fn kills_at_random_moments_change_no_byte() {
    survives(&SMOKE, 12, 1);
}

/// `SMELT_KILLS=200 cargo test --release -- --ignored hundreds_of_kills --nocapture`
#[test]
#[ignore = "takes as long as SMELT_KILLS says, 200 if it is not set: half an hour and more"]
fn hundreds_of_kills_at_random_moments_change_no_byte() {
    let kills: usize = std::env::var("SMELT_KILLS").map_or(200, |n| n.parse().expect("a number of kills"));
    // Those of the quickstart take longer.
    let of_quickstart = kills / 3;
    survives(&SMOKE, kills - of_quickstart, 2);
    survives(&QUICKSTART, of_quickstart, 3);
}
