//! An artifact by the first digits of its fingerprint, or of the digest of one of its ports.

use crate::diagnostic::{Diagnostic, Result};
use smelt_schemas::Manifest;
use smelt_store::Store;
use std::collections::BTreeMap;

/// Fewer digits name nothing.
const LEAST: usize = 6;

/// What `prefix` names, and the port if it is the digest of one; nothing if no digest begins so. Editions of one
/// recipe, and ports of the same bytes, are one thing: the newest is meant. Two different ones are an error.
pub(crate) fn find(store: &Store, prefix: &str) -> Result<Option<(Manifest, Option<String>)>> {
    if prefix.len() < LEAST || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(None);
    }
    let prefix = prefix.to_ascii_lowercase();
    let (mut manifests, _) = store.manifests()?;
    manifests.sort_by(|a, b| a.provenance.started.total_cmp(&b.provenance.started));
    let mut found: BTreeMap<String, (&Manifest, Option<&String>)> = BTreeMap::new();
    for manifest in &manifests {
        let ports = manifest.ports.iter().map(|(name, port)| (&port.digest, Some(name)));
        for (digest, port) in std::iter::once((&manifest.fingerprint, None)).chain(ports) {
            if digest.as_str().starts_with(&prefix) {
                found.insert(digest.to_string(), (manifest, port));
            }
        }
    }
    if found.len() > 1 {
        return Err(ambiguous(&prefix, &found));
    }
    Ok(found.into_values().next().map(|(manifest, port)| (manifest.clone(), port.cloned())))
}

fn ambiguous(prefix: &str, found: &BTreeMap<String, (&Manifest, Option<&String>)>) -> Diagnostic {
    const SHOWN: usize = 6;
    // As many digits as tell all of them apart.
    let digests: Vec<&String> = found.keys().collect();
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let digits = digests.windows(2).map(|pair| common(pair[0], pair[1])).max().unwrap_or(0).max(11) + 1;
    let name = |(digest, (manifest, port)): (&String, &(&Manifest, Option<&String>))| {
        let digest = &digest[..digits.min(digest.len())];
        match port {
            Some(port) => format!("{digest} (port {port} of {})", manifest.stage),
            None => format!("{digest} ({})", manifest.stage),
        }
    };
    let mut names: Vec<String> = found.iter().take(SHOWN).map(name).collect();
    if found.len() > SHOWN {
        names.push("…".into());
    }
    Diagnostic::pipeline(format!("`{prefix}` is ambiguous: {} digests begin with it", found.len()))
        .hint(format!("give more digits: {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_schemas::{Digest, PortRecord, kind};

    fn manifest(fingerprint: &str, edition: u32, started: f64, port: &str) -> Manifest {
        let digest = |text: &str| Digest::try_from(format!("{text:0<64}")).unwrap();
        let mut record = PortRecord::new(kind::documents(), Vec::new());
        record.digest = digest(port);
        Manifest {
            protocol: 1,
            stage: "clean".into(),
            version: 1,
            fingerprint: digest(fingerprint),
            edition,
            attempt: "a".into(),
            config: serde_json::Value::Null,
            inputs: Default::default(),
            sources: Vec::new(),
            ports: [("documents".to_owned(), record)].into_iter().collect(),
            books: Default::default(),
            metrics: Default::default(),
            provenance: smelt_schemas::Provenance { started, ..Default::default() },
        }
    }

    #[test]
    fn digits_that_name_two_things_are_refused_and_editions_of_one_are_not() {
        let store = Store::open("memory:digests").unwrap();
        for m in [
            manifest("abcdef01", 0, 1.0, "11111111"),
            manifest("abcdef01", 1, 2.0, "11111111"),
            manifest("abcdef02", 0, 3.0, "22222222"),
            manifest("99999999", 0, 4.0, "abcdef03"),
        ] {
            store.commit(&m).unwrap();
        }
        let found =
            |prefix: &str| find(&store, prefix).unwrap().map(|(m, port)| (m.edition, m.provenance.started, port));
        assert_eq!(found("abcdef01"), Some((1, 2.0, None)));
        assert_eq!(found("ABCDEF03"), Some((0, 4.0, Some("documents".into()))));
        assert_eq!(found("111111"), Some((1, 2.0, Some("documents".into()))));
        assert_eq!((found("abcde"), found("beefbeef"), found("clean")), (None, None, None));
        let error = find(&store, "abcdef").unwrap_err();
        assert_eq!(error.message, "`abcdef` is ambiguous: 3 digests begin with it");
        let hint = "give more digits: abcdef010000 (clean), abcdef020000 (clean), \
            abcdef030000 (port documents of clean)";
        assert_eq!(error.hint.as_deref(), Some(hint));
    }
}
