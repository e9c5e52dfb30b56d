//! Which of the matching files are taken, when there are limits.
//!
//! Files are tried in the order of a hash of their names: as good as a random sample, the same on every machine, and
//! stable under additions (a new file displaces few others). The chosen ones are then read in the order of names.

use std::collections::BTreeMap;

use crate::error::IngestError;
use crate::remote::Remotes;
use smelt_stage::files::Found;
use smelt_store::Remote;

/// Limits that can be checked without opening a file. `None` is no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Smallest and largest size of a plain file; files of records are not limited by size.
    pub min_bytes: u64,
    pub max_bytes: Option<u64>,
    /// Bytes from one glob: files are taken while the sum is below.
    pub per_glob: Option<u64>,
    /// Bytes and files of all globs together, plain files only.
    pub max_total_bytes: Option<u64>,
    pub max_documents: Option<u64>,
}

/// What was chosen and what was left.
#[derive(Debug)]
pub struct Selection {
    /// Sorted by name; no name twice.
    pub files: Vec<Found>,
    /// How many different files matched.
    pub matched: usize,
    /// Globs that match nothing.
    pub idle: Vec<Idle>,
    /// Links to nothing.
    pub dead: Vec<String>,
    /// Those of the files that lie elsewhere.
    pub remotes: Remotes,
}

/// A glob that matches nothing, and what may be wrong with it.
#[derive(Clone, Debug, PartialEq)]
pub struct Idle {
    pub glob: String,
    pub hint: Option<String>,
}

/// Chooses among what each glob found. `is_plain` says whether a file is one document.
pub fn select(
    globs: Vec<(String, Vec<Found>)>,
    limits: &Limits,
    is_plain: impl Fn(&Found) -> bool,
) -> Result<Selection, IngestError> {
    let mut taken: BTreeMap<String, Found> = BTreeMap::new();
    let mut seen: BTreeMap<String, Found> = BTreeMap::new();
    // A file may have to be opened to be told.
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    let mut is_plain = |file: &Found| *known.entry(file.name.clone()).or_insert_with(|| is_plain(file));
    let is_limited = limits.min_bytes > 0 || limits.max_bytes.is_some();
    for (_, files) in globs {
        let mut fresh = Vec::new();
        for file in files {
            match seen.get(&file.name) {
                Some(other) if other.path != file.path && !same_bytes(other, &file)? => {
                    let (name, first, second) = (&file.name, other.path.display(), file.path.display());
                    let what = format!("two files would be called `{name}`: `{first}` and `{second}`");
                    return Err(IngestError::config(name, what)
                        .with_hint("end the root of their globs with `/./` further to the left"));
                }
                Some(_) => {}
                None => {
                    seen.insert(file.name.clone(), file.clone());
                    fresh.push(file);
                }
            }
        }
        fresh.retain(|file| {
            !is_limited
                || !is_plain(file)
                || (file.bytes >= limits.min_bytes && limits.max_bytes.is_none_or(|max| file.bytes <= max))
        });
        fresh.sort_by_cached_key(order);
        let mut sum = 0;
        for file in fresh {
            if limits.per_glob.is_some_and(|limit| sum >= limit) {
                break;
            }
            sum += file.bytes;
            taken.insert(file.name.clone(), file);
        }
    }
    let matched = seen.len();
    let mut files: Vec<Found> = taken.into_values().collect();
    if limits.max_total_bytes.is_some() || limits.max_documents.is_some() {
        files.sort_by_cached_key(order);
        let (mut bytes, mut documents) = (0, 0);
        files.retain(|file| {
            if !is_plain(file) {
                return true;
            }
            let fits = limits.max_documents.is_none_or(|max| documents < max)
                && limits.max_total_bytes.is_none_or(|max| bytes + file.bytes <= max);
            if fits {
                documents += 1;
                bytes += file.bytes;
            }
            fits
        });
        files.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(Selection { files, matched, idle: Vec::new(), dead: Vec::new(), remotes: Remotes::default() })
}

/// The place of a file in the sample: hash of its name, then the name.
fn order(file: &Found) -> ([u8; 32], String) {
    (*blake3::hash(file.name.as_bytes()).as_bytes(), file.name.clone())
}

fn same_bytes(a: &Found, b: &Found) -> Result<bool, IngestError> {
    let read = |file: &Found| {
        std::fs::read(&file.path).map_err(|source| IngestError::Read { name: file.path.display().to_string(), source })
    };
    let is_remote = |file: &Found| file.path.to_str().is_some_and(Remote::is_address);
    Ok(a.bytes == b.bytes && !is_remote(a) && !is_remote(b) && read(a)? == read(b)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, bytes: u64) -> Found {
        Found { name: name.into(), path: format!("/x/{name}").into(), bytes }
    }

    fn names(globs: Vec<(String, Vec<Found>)>, limits: Limits) -> Vec<String> {
        select(globs, &limits, |_| true).unwrap().files.into_iter().map(|f| f.name).collect()
    }

    fn hundred() -> Vec<(String, Vec<Found>)> {
        vec![("*".into(), (0..100).map(|i| found(&format!("{i:02}"), 10)).collect())]
    }

    #[test]
    fn a_sample_is_spread_and_does_not_depend_on_order() {
        let limits = Limits { max_documents: Some(10), ..Limits::default() };
        let forward = names(hundred(), limits);
        let mut backward = hundred();
        backward[0].1.reverse();
        assert_eq!(forward, names(backward, limits));
        assert_eq!(forward.len(), 10);
        assert!(forward.iter().any(|n| n.as_str() < "50") && forward.iter().any(|n| n.as_str() >= "50"), "{forward:?}");
        assert!(forward.is_sorted());
    }

    #[test]
    fn a_smaller_sample_is_part_of_a_larger_one() {
        let small = names(hundred(), Limits { per_glob: Some(100), ..Limits::default() });
        let large = names(hundred(), Limits { per_glob: Some(300), ..Limits::default() });
        assert_eq!((small.len(), large.len()), (10, 30));
        assert!(small.iter().all(|n| large.contains(n)));
    }

    #[test]
    fn sizes_and_sums_are_kept() {
        let files = || vec![("*".into(), vec![found("a", 1), found("b", 5), found("c", 9), found("d", 5)])];
        let limits = Limits { min_bytes: 2, max_bytes: Some(8), ..Limits::default() };
        assert_eq!(names(files(), limits), ["b", "d"]);
        let limits = Limits { max_total_bytes: Some(11), ..Limits::default() };
        let sum: u64 = select(files(), &limits, |_| true).unwrap().files.iter().map(|f| f.bytes).sum();
        assert!(sum <= 11, "{sum}");
    }

    #[test]
    fn overlapping_globs_take_a_file_once() {
        let globs = vec![("a*".into(), vec![found("a", 1)]), ("*".into(), vec![found("a", 1), found("b", 1)])];
        let selection = select(globs, &Limits::default(), |_| true).unwrap();
        assert_eq!(selection.files.len(), 2);
        assert_eq!(selection.matched, 2);
    }
}
