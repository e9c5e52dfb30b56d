//! A unified diff of a job's config, as git shows what changed in a file.

use crate::plan;
use serde_json::Value;
use similar::TextDiff;
use smelt_store::without_secrets;
use std::io::IsTerminal;

/// Lines around a change.
const CONTEXT: usize = 3;

/// How a config differs from the one that a job had in `run`, as YAML; nothing if it does not.
pub(crate) fn of_config(before: &Value, run: &str, now: &Value) -> Option<String> {
    let mut changed = Vec::new();
    plan::fields("config", before, now, &mut changed);
    if changed.is_empty() {
        return None;
    }
    let [old, new] = [before, now].map(yaml);
    let (from, to) = (format!("run {run}"), "now");
    if old == new {
        // So that nobody looks for it in vain.
        return Some(format!("--- {from}\n+++ {to}\n(what differs is a user or a query of an address: not shown)\n"));
    }
    Some(TextDiff::from_lines(&old, &new).unified_diff().context_radius(CONTEXT).header(&from, to).to_string())
}

/// `value` as YAML, its addresses without user and query.
fn yaml(value: &Value) -> String {
    fn shown(value: &Value) -> Value {
        match value {
            Value::String(text) => without_secrets(text).into(),
            Value::Array(items) => items.iter().map(shown).collect(),
            Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), shown(value))).collect(),
            other => other.clone(),
        }
    }
    serde_saphyr::to_string(&shown(value)).expect("a config is plain data")
}

/// A diff below a line of a list; on a terminal in the colours of git.
pub(crate) fn indented(diff: &str) -> String {
    let is_coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let line = |line: &str| {
        let colour = match line.as_bytes() {
            [b'-', b'-', b'-', ..] | [b'+', b'+', b'+', ..] => "1",
            [b'-', ..] => "31",
            [b'+', ..] => "32",
            [b'@', ..] => "36",
            _ => "",
        };
        match is_coloured && !colour.is_empty() {
            true => format!("      \x1b[{colour}m{line}\x1b[0m\n"),
            false => format!("      {line}\n"),
        }
    };
    diff.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_config_is_compared_line_by_line_and_shows_no_secret() {
        let address = |key: &str| format!("https://me:{key}@host/a.parquet?token={key}");
        let config = |key: &str, rows: u32| json!({ "paths": [address(key)], "rows": rows, "rate": 1e-3 });
        let diff = |now: Value| of_config(&config("first", 1), "r", &now);
        assert_eq!(diff(config("first", 1)), None);
        let text = "--- run r\n+++ now\n@@ -1,4 +1,4 @@\n paths:\n - https://host/a.parquet\n-rows: 1\n+rows: 2\n \
            rate: 0.001\n";
        assert_eq!(diff(config("second", 2)).as_deref(), Some(text));
        let hidden = diff(config("second", 1)).unwrap();
        assert!(hidden.ends_with("(what differs is a user or a query of an address: not shown)\n"), "{hidden}");
        // A number is the same however it was written.
        let mut same = config("first", 1);
        same["rows"] = json!(1.0);
        assert_eq!(diff(same), None);
    }
}
