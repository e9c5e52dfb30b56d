//! Clients of buckets, by the address of a store: `s3://`, `gs://`, `az://`. Credentials come from the variables and
//! files that the tools of each cloud use, never from an address.

use crate::error::{Error, Result, of_io, of_objects, without_secrets};
use crate::profile::Profile;
use crate::retry::Client;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
#[cfg(feature = "clouds")]
use object_store::azure::MicrosoftAzureBuilder;
#[cfg(feature = "clouds")]
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{Certificate, ClientOptions, RetryConfig};
use std::sync::Arc;

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
fn missing_credentials(variable: impl Fn(&str) -> Option<String>, profile: &Profile) -> Option<String> {
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
fn endpoint(variable: impl Fn(&str) -> Option<String>, profile: &Profile) -> Option<(String, String)> {
    let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"];
    let set = names.iter().find_map(|name| Some(((*name).to_owned(), variable(name).filter(|v| !v.is_empty())?)));
    set.or_else(|| Some((format!("endpoint_url of profile {}", profile.name), profile.get("endpoint_url")?.to_owned())))
}

/// The same for the user of this process, without secrets.
pub(crate) fn named_endpoint() -> Option<(String, String)> {
    let variable = |name: &str| std::env::var(name).ok();
    let (named_by, address) = endpoint(variable, &Profile::of_user(variable))?;
    Some((named_by, without_secrets(&address)))
}

/// Why `address` is no address of a server, if it is none. The client panics at one without a scheme.
fn wrong_endpoint(address: &str) -> Option<&'static str> {
    match url::Url::parse(address) {
        _ if !address.starts_with("http://") && !address.starts_with("https://") => {
            Some("it does not begin with http:// or https://")
        }
        Ok(url) if url.has_host() => None,
        _ => Some("it names no server"),
    }
}

/// The library's own tries are off: [`crate::retry`] decides for all requests.
fn tried_once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}

/// A store's address after its scheme: bucket and prefix.
fn bucket_and_prefix<'a>(scheme: &str, rest: &'a str) -> std::result::Result<(&'a str, String), String> {
    let variables = match scheme {
        "gs" => "GOOGLE_*",
        "az" => "AZURE_*",
        _ => "AWS_*",
    };
    if rest.contains(['@', '?']) {
        return Err(format!("it holds a user or a query; credentials come from the {variables} variables"));
    }
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let what = if scheme == "az" { "container" } else { "bucket" };
    if bucket.is_empty() {
        return Err(format!("it names no {what}"));
    }
    if !bucket.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(format!("the name of a {what} has letters, digits, `-` and `.` only"));
    }
    Ok((bucket, prefix.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")))
}

/// Whether an address begins with a scheme that [`open`] takes.
pub(crate) fn is_bucket(address: &str) -> bool {
    ["s3://", "gs://", "az://"].iter().any(|scheme| address.starts_with(scheme))
}

/// A client of the bucket that an address names, and the prefix of all keys. `shown`: the address without secrets.
pub(crate) fn open(address: &str, shown: &str) -> Result<(Arc<dyn Client>, String)> {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let (bucket, prefix) =
        bucket_and_prefix(scheme, rest).map_err(|why| Error::Address { address: shown.into(), why })?;
    let variable = |name: &str| std::env::var(name).ok();
    let failed = |e| of_objects(shown, "opening it".into(), e);
    let refused = |missing: Option<String>| match missing {
        Some(missing) => Err(Error::NoCredentials { store: shown.into(), missing }),
        None => Ok(()),
    };
    match scheme {
        #[cfg(feature = "clouds")]
        "gs" => {
            refused(missing_google(variable))?;
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket).with_retry(tried_once());
            Ok((Arc::new(builder.build().map_err(failed)?), prefix))
        }
        #[cfg(feature = "clouds")]
        "az" => {
            refused(missing_azure(variable))?;
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(bucket).with_retry(tried_once());
            Ok((Arc::new(builder.build().map_err(failed)?), prefix))
        }
        #[cfg(not(feature = "clouds"))]
        "gs" | "az" => {
            let missing = if scheme == "gs" { missing_google(variable) } else { missing_azure(variable) };
            refused(missing)?;
            let why = "this program was built without it: build with `--features smelt-store/clouds`";
            Err(Error::Address { address: shown.into(), why: why.into() })
        }
        _ => {
            let profile = Profile::of_user(variable);
            refused(missing_credentials(variable, &profile))?;
            let endpoint = endpoint(variable, &profile);
            if let Some((named_by, endpoint)) = &endpoint
                && let Some(why) = wrong_endpoint(endpoint)
            {
                let (address, named_by) = (without_secrets(endpoint), named_by.clone());
                return Err(Error::Endpoint { address, named_by, why: why.into() });
            }
            let builder = s3(bucket, endpoint.map(|(_, address)| address), &profile)?;
            Ok((Arc::new(builder.build().map_err(failed)?), prefix))
        }
    }
}

/// What is missing to sign a request to Google. As for Amazon, the machine's own identity has to be requested.
fn missing_google(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    const GIVEN: [&str; 6] = [
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_PATH",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_SKIP_SIGNATURE",
        "GCE_METADATA_HOST",
    ];
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let login = ".config/gcloud/application_default_credentials.json";
    let is_logged_in = || set("HOME").is_some_and(|home| std::path::Path::new(&home).join(login).exists());
    if GIVEN.iter().any(|name| set(name).is_some()) || is_logged_in() {
        return None;
    }
    Some(format!("GOOGLE_APPLICATION_CREDENTIALS is not set, and there is no ~/{login}"))
}

/// The same for Azure.
fn missing_azure(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    const GIVEN: [&str; 9] = [
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_SAS_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_TOKEN",
        "AZURE_CLIENT_ID",
        "AZURE_USE_AZURE_CLI",
        "AZURE_SKIP_SIGNATURE",
        "IDENTITY_ENDPOINT",
    ];
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    if is_set("AZURE_STORAGE_USE_EMULATOR") {
        return None;
    }
    if !is_set("AZURE_STORAGE_ACCOUNT_NAME") {
        return Some("AZURE_STORAGE_ACCOUNT_NAME is not set".into());
    }
    match GIVEN.iter().any(|name| is_set(name)) {
        true => None,
        false => Some("AZURE_STORAGE_ACCOUNT_NAME is set, AZURE_STORAGE_ACCOUNT_KEY is not".into()),
    }
}

/// Beside those of the system, the certificates of the file that AWS_CA_BUNDLE names are trusted.
fn trusting(bundle: &str, allow_http: bool) -> Result<ClientOptions> {
    let pem =
        std::fs::read(bundle).map_err(|e| of_io(bundle, "reading the file that AWS_CA_BUNDLE names".into(), e))?;
    let certificates = Certificate::from_pem_bundle(&pem)
        .map_err(|e| of_objects(bundle, "reading the certificates that AWS_CA_BUNDLE names".into(), e))?;
    let mut options = ClientOptions::new().with_allow_http(allow_http);
    for (name, value) in std::env::vars() {
        // What the variables say of the connection is asked anew: these options replace what the builder has read.
        if let Ok(AmazonS3ConfigKey::Client(key)) = name.to_ascii_lowercase().parse()
            && name.starts_with("AWS_")
        {
            options = options.with_config(key, value);
        }
    }
    Ok(certificates.into_iter().fold(options, ClientOptions::with_root_certificate))
}

/// A client of `bucket`, from the usual AWS_* variables and the user's profile: endpoint, region, path style,
/// encryption, credentials.
fn s3(bucket: &str, endpoint: Option<String>, profile: &Profile) -> Result<AmazonS3Builder> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(tried_once());
    if let Some((key, secret)) = profile.keys()
        && set("AWS_ACCESS_KEY_ID").is_none()
        && !ELSEWHERE.iter().any(|name| set(name).is_some())
    {
        builder = builder.with_access_key_id(key).with_secret_access_key(secret);
        if let Some(token) = profile.get("aws_session_token") {
            builder = builder.with_token(token);
        }
    }
    if let Some(region) = profile.get("region")
        && set("AWS_REGION").is_none()
        && set("AWS_DEFAULT_REGION").is_none()
    {
        builder = builder.with_region(region);
    }
    let allow_http = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    if let Some(bundle) = set("AWS_CA_BUNDLE").or_else(|| profile.get("ca_bundle").map(str::to_owned)) {
        builder = builder.with_client_options(trusting(&bundle, allow_http)?);
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_allow_http(allow_http).with_endpoint(endpoint);
    }
    Ok(builder)
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

    #[test]
    fn each_cloud_says_what_it_misses() {
        let with = |set: &'static [&str]| move |name: &str| set.contains(&name).then(|| "/nowhere".to_owned());
        assert_eq!(missing_google(with(&["GOOGLE_SERVICE_ACCOUNT"])), None);
        assert_eq!(
            missing_google(with(&["HOME"])).unwrap(),
            "GOOGLE_APPLICATION_CREDENTIALS is not set, and there is no \
             ~/.config/gcloud/application_default_credentials.json"
        );
        assert_eq!(missing_azure(with(&["AZURE_STORAGE_USE_EMULATOR"])), None);
        assert_eq!(missing_azure(with(&["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_CLIENT_ID"])), None);
        assert_eq!(missing_azure(with(&[])).unwrap(), "AZURE_STORAGE_ACCOUNT_NAME is not set");
        assert_eq!(
            missing_azure(with(&["AZURE_STORAGE_ACCOUNT_NAME"])).unwrap(),
            "AZURE_STORAGE_ACCOUNT_NAME is set, AZURE_STORAGE_ACCOUNT_KEY is not"
        );
    }

    #[test]
    fn an_address_names_a_bucket_and_a_prefix() {
        assert_eq!(bucket_and_prefix("gs", "lab/a//b/").unwrap(), ("lab", "a/b".into()));
        assert_eq!(bucket_and_prefix("az", "/a").unwrap_err(), "it names no container");
        let why = "it holds a user or a query; credentials come from the GOOGLE_* variables";
        assert_eq!(bucket_and_prefix("gs", "lab/a?token=secret").unwrap_err(), why);
    }

    #[test]
    fn certificates_that_cannot_be_read_are_named() {
        let error = trusting("/nowhere/ca.pem", false).unwrap_err().to_string();
        let what = "reading the file that AWS_CA_BUNDLE names: No such file or directory (os error 2)";
        assert_eq!(error, format!("store /nowhere/ca.pem failed: {what}"));
    }
}
