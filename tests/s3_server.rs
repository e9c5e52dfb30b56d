//! An S3 server in this process, on a free port of 127.0.0.1. On demand it is late, refuses, throttles, loses requests
//! and answers, cuts bodies off, or finds every credential expired.

use crate::s3_files::Files;
use crate::support::{Bench, Said};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) const KEY: &str = "smelt-test-key";
pub(crate) const SECRET: &str = "smelt-test-secret";

/// What the server does wrong.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// Of a hundred requests, so many fail; each way of failing has a fifth of them.
    pub percent: AtomicU64,
    /// Each request waits for up to this long.
    pub milliseconds: AtomicU64,
    /// So many requests are answered; then every credential is expired. 0 for ever.
    pub expires_after: AtomicU64,
    /// A create-only put replaces what is there, as on servers that do not know it.
    pub overwrites: AtomicBool,
    /// Requests that asked for encryption with a key of this server's KMS.
    pub encrypted: AtomicU64,
    /// The path of each object that was asked for, with the bytes of the answer.
    reads: Mutex<Vec<(String, u64)>>,
    requests: AtomicU64,
    pub failed: AtomicU64,
    /// How often each way of failing was met.
    ways: Mutex<BTreeMap<Way, u64>>,
    /// Bodies of objects that broke off: the path, and the byte. A read that goes on there is counted.
    broken: Mutex<Vec<(String, u64)>>,
    /// Uploads in parts that were completed.
    pub completed: AtomicU64,
}

/// What happened to a request on purpose, or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// 500, and nothing was done.
    Refused,
    /// 503 with `SlowDown`.
    Throttled,
    /// The connection is closed, and nothing was done.
    Reset,
    /// It was done, and the connection is closed before the answer.
    AnswerLost,
    /// It was done, and the answer ends too early. One without a body is lost.
    CutOff,
    /// It waited.
    Late,
    /// A read went on behind the place where the one before was cut off.
    Resumed,
}

impl Way {
    const FAILURES: [Self; 5] = [Self::Refused, Self::Throttled, Self::Reset, Self::AnswerLost, Self::CutOff];
}

/// Ends with the value that holds it: its runtime is dropped, and its port closed.
pub(crate) struct Server {
    pub address: String,
    pub folder: TempDir,
    pub trouble: Arc<Trouble>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::over(None)
    }

    /// Over TLS, with a certificate for which only the authority of `tests/tls` vouches.
    pub(crate) fn start_tls() -> Self {
        let read = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tls").join(name);
        let certificate = CertificateDer::from_pem_file(read("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(read("server.key")).unwrap();
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
        Self::over(Some(TlsAcceptor::from(Arc::new(config))))
    }

    fn over(tls: Option<TlsAcceptor>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let files = Files::new(folder.path());
        let service = {
            let mut builder = S3ServiceBuilder::new(files);
            builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
            builder.build()
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let address = format!("{scheme}://{}", listener.local_addr().unwrap());
        let trouble = Arc::new(Trouble::default());
        let answer = Answer { service, turn: Arc::default(), trouble: trouble.clone(), folder: folder.path().into() };
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, tls) = (answer.clone(), tls.clone());
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    // A client that disconnects, or trusts nobody, is not an error of the server.
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), answer).await),
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            drop(builder.serve_connection(TokioIo::new(stream), answer).await);
                        }
                    }
                });
            }
        });
        Self { address, folder, trouble, _runtime: runtime }
    }

    pub(crate) fn environment(&self, secret: &str) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.address.clone()),
            ("AWS_ACCESS_KEY_ID", KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", secret.into()),
            ("AWS_REGION", "us-east-1".into()),
        ]
    }

    pub(crate) fn smelt(&self, bench: &Bench, secret: &str, args: &[&str]) -> Said {
        bench.command(args).envs(self.environment(secret)).output().unwrap().into()
    }

    /// From now on so many of a hundred requests fail, and each is up to so many milliseconds late.
    pub(crate) fn fail(&self, percent: u64, milliseconds: u64) {
        self.trouble.percent.store(percent, Ordering::SeqCst);
        self.trouble.milliseconds.store(milliseconds, Ordering::SeqCst);
    }

    /// Requests so far, and how many of them failed on purpose.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.trouble.requests.load(Ordering::SeqCst), self.trouble.failed.load(Ordering::SeqCst))
    }

    /// How often each thing happened on purpose.
    pub(crate) fn ways(&self) -> BTreeMap<Way, u64> {
        self.trouble.ways.lock().unwrap().clone()
    }

    /// The reads of objects since the last call: their paths, and the bytes of the answers.
    pub(crate) fn reads(&self) -> Vec<(String, u64)> {
        std::mem::take(&mut *self.trouble.reads.lock().unwrap())
    }

    /// After so many more requests every credential is expired; 0 ends that.
    pub(crate) fn expire_after(&self, requests: u64) {
        let at = if requests == 0 { 0 } else { self.counts().0 + requests };
        self.trouble.expires_after.store(at, Ordering::SeqCst);
    }
}

#[derive(Clone)]
struct Answer {
    service: S3Service,
    /// s3s-fs tests for a file and then renames onto it: one request with a condition at a time makes the create-only
    /// put what S3 promises.
    turn: Arc<tokio::sync::Mutex<()>>,
    trouble: Arc<Trouble>,
    folder: Arc<Path>,
}

fn refusal(status: u16, code: &str) -> HttpResponse {
    let said = format!("<Error><Code>{code}</Code><Message>on purpose</Message></Error>");
    let response = hyper::Response::builder().status(status).body(Body::from(said));
    response.expect("a status and a body make a response")
}

/// What the metadata service of a machine in the cloud answers: a token, the name of its role, and the role's keys.
fn metadata(path: &str) -> Option<HttpResponse> {
    let said = match path.strip_prefix("/latest/")? {
        "api/token" => "a-token".to_owned(),
        "meta-data/iam/security-credentials/" => "the-role".to_owned(),
        _ => format!(
            "{{\"AccessKeyId\":\"{KEY}\",\"SecretAccessKey\":\"{SECRET}\",\"Token\":\"t\",\
             \"Code\":\"Success\",\"Type\":\"AWS-HMAC\",\"LastUpdated\":\"2026-01-01T00:00:00Z\",\
             \"Expiration\":\"2099-01-01T00:00:00Z\"}}"
        ),
    };
    Some(hyper::Response::new(Body::from(said)))
}

/// What the token service answers to who shows a web identity: keys for a while.
fn session(query: &str) -> Option<HttpResponse> {
    let has = |parameter: &str| query.split('&').any(|found| found == parameter);
    if !has("Action=AssumeRoleWithWebIdentity") {
        return None;
    }
    if !has("WebIdentityToken=the-identity") {
        return Some(refusal(400, "InvalidIdentityToken"));
    }
    let said = format!(
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
         <SessionToken>t</SessionToken><SecretAccessKey>{SECRET}</SecretAccessKey><AccessKeyId>{KEY}</AccessKeyId>\
         <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    );
    Some(hyper::Response::new(Body::from(said)))
}

impl Trouble {
    /// A number below `n` that follows from the number of the request alone.
    fn draw(request: u64, n: u64) -> u64 {
        let hash = blake3::hash(&request.to_le_bytes());
        u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash is longer than that")) % n.max(1)
    }

    fn note(&self, way: Way) {
        *self.ways.lock().unwrap().entry(way).or_default() += 1;
    }

    /// Whether a read of `path` from byte `start` on goes on where one was cut off; its client has at most what was
    /// sent.
    fn goes_on(&self, path: &str, start: u64) -> bool {
        let mut broken = self.broken.lock().unwrap();
        let at = broken.iter().position(|(of, end)| of == path && (1..=*end).contains(&start));
        at.map(|at| broken.swap_remove(at)).is_some()
    }
}

impl hyper::service::Service<hyper::Request<hyper::body::Incoming>> for Answer {
    type Response = HttpResponse;
    type Error = HttpError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: hyper::Request<hyper::body::Incoming>) -> Self::Future {
        let Self { service, turn, trouble, folder } = self.clone();
        Box::pin(async move {
            let n = trouble.requests.fetch_add(1, Ordering::SeqCst) + 1;
            let late = trouble.milliseconds.load(Ordering::SeqCst);
            if late > 0 {
                trouble.note(Way::Late);
                tokio::time::sleep(Duration::from_millis(Trouble::draw(n, late))).await;
            }
            if let Some(answer) = metadata(request.uri().path()).or_else(|| session(request.uri().query()?)) {
                return Ok(answer);
            }
            let asks = |name: &str, value: &str| request.headers().get(name).is_some_and(|found| found == value);
            let by_key = asks("x-amz-server-side-encryption-aws-kms-key-id", "the-key");
            let is_encrypted = asks("x-amz-server-side-encryption", "aws:kms") && by_key;
            trouble.encrypted.fetch_add(u64::from(is_encrypted), Ordering::SeqCst);
            let expires = trouble.expires_after.load(Ordering::SeqCst);
            if expires > 0 && n > expires {
                return Ok(refusal(400, "ExpiredToken"));
            }
            // Of a thousand numbers as many as the percentage says, times ten; the last digit says in which way.
            let drawn = Trouble::draw(n, 1000);
            let fails = drawn < 10 * trouble.percent.load(Ordering::SeqCst);
            let way = fails.then(|| Way::FAILURES[(drawn % 5) as usize]);
            trouble.failed.fetch_add(u64::from(fails), Ordering::SeqCst);
            way.into_iter().for_each(|way| trouble.note(way));
            match way {
                Some(Way::Refused) => return Ok(refusal(500, "InternalError")),
                Some(Way::Throttled) => return Ok(refusal(503, "SlowDown")),
                Some(Way::Reset) => return Err(HttpError::new("on purpose".into())),
                _ => {}
            }
            if trouble.overwrites.load(Ordering::SeqCst) && request.headers().contains_key("if-none-match") {
                // The signature covers the header, so what lies there goes instead.
                drop(std::fs::remove_file(folder.join(request.uri().path().trim_start_matches('/'))));
            }
            // s3s-fs answers 500 for a key that is a folder of its own.
            let is_folder = folder.join(request.uri().path().trim_start_matches('/')).is_dir();
            if request.method() == hyper::Method::HEAD && is_folder {
                return Ok(refusal(404, "NoSuchKey"));
            }
            let conditional =
                request.headers().contains_key("if-none-match") || request.headers().contains_key("if-match");
            let held = if conditional { Some(turn.lock().await) } else { None };
            let asked = (request.method() == hyper::Method::GET).then(|| request.uri().path().to_owned());
            let range = request.headers().get(hyper::header::RANGE).and_then(|range| range.to_str().ok());
            let start = range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
            let start: u64 = start.unwrap_or(0);
            let query = request.uri().query().unwrap_or_default();
            let completes = request.method() == hyper::Method::POST && query.starts_with("uploadId=");
            let mut answer = hyper::service::Service::call(&service, request).await?;
            trouble.completed.fetch_add(u64::from(completes && answer.status().is_success()), Ordering::SeqCst);
            if let Some(path) = asked.clone() {
                if trouble.goes_on(&path, start) {
                    trouble.note(Way::Resumed);
                }
                let length = answer.headers().get(hyper::header::CONTENT_LENGTH);
                let bytes = length.and_then(|length| length.to_str().ok()?.parse().ok());
                trouble.reads.lock().unwrap().push((path, bytes.unwrap_or_default()));
            }
            drop(held);
            match way {
                Some(Way::AnswerLost) => Err(HttpError::new("on purpose".into())),
                Some(Way::CutOff) => {
                    let body = answer.body_mut().store_all_limited(1 << 30).await.map_err(HttpError::new)?;
                    if body.is_empty() {
                        return Err(HttpError::new("on purpose".into()));
                    }
                    // The connection is closed before the length that the head promises.
                    let length = hyper::header::HeaderValue::from(body.len());
                    answer.headers_mut().insert(hyper::header::CONTENT_LENGTH, length);
                    answer.headers_mut().remove(hyper::header::TRANSFER_ENCODING);
                    let end = start + body.len() as u64 / 2;
                    let broken = asked.filter(|_| answer.status().is_success()).map(|path| (path, end));
                    trouble.broken.lock().unwrap().extend(broken);
                    *answer.body_mut() = Body::http_body(Half { rest: Some(body.slice(..body.len() / 2)) });
                    Ok(answer)
                }
                _ => Ok(answer),
            }
        })
    }
}

/// A body that breaks off.
struct Half {
    rest: Option<hyper::body::Bytes>,
}

impl hyper::body::Body for Half {
    type Data = hyper::body::Bytes;
    type Error = s3s::StdError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        std::task::Poll::Ready(Some(match self.rest.take() {
            Some(bytes) => Ok(hyper::body::Frame::data(bytes)),
            None => Err("on purpose".into()),
        }))
    }
}
