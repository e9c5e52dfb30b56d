//! What a character is to the expressions by which tokenizers cut text, one byte of flags for every code point.
//!
//! The classes come from `regex-syntax`, whose tables the tokenizers library uses too, so that both agree on every
//! character of the same Unicode version.

use regex_syntax::hir::{Class, HirKind};
use std::sync::LazyLock;

pub(super) const LETTER: u8 = 1;
pub(super) const MARK: u8 = 2;
pub(super) const NUMBER: u8 = 4;
/// Punctuation or symbol.
pub(super) const SIGN: u8 = 8;
/// White space, line breaks included.
pub(super) const SPACE: u8 = 16;
/// `\r` or `\n`.
pub(super) const BREAK: u8 = 32;
/// Chinese characters and Japanese syllables, as DeepSeek-V3's pre-tokenizer sets them apart.
pub(super) const CJK: u8 = 64;
/// A decimal digit.
pub(super) const DIGIT: u8 = 128;

const CODE_POINTS: usize = 0x11_0000;

#[derive(Debug)]
pub(super) struct Classes(Box<[u8]>);

impl Classes {
    /// The table of 1.1 MB, made once; text of one script touches a few of its cache lines.
    pub(super) fn get() -> &'static Self {
        static CLASSES: LazyLock<Classes> = LazyLock::new(Classes::new);
        &CLASSES
    }

    fn new() -> Self {
        let mut table = vec![0; CODE_POINTS];
        let classes = [
            (r"\p{L}", LETTER),
            (r"\p{M}", MARK),
            (r"\p{N}", NUMBER),
            (r"[\p{P}\p{S}]", SIGN),
            (r"\s", SPACE),
            (r"[\r\n]", BREAK),
            ("[一-龥぀-ゟ゠-ヿ]", CJK),
            (r"\d", DIGIT),
        ];
        for (class, flag) in classes {
            let parsed = regex_syntax::parse(class).expect("the class is well formed");
            let HirKind::Class(Class::Unicode(class)) = parsed.kind() else { panic!("{class} is no class") };
            for range in class.ranges() {
                table[range.start() as usize..=range.end() as usize].iter_mut().for_each(|flags| *flags |= flag);
            }
        }
        Self(table.into())
    }

    /// Flags and length in bytes of the character that begins at `at`, which is a border of characters within `text`.
    #[inline(always)]
    pub(super) fn at(&self, text: &str, at: usize) -> (u8, usize) {
        let bytes = text.as_bytes();
        let first = bytes[at];
        if first < 0x80 {
            return (self.0[usize::from(first)], 1);
        }
        let low = |i: usize| u32::from(bytes[at + i] & 0x3f);
        let first = u32::from(first);
        let (code, length) = if first < 0xe0 {
            ((first & 0x1f) << 6 | low(1), 2)
        } else if first < 0xf0 {
            ((first & 0xf) << 12 | low(1) << 6 | low(2), 3)
        } else {
            ((first & 0x7) << 18 | low(1) << 12 | low(2) << 6 | low(3), 4)
        };
        (self.0[code as usize], length)
    }
}
