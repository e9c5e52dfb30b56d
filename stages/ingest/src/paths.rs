//! From the globs of a pipeline to files, each with a name that is the same on every machine.
//!
//! A document's id is its file's name relative to a root, so that the same content on another machine gives the same
//! bytes. The root is the part of a glob that `/./` ends, as rsync has it, and without one the longest directory free
//! of wildcards: `~/notes/**/*.md` names `2024/may.md`; `~/.cargo/registry/src/*/./serde-1*/**/*.rs` names
//! `serde-1.0.200/src/lib.rs`, whatever the registry's folder is called there.
//!
//! The walk goes component by component: a pattern that begins with plain folders lists nothing else. The crate `glob`
//! matches one component; its own walk follows links in a circle and cannot hold a name that is not UTF-8.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::error::IngestError;
use glob::{MatchOptions, Pattern};
use smelt_stage::files::Found;

/// What a pattern matches.
#[derive(Debug, Default)]
pub struct Matches {
    /// Sorted by name.
    pub files: Vec<Found>,
    /// Links to nothing, which are left out.
    pub dead: Vec<String>,
    /// What is wrong with a pattern that matches no file, if that can be told.
    pub hint: Option<String>,
}

/// The globs that a pattern with `{a,b}` stands for; braces may stand side by side, not inside one another.
pub(crate) fn alternatives(pattern: &str) -> Result<Vec<String>, IngestError> {
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![pattern.to_owned()]) };
    let closed = rest.split_once('}').filter(|(inside, _)| !inside.contains('{'));
    let (inside, after) = closed.ok_or_else(|| {
        IngestError::config(pattern, format!("`{pattern}` opens `{{` and does not close it before the next"))
    })?;
    let after = alternatives(after)?;
    Ok(inside.split(',').flat_map(|one| after.iter().map(move |after| format!("{before}{one}{after}"))).collect())
}

/// The file that holds what came on standard input, where the runner was asked to read it; it is called `stdin`.
fn standard_input(variable: Option<OsString>) -> Result<Matches, IngestError> {
    let none = || {
        IngestError::config("-", "`-` is standard input, and none was given").with_hint(
            "add `--stdin`: `zcat data.jsonl.gz | smelt run --stdin`; a later call needs the same data again",
        )
    };
    let path = variable.map(PathBuf::from).ok_or_else(none)?;
    let cannot = |source| IngestError::Read { name: "stdin".into(), source };
    let bytes = fs::metadata(&path).map_err(cannot)?.len();
    Ok(Matches { files: vec![Found { name: "stdin".into(), path, bytes }], ..Matches::default() })
}

/// The files that one expanded pattern matches. Hidden ones are matched by a pattern that begins with a dot alone.
///
/// Below `**` every folder is entered once, by its own name rather than by a link, so a circle of links ends.
pub fn matches(pattern: &str) -> Result<Matches, IngestError> {
    if pattern == "-" {
        return standard_input(std::env::var_os("SMELT_STDIN"));
    }
    if let Some((scheme, rest)) = pattern.split_once("://") {
        return Err(address(pattern, scheme, rest));
    }
    let mut all = Matches::default();
    let mut folders = 0;
    for glob in alternatives(pattern)? {
        let (root, glob) = root_of(&glob);
        let mut walk = Walk::default();
        let start = if glob.starts_with('/') { PathBuf::from("/") } else { PathBuf::new() };
        walk.step(start, &parts(&glob)?)?;
        folders += walk.folders;
        all.dead.extend(walk.dead.iter().map(|path| name_of(path, root)));
        let found = walk.files.into_iter().map(|(path, bytes)| Found { name: name_of(&path, root), bytes, path });
        all.files.extend(found);
    }
    all.files.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    all.files.dedup();
    if all.files.is_empty() {
        if Path::new(pattern).is_dir() {
            let what = format!("`{pattern}` is a folder");
            let all_below = format!("{}/**/*", pattern.trim_end_matches('/'));
            return Err(IngestError::config(pattern, what).with_hint(format!("`{all_below}` names all files below it")));
        }
        all.hint = hint(pattern, folders, &all.dead);
    }
    Ok(all)
}

fn address(pattern: &str, scheme: &str, rest: &str) -> IngestError {
    let what = format!("`{pattern}` is an address of a kind that is not read; s3://, https:// and http:// are");
    IngestError::config(pattern, what).with_hint(match scheme {
        "file" => format!("write the path alone: `{}`", rest.trim_start_matches("localhost")),
        "hf" => {
            "write the address of each file, `https://huggingface.co/datasets/NAME/resolve/main/FILE`, or fetch them \
                 first with `hf download --repo-type dataset NAME --local-dir data`"
                .into()
        }
        _ => "fetch the files first, and write where they lie".into(),
    })
}

/// What may be wrong with a pattern that matches no file.
fn hint(pattern: &str, folders: usize, dead: &[String]) -> Option<String> {
    if let Some(link) = dead.first() {
        return Some(format!("`{link}` is a link to nothing"));
    }
    if folders > 0 {
        let below = format!("{}/**/*", pattern.trim_end_matches('/'));
        return Some(format!("it matches {folders} folders: `{below}` names the files below them"));
    }
    let after_dollar = pattern.split('$').nth(1).filter(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()));
    if let Some(rest) = after_dollar {
        let name = rest.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).next().unwrap_or(rest);
        return Some(format!("a variable is written with braces: `${{{name}}}`"));
    }
    if pattern.starts_with('~') && !pattern.starts_with("~/") {
        return Some("only `~/` is filled in, with your own home folder".into());
    }
    let class = pattern.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    class.map(|(class, _)| {
        format!("`[{class}]` stands for one of its characters; a name with brackets is written `[[]{class}]`")
    })
}

/// One component of a glob.
enum Part {
    Plain(String),
    /// `**`
    Any,
    Wild(Pattern),
}

fn parts(glob: &str) -> Result<Vec<Part>, IngestError> {
    let part = |text: &str| match text {
        "**" => Ok(Part::Any),
        text if text.contains(['*', '?', '[']) => Pattern::new(text).map(Part::Wild).map_err(|e| {
            IngestError::config(glob, format!("`{glob}` is no glob: {} at character {} of `{text}`", e.msg, e.pos))
        }),
        text => Ok(Part::Plain(text.to_owned())),
    };
    glob.split('/').filter(|text| !text.is_empty()).map(part).collect()
}

/// What is found on the way.
#[derive(Default)]
struct Walk {
    files: Vec<(PathBuf, u64)>,
    dead: Vec<PathBuf>,
    folders: usize,
}

impl Walk {
    fn step(&mut self, at: PathBuf, parts: &[Part]) -> Result<(), IngestError> {
        let Some((part, rest)) = parts.split_first() else { return self.take(at) };
        match part {
            Part::Plain(name) => {
                let next = at.join(name);
                match rest.is_empty() && fs::symlink_metadata(&next).is_ok() || next.is_dir() {
                    true => self.step(next, rest),
                    false => Ok(()),
                }
            }
            Part::Wild(pattern) => {
                for (name, _) in entries(&at)? {
                    let next = at.join(&name);
                    if fits(pattern, &name) && (rest.is_empty() || next.is_dir()) {
                        self.step(next, rest)?;
                    }
                }
                Ok(())
            }
            Part::Any => self.below(at, rest),
        }
    }

    /// `rest` from every folder at and below `top`.
    fn below(&mut self, top: PathBuf, rest: &[Part]) -> Result<(), IngestError> {
        let (mut seen, mut open, mut links) = (BTreeSet::new(), vec![top], Vec::new());
        // Links are followed when all that lies here by its own name was seen.
        while let Some(folder) = open.pop().or_else(|| links.pop()) {
            let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder.as_path() };
            let Ok(meta) = fs::metadata(here) else { continue };
            if !meta.is_dir() || !seen.insert((meta.dev(), meta.ino())) {
                continue;
            }
            let mut inside = entries(&folder)?;
            inside.retain(|(name, _)| !name.as_bytes().starts_with(b"."));
            for (name, is_link) in inside.iter().rev() {
                let next = folder.join(name);
                if next.is_dir() {
                    if *is_link { links.push(next) } else { open.push(next) }
                } else if rest.is_empty() {
                    self.take(next)?;
                }
            }
            if !rest.is_empty() {
                self.step(folder, rest)?;
            }
        }
        Ok(())
    }

    /// A path that the whole pattern matches.
    fn take(&mut self, path: PathBuf) -> Result<(), IngestError> {
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => self.files.push((path, meta.len())),
            Ok(meta) => self.folders += usize::from(meta.is_dir()),
            // The name was there a moment ago: its target is not, or the link leads to itself.
            Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(ELOOP) => self.dead.push(path),
            Err(source) => return Err(IngestError::Read { name: path.display().to_string(), source }),
        }
        Ok(())
    }
}

/// "Too many levels of symbolic links", which has no stable `ErrorKind`.
const ELOOP: i32 = 40;

/// The names in a folder, sorted, and whether each is a link. What is no folder has none.
fn entries(folder: &Path) -> Result<Vec<(OsString, bool)>, IngestError> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let cannot = |source| IngestError::Read { name: here.display().to_string(), source };
    let list = match fs::read_dir(here) {
        Ok(list) => list,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        Err(e) => return Err(cannot(e)),
    };
    let named = |entry: fs::DirEntry| (entry.file_name(), entry.file_type().is_ok_and(|of| of.is_symlink()));
    let mut found = list.map(|entry| entry.map(named).map_err(cannot)).collect::<Result<Vec<_>, _>>()?;
    found.sort();
    Ok(found)
}

fn fits(pattern: &Pattern, name: &OsStr) -> bool {
    let options =
        MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };
    pattern.matches_with(&name.to_string_lossy(), options)
}

/// Where names begin.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Root {
    /// Components of the path that belong to the root.
    components: usize,
}

/// The root of a glob, and the glob without its `/./`.
pub(crate) fn root_of(pattern: &str) -> (Root, String) {
    if let Some((root, rest)) = pattern.split_once("/./") {
        return (Root { components: components(root) }, format!("{root}/{rest}"));
    }
    let wildcard = pattern.find(['*', '?', '[']).unwrap_or(pattern.len());
    let root = pattern[..wildcard].rfind('/').map_or("", |slash| &pattern[..slash]);
    (Root { components: components(root) }, pattern.to_owned())
}

/// Components of a root; `/` alone is one.
fn components(path: &str) -> usize {
    let path = Path::new(path);
    path.components().filter(|c| !matches!(c, Component::CurDir)).count()
}

/// The path from its root on. Bytes that are no UTF-8 are written as `\xe9`.
pub(crate) fn name_of(path: &Path, root: Root) -> String {
    let mut name = String::new();
    for part in path.components().filter(|c| !matches!(c, Component::CurDir)).skip(root.components) {
        if matches!(part, Component::RootDir) {
            continue;
        }
        if !name.is_empty() {
            name.push('/');
        }
        for chunk in part.as_os_str().as_bytes().utf8_chunks() {
            name.push_str(chunk.valid());
            name.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_stage::Fault;

    #[test]
    fn a_hyphen_is_standard_input() {
        let error = standard_input(None).unwrap_err();
        assert_eq!(error.to_string(), "`-` is standard input, and none was given");
        let hint = "add `--stdin`: `zcat data.jsonl.gz | smelt run --stdin`; a later call needs the same data again";
        assert_eq!(error.hint().unwrap(), hint);
        let this = std::env::current_exe().unwrap();
        let found = standard_input(Some(this.clone().into())).unwrap().files;
        let bytes = fs::metadata(&this).unwrap().len();
        assert_eq!(found, [Found { name: "stdin".into(), path: this, bytes }]);
    }

    #[test]
    fn names_begin_after_the_marker_or_the_last_plain_folder() {
        let name = |pattern: &str, path: &str| name_of(Path::new(path), root_of(pattern).0);
        assert_eq!(name("/data/**/*.md", "/data/a/b.md"), "a/b.md");
        assert_eq!(name("/data/x-*/b.md", "/data/x-1/b.md"), "x-1/b.md");
        assert_eq!(name("/src/*/./serde-1*/**/*.rs", "/src/host/serde-1.0/lib.rs"), "serde-1.0/lib.rs");
        assert_eq!(name("/data/one.md", "/data/one.md"), "one.md");
        assert_eq!(name("*.md", "a.md"), "a.md");
        assert_eq!(name("docs/*.md", "docs/a.md"), "a.md");
        assert_eq!(name("./docs/*.md", "./docs/a.md"), "a.md");
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

    #[test]
    fn a_pattern_that_matches_nothing_is_explained() {
        let hint = |pattern: &str| matches(pattern).unwrap().hint.unwrap_or_default();
        assert_eq!(hint("/nowhere/$HOME/*.md"), "a variable is written with braces: `${HOME}`");
        assert_eq!(hint("~ada/*.md"), "only `~/` is filled in, with your own home folder");
        assert_eq!(
            hint("/nowhere/[2024]/*.md"),
            "`[2024]` stands for one of its characters; a name with brackets is written `[[]2024]`"
        );
        assert_eq!(hint("/nowhere/*.md"), "");
        assert!(hint("/us?").starts_with("it matches 1 folders: `/us?/**/*` names"));
    }
}
