//! From the globs of a pipeline to files, each with a name that is the same on every machine.
//!
//! A document's id is its file's name relative to a root, so that the same content on another machine gives the same
//! bytes. The root is the part of a glob that `/./` ends, as rsync has it, and without one the longest directory free
//! of wildcards: `~/notes/**/*.md` names `2024/may.md`; `~/.cargo/registry/src/*/./serde-1*/**/*.rs` names
//! `serde-1.0.200/src/lib.rs`, whatever the registry's folder is called there.

use std::path::Path;

use crate::error::IngestError;
use smelt_stage::files::Found;

/// The globs that a pattern with `{a,b}` stands for; braces may stand side by side, not inside one another.
fn alternatives(pattern: &str) -> Result<Vec<String>, IngestError> {
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![pattern.to_owned()]) };
    let closed = rest.split_once('}').filter(|(inside, _)| !inside.contains('{'));
    let (inside, after) = closed.ok_or_else(|| {
        IngestError::config(pattern, format!("`{pattern}` opens `{{` and does not close it before the next"))
    })?;
    let after = alternatives(after)?;
    Ok(inside.split(',').flat_map(|one| after.iter().map(move |after| format!("{before}{one}{after}"))).collect())
}

/// The files that one expanded pattern matches, sorted by name; folders are left out, hidden ones are not entered.
pub fn matches(pattern: &str) -> Result<Vec<Found>, IngestError> {
    let mut found = Vec::new();
    for glob in alternatives(pattern)? {
        found.extend(matches_of(&glob)?);
    }
    found.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    Ok(found)
}

fn matches_of(pattern: &str) -> Result<Vec<Found>, IngestError> {
    let (root, glob) = root_of(pattern);
    let options =
        glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    let walk = glob::glob_with(&glob, options).map_err(|e| {
        IngestError::config(pattern, format!("`{pattern}` is no glob: {} at character {}", e.msg, e.pos))
    })?;
    let mut found = Vec::new();
    for path in walk {
        let path = path.map_err(|e| {
            let name = e.path().display().to_string();
            IngestError::Read { name, source: e.into() }
        })?;
        let meta = std::fs::metadata(&path)
            .map_err(|source| IngestError::Read { name: path.display().to_string(), source })?;
        if meta.is_file() {
            found.push(Found { name: name_of(&path, root)?, bytes: meta.len(), path });
        }
    }
    Ok(found)
}

/// Where names begin.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Root {
    /// Components of the path that belong to the root.
    components: usize,
}

/// The root of a glob, and the glob without its `/./`.
fn root_of(pattern: &str) -> (Root, String) {
    if let Some((root, rest)) = pattern.split_once("/./") {
        return (Root { components: components(root) }, format!("{root}/{rest}"));
    }
    let wildcard = pattern.find(['*', '?', '[']).unwrap_or(pattern.len());
    let root = pattern[..wildcard].rfind('/').map_or("", |slash| &pattern[..slash]);
    (Root { components: components(root) }, pattern.to_owned())
}

fn components(path: &str) -> usize {
    // `/` alone, or nothing, still counts the root directory of an absolute path.
    let absolute = Path::new(path).components().count();
    if path.is_empty() { 0 } else { absolute }
}

fn name_of(path: &Path, root: Root) -> Result<String, IngestError> {
    let mut parts = Vec::new();
    let skipped = path.components().filter(|c| !matches!(c, std::path::Component::CurDir)).skip(root.components);
    for part in skipped {
        let part = part.as_os_str().to_str().ok_or_else(|| {
            let name = path.display().to_string();
            IngestError::data(&name, format!("the file name `{name}` is not UTF-8")).with_hint("rename the file")
        })?;
        if part != "/" {
            parts.push(part);
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_begin_after_the_marker_or_the_last_plain_folder() {
        let name = |pattern: &str, path: &str| name_of(Path::new(path), root_of(pattern).0).unwrap();
        assert_eq!(name("/data/**/*.md", "/data/a/b.md"), "a/b.md");
        assert_eq!(name("/data/x-*/b.md", "/data/x-1/b.md"), "x-1/b.md");
        assert_eq!(name("/src/*/./serde-1*/**/*.rs", "/src/host/serde-1.0/lib.rs"), "serde-1.0/lib.rs");
        assert_eq!(name("/data/one.md", "/data/one.md"), "one.md");
        assert_eq!(name("*.md", "a.md"), "a.md");
        assert_eq!(name("docs/*.md", "docs/a.md"), "a.md");
        assert_eq!(name("/*.md", "/a.md"), "a.md");
    }

    #[test]
    fn braces_name_several() {
        assert_eq!(alternatives("a/{b,c}*/{d,}.x").unwrap(), ["a/b*/d.x", "a/b*/.x", "a/c*/d.x", "a/c*/.x"]);
        assert_eq!(alternatives("plain").unwrap(), ["plain"]);
        for wrong in ["a{b", "a{b{c,d},e}"] {
            let error = alternatives(wrong).unwrap_err().to_string();
            assert_eq!(error, format!("`{wrong}` opens `{{` and does not close it before the next"));
        }
    }

    #[test]
    fn a_wrong_glob_says_where() {
        let error = matches("/nowhere/a[").unwrap_err().to_string();
        assert!(error.starts_with("`/nowhere/a[` is no glob: "), "{error}");
    }
}
