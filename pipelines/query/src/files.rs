//! The files that a query reads are what their manifests say: all there, of that size, and whole where one cannot be
//! read.

use crate::failure::Failure;
use crate::ports::{File, Part, Table};
use smelt_schemas::{ExitCode, Fault, FileRecord};
use smelt_store::{Error, Store};

/// What is wrong with one file.
struct Damage<'a> {
    table: &'a Table,
    part: &'a Part,
    /// Says what is wrong with it, and begins with its key.
    what: String,
}

/// Refuses tables with a file that is missing or has another size.
pub(crate) fn check_sizes(store: &Store, tables: &[&Table]) -> Result<(), Failure> {
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
pub(crate) fn check_bytes(store: &Store, tables: &[&Table], said: &str) -> Result<(), Failure> {
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
    tables: &[&'a Table],
    wrong: impl Fn(&Part, &File) -> Result<Option<String>, Error> + Sync,
) -> Result<Vec<Damage<'a>>, Failure> {
    let all: Vec<(&Table, &Part, &File)> = tables
        .iter()
        .flat_map(|table| table.parts.iter().map(move |part| (*table, part)))
        .flat_map(|(table, part)| part.files.iter().map(move |file| (table, part, file)))
        .collect();
    let asked = crate::at_once(all, |(table, part, file)| {
        let at = (table.name.clone(), file.key.clone());
        wrong(part, file).transpose().map(|wrong| (at, wrong.map(|what| Damage { table, part, what })))
    });
    let mut found: Vec<_> = asked.into_iter().flatten().collect();
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
pub(crate) fn name(table: &Table) -> String {
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
pub(crate) fn explain(store: &Store, tables: &[Table], failure: Failure) -> Failure {
    match check_bytes(store, &tables.iter().collect::<Vec<_>>(), &failure.message) {
        Err(damage) if damage.exit_code() == ExitCode::Data => damage,
        _ => failure,
    }
}
