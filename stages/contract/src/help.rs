//! `--help` of a stage, from what it says of itself.

use serde_json::Value;
use smelt_schemas::{Arity, Description};
use std::fmt::Write;

pub(crate) fn text(d: &Description) -> String {
    let mut out = format!("{}: {}.\n\n", d.name, d.about.trim_end_matches('.'));
    out += &format!("A stage of smelt (version {}). A pipeline uses it as `stage: {}`.\n", d.version, d.name);
    if !d.inputs.is_empty() {
        out += "\nInputs\n";
        for p in &d.inputs {
            let arity = match p.arity {
                Arity::One => "",
                Arity::Optional => ", optional",
                Arity::List => ", one or more",
                Arity::OptionalList => ", any number",
            };
            let _ = writeln!(out, "  {:<14} {}{arity}", p.name, p.kind);
        }
    }
    out += "\nOutputs\n";
    for p in &d.outputs {
        let _ = writeln!(out, "  {:<14} {}", p.name, p.kind);
    }
    out += "\nConfig\n";
    fields(&d.config, &d.config, 2, &mut out);
    out += "\nVerbs\n  \
            describe                 name, version, ports and config schema, as JSON\n  \
            resolve REQUEST.json     the effective config, as JSON\n  \
            run INVOCATION.json      the work; events go to standard output as JSON lines\n  \
            estimate REQUEST.json    memory, FLOPs and time of a config\n  \
            doctor                   what it needs from this machine\n  \
            A file may be `-`, for standard input.\n\n\
            Exit codes: 0 done, 2 fix the pipeline, 3 fix the data, 4 try again, 5 a bug of smelt, 6 fix the \
            machine.\n";
    out
}

/// Follows `$ref` and the one real branch of an `anyOf` with null.
fn target<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(pointer) = schema.get("$ref").and_then(Value::as_str) {
        return target(root, root.pointer(pointer.trim_start_matches('#')).unwrap_or(schema));
    }
    let branches = schema.get("anyOf").and_then(Value::as_array);
    match branches.and_then(|b| b.iter().find(|s| s.get("type") != Some(&Value::from("null")))) {
        Some(real) => target(root, real),
        None => schema,
    }
}

fn fields(root: &Value, schema: &Value, indent: usize, out: &mut String) {
    let properties = schema.get("properties").and_then(Value::as_object);
    let Some(properties) = properties.filter(|p| !p.is_empty()) else {
        let _ = writeln!(out, "{:indent$}none", "");
        return;
    };
    for (name, field) in properties {
        let real = target(root, field);
        let default = match field.get("default") {
            Some(Value::Object(_)) | None => String::new(),
            Some(v) => format!(" = {v}"),
        };
        let kind = match (real.get("type"), real.get("enum")) {
            (_, Some(Value::Array(names))) => names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "),
            (Some(Value::String(t)), _) => t.clone(),
            (Some(Value::Array(ts)), _) => ts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or "),
            _ => String::new(),
        };
        let _ = writeln!(out, "{:indent$}{name}{default}  ({kind})", "");
        let about = field.get("description").or_else(|| real.get("description")).and_then(Value::as_str);
        for line in about.unwrap_or_default().lines() {
            let _ = writeln!(out, "{:1$}{line}", "", indent + 4);
        }
        if real.get("properties").is_some() {
            fields(root, real, indent + 4, out);
        }
    }
}
