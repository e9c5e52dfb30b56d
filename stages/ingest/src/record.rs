//! A record of a file in any format: what its fields mean, and the document that it becomes.

use serde_json::{Map, Value};
use smelt_stage::kinds::Micros;

use crate::error::IngestError;
use crate::time::time;

/// What the fields of a record mean.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    /// The name of a field, or a path to one inside an object: `message.body`.
    pub text: &'a str,
    /// If `None`, a record is named by its number, from 0.
    pub id: Option<&'a str>,
    /// The other fields that are kept; if `None`, all of them.
    pub metadata: Option<&'a [String]>,
}

/// One record, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub place: Place,
    pub fields: Map<String, Value>,
}

/// Where something stands in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    /// Of the record in its file, from 0; names a record that has no id. `None` if the file is the record.
    pub number: Option<u64>,
    /// `line 3`, `row 2`: what the number below counts.
    pub unit: &'static str,
    /// What an editor shows.
    pub at: u64,
}

impl Place {
    /// Of a file that is one page.
    pub(crate) fn whole(file: &str) -> Self {
        Self { file: file.into(), number: None, unit: "page", at: 1 }
    }

    pub(crate) fn id(&self) -> String {
        self.number.map_or_else(|| self.file.clone(), |number| format!("{}#{number}", self.file))
    }

    pub(crate) fn bad(&self, rule: &'static str, what: impl Into<String>) -> Bad {
        let told = format!("`{}` {} {}: {}", self.file, self.unit, self.at, what.into());
        Bad { id: self.id(), rule, value: Some(self.at as f64), at: Some(self.at), told, hint: None }
    }
}

/// What is read, and gives no document.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    pub id: String,
    pub rule: &'static str,
    pub value: Option<f64>,
    pub note: String,
}

/// Why a record, or a whole file, is not read.
#[derive(Clone, Debug, PartialEq)]
pub struct Bad {
    pub id: String,
    pub rule: &'static str,
    /// Line or row, or the offset of a byte.
    pub value: Option<f64>,
    /// The record's line or row; `None` where the file as a whole is not read.
    pub at: Option<u64>,
    /// Where it stands and what is wrong, in one sentence.
    pub told: String,
    pub hint: Option<String>,
}

impl Bad {
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error of a job that stops at the first bad record.
    pub fn stop(self) -> IngestError {
        const POLICY: &str = "set `bad_records: drop` to leave such records out";
        let file = self.id.rsplit_once('#').map_or(self.id.as_str(), |(file, _)| file);
        let place = self.at.map_or_else(|| self.id.clone(), |at| format!("{file}:{at}"));
        let hint = self.hint.as_ref().map_or(POLICY.to_owned(), |hint| format!("{hint}; or {POLICY}"));
        IngestError::data(place, self.told).with_hint(hint)
    }
}

/// A document as it is in the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Raw {
    /// Unique in the dataset: the file's name, and for records `#` and the record's id or number.
    pub id: String,
    pub text: String,
    pub url: Option<String>,
    pub language: Option<String>,
    /// From the first of [`TIME_FIELDS`] in which the record has a time.
    pub time: Option<Micros>,
    /// A value of one of those fields when none of them is a time.
    pub no_time: Option<String>,
    /// The record's other fields, as a JSON object; a field that `time` comes from stays in it as it was written.
    pub metadata: Option<String>,
}

/// Fields of records that may say when a document was written, in the order in which they are tried.
pub const TIME_FIELDS: [&str; 3] = ["time", "timestamp", "date"];

impl Record {
    /// The document, or what is wrong with the record.
    pub fn document(mut self, fields: Fields<'_>) -> Result<Raw, Bad> {
        let text = match self.take(fields.text) {
            Some(Value::String(text)) => text,
            Some(other) => {
                let what = format!("field `{}` is {}, expected a string", fields.text, type_of(&other));
                return Err(self.place.bad(if other.is_null() { "no_text" } else { "not_text" }, what));
            }
            None => {
                let bad = self.place.bad("no_text", format!("no field `{}`", fields.text));
                let chat = ["messages", "conversations", "prompt", "question", "chosen"];
                let hint = match chat.iter().find(|field| self.fields.contains_key(**field)) {
                    Some(field) => format!(
                        "set `text_field`, or for `{field}` set `kind` to `conversations`, `prompts` or `preferences`; \
                         the record has {}",
                        self.known()
                    ),
                    None => format!("set `text_field`; the record has {}", self.known()),
                };
                return Err(bad.hint(hint));
            }
        };
        let id = self.id(fields.id)?;
        let mut take = |field: &str| match self.fields.get(field) {
            Some(Value::String(_)) => self.fields.shift_remove(field).and_then(|v| v.as_str().map(str::to_owned)),
            _ => None,
        };
        let (url, language) = (take("url"), take("language"));
        let said = || TIME_FIELDS.iter().filter_map(|field| self.fields.get(*field)).filter(|v| !v.is_null());
        let time = said().find_map(|value| time(value.as_str()?));
        let no_time = if time.is_none() { said().next().map(Value::to_string) } else { None };
        if let Some(kept) = fields.metadata {
            self.fields.retain(|name, _| kept.contains(name));
        }
        let metadata = (!self.fields.is_empty()).then(|| Value::Object(self.fields).to_string());
        Ok(Raw { id, text, url, language, time, no_time, metadata })
    }

    /// The record's name in the dataset: its file, and its id or number.
    pub(crate) fn id(&mut self, field: Option<&str>) -> Result<String, Bad> {
        let Some(field) = field else { return Ok(self.place.id()) };
        match self.take(field) {
            Some(Value::String(id)) => Ok(format!("{}#{id}", self.place.file)),
            Some(Value::Number(id)) => Ok(format!("{}#{id}", self.place.file)),
            Some(other) => {
                let found = type_of(&other);
                Err(self.place.bad("no_id", format!("field `{field}` is {found}, expected a string or a number")))
            }
            None => Err(self
                .place
                .bad("no_id", format!("no field `{field}`"))
                .hint("set `id_field`, or leave it out to number records")),
        }
    }

    /// Removes the field of that name, or the one that the path leads to; an object that is empty then goes as well.
    pub(crate) fn take(&mut self, path: &str) -> Option<Value> {
        take(&mut self.fields, path)
    }

    /// The names of the fields, for a hint.
    pub(crate) fn known(&self) -> String {
        let known: Vec<String> = self.fields.keys().map(|key| format!("`{key}`")).collect();
        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
    }
}

fn take(fields: &mut Map<String, Value>, path: &str) -> Option<Value> {
    if let Some(value) = fields.shift_remove(path) {
        return Some(value);
    }
    let (root, rest) = path.split_once('.')?;
    let inside = fields.get_mut(root)?.as_object_mut()?;
    let found = take(inside, rest);
    if inside.is_empty() {
        fields.shift_remove(root);
    }
    found
}

pub(crate) fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
