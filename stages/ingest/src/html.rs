//! From a page as a server sent it to its main text, without menus, advertisements and what else surrounds it.
//!
//! Which part of a page that is decides the crate `rs-trafilatura`, with the rules of trafilatura (Barbaresi, 2021,
//! "Trafilatura: A Web Scraping Library and Command-Line Tool for Text Discovery and Extraction"); `layout` makes lines
//! of it. A page that the crate cannot take apart harms nothing but itself.

use std::sync::LazyLock;

use dom_query::Document;
use encoding_rs::Encoding;
use regex::bytes::Regex;
use rs_trafilatura::Options;
use serde_json::{Map, Value};

use crate::layout;

/// Bytes of a page at most; crawlers cut at 1 or 5 MiB.
pub(crate) const MAX_PAGE: u64 = 16 << 20;
/// Elements inside each other at most, as in browsers. To parse a page takes its length times its depth.
const MAX_DEPTH: usize = 512;
/// Stack of the thread that takes a page apart. The crate calls itself for each level of elements.
const STACK: usize = 64 << 20;
/// Bytes in which a page names its character set. Browsers look at 1,024.
const HEAD: usize = 4096;

/// Why a page gives no document: rule, value, and what a person should know.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NoText {
    pub(crate) rule: &'static str,
    pub(crate) value: Option<f64>,
    pub(crate) note: String,
}

impl NoText {
    pub(crate) fn new(rule: &'static str, value: Option<f64>, note: impl Into<String>) -> Self {
        Self { rule, value, note: note.into() }
    }

    pub(crate) fn too_large(bytes: u64) -> Self {
        let note = format!("a page of {bytes} bytes, expected at most {MAX_PAGE}");
        Self::new("too_large_page", Some(bytes as f64), note)
    }
}

/// What a page says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Page {
    pub(crate) text: String,
    /// Its address, as it says itself.
    pub(crate) url: Option<String>,
    /// When it was published, as it says itself.
    pub(crate) published: Option<String>,
    /// `title`, `author`, `license`, `declared_language`, `charset`; only what it says.
    pub(crate) metadata: Map<String, Value>,
}

/// The main text of a page. `charset`: as the server said it.
pub(crate) fn main_text(bytes: &[u8], charset: Option<&str>) -> Result<Page, NoText> {
    if bytes.len() as u64 > MAX_PAGE {
        return Err(NoText::too_large(bytes.len() as u64));
    }
    let (html, encoding) = decode(bytes, charset);
    if depth(&html) > MAX_DEPTH {
        let note = format!("more than {MAX_DEPTH} elements inside each other");
        return Err(NoText::new("not_extracted", None, note));
    }
    // The crate keeps notes of a page in its thread, which the next page would see: each has a thread of its own.
    let taken_apart = std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("page".into()).stack_size(STACK);
        let thread = builder.spawn_scoped(scope, || take_apart(&html));
        thread.map(|thread| thread.join())
    });
    let mut page = match taken_apart {
        Ok(Ok(Ok(found))) => found,
        Ok(Ok(Err(what))) => return Err(NoText::new("not_extracted", None, what)),
        Ok(Err(_)) => return Err(NoText::new("not_extracted", None, "the extraction failed")),
        Err(e) => return Err(NoText::new("not_extracted", None, format!("no thread for it: {e}"))),
    };
    // Of a page that a program fills the crate may give the title, several times.
    let title = page.metadata.get("title").and_then(Value::as_str).unwrap_or_default();
    let is_title = !title.is_empty() && !page.text.replace(title, "").contains(char::is_alphanumeric);
    if page.text.is_empty() || is_title {
        return Err(NoText::new("no_main_text", None, "the page has no main text"));
    }
    if encoding != encoding_rs::UTF_8 {
        page.metadata.insert("charset".into(), encoding.name().to_lowercase().into());
    }
    Ok(page)
}

fn take_apart(html: &str) -> Result<Page, String> {
    let found = rs_trafilatura::extract_with_options(html, &Options::default()).map_err(|e| e.to_string())?;
    let text = match &found.content_html {
        Some(main) => layout::text(&Document::fragment(main.as_str())),
        None => layout::lines(&found.content_text),
    };
    let said = found.metadata;
    let named = [
        ("title", said.title),
        ("author", said.author),
        ("license", said.license),
        ("declared_language", said.language),
    ];
    let filled = |value: Option<String>| value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
    let metadata = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), filled(value)?.into())));
    let published = said.date.map(|date| date.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    Ok(Page { text, url: filled(said.url), published, metadata: metadata.collect() })
}

/// Elements inside each other, at most, without parsing the page: its tags are counted, as a browser pairs them (HTML,
/// 13.2.6.4.7). Elements that end where the next one of their kind begins are left out, for pages do not close them;
/// none of them holds another of its kind. Counting ends above `MAX_DEPTH`.
fn depth(html: &str) -> usize {
    let bytes = html.as_bytes();
    let (mut open, mut most, mut at): (Vec<Element>, _, _) = (Vec::new(), 0, 0);
    while let Some(found) = memchr::memchr(b'<', &bytes[at..]) {
        at += found + 1;
        let rest = &bytes[at..];
        if rest.starts_with(b"!--") {
            at += memchr::memmem::find(rest, b"-->").unwrap_or(rest.len());
            continue;
        }
        let (is_end, rest) = rest.strip_prefix(b"/").map_or((false, rest), |rest| (true, rest));
        let name = &rest[..rest.iter().take(12).take_while(|b| b.is_ascii_alphanumeric()).count()];
        let is = |known: &str| known.as_bytes().eq_ignore_ascii_case(name);
        if !name.first().is_some_and(u8::is_ascii_alphabetic) || UNCLOSED.into_iter().any(is) {
            continue;
        }
        // What a program or a style holds are no elements.
        if !is_end && ["script", "style", "textarea"].into_iter().any(is) {
            let mut ends = memchr::memmem::find_iter(rest, b"</");
            let end = ends.find(|end| rest[end + 2..].get(..name.len()).is_some_and(|n| n.eq_ignore_ascii_case(name)));
            at += end.map_or(rest.len(), |end| end + 2);
            continue;
        }
        let element = Element { name, is_block: BLOCKS.into_iter().any(is), is_border: BORDERS.into_iter().any(is) };
        match is_end {
            true => element.end(&mut open),
            false => open.push(element),
        }
        most = most.max(open.len());
        if most > MAX_DEPTH {
            break;
        }
    }
    most
}

const UNCLOSED: [&str; 28] = [
    "p", "li", "dd", "dt", "td", "th", "tr", "option", "tbody", "thead", "tfoot", "colgroup", "br", "hr", "img",
    "input", "meta", "link", "area", "base", "col", "embed", "source", "track", "wbr", "param", "rp", "rt",
];
/// The end of another element does not end these ("special" in HTML, 13.2.4.2), of those that are counted.
const BLOCKS: [&str; 52] = [
    "address",
    "applet",
    "article",
    "aside",
    "blockquote",
    "body",
    "button",
    "caption",
    "center",
    "details",
    "dir",
    "div",
    "dl",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "frameset",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "head",
    "header",
    "hgroup",
    "html",
    "iframe",
    "listing",
    "main",
    "marquee",
    "menu",
    "nav",
    "noembed",
    "noframes",
    "noscript",
    "object",
    "ol",
    "plaintext",
    "pre",
    "search",
    "section",
    "select",
    "summary",
    "table",
    "template",
    "title",
    "ul",
    "xmp",
    "svg",
];
/// No end tag inside these ends an element outside ("scope" in HTML, 13.2.4.2).
const BORDERS: [&str; 8] = ["applet", "caption", "html", "table", "marquee", "object", "template", "select"];

/// An element, or what its end tag names.
struct Element<'a> {
    name: &'a [u8],
    is_block: bool,
    is_border: bool,
}

impl Element<'_> {
    /// Ends the innermost open element of this name and what is open in it; nothing where none can be ended.
    fn end(&self, open: &mut Vec<Self>) {
        for i in (0..open.len()).rev() {
            if open[i].name.eq_ignore_ascii_case(self.name) {
                return open.truncate(i);
            }
            if open[i].is_border || open[i].is_block && !self.is_block {
                return;
            }
        }
    }
}

/// The text of a page in any character set: that of its byte order mark; UTF-8 where it is that and not ASCII alone;
/// what the server says; what the page says; what its bytes look like. Bad bytes become U+FFFD.
pub(crate) fn decode<'a>(bytes: &'a [u8], charset: Option<&str>) -> (std::borrow::Cow<'a, str>, &'static Encoding) {
    if let Some((encoding, mark)) = Encoding::for_bom(bytes) {
        return (encoding.decode_without_bom_handling(&bytes[mark..]).0, encoding);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.is_ascii()
    {
        return (text.into(), encoding_rs::UTF_8);
    }
    let known = |label: &[u8]| Encoding::for_label(label).map(as_browsers_do);
    let said = charset.and_then(|label| known(label.as_bytes())).or_else(|| declared(bytes).and_then(known));
    let encoding = said.unwrap_or_else(|| guess(bytes));
    (encoding.decode_without_bom_handling(bytes).0, encoding)
}

/// A page whose letters could be read to find this name is not UTF-16, whatever it says (HTML, 13.2.3.2).
fn as_browsers_do(encoding: &'static Encoding) -> &'static Encoding {
    match encoding.name() {
        "UTF-16LE" | "UTF-16BE" => encoding_rs::UTF_8,
        "x-user-defined" => encoding_rs::WINDOWS_1252,
        _ => encoding,
    }
}

/// The character set that the first bytes of a page name, in `meta` or in an XML declaration.
fn declared(bytes: &[u8]) -> Option<&[u8]> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| {
        let meta = r#"<meta\s[^>]*?charset\s*=\s*["']?\s*([\w.:+-]+)"#;
        let xml = r#"^\s*<\?xml\s[^>]*?encoding\s*=\s*["']([\w.:+-]+)"#;
        Regex::new(&format!("(?i-u:{meta}|{xml})")).expect("the expression is well formed")
    });
    let found = NAMED.captures(&bytes[..bytes.len().min(HEAD)])?;
    found.get(1).or_else(|| found.get(2)).map(|name| name.as_bytes())
}

/// The character set that bytes without any statement are most likely in.
fn guess(bytes: &[u8]) -> &'static Encoding {
    let mut detector = chardetng::EncodingDetector::new(chardetng::Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    detector.guess(None, chardetng::Utf8Detection::Allow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(body: &str) -> String {
        let menu: String = (0..8).map(|i| format!("<li><a href='/{i}'>Section {i}</a></li>")).collect();
        format!(
            "<!doctype html><html lang=en><head><title>A title</title><meta name=author content='Ada L.'>\
             <link rel=canonical href='https://a.example/x'>\
             <meta property='article:published_time' content='2024-05-18T01:58:10Z'></head>\
             <body><nav><ul>{menu}</ul></nav><article>{body}</article>\
             <footer>All rights reserved</footer></body></html>"
        )
    }

    fn paragraphs() -> String {
        let one = |i| {
            format!(
                "<p>Paragraph {i} tells, in <b>plain</b> words,\n that the tide comes in <a href=x>twice</a> a day.</p>"
            )
        };
        (0..6).map(one).collect()
    }

    #[test]
    fn the_main_text_is_taken_and_what_surrounds_it_is_not() {
        let page = main_text(page(&paragraphs()).as_bytes(), None).unwrap();
        let line = |i| format!("Paragraph {i} tells, in plain words, that the tide comes in twice a day.");
        assert_eq!(page.text, (0..6).map(line).collect::<Vec<_>>().join("\n"));
        assert_eq!(page.url.as_deref(), Some("https://a.example/x"));
        assert_eq!(page.published.as_deref(), Some("2024-05-18T01:58:10Z"));
        let said = |name: &str| page.metadata.get(name).and_then(Value::as_str);
        assert_eq!((said("title"), said("author"), said("charset")), (Some("A title"), Some("Ada L."), None));
        assert_eq!(said("declared_language"), Some("en"));
    }

    #[test]
    fn a_page_gives_the_same_text_whatever_came_before_it() {
        let forum = "<div class=comments>".to_owned() + &paragraphs().replace("<p>", "<p class=comment>") + "</div>";
        let (article, forum) = (page(&paragraphs()), page(&forum));
        let first = main_text(article.as_bytes(), None);
        for _ in 0..3 {
            drop(main_text(forum.as_bytes(), None));
            assert_eq!(main_text(article.as_bytes(), None), first);
        }
    }

    #[test]
    fn pages_without_a_main_text_say_why() {
        let rule = |bytes: &[u8]| main_text(bytes, None).map_err(|no| (no.rule, no.value));
        assert_eq!(rule(b""), Err(("no_main_text", None)));
        assert_eq!(rule(b"<html><body><script>x()</script></body></html>"), Err(("no_main_text", None)));
        let program =
            b"<html><head><title>App</title></head><body><div id=root></div><script>x()</script></body></html>";
        assert_eq!(rule(program), Err(("no_main_text", None)));
        let large = vec![b'a'; MAX_PAGE as usize + 1];
        assert_eq!(rule(&large), Err(("too_large_page", Some(large.len() as f64))));
        let deep = "<div>".repeat(1_000_000);
        let no = main_text(deep.as_bytes(), None).unwrap_err();
        assert_eq!(no, NoText::new("not_extracted", None, "more than 512 elements inside each other"));
    }

    #[test]
    fn the_depth_of_a_page_counts_elements_alone() {
        assert_eq!(depth("<html><body><p>a<p>b<ul><li>c<li>d</ul><br><img></body></html>"), 3);
        let program = format!("<div><SCRIPT>if (a<b) {{}} {}</script><i>x</i></div>", "c<d;".repeat(2000));
        assert_eq!(depth(&program), 2);
        assert_eq!(depth(&format!("<!-- {} --><b>", "<div>".repeat(2000))), 1);
        assert_eq!(depth("<script>endless"), 0);
        assert_eq!(depth("a < b <"), 0);
        // End tags that end nothing, or more than one element.
        assert_eq!(depth(&"<article></nav>".repeat(400)), 400);
        assert_eq!(depth(&"<b><div></b>".repeat(200)), 400);
        assert_eq!(depth(&"<div><table></div>".repeat(200)), 400);
        assert_eq!(depth(&"<div><b><span></div>".repeat(2000)), 3);
        assert_eq!(depth(&"<b><i></b>".repeat(2000)), 2);
        assert_eq!(depth(&"<div>".repeat(2000)), MAX_DEPTH + 1);
    }

    /// The deepest page that is read does not exhaust the stack.
    #[test]
    fn a_deep_page_is_read() {
        for tag in ["div", "span", "b", "ul><li", "table><tr><td", "blockquote", "font"] {
            let deep = format!("<{tag}>").repeat(MAX_DEPTH / tag.split('>').count() - 10);
            let html = format!("<html><body>{deep}{}", paragraphs());
            drop(main_text(html.as_bytes(), None));
        }
    }

    #[test]
    fn a_character_set_is_found_wherever_it_is_said() {
        let german = "<p>Grüße aus Köln, das Mädchen hört schöne Töne</p>";
        let latin: Vec<u8> = encoding_rs::WINDOWS_1252.encode(german).0.into_owned();
        let read = |bytes: &[u8], server| {
            let (text, encoding) = decode(bytes, server);
            (text.into_owned(), encoding.name())
        };
        assert_eq!(read(german.as_bytes(), Some("iso-8859-1")), (german.to_owned(), "UTF-8"), "its bytes are UTF-8");
        assert_eq!(read(&latin, Some("ISO-8859-1")), (german.to_owned(), "windows-1252"));
        assert_eq!(read(&latin, None), (german.to_owned(), "windows-1252"), "by its bytes");
        let russian = "<p>Привет из Москвы, как дела сегодня</p>";
        for (label, head) in [
            ("koi8-r", "<meta charset=koi8-r>"),
            ("windows-1251", "<META http-equiv='Content-Type' content='text/html; Charset = windows-1251'>"),
            ("iso-8859-5", "<?xml version=\"1.0\" encoding=\"ISO-8859-5\"?>"),
        ] {
            let encoding = Encoding::for_label(label.as_bytes()).unwrap();
            let text = format!("{head}{russian}");
            assert_eq!(read(&encoding.encode(&text).0, None), (text.clone(), encoding.name()));
        }
        let japanese = "<p>東京から こんにちは、今日はいい天気ですね</p>";
        for encoding in [encoding_rs::SHIFT_JIS, encoding_rs::EUC_JP, encoding_rs::ISO_2022_JP] {
            assert_eq!(read(&encoding.encode(japanese).0, None), (japanese.to_owned(), encoding.name()));
        }
        let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain(german.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        assert_eq!(read(&wide, Some("utf-8")), (german.to_owned(), "UTF-16LE"), "the mark decides");
        assert_eq!(read(b"<meta charset=utf-16><p>plain", None).1, "UTF-8");
    }
}
