//! WARC (ISO 28500): what a crawler fetched, record after record. WET files hold pages as text in this form.
//!
//! Of records of the types `response` and `resource` the main text is read if they are HTML, the text if they are plain
//! text; those of type `conversion` are texts. All other records describe the crawl and are passed over.

use std::io::{self, BufRead, Read};

use serde_json::{Map, Value};

use crate::error::IngestError;
use crate::html::{self, MAX_PAGE, NoText, Page};
use crate::http::{self, MAX_HEADERS, Response};
use crate::read::{Item, LeftOut, MAX_RECORD, Outcome, Reading, text_of, too_large};
use crate::record::{Place, Record};

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

/// What a record holds.
enum Block {
    PassedOver,
    /// The text that somebody made of a page.
    Text(Vec<u8>),
    /// What a server answered.
    Response(Vec<u8>),
    /// A page or another file.
    Resource(Vec<u8>),
    TooLargePage,
    TooLongText,
}

impl<'a> Warc<'a> {
    pub(crate) fn new(name: &'a str, reader: Box<dyn BufRead>, reading: Reading<'a>) -> Self {
        Self { name, reader, reading, number: 0, offset: 0, is_over: false }
    }

    fn place(&self) -> Place {
        Place { file: self.name.into(), number: Some(self.number), unit: "record", at: self.number + 1 }
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
        let mut block = self.reader.by_ref().take(length);
        let mut all = |make: fn(Vec<u8>) -> Block| -> io::Result<(u64, Block)> {
            let mut bytes = Vec::new();
            let read = block.read_to_end(&mut bytes)? as u64;
            Ok((read, make(bytes)))
        };
        let (read, block) = match headers.get("WARC-Type").unwrap_or_default() {
            "conversion" if length > MAX_RECORD => (io::copy(&mut block, &mut io::sink())?, Block::TooLongText),
            "conversion" => all(Block::Text)?,
            "response" | "resource" if length > MAX_PAGE + MAX_HEADERS as u64 => {
                (io::copy(&mut block, &mut io::sink())?, Block::TooLargePage)
            }
            "response" => all(Block::Response)?,
            "resource" => all(Block::Resource)?,
            _ => (io::copy(&mut block, &mut io::sink())?, Block::PassedOver),
        };
        self.offset += read;
        Ok((read == length).then_some(block))
    }

    fn record(&self, headers: &Headers, page: Page) -> Outcome {
        let mut fields = Map::from_iter([(self.reading.fields.text.to_owned(), Value::from(page.text))]);
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
        fields.extend(page.published.map(|time| ("published".to_owned(), time.into())));
        fields.extend(page.metadata);
        Ok(Item::Record(Record { place: self.place(), fields }))
    }

    /// The document of a file that a server sent, if it is text.
    fn page(&self, headers: &Headers, kind: &str, charset: Option<&str>, body: &[u8]) -> Result<Outcome, NoText> {
        // What the crawler found it to be, if it looked.
        let found = headers.get("WARC-Identified-Payload-Type").map(|value| http::content_type(value).0);
        match found.as_deref().unwrap_or(kind) {
            "text/html" | "application/xhtml+xml" => Ok(self.record(headers, html::main_text(body, charset)?)),
            "text/plain" => {
                let text = html::decode(body, charset).0.into_owned();
                Ok(self.record(headers, Page { text, ..Page::default() }))
            }
            "" => Err(NoText::new("not_html", None, "the server did not say what it is")),
            other => Err(NoText::new("not_html", None, format!("`{other}`"))),
        }
    }

    fn resource(&self, headers: &Headers, bytes: &[u8]) -> Result<Outcome, NoText> {
        let (kind, charset) = http::content_type(headers.get("Content-Type").unwrap_or_default());
        self.page(headers, &kind, charset.as_deref(), bytes)
    }

    fn response(&self, headers: &Headers, bytes: &[u8]) -> Result<Outcome, NoText> {
        // Crawlers also keep what name servers answer.
        if !headers.get("Content-Type").is_none_or(|kind| kind.starts_with("application/http")) {
            return self.resource(headers, bytes);
        }
        let found = Response::parse(bytes)?;
        if found.status != 200 {
            let what = format!("the server answered {}", found.status);
            return Err(NoText::new("http_status", Some(f64::from(found.status)), what));
        }
        self.page(headers, &found.kind, found.charset.as_deref(), &found.body)
    }

    fn left_out(&self, headers: &Headers, no: NoText) -> Outcome {
        let url = headers.get("WARC-Target-URI").unwrap_or("no address");
        let note = format!("{url}: {}", no.note);
        Ok(Item::LeftOut(LeftOut { id: self.place().id(), rule: no.rule, value: no.value, note }))
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
            let found = match block {
                Block::PassedOver => None,
                Block::Text(text) => {
                    let text = text_of(text, start, &self.place(), self.reading.replace);
                    Some(Ok(text.and_then(|text| self.record(&headers, Page { text, ..Page::default() }))))
                }
                Block::Response(bytes) => Some(self.response(&headers, &bytes)),
                Block::Resource(bytes) => Some(self.resource(&headers, &bytes)),
                Block::TooLargePage => Some(Err(NoText::too_large(length))),
                Block::TooLongText => Some(Ok(Err(too_large(&self.place(), "a text")))),
            };
            let outcome = found.map(|found| found.unwrap_or_else(|no| self.left_out(&headers, no)));
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
