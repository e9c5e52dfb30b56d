//! An answer of a web server as crawlers keep it (RFC 9112): status, headers, and the bytes of the page.

use std::io::{self, Read};

use crate::html::{MAX_PAGE, NoText};

/// Bytes of status and headers at most.
pub(crate) const MAX_HEADERS: usize = 256 << 10;

/// An answer, its body unpacked.
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Without parameters, in lower case; empty if the server did not say it.
    pub(crate) kind: String,
    pub(crate) charset: Option<String>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, NoText> {
        let wrong = |what: String| NoText::new("not_http", None, what);
        let mut lines = Vec::new();
        let mut rest = bytes;
        let headers_end = loop {
            let Some(end) = memchr::memchr(b'\n', rest) else {
                return Err(wrong("the headers of the answer have no end".into()));
            };
            let line = rest[..end].trim_ascii();
            rest = &rest[end + 1..];
            if line.is_empty() {
                break bytes.len() - rest.len();
            }
            lines.push(String::from_utf8_lossy(line).into_owned());
        };
        let Some(status) = lines.first().and_then(|line| status(line)) else {
            let shown: String = lines.first().map(|line| line.chars().take(60).collect()).unwrap_or_default();
            return Err(wrong(format!("expected `HTTP/1.1 200`, found `{shown}`")));
        };
        let header = |name: &str| {
            let mut headers = lines[1..].iter().filter_map(|line| line.split_once(':'));
            headers.find(|(known, _)| known.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
        };
        let (kind, charset) = content_type(header("Content-Type").unwrap_or_default());
        let mut body = bytes[headers_end..].to_vec();
        let has = |name: &str, token: &str| header(name).is_some_and(|value| value.to_lowercase().contains(token));
        // Many crawlers unpack what they keep and leave the headers as they were.
        if has("Transfer-Encoding", "chunked")
            && let Some(whole) = unchunked(&body)
        {
            body = whole;
        }
        if let Some(packing) = header("Content-Encoding") {
            body = unpacked(body, packing)?;
        }
        Ok(Self { status, kind, charset, body })
    }
}

fn status(line: &str) -> Option<u16> {
    let mut parts = line.split_ascii_whitespace();
    parts.next().filter(|version| version.starts_with("HTTP/"))?;
    parts.next()?.parse().ok()
}

/// The type without its parameters in lower case, and the character set.
pub(crate) fn content_type(value: &str) -> (String, Option<String>) {
    let mut parts = value.split(';');
    let kind = parts.next().unwrap_or_default().trim().to_lowercase();
    let named = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        (name.trim().eq_ignore_ascii_case("charset") && !value.is_empty()).then(|| value.to_owned())
    };
    (kind, parts.find_map(named))
}

/// A body sent in chunks; `None` if these are none. One that was cut gives what there is.
fn unchunked(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::with_capacity(rest.len());
    loop {
        let end = memchr::memchr(b'\n', rest)?;
        let size = std::str::from_utf8(&rest[..end]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[end + 1..];
        if size == 0 {
            return Some(whole);
        }
        if size >= rest.len() {
            whole.extend_from_slice(rest);
            return Some(whole);
        }
        whole.extend_from_slice(&rest[..size]);
        rest = rest[size..].strip_prefix(b"\r\n").or_else(|| rest[size..].strip_prefix(b"\n"))?;
        if rest.is_empty() {
            return Some(whole);
        }
    }
}

fn unpacked(body: Vec<u8>, packing: &str) -> Result<Vec<u8>, NoText> {
    let is_gzip = body.starts_with(b"\x1f\x8b");
    let mut out = Vec::new();
    let mut read = |reader: &mut dyn Read| -> io::Result<usize> { reader.take(MAX_PAGE + 1).read_to_end(&mut out) };
    let result = match packing.to_lowercase().as_str() {
        "gzip" | "x-gzip" if is_gzip => read(&mut flate2::read::MultiGzDecoder::new(body.as_slice())),
        // With a zlib header, as the standard says, or without, as some servers send it.
        "deflate" if body.first().is_some_and(|b| b & 0x0f == 8) => {
            read(&mut flate2::read::ZlibDecoder::new(body.as_slice()))
        }
        "deflate" => read(&mut flate2::read::DeflateDecoder::new(body.as_slice())),
        _ if looks_like_text(&body) => return Ok(body), // unpacked already, whatever the header says
        other => return Err(NoText::new("not_extracted", None, format!("a page packed as `{other}`"))),
    };
    match result {
        // Of a page that was cut, or damaged behind its text, what there is.
        Err(_) if out.is_empty() => match looks_like_text(&body) {
            true => Ok(body),
            false => Err(NoText::new("not_extracted", None, format!("a page packed as `{packing}`, and damaged"))),
        },
        _ if out.len() as u64 > MAX_PAGE => Err(NoText::too_large(out.len() as u64)),
        _ => Ok(out),
    }
}

fn looks_like_text(body: &[u8]) -> bool {
    !body[..body.len().min(512)].iter().any(|b| matches!(b, 0..=8 | 14..=26))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn body(headers: &str, body: &[u8]) -> Result<String, String> {
        let bytes = [format!("HTTP/1.1 200 OK\r\n{headers}\r\n").as_bytes(), body].concat();
        let told = Response::parse(&bytes).map_err(|no| no.note)?;
        Ok(String::from_utf8(told.body).unwrap())
    }

    #[test]
    fn status_kind_and_character_set_are_read() {
        let bytes = b"HTTP/1.0 404 Not Found\ncontent-type: Text/HTML; Charset=\"koi8-r\"\n\n<p>";
        let found = Response::parse(bytes).unwrap();
        assert_eq!((found.status, found.kind.as_str(), found.charset.as_deref()), (404, "text/html", Some("koi8-r")));
        assert_eq!(found.body, b"<p>");
        assert_eq!(Response::parse(b"HTTP/2 200\r\n\r\n").unwrap().status, 200);
        let wrong = |bytes| Response::parse(bytes).map(|_| ()).unwrap_err().note;
        assert_eq!(wrong(b"<html>\n\n"), "expected `HTTP/1.1 200`, found `<html>`");
        assert_eq!(wrong(b"HTTP/1.1 200 OK\r\nA: b\r\n"), "the headers of the answer have no end");
    }

    #[test]
    fn chunks_are_joined_and_packed_bodies_unpacked() {
        let chunked = "Transfer-Encoding: chunked\r\n";
        assert_eq!(body(chunked, b"4\r\n<p>a\r\n3;x=y\r\nb c\r\n0\r\n\r\n").unwrap(), "<p>ab c");
        assert_eq!(body(chunked, b"8\r\n<p>a").unwrap(), "<p>a", "cut");
        assert_eq!(body(chunked, b"<p>whole\n").unwrap(), "<p>whole\n", "joined by the crawler");
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(b"<p>page").unwrap();
        let packed = packed.finish().unwrap();
        assert_eq!(body("Content-Encoding: gzip\r\n", &packed).unwrap(), "<p>page");
        assert_eq!(body("Content-Encoding: gzip\r\n", b"<p>page").unwrap(), "<p>page", "unpacked by the crawler");
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(b"<p>z").unwrap();
        assert_eq!(body("Content-Encoding: deflate\r\n", &zlib.finish().unwrap()).unwrap(), "<p>z");
        assert_eq!(body("Content-Encoding: br\r\n", b"\x0b\x02\x80").unwrap_err(), "a page packed as `br`");
    }

    #[test]
    fn a_bomb_is_refused_at_the_largest_page() {
        let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        let zeros = vec![b' '; 1 << 20];
        (0..64).for_each(|_| bomb.write_all(&zeros).unwrap());
        let told = body("Content-Encoding: gzip\r\n", &bomb.finish().unwrap()).unwrap_err();
        assert_eq!(told, "a page of 16777217 bytes, expected at most 16777216");
    }
}
