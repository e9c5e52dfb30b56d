//! Which document of several alike stays, as an order of all documents.
//!
//! The phases that make clusters know documents by number, and the first one of a cluster stays. Another rule is
//! another order: documents get their ranks by it, and clusters are made of ranks. Their pairs are turned back into
//! numbers by two sorts, so that no table of all documents lies in memory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{Document, Micros};
use smelt_stage::sort::{Item, Sorted, Sorter};
use smelt_stage::{Context, Error, UnitRecord, WorkPart};
use std::io::Write;

use crate::clusters::Pair;
use crate::job::{ByFile, Job};
use crate::sketch::read_bytes;

/// Which document of a cluster stays. Of two that are equal by the rule it is the first one in the input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keeps {
    /// The first in the input.
    #[default]
    First,
    /// The one with the most characters.
    Longest,
    /// The one with the smallest `time`; one without a time stays only among others without.
    Earliest,
    /// The one with the highest number in a column of this name, else in this field of `metadata` (`a.b` is field `b`
    /// of `a`); one without such a number stays only among others without.
    Highest(String),
    /// The one that datatrove keeps: the root of a union by size, over the bands in order and in each over the pairs of
    /// equal neighbours in the order of their hashes.
    Published,
}

impl Keeps {
    /// Of several documents the one with the smallest key stays; `None` for one that lacks what the rule asks for.
    fn key(&self, document: &Document) -> Option<u64> {
        match self {
            Self::First | Self::Published => Some(0),
            Self::Longest => Some(u64::MAX - document.text.chars().count() as u64),
            Self::Earliest => document.time.map(|Micros(time)| time.cast_unsigned() ^ 1 << 63),
            Self::Highest(field) => number(document, field).map(|value| !in_order(value)),
        }
    }

    /// What a document must have, if the rule asks for something that it may lack.
    fn asks_for(&self) -> Option<String> {
        match self {
            Self::First | Self::Longest | Self::Published => None,
            Self::Earliest => Some("a `time`".into()),
            Self::Highest(field) => Some(format!("a number `{field}`, as a column or in `metadata`")),
        }
    }
}

/// A number of a document. Infinities count, NaN does not.
fn number(document: &Document, field: &str) -> Option<f64> {
    let in_metadata = || {
        let metadata: serde_json::Value = serde_json::from_str(document.metadata.as_deref()?).ok()?;
        let nested = || field.split('.').try_fold(&metadata, |value, name| value.get(name));
        let value = metadata.get(field).or_else(nested)?;
        // `ingest` writes decimals and infinities as strings.
        value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())
    };
    document.extra.number(field).or_else(in_metadata).filter(|value| !value.is_nan())
}

/// Bits whose order is that of the numbers.
fn in_order(value: f64) -> u64 {
    let bits = (value + 0.0).to_bits(); // -0 is 0
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// The rank of each document, and the number of the document of each rank.
pub(crate) struct Ranks(UnitRecord);

impl Job<'_> {
    /// `None` where documents rank as they come.
    pub(crate) fn rank(&self) -> Result<Option<Ranks>, Error> {
        let keeps = &self.config.keeps;
        if matches!(keeps, Keeps::First | Keeps::Published) {
            return Ok(None);
        }
        let keyed = self.cx.units("keys", self.own_files().len(), |i, unit| {
            let i = self.own_files().start + i;
            let mut sorter: Sorter<u128> = Sorter::new(self.memory, self.cx.scratch());
            let mut lacking = 0u64;
            for document in self.documents(i)? {
                let (number, document) = document?;
                let key = keeps.key(&document);
                lacking += u64::from(key.is_none());
                sorter.push(u128::from(key.unwrap_or(u64::MAX)) << 64 | u128::from(number))?;
            }
            unit.set_detail(lacking.into());
            let mut file = unit.work_file("keys")?;
            for key in sorter.sorted()? {
                key?.write(&mut file).map_err(|e| file.error(e))?;
            }
            file.finish(unit)
        })?;
        let lacking: u64 = keyed.iter().filter_map(|record| record.detail.as_u64()).sum();
        let all = self.starts[self.files.len()] - self.seen();
        if let Some(what) = keeps.asks_for().filter(|_| lacking > 0) {
            if lacking == all {
                let error = Error::config("/keeps", format!("none of {all} documents has {what}"));
                return Err(error.hint("name what they have, or let the `first` or the `longest` document stay"));
            }
            self.cx.warn(&format!("documents without {what}: {lacking} of {all}; they stay only among others without"));
        }
        let mut records = self.cx.units("ranks", 1, |_, unit| {
            let keys = keyed.iter().map(|record| move || self.cx.work(record, "keys")?.part(0));
            let memory = self.memory * self.cx.threads();
            let mut sorter: Sorter<u128> = Sorter::new(memory, self.cx.scratch());
            let mut file = unit.work_file("numbers")?;
            let own = Sorted::<u128>::merge(keys, self.cx.scratch())?.map(|key| key.map(|key| key as u64));
            for (number, rank) in (0..self.seen()).map(Ok).chain(own).zip(0u64..) {
                let number = number?;
                file.write_all(&number.to_le_bytes()).map_err(|e| file.error(e))?;
                sorter.push(u128::from(number) << 64 | u128::from(rank))?;
            }
            file.finish(unit)?;
            let mut file = self.by_file(unit.work_file("ranks")?);
            for ranked in sorter.sorted()? {
                let ranked = ranked?;
                file.write_all((ranked >> 64) as u64, &(ranked as u64).to_le_bytes())?;
            }
            file.finish(unit)
        })?;
        Ok(Some(Ranks(records.remove(0))))
    }
}

impl Ranks {
    /// The ranks of the documents of an input file, in order.
    pub(crate) fn of_file(
        &self,
        cx: &Context,
        file: usize,
    ) -> Result<impl Iterator<Item = Result<u64, Error>> + use<>, Error> {
        let mut part = cx.work(&self.0, "ranks")?.part(file)?;
        let ranks = part.size() / 8;
        Ok((0..ranks).map(move |_| read_bytes(&mut part).map(u64::from_le_bytes).map_err(Error::of_read)))
    }

    /// `memory`: bytes for what is sorted.
    pub(crate) fn renumbered(&self, cx: &Context, memory: usize) -> Result<Renumbered, Error> {
        let numbers = cx.work(&self.0, "numbers")?.part(0)?;
        let sorter = |memory| Sorter::new(memory, cx.scratch());
        Ok(Renumbered { numbers, by_leader: sorter(memory / 2), by_document: sorter(memory / 2) })
    }
}

/// Pairs of ranks on their way to be pairs of numbers.
pub(crate) struct Renumbered {
    numbers: WorkPart,
    /// Leader's rank, and number of the document that goes.
    by_leader: Sorter<Pair>,
    by_document: Sorter<Pair>,
}

impl Renumbered {
    /// Pairs come in the order of the documents that go.
    pub(crate) fn push(&mut self, pair: Pair) -> Result<(), Error> {
        let number = number_of(&mut self.numbers, pair.document)?;
        self.by_leader.push(Pair { document: pair.leader, leader: number, ..pair })
    }

    pub(crate) fn write(self, file: &mut ByFile<'_>) -> Result<(), Error> {
        let Self { mut numbers, by_leader, mut by_document } = self;
        for pair in by_leader.sorted()? {
            let Pair { document: leader, leader: document, similarity } = pair?;
            by_document.push(Pair { document, leader: number_of(&mut numbers, leader)?, similarity })?;
        }
        for pair in by_document.sorted()? {
            let pair = pair?;
            file.write(pair.document, &pair)?;
        }
        Ok(())
    }
}

/// Number of the document of a rank. Ranks are asked for in order, so that each block is read once.
fn number_of(numbers: &mut WorkPart, rank: u64) -> Result<u64, Error> {
    numbers.seek(8 * rank).and_then(|()| read_bytes(numbers)).map(u64::from_le_bytes).map_err(Error::of_read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str, time: Option<i64>, metadata: Option<&str>) -> Document {
        let mut document = Document::new("", text, "");
        document.time = time.map(Micros);
        document.metadata = metadata.map(str::to_owned);
        document
    }

    #[test]
    fn the_smallest_key_is_that_of_the_document_that_stays() {
        let with = |metadata| document("", None, Some(metadata));
        let better: [(Keeps, Document, Document); 7] = [
            (Keeps::Longest, document("ab", None, None), document("ü", None, None)),
            (Keeps::Earliest, document("", Some(-5), None), document("", Some(3), None)),
            (Keeps::Earliest, document("", Some(3), None), document("", Some(4), None)),
            (Keeps::Highest("s".into()), with(r#"{ "s": 1e300 }"#), with(r#"{ "s": "7.5" }"#)),
            (Keeps::Highest("s".into()), with(r#"{ "s": -1 }"#), with(r#"{ "s": -1.5 }"#)),
            (Keeps::Highest("a.b".into()), with(r#"{ "a.b": 2 }"#), with(r#"{ "a": { "b": 1 } }"#)),
            (Keeps::Highest("s".into()), with(r#"{ "s": "inf" }"#), with(r#"{ "s": 3 }"#)),
        ];
        for (keeps, stays, goes) in &better {
            assert!(keeps.key(stays).unwrap() < keeps.key(goes).unwrap(), "{keeps:?}: {stays:?}");
        }
        for lacks in [r#"{ "s": "NaN" }"#, r#"{ "s": null }"#, r#"{ "s": {} }"#, "{}", "no JSON"] {
            assert_eq!(Keeps::Highest("s".into()).key(&with(lacks)), None, "{lacks}");
        }
        assert_eq!(Keeps::Earliest.key(&document("", None, None)), None);
        assert_eq!(in_order(0.0), in_order(-0.0));
    }
}
