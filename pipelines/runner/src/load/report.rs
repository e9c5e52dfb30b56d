//! The views and the report of a pipeline, and where their queries stand.

use crate::diagnostic::Place;
use std::collections::BTreeMap;

/// Names for queries, and the place of each.
pub(crate) struct Views {
    pub sql: BTreeMap<String, String>,
    pub places: BTreeMap<String, Option<Place>>,
}

impl Views {
    /// Where the view stands of which an error says, in backticks, first; else the first one.
    pub(crate) fn place(&self, message: &str) -> Option<Place> {
        let named = message.split('`').nth(1).and_then(|name| self.places.get(name));
        named.or(self.places.values().next()).cloned().flatten()
    }
}

/// SQL whose answer is printed last, and its place in the file.
pub(crate) struct Report {
    pub sql: String,
    pub(super) place: Option<Place>,
    /// The text of the pipeline file.
    pub(super) text: String,
}

impl Report {
    /// Turns a place in the query into a place in the file, both counted from 1; the place of the whole query if it
    /// cannot be found.
    pub(crate) fn place(&self, line: u64, column: u64) -> Option<Place> {
        let of_query = self.place.clone()?;
        let exact = || {
            let wanted = self.sql.lines().nth(line.checked_sub(1)? as usize)?.trim_end();
            let indent = wanted.len() - wanted.trim_start().len();
            let skipped = of_query.line.checked_sub(1)? as usize;
            let (above, found) =
                self.text.lines().enumerate().skip(skipped).find(|(_, l)| l.contains(wanted.trim()))?;
            let before = found[..found.find(wanted.trim())?].chars().count() as u64;
            Some((above as u64 + 1, (before + column).checked_sub(indent as u64)?))
        };
        Some(exact().map_or(of_query.clone(), |(line, column)| Place { line, column, ..of_query }))
    }
}
