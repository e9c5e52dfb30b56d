//! Times as people write them.

use chrono::{DateTime, Days, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta};
use smelt_stage::kinds::Micros;

/// Reads ISO 8601, extended or basic, of any year: `2024-05-01`, `20240501`, `2024-05-01T12:30Z`,
/// `2024-05-01 12:30:00.5+0200`, `-0044-03-15`; and the dates of mail and HTTP, `Wed, 01 May 2024 12:00:00 GMT`.
/// Without an offset it is UTC.
///
/// Anything else is not a time: a number, whose unit is not known; a month; `01/05/2024`, which is two days.
pub(crate) fn time(text: &str) -> Option<Micros> {
    let text = text.trim();
    iso(text).or_else(|| Some(Micros(DateTime::parse_from_rfc2822(text).ok()?.timestamp_micros())))
}

fn iso(text: &str) -> Option<Micros> {
    let (date, rest) = date(text)?;
    let Some(rest) = rest.strip_prefix(['T', 't', ' ']) else {
        return rest.is_empty().then(|| micros(date.and_time(NaiveTime::MIN)));
    };
    let end = rest.find(['Z', 'z', '+', '-', '\u{2212}']).unwrap_or(rest.len());
    let (clock, offset) = rest.split_at(end);
    let at = clock_of(date, clock.trim_end())?;
    Some(micros(at.checked_sub_signed(TimeDelta::minutes(offset_minutes(offset)?))?))
}

fn micros(at: NaiveDateTime) -> Micros {
    Micros(at.and_utc().timestamp_micros())
}

/// A date at the start, and what follows it.
fn date(text: &str) -> Option<(NaiveDate, &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let (sign, unsigned) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (if text.starts_with('-') { -1 } else { 1 }, rest),
        None => (1, text),
    };
    let year_digits = digits(unsigned);
    if year_digits == 8 && unsigned.len() == text.len() {
        let number = |range: std::ops::Range<usize>| text[range].parse::<u32>().ok();
        let date = NaiveDate::from_ymd_opt(text[..4].parse().ok()?, number(4..6)?, number(6..8)?)?;
        return Some((date, &text[8..]));
    }
    // More digits than four need a sign, as ISO 8601 has it.
    if year_digits != 4 && !(unsigned.len() < text.len() && (4..=6).contains(&year_digits)) {
        return None;
    }
    let (year, rest) = unsigned.split_at(year_digits);
    let [b'-', m1, m2, b'-', d1, d2, ..] = rest.as_bytes() else { return None };
    let two = |a: &u8, b: &u8| {
        (a.is_ascii_digit() && b.is_ascii_digit()).then(|| u32::from(a - b'0') * 10 + u32::from(b - b'0'))
    };
    let year = year.parse::<i32>().ok()? * sign;
    Some((NaiveDate::from_ymd_opt(year, two(m1, m2)?, two(d1, d2)?)?, &rest[6..]))
}

/// `12:30`, `12:30:00.5`, `123000`; 24:00 is the end of the day, a leap second the start of the next minute.
fn clock_of(date: NaiveDate, clock: &str) -> Option<NaiveDateTime> {
    let (whole, fraction) = clock.split_once(['.', ',']).unwrap_or((clock, ""));
    let is_digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let two = |text: &str| (text.len() == 2 && is_digits(text)).then(|| text.parse::<i64>().ok()).flatten();
    let parts: Vec<&str> = match whole.contains(':') {
        true => whole.split(':').collect(),
        false if whole.is_ascii() && whole.len() >= 4 => {
            vec![&whole[..2], &whole[2..4], whole.get(4..).filter(|rest| !rest.is_empty()).unwrap_or("00")]
        }
        false => return None,
    };
    let (hours, minutes) = (two(parts.first()?)?, two(parts.get(1)?)?);
    let seconds = parts.get(2).map_or(Some(0), |seconds| two(seconds))?;
    let has_fraction = whole.len() < clock.len();
    if !is_digits(fraction) || (has_fraction && (fraction.is_empty() || parts.len() < 3)) || parts.len() > 3 {
        return None;
    }
    let in_range = hours < 24 && minutes < 60 && seconds <= 60 || (hours, minutes, seconds) == (24, 0, 0);
    let micros: i64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    if !in_range || (hours == 24 && micros > 0) {
        return None;
    }
    let day = if hours == 24 { date.checked_add_days(Days::new(1))? } else { date };
    let in_day = TimeDelta::seconds(hours % 24 * 3600 + minutes * 60 + seconds) + TimeDelta::microseconds(micros);
    day.and_time(NaiveTime::MIN).checked_add_signed(in_day)
}

/// Minutes to the east of UTC: nothing, `Z`, `+02`, `+0200`, `-05:30`.
fn offset_minutes(text: &str) -> Option<i64> {
    if matches!(text, "" | "Z" | "z") {
        return Some(0);
    }
    let (sign, rest) = match text.strip_prefix('+') {
        Some(rest) => (1, rest),
        None => (-1, text.strip_prefix(['-', '\u{2212}'])?),
    };
    let digits: String = rest.chars().filter(|&c| c != ':').collect();
    let is_known =
        matches!(rest.len(), 2 | 4) && rest.len() == digits.len() || rest.len() == 5 && rest[2..].starts_with(':');
    if !is_known || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (hours, minutes) = (digits[..2].parse::<i64>().ok()?, digits.get(2..4).map_or(Some(0), |m| m.parse().ok())?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_times_are_read_and_others_are_not() {
        let read = |text: &str| time(text).map(|Micros(at)| DateTime::from_timestamp_micros(at).unwrap().to_rfc3339());
        for (text, expected) in [
            ("1500-01-01", "1500-01-01T00:00:00+00:00"),
            ("0001-01-01", "0001-01-01T00:00:00+00:00"),
            ("-0044-03-15", "-0044-03-15T00:00:00+00:00"),
            ("+12024-01-01", "+12024-01-01T00:00:00+00:00"),
            ("2262-04-11T23:47:16.854775807Z", "2262-04-11T23:47:16.854775+00:00"),
            ("2300-01-01T00:00:00Z", "2300-01-01T00:00:00+00:00"),
            ("2024-05-01T24:00:00Z", "2024-05-02T00:00:00+00:00"),
            ("2024-05-01T12:00:60Z", "2024-05-01T12:01:00+00:00"),
            ("Wed, 01 May 2024 12:00:00 GMT", "2024-05-01T12:00:00+00:00"),
            ("1 May 2024 12:00:00 +0200", "2024-05-01T10:00:00+00:00"),
            ("20240501", "2024-05-01T00:00:00+00:00"),
            ("20240501T123000Z", "2024-05-01T12:30:00+00:00"),
            ("2024-05-01T12:00:00+0200", "2024-05-01T10:00:00+00:00"),
            ("2024-05-01T12:00Z", "2024-05-01T12:00:00+00:00"),
            ("2024-05-01 12:00:00.25 -05:30", "2024-05-01T17:30:00.250+00:00"),
            (" 1969-12-31T23:59:59.9999999Z ", "1969-12-31T23:59:59.999999+00:00"),
        ] {
            assert_eq!(read(text).unwrap_or_default(), expected, "{text}");
        }
        for text in [
            "2024-02-30",
            "01/05/2024",
            "2024-05",
            "1714564800",
            "12024-01-01",
            "yesterday",
            "",
            "2024",
            "2024-05-01T",
            "2024-05-01T25:00",
            "2024-05-01T12:60",
            "2024-05-01T24:00:01",
            "2024-05-01x",
            "2024-05-01T12:00:00.Z",
            "2024-05-01T12:00:00+2",
            "2024-5-1",
            "２０２４-05-01",
            "2024-05-01T12:00:00é",
            "99999999",
        ] {
            assert_eq!(time(text), None, "{text}");
        }
    }
}
