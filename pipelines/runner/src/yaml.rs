//! YAML to JSON values that remember where they stood.

use crate::diagnostic::{Diagnostic, Place, Result};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;
use std::collections::HashMap;
use std::fmt;

/// A document, with the place of every value and key by its JSON pointer.
#[derive(Debug)]
pub struct Tree {
    pub value: Value,
    file: String,
    values: HashMap<String, (u64, u64)>,
    keys: HashMap<String, (u64, u64)>,
}

impl Tree {
    /// Where the value at `pointer` stands, or what is around it.
    pub fn place(&self, pointer: &str) -> Option<Place> {
        self.find(&self.values, pointer)
    }
    /// Where the key of the entry at `pointer` stands.
    pub fn key_place(&self, pointer: &str) -> Option<Place> {
        self.find(&self.keys, pointer).filter(|_| self.keys.contains_key(pointer)).or_else(|| self.place(pointer))
    }
    fn find(&self, places: &HashMap<String, (u64, u64)>, pointer: &str) -> Option<Place> {
        let mut pointer = pointer;
        loop {
            if let Some(&(line, column)) = places.get(pointer).or_else(|| self.values.get(pointer)) {
                let file = if (line, column) == FROM_COMMAND_LINE { "--set" } else { &self.file };
                return Some(Place { file: file.into(), line, column });
            }
            pointer = &pointer[..pointer.rfind('/')?];
        }
    }
    /// Puts `value` at `pointer`, in place of what the file says.
    pub fn set(&mut self, pointer: &str, value: Value) {
        let below = format!("{pointer}/");
        self.values.retain(|p, _| p != pointer && !p.starts_with(&below));
        self.keys.retain(|p, _| p != pointer && !p.starts_with(&below));
        self.values.insert(pointer.into(), FROM_COMMAND_LINE);
        let mut target = &mut self.value;
        for part in pointer.split('/').skip(1) {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            let map = target.as_object_mut().expect("made one above");
            target = map.entry(part.replace("~1", "/").replace("~0", "~")).or_insert(Value::Null);
        }
        *target = value;
    }
}

/// The place of a value that `--set` gave.
const FROM_COMMAND_LINE: (u64, u64) = (0, 0);

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
pub fn parse(text: &str, file: &str) -> Result<Tree> {
    let options = serde_saphyr::options! { strict_booleans: true, leading_zero_numbers_as_strings: true };
    let root: Spanned<Node> = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let e = e.without_snippet();
        let place = e.location().map(|l| Place { file: file.into(), line: l.line(), column: l.column() });
        let mut message = e.to_string();
        if let Some(at) = message.find(" at line ") {
            message.truncate(at);
        }
        Diagnostic::pipeline(message.lines().next().unwrap_or("this is no YAML").to_owned()).at(place)
    })?;
    let mut tree = Tree { value: Value::Null, file: file.into(), values: HashMap::new(), keys: HashMap::new() };
    let value = flatten(root, String::new(), &mut tree);
    tree.value = value;
    Ok(tree)
}

fn flatten(node: Spanned<Node>, pointer: String, tree: &mut Tree) -> Value {
    tree.values.insert(pointer.clone(), (node.referenced.line(), node.referenced.column()));
    match node.value {
        Node::Leaf(value) => value,
        Node::List(items) => {
            items.into_iter().enumerate().map(|(i, item)| flatten(item, format!("{pointer}/{i}"), tree)).collect()
        }
        Node::Map(entries) => {
            let mut map = Map::new();
            for (key, value) in entries {
                let below = format!("{pointer}/{}", key.value.replace('~', "~0").replace('/', "~1"));
                tree.keys.insert(below.clone(), (key.referenced.line(), key.referenced.column()));
                map.insert(key.value, flatten(value, below, tree));
            }
            Value::Object(map)
        }
    }
}

/// A value on the command line: YAML, so `0.5`, `[a, b]` and `true` are what they look like.
pub fn parse_value(text: &str) -> Value {
    match parse(text, "--set") {
        Ok(tree) if !text.trim().is_empty() => tree.value,
        _ => Value::String(text.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_and_key_keeps_its_place() {
        let tree = parse("name: x\njobs:\n  a: { stage: s, config: { n: 1e-3 } }\n", "p.yaml").unwrap();
        assert_eq!(tree.value["jobs"]["a"]["config"]["n"], 1e-3);
        let place = |p: Option<Place>| p.map(|p| (p.line, p.column));
        assert_eq!(place(tree.place("/jobs/a/stage")), Some((3, 15)));
        assert_eq!(place(tree.key_place("/jobs/a/config/n")), Some((3, 28)));
        assert_eq!(place(tree.place("/jobs/a/missing")), Some((3, 6)));
    }

    #[test]
    fn broken_yaml_and_a_key_named_twice_say_where() {
        let error = parse("name: x\njobs:\n  a: {\n", "p.yaml").unwrap_err();
        assert_eq!(error.place.map(|p| p.file), Some("p.yaml".into()));
        let error = parse("jobs:\n  a: 1\n  a: 2\n", "p.yaml").unwrap_err();
        assert_eq!(error.place.map(|p| (p.line, p.column)), Some((3, 3)));
        assert!(error.message.contains("duplicate"), "{}", error.message);
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
