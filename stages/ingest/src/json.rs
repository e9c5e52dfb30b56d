//! JSON as it is found: lines of objects, and lists of them; numbers that JSON has no place for become strings.

use std::io::{self, BufRead};

use serde_json::{Map, Value};

use crate::read::MAX_RECORD;

/// Why a text is no record.
#[derive(Debug, PartialEq)]
pub(crate) struct NoObject {
    pub(crate) what: String,
    pub(crate) hint: Option<&'static str>,
}

/// The object that `text` is. NaN, infinities, integers beyond 64 bits and numbers beyond what a double holds become
/// strings of what is written: read as numbers they would be null, rounded, or no JSON at all.
pub(crate) fn object(text: &str) -> Result<Map<String, Value>, NoObject> {
    let has_long_number = || {
        let mut run = 0;
        text.bytes().any(|b| {
            run = if b.is_ascii_digit() { run + 1 } else { 0 };
            run > 18
        })
    };
    let quoted = if has_long_number() { quoted(text) } else { None };
    let read = |text: &str| serde_json::from_str::<Value>(text);
    let value = match read(quoted.as_deref().unwrap_or(text)) {
        Err(first) if quoted.is_none() => match self::quoted(text) {
            Some(text) => read(&text).map_err(|_| first),
            None => Err(first),
        },
        other => other,
    };
    match value {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => {
            let what = format!("{} is no record, expected an object", crate::record::type_of(&other));
            Err(NoObject { what, hint: Some("a record is written `{\"text\": …}`") })
        }
        Err(error) => Err(explained(text, &error)),
    }
}

/// What JSON's reader says, for a person; a record is one line, so its line number says nothing.
fn explained(text: &str, error: &serde_json::Error) -> NoObject {
    let said = error.to_string();
    let what = said.rsplit_once(" at line ").map_or(said.as_str(), |(what, _)| what);
    let column = error.column();
    let start = text.trim_start();
    if error.is_eof() {
        let is_opened = matches!(start.trim_end(), "{" | "[");
        let hint = match is_opened {
            true => "one record stands on several lines: write each on one line, or set `format: json`",
            false => "the file or a line of it was cut off",
        };
        return NoObject { what: format!("the record ends in the middle, at column {column}"), hint: Some(hint) };
    }
    if what.contains("surrogate") || what.contains("unexpected end of hex escape") {
        let what = format!("half of a surrogate pair at column {column}, which is no character");
        return NoObject { what, hint: Some("a text was cut inside a character when it was written") };
    }
    let hint = match start.as_bytes() {
        [b'{', b'\'', ..] => {
            Some("names and strings of JSON stand in double quotes; Python writes it with `json.dumps`")
        }
        [b'<', ..] => Some("it looks like a web page: fetch the file again"),
        [b'}' | b']' | b'"', ..] => Some("one record stands on several lines: write each on one line"),
        _ if what.contains("control character") => {
            Some("a line end or a tab inside a string is written `\\n` or `\\t`")
        }
        _ => None,
    };
    NoObject { what: format!("no JSON: {what} at column {column}"), hint }
}

/// `text` with quotes around the numbers that no JSON reader keeps; `None` if there are none.
fn quoted(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 16);
    let bytes = text.as_bytes();
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                at += 1;
            }
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let is_part = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.');
                let end = at + bytes[at..].iter().take_while(|b| is_part(b)).count();
                let token = &text[at..end];
                if is_lost(token) {
                    out.push_str(&text[copied..at]);
                    out.extend(["\"", token, "\""]);
                    copied = end;
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    out.push_str(&text[copied..]);
    (out.len() > text.len()).then_some(out)
}

/// Whether a number would not be what is written.
fn is_lost(token: &str) -> bool {
    if matches!(token, "NaN" | "-NaN" | "Infinity" | "-Infinity") {
        return true;
    }
    let digits = token.strip_prefix('-').unwrap_or(token);
    if digits.is_empty() || !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return false;
    }
    match digits.bytes().all(|b| b.is_ascii_digit()) {
        true => token.parse::<i64>().is_err() && token.parse::<u64>().is_err(),
        false => token.parse::<f64>().is_ok_and(f64::is_infinite),
    }
}

/// The elements of a JSON list, one after the other, without the whole list in memory.
pub(crate) struct Elements {
    reader: Box<dyn BufRead>,
    line: u64,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Before,
    Inside,
    After,
}

impl Elements {
    pub(crate) fn new(reader: Box<dyn BufRead>) -> Self {
        Self { reader, line: 1, state: State::Before }
    }

    /// The next element and the line that it begins on; the list was not closed if it is empty.
    pub(crate) fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let (mut element, mut begins) = (Vec::new(), self.line);
        let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
        while self.state != State::After {
            let ahead = self.reader.fill_buf()?;
            if ahead.is_empty() {
                self.state = State::After;
                return Ok(Some((begins, element)));
            }
            let mut used = 0;
            let mut is_whole = false;
            for &byte in ahead {
                used += 1;
                self.line += u64::from(byte == b'\n');
                if self.state == State::Before {
                    if byte == b'[' {
                        self.state = State::Inside;
                    }
                    continue;
                }
                if in_string {
                    in_string = is_escaped || byte != b'"';
                    is_escaped = !is_escaped && byte == b'\\';
                } else {
                    match byte {
                        b']' if depth == 0 => {
                            self.state = State::After;
                            is_whole = true;
                            break;
                        }
                        b',' if depth == 0 => {
                            is_whole = true;
                            break;
                        }
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => depth = depth.saturating_sub(1),
                        b if b.is_ascii_whitespace() && element.is_empty() => continue,
                        _ => {}
                    }
                }
                if element.is_empty() {
                    begins = self.line;
                }
                // Of an element that is too long one byte more is kept, which tells it.
                if element.len() as u64 <= MAX_RECORD {
                    element.push(byte);
                }
            }
            self.reader.consume(used);
            if is_whole {
                let is_end = self.state == State::After && element.is_empty();
                return Ok(if is_end { None } else { Some((begins, element)) });
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_cannot_hold_become_strings_and_others_stay() {
        let read = |text: &str| Value::Object(object(text).unwrap()).to_string();
        assert_eq!(
            read(r#"{"a":NaN,"b":-Infinity,"c":[1,Infinity],"d":"NaN"}"#),
            r#"{"a":"NaN","b":"-Infinity","c":[1,"Infinity"],"d":"NaN"}"#
        );
        assert_eq!(
            read(r#"{"a":18446744073709551615,"b":18446744073709551616,"c":-9223372036854775809,"d":"1e999 \" 5"}"#),
            r#"{"a":18446744073709551615,"b":"18446744073709551616","c":"-9223372036854775809","d":"1e999 \" 5"}"#
        );
        assert_eq!(read(r#"{"a":1e400,"b":0.1234567890123456789}"#), r#"{"a":"1e400","b":0.12345678901234568}"#);
    }

    #[test]
    fn what_is_no_record_is_said_with_its_column_and_what_may_be_wrong() {
        let told = |text: &str| object(text).unwrap_err();
        let plain = |what: &str, hint| NoObject { what: what.into(), hint };
        assert_eq!(
            told("{\"text\":"),
            plain("the record ends in the middle, at column 8", Some("the file or a line of it was cut off"))
        );
        assert_eq!(
            told(r#"{"text":"cut \ud83d end"}"#),
            plain(
                "half of a surrogate pair at column 20, which is no character",
                Some("a text was cut inside a character when it was written")
            )
        );
        assert!(told("{'text': 'a'}").hint.unwrap().contains("double quotes"));
        assert!(told("{").hint.unwrap().contains("several lines"));
        assert!(told("<html>").hint.unwrap().contains("web page"));
        assert_eq!(told("[1]").what, "a list is no record, expected an object");
        assert_eq!(told("{\"a\":nan}").what, "no JSON: expected ident at column 7");
    }

    #[test]
    fn the_elements_of_a_list_come_one_by_one() {
        let all = |text: &str| {
            let mut elements = Elements::new(Box::new(io::Cursor::new(text.as_bytes().to_vec())));
            let mut found = Vec::new();
            while let Some((line, element)) = elements.next().unwrap() {
                found.push((line, String::from_utf8(element).unwrap().trim_end().to_owned()));
            }
            found
        };
        let own = |pairs: &[(u64, &str)]| pairs.iter().map(|(n, s)| (*n, (*s).to_owned())).collect::<Vec<_>>();
        assert_eq!(
            all("[\n {\"a\": \"],}\\\"\"},\n\n {\"b\": [1, {\"c\": 2}]}\n]\n"),
            own(&[(2, r#"{"a": "],}\""}"#), (4, r#"{"b": [1, {"c": 2}]}"#)])
        );
        assert_eq!(all("[]"), []);
        assert_eq!(all("[{\"a\":1}, {\"b\""), own(&[(1, "{\"a\":1}"), (1, "{\"b\"")]));
        assert_eq!(all("[{\"a\":1},"), own(&[(1, "{\"a\":1}"), (1, "")]));
    }
}
