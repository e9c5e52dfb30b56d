//! How alike each document that goes and its leader are, and the table of clusters.
//!
//! What goes is sorted by its leader, so that the sketches of leaders are read once, in order, and that a cluster's
//! rows stand together. A second reader of the same order, ahead of the first, counts the members of a cluster before
//! its first row is written: a cluster of any size takes no memory.

use std::iter::Peekable;
use std::ops::Range;

use smelt_stage::kinds::ClusterRow;
use smelt_stage::sort::{Item, Sorted, Sorter};
use smelt_stage::{Error, UnitRecord};

use crate::Outputs;
use crate::clusters::Pair;
use crate::job::Job;
use crate::pairs::{Alike, Going, Verdict};
use crate::sketch::estimate;

impl Job<'_> {
    /// The records of the phase `compare`, whose files have a part for each input file.
    pub(crate) fn compare(
        &self,
        sketched: &[UnitRecord],
        found: &UnitRecord,
        out: &Outputs,
    ) -> Result<Vec<UnitRecord>, Error> {
        let groups: Vec<Range<usize>> = (0..self.files.len())
            .step_by(self.group)
            .map(|first| first..self.files.len().min(first + self.group))
            .collect();
        let paired = self.cx.units("pairs", self.files.len(), |i, unit| {
            let mut sketches = self.sketches(sketched, i)?;
            let mut sorter: Sorter<Going> = Sorter::new(self.memory, self.cx.scratch());
            for pair in Sorted::<Pair>::of(self.cx.work(found, "pairs")?.part(i)?)? {
                let pair = pair?;
                let sketch = sketches.of(pair.document).map_err(Error::of_read)?.clone();
                sorter.push(Going { pair, sketch })?;
            }
            let mut file = unit.work_file("going")?;
            let mut going = sorter.sorted()?.peekable();
            for group in &groups {
                while let Some(Ok(going)) =
                    going.next_if(|going| going.as_ref().is_ok_and(|going| going.pair.leader < self.starts[group.end]))
                {
                    going.write(&mut file).map_err(|e| file.error(e))?;
                }
                file.end_part()?;
            }
            going.next().transpose()?; // an error ends the loops above
            file.finish(unit)
        })?;
        self.cx.units("compare", groups.len(), |i, unit| {
            let merged = || {
                let parts = paired.iter().map(|record| move || self.cx.work(record, "going")?.part(i));
                Sorted::<Going>::merge(parts, self.cx.scratch())
            };
            let mut ahead = merged()?.peekable();
            let mut sorter: Sorter<Verdict> = Sorter::new(self.memory, self.cx.scratch());
            let (mut near, mut by_numbers) = (0u64, 0u64);
            let mut at = groups[i].start;
            let mut sketches = self.sketches(sketched, at)?;
            let (mut cluster, mut size) = (None, 0);
            for going in merged()? {
                let Going { pair, sketch } = going?;
                while pair.leader >= self.starts[at + 1] {
                    at += 1;
                    sketches = self.sketches(sketched, at)?;
                }
                let leader = sketches.of(pair.leader).map_err(Error::of_read)?;
                if cluster.replace(pair.leader) != Some(pair.leader) {
                    size = 1 + members(&mut ahead, pair.leader)?;
                    let row = ClusterRow {
                        cluster: pair.leader,
                        document: leader.id.clone(),
                        stays: true,
                        leader: None,
                        rule: None,
                        similarity: None,
                        size,
                    };
                    unit.write(&out.clusters, row)?;
                }
                let (traits, theirs) = (&sketch.traits, &leader.traits);
                let alike = match () {
                    () if traits.digest == theirs.digest => Alike::Text,
                    () if self.config.url && traits.is_same_page(theirs) => Alike::Url,
                    () => Alike::Near,
                };
                let estimate = || estimate(&theirs.signature, &traits.signature, self.width);
                let similarity = if alike == Alike::Text { Some(1.0) } else { pair.similarity.or_else(estimate) };
                near += u64::from(alike == Alike::Near);
                by_numbers += u64::from(alike == Alike::Near && traits.differ_in_numbers(theirs));
                let (document, seen) = (pair.document, pair.leader < self.seen());
                let verdict = Verdict { document, leader: leader.id.clone(), alike, seen, similarity };
                let row = ClusterRow {
                    cluster: pair.leader,
                    document: sketch.id,
                    stays: false,
                    leader: Some(verdict.leader.clone()),
                    rule: Some(verdict.rule().into()),
                    similarity: verdict.similarity.filter(|_| alike != Alike::Text),
                    size,
                };
                unit.write(&out.clusters, row)?;
                sorter.push(verdict)?;
            }
            unit.set_detail(serde_json::json!([near, by_numbers]));
            let mut file = self.by_file(unit.work_file("verdicts")?);
            for verdict in sorter.sorted()? {
                let verdict = verdict?;
                file.write(verdict.document, &verdict)?;
            }
            file.finish(unit)
        })
    }
}

/// How many of the next documents go for `leader`.
fn members(ahead: &mut Peekable<Sorted<Going>>, leader: u64) -> Result<u64, Error> {
    let mut count = 0;
    while ahead.next_if(|going| going.as_ref().is_ok_and(|going| going.pair.leader == leader)).is_some() {
        count += 1;
    }
    match ahead.next_if(Result::is_err) {
        Some(Err(e)) => Err(e),
        _ => Ok(count),
    }
}
