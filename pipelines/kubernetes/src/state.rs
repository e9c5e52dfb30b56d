//! How a Job is, from what the cluster says of it and of its pods.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerState, Pod};
use kube::ResourceExt;
use smelt_schemas::{ClusterJob, ClusterState};

/// The end of a Job, if it has one: the state, and why.
pub(crate) fn of_job(job: &Job) -> Option<(ClusterState, String)> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().filter(|condition| condition.status == "True").find_map(|condition| {
        let (reason, message) =
            (condition.reason.as_deref().unwrap_or_default(), condition.message.as_deref().unwrap_or_default());
        match condition.type_.as_str() {
            "Complete" => Some((ClusterState::Done, String::new())),
            "Failed" if reason == "DeadlineExceeded" => Some((ClusterState::Late, message.into())),
            "Failed" => Some((ClusterState::Failed, both(reason, message))),
            _ => None,
        }
    })
}

fn both(reason: &str, message: &str) -> String {
    [reason, message].into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(": ")
}

/// The states of a pod's containers, those that prepare it first.
fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerState> {
    let status = pod.status.as_ref();
    let first = status.and_then(|status| status.init_container_statuses.as_deref()).unwrap_or_default();
    let then = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    first.iter().chain(then).filter_map(|container| container.state.as_ref())
}

fn runs(pod: &Pod) -> bool {
    containers(pod).any(|state| state.running.is_some())
}

/// Why no container of a pod runs yet.
fn waits_for(pod: &Pod) -> Option<String> {
    let container = containers(pod).find_map(|state| state.waiting.as_ref()).map(|waiting| {
        both(waiting.reason.as_deref().unwrap_or_default(), waiting.message.as_deref().unwrap_or_default())
    });
    // Until a node is found there are no containers.
    container.filter(|why| !why.is_empty()).or_else(|| {
        let conditions = pod.status.as_ref()?.conditions.as_ref()?;
        let unplaced = |c: &&k8s_openapi::api::core::v1::PodCondition| c.type_ == "PodScheduled" && c.status == "False";
        let condition = conditions.iter().find(unplaced)?;
        Some(both(condition.reason.as_deref().unwrap_or_default(), condition.message.as_deref().unwrap_or_default()))
    })
}

/// How a pod failed: the status and reason of the container that did, or the reason of the pod.
fn failure(pod: &Pod) -> Option<(Option<i32>, String)> {
    let ended = containers(pod).filter_map(|state| state.terminated.as_ref()).find(|ended| ended.exit_code != 0);
    let status = pod.status.as_ref()?;
    match ended {
        Some(ended) => Some((Some(ended.exit_code), ended.reason.clone().unwrap_or_default())),
        None if status.phase.as_deref() == Some("Failed") => {
            let said =
                both(status.reason.as_deref().unwrap_or_default(), status.message.as_deref().unwrap_or_default());
            Some((None, said))
        }
        None => None,
    }
}

/// A Job with its pods.
pub(crate) fn view(job: &Job, pods: &[&Pod]) -> ClusterJob {
    let name = job.name_any();
    let told = |state, why, status| ClusterJob { name: name.clone(), state, why, status };
    match of_job(job) {
        Some((ClusterState::Failed, why)) => match pods.iter().find_map(|pod| failure(pod)) {
            Some((status, reason)) if reason == "OOMKilled" => told(ClusterState::OutOfMemory, why, status),
            Some((status, reason)) if !matches!(reason.as_str(), "" | "Error") => {
                told(ClusterState::Failed, reason, status)
            }
            Some((status, _)) => told(ClusterState::Failed, why, status),
            None => told(ClusterState::Failed, why, None),
        },
        Some((state, why)) => told(state, why, None),
        None if pods.iter().any(|pod| runs(pod)) => told(ClusterState::Runs, String::new(), None),
        None => {
            let why = pods.iter().find_map(|pod| waits_for(pod)).unwrap_or_default();
            told(ClusterState::Waits, why, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn seen(job: Value, pods: &[Value]) -> (ClusterState, String, Option<i32>) {
        let job = serde_json::from_value(json!({ "metadata": { "name": "a" }, "status": job })).unwrap();
        let pods: Vec<Pod> =
            pods.iter().map(|status| serde_json::from_value(json!({ "status": status })).unwrap()).collect();
        let ClusterJob { state, why, status, .. } = view(&job, &pods.iter().collect::<Vec<_>>());
        (state, why, status)
    }

    fn failed(reason: &str) -> Value {
        json!({ "conditions": [
            { "type": "FailureTarget", "status": "True", "reason": reason },
            { "type": "Failed", "status": "True", "reason": reason, "message": "it has" },
        ] })
    }

    #[test]
    fn a_job_waits_and_says_why() {
        let waits = |pod: Value| seen(json!({ "active": 1 }), &[pod]).1;
        assert_eq!(seen(json!(null), &[]), (ClusterState::Waits, String::new(), None));
        let unplaced = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu." });
        let expected = "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.";
        assert_eq!(waits(json!({ "phase": "Pending", "conditions": [unplaced] })), expected);
        let pulls = json!({ "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } });
        let container = json!({ "name": "smelt", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": pulls });
        assert_eq!(waits(json!({ "containerStatuses": [container] })), "ImagePullBackOff: no such image");
    }

    #[test]
    fn what_became_of_a_job_is_told_apart() {
        let container = |state: Value| {
            json!({ "containerStatuses": [{ "name": "smelt", "ready": false, "restartCount": 0, "image": "",
                "imageID": "", "state": state }] })
        };
        let running = container(json!({ "running": {} }));
        assert_eq!(seen(json!({ "active": 1 }), &[running]), (ClusterState::Runs, String::new(), None));
        let complete = json!({ "conditions": [{ "type": "Complete", "status": "True" }] });
        assert_eq!(seen(complete, &[]).0, ClusterState::Done);
        let late = seen(failed("DeadlineExceeded"), &[]);
        assert_eq!(late, (ClusterState::Late, "it has".into(), None));
        let ended =
            |reason: &str, code: i32| container(json!({ "terminated": { "reason": reason, "exitCode": code } }));
        let backoff = || failed("BackoffLimitExceeded");
        assert_eq!(seen(backoff(), &[ended("OOMKilled", 137)]).0, ClusterState::OutOfMemory);
        let error = seen(backoff(), &[ended("Error", 4)]);
        assert_eq!(error, (ClusterState::Failed, "BackoffLimitExceeded: it has".into(), Some(4)));
        let evicted = json!({ "phase": "Failed", "reason": "Evicted", "message": "low on memory" });
        assert_eq!(seen(backoff(), &[evicted]), (ClusterState::Failed, "Evicted: low on memory".into(), None));
        assert_eq!(seen(backoff(), &[]).0, ClusterState::Failed);
    }
}
