//! What a file is: by its first bytes, and by its name where those do not say.
//!
//! Names are wrong or silent too often to decide alone: `.json.gz` holds JSON lines, `.JSONL` is `.jsonl`, a download
//! unpacked on the way keeps its `.gz`, and what is called `.parquet` may be a pointer of Git LFS.

/// How the bytes of a file are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

/// What a file holds when it is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One document: plain text, Markdown, source code.
    Text,
    /// One JSON object per line.
    Lines,
    /// A JSON list of objects.
    List,
    /// A table as text, its first row the names of the columns; the character between two values.
    Csv(u8),
    /// A table with named columns.
    Parquet,
    /// Records of a crawl.
    Warc,
    /// One page.
    Html,
}

/// What is asked of a file whose name does not say what it holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// The field that a record must have; if `None`, every JSON object is a record.
    pub(crate) text_field: Option<&'a str>,
}

/// How a file is packed by its first bytes.
pub(crate) fn packing(head: &[u8]) -> Option<Packing> {
    let magic: [(&[u8], Packing); 3] =
        [(b"\x1f\x8b", Packing::Gzip), (b"\x28\xb5\x2f\xfd", Packing::Zstd), (b"\xfd7zXZ\0", Packing::Xz)];
    let skippable = |head: &[u8]| head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18];
    let found = magic.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, packing)| *packing);
    let is_bzip2 = head.starts_with(b"BZh") && matches!(head.get(4..10), Some(b"1AY&SY" | b"\x17rE8P\x90"));
    let found = found.or_else(|| skippable(head).then_some(Packing::Zstd));
    found.or_else(|| is_bzip2.then_some(Packing::Bzip2))
}

/// How a file is packed by its name, and the name without that ending, in lower case.
pub(crate) fn packed_name(name: &str) -> (Option<Packing>, String) {
    let name = name.to_lowercase();
    let endings = [
        (".gz", Packing::Gzip),
        (".gzip", Packing::Gzip),
        (".zst", Packing::Zstd),
        (".zstd", Packing::Zstd),
        (".bz2", Packing::Bzip2),
        (".xz", Packing::Xz),
    ];
    match endings.iter().find_map(|(ending, packing)| Some((*packing, name.strip_suffix(ending)?))) {
        Some((packing, inner)) => (Some(packing), inner.to_owned()),
        None => (None, name),
    }
}

/// What a name promises, without the ending of its packing, in lower case.
pub(crate) fn by_name(inner: &str) -> Option<Format> {
    match inner.rsplit_once('.')?.1 {
        "jsonl" | "ndjson" | "jsonlines" => Some(Format::Lines),
        "csv" => Some(Format::Csv(b',')),
        "tsv" => Some(Format::Csv(b'\t')),
        "parquet" | "pq" => Some(Format::Parquet),
        "warc" | "wet" => Some(Format::Warc),
        "html" | "htm" | "xhtml" | "shtml" => Some(Format::Html),
        _ => None,
    }
}

/// What unpacked text is that begins with `head`; `is_all` if that is the whole.
pub(crate) fn by_content(head: &[u8], is_all: bool, wanted: Wanted<'_>) -> Format {
    let text = head.trim_ascii_start();
    if text.starts_with(b"WARC/0.") || text.starts_with(b"WARC/1.") {
        return Format::Warc;
    }
    if let Some(rest) = text.strip_prefix(b"[") {
        let first = rest.trim_ascii_start();
        return if first.starts_with(b"{") && is_json_start(&first[1..]) { Format::List } else { Format::Text };
    }
    if !text.starts_with(b"{") {
        return Format::Text;
    }
    let is_object = |line: &[u8]| serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(line);
    let mut lines = text.split(|&b| b == b'\n').filter(|line| !line.trim_ascii().is_empty());
    let (Some(first), second) = (lines.next(), lines.next()) else { return Format::Text };
    let has_text = match (wanted.text_field, is_object(first)) {
        (None, Ok(_)) => true,
        (Some(field), Ok(object)) => {
            object.contains_key(field) || field.split_once('.').is_some_and(|(root, _)| object.contains_key(root))
        }
        // A first line that is longer than what was looked at.
        (field, Err(_)) if !is_all && second.is_none() => field.is_none_or(|field| {
            let quoted = format!("\"{field}\"");
            first.windows(quoted.len()).any(|part| part == quoted.as_bytes())
        }),
        // A record among records may be broken: that is told when it is read.
        (_, Err(_)) => second.is_some_and(|second| first.ends_with(b"}") && is_object(second).is_ok()),
    };
    let are_records = has_text || second.is_some_and(|second| is_object(first).is_ok() && second.starts_with(b"{\""));
    if are_records { Format::Lines } else { Format::Text }
}

/// Whether an object may go on so: a quoted name, or its end.
fn is_json_start(rest: &[u8]) -> bool {
    matches!(rest.trim_ascii_start().first(), Some(b'"' | b'}') | None)
}

/// What a file is that is not read here, and what to do about it.
pub(crate) fn foreign(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const UNPACK: &str = "unpack it first; gzip, Zstandard, bzip2 and xz are read as they are";
    const CONVERT: &str = "write it as Parquet, JSON lines or CSV first";
    const EXTRACT: &str = "extract its text first";
    let starts: [(&[u8], &str, &str); 17] = [
        (
            b"version https://git-lfs.github.com/spec/",
            "a pointer of Git LFS, not the file itself",
            "run `git lfs pull`",
        ),
        (b"PK\x03\x04", "a ZIP archive or an Office document", "unpack it first, or save it as text"),
        (b"\x04\"M\x18", "packed with LZ4", UNPACK),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
        (b"Rar!\x1a\x07", "a RAR archive", UNPACK),
        (b"\xff\x06\0\0sNaPpY", "packed with Snappy", UNPACK),
        (b"\x5d\0\0", "packed with LZMA", UNPACK),
        (b"LZIP\x01", "packed with lzip", UNPACK),
        (b"ARROW1\0\0", "an Arrow file", CONVERT),
        (b"Obj\x01", "an Avro file", CONVERT),
        (b"SQLite format 3\0", "an SQLite database", CONVERT),
        (b"\x89HDF\r\n", "an HDF5 file", CONVERT),
        (b"\x93NUMPY", "a NumPy array", CONVERT),
        (b"PAR1", "a Parquet file inside another packing", "unpack it first: Parquet packs its own pages"),
        (b"%PDF-", "a PDF document", EXTRACT),
        (b"\x89PNG", "an image", "leave it out of `paths`"),
        (b"\xff\xd8\xff", "an image", "leave it out of `paths`"),
    ];
    let found = starts.iter().find(|(magic, ..)| head.starts_with(magic)).map(|&(_, what, hint)| (what, hint));
    let is_tar = head.get(257..262) == Some(b"ustar");
    found.or_else(|| is_tar.then_some(("a tar archive", "unpack it first: each of its files is read by itself")))
}

/// A binary file of no known kind: neither text nor anything that is read here.
pub(crate) fn is_binary(head: &[u8]) -> bool {
    head.contains(&0) && std::str::from_utf8(head).is_err_and(|e| e.error_len().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(text: &str) -> Format {
        by_content(text.as_bytes(), true, Wanted { text_field: Some("text") })
    }

    #[test]
    fn lines_and_lists_of_objects_are_records_and_other_json_is_text() {
        assert_eq!(format("{\"text\":\"a\"}\n"), Format::Lines);
        assert_eq!(format("{\"body\":\"a\"}\n{\"body\":\"b\"}\n"), Format::Lines);
        assert_eq!(format("\n {\"text\":\"a\"}\n"), Format::Lines);
        assert_eq!(format("{\"text\":\"a\\ud83d\"}\n{\"text\":\"b\"}\n"), Format::Lines);
        assert_eq!(format("[{\"text\":\"a\"}, {\"text\":\"b\"}]"), Format::List);
        assert_eq!(format("[\n  {\n    \"text\": \"a\"\n  }\n]"), Format::List);
        for text in
            ["{\n  \"name\": \"x\"\n}\n", "{\"name\":\"x\"}", "[1, 2]", "{% raw %}\n{% end %}", "plain", "", "{", "["]
        {
            assert_eq!(format(text), Format::Text, "{text:?}");
        }
        assert_eq!(by_content(b"{\"a\":1}", true, Wanted { text_field: None }), Format::Lines);
        assert_eq!(by_content(b"{\"text\":\"and so on", false, Wanted { text_field: Some("text") }), Format::Lines);
    }

    #[test]
    fn endings_count_in_any_case() {
        assert_eq!(packed_name("A.JSONL.GZ"), (Some(Packing::Gzip), "a.jsonl".into()));
        assert_eq!(packed_name("a.json.zstd"), (Some(Packing::Zstd), "a.json".into()));
        assert_eq!(by_name("a.parquet"), Some(Format::Parquet));
        assert_eq!(by_name("a.tsv"), Some(Format::Csv(b'\t')));
        assert_eq!((by_name("jsonl"), by_name("a.md")), (None, None));
    }

    #[test]
    fn what_is_not_read_is_known_by_its_first_bytes() {
        let mut tar = vec![b'a'; 600];
        tar[257..262].copy_from_slice(b"ustar");
        assert_eq!(foreign(&tar).unwrap().0, "a tar archive");
        assert_eq!((packing(b"BZh91AY&SY rest"), packing(b"BZh is a name")), (Some(Packing::Bzip2), None));
        assert!(is_binary(b"a\0\xff\xffb") && !is_binary(b"a\0b") && !is_binary(b"caf\xe9"));
        assert!(!is_binary("a\0漢".as_bytes().split_at(4).0), "a letter that was cut at the end");
    }
}
