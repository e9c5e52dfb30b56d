//! Personal data: e-mail addresses, public IP addresses and phone numbers are replaced by stand-ins.
//!
//! E-mail and IPv4 follow datatrove's formatter, its order (mail first) and its idea of a public address included:
//! private, local and documentation addresses identify nobody and stay. Three things differ, because its patterns leak
//! or destroy there: an address may stand right beside a letter of another script, a domain ends in letters
//! (`node@18.0.0` is a version), and its labels may be of any script. `published` takes datatrove's patterns as they
//! are.
//!
//! No pattern runs over the whole text: each kind of data holds a rare character, and only around that is looked.

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::sync::LazyLock;

use memchr::{memchr_iter, memchr2_iter, memchr3_iter, memmem};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_words::{is_digit, is_letter, is_number};

/// Replacements for personal data. Several are used in turn, starting with the first in every document. An empty list
/// leaves that sort of data unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pii {
    /// Whether e-mail addresses are sought with the published pattern: never right behind a letter of any script, only
    /// with ASCII domains, and `node@18.0.0` is one (a preset: true).
    pub published: bool,
    /// For e-mail addresses.
    pub emails: Vec<String>,
    /// For public IPv4 addresses.
    pub ipv4: Vec<String>,
    /// For public IPv6 addresses.
    pub ipv6: Vec<String>,
    /// For phone numbers.
    pub phones: Vec<String>,
}

/// Addresses and numbers that are reserved for examples (RFC 2606, 5737, 3849; 555-0100).
impl Default for Pii {
    fn default() -> Self {
        Pii {
            published: false,
            emails: own(&["email@example.com"]),
            ipv4: own(&["192.0.2.1"]),
            ipv6: own(&["2001:db8::1"]),
            phones: own(&["+1 555 555 0100"]),
        }
    }
}

impl Pii {
    /// As FineWeb was masked.
    pub fn published() -> Self {
        Pii {
            published: true,
            emails: own(&["email@example.com", "firstname.lastname@example.org"]),
            ipv4: own(&[
                "22.214.171.124",
                "126.96.36.199",
                "188.8.131.52",
                "184.108.40.206",
                "220.127.116.11",
                "18.104.22.168",
            ]),
            ipv6: Vec::new(),
            phones: Vec::new(),
        }
    }
}

fn own(list: &[&str]) -> Vec<String> {
    list.iter().map(|&s| s.to_owned()).collect()
}

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    let label = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?|[[\p{L}\p{M}]--[\x00-\x7f]]+)";
    let top = "[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?";
    let literal = literal();
    regex(&format!(r"{START}{ATOM}(?:\.{ATOM})*[@＠](?:(?:{label}\.)+{top}|{literal})"))
});
/// What follows the name in the published pattern.
static DOMAIN: LazyLock<Regex> = LazyLock::new(|| {
    let label = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?";
    regex(&format!(r"^@(?:(?:{label}\.)+{label}|{})", literal()))
});
static IPV6: LazyLock<Regex> = LazyLock::new(|| {
    regex(&format!(r"(?i){START}2[0-9a-f]{{3}}:[0-9a-f:]*[0-9a-f:](?:\d{{1,3}}(?:\.\d{{1,3}}){{3}})?"))
});
/// What may be a phone number: with a plus, with a North American area code in brackets, or behind `tel:`. Bare digits
/// are too often no phone.
static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    let (digit, between) = ("[0-9０-９]", r"(?:[ ./\u{a0}\u{2011}-]|[ ]?\(|\)[ -]?)?");
    let international = format!(r"[+＋]{digit}(?:{between}{digit}){{6,18}}");
    let national = r"\([2-9][0-9]{2}\) ?[0-9]{3}[ .-][0-9]{4}|(?i:tel:)\(?[0-9](?:[().-]?[0-9]){5,14}";
    regex(&format!("^(?:{international}|{national})"))
});
const ATOM: &str = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+";
const OCTET: &str = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)";
/// Where an ASCII word begins, after a letter of another script too.
const START: &str = r"(?:\b|(?-u:\b))";

fn literal() -> String {
    format!(r"\[(?:{OCTET}\.){{3}}(?:{OCTET}|[A-Za-z0-9-]*[A-Za-z0-9]:)\]")
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is fixed")
}

/// The text with stand-ins, and how many there are; borrowed when nothing was found.
pub fn mask<'t>(text: &'t str, pii: &Pii) -> (Cow<'t, str>, usize) {
    let mut found = 0;
    let mut text = Cow::Borrowed(text);
    let whole = |range: &Range<usize>, is_real: bool| is_real.then_some(range.len());
    if pii.published {
        replace(&mut text, &pii.emails, &mut found, next_published_mail, |_, range| whole(range, true));
    } else {
        let has_wide = memmem::find(text.as_bytes(), "＠".as_bytes()).is_some();
        let next = |text: &str, from: usize| next_mail(text, from, has_wide);
        replace(&mut text, &pii.emails, &mut found, next, |text, range| {
            whole(range, !is_version(&text[range.clone()]))
        });
    }
    replace(&mut text, &pii.ipv4, &mut found, next_ipv4, |text, range| {
        whole(range, text[range.clone()].parse().is_ok_and(is_public_v4))
    });
    replace(&mut text, &pii.ipv6, &mut found, next_ipv6, |text, range| {
        whole(range, text[range.clone()].parse().is_ok_and(is_public_v6))
    });
    let wide_plus = memmem::find(text.as_bytes(), "＋".as_bytes()).is_some();
    let next = |text: &str, from: usize| next_phone(text, from, wide_plus);
    replace(&mut text, &pii.phones, &mut found, next, phone);
    (text, found)
}

/// Replaces what `real` finds in each match: its first bytes, as many as `real` says. `next` gives the first match at
/// or behind a byte.
fn replace(
    text: &mut Cow<'_, str>,
    with: &[String],
    found: &mut usize,
    next: impl Fn(&str, usize) -> Option<Range<usize>>,
    real: impl Fn(&str, &Range<usize>) -> Option<usize>,
) {
    if with.is_empty() {
        return;
    }
    let whole: &str = text;
    let (mut replaced, mut turn, mut copied, mut from) = (String::new(), 0, 0, 0);
    while let Some(range) = next(whole, from) {
        from = range.end;
        let Some(length) = real(whole, &range) else { continue };
        let scheme = if has_scheme(&whole[range.clone()]) { 4 } else { 0 };
        replaced.push_str(&whole[copied..range.start + scheme]);
        replaced.push_str(&with[turn % with.len()]);
        turn += 1;
        copied = range.start + length;
    }
    if turn > 0 {
        replaced.push_str(&whole[copied..]);
        *found += turn;
        *text = Cow::Owned(replaced);
    }
}

fn is_atom(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~-".contains(&byte)
}

/// The next e-mail address of the published pattern.
fn next_published_mail(text: &str, from: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let is_word = |c: char| c == '_' || is_letter(c) || is_number(c);
    for at in memchr_iter(b'@', &bytes[from..]).map(|at| from + at) {
        // The name: atoms between single dots, from the first place where an ASCII word begins or ends.
        let mut first = at;
        while first > from && (is_atom(bytes[first - 1]) || (bytes[first - 1] == b'.' && bytes[first] != b'.')) {
            first -= 1;
        }
        if first == at || bytes[at - 1] == b'.' {
            continue;
        }
        let before = text[..first].chars().next_back().is_some_and(is_word);
        let mut was_word = before;
        let start = (first..at).find(|&i| {
            let now = is_word(char::from(bytes[i]));
            std::mem::replace(&mut was_word, now) != now && bytes[i] != b'.'
        });
        let Some(start) = start else { continue };
        let rest = bytes[at + 1..].iter().position(|&b| !(b.is_ascii_alphanumeric() || b"-.[]:".contains(&b)));
        let end = rest.map_or(bytes.len(), |length| at + 1 + length);
        if let Some(domain) = DOMAIN.find(&text[at..end]) {
            return Some(start..at + domain.end());
        }
    }
    None
}

/// The next e-mail address: `EMAIL`, sought only around each sign.
fn next_mail(text: &str, from: usize, has_wide: bool) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    // The wide sign begins with 0xef.
    let signs = memchr2_iter(b'@', if has_wide { 0xef } else { b'@' }, &bytes[from..]).map(|at| from + at);
    for at in signs {
        let sign = if bytes[at] == b'@' { "@" } else { "＠" };
        if !bytes[at..].starts_with(sign.as_bytes()) {
            continue;
        }
        let name = bytes[from..at].iter().rev().take_while(|&&b| is_atom(b) || b == b'.').count();
        if name == 0 {
            continue;
        }
        let rest = &text[at + sign.len()..];
        let is_inner = |c: char| c.is_ascii_alphanumeric() || !c.is_ascii() || matches!(c, '-' | '.' | '[' | ']' | ':');
        let end = rest.find(|c| !is_inner(c) || c == '＠').unwrap_or(rest.len());
        if let Some(found) = EMAIL.find_at(&text[..at + sign.len() + end], at - name) {
            return Some(found.range());
        }
    }
    None
}

/// The next four numbers of at most 255 with dots between them; they may be parts of longer numbers.
fn next_ipv4(text: &str, from: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let is_number = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    for dot in memchr_iter(b'.', &bytes[from..]).map(|at| from + at) {
        if dot == from || !is_number(dot - 1) || !is_number(dot + 1) {
            continue;
        }
        let digits = bytes[from..dot].iter().rev().take(3).take_while(|b| b.is_ascii_digit()).count();
        // The longest of the last digits before the dot that are a number of at most 255.
        let start = (dot - digits..dot).find(|&start| octet(&bytes[start..dot]) == dot - start);
        let Some(start) = start else { continue };
        let mut end = dot;
        let mut parts = 1;
        while parts < 4 && bytes.get(end) == Some(&b'.') {
            let length = octet(&bytes[end + 1..]);
            if length == 0 {
                break;
            }
            end += 1 + length;
            parts += 1;
        }
        if parts == 4 {
            return Some(start..end);
        }
    }
    None
}

/// How many of the first digits are a number of at most 255: the most that can be.
fn octet(bytes: &[u8]) -> usize {
    let digits = bytes.iter().take(3).take_while(|b| b.is_ascii_digit()).count();
    if digits == 3 && bytes[..3] > b"255"[..] { 2 } else { digits }
}

/// The next thing that looks like a public IPv6 address: `IPV6`, sought only where four digits stand before a colon.
fn next_ipv6(text: &str, from: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    // A run in which nothing was found need not be searched again from its next colon.
    let mut searched = from;
    for at in memchr_iter(b':', &bytes[from..]).map(|at| from + at) {
        if at < searched + 4 || bytes[at - 4] != b'2' || !bytes[at - 3..at].iter().all(u8::is_ascii_hexdigit) {
            continue;
        }
        let rest = text[at..].find(|c: char| !(c.is_ascii_hexdigit() || matches!(c, ':' | '.') || is_digit(c)));
        let end = rest.map_or(text.len(), |length| at + length);
        if let Some(found) = IPV6.find_at(&text[..end], at - 4) {
            return Some(found.range());
        }
        searched = end;
    }
    None
}

/// The next thing that looks like a phone number: `PHONE`, tried where one may begin.
fn next_phone(text: &str, from: usize, wide_plus: bool) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let is_number = |at: usize| {
        bytes.get(at).is_some_and(u8::is_ascii_digit)
            || matches!(bytes.get(at..at + 3), Some([0xef, 0xbc, 0x90..=0x99]))
    };
    let try_at = |start: usize| {
        // A number has at most 54 characters.
        let end = text[start..].char_indices().nth(80).map_or(text.len(), |(length, _)| start + length);
        PHONE.find(&text[start..end]).map(|found| start..start + found.end())
    };
    let begins_at = |at: usize| match bytes[at] {
        b'+' if is_number(at + 1) => try_at(at),
        b'(' if is_number(at + 1) && is_number(at + 3) => try_at(at),
        b':' if at >= from + 3 && bytes[at - 3..at].eq_ignore_ascii_case(b"tel") => try_at(at - 3),
        0xef if bytes[at..].starts_with("＋".as_bytes()) && is_number(at + 3) => try_at(at),
        _ => None,
    };
    match wide_plus {
        false => memchr3_iter(b'+', b'(', b':', &bytes[from..]).find_map(|at| begins_at(from + at)),
        true => (from..bytes.len()).find_map(begins_at),
    }
}

fn has_scheme(matched: &str) -> bool {
    matched.get(..4).is_some_and(|start| start.eq_ignore_ascii_case("tel:"))
}

/// `types/node@18.0.0-rc.x` is a package and its version: two numbers begin its domain.
fn is_version(address: &str) -> bool {
    let domain = address.rsplit(['@', '＠']).next().unwrap_or(address);
    let numbers = domain.split('.').take_while(|label| label.bytes().all(|b| b.is_ascii_digit())).count();
    numbers >= 2
}

/// Bytes of the phone number that a match begins with. A sum is none: `1+2 33 44 55`, `a + (415) 555-0123`.
fn phone(text: &str, found: &Range<usize>) -> Option<usize> {
    let (before, matched) = (&text[..found.start], &text[found.clone()]);
    let has_plus = matched.starts_with(['+', '＋']);
    let is_glued = before.ends_with(|c: char| c.is_ascii_alphanumeric() || matches!(c, ')' | ']' | '_'));
    let last = before.trim_end_matches([' ', '\t']).chars().next_back();
    // `5 +49301234567` adds, and so does `a + (415) 555-0123`; `1 (415) 555-0123` is dialled.
    let is_operand = |c: char| if has_plus { c.is_ascii_digit() } else { is_operator(c) };
    if is_glued || (last.is_some_and(is_operand) && !has_scheme(matched)) || is_date(matched) {
        return None;
    }
    let length = if has_plus { international(matched)? } else { matched.len() };
    let rest = &text[found.start + length..];
    let goes_on = length == matched.len() && rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let next = rest.trim_start_matches([' ', '\t']).chars().next();
    (!goes_on && !next.is_some_and(is_operator)).then_some(length)
}

/// `+2024-05-01 12`: a line that a diff adds.
fn is_date(matched: &str) -> bool {
    let bytes = matched.as_bytes();
    matches!(bytes, [b'+', b'1' | b'2', b'0' | b'9', _, _, b'-' | b'.' | b'/', m, _, b'-' | b'.' | b'/', d, ..]
        if matches!(m, b'0' | b'1') && matches!(d, b'0'..=b'3'))
}

fn is_operator(c: char) -> bool {
    matches!(c, '+' | '*' | '/' | '^' | '=' | '×' | '÷')
}

/// Bytes of the longest run of groups that is a number by ITU-T E.164.
fn international(matched: &str) -> Option<usize> {
    let digit = |c: char| match c {
        '0'..='9' => Some(c),
        '０'..='９' => char::from_digit(c as u32 - '０' as u32, 10),
        _ => None,
    };
    let mut digits = String::new();
    let mut ends = Vec::new();
    let mut chars = matched.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let Some(value) = digit(c) else { continue };
        digits.push(value);
        if chars.peek().is_none_or(|&(_, next)| digit(next).is_none()) {
            ends.push((at + c.len_utf8(), digits.len()));
        }
    }
    let groups = (1..=ends.len()).rev();
    groups.map(|n| (n, ends[n - 1])).find(|&(n, (_, count))| is_e164(&digits[..count], n)).map(|(_, (end, _))| end)
}

/// Country codes of two digits; all others but 1 and 7 have three.
const TWO_DIGITS: &str = "20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 \
                          65 66 81 82 84 86 90 91 92 93 94 95 98";
/// How those of three digits begin.
const THREE_DIGITS: &str = "21 22 23 24 25 26 29 35 37 38 42 50 59 67 68 69 80 85 87 88 96 97 99";

/// Whether there is an assigned country code before a plausible count of digits: at most 15, and so many that a signed
/// number is seldom taken for one.
fn is_e164(digits: &str, groups: usize) -> bool {
    let fewest = if groups > 2 { 9 } else { 10 };
    if !(fewest..=15).contains(&digits.len()) {
        return false;
    }
    match digits.as_bytes() {
        [b'1', area, ..] => digits.len() == 11 && (b'2'..=b'9').contains(area),
        [b'7', ..] => digits.len() == 11,
        _ => TWO_DIGITS.split(' ').chain(THREE_DIGITS.split(' ')).any(|code| digits.starts_with(code)),
    }
}

/// Public as Python 3.11 judges it, which datatrove asks: not private, not shared (100.64/10).
fn is_public_v4(address: Ipv4Addr) -> bool {
    #[rustfmt::skip]
    const PRIVATE: [([u8; 4], u32); 14] = [
        ([0, 0, 0, 0], 8), ([10, 0, 0, 0], 8), ([100, 64, 0, 0], 10), ([127, 0, 0, 0], 8), ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12), ([192, 0, 0, 0], 29), ([192, 0, 0, 170], 31), ([192, 0, 2, 0], 24),
        ([192, 168, 0, 0], 16), ([198, 18, 0, 0], 15), ([198, 51, 100, 0], 24), ([203, 0, 113, 0], 24),
        ([240, 0, 0, 0], 4),
    ];
    let bits = u32::from(address);
    !PRIVATE.iter().any(|&(network, width)| (bits ^ u32::from_be_bytes(network)) >> (32 - width) == 0)
}

/// Global unicast (2000::/3) without the documentation networks.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    first >> 13 == 1 && !(first == 0x2001 && second == 0xdb8) && !(first == 0x3fff && second < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        mask(text, &pii(false)).0.into_owned()
    }

    fn pii(published: bool) -> Pii {
        Pii { published, emails: own(&["MAIL"]), ipv4: own(&["V4"]), ipv6: own(&["V6"]), phones: own(&["PHONE"]) }
    }

    #[test]
    fn mail_addresses_are_masked_and_handles_are_not() {
        assert_eq!(masked("write to <jane.doe+x@mail.example.co.uk>."), "write to <MAIL>.");
        assert_eq!(masked("@handle, user@host, a @ b"), "@handle, user@host, a @ b");
    }

    #[test]
    fn only_public_addresses_are_masked() {
        assert_eq!(
            masked("8.8.8.8 10.0.0.1 127.0.0.1 192.168.1.1 203.0.113.9"),
            "V4 10.0.0.1 127.0.0.1 192.168.1.1 203.0.113.9"
        );
        assert_eq!(masked("224.0.0.1 100.64.1.1 198.19.0.1 1.2.3.400"), "V4 100.64.1.1 198.19.0.1 V40");
        assert_eq!(
            masked("2606:4700:4700::1111 2001:db8::1 fe80::1 std::fs::File"),
            "V6 2001:db8::1 fe80::1 std::fs::File"
        );
    }

    #[test]
    fn phones_need_a_plus_or_brackets() {
        assert_eq!(masked("+49 30 1234 5678, (555) 123-4567"), "PHONE, PHONE");
        assert_eq!(masked("f(123) + 4567 +1 2024 x+12 34"), "f(123) + 4567 +1 2024 x+12 34");
    }

    #[test]
    fn phones_are_found_in_every_form_and_beside_every_script() {
        for (text, expected) in [
            ("call +14155550123 now", "call PHONE now"),
            ("+1 415 555 0123, then 2024", "PHONE, then 2024"),
            ("+1 (415) 555-0123 2024", "PHONE 2024"),
            ("tel:+49301234567", "tel:PHONE"),
            ("TEL:(030)1234-567.", "TEL:PHONE."),
            ("电话+8613800138000谢", "电话PHONE谢"),
            ("+86 138 0013 8000", "PHONE"),
            ("phone：＋１ ４１５ ５５５ ０１２３", "phone：PHONE"),
            ("phone=+14155550123", "phone=PHONE"),
            ("(office) +49 30 1234567", "(office) PHONE"),
            ("dial 1 (415) 555-0123", "dial 1 PHONE"),
            ("+4930 1234567", "PHONE"),
        ] {
            assert_eq!(masked(text), expected);
        }
    }

    #[test]
    fn a_long_run_takes_no_longer_for_its_length() {
        for piece in ["a2aaa:", "a@", "a.b@c.", "1.2.", "+1(", "tel:1", "2aaa:", "1@2.3@"] {
            let text = piece.repeat(500_000 / piece.len());
            for published in [false, true] {
                mask(&text, &pii(published));
            }
        }
    }

    #[test]
    fn a_sum_is_no_phone() {
        for sum in [
            "1+2 33 44 55",
            "x = a + (123) 456-7890",
            "x = a + (415) 555-0123",
            "y = 3 * (415) 555-0123",
            "sum +12 3456 7890 items",
            "+1 234 567 890 123 456",
            "5 +49301234567 = x",
            "+49301234567 + 1",
            "f(415) 555-0123",
            "+100000000 users",
            "+44 1234567",
            "+2024-05-01 12:30:00 INFO",
            "a[1]+49301234567",
        ] {
            assert_eq!(masked(sum), sum);
        }
    }

    #[test]
    fn addresses_stand_beside_letters_of_any_script_and_versions_are_none() {
        assert_eq!(masked("联系alice@example.net谢"), "联系MAIL谢");
        assert_eq!(masked("поivan@example.net"), "поMAIL");
        assert_eq!(masked("bob@例え.jp, bob＠example.net"), "MAIL, MAIL");
        assert_eq!(masked("地址2606:4700:4700::1111"), "地址V6");
        for version in ["npm i @types/node@18.0.0", "foo@1.2.3", "react@18.2.0-beta.x", "x@y"] {
            assert_eq!(masked(version), version);
        }
    }

    #[test]
    fn stand_ins_take_turns_and_an_empty_list_turns_masking_off() {
        let pii = Pii { emails: own(&["A", "B"]), ipv4: own(&[]), ..pii(false) };
        let (text, found) = mask("a@b.cc d@e.ff g@h.ii 8.8.8.8", &pii);
        assert_eq!((text.as_ref(), found), ("A B A 8.8.8.8", 3));
    }

    #[test]
    fn the_published_pattern_stops_at_letters_and_takes_versions() {
        let published = |text: &str| mask(text, &pii(true)).0.into_owned();
        for (text, expected) in [
            ("联系alice@example.net谢", "联系alice@example.net谢"),
            ("по-ivan@example.net", "поMAIL"),
            ("の.jane.doe@example.net", "の.MAIL"),
            ("node@18.0.0", "MAIL"),
            ("a..b@c.d-.e", "a..MAIL-.e"),
            ("..b.c@d.e-f.g- x", "..MAIL- x"),
            ("a@[1.2.3.4] a@[1.2.3.x:]", "MAIL MAIL"),
            ("a@b@c.de", "a@MAIL"),
            ("e\u{301}x@y.zz", "e\u{301}MAIL"),
        ] {
            assert_eq!(published(text), expected);
        }
    }

    #[test]
    fn addresses_are_found_where_the_plain_pattern_finds_them() {
        let plain = regex(&format!(r"(?:{OCTET}\.){{3}}{OCTET}"));
        let mut state = 5u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % n) as usize
        };
        let pieces = [".", ".", ".", ".", "1", "25", "0", "256", "199", "9", "x", "é", " "];
        for _ in 0..2000 {
            let text: String = (0..draw(40)).map(|_| pieces[draw(13)]).collect();
            let mut found = Vec::new();
            let mut from = 0;
            while let Some(range) = next_ipv4(&text, from) {
                from = range.end;
                found.push(range);
            }
            let expected: Vec<Range<usize>> = plain.find_iter(&text).map(|m| m.range()).collect();
            assert_eq!(found, expected, "{text}");
        }
    }
}
