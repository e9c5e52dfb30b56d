//! A client that tries again: with back-off after 5xx, throttling, time-outs and lost connections, and from the byte
//! where a read broke.
//!
//! The library's own client also tries again, but not after a time-out or a lost connection of a conditional put, for
//! it cannot know whether the put succeeded. Here such a put is followed by a look at what the key holds. All requests
//! pass here, those of queries too, and the library's own tries are switched off: one place decides.

use crate::error::{code, innermost, status};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What object stores can do.
pub trait Client: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Client for T {}

/// Tries after the first one.
const RETRIES: u32 = 7;
/// Before the second try; twice as long before each further one.
const WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Where somebody waits for the first answer of a server: tries after the first one, none of which begins later than
/// this. An address with a typing error is told at once.
const HASTY_RETRIES: u32 = 3;
const HASTY: Duration = Duration::from_secs(2);
/// Objects that one request deletes, at most.
const DELETED_AT_ONCE: usize = 1000;

/// What is known of a server.
#[derive(Default)]
struct Server {
    /// Whether it has answered any request.
    has_answered: AtomicBool,
    is_hasty: AtomicBool,
}

/// How long to wait before the next try.
struct Patience {
    tries: u32,
    wait: Duration,
    began: Instant,
    server: Arc<Server>,
}

impl Patience {
    /// Waits, or gives the error back if another try would not help or there were enough.
    async fn after(&mut self, error: Error) -> Result<()> {
        if is_answer(&error) {
            self.server.has_answered.store(true, Ordering::Relaxed);
        }
        if self.tries == RETRIES || !is_transient(&error) || self.is_never_answered() {
            return Err(error);
        }
        let wait = (self.wait * 2u32.pow(self.tries)).min(LONGEST_WAIT);
        self.tries += 1;
        // Many workers that one server refused at the same moment do not come back at the same moment.
        let share = f64::from(u32::from_str_radix(&crate::unique()[..6], 16).unwrap_or_default()) / f64::from(1 << 24);
        tokio::time::sleep(wait.mul_f64(0.5 + 0.5 * share)).await;
        Ok(())
    }

    /// Whether a server that nobody has heard of is given up.
    fn is_never_answered(&self) -> bool {
        let is_new = !self.server.has_answered.load(Ordering::Relaxed);
        let is_late = self.tries >= HASTY_RETRIES || self.began.elapsed() >= HASTY;
        is_new && is_late && self.server.is_hasty.load(Ordering::Relaxed)
    }
}

/// Whether an error is what a server said, and not that nothing was heard of it.
fn is_answer(error: &Error) -> bool {
    match error {
        Error::Generic { .. } => status(&innermost(error)).is_some(),
        _ => true,
    }
}

/// Whether the same request may succeed later.
pub(crate) fn is_transient(error: &Error) -> bool {
    let text = innermost(error);
    // Amazon's answer to two conditional puts at once, which says nothing about the key.
    if code(&text) == Some("ConditionalRequestConflict") {
        return true;
    }
    match error {
        Error::Generic { .. } => match status(&text) {
            Some(status) => status >= 500 || status == 429 || status == 408,
            None => true, // no answer, or only a part of one
        },
        Error::JoinError { .. } => true,
        _ => false,
    }
}

/// Repeats `$request`, an expression that makes a new future each time, until it is answered.
macro_rules! persist {
    ($store:expr, $request:expr) => {{
        let mut patience = $store.patience();
        loop {
            match $request.await {
                Err(error) => patience.after(error).await?,
                answer => {
                    $store.server.has_answered.store(true, Ordering::Relaxed);
                    break answer;
                }
            }
        }
    }};
}

/// A client whose requests are tried again.
#[derive(Clone)]
pub(crate) struct Persistent {
    client: Arc<dyn Client>,
    wait: Duration,
    server: Arc<Server>,
}

impl Persistent {
    pub(crate) fn new(client: Arc<dyn Client>) -> Self {
        Self { client, wait: WAIT, server: Arc::default() }
    }

    /// Whether somebody waits for the first answer.
    pub(crate) fn set_hasty(&self, is_hasty: bool) {
        self.server.is_hasty.store(is_hasty, Ordering::Relaxed);
    }

    /// The same with another wait before the second try.
    #[cfg(test)]
    pub(crate) fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    fn patience(&self) -> Patience {
        Patience { tries: 0, wait: self.wait, began: Instant::now(), server: self.server.clone() }
    }

    /// The first answer of a read.
    async fn ask(&self, location: &Path, options: &GetOptions) -> Result<GetResult> {
        persist!(self, self.client.get_opts(location, options.clone()))
    }

    /// What `location` is, if it holds these bytes.
    async fn holds(&self, location: &Path, payload: &PutPayload) -> Result<Option<PutResult>> {
        let found = match self.get(location).await {
            Err(Error::NotFound { .. }) => return Ok(None),
            found => found?,
        };
        let meta = found.meta.clone();
        if meta.size != payload.content_length() as u64 {
            return Ok(None);
        }
        let is_equal = found.bytes().await? == Bytes::from(payload.clone());
        Ok(is_equal.then_some(PutResult { e_tag: meta.e_tag, version: meta.version }))
    }
}

impl fmt::Debug for Persistent {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.client.fmt(f)
    }
}

impl fmt::Display for Persistent {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.client.fmt(f)
    }
}

/// A read that goes on where it broke.
struct Resumed {
    store: Persistent,
    location: Path,
    options: GetOptions,
    stream: BoxStream<'static, Result<Bytes>>,
    /// Bytes that are still to come.
    left: Range<u64>,
    patience: Patience,
}

impl Resumed {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            let broken = match self.stream.next().await {
                Some(Ok(bytes)) => {
                    self.left.start += bytes.len() as u64;
                    self.patience = self.store.patience();
                    return Ok(Some(bytes));
                }
                // Whatever comes after the last byte, all of it has arrived.
                None | Some(Err(_)) if self.left.start >= self.left.end => return Ok(None),
                None => Error::Generic { store: "read", source: "the connection ended before the last byte".into() },
                Some(Err(error)) => error,
            };
            self.patience.after(broken).await?;
            let options = GetOptions { range: Some(GetRange::Bounded(self.left.clone())), ..self.options.clone() };
            match self.store.client.get_opts(&self.location, options).await {
                Ok(rest) if rest.range == self.left => self.stream = rest.into_stream(),
                Ok(rest) => {
                    let said = format!("asked for bytes {:?}, the server sent {:?}", self.left, rest.range);
                    return Err(Error::Generic { store: "read", source: said.into() });
                }
                // The next turn of the loop sees it.
                Err(error) => self.stream = stream::iter([Err(error)]).boxed(),
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Persistent {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let mut patience = self.patience();
        loop {
            let error = match self.client.put_opts(location, payload.clone(), options.clone()).await {
                Err(e) => e,
                done => {
                    self.server.has_answered.store(true, Ordering::Relaxed);
                    return done;
                }
            };
            // Refused, and perhaps by this put's own success whose answer was lost.
            if options.mode != PutMode::Overwrite
                && matches!(error, Error::AlreadyExists { .. } | Error::Precondition { .. })
                && let Some(own) = self.holds(location, &payload).await?
            {
                return Ok(own);
            }
            patience.after(error).await?;
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.client.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let mut found = self.ask(location, &options).await?;
        if options.head || !matches!(found.payload, GetResultPayload::Stream(_)) {
            return Ok(found);
        }
        // The rest must be of the same object.
        let options = GetOptions { if_match: found.meta.e_tag.clone().or(options.if_match.clone()), ..options };
        let left = found.range.clone();
        let placeholder = GetResultPayload::Stream(stream::empty().boxed());
        let GetResultPayload::Stream(stream) = std::mem::replace(&mut found.payload, placeholder) else {
            return Ok(found);
        };
        let read = Resumed {
            store: self.clone(),
            location: location.clone(),
            options,
            stream,
            left,
            patience: self.patience(),
        };
        let pieces =
            stream::try_unfold(read, |mut read| async move { Ok(read.next().await?.map(|piece| (piece, read))) });
        found.payload = GetResultPayload::Stream(pieces.boxed());
        Ok(found)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |chunk: Vec<Path>| {
            let store = store.clone();
            async move {
                let once = || {
                    let paths = stream::iter(chunk.clone().into_iter().map(Ok)).boxed();
                    let deleted = store.client.delete_stream(paths).filter_map(|deleted| async move {
                        // A try whose answer was lost has deleted it.
                        (!matches!(deleted, Err(Error::NotFound { .. }))).then_some(deleted)
                    });
                    deleted.try_for_each(|_| async { Ok(()) })
                };
                persist!(store, once())?;
                Ok(stream::iter(chunk.into_iter().map(Ok)))
            }
        };
        let chunks = locations.try_chunks(DELETED_AT_ONCE).map_err(|e| e.1);
        chunks.and_then(delete).try_flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let stream = store.client.list(prefix.as_ref());
        let patience = store.patience();
        let state = (store, prefix, None::<Path>, stream, patience);
        stream::try_unfold(state, |(store, prefix, mut last, mut stream, mut patience)| async move {
            loop {
                match stream.next().await {
                    None => return Ok(None),
                    Some(Ok(meta)) => {
                        last = Some(meta.location.clone());
                        store.server.has_answered.store(true, Ordering::Relaxed);
                        let patience = store.patience();
                        return Ok(Some((meta, (store, prefix, last, stream, patience))));
                    }
                    Some(Err(error)) => patience.after(error).await?,
                }
                stream = match &last {
                    Some(last) => store.client.list_with_offset(prefix.as_ref(), last),
                    None => store.client.list(prefix.as_ref()),
                };
            }
        })
        .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        persist!(self, self.client.list_with_delimiter(prefix))
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.client.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Persistent {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        persist!(self, self.client.create_multipart(path))
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, index: usize, data: PutPayload) -> Result<PartId> {
        persist!(self, self.client.put_part(path, id, index, data.clone()))
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let mut patience = self.patience();
        let mut lost = false;
        loop {
            match self.client.complete_multipart(path, id, parts.clone()).await {
                // Completed by the try before, whose answer was lost.
                Err(Error::NotFound { .. }) if lost => {
                    let meta = self.head(path).await?;
                    return Ok(PutResult { e_tag: meta.e_tag, version: meta.version });
                }
                Err(error) => patience.after(error).await?,
                done => return done,
            }
            lost = true;
        }
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        persist!(self, self.client.abort_multipart(path, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let generic = |said: &str| Error::Generic { store: "S3", source: said.into() };
        let answered = |status: &str| generic(&format!("Server returned non-2xx status code: {status}: <Error/>"));
        for error in [
            answered("500 Internal Server Error"),
            answered("503 Service Unavailable"),
            answered("429 Too Many Requests"),
            answered("408 Request Timeout"),
            generic("connection reset by peer"),
            generic("error reading a body from connection"),
        ] {
            assert!(is_transient(&error), "{error}");
        }
        let of = |said: &str| ("a".to_owned(), said.to_owned().into());
        let ((path, source), (other, conflict)) =
            (of("exists"), of("<Error><Code>ConditionalRequestConflict</Code></Error>"));
        assert!(!is_transient(&Error::AlreadyExists { path, source }));
        assert!(is_transient(&Error::AlreadyExists { path: other, source: conflict }));
        let (path, source) = of("gone");
        for error in [answered("400 Bad Request"), answered("403 Forbidden"), Error::NotFound { path, source }] {
            assert!(!is_transient(&error), "{error}");
        }
    }
}
