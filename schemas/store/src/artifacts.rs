//! Manifests, pointers and tags: what a store's keys mean.

use crate::error::{Error, Result};
use crate::store::Store;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use smelt_schemas::{ArtifactRef, Digest, FileRecord, Manifest};
use std::collections::BTreeMap;

/// The result of a commit.
#[derive(Debug)]
pub enum Commit {
    Won,
    /// Another attempt had committed this edition; its manifest counts.
    Adopted(Box<Manifest>),
}

/// The edition that a job of a pipeline now means.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pointer {
    pub artifact: ArtifactRef,
    /// Seconds since 1970, UTC.
    pub time: f64,
    /// The run that set it.
    pub run: String,
    /// Of an instance: its axes and their values, in order.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub axes: serde_json::Map<String, serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tag {
    pub artifact: ArtifactRef,
    pub time: f64,
}

/// An artifact whose manifest cannot be read, and why.
pub type Damaged = (ArtifactRef, Error);

/// `name` as one part of a key: characters that some store refuses become `!` and two hexadecimal digits.
pub fn safe_name(name: &str) -> String {
    let mut out = String::new();
    for (i, b) in name.bytes().enumerate() {
        match b {
            // `.` and `..` cannot name files, and names that begin with a dot are hidden.
            b'.' if i == 0 => out += "!2E",
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'=' | b',' | b'.' => out.push(b as char),
            _ => out += &format!("!{b:02X}"),
        }
    }
    out
}

fn unsafe_name(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name.as_bytes();
    while let [b, tail @ ..] = rest {
        let hex = (*b == b'!' && tail.len() >= 2).then(|| std::str::from_utf8(&tail[..2]).ok()).flatten();
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*b);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The folder of a recipe's editions and attempts.
pub fn artifact_key(stage: &str, fingerprint: &Digest) -> String {
    format!("artifacts/{}/{fingerprint}", safe_name(stage))
}

fn manifest_key(artifact: &ArtifactRef) -> String {
    format!("{}/{}.json", artifact_key(&artifact.stage, &artifact.fingerprint), artifact.edition)
}

pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("our records are plain data");
    bytes.push(b'\n');
    bytes
}

impl Store {
    pub(crate) fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        let Some(bytes) = self.get_opt(key)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| self.corrupt(key, format!("cannot be read: {e}")))
    }

    pub fn manifest(&self, artifact: &ArtifactRef) -> Result<Option<Manifest>> {
        let key = manifest_key(artifact);
        let Some(manifest) = self.get_json::<Manifest>(&key)? else { return Ok(None) };
        if manifest.artifact() != *artifact {
            return Err(self.corrupt(&key, "describes another artifact"));
        }
        Ok(Some(manifest))
    }

    /// Committed editions of a recipe, ascending.
    pub fn editions(&self, stage: &str, fingerprint: &Digest) -> Result<Vec<u32>> {
        let (files, _) = self.list_here(&artifact_key(stage, fingerprint))?;
        let mut found: Vec<u32> = files.iter().filter_map(|f| f.strip_suffix(".json")?.parse().ok()).collect();
        found.sort_unstable();
        Ok(found)
    }

    /// The newest edition of a recipe whose manifest can be read, if any is committed; the damage if none can.
    pub fn newest(&self, stage: &str, fingerprint: &Digest) -> Result<Option<Manifest>> {
        let mut damage = None;
        for edition in self.editions(stage, fingerprint)?.into_iter().rev() {
            match self.manifest(&ArtifactRef { stage: stage.into(), fingerprint: fingerprint.clone(), edition }) {
                Ok(Some(manifest)) => return Ok(Some(manifest)),
                Ok(None) => {}
                Err(e @ Error::Corrupt { .. }) => damage = damage.or(Some(e)),
                Err(e) => return Err(e),
            }
        }
        damage.map_or(Ok(None), Err)
    }

    /// The manifests of all committed artifacts, and the errors of those that cannot be read.
    pub fn manifests(&self) -> Result<(Vec<Manifest>, Vec<Damaged>)> {
        let (mut found, mut damaged) = (Vec::new(), Vec::new());
        for artifact in self.artifacts()? {
            match self.manifest(&artifact) {
                Ok(manifest) => found.extend(manifest),
                Err(e @ Error::Corrupt { .. }) => damaged.push((artifact, e)),
                Err(e) => return Err(e),
            }
        }
        Ok((found, damaged))
    }

    /// Every committed artifact.
    pub fn artifacts(&self) -> Result<Vec<ArtifactRef>> {
        let mut found = Vec::new();
        for stage in self.list_here("artifacts")?.1 {
            for fingerprint in self.list_here(&format!("artifacts/{stage}"))?.1 {
                let Ok(fingerprint) = Digest::try_from(fingerprint) else { continue };
                let stage = unsafe_name(&stage);
                for edition in self.editions(&stage, &fingerprint)? {
                    found.push(ArtifactRef { stage: stage.clone(), fingerprint: fingerprint.clone(), edition });
                }
            }
        }
        Ok(found)
    }

    /// Where a file of a committed port lies.
    pub fn file_key(&self, manifest: &Manifest, port: &str, file: &FileRecord) -> String {
        let recipe = artifact_key(&manifest.stage, &manifest.fingerprint);
        format!("{recipe}/attempts/{}/files/{port}/{}", manifest.attempt, file.place())
    }

    /// Creates the manifest, which makes its files exist. Of two racing attempts one commits and the other adopts it.
    pub fn commit(&self, manifest: &Manifest) -> Result<Commit> {
        let artifact = manifest.artifact();
        let created = self.create(&manifest_key(&artifact), &to_json(manifest));
        if let Ok(true) = created {
            return Ok(Commit::Won);
        }
        // It exists, or the reply was lost: whose is it?
        match (self.manifest(&artifact)?, created) {
            (Some(_), _) if self.get_opt(&manifest_key(&artifact))?.as_deref() == Some(&to_json(manifest)) => {
                Ok(Commit::Won)
            }
            (Some(found), _) => Ok(Commit::Adopted(Box::new(found))),
            (None, Err(e)) => Err(e),
            (None, Ok(_)) => Err(self.corrupt(&manifest_key(&artifact), "was said to exist, and does not")),
        }
    }

    fn pointer_key(pipeline: &str, job: &str) -> String {
        format!("pipelines/{}/{}.json", safe_name(pipeline), safe_name(job))
    }

    pub fn pointer(&self, pipeline: &str, job: &str) -> Result<Option<Pointer>> {
        self.get_json(&Self::pointer_key(pipeline, job))
    }

    /// Every pipeline's jobs and where they point: (pipeline, job, pointer).
    pub fn pointers(&self) -> Result<Vec<(String, String, Pointer)>> {
        let mut found = Vec::new();
        for entry in self.list("pipelines")? {
            let mut parts = entry.key.splitn(3, '/').skip(1);
            let (Some(pipeline), Some(job)) = (parts.next(), parts.next().and_then(|j| j.strip_suffix(".json"))) else {
                continue;
            };
            if let Some(pointer) = self.get_json(&entry.key)? {
                found.push((unsafe_name(pipeline), unsafe_name(job), pointer));
            }
        }
        Ok(found)
    }

    /// Pipelines of which a job has an artifact.
    pub fn pipelines(&self) -> Result<Vec<String>> {
        Ok(self.list_here("pipelines")?.1.iter().map(|name| unsafe_name(name)).collect())
    }

    /// Jobs of a pipeline that have an artifact.
    pub fn jobs_of(&self, pipeline: &str) -> Result<Vec<String>> {
        let (files, _) = self.list_here(&format!("pipelines/{}", safe_name(pipeline)))?;
        Ok(files.iter().filter_map(|file| file.strip_suffix(".json")).map(unsafe_name).collect())
    }

    fn views_key(pipeline: &str) -> String {
        format!("views/{}.json", safe_name(pipeline))
    }

    /// The queries that a pipeline's file gives names, as its last run had them.
    pub fn views(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        Ok(self.get_json(&Self::views_key(pipeline))?.unwrap_or_default())
    }

    pub fn set_views(&self, pipeline: &str, views: &BTreeMap<String, String>) -> Result<()> {
        if self.views(pipeline)? == *views {
            return Ok(());
        }
        self.put(&Self::views_key(pipeline), &to_json(views))
    }

    pub fn point(&self, pipeline: &str, job: &str, pointer: &Pointer) -> Result<()> {
        self.put(&Self::pointer_key(pipeline, job), &to_json(pointer))
    }

    pub fn tag(&self, name: &str) -> Result<Option<Tag>> {
        self.get_json(&format!("tags/{}.json", safe_name(name)))
    }

    pub fn set_tag(&self, name: &str, tag: &Tag) -> Result<()> {
        self.put(&format!("tags/{}.json", safe_name(name)), &to_json(tag))
    }

    pub fn delete_tag(&self, name: &str) -> Result<()> {
        self.delete(&format!("tags/{}.json", safe_name(name)))
    }

    pub fn tags(&self) -> Result<Vec<(String, Tag)>> {
        let mut found = Vec::new();
        for file in self.list_here("tags")?.0 {
            let Some(name) = file.strip_suffix(".json").map(unsafe_name) else { continue };
            if let Some(tag) = self.tag(&name)? {
                found.push((name, tag));
            }
        }
        Ok(found)
    }

    /// Looks whether every file of an artifact is there, as long as its record says. Returns one text per difference.
    pub fn look_over(&self, manifest: &Manifest) -> Result<Vec<String>> {
        let mut troubles = Vec::new();
        for (name, port) in &manifest.ports {
            for file in &port.files {
                let key = self.file_key(manifest, name, file);
                match self.size(&key)? {
                    Some(bytes) if bytes == file.bytes => {}
                    Some(bytes) => {
                        let what = format!("has {bytes} bytes, its manifest says {}", file.bytes);
                        troubles.push(self.corrupt(&key, what).to_string());
                    }
                    None => troubles.push(self.missing(&key).to_string()),
                }
            }
        }
        Ok(troubles)
    }

    /// Reads every file of an artifact and compares it with its record. Returns one text per difference.
    pub fn verify(&self, manifest: &Manifest, scratch: &std::path::Path) -> Result<Vec<String>> {
        let mut troubles = Vec::new();
        for (name, port) in &manifest.ports {
            for file in &port.files {
                match self.fetch(&self.file_key(manifest, name, file), file, scratch) {
                    Ok(_) => {}
                    Err(e @ (Error::Corrupt { .. } | Error::NotFound { .. })) => troubles.push(e.to_string()),
                    Err(e) => return Err(e),
                }
            }
            if smelt_schemas::port_digest(&port.kind, &port.files) != port.digest {
                troubles.push(format!("port `{name}` of {} has files that do not give its digest", manifest.stage));
            }
        }
        Ok(troubles)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of an artifact without ports.
    pub(crate) fn manifest(stage: &str, fingerprint: &Digest, attempt: &str) -> Manifest {
        Manifest {
            protocol: 1,
            stage: stage.into(),
            version: 1,
            fingerprint: fingerprint.clone(),
            edition: 0,
            attempt: attempt.into(),
            config: serde_json::Value::Null,
            inputs: Default::default(),
            sources: Vec::new(),
            ports: Default::default(),
            books: Default::default(),
            metrics: Default::default(),
            provenance: Default::default(),
        }
    }

    #[test]
    fn a_damaged_manifest_hides_no_other_edition() {
        let store = Store::open("memory:damaged").unwrap();
        let recipe = Digest::of(b"recipe");
        let key = |edition| format!("{}/{edition}.json", artifact_key("clean", &recipe));
        let manifest = manifest("clean", &recipe, "a");
        store.put(&key(1), &to_json(&manifest)[..40]).unwrap();
        let error = store.newest("clean", &recipe).unwrap_err().to_string();
        assert!(error.contains("1.json` in store memory:damaged cannot be read"), "{error}");
        assert!(matches!(store.commit(&manifest).unwrap(), Commit::Won));
        assert_eq!(store.newest("clean", &recipe).unwrap(), Some(manifest.clone()));
        let (whole, damaged) = store.manifests().unwrap();
        assert_eq!((whole, damaged.len()), (vec![manifest], 1));
    }

    proptest! {
        #[test]
        fn any_name_survives_as_part_of_a_key(name in "[ -~é]{0,12}|\\PC*") {
            let key = safe_name(&name);
            prop_assert_eq!(unsafe_name(&key), name);
            let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_=,.!".contains(c);
            prop_assert!(key.chars().all(is_safe) && !key.starts_with('.'), "{}", key);
        }
    }

    #[test]
    fn names_of_instances_stay_readable_in_keys() {
        let instance = safe_name("train[seed=1,rate=3e-4]");
        assert_eq!(instance, "train!5Bseed=1,rate=3e-4!5D");
        assert_eq!([safe_name(".."), safe_name("!5B")], ["!2E.", "!215B"]);
    }
}
