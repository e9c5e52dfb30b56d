//! Files of a web server, which runs in this process.

#[path = "../../clean/tests/workshop/mod.rs"]
mod workshop;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;
use smelt_ingest::Ingest;
use smelt_stage::kinds::Documents;
use workshop::{Workshop, told};

type Files = Arc<Mutex<BTreeMap<String, Vec<u8>>>>;

/// Serves `files` on a free port of 127.0.0.1 until the process ends. The entity tag is a hash of the bytes.
fn serve(files: &Files) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let files = files.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let files = files.clone();
            // A client that hangs up is not an error of the server.
            std::thread::spawn(move || answer(stream, &files).unwrap_or_default());
        }
    });
    address
}

fn answer(mut stream: TcpStream, files: &Files) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let found = files.lock().unwrap().get(path).cloned();
    let Some(bytes) = found else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    let tag = blake3::hash(&bytes).to_hex();
    let length = bytes.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: \"{tag}\"\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    if method == "GET" { stream.write_all(&bytes) } else { Ok(()) }
}

#[test]
fn files_of_a_web_server_are_read_and_belong_to_the_fingerprint() {
    let files = Files::default();
    let lines = |from: usize| (from..from + 3).map(|i| format!("{{\"text\":\"line {i}\"}}\n")).collect::<String>();
    let put = |path: &str, bytes: &[u8]| drop(files.lock().unwrap().insert(path.into(), bytes.to_vec()));
    put("/raw/a-1.jsonl", lines(0).as_bytes());
    put("/raw/a-2.jsonl.zst", &zstd::encode_all(lines(3).as_bytes(), 3).unwrap());
    put("/raw/with%20blank.txt", b"a text");
    let address = serve(&files);
    let workshop = Workshop::new("ingest-http");
    let config = json!({ "paths": [
        format!("{address}/raw/a-{{1.jsonl,2.jsonl.zst}}"),
        format!("{address}/raw/with%20blank.txt"),
    ] });
    let (resolved, sources) = workshop.resolve_sources::<Ingest>(config.clone(), &[]).unwrap();
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    assert_eq!(names, ["a-1.jsonl", "a-2.jsonl.zst", "with%20blank.txt"]);
    assert!(sources.iter().all(|source| source.version.starts_with("etag ")), "{sources:?}");
    let manifest = workshop.run_resolved::<Ingest>(resolved, sources.clone(), &[]).unwrap();
    let rows = workshop.rows::<Documents>(&manifest, "documents");
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    assert_eq!(texts, ["line 0", "line 1", "line 2", "line 3", "line 4", "line 5", "a text"]);
    assert_eq!(rows[3].id, "a-2.jsonl.zst#0");
    let left = std::fs::read_dir(workshop.folder().join("scratch")).unwrap().count();
    assert_eq!(left, 0, "copies vanish");

    // What changed since the plan stops the job; a new plan sees another file.
    put("/raw/a-1.jsonl", lines(7).as_bytes());
    let fresh = Workshop::new("ingest-http-changed");
    let (resolved, _) = fresh.resolve_sources::<Ingest>(config.clone(), &[]).unwrap();
    let changed = told(&fresh.run_resolved::<Ingest>(resolved, sources.clone(), &[]).unwrap_err());
    assert_eq!(changed, "`a-1.jsonl` is not what it was when the job was planned\nhint: run the pipeline again");
    let (_, later) = fresh.resolve_sources::<Ingest>(config, &[]).unwrap();
    assert!(later[0] != sources[0] && later[1] == sources[1]);
}

#[test]
fn what_is_not_there_or_does_not_answer_is_said() {
    let files = Files::default();
    let address = serve(&files);
    let workshop = Workshop::new("ingest-http-missing");
    let refuse = |path: String| told(&workshop.resolve::<Ingest>(json!({ "paths": [path] }), &[]).unwrap_err());
    let missing = refuse(format!("{address}/nothing.jsonl"));
    assert!(missing.starts_with(&format!("no file matches `{address}/nothing.jsonl`")), "{missing}");
}
