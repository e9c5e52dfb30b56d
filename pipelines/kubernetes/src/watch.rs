//! Every change of the Jobs of a run, as a line of JSON.
//!
//! Two streams, of Jobs and of pods, which the client begins anew where a connection breaks or the cluster has
//! forgotten the place. What the cluster does not list any more after that is gone.

use crate::error::Failed;
use crate::state;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use smelt_schemas::{ClusterJob, ClusterState};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

/// Objects of one kind by name.
struct Known<K> {
    /// Whether one list was whole.
    is_listed: bool,
    objects: BTreeMap<String, K>,
    /// Names that a list has had so far, while one arrives.
    listed: BTreeSet<String>,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self { is_listed: false, objects: BTreeMap::new(), listed: BTreeSet::new() }
    }
}

impl<K: ResourceExt> Known<K> {
    fn take(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(object) => {
                self.listed.insert(object.name_any());
                self.objects.insert(object.name_any(), object);
            }
            Event::InitDone => {
                self.is_listed = true;
                self.objects.retain(|name, _| self.listed.contains(name));
            }
            Event::Apply(object) => drop(self.objects.insert(object.name_any(), object)),
            Event::Delete(object) => drop(self.objects.remove(&object.name_any())),
        }
    }
}

enum Change {
    Job(Box<Event<Job>>),
    Pod(Box<Event<Pod>>),
}

/// Prints until nobody reads any more, or the cluster refuses.
pub(crate) async fn watch(client: &Client, selector: &str) -> Result<(), Failed> {
    end_with_input();
    let config = || watcher::Config::default().labels(selector);
    let jobs = watcher(Api::default_namespaced(client.clone()), config()).default_backoff();
    let pods = watcher(Api::default_namespaced(client.clone()), config()).default_backoff();
    let jobs = jobs.map_ok(|event| Change::Job(Box::new(event)));
    let pods = pods.map_ok(|event| Change::Pod(Box::new(event)));
    let mut changes = stream::select(jobs.boxed(), pods.boxed());
    let (mut jobs, mut pods) = (Known::<Job>::default(), Known::<Pod>::default());
    let mut told: BTreeMap<String, ClusterJob> = BTreeMap::new();
    while let Some(change) = changes.next().await {
        match change {
            Ok(Change::Job(event)) => jobs.take(*event),
            Ok(Change::Pod(event)) => pods.take(*event),
            Err(error) => match refused(error) {
                Some(failed) => return Err(failed),
                None => continue, // it begins anew, later and later
            },
        }
        if !jobs.is_listed || !pods.is_listed {
            continue;
        }
        let mut now: BTreeMap<String, ClusterJob> = BTreeMap::new();
        for (name, job) in &jobs.objects {
            let is_own = |pod: &&Pod| pod.labels().get("job-name") == Some(name);
            let own: Vec<&Pod> = pods.objects.values().filter(is_own).collect();
            now.insert(name.clone(), state::view(job, &own));
        }
        // What the cluster has no more is told once.
        for name in told.keys().filter(|name| !now.contains_key(*name)).cloned().collect::<Vec<_>>() {
            let gone = ClusterJob { name: name.clone(), state: ClusterState::Gone, why: String::new(), status: None };
            now.insert(name, gone);
        }
        for (name, job) in &now {
            if told.get(name) != Some(job) {
                let line = serde_json::to_string(job).expect("a state is plain data");
                let mut out = std::io::stdout().lock();
                if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                    return Ok(()); // nobody reads any more
                }
            }
        }
        told = now;
    }
    Ok(())
}

/// Whoever started this program holds its standard input: when that process ends, for any reason, the input does.
fn end_with_input() {
    std::thread::spawn(|| {
        drop(std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
        std::process::exit(0);
    });
}

/// An error that stays the same however often one asks.
fn refused(error: watcher::Error) -> Option<Failed> {
    let inner = match error {
        watcher::Error::InitialListFailed(e) | watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => {
            e
        }
        _ => return None,
    };
    let is_final = matches!(&inner, kube::Error::Api(status) if matches!(status.code, 401 | 403 | 404));
    is_final.then(|| inner.into())
}
