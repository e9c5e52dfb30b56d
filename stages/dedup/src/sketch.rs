//! What is kept of a document for the phases behind the one that reads its text.

use std::io::{self, Read, Write};

use crate::minhash::similarity;

/// Of a document in the file that the first phase writes of each input file, in the order of its documents.
///
/// ```text
/// bytes of the id: 4   the id   digest: 16   address: 16   simple: 2 × 8   bytes of the signature: 4   the signature
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sketch {
    pub id: String,
    /// What tells it from other texts as a whole.
    pub traits: Traits,
}

/// What two documents are compared by.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Traits {
    /// Half of the digest of the text with white space folded: enough to tell any two apart.
    pub digest: [u8; 16],
    /// Of its URL, as `address.rs` has it; zeros without one.
    pub address: [u8; 16],
    /// Of the simplified text, numbers folded and as they are: equal and different where numbers alone differ.
    pub simple: [u64; 2],
    /// Empty for a text that is too short to have one, and where nobody will ask for it.
    pub signature: Vec<u8>,
}

/// Writes of each hash of a signature the first `width` bytes, the lowest first.
///
/// Without published clusters these are 4: two different hashes look equal once in 4 billion, and files halve.
pub(crate) fn encode(signature: &[u64], width: usize, to: &mut Vec<u8>) {
    to.clear();
    to.extend(signature.iter().flat_map(|hash| hash.to_le_bytes().into_iter().take(width)));
}

/// Share of equal hashes: the estimate of the Jaccard similarity. `None` if one of the two has no signature.
pub(crate) fn estimate(a: &[u8], b: &[u8], width: usize) -> Option<f64> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let (a, b): (Vec<&[u8]>, Vec<&[u8]>) = (a.chunks_exact(width).collect(), b.chunks_exact(width).collect());
    Some(similarity(&a, &b))
}

impl Traits {
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.digest)?;
        to.write_all(&self.address)?;
        self.simple.iter().try_for_each(|hash| to.write_all(&hash.to_le_bytes()))?;
        to.write_all(&(self.signature.len() as u32).to_le_bytes())?;
        to.write_all(&self.signature)
    }

    pub(crate) fn read(&mut self, from: &mut (impl Read + ?Sized)) -> io::Result<()> {
        from.read_exact(&mut self.digest)?;
        from.read_exact(&mut self.address)?;
        for hash in &mut self.simple {
            *hash = u64::from_le_bytes(read_bytes(from)?);
        }
        self.signature.resize(u32::from_le_bytes(read_bytes(from)?) as usize, 0);
        from.read_exact(&mut self.signature)
    }

    /// Whether two documents have the same URL.
    pub(crate) fn is_same_page(&self, other: &Self) -> bool {
        self.address != [0; 16] && self.address == other.address
    }

    /// Whether two documents differ in their numbers and in nothing else but case, marks and accents.
    pub(crate) fn differ_in_numbers(&self, other: &Self) -> bool {
        let ([a, a_numbers], [b, b_numbers]) = (self.simple, other.simple);
        a == b && a_numbers != b_numbers
    }
}

impl Sketch {
    pub(crate) fn write(&self, to: &mut impl Write) -> io::Result<()> {
        write_text(&self.id, to)?;
        self.traits.write(to)
    }

    pub(crate) fn read(&mut self, from: &mut (impl Read + ?Sized)) -> io::Result<()> {
        self.id = read_text(from)?;
        self.traits.read(from)
    }
}

pub(crate) fn read_bytes<const N: usize>(from: &mut (impl Read + ?Sized)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn write_text(text: &str, to: &mut (impl Write + ?Sized)) -> io::Result<()> {
    to.write_all(&(text.len() as u32).to_le_bytes())?;
    to.write_all(text.as_bytes())
}

pub(crate) fn read_text(from: &mut (impl Read + ?Sized)) -> io::Result<String> {
    let mut bytes = vec![0; u32::from_le_bytes(read_bytes(from)?) as usize];
    from.read_exact(&mut bytes)?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// The sketches of one input file, asked for in the order of their documents.
pub(crate) struct SketchFile<R> {
    from: R,
    /// Number of the document whose sketch comes next.
    next: u64,
    sketch: Sketch,
}

impl<R: Read> SketchFile<R> {
    /// `first`: number of the file's first document.
    pub(crate) fn new(from: R, first: u64) -> Self {
        Self { from, next: first, sketch: Sketch::default() }
    }

    /// The sketch of a document that does not lie before the one that was asked for last.
    pub(crate) fn of(&mut self, document: u64) -> io::Result<&Sketch> {
        while self.next <= document {
            self.sketch.read(&mut self.from)?;
            self.next += 1;
        }
        Ok(&self.sketch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sketch_is_read_as_it_is_written() {
        let mut sketches = Vec::new();
        for (id, hashes) in [("a", Some([1, u64::MAX, 0x1_2345_6789])), ("", None), ("ü", Some([0; 3]))] {
            let (digest, address) = ([id.len() as u8; 16], [9; 16]);
            let mut traits = Traits { digest, address, simple: [1, u64::MAX], signature: Vec::new() };
            if let Some(hashes) = hashes {
                encode(&hashes, 4, &mut traits.signature);
            }
            sketches.push(Sketch { id: id.into(), traits });
        }
        let mut bytes = Vec::new();
        sketches.iter().for_each(|sketch| sketch.write(&mut bytes).unwrap());
        let mut file = SketchFile::new(&bytes[..], 7);
        for (document, expected) in [(7, 0), (9, 2), (9, 2)] {
            assert_eq!(*file.of(document).unwrap(), sketches[expected]);
        }
        assert!(file.of(10).is_err());
        assert_eq!(sketches[0].traits.signature, [1, 0, 0, 0, 255, 255, 255, 255, 0x89, 0x67, 0x45, 0x23]);
    }

    #[test]
    fn the_estimate_is_the_share_of_equal_hashes() {
        let encoded = |hashes: &[u64], width| {
            let mut bytes = Vec::new();
            encode(hashes, width, &mut bytes);
            bytes
        };
        let other = 1 << 32 | 1;
        for (width, share) in [(4, 0.75), (8, 0.5)] {
            let (a, b) = (encoded(&[1, 2, 3, 4], width), encoded(&[other, 2, 3, 5], width));
            assert_eq!(estimate(&a, &b, width), Some(share));
            assert_eq!(estimate(&a, &[], width), None);
        }
    }
}
