//! Values from elsewhere: `--set` and `--vars` on the command line, SMELT_VAR_* variables, and `${name}` in the file.

use crate::diagnostic::{Diagnostic, Place, Result, nearest};
use crate::yaml::{self, Tree};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Begins the name of an environment variable that gives a variable of the pipeline.
const VARIABLE: &str = "SMELT_VAR_";

/// One `--set`: `seed=3`, `vars.x=…`, `job.config.field=value`, or `job[axis=value].config.field=value`.
pub(super) struct Set {
    pub(super) words: String,
    /// Who gives it, for errors: `--set seed=3`, `SMELT_VAR_size`, a place in a file.
    pub(super) said: String,
    /// Of the whole file; inside the job if it is for one instance.
    pub(super) pointer: String,
    value: Value,
    pub(super) job: Option<String>,
    pub(super) instance: Option<String>,
}

impl Set {
    pub(super) fn parse(words: &str, tree: &Tree) -> Result<Self> {
        Self::given(words, format!("--set {words}"), tree)
    }

    fn given(words: &str, said: String, tree: &Tree) -> Result<Self> {
        const TOP: [&str; 8] = ["name", "store", "seed", "vars", "run", "on_failure", "views", "report"];
        let at = |e: Diagnostic| e.at(Some(Place::named(&said)));
        // The `=` inside the brackets of an instance does not end the path.
        let open = words.find('[').filter(|open| words.find('=').is_none_or(|equals| *open < equals));
        let from = open.and_then(|open| Some(open + words[open..].find(']')?)).unwrap_or(0);
        let equals = words[from..]
            .find('=')
            .map(|e| from + e)
            .ok_or_else(|| at(Diagnostic::pipeline("this has no `=`").hint("write `--set job.config.field=value`")))?;
        let (path, text) = (&words[..equals], &words[equals + 1..]);
        let (head, rest) = match open {
            Some(_) => path.split_at(from + 1),
            None => path.split_at(path.find('.').unwrap_or(path.len())),
        };
        let base = head.split('[').next().unwrap_or(head);
        let escape = |p: &str| format!("/{}", yaml::escaped(p));
        let below: String = rest.split('.').skip(1).map(escape).collect();
        let value = yaml::parse_value(text);
        let is_top = open.is_none() && TOP.contains(&base);
        if !is_top {
            let jobs = tree.value.get("jobs").and_then(Value::as_object);
            let jobs: Vec<&str> = jobs.into_iter().flat_map(|j| j.keys().map(String::as_str)).collect();
            if !jobs.contains(&base) {
                let error = at(Diagnostic::pipeline(format!("there is no job `{base}`")));
                return Err(match nearest(base, jobs.iter().copied()) {
                    Some(near) => error.hint(format!("is `{near}` meant?")),
                    None => error.hint(format!("jobs: {}; at the top: {}", jobs.join(", "), TOP.join(", "))),
                });
            }
        }
        if below.is_empty() && (!is_top || base == "vars" || base == "run")
            || rest.ends_with('.')
            || rest.contains("..")
        {
            return Err(at(Diagnostic::pipeline(format!("`{path}` names no value"))
                .hint("write `--set job.config.field=value`, `--set vars.name=value` or `--set seed=3`")));
        }
        if base == "vars" && is_top {
            check_variable(rest, tree).map_err(at)?;
        }
        let all = head.ends_with("[*]");
        Ok(Self {
            words: words.into(),
            pointer: match (is_top, open) {
                (true, _) => escape(base) + &below,
                (false, Some(_)) if !all => below,
                (false, _) => format!("/jobs{}{below}", escape(base)),
            },
            value,
            job: (!is_top).then(|| base.to_owned()),
            instance: open.filter(|_| !all).map(|_| head.to_owned()),
            said,
        })
    }

    /// Variables of the pipeline that SMELT_VAR_* give. They may be meant for another pipeline: those that this one has
    /// not are left out.
    pub(super) fn of_environment(variables: impl Iterator<Item = (String, String)>, tree: &Tree) -> Result<Vec<Self>> {
        let known = variables_of(tree);
        let mut given: Vec<(String, String)> =
            variables.filter_map(|(name, text)| Some((name.strip_prefix(VARIABLE)?.to_owned(), text))).collect();
        given.sort();
        let given = given.into_iter().filter(|(name, _)| known.contains(name));
        given
            .map(|(name, text)| Self::given(&format!("vars.{name}={text}"), format!("{VARIABLE}{name}"), tree))
            .collect()
    }

    /// Variables of the pipeline that a file gives: a map of their names.
    pub(super) fn of_file(file: &Path, tree: &Tree) -> Result<Vec<Self>> {
        let shown = file.display().to_string();
        let text = std::fs::read_to_string(file).map_err(|e| {
            Diagnostic::pipeline(format!("variables of `{shown}` cannot be read: {e}"))
                .at(Some(Place::named(format!("--vars {shown}"))))
        })?;
        let read = yaml::parse(&text, &shown)?;
        let Some(map) = read.value.as_object() else {
            return Err(Diagnostic::pipeline(format!("`{shown}` is no map of variables"))
                .at(Some(Place { file: shown, line: 1, column: 1 }))
                .hint("write `name: value` lines, without `vars:` above them"));
        };
        let set = |(name, value): (&String, &Value)| {
            let place = read.key_place(&format!("/{}", yaml::escaped(name)));
            let said = place.map_or_else(|| shown.clone(), |p| format!("{}:{}:{}", p.file, p.line, p.column));
            Self::given(&format!("vars.{name}={value}"), said, tree)
        };
        map.iter().map(set).collect()
    }

    /// A single value where the file has a list becomes a list of one.
    fn value_for(&self, before: Option<&Value>) -> Value {
        match before.is_some_and(Value::is_array) && !self.value.is_array() {
            true => Value::Array(vec![self.value.clone()]),
            false => self.value.clone(),
        }
    }

    pub(super) fn apply(&self, tree: &mut Tree) {
        let value = self.value_for(tree.value.pointer(&self.pointer));
        tree.set(&self.pointer, value, &self.said);
    }
}

/// `rest`: `.name` or `.name.field`. The file must have this variable, or use it.
fn check_variable(rest: &str, tree: &Tree) -> Result<()> {
    let name = rest.split('.').nth(1).unwrap_or_default();
    let vars = tree.value.get("vars").and_then(Value::as_object);
    let known = variables_of(tree);
    if !known.contains(name) {
        let error = Diagnostic::pipeline(format!("there is no variable `{name}`"));
        return Err(match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => error.hint(format!("is `vars.{near}` meant?")),
            None if known.is_empty() => error.hint("the file has no `vars`, and no `${name}`"),
            None => error.hint(format!("variables: {}", Vec::from_iter(known).join(", "))),
        });
    }
    let is_single = vars.and_then(|vars| vars.get(name)).is_some_and(|value| !value.is_object());
    if is_single && rest.matches('.').count() > 1 {
        return Err(Diagnostic::pipeline(format!("variable `{name}` has no fields"))
            .hint(format!("write `--set vars.{name}=value`")));
    }
    Ok(())
}

/// Variables that the file has or uses.
fn variables_of(tree: &Tree) -> BTreeSet<String> {
    let vars = tree.value.get("vars").and_then(Value::as_object);
    let mut known: Vec<String> = vars.into_iter().flat_map(|vars| vars.keys().cloned()).collect();
    names(&tree.value, &mut known);
    known.into_iter().collect()
}

/// Every `${name}` in lower case.
fn names(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|value| names(value, found)),
        Value::Object(map) => map.values().for_each(|value| names(value, found)),
        Value::String(text) => {
            let mut rest = text.as_str();
            while let Some((_, name, after)) = variable(rest) {
                found.extend(name.starts_with(|c: char| c.is_ascii_lowercase()).then(|| name.to_owned()));
                rest = after;
            }
        }
        _ => {}
    }
}

/// Fills `${NAME}` and `${NAME:-default}` from the environment, which no stage does for the address of a store.
pub(super) fn from_environment(text: &str) -> Result<String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, name, after)) = variable(rest) {
        let (name, default) = name.split_once(":-").map_or((name, None), |(name, default)| (name, Some(default)));
        let value = std::env::var(name).ok().filter(|v| !v.is_empty()).or(default.map(str::to_owned));
        let value = value.ok_or_else(|| {
            Diagnostic::pipeline(format!("store `{text}` needs the variable `{name}`, which is not set"))
        })?;
        out += &format!("{before}{value}");
        rest = after;
    }
    Ok(out + rest)
}

/// Replaces `${name}` by its value from `look_up`. A string that is only `${name}` takes the type of the value. Unknown
/// names stay, and so do names in capitals, which stages read from the environment.
pub(super) fn substitute(value: &mut Value, look_up: &dyn Fn(&str) -> Option<Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|v| substitute(v, look_up)),
        Value::Object(map) => map.values_mut().for_each(|v| substitute(v, look_up)),
        Value::String(text) => {
            if let Some(whole) = text.strip_prefix("${").and_then(|t| t.strip_suffix('}')).filter(|t| !t.contains('$'))
                && let Some(found) = look_up(whole)
            {
                *value = found;
                return;
            }
            let (mut out, mut rest) = (String::new(), text.as_str());
            while let Some((before, name, after)) = variable(rest) {
                out += before;
                match look_up(name) {
                    Some(Value::String(s)) => out += &s,
                    Some(other) => out += &other.to_string(),
                    None => out += &format!("${{{name}}}"),
                }
                rest = after;
            }
            *text = out + rest;
        }
        _ => {}
    }
}

/// Text before the first `${name}`, the name, text after it.
fn variable(text: &str) -> Option<(&str, &str, &str)> {
    let start = text.find("${")?;
    let end = start + text[start..].find('}')?;
    Some((&text[..start], &text[start + 2..end], &text[end + 1..]))
}

/// The first `${name}` in lower case that nothing filled, with the pointer of its value.
pub(super) fn unfilled(value: &Value, pointer: &str) -> Option<(String, String)> {
    match value {
        Value::Array(items) => items.iter().enumerate().find_map(|(i, v)| unfilled(v, &format!("{pointer}/{i}"))),
        Value::Object(map) => map.iter().find_map(|(k, v)| unfilled(v, &format!("{pointer}/{k}"))),
        Value::String(text) => {
            let mut rest = text.as_str();
            while let Some((_, name, after)) = variable(rest) {
                if name.starts_with(|c: char| c.is_ascii_lowercase()) {
                    return Some((pointer.into(), name.into()));
                }
                rest = after;
            }
            None
        }
        _ => None,
    }
}
