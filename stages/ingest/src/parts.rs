//! Parts of a large file, so that many threads and workers read it at once: lines of JSON, and row groups of Parquet,
//! neither of them packed as a whole.
//!
//! Where parts begin is found by reading the file once, when it is also compared with what the job was planned with.
//! Each part keeps a digest of its own, which whoever reads it compares again.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use serde::{Deserialize, Serialize};

use crate::error::IngestError;
use crate::parquet::unless_it_panics;
use crate::read::{Format, Reading};
use crate::{sniff, unpack};

/// Some lines or row groups of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub(crate) bytes: Range<u64>,
    /// Lines or rows before it.
    pub(crate) before: u64,
    /// Row groups of a Parquet file.
    pub(crate) groups: Range<usize>,
    /// Blake3 of its bytes, and of the footer behind all row groups.
    digest: String,
}

/// What a file is that can be read in parts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parted {
    Lines,
    Groups,
}

/// Whether a file can be read in parts.
pub fn parted(name: &str, path: &Path, reading: Reading<'_>) -> Option<Parted> {
    // Two parts could not tell that they have the same id.
    if reading.fields.id.is_some() {
        return None;
    }
    let start = unpack::first_bytes(&File::open(path).ok()?).ok()?;
    let promised = reading.format.or_else(|| sniff::by_name(&sniff::packed_name(name).1));
    if start.starts_with(b"PAR1") && reading.format.is_none_or(|format| format == Format::Parquet) {
        return Some(Parted::Groups);
    }
    // A list begins with a bracket; what is packed, or of wide characters, begins with no brace.
    let is_object = start.trim_ascii_start().starts_with(b"{") && unpack::wide(&start).is_none();
    (promised == Some(Format::Lines) && is_object).then_some(Parted::Lines)
}

/// The parts of a file, each of about `limit` bytes, and the blake3 of the whole.
pub fn find(name: &str, path: &Path, kind: Parted, limit: u64) -> Result<(Vec<Part>, String), IngestError> {
    let cannot = |source| IngestError::Read { name: name.to_owned(), source };
    let mut file = File::open(path).map_err(cannot)?;
    match kind {
        Parted::Lines => lines(&mut file, limit).map_err(cannot),
        Parted::Groups => groups(name, &mut file, limit, cannot),
    }
}

fn lines(file: &mut File, limit: u64) -> io::Result<(Vec<Part>, String)> {
    let (mut parts, mut whole) = (Vec::new(), blake3::Hasher::new());
    let mut own = blake3::Hasher::new();
    let (mut start, mut at, mut before, mut count) = (0, 0, 0, 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        let mut rest = &buffer[..read];
        whole.update(rest);
        while !rest.is_empty() {
            // As long as a part is too small its line ends are only counted.
            let open = usize::try_from((start + limit).saturating_sub(at)).unwrap_or(usize::MAX).min(rest.len());
            let end = memchr::memchr(b'\n', &rest[open..]).map(|i| open + i + 1);
            let (now, later) = rest.split_at(end.unwrap_or(rest.len()));
            own.update(now);
            count += memchr::memchr_iter(b'\n', now).count() as u64;
            at += now.len() as u64;
            rest = later;
            if end.is_some() {
                let digest = std::mem::take(&mut own).finalize().to_hex().to_string();
                parts.push(Part { bytes: start..at, before, groups: 0..0, digest });
                (start, before) = (at, count);
            }
        }
        if read == 0 {
            break;
        }
    }
    if at > start {
        let digest = own.finalize().to_hex().to_string();
        parts.push(Part { bytes: start..at, before, groups: 0..0, digest });
    }
    Ok((parts, whole.finalize().to_hex().to_string()))
}

fn groups(
    name: &str,
    file: &mut File,
    limit: u64,
    cannot: impl Fn(io::Error) -> IngestError,
) -> Result<(Vec<Part>, String), IngestError> {
    let damaged = |e: ParquetError| {
        IngestError::data(name, format!("`{name}` is no whole Parquet file: {e}"))
            .with_hint("fetch the file again, or leave it out of `paths`")
    };
    let meta = ParquetMetaDataReader::new().parse_and_finish(&*file).map_err(damaged)?;
    let mut parts: Vec<Part> = Vec::new();
    let mut before = 0;
    for (i, group) in meta.row_groups().iter().enumerate() {
        let bytes = unless_it_panics(|| place(&meta, i)).map_err(|why| damaged(ParquetError::General(why)))?;
        match parts.last_mut().filter(|part| bytes.end.saturating_sub(part.bytes.start) <= limit) {
            Some(part) => {
                part.groups.end = i + 1;
                part.bytes = part.bytes.start.min(bytes.start)..part.bytes.end.max(bytes.end);
            }
            None => parts.push(Part { bytes, before, groups: i..i + 1, digest: String::new() }),
        }
        before += u64::try_from(group.num_rows()).unwrap_or(0);
    }
    for part in &mut parts {
        part.digest = digest(file, part).map_err(&cannot)?;
    }
    file.rewind().map_err(&cannot)?;
    let mut whole = blake3::Hasher::new();
    io::copy(file, &mut whole).map_err(&cannot)?;
    Ok((parts, whole.finalize().to_hex().to_string()))
}

/// The bytes of a row group.
fn place(meta: &ParquetMetaData, group: usize) -> Range<u64> {
    let columns = meta.row_group(group).columns().iter().map(|column| {
        let (start, length) = column.byte_range();
        start..start.saturating_add(length)
    });
    columns.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
}

fn digest(file: &mut File, part: &Part) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    file.seek(SeekFrom::Start(part.bytes.start))?;
    io::copy(&mut file.by_ref().take(part.bytes.end - part.bytes.start), &mut hasher)?;
    if !part.groups.is_empty() {
        // The length of the footer, and its mark, are the last eight bytes.
        let mut tail = [0; 8];
        file.seek(SeekFrom::End(-8))?;
        file.read_exact(&mut tail)?;
        let length = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
        file.seek(SeekFrom::End(-8 - i64::from(length)))?;
        io::copy(file, &mut hasher)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

impl Part {
    /// Whether the file still holds there what it held.
    pub(crate) fn is_unchanged(&self, path: &Path) -> io::Result<bool> {
        Ok(digest(&mut File::open(path)?, self)? == self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn parts_end_with_lines_and_join_to_the_file() {
        let folder = std::env::temp_dir().join(format!("smelt-parts-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a.jsonl");
        let lines: Vec<String> = (0..1000).map(|i| "x".repeat(i % 97)).collect();
        for text in [lines.join("\n"), lines.join("\n") + "\n", "no end".into(), "\n\n\n".into(), String::new()] {
            std::fs::write(&path, &text).unwrap();
            for limit in [1, 10, 1000, 40_000, 1 << 30] {
                let (parts, whole) = find("a.jsonl", &path, Parted::Lines, limit).unwrap();
                assert_eq!(whole, blake3::hash(text.as_bytes()).to_hex().to_string());
                let mut at = 0;
                for part in &parts {
                    assert_eq!(part.bytes.start, at);
                    at = part.bytes.end;
                    let before = text[..part.bytes.start as usize].matches('\n').count() as u64;
                    assert_eq!(part.before, before);
                    assert!(text[..at as usize].ends_with('\n') || at == text.len() as u64);
                    assert!(part.is_unchanged(&path).unwrap());
                }
                assert_eq!(at, text.len() as u64);
            }
        }
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let (parts, _) = find("a.jsonl", &path, Parted::Lines, 1).unwrap();
        File::options().write(true).open(&path).unwrap().write_all(b"One").unwrap();
        let sound: Vec<bool> = parts.iter().map(|part| part.is_unchanged(&path).unwrap()).collect();
        assert_eq!(sound, [false, true]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
