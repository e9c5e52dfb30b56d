//! From a file to its documents: plain text, JSON lines and Parquet, compressed with gzip or Zstandard or not.
//!
//! Files are read as streams, one document at a time. Errors name the file and the line.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::IngestError;
use crate::parquet::ParquetRows;
use crate::record::time;
pub use crate::record::{Fields, Raw, TIME_FIELDS};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One document: plain text, Markdown, source code.
    Text,
    /// One JSON object per line.
    Jsonl,
    /// A table with a text column.
    Parquet,
}

impl Format {
    /// By the ending of the name, before `.gz` and `.zst`.
    pub fn of_name(name: &str) -> Self {
        let inner = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(name);
        match inner.rsplit_once('.').map(|(_, ending)| ending) {
            Some("jsonl" | "ndjson") => Format::Jsonl,
            Some("parquet") => Format::Parquet,
            _ => Format::Text,
        }
    }
}

/// What to do with bytes that are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidUtf8 {
    Error,
    Drop,
    Replace,
}

/// A document, or why it was left out.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Document(Raw),
    /// Not UTF-8, and the config drops such documents: the offset of the first bad byte in the document.
    InvalidUtf8 {
        id: String,
        offset: u64,
    },
}

/// The documents of one file, in order.
pub fn documents<'a>(
    name: &'a str,
    path: &Path,
    format: Format,
    fields: Fields<'a>,
    invalid: InvalidUtf8,
) -> Result<Box<dyn Iterator<Item = Result<Outcome, IngestError>> + 'a>, IngestError> {
    let file = File::open(path).map_err(|source| IngestError::Read { name: name.to_owned(), source })?;
    if format == Format::Parquet {
        return Ok(Box::new(ParquetRows::open(name, file, fields)?.map(|row| row.map(Outcome::Document))));
    }
    let reader: Box<dyn BufRead> = if name.ends_with(".gz") {
        Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(BufReader::new(file))))
    } else if name.ends_with(".zst") {
        let unpack = zstd::stream::read::Decoder::new(file).map_err(|e| IngestError::io(name, e))?;
        Box::new(BufReader::new(unpack))
    } else {
        Box::new(BufReader::new(file))
    };
    match format {
        Format::Jsonl => Ok(Box::new(Lines { name, reader, fields, invalid, line: 0, offset: 0 })),
        _ => Ok(Box::new(std::iter::once(whole(name, reader, invalid)))),
    }
}

fn whole(name: &str, mut reader: Box<dyn BufRead>, invalid: InvalidUtf8) -> Result<Outcome, IngestError> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|e| IngestError::io(name, e))?;
    Ok(match decode(name, bytes, 0, invalid)? {
        Ok(text) => Outcome::Document(Raw { id: name.to_owned(), text, ..Raw::default() }),
        Err(offset) => Outcome::InvalidUtf8 { id: name.to_owned(), offset },
    })
}

/// The bytes as text, or the offset of the first bad byte if only the document is dropped. `start`: offset of `bytes`
/// in the decompressed file.
fn decode(name: &str, bytes: Vec<u8>, start: u64, invalid: InvalidUtf8) -> Result<Result<String, u64>, IngestError> {
    let error = match String::from_utf8(bytes) {
        Ok(text) => return Ok(Ok(text)),
        Err(error) => error,
    };
    let at = error.utf8_error().valid_up_to();
    match invalid {
        InvalidUtf8::Error => {
            let (byte, offset) = (error.as_bytes()[at], start + at as u64);
            let what = format!("`{name}` is not UTF-8: byte 0x{byte:02x} at offset {offset}");
            Err(IngestError::data(name, what)
                .with_hint("convert the file, or set `invalid_utf8` to `drop` or `replace`"))
        }
        InvalidUtf8::Drop => Ok(Err(at as u64)),
        InvalidUtf8::Replace => Ok(Ok(String::from_utf8_lossy(error.as_bytes()).into_owned())),
    }
}

/// Iterator over the records of a JSON-lines file.
struct Lines<'a> {
    name: &'a str,
    reader: Box<dyn BufRead>,
    fields: Fields<'a>,
    invalid: InvalidUtf8,
    /// Lines read, blank ones included.
    line: u64,
    /// Bytes read of the decompressed file.
    offset: u64,
}

impl Iterator for Lines<'_> {
    type Item = Result<Outcome, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut bytes = Vec::new();
            match self.reader.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => return Some(Err(IngestError::io(self.name, e))),
            }
            let start = self.offset;
            self.offset += bytes.len() as u64;
            self.line += 1;
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return Some(self.record(bytes, start));
        }
    }
}

impl Lines<'_> {
    fn record(&self, bytes: Vec<u8>, start: u64) -> Result<Outcome, IngestError> {
        let number = self.line - 1;
        let line = match decode(self.name, bytes, start, self.invalid)? {
            Ok(line) => line,
            Err(offset) => return Ok(Outcome::InvalidUtf8 { id: format!("{}#{number}", self.name), offset }),
        };
        let broken = |what: String| {
            let place = format!("{}:{}", self.name, self.line);
            IngestError::data(place, format!("`{}` line {}: {what}", self.name, self.line))
        };
        let record: Map<String, Value> = serde_json::from_str(line.trim_end()).map_err(|e| broken(json_error(&e)))?;
        raw(self.name, number, record, self.fields, broken)
    }
}

/// What JSON's reader says, without its line number: a record is one line.
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    format!("no JSON object: {what} at column {}", error.column())
}

/// A document from a record's fields; the error, made by `broken`, says what is missing.
fn raw(
    name: &str,
    number: u64,
    mut record: Map<String, Value>,
    fields: Fields<'_>,
    broken: impl Fn(String) -> IngestError,
) -> Result<Outcome, IngestError> {
    let text = match record.shift_remove(fields.text) {
        Some(Value::String(text)) => text,
        Some(other) => {
            return Err(broken(format!("field `{}` is {}, expected a string", fields.text, type_of(&other))));
        }
        None => {
            let known: Vec<String> = record.keys().map(|key| format!("`{key}`")).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(broken(format!("no field `{}`", fields.text))
                .with_hint(format!("set `text_field`; the record has {known}")));
        }
    };
    let id = match fields.id {
        None => number.to_string(),
        Some(field) => match record.shift_remove(field) {
            Some(Value::String(id)) => id,
            Some(Value::Number(id)) => id.to_string(),
            Some(other) => {
                let found = type_of(&other);
                return Err(broken(format!("field `{field}` is {found}, expected a string or a number")));
            }
            None => {
                return Err(broken(format!("no field `{field}`"))
                    .with_hint("set `id_field`, or leave it out to number records"));
            }
        },
    };
    let mut take = |field: &str| match record.get(field) {
        Some(Value::String(_)) => record.shift_remove(field).and_then(|v| v.as_str().map(str::to_owned)),
        _ => None,
    };
    let (url, language) = (take("url"), take("language"));
    let time = TIME_FIELDS.iter().find_map(|field| time(record.get(*field)?.as_str()?));
    let metadata = (!record.is_empty()).then(|| Value::Object(record).to_string());
    Ok(Outcome::Document(Raw { id: format!("{name}#{id}"), text, url, language, time, metadata }))
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
