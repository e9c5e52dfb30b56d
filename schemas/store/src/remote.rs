//! Files elsewhere that are read and never written: objects of a bucket, files of a web server.

use crate::error::{Error, Result, of_io, of_objects};
use crate::objects::runtime;
use crate::store::{LocalFile, Store};
use crate::unique::unique;
use futures::StreamExt;
use object_store::path::Path as Key;
use object_store::{ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// A bucket or a web server.
#[derive(Clone, Debug)]
pub struct Remote {
    objects: Arc<dyn ObjectStore>,
    /// `s3://bucket` or `https://host`.
    address: String,
}

/// A file there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Without a slash at the start.
    pub key: String,
    pub bytes: u64,
    /// Other bytes have another one: the entity tag, or where a server or its listing has none the time of the last
    /// change.
    pub version: String,
}

impl Remote {
    /// Whether this is an address that [`Remote::open`] takes.
    pub fn is_address(address: &str) -> bool {
        ["s3://", "https://", "http://"].iter().any(|scheme| address.starts_with(scheme))
    }

    /// The bucket or server of an address, and the rest of it. Connects to nothing yet. Credentials for buckets come
    /// from the AWS_* variables or the user's AWS profile.
    pub fn open(address: &str) -> Result<(Self, String)> {
        let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        if scheme == "s3" {
            let store = Store::open(&format!("s3://{host}"))?;
            let (objects, _) = store.objects().expect("a bucket is no directory");
            return Ok((Self { objects, address: format!("s3://{host}") }, key.to_owned()));
        }
        let shown = host.rsplit('@').next().unwrap_or(host);
        let bad = |why: &str| Error::Address { address: format!("{scheme}://{shown}/…"), why: why.into() };
        if !matches!(scheme, "http" | "https") {
            return Err(bad("only s3://, https:// and http:// are known"));
        }
        if host.contains('@') {
            return Err(bad("it holds a user or a password, which would stand in the pipeline"));
        }
        let address = format!("{scheme}://{host}");
        let options = ClientOptions::new().with_allow_http(scheme == "http");
        let server =
            object_store::http::HttpBuilder::new().with_url(format!("{address}/")).with_client_options(options);
        let objects = server.build().map_err(|e| of_objects(&address, "opening it".into(), e))?;
        Ok((Self { objects: Arc::new(objects), address }, key.to_owned()))
    }

    /// `s3://bucket` or `https://host`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether what lies there can be listed.
    pub fn lists(&self) -> bool {
        self.address.starts_with("s3://")
    }

    /// All files whose keys begin with a folder, sorted by key.
    pub fn list(&self, folder: &str) -> Result<Vec<RemoteFile>> {
        let prefix = Key::from(folder);
        let found = runtime().block_on(self.objects.list(Some(&prefix)).collect::<Vec<_>>());
        let found: object_store::Result<Vec<ObjectMeta>> = found.into_iter().collect();
        let found = found.map_err(|e| of_objects(&self.address, format!("listing `{folder}`"), e))?;
        // A folder made by a console is an empty object whose name ends with a slash.
        let files = found.iter().map(|meta| remote_file(meta.location.as_ref(), meta));
        let mut files: Vec<RemoteFile> = files.filter(|file| !file.key.ends_with('/')).collect();
        files.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(files)
    }

    /// What lies at `key`; `None` if nothing does.
    pub fn find(&self, key: &str) -> Result<Option<RemoteFile>> {
        match runtime().block_on(self.objects.head(&self.key(key)?)) {
            Ok(meta) => Ok(Some(remote_file(key, &meta))),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(of_objects(&self.address, format!("asking for `{key}`"), e)),
        }
    }

    /// A copy in `scratch` that vanishes with the result; `None` if the file is not what it was.
    pub fn fetch(&self, file: &RemoteFile, scratch: &Path) -> Result<Option<LocalFile>> {
        let local = |e| of_io(&scratch.display().to_string(), format!("copying `{}` to it", file.key), e);
        std::fs::create_dir_all(scratch).map_err(local)?;
        let path = scratch.join(format!("{}{}", unique(), crate::directory::TEMPORARY));
        let mut copy = std::fs::File::create_new(&path).map_err(local)?;
        let copied = LocalFile::copy(path);
        let remote = |e| of_objects(&self.address, format!("reading `{}`", file.key), e);
        let key = self.key(&file.key)?;
        let bytes = runtime().block_on(async {
            let found = match self.objects.get(&key).await {
                Err(object_store::Error::NotFound { .. }) => return Ok(None),
                other => other.map_err(remote)?,
            };
            let versions = [tag(&found.meta), Some(modified(&found.meta))];
            if found.meta.size != file.bytes || !versions.contains(&Some(file.version.clone())) {
                return Ok(None);
            }
            let (mut pieces, mut bytes) = (found.into_stream(), 0);
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(remote)?;
                bytes += piece.len() as u64;
                copy.write_all(&piece).map_err(local)?;
            }
            Ok(Some(bytes))
        })?;
        Ok(bytes.filter(|bytes| *bytes == file.bytes).map(|_| copied))
    }

    /// A web address has its characters encoded already; a bucket has them as they are.
    fn key(&self, key: &str) -> Result<Key> {
        let parsed = if self.lists() { Key::parse(key) } else { Key::from_url_path(key) };
        parsed.map_err(|e| Error::Address { address: format!("{}/{key}", self.address), why: e.to_string() })
    }
}

fn remote_file(key: &str, meta: &ObjectMeta) -> RemoteFile {
    RemoteFile { key: key.to_owned(), bytes: meta.size, version: tag(meta).unwrap_or_else(|| modified(meta)) }
}

fn tag(meta: &ObjectMeta) -> Option<String> {
    meta.e_tag.as_ref().map(|tag| format!("etag {}", tag.trim_matches('"')))
}

/// In seconds: a listing has fractions of them that the answer to a request leaves out.
fn modified(meta: &ObjectMeta) -> String {
    format!("modified {}", meta.last_modified.timestamp())
}
