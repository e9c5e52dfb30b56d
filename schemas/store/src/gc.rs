//! Garbage collection: artifacts and attempts that nothing refers to any more.

use crate::artifacts::artifact_key;
use crate::attempt::{Lease, Progress, UNITS, WORK};
use crate::clock::now;
use crate::directory::is_temporary;
use crate::error::{Error, Result};
use crate::owner::Owner;
use crate::run::{RunRecord, RunState};
use crate::store::Store;
use crate::workers::{CLAIMS, WORKERS};
use smelt_schemas::{ArtifactRef, Manifest, PortRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

#[derive(Clone, Debug)]
pub struct GcRules {
    /// Attempts younger than this stay, in seconds.
    pub attempt_age: f64,
    /// Artifacts younger than this stay, in seconds: a run that is under way may need them.
    pub artifact_age: f64,
    /// How many artifacts of each job of each pipeline stay, the newest: its pointer may have moved to an older one.
    pub newest: usize,
}

impl Default for GcRules {
    fn default() -> Self {
        Self { attempt_age: 86_400.0, artifact_age: 86_400.0, newest: 1 }
    }
}

/// What `gc` would delete, and how much that is.
#[derive(Clone, Debug, Default)]
pub struct GcPlan {
    pub artifacts: Vec<ArtifactRef>,
    /// Folders of attempts that committed nothing.
    pub attempts: Vec<String>,
    /// Inside the attempts of artifacts that stay, and outside of attempts.
    pub leftovers: Leftovers,
    /// Of all three.
    pub bytes: u64,
}

/// What lies in the folder of a committed attempt and is neither part of the artifact nor a save that is kept: saves
/// of a process that was killed, files that its successor wrote under other names, temporary files, empty folders;
/// and what is for the time before the commit: records of units, their own files, claims and leases of workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    pub files: Vec<String>,
    pub folders: Vec<String>,
    pub bytes: u64,
}

impl AddAssign for Leftovers {
    fn add_assign(&mut self, more: Self) {
        self.files.extend(more.files);
        self.folders.extend(more.folders);
        self.bytes += more.bytes;
    }
}

impl Store {
    /// An artifact is deleted when no tag, no pointer and no live run reaches it, directly or as an input of what they
    /// reach, and it is not among the newest of its job; an attempt when it has lapsed and is a day old. If a manifest
    /// is damaged, nobody can say which files belong to it, so it and the attempts of its recipe stay.
    pub fn plan_gc(&self, rules: &GcRules) -> Result<GcPlan> {
        let now = now();
        // The runs first: what a run commits from now on is too young to be deleted, or held by its record.
        let (running, ended_runs): (Vec<RunRecord>, Vec<_>) =
            self.runs()?.into_iter().partition(|r| r.state == RunState::Running);
        let (found, damaged) = self.manifests()?;
        let manifests: BTreeMap<ArtifactRef, Manifest> = found.into_iter().map(|m| (m.artifact(), m)).collect();
        let tags = self.tags()?.into_iter().map(|(_, t)| t.artifact);
        let mut open: Vec<ArtifactRef> = self.pointers()?.into_iter().map(|(_, _, p)| p.artifact).chain(tags).collect();
        open.extend(manifests.iter().filter(|(_, m)| now - ended(m) < rules.artifact_age).map(|(a, _)| a.clone()));
        open.extend(running.iter().flat_map(|r| r.holds.iter().cloned()));
        let began = running.iter().map(|r| r.started).fold(f64::INFINITY, f64::min);
        open.extend(manifests.iter().filter(|(_, m)| ended(m) >= began).map(|(a, _)| a.clone()));
        let pipelines: BTreeMap<&str, &str> =
            running.iter().chain(&ended_runs).map(|r| (r.run.as_str(), r.pipeline.as_str())).collect();
        let mut jobs: BTreeMap<(&str, &str), Vec<&Manifest>> = BTreeMap::new();
        for manifest in manifests.values() {
            let made = &manifest.provenance;
            // Of a run whose record is gone, or that was made in another store, only the job is known.
            let pipeline = pipelines.get(made.run.as_str()).copied().unwrap_or_default();
            jobs.entry((pipeline, made.job.as_str())).or_default().push(manifest);
        }
        for made in jobs.values_mut() {
            made.sort_by(|a, b| b.provenance.started.total_cmp(&a.provenance.started));
            open.extend(made.iter().take(rules.newest).map(|m| m.artifact()));
        }
        let mut reached = BTreeSet::new();
        while let Some(artifact) = open.pop() {
            if let Some(manifest) = manifests.get(&artifact)
                && reached.insert(artifact)
            {
                open.extend(manifest.inputs.values().flatten().map(|i| i.artifact.clone()));
            }
        }

        let mut plan = GcPlan::default();
        let committed: BTreeSet<String> = manifests
            .values()
            .map(|m| format!("{}/attempts/{}", artifact_key(&m.stage, &m.fingerprint), m.attempt))
            .collect();
        for (artifact, manifest) in &manifests {
            if !reached.contains(artifact) {
                plan.bytes += manifest.bytes();
                plan.artifacts.push(artifact.clone());
            } else if now - ended(manifest) >= rules.attempt_age {
                plan.leftovers += self.leftovers(manifest)?;
            }
        }
        let unsure: BTreeSet<String> =
            damaged.iter().map(|(a, _)| format!("{}/attempts", artifact_key(&a.stage, &a.fingerprint))).collect();
        let me = Owner::this_process();
        for stage in self.list_here("artifacts")?.1 {
            for fingerprint in self.list_here(&format!("artifacts/{stage}"))?.1 {
                let folder = format!("artifacts/{stage}/{fingerprint}/attempts");
                if unsure.contains(&folder) {
                    continue;
                }
                for id in self.list_here(&folder)?.1 {
                    let attempt = format!("{folder}/{id}");
                    if committed.contains(&attempt) {
                        continue;
                    }
                    let is_over = |l: &Lease| l.has_lapsed(now, &me) && now - l.renewed >= rules.attempt_age;
                    let leases = self.leases(&attempt)?;
                    if !leases.iter().all(is_over) {
                        continue;
                    }
                    let files = self.list_with_temporary(&attempt)?;
                    // One without a lease is a copy from another store: it may be under way.
                    let newest = files.iter().map(|file| file.modified).fold(0.0, f64::max);
                    if !leases.is_empty() || now - newest >= rules.attempt_age {
                        plan.bytes += files.iter().map(|file| file.bytes).sum::<u64>();
                        plan.attempts.push(attempt);
                    }
                }
            }
        }
        plan.leftovers += self.beside(now - rules.attempt_age)?;
        plan.bytes += plan.leftovers.bytes;
        Ok(plan)
    }

    /// What killed processes left outside of attempts before `then`: probes of the store, and temporary files, which
    /// only a directory has.
    fn beside(&self, then: f64) -> Result<Leftovers> {
        let mut entries = self.list("probes")?;
        if self.directory().is_some() {
            let all = self.list_with_temporary("")?;
            // Those of an attempt go with it, or are leftovers in it, or are being written.
            let is_beside = |key: &str| is_temporary(key) && !key.contains("/attempts/");
            entries.extend(all.into_iter().filter(|entry| is_beside(&entry.key)));
        }
        let mut found = Leftovers::default();
        for entry in entries.into_iter().filter(|entry| entry.modified <= then) {
            found.bytes += entry.bytes;
            found.files.push(entry.key);
        }
        Ok(found)
    }

    /// The lease of an attempt and those of its workers. One that cannot be read is left out: nobody can renew it any
    /// more.
    fn leases(&self, attempt: &str) -> Result<Vec<Lease>> {
        let workers = self.list_here(&format!("{attempt}/{WORKERS}"))?.0;
        let names = workers.into_iter().map(|name| format!("{WORKERS}/{name}")).chain(["lease.json".into()]);
        let mut found = Vec::new();
        for name in names {
            match self.get_json::<Lease>(&format!("{attempt}/{name}")) {
                Err(Error::Corrupt { .. }) => {}
                other => found.extend(other?),
            }
        }
        Ok(found)
    }

    /// What a committed attempt holds and does not need.
    pub fn leftovers(&self, manifest: &Manifest) -> Result<Leftovers> {
        let attempt = format!("{}/attempts/{}", artifact_key(&manifest.stage, &manifest.fingerprint), manifest.attempt);
        let progress = match self.get_json::<Progress>(&format!("{attempt}/progress.json")) {
            Err(Error::Corrupt { .. }) => None, // its artifact is committed: nobody continues from it
            other => other?,
        };
        let saves = progress.map(Progress::into_saves).unwrap_or_default();
        let kept = saves.iter().filter(|save| save.stays).flat_map(|save| save.files.values()).map(|f| f.path.clone());
        let of_port = |(port, record): (&String, &PortRecord)| {
            record.files.iter().map(|f| format!("files/{port}/{}", f.place())).collect::<Vec<_>>()
        };
        let kept: BTreeSet<String> = kept.chain(manifest.ports.iter().flat_map(of_port)).collect();
        let mut found = Leftovers::default();
        let needless = |path: &str| {
            is_temporary(path) || (path.starts_with("files/") || path.starts_with("saves/")) && !kept.contains(path)
        };
        for entry in self.list_with_temporary(&attempt)? {
            let path = entry.key[attempt.len()..].trim_start_matches('/');
            if needless(path) {
                found.bytes += entry.bytes;
                found.files.push(entry.key);
            }
        }
        // What the workers told each other is of no use any more, and goes as a whole. Leases go first: a worker that
        // finds a unit neither claimed nor committed, because both are gone, then finds its lease gone too. Records of
        // units go before the files that they name.
        for folder in [WORKERS, UNITS, CLAIMS, WORK] {
            let folder = format!("{attempt}/{folder}");
            let entries = self.list(&folder)?;
            if !entries.is_empty() {
                found.bytes += entries.iter().map(|e| e.bytes).sum::<u64>();
                found.folders.push(folder);
            }
        }
        // A folder of a save goes as a whole; a directory also keeps the empty ones.
        for save in self.list_here(&format!("{attempt}/saves"))?.1 {
            let folder = format!("saves/{save}/");
            if !kept.iter().any(|path| path.starts_with(&folder)) {
                let folder = format!("{attempt}/saves/{save}");
                found.files.retain(|key| !key.starts_with(&format!("{folder}/")));
                found.folders.push(folder);
            }
        }
        Ok(found)
    }

    /// Deletes the leftovers of a committed attempt.
    pub(crate) fn tidy(&self, manifest: &Manifest) -> Result<()> {
        let leftovers = self.leftovers(manifest)?;
        self.delete_leftovers(&leftovers)
    }

    pub fn delete_leftovers(&self, leftovers: &Leftovers) -> Result<()> {
        leftovers.folders.iter().try_for_each(|folder| self.delete_all(folder))?;
        leftovers.files.iter().try_for_each(|key| self.delete(key))
    }

    /// Deletes what a plan names. Each manifest goes before its files, so that nothing half deleted is ever visible.
    pub fn gc(&self, plan: &GcPlan) -> Result<()> {
        for artifact in &plan.artifacts {
            let Some(manifest) = self.manifest(artifact)? else { continue };
            let recipe = artifact_key(&artifact.stage, &artifact.fingerprint);
            self.delete(&format!("{recipe}/{}.json", artifact.edition))?;
            self.delete_all(&format!("{recipe}/attempts/{}", manifest.attempt))?;
        }
        for attempt in &plan.attempts {
            self.delete_all(attempt)?;
        }
        self.delete_leftovers(&plan.leftovers)
    }
}

/// Seconds since 1970 when the work of an artifact ended.
fn ended(manifest: &Manifest) -> f64 {
    manifest.provenance.started + manifest.provenance.seconds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::{Pointer, Tag};
    use crate::unique;
    use smelt_schemas::{Digest, InputRef, kind};

    /// An old artifact of a job, made from `inputs`.
    fn made(store: &Store, job: &str, started: f64, inputs: &[&Manifest]) -> Manifest {
        let fingerprint = Digest::of(format!("{job} {started}").as_bytes());
        let mut manifest = crate::artifacts::tests::manifest("train", &fingerprint, "a");
        (manifest.provenance.job, manifest.provenance.started) = (job.into(), started);
        let input = |of: &&Manifest| InputRef {
            artifact: of.artifact(),
            port: "model".into(),
            kind: kind::documents(),
            digest: Digest::of(b"model"),
        };
        manifest.inputs.insert("init".into(), inputs.iter().map(input).collect());
        store.commit(&manifest).unwrap();
        store.put(&format!("{}/attempts/a/files/model/x", artifact_key("train", &fingerprint)), b"x").unwrap();
        manifest
    }

    #[test]
    fn what_is_tagged_pointed_at_or_newest_stays_with_what_it_was_made_from() {
        let store = Store::open(&format!("memory:{}", unique())).unwrap();
        let base: Vec<Manifest> = (1..=4).map(|time| made(&store, "base", f64::from(time), &[])).collect();
        let tuned: Vec<Manifest> = (0..4).map(|i| made(&store, "tuned", 10.0 + i as f64, &[&base[i]])).collect();
        store.set_tag("best", &Tag { artifact: tuned[0].artifact(), time: 0.0 }).unwrap();
        let pointer = Pointer { artifact: tuned[1].artifact(), time: 0.0, run: "r".into(), axes: Default::default() };
        store.point("p", "tuned", &pointer).unwrap();
        let plan = |newest| {
            let plan = store.plan_gc(&GcRules { attempt_age: 0.0, artifact_age: 100.0, newest }).unwrap();
            assert_eq!(plan.attempts, Vec::<String>::new(), "{plan:?}");
            plan.artifacts
        };
        let refs = |of: &[&Manifest]| {
            let mut refs: Vec<ArtifactRef> = of.iter().map(|m| m.artifact()).collect();
            refs.sort();
            refs
        };
        assert_eq!(plan(0), refs(&[&base[2], &base[3], &tuned[2], &tuned[3]]));
        assert_eq!(plan(1), refs(&[&base[2], &tuned[2]]));
        assert_eq!(plan(2), []);
        store.gc(&store.plan_gc(&GcRules { attempt_age: 0.0, artifact_age: 100.0, newest: 1 }).unwrap()).unwrap();
        assert_eq!(store.artifacts().unwrap().len(), 6);
        // Their manifests alone: files that no manifest names go too.
        assert_eq!(store.list("artifacts").unwrap().len(), 6);
    }

    #[test]
    fn a_copy_that_is_under_way_is_no_abandoned_attempt() {
        let folder = std::env::temp_dir().join(format!("smelt-gc-{}", unique()));
        let store = Store::open(folder.to_str().unwrap()).unwrap();
        let key = format!("{}/attempts/a/files/model/x", artifact_key("train", &Digest::of(b"recipe")));
        store.put(&key, b"x").unwrap();
        store.put("probes/a.json", b"1").unwrap();
        std::fs::write(folder.join("probes/.b.json.smelt-tmp"), b"22").unwrap();
        let plan = |age| store.plan_gc(&GcRules { attempt_age: age, ..GcRules::default() }).unwrap();
        let young = plan(100.0);
        assert_eq!((young.attempts.len(), young.leftovers, young.bytes), (0, Leftovers::default(), 0));
        let old = plan(-1.0);
        assert_eq!((old.attempts.len(), old.leftovers.files.len(), old.bytes), (1, 2, 4));
        store.gc(&old).unwrap();
        assert_eq!(store.list_with_temporary("").unwrap(), []);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
