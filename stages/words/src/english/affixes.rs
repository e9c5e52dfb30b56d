//! What comes off the ends of a run, and what cuts it inside.

use super::tables::{
    AFTER_DOT, ALPHABETIC, BEFORE_DOT, BEFORE_LAST_DOT, DIGIT, INFIX, KINDS, LETTER, PREFIX, SUFFIX, Tables, UPPER,
    class,
};

/// Bytes of the prefix of `x`, 0 if it has none.
pub(super) fn prefix(x: &str) -> usize {
    let bytes = x.as_bytes();
    match bytes {
        [b'.', ..] => {
            let dots = bytes.iter().take_while(|&&b| b == b'.').count();
            if dots > 1 { dots } else { 0 }
        }
        [b'+', b'0'..=b'9', ..] => 0,
        [b'U', b'S', b'$', ..] => 3,
        [b'C' | b'A', b'$', ..] => 2,
        _ => x.chars().next().filter(|&c| class(c) & PREFIX != 0).map_or(0, char::len_utf8),
    }
}

/// Bytes of the suffix of `x`, 0 if it has none. Of several the longest, as a search from the left finds it.
pub(super) fn suffix(tables: &Tables, x: &str, has_digits: bool) -> usize {
    let Some(last) = x.chars().next_back() else { return 0 };
    let head = &x[..x.len() - last.len_utf8()];
    let single = match last {
        '.' => {
            let dots = x.bytes().rev().take_while(|&b| b == b'.').count();
            return if dots > 1 { dots } else { usize::from(is_before_last_dot(head)) };
        }
        '…' => return if head.ends_with('…') { 6 } else { 3 },
        's' | 'S' if head.ends_with('\'') => return 2,
        's' | 'S' if head.ends_with('’') => return 4,
        '+' => return usize::from(head.ends_with(|c: char| c.is_ascii_digit())),
        _ if class(last) & SUFFIX != 0 => last.len_utf8(),
        _ => 0,
    };
    if !has_digits || last.is_ascii_digit() {
        return single;
    }
    // A unit has at most 14 bytes and no ASCII digit, and stands right behind one.
    let bytes = x.as_bytes();
    let unit = bytes.iter().rev().take(15).position(u8::is_ascii_digit).unwrap_or(0);
    let is_unit = unit > 0 && tables.after_digits.contains(&x[x.len() - unit..]);
    if is_unit { unit.max(single) } else { single }
}

fn is_before_last_dot(head: &str) -> bool {
    let mut chars = head.chars();
    let Some(before) = chars.next_back() else { return false };
    let first = chars.next_back();
    class(before) & BEFORE_LAST_DOT != 0
        || (class(before) & UPPER != 0 && first.is_some_and(|c| class(c) & UPPER != 0))
        || (first == Some('°') && matches!(before, 'F' | 'C' | 'K'))
}

/// The first infix of `x` that begins at byte `from` or later.
pub(super) fn infix(x: &str, from: usize) -> Option<(usize, usize)> {
    let bytes = x.as_bytes();
    let mut at = from;
    while at < bytes.len() {
        let kind = KINDS[usize::from(bytes[at])];
        if kind & (LETTER | DIGIT) != 0 {
            at += 1;
            continue;
        }
        let c = x[at..].chars().next().expect("there are more bytes");
        if let Some(length) = infix_at(x, at, c) {
            return Some((at, at + length));
        }
        at += c.len_utf8();
    }
    None
}

/// Bytes of the infix at byte `at`, where `c` stands: the expression's alternatives in their order.
fn infix_at(x: &str, at: usize, c: char) -> Option<usize> {
    let bytes = x.as_bytes();
    let before = || x[..at].chars().next_back();
    let after = |length: usize| x[at + length..].chars().next();
    let is = |c: Option<char>, wanted: u16| c.is_some_and(|c| class(c) & wanted != 0);
    let is_alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit() || class(c) & ALPHABETIC != 0);
    let one = |holds: bool| holds.then_some(1);
    match c {
        '.' => {
            let dots = bytes[at..].iter().take_while(|&&b| b == b'.').count();
            if dots > 1 {
                return Some(dots);
            }
            one(is(before(), BEFORE_DOT) && is(after(1), AFTER_DOT))
        }
        ',' => one(is(before(), ALPHABETIC) && is(after(1), ALPHABETIC)),
        ':' | '<' | '>' | '=' | '/' | '~' => one(is_alphanumeric(before()) && is(after(1), ALPHABETIC)),
        '+' | '*' | '^' => one(is_sign(before(), after(1))),
        '-' if is_sign(before(), after(1)) => Some(1),
        '-' | '–' | '—' if is_alphanumeric(before()) => {
            let most = match c {
                '-' => 3,
                '–' => 1,
                _ => 2,
            };
            let width = c.len_utf8();
            let same = x[at..].chars().take(most).take_while(|&next| next == c).count();
            // "-" before a letter, else "--", else "---": only the whole run has a letter behind it.
            is(after(same * width), ALPHABETIC).then_some(same * width)
        }
        _ => (class(c) & INFIX != 0).then(|| c.len_utf8()),
    }
}

/// Whether a sign between these two cuts: a digit before, a digit or a minus behind.
fn is_sign(before: Option<char>, after: Option<char>) -> bool {
    before.is_some_and(|c| c.is_ascii_digit()) && after.is_some_and(|c| c.is_ascii_digit() || c == '-')
}
