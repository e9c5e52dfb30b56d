//! The messages of Ballista's scheduler and of Arrow Flight, as far as a query needs them: names and numbers of fields
//! are those of `ballista.proto` (Apache DataFusion Ballista 55) and `Flight.proto` (Apache Arrow, Flight RPC).

use prost::bytes::Bytes;
use prost::{Message, Oneof};

/// The versions of Ballista that these are right for.
pub(super) const MAJOR: &str = "55";
/// A scheduler wants its client to say a version, and says its own.
pub(super) const VERSION_HEADER: &str = "ballista-version";
pub(super) const VERSION: &str = "55.0.0";

#[derive(Clone, PartialEq, Message)]
pub(super) struct Setting {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, optional, tag = "2")]
    pub value: Option<String>,
}

/// `SchedulerGrpc/ExecuteQuery` asks for it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Execute {
    /// A plan as `datafusion-proto` encodes it.
    #[prost(bytes = "vec", tag = "1")]
    pub logical_plan: Vec<u8>,
    #[prost(string, tag = "3")]
    pub session: String,
    #[prost(message, repeated, tag = "4")]
    pub settings: Vec<Setting>,
    #[prost(string, tag = "5")]
    pub operation: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Executed {
    #[prost(oneof = "Outcome", tags = "1, 2")]
    pub outcome: Option<Outcome>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Outcome {
    #[prost(message, tag = "1")]
    Accepted(Accepted),
    #[prost(message, tag = "2")]
    Refused(Refused),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Accepted {
    #[prost(string, tag = "1")]
    pub job: String,
    #[prost(string, tag = "2")]
    pub session: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Refused {
    #[prost(oneof = "Why", tags = "1, 2, 3")]
    pub why: Option<Why>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Why {
    #[prost(string, tag = "1")]
    SessionNotFound(String),
    #[prost(string, tag = "2")]
    PlanNotParsed(String),
    #[prost(string, tag = "3")]
    SqlNotParsed(String),
}

/// A job by its name: asked for by `GetJobStatus`, `CancelJob` and `CleanJobData`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct JobName {
    #[prost(string, tag = "1")]
    pub job: String,
}

/// A session by its name, for `RemoveSession`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SessionName {
    #[prost(string, tag = "1")]
    pub session: String,
}

/// Whatever a scheduler answers that nobody asks about.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ignored {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    #[prost(message, optional, tag = "1")]
    pub status: Option<JobStatus>,
    /// Where results are fetched, if not at the executors.
    #[prost(oneof = "Proxy", tags = "2, 3")]
    pub proxy: Option<Proxy>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Proxy {
    /// At the scheduler itself.
    #[prost(bool, tag = "2")]
    Scheduler(bool),
    /// At `HOST:PORT`.
    #[prost(string, tag = "3")]
    Other(String),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct JobStatus {
    #[prost(oneof = "State", tags = "1, 2, 3, 4")]
    pub state: Option<State>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum State {
    #[prost(message, tag = "1")]
    Queued(Ignored),
    #[prost(message, tag = "2")]
    Running(Ignored),
    #[prost(message, tag = "3")]
    Failed(Failed),
    #[prost(message, tag = "4")]
    Successful(Successful),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Failed {
    #[prost(string, tag = "1")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Successful {
    #[prost(message, repeated, tag = "1")]
    pub parts: Vec<Location>,
}

/// Where a part of the answer lies.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Location {
    #[prost(message, optional, tag = "2")]
    pub part: Option<PartName>,
    #[prost(message, optional, tag = "3")]
    pub executor: Option<Executor>,
    #[prost(message, optional, tag = "4")]
    pub size: Option<Size>,
    #[prost(uint64, optional, tag = "6")]
    pub file: Option<u64>,
    #[prost(bool, tag = "7")]
    pub is_sorted: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Size {
    /// Below 0 where nobody knows.
    #[prost(int64, tag = "1")]
    pub rows: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PartName {
    #[prost(string, tag = "1")]
    pub job: String,
    #[prost(uint32, tag = "2")]
    pub stage: u32,
    #[prost(uint32, tag = "4")]
    pub part: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Executor {
    #[prost(string, tag = "2")]
    pub host: String,
    #[prost(uint32, tag = "3")]
    pub port: u32,
}

/// What an executor reads in a ticket.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Action {
    #[prost(message, optional, tag = "3")]
    pub fetch: Option<Fetch>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Fetch {
    #[prost(string, tag = "1")]
    pub job: String,
    #[prost(uint32, tag = "2")]
    pub stage: u32,
    #[prost(uint32, tag = "3")]
    pub part: u32,
    #[prost(string, tag = "5")]
    pub host: String,
    #[prost(uint32, tag = "6")]
    pub port: u32,
    #[prost(uint64, optional, tag = "7")]
    pub file: Option<u64>,
    /// 0: a file for each part; 1: a file for each task that holds all parts.
    #[prost(int32, tag = "9")]
    pub layout: i32,
}

/// `FlightService/DoGet` asks for it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Ticket {
    #[prost(bytes = "bytes", tag = "1")]
    pub ticket: Bytes,
}

/// A message of Arrow's IPC format: the flatbuffer, and the buffers it speaks of.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FlightData {
    #[prost(bytes = "bytes", tag = "2")]
    pub header: Bytes,
    #[prost(bytes = "bytes", tag = "1000")]
    pub body: Bytes,
}
