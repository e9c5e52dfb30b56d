//! Real files of every format, whole and damaged; the texts of errors are part of what is promised.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use parquet::arrow::ArrowWriter;
use smelt_ingest::read::{Fields, Item, Raw, Reading, open};
use smelt_stage::Fault;
use smelt_stage::kinds::Micros;

const FIELDS: Fields<'static> = Fields { text: "text", id: None, metadata: None };
const READING: Reading<'static> = Reading { format: None, fields: FIELDS, replace: false, only_records: false };

/// A fresh folder of this test.
fn folder(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ingest-{test}"));
    if path.exists() {
        fs::remove_dir_all(&path).unwrap();
    }
    fs::create_dir_all(&path).unwrap();
    path
}

/// The documents of a file, and what is wrong with its bad records.
fn all(path: &Path, fields: Fields<'_>, replace: bool) -> Result<Vec<Result<Raw, String>>, String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let reading = Reading { fields, replace, ..READING };
    let document = |item| match item {
        Item::Whole(text) => Ok(Raw { id: name.into(), text, ..Raw::default() }),
        Item::Record(record) => record.document(fields),
        // As a document whose text says why it is none.
        Item::LeftOut(no) => Ok(Raw { id: no.id, text: format!("{}: {}", no.rule, no.note), ..Raw::default() }),
    };
    let opened = open(name, path, reading).map_err(|e| told(&e))?;
    let items = opened.items.map(|item| item.map_err(|e| told(&e)));
    items.map(|item| Ok(item?.and_then(document).map_err(|bad| told(&bad.stop())))).collect()
}

/// The documents of a file without bad records.
fn read(path: &Path, fields: Fields<'_>) -> Result<Vec<Raw>, String> {
    all(path, fields, false)?.into_iter().collect()
}

/// As a person reads it: what is wrong, and what to do.
fn told(error: &impl Fault) -> String {
    error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}\nhint: {hint}"))
}

fn texts(found: Vec<Raw>) -> Vec<(String, String)> {
    found.into_iter().map(|raw| (raw.id, raw.text)).collect()
}

fn error(path: &Path) -> String {
    read(path, FIELDS).expect_err("the file is damaged")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet(path: &Path, rows: usize) {
    let schema = Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
        Field::new("url", DataType::Utf8, true),
    ]));
    let keys = Int64Array::from_iter_values((0..rows as i64).map(|i| i * 10));
    let texts = StringArray::from_iter_values((0..rows).map(|i| format!("row {i} {}", "words ".repeat(50))));
    let urls = StringArray::from_iter((0..rows).map(|i| (i % 2 == 0).then_some("https://example.org/")));
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(keys), Arc::new(texts), Arc::new(urls)]).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn a_text_is_the_same_packed_or_not() {
    let folder = folder("packed");
    let text = "fn main() {}\n// ünïcode\n".repeat(1000);
    fs::write(folder.join("a.rs"), &text).unwrap();
    fs::write(folder.join("b.rs.gz"), [gzip(&text.as_bytes()[..5000]), gzip(&text.as_bytes()[5000..])].concat())
        .unwrap();
    fs::write(folder.join("c.rs.zst"), zstd::encode_all(text.as_bytes(), 3).unwrap()).unwrap();
    for name in ["a.rs", "b.rs.gz", "c.rs.zst"] {
        let found = texts(read(&folder.join(name), FIELDS).unwrap());
        assert_eq!(found, [(name.to_owned(), text.clone())]);
    }
}

#[test]
fn records_keep_their_fields_and_order() {
    let folder = folder("records");
    let path = folder.join("a.jsonl.zst");
    let lines = "{\"n\":1,\"text\":\"one\",\"url\":\"u\",\"tags\":[\"x\"]}\n\n{\"text\":\"two\",\"language\":\"de\"}";
    fs::write(&path, zstd::encode_all(lines.as_bytes(), 3).unwrap()).unwrap();
    let found = read(&path, FIELDS).unwrap();
    let one = Raw {
        id: "a.jsonl.zst#0".into(),
        text: "one".into(),
        url: Some("u".into()),
        language: None,
        time: None,
        no_time: None,
        metadata: Some("{\"n\":1,\"tags\":[\"x\"]}".into()),
    };
    let two = Raw { id: "a.jsonl.zst#2".into(), text: "two".into(), language: Some("de".into()), ..Raw::default() };
    assert_eq!(found, [one, two]);
    let by_id = read(&path, Fields { id: Some("n"), ..FIELDS }).unwrap_err();
    assert_eq!(
        by_id,
        "`a.jsonl.zst` line 3: no field `n`\nhint: set `id_field`, or leave it out to number records; or set \
         `bad_records: drop` to leave such records out"
    );
}

#[test]
fn parquet_rows_are_documents() {
    let folder = folder("parquet");
    let path = folder.join("a.parquet");
    parquet(&path, 600);
    let found = read(&path, Fields { id: Some("key"), ..FIELDS }).unwrap();
    assert_eq!(found.len(), 600);
    let last = &found[599];
    assert_eq!(last.id, "a.parquet#5990");
    assert!(last.text.starts_with("row 599 words"));
    assert_eq!(last.url, None);
}

#[test]
fn the_other_columns_of_parquet_are_kept_as_the_fields_of_json_are() {
    let folder = folder("metadata");
    let path = folder.join("a.parquet");
    let dates = Date32Array::from(vec![Some(19_844), None]); // days: 2024-05-01
    let tags = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1), None]), None]);
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("text", Arc::new(StringArray::from(vec!["one", "two"]))),
        ("language", Arc::new(StringArray::from(vec!["de", "en"]))),
        ("stars", Arc::new(Int64Array::from(vec![Some(7), None]))),
        ("tags", Arc::new(tags)),
        ("date", Arc::new(dates)),
    ];
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let document = |id: &str, text: &str, language: &str| Raw {
        id: format!("a.parquet#{id}"),
        text: text.into(),
        language: Some(language.into()),
        ..Raw::default()
    };
    let one = Raw {
        time: Some(Micros(19_844 * 86_400 * 1_000_000)),
        metadata: Some(r#"{"stars":7,"tags":[1,null],"date":"2024-05-01"}"#.into()),
        ..document("0", "one", "de")
    };
    let found = read(&path, FIELDS).unwrap();
    assert_eq!(found, [one, document("1", "two", "en")]);
}

#[test]
fn the_first_field_that_is_a_time_fills_it_and_stays_as_it_was_written() {
    let folder = folder("times");
    let path = folder.join("a.jsonl");
    let noon = 1_714_564_800_000_000; // 2024-05-01 12:00 UTC, in microseconds
    for (fields, expected) in [
        (r#""time":"2024-05-01T12:00:00Z""#, Some(noon)),
        (r#""timestamp":"2024-05-01 14:00:00.000001+02:00""#, Some(noon + 1)),
        (r#""date":"2024-05-01""#, Some(noon - 43_200_000_000)),
        (r#""time":"yesterday","date":"2024-05-01T12:00:00""#, Some(noon)),
        (r#""date":"1969-12-31T23:59:59.9999999Z""#, Some(-1)),
        (r#""time":1714564800"#, None), // seconds? nobody says so
        (r#""day":"2024-05-01""#, None),
    ] {
        fs::write(&path, format!("{{\"text\":\"x\",{fields}}}\n")).unwrap();
        let found = read(&path, FIELDS).unwrap();
        let [raw] = &found[..] else { panic!("{found:?}") };
        assert_eq!(raw.time, expected.map(Micros), "{fields}");
        assert_eq!(raw.metadata.as_deref(), Some(format!("{{{fields}}}").as_str()));
    }
}

const POLICY: &str = "set `bad_records: drop` to leave such records out";

#[test]
fn bytes_that_are_no_utf8_are_found_or_replaced() {
    let folder = folder("utf8");
    let path = folder.join("a.md");
    fs::write(&path, b"good \xff bad").unwrap();
    let hint = "hint: convert the file, `iconv -f latin1 -t utf-8`, or set `invalid_utf8` to `drop` or `replace`; or";
    assert_eq!(error(&path), format!("`a.md` is not UTF-8: byte 0xff at offset 5\n{hint} {POLICY}"));
    let replaced = all(&path, FIELDS, true).unwrap().remove(0).unwrap();
    assert_eq!(replaced.text, "good \u{fffd} bad");

    let path = folder.join("b.jsonl");
    fs::write(&path, b"{\"text\":\"one\"}\n{\"text\":\"\xc3(\"}\n").unwrap();
    assert_eq!(error(&path), format!("`b.jsonl` line 2: not UTF-8: byte 0xc3 at offset 24\n{hint} {POLICY}"));
}

#[test]
fn broken_records_name_their_line_and_what_may_be_wrong() {
    let folder = folder("broken");
    let path = folder.join("a.jsonl");
    for (line, told) in [
        ("{\"text\":", "the record ends in the middle, at column 8\nhint: the file or a line of it was cut off; or"),
        ("[1]", "a list is no record, expected an object\nhint: a record is written `{\"text\": …}`; or"),
        ("{\"text\":7}", "field `text` is a number, expected a string\nhint:"),
        (
            "{'text':'a'}",
            "no JSON: key must be a string at column 2\nhint: names and strings of JSON stand in double quotes; Python \
             writes it with `json.dumps`; or",
        ),
        ("{\"body\":\"b\",\"n\":1}", "no field `text`\nhint: set `text_field`; the record has `body`, `n`; or"),
        (
            "{\"messages\":[]}",
            "no field `text`\nhint: set `text_field`, or for `messages` set `kind` to `conversations`, `prompts` or \
             `preferences`; the record has `messages`; or",
        ),
    ] {
        fs::write(&path, format!("{{\"text\":\"fine\"}}\n{line}\n")).unwrap();
        assert_eq!(error(&path), format!("`a.jsonl` line 2: {told} {POLICY}"));
    }
    // the others are read
    fs::write(&path, "{\"text\":\"one\"}\nbroken\n\u{feff}{\"text\":\"two\"}").unwrap();
    let found = all(&path, FIELDS, false).unwrap();
    assert_eq!(found.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn content_decides_where_the_name_does_not() {
    let folder = folder("content");
    let lines = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n";
    let list = "[\n {\"text\": \"one\"},\n {\"text\": \"two\"}\n]\n";
    let utf16: Vec<u8> = format!("\u{feff}{lines}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let table = folder.join("t.parquet");
    parquet(&table, 2);
    for (name, bytes) in [
        ("a.json", lines.as_bytes().to_vec()),
        ("a.JSONL", lines.as_bytes().to_vec()),
        ("a.json.gz", gzip(lines.as_bytes())),
        ("no ending", gzip(lines.as_bytes())),
        ("twice.jsonl.gz", gzip(&gzip(lines.as_bytes()))),
        ("list.json", list.as_bytes().to_vec()),
        ("list.jsonl", list.as_bytes().to_vec()),
        ("utf16.jsonl", utf16.clone()),
        ("utf16.json.gz", gzip(&utf16)),
        ("mark.jsonl", format!("\u{feff}{lines}").into_bytes()),
        ("a.csv", b"text,n\none,1\n\"two\",2\n".to_vec()),
        ("a.tsv", b"n\ttext\n1\tone\n2\ttwo\n".to_vec()),
        ("table", fs::read(&table).unwrap()),
    ] {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        let found = read(&path, FIELDS).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(found.len(), 2, "{name}");
        assert!(name == "table" || (found[0].text == "one" && found[1].text == "two"), "{name}: {found:?}");
    }
    for (name, text) in [("package.json", "{\n  \"name\": \"x\"\n}\n"), ("a.md", "{ not json }"), ("n.json", "[1, 2]")]
    {
        fs::write(folder.join(name), text).unwrap();
        assert_eq!(texts(read(&folder.join(name), FIELDS).unwrap()), [(name.to_owned(), text.to_owned())]);
    }
}

/// A record of a crawl; `length` stands in its headers.
fn crawled(kind: &str, content: &str, more: &str, block: &str, length: usize) -> String {
    format!(
        "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:1>\r\nContent-Type: {content}\r\n{more}\
         Content-Length: {length}\r\n\r\n{block}\r\n\r\n"
    )
}

fn conversion(url: &str, text: &str) -> String {
    let more = format!(
        "WARC-Target-URI: {url}\r\nWARC-Date: 2024-05-18T01:58:10Z\r\nWARC-Identified-Content-Language: deu,eng\r\n"
    );
    crawled("conversion", "text/plain", &more, text, text.len())
}

/// As Common Crawl writes WET: a gzip member for each record, the first of which describes the file.
#[test]
fn the_texts_of_a_crawl_are_documents() {
    let folder = folder("wet");
    let info = crawled("warcinfo", "application/warc-fields", "", "Software-Info: x", 16);
    let pages = [conversion("https://a.example/", "Grüße\nvon hier\n"), conversion("<http://b.example/x?y>", "")];
    let file: Vec<u8> = [info.clone()].iter().chain(&pages).flat_map(|record| gzip(record.as_bytes())).collect();
    let path = folder.join("CC-MAIN.warc.wet.gz");
    fs::write(&path, file).unwrap();
    let found = read(&path, FIELDS).unwrap();
    let ids: Vec<&str> = found.iter().map(|raw| raw.id.as_str()).collect();
    assert_eq!(ids, ["CC-MAIN.warc.wet.gz#1", "CC-MAIN.warc.wet.gz#2"], "numbers of the records");
    assert_eq!((found[0].text.as_str(), found[1].text.as_str()), ("Grüße\nvon hier\n", ""));
    assert_eq!(found[0].url.as_deref(), Some("https://a.example/"));
    assert_eq!(found[1].url.as_deref(), Some("http://b.example/x?y"), "older crawlers write <>");
    assert!(found.iter().all(|raw| raw.time.is_some() && raw.no_time.is_none()));
    let metadata = r#"{"time":"2024-05-18T01:58:10Z","warc_record_id":"urn:uuid:1","warc_languages":"deu,eng"}"#;
    assert_eq!(found[0].metadata.as_deref(), Some(metadata));

    // the same without packing and ending, told by its first bytes
    fs::write(folder.join("crawl"), format!("{info}{}{}", pages[0], pages[1])).unwrap();
    assert_eq!(read(&folder.join("crawl"), FIELDS).unwrap()[0].text, found[0].text);
}

#[test]
fn damage_in_a_crawl_is_told_with_its_place() {
    let folder = folder("warc");
    let says = |name: &str, text: String| -> Vec<String> {
        fs::write(folder.join(name), text).unwrap();
        let all = all(&folder.join(name), FIELDS, false).unwrap();
        all.into_iter().map(|outcome| outcome.map_or_else(|bad| bad, |raw| raw.text)).collect()
    };
    let good = conversion("http://a.example/", "good");
    let after = "hint: fetch the file again; or set `bad_records: drop` to leave such records out";
    let short = crawled("conversion", "text/plain", "", "text", 2);
    let found = says("b.warc", format!("{good}{short}{good}"));
    let told = "`b.warc` record 3: expected `WARC/1.0`, found `xt`: the record before has another length";
    assert_eq!(found, ["good", "te", &format!("{told}\n{after}")], "nothing behind it is guessed");
    let cut = says("c.warc", format!("{good}{}", crawled("conversion", "text/plain", "", "text", 4000)));
    assert_eq!(cut[1], format!("`c.warc` record 2: the file ends after 8 of its 4000 bytes\n{after}"));
    let none = says("d.warc", good.replace("Content-Length: 4", "Content-Length: four"));
    let told = "`d.warc` record 1: expected a number as `Content-Length`, found `four`";
    let first = after.replace("again;", "again, or set `format`;");
    assert_eq!(none, [format!("{told}\n{first}")]);
    let notes = says("notes.wet", "my notes\n".into());
    assert_eq!(notes, [format!("`notes.wet` record 1: expected `WARC/1.0`, found `my notes`\n{first}")]);
    let half = says("e.warc", "WARC/1.0\r\nWARC-Type: conversion\r\n".into());
    assert_eq!(half, [format!("`e.warc` record 1: the file ends inside a record's headers\n{first}")]);
    assert!(says("f.warc", String::new()).is_empty(), "an empty file has no records");
}

/// A page of a crawl, as a server sent it.
fn answered(status: &str, kind: &str, body: &str) -> String {
    let block = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n{body}");
    let more = "WARC-Target-URI: https://a.example/x\r\nWARC-Date: 2024-05-18T01:58:10Z\r\n";
    crawled("response", "application/http; msgtype=response", more, &block, block.len())
}

const PAGE: &str = "<html lang=de><head><title>Ebbe und Flut</title><meta name=author content='A. B.'>\
    <meta property='article:published_time' content='2023-01-02T03:04:05Z'></head>\
    <body><nav><ul><li><a href=/>Start</a></li><li><a href=/b>B</a></li></ul></nav><article>\
    <p>Zweimal am Tag kommt das Wasser, und zweimal am Tag geht es wieder fort, so sagt man hier am Meer.</p>\
    <p>Wer dort wohnt, kennt die Zeiten gut, denn die Fischer fahren mit der Ebbe hinaus und kommen mit der Flut.</p>\
    <p>Im Winter ist das anders: dann bleiben die Boote im Hafen, und die Netze werden in der Stube geflickt.</p>\
    </article><footer>Impressum</footer></body></html>";

#[test]
fn pages_of_a_crawl_give_their_main_text_or_a_reason() {
    let folder = folder("warc-pages");
    let kind = "text/html; charset=utf-8";
    let records = [
        crawled("request", "application/http; msgtype=request", "", "GET / HTTP/1.1\r\n\r\n", 18),
        answered("200 OK", kind, PAGE),
        answered("404 Not Found", kind, "<html><p>nothing here"),
        answered("200 OK", "image/png", "\u{1}PNG"),
        answered("200 OK", kind, "<html><body></body></html>"),
        answered("200 OK", "text/plain", "only text"),
        crawled("response", "text/dns", "WARC-Target-URI: dns:a.example\r\n", "a.example. 300 IN A 1.1.1.1", 27),
        crawled("resource", "text/html", "", PAGE, PAGE.len()),
    ];
    let path = folder.join("a.warc.gz");
    fs::write(&path, records.iter().flat_map(|record| gzip(record.as_bytes())).collect::<Vec<u8>>()).unwrap();
    let found = read(&path, FIELDS).unwrap();
    let shown: Vec<(&str, &str)> =
        found.iter().map(|raw| (raw.id.as_str(), raw.text.split('\n').next().unwrap())).collect();
    let first = "Zweimal am Tag kommt das Wasser, und zweimal am Tag geht es wieder fort, so sagt man hier am Meer.";
    assert_eq!(
        shown,
        [
            ("a.warc.gz#1", first),
            ("a.warc.gz#2", "http_status: https://a.example/x: the server answered 404"),
            ("a.warc.gz#3", "not_html: https://a.example/x: `image/png`"),
            ("a.warc.gz#4", "no_main_text: https://a.example/x: the page has no main text"),
            ("a.warc.gz#5", "only text"),
            ("a.warc.gz#6", "not_html: dns:a.example: `text/dns`"),
            ("a.warc.gz#7", first),
        ]
    );
    assert_eq!(found[0].text.lines().count(), 3);
    assert_eq!(found[0].url.as_deref(), Some("https://a.example/x"));
    let metadata = [
        r#"{"time":"2024-05-18T01:58:10Z","warc_record_id":"urn:uuid:1","published":"2023-01-02T03:04:05Z","#,
        r#""title":"Ebbe und Flut","author":"A. B.","declared_language":"de"}"#,
    ];
    assert_eq!(found[0].metadata, Some(metadata.concat()));
    assert_eq!(found[0].time, found[4].time, "when it was fetched");
}

#[test]
fn a_page_in_a_file_says_itself_when_it_was_written() {
    let folder = folder("html");
    fs::write(folder.join("a.html"), PAGE).unwrap();
    fs::write(folder.join("b.HTM.gz"), gzip(PAGE.as_bytes())).unwrap();
    let wide: Vec<u8> = [0xff, 0xfe].into_iter().chain(PAGE.encode_utf16().flat_map(u16::to_le_bytes)).collect();
    fs::write(folder.join("c.html"), wide).unwrap();
    fs::write(folder.join("d.html"), "").unwrap();
    let page = |name: &str| read(&folder.join(name), FIELDS).unwrap().remove(0);
    let first = page("a.html");
    assert_eq!((first.id.as_str(), first.text.lines().count()), ("a.html", 3));
    assert_eq!(first.time.unwrap().0, 1_672_628_645_000_000);
    for name in ["b.HTM.gz", "c.html"] {
        let other = page(name);
        assert_eq!((other.id.as_str(), other.text), (name, first.text.clone()));
    }
    assert_eq!(page("d.html").text, "no_main_text: `d.html`: the page has no main text");
    // Its source, where that is asked for.
    let name = "a.html";
    let reading = Reading { format: Some(smelt_ingest::read::Format::Text), ..READING };
    let items: Vec<_> = open(name, &folder.join(name), reading).unwrap().items.map(|item| item.unwrap()).collect();
    assert_eq!(items, [Ok(Item::Whole(PAGE.into()))]);
}

/// Several streams in one file, as pbzip2 and Wikipedia write them.
#[test]
fn bzip2_is_read_whole() {
    use bzip2::{Compression, write::BzEncoder};
    let folder = folder("bzip2");
    let pack = |bytes: &[u8]| {
        let mut encoder = BzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let lines: String = (0..40_000).map(|i| format!("{{\"text\":\"line {i}\"}}\n")).collect();
    let (first, second) = lines.split_at(lines.len() / 2);
    let bytes = [pack(first.as_bytes()), pack(second.as_bytes())].concat();
    for name in ["a.jsonl.bz2", "wrong.name"] {
        fs::write(folder.join(name), &bytes).unwrap();
        let found = read(&folder.join(name), FIELDS).unwrap();
        assert_eq!((found.len(), found[39_999].text.as_str()), (40_000, "line 39999"), "{name}");
    }
    fs::write(folder.join("cut.jsonl.bz2"), &bytes[..bytes.len() - 20]).unwrap();
    let said = error(&folder.join("cut.jsonl.bz2"));
    assert!(said.starts_with("`cut.jsonl.bz2` ends in the middle: it is truncated"), "{said}");
    fs::write(folder.join("plain.txt.bz2"), "text").unwrap();
    assert!(error(&folder.join("plain.txt.bz2")).contains("its name says bzip2, its bytes do not"));
}

#[test]
fn what_is_not_read_is_called_what_it_is() {
    let folder = folder("foreign");
    let mut tar = vec![0; 1024];
    tar[..5].copy_from_slice(b"a.txt");
    tar[257..262].copy_from_slice(b"ustar");
    for (name, bytes, told) in [
        ("a.zip", b"PK\x03\x04\x14\0".to_vec(), "a ZIP archive or an Office document"),
        ("a.tar.gz", gzip(&tar), "a tar archive"),
        ("a.arrow", b"ARROW1\0\0".to_vec(), "an Arrow file"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n".to_vec(), "a pointer of Git LFS"),
        ("a.pdf", b"%PDF-1.7\n".to_vec(), "a PDF document"),
        ("a.bin", b"\x7fELF\x02\x01\0\0\0\xff\xfe".to_vec(), "neither text nor anything else that is read"),
    ] {
        fs::write(folder.join(name), bytes).unwrap();
        let said = error(&folder.join(name));
        assert!(said.starts_with(&format!("`{name}` is {told}")) && said.contains("not read\nhint: "), "{said}");
        assert!(!said.contains("UTF-8"), "{said}");
    }
}

#[test]
fn rows_of_a_table_that_do_not_fit_are_bad_records() {
    let path = folder("csv").join("a.csv");
    fs::write(&path, "text,n\n\"one, with a comma\nand a line\",1\ntwo\nthree,3\n").unwrap();
    let found = all(&path, FIELDS, false).unwrap();
    assert_eq!(found[0].as_ref().unwrap().text, "one, with a comma\nand a line");
    assert!(found[1].as_ref().unwrap_err().starts_with("`a.csv` line 4: 1 values for 2 columns\n"), "{found:?}");
    assert_eq!(found[2].as_ref().unwrap().metadata.as_deref(), Some(r#"{"n":"3"}"#));
}

#[test]
fn a_text_may_stand_inside_an_object() {
    let folder = folder("nested");
    let path = folder.join("a.jsonl");
    fs::write(&path, r#"{"a":{"b":"text","c":1},"d":2}"#).unwrap();
    let raw = read(&path, Fields { text: "a.b", ..FIELDS }).unwrap().remove(0);
    assert_eq!((raw.text.as_str(), raw.metadata.as_deref()), ("text", Some(r#"{"a":{"c":1},"d":2}"#)));
    let only_d = ["d".to_owned()];
    let raw = read(&path, Fields { text: "a.b", metadata: Some(&only_d), ..FIELDS }).unwrap().remove(0);
    assert_eq!(raw.metadata.as_deref(), Some(r#"{"d":2}"#));
}

/// Columns as pandas, Polars, Spark and DuckDB write them.
#[test]
fn text_columns_of_every_type_are_read() {
    use arrow::array::*;
    use arrow::datatypes::Int32Type as Key;
    let folder = folder("types");
    let path = folder.join("a.parquet");
    let words = ["one", "zwölf"];
    let texts: Vec<(&str, ArrayRef)> = vec![
        ("utf8", Arc::new(StringArray::from_iter_values(words))),
        ("large", Arc::new(LargeStringArray::from_iter_values(words))),
        ("view", Arc::new(StringViewArray::from_iter_values(words))),
        ("dictionary", Arc::new(words.into_iter().collect::<DictionaryArray<Key>>())),
        ("binary", Arc::new(BinaryArray::from_iter_values(words))),
        ("large_binary", Arc::new(LargeBinaryArray::from_iter_values(words))),
        ("binary_view", Arc::new(BinaryViewArray::from_iter_values(words))),
    ];
    let bad: ArrayRef = Arc::new(BinaryArray::from_iter_values([&b"fine"[..], b"\xff"]));
    let inner = StructArray::from(
        vec![
            (Arc::new(Field::new("b", DataType::Utf8, true)), texts[0].1.clone()),
            (Arc::new(Field::new("c", DataType::Utf8, true)), texts[1].1.slice(0, 2)),
        ]
        .into_iter()
        .map(|(f, c)| (Arc::new(Field::new(f.name(), c.data_type().clone(), true)), c))
        .collect::<Vec<_>>(),
    );
    let gone: ArrayRef =
        Arc::new(StructArray::new(inner.fields().clone(), inner.columns().to_vec(), Some(vec![true, false].into())));
    let columns = texts.iter().cloned().chain([("bad", bad), ("a", gone)]);
    let batch = RecordBatch::try_from_iter_with_nullable(columns.map(|(n, c)| (n, c, true))).unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let none: [String; 0] = [];
    let fields = |text| Fields { text, id: None, metadata: Some(&none) };
    for (name, _) in &texts {
        let found: Vec<String> = read(&path, fields(name)).unwrap().into_iter().map(|raw| raw.text).collect();
        assert_eq!(found, words, "{name}");
    }
    let found = all(&path, fields("bad"), false).unwrap();
    assert_eq!(found[0].as_ref().unwrap().text, "fine");
    assert!(found[1].as_ref().unwrap_err().starts_with("`a.parquet` row 1: not UTF-8: byte 0xff at offset 0\n"));
    let found = all(&path, fields("a.b"), false).unwrap();
    assert_eq!(found[0].as_ref().unwrap().text, "one");
    assert!(found[1].as_ref().unwrap_err().contains("row 1: field `a.b` is null"), "{found:?}");
    let kept = read(&path, Fields { text: "a.b", id: None, metadata: Some(&["a".to_owned()]) });
    assert!(kept.is_err());
    let first =
        all(&path, Fields { text: "a.b", id: None, metadata: Some(&["a".to_owned()]) }, false).unwrap().remove(0);
    assert_eq!(first.unwrap().metadata.as_deref(), Some(r#"{"a":{"c":"one"}}"#));
}

/// Found by the example `fuzz`: a byte of the Arrow schema in the footer names a whole number of no bits; values have
/// more bits than their type; a column begins before the file does.
#[test]
fn a_parquet_file_that_contradicts_itself_is_an_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    assert_eq!(
        error(&folder.join("damaged-schema.parquet")),
        "`damaged-schema.parquet` is no whole Parquet file: Parquet error: it contradicts itself\n\
         hint: fetch the file again, or leave it out of `paths`"
    );
    for name in ["damaged-widths.parquet", "damaged-places.parquet"] {
        let told = error(&folder.join(name));
        let expected = format!("`{name}` is damaged after row 0: Parquet argument error: it contradicts itself");
        assert!(told.starts_with(&expected), "{told}");
    }
}

/// Parquet has no one way to pack its pages.
#[test]
fn parquet_is_read_in_every_packing_that_others_write() {
    use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
    use parquet::file::properties::WriterProperties;
    let path = folder("codecs").join("a.parquet");
    let batch = RecordBatch::try_from_iter([(
        "text",
        Arc::new(StringArray::from_iter_values((0..500).map(|i| format!("row {i}")))) as ArrayRef,
    )])
    .unwrap();
    for packing in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        let properties = WriterProperties::builder().set_compression(packing).build();
        let mut writer =
            ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        assert_eq!(read(&path, FIELDS).unwrap().len(), 500, "{packing:?}");
    }
}

#[test]
fn truncated_files_are_named_wherever_they_end() {
    let folder = folder("truncated");
    let text = (0..4000).map(|i| format!("{{\"text\":\"line {i} {}\"}}\n", i * i)).collect::<String>();
    let table = folder.join("whole.parquet");
    parquet(&table, 600);
    let whole = [
        ("a.jsonl.gz", gzip(text.as_bytes())),
        ("a.jsonl.zst", zstd::encode_all(text.as_bytes(), 3).unwrap()),
        ("a.parquet", fs::read(&table).unwrap()),
    ];
    for (name, bytes) in whole {
        let path = folder.join(name);
        for cut in [4, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
            fs::write(&path, &bytes[..cut]).unwrap();
            let told = error(&path);
            assert!(told.starts_with(&format!("`{name}` ")), "{name} cut at {cut}: {told}");
            assert!(
                told.contains("truncated") || told.contains("is no whole Parquet file"),
                "{name} cut at {cut}: {told}"
            );
        }
    }
}

#[test]
fn damage_inside_a_packed_file_is_told() {
    let folder = folder("damage");
    let path = folder.join("a.md.gz");
    let mut bytes = gzip(&b"some text that is long enough ".repeat(100));
    let at = bytes.len() - 6;
    bytes[at] ^= 0x55; // the checksum
    fs::write(&path, bytes).unwrap();
    assert!(error(&path).starts_with("`a.md.gz` is damaged: "), "{}", error(&path));
    fs::write(&path, b"not gzip at all").unwrap();
    let told = "`a.md.gz` is damaged or not packed: its name says gzip, its bytes do not\nhint: ";
    assert!(error(&path).starts_with(told), "{}", error(&path));
    fs::write(&path, [gzip(b"a text"), b"more".to_vec()].concat()).unwrap();
    assert!(error(&path).starts_with("`a.md.gz` is damaged: byte 0x6d behind the end"), "{}", error(&path));
}

#[test]
fn a_parquet_file_without_the_column_lists_what_it_has() {
    let folder = folder("column");
    let path = folder.join("a.parquet");
    parquet(&path, 3);
    let told = read(&path, Fields { text: "body", ..FIELDS }).unwrap_err();
    assert_eq!(
        told,
        "`a.parquet` has no column `body`\n\
         hint: set `text_field` or `id_field`; the file has `key`, `text`, `url`"
    );
}
