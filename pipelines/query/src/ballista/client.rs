//! The conversation with a scheduler and its executors.

use super::messages::{
    Accepted, Action, Execute, Executed, Fetch, FlightData, Ignored, JobName, Location, MAJOR, Outcome, Proxy, Refused,
    SessionName, Setting, State, Status, Ticket, VERSION, VERSION_HEADER, Why,
};
use super::rows::Decoder;
use crate::failure::Failure;
use datafusion::arrow::record_batch::RecordBatch;
use futures::{Stream, StreamExt};
use http::uri::PathAndQuery;
use prost::Message;
use prost::bytes::Bytes;
use smelt_schemas::{ExitCode, Problem};
use std::error::Error;
use std::time::{Duration, Instant, SystemTime};
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

/// How long a machine may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// A batch has some thousands of rows; a larger message is no batch.
const LARGEST_MESSAGE: usize = 1 << 30;
/// How often in a row a scheduler may be out of reach while a query runs, a second apart.
const LOST: u32 = 10;
/// When people are told that their query waits, and then every so often.
const TELL: Duration = Duration::from_secs(5);

fn machine(what: impl Into<String>) -> Failure {
    Failure::new(ExitCode::Machine, what)
}

/// A scheduler.
#[derive(Clone)]
pub(super) struct Cluster {
    address: String,
    channel: Channel,
}

/// A query that a scheduler has accepted.
#[derive(Clone)]
pub(super) struct Job {
    accepted: Accepted,
}

/// A part of an answer, and where it is fetched.
pub(super) struct Part {
    address: String,
    fetch: Fetch,
    /// How many rows it has, if somebody counted.
    rows: Option<u64>,
}

async fn connect(address: &str, what: &str) -> Result<Channel, Failure> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|e| Failure::new(ExitCode::Pipeline, format!("{what} {address}: {e}")))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20))
        .tcp_nodelay(true);
    endpoint.connect().await.map_err(|e| machine(format!("{what} {address} cannot be reached: {}", innermost(&e))))
}

/// The cause that says something: of a refused connection, not `transport error`.
fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Calls that have one answer.
async fn call<Q, A>(channel: &Channel, method: &'static str, request: Q) -> Result<(A, MetadataMap), tonic::Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(LARGEST_MESSAGE);
    grpc.ready().await.map_err(|e| tonic::Status::unavailable(innermost(&e)))?;
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert(VERSION_HEADER, tonic::metadata::MetadataValue::from_static(VERSION));
    let codec = ProstCodec::<Q, A>::default();
    let answer = grpc.unary(request, PathAndQuery::from_static(method), codec).await?;
    let metadata = answer.metadata().clone();
    Ok((answer.into_inner(), metadata))
}

impl Cluster {
    pub(super) async fn connect(given: &str) -> Result<Self, Failure> {
        let address = super::address(given)?;
        let channel = connect(&address, "the Ballista scheduler at").await.map_err(|e| {
            e.hint("start one as docs/pipelines.md says under Ballista; without `--ballista` this machine answers")
        })?;
        Ok(Self { address, channel })
    }

    fn said(&self, what: &str, status: &tonic::Status) -> Failure {
        let source = status.source().map(innermost);
        let why = source.unwrap_or_else(|| status.message().to_owned());
        match status.code() {
            tonic::Code::Unimplemented => {
                machine(format!("{} is no Ballista scheduler of version {MAJOR}: {why}", self.address))
                    .hint(format!("ballista-scheduler {MAJOR} is what smelt speaks to"))
            }
            _ => machine(format!("the Ballista scheduler at {}: {what}: {why}", self.address)),
        }
    }

    /// Hands a plan to the scheduler. `name`: for people who look at the cluster.
    pub(super) async fn submit(&self, logical_plan: Vec<u8>, name: &str) -> Result<Job, Failure> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let session = format!("smelt-{}-{}", std::process::id(), since.as_nanos());
        let setting = |key: &str, value: &str| Setting { key: key.into(), value: Some(value.into()) };
        let settings =
            vec![setting("ballista.job.name", name), setting("datafusion.execution.parquet.pushdown_filters", "true")];
        let request = Execute { logical_plan, operation: session.clone(), session, settings };
        let answer = call::<_, Executed>(&self.channel, "/ballista.protobuf.SchedulerGrpc/ExecuteQuery", request).await;
        let (answer, metadata) = answer.map_err(|status| self.said("it does not take the query", &status))?;
        match answer.outcome {
            Some(Outcome::Accepted(accepted)) => {
                let job = Job { accepted };
                // A scheduler older than 55 checks no version: it has begun.
                if let Err(e) = self.check_version(&metadata) {
                    job.cancel(self).await;
                    return Err(e);
                }
                Ok(job)
            }
            Some(Outcome::Refused(Refused { why })) => {
                self.check_version(&metadata)?;
                let why = match why {
                    Some(Why::SessionNotFound(why) | Why::PlanNotParsed(why) | Why::SqlNotParsed(why)) => why,
                    None => "it does not say why".into(),
                };
                Err(refused(&why))
            }
            None => Err(machine(format!("the Ballista scheduler at {} answers nothing", self.address))),
        }
    }

    fn check_version(&self, metadata: &MetadataMap) -> Result<(), Failure> {
        let told = metadata.get(VERSION_HEADER).and_then(|version| version.to_str().ok());
        match told.and_then(|version| version.split('.').next()) {
            Some(MAJOR) => Ok(()),
            _ => {
                let version =
                    told.map_or_else(|| format!("older than {MAJOR}"), |version| format!("of version {version}"));
                Err(machine(format!("the Ballista scheduler at {} is {version}", self.address))
                    .hint(format!("ballista-scheduler and ballista-executor {MAJOR} are what smelt speaks to")))
            }
        }
    }
}

/// Why a plan was not taken, or a job failed, in words for people.
fn refused(why: &str) -> Failure {
    let why = why.trim();
    let named = why.split_once("no UDF named ").or_else(|| why.split_once("not provided for scalar function "));
    let function = named
        .and_then(|(_, rest)| rest.split(|c: char| c != '_' && !c.is_alphanumeric()).find(|name| !name.is_empty()));
    // As people read it, or as the executor's programmers do.
    let overflow = (why.rsplit_once("Cast error: ").and_then(|(_, what)| what.lines().next()))
        .or_else(|| why.rsplit_once("CastError(\"").and_then(|(_, what)| what.split('"').next()));
    match (function, overflow) {
        (Some(name), _) => Failure::new(ExitCode::Pipeline, format!("the cluster does not know the function `{name}`"))
            .hint("leave out `--ballista`: JSON's functions, and `->`, are smelt's own"),
        (None, Some(what)) => Failure::new(ExitCode::Pipeline, format!("the cluster cannot compute it: {what}"))
            .hint("compute in a wider type, such as `cast(x as decimal(38, 0))` or `cast(x as double)`"),
        (None, None) => machine(format!("the Ballista cluster: {why}")),
    }
}

impl Job {
    /// Waits until it has ended, and says now and then that it waits.
    pub(super) async fn parts(&self, cluster: &Cluster) -> Result<Vec<Part>, Failure> {
        let (begun, mut told) = (Instant::now(), Instant::now());
        let (mut pause, mut lost) = (Duration::from_millis(20), 0);
        loop {
            let name = JobName { job: self.accepted.job.clone() };
            let asked = call::<_, Status>(&cluster.channel, "/ballista.protobuf.SchedulerGrpc/GetJobStatus", name);
            let answer = match asked.await {
                Ok((answer, _)) => answer,
                // The channel connects anew; the query goes on meanwhile.
                Err(status) if status.code() == tonic::Code::Unavailable && lost < LOST => {
                    lost += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
                Err(status) => return Err(cluster.said("it does not say how the query is", &status)),
            };
            lost = 0;
            let state = answer.status.and_then(|status| status.state);
            match state {
                Some(State::Successful(done)) => {
                    return done.parts.into_iter().map(|part| place(part, &answer.proxy, cluster)).collect();
                }
                Some(State::Failed(failed)) => return Err(refused(&failed.error)),
                Some(State::Queued(_) | State::Running(_)) | None => {
                    if told.elapsed() > TELL {
                        told = Instant::now();
                        let (job, seconds) = (&self.accepted.job, begun.elapsed().as_secs());
                        eprintln!("query {job}: no answer for {seconds} s; a cluster without executors waits for ever");
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }

    /// Ctrl-C ends the query in the cluster too, whatever of it is under way.
    pub(super) fn end_with_us(&self, cluster: &Cluster) {
        let (job, cluster) = (self.clone(), cluster.clone());
        tokio::spawn(async move {
            let signal = stopped().await;
            job.cancel(&cluster).await;
            let what = format!("stopped by {signal}; the cluster was told to end the query");
            let problem = Problem::of(&Failure::new(ExitCode::Again, what));
            eprintln!("{}", serde_json::to_string(&problem).expect("a problem is plain data"));
            std::process::exit(ExitCode::Again as i32);
        });
    }

    async fn cancel(&self, cluster: &Cluster) {
        let name = JobName { job: self.accepted.job.clone() };
        let told = call::<_, Ignored>(&cluster.channel, "/ballista.protobuf.SchedulerGrpc/CancelJob", name);
        if let Ok(Err(e)) = tokio::time::timeout(CONNECT, told).await {
            eprintln!("warning: query {} goes on in the cluster: {}", self.accepted.job, e.message());
        }
        self.forget(cluster).await;
    }

    /// Lets the cluster delete what it keeps of the query. What stays ends with the cluster's own time limits.
    pub(super) async fn forget(&self, cluster: &Cluster) {
        let (job, session) = (self.accepted.job.clone(), self.accepted.session.clone());
        let told = async {
            let path = "/ballista.protobuf.SchedulerGrpc/CleanJobData";
            call::<_, Ignored>(&cluster.channel, path, JobName { job }).await?;
            let path = "/ballista.protobuf.SchedulerGrpc/RemoveSession";
            call::<_, Ignored>(&cluster.channel, path, SessionName { session }).await
        };
        drop(tokio::time::timeout(CONNECT, told).await);
    }
}

/// Ends when somebody wants the query to stop.
async fn stopped() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    }
}

/// Where a part is fetched: at its executor, unless the scheduler stands in front of them.
fn place(location: Location, proxy: &Option<Proxy>, cluster: &Cluster) -> Result<Part, Failure> {
    let lost = || machine(format!("the Ballista scheduler at {} does not say where rows are", cluster.address));
    let (part, executor) = (location.part.ok_or_else(lost)?, location.executor.ok_or_else(lost)?);
    let address = match proxy {
        Some(Proxy::Scheduler(true)) => cluster.address.clone(),
        Some(Proxy::Other(address)) => format!("http://{address}"),
        Some(Proxy::Scheduler(false)) | None => format!("http://{}:{}", executor.host, executor.port),
    };
    let fetch = Fetch {
        job: part.job,
        stage: part.stage,
        part: part.part,
        host: executor.host,
        port: executor.port,
        file: location.file,
        layout: location.is_sorted.into(),
    };
    let rows = location.size.and_then(|size| size.rows.try_into().ok());
    Ok(Part { address, fetch, rows })
}

impl Part {
    /// The rows of it, as they come.
    pub(super) async fn fetch(self) -> Result<impl Stream<Item = Result<RecordBatch, Failure>> + Send, Failure> {
        let channel = connect(&self.address, "the Ballista executor at").await.map_err(|e| {
            e.hint("this machine fetches rows from executors: they have to be reachable under the name they tell")
        })?;
        let lost = |address: &str, status: &tonic::Status| {
            machine(format!("rows of the Ballista executor at {address} were lost: {}", status.message()))
        };
        let mut grpc = Grpc::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
        grpc.ready().await.map_err(|e| machine(format!("{}: {}", self.address, innermost(&e))))?;
        let ticket = Bytes::from(Action { fetch: Some(self.fetch) }.encode_to_vec());
        let codec = ProstCodec::<Ticket, FlightData>::default();
        let path = PathAndQuery::from_static("/arrow.flight.protocol.FlightService/DoGet");
        let answer = grpc.server_streaming(tonic::Request::new(Ticket { ticket }), path, codec).await;
        let stream = answer.map_err(|status| lost(&self.address, &status))?.into_inner();
        let (promised, state) = (self.rows, (stream, Decoder::default(), self.address, 0_u64));
        let batches = futures::stream::try_unfold(state, move |(mut stream, mut decoder, address, rows)| async move {
            loop {
                match stream.next().await {
                    // The protocol has no end mark of its own.
                    None if promised.is_some_and(|promised| promised != rows) => {
                        let promised = promised.unwrap_or_default();
                        let what = format!("{rows} of {promised} rows came from the Ballista executor at {address}");
                        return Err(machine(what).hint("ask again"));
                    }
                    None => return Ok(None),
                    Some(Err(status)) => return Err(lost(&address, &status)),
                    Some(Ok(data)) => {
                        if let Some(batch) = decoder.decode(data)? {
                            let rows = rows + batch.num_rows() as u64;
                            return Ok(Some((batch, (stream, decoder, address, rows))));
                        }
                    }
                }
            }
        });
        Ok(batches)
    }
}
