//! The trace of a run for OpenTelemetry: a span for the run, one for each job that worked, one for each phase of it.
//!
//! Sent once, when the run ends, to the collector that the environment names, by the variables that every program with
//! OpenTelemetry reads (OpenTelemetry specification, "OTLP Exporter Configuration"): OTLP over HTTP, as JSON (OTLP
//! specification 1.x, "JSON Protobuf Encoding"). Spans are made from the run's record and its jobs' events, so another
//! process can make the same ones later: `smelt report --otlp FILE`.

use crate::diagnostic::{Diagnostic, Result};
use serde_json::{Value, json};
use smelt_schemas::{Event, EventBody, ExitCode};
use smelt_store::{RunRecord, RunState, Store};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Tries of one request that a collector puts off.
const TRIES: u32 = 3;

/// Where to send, and with what.
struct Collector {
    url: String,
    headers: Vec<(String, String)>,
    timeout: Duration,
}

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The collector of the environment; nothing if none is named, or traces are switched off.
fn collector(variable: impl Fn(&str) -> Option<String>) -> std::result::Result<Option<Collector>, String> {
    let of_traces = |what: &str| {
        variable(&format!("OTEL_EXPORTER_OTLP_TRACES_{what}"))
            .or_else(|| variable(&format!("OTEL_EXPORTER_OTLP_{what}")))
    };
    let is_off = variable("OTEL_SDK_DISABLED").is_some_and(|off| off.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|exporter| exporter == "none");
    let url = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| {
        let base = variable("OTEL_EXPORTER_OTLP_ENDPOINT")?;
        Some(format!("{}/v1/traces", base.trim_end_matches('/')))
    });
    let Some(url) = url.filter(|_| !is_off) else { return Ok(None) };
    if of_traces("PROTOCOL").is_some_and(|protocol| protocol == "grpc") {
        return Err(
            "OTEL_EXPORTER_OTLP_PROTOCOL is grpc, and smelt speaks OTLP over HTTP alone: say `http/json`, and the \
            collector's port for HTTP, mostly 4318"
                .into(),
        );
    }
    let milliseconds = of_traces("TIMEOUT").and_then(|text| text.parse().ok()).unwrap_or(10_000);
    let headers = of_traces("HEADERS").map_or_else(Vec::new, |text| pairs(&text));
    Ok(Some(Collector { url, headers, timeout: Duration::from_millis(milliseconds) }))
}

/// `a=1,b=2`, percent-encoded, as W3C Baggage has it.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name.trim()), decoded(value.trim()))).collect()
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A number that is the same wherever the trace is made: the first bytes of a hash, in hexadecimal digits.
fn id(of: &[&str], digits: usize) -> String {
    blake3::hash(of.join("\0").as_bytes()).to_hex()[..digits].to_owned()
}

/// Nanoseconds since 1970, which JSON of OTLP has as text.
fn nanoseconds(seconds: f64) -> String {
    // To the microsecond: a double holds no more of today's times.
    format!("{}000", (seconds * 1e6).round() as u64)
}

fn attributes(of: &[(&str, Value)]) -> Value {
    let one = |(key, value): &(&str, Value)| {
        let value = match value {
            Value::String(text) => json!({ "stringValue": text }),
            Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
            Value::Number(number) => json!({ "intValue": number.to_string() }),
            other => json!({ "stringValue": other.to_string() }),
        };
        json!({ "key": key, "value": value })
    };
    of.iter().filter(|(_, value)| !value.is_null()).map(one).collect()
}

/// Status codes of OTLP.
const OK: u8 = 1;
const ERROR: u8 = 2;

struct Trace<'a> {
    id: String,
    run: &'a str,
    spans: Vec<Value>,
}

struct Span<'a> {
    /// What tells it from other spans of the run.
    path: &'a [&'a str],
    parent: Option<String>,
    name: String,
    time: (f64, f64),
    attributes: Vec<(&'a str, Value)>,
    events: Vec<Value>,
    /// What went wrong, if something did.
    error: Option<&'a str>,
}

impl Trace<'_> {
    fn id_of(&self, path: &[&str]) -> String {
        id(&[&[self.run], path].concat(), 16)
    }

    fn add(&mut self, span: Span) -> String {
        let own = self.id_of(span.path);
        let status = match span.error {
            Some(message) => json!({ "code": ERROR, "message": message }),
            None => json!({ "code": OK }),
        };
        let mut value = json!({
            "traceId": self.id, "spanId": own, "name": span.name, "kind": 1,
            "startTimeUnixNano": nanoseconds(span.time.0), "endTimeUnixNano": nanoseconds(span.time.1),
            "attributes": attributes(&span.attributes), "events": span.events, "status": status,
        });
        if let Some(parent) = span.parent {
            value["parentSpanId"] = json!(parent);
        }
        self.spans.push(value);
        own
    }

    fn job(&mut self, root: &str, run: &RunRecord, fact: &Value, events: &[Event]) {
        let (job, end) = (fact["job"].as_str().unwrap_or_default(), run.ended.unwrap_or(run.renewed));
        let times = || events.iter().map(|event| event.time).filter(|time| *time > 0.0);
        let time = (times().reduce(f64::min).unwrap_or(end), times().reduce(f64::max).unwrap_or(end));
        let said = |event: &Event| match &event.body {
            EventBody::Warning { message } => {
                let message = attributes(&[("message", json!(message))]);
                Some(json!({ "name": "warning", "timeUnixNano": nanoseconds(event.time), "attributes": message }))
            }
            _ => None,
        };
        let keys = ["stage", "fingerprint", "edition", "peak_memory_bytes", "state"];
        let names = ["smelt.stage", "smelt.fingerprint", "smelt.edition", "smelt.peak_memory_bytes", "smelt.state"];
        let own = self.add(Span {
            path: &["job", job],
            parent: Some(root.to_owned()),
            name: job.to_owned(),
            time,
            attributes: names.into_iter().zip(keys.map(|key| fact[key].clone())).collect(),
            events: events.iter().filter_map(said).collect(),
            error: (fact["state"] == "failed").then(|| fact["error"].as_str().unwrap_or_default()),
        });
        // A phase lasts from its first word to its last, in each process.
        let mut phases: BTreeMap<(u32, &str), (f64, f64, u64)> = BTreeMap::new();
        for event in events {
            if let EventBody::Progress { phase, done, .. } = &event.body {
                let known = phases.entry((event.rank, phase)).or_insert((event.time, event.time, 0));
                *known = (known.0.min(event.time), known.1.max(event.time), known.2.max(*done));
            }
        }
        for ((rank, phase), (start, end, done)) in phases {
            self.add(Span {
                path: &["phase", job, &rank.to_string(), phase],
                parent: Some(own.clone()),
                name: if phase.is_empty() { job.to_owned() } else { phase.to_owned() },
                time: (start, end),
                attributes: vec![("smelt.rank", json!(rank)), ("smelt.done", json!(done))],
                events: Vec::new(),
                error: None,
            });
        }
    }
}

/// The trace of a run, as OTLP's JSON. `parent`: a `traceparent` of W3C Trace Context, whose trace it joins.
fn trace(store: &Store, run: &RunRecord, parent: Option<&str>, resource: &[(String, String)]) -> Result<Value> {
    // version-trace-span-flags
    let parent: Option<(&str, &str)> = parent.and_then(|text| {
        let parts: Vec<&str> = text.split('-').collect();
        let is_hex = |text: &str, digits| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
        (parts.len() >= 4 && is_hex(parts[1], 32) && is_hex(parts[2], 16)).then(|| (parts[1], parts[2]))
    });
    let own = parent.map_or_else(|| id(&[&run.run], 32), |(trace, _)| trace.to_owned());
    let mut trace = Trace { id: own, run: &run.run, spans: Vec::new() };
    let count = |state: &str| json!(run.jobs.iter().filter(|fact| fact["state"] == state).count());
    let error = match run.state {
        RunState::Done | RunState::Running => None,
        other => Some(other.word()),
    };
    let root = trace.add(Span {
        path: &["run"],
        parent: parent.map(|(_, span)| span.to_owned()),
        name: format!("smelt run {}", run.pipeline),
        time: (run.started, run.ended.unwrap_or(run.renewed)),
        attributes: vec![
            ("smelt.run", json!(run.run)),
            ("smelt.pipeline", json!(run.pipeline)),
            ("smelt.store", json!(store.address())),
            ("smelt.state", json!(run.state.word())),
            ("smelt.jobs.done", count("done")),
            ("smelt.jobs.cached", count("cached")),
            ("smelt.jobs.failed", count("failed")),
        ],
        events: Vec::new(),
        error,
    });
    for fact in run.jobs.iter().filter(|fact| fact["state"] == "done" || fact["state"] == "failed") {
        let text = store.read_logs(&run.run, fact["job"].as_str().unwrap_or_default(), "events")?.unwrap_or_default();
        let events: Vec<Event> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        trace.job(&root, run, fact, &events);
    }
    let mut about: Vec<(&str, Value)> = vec![("service.name", json!("smelt"))];
    about.push(("service.version", json!(env!("CARGO_PKG_VERSION"))));
    for (name, value) in resource {
        about.retain(|(known, _)| known != name);
        about.push((name, json!(value)));
    }
    Ok(json!({ "resourceSpans": [{
        "resource": { "attributes": attributes(&about) },
        "scopeSpans": [{
            "scope": { "name": "smelt", "version": env!("CARGO_PKG_VERSION") },
            "spans": trace.spans,
        }],
    }] }))
}

/// What the environment says of this program.
fn resource() -> Vec<(String, String)> {
    let mut resource = variable("OTEL_RESOURCE_ATTRIBUTES").map_or_else(Vec::new, |text| pairs(&text));
    resource.extend(variable("OTEL_SERVICE_NAME").map(|name| ("service.name".to_owned(), name)));
    resource
}

/// Writes the trace of a run into a file, as collectors read it from one.
pub(crate) fn write(store: &Store, run: &RunRecord, file: &Path) -> Result<()> {
    let text = trace(store, run, variable("TRACEPARENT").as_deref(), &resource())?.to_string() + "\n";
    let temporary = file.with_extension("smelt-tmp");
    let written = std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, file));
    written.map_err(|e| Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be written: {e}", file.display())))?;
    println!("{}", file.display());
    Ok(())
}

/// Sends the trace of a run that has ended, if the environment names a collector. A run does not fail by it: what went
/// wrong is a warning.
pub(crate) fn send(store: &Store, run: &str) {
    let sent = collector(variable).and_then(|collector| {
        let Some(collector) = collector else { return Ok(()) };
        let record = store.run(run).map_err(|e| e.to_string())?.ok_or("the run has no record")?;
        let trace = trace(store, &record, variable("TRACEPARENT").as_deref(), &resource()).map_err(|e| e.message)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        runtime.block_on(post(&collector, &trace.to_string()))
    });
    if let Err(why) = sent {
        eprintln!("warning: the trace of run {run} was not sent: {why}");
    }
}

/// Only hosts are named in errors: addresses and headers may hold credentials.
async fn post(collector: &Collector, body: &str) -> std::result::Result<(), String> {
    let client =
        reqwest::Client::builder().timeout(collector.timeout).build().map_err(|e| e.without_url().to_string())?;
    let url = reqwest::Url::parse(&collector.url).map_err(|e| format!("its address is none: {e}"))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    for attempt in 1.. {
        let mut request = client.post(url.clone()).header("content-type", "application/json").body(body.to_owned());
        for (name, value) in &collector.headers {
            request = request.header(name, value);
        }
        let why = match request.send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) if matches!(answer.status().as_u16(), 429 | 502 | 503 | 504) => answer.status().to_string(),
            Ok(answer) => return Err(format!("{host} answers {}", answer.status())),
            Err(e) if e.is_builder() => return Err("a header of OTEL_EXPORTER_OTLP_HEADERS is none".into()),
            Err(e) => e.without_url().to_string(),
        };
        if attempt == TRIES {
            return Err(format!("{host}: {why}"));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    unreachable!("the loop returns")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(of: &[(&str, &str)]) -> std::result::Result<Option<Collector>, String> {
        collector(|name| of.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_collector_is_the_one_of_the_environment() {
        assert!(found(&[]).unwrap().is_none());
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        let plain = found(&[base, ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x=1")]).unwrap().unwrap();
        assert_eq!(plain.url, "http://collector:4318/v1/traces");
        assert_eq!(plain.headers, [("api-key".to_owned(), "a b".to_owned()), ("x".to_owned(), "1".to_owned())]);
        assert_eq!(plain.timeout, Duration::from_secs(10));
        let own = [base, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces/x")];
        assert_eq!(found(&own).unwrap().unwrap().url, "http://traces/x");
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(found(&[base, off]).unwrap().is_none());
        }
        let grpc = found(&[base, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
        assert!(grpc.err().unwrap().starts_with("OTEL_EXPORTER_OTLP_PROTOCOL is grpc, and smelt speaks"));
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(["%41b", "%4", "%zz", "ä%C3%A4"].map(decoded), ["Ab", "%4", "%zz", "ää"]);
    }
}
