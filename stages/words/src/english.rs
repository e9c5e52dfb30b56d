//! Words as the published filters and signatures count them: the tokens of spaCy's blank English pipeline.
//!
//! Gopher's, C4's and FineWeb's rules and FineWeb's MinHash were run over these words, so whoever wants the same
//! decisions and the same signatures needs the same words. A text is cut at white space; marks and units come off both
//! ends of each run, the rest is cut at infixes unless it is a URL, and a table of special cases ("don't", "e.g.",
//! ":-)") goes before all. A second pass puts special cases together again that were torn apart.
//!
//! spaCy says this in regular expressions of 30 KB, which are slow in any engine. Here the code says what they do, and
//! `data/` holds what they know: classes of characters and special cases (MIT licence, Explosion). The script that made
//! the tables asserts what the code takes for granted.

use std::sync::LazyLock;

use rustc_hash::FxHashMap;

/// Where a word stands in its text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// The word in the bytes of its text.
    #[inline]
    pub fn of_bytes(self, text: &[u8]) -> &[u8] {
        &text[self.start as usize..self.end as usize]
    }

    /// The word itself.
    #[inline]
    pub fn of(self, text: &str) -> &str {
        &text[self.start as usize..self.end as usize]
    }
}

/// Cuts one text after the other, in the same buffers.
#[derive(Debug, Default)]
pub struct EnglishWords {
    spans: Vec<Span>,
    suffixes: Vec<Span>,
    second: Second,
}

/// Buffers of the second pass.
#[derive(Debug, Default)]
struct Second {
    /// Places that look like a torn special case: how many words, the first of them, the node that knows the case.
    found: Vec<(u32, u32, u16)>,
    blocked: Vec<bool>,
    spans: Vec<Span>,
}

impl EnglishWords {
    /// The words of `text`, in order. White space separates and is no word.
    ///
    /// Panics at a text of 4 GiB or more.
    pub fn split(&mut self, text: &str) -> &[Span] {
        assert!(u32::try_from(text.len()).is_ok(), "split: a text of {} bytes, expected less than 2³²", text.len());
        self.spans.clear();
        let tables = &*TABLES;
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let kind = KINDS[bytes[at] as usize];
            if kind == BLANK {
                at += 1;
                continue;
            }
            if kind == HIGH
                && let Some(width) = wide_space(&bytes[at..])
            {
                at += width;
                continue;
            }
            let (start, mut kinds) = (at, 0);
            while at < bytes.len() {
                let kind = KINDS[bytes[at] as usize];
                if kind == BLANK || (kind == HIGH && wide_space(&bytes[at..]).is_some()) {
                    break;
                }
                kinds |= kind;
                at += 1;
            }
            let is_plain =
                kinds == LETTER || kinds == DIGIT || (kinds == LETTER | DIGIT && bytes[at - 1].is_ascii_digit());
            if is_plain && tables.special(&bytes[start..at]).is_none() {
                self.push(start, at);
            } else {
                self.cut_run(tables, text, start, at, kinds, true);
            }
        }
        self.join_again(tables, text);
        &self.spans
    }

    fn push(&mut self, start: usize, end: usize) {
        self.spans.push(Span { start: start as u32, end: end as u32 });
    }

    /// Cuts a run without white space; `kinds` are those of its bytes.
    fn cut_run(&mut self, tables: &Tables, text: &str, start: usize, end: usize, kinds: u8, with_special: bool) {
        let special = |x: &str| if with_special { tables.special(x.as_bytes()) } else { None };
        let has_digits = kinds & DIGIT != 0;
        let (mut from, mut to) = (start, end);
        let mut last = usize::MAX;
        self.suffixes.clear();
        while from < to && to - from != last {
            let x = &text[from..to];
            if special(x).is_some() {
                break;
            }
            last = x.len();
            let p = prefix(x);
            if p > 0 && special(&x[p..]).is_some() {
                self.push(from, from + p);
                from += p;
                break;
            }
            let q = suffix(tables, &x[p..], has_digits);
            if q > 0 && special(&x[..x.len() - q]).is_some() {
                self.suffixes.push(Span { start: (to - q) as u32, end: to as u32 });
                to -= q;
                break;
            }
            if p > 0 {
                self.push(from, from + p);
                from += p;
            }
            if q > 0 {
                self.suffixes.push(Span { start: (to - q) as u32, end: to as u32 });
                to -= q;
            }
        }
        if from < to {
            self.cut_middle(text, from, to, kinds, special(&text[from..to]));
        }
        while let Some(span) = self.suffixes.pop() {
            self.push(span.start as usize, span.end as usize);
        }
    }

    /// Cuts what is left between prefixes and suffixes.
    fn cut_middle(&mut self, text: &str, from: usize, to: usize, kinds: u8, special: Option<&'static Special>) {
        if let Some(special) = special {
            let mut at = from;
            for &length in special.lengths.iter().take_while(|&&length| length > 0) {
                self.push(at, at + usize::from(length));
                at += usize::from(length);
            }
            return;
        }
        let x = &text[from..to];
        if kinds & (MARK | HIGH) == 0 || is_url(x) {
            return self.push(from, to);
        }
        let mut at = 0;
        let mut next = 0;
        while let Some((start, end)) = infix(x, next) {
            next = end;
            if start == 0 {
                continue; // an infix at the front cuts nothing
            }
            if start > at {
                self.push(from + at, from + start);
            }
            self.push(from + start, from + end);
            at = end;
        }
        if at < x.len() {
            self.push(from + at, to);
        }
    }

    /// The second pass: puts torn special cases together again, the longest first, then the leftmost.
    ///
    /// A place that is refused, because a blank stands in it or a better one overlaps, still blocks its words.
    fn join_again(&mut self, tables: &Tables, text: &str) {
        let Second { found, blocked, spans: joined } = &mut self.second;
        found.clear();
        let piece = |at: usize| tables.piece(self.spans[at].of_bytes(text.as_bytes()));
        let mut before = 0;
        for second in 0..self.spans.len() {
            let (first_piece, second_piece) = (before, piece(second));
            before = second_piece;
            if first_piece == 0 || second_piece == 0 {
                continue;
            }
            let first = second - 1;
            let Some(&(mut node)) = tables.torn.get(&(0, first_piece)) else { continue };
            for at in second..self.spans.len() {
                if !is_near(text, self.spans[at - 1], self.spans[at]) {
                    break;
                }
                let Some(&next) = tables.torn.get(&(node, piece(at))) else { break };
                node = next;
                if tables.whole[usize::from(node)].is_some() {
                    found.push(((at + 1 - first) as u32, first as u32, node));
                }
            }
        }
        if found.is_empty() {
            return;
        }
        found.sort_unstable_by_key(|&(n, at, _)| (u32::MAX - n, at));
        blocked.clear();
        blocked.resize(self.spans.len(), false);
        found.retain(|&(n, at, _)| {
            let range = at as usize..(at + n) as usize;
            let is_free = !blocked[range.start] && !blocked[range.end - 1];
            blocked[range.clone()].fill(true);
            is_free && self.spans[range].windows(2).all(|pair| pair[0].end == pair[1].start)
        });
        found.sort_unstable_by_key(|&(_, at, _)| at);
        joined.clear();
        let mut copied = 0;
        for &(n, at, node) in found.iter() {
            joined.extend_from_slice(&self.spans[copied..at as usize]);
            let special = tables.whole[usize::from(node)].expect("only whole cases are found");
            let mut start = self.spans[at as usize].start;
            for &length in special.lengths.iter().take_while(|&&length| length > 0) {
                joined.push(Span { start, end: start + u32::from(length) });
                start += u32::from(length);
            }
            copied = (at + n) as usize;
        }
        joined.extend_from_slice(&self.spans[copied..]);
        std::mem::swap(&mut self.spans, joined);
    }
}

/// The words of `text`, as [`EnglishWords`] cuts them.
pub fn english_words(text: &str) -> Vec<&str> {
    let mut words = EnglishWords::default();
    words.split(text).iter().map(|span| span.of(text)).collect()
}

/// How many sentences `words` of `text` make, as spaCy's sentencizer counts them.
///
/// A word that is one sentence end closes a sentence; marks behind it stay in it. White space other than one blank
/// between two words is a token of its own there, so "end.  " counts two; an empty text counts one.
pub fn count_sentences(text: &str, words: &[Span]) -> usize {
    let mut count = 1;
    let mut is_ended = false;
    let mut before = None;
    for &word in words {
        if is_ended && before.is_some_and(|before| !is_near(text, before, word)) {
            count += 1;
            is_ended = false;
        }
        before = Some(word);
        let word = word.of(text);
        let mut chars = word.chars();
        let first = chars.next().map_or(0, class);
        if first & SENTENCE_END != 0 && chars.as_str().is_empty() {
            is_ended = true;
        } else if is_ended && !word.chars().all(|c| class(c) & PUNCTUATION != 0) {
            count += 1;
            is_ended = false;
        }
    }
    let rest = before.map_or("", |word| &text[word.end as usize..]);
    count + usize::from(is_ended && !matches!(rest, "" | " "))
}

/// Whether nothing or one blank stands between two words.
fn is_near(text: &str, a: Span, b: Span) -> bool {
    a.end == b.start || (a.end + 1 == b.start && text.as_bytes()[a.end as usize] == b' ')
}

const LETTER: u8 = 1;
const DIGIT: u8 = 2;
const MARK: u8 = 4;
const BLANK: u8 = 8;
const HIGH: u8 = 16;

/// The kind of each byte; of a character beyond ASCII all bytes are `HIGH`.
static KINDS: [u8; 256] = {
    let mut kinds = [MARK; 256];
    let mut i = 0;
    while i < 256 {
        let byte = i as u8;
        if byte.is_ascii_alphabetic() {
            kinds[i] = LETTER;
        } else if byte.is_ascii_digit() {
            kinds[i] = DIGIT;
        } else if matches!(byte, 9..=13 | 28..=32) {
            kinds[i] = BLANK;
        } else if byte >= 128 {
            kinds[i] = HIGH;
        }
        i += 1;
    }
    kinds
};

/// Bytes of the white space beyond ASCII that `bytes` begin with; `bytes` may also begin inside a character.
fn wide_space(bytes: &[u8]) -> Option<usize> {
    match *bytes {
        [0xc2, 0x85 | 0xa0, ..] => Some(2),
        [0xe1, 0x9a, 0x80, ..] | [0xe2, 0x80, 0x80..=0x8a | 0xa8 | 0xa9 | 0xaf, ..] => Some(3),
        [0xe2, 0x81, 0x9f, ..] | [0xe3, 0x80, 0x80, ..] => Some(3),
        _ => None,
    }
}

// Classes of characters, the bits of `data/english_classes.txt`.
const PREFIX: u16 = 0x1;
const SUFFIX: u16 = 0x2;
const INFIX: u16 = 0x4;
const ALPHABETIC: u16 = 0x8;
const UPPER: u16 = 0x10;
const BEFORE_LAST_DOT: u16 = 0x20;
const BEFORE_DOT: u16 = 0x40;
const AFTER_DOT: u16 = 0x80;
const TOP_DOMAIN: u16 = 0x100;
const PUNCTUATION: u16 = 0x200;
const SENTENCE_END: u16 = 0x400;

#[inline]
fn class(c: char) -> u16 {
    let c = c as usize;
    let classes = &*CLASSES;
    if let Some(&class) = classes.low.get(c) {
        return class;
    }
    let after = classes.high.partition_point(|&(first, _, _)| first as usize <= c);
    classes.high[..after].last().filter(|&&(_, last, _)| c <= last as usize).map_or(0, |&(_, _, class)| class)
}

/// Classes of the basic plane by code point, of the others by range.
struct Classes {
    low: Box<[u16]>,
    high: Vec<(u32, u32, u16)>,
}

static CLASSES: LazyLock<Classes> = LazyLock::new(|| {
    let mut classes = Classes { low: vec![0; 0x10000].into_boxed_slice(), high: Vec::new() };
    let lines = include_str!("../data/english_classes.txt").lines().filter(|line| !line.starts_with('#'));
    for line in lines {
        let mut numbers = line.split(' ').map(|x| u32::from_str_radix(x, 16).expect("the table holds numbers"));
        let mut next = || numbers.next().expect("three numbers a line");
        let (first, last, class) = (next(), next(), next() as u16);
        match last < 0x10000 {
            true => classes.low[first as usize..=last as usize].fill(class),
            false => classes.high.push((first, last, class)),
        }
    }
    classes
});

/// A special case: the lengths of its pieces in bytes.
#[derive(Debug)]
struct Special {
    lengths: [u8; 3],
}

struct Tables {
    special: FxHashMap<&'static [u8], &'static Special>,
    /// Of the special cases the last bytes that occur with a first byte and a length: most words are in no table.
    special_ends: Box<[u64]>,
    after_digits: FxHashMap<&'static str, ()>,
    /// Pieces of torn special cases, numbered from 1.
    pieces: FxHashMap<&'static [u8], u16>,
    piece_ends: Box<[u64]>,
    /// From a node of the tree of torn special cases by a piece to the next node; 0 is the root.
    torn: FxHashMap<(u16, u16), u16>,
    /// The special case that ends at a node.
    whole: Vec<Option<&'static Special>>,
}

/// Longest special case in bytes, and one more.
const LENGTHS: usize = 32;

fn mark_end(ends: &mut [u64], word: &str) {
    if let (Some(first), Some(last)) = (word.as_bytes().first(), word.as_bytes().last()) {
        ends[usize::from(*first) * LENGTHS + word.len()] |= 1 << (last & 63);
    }
}

#[inline]
fn may_hold(ends: &[u64], word: &[u8]) -> bool {
    match (word.first(), word.last()) {
        (Some(first), Some(last)) if word.len() < LENGTHS => {
            ends[usize::from(*first) * LENGTHS + word.len()] >> (last & 63) & 1 == 1
        }
        _ => false,
    }
}

static TABLES: LazyLock<Tables> = LazyLock::new(Tables::read);

impl Tables {
    fn read() -> Self {
        let mut lines = include_str!("../data/english_special.txt").lines().skip(2);
        let mut tables = Tables {
            special: FxHashMap::default(),
            special_ends: vec![0; 256 * LENGTHS].into_boxed_slice(),
            after_digits: lines.next().unwrap_or_default().split(' ').map(|unit| (unit, ())).collect(),
            pieces: FxHashMap::default(),
            piece_ends: vec![0; 256 * LENGTHS].into_boxed_slice(),
            torn: FxHashMap::default(),
            whole: vec![None],
        };
        let mut all = Vec::new();
        for line in lines {
            let mut special = Special { lengths: [0; 3] };
            line.split(' ').enumerate().for_each(|(i, piece)| special.lengths[i] = piece.len() as u8);
            // Read once and never given back: the tables live as long as the program.
            let (key, special): (&'static str, &'static Special) =
                (Box::leak(line.replace(' ', "").into_boxed_str()), Box::leak(Box::new(special)));
            tables.special.insert(key.as_bytes(), special);
            mark_end(&mut tables.special_ends, key);
            all.push((key, special));
        }
        for (key, special) in all {
            tables.add_torn(key, special);
        }
        tables
    }

    /// Enters a special case into the tree if the rules, left alone, would tear it.
    fn add_torn(&mut self, key: &'static str, special: &'static Special) {
        let kinds = key.bytes().fold(0, |kinds, byte| kinds | KINDS[usize::from(byte)]);
        let mut words = EnglishWords::default();
        words.cut_run(self, key, 0, key.len(), kinds, false);
        if words.spans.len() < 2 {
            return;
        }
        let mut node = 0;
        for span in &words.spans {
            let piece = span.of(key);
            let next_piece = self.pieces.len() as u16 + 1;
            let number = *self.pieces.entry(piece.as_bytes()).or_insert(next_piece);
            mark_end(&mut self.piece_ends, piece);
            let next_node = self.whole.len() as u16;
            node = *self.torn.entry((node, number)).or_insert(next_node);
            if node == next_node {
                self.whole.push(None);
            }
        }
        self.whole[usize::from(node)] = Some(special);
    }

    #[inline]
    fn special(&self, word: &[u8]) -> Option<&'static Special> {
        if may_hold(&self.special_ends, word) { self.special.get(word).copied() } else { None }
    }

    #[inline]
    fn piece(&self, word: &[u8]) -> u16 {
        if may_hold(&self.piece_ends, word) { self.pieces.get(word).copied().unwrap_or(0) } else { 0 }
    }
}

/// Bytes of the prefix of `x`, 0 if it has none.
fn prefix(x: &str) -> usize {
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
fn suffix(tables: &Tables, x: &str, has_digits: bool) -> usize {
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
    let is_unit = unit > 0 && tables.after_digits.contains_key(&x[x.len() - unit..]);
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
fn infix(x: &str, from: usize) -> Option<(usize, usize)> {
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

/// Whether `x`, which holds no white space, is a URL or a host name: scheme, user, host, port and path, all but the
/// host optional.
fn is_url(x: &str) -> bool {
    let bytes = x.as_bytes();
    if !bytes.contains(&b'.') {
        return false;
    }
    // A host may begin at the front, behind a scheme, or behind any "@" that has something before it.
    let scheme = x.find("://").filter(|&at| {
        x[..at].chars().count() >= 2
            && x[..at].chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '+' | '-' | '.'))
    });
    let users = bytes.iter().enumerate().skip(1).filter(|&(_, &b)| b == b'@').map(|(at, _)| at + 1);
    is_host(x) || scheme.is_some_and(|at| is_host(&x[at + 3..])) || users.into_iter().any(|at| is_host(&x[at..]))
}

/// Whether `x` is a host, with a port and a path or without.
fn is_host(x: &str) -> bool {
    // No host holds an "@": to look further would cost a square of the text where many stand in a row.
    let end = x.find([':', '/', '?', '#', '@']).unwrap_or(x.len());
    let (host, rest) = x.split_at(end);
    let path = match rest.strip_prefix(':') {
        Some(port) => {
            let digits: usize = port.chars().take_while(|&c| crate::is_digit(c)).map(char::len_utf8).sum();
            let (digits, path) = port.split_at(digits);
            if !(2..=5).contains(&digits.chars().count()) {
                return false;
            }
            path
        }
        None => rest,
    };
    (path.is_empty() || path.starts_with(['/', '?', '#'])) && (is_domain(host) || is_public_address(host))
}

fn is_domain(host: &str) -> bool {
    let Some((names, top)) = host.rsplit_once('.') else { return false };
    let is_inner = |c: char| c.is_ascii_alphanumeric() || ('\u{a1}'..='\u{ffff}').contains(&c);
    let is_name = |name: &str| {
        name.starts_with(is_inner)
            && name.ends_with(is_inner)
            && name.chars().all(|c| is_inner(c) || matches!(c, '_' | '-'))
            && (name.len() <= 64 || name.chars().count() <= 64)
    };
    top.chars().all(|c| class(c) & TOP_DOMAIN != 0)
        && (2..=63).contains(&top.chars().count())
        && names.split('.').all(is_name)
}

/// Whether `host` is an IPv4 address that is neither private nor ends in 0 or 255.
fn is_public_address(host: &str) -> bool {
    let mut parts = host.split('.');
    let mut next = || {
        let part = parts.next()?;
        let is_number = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        if is_number { part.parse::<u16>().ok().map(|value| (value, part)) } else { None }
    };
    let (Some((a, first)), Some((b, second)), Some((c, third)), Some((d, fourth))) = (next(), next(), next(), next())
    else {
        return false;
    };
    // A zero may lead only a middle part of two digits.
    let is_middle = |value: u16, part: &str| value <= 255 && (part.len() < 3 || value >= 100);
    let is_private = matches!((a, b), (10 | 127, _) | (169, 254) | (192, 168) | (172, 16..=31));
    parts.next().is_none()
        && !is_private
        && (1..=223).contains(&a)
        && !first.starts_with('0')
        && is_middle(b, second)
        && is_middle(c, third)
        && (1..=254).contains(&d)
        && !fourth.starts_with('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(text: &str) -> usize {
        count_sentences(text, EnglishWords::default().split(text))
    }

    #[test]
    fn marks_units_and_contractions_come_off() {
        assert_eq!(
            english_words("I don't (really) pay $5.99 for 10km."),
            ["I", "do", "n't", "(", "really", ")", "pay", "$", "5.99", "for", "10", "km", "."]
        );
        assert_eq!(
            english_words("well-known a--b U.K. e.g. 1,000 a,b x=y"),
            ["well", "-", "known", "a", "--", "b", "U.K.", "e.g.", "1,000", "a", ",", "b", "x", "=", "y"]
        );
        assert_eq!(
            english_words("wait...what…? 5:30pm \u{200b}\u{1f}°C."),
            ["wait", "...", "what", "…", "?", "5:30pm", "\u{200b}", "°", "C", "."]
        );
    }

    #[test]
    fn urls_and_addresses_stay_whole() {
        for url in [
            "http://example.com/a/b?c=d",
            "www.example.com",
            "a@b.example.com",
            "me:pass@x.org:8080/x",
            "8.8.8.8:80/x",
            "git+ssh://ex-a_mple.com",
        ] {
            assert_eq!(english_words(url), [url]);
        }
        assert_eq!(english_words("192.168.0.1/x"), ["192.168.0.1", "/", "x"]);
        assert_eq!(english_words("8.8.8.0/x"), ["8.8.8.0", "/", "x"]);
        assert!(is_public_address("1.02.3.4") && !is_public_address("1.012.3.4") && !is_public_address("1.2.3"));
    }

    #[test]
    fn a_long_run_takes_no_longer_for_its_length() {
        // Half a megabyte each; a search from every mark to the end would take minutes.
        for piece in ["a@", "a.b@", "((", ":)", "''", "...a", "a:1/", "x.y:80@"] {
            let text = piece.repeat(500_000 / piece.len());
            let words = english_words(&text);
            assert_eq!(words.concat(), text);
        }
    }

    #[test]
    fn torn_special_cases_are_joined_again_and_a_blank_forbids_it() {
        assert_eq!(english_words("(and/or) a:) b: ) [:"), ["(", "and/or", ")", "a", ":)", "b", ":", ")", "[:"]);
    }

    #[test]
    fn sentences_end_at_marks_and_at_white_space_behind_them() {
        assert_eq!(sentences(""), 1);
        assert_eq!(sentences("One. Two! (Three?) four"), 4);
        assert_eq!(sentences("One.\" two"), 2);
        assert_eq!((sentences("end."), sentences("end. "), sentences("end.  "), sentences("end.\n")), (1, 1, 2, 2));
        assert_eq!(sentences("Wait... what"), 1);
    }

    #[test]
    fn a_special_case_in_one_piece_changes_nothing() {
        // So the second pass need not look for the cases that no rule tears.
        for (key, special) in &TABLES.special {
            let key = std::str::from_utf8(key).unwrap();
            let kinds = key.bytes().fold(0, |kinds, byte| kinds | KINDS[usize::from(byte)]);
            let mut words = EnglishWords::default();
            words.cut_run(&TABLES, key, 0, key.len(), kinds, false);
            let is_affected = prefix(key) > 0 || suffix(&TABLES, key, true) > 0 || infix(key, 0).is_some();
            assert!(words.spans.len() > 1 || special.lengths[1] == 0 || !is_affected, "{key}");
        }
    }

    #[test]
    fn words_and_blanks_together_are_the_text() {
        let text = "  a\u{1f}b\u{200b}c «d» e\u{301}…\n\t'x' n't 3'4 _\u{0} :-)))) 10km/h. \
            http://x.yz/… ''''' 漢。\u{a0}x";
        let mut end = 0;
        for span in EnglishWords::default().split(text) {
            assert!(text[end..span.start as usize].chars().all(crate::is_space), "only blanks between words");
            assert!(span.start < span.end);
            end = span.end as usize;
        }
        assert!(text[end..].chars().all(crate::is_space));
    }
}
