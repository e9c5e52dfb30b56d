//! Text that was UTF-8 and was read in another character set: `Ã©` for `é`, `â€™` for `’`.
//!
//! UTF-8 is so regular that other text almost never looks like it: where every run of characters beyond ASCII in a line
//! turns back into bytes that are UTF-8, the line was UTF-8. A line with too little evidence is left as it is.

use std::borrow::Cow;

use encoding_rs::{Encoding, MACINTOSH, WINDOWS_1250, WINDOWS_1251, WINDOWS_1252};

/// Character sets that UTF-8 is read in by mistake, and how many characters a line must then show. The first is by far
/// the most frequent: two are enough of it, or one of three bytes.
const SETS: [(&Encoding, usize); 4] = [(WINDOWS_1252, 2), (WINDOWS_1251, 4), (WINDOWS_1250, 4), (MACINTOSH, 4)];
/// Text may have been misread several times.
const LAYERS: usize = 3;

/// `text` with its misread lines repaired.
pub fn repair(text: &str) -> Cow<'_, str> {
    let mut now = Cow::Borrowed(text);
    for _ in 0..LAYERS {
        match layer(&now) {
            Some(better) => now = better.into(),
            None => break,
        }
    }
    now
}

/// One layer less; `None` if nothing is misread.
fn layer(text: &str) -> Option<String> {
    if text.is_ascii() {
        return None;
    }
    for (set, least) in SETS {
        let lines: Vec<(&str, Option<Line>)> = text.split_inclusive('\n').map(|line| (line, read(line, set))).collect();
        // A single character of two bytes in its line counts only where nothing in the document says otherwise.
        let is_sound = |line: &Line| line.characters >= least || line.has_long;
        let is_all = lines.iter().all(|(line, found)| found.is_some() || line.is_ascii());
        let counts = |line: &Line| is_sound(line) || (set == WINDOWS_1252 && is_all && line.is_western);
        if lines.iter().any(|(_, found)| found.as_ref().is_some_and(counts)) {
            let better = |(line, found): (&str, Option<Line>)| match found.filter(counts) {
                Some(found) => found.text,
                None => line.to_owned(),
            };
            return Some(lines.into_iter().map(better).collect());
        }
    }
    None
}

/// A line as it was before it was misread.
struct Line {
    text: String,
    /// Characters beyond ASCII.
    characters: usize,
    /// One of them has three bytes or more.
    has_long: bool,
    /// All of them are of Latin-1.
    is_western: bool,
}

/// Turns a line back; `None` if it has nothing beyond ASCII, or something that was not UTF-8.
fn read(line: &str, set: &'static Encoding) -> Option<Line> {
    if line.is_ascii() {
        return None;
    }
    let (bytes, _, has_unknown) = set.encode(line);
    if has_unknown {
        return None;
    }
    let text = std::str::from_utf8(&bytes).ok()?.to_owned();
    let beyond = || text.chars().filter(|c| !c.is_ascii());
    let (characters, has_long) = (beyond().count(), beyond().any(|c| c.len_utf8() > 2));
    let is_western = beyond().all(|c| c <= '\u{ff}');
    Some(Line { characters, has_long, is_western, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `text` as it looks when its UTF-8 is read in another character set.
    fn misread(text: &str, set: &'static Encoding) -> String {
        let (found, had_errors) = set.decode_without_bom_handling(text.as_bytes());
        assert!(!had_errors, "{text}");
        found.into_owned()
    }

    #[test]
    fn misread_text_is_what_it_was() {
        let texts = [
            "Ein schöner Tag für Grüße.\nNext line is plain.\nNoch ein “Zitat” – mit Strich…",
            "naïve café, it’s déjà vu",
            "Zażółć gęślą jaźń",
            "Привет, мир",
            "漢字と仮名",
            "👍 fine",
        ];
        for text in texts {
            assert_eq!(repair(&misread(text, WINDOWS_1252)), text);
            let twice = misread(&misread(text, WINDOWS_1252), WINDOWS_1252);
            assert_eq!(repair(&twice), text, "{twice}");
        }
        assert_eq!(repair("one cafÃ© only"), "one café only");
        for set in [WINDOWS_1251, MACINTOSH] {
            let text = "Привет, как дела?";
            assert_eq!(repair(&misread(text, set)), text);
        }
    }

    #[test]
    fn sound_text_is_left_as_it_is() {
        for text in [
            "plain",
            "Schöne Grüße aus Köln, „BLÅ“ und CAFÉ… oder É”",
            "CAFÉ…",
            "MANHÃ” e IRMÃ…, não é",
            "Привет, мир — «Рыба»",
            "漢字と仮名、한국어",
            "Ünïcödé ± × ÷ ½ ¶ § ©",
            "naïve Ã© explained: the é of café was misread",
            "100 £ · 20 °C · Â",
        ] {
            assert_eq!(repair(text), text);
            assert!(matches!(repair(text), Cow::Borrowed(_)));
        }
    }

    #[test]
    fn only_misread_lines_change() {
        let mixed = "Grüße\nGrÃ¼ÃŸe aus KÃ¶ln\nÀ bientôt";
        assert_eq!(repair(mixed), "Grüße\nGrüße aus Köln\nÀ bientôt");
    }
}
