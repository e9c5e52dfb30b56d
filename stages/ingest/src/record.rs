//! A record of a file in any format: what its fields mean, and the document that it becomes.

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use smelt_stage::kinds::Micros;

/// What the fields of a record mean.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    pub text: &'a str,
    /// If `None`, a record is named by its number, from 0.
    pub id: Option<&'a str>,
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
    /// The record's other fields, as a JSON object; a field that `time` comes from stays in it as it was written.
    pub metadata: Option<String>,
}

/// Fields of records that may say when a document was written, in the order in which they are tried.
pub const TIME_FIELDS: [&str; 3] = ["time", "timestamp", "date"];

/// Reads ISO 8601: `2024-05-01`, `2024-05-01T12:30:00Z`, `2024-05-01 12:30:00.5+02:00`; without an offset it is UTC.
/// Anything else is not a time, a bare number included: its unit is not known.
pub(crate) fn time(text: &str) -> Option<Micros> {
    let nanos = string_to_timestamp_nanos(text.trim()).ok()?;
    Some(Micros(nanos.div_euclid(1000)))
}
