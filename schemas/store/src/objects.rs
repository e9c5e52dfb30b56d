//! A store behind `object_store`: S3, and memory for tests.

use crate::entry::{Entry, Version};
use crate::profile::Profile;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult, Result, RetryConfig,
    UpdateVersion,
};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Runtime;

pub(crate) struct Objects {
    pub objects: Arc<dyn ObjectStore>,
    pub prefix: String,
}

/// The one runtime that waits for networks. It is never dropped, and may be used from anywhere except its own threads.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("smelt-store")
            .enable_all()
            .build()
            .expect("a runtime of two threads starts")
    })
}

/// Variables by which somebody else gives credentials, or none are needed.
const ELSEWHERE: [&str; 5] = [
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_SKIP_SIGNATURE",
];

/// What is missing to sign a request, if neither a variable nor the user's profile has credentials. The client would
/// then ask the metadata service of the cloud, whose address hangs for minutes anywhere else, so that has to be
/// requested by a variable.
pub(crate) fn missing_credentials(variable: impl Fn(&str) -> Option<String>, profile: &Profile) -> Option<String> {
    let is_set = |name: &str| variable(name).is_some_and(|v| !v.is_empty());
    match (is_set("AWS_ACCESS_KEY_ID"), is_set("AWS_SECRET_ACCESS_KEY")) {
        (true, true) => None,
        (true, false) => Some("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not".into()),
        (false, true) => Some("AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not".into()),
        (false, false) if ELSEWHERE.iter().any(|name| is_set(name)) || profile.keys().is_some() => None,
        (false, false) => {
            let what = "neither AWS_ACCESS_KEY_ID nor AWS_SECRET_ACCESS_KEY is set, and";
            Some(format!("{what} {}", profile.missing()))
        }
    }
}

/// The address of another server than Amazon's, and who named it.
pub(crate) fn endpoint(variable: impl Fn(&str) -> Option<String>, profile: &Profile) -> Option<(String, String)> {
    let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let set = names.iter().find_map(|name| Some(((*name).to_owned(), variable(name).filter(|v| !v.is_empty())?)));
    set.or_else(|| Some((format!("endpoint_url of profile {}", profile.name), profile.get("endpoint_url")?.to_owned())))
}

/// Why `address` is no address of a server, if it is none. The client panics at one without a scheme.
pub(crate) fn wrong_endpoint(address: &str) -> Option<&'static str> {
    match url::Url::parse(address) {
        _ if !address.starts_with("http://") && !address.starts_with("https://") => {
            Some("it does not begin with http:// or https://")
        }
        Ok(url) if url.has_host() => None,
        _ => Some("it names no server"),
    }
}

/// A client of `bucket`, from the usual AWS_* variables and the user's profile: endpoint, region, path style,
/// credentials.
pub(crate) fn s3(bucket: &str, endpoint: Option<String>, profile: &Profile) -> Result<Arc<dyn ObjectStore>> {
    let is_set = |name: &str| std::env::var(name).is_ok_and(|v| !v.is_empty());
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
        max_retries: 6,
        retry_timeout: Duration::from_secs(60),
    });
    if let Some((key, secret)) = profile.keys()
        && !is_set("AWS_ACCESS_KEY_ID")
        && !ELSEWHERE.iter().any(|name| is_set(name))
    {
        builder = builder.with_access_key_id(key).with_secret_access_key(secret);
        if let Some(token) = profile.get("aws_session_token") {
            builder = builder.with_token(token);
        }
    }
    if let Some(region) = profile.get("region")
        && !is_set("AWS_REGION")
        && !is_set("AWS_DEFAULT_REGION")
    {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
    }
    Ok(Arc::new(builder.build()?))
}

impl Objects {
    pub(crate) fn path(&self, key: &str) -> Path {
        let full = if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) };
        Path::parse(&full).unwrap_or_else(|_| Path::from(full))
    }

    fn key(&self, path: &Path) -> String {
        let full = path.as_ref();
        full.strip_prefix(&self.prefix).map_or(full, |k| k.trim_start_matches('/')).to_owned()
    }

    pub(crate) fn get(&self, key: &str) -> Result<(Bytes, Version)> {
        runtime().block_on(async {
            let found = self.objects.get(&self.path(key)).await?;
            let version = Version { etag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
            Ok((found.bytes().await?, version))
        })
    }

    pub(crate) fn get_range(&self, key: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        runtime().block_on(self.objects.get_range(&self.path(key), range))
    }

    pub(crate) fn size(&self, key: &str) -> Result<u64> {
        Ok(runtime().block_on(self.objects.head(&self.path(key)))?.size)
    }

    /// Calls `take` with each piece of `key` as it arrives.
    pub(crate) fn stream(&self, key: &str, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> Result<()> {
        runtime().block_on(async {
            let mut pieces = self.objects.get(&self.path(key)).await?.into_stream();
            while let Some(piece) = pieces.next().await {
                take(&piece?).map_err(|e| Error::Generic { store: "local copy", source: Box::new(e) })?;
            }
            Ok(())
        })
    }

    fn put_with(&self, key: &str, bytes: &[u8], mode: PutMode) -> Result<PutResult> {
        let payload = PutPayload::from(bytes.to_vec());
        runtime().block_on(self.objects.put_opts(&self.path(key), payload, PutOptions::from(mode)))
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.put_with(key, bytes, PutMode::Overwrite).map(drop)
    }

    /// False if `key` exists. After an error the put may have succeeded and only the reply was lost: the caller reads
    /// the key.
    pub(crate) fn create(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        match self.put_with(key, bytes, PutMode::Create) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Replaces `key` if it still is `expected`.
    pub(crate) fn swap(&self, key: &str, expected: &Version, bytes: &[u8]) -> Result<bool> {
        let update = UpdateVersion { e_tag: expected.etag.clone(), version: expected.version.clone() };
        match self.put_with(key, bytes, PutMode::Update(update)) {
            Ok(_) => Ok(true),
            Err(Error::Precondition { .. } | Error::NotFound { .. } | Error::AlreadyExists { .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let found = runtime().block_on(self.objects.list(Some(&self.path(prefix))).try_collect::<Vec<_>>())?;
        let mut entries: Vec<_> = found
            .into_iter()
            .map(|m| Entry {
                key: self.key(&m.location),
                bytes: m.size,
                modified: m.last_modified.timestamp_millis() as f64 / 1e3,
            })
            .collect();
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    pub(crate) fn list_here(&self, prefix: &str) -> Result<(Vec<String>, Vec<String>)> {
        let found = runtime().block_on(self.objects.list_with_delimiter(Some(&self.path(prefix))))?;
        let name = |p: &Path| p.filename().unwrap_or_default().to_owned();
        let mut files: Vec<_> = found.objects.iter().map(|m| name(&m.location)).collect();
        let mut folders: Vec<_> = found.common_prefixes.iter().map(name).collect();
        files.sort();
        folders.sort();
        Ok((files, folders))
    }

    pub(crate) fn delete(&self, key: &str) -> Result<()> {
        match runtime().block_on(self.objects.delete(&self.path(key))) {
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    pub(crate) fn delete_all(&self, prefix: &str) -> Result<()> {
        runtime().block_on(async {
            let paths = self.objects.list(Some(&self.path(prefix))).map_ok(|m| m.location).boxed();
            self.objects.delete_stream(paths).try_for_each(|_| async { Ok(()) }).await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_missed_before_anybody_is_asked() {
        let nobody = Profile::of_user(|_| None);
        let with = |set: &[&str]| missing_credentials(|name| set.contains(&name).then(|| "x".into()), &nobody);
        assert_eq!(with(&["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]), None);
        assert_eq!(with(&["AWS_WEB_IDENTITY_TOKEN_FILE"]), None);
        let neither = "neither AWS_ACCESS_KEY_ID nor AWS_SECRET_ACCESS_KEY is set";
        assert_eq!(with(&[]).unwrap(), format!("{neither}, and ~/.aws has no keys for profile `default`"));
        assert_eq!(with(&["AWS_ACCESS_KEY_ID"]).unwrap(), "AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not");
    }

    #[test]
    fn an_endpoint_is_the_address_of_a_server() {
        for good in ["http://minio:9000", "https://s3.example.org/path/", "http://[::1]:9000", "http://127.0.0.1"] {
            assert_eq!(wrong_endpoint(good), None, "{good}");
        }
        for bad in ["minio:9000", "localhost", "//minio:9000", "s3://x", "http:minio", ""] {
            assert_eq!(wrong_endpoint(bad), Some("it does not begin with http:// or https://"), "{bad}");
        }
        for bad in ["http://", "http://:9000", "https://a b", "http://minio:port"] {
            assert_eq!(wrong_endpoint(bad), Some("it names no server"), "{bad}");
        }
    }
}
