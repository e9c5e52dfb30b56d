//! From YAML to JSON values, with the place of each in the file.

use crate::diagnostic::{Diagnostic, Place, Result};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;
use std::collections::HashMap;
use std::fmt;

/// A document, with the place of every value and key by its JSON pointer.
#[derive(Debug)]
pub(crate) struct Tree {
    pub value: Value,
    /// The file that it was read from, then those that it includes.
    files: Vec<String>,
    values: HashMap<String, At>,
    keys: HashMap<String, At>,
    /// Who gave a value that is in no file, such as `--set seed=3`.
    given: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum At {
    File {
        file: usize,
        line: u64,
        column: u64,
    },
    /// By its place in `given`.
    Given(usize),
}

impl Tree {
    /// A value that is not in a file.
    pub(crate) fn of(value: Value) -> Self {
        Self { value, files: Vec::new(), values: HashMap::new(), keys: HashMap::new(), given: Vec::new() }
    }
    /// Where the value at `pointer` stands, or what is around it.
    pub(crate) fn place(&self, pointer: &str) -> Option<Place> {
        self.find(&self.values, pointer)
    }
    /// Where the key of the entry at `pointer` stands.
    pub(crate) fn key_place(&self, pointer: &str) -> Option<Place> {
        self.find(&self.keys, pointer).filter(|_| self.keys.contains_key(pointer)).or_else(|| self.place(pointer))
    }
    fn find(&self, places: &HashMap<String, At>, pointer: &str) -> Option<Place> {
        let mut pointer = pointer;
        loop {
            if let Some(&at) = places.get(pointer).or_else(|| self.values.get(pointer)) {
                return Some(match at {
                    At::Given(number) => Place::named(&self.given[number]),
                    At::File { file, line, column } => Place { file: self.files[file].clone(), line, column },
                });
            }
            pointer = &pointer[..pointer.rfind('/')?];
        }
    }
    /// Puts `value` at `pointer`, in place of what the file says. `said`: who gives it, such as `--set seed=3`.
    pub(crate) fn set(&mut self, pointer: &str, value: Value, said: &str) {
        let below = format!("{pointer}/");
        self.values.retain(|p, _| p != pointer && !p.starts_with(&below));
        self.keys.retain(|p, _| !p.starts_with(&below));
        let place = At::Given(self.given.len());
        self.given.push(said.into());
        self.values.insert(pointer.into(), place);
        let (mut target, mut at) = (&mut self.value, String::new());
        for part in pointer.split('/').skip(1) {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            let map = target.as_object_mut().expect("made one above");
            let name = part.replace("~1", "/").replace("~0", "~");
            at += &format!("/{part}");
            if !map.contains_key(&name) {
                self.values.insert(at.clone(), place);
                self.keys.insert(at.clone(), place);
            }
            target = map.entry(name).or_insert(Value::Null);
        }
        *target = value;
    }
    /// Puts a copy of the value at `from` at `to`, where nothing is yet; it keeps its place in the file.
    pub(crate) fn copy(&mut self, from: &str, to: &str) {
        let Some(value) = self.value.pointer(from).cloned() else { return };
        let Some((above, name)) = to.rsplit_once('/') else { return };
        let Some(target) = self.value.pointer_mut(above).and_then(Value::as_object_mut) else { return };
        target.insert(name.replace("~1", "/").replace("~0", "~"), value);
        for places in [&mut self.values, &mut self.keys] {
            let copies: Vec<_> = places
                .iter()
                .filter_map(|(pointer, place)| {
                    let rest = pointer.strip_prefix(from).filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
                    Some((format!("{to}{rest}"), *place))
                })
                .collect();
            places.extend(copies);
        }
    }
    /// Whether a section has an entry.
    pub(crate) fn has(&self, section: &str, entry: &str) -> bool {
        self.value.get(section).is_some_and(|section| section.get(entry).is_some())
    }
    /// Takes those entries of a section of another file that this one has not, before or after its own; they keep their
    /// places in their files.
    pub(crate) fn take(&mut self, section: &str, other: &Tree, order: Order) {
        let Some(theirs) = other.value.get(section).and_then(Value::as_object) else { return };
        let Some(own) = self.value.as_object_mut().map(|map| map.entry(section).or_insert(Value::Null)) else { return };
        if own.is_null() {
            *own = Value::Object(Map::new());
        }
        // Anything else is an error that is told when types are checked.
        let Some(own) = own.as_object_mut() else { return };
        let new: Map<String, Value> =
            theirs.iter().filter(|(name, _)| !own.contains_key(*name)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let taken: Vec<String> = new.keys().map(|name| format!("/{section}/{}", escaped(name))).collect();
        match order {
            Order::After => own.extend(new),
            Order::Before => *own = new.into_iter().chain(std::mem::take(own)).collect(),
        }
        let first = self.files.len();
        self.files.extend(other.files.iter().cloned());
        let moved = |at: &At| match *at {
            At::File { file, line, column } => Some(At::File { file: first + file, line, column }),
            At::Given(_) => None,
        };
        for (to, from) in [(&mut self.values, &other.values), (&mut self.keys, &other.keys)] {
            let is_taken = |pointer: &str| {
                let end = pointer.match_indices('/').nth(2).map_or(pointer.len(), |(end, _)| end);
                taken.iter().any(|taken| *taken == pointer[..end])
            };
            let places = from.iter().filter(|(pointer, _)| is_taken(pointer));
            to.extend(places.filter_map(|(pointer, at)| Some((pointer.clone(), moved(at)?))));
        }
    }
}

/// Where entries of another file come to stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Before,
    After,
}

/// A key as a part of a pointer.
pub(crate) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

enum Node {
    Leaf(Value),
    List(Vec<Spanned<Node>>),
    Map(Vec<(Spanned<String>, Spanned<Node>)>),
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a YAML value")
            }
            fn visit_unit<E: Error>(self) -> std::result::Result<Node, E> {
                Ok(Node::Leaf(Value::Null))
            }
            fn visit_none<E: Error>(self) -> std::result::Result<Node, E> {
                Ok(Node::Leaf(Value::Null))
            }
            fn visit_some<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Node, D::Error> {
                d.deserialize_any(Any)
            }
            fn visit_bool<E: Error>(self, v: bool) -> std::result::Result<Node, E> {
                Ok(Node::Leaf(v.into()))
            }
            fn visit_i64<E: Error>(self, v: i64) -> std::result::Result<Node, E> {
                Ok(Node::Leaf(v.into()))
            }
            fn visit_u64<E: Error>(self, v: u64) -> std::result::Result<Node, E> {
                Ok(Node::Leaf(v.into()))
            }
            fn visit_f64<E: Error>(self, v: f64) -> std::result::Result<Node, E> {
                Number::from_f64(v)
                    .map(|n| Node::Leaf(n.into()))
                    .ok_or_else(|| E::custom(format!("{v} is not allowed here")))
            }
            fn visit_str<E: Error>(self, v: &str) -> std::result::Result<Node, E> {
                Ok(Node::Leaf(v.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Node, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Node::List(items))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Node, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Node::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Reads a document. `file` is how its name is shown.
pub(crate) fn parse(text: &str, file: &str) -> Result<Tree> {
    let options = serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true };
    let root: Spanned<Node> = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let e = e.without_snippet();
        let place = e.location().map(|l| Place { file: file.into(), line: l.line(), column: l.column() });
        let mut message = e.to_string();
        if let Some(at) = message.find(" at line ") {
            message.truncate(at);
        }
        let message = message.lines().next().unwrap_or("this is no YAML");
        let line = place.as_ref().and_then(|p| text.lines().nth((p.line as usize).checked_sub(1)?)).unwrap_or_default();
        refused(message, line).at(place)
    })?;
    let mut tree = Tree { files: vec![file.into()], ..Tree::of(Value::Null) };
    let value = flatten(root, String::new(), &mut tree);
    tree.value = value;
    Ok(tree)
}

/// The parser's error as a diagnostic with a hint; its own words are sometimes meant for programmers.
fn refused(message: &str, line: &str) -> Diagnostic {
    if message.to_lowercase().contains("duplicate") {
        let key = line.trim_start_matches([' ', '-']).split(':').next().unwrap_or_default();
        return Diagnostic::pipeline(format!("key `{key}` stands here a second time"))
            .hint("give each key of a map once");
    }
    let hint = if line.contains('\t') {
        "indent with blanks, not with tabs"
    } else if message.contains("bracket") || message.contains("flow") {
        "close every `{`, `[` and quote that is opened, with `,` between items"
    } else {
        "indent the keys of one map alike, write `key: value` with a blank after `:`, and put text that holds `: `, \
         `#`, `{` or `*` in quotes"
    };
    Diagnostic::pipeline(message.to_owned()).hint(hint)
}

fn flatten(node: Spanned<Node>, pointer: String, tree: &mut Tree) -> Value {
    let at = |line, column| At::File { file: 0, line, column };
    tree.values.insert(pointer.clone(), at(node.referenced.line(), node.referenced.column()));
    match node.value {
        Node::Leaf(value) => value,
        Node::List(items) => {
            items.into_iter().enumerate().map(|(i, item)| flatten(item, format!("{pointer}/{i}"), tree)).collect()
        }
        Node::Map(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let below = format!("{pointer}/{}", escaped(&key.value));
                tree.keys.insert(below.clone(), at(key.referenced.line(), key.referenced.column()));
                map.insert(key.value, flatten(value, below, tree));
            }
            Value::Object(map)
        }
    }
}

/// A value on the command line: YAML, so `0.5`, `[a, b]` and `true` are what they look like.
pub(crate) fn parse_value(text: &str) -> Value {
    match parse(text, "--set") {
        Ok(tree) if !text.trim().is_empty() => tree.value,
        _ => Value::String(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_value_and_key_keeps_its_place() {
        let tree = parse("name: x\njobs:\n  a: { stage: s, config: { n: 1e-3 } }\n", "p.yaml").unwrap();
        assert_eq!(tree.value["jobs"]["a"]["config"]["n"], 1e-3);
        let place = |p: Option<Place>| p.map(|p| (p.line, p.column));
        assert_eq!(place(tree.place("/jobs/a/stage")), Some((3, 15)));
        assert_eq!(place(tree.key_place("/jobs/a/config/n")), Some((3, 28)));
        assert_eq!(place(tree.place("/jobs/a/missing")), Some((3, 6)));
    }

    proptest! {
        /// Blocks of jobs with fields, at any indent, with blank lines and comments between them.
        #[test]
        fn a_key_is_where_it_was_written(
            indent in 1..5usize,
            blocks in prop::collection::vec((prop::collection::vec("[a-z]{1,5}", 0..4), 0..3usize), 1..6),
        ) {
            let (mut text, mut line, mut expected) = (String::new(), 1u64, Vec::new());
            for (number, (fields, blank)) in blocks.iter().enumerate() {
                let pointer = format!("/job{number}");
                text += &format!("job{number}: # é\n");
                expected.push((pointer.clone(), line, 1));
                line += 1;
                for (i, name) in fields.iter().enumerate() {
                    text += &format!("{:indent$}{name}{i}: {{ deep: {i} }}\n", "");
                    expected.push((format!("{pointer}/{name}{i}"), line, 1 + indent as u64));
                    let column = (indent + name.len() + format!("{i}: {{ ").len()) as u64 + 1;
                    expected.push((format!("{pointer}/{name}{i}/deep"), line, column));
                    line += 1;
                }
                text += &"\n".repeat(*blank);
                line += *blank as u64;
            }
            let tree = parse(&text, "p.yaml").unwrap();
            for (pointer, line, column) in expected {
                let place = Place { file: "p.yaml".into(), line, column };
                prop_assert_eq!(tree.key_place(&pointer), Some(place), "{} in\n{}", pointer, text);
            }
        }
    }

    #[test]
    fn broken_yaml_and_a_key_named_twice_say_where() {
        let error = parse("name: x\njobs:\n  a: {\n", "p.yaml").unwrap_err();
        assert_eq!(error.place.map(|p| p.file), Some("p.yaml".into()));
        let error = parse("jobs:\n  a: 1\n  a: 2\n", "p.yaml").unwrap_err();
        assert_eq!(error.place.map(|p| (p.line, p.column)), Some((3, 3)));
        assert_eq!(error.message, "key `a` stands here a second time");
        for (text, words) in [("name: x\njobs:\n\ta: 1\n", "tabs"), ("jobs: { a: 1\n", "close every")] {
            let error = parse(text, "p.yaml").unwrap_err();
            assert!(error.hint.as_ref().is_some_and(|h| h.contains(words)), "{error}");
        }
    }

    #[test]
    fn what_the_command_line_gave_is_named_by_its_own_words() {
        let mut tree = parse("jobs:\n  a: { stage: s }\n", "p.yaml").unwrap();
        tree.set("/jobs/a/confg/n", serde_json::json!(3), "--set a.confg.n=3");
        let place = |p: Option<Place>| p.map(|p| (p.file, p.line)).unwrap();
        assert_eq!(place(tree.key_place("/jobs/a/confg")), ("--set a.confg.n=3".into(), 0));
        assert_eq!(place(tree.place("/jobs/a/confg/n")), ("--set a.confg.n=3".into(), 0));
        assert_eq!(place(tree.place("/jobs/a/stage")), ("p.yaml".into(), 2));
    }

    #[test]
    fn a_value_on_the_command_line_is_what_it_looks_like() {
        assert_eq!(parse_value("3"), 3);
        assert_eq!(parse_value("[a, 2]"), serde_json::json!(["a", 2]));
        assert_eq!(parse_value("docs/*.md"), "docs/*.md");
        assert_eq!(parse_value("*.md"), "*.md");
        assert_eq!(parse_value("yes"), "yes");
    }
}
