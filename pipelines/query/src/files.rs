//! The files that a query reads are what their manifests say: all there, of that size, and whole where one cannot be
//! read.

use crate::failure::Failure;
use smelt_schemas::{ExitCode, Fault, FileRecord, QueryFile, QueryPart, QueryTable};
use smelt_store::{Error, Store};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Questions to a store at the same time.
const PARALLEL: usize = 16;

/// What is wrong with one file.
struct Damage<'a> {
    table: &'a QueryTable,
    part: &'a QueryPart,
    /// Says what is wrong with it, and begins with its key.
    what: String,
}

/// Refuses tables with a file that is missing or has another size.
pub(crate) fn check_sizes(store: &Store, tables: &[&QueryTable]) -> Result<(), Failure> {
    let damaged = look(tables, |_, file| {
        let key = &file.key;
        Ok(match store.size(key)? {
            Some(bytes) if bytes == file.bytes => None,
            Some(bytes) => Some(format!("`{key}` has {bytes} bytes, its manifest says {}", file.bytes)),
            None => Some(format!("`{key}` is missing, its manifest says {} bytes", file.bytes)),
        })
    })?;
    tell(damaged, "")
}

/// After a failed read: finds the files whose bytes are not those that were written. `said`: the error of the reader.
pub(crate) fn check_bytes(store: &Store, tables: &[&QueryTable], said: &str) -> Result<(), Failure> {
    let scratch = std::env::temp_dir();
    let damaged = look(tables, |_, file| {
        let (path, blake3) = (file.key.clone(), file.blake3.clone());
        let record = FileRecord { path, bytes: file.bytes, blake3, rows: None, at: None };
        match store.fetch(&file.key, &record, &scratch) {
            Ok(_) => Ok(None),
            Err(Error::Corrupt { key, what, .. }) => Ok(Some(format!("`{key}` {what}"))),
            Err(Error::NotFound { key, .. }) => Ok(Some(format!("`{key}` is missing"))),
            Err(other) => Err(other),
        }
    })?;
    tell(damaged, said)
}

/// Asks about every file, and gives what is wrong in the order of the tables.
fn look<'a>(
    tables: &[&'a QueryTable],
    wrong: impl Fn(&QueryPart, &QueryFile) -> Result<Option<String>, Error> + Sync,
) -> Result<Vec<Damage<'a>>, Failure> {
    let all: Vec<(&QueryTable, &QueryPart, &QueryFile)> = tables
        .iter()
        .flat_map(|table| table.parts.iter().map(move |part| (*table, part)))
        .flat_map(|(table, part)| part.files.iter().map(move |file| (table, part, file)))
        .collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let worker = || {
        while let Some((table, part, file)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(wrong) = wrong(part, file).transpose() {
                let at = (table.name.clone(), file.key.clone());
                let damage = wrong.map(|what| Damage { table, part, what });
                found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, damage));
            }
        }
    };
    // Threads of their own: a store waits for its answers, and may not do that on the threads of a runtime.
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(all.len()) {
            scope.spawn(worker);
        }
    });
    let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found.dedup_by(|a, b| a.0.1 == b.0.1); // instances with one recipe share their files
    found.into_iter().map(|(_, damage)| damage.map_err(|e| Failure::of(&e))).collect()
}

fn tell(damaged: Vec<Damage>, said: &str) -> Result<(), Failure> {
    let Some(first) = damaged.first() else { return Ok(()) };
    let more = match damaged.len() {
        1 => String::new(),
        2 => "; so is 1 other file".into(),
        n => format!("; so are {} other files", n - 1),
    };
    let said = if said.is_empty() { String::new() } else { format!(": {said}") };
    Err(Failure::new(ExitCode::Data, format!("table `{}`: {}{more}{said}", name(first.table), first.what))
        .hint(remedy(&first.part.job)))
}

/// As a query names it.
pub(crate) fn name(table: &QueryTable) -> String {
    table.schema.as_ref().map_or_else(|| table.name.clone(), |schema| format!("{schema}.{}", table.name))
}

/// What makes the files of a job again.
pub(crate) fn remedy(job: &str) -> String {
    match job.contains('[') {
        true => format!("`smelt rerun '{job}'` makes it again"),
        false => format!("`smelt rerun {job}` makes it again"),
    }
}

/// What went wrong while rows were read: a damaged file if there is one.
pub(crate) fn explain(store: &Store, tables: &[&QueryTable], failure: Failure) -> Failure {
    match check_bytes(store, tables, &failure.message) {
        Err(damage) if damage.exit_code() == ExitCode::Data => damage,
        _ => failure,
    }
}
