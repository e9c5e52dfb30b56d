//! The folder behind the tests' S3 server: s3s-fs, with uploads in parts as S3 answers them.
//!
//! s3s-fs names a file after key and id of an upload, in base64, which is longer than the 255 bytes of a name that a
//! disk takes where a key is long. Here each upload begins under a short key; its parts are named after its id alone,
//! and the object that they become has its own key. To an upload that is over, s3s-fs says that access is denied; S3
//! says that there is none, which is what a client hears that completes one again after a lost answer.

use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput, CompleteMultipartUploadOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput,
    DeleteObjectsOutput, GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
    ListObjectsV2Output, PutObjectInput, PutObjectOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use std::path::{Path, PathBuf};

pub(crate) struct Files {
    inner: FileSystem,
    folder: PathBuf,
}

impl Files {
    pub(crate) fn new(folder: &Path) -> Self {
        Self { inner: FileSystem::new(folder).unwrap(), folder: folder.into() }
    }

    fn is_open(&self, upload: &str) -> S3Result<()> {
        match self.folder.join(format!(".upload-{upload}.json")).exists() {
            true => Ok(()),
            false => Err(s3_error!(NoSuchUpload, "The specified upload does not exist")),
        }
    }
}

type Answer<T> = S3Result<S3Response<T>>;

#[async_trait::async_trait]
impl S3 for Files {
    async fn get_object(&self, request: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        self.inner.get_object(request).await
    }

    async fn head_object(&self, request: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        self.inner.head_object(request).await
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        self.inner.put_object(request).await
    }

    async fn delete_object(&self, request: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        self.inner.delete_object(request).await
    }

    async fn delete_objects(&self, request: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        self.inner.delete_objects(request).await
    }

    async fn list_objects_v2(&self, request: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        self.inner.list_objects_v2(request).await
    }

    async fn create_multipart_upload(
        &self,
        mut request: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        let key = std::mem::replace(&mut request.input.key, "upload".into());
        let mut answer = self.inner.create_multipart_upload(request).await?;
        answer.output.key = Some(key);
        Ok(answer)
    }

    async fn upload_part(&self, request: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        self.is_open(&request.input.upload_id)?;
        self.inner.upload_part(request).await
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        self.is_open(&request.input.upload_id)?;
        self.inner.complete_multipart_upload(request).await
    }

    async fn abort_multipart_upload(
        &self,
        mut request: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        self.is_open(&request.input.upload_id)?;
        request.input.key = "upload".into();
        self.inner.abort_multipart_upload(request).await
    }
}
