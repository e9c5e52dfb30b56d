//! Configs of every stage: defaults that are its own, and bounds that hold.

use crate::support::programs;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::process::{Command, Stdio};

/// Stages with a config that resolves without a file of the machine.
const STAGES: [(&str, &str); 14] = [
    ("clean", "{}"),
    ("quality", "{}"),
    ("dedup", "{}"),
    ("decontaminate", "{}"),
    ("tokenize", "{}"),
    ("mix", "{}"),
    ("problems", r#"{ "prompts": 1 }"#),
    ("pretrain", "{}"),
    ("sft", "{}"),
    ("distill", "{}"),
    ("reward", "{}"),
    ("align", "{}"),
    ("evaluate", r#"{ "names": ["a"] }"#),
    ("ingest", r#"{ "paths": ["nothing/*.txt"] }"#),
];

fn stage(name: &str, verb: &str, request: Option<&Value>) -> (Option<i32>, Value) {
    let mut command = Command::new(programs().join(format!("smelt-{name}")));
    command.args([verb].into_iter().chain(request.map(|_| "-")));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let input = request.map(Value::to_string).unwrap_or_default();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default())
}

fn help(name: &str) -> String {
    let output = Command::new(programs().join(format!("smelt-{name}"))).arg("--help").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn request(description: &Value, base: &str, change: Option<(&str, Value)>) -> Value {
    let mut config: Value = serde_json::from_str(base).unwrap();
    if let Some((path, value)) = change {
        set(&mut config, path, value);
    }
    let ports = description["inputs"].as_array().unwrap().iter();
    let inputs: Map<String, Value> = ports.map(|port| (port["name"].as_str().unwrap().to_owned(), 1.into())).collect();
    json!({ "config": config, "inputs": inputs })
}

/// Sets the value at a JSON pointer, with the objects on the way.
fn set(config: &mut Value, path: &str, value: Value) {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let (last, parents) = parts.split_last().unwrap();
    let mut at = config;
    for part in parents {
        at = at.as_object_mut().unwrap().entry(*part).or_insert_with(|| json!({}));
    }
    at.as_object_mut().unwrap().insert((*last).to_owned(), value);
}

/// Every field that is a number, also in nested objects, by its place.
fn numbers(root: &Value, schema: &Value, path: &str, out: &mut Vec<(String, Value)>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let target = |field: &Value| match field["$ref"].as_str() {
            Some(at) => root.pointer(at.trim_start_matches('#')).unwrap().clone(),
            None => field.clone(),
        };
        let branches = field["anyOf"].as_array().into_iter().flatten().find(|branch| branch["type"] != "null");
        let field = target(branches.unwrap_or(field));
        let place = format!("{path}/{name}");
        match &field["type"] {
            Value::String(kind) if kind == "number" || kind == "integer" => out.push((place, field)),
            _ if field.get("properties").is_some() => numbers(root, &field, &place, out),
            _ => {}
        }
    }
}

#[test]
fn a_given_field_leaves_its_neighbours_as_the_stage_has_them() {
    let mut seen = 0;
    for (name, base) in STAGES {
        let (_, description) = stage(name, "describe", None);
        let (code, resolved) = stage(name, "resolve", Some(&request(&description, base, None)));
        if code != Some(0) {
            assert_eq!(name, "ingest", "{resolved}");
            continue; // its files are not there
        }
        let effective = &resolved["config"];
        for (field, schema) in description["config"]["properties"].as_object().unwrap() {
            let own = &effective[field];
            let Some(nested) = schema["properties"].as_object() else {
                let is_given = base.contains(&format!("\"{field}\""));
                assert!(is_given || *own == schema["default"], "{name}: `{field}` is {own}, not {}", schema["default"]);
                continue;
            };
            for (inner, schema) in nested {
                let (own, default) = (&own[inner], &schema["default"]);
                assert_eq!(own, default, "{name}: `{field}.{inner}` and what its schema says");
                let help = help(name);
                assert!(
                    default.is_object() || help.contains(&format!("{inner} = {default}")),
                    "{name}: {inner} = {default}"
                );
                let place = format!("/{field}/{inner}");
                let given = request(&description, base, Some((&place, default.clone())));
                let (code, alone) = stage(name, "resolve", Some(&given));
                assert_eq!(
                    (code, &alone["config"]),
                    (Some(0), effective),
                    "{name}: `{field}: {{ {inner} }}` changes its neighbours"
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "{seen} nested fields");
}

/// At a bound and inside a config is taken, beyond it refused with its place; no value of the right type ends a program
/// otherwise.
#[test]
fn values_beyond_their_bounds_are_refused_with_their_place() {
    for (name, base) in STAGES {
        let (_, description) = stage(name, "describe", None);
        let mut fields = Vec::new();
        numbers(&description["config"], &description["config"], "", &mut fields);
        assert!(name == "clean" || name == "ingest" || !fields.is_empty(), "{name}");
        let of_ours = !["clean", "ingest", "dedup", "tokenize"].contains(&name);
        for (place, schema) in fields {
            let bound = |key: &str| schema[key].as_f64();
            let (least, most) =
                (bound("minimum").or(bound("exclusiveMinimum")), bound("maximum").or(bound("exclusiveMaximum")));
            assert!(!of_ours || least.is_some() || place.contains("seed"), "{name}: `{place}` has no least value");
            let whole = schema["type"] == "integer";
            let number = |x: f64| if whole { json!(x as i64) } else { json!(x) };
            let try_value = |value: Value| {
                let given = request(&description, base, Some((&place, value.clone())));
                let (code, said) = stage(name, "resolve", Some(&given));
                assert!(matches!(code, Some(0 | 2 | 3)), "{name}: `{place}: {value}` ends with {code:?}");
                let (estimated, _) = stage(name, "estimate", Some(&given));
                assert!(
                    matches!(estimated, Some(0 | 2 | 3)),
                    "{name}: estimate of `{place}: {value}` ends with {estimated:?}"
                );
                (code, said)
            };
            for (edge, beyond, is_open) in [
                (least, least.map(|least| least - 1.0), schema.get("exclusiveMinimum").is_some()),
                (most, most.map(|most| most + 1.0), schema.get("exclusiveMaximum").is_some()),
            ] {
                let (Some(edge), Some(beyond)) = (edge, beyond) else { continue };
                let mut wrong = vec![number(beyond)];
                wrong.extend(is_open.then(|| number(edge)));
                for value in wrong {
                    let (code, said) = try_value(value.clone());
                    let found = said["field"].as_str().unwrap_or_default();
                    assert!(code == Some(2) && found == place, "{name}: `{place}: {value}` gives {code:?} {said}");
                }
                if !is_open {
                    try_value(number(edge));
                }
            }
            let (low, high) = (least.unwrap_or(-1e6), most.unwrap_or(1e12).min(1e15));
            let mut runner = TestRunner::new_with_rng(
                Config { cases: 2, failure_persistence: None, ..Config::default() },
                prop::test_runner::TestRng::deterministic_rng(prop::test_runner::RngAlgorithm::ChaCha),
            );
            runner
                .run(&(0.0..1.0f64), |share| {
                    try_value(number(low + (high - low) * share.powi(8)));
                    Ok(())
                })
                .unwrap();
        }
    }
}
