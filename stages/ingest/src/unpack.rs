//! From the bytes of a file to UTF-8: unpacked, and decoded by its byte order mark.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};

use crate::sniff::Packing;

/// Bytes that are looked at to say what a file is.
const HEAD: u64 = 256 << 10;

/// Memory that an xz file may ask for, in KiB; `xz -9` needs 65 MiB, and the largest dictionary has 1.5 GiB.
const XZ_KIB: u32 = 2 << 20;

/// A reader, and what it begins with; `is_all` if that is the whole.
pub(crate) struct Peeked {
    pub(crate) head: Vec<u8>,
    pub(crate) is_all: bool,
    pub(crate) reader: Box<dyn BufRead>,
}

pub(crate) fn peek(mut reader: Box<dyn Read>) -> io::Result<Peeked> {
    let mut head = Vec::new();
    reader.by_ref().take(HEAD).read_to_end(&mut head)?;
    let is_all = (head.len() as u64) < HEAD;
    let whole = Cursor::new(head.clone()).chain(reader);
    Ok(Peeked { head, is_all, reader: Box::new(BufReader::with_capacity(1 << 16, whole)) })
}

/// The first bytes of a file, unless it cannot be read.
pub(crate) fn first_bytes(mut file: &File) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    file.by_ref().take(64).read_to_end(&mut head)?;
    io::Seek::rewind(&mut file)?;
    Ok(head)
}

pub(crate) fn unpack(reader: Box<dyn BufRead>, packing: Packing) -> io::Result<Box<dyn Read>> {
    Ok(match packing {
        Packing::Gzip => Box::new(Gunzip { member: Some(flate2::bufread::GzDecoder::new(reader)) }),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(31)?; // what `zstd --long=31` writes
            Box::new(decoder)
        }
        Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(reader)),
        Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(reader, true, XZ_KIB)),
    })
}

/// The members of a gzip file one after the other. Zero bytes behind one are padding, as `gzip` and Python have it.
struct Gunzip {
    member: Option<flate2::bufread::GzDecoder<Box<dyn BufRead>>>,
}

impl Read for Gunzip {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let mut rest = self.member.take().map(flate2::bufread::GzDecoder::into_inner).expect("it was there");
            let next = loop {
                let ahead = rest.fill_buf()?;
                let zeros = ahead.iter().take_while(|&&b| b == 0).count();
                match ahead.get(zeros) {
                    Some(&byte) => {
                        rest.consume(zeros);
                        break Some(byte);
                    }
                    None if ahead.is_empty() => break None,
                    None => rest.consume(zeros),
                }
            };
            match next {
                None => {}
                Some(0x1f) => self.member = Some(flate2::bufread::GzDecoder::new(rest)),
                Some(byte) => {
                    let what = format!("byte 0x{byte:02x} behind the end of the gzip data");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
        }
        Ok(0)
    }
}

/// How wide the units of a text are, by its byte order mark or, without one, by where its zeros are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wide {
    bytes: usize,
    is_big: bool,
    mark: usize,
}

/// `None` for UTF-8.
pub(crate) fn wide(head: &[u8]) -> Option<Wide> {
    let wide = |bytes, is_big, mark| Some(Wide { bytes, is_big, mark });
    match head {
        [0xff, 0xfe, 0, 0, ..] => wide(4, false, 4),
        [0, 0, 0xfe, 0xff, ..] => wide(4, true, 4),
        [0xff, 0xfe, ..] => wide(2, false, 2),
        [0xfe, 0xff, ..] => wide(2, true, 2),
        _ => {
            // Latin text as UTF-16 without a mark: every other byte of it is zero.
            let sample = &head[..head.len().min(256) & !1];
            let zeros = |from: usize| sample.iter().skip(from).step_by(2).filter(|&&b| b == 0).count();
            let (even, odd, units) = (zeros(0), zeros(1), sample.len() / 2);
            match units >= 4 && even.max(odd) * 10 >= units * 9 && even.min(odd) == 0 {
                true => wide(2, even > odd, 0),
                false => None,
            }
        }
    }
}

/// UTF-16 or UTF-32 as UTF-8. What is no character becomes bytes that are no UTF-8, so that it is found where other
/// bad bytes are.
pub(crate) struct Narrowed {
    inner: Box<dyn BufRead>,
    wide: Wide,
    /// Bytes that do not make a whole character yet.
    carry: Vec<u8>,
    out: Vec<u8>,
    at: usize,
}

impl Narrowed {
    pub(crate) fn new(mut inner: Box<dyn BufRead>, wide: Wide) -> io::Result<Self> {
        inner.read_exact(&mut vec![0; wide.mark])?;
        Ok(Self { inner, wide, carry: Vec::new(), out: Vec::new(), at: 0 })
    }

    /// Whether there is more.
    fn fill(&mut self) -> io::Result<bool> {
        let mut bytes = std::mem::take(&mut self.carry);
        let had = bytes.len();
        bytes.resize(had + 8192, 0);
        let read = self.inner.read(&mut bytes[had..])?;
        bytes.truncate(had + read);
        (self.out, self.at) = (Vec::with_capacity(bytes.len() * 2), 0);
        let is_big = self.wide.is_big;
        let whole = bytes.len() / self.wide.bytes * self.wide.bytes;
        let mut used = whole;
        if self.wide.bytes == 2 {
            let unit =
                |b: &[u8]| if is_big { u16::from_be_bytes([b[0], b[1]]) } else { u16::from_le_bytes([b[0], b[1]]) };
            let mut units: Vec<u16> = bytes[..whole].chunks_exact(2).map(unit).collect();
            if read > 0 && units.last().is_some_and(|last| (0xd800..0xdc00).contains(last)) {
                units.pop();
                used -= 2;
            }
            char::decode_utf16(units).for_each(|c| push(&mut self.out, c.ok()));
        } else {
            let unit = |b: &[u8]| {
                let b = [b[0], b[1], b[2], b[3]];
                if is_big { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
            };
            bytes[..whole].chunks_exact(4).for_each(|b| push(&mut self.out, char::from_u32(unit(b))));
        }
        if read == 0 && used < bytes.len() {
            push(&mut self.out, None); // half a unit at the end
        } else {
            self.carry = bytes.split_off(used);
        }
        Ok(read > 0)
    }
}

fn push(out: &mut Vec<u8>, c: Option<char>) {
    match c {
        Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        None => out.push(0xff),
    }
}

impl Read for Narrowed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.out.len() {
            if !self.fill()? && self.out.is_empty() {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.out.len() - self.at);
        buffer[..count].copy_from_slice(&self.out[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> Vec<u8> {
        let wide = wide(bytes).expect("it is wide");
        let mut out = Vec::new();
        Narrowed::new(Box::new(Cursor::new(bytes.to_vec())), wide).unwrap().read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn wide_texts_are_decoded_with_and_without_a_mark() {
        let text = "Grüße, 漢字 and 🦀 ".repeat(3000);
        for (mark, is_big) in [(true, false), (true, true)] {
            let unit = |u: u16| if is_big { u.to_be_bytes() } else { u.to_le_bytes() };
            let units = mark.then_some(0xfeff).into_iter().chain(text.encode_utf16());
            assert_eq!(decoded(&units.flat_map(unit).collect::<Vec<u8>>()), text.as_bytes());
        }
        let wide32: Vec<u8> =
            std::iter::once('\u{feff}').chain(text.chars()).flat_map(|c| (c as u32).to_le_bytes()).collect();
        assert_eq!(decoded(&wide32), text.as_bytes());
        let plain: Vec<u8> = "no mark at all".encode_utf16().flat_map(u16::to_be_bytes).collect();
        assert_eq!(decoded(&plain), b"no mark at all");
        assert_eq!(wide(b"plain text"), None);
        assert_eq!(wide(b"\0\0\0\0\0\0\0\0"), None);
    }

    #[test]
    fn half_characters_are_bad_bytes() {
        let lone: Vec<u8> = [0xfeffu16, 0x61, 0xd83d, 0x62].into_iter().flat_map(u16::to_le_bytes).collect();
        assert_eq!(decoded(&lone), b"a\xffb");
        assert_eq!(decoded(b"\xff\xfea\0b"), b"a\xff");
        assert_eq!(decoded(b"\xff\xfe\x3d\xd8"), b"\xff");
    }
}
