//! Queries on a Ballista cluster: the plan goes to its scheduler as bytes, the rows come back from its executors.
//!
//! The client of the Ballista project links all of DataFusion's defaults, a second zstd among them. What it says to a
//! scheduler is little: four calls and a plan in DataFusion's own encoding, which `datafusion-proto` writes.

mod client;
mod exact;
mod messages;
mod rows;
mod sent;
#[cfg(test)]
mod tests;

use crate::failure::Failure;
use client::Cluster;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::record_batch::RecordBatch;
use datafusion::prelude::DataFrame;
use futures::{Stream, StreamExt, TryStreamExt};
use smelt_schemas::ExitCode;
use std::path::Path;
use std::pin::Pin;

/// What a query gives, as it comes.
pub(crate) type Rows = Pin<Box<dyn Stream<Item = Result<RecordBatch, Failure>> + Send>>;

/// Asks the cluster, if the plan reads files of the store. What only reads records and settings is answered here.
///
/// `pipeline` names the job for people who look at the cluster; `folder` is the store, if it is one.
///
/// # Errors
/// [`ExitCode::Machine`] for a cluster that cannot be reached, has another version or fails; [`ExitCode::Pipeline`] for
/// a query that cannot leave this machine.
pub(crate) async fn ask(
    scheduler: &str,
    frame: &DataFrame,
    pipeline: &str,
    folder: Option<&Path>,
) -> Result<Option<Rows>, Failure> {
    let Some(plan) = sent::encode(frame)? else { return Ok(None) };
    let cluster = Cluster::connect(scheduler).await?;
    let told = |e: Failure| match folder {
        Some(folder) if e.message.contains("not found") || e.message.contains("No such file") => {
            e.hint(format!("the scheduler and all executors have to see the folder {}", folder.display()))
        }
        _ => e,
    };
    let job = cluster.submit(plan, pipeline).await.map_err(told)?;
    job.end_with_us(&cluster);
    let schema: SchemaRef = frame.schema().as_arrow().clone().into();
    let parts = job.parts(&cluster).await.map_err(told)?;
    let fetched = futures::stream::iter(parts)
        .then(move |part| async move { part.fetch().await })
        .try_flatten()
        .map(move |batch| sent::as_promised(batch?, &schema));
    // Its files on the executors' disks are of no use to anybody once they are read.
    let end = futures::stream::once(async move {
        job.forget(&cluster).await;
        None
    });
    Ok(Some(Box::pin(fetched.map(Some).chain(end).filter_map(|row| async { row }))))
}

/// `HOST:PORT` as people may write it.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn address(given: &str) -> Result<String, Failure> {
    let wrong = |why: &str| {
        let shown = given.rsplit_once('@').map_or_else(|| given.to_owned(), |(_, host)| format!("…@{host}"));
        Failure::new(ExitCode::Pipeline, format!("`--ballista {shown}`: {why}"))
            .hint("a scheduler is named as HOST:PORT, such as `--ballista 10.0.0.5:50050`")
    };
    let rest = match given.split_once("://") {
        None | Some(("df" | "http", _)) => given.split_once("://").map_or(given, |(_, rest)| rest),
        Some((scheme, _)) => return Err(wrong(&format!("no scheduler answers to {scheme}://"))),
    };
    let rest = rest.trim_end_matches('/');
    match rest.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains(['/', '@']) && port.parse::<u16>().is_ok() => {
            Ok(format!("http://{rest}"))
        }
        Some(_) => Err(wrong("that is no host and port")),
        None => Err(wrong("the port is missing")),
    }
}
