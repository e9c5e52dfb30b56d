//! What a value may be, and what is wrong with it, in YAML terms.

use crate::diagnostic::{Diagnostic, Result, nearest};
use crate::load::draft::Draft;
use crate::yaml::Tree;
use jsonschema::Validator;
use jsonschema::error::ValidationErrorKind;
use serde_json::Value;
use std::collections::HashMap;

/// The error of a value with a wrong type, in YAML terms.
pub(super) fn wrong_type(field: &str, text: &str) -> Diagnostic {
    let found = text.strip_prefix("invalid type: ").or(text.strip_prefix("invalid value: "));
    if let Some((found, expected)) = found.and_then(|t| t.rsplit_once(", expected ")) {
        let (expected, hint) = match expected {
            "u64" | "u32" | "usize" => ("a whole number, 0 or more", "write it as `3`, without quotes"),
            "f64" => ("a number", "write it as `0.5`, without quotes"),
            "a string" => ("text", "put it in quotes"),
            "a boolean" => ("`true` or `false`", "write one of these, without quotes"),
            "a sequence" => ("a list", "write `[a, b]`"),
            "struct Job" => ("a job", "write `{ stage: NAME, input: JOB, config: { … } }`"),
            other if other.contains("map") || other.starts_with("struct ") => {
                ("keys with values", "write `key: value` lines below it, or `{ key: value }`")
            }
            other => (other, ""),
        };
        let found = match found.split_once(' ') {
            Some(("string", value)) => format!("the text {value}"),
            Some(("integer" | "boolean", value)) => format!("`{}`", value.trim_matches('`')),
            Some(("floating", value)) => format!("`{}`", value.trim_start_matches("point ").trim_matches('`')),
            _ => match found {
                "unit value" | "null" | "Option value" => "nothing".to_owned(),
                "sequence" => "a list".to_owned(),
                "map" => "a map".to_owned(),
                other => other.to_owned(),
            },
        };
        let field = if field.is_empty() { "the pipeline" } else { &format!("`{field}`") };
        let error = Diagnostic::pipeline(format!("{field} is {found}, expected {expected}"));
        return if hint.is_empty() { error } else { error.hint(hint) };
    }
    let of = if field.is_empty() { String::new() } else { format!("`{field}`: ") };
    let missing = text.strip_prefix("missing field `").and_then(|t| t.split_once('`')).map(|(name, _)| name);
    match missing {
        Some(name) => Diagnostic::pipeline(format!("{of}`{name}` is missing")).hint(format!("add `{name}: …`")),
        None => Diagnostic::pipeline(format!("{of}{text}")),
    }
}

/// The config schemas of the stages, each compiled once.
#[derive(Default)]
pub(super) struct Schemas {
    compiled: HashMap<String, Validator>,
}

impl Schemas {
    pub(super) fn check(&mut self, tree: &Tree, draft: &Draft, schema: &Value, config: &Value) -> Result<()> {
        if schema.is_null() {
            return Ok(());
        }
        let stage = &draft.text.stage;
        if !self.compiled.contains_key(stage) {
            let validator = jsonschema::validator_for(schema).map_err(|e| {
                let what = format!("stage `{stage}` has no valid config schema: {e}");
                Diagnostic::new(smelt_schemas::ExitCode::Bug, what)
            })?;
            self.compiled.insert(stage.clone(), validator);
        }
        check(tree, draft, &self.compiled[stage], schema, config)
    }
}

fn check(tree: &Tree, draft: &Draft, validator: &Validator, schema: &Value, config: &Value) -> Result<()> {
    let Some(error) = validator.iter_errors(config).next() else { return Ok(()) };
    let path = error.instance_path().to_string();
    let parent = path.trim_start_matches('/').replace('/', ".");
    let stage = &draft.text.stage;
    // Name the unknown field itself, not the object it stands in.
    let object = config.pointer(&path).and_then(Value::as_object);
    let known = known_fields(schema, &path);
    if let (Some(object), Some(known)) = (object, known)
        && let Some(name) = object.keys().find(|k| !known.iter().any(|n| n == *k))
    {
        let within = if parent.is_empty() { String::new() } else { format!(" in `{parent}`") };
        let error =
            Diagnostic::pipeline(format!("job `{}`: stage `{stage}` has no config field `{name}`{within}", draft.name))
                .at(draft.key_place(tree, &format!("/config{path}/{name}")));
        return Err(match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("is `{near}` meant?")),
            None if known.is_empty() => error.hint("it has none"),
            None => error.hint(format!("its fields: {}", known.join(", "))),
        });
    }
    let forms = at_path(schema, &path).map(|at| forms(schema, at)).unwrap_or_default();
    let what = match (error.kind(), forms.as_slice()) {
        (ValidationErrorKind::AnyOf { .. } | ValidationErrorKind::OneOfNotValid { .. }, [_, ..]) => {
            format!("{} is none of {}", error.instance(), forms.join(", "))
        }
        _ => error.to_string(),
    };
    let error = Diagnostic::pipeline(format!("job `{}`: `config.{parent}`: {what}", draft.name))
        .at(draft.place(tree, &format!("/config{path}")));
    let wanted = if forms.is_empty() { String::new() } else { format!(": {}", forms.join(", ")) };
    Err(error.hint(format!("`smelt schema {stage}` says what a config may hold{wanted}")))
}

/// What a value may be, of a schema that lists its forms: constants, `{ fields }`, or names of types.
fn forms(root: &Value, schema: &Value) -> Vec<String> {
    let schema = dereference(root, schema);
    let list = |key: &str| schema.get(key).and_then(Value::as_array);
    if let Some(choices) = list("anyOf").or(list("oneOf")) {
        return choices.iter().flat_map(|choice| forms(root, choice)).collect();
    }
    if let Some(values) = list("enum") {
        return values.iter().map(Value::to_string).collect();
    }
    if let Some(value) = schema.get("const") {
        return vec![value.to_string()];
    }
    match (schema.get("properties").and_then(Value::as_object), schema.get("type").and_then(Value::as_str)) {
        (Some(fields), _) => vec![format!("{{ {} }}", fields.keys().cloned().collect::<Vec<_>>().join(", "))],
        (None, Some(name)) => vec![name.to_owned()],
        (None, None) => Vec::new(),
    }
}

/// The schema of the value at `path`, where every step is a field.
fn at_path<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/')
        .skip(1)
        .try_fold(root, |schema, part| Some(dereference(root, schema.pointer(&format!("/properties/{part}"))?)))
}

/// Names of the properties that a schema knows for the object at `path`, if it closes the list.
fn known_fields(root: &Value, path: &str) -> Option<Vec<String>> {
    let schema = dereference(root, at_path(root, path)?);
    (schema.get("additionalProperties") == Some(&Value::Bool(false))).then(|| {
        schema.get("properties").and_then(Value::as_object).map(|p| p.keys().cloned().collect()).unwrap_or_default()
    })
}

fn dereference<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str).and_then(|r| root.pointer(r.trim_start_matches('#'))) {
        Some(found) => dereference(root, found),
        None => schema,
    }
}
