//! `smelt init`: a pipeline for one's own text, with comments, ready to run.

use crate::diagnostic::{Diagnostic, Result};
use serde_json::json;
use smelt_schemas::ExitCode;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

const TEMPLATE: &str = include_str!("init/pipeline.yaml");

/// Writes the pipeline; a file that is there is left alone.
pub(crate) fn run(paths: &[String], output: &Path) -> Result<()> {
    let text = pipeline(&name(output), paths);
    let cannot = |e: std::io::Error| match e.kind() {
        ErrorKind::AlreadyExists => Diagnostic::pipeline(format!("`{}` is there already", output.display()))
            .hint("name another file with `--output`"),
        _ => Diagnostic::new(ExitCode::Machine, format!("`{}` cannot be written: {e}", output.display())),
    };
    let mut file = File::create_new(output).map_err(cannot)?;
    file.write_all(text.as_bytes()).map_err(cannot)?;
    let file = output.display().to_string();
    println!("{file} is written. Next:\n");
    let file = quoted(&file);
    let next = [
        (format!("smelt check {file}"), "finds the files, checks every value; runs nothing"),
        (format!("smelt run {file}"), "makes the model; a second call goes on where the first one stopped"),
        ("smelt status".into(), "how far it is"),
        ("smelt report --html report.html".into(), "curves, drops, scores"),
    ];
    let width = next.iter().map(|(command, _)| command.chars().count()).max().unwrap_or(0);
    next.iter().for_each(|(command, does)| println!("  {command:width$}  {does}"));
    Ok(())
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    match text.chars().all(|c| c.is_alphanumeric() || "-_./~".contains(c)) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// What the file is called, as a pipeline may be called.
fn name(output: &Path) -> String {
    let stem = output.file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_lowercase()).to_owned();
    if name.is_empty() { "own".into() } else { name }
}

fn pipeline(name: &str, paths: &[String]) -> String {
    TEMPLATE.replacen("NAME", name, 1).replacen("PATHS", &json!(paths).to_string(), 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pipeline_is_called_as_its_file() {
        for (file, expected) in [("pipeline.yaml", "pipeline"), ("a/My Notes.yaml", "my_notes"), ("1.yaml", "own")] {
            assert_eq!(name(Path::new(file)), expected);
        }
        let text = pipeline("own", &["a \"b\"/**/*.md".into()]);
        assert!(text.contains("name: own\n") && text.contains(r#"paths: ["a \"b\"/**/*.md"]"#), "{text}");
    }
}
