//! Reads damaged files of every format, for as long as it is told: no reader may panic, hang or hold much memory.
//!
//! ```text
//! cargo run --release -p smelt-ingest --example fuzz -- SECONDS [SEED]
//! ```
//!
//! It begins with small whole files of each format and packing, and the pages of `tests/parity/pages`. Each round takes
//! one, changes some bytes, before or after it is packed, and reads it as a job would. Prints a line of JSON for each
//! format. A file that made a reader panic, or took it more than ten seconds, stays in the folder `fuzz-files` beside
//! the built programs.

use smelt_ingest::error::IngestError;
use smelt_ingest::parts::{find, parted};
use smelt_ingest::read::{Fields, Item, Opened, Reading, open, open_part};
use std::collections::BTreeMap;
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than this, a reading of a file of some kilobytes hangs.
const LONGEST: Duration = Duration::from_secs(10);

/// SplitMix64 (Steele et al. 2014).
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    fn range(&mut self, length: usize, most: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        start..(start + self.below(most + 1)).min(length)
    }
}

/// Changes some bytes of `bytes`; `other` lends pieces.
fn damage(bytes: &mut Vec<u8>, other: &[u8], draws: &mut Draws) {
    const TOKENS: [&[u8]; 14] = [
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\r\n\r\n",
        b"\n",
        b"{",
        b"[",
        b"\"",
        b"\\u",
        b"<p>",
        b"</",
        b"&#",
        b"PAR1",
        b"-1",
    ];
    for _ in 0..1 + draws.below(8) {
        let length = bytes.len();
        match draws.below(9) {
            0 if length > 0 => {
                let at = draws.below(length);
                bytes[at] ^= 1 << draws.below(8);
            }
            1 if length > 0 => {
                let at = draws.below(length);
                bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b' '][draws.below(8)];
            }
            2 => drop(bytes.drain(draws.range(length, 64))),
            3 => {
                let piece = bytes[draws.range(length, 256)].to_vec();
                let at = draws.below(length + 1);
                bytes.splice(at..at, piece);
            }
            4 => bytes.truncate(draws.below(length + 1)),
            5 => {
                let piece = other[draws.range(other.len(), 512)].to_vec();
                let at = draws.range(length, 512);
                bytes.splice(at, piece);
            }
            6 => {
                // a length that lies
                let digits: Vec<usize> = (0..length).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if let Some(&at) = digits.get(draws.below(digits.len())) {
                    bytes[at] = b'0' + draws.below(10) as u8;
                }
            }
            7 => {
                let piece = bytes[draws.range(length, 16)].repeat(1 + draws.below(2000));
                let at = draws.below(length + 1);
                bytes.splice(at..at, piece);
            }
            _ => {
                let at = draws.below(length + 1);
                bytes.splice(at..at, TOKENS[draws.below(TOKENS.len())].iter().copied());
            }
        }
        bytes.truncate(1 << 20);
    }
}

/// A packed file, by the ending of its name.
fn pack(ending: &str, bytes: &[u8]) -> Vec<u8> {
    match ending {
        ".gz" => {
            let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            to.write_all(bytes).and_then(|()| to.finish()).expect("memory takes all bytes")
        }
        ".zst" => zstd::encode_all(bytes, 1).expect("memory takes all bytes"),
        ".bz2" => {
            let mut to = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            to.write_all(bytes).and_then(|()| to.finish()).expect("memory takes all bytes")
        }
        _ => bytes.to_vec(),
    }
}

fn parquet() -> Vec<u8> {
    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values((0..50).map(|i| format!("row {i}"))));
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(0..50));
    let batch = RecordBatch::try_from_iter([("text", texts), ("key", keys)]).expect("both columns have 50 rows");
    let mut writer = parquet::arrow::ArrowWriter::try_new(Vec::new(), batch.schema(), None).expect("a plain schema");
    writer.write(&batch).and_then(|()| writer.into_inner()).expect("memory takes all bytes")
}

/// Names and bytes of whole files.
fn seeds() -> Vec<(String, Vec<u8>)> {
    let lines: String =
        (0..20).map(|i| format!("{{\"text\":\"line {i} é\",\"n\":{i},\"time\":\"2024-05-18\"}}\n")).collect();
    let list = format!("[{}]", lines.trim_end().replace('\n', ","));
    let csv: String = (0..20).map(|i| format!("{i},\"a \"\"quoted\"\" text,\n{i}\",x\n")).collect();
    let wide: Vec<u8> = "ein Text\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let page = "<!doctype html><html lang=de><head><meta charset=latin1><title>T</title></head><body>\
        <nav><a>x</a></nav><article><h1>T</h1><p>Some words &amp; more of them.</p><ul><li>a<li>b</ul>\
        <pre> x\n  y</pre><table><tr><td>1<td>2</table></article>";
    let response = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{page}");
    let record = |kind: &str, block: &str| {
        format!(
            "WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:1>\r\nWARC-Target-URI: https://a.example/\r\n\
             WARC-Date: 2024-05-18T01:58:10Z\r\nContent-Length: {}\r\n\r\n{block}\r\n\r\n",
            block.len()
        )
    };
    let crawl = record("warcinfo", "a: b\r\n") + &record("response", &response) + &record("conversion", "a text\n");
    let mut seeds: Vec<(String, Vec<u8>)> = [
        ("a.txt", "a text\nof two lines\n".as_bytes().to_vec()),
        ("wide.txt", [&[0xff, 0xfe][..], &wide].concat()),
        ("a.jsonl", lines.into()),
        ("a.json", list.into()),
        ("a.csv", format!("n,text,source\n{csv}").into()),
        ("a.tsv", "n\ttext\n1\ta\n2\tb\n".into()),
        ("a.parquet", parquet()),
        ("a.html", page.into()),
        ("a.warc", crawl.into()),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .into();
    for folder in ["parity/pages/site", "cases/data/jsonl-xz"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(folder);
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(bytes) = std::fs::read(entry.path()) {
                seeds.push((entry.file_name().to_string_lossy().into_owned(), bytes));
            }
        }
    }
    seeds
}

const FIELDS: Fields<'_> = Fields { text: "text", id: None, metadata: None };

/// Bytes of the parts of a file that can be read in parts.
const PART: u64 = 500;

/// What became of the files of a format.
#[derive(Default)]
struct Count {
    files: u64,
    documents: u64,
    bad_records: u64,
    errors: u64,
    panics: u64,
    slow: u64,
}

/// Reads a file to its end, as a job that drops bad records does, and once more in parts if it can be.
fn read(name: &str, path: &Path, count: &mut Count) {
    let reading = Reading { format: None, fields: FIELDS, replace: false, only_records: false };
    read_items(open(name, path, reading), count);
    if let Some(kind) = parted(name, path, reading) {
        match find(name, path, kind, PART) {
            Ok((parts, _)) => parts.iter().for_each(|part| read_items(open_part(name, path, reading, part), count)),
            Err(_) => count.errors += 1,
        }
    }
}

fn read_items(opened: Result<Opened<'_>, IngestError>, count: &mut Count) {
    let Ok(opened) = opened else { return count.errors += 1 };
    for item in opened.items {
        match item {
            Err(_) => return count.errors += 1,
            Ok(Err(_)) => count.bad_records += 1,
            Ok(Ok(Item::Record(record))) => match record.document(FIELDS) {
                Ok(_) => count.documents += 1,
                Err(_) => count.bad_records += 1,
            },
            Ok(Ok(_)) => count.documents += 1,
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| match arguments.next() {
        None => default,
        Some(text) => text.parse().unwrap_or_else(|_| panic!("`{text}` is no number; usage: fuzz SECONDS [SEED]")),
    };
    let (seconds, seed) = (number(60), number(1));
    let program = std::env::current_exe().expect("this program has a path");
    let folder: PathBuf = program.with_file_name("fuzz-files");
    std::fs::create_dir_all(&folder).expect("the folder of built programs can be written to");
    let (seeds, mut draws) = (seeds(), Draws(seed));
    let (began, mut round) = (Instant::now(), 0u64);
    let mut counts: BTreeMap<String, Count> = BTreeMap::new();
    let mut failures = 0;
    while began.elapsed().as_secs() < seconds {
        let (name, whole) = &seeds[draws.below(seeds.len())];
        let ending = ["", "", ".gz", ".zst", ".bz2"][draws.below(5)];
        let other = seeds[draws.below(seeds.len())].1.clone();
        let mut bytes = whole.clone();
        let inside = draws.below(3) > 0;
        if inside {
            damage(&mut bytes, &other, &mut draws);
        }
        bytes = pack(ending, &bytes);
        if !inside || draws.below(4) == 0 {
            damage(&mut bytes, &other, &mut draws);
        }
        let name = format!("{name}{ending}");
        let path = folder.join(&name);
        std::fs::write(&path, &bytes).expect("the folder can be written to");
        let format = name.split_once('.').map_or("", |(_, format)| format).to_owned();
        let count = counts.entry(format).or_default();
        count.files += 1;
        let started = Instant::now();
        let is_panic = std::panic::catch_unwind(AssertUnwindSafe(|| read(&name, &path, count))).is_err();
        let is_slow = started.elapsed() > LONGEST;
        count.panics += u64::from(is_panic);
        count.slow += u64::from(is_slow);
        if is_panic || is_slow {
            failures += 1;
            let kept = folder.join(format!("{seed}-{round}-{name}"));
            std::fs::rename(&path, &kept).expect("the folder can be written to");
            eprintln!("{}: {}", kept.display(), if is_panic { "panic" } else { "slow" });
        } else {
            drop(std::fs::remove_file(&path));
        }
        round += 1;
    }
    for (format, Count { files, documents, bad_records, errors, panics, slow }) in &counts {
        println!(
            "{}",
            serde_json::json!({ "format": format, "files": files, "documents": documents, "bad_records": bad_records,
                "errors": errors, "panics": panics, "slow": slow })
        );
    }
    println!(
        "{}",
        serde_json::json!({ "files": round, "seconds": began.elapsed().as_secs(), "failures": failures,
            "peak_memory_bytes": smelt_stage::peak_memory() })
    );
    std::process::exit(i32::from(failures > 0));
}
