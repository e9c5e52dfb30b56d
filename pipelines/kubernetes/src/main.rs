//! `smelt-kubernetes`: creates, watches and deletes the Jobs of a run. The runner starts it, so that nobody else pays
//! for the client.
//!
//! ```text
//! smelt-kubernetes submit                 a Job, and a Service if ranks find each other by it, from standard input
//! smelt-kubernetes watch LABEL=VALUE      a line of JSON for every Job that changes, until standard input ends
//! smelt-kubernetes list LABEL=VALUE       a line of JSON for every Job that there is
//! smelt-kubernetes cancel LABEL=VALUE     deletes Jobs and their pods, and prints their names
//! smelt-kubernetes doctor                 a line of JSON for every check; nothing where no cluster is known
//! ```
//!
//! The cluster is the one of KUBECONFIG or `~/.kube/config`, or the one in which this program runs itself.

mod doctor;
mod error;
mod state;
mod watch;

use clap::{Parser, Subcommand};
use error::{Failed, chain};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::ApiResource;
use kube::{Api, Client, Config, ResourceExt};
use serde_json::{Value, json};
use std::io::Read;
use std::process::ExitCode as ProcessExit;
use std::time::Duration;

#[derive(Parser)]
#[command(name = "smelt-kubernetes", version, about = "Jobs of a run on a Kubernetes cluster, for `smelt run`")]
struct Arguments {
    /// By default the one that the kubeconfig names.
    #[arg(long, global = true)]
    namespace: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Creates the objects of one Job, a list of JSON on standard input: the Job first. What is there already stays.
    Submit,
    /// Prints a line of JSON for every Job that changes.
    Watch { selector: String },
    /// Prints a line of JSON for every Job that there is.
    List { selector: String },
    /// Deletes Jobs and their pods, and prints their names.
    Cancel { selector: String },
    /// Checks server, namespace and rights, and prints a line of JSON for each.
    Doctor,
}

fn main() -> ProcessExit {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(answer(arguments)),
        Err(e) => Err(Failed::machine(format!("no runtime: {e}"))),
    };
    match done {
        Ok(()) => ProcessExit::SUCCESS,
        Err(failed) => {
            eprintln!("{}", failed.words);
            (failed.code as u8).into()
        }
    }
}

async fn answer(arguments: Arguments) -> Result<(), Failed> {
    if matches!(arguments.verb, Verb::Doctor) && !doctor::is_known() {
        return Ok(());
    }
    let known = Config::infer().await;
    let mut config = known.map_err(|e| Failed::machine(format!("no cluster is known here: {}", chain(&e))))?;
    if let Some(namespace) = arguments.namespace {
        config.default_namespace = namespace;
    }
    if matches!(arguments.verb, Verb::Doctor | Verb::List { .. }) {
        // Somebody waits for the answer.
        (config.connect_timeout, config.read_timeout) = (Some(Duration::from_secs(5)), Some(Duration::from_secs(10)));
    }
    let address = config.cluster_url.to_string();
    let client = Client::try_from(config)?;
    match arguments.verb {
        Verb::Submit => submit(&client).await,
        Verb::Watch { selector } => watch::watch(&client, &selector).await,
        Verb::List { selector } => list(&client, &selector).await,
        Verb::Cancel { selector } => cancel(&client, &selector).await,
        Verb::Doctor => doctor::doctor(&client, address.trim_end_matches('/')).await,
    }
}

/// Objects stay what the runner wrote: types would drop fields that this version of the client does not know.
async fn submit(client: &Client) -> Result<(), Failed> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(|e| Failed::machine(format!("standard input: {e}")))?;
    let objects: Vec<DynamicObject> = serde_json::from_str(&text)
        .map_err(|e| Failed::pipeline(format!("standard input is no list of Kubernetes objects: {e}")))?;
    let mut owner = Value::Null;
    for mut object in objects {
        let types = object.types.clone().unwrap_or_default();
        let resource = match types.kind.as_str() {
            "Job" => ApiResource::erase::<Job>(&()),
            "Service" => ApiResource::erase::<Service>(&()),
            kind => return Err(Failed::pipeline(format!("a run creates no {kind}"))),
        };
        // What belongs to the Job goes with it.
        if !owner.is_null() {
            let owners = serde_json::from_value(json!([owner]));
            object.metadata.owner_references = Some(owners.map_err(|e| Failed::machine(e.to_string()))?);
        }
        let (api, name) = (Api::<DynamicObject>::default_namespaced_with(client.clone(), &resource), object.name_any());
        let made = match api.create(&PostParams::default(), &object).await {
            // An earlier request made it, whose answer was lost: the name says for whom it is.
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(&name).await?,
            made => made?,
        };
        if owner.is_null() {
            owner = json!({ "apiVersion": types.api_version, "kind": types.kind, "name": name, "uid": made.uid() });
        }
    }
    Ok(())
}

async fn list(client: &Client, selector: &str) -> Result<(), Failed> {
    let selected = ListParams::default().labels(selector);
    let jobs = Api::<Job>::default_namespaced(client.clone()).list(&selected).await?;
    let pods = Api::<Pod>::default_namespaced(client.clone()).list(&selected).await?;
    for job in &jobs {
        let name = job.name_any();
        let own: Vec<&Pod> = pods.iter().filter(|pod| pod.labels().get("job-name") == Some(&name)).collect();
        println!("{}", serde_json::to_string(&state::view(job, &own)).expect("a state is plain data"));
    }
    Ok(())
}

async fn cancel(client: &Client, selector: &str) -> Result<(), Failed> {
    let jobs: Api<Job> = Api::default_namespaced(client.clone());
    for job in jobs.list(&ListParams::default().labels(selector)).await? {
        let is_over = state::of_job(&job).is_some();
        match jobs.delete(&job.name_any(), &DeleteParams::background()).await {
            // What is over is tidied away and not told.
            Ok(_) if !is_over => println!("{}", job.name_any()),
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
