//! What a Jinja template finds in Python: methods, `tojson`, the clock, and how values are printed.

use chrono::DateTime;
use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use std::fmt::Write as _;
use std::io;

pub(crate) fn add_to(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(print);
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |what: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, what))
    });
    environment.add_function("strftime_now", |format: String| strftime(now(), &format));
}

/// Python's methods: minijinja-contrib's, and those that it lacks.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match name {
            "removeprefix" | "removesuffix" => {
                let (part,): (&str,) = from_args(args)?;
                let rest = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
                return Ok(rest.unwrap_or(text).into());
            }
            "rsplit" => {
                let (by, most): (Option<&str>, Option<usize>) = from_args(args)?;
                let by = by
                    .ok_or_else(|| Error::new(ErrorKind::MissingArgument, "rsplit needs the text that it splits by"))?;
                let mut parts: Vec<&str> = match most {
                    Some(most) => text.rsplitn(most + 1, by).collect(),
                    None => text.rsplit(by).collect(),
                };
                parts.reverse();
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            "partition" | "rpartition" => {
                let (by,): (&str,) = from_args(args)?;
                let found = if name == "partition" { text.split_once(by) } else { text.rsplit_once(by) };
                let parts = match (found, name) {
                    (Some((before, after)), _) => [before, by, after],
                    (None, "partition") => [text, "", ""],
                    (None, _) => ["", "", text],
                };
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Prints as `str` does: nothing for what is undefined, and `None`, `True`, lists and dicts as Python writes them.
fn print(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let mut text = String::new();
    match value.as_str() {
        Some(plain) => text.push_str(plain),
        None if value.is_undefined() => {}
        None => repr(value, &mut text)?,
    }
    out.write_str(&text).map_err(Error::from)
}

fn repr(value: &Value, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&item, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                repr(&key, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, out)?;
            }
            out.push('}');
        }
        _ => write!(out, "{value}").map_err(Error::from)?,
    }
    Ok(())
}

/// A text as Python's `repr` quotes it.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
}

/// JSON as Python's `json.dumps` spaces it, with transformers' arguments; nothing is escaped for HTML.
fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<usize>>("indent")?,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    let is_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let is_sorted = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let cannot = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "this value has no form in JSON").with_source(error)
    };
    let mut json = serde_json::to_value(value).map_err(cannot)?;
    if is_sorted {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    match (indent, separators.as_deref()) {
        (Some(indent), _) => {
            let spaces = " ".repeat(indent);
            json.serialize(&mut Serializer::with_formatter(&mut bytes, PrettyFormatter::with_indent(spaces.as_bytes())))
        }
        (None, Some([item, key])) => {
            json.serialize(&mut Serializer::with_formatter(&mut bytes, Spaced { item: item.clone(), key: key.clone() }))
        }
        (None, _) => {
            let spaced = Spaced { item: ", ".into(), key: ": ".into() };
            json.serialize(&mut Serializer::with_formatter(&mut bytes, spaced))
        }
    }
    .map_err(cannot)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(if is_ascii { ascii(&text).into() } else { text.as_ref().into() })
}

/// What is not ASCII as UTF-16 escapes; in JSON it stands only inside texts.
fn ascii(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            c if c.is_ascii() => out.push(c),
            c => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out
}

struct Spaced {
    item: String,
    key: String,
}

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.item.as_bytes()) }
    }
    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(self.item.as_bytes()) }
    }
    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }
}

/// Seconds since 1970. `SOURCE_DATE_EPOCH`, the usual way to fix the date of a build, fixes it here too.
fn now() -> i64 {
    let fixed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |passed| passed.as_secs() as i64);
    fixed.unwrap_or_else(clock)
}

/// A date in UTC, so that machines in different zones agree.
pub(crate) fn strftime(seconds: i64, format: &str) -> Result<String, Error> {
    let mut text = String::new();
    let written = DateTime::from_timestamp(seconds, 0).map(|date| write!(text, "{}", date.format(format)));
    match written {
        Some(Ok(())) => Ok(text),
        _ => Err(Error::new(ErrorKind::InvalidOperation, format!("`{format}` is no format of strftime"))),
    }
}
