//! What machine code says of itself: cubins are ELF files (CUDA Binary Utilities; System V ABI, 64 bits).

use std::collections::BTreeMap;

/// One kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Code {
    /// Its instructions.
    pub text: Vec<u8>,
    pub registers: u32,
    /// Bytes of local memory, where registers are spilled to.
    pub frame: u32,
}

/// A file of machine code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cubin {
    /// The assembler that made it: `13.0, V13.0.88`.
    pub made_by: Option<String>,
    pub kernels: BTreeMap<String, Code>,
}

struct Section<'a> {
    name: &'a str,
    data: &'a [u8],
}

/// A little-endian number of `bytes` bytes at `at`.
fn number(data: &[u8], at: usize, bytes: usize) -> Option<u64> {
    let part = data.get(at..at.checked_add(bytes)?)?;
    Some(part.iter().rev().fold(0, |all, &byte| all << 8 | u64::from(byte)))
}

/// The text from `at` up to a zero byte.
fn text(data: &[u8], at: usize) -> Option<&str> {
    let rest = data.get(at..)?;
    std::str::from_utf8(&rest[..rest.iter().position(|&byte| byte == 0)?]).ok()
}

fn sections(file: &[u8]) -> Option<Vec<Section<'_>>> {
    const NO_DATA: u64 = 8;
    let field = |at, bytes| number(file, at, bytes).map(|x| x as usize);
    let (start, size, count, names) = (field(0x28, 8)?, field(0x3a, 2)?, field(0x3c, 2)?, field(0x3e, 2)?);
    let data = |i: usize| {
        let at = start + i * size;
        let (offset, length) = (field(at + 0x18, 8)?, field(at + 0x20, 8)?);
        let length = if number(file, at + 4, 4)? == NO_DATA { 0 } else { length };
        file.get(offset..offset.checked_add(length)?)
    };
    let names = data(names)?;
    (0..count).map(|i| Some(Section { name: text(names, field(start + i * size, 4)?)?, data: data(i)? })).collect()
}

impl Cubin {
    /// None if it is no such file.
    pub(super) fn read(file: &[u8]) -> Option<Self> {
        if !file.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let sections = sections(file)?;
        let find = |name: &str| sections.iter().find(|section| section.name == name).map(|section| section.data);
        let tools = find(".note.nv.tkinfo").map(String::from_utf8_lossy);
        let release = tools.as_deref().and_then(|tools| tools.split_once("release ")).map(|(_, rest)| rest);
        let made_by = release.and_then(|rest| rest.split('\0').next()).map(str::to_owned);
        let mut cubin = Self { made_by, ..Self::default() };
        for section in &sections {
            if let Some(kernel) = section.name.strip_prefix(".text.") {
                let code = Code { text: section.data.to_vec(), ..Code::default() };
                cubin.kernels.insert(kernel.to_owned(), code);
            }
        }
        let (symbols, names, info) = (find(".symtab")?, find(".strtab")?, find(".nv.info").unwrap_or_default());
        // attributes: format, kind, and a value of 2 bytes or, in format 4, so many bytes
        let mut at = 0;
        while let (Some(format), Some(kind), Some(value)) =
            (number(info, at, 1), number(info, at + 1, 1), number(info, at + 2, 2))
        {
            if format == 4 && (kind == 0x2f || kind == 0x11) {
                let (symbol, value) = (number(info, at + 4, 4)? as usize, number(info, at + 8, 4)? as u32);
                let name = text(names, number(symbols, 24 * symbol, 4)? as usize)?;
                if let Some(code) = cubin.kernels.get_mut(name) {
                    *(if kind == 0x2f { &mut code.registers } else { &mut code.frame }) = value;
                }
            }
            at += 4 + if format == 4 { value as usize } else { 0 };
        }
        Some(cubin)
    }
}
