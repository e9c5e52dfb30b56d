//! What of a cluster works for the runs of whoever asks: a line of JSON for each check.

use crate::error::{Failed, chain};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::{Api, Client};
use smelt_schemas::Check;
use std::path::Path;

/// Verb, group and resource of what a run does there.
const NEEDED: [(&str, &str, &str); 7] = [
    ("create", "batch", "jobs"),
    ("get", "batch", "jobs"),
    ("list", "batch", "jobs"),
    ("watch", "batch", "jobs"),
    ("delete", "batch", "jobs"),
    ("list", "", "pods"),
    ("watch", "", "pods"),
];
/// Only for jobs of several nodes, whose ranks find each other by it.
const FOR_RANKS: (&str, &str, &str) = ("create", "", "services");

/// Whether this machine names any cluster.
pub(crate) fn is_known() -> bool {
    let home = std::env::var_os("HOME").is_some_and(|home| Path::new(&home).join(".kube/config").exists());
    home || ["KUBECONFIG", "KUBERNETES_SERVICE_HOST"].iter().any(|name| std::env::var_os(name).is_some())
}

fn say(name: &str, ok: bool, found: String, hint: &str) {
    let check = Check { name: name.into(), ok, found, hint: (!ok).then(|| hint.into()) };
    println!("{}", serde_json::to_string(&check).expect("a check is plain data"));
}

/// `address`: of the API server.
pub(crate) async fn doctor(client: &Client, address: &str) -> Result<(), Failed> {
    match client.apiserver_version().await {
        Ok(version) => say("Kubernetes", true, format!("{} at {address}", version.git_version), ""),
        Err(e) => {
            let hint = "`kubectl version` asks it too; KUBECONFIG or ~/.kube/config says where it is and who you are";
            say("Kubernetes", false, format!("{address} does not answer: {}", Failed::from(e).words), hint);
            return Ok(());
        }
    }
    if namespace(client).await {
        rights(client).await;
    }
    Ok(())
}

/// Whether it may be there.
async fn namespace(client: &Client) -> bool {
    let (name, namespace) = ("  namespace", client.default_namespace());
    match Api::<Namespace>::all(client.clone()).get(namespace).await {
        Ok(_) => say(name, true, namespace.into(), ""),
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let hint = "`kubectl create namespace` makes it; a job names another by `run: { kubernetes: { namespace: \
                        … } }`, `smelt doctor` by `--namespace`";
            say(name, false, format!("there is no `{namespace}`"), hint);
            return false;
        }
        // Who may create Jobs in a namespace need not be allowed to look at it.
        Err(kube::Error::Api(status)) if status.code == 403 => {
            say(name, true, format!("{namespace}, which this account may not look at"), "");
        }
        Err(e) => say(name, false, format!("{namespace}: {}", chain(&e)), "ask again"),
    }
    true
}

async fn rights(client: &Client) {
    let (name, namespace) = ("  rights", client.default_namespace());
    let mut refused = Vec::new();
    for needed in NEEDED {
        match may(client, needed).await {
            Ok(true) => {}
            Ok(false) => refused.push(format!("{} {}", needed.0, needed.2)),
            Err(e) => return say(name, false, format!("cannot be asked: {}", Failed::from(e).words), "ask again"),
        }
    }
    let hint = "it needs a Role with these verbs, and a RoleBinding: ask whoever runs the cluster";
    match (refused.is_empty(), may(client, FOR_RANKS).await) {
        (false, _) => say(name, false, format!("this account may not {} in `{namespace}`", refused.join(", ")), hint),
        (true, Ok(true)) => say(name, true, format!("jobs may be created, watched and deleted in `{namespace}`"), ""),
        (true, _) => {
            let found = format!("jobs may be created in `{namespace}`; no services, which jobs with `nodes` need");
            say(name, true, found, "");
        }
    }
}

/// Whether this account may do something in its namespace.
async fn may(client: &Client, (verb, group, resource): (&str, &str, &str)) -> kube::Result<bool> {
    let attributes = ResourceAttributes {
        namespace: Some(client.default_namespace().into()),
        verb: Some(verb.into()),
        group: Some(group.into()),
        resource: Some(resource.into()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
