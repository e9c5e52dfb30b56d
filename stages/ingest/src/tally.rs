//! What a person should know of what was read: bad records, fields that are no times, columns that are left out.
//!
//! Each unit counts for itself and keeps its count in its record, so that the sums are the same after a kill.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smelt_stage::{Context, Error};

use crate::config::{Config, RecordKind};
use crate::read::{Bad, LeftOut, Raw};

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    bad: BTreeMap<String, u64>,
    first_bad: Option<(String, Option<String>)>,
    /// What is sound and gives no document, by rule, and the first of it.
    #[serde(default)]
    no_text: BTreeMap<String, u64>,
    #[serde(default)]
    first_no_text: Option<String>,
    no_time: u64,
    first_no_time: Option<String>,
    /// Column, the files that have it, and the first of them.
    left_out: BTreeMap<String, (u64, String)>,
}

impl Tally {
    pub(crate) fn bad(&mut self, bad: &Bad) {
        *self.bad.entry(bad.rule.into()).or_default() += 1;
        self.first_bad.get_or_insert_with(|| (bad.told.clone(), bad.hint.clone()));
    }

    pub(crate) fn no_text(&mut self, left_out: &LeftOut) {
        *self.no_text.entry(left_out.rule.into()).or_default() += 1;
        self.first_no_text.get_or_insert_with(|| left_out.note.clone());
    }

    pub(crate) fn time(&mut self, raw: &Raw) {
        if let Some(said) = &raw.no_time {
            self.no_time += 1;
            self.first_no_time.get_or_insert_with(|| format!("{said} in `{}`", raw.id));
        }
    }

    pub(crate) fn left_out(&mut self, file: &str, columns: Vec<String>) {
        for column in columns {
            self.left_out.entry(column).or_insert_with(|| (0, file.to_owned())).0 += 1;
        }
    }

    pub(crate) fn to_json(&self) -> Result<serde_json::Value, Error> {
        serde_json::to_value(self).map_err(|e| Error::bug(format!("a count cannot be written: {e}")))
    }

    fn add(&mut self, other: Tally) {
        for (rule, n) in other.bad {
            *self.bad.entry(rule).or_default() += n;
        }
        self.first_bad = self.first_bad.take().or(other.first_bad);
        for (rule, n) in other.no_text {
            *self.no_text.entry(rule).or_default() += n;
        }
        self.first_no_text = self.first_no_text.take().or(other.first_no_text);
        self.no_time += other.no_time;
        self.first_no_time = self.first_no_time.take().or(other.first_no_time);
        for (column, (n, file)) in other.left_out {
            self.left_out.entry(column).or_insert_with(|| (0, file)).0 += n;
        }
    }

    /// Warns of what was counted in units, each with the rows that it read and kept; an error if too much is bad, or
    /// nothing is left.
    pub(crate) fn judge(
        config: &Config,
        first_file: &str,
        units: &[(u64, u64, &serde_json::Value)],
        cx: &Context,
    ) -> Result<(), Error> {
        let mut all = Tally::default();
        let (mut read, mut kept) = (0, 0);
        for &(unit_read, unit_kept, detail) in units {
            (read, kept) = (read + unit_read, kept + unit_kept);
            let tally = serde_json::from_value(detail.clone());
            all.add(tally.map_err(|e| Error::bug(format!("a committed unit holds no counts: {e}")))?);
        }
        let (bad, rules) = (all.bad.values().sum::<u64>(), counts(&all.bad));
        let (first, hint) = all.first_bad.clone().unwrap_or_default();
        let name = config.kind.name();
        if kept == 0 {
            if read == 0 {
                let what = format!("the files hold no records; the first is `{first_file}`");
                return Err(Error::data(what).hint("they are empty, or hold nothing but blank lines"));
            }
            if let (0, Some(first)) = (bad, &all.first_no_text) {
                let what =
                    format!("none of {read} pages gives a document: {}; the first: {first}", counts(&all.no_text));
                return Err(Error::data(what).hint("look at the files: are these the pages that were meant?"));
            }
            if bad == 0 {
                let what = format!("{read} documents were read and none was kept; the first file is `{first_file}`");
                let hint = "loosen `min_bytes`, `max_bytes` or `max_digit_share`, or look at the files";
                return Err(Error::data(what).hint(hint));
            }
            let others = if bad < read { format!(", {} beyond the limits", read - bad) } else { String::new() };
            let error = Error::data(format!("none of {read} records is kept: {rules}{others}; the first: {first}"));
            return Err(error.hint(hint.unwrap_or_else(|| format!("look at the files: {name} were asked for"))));
        }
        let share = bad as f64 / read as f64;
        if let Some(limit) = config.max_bad_share.filter(|&limit| share > limit) {
            let what = format!("{bad} of {read} records are bad: {rules}; the first: {first}");
            return Err(Error::data(what).hint(format!("`max_bad_share` is {limit}, and this is {share:.4}")));
        }
        if bad > 0 {
            let what = if config.kind == RecordKind::Documents { "are bad" } else { "are bad or no chats" };
            cx.warn(&format!("{bad} of {read} records {what} and left out: {rules}; the first: {first}"));
        }
        if let Some(first) = all.first_no_time {
            cx.warn(&format!(
                "{} documents have no `time`, because what they say is none (it stays in `metadata`); the first is \
                 {first}",
                all.no_time
            ));
        }
        for (column, (files, first)) in all.left_out {
            cx.warn(&format!(
                "column {column} of `{first}` cannot stand in `metadata` and is left out of {files} files; \
                 `metadata_fields` names the columns to keep"
            ));
        }
        Ok(())
    }
}

fn counts(rules: &BTreeMap<String, u64>) -> String {
    rules.iter().map(|(rule, n)| format!("{n} {rule}")).collect::<Vec<_>>().join(", ")
}
