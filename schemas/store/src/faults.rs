//! A client that fails on purpose, for tests: late, refused, throttled, cut off before and after the work is done, and
//! with answers that end too early. What it does in its n-th request follows from the seed and n alone.

use crate::retry::Client;
use async_trait::async_trait;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How often a client fails, and how.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub seed: u64,
    /// The share of requests that fail, in [0, 1]: each kind of failure has a fifth of it.
    pub share: f64,
    /// Each request waits for up to this long.
    pub latency: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// 500, before anything is done.
    Refused,
    /// 503 with `SlowDown`.
    Throttled,
    /// The connection is lost before the server has the request.
    Reset,
    /// The server does what it was asked, and its answer is lost.
    AnswerLost,
    /// The answer ends too early. An answer without a body is lost.
    Truncated,
}

impl Faults {
    /// What happens to request `n`.
    fn draw(&self, n: u64) -> Option<Fault> {
        const ALL: [Fault; 5] = [Fault::Refused, Fault::Throttled, Fault::Reset, Fault::AnswerLost, Fault::Truncated];
        let share = self.uniform(n, 0);
        let kind = (share / self.share * ALL.len() as f64) as usize;
        (share < self.share).then(|| ALL[kind.min(ALL.len() - 1)])
    }

    /// In [0, 1).
    fn uniform(&self, n: u64, stream: u64) -> f64 {
        let of = [self.seed, n, stream].map(u64::to_le_bytes).concat();
        let mut bits = [0; 8];
        bits.copy_from_slice(&blake3::hash(&of).as_bytes()[..8]);
        (u64::from_le_bytes(bits) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A client with faults.
#[derive(Clone)]
pub struct Faulty {
    client: Arc<dyn Client>,
    faults: Faults,
    is_down: Arc<AtomicBool>,
    requests: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} with {:?}", self.client, self.faults)
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

fn failure(said: &str) -> Error {
    Error::Generic { store: "faults", source: said.into() }
}

impl Fault {
    /// The error of a fault that keeps the request from the server.
    fn before(self) -> Result<()> {
        match self {
            Self::Refused => Err(failure("Server returned non-2xx status code: 500 Internal Server Error: ")),
            Self::Throttled => Err(failure(
                "Server returned non-2xx status code: 503 Service Unavailable: <Error><Code>SlowDown</Code></Error>",
            )),
            Self::Reset => Err(failure("connection reset by peer")),
            Self::AnswerLost | Self::Truncated => Ok(()),
        }
    }
}

impl Faulty {
    pub fn new(client: Arc<dyn Client>, faults: Faults) -> Self {
        Self { client, faults, is_down: Arc::default(), requests: Arc::default(), failed: Arc::default() }
    }

    /// Whether nobody listens at the server's address.
    pub fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    /// Requests so far, and how many of them failed.
    pub fn counts(&self) -> (u64, u64) {
        (self.requests.load(Ordering::SeqCst), self.failed.load(Ordering::SeqCst))
    }

    /// Waits, draws a fault, and fails if it comes before the server; else says what will happen to the answer.
    async fn request(&self) -> Result<Option<Fault>> {
        let n = self.requests.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) {
            self.failed.fetch_add(1, Ordering::SeqCst);
            return Err(failure("connection refused"));
        }
        tokio::time::sleep(self.faults.latency.mul_f64(self.faults.uniform(n, 1))).await;
        let fault = self.faults.draw(n);
        self.failed.fetch_add(u64::from(fault.is_some()), Ordering::SeqCst);
        fault.map_or(Ok(()), Fault::before)?;
        Ok(fault)
    }

    /// A request whose answer is small.
    async fn through<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        let fault = self.request().await?;
        let answer = answer.await?;
        match fault {
            None => Ok(answer),
            Some(_) => Err(failure("connection closed before message completed")),
        }
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.through(self.client.put_opts(location, payload, options)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.through(self.client.put_multipart_opts(location, options)).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.request().await?;
        let mut found = self.client.get_opts(location, options.clone()).await?;
        match fault {
            None => return Ok(found),
            Some(Fault::Truncated) if !options.head => {}
            Some(_) => return Err(failure("connection closed before message completed")),
        }
        let keep = (found.range.end - found.range.start) / 2;
        let end = match keep % 2 {
            // Some connections end with an error, and some just end.
            0 => Some(Err(failure("error reading a body from connection"))),
            _ => None,
        };
        let attributes = found.attributes.clone();
        let (meta, range) = (found.meta.clone(), found.range.clone());
        let empty = GetResultPayload::Stream(stream::empty().boxed());
        found.payload = match std::mem::replace(&mut found.payload, empty) {
            GetResultPayload::Stream(pieces) => {
                let cut = pieces.try_filter_map({
                    let mut left = keep as usize;
                    move |mut piece: bytes::Bytes| {
                        piece.truncate(left);
                        left -= piece.len();
                        std::future::ready(Ok((!piece.is_empty()).then_some(piece)))
                    }
                });
                GetResultPayload::Stream(cut.chain(stream::iter(end)).boxed())
            }
            other => other,
        };
        Ok(GetResult { payload: found.payload, meta, range, attributes })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let all = async move {
            let deleted = store.client.delete_stream(locations).try_collect::<Vec<_>>();
            Ok::<_, Error>(stream::iter(store.through(deleted).await?.into_iter().map(Ok)))
        };
        stream::once(all).try_flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let all = async move {
            let fault = store.request().await?;
            let found: Vec<_> = store.client.list(prefix.as_ref()).try_collect().await?;
            // A page arrived, the next one does not.
            let (keep, end) = match fault {
                None => (found.len(), None),
                Some(_) => (found.len() / 2, Some(Err(failure("connection reset by peer")))),
            };
            Ok::<_, Error>(stream::iter(found.into_iter().take(keep).map(Ok).chain(end)))
        };
        stream::once(all).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.through(self.client.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.through(self.client.copy_opts(from, to, options)).await
    }
}

#[async_trait]
impl MultipartStore for Faulty {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.through(self.client.create_multipart(path)).await
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, index: usize, data: PutPayload) -> Result<PartId> {
        self.through(self.client.put_part(path, id, index, data)).await
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        self.through(self.client.complete_multipart(path, id, parts)).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.through(self.client.abort_multipart(path, id)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::objects::Objects;
    use crate::{Store, conformance};

    fn store(client: &Faulty) -> Store {
        let objects = Objects::new(Arc::new(client.clone()), "some/prefix").waiting(Duration::from_millis(1));
        Store::over(Arc::new(objects), "memory with faults")
    }

    /// A fifth of all requests fail, and no caller notices.
    #[test]
    fn a_store_whose_requests_fail_and_are_late_conforms() {
        for seed in 0..3 {
            let faults = Faults { seed, share: 0.2, latency: Duration::from_millis(2) };
            let client = Faulty::new(Arc::new(Memory::default()), faults);
            conformance::all(&store(&client));
            let (requests, failed) = client.counts();
            let share = failed as f64 / requests as f64;
            assert!(requests > 1000 && (share - 0.2).abs() < 0.05, "{failed} of {requests} requests failed");
        }
    }

    #[test]
    fn a_server_that_never_answers_is_given_up_and_named() {
        let faults = Faults { seed: 0, share: 1.0, latency: Duration::ZERO };
        let client = Faulty::new(Arc::new(Memory::default()), faults);
        let error = store(&client).put("a", b"1").unwrap_err();
        assert!(error.to_string().starts_with("store memory with faults does not answer: writing `a`: "), "{error}");
        assert_eq!(client.counts(), (8, 8));
    }

    /// Where somebody waits, a server that is not there is told soon; one that has answered is waited for as ever.
    #[test]
    fn a_hasty_store_gives_up_early_only_before_the_first_answer() {
        let faults = Faults { seed: 0, share: 0.0, latency: Duration::ZERO };
        let client = Faulty::new(Arc::new(Memory::default()), faults);
        let store = store(&client).hasty(true);
        client.set_down(true);
        store.put("a", b"1").unwrap_err();
        assert_eq!(client.counts(), (4, 4));
        client.set_down(false);
        store.put("a", b"1").unwrap();
        client.set_down(true);
        let error = store.put("a", b"1").unwrap_err();
        assert_eq!(client.counts(), (4 + 1 + 8, 4 + 8));
        let said = "store memory with faults does not answer: writing `a`: connection refused";
        assert_eq!(error.to_string(), said);
    }

    #[test]
    fn what_happens_follows_from_the_seed_alone() {
        let faults = |seed| Faults { seed, share: 0.5, latency: Duration::ZERO };
        let of = |seed| (0..200).map(|n| faults(seed).draw(n)).collect::<Vec<_>>();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        for fault in [Fault::Refused, Fault::Throttled, Fault::Reset, Fault::AnswerLost, Fault::Truncated] {
            assert!(of(1).iter().filter(|f| **f == Some(fault)).count() > 5, "{fault:?} is drawn");
        }
    }
}
