//! What happens to every text before any rule looks at it: one Unicode form, no control characters.

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// The text in NFC, so that equal texts are equal bytes.
pub fn compose(text: String) -> String {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return text;
    }
    text.nfc().collect()
}

/// Line ends as `\n`; control characters except tab and line feed gone, a byte order mark at the start too.
///
/// Form feed and vertical tab end a line. What is removed is never a letter or a mark of any language: categories Cc,
/// and of Cf only the byte order mark and the interlinear anchors, because joiners and directions carry meaning.
pub fn strip_control(text: String) -> String {
    let text = match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    };
    if !text.contains(|c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || is_anchor(c)) {
        return text;
    }
    let mut clean = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => clean.push(c),
            '\r' => {
                chars.next_if_eq(&'\n');
                clean.push('\n');
            }
            '\u{b}' | '\u{c}' | '\u{85}' => clean.push('\n'),
            c if c.is_control() || is_anchor(c) => {}
            c => clean.push(c),
        }
    }
    clean
}

fn is_anchor(c: char) -> bool {
    matches!(c, '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_their_marks_become_one_character() {
        assert_eq!(compose("e\u{301}".into()), "é");
        assert_eq!(compose("가".into()), "가");
        assert_eq!(compose("plain".into()), "plain");
    }

    #[test]
    fn control_characters_go_and_line_ends_are_one() {
        let dirty = "\u{feff}a\r\nb\rc\u{c}d\u{0}e\u{1b}[0m\tf\u{9f}\u{fffa}";
        assert_eq!(strip_control(dirty.into()), "a\nb\nc\nde[0m\tf");
        let joined = "नमस्\u{200d}ते \u{200e}שלום";
        assert_eq!(strip_control(joined.into()), joined);
    }
}
