//! Real files of every format, whole and damaged; the texts of errors are part of what is promised.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Int64Array, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use parquet::arrow::ArrowWriter;
use smelt_ingest::read::{Fields, Format, InvalidUtf8, Outcome, Raw, documents};
use smelt_stage::Fault;
use smelt_stage::kinds::Micros;

const FIELDS: Fields<'static> = Fields { text: "text", id: None };

/// A fresh folder of this test.
fn folder(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ingest-{test}"));
    if path.exists() {
        fs::remove_dir_all(&path).unwrap();
    }
    fs::create_dir_all(&path).unwrap();
    path
}

fn read(path: &Path, fields: Fields<'_>, invalid: InvalidUtf8) -> Result<Vec<Outcome>, String> {
    let name = path.file_name().unwrap().to_str().unwrap();
    documents(name, path, Format::of_name(name), fields, invalid)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|e| told(&e))
}

/// As a person reads it: what is wrong, and what to do.
fn told(error: &impl Fault) -> String {
    error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}\nhint: {hint}"))
}

fn texts(outcomes: Vec<Outcome>) -> Vec<(String, String)> {
    let pair = |outcome| match outcome {
        Outcome::Document(Raw { id, text, .. }) => (id, text),
        Outcome::InvalidUtf8 { id, offset } => (id, format!("invalid at {offset}")),
    };
    outcomes.into_iter().map(pair).collect()
}

fn error(path: &Path) -> String {
    read(path, FIELDS, InvalidUtf8::Error).expect_err("the file is damaged")
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
        let found = texts(read(&folder.join(name), FIELDS, InvalidUtf8::Error).unwrap());
        assert_eq!(found, [(name.to_owned(), text.clone())]);
    }
}

#[test]
fn records_keep_their_fields_and_order() {
    let folder = folder("records");
    let path = folder.join("a.jsonl.zst");
    let lines = "{\"n\":1,\"text\":\"one\",\"url\":\"u\",\"tags\":[\"x\"]}\n\n{\"text\":\"two\",\"language\":\"de\"}";
    fs::write(&path, zstd::encode_all(lines.as_bytes(), 3).unwrap()).unwrap();
    let found = read(&path, FIELDS, InvalidUtf8::Error).unwrap();
    let one = Raw {
        id: "a.jsonl.zst#0".into(),
        text: "one".into(),
        url: Some("u".into()),
        language: None,
        time: None,
        metadata: Some("{\"n\":1,\"tags\":[\"x\"]}".into()),
    };
    let two = Raw { id: "a.jsonl.zst#2".into(), text: "two".into(), language: Some("de".into()), ..Raw::default() };
    assert_eq!(found, [Outcome::Document(one), Outcome::Document(two)]);
    let by_id = read(&path, Fields { id: Some("n"), ..FIELDS }, InvalidUtf8::Error).unwrap_err();
    assert_eq!(by_id, "`a.jsonl.zst` line 3: no field `n`\nhint: set `id_field`, or leave it out to number records");
}

#[test]
fn parquet_rows_are_documents() {
    let folder = folder("parquet");
    let path = folder.join("a.parquet");
    parquet(&path, 600);
    let found = read(&path, Fields { id: Some("key"), ..FIELDS }, InvalidUtf8::Error).unwrap();
    assert_eq!(found.len(), 600);
    let Outcome::Document(last) = &found[599] else { panic!("{:?}", found[599]) };
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
    let found = read(&path, FIELDS, InvalidUtf8::Error).unwrap();
    assert_eq!(found, [one, document("1", "two", "en")].map(Outcome::Document));
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
        let found = read(&path, FIELDS, InvalidUtf8::Error).unwrap();
        let [Outcome::Document(raw)] = &found[..] else { panic!("{found:?}") };
        assert_eq!(raw.time, expected.map(Micros), "{fields}");
        assert_eq!(raw.metadata.as_deref(), Some(format!("{{{fields}}}").as_str()));
    }
}

#[test]
fn bytes_that_are_no_utf8_are_found_dropped_or_replaced() {
    let folder = folder("utf8");
    let path = folder.join("a.md");
    fs::write(&path, b"good \xff bad").unwrap();
    assert_eq!(
        error(&path),
        "`a.md` is not UTF-8: byte 0xff at offset 5\n\
         hint: convert the file, or set `invalid_utf8` to `drop` or `replace`"
    );
    let dropped = texts(read(&path, FIELDS, InvalidUtf8::Drop).unwrap());
    assert_eq!(dropped, [("a.md".to_owned(), "invalid at 5".to_owned())]);
    let replaced = texts(read(&path, FIELDS, InvalidUtf8::Replace).unwrap());
    assert_eq!(replaced, [("a.md".to_owned(), "good \u{fffd} bad".to_owned())]);

    let path = folder.join("b.jsonl");
    fs::write(&path, b"{\"text\":\"one\"}\n{\"text\":\"\xc3(\"}\n").unwrap();
    assert!(error(&path).starts_with("`b.jsonl` is not UTF-8: byte 0xc3 at offset 24\n"), "{}", error(&path));
}

#[test]
fn broken_records_name_their_line() {
    let folder = folder("broken");
    let path = folder.join("a.jsonl");
    for (line, told) in [
        ("{\"text\":", "`a.jsonl` line 2: no JSON object: EOF while parsing a value at column 8"),
        ("[1]", "`a.jsonl` line 2: no JSON object: invalid type: sequence, expected a map at column 0"),
        ("{\"text\":7}", "`a.jsonl` line 2: field `text` is a number, expected a string"),
        (
            "{\"body\":\"b\",\"n\":1}",
            "`a.jsonl` line 2: no field `text`\nhint: set `text_field`; the record has `body`, `n`",
        ),
    ] {
        fs::write(&path, format!("{{\"text\":\"fine\"}}\n{line}\n")).unwrap();
        assert_eq!(error(&path), told);
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
    assert!(error(&path).starts_with("`a.md.gz` is damaged: "), "{}", error(&path));
}

#[test]
fn a_parquet_file_without_the_column_lists_what_it_has() {
    let folder = folder("column");
    let path = folder.join("a.parquet");
    parquet(&path, 3);
    let told = read(&path, Fields { text: "body", id: None }, InvalidUtf8::Error).unwrap_err();
    assert_eq!(
        told,
        "`a.parquet` has no column `body`\n\
         hint: set `text_field` or `id_field`; the file has `key`, `text`, `url`"
    );
}
