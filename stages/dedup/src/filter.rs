//! The last phase: documents that stay, without what is cut from them, and those that go.

use smelt_stage::kinds::Document;
use smelt_stage::sort::Sorted;
use smelt_stage::{Error, UnitRecord};

use crate::Outputs;
use crate::cut::{Cut, Removed, without};
use crate::job::Job;
use crate::pairs::Verdict;

/// A document with its number, and why it goes.
pub(crate) type Judged = (u64, Document, Option<Verdict>);

impl Job<'_> {
    /// The documents of an input file.
    pub(crate) fn judged(
        &self,
        file: usize,
        compared: &[UnitRecord],
    ) -> Result<impl Iterator<Item = Result<Judged, Error>> + use<>, Error> {
        let parts = compared.iter().map(|record| move || self.cx.work(record, "verdicts")?.part(file));
        let mut verdicts = Sorted::<Verdict>::merge(parts, self.cx.scratch())?.peekable();
        Ok(self.documents(file)?.map(move |document| {
            let (number, document) = document?;
            let next = verdicts.next_if(|next| next.as_ref().map_or(true, |verdict| verdict.document == number));
            Ok((number, document, next.transpose()?))
        }))
    }

    /// `cuts`: records whose files `cuts` have a part for each input file.
    pub(crate) fn filter(&self, compared: &[UnitRecord], cuts: &[UnitRecord], out: &Outputs) -> Result<(), Error> {
        let filtered = self.cx.units("filter", self.own_files().len(), |i, unit| {
            let i = self.seen_files + i;
            let parts = cuts.iter().map(|record| move || self.cx.work(record, "cuts")?.part(i));
            let mut cuts = Sorted::<Cut>::merge(parts, self.cx.scratch())?.peekable();
            let (mut own, mut all) = (Vec::new(), Removed::default());
            for judged in self.judged(i, compared)? {
                let (number, mut document, verdict) = judged?;
                unit.count_read(1);
                if let Some(verdict) = verdict {
                    let (rule, value) = (verdict.rule(), verdict.similarity);
                    unit.drop_row(&out.drops, &document.id, rule, value, Some(verdict.leader))?;
                    continue;
                }
                own.clear();
                while let Some(cut) = cuts.next_if(|cut| cut.as_ref().map_or(true, |cut| cut.document == number)) {
                    own.push(cut?);
                }
                if !own.is_empty() {
                    let (left, removed) = without(&document.text, &own);
                    all.add(&removed);
                    let (before, chars) = (document.text.chars().count(), left.trim().chars().count());
                    if chars < self.config.min_left_chars || (chars as f64) < self.config.min_left * before as f64 {
                        let detail = format!("characters left of {before}");
                        unit.drop_row(&out.drops, &document.id, "little_left", Some(chars as f64), Some(detail))?;
                        continue;
                    }
                    document.text = left;
                }
                unit.keep(&out.documents, document)?;
            }
            if self.config.cuts_pieces() {
                unit.set_detail(serde_json::to_value(all).map_err(|e| Error::bug(e.to_string()))?);
            }
            Ok(())
        })?;
        if self.config.cuts_pieces() {
            let mut all = Removed::default();
            for record in filtered {
                all.add(&serde_json::from_value(record.detail).map_err(|e| Error::bug(e.to_string()))?);
            }
            let Removed { lines, paragraphs, passages, characters } = all;
            let counts = [("lines", lines), ("paragraphs", paragraphs), ("passages", passages)];
            for (name, count) in counts.into_iter().chain([("characters", characters)]) {
                self.cx.result(&format!("removed_{name}"), count as f64);
            }
        }
        Ok(())
    }
}
