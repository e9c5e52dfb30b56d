//! Against a scheduler and an executor that know of a query what its plan says, as those of Ballista do.

use super::messages::{
    Accepted, Action, Execute, Executed, Executor, Failed, FlightData, Ignored, JobName, JobStatus, Location, Outcome,
    PartName, Refused, Size, State, Status, Successful, Ticket, VERSION, VERSION_HEADER, Why,
};
use super::{address, ask};
use crate::failure::Failure;
use datafusion::arrow::array::{Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::datasource::MemTable;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use datafusion_proto::bytes::logical_plan_from_bytes;
use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parquet::arrow::ArrowWriter;
use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use smelt_schemas::{ExitCode, Fault};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// How the cluster behaves.
#[derive(Clone, Copy, Default)]
struct Manners {
    /// The version that it tells; [`VERSION`] if not said.
    version: Option<&'static str>,
    fails: Option<&'static str>,
    /// Loses the last message of a stream of rows.
    forgets: bool,
    /// Breaks the connection within a stream of rows.
    breaks: bool,
}

#[derive(Default)]
struct Seen {
    calls: Vec<String>,
    settings: Vec<(String, String)>,
    parts: Vec<Vec<RecordBatch>>,
    asked: usize,
}

/// A server that is gone with the runtime of its test.
struct Fake {
    address: String,
    seen: Arc<Mutex<Seen>>,
}

type Answer = hyper::Response<http_body_util::combinators::BoxBody<Bytes, std::io::Error>>;

impl Fake {
    async fn start(manners: Manners) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let of_server = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Arc::clone(&of_server);
                let service = service_fn(move |request| answer(request, manners, port, Arc::clone(&seen)));
                let connection = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                tokio::spawn(async move {
                    drop(connection.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address: format!("127.0.0.1:{port}"), seen }
    }
}

/// gRPC over HTTP/2: messages with a length in front, and trailers that say how it went.
fn grpc(messages: Vec<Vec<u8>>, version: &str, breaks: bool) -> Answer {
    let mut frames = Vec::new();
    for message in messages {
        let mut bytes = BytesMut::new();
        bytes.put_u8(0);
        bytes.put_u32(u32::try_from(message.len()).unwrap());
        bytes.put_slice(&message);
        frames.push(Ok(Frame::data(bytes.freeze())));
    }
    frames.push(match breaks {
        true => Err(std::io::Error::other("broken")),
        false => {
            let how = (http::HeaderName::from_static("grpc-status"), "0".parse().unwrap());
            Ok(Frame::trailers(http::HeaderMap::from_iter([how])))
        }
    });
    let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
    let answer = hyper::Response::builder().header("content-type", "application/grpc");
    let answer = if version.is_empty() { answer } else { answer.header(VERSION_HEADER, version) };
    answer.body(body).unwrap()
}

async fn answer(
    request: hyper::Request<Incoming>,
    manners: Manners,
    port: u16,
    seen: Arc<Mutex<Seen>>,
) -> Result<Answer, std::convert::Infallible> {
    let call = request.uri().path().rsplit('/').next().unwrap().to_owned();
    seen.lock().unwrap().calls.push(call.clone());
    let told = request.headers().get(VERSION_HEADER).map(|version| version.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes().slice(5..);
    let version = manners.version.unwrap_or(VERSION);
    let unary = |message: Vec<u8>| grpc(vec![message], version, false);
    Ok(match call.as_str() {
        "ExecuteQuery" => {
            assert_eq!(told.as_deref(), Some(VERSION));
            let asked = Execute::decode(body).unwrap();
            let outcome = match execute(&asked.logical_plan).await {
                Ok(parts) => {
                    let mut seen = seen.lock().unwrap();
                    seen.parts = parts;
                    seen.settings = asked.settings.into_iter().map(|s| (s.key, s.value.unwrap_or_default())).collect();
                    Outcome::Accepted(Accepted { job: "j1".into(), session: asked.session })
                }
                Err(why) => Outcome::Refused(Refused { why: Some(Why::PlanNotParsed(why)) }),
            };
            unary(Executed { outcome: Some(outcome) }.encode_to_vec())
        }
        "GetJobStatus" => {
            assert_eq!(JobName::decode(body).unwrap().job, "j1");
            let mut seen = seen.lock().unwrap();
            seen.asked += 1;
            let state = match (seen.asked, manners.fails) {
                (1, _) => State::Queued(Ignored {}),
                (2, _) => State::Running(Ignored {}),
                (_, Some(error)) => State::Failed(Failed { error: error.into() }),
                (_, None) => State::Successful(Successful {
                    parts: (seen.parts.iter().enumerate())
                        .map(|(i, batches)| Location {
                            size: Some(Size { rows: batches.iter().map(|b| b.num_rows() as i64).sum() }),
                            part: Some(PartName { job: "j1".into(), stage: 2, part: u32::try_from(i).unwrap() }),
                            executor: Some(Executor { host: "127.0.0.1".into(), port: port.into() }),
                            file: None,
                            is_sorted: false,
                        })
                        .collect(),
                }),
            };
            unary(Status { status: Some(JobStatus { state: Some(state) }), proxy: None }.encode_to_vec())
        }
        "DoGet" => {
            let ticket = Ticket::decode(body).unwrap().ticket;
            let fetch = Action::decode(ticket).unwrap().fetch.unwrap();
            assert_eq!((fetch.job.as_str(), fetch.stage), ("j1", 2));
            let batches = seen.lock().unwrap().parts[fetch.part as usize].clone();
            let mut messages = flight(&batches);
            if manners.forgets {
                messages.pop();
            }
            grpc(messages, version, manners.breaks)
        }
        _ => unary(Ignored {}.encode_to_vec()),
    })
}

/// What a scheduler does with a plan: a session of its own, which has DataFusion's functions and reads files.
async fn execute(plan: &[u8]) -> Result<Vec<Vec<RecordBatch>>, String> {
    let context = SessionContext::new();
    let plan = logical_plan_from_bytes(plan, &context.task_ctx()).map_err(|e| e.to_string())?;
    let frame = context.execute_logical_plan(plan).await.map_err(|e| e.to_string())?;
    frame.collect_partitioned().await.map_err(|e| e.to_string())
}

fn flight(batches: &[RecordBatch]) -> Vec<Vec<u8>> {
    let Some(first) = batches.first() else { return Vec::new() };
    let (options, generator) = (IpcWriteOptions::default(), IpcDataGenerator::default());
    let (mut tracker, mut compression) = (DictionaryTracker::new(false), IpcWriteContext::default());
    let schema = generator.schema_to_bytes_with_dictionary_tracker(&first.schema(), &mut tracker, &options);
    let mut messages = vec![schema];
    for batch in batches {
        let (dictionaries, rows) = generator.encode(batch, &mut tracker, &options, &mut compression).unwrap();
        messages.extend(dictionaries.into_iter().chain([rows]));
    }
    let data = messages.into_iter().map(|m| FlightData { header: m.ipc_message.into(), body: m.arrow_data.into() });
    data.map(|data| data.encode_to_vec()).collect()
}

/// A session with a table of three Parquet files, and one in memory.
async fn session(folder: &Path) -> SessionContext {
    let fields = vec![Field::new("id", DataType::Int64, false), Field::new("text", DataType::Utf8, true)];
    let schema = Arc::new(Schema::new(fields));
    for file in 0..3_i64 {
        let ids = Int64Array::from_iter_values((0..100).map(|i| file * 100 + i));
        let texts = StringArray::from_iter((0..100).map(|i| (i % 10 != 0).then(|| format!("é {}", i % 7))));
        let rows = RecordBatch::try_new(schema.clone(), vec![Arc::new(ids), Arc::new(texts)]).unwrap();
        let out = std::fs::File::create(folder.join(format!("part {file}.parquet"))).unwrap();
        let mut writer = ArrowWriter::try_new(out, schema.clone(), None).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
    }
    let mut context = SessionContext::new_with_config(SessionConfig::new().with_information_schema(true));
    datafusion_functions_json::register_all(&mut context).unwrap();
    let files = folder.to_str().unwrap();
    context.register_parquet("clean", files, ParquetReadOptions::default()).await.unwrap();
    let fields = vec![Field::new("job", DataType::Utf8, false), Field::new("rows", DataType::Int64, true)];
    let schema = Arc::new(Schema::new(fields));
    let (jobs, counts) = (StringArray::from(vec!["a", "b"]), Int64Array::from(vec![Some(7), None]));
    let rows = RecordBatch::try_new(schema.clone(), vec![Arc::new(jobs), Arc::new(counts)]).unwrap();
    let memory = MemTable::try_new(schema.clone(), vec![vec![rows]]).unwrap();
    context.register_table("jobs", Arc::new(memory)).unwrap();
    context.register_table("none", Arc::new(MemTable::try_new(schema, vec![vec![]]).unwrap())).unwrap();
    context
}

/// The answer as text, or nothing where this machine has to answer.
async fn asked(context: &SessionContext, address: &str, sql: &str) -> Result<Option<String>, Failure> {
    let frame = context.sql(sql).await.unwrap();
    let Some(rows) = ask(address, &frame, "quickstart", None).await? else { return Ok(None) };
    let batches: Vec<RecordBatch> = rows.try_collect().await?;
    let empty = RecordBatch::new_empty(frame.schema().as_arrow().clone().into());
    let batches: Vec<RecordBatch> = [empty].into_iter().chain(batches).collect();
    Ok(Some(pretty_format_batches(&batches).unwrap().to_string()))
}

#[tokio::test]
async fn a_cluster_answers_as_this_machine_does() {
    let folder = tempfile::tempdir().unwrap();
    let context = session(folder.path()).await;
    for sql in [
        "select count(*), min(id), max(id) from clean",
        "select text, count(*) as n, sum(id) from clean group by text order by n desc, text",
        "select id, text from clean where text = 'é 3' and id > 150 order by id",
        "select * from clean where id = 205",
        "select * from clean where id < 0",
        "select id * 3 - 1 as x, -id as y, sum(id) over (order by id) as z from clean where id + 1 < 20 order by id",
        "select sum(distinct id) + 1 as s, sum(id) filter (where id > 3), avg(id) from clean having sum(id) > 0",
        "select j.job, j.rows, c.text from jobs j left join clean c on c.id = j.rows order by j.job",
        "select count(*) from clean where id in (select rows from jobs)",
        "select count(*) from clean where id > (select max(rows) from jobs) \
         and exists (select 1 from jobs where rows = clean.id - 10)",
        "select count(*) from clean left join none on none.rows = clean.id where none.job is null",
        "with c as (select text, row_number() over (partition by text order by id) as n from clean) \
         select * from c where n = 2 order by text",
    ] {
        let fake = Fake::start(Manners::default()).await;
        let batches = context.sql(sql).await.unwrap().collect().await.unwrap();
        let schema = context.sql(sql).await.unwrap().schema().as_arrow().clone();
        let all: Vec<RecordBatch> = [RecordBatch::new_empty(schema.into())].into_iter().chain(batches).collect();
        let here = pretty_format_batches(&all).unwrap().to_string();
        let there = asked(&context, &fake.address, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        assert_eq!(there.as_deref(), Some(here.as_str()), "{sql}");
        let seen = fake.seen.lock().unwrap();
        assert!(seen.settings.contains(&("ballista.job.name".into(), "quickstart".into())), "{:?}", seen.settings);
        assert_eq!(seen.calls[..4], ["ExecuteQuery", "GetJobStatus", "GetJobStatus", "GetJobStatus"]);
        assert_eq!(seen.calls[seen.calls.len() - 2..], ["CleanJobData", "RemoveSession"]);
    }
}

#[tokio::test]
async fn what_reads_no_file_is_answered_here() {
    let folder = tempfile::tempdir().unwrap();
    let context = session(folder.path()).await;
    for sql in ["select 1", "select count(*) from jobs", "explain select * from clean"] {
        // Nobody listens there, and nobody is asked.
        assert_eq!(asked(&context, "127.0.0.1:1", sql).await.unwrap(), None, "{sql}");
    }
}

#[tokio::test]
async fn what_a_cluster_cannot_do_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let context = session(folder.path()).await;
    let fails = async |manners: Manners, sql: &str| {
        let fake = Fake::start(manners).await;
        let failure = asked(&context, &fake.address, sql).await.unwrap_err();
        let calls = fake.seen.lock().unwrap().calls.clone();
        let told = failure.message.replace(&fake.address, "HOST:PORT");
        (failure.exit_code(), told, failure.hint.unwrap_or_default(), calls)
    };
    let count = "select count(*) from clean";
    let as_usual = Manners::default();

    let (code, told, hint, _) = fails(as_usual, "select text->>'a' from clean").await;
    assert_eq!(
        (code, told.as_str(), hint.as_str()),
        (
            ExitCode::Pipeline,
            "the cluster does not know the function `json_as_text`",
            "leave out `--ballista`: JSON's functions, and `->`, are smelt's own"
        )
    );

    let old = Manners { version: Some("54.1.0"), ..as_usual };
    let (code, told, hint, calls) = fails(old, count).await;
    assert_eq!(
        (code, told.as_str(), hint.as_str()),
        (
            ExitCode::Machine,
            "the Ballista scheduler at http://HOST:PORT is of version 54.1.0",
            "ballista-scheduler and ballista-executor 55 are what smelt speaks to"
        )
    );
    assert_eq!(calls, ["ExecuteQuery", "CancelJob", "CleanJobData", "RemoveSession"]);
    let (_, told, ..) = fails(Manners { version: Some(""), ..as_usual }, count).await;
    assert_eq!(told, "the Ballista scheduler at http://HOST:PORT is older than 55");

    // Where this machine's sums and products do not fit, the cluster's do not either.
    for sql in [
        "select sum(id + 9223372036854775000) from clean",
        "select id * 9223372036854775807 from clean",
        "select sum(id * 4611686018427387904) over () from clean where id < 3",
        "select -(id - 9223372036854775807 - 1) from clean where id = 0",
    ] {
        let (code, told, hint, _) = fails(as_usual, sql).await;
        assert_eq!(code, ExitCode::Pipeline, "{sql}: {told}");
        assert!(told.starts_with("the cluster cannot compute it: "), "{sql}: {told}");
        assert!(hint.starts_with("compute in a wider type, such as "), "{hint}");
    }

    let error =
        "stage 0 failed: DataFusionError(Shared(External(ArrowError(CastError(\"value of 9 is out of range\")))))";
    let (code, told, ..) = fails(Manners { fails: Some(error), ..as_usual }, count).await;
    assert_eq!(
        (code, told.as_str()),
        (ExitCode::Pipeline, "the cluster cannot compute it: value of 9 is out of range")
    );

    let broken = Manners { fails: Some("Job j1 failed: task 3 lost"), ..as_usual };
    let (code, told, ..) = fails(broken, count).await;
    assert_eq!((code, told.as_str()), (ExitCode::Machine, "the Ballista cluster: Job j1 failed: task 3 lost"));

    let (code, told, ..) = fails(Manners { breaks: true, ..as_usual }, "select * from clean").await;
    assert_eq!(code, ExitCode::Machine);
    assert!(told.starts_with("rows of the Ballista executor at http://HOST:PORT were lost: "), "{told}");
    // A stream that ends well, and too early: an answer is never short without a word.
    let (code, told, hint, _) = fails(Manners { forgets: true, ..as_usual }, "select * from clean order by id").await;
    assert_eq!((code, hint.as_str()), (ExitCode::Machine, "ask again"));
    assert_eq!(told, "0 of 300 rows came from the Ballista executor at http://HOST:PORT");

    let frame = context.sql(count).await.unwrap();
    let unseen = Manners { fails: Some("Object at location /lab/x.parquet not found"), ..as_usual };
    let fake = Fake::start(unseen).await;
    let unseen = ask(&fake.address, &frame, "quickstart", Some(Path::new("/lab"))).await.err().unwrap();
    assert_eq!(unseen.message, "the Ballista cluster: Object at location /lab/x.parquet not found");
    let hint = "the scheduler and all executors have to see the folder /lab";
    assert_eq!(unseen.hint.as_deref(), Some(hint));

    let here = "select count(*) from clean, information_schema.tables";
    let (code, told, hint, calls) = fails(as_usual, here).await;
    assert_eq!((code, calls.len()), (ExitCode::Pipeline, 0));
    assert_eq!(told, "table `information_schema.tables` is of this machine alone");
    assert_eq!(hint, "leave out `--ballista`, or ask about it in a query of its own");

    let nobody = asked(&context, "127.0.0.1:1", count).await.unwrap_err();
    assert_eq!(nobody.exit_code(), ExitCode::Machine);
    assert_eq!(
        nobody.message,
        "the Ballista scheduler at http://127.0.0.1:1 cannot be reached: Connection refused (os error 111)"
    );
    assert_eq!(
        nobody.hint.as_deref(),
        Some("start one as docs/pipelines.md says under Ballista; without `--ballista` this machine answers")
    );
}

#[test]
fn a_scheduler_is_named_by_host_and_port() {
    for given in ["h:50050", "df://h:50050", "http://h:50050/"] {
        assert_eq!(address(given).unwrap(), "http://h:50050", "{given}");
    }
    assert_eq!(address("[::1]:50050").unwrap(), "http://[::1]:50050");
    let wrong = |given: &str| address(given).unwrap_err().message;
    assert_eq!(wrong("h"), "`--ballista h`: the port is missing");
    assert_eq!(wrong("h:x"), "`--ballista h:x`: that is no host and port");
    assert_eq!(wrong("https://h:1"), "`--ballista https://h:1`: no scheduler answers to https://");
    // What might be a password is not told again, and goes nowhere.
    assert_eq!(wrong("u:p@h:1"), "`--ballista …@h:1`: that is no host and port");
}
