//! WARC (ISO 28500): what a crawler fetched, record after record. WET files hold pages as text in this form.
//!
//! Records of type `conversion`, and those of type `resource` that are plain text, are read. A `response` is a page as
//! the server sent it, HTML mostly, and is told as bad; the others describe the crawl and are passed over.

use std::io::{self, BufRead, Read};

use serde_json::{Map, Value};

use crate::error::IngestError;
use crate::read::{Item, Outcome, Reading, text_of};
use crate::record::{Bad, Place, Record};

/// Header lines of a record at most, in bytes: what has more is no WARC file.
const HEADERS: u64 = 1 << 20;

/// Iterator over the texts of a WARC file.
pub(crate) struct Warc<'a> {
    name: &'a str,
    reader: Box<dyn BufRead>,
    reading: Reading<'a>,
    /// Records so far, of every type.
    number: u64,
    /// Bytes read of the unpacked file.
    offset: u64,
    is_over: bool,
}

/// The lines before a record's block.
struct Headers(Vec<(String, String)>);

impl Headers {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// Of a block: nothing, its text, or why there is none.
enum Block {
    PassedOver,
    Text(Vec<u8>),
    Page,
}

impl<'a> Warc<'a> {
    pub(crate) fn new(name: &'a str, reader: Box<dyn BufRead>, reading: Reading<'a>) -> Self {
        Self { name, reader, reading, number: 0, offset: 0, is_over: false }
    }

    fn place(&self) -> Place {
        Place { file: self.name.into(), number: self.number, unit: "record", at: self.number + 1 }
    }

    /// The last item: what follows cannot be found.
    fn damaged(&mut self, what: String) -> Outcome {
        self.is_over = true;
        let hint = if self.number > 0 { "fetch the file again" } else { "fetch the file again, or set `format`" };
        Err(self.place().bad("damaged", what).hint(hint))
    }

    /// A line without its end; None at the end of the file.
    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        let read = self.reader.by_ref().take(HEADERS).read_until(b'\n', &mut line)?;
        self.offset += read as u64;
        let text = line.trim_ascii_end();
        Ok((read > 0).then(|| String::from_utf8_lossy(text).into_owned()))
    }

    /// Headers of the next record; none at the end of the file.
    fn headers(&mut self) -> io::Result<Option<Result<Headers, String>>> {
        let version = loop {
            match self.line()? {
                None => return Ok(None),
                Some(line) if line.is_empty() => {}
                Some(line) => break line,
            }
        };
        if !version.starts_with("WARC/") {
            let shown: String = version.chars().take(60).collect();
            let why = if self.number > 0 { ": the record before has another length" } else { "" };
            return Ok(Some(Err(format!("expected `WARC/1.0`, found `{shown}`{why}"))));
        }
        let (mut headers, begun) = (Vec::new(), self.offset);
        loop {
            let Some(line) = self.line()? else {
                return Ok(Some(Err("the file ends inside a record's headers".into())));
            };
            if line.is_empty() {
                return Ok(Some(Ok(Headers(headers))));
            }
            if self.offset - begun > HEADERS {
                return Ok(Some(Err(format!("the headers have more than {HEADERS} bytes"))));
            }
            if let Some((name, value)) = line.split_once(':') {
                headers.push((name.trim().to_owned(), value.trim().to_owned()));
            }
        }
    }

    /// The block, as far as it is wanted; None if the file ends before it does.
    fn block(&mut self, headers: &Headers, length: u64) -> io::Result<Option<Block>> {
        let is_plain = || headers.get("Content-Type").is_some_and(|kind| kind.starts_with("text/plain"));
        let kind = headers.get("WARC-Type").unwrap_or_default();
        let mut block = self.reader.by_ref().take(length);
        let (read, block) = if kind == "conversion" || (kind == "resource" && is_plain()) {
            let mut text = Vec::new();
            (block.read_to_end(&mut text)? as u64, Block::Text(text))
        } else {
            let read = io::copy(&mut block, &mut io::sink())?;
            (read, if matches!(kind, "response" | "resource") { Block::Page } else { Block::PassedOver })
        };
        self.offset += read;
        Ok((read == length).then_some(block))
    }

    fn record(&self, headers: &Headers, text: Vec<u8>, start: u64) -> Outcome {
        let text = text_of(text, start, &self.place(), self.reading.replace)?;
        let mut fields = Map::from_iter([(self.reading.fields.text.to_owned(), Value::from(text))]);
        let named = [
            ("url", "WARC-Target-URI"),
            ("time", "WARC-Date"),
            ("warc_record_id", "WARC-Record-ID"),
            ("warc_languages", "WARC-Identified-Content-Language"),
        ];
        for (field, header) in named {
            if let Some(value) = headers.get(header) {
                let value = value.trim_start_matches('<').trim_end_matches('>');
                fields.insert(field.into(), value.into());
            }
        }
        Ok(Item::Record(Record { place: self.place(), fields }))
    }

    fn page(&self, headers: &Headers) -> Bad {
        let kind = headers.get("Content-Type").unwrap_or("no type");
        let bad = self.place().bad("not_text", format!("a page as the server sent it (`{kind}`), not its text"));
        bad.hint("take the WET file of the same crawl, or extract the texts first, for example with trafilatura")
    }

    fn step(&mut self) -> io::Result<Option<Outcome>> {
        loop {
            let headers = match self.headers()? {
                None => return Ok(None),
                Some(Err(what)) => return Ok(Some(self.damaged(what))),
                Some(Ok(headers)) => headers,
            };
            let Some(length) = headers.get("Content-Length").and_then(|length| length.parse().ok()) else {
                let found = headers.get("Content-Length").map_or("none".into(), |length| format!("`{length}`"));
                return Ok(Some(self.damaged(format!("expected a number as `Content-Length`, found {found}"))));
            };
            let start = self.offset;
            let Some(block) = self.block(&headers, length)? else {
                let what = format!("the file ends after {} of its {length} bytes", self.offset - start);
                return Ok(Some(self.damaged(what)));
            };
            let outcome = match block {
                Block::PassedOver => None,
                Block::Text(text) => Some(self.record(&headers, text, start)),
                Block::Page => Some(Err(self.page(&headers))),
            };
            self.number += 1;
            if outcome.is_some() {
                return Ok(outcome);
            }
        }
    }
}

impl Iterator for Warc<'_> {
    type Item = Result<Outcome, IngestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let step = self.step();
        self.is_over |= !matches!(step, Ok(Some(_)));
        step.map_err(|e| IngestError::io(self.name, e)).transpose()
    }
}
