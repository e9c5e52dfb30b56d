//! The n-grams of all problems in memory, and which of them a document has.
//!
//! Of most words of a corpus no n-gram is sought, and a table of bits says so with one look; for the others the hash
//! leads to the words, which are compared.

use std::ops::Range;

use rustc_hash::FxHashMap;
use smelt_stage::Error;
use smelt_words::WORD_QUARTERS;

use crate::Config;
use crate::benchmarks::{Each, Field, Problem};
use crate::windows::{Lengths, Windows};

/// Bits of the table for each n-gram: about one word in this many is looked up in vain.
const BITS: usize = 16;

/// A field of a problem, folded.
#[derive(Debug)]
pub struct Text {
    /// Its number.
    pub benchmark: usize,
    /// Of the problem in its benchmark.
    number: usize,
    /// Its id.
    pub problem: String,
    pub field: &'static str,
    /// Every word with a blank behind it, and where each begins.
    words: String,
    starts: Vec<usize>,
}

impl Text {
    fn run(&self, words: Range<usize>) -> &str {
        let end = self.starts.get(words.end).copied().unwrap_or(self.words.len());
        &self.words[self.starts[words.start]..end]
    }
}

/// Where an n-gram stands: text, and number of its first word there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    text: u32,
    first: u32,
}

/// An n-gram, or a whole problem that is shorter.
#[derive(Clone, Debug)]
struct Gram {
    hash: u64,
    words: u32,
    /// Of the places of all n-grams.
    places: Range<usize>,
}

/// What is sought.
#[derive(Debug)]
pub struct Index {
    lengths: Lengths,
    texts: Vec<Text>,
    /// By hash; different n-grams with one hash are neighbours.
    grams: Vec<Gram>,
    places: Vec<Place>,
    /// The first n-gram with a hash.
    by_hash: FxHashMap<u64, u32>,
    bits: Vec<u64>,
    /// N-grams that too many problems share.
    pub(crate) templates: usize,
    pub(crate) counts: Vec<Count>,
}

/// What became of a benchmark's problems.
#[derive(Clone, Debug, Default)]
pub(crate) struct Count {
    pub problems: usize,
    pub sought: usize,
    /// Words of the longest question, in quarters.
    longest: u32,
}

/// An n-gram that a document has.
#[derive(Clone, Debug)]
pub struct Hit {
    pub(crate) gram: u32,
    /// Bytes of the document's text.
    pub source: Range<usize>,
}

/// What a document has of a field of a problem.
#[derive(Debug)]
pub struct Overlap<'a> {
    pub text: &'a Text,
    /// Number of `text`, for [`Index::is_of`].
    number: u32,
    /// The first n-gram of the field that was found.
    pub ngram: &'a str,
    pub ngrams: u64,
    /// Share of the field's words.
    pub covered: f64,
}

impl Index {
    /// An index of the problems that `read` gives, benchmark after benchmark; `names`: what these are called. An error
    /// names a benchmark of which nothing can be found.
    pub fn build(
        config: &Config,
        names: &[String],
        read: impl FnOnce(&mut Each) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let ends = (config.min_words < config.n).then_some(config.min_words);
        let lengths = Lengths { n: config.n, ends, folds_numbers: config.fold_numbers };
        let mut making = Making { windows: Windows::new(lengths), texts: Vec::new(), found: Vec::new() };
        let mut counts = vec![Count::default(); names.len()];
        let mut has_short = false;
        read(&mut |problem| {
            let count = &mut counts[problem.benchmark];
            for field in &problem.fields {
                let (quarters, is_short) = making.add(count.problems, &problem, field)?;
                has_short |= is_short;
                if field.is_question {
                    count.longest = count.longest.max(quarters);
                }
            }
            count.problems += 1;
            Ok(())
        })?;
        let (grams, places) = making.grams();
        let lengths = Lengths { ends: ends.filter(|_| has_short), ..lengths };
        let (by_hash, bits) = (FxHashMap::default(), Vec::new());
        let mut index = Self { lengths, texts: making.texts, grams, places, by_hash, bits, templates: 0, counts };
        let before = index.grams.len();
        if let Some(most) = config.max_problems {
            index.drop_templates(most);
        }
        index.templates = before - index.grams.len();
        index.arrange();
        index.check(config, names)?;
        Ok(index)
    }

    /// What reads texts for [`Index::find`].
    pub fn windows(&self) -> Windows {
        Windows::new(self.lengths)
    }

    /// How many n-grams are sought.
    #[expect(clippy::len_without_is_empty, reason = "an empty one is an error when it is built")]
    pub fn len(&self) -> usize {
        self.grams.len()
    }

    /// Leaves n-grams out of each benchmark in which more than `most` problems share them.
    fn drop_templates(&mut self, most: usize) {
        let texts = &self.texts;
        let problem = |place: &Place| {
            let text = &texts[place.text as usize];
            (text.benchmark, text.number)
        };
        let mut kept = Vec::with_capacity(self.places.len());
        self.grams.retain_mut(|gram| {
            let places = &self.places[gram.places.clone()];
            let mut problems: Vec<(usize, usize)> = places.iter().map(problem).collect();
            problems.dedup(); // places are in the order of texts, and these in that of problems
            let start = kept.len();
            let few = |of: usize| problems.iter().filter(|(benchmark, _)| *benchmark == of).count() <= most;
            match problems.len() <= most {
                true => kept.extend_from_slice(places),
                false => kept.extend(places.iter().filter(|place| few(problem(place).0))),
            }
            gram.places = start..kept.len();
            !gram.places.is_empty()
        });
        self.places = kept;
    }

    /// Leaves out the n-grams of which `is_common` is true.
    pub(crate) fn without(mut self, is_common: impl Fn(usize) -> bool) -> Self {
        let mut number = 0..;
        self.grams.retain(|_| !number.next().is_some_and(&is_common));
        self.arrange();
        self
    }

    /// Makes the tables by which n-grams are found, and counts what they belong to.
    fn arrange(&mut self) {
        let size = (BITS * self.grams.len()).next_power_of_two().max(1 << 16);
        self.bits = vec![0; size / 64];
        self.by_hash.clear();
        for (i, gram) in self.grams.iter().enumerate() {
            let bit = bit(gram.hash, size);
            self.bits[bit / 64] |= 1 << (bit % 64);
            self.by_hash.entry(gram.hash).or_insert(i as u32);
        }
        let mut sought: Vec<(usize, usize)> = self
            .grams
            .iter()
            .flat_map(|gram| &self.places[gram.places.clone()])
            .map(|place| &self.texts[place.text as usize])
            .map(|text| (text.benchmark, text.number))
            .collect();
        sought.sort_unstable();
        sought.dedup();
        self.counts.iter_mut().for_each(|count| count.sought = 0);
        sought.into_iter().for_each(|(benchmark, _)| self.counts[benchmark].sought += 1);
    }

    /// A benchmark of which nothing can be found is not what anybody meant.
    fn check(&self, config: &Config, names: &[String]) -> Result<(), Error> {
        for (name, count) in names.iter().zip(&self.counts) {
            if count.problems == 0 {
                return Err(Error::data(format!("benchmark `{name}` is empty: nothing can be found of it"))
                    .hint("look at the job that makes it, or leave it out"));
            }
            if count.sought > 0 {
                continue;
            }
            let none = format!("none of the {} problems of benchmark `{name}` can be sought", count.problems);
            return Err(match count.longest < config.min_words as u32 * WORD_QUARTERS {
                true => Error::data(format!(
                    "{none}: the longest has {} words, and `min_words` is {}",
                    f64::from(count.longest) / f64::from(WORD_QUARTERS),
                    config.min_words
                ))
                .hint("lower `min_words`, or leave the benchmark out"),
                false => Error::data(format!(
                    "{none}: more than `max_problems` of them share each of their n-grams, or these are numbers"
                ))
                .hint("set `max_problems: null` or `fold_numbers: false`, or leave the benchmark out"),
            });
        }
        Ok(())
    }

    /// The n-grams of `text` that are sought, in order.
    pub fn find(&self, windows: &mut Windows, text: &str, hits: &mut Vec<Hit>) {
        hits.clear();
        let mut folder = windows.begin(text);
        while let Some(hashes) = windows.next_word(&mut folder) {
            for hash in [hashes.n, hashes.ends].into_iter().flatten() {
                let bit = bit(hash, 64 * self.bits.len());
                if self.bits[bit / 64] >> (bit % 64) & 1 == 1 {
                    self.look_up(windows, hash, hits);
                }
            }
            windows.forget();
        }
    }

    #[cold]
    fn look_up(&self, windows: &Windows, hash: u64, hits: &mut Vec<Hit>) {
        let Some(&first) = self.by_hash.get(&hash) else { return };
        let same = self.grams[first as usize..].iter().take_while(|gram| gram.hash == hash);
        for (gram, number) in same.zip(first..) {
            if let Some(source) = windows.ends_with(self.words(gram)) {
                hits.push(Hit { gram: number, source });
            }
        }
    }

    fn words(&self, gram: &Gram) -> &str {
        let Place { text, first } = self.places[gram.places.start];
        let first = first as usize;
        self.texts[text as usize].run(first..first + gram.words as usize)
    }

    /// What the hits in a document are of, in the order of benchmarks, problems and fields.
    pub fn overlaps(&self, hits: &[Hit]) -> Vec<Overlap<'_>> {
        let mut grams: Vec<u32> = hits.iter().map(|hit| hit.gram).collect();
        grams.sort_unstable();
        grams.dedup();
        let places = |gram: u32| {
            let gram = &self.grams[gram as usize];
            self.places[gram.places.clone()].iter().map(|&place| (place, gram.words as usize))
        };
        let mut places: Vec<(Place, usize)> = grams.into_iter().flat_map(places).collect();
        places.sort_unstable();
        let of_text = |same: &[(Place, usize)]| {
            let number = same[0].0.text;
            let text = &self.texts[number as usize];
            let (mut covered, mut end) = (0, 0);
            for &(place, words) in same {
                let first = place.first as usize;
                covered += (first + words).saturating_sub(end.max(first));
                end = end.max(first + words);
            }
            let first = same[0].0.first as usize;
            let ngram = text.run(first..first + same[0].1).trim_end();
            let covered = covered as f64 / text.starts.len() as f64;
            Overlap { text, number, ngram, ngrams: same.len() as u64, covered }
        };
        places.chunk_by(|a, b| a.0.text == b.0.text).map(of_text).collect()
    }

    /// Whether an n-gram is one of these fields', which are in order.
    pub(crate) fn is_of(&self, hit: &Hit, overlaps: &[Overlap]) -> bool {
        let places = &self.places[self.grams[hit.gram as usize].places.clone()];
        places.iter().any(|place| overlaps.binary_search_by_key(&place.text, |overlap| overlap.number).is_ok())
    }
}

fn bit(hash: u64, size: usize) -> usize {
    (hash >> 20) as usize & (size - 1)
}

/// An n-gram as it is read: its hash, where it is, and how many words it has.
type Found = (u64, Place, u32);

struct Making {
    windows: Windows,
    texts: Vec<Text>,
    found: Vec<Found>,
}

impl Making {
    /// Takes a field in. Gives how many quarters of a word it has, and whether it is sought as a whole.
    fn add(&mut self, number: usize, problem: &Problem, field: &Field) -> Result<(u32, bool), Error> {
        let text = u32::try_from(self.texts.len()).map_err(|_| Error::data("more than 2³² fields of problems"))?;
        let mut folder = self.windows.begin(&field.text);
        let before = self.found.len();
        let mut end = None;
        while let Some(hashes) = self.windows.next_word(&mut folder) {
            end = hashes.ends;
            if let Some(hash) = hashes.n {
                let words = self.windows.ngram();
                self.found.push((hash, Place { text, first: words.start as u32 }, words.len() as u32));
            }
        }
        let words = &self.windows.words;
        let is_short = self.found.len() == before && field.is_question;
        if let Some(hash) = end.filter(|_| is_short) {
            self.found.push((hash, Place { text, first: 0 }, words.len() as u32));
        }
        let made = Text {
            benchmark: problem.benchmark,
            number,
            problem: problem.id.clone(),
            field: field.name,
            words: self.windows.text.clone(),
            starts: words.iter().map(|word| word.start).collect(),
        };
        if self.windows.folds_numbers() {
            // Without their digits, tables and sums are all alike.
            let says = |&(_, place, words): &Found| {
                let first = place.first as usize;
                let mut forms = made.run(first..first + words as usize).split_terminator(' ');
                2 * forms.by_ref().filter(|form| form.chars().any(char::is_alphabetic)).count() >= words as usize
            };
            let kept: Vec<Found> = self.found.drain(before..).filter(says).collect();
            self.found.extend(kept);
        }
        self.texts.push(made);
        Ok((self.windows.quarters(), is_short && self.found.len() > before))
    }

    /// Equal n-grams together, by their words and not by their hashes alone.
    fn grams(&mut self) -> (Vec<Gram>, Vec<Place>) {
        let mut found = std::mem::take(&mut self.found);
        found.sort_unstable();
        let (mut grams, mut places): (Vec<Gram>, Vec<Place>) = (Vec::new(), Vec::with_capacity(found.len()));
        let words = |&(_, place, words): &Found| {
            let first = place.first as usize;
            self.texts[place.text as usize].run(first..first + words as usize)
        };
        for same_hash in found.chunk_by(|a, b| a.0 == b.0) {
            let mut left: Vec<Found> = same_hash.to_vec();
            while let Some(first) = left.first().copied() {
                let start = places.len();
                left.retain(|other| {
                    let is_same = words(other) == words(&first);
                    places.extend(is_same.then_some(other.1));
                    !is_same
                });
                grams.push(Gram { hash: first.0, words: first.2, places: start..places.len() });
            }
        }
        (grams, places)
    }
}
