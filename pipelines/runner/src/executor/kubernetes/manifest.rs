//! A job as Kubernetes takes it: a Job, and a Service by which ranks find each other.

use crate::load::Instance;
use serde_json::{Map, Value, json};
use smelt_schemas::{Device, Digest, Kubernetes};
use smelt_store::safe_name;
use std::path::Path;

/// What a job is created with.
pub(crate) struct Order<'a> {
    pub pipeline: &'a str,
    pub run: &'a str,
    pub job: &'a Instance,
    /// How often it was created in this run, this time included.
    pub number: u32,
    /// The folder of the run.
    pub folder: &'a Path,
    pub store: &'a str,
}

/// A job is told to save so many seconds before its pod is ended, if nothing else is said.
const GRACE: f64 = 120.0;
/// What is over is kept for so many seconds, for people to look at.
const KEPT: u64 = 86_400;
/// Where ranks meet, on the first of them: each has an address of its own, so one number is enough.
const PORT: u16 = 29_500;

/// The label by which the Jobs of a run are found.
pub(crate) fn selector(run: &str) -> String {
    format!("smelt/run={run}")
}

/// The one by which all Jobs of a pipeline are found.
pub(crate) fn pipeline_selector(pipeline: &str) -> String {
    format!("smelt/pipeline={}", label(pipeline))
}

/// The name of a Job: it follows from run, job and number, so that creating one twice is the same as once. At most 55
/// characters, for pods put theirs behind it and a name in DNS has 63.
pub(crate) fn name(run: &str, job: &str, number: u32) -> String {
    format!("{}{number}", stem(run, job))
}

/// How the names of all Jobs begin that were created for a job of a run.
pub(crate) fn stem(run: &str, job: &str) -> String {
    let plain = |text: &str| -> String {
        let plain = text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' });
        plain.collect()
    };
    let (run, mut word) = (plain(run), plain(job));
    word.truncate(10);
    let hash = Digest::of(job.as_bytes());
    format!("smelt-{run}-{}-{}-", word.trim_end_matches('-'), &hash.to_string()[..6])
}

/// As a label takes it: at most 63 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends.
fn label(text: &str) -> String {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let text: String = text.chars().map(|c| if good(c) { c } else { '-' }).take(63).collect();
    text.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

impl Order<'_> {
    pub(crate) fn name(&self) -> String {
        name(self.run, &self.job.name, self.number)
    }

    /// The Job, and the Service where one is needed.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let nothing = Kubernetes::default();
        let (run, own) = (&self.job.run, self.job.run.kubernetes.as_ref().unwrap_or(&nothing));
        let (name, labels, annotations) = (self.name(), self.labels(), self.annotations());
        let (workers, nodes) = (run.workers.unwrap_or(1).max(1), run.nodes.unwrap_or(1).max(1));
        let pods = workers.max(nodes);
        let mut pod = json!({
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": self.job.limits.grace.unwrap_or(GRACE).ceil() as u64,
            "containers": [self.container(own, pods)],
        });
        if let Some(account) = &own.service_account {
            pod["serviceAccountName"] = json!(account);
        }
        if nodes > 1 {
            pod["subdomain"] = json!(name);
        }
        if !own.volumes.is_empty() {
            let claims = own.volumes.values().enumerate();
            let volume = |(i, claim)| json!({ "name": volume(i), "persistentVolumeClaim": { "claimName": claim } });
            pod["volumes"] = claims.map(volume).collect();
        }
        merge(&mut pod, &own.pod);
        let mut spec = json!({
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": KEPT,
            // A pod that its node lost, or that had to make room, is no failure of the job: another one goes on.
            "podFailurePolicy": { "rules": [
                { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
            ] },
            "template": { "metadata": { "labels": labels, "annotations": annotations }, "spec": pod },
        });
        if pods > 1 {
            spec["completionMode"] = json!("Indexed");
            spec["completions"] = json!(pods);
            spec["parallelism"] = json!(pods);
        }
        if let Some(seconds) = self.job.limits.stretch {
            spec["activeDeadlineSeconds"] = json!(seconds.ceil() as u64);
        }
        let metadata = json!({ "name": name, "labels": labels, "annotations": annotations });
        let mut objects = vec![json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec })];
        if nodes > 1 {
            // Names of pods that are not ready yet are known, too: ranks wait for each other.
            let spec =
                json!({ "clusterIP": "None", "publishNotReadyAddresses": true, "selector": { "job-name": name } });
            let metadata = json!({ "name": name, "labels": labels });
            objects.push(json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec }));
        }
        objects
    }

    fn labels(&self) -> Value {
        json!({
            "app.kubernetes.io/managed-by": "smelt",
            "smelt/pipeline": label(self.pipeline),
            "smelt/run": self.run,
            "smelt/job": label(&safe_name(&self.job.name)),
        })
    }

    /// Names as they are, for people.
    fn annotations(&self) -> Value {
        json!({ "smelt/job": self.job.name })
    }

    fn container(&self, own: &Kubernetes, pods: usize) -> Value {
        let (job, run) = (self.job, &self.job.run);
        let own_pod = json!({ "name": "SMELT_POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } });
        let mut env = vec![own_pod];
        if run.nodes.is_some_and(|nodes| nodes > 1) {
            let name = self.name();
            env.push(json!({ "name": "WORLD_SIZE", "value": pods.to_string() }));
            env.push(json!({ "name": "MASTER_ADDR", "value": format!("{name}-0.{name}") }));
            env.push(json!({ "name": "MASTER_PORT", "value": PORT.to_string() }));
        }
        let number = self.number.to_string();
        let command = ["smelt", "exec", self.run, &job.name, "--store", self.store, "--number", &number, "--quiet"];
        let mut container = json!({
            "name": "smelt",
            "image": own.image,
            "workingDir": self.folder.display().to_string(),
            "command": command,
            "env": env,
        });
        let (mut requests, mut limits) = (Map::new(), Map::new());
        // Workers of one job share what it has.
        let workers = run.workers.unwrap_or(1).max(1);
        if let Some(cores) = run.cores {
            requests.insert("cpu".into(), json!(cores.div_ceil(workers).to_string()));
        }
        if let Some(bytes) = job.limits.memory {
            let share = json!(format!("{}Mi", bytes.div_ceil(workers as u64).div_ceil(1 << 20)));
            requests.insert("memory".into(), share.clone());
            limits.insert("memory".into(), share);
        }
        let gpus = run.gpus.unwrap_or(usize::from(run.device != Device::Cpu));
        if gpus > 0 {
            limits.insert("nvidia.com/gpu".into(), json!(gpus.to_string()));
        }
        let resources = [("requests", requests), ("limits", limits)];
        let resources: Map<String, Value> = resources
            .into_iter()
            .filter(|(_, some)| !some.is_empty())
            .map(|(name, some)| (name.to_owned(), some.into()))
            .collect();
        if !resources.is_empty() {
            container["resources"] = resources.into();
        }
        if !own.secrets.is_empty() {
            container["envFrom"] = own.secrets.iter().map(|name| json!({ "secretRef": { "name": name } })).collect();
        }
        if !own.volumes.is_empty() {
            let folders = own.volumes.keys().enumerate();
            container["volumeMounts"] =
                folders.map(|(i, folder)| json!({ "name": volume(i), "mountPath": folder })).collect();
        }
        container
    }
}

fn volume(i: usize) -> String {
    format!("claim-{i}")
}

/// JSON Merge Patch (RFC 7396): objects are merged, null removes, everything else replaces.
fn merge(target: &mut Value, patch: &Map<String, Value>) {
    for (key, value) in patch {
        match value {
            Value::Null => drop(target.as_object_mut().and_then(|object| object.shift_remove(key))),
            Value::Object(inner) => {
                if !target[key].is_object() {
                    target[key] = json!({});
                }
                merge(&mut target[key], inner);
            }
            other => target[key] = other.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Limits, tests::instance};
    use smelt_schemas::RunOptions;

    fn objects(job: &Instance) -> Vec<Value> {
        let order = Order {
            pipeline: "web",
            run: "20261129-101112.345-ab12",
            job,
            number: 2,
            folder: Path::new("/home/ada/web"),
            store: "s3://bucket/web",
        };
        order.objects()
    }

    /// Compares with the file under `tests/kubernetes`; SMELT_BLESS writes it.
    fn golden(name: &str, objects: &[Value]) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes");
        let path = folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(objects).unwrap() + "\n";
        if std::env::var_os("SMELT_BLESS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(text, kept, "{}: look at the difference, then bless it with SMELT_BLESS=1", path.display());
    }

    fn of(image: &str) -> Kubernetes {
        Kubernetes { image: Some(image.into()), ..Kubernetes::default() }
    }

    #[test]
    fn a_plain_job_is_one_pod() {
        let run = RunOptions { kubernetes: Some(of("lab/smelt:1")), ..RunOptions::default() };
        golden("plain", &objects(&instance("base", run, Limits::default())));
    }

    #[test]
    fn what_run_says_becomes_the_pod() {
        let own = Kubernetes {
            service_account: Some("trainer".into()),
            secrets: vec!["store".into(), "hub".into()],
            volumes: [("/data".to_owned(), "corpus".to_owned())].into(),
            pod: json!({
                "nodeSelector": { "gpu": "h100" },
                "terminationGracePeriodSeconds": null,
                "tolerations": [{ "key": "gpu", "operator": "Exists" }],
            })
            .as_object()
            .cloned()
            .unwrap_or_default(),
            ..of("lab/smelt:1")
        };
        let run = RunOptions { cores: Some(8), gpus: Some(2), kubernetes: Some(own), ..RunOptions::default() };
        let limits =
            Limits { stretch: Some(5430.0), grace: Some(300.0), memory: Some((64 << 30) + 1), ..Limits::default() };
        golden("full", &objects(&instance("tune[seed=1]", run, limits)));
    }

    #[test]
    fn workers_are_indexed_and_share_what_the_job_has() {
        let run = RunOptions {
            workers: Some(3),
            cores: Some(8),
            kubernetes: Some(of("lab/smelt:1")),
            ..RunOptions::default()
        };
        let limits = Limits { memory: Some(3 << 30), ..Limits::default() };
        golden("workers", &objects(&instance("clean", run, limits)));
    }

    #[test]
    fn ranks_find_each_other_by_a_service() {
        let run = RunOptions { nodes: Some(2), kubernetes: Some(of("lab/smelt:1")), ..RunOptions::default() };
        golden("ranks", &objects(&instance("base", run, Limits::default())));
    }

    #[test]
    fn names_are_those_of_dns_and_tell_jobs_apart() {
        let run = "20261129-101112.345-ab12";
        let long = name(run, "an_alignment_of_many_words[seed=1]", 10);
        assert!(long.len() <= 55, "{long}");
        assert_ne!(long, name(run, "an_alignment_of_many_words[seed=2]", 10));
        for job in ["a", "tune[seed=1]", "a_[x=-]"] {
            let name = name(run, job, 1);
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.chars().all(good) && !name.ends_with('-'), "{name}");
        }
        assert_eq!(label("-a b[x=1]-"), "a-b-x-1");
    }
}
