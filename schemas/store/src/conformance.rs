//! What every store promises, as functions that panic where one does not: for the tests of a [`crate::Backing`], as
//! `object_store`'s own integration tests are. Each works in a folder of its own, and leaves it empty.
//!
//! A store passes them while other processes use it, while its requests fail and are tried again, and while several
//! run at once.

use crate::artifacts::{Commit, artifact_key};
use crate::attempt::{Attempt, Begun, Progress};
use crate::error::Error;
use crate::objects::PART;
use crate::store::Store;
use crate::unique::unique;
use smelt_schemas::{Books, Digest, FileRecord, Manifest, PortRecord, kind};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::thread::scope;

/// Writers at once.
const RIVALS: usize = 8;

/// All of them.
pub fn all(store: &Store) {
    store.probe(false).expect("a store that is written by many refuses a second create-only put");
    what_was_put_is_read(store);
    ranges_are_exact(store);
    one_creator_wins(store);
    a_swap_replaces_only_what_was_read(store);
    listings_are_complete_and_sorted(store);
    long_listings_are_complete(store);
    deletions_are_complete_and_may_be_repeated(store);
    an_upload_is_seen_whole_or_not_at_all(store);
    what_is_fetched_is_verified(store);
    names_of_any_kind_are_keys(store);
    one_of_many_commits_and_the_others_adopt_it(store);
    an_attempt_goes_on_where_the_last_one_stopped(store);
    workers_share_units(store);
}

fn folder(of: &str) -> String {
    format!("conformance/{of}-{}", unique())
}

fn clear(store: &Store, folder: &str) {
    store.delete_all(folder).expect("a folder is deleted");
    assert_eq!(store.list(folder).expect("it is listed"), []);
}

fn keys(store: &Store, folder: &str) -> Vec<String> {
    let cut = |entry: crate::Entry| entry.key[folder.len() + 1..].to_owned();
    store.list(folder).expect("a folder is listed").into_iter().map(cut).collect()
}

pub fn what_was_put_is_read(store: &Store) {
    let folder = folder("put");
    let key = |name: &str| format!("{folder}/{name}");
    assert_eq!(store.get_opt(&key("a")).expect("a missing key is no error"), None);
    assert_eq!(store.size(&key("a")).expect("a missing key is no error"), None);
    assert!(matches!(store.get(&key("a")), Err(Error::NotFound { .. })));
    let bytes: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (name, bytes) in [("a", &b"1"[..]), ("a", b"22"), ("a", b""), ("deep/er/b", &bytes)] {
        store.put(&key(name), bytes).expect("a key is written");
        assert_eq!(&store.get(&key(name)).expect("it is read")[..], bytes);
        assert_eq!(store.size(&key(name)).expect("it is asked for"), Some(bytes.len() as u64));
    }
    assert_eq!(store.size(&key("deep")).expect("a folder is no key"), None);
    clear(store, &folder);
}

pub fn ranges_are_exact(store: &Store) {
    let folder = folder("range");
    let key = format!("{folder}/a");
    let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    store.put(&key, &bytes).expect("a key is written");
    for range in [0..1, 0..100_000, 777..60_001, 99_999..100_000] {
        let expected = &bytes[range.start as usize..range.end as usize];
        assert_eq!(&store.get_range(&key, range).expect("a range is read")[..], expected);
    }
    store.get_range(&key, 99_000..100_001).expect_err("there are fewer bytes than that");
    assert!(matches!(store.get_range(&format!("{folder}/b"), 0..1), Err(Error::NotFound { .. })));
    clear(store, &folder);
}

pub fn one_creator_wins(store: &Store) {
    let folder = folder("create");
    for round in 0..6 {
        let key = format!("{folder}/{round}");
        let won: Vec<bool> = scope(|scope| {
            let create = |i| store.create(&key, format!("writer {i}").as_bytes()).expect("a creation is answered");
            let threads: Vec<_> = (0..RIVALS).map(|i| scope.spawn(move || create(i))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no writer panics")).collect()
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
        let winner = won.iter().position(|won| *won).expect("one has won");
        assert_eq!(store.get(&key).expect("it is there"), format!("writer {winner}").as_bytes());
        assert!(!store.create(&key, b"later").expect("a creation is answered"));
    }
    clear(store, &folder);
}

pub fn a_swap_replaces_only_what_was_read(store: &Store) {
    let folder = folder("swap");
    let key = format!("{folder}/a");
    store.put(&key, b"1").expect("a key is written");
    let read = || store.get_versioned(&key).expect("it is read").expect("it is there");
    let (_, first) = read();
    assert!(store.swap(&key, &first, b"2").expect("a swap is answered"));
    assert!(!store.swap(&key, &first, b"3").expect("a swap is answered"), "it holds other bytes");
    assert_eq!(&read().0[..], b"2");
    let (_, second) = read();
    store.delete(&key).expect("it is deleted");
    assert!(!store.swap(&key, &second, b"4").expect("a swap is answered"), "it is not there");
    // Nobody's turn is lost: all add to one list. It may be there twice where an answer was lost and another writer
    // came before the next try.
    store.put(&key, b"").expect("a key is written");
    scope(|scope| {
        for rival in 0..RIVALS {
            let read = &read;
            let key = &key;
            scope.spawn(move || {
                for turn in 0..4 {
                    loop {
                        let (bytes, version) = read();
                        let longer = [&bytes[..], format!("{rival}.{turn} ").as_bytes()].concat();
                        if store.swap(key, &version, &longer).expect("a swap is answered") {
                            break;
                        }
                    }
                }
            });
        }
    });
    let text = String::from_utf8(read().0.to_vec()).expect("it is text");
    let turns: BTreeSet<&str> = text.split_whitespace().collect();
    assert_eq!(turns.len(), RIVALS * 4, "{text}");
    clear(store, &folder);
}

pub fn listings_are_complete_and_sorted(store: &Store) {
    let folder = folder("list");
    assert_eq!(keys(store, &folder), Vec::<String>::new());
    let mut names = ["b/c/d", "b/c/e", "b/a", "a.json", "b.json", "c-1/x", "c/x"];
    for name in names {
        store.put(&format!("{folder}/{name}"), name.as_bytes()).expect("a key is written");
    }
    names.sort_unstable();
    assert_eq!(keys(store, &folder), names);
    let sizes = store.list(&format!("{folder}/b")).expect("it is listed");
    assert_eq!(sizes.iter().map(|entry| entry.bytes).collect::<Vec<_>>(), [3, 5, 5]);
    let age = crate::now() - sizes[0].modified;
    assert!((-5.0..600.0).contains(&age), "it was written {age} seconds ago");
    // A folder is no prefix: `c` does not hold what is in `c-1`.
    assert_eq!(keys(store, &format!("{folder}/c")), ["x"]);
    let here = store.list_here(&folder).expect("it is listed");
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(here, (of(&["a.json", "b.json"]), of(&["b", "c", "c-1"])));
    assert_eq!(store.list_here(&format!("{folder}/none")).expect("it is listed"), (Vec::new(), Vec::new()));
    clear(store, &folder);
}

/// More keys than a server names in one answer.
pub fn long_listings_are_complete(store: &Store) {
    let folder = folder("pages");
    // A directory has no pages, and syncs each file.
    let n = if store.directory().is_some() { 50 } else { 1100 };
    scope(|scope| {
        for part in 0..RIVALS {
            let folder = &folder;
            scope.spawn(move || {
                for i in (part..n).step_by(RIVALS) {
                    store.put(&format!("{folder}/{i:05}"), b"x").expect("a key is written");
                }
            });
        }
    });
    let expected: Vec<String> = (0..n).map(|i| format!("{i:05}")).collect();
    assert_eq!(keys(store, &folder), expected);
    assert_eq!(store.list_here(&folder).expect("it is listed").0, expected);
    clear(store, &folder);
}

pub fn deletions_are_complete_and_may_be_repeated(store: &Store) {
    let folder = folder("delete");
    let key = |name: &str| format!("{folder}/{name}");
    for name in ["a", "b/c", "b/d/e", "bb"] {
        store.put(&key(name), b"x").expect("a key is written");
    }
    for _ in 0..2 {
        store.delete(&key("a")).expect("a deletion may be repeated");
        store.delete_all(&key("b")).expect("a deletion may be repeated");
    }
    assert_eq!(keys(store, &folder), ["bb"]);
    clear(store, &folder);
}

pub fn an_upload_is_seen_whole_or_not_at_all(store: &Store) {
    let folder = folder("upload");
    let random = |n: usize| -> Vec<u8> {
        let mut bytes = vec![0; n];
        blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    for n in [0, 1, 100_000, PART, PART + 1, 2 * PART + 12_345] {
        let (key, bytes) = (format!("{folder}/{n}"), random(n));
        let mut upload = store.upload(&key).expect("an upload begins");
        for piece in bytes.chunks(700_001) {
            upload.write_all(piece).expect("a piece is written");
        }
        assert_eq!(store.size(&key).expect("it is asked for"), None, "nothing is seen before the end");
        assert_eq!(store.list(&folder).expect("it is listed"), []);
        let record = upload.finish("a").expect("an upload ends");
        assert_eq!((record.bytes, &record.blake3), (n as u64, &Digest::of(&bytes)));
        assert!(store.get(&key).expect("it is read")[..] == bytes[..], "{n} bytes come back");
        // One that is given up leaves what was there.
        let mut upload = store.upload(&key).expect("an upload begins");
        upload.write_all(&random(PART + 7)).expect("a piece is written");
        drop(upload);
        assert_eq!(store.size(&key).expect("it is asked for"), Some(n as u64));
        store.delete(&key).expect("it is deleted");
    }
    clear(store, &folder);
}

fn written(store: &Store, key: &str, bytes: &[u8]) -> FileRecord {
    let mut upload = store.upload(key).expect("an upload begins");
    upload.write_all(bytes).expect("a piece is written");
    upload.finish("a.bin").expect("an upload ends")
}

pub fn what_is_fetched_is_verified(store: &Store) {
    let folder = folder("fetch");
    let scratch = Scratch::new();
    let key = format!("{folder}/a.bin");
    let bytes: Vec<u8> = (0..50_000u32).map(|i| (i % 253) as u8).collect();
    let record = written(store, &key, &bytes);
    let file = store.fetch(&key, &record, &scratch.0).expect("it is fetched");
    assert!(std::fs::read(file.path()).expect("it is a file of this machine") == bytes);
    drop(file);
    let mut read = String::new();
    let (mut range, at) = store.fetch_range(&key, 10..20, &scratch.0).expect("a range is fetched");
    std::io::Seek::seek(&mut range, std::io::SeekFrom::Start(at)).expect("it is a file");
    std::io::Read::read_to_string(&mut std::io::Read::take(range, 10), &mut read).expect("it is read");
    assert_eq!(read.as_bytes(), &bytes[10..20]);
    let short = FileRecord { bytes: 49_999, ..record.clone() };
    let said = store.fetch(&key, &short, &scratch.0).expect_err("its record says less").to_string();
    assert!(said.contains("has 50000 bytes, its manifest says 49999"), "{said}");
    let other = FileRecord { blake3: Digest::of(b"other"), ..record.clone() };
    let said = store.fetch(&key, &other, &scratch.0).expect_err("its record says other bytes").to_string();
    assert!(said.contains("has digest") && said.contains("its manifest says"), "{said}");
    assert!(matches!(store.fetch(&format!("{folder}/b"), &record, &scratch.0), Err(Error::NotFound { .. })));
    let left: Vec<_> = std::fs::read_dir(&scratch.0).expect("a folder is listed").collect();
    assert!(left.is_empty(), "{left:?} are left in scratch");
    clear(store, &folder);
}

/// The names that `safe_name` makes, and what stages name their files.
pub fn names_of_any_kind_are_keys(store: &Store) {
    let folder = folder("names");
    let mut names: Vec<String> = ["train[seed=1,rate=3e-4]", "a b", "é", "..", "100%", "a+b", "~", "x#y?z"]
        .iter()
        .map(|name| crate::safe_name(name))
        .chain(["00000.parquet".into(), "model-00001-of-00002.safetensors".into(), "a=b,c!d".into()])
        .collect();
    for name in &names {
        assert!(store.create(&format!("{folder}/{name}/{name}"), name.as_bytes()).expect("a key is written"));
    }
    names.sort();
    for name in &names {
        assert_eq!(store.get(&format!("{folder}/{name}/{name}")).expect("it is read"), name.as_bytes());
    }
    assert_eq!(store.list_here(&folder).expect("it is listed").1, names);
    clear(store, &folder);
}

/// A recipe that nobody else has.
fn recipe() -> Digest {
    Digest::of(unique().as_bytes())
}

fn manifest(fingerprint: &Digest, attempt: &str, files: Vec<FileRecord>) -> Manifest {
    let ports = [("model".to_owned(), PortRecord::new(kind::documents(), files))];
    Manifest {
        protocol: 1,
        stage: "conformance".into(),
        version: 1,
        fingerprint: fingerprint.clone(),
        edition: 0,
        attempt: attempt.into(),
        config: serde_json::Value::Null,
        inputs: BTreeMap::new(),
        sources: Vec::new(),
        ports: ports.into_iter().collect(),
        books: Books::default(),
        metrics: BTreeMap::new(),
        provenance: Default::default(),
    }
}

pub fn one_of_many_commits_and_the_others_adopt_it(store: &Store) {
    let fingerprint = recipe();
    // An attempt that has ended is taken over by the next one that begins, so all begin first.
    let begun = std::sync::Barrier::new(RIVALS);
    let commit = |i: usize| {
        let attempt = Attempt::begin_beside(store, "conformance", &fingerprint, 0).expect("an attempt begins");
        begun.wait();
        let mut upload = attempt.upload("model", "a.bin").expect("an upload begins");
        upload.write_all(format!("attempt {i}").as_bytes()).expect("a piece is written");
        let record = upload.finish("a.bin").expect("an upload ends");
        let own = manifest(&fingerprint, attempt.id(), vec![record]);
        let commit = attempt.commit(&own).expect("a commit is answered");
        let id = attempt.id().to_owned();
        attempt.release();
        (id, commit)
    };
    let commits: Vec<(String, Commit)> = scope(|scope| {
        let commit = &commit;
        let threads: Vec<_> = (0..RIVALS).map(|i| scope.spawn(move || commit(i))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no writer panics")).collect()
    });
    let won: Vec<&String> = commits.iter().filter(|(_, c)| matches!(c, Commit::Won)).map(|(id, _)| id).collect();
    assert_eq!(won.len(), 1, "one has won: {commits:?}");
    for (_, commit) in &commits {
        if let Commit::Adopted(found) = commit {
            assert_eq!(found.attempt, *won[0]);
        }
    }
    let found = store.newest("conformance", &fingerprint).expect("it is read").expect("it is there");
    assert_eq!(found.attempt, *won[0]);
    let scratch = Scratch::new();
    assert_eq!(store.verify(&found, &scratch.0).expect("it is read"), Vec::<String>::new());
    assert_eq!(store.editions("conformance", &fingerprint).expect("they are listed"), [0]);
    clear(store, &artifact_key("conformance", &fingerprint));
}

pub fn an_attempt_goes_on_where_the_last_one_stopped(store: &Store) {
    let fingerprint = recipe();
    let begin = || match Attempt::begin(store, "conformance", &fingerprint, 0, |_| {}).expect("an attempt begins") {
        Begun::Held(attempt) => *attempt,
        Begun::Committed(manifest) => panic!("nobody has committed {manifest:?}"),
    };
    let first = begin();
    let id = first.id().to_owned();
    for cursor in 1..4 {
        first.save_progress(&Progress { cursor, ..Progress::default() }).expect("progress is saved");
    }
    first.release();
    let second = begin();
    assert_eq!((second.id(), second.resumed()), (id.as_str(), 1));
    assert_eq!(second.progress().expect("it is read").expect("it is there").cursor, 3);
    second.save_progress(&Progress { cursor: 4, ..Progress::default() }).expect("progress is saved");
    let committed = second.commit(&manifest(&fingerprint, &id, Vec::new())).expect("a commit is answered");
    assert!(matches!(committed, Commit::Won));
    second.release();
    let again = Attempt::begin(store, "conformance", &fingerprint, 0, |_| {}).expect("it is looked up");
    assert!(matches!(again, Begun::Committed(_)), "{again:?}");
    clear(store, &artifact_key("conformance", &fingerprint));
}

pub fn workers_share_units(store: &Store) {
    let fingerprint = recipe();
    const UNITS: u64 = 12;
    let counts: Vec<usize> = scope(|scope| {
        let work = || {
            let begun = Attempt::join(store, "conformance", &fingerprint, 0).expect("a worker joins");
            let Begun::Held(attempt) = begun else { panic!("nobody has committed") };
            let mine = (0..UNITS).filter(|&unit| {
                let got = attempt.claim_unit("all", unit).expect("a claim is answered").is_some();
                if got {
                    attempt.commit_unit("all", unit, Default::default()).expect("a unit is committed");
                }
                got
            });
            let mine = mine.count();
            attempt.release();
            mine
        };
        let threads: Vec<_> = (0..RIVALS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no worker panics")).collect()
    });
    assert_eq!(counts.iter().sum::<usize>() as u64, UNITS, "each unit has one worker: {counts:?}");
    clear(store, &artifact_key("conformance", &fingerprint));
}

/// A folder of this machine that vanishes at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("smelt-conformance-{}", unique()));
        std::fs::create_dir_all(&folder).expect("a folder for a test");
        Self(folder)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_conforms() {
        let folder = Scratch::new();
        all(&Store::open(folder.0.to_str().expect("a test's path is text")).expect("a directory is a store"));
        assert!(leftovers(&folder.0).is_empty(), "{:?}", leftovers(&folder.0));
    }

    #[test]
    fn memory_conforms() {
        all(&Store::open("memory:conformance").expect("memory is a store"));
    }

    /// Temporary files below a folder.
    fn leftovers(folder: &std::path::Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).expect("a folder is listed").map(|entry| entry.expect("it is read"));
        let paths = entries.map(|entry| entry.path());
        let deep = |path: PathBuf| if path.is_dir() { leftovers(&path) } else { vec![path] };
        paths.flat_map(deep).filter(|path| path.to_string_lossy().ends_with("smelt-tmp")).collect()
    }
}
