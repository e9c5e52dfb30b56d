//! Paths in a config: `~` and variables are filled in.

use crate::files::error::FileError;
use crate::files::own_store;

/// Expands `~` at the start, `${NAME}` and `${NAME:-default}`; `variable` looks a name up. Refuses a glob that covers
/// the store of the pipeline.
pub fn expand(pattern: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, FileError> {
    let mut out = String::new();
    let mut rest = pattern;
    while let Some(at) = rest.find("${") {
        out.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = closing(inner).ok_or_else(|| FileError::Unclosed { pattern: pattern.into() })?;
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        let value = variable(name).filter(|value| !value.is_empty()).or(default.map(str::to_owned));
        out.push_str(&value.ok_or_else(|| FileError::Unset { pattern: pattern.into(), name: name.into() })?);
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    if out == "~" || out.starts_with("~/") {
        let home = variable("HOME").ok_or_else(|| FileError::NoHome { pattern: pattern.into() })?;
        out.replace_range(..1, home.trim_end_matches('/'));
    }
    own_store::refuse(pattern, &out)?;
    Ok(out)
}

/// Where the brace closes that was opened before `text`; a default may hold braces itself: `${DATA:-*.{md,txt}}`.
fn closing(text: &str) -> Option<usize> {
    let mut open = 0;
    for (i, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' if open == 0 => return Some(i),
            '}' => open -= 1,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_schemas::{ExitCode, Fault};

    fn variables(name: &str) -> Option<String> {
        [("HOME", "/home/ada/"), ("DATA", "/data"), ("EMPTY", "")].iter().find(|v| v.0 == name).map(|v| v.1.to_owned())
    }

    #[test]
    fn home_and_variables_are_filled_in() {
        let expand = |p| expand(p, variables).unwrap();
        assert_eq!(expand("~/a/~b"), "/home/ada/a/~b");
        assert_eq!(expand("${DATA}/x${DATA}"), "/data/x/data");
        assert_eq!(expand("${CARGO_HOME:-~/.cargo}/registry"), "/home/ada/.cargo/registry");
        assert_eq!(expand("${EMPTY:-e}"), "e");
        assert_eq!(expand("plain/*.md"), "plain/*.md");
        assert_eq!(expand("${DATA:-x/*.{md,txt}}/y"), "/data/y");
        assert_eq!(expand("${EMPTY:-x/*.{md,txt}}/{a,b}"), "x/*.{md,txt}/{a,b}");
    }

    #[test]
    fn an_unset_variable_is_named() {
        let error = expand("${NOWHERE}/x", variables).unwrap_err();
        assert_eq!(error.to_string(), "`${NOWHERE}/x` needs the variable `NOWHERE`, which a stage does not see");
        assert_eq!(
            error.hint().unwrap(),
            "set it and name it in the job, `run: { env: [NOWHERE] }`, or write `${NOWHERE:-DEFAULT}`"
        );
        assert_eq!((error.place().unwrap(), error.exit_code()), ("${NOWHERE}/x".to_owned(), ExitCode::Pipeline));
        let error = expand("a${b", variables).unwrap_err().to_string();
        assert_eq!(error, "`a${b` opens `${` and does not close it");
    }
}
