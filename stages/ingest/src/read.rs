//! From a file to its records: plain text, HTML, JSON lines and lists, CSV, Parquet and WARC; packed with gzip,
//! Zstandard, bzip2 or xz or not; in UTF-8, or in UTF-16 or UTF-32.
//!
//! Files are read as streams, one record at a time. What is wrong with a record is handed on as [`Bad`], because the
//! config says what becomes of it; what is wrong with a file ends the job.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use crate::error::IngestError;
use crate::html;
use crate::json::{self, Elements, NoObject};
use crate::parquet::ParquetRows;
use crate::parts::Part;
pub use crate::record::{Bad, Fields, LeftOut, Place, Raw, Record, TIME_FIELDS};
pub use crate::sniff::Format;
use crate::sniff::{self, Packing, Wanted};
use crate::unpack::{self, Narrowed, Peeked};
use crate::warc::Warc;

/// Bytes of a record, or of a text that is one document, at most: what is longer is a bad record, so that no file takes
/// more memory than a few of these, whatever it says of itself.
pub const MAX_RECORD: u64 = 256 << 20;
/// How often a file may be packed.
const MAX_LAYERS: usize = 4;

/// How files are read.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// If `None`, each file says itself what it holds.
    pub format: Option<Format>,
    pub fields: Fields<'a>,
    /// Whether bad bytes become U+FFFD.
    pub replace: bool,
    /// Whether every JSON object is a record, with a text field or without.
    pub only_records: bool,
}

/// What a file gives.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// The file is one document.
    Whole(String),
    Record(Record),
    /// Something that is sound and gives no document, such as a page without a main text.
    LeftOut(LeftOut),
}

/// An item, or what is wrong with it.
pub type Outcome = Result<Item, Bad>;

type Outcomes<'a> = Box<dyn Iterator<Item = Result<Outcome, IngestError>> + 'a>;

/// A file that is read.
pub struct Opened<'a> {
    /// What it holds, in order.
    pub items: Outcomes<'a>,
    /// Columns that are not read, because JSON cannot hold them: name and type.
    pub left_out: Vec<String>,
}

impl std::fmt::Debug for Opened<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("left_out", &self.left_out).finish_non_exhaustive()
    }
}

/// Whether a file is one document of the same size, so that limits apply without reading it all.
pub fn is_plain(path: &Path, name: &str, reading: Reading<'_>) -> bool {
    let (packed, inner) = sniff::packed_name(name);
    match reading.format.or_else(|| sniff::by_name(&inner)) {
        Some(Format::Text) if packed.is_some() => false,
        Some(format) => format == Format::Text,
        None => {
            let Ok(file) = File::open(path) else { return true };
            let Ok(peeked) = unpack::peek(Box::new(file)) else { return true };
            let head = &peeked.head;
            let is_packed = packed.is_some() || sniff::packing(head).is_some() || head.starts_with(b"PAR1");
            !is_packed && sniff::by_content(head, peeked.is_all, reading.wanted()) == Format::Text
        }
    }
}

impl Reading<'_> {
    fn wanted(&self) -> Wanted<'_> {
        Wanted { text_field: (!self.only_records).then_some(self.fields.text) }
    }
}

/// Opens a part of a file.
pub fn open_part<'a>(name: &'a str, path: &Path, reading: Reading<'a>, part: &Part) -> Result<Opened<'a>, IngestError> {
    let cannot = |source| IngestError::Read { name: name.to_owned(), source };
    let mut file = File::open(path).map_err(cannot)?;
    if !part.groups.is_empty() {
        let (rows, left_out) = ParquetRows::open(name, file, reading, Some(part))?;
        // A column is left out of a file once.
        return Ok(Opened { items: Box::new(rows), left_out: if part.before == 0 { left_out } else { Vec::new() } });
    }
    file.seek(SeekFrom::Start(part.bytes.start)).map_err(cannot)?;
    let reader = BufReader::with_capacity(1 << 16, file.take(part.bytes.end - part.bytes.start));
    let lines =
        Lines { name, reader: Box::new(reader), reading, line: part.before, offset: part.bytes.start, is_over: false };
    Ok(Opened { items: Box::new(lines), left_out: Vec::new() })
}

/// Opens a file.
pub fn open<'a>(name: &'a str, path: &Path, reading: Reading<'a>) -> Result<Opened<'a>, IngestError> {
    let opened = |items| Ok(Opened { items, left_out: Vec::new() });
    let cannot = |e| IngestError::io(name, e);
    let file = File::open(path).map_err(|source| IngestError::Read { name: name.to_owned(), source })?;
    let start = unpack::first_bytes(&file).map_err(cannot)?;
    let (packed, inner) = sniff::packed_name(name);
    let promised = reading.format.or_else(|| sniff::by_name(&inner));
    let is_parquet = start.starts_with(b"PAR1") && reading.format.is_none_or(|format| format == Format::Parquet);
    if is_parquet || (promised == Some(Format::Parquet) && packed.is_none()) {
        return match sniff::foreign(&start).filter(|_| !start.starts_with(b"PAR1")) {
            Some(found) => opened(refused(name, found)),
            None => {
                let (rows, left_out) = ParquetRows::open(name, file, reading, None)?;
                Ok(Opened { items: Box::new(rows), left_out })
            }
        };
    }
    if packed.is_some() && sniff::packing(&start).is_none() {
        return opened(wrongly_named(name, packed, start.is_empty()));
    }
    let mut reader: Box<dyn BufRead> = Box::new(BufReader::with_capacity(1 << 16, file));
    let mut first = start;
    // A file may be packed twice, as when a server packs what is packed already.
    let mut layers = 0;
    while let Some(packing) = sniff::packing(&first) {
        layers += 1;
        if layers > MAX_LAYERS {
            return opened(refused(name, ("packed in itself more than 4 times", "leave it out of `paths`")));
        }
        let unpacked = unpack::unpack(reader, packing).map_err(cannot)?;
        let peeked = unpack::peek(unpacked).map_err(cannot)?;
        (first, reader) = (peeked.head, peeked.reader);
    }
    let mut peeked = unpack::peek(Box::new(reader)).map_err(cannot)?;
    if let Some(wide) = unpack::wide(&peeked.head) {
        let narrowed = Narrowed::new(peeked.reader, wide).map_err(cannot)?;
        peeked = unpack::peek(Box::new(narrowed)).map_err(cannot)?;
    }
    if let Some(found) = sniff::foreign(&peeked.head) {
        return opened(refused(name, found));
    }
    peeked = without_mark(peeked).map_err(cannot)?;
    let Peeked { head, is_all, reader } = peeked;
    let format = match promised {
        Some(Format::Lines) if sniff::by_content(&head, is_all, reading.wanted()) == Format::List => {
            match reading.format {
                None => Format::List,
                Some(_) => Format::Lines,
            }
        }
        Some(format) => format,
        None => sniff::by_content(&head, is_all, reading.wanted()),
    };
    opened(match format {
        Format::Lines => Box::new(Lines { name, reader, reading, line: 0, offset: 0, is_over: false }),
        Format::List => Box::new(List { name, elements: Elements::new(reader), reading, number: 0 }),
        Format::Csv(between) => Box::new(Table::open(name, reader, between, reading)?),
        Format::Warc => Box::new(Warc::new(name, reader, reading)),
        Format::Parquet => refused(name, ("no Parquet file", "leave `format` out, or name Parquet files alone")),
        Format::Text if sniff::is_binary(&head) => {
            refused(name, ("neither text nor anything else that is read", "leave it out of `paths`"))
        }
        Format::Text => Box::new(std::iter::once(whole(name, reader, reading.replace))),
        Format::Html => Box::new(std::iter::once(page(name, reader, reading))),
    })
}

fn without_mark(peeked: Peeked) -> std::io::Result<Peeked> {
    const MARK: &[u8] = "\u{feff}".as_bytes();
    let Peeked { mut head, is_all, mut reader } = peeked;
    if head.starts_with(MARK) {
        reader.read_exact(&mut [0; 3])?;
        head.drain(..3);
    }
    Ok(Peeked { head, is_all, reader })
}

/// A file that is not read, as its only item.
fn refused<'a>(name: &'a str, (what, hint): (&'static str, &'static str)) -> Outcomes<'a> {
    let told = format!("`{name}` is {what}: it is not read");
    let bad = Bad { id: name.into(), rule: "not_supported", value: None, at: None, told, hint: Some(hint.into()) };
    Box::new(std::iter::once(Ok(Err(bad))))
}

fn wrongly_named<'a>(name: &'a str, packed: Option<Packing>, is_empty: bool) -> Outcomes<'a> {
    let packing = match packed {
        Some(Packing::Zstd) => "Zstandard",
        Some(Packing::Bzip2) => "bzip2",
        Some(Packing::Xz) => "xz",
        _ => "gzip",
    };
    let told = match is_empty {
        true => format!("`{name}` is damaged: it is empty, and its name says {packing}"),
        false => format!("`{name}` is damaged or not packed: its name says {packing}, its bytes do not"),
    };
    let hint = "fetch the file again, or rename it if it was unpacked on the way".to_owned();
    let bad = Bad { id: name.into(), rule: "not_supported", value: None, at: None, told, hint: Some(hint) };
    Box::new(std::iter::once(Ok(Err(bad))))
}

/// What is longer than [`MAX_RECORD`].
pub(crate) fn too_large(place: &Place, what: &str) -> Bad {
    let told = format!("{what} has more than {} MiB", MAX_RECORD >> 20);
    place.bad("too_large_record", told).hint("split it, or leave it out")
}

fn whole(name: &str, mut reader: Box<dyn BufRead>, replace: bool) -> Result<Outcome, IngestError> {
    let mut bytes = Vec::new();
    reader.by_ref().take(MAX_RECORD + 1).read_to_end(&mut bytes).map_err(|e| IngestError::io(name, e))?;
    if bytes.len() as u64 > MAX_RECORD {
        let told = format!("`{name}` is one document of more than {} MiB", MAX_RECORD >> 20);
        let hint = Some("split it, or leave it out".into());
        return Ok(Err(Bad { id: name.into(), rule: "too_large_record", value: None, at: None, told, hint }));
    }
    Ok(decode(bytes, replace).map(Item::Whole).map_err(|(byte, at)| Bad {
        id: name.into(),
        rule: "invalid_utf8",
        value: Some(at as f64),
        at: None,
        told: format!("`{name}` is not UTF-8: byte 0x{byte:02x} at offset {at}"),
        hint: Some(NOT_UTF8.into()),
    }))
}

/// A file that is one page.
fn page(name: &str, mut reader: Box<dyn BufRead>, reading: Reading<'_>) -> Result<Outcome, IngestError> {
    let mut bytes = Vec::new();
    // What is longer is refused below.
    reader.by_ref().take(html::MAX_PAGE + 1).read_to_end(&mut bytes).map_err(|e| IngestError::io(name, e))?;
    let page = match html::main_text(&bytes, None) {
        Ok(page) => page,
        Err(no) => {
            let note = format!("`{name}`: {}", no.note);
            return Ok(Ok(Item::LeftOut(LeftOut { id: name.into(), rule: no.rule, value: no.value, note })));
        }
    };
    let mut fields = serde_json::Map::from_iter([(reading.fields.text.to_owned(), page.text.into())]);
    fields.extend(page.url.map(|url| ("url".to_owned(), url.into())));
    fields.extend(page.published.map(|time| ("time".to_owned(), time.into())));
    fields.extend(page.metadata);
    Ok(Ok(Item::Record(Record { place: Place::whole(name), fields })))
}

const NOT_UTF8: &str = "convert the file, `iconv -f latin1 -t utf-8`, or set `invalid_utf8` to `drop` or `replace`";

/// The bytes as text, or the first bad byte and its offset.
fn decode(bytes: Vec<u8>, replace: bool) -> Result<String, (u8, usize)> {
    let error = match String::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let at = error.utf8_error().valid_up_to();
    match replace {
        true => Ok(String::from_utf8_lossy(error.as_bytes()).into_owned()),
        false => Err((error.as_bytes()[at], at)),
    }
}

/// The text of a record that begins at byte `start` of the unpacked file.
pub(crate) fn text_of(bytes: Vec<u8>, start: u64, place: &Place, replace: bool) -> Result<String, Bad> {
    decode(bytes, replace).map_err(|(byte, at)| {
        let what = format!("not UTF-8: byte 0x{byte:02x} at offset {}", start + at as u64);
        Bad { value: Some(at as f64), ..place.bad("invalid_utf8", what).hint(NOT_UTF8) }
    })
}

fn record(text: &str, place: Place) -> Outcome {
    match json::object(text) {
        Ok(fields) => Ok(Item::Record(Record { place, fields })),
        Err(NoObject { what, hint }) => {
            let bad = place.bad("not_json", what);
            Err(match hint {
                Some(hint) => bad.hint(hint),
                None => bad,
            })
        }
    }
}

/// Iterator over the records of a JSON-lines file.
struct Lines<'a> {
    name: &'a str,
    reader: Box<dyn BufRead>,
    reading: Reading<'a>,
    /// Lines read, blank ones included.
    line: u64,
    /// Bytes read of the unpacked file.
    offset: u64,
    is_over: bool,
}

impl Lines<'_> {
    /// Reads a line and gives its length; of one that is too long only its beginning.
    fn line(&mut self, bytes: &mut Vec<u8>) -> std::io::Result<u64> {
        let read = self.reader.by_ref().take(MAX_RECORD + 1).read_until(b'\n', bytes)? as u64;
        let is_cut = read > MAX_RECORD && bytes.last() != Some(&b'\n');
        Ok(read + if is_cut { self.reader.skip_until(b'\n')? as u64 } else { 0 })
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<Outcome, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            let mut bytes = Vec::new();
            let length = match self.line(&mut bytes) {
                Ok(0) => return None,
                Ok(length) => length,
                Err(e) => {
                    self.is_over = true;
                    return Some(Err(IngestError::io(self.name, e)));
                }
            };
            let start = self.offset;
            self.offset += length;
            self.line += 1;
            let place = Place { file: self.name.into(), number: Some(self.line - 1), unit: "line", at: self.line };
            if length > MAX_RECORD {
                return Some(Ok(Err(too_large(&place, "a line"))));
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let outcome = text_of(bytes, start, &place, self.reading.replace);
            // A mark inside a file is where files with marks were joined.
            return Some(Ok(outcome.and_then(|text| record(text.trim_start_matches('\u{feff}').trim_end(), place))));
        }
        None
    }
}

/// Iterator over the records of a JSON list.
struct List<'a> {
    name: &'a str,
    elements: Elements,
    reading: Reading<'a>,
    number: u64,
}

impl Iterator for List<'_> {
    type Item = Result<Outcome, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (line, bytes) = match self.elements.next() {
            Ok(element) => element?,
            Err(e) => return Some(Err(IngestError::io(self.name, e))),
        };
        let place = Place { file: self.name.into(), number: Some(self.number), unit: "line", at: line };
        self.number += 1;
        if bytes.len() as u64 > MAX_RECORD {
            return Some(Ok(Err(too_large(&place, "an element"))));
        }
        if bytes.is_empty() {
            let bad = place.bad("not_json", "the list ends in the middle");
            return Some(Ok(Err(bad.hint("the file was cut off: fetch it again"))));
        }
        let outcome = text_of(bytes, 0, &place, self.reading.replace);
        Some(Ok(outcome.and_then(|text| record(text.trim_end(), place))))
    }
}

/// Iterator over the rows of a CSV file; every value is a string.
struct Table<'a> {
    name: &'a str,
    rows: csv::Reader<Counted>,
    names: Vec<String>,
    reading: Reading<'a>,
    number: u64,
    is_over: bool,
}

impl<'a> Table<'a> {
    fn open(name: &'a str, reader: Box<dyn BufRead>, between: u8, reading: Reading<'a>) -> Result<Self, IngestError> {
        let mut rows =
            csv::ReaderBuilder::new().delimiter(between).flexible(true).from_reader(Counted { reader, read: 0 });
        let header = rows.byte_headers().map_err(|e| of_csv(name, e))?;
        let names: Vec<String> = header.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
        Ok(Table { name, rows, names, reading, number: 0, is_over: false })
    }
}

/// Counts what a row takes: one whose quotes do not end would else become the rest of the file.
struct Counted {
    reader: Box<dyn BufRead>,
    read: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.read > MAX_RECORD {
            let what = format!("a row has more than {} MiB: do its quotes end?", MAX_RECORD >> 20);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        }
        let read = self.reader.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}

fn of_csv(name: &str, error: csv::Error) -> IngestError {
    match error.into_kind() {
        csv::ErrorKind::Io(e) => IngestError::io(name, e),
        other => IngestError::data(name, format!("`{name}` is no table: {other:?}")),
    }
}

impl Iterator for Table<'_> {
    type Item = Result<Outcome, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let mut row = csv::ByteRecord::new();
        self.rows.get_mut().read = 0;
        match self.rows.read_byte_record(&mut row) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(e) => {
                self.is_over = true;
                return Some(Err(of_csv(self.name, e)));
            }
        }
        let line = row.position().map_or(0, csv::Position::line);
        let place = Place { file: self.name.into(), number: Some(self.number), unit: "line", at: line };
        self.number += 1;
        if row.len() != self.names.len() {
            let what = format!("{} values for {} columns", row.len(), self.names.len());
            let bad = place.bad("not_csv", what).hint("a value with a comma or a line end stands in double quotes");
            return Some(Ok(Err(bad)));
        }
        let mut fields = serde_json::Map::new();
        for (name, value) in self.names.iter().zip(&row) {
            match text_of(value.to_vec(), 0, &place, self.reading.replace) {
                Ok(text) => drop(fields.insert(name.clone(), text.into())),
                Err(bad) => return Some(Ok(Err(bad))),
            }
        }
        Some(Ok(Ok(Item::Record(Record { place, fields }))))
    }
}
