//! What people look at: runs, their differences, logs; and the pipeline that `init` writes.

use crate::support::{Bench, Said, wait_until};

#[test]
fn a_pipeline_for_ones_own_text_is_written_and_can_be_run() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("notes")).unwrap();
    // Sentences that differ: repeated ones are what `clean` drops.
    let who = ["My sister", "The baker", "An old friend", "Nobody", "Our teacher", "The neighbour", "A stranger"];
    let did = ["planted", "repaired", "painted", "carried", "forgot", "described", "measured", "sold"];
    let what = ["a wooden boat", "the garden wall", "two letters", "an engine", "the blue door", "some apples"];
    for i in 0..40 {
        let sentence = |k: usize| {
            let n = i * 31 + k * k * 7 + k;
            format!("{} {} {} on day {n}.", who[n % 7], did[(n / 7) % 8], what[(n / 3) % 6])
        };
        let text = (0..12).map(sentence).collect::<Vec<_>>().join(" ");
        std::fs::write(bench.path(&format!("notes/{i}.md")), text).unwrap();
    }
    let said = bench.smelt(&["init", "notes/**/*.md", "--output", "my notes.yaml"]).ok().out;
    assert!(said.starts_with("my notes.yaml is written. Next:\n"), "{said}");
    assert!(said.contains("\n  smelt check 'my notes.yaml'      finds the files"), "{said}");
    bench.smelt(&["check", "my notes.yaml"]).ok();
    let small = ["--set", "tokens.config.vocabulary=300", "--only", "tokens"];
    let said = bench.smelt(&[&["run", "my notes.yaml"][..], &small].concat()).ok().out;
    assert!(said.contains("raw    ingest    40 rows, "), "{said}");
    let said = bench.smelt(&["init", "x", "--output", "my notes.yaml"]).fails(2).err;
    assert!(said.contains("`my notes.yaml` is there already") && said.contains("`--output`"), "{said}");
    let said = bench.smelt(&["completions", "bash"]).ok().out;
    assert!(said.contains("complete -F _smelt") && said.contains("rerun"), "{said}");
}

#[test]
fn runs_are_listed_and_compared() {
    let bench = Bench::new();
    let text = "name: p\njobs:\n  a: { stage: STAGE(count), config: { rows: 12 } }\n  b: { stage: STAGE(merge), input: \
        a }\n  c: { stage: STAGE(count), config: { rows: 3 } }\n";
    bench.pipeline("p.yaml", text).smelt(&["run", "p.yaml"]).ok();
    bench.smelt(&["run", "p.yaml", "--set", "a.config.rows=20"]).ok();
    let listed = bench.smelt(&["runs", "--format", "json"]).ok().out;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let facts = |i: usize| (listed[i]["ran"].clone(), listed[i]["cached"].clone(), listed[i]["set"].clone());
    assert_eq!(facts(0), (3.into(), 0.into(), "".into()));
    assert_eq!(facts(1), (2.into(), 1.into(), "a.config.rows=20".into()));
    let run = |i: usize| listed[i]["run"].as_str().unwrap().to_owned();
    let said = bench.smelt(&["compare", &run(0), &run(1)]).ok().out;
    assert!(said.starts_with("the same artifact in both: c\n"), "{said}");
    let row = said.lines().find(|line| line.contains("config.rows")).unwrap_or_default();
    assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["a", "config.rows", "12", "20"], "{said}");
    assert!(said.lines().any(|line| line.contains("port documents")), "{said}");
    assert_eq!(
        bench.smelt(&["compare", &run(1), &run(1)]).ok().out,
        "the same artifact in both: a, b, c\nnothing differs\n"
    );
    let said = bench.smelt(&["compare", &run(0), "nowhere"]).fails(2).err;
    assert!(said.contains("there is no run `nowhere`"), "{said}");
    let said = bench.smelt(&["compare", &run(0), "20"]).fails(2).err;
    assert!(said.contains("`20` begins 2 runs") && said.contains("write more of the name"), "{said}");
}

#[test]
fn a_log_is_followed_until_its_run_ends() {
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(train), config: { seed: 3, steps: 40, delay_ms: 50 } } }\n";
    bench.pipeline("p.yaml", text);
    let mut run = bench.command(&["run", "p.yaml"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_until("the run is recorded", || bench.smelt(&["status", "p.yaml"]).out.contains("running"));
    let followed = bench.smelt(&["logs", "a", "--follow", "--events"]).ok().out;
    assert!(run.wait().unwrap().success());
    // What is followed comes as it is said: events and words by turns.
    let whole = bench.smelt(&["logs", "a", "--events"]).ok().out;
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&followed), sorted(&whole));
    assert!(whole.contains("\"type\":\"committed\"") && whole.ends_with("step 39\n"), "{whole}");
}

#[test]
fn curves_are_written_as_event_files() {
    let bench = Bench::new();
    let text = "name: p\njobs: { a: { stage: STAGE(train), config: { seed: 3, steps: 40 } }, b: { stage: STAGE(count), \
        config: { rows: 3 } } }\n";
    bench.pipeline("p.yaml", text);
    bench.smelt(&["run", "p.yaml", "--only", "b"]).ok();
    let said = bench.smelt(&["report", "p.yaml", "--tensorboard", "logs"]).fails(2).err;
    assert!(said.contains("no job of pipeline `p` has a curve in artifacts"), "{said}");
    bench.smelt(&["run", "p.yaml"]).ok();
    for _ in 0..2 {
        let said = bench.smelt(&["report", "p.yaml", "--tensorboard", "logs"]).ok().out;
        assert_eq!(said, "logs/a/events.out.tfevents.smelt\n");
    }
    // One record for the file's version and one per point, each with its length in front and two checksums.
    let file = std::fs::read(bench.path("logs/a/events.out.tfevents.smelt")).unwrap();
    let (mut at, mut records) = (0, 0);
    while at < file.len() {
        at += 16 + u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
        records += 1;
    }
    let points =
        bench.smelt(&["sql", "select count(*) from smelt.metrics where job = 'a'", "--format", "csv"]).ok().out;
    assert_eq!(at, file.len());
    assert_eq!(points.lines().nth(1).unwrap().parse::<usize>().unwrap() + 1, records);
    assert_eq!(std::fs::read_dir(bench.path("logs/a")).unwrap().count(), 1);
}

/// What a collector of OpenTelemetry was sent: the head of each request, and its body.
fn collector(answers: &'static [&'static str]) -> (String, std::sync::mpsc::Receiver<(String, serde_json::Value)>) {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (to, from) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for (stream, answer) in listener.incoming().zip(answers) {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap() > 0 {}
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap()];
            reader.read_exact(&mut body).unwrap();
            let answer = format!("HTTP/1.1 {answer}\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{{}}");
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            to.send((head, serde_json::from_slice(&body).unwrap())).unwrap();
        }
    });
    (address, from)
}

#[test]
fn a_run_is_a_trace_of_opentelemetry() {
    let bench = Bench::new();
    let text = "name: traced\njobs:\n  raw: { stage: STAGE(count), config: { rows: 9, units: 3 } }\n  \
        model: { stage: STAGE(train) }\n  bad: { stage: STAGE(count), config: { fail: [0, 3] } }\n";
    bench.pipeline("p.yaml", text);
    // The first answer puts the client off.
    let (address, sent) = collector(&["503 Service Unavailable", "200 OK"]);
    let mut run = bench.command(&["run", "p.yaml", "--set", "on_failure=continue"]);
    let run = run
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &address)
        .env("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a-secret-of-the-collector")
        .env("OTEL_RESOURCE_ATTRIBUTES", "team=lab,deployment=a%20test")
        .env("TRACEPARENT", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01");
    let said = Said::from(run.output().unwrap()).fails(3);
    assert!(!said.err.contains("was not sent") && !said.err.contains("a-secret"), "{said:#?}");
    let (first, put_off) = sent.recv().unwrap();
    let (head, body) = sent.recv().unwrap();
    assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("api-key: a-secret-of-the-collector\r\n"), "{head}");
    assert!(head.contains("content-type: application/json\r\n"), "{head}");
    assert_eq!((head, &body), (first, &put_off), "the same again");
    let resource = &body["resourceSpans"][0]["resource"]["attributes"];
    let attribute = |of: &serde_json::Value, key: &str| {
        let found = of.as_array().unwrap().iter().find(|pair| pair["key"] == key).unwrap()["value"].clone();
        found["stringValue"].as_str().or(found["intValue"].as_str()).unwrap().to_owned()
    };
    assert_eq!(["service.name", "team", "deployment"].map(|key| attribute(resource, key)), ["smelt", "lab", "a test"]);
    let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone();
    let named = |name: &str| spans.iter().find(|span| span["name"] == name).unwrap_or_else(|| panic!("{name}: {body}"));
    let root = named("smelt run traced");
    assert_eq!(root["parentSpanId"], "0123456789abcdef");
    assert_eq!((&root["status"]["code"], &root["status"]["message"]), (&2.into(), &"failed".into()));
    for span in &spans {
        assert_eq!(span["traceId"], "0123456789abcdef0123456789abcdef");
        let time = |which: &str| span[which].as_str().unwrap().parse::<u64>().unwrap();
        assert!(time("startTimeUnixNano") <= time("endTimeUnixNano"), "{span}");
    }
    for job in ["raw", "model", "bad"] {
        assert_eq!(named(job)["parentSpanId"], root["spanId"], "{job}");
    }
    assert_eq!(named("train")["parentSpanId"], named("model")["spanId"], "a phase belongs to its job");
    assert_eq!(attribute(&named("train")["attributes"], "smelt.done"), "20");
    assert_eq!(named("bad")["status"]["code"], 2);
    assert!(named("bad")["status"]["message"].as_str().unwrap().contains("the data are bad"), "{}", named("bad"));
    assert_eq!(attribute(&root["attributes"], "smelt.jobs.done"), "2");
    let ids: std::collections::BTreeSet<&str> = spans.iter().map(|span| span["spanId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), spans.len());
    // Later the same spans are made again.
    let mut report = bench.command(&["report", "p.yaml", "--otlp", "trace.json"]);
    let report = report
        .env("TRACEPARENT", "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01")
        .env("OTEL_RESOURCE_ATTRIBUTES", "team=lab,deployment=a%20test");
    Said::from(report.output().unwrap()).ok();
    let text = std::fs::read_to_string(bench.path("trace.json")).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), body);
}

#[test]
fn a_collector_that_is_not_there_fails_no_run() {
    let bench = Bench::new();
    bench.pipeline("p.yaml", "name: p\njobs: { raw: { stage: STAGE(count) } }\n");
    let run = |endpoint: &str| {
        let mut run = bench.command(&["run", "p.yaml", "--set", "raw.config.rows=3"]);
        Said::from(run.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).output().unwrap()).ok().err
    };
    let (address, _sent) = collector(&["401 Unauthorized"]);
    let refused = run(&address.replace("http://", "http://ada:a-password@"));
    assert!(refused.contains("warning: the trace of run ") && refused.contains("127.0.0.1 answers 401"), "{refused}");
    assert!(!refused.contains("a-password"), "{refused}");
}
