//! The phases of a job, and the files by which each hands over to the next.
//!
//! | phase | unit | reads | writes |
//! |---|---|---|---|
//! | `sketches` | input file | its documents | a sketch of each document; for each band its documents, sorted |
//! | `bands` | some bands, or a range of one | them of all files, merged | links between documents that agree, sorted |
//! | `shingles` | input file | its documents | shingles of those with links; only where `jaccard` asks for them |
//! | `clusters` | all | all links, merged | who goes, and for whom, in order |
//! | `pairs` | input file | its sketches and who goes | the sketches of those that go, sorted by who stays |
//! | `compare` | group of files | its sketches, and those that go for them, merged | similarities, sorted by who goes |
//! | `filter` | input file | its documents and similarities | documents and drops |
//!
//! Whatever grows with the corpus is sorted in scratch beyond a unit's share of the job's memory. Clusters take memory
//! by documents: see `clusters.rs`.

use std::ops::Range;

use smelt_stage::kinds::{Document, Documents};
use smelt_stage::sort::{Item, Sorted, Sorter};
use smelt_stage::{Artifact, Context, Error, Unit, UnitRecord, WorkFile, WorkPart};
use smelt_words::{is_digit, simplify, simplify_keeping_numbers};
use xxhash_rust::xxh64::xxh64;

use crate::bands::{Entry, Link, NUMBER, Narrow, Wide, links};
use crate::clusters::{Joining, Keeps, Pair, Published, duplicates};
use crate::minhash::{MinHash, Scratch};
use crate::pairs::{Going, Verdict};
use crate::shingles::{ShingleFile, Shingles, Wanted};
use crate::sketch::{Sketch, SketchFile, encode, estimate};
use crate::{Config, Outputs, exact};

/// Documents of a range of a band, about; and of a unit of the phase `bands` at least, all its bands together.
const RANGE: u64 = 1 << 26;
const ENTRIES: u64 = 1 << 22;
/// Groups of files in the phase `compare` at most.
const GROUPS: usize = 256;

pub(crate) struct Job<'a> {
    config: Config,
    minhash: MinHash,
    inputs: &'a [Artifact<Documents>],
    /// Artifact and file within it.
    files: Vec<(usize, usize)>,
    /// Number of the first document of each file, and of all documents.
    starts: Vec<u64>,
    cx: &'a Context,
    /// Bytes for the sorting of one unit.
    memory: usize,
    /// Bytes of a hash in a sketch.
    width: usize,
    /// Files of a group.
    group: usize,
}

impl<'a> Job<'a> {
    pub(crate) fn new(config: Config, inputs: &'a [Artifact<Documents>], cx: &'a Context) -> Result<Self, Error> {
        let files: Vec<(usize, usize)> =
            inputs.iter().enumerate().flat_map(|(a, input)| (0..input.files().len()).map(move |f| (a, f))).collect();
        let mut starts = vec![0];
        for &(artifact, file) in &files {
            starts.push(starts[starts.len() - 1] + inputs[artifact].rows(file)?);
        }
        if starts[files.len()] >= 1 << NUMBER {
            return Err(Error::data(format!(
                "{} documents are more than {} numbers",
                starts[files.len()],
                1u64 << NUMBER
            )));
        }
        let mut minhash = MinHash::new(config.words, config.bands * config.hashes, config.hash_seed);
        (minhash.keep_numbers, minhash.by_script, minhash.hash) = (config.keep_numbers, config.by_script, config.hash);
        let width = if config.keeps == Keeps::Published { 8 } else { 4 };
        let group = files.len().div_ceil(GROUPS).max(1);
        // The other half is for what a unit reads and writes.
        let memory = cx.memory() / 2 / cx.threads();
        Ok(Self { config, minhash, inputs, files, starts, cx, memory, width, group })
    }

    pub(crate) fn run(&self, out: &Outputs) -> Result<(), Error> {
        let (sketched, linked) = match self.config.keeps {
            Keeps::First => self.links::<Narrow>()?,
            Keeps::Published => self.links::<Wide>()?,
        };
        let found = self.clusters(&linked)?;
        let compared = self.compare(&sketched, &found)?;
        self.filter(&compared, out)?;
        let count = |i: usize| compared.iter().filter_map(|record| record.detail[i].as_u64()).sum::<u64>();
        let (near, by_numbers) = (count(0), count(1));
        if 2 * by_numbers > near {
            self.cx.warn(&format!(
                "{by_numbers} of {near} near-duplicates differ from the document that stays in their numbers alone: \
                 `keep_numbers: true` keeps such documents"
            ));
        }
        Ok(())
    }

    fn documents(&self, file: usize) -> Result<impl Iterator<Item = Result<(u64, Document), Error>> + use<>, Error> {
        let (artifact, number) = self.files[file];
        let rows = self.inputs[artifact].read(number)?;
        let numbers = self.starts[file]..self.starts[file + 1];
        Ok(rows.zip(numbers).map(|(document, i)| document.map(|document| (i, document))))
    }

    /// Bands of signatures; the next band is that of equal texts.
    fn bands(&self) -> usize {
        if self.config.near { self.config.bands } else { 0 }
    }

    /// Ranges that a band is cut into.
    fn ranges(&self) -> u64 {
        match self.config.keeps {
            Keeps::First => self.starts[self.files.len()].div_ceil(RANGE).max(1),
            Keeps::Published => 1,
        }
    }

    /// Parts of the sorted bands of a file, and how many of them a unit merges.
    fn parts(&self) -> (usize, usize) {
        let parts = (self.bands() + usize::from(self.config.exact)) * self.ranges() as usize;
        let entries = self.starts[self.files.len()] / self.ranges();
        (parts, (ENTRIES / entries.max(1)).clamp(1, parts as u64) as usize)
    }

    /// Records of the phases `sketches` and `bands`.
    fn links<E: Entry>(&self) -> Result<(Vec<UnitRecord>, Vec<UnitRecord>), Error> {
        let sketched = self.cx.units("sketches", self.files.len(), |i, unit| self.sketch::<E>(i, unit))?;
        let (parts, each) = self.parts();
        let linked = self.cx.units("bands", parts.div_ceil(each), |i, unit| {
            let mut out = Links::new(self, unit)?;
            for part in i * each..parts.min((i + 1) * each) {
                let band = part / self.ranges() as usize;
                let runs = sketched.iter().map(|record| move || self.cx.work(record, "bands")?.part(part));
                match band == self.bands() {
                    true => out.add(band, Sorted::<Narrow>::merge(runs, self.cx.scratch())?)?,
                    false => out.add(band, Sorted::<E>::merge(runs, self.cx.scratch())?)?,
                }
            }
            out.finish(unit)
        })?;
        Ok((sketched, linked))
    }

    fn sketch<E: Entry>(&self, i: usize, unit: &mut Unit) -> Result<(), Error> {
        let (bands, config) = (self.bands(), &self.config);
        let memory = self.memory / (bands + 1);
        let mut sorters: Vec<Sorter<E>> = (0..bands).map(|_| Sorter::new(memory, self.cx.scratch())).collect();
        let mut equals: Sorter<Narrow> = Sorter::new(memory, self.cx.scratch());
        let (mut sketch, mut scratch) = (Sketch::default(), Scratch::default());
        let mut file = unit.work_file("sketches")?;
        for document in self.documents(i)? {
            let (number, document) = document?;
            sketch.traits.signature.clear();
            if config.near {
                let simple = self.minhash.simple(&document.text);
                if let Some(signature) = self.minhash.signature_of_simple(&simple, &mut scratch) {
                    for (sorter, band) in sorters.iter_mut().zip(signature.chunks(config.hashes)) {
                        sorter.push(E::new(band, number))?;
                    }
                    if config.jaccard == 0.0 {
                        encode(&signature, self.width, &mut sketch.traits.signature);
                    }
                }
                sketch.traits.simple = simple_forms(&document.text, &simple, config.keep_numbers);
            }
            sketch.traits.digest.copy_from_slice(&exact::digest(&document.text)[..16]);
            if config.exact {
                equals.push(Narrow::of_digest(&sketch.traits.digest, number))?;
            }
            sketch.id = document.id;
            sketch.write(&mut file).map_err(|e| file.error(e))?;
        }
        file.finish(unit)?;
        let mut file = unit.work_file("bands")?;
        for sorter in sorters {
            write_ranges(sorter, self.ranges(), &mut file)?;
        }
        if config.exact {
            write_ranges(equals, self.ranges(), &mut file)?;
        }
        file.finish(unit)
    }

    /// The record of the phase `clusters`, whose file has a part for each input file.
    fn clusters(&self, linked: &[UnitRecord]) -> Result<UnitRecord, Error> {
        let asks = self.config.near && self.config.jaccard > 0.0;
        let shingled = if asks { self.shingle(linked)? } else { Vec::new() };
        let open = || linked.iter().map(|record| || self.cx.work(record, "links")?.part(0));
        let mut records = self.cx.units("clusters", 1, |_, unit| {
            let mut file = self.by_file(unit.work_file("pairs")?);
            let take = |pair: Pair| file.write(pair.document, &pair);
            let documents = self.starts[self.files.len()];
            // This unit has no others beside it.
            let memory = self.memory * self.cx.threads();
            if self.config.keeps == Keeps::Published {
                let mut clusters = Published::new(documents);
                for part in open() {
                    for link in Sorted::<u128>::of(part()?)? {
                        clusters.join(Link::unpack(link?));
                    }
                }
                clusters.duplicates(take)?;
            } else {
                let links = Sorted::<u128>::merge(open(), self.cx.scratch())?;
                let Config { jaccard, transitive, .. } = self.config;
                let jaccard = if asks { jaccard } else { 0.0 };
                let joining = Joining { exact: self.bands() as u16, jaccard, transitive };
                let mut shingles = Shingles::open(self.cx, &shingled, &self.starts, memory / 2)?;
                let mut similarity = |a, b| shingles.similarity(a, b);
                duplicates(links, documents, joining, &mut similarity, (memory / 2, self.cx.scratch()), take)?;
            }
            file.finish(unit)
        })?;
        Ok(records.remove(0))
    }

    /// The records of the phase `compare`, whose files have a part for each input file.
    fn compare(&self, sketched: &[UnitRecord], found: &UnitRecord) -> Result<Vec<UnitRecord>, Error> {
        let groups: Vec<Range<usize>> = (0..self.files.len())
            .step_by(self.group)
            .map(|first| first..self.files.len().min(first + self.group))
            .collect();
        let paired = self.cx.units("pairs", self.files.len(), |i, unit| {
            let mut sketches = self.sketches(sketched, i)?;
            let mut sorter: Sorter<Going> = Sorter::new(self.memory, self.cx.scratch());
            for pair in Sorted::<Pair>::of(self.cx.work(found, "pairs")?.part(i)?)? {
                let pair = pair?;
                let traits = sketches.of(pair.document).map_err(Error::of_read)?.traits.clone();
                sorter.push(Going { pair, traits })?;
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
            let parts = paired.iter().map(|record| move || self.cx.work(record, "going")?.part(i));
            let mut sorter: Sorter<Verdict> = Sorter::new(self.memory, self.cx.scratch());
            let (mut near, mut by_numbers) = (0u64, 0u64);
            let mut at = groups[i].start;
            let mut sketches = self.sketches(sketched, at)?;
            for going in Sorted::<Going>::merge(parts, self.cx.scratch())? {
                let Going { pair, traits } = going?;
                while pair.leader >= self.starts[at + 1] {
                    at += 1;
                    sketches = self.sketches(sketched, at)?;
                }
                let leader = sketches.of(pair.leader).map_err(Error::of_read)?;
                let exact = traits.digest == leader.traits.digest;
                let estimate = || estimate(&leader.traits.signature, &traits.signature, self.width);
                let similarity = if exact { 1.0 } else { pair.similarity.unwrap_or_else(estimate) };
                near += u64::from(!exact);
                by_numbers += u64::from(!exact && traits.differ_in_numbers(&leader.traits));
                sorter.push(Verdict { document: pair.document, leader: leader.id.clone(), exact, similarity })?;
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

    fn sketches(&self, sketched: &[UnitRecord], file: usize) -> Result<SketchFile<WorkPart>, Error> {
        Ok(SketchFile::new(self.cx.work(&sketched[file], "sketches")?.part(0)?, self.starts[file]))
    }

    fn filter(&self, compared: &[UnitRecord], out: &Outputs) -> Result<(), Error> {
        self.cx.units("filter", self.files.len(), |i, unit| {
            let parts = compared.iter().map(|record| move || self.cx.work(record, "verdicts")?.part(i));
            let mut verdicts = Sorted::<Verdict>::merge(parts, self.cx.scratch())?;
            let mut next = verdicts.next().transpose()?;
            for document in self.documents(i)? {
                let (number, document) = document?;
                unit.count_read(1);
                match next.take_if(|verdict| verdict.document == number) {
                    None => unit.keep(&out.documents, document)?,
                    Some(Verdict { leader, exact, similarity, .. }) => {
                        let rule = if exact { "exact_duplicate" } else { "near_duplicate" };
                        unit.drop_row(&out.drops, &document.id, rule, Some(similarity), Some(leader))?;
                        next = verdicts.next().transpose()?;
                    }
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The shingles of the documents that have links, by input file.
    fn shingle(&self, linked: &[UnitRecord]) -> Result<Vec<UnitRecord>, Error> {
        let mut wanted = Wanted::new(self.starts[self.files.len()]);
        for record in linked {
            for link in Sorted::<u128>::of(self.cx.work(record, "links")?.part(0)?)? {
                let link = Link::unpack(link?);
                if usize::from(link.band) < self.bands() {
                    wanted.insert(link.document);
                    wanted.insert(link.other);
                }
            }
        }
        self.cx.units("shingles", self.files.len(), |i, unit| {
            let mut file = ShingleFile::new(unit)?;
            for document in self.documents(i)? {
                let (number, document) = document?;
                if wanted.contains(number) {
                    file.write(number, &self.minhash.shingles(&document.text))?;
                }
            }
            file.finish(unit)
        })
    }

    fn by_file(&self, file: WorkFile) -> ByFile<'_> {
        ByFile { file, starts: &self.starts, at: 0 }
    }
}

/// The links of some bands on their way to a file: sorted, or for published clusters as they come.
struct Links {
    file: WorkFile,
    sorter: Option<Sorter<u128>>,
}

impl Links {
    fn new(job: &Job<'_>, unit: &Unit) -> Result<Self, Error> {
        let sorter = || Sorter::new(job.memory, job.cx.scratch());
        let sorter = (job.config.keeps == Keeps::First).then(sorter);
        Ok(Self { file: unit.work_file("links")?, sorter })
    }

    fn add<E: Entry>(&mut self, band: usize, entries: Sorted<E>) -> Result<(), Error> {
        links(band as u16, entries, |link| match &mut self.sorter {
            Some(sorter) => sorter.push(link.pack()),
            None => link.pack().write(&mut self.file).map_err(|e| self.file.error(e)),
        })
    }

    fn finish(self, unit: &mut Unit) -> Result<(), Error> {
        let mut file = self.file;
        if let Some(sorter) = self.sorter {
            for link in sorter.sorted()? {
                link?.write(&mut file).map_err(|e| file.error(e))?;
            }
        }
        file.finish(unit)
    }
}

/// A work file with a part for each input file, to which items are written in the order of their documents.
struct ByFile<'a> {
    file: WorkFile,
    starts: &'a [u64],
    /// The input file whose part is being written.
    at: usize,
}

impl ByFile<'_> {
    fn write(&mut self, document: u64, item: &impl Item) -> Result<(), Error> {
        while document >= self.starts[self.at + 1] {
            self.file.end_part()?;
            self.at += 1;
        }
        item.write(&mut self.file).map_err(|e| self.file.error(e))
    }

    fn finish(mut self, unit: &mut Unit) -> Result<(), Error> {
        for _ in self.at + 1..self.starts.len() {
            self.file.end_part()?;
        }
        self.file.finish(unit)
    }
}

/// Writes the documents of a band, a part for each of `count` ranges.
fn write_ranges<E: Entry>(sorter: Sorter<E>, count: u64, file: &mut WorkFile) -> Result<(), Error> {
    let mut at = 0;
    for entry in sorter.sorted()? {
        let entry = entry?;
        while at < entry.range(count) {
            file.end_part()?;
            at += 1;
        }
        entry.write(file).map_err(|e| file.error(e))?;
    }
    (at..count).try_for_each(|_| file.end_part())
}

/// Hashes of the simplified text, with numbers folded and with numbers as they are; `simple` is one of these forms.
fn simple_forms(text: &str, simple: &str, keeps_numbers: bool) -> [u64; 2] {
    let form = |text: &str| xxh64(text.as_bytes(), 0);
    let known = form(simple);
    match (text.chars().any(is_digit), keeps_numbers) {
        (false, _) => [known; 2],
        (true, false) => [known, form(&simplify_keeping_numbers(text))],
        (true, true) => [form(&simplify(text)), known],
    }
}
