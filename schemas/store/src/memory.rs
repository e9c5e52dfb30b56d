//! A store in memory, for tests: it lives as long as the process.

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// The library's own takes parts of an upload only in their order; servers take them in any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    objects: Arc<InMemory>,
    uploads: Arc<Mutex<HashMap<MultipartId, BTreeMap<usize, PutPayload>>>>,
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        self.objects.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Memory {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.objects.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

impl Memory {
    fn unknown(path: &Path, id: &MultipartId) -> Error {
        Error::NotFound { path: path.to_string(), source: format!("there is no upload {id}").into() }
    }
}

#[async_trait]
impl MultipartStore for Memory {
    async fn create_multipart(&self, _: &Path) -> Result<MultipartId> {
        let id = crate::unique();
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), BTreeMap::new());
        Ok(id)
    }

    async fn put_part(&self, path: &Path, id: &MultipartId, index: usize, data: PutPayload) -> Result<PartId> {
        let mut uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.get_mut(id).ok_or_else(|| Self::unknown(path, id))?.insert(index, data);
        Ok(PartId { content_id: index.to_string() })
    }

    async fn complete_multipart(&self, path: &Path, id: &MultipartId, parts: Vec<PartId>) -> Result<PutResult> {
        let given = self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let given = given.ok_or_else(|| Self::unknown(path, id))?;
        if given.len() != parts.len() {
            let said = format!("{} parts were put, {} are named", given.len(), parts.len());
            return Err(Error::Generic { store: "memory", source: said.into() });
        }
        let whole: PutPayload = given.into_values().flatten().collect();
        self.objects.put_opts(path, whole, PutOptions::default()).await
    }

    async fn abort_multipart(&self, _: &Path, id: &MultipartId) -> Result<()> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }
}
