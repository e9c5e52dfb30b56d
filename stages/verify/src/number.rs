//! Numbers as people write them, and the number that an answer ends with.
//!
//! A number is exact: a fraction of whole numbers, so 0.5, 1/2 and 50 % are the same and 0.33 is not 1/3. What counts
//! as the final answer goes by what is said most clearly: `\boxed{…}`, then `#### …`, then a sentence that says
//! "the answer is", then a line that is nothing but a number, then the last number of the text. Remarks behind it do
//! not count.

use regex::Regex;
use std::sync::LazyLock;

/// Digits of a number at most.
const DIGITS: usize = 30;

/// A number with its unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Number {
    /// In lowest terms, the denominator positive.
    ratio: (i128, i128),
    is_percent: bool,
    unit: Option<Unit>,
}

/// A known unit of measurement: what it measures, and how many of the smallest unit it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unit {
    of: &'static str,
    size: i128,
}

#[rustfmt::skip]
const UNITS: [(&str, &[&str], i128); 24] = [
    ("length", &["mm", "millimeter", "millimetre"], 1), ("length", &["cm", "centimeter", "centimetre"], 10),
    ("length", &["m", "meter", "metre"], 1000), ("length", &["km", "kilometer", "kilometre"], 1_000_000),
    ("imperial length", &["inch", "inche"], 1), ("imperial length", &["ft", "foot", "feet"], 12),
    ("imperial length", &["yd", "yard"], 36), ("imperial length", &["mi", "mile"], 63_360),
    ("mass", &["mg", "milligram"], 1), ("mass", &["g", "gram"], 1000), ("mass", &["kg", "kilogram"], 1_000_000),
    ("imperial mass", &["oz", "ounce"], 1), ("imperial mass", &["lb", "pound"], 16),
    ("time", &["s", "sec", "second"], 1), ("time", &["min", "minute"], 60), ("time", &["h", "hr", "hour"], 3600),
    ("time", &["day"], 86_400), ("time", &["week"], 604_800),
    ("volume", &["ml", "milliliter", "millilitre"], 1), ("volume", &["l", "liter", "litre"], 1000),
    ("dollars", &["cent", "¢"], 1), ("dollars", &["$", "dollar", "usd"], 100),
    ("euros", &["€", "euro", "eur"], 1), ("pounds", &["£", "gbp"], 1),
];

const MAGNITUDES: [(&str, i128); 4] =
    [("hundred", 100), ("thousand", 1000), ("million", 1_000_000), ("billion", 1_000_000_000)];

const CURRENCY: [char; 6] = ['$', '€', '£', '¥', '₹', '¢'];

fn unit(word: &str) -> Option<Unit> {
    let word = word.to_lowercase();
    let known = |names: &[&str]| {
        names.iter().any(|name| *name == word || (name.len() > 2 && word.strip_suffix('s') == Some(name)))
    };
    UNITS.iter().find(|(_, names, _)| known(names)).map(|&(of, _, size)| Unit { of, size })
}

fn gcd(a: i128, b: i128) -> i128 {
    if b == 0 { a.abs() } else { gcd(b, a % b) }
}

fn ratio(top: i128, bottom: i128) -> Option<(i128, i128)> {
    if bottom == 0 {
        return None;
    }
    let by = gcd(top, bottom) * bottom.signum();
    Some((top / by, bottom / by))
}

fn product(a: (i128, i128), b: (i128, i128)) -> Option<(i128, i128)> {
    ratio(a.0.checked_mul(b.0)?, a.1.checked_mul(b.1)?)
}

fn sum(a: (i128, i128), b: (i128, i128)) -> Option<(i128, i128)> {
    ratio(a.0.checked_mul(b.1)?.checked_add(b.0.checked_mul(a.1)?)?, a.1.checked_mul(b.1)?)
}

impl Number {
    /// Whether a person would take one for the other: 50 % is 0.5, and also 50 where the question asked for percent;
    /// 1.5 km is 1500 m, and also 1.5 where the unit is left out.
    pub fn is_same(&self, other: &Number) -> bool {
        let (mut a, mut b) = (self.ratio, other.ratio);
        if let (Some(x), Some(y)) = (self.unit, other.unit) {
            if x.of != y.of {
                return false;
            }
            let (Some(scaled), Some(other)) = (product(a, (x.size, 1)), product(b, (y.size, 1))) else { return false };
            (a, b) = (scaled, other);
        }
        let share = |x| product(x, (1, 100));
        a == b
            || (self.is_percent != other.is_percent
                && if self.is_percent { share(a) == Some(b) } else { share(b) == Some(a) })
    }
}

/// Text without what surrounds numbers in Markdown and LaTeX.
fn plain(text: &str) -> String {
    static FRACTION: LazyLock<Regex> =
        LazyLock::new(|| regex(r"\\[dt]?frac\s*(?:\{\s*([^{}]+?)\s*\}|(\d))\s*(?:\{\s*([^{}]+?)\s*\}|(\d))"));
    static TEXT: LazyLock<Regex> = LazyLock::new(|| regex(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}"));
    static POWER: LazyLock<Regex> =
        LazyLock::new(|| regex(r"\s*(?:×|\\times|\*)\s*10\s*\^\s*\{?\s*([-−+]?\d{1,3})\s*\}?"));
    let text = FRACTION.replace_all(text, |found: &regex::Captures| {
        let part = |a: usize, b: usize| found.get(a).or(found.get(b)).map_or("", |part| part.as_str());
        let start = found.get(0).map_or(0, |whole| whole.start());
        // a mixed number needs a space, a sign none
        let gap = if text[..start].ends_with(|c: char| c.is_ascii_digit()) { " " } else { "" };
        format!("{gap}{}/{} ", part(1, 2), part(3, 4))
    });
    let text = TEXT.replace_all(&text, " $1 ");
    let text = POWER.replace_all(&text, "e$1");
    let text = text.replace("{,}", ",").replace("\\%", "%").replace("\\$", "$").replace("^\\circ", "°");
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.peek() {
                // thin spaces inside numbers: 1\,000; a letter begins a command, such as \left
                Some(',' | '!' | ';' | ':' | ' ') => {
                    let is_wide = matches!(chars.next(), Some(';' | ':' | ' '));
                    out.extend(is_wide.then_some(' '));
                }
                Some('(' | ')' | '[' | ']') => drop(chars.next()),
                Some(letter) if letter.is_ascii_alphabetic() => {
                    while chars.next_if(char::is_ascii_alphabetic).is_some() {}
                    out.push(' ');
                }
                _ => {}
            },
            '*' | '`' | '{' | '}' => {}
            '−' | '–' | '‑' => out.push('-'),
            '\u{a0}' | '\u{202f}' | '\u{2009}' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a regular expression")
}

/// A number that begins at `at` in `text`, and where it ends; its sign stands before `at`.
fn unsigned(text: &[char], at: usize) -> Option<((i128, i128), usize)> {
    let digit = |i: usize| text.get(i).is_some_and(char::is_ascii_digit);
    let three = |i: usize| (0..3).all(|j| digit(i + j)) && !digit(i + 3);
    let mut end = at;
    let mut digits = String::new();
    while digit(end) {
        digits.push(text[end]);
        end += 1;
    }
    // thousands marks: groups of three behind at most three digits, all with the same mark; a point only where it
    // stands twice
    if (1..=3).contains(&digits.len())
        && let Some(&mark @ (',' | ' ' | '\'' | '’' | '_' | '.')) = text.get(end)
        && three(end + 1)
        && (mark != '.' || (text.get(end + 4) == Some(&'.') && three(end + 5)))
        && (mark != ' ' || digits != "0")
    {
        while text.get(end) == Some(&mark) && three(end + 1) {
            digits.extend(&text[end + 1..end + 4]);
            end += 4;
        }
    }
    let mut places = 0;
    let is_point = |c: &char| *c == '.' || (*c == ',' && !three(end + 1));
    if text.get(end).is_some_and(is_point) && digit(end + 1) {
        end += 1;
        while digit(end) {
            digits.push(text[end]);
            (end, places) = (end + 1, places + 1);
        }
        // 1.2.3 is a version or a date
        if text.get(end) == Some(&'.') && digit(end + 1) {
            return None;
        }
    }
    if digits.is_empty() || digits.len() > DIGITS {
        return None;
    }
    let mut value = ratio(digits.parse().ok()?, 10i128.checked_pow(places)?)?;
    if text.get(end).is_some_and(|c| *c == 'e' || *c == 'E') {
        let sign = usize::from(text.get(end + 1).is_some_and(|c| *c == '-' || *c == '+'));
        let start = end + 1 + sign;
        let stop = (start..).find(|&i| !digit(i)).unwrap_or(start);
        if (1..=3).contains(&(stop - start)) {
            let power: u32 = text[start..stop].iter().collect::<String>().parse().ok()?;
            let ten = 10i128.checked_pow(power)?;
            value = product(value, if text[end + 1] == '-' { (1, ten) } else { (ten, 1) })?;
            end = stop;
        }
    }
    Some((value, end))
}

fn vulgar(c: char) -> Option<(i128, i128)> {
    let known = [('½', 1, 2), ('⅓', 1, 3), ('⅔', 2, 3), ('¼', 1, 4), ('¾', 3, 4), ('⅕', 1, 5), ('⅛', 1, 8)];
    known.iter().find(|(known, ..)| *known == c).map(|&(_, top, bottom)| (top, bottom))
}

fn skip_spaces(text: &[char], mut at: usize) -> usize {
    while text.get(at).is_some_and(|c| *c == ' ' || *c == '\t') {
        at += 1;
    }
    at
}

/// Letters from `at` on.
fn word(text: &[char], at: usize) -> String {
    text[at.min(text.len())..].iter().take_while(|c| c.is_alphabetic()).collect()
}

/// The number whose digits begin at `at`, with what stands before and behind it; and where it ends. None where the
/// digits are part of something else: `x2`, `2x`, `12:30`, `1.2.3`.
fn number_at(text: &[char], at: usize) -> Option<(Number, usize)> {
    let before = |back: usize| at.checked_sub(back).map(|i| text[i]);
    let is_glued = before(1).is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '^');
    let is_time = before(1) == Some(':') && before(2).is_some_and(|c| c.is_ascii_digit());
    if is_glued || is_time {
        return None;
    }
    let (mut value, mut end) = match vulgar(text[at]) {
        Some(value) => (value, at + 1),
        // .5
        None if text[at] == '.' => unsigned(&['0'].iter().chain(&text[at..]).copied().collect::<Vec<_>>(), 0)
            .map(|(value, end)| (value, at + end - 1))?,
        None => unsigned(text, at)?,
    };
    // 1 1/2, 1½, 3/4
    if let Some(part) = text.get(end).and_then(|&c| vulgar(c)) {
        (value, end) = (sum(value, part)?, end + 1);
    } else {
        let whole_then = skip_spaces(text, end);
        let mixed = (whole_then > end && value.1 == 1)
            .then(|| fraction(text, whole_then))
            .flatten()
            .filter(|((top, bottom), _)| top < bottom);
        if let Some((part, stop)) = mixed {
            (value, end) = (sum(value, part)?, stop);
        } else if let Some((part, stop)) = fraction(text, at).filter(|_| value.1 == 1) {
            (value, end) = (part, stop);
        }
    }
    if text.get(end) == Some(&':') && text.get(end + 1).is_some_and(char::is_ascii_digit) {
        return None;
    }
    let (mut is_percent, mut found_unit) = (false, None);
    let mut sign_at = at;
    if let Some(currency) = before(1).filter(|c| CURRENCY.contains(c)) {
        found_unit = unit(&currency.to_string());
        sign_at -= 1;
    }
    let is_glued = text.get(end).is_some_and(|c| c.is_alphabetic());
    let next = skip_spaces(text, end);
    let name = word(text, next);
    let magnitude = MAGNITUDES.iter().find(|(known, _)| *known == name.to_lowercase());
    if let Some((known, by)) = magnitude {
        value = product(value, (*by, 1))?;
        end = next + known.len();
    }
    let next = skip_spaces(text, end);
    let name = word(text, next);
    if text.get(next) == Some(&'%') || ["percent", "percentage"].contains(&name.to_lowercase().as_str()) {
        is_percent = true;
        end = next + name.chars().count().max(1);
    } else if let Some(known) = unit(&name).or_else(|| unit(&text.get(next)?.to_string())) {
        // squares and rates are other units
        let stop = next + name.chars().count().max(1);
        let is_other = text.get(stop).is_some_and(|c| ['²', '³', '/', '^'].contains(c));
        found_unit = found_unit.or((!is_other).then_some(known));
        end = stop;
    } else if is_glued && magnitude.is_none() {
        return None;
    }
    let negative = sign_at.checked_sub(1).is_some_and(|i| text[i] == '-' && is_sign(&text[..i]));
    // -$5 and $-5
    let negative = negative || (sign_at == at && has_sign_before_currency(text, at));
    let ratio = if negative { (-value.0, value.1) } else { value };
    Some((Number { ratio, is_percent, unit: found_unit }, end))
}

/// `$-5`: the sign stands behind the currency.
fn has_sign_before_currency(text: &[char], at: usize) -> bool {
    at >= 2 && text[at - 1] == '-' && CURRENCY.contains(&text[at - 2])
}

/// `3/4`, whose digits begin at `at`.
fn fraction(text: &[char], at: usize) -> Option<((i128, i128), usize)> {
    let whole = |at: usize| unsigned(text, at).filter(|((_, bottom), _)| *bottom == 1);
    let ((top, _), end) = whole(at)?;
    let slash = skip_spaces(text, end);
    if text.get(slash).is_none_or(|c| !['/', '⁄'].contains(c)) {
        return None;
    }
    let start = skip_spaces(text, slash + 1);
    let ((bottom, _), stop) = whole(start)?;
    // 1/2/3 is a date
    if text.get(stop) == Some(&'/') {
        return None;
    }
    Some((ratio(top, bottom)?, stop))
}

/// Whether a minus after `before` is a sign, not a subtraction or a hyphen.
fn is_sign(before: &[char]) -> bool {
    let glued = before.last().is_some_and(|c| c.is_alphanumeric() || *c == ')');
    let last = before.iter().rev().find(|c| !c.is_whitespace());
    !glued && !last.is_some_and(|c| c.is_ascii_digit() || *c == ')')
}

/// All numbers of a text, with the places where they begin and end.
fn numbers(text: &[char]) -> Vec<(Option<Number>, usize, usize)> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < text.len() {
        let begins = text[at].is_ascii_digit()
            || vulgar(text[at]).is_some()
            || (text[at] == '.'
                && text.get(at + 1).is_some_and(char::is_ascii_digit)
                && !(at > 0 && text[at - 1].is_alphanumeric()));
        if !begins {
            at += 1;
            continue;
        }
        let start = at;
        match number_at(text, at) {
            Some((number, end)) => {
                found.push((Some(number), start, end));
                at = end;
            }
            None => {
                while at < text.len() && (text[at].is_alphanumeric() || ['.', ',', ':', '_'].contains(&text[at])) {
                    at += 1;
                }
                at = at.max(start + 1);
                found.push((None, start, at));
            }
        }
    }
    found
}

/// A text that is one number and nothing else but its sign, its unit, and what surrounds it.
fn only(text: &str) -> Option<Number> {
    let chars: Vec<char> = plain(text).trim().chars().collect();
    let found = numbers(&chars);
    let [(Some(number), start, end)] = found.as_slice() else { return None };
    let head: String = chars[..*start].iter().collect();
    let tail: String = chars[*end..].iter().collect();
    let head = head.trim().trim_start_matches(['=', '≈', '~', ':', '(', '"', '\'']).trim();
    let is_head = head.chars().all(|c| ['-', '+', ' ', '(', '['].contains(&c) || CURRENCY.contains(&c));
    // a unit that is not known: at most three words
    let words = tail.split_whitespace().count();
    let is_tail = words <= 3 && tail.chars().all(|c| c.is_alphabetic() || " .!)]\"'°²³/^$".contains(c));
    (is_head && is_tail).then(|| number.clone())
}

/// The last number of a text; None where what stands last is no number by itself, or one of two that are offered.
fn last(text: &str) -> Option<Number> {
    let chars: Vec<char> = plain(text).chars().collect();
    let found = numbers(&chars);
    let (number, start, _) = found.last()?;
    if let Some((_, _, end)) = found.len().checked_sub(2).map(|i| &found[i]) {
        let between: String = chars[(*end).min(*start)..*start].iter().collect();
        if between.trim().trim_end_matches('$').trim() == "or" {
            return None;
        }
    }
    number.clone()
}

/// What stands in the last `\boxed{…}`.
fn boxed(text: &str) -> Option<&str> {
    let start = ["\\boxed", "\\fbox"].iter().filter_map(|name| Some(text.rfind(name)? + name.len())).max()?;
    let rest = text[start..].trim_start();
    let inner = rest.strip_prefix('{')?;
    let mut depth = 1;
    for (i, c) in inner.char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some(&inner[..i]);
        }
    }
    None
}

/// Up to the end of the sentence: a line break, or a mark with a space behind it.
fn sentence(text: &str) -> &str {
    static END: LazyLock<Regex> = LazyLock::new(|| regex(r"\n|[.!?;](?:\s|$)"));
    END.find(text).map_or(text, |end| &text[..end.start()])
}

/// The number that `text` names as its answer.
///
/// What stands before `</think>` is no part of it. `\boxed{…}` decides where there is one; then what follows `####`;
/// then the last sentence that says what the answer is; then the last line that is nothing but a number; then the last
/// number, remarks left out.
pub fn final_number(text: &str) -> Option<Number> {
    static PHRASE: LazyLock<Regex> = LazyLock::new(|| {
        regex(r"(?i)\b(?:answer|result|solution|total)\b[^.\n=:]{0,60}?(?:\bis\b|\bare\b|\bequals\b|[:=])(\s*not\b)?")
    });
    static REMARK: LazyLock<Regex> = LazyLock::new(|| {
        regex(
            &[
                r"(?im)(?:^|[.!?]\s+|\n\s*)\W*(?:check|checking|verification|verify|note|remark|proof|",
                r"explanation|let me|let's (?:check|verify)|to (?:check|verify)|i (?:have )?(?:double-?)?checked)\b",
            ]
            .concat(),
        )
    });
    static ASIDE: LazyLock<Regex> = LazyLock::new(|| regex(r"[(\[][^()\[\]]*\p{Alphabetic}{2}[^()\[\]]*[)\]]"));
    let text = text.rsplit_once("</think>").map_or(text, |(_, answer)| answer);
    if text.contains("<think>") {
        return None; // it never ended
    }
    if let Some(content) = boxed(text) {
        let content = content.rsplit_once('=').map_or(content, |(_, right)| right);
        return only(content);
    }
    if let Some((_, answer)) = text.rsplit_once("####") {
        let line = answer.trim_start().lines().next().unwrap_or_default();
        return only(line).or_else(|| last(line));
    }
    let said = PHRASE.captures_iter(text).filter(|found| found.get(1).is_none());
    let said = said.filter_map(|found| {
        let rest = &text[found.get(0).map_or(0, |phrase| phrase.end())..];
        let rest = rest.trim_start_matches(|c: char| c.is_whitespace() || "*:=`".contains(c));
        let said = ASIDE.replace_all(sentence(rest), " ").into_owned();
        let said = said.rsplit_once('=').map_or(said.as_str(), |(_, right)| right).to_owned();
        first(&said)
    });
    if let Some(number) = said.last() {
        return number;
    }
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    if let Some(number) = lines().rev().find_map(only) {
        let remark = lines().position(|line| only(line).is_some()).map_or(0, |at| lines().count() - at - 1);
        // a line of its own, unless the text goes on computing behind it
        if remark == 0 || !lines().next_back().is_some_and(|line| line.contains('=')) {
            return Some(number);
        }
    }
    let cut = REMARK.find_iter(text).map(|found| found.start()).find(|&at| last(&text[..at]).is_some());
    let text = cut.map_or(text, |at| &text[..at]);
    last(&ASIDE.replace_all(text, " "))
}

/// The first number of a sentence; `Some(None)` where it offers two, and None where it has none.
fn first(text: &str) -> Option<Option<Number>> {
    let chars: Vec<char> = plain(text).chars().collect();
    let found = numbers(&chars);
    let (number, _, end) = found.first()?;
    if let Some((_, start, _)) = found.get(1) {
        let between: String = chars[*end..(*start).max(*end)].iter().collect();
        if ["or", "and", ","].contains(&between.trim().trim_end_matches('$').trim()) {
            return Some(None);
        }
    }
    Some(number.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_right(gold: &str, text: &str) -> Option<bool> {
        let gold = final_number(gold)?;
        Some(final_number(text).is_some_and(|given| gold.is_same(&given)))
    }

    #[test]
    fn numbers_are_read_as_a_person_reads_them() {
        let mut wrong = Vec::new();
        for (gold, text) in [
            ("42", "42"),
            ("42", "The answer is \\boxed{42}."),
            ("42", "42.00 dollars"),
            ("1000", "1 000"),
            ("1000", "1,000"),
            ("1000", "1'000"),
            ("1000", "$1\\,000$"),
            ("1000000", "1.000.000"),
            ("1234567.5", "1,234,567.50"),
            ("0.5", "1/2"),
            ("0.5", ".5"),
            ("0.5", "0,5"),
            ("0.5", "50%"),
            ("50%", "50"),
            ("50%", "0.5"),
            ("50", "50 percent"),
            ("1/2", "\\boxed{\\frac{1}{2}}"),
            ("1/2", "\\boxed{\\dfrac12}"),
            ("-1/2", "The answer is $-\\frac{1}{2}$."),
            ("1.5", "1 1/2"),
            ("1.5", "1½ hours"),
            ("2/4", "The answer is 1/2"),
            ("-5", "−5"),
            ("-5", "-$5"),
            ("-5", "$-5"),
            ("+5", "5"),
            ("3000000", "3 million"),
            ("30000", "3 × 10^4"),
            ("30000", "3 \\times 10^{4}"),
            ("0.001", "1e-3"),
            ("1.5 km", "1500 m"),
            ("$5", "5 dollars"),
            ("$5", "500 cents"),
            ("5 kg", "The result is 5kg."),
            ("90", "90°"),
            ("72", "She has 72 eggs. #### 72"),
            ("72", "#### 72 eggs"),
            ("#### 72", "72"),
            ("\\boxed{72}", "72"),
            ("42", "The answer is 42. (I checked it 3 times.)"),
            ("42", "**Answer:** 42\n\nNote that 7 is prime."),
            ("42", "The final answer is: $42$"),
            ("42", "Answer: 42 apples, because 6 * 7 = 42"),
            ("42", "The answer is not 41. The answer is 42."),
            ("5", "So x = 5. Check: 5 + 3 = 8."),
            ("42", "42\n\nI checked it 3 times."),
            ("42", "42 (see step 3)"),
            ("7", "The answer is 10 - 3 = 7."),
            ("7", "10 - 3 = 7"),
            ("-3", "7 - 10 = -3"),
            ("42", "**42**"),
            ("42", "`42`"),
            ("42", "<think>41</think>42"),
            ("14", "So 7 * 2 = 14."),
            ("1204", "1,204 coins"),
            ("8", "5\n+3\n= 8"),
            ("42", "Therefore she has 42 apples left."),
        ] {
            wrong.extend((is_right(gold, text) != Some(true)).then_some((gold, text)));
        }
        assert_eq!(wrong, []);
    }

    #[test]
    fn what_a_person_would_not_take_is_wrong() {
        let mut wrong = Vec::new();
        for (gold, text) in [
            ("42", "forty-two"),
            ("42", "x=42, y=7"),
            ("12", "1,2"),
            ("42", "4.2"),
            ("42", "-42"),
            ("42", "The answer is 41 or 42."),
            ("43", "42 or 43"),
            ("42", "I do not know."),
            ("42", ""),
            ("2", "2x"),
            ("2", "x2"),
            ("1/3", "0.33"),
            ("42 km", "42 m"),
            ("42", "\\boxed{x}, so 42"),
            ("30", "12:30"),
            ("42", "<think>42"),
            ("5", "The answer is 6. 5 is close."),
        ] {
            wrong.extend((is_right(gold, text) != Some(false)).then_some((gold, text)));
        }
        assert_eq!(wrong, []);
        for gold in ["many", "", "x", "1.2.3"] {
            assert_eq!(is_right(gold, "7"), None, "{gold:?} is no answer to judge by");
        }
    }

    #[test]
    fn numbers_beyond_all_bounds_are_none() {
        for text in ["9".repeat(31), format!("1e{}", 999), "1/0".into(), format!("{0}/{0}.5", "9".repeat(30))] {
            assert!(final_number(&text).is_none_or(|number| number.ratio.1 != 0), "{text}");
        }
        assert!(final_number(&"9".repeat(30)).is_some());
    }
}
