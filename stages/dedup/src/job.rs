//! The phases of a job, and the files by which each hands over to the next.
//!
//! | phase | unit | reads | writes |
//! |---|---|---|---|
//! | `keys` | input file | its documents | what `keeps` looks at, sorted; only where it is not the input's order |
//! | `ranks` | all | all keys, merged | the rank of each document, and the document of each rank |
//! | `sketches` | input file | its documents | a sketch of each document; for each band its documents, sorted |
//! | `bands` | some bands, or a range of one | them of all files, merged | links between documents that agree, sorted |
//! | `shingles` | input file | its documents | shingles of those with links; only where `jaccard` asks for them |
//! | `clusters` | all | all links, merged | who goes, and for whom, in order |
//! | `pairs` | input file | its sketches and who goes | the sketches of those that go, sorted by who stays |
//! | `compare` | group of files | its sketches, and those that go for them, merged | verdicts, by who goes; clusters |
//! | those of `pieces.rs` | | | what to cut, sorted by document |
//! | `filter` | input file | its documents, verdicts and cuts | documents and drops |
//!
//! From `sketches` to `clusters` documents are known by their ranks, then by their numbers in the input.
//!
//! Whatever grows with the corpus is sorted in scratch beyond a unit's share of the job's memory. Clusters take memory
//! by documents: see `clusters.rs`.

use std::io::Write;
use std::ops::Range;

use smelt_stage::kinds::{Document, DocumentText, Documents};
use smelt_stage::sort::{Item, Sorted, Sorter};
use smelt_stage::{Artifact, Context, Error, Unit, UnitRecord, WorkFile, WorkPart};
use smelt_words::{is_digit, simplify, simplify_keeping_numbers};
use xxhash_rust::xxh64::xxh64;

use crate::bands::{Entry, Link, NUMBER, Narrow, Wide, links};
use crate::clusters::{Joining, Pair, Published, duplicates};
use crate::minhash::{MinHash, Scratch};
use crate::ranks::{Keeps, Ranks};
use crate::shingles::{ShingleFile, Shingles, Wanted};
use crate::sketch::{Sketch, SketchFile, encode};
use crate::{Config, Inputs, Outputs, address, exact};

/// Documents of a range of a band, about; and of a unit of the phase `bands` at least, all its bands together.
const RANGE: u64 = 1 << 26;
const ENTRIES: u64 = 1 << 22;
/// Groups of files in the phase `compare` at most.
const GROUPS: usize = 256;

pub(crate) struct Job<'a> {
    pub config: Config,
    pub minhash: MinHash,
    pub inputs: Vec<&'a Artifact<Documents>>,
    /// Artifact and file within it; first those of documents that were seen before.
    pub files: Vec<(usize, usize)>,
    /// How many files those are.
    pub seen_files: usize,
    /// Number of the first document of each file, and of all documents.
    pub starts: Vec<u64>,
    pub cx: &'a Context,
    /// Bytes for the sorting of one unit.
    pub memory: usize,
    /// Bytes of a hash in a sketch.
    pub width: usize,
    /// Files of a group.
    pub group: usize,
    /// Where documents do not rank as they come.
    ranks: Option<Ranks>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(config: Config, inputs: &'a Inputs, cx: &'a Context) -> Result<Self, Error> {
        let seen_files = inputs.seen.iter().map(|input| input.files().len()).sum();
        let inputs: Vec<&Artifact<Documents>> = inputs.seen.iter().chain(&inputs.documents).collect();
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
        Ok(Self { config, minhash, inputs, files, seen_files, starts, cx, memory, width, group, ranks: None })
    }

    pub(crate) fn run(mut self, out: &Outputs) -> Result<(), Error> {
        let compared = if self.seeks_documents() { self.judge(out)? } else { Vec::new() };
        let cuts = self.cuts(&compared)?;
        self.filter(&compared, &cuts, out)
    }

    /// Whether any document can go for another one as a whole.
    fn seeks_documents(&self) -> bool {
        self.config.exact || self.config.url || self.config.near
    }

    /// The records of the phase `compare`: which documents go for others.
    fn judge(&mut self, out: &Outputs) -> Result<Vec<UnitRecord>, Error> {
        self.ranks = self.rank()?;
        let (sketched, linked) = match self.is_published() {
            false => self.links::<Narrow>()?,
            true => self.links::<Wide>()?,
        };
        let found = self.clusters(&linked)?;
        let compared = self.compare(&sketched, &found, out)?;
        let count = |i: usize| compared.iter().filter_map(|record| record.detail[i].as_u64()).sum::<u64>();
        let (near, by_numbers) = (count(0), count(1));
        if 2 * by_numbers > near {
            self.cx.warn(&format!(
                "{by_numbers} of {near} near-duplicates differ from the document that stays in their numbers alone: \
                 `keep_numbers: true` keeps such documents"
            ));
        }
        Ok(compared)
    }

    pub(crate) fn documents(
        &self,
        file: usize,
    ) -> Result<impl Iterator<Item = Result<(u64, Document), Error>> + use<>, Error> {
        let (artifact, number) = self.files[file];
        let rows = self.inputs[artifact].read(number)?;
        let numbers = self.starts[file]..self.starts[file + 1];
        Ok(rows.zip(numbers).map(|(document, i)| document.map(|document| (i, document))))
    }

    /// The documents of an input file with their ranks.
    fn ranked(&self, file: usize) -> Result<impl Iterator<Item = Result<(u64, DocumentText), Error>>, Error> {
        let mut ranks = match &self.ranks {
            Some(ranks) => Some(ranks.of_file(self.cx, file)?),
            None => None,
        };
        let (artifact, number) = self.files[file];
        let texts = self.inputs[artifact].view(number)?.zip(self.starts[file]..);
        Ok(texts.map(move |(text, number)| {
            let rank = match &mut ranks {
                Some(ranks) => ranks.next().ok_or_else(|| Error::bug("a document has no rank"))??,
                None => number,
            };
            Ok((rank, text?))
        }))
    }

    fn is_published(&self) -> bool {
        self.config.keeps == Keeps::Published
    }

    /// How many documents were seen before: those with the smallest numbers and ranks.
    pub(crate) fn seen(&self) -> u64 {
        self.starts[self.seen_files]
    }

    /// The input files whose documents are kept or dropped.
    pub(crate) fn own_files(&self) -> Range<usize> {
        self.seen_files..self.files.len()
    }

    /// Bands of signatures; the next band is that of equal texts, the one behind it that of equal URLs.
    fn bands(&self) -> usize {
        if self.config.near { self.config.bands } else { 0 }
    }

    /// The bands that are looked at.
    fn used_bands(&self) -> Vec<usize> {
        let exact = self.bands();
        let certain = [(self.config.exact, exact), (self.config.url, exact + 1)];
        (0..exact).chain(certain.into_iter().filter_map(|(used, band)| used.then_some(band))).collect()
    }

    /// Ranges that a band is cut into.
    fn ranges(&self) -> u64 {
        if self.is_published() { 1 } else { self.starts[self.files.len()].div_ceil(RANGE).max(1) }
    }

    /// Parts of the sorted bands of a file, and how many of them a unit merges.
    fn parts(&self) -> (usize, usize) {
        let parts = self.used_bands().len() * self.ranges() as usize;
        let entries = self.starts[self.files.len()] / self.ranges();
        (parts, (ENTRIES / entries.max(1)).clamp(1, parts as u64) as usize)
    }

    /// Records of the phases `sketches` and `bands`.
    fn links<E: Entry>(&self) -> Result<(Vec<UnitRecord>, Vec<UnitRecord>), Error> {
        let sketched = self.cx.units("sketches", self.files.len(), |i, unit| self.sketch::<E>(i, unit))?;
        let (used, (parts, each)) = (self.used_bands(), self.parts());
        let linked = self.cx.units("bands", parts.div_ceil(each), |i, unit| {
            let mut out = Links::new(self, unit)?;
            for part in i * each..parts.min((i + 1) * each) {
                let band = used[part / self.ranges() as usize];
                let runs = sketched.iter().map(|record| move || self.cx.work(record, "bands")?.part(part));
                match band >= self.bands() {
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
        let memory = self.memory / (bands + 2);
        let mut sorters: Vec<Sorter<E>> = (0..bands).map(|_| Sorter::new(memory, self.cx.scratch())).collect();
        let mut equals: Sorter<Narrow> = Sorter::new(memory, self.cx.scratch());
        let mut pages: Sorter<Narrow> = Sorter::new(memory, self.cx.scratch());
        let (mut sketch, mut scratch) = (Sketch::default(), Scratch::default());
        let mut file = unit.work_file("sketches")?;
        for document in self.ranked(i)? {
            let (rank, document) = document?;
            sketch.traits.signature.clear();
            if config.near {
                let simple = self.minhash.simple(&document.text);
                if let Some(signature) = self.minhash.signature_of_simple(&simple, &mut scratch) {
                    for (sorter, band) in sorters.iter_mut().zip(signature.chunks(config.hashes)) {
                        sorter.push(E::new(band, rank))?;
                    }
                    if config.jaccard == 0.0 {
                        encode(&signature, self.width, &mut sketch.traits.signature);
                    }
                }
                sketch.traits.simple = simple_forms(&document.text, &simple, config.keep_numbers);
            }
            sketch.traits.digest.copy_from_slice(&exact::digest(&document.text)[..16]);
            if config.exact {
                equals.push(Narrow::of_digest(&sketch.traits.digest, rank))?;
            }
            let address = document.url.as_deref().filter(|_| config.url).and_then(address::digest);
            sketch.traits.address = address.unwrap_or_default();
            if let Some(address) = &address {
                pages.push(Narrow::of_digest(address, rank))?;
            }
            sketch.id = document.id;
            sketch.write(&mut file).map_err(|e| file.error(e))?;
        }
        file.finish(unit)?;
        let mut file = unit.work_file("bands")?;
        for sorter in sorters {
            write_ranges(sorter, self.ranges(), &mut file)?;
        }
        for (sorter, used) in [(equals, config.exact), (pages, config.url)] {
            if used {
                write_ranges(sorter, self.ranges(), &mut file)?;
            }
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
            let documents = self.starts[self.files.len()];
            // This unit has no others beside it.
            let memory = self.memory * self.cx.threads() / 3;
            let mut renumbered = match &self.ranks {
                Some(ranks) => Some(ranks.renumbered(self.cx, memory)?),
                None => None,
            };
            let take = |pair: Pair| match &mut renumbered {
                Some(renumbered) => renumbered.push(pair),
                None => file.write(pair.document, &pair),
            };
            if self.is_published() {
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
                let joining = Joining { exact: self.bands() as u16, jaccard, transitive, seen: self.seen() };
                let mut shingles = Shingles::open(self.cx, &shingled, memory)?;
                let mut similarity = |a, b| shingles.similarity(a, b);
                duplicates(links, documents, joining, &mut similarity, (memory, self.cx.scratch()), take)?;
            }
            if let Some(renumbered) = renumbered {
                renumbered.write(&mut file)?;
            }
            file.finish(unit)
        })?;
        Ok(records.remove(0))
    }

    pub(crate) fn sketches(&self, sketched: &[UnitRecord], file: usize) -> Result<SketchFile<WorkPart>, Error> {
        Ok(SketchFile::new(self.cx.work(&sketched[file], "sketches")?.part(0)?, self.starts[file]))
    }

    /// The shingles of the documents that have links, by input file.
    fn shingle(&self, linked: &[UnitRecord]) -> Result<Vec<UnitRecord>, Error> {
        let mut wanted = Wanted::new(self.starts[self.files.len()]);
        for record in linked {
            for link in Sorted::<u128>::of(self.cx.work(record, "links")?.part(0)?)? {
                let link = Link::unpack(link?);
                if usize::from(link.band) != self.bands() {
                    wanted.insert(link.document);
                    wanted.insert(link.other);
                }
            }
        }
        self.cx.units("shingles", self.files.len(), |i, unit| {
            let mut file = ShingleFile::new(unit)?;
            for document in self.ranked(i)? {
                let (rank, document) = document?;
                if wanted.contains(rank) {
                    file.write(rank, &self.minhash.shingles(&document.text))?;
                }
            }
            file.finish(unit)
        })
    }

    pub(crate) fn by_file(&self, file: WorkFile) -> ByFile<'_> {
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
        let sorter = (!job.is_published()).then(sorter);
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
pub(crate) struct ByFile<'a> {
    file: WorkFile,
    starts: &'a [u64],
    /// The input file whose part is being written.
    at: usize,
}

impl ByFile<'_> {
    pub(crate) fn write(&mut self, document: u64, item: &impl Item) -> Result<(), Error> {
        self.go_to(document)?;
        item.write(&mut self.file).map_err(|e| self.file.error(e))
    }

    pub(crate) fn write_all(&mut self, document: u64, bytes: &[u8]) -> Result<(), Error> {
        self.go_to(document)?;
        self.file.write_all(bytes).map_err(|e| self.file.error(e))
    }

    fn go_to(&mut self, document: u64) -> Result<(), Error> {
        while document >= self.starts[self.at + 1] {
            self.file.end_part()?;
            self.at += 1;
        }
        Ok(())
    }

    pub(crate) fn finish(mut self, unit: &mut Unit) -> Result<(), Error> {
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
