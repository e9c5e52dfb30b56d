//! Sorting more than memory holds: sorted runs in scratch, and one pass that merges them.

use crate::error::Error;
use crate::work::WorkPart;
use smelt_store::nameless;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs that are merged at once. More are merged in groups first, so that files and buffers stay few.
const FAN: usize = 256;
/// Bytes that are read from a run at once.
const BUFFER: usize = 1 << 16;

/// What can be sorted: it is written to scratch, and read back.
pub trait Item: Ord + Sized {
    /// About how many bytes it takes in memory.
    fn weight(&self) -> usize;
    fn write(&self, to: &mut impl Write) -> io::Result<()>;
    /// `None` where nothing follows.
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>>;
}

impl Item for u128 {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.to_le_bytes())
    }
    fn read(from: &mut dyn BufRead) -> io::Result<Option<Self>> {
        let mut bytes = [0; 16];
        Ok(read_or_end(from, &mut bytes)?.then(|| Self::from_le_bytes(bytes)))
    }
}

/// Fills `bytes`; false where nothing follows.
pub fn read_or_end(from: &mut dyn BufRead, bytes: &mut [u8]) -> io::Result<bool> {
    if from.fill_buf()?.is_empty() {
        return Ok(false);
    }
    from.read_exact(bytes).map(|()| true)
}

/// A stretch of a file in scratch that holds sorted items.
struct Run {
    file: Arc<File>,
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were read.
    used: usize,
}

impl BufRead for Run {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.used == self.buffer.len() && self.at < self.end {
            self.buffer.resize((self.end - self.at).min(BUFFER as u64) as usize, 0);
            self.file.read_exact_at(&mut self.buffer, self.at)?;
            self.at += self.buffer.len() as u64;
            self.used = 0;
        }
        Ok(&self.buffer[self.used..])
    }
    fn consume(&mut self, bytes: usize) {
        self.used += bytes;
    }
}

impl Read for Run {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(out)?;
        self.consume(n);
        Ok(n)
    }
}

/// A file in scratch to which runs are written, one behind the other.
struct Runs {
    scratch: PathBuf,
    file: Option<Arc<File>>,
    end: u64,
}

impl Runs {
    fn new(scratch: &Path) -> Self {
        Self { scratch: scratch.into(), file: None, end: 0 }
    }

    fn error(&self, e: &io::Error) -> Error {
        Error::machine(format!("sorting in {}: {e}", self.scratch.display()))
            .hint("a job needs about as much room there as its input takes in the store")
    }

    /// Writes sorted items.
    fn write<T: Item>(&mut self, items: impl Iterator<Item = Result<T, Error>>) -> Result<Run, Error> {
        let file = match &self.file {
            Some(file) => file.clone(),
            None => Arc::new(nameless(&self.scratch).map_err(|e| self.error(&e))?),
        };
        self.file = Some(file.clone());
        let mut out = BufWriter::with_capacity(1 << 18, Counted { file: &file, bytes: 0 });
        for item in items {
            item?.write(&mut out).map_err(|e| self.error(&e))?;
        }
        let written = out.into_inner().map_err(|e| self.error(e.error()))?.bytes;
        let at = self.end;
        self.end += written;
        Ok(Run { file, at, end: self.end, buffer: Vec::new(), used: 0 })
    }
}

struct Counted<'a> {
    file: &'a File,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where sorted items come from.
type Source = Box<dyn BufRead + Send>;

/// Sources with their smallest items.
struct Heads<T> {
    sources: Vec<Source>,
    heads: BinaryHeap<Reverse<(T, usize)>>,
}

impl<T: Item> Heads<T> {
    fn new() -> Self {
        Self { sources: Vec::new(), heads: BinaryHeap::new() }
    }

    fn of(sources: impl Iterator<Item = Result<Source, Error>>) -> Result<Self, Error> {
        let mut heads = Self::new();
        sources.into_iter().try_for_each(|source| heads.add(source?))?;
        Ok(heads)
    }

    fn add(&mut self, mut source: Source) -> Result<(), Error> {
        if let Some(item) = T::read(&mut *source).map_err(Error::of_read)? {
            self.heads.push(Reverse((item, self.sources.len())));
            self.sources.push(source);
        }
        Ok(())
    }

    fn peek(&self) -> Option<&T> {
        self.heads.peek().map(|Reverse((item, _))| item)
    }

    fn pop(&mut self) -> Result<Option<T>, Error> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        let i = head.0.1;
        Ok(Some(match T::read(&mut *self.sources[i]).map_err(Error::of_read)? {
            Some(next) => std::mem::replace(&mut head.0.0, next),
            None => {
                self.sources[i] = Box::new(io::empty()); // its buffer is free
                PeekMut::pop(head).0.0
            }
        }))
    }
}

/// Items in order.
pub struct Sorted<T>(Order<T>);

enum Order<T> {
    Memory(std::vec::IntoIter<T>),
    Merge(Heads<T>),
}

impl<T> fmt::Debug for Sorted<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.0 {
            Order::Memory(items) => write!(f, "Sorted({} items)", items.len()),
            Order::Merge(heads) => write!(f, "Sorted({} runs)", heads.sources.len()),
        }
    }
}

impl<T: Item> Iterator for Sorted<T> {
    type Item = Result<T, Error>;
    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Order::Memory(items) => items.next().map(Ok),
            Order::Merge(heads) => heads.pop().transpose(),
        }
    }
}

impl<T: Item> Sorted<T> {
    /// The items of a part.
    pub fn of(part: WorkPart) -> Result<Self, Error> {
        Ok(Self(Order::Merge(Heads::of(std::iter::once(Ok(Box::new(part) as Source)))?)))
    }

    /// The items of parts that each are in order. They are opened when they are needed: not all at once when they are
    /// many.
    pub fn merge<O>(parts: impl ExactSizeIterator<Item = O>, scratch: &Path) -> Result<Self, Error>
    where
        O: FnOnce() -> Result<WorkPart, Error>,
    {
        let mut sources = parts.map(|open| open().map(|part| Box::new(part) as Source));
        if sources.len() <= FAN {
            return Ok(Self(Order::Merge(Heads::of(sources)?)));
        }
        let (mut files, mut runs) = (Runs::new(scratch), Vec::new());
        while sources.len() > 0 {
            let heads = Heads::of(sources.by_ref().take(FAN))?;
            runs.push(files.write::<T>(Self(Order::Merge(heads)))?);
        }
        merge(runs, scratch)
    }
}

/// Merges runs; more than `FAN` in several passes.
fn merge<T: Item>(mut runs: Vec<Run>, scratch: &Path) -> Result<Sorted<T>, Error> {
    while runs.len() > FAN {
        let (mut files, mut left) = (Runs::new(scratch), runs.into_iter());
        runs = Vec::new();
        while left.len() > 0 {
            let heads = Heads::of(left.by_ref().take(FAN).map(|run| Ok(Box::new(run) as Source)))?;
            runs.push(files.write::<T>(Sorted(Order::Merge(heads)))?);
        }
    }
    Ok(Sorted(Order::Merge(Heads::of(runs.into_iter().map(|run| Ok(Box::new(run) as Source)))?)))
}

/// Takes items in any order, in bounded memory, and gives them in order.
pub struct Sorter<T> {
    items: Vec<T>,
    bytes: usize,
    /// Bytes that items may take before they go to scratch.
    memory: usize,
    done: Vec<Run>,
    runs: Runs,
}

impl<T> fmt::Debug for Sorter<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Sorter({} items, {} runs)", self.items.len(), self.done.len())
    }
}

impl<T: Item> Sorter<T> {
    /// `memory`: bytes. At least one item is held.
    pub fn new(memory: usize, scratch: &Path) -> Self {
        Self { items: Vec::new(), bytes: 0, memory, done: Vec::new(), runs: Runs::new(scratch) }
    }

    pub fn push(&mut self, item: T) -> Result<(), Error> {
        self.bytes += item.weight();
        // A vector that grows takes twice its size, and half of it again while it is copied.
        if self.items.len() == self.items.capacity() && 2 * self.bytes > self.memory || self.bytes > self.memory {
            self.spill()?;
            self.bytes += item.weight();
        }
        self.items.push(item);
        Ok(())
    }

    fn spill(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        if self.items.is_empty() {
            return Ok(());
        }
        self.items.sort_unstable();
        self.done.push(self.runs.write(self.items.drain(..).map(Ok))?);
        Ok(())
    }

    pub fn sorted(mut self) -> Result<Sorted<T>, Error> {
        if self.done.is_empty() {
            self.items.sort_unstable();
            return Ok(Sorted(Order::Memory(self.items.into_iter())));
        }
        self.spill()?;
        drop(self.items);
        merge(self.done, &self.runs.scratch)
    }
}

/// A priority queue in bounded memory: what does not fit lies sorted in scratch.
pub struct Queue<T> {
    near: BinaryHeap<Reverse<T>>,
    bytes: usize,
    memory: usize,
    far: Heads<T>,
    runs: Runs,
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Queue({} items, {} runs)", self.near.len(), self.far.sources.len())
    }
}

impl<T: Item + Send + 'static> Queue<T> {
    /// `memory`: bytes. At least one item is held.
    pub fn new(memory: usize, scratch: &Path) -> Self {
        Self { near: BinaryHeap::new(), bytes: 0, memory, far: Heads::new(), runs: Runs::new(scratch) }
    }

    pub fn push(&mut self, item: T) -> Result<(), Error> {
        self.bytes += item.weight();
        if self.near.len() == self.near.capacity() && 2 * self.bytes > self.memory || self.bytes > self.memory {
            let mut items: Vec<T> = std::mem::take(&mut self.near).into_iter().map(|Reverse(item)| item).collect();
            self.bytes = item.weight();
            if !items.is_empty() {
                items.sort_unstable();
                let run = self.runs.write(items.into_iter().map(Ok))?;
                self.far.add(Box::new(run))?;
                self.gather()?;
            }
        }
        self.near.push(Reverse(item));
        Ok(())
    }

    /// Makes one run of many.
    fn gather(&mut self) -> Result<(), Error> {
        if self.far.heads.len() < FAN {
            return Ok(());
        }
        let mut runs = Runs::new(&self.runs.scratch);
        let all = std::mem::replace(&mut self.far, Heads::new());
        let run = runs.write(Sorted(Order::Merge(all)))?;
        self.runs = runs;
        self.far.add(Box::new(run))
    }

    /// The smallest item.
    pub fn peek(&self) -> Option<&T> {
        match (self.near.peek().map(|Reverse(item)| item), self.far.peek()) {
            (Some(near), Some(far)) => Some(near.min(far)),
            (near, far) => near.or(far),
        }
    }

    pub fn pop(&mut self) -> Result<Option<T>, Error> {
        let is_far = match (self.near.peek(), self.far.peek()) {
            (Some(Reverse(near)), Some(far)) => far < near,
            (near, _) => near.is_none(),
        };
        if is_far {
            return self.far.pop();
        }
        let item = self.near.pop().map(|Reverse(item)| item);
        self.bytes -= item.as_ref().map_or(0, Item::weight);
        Ok(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(n: usize) -> Vec<u128> {
        let mut state = 1u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        (0..n).map(|_| u128::from(draw() % 1000) << 100 | u128::from(draw())).collect()
    }

    /// 16 bytes an item: memory for all, for some, and for one.
    const MEMORY: [usize; 4] = [1 << 20, 16_000, 1000, 0];

    #[test]
    fn what_does_not_fit_in_memory_is_sorted_all_the_same() {
        let items = drawn(3000);
        let mut expected = items.clone();
        expected.sort_unstable();
        for memory in MEMORY {
            let mut sorter = Sorter::new(memory, &std::env::temp_dir());
            for &item in &items {
                sorter.push(item).unwrap();
                assert!(16 * sorter.items.capacity() <= memory.max(64), "{} of {memory}", sorter.items.capacity());
            }
            let is_small = memory < 16 * items.len();
            assert_eq!(!sorter.done.is_empty(), is_small, "{memory}");
            let sorted: Vec<u128> = sorter.sorted().unwrap().map(Result::unwrap).collect();
            assert!(sorted == expected, "{memory}");
        }
    }

    #[test]
    fn a_queue_gives_the_smallest_item_whatever_its_memory() {
        let items = drawn(3000);
        for memory in MEMORY {
            let mut queue = Queue::new(memory, &std::env::temp_dir());
            let mut plain = std::collections::BTreeSet::new();
            for (i, &item) in items.iter().enumerate() {
                queue.push(item).unwrap();
                plain.insert(item);
                if i % 3 == 0 {
                    assert_eq!(queue.peek(), plain.first());
                    assert_eq!(queue.pop().unwrap(), plain.pop_first());
                }
            }
            while let Some(item) = queue.pop().unwrap() {
                assert_eq!(Some(item), plain.pop_first());
            }
            assert!(plain.is_empty() && queue.peek().is_none());
        }
    }
}
