//! Listings: aligned columns for people, JSON and CSV for programs.

use serde_json::Value;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    #[default]
    Table,
    Json,
    Csv,
}

/// What the numbers of a column are, for people; programs get them as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    Plain,
    Bytes,
    Seconds,
    /// Seconds since 1970.
    Time,
}

/// Rows of a listing. Plain numbers go to the right.
pub(crate) struct Listing {
    columns: Vec<&'static str>,
    measures: Vec<Measure>,
    rows: Vec<Vec<Value>>,
}

impl Listing {
    pub(crate) fn new(columns: &[(&'static str, Measure)]) -> Self {
        let (columns, measures) = columns.iter().copied().unzip();
        Self { columns, measures, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: Vec<Value>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn text(&self, format: Format) -> String {
        match format {
            Format::Json => {
                let object = |row: &Vec<Value>| {
                    self.columns.iter().map(|c| (*c).to_owned()).zip(row.iter().cloned()).collect::<Value>()
                };
                let rows: Vec<Value> = self.rows.iter().map(object).collect();
                serde_json::to_string_pretty(&rows).expect("a listing is plain data") + "\n"
            }
            Format::Csv => {
                let line = |cells: Vec<String>| cells.join(",") + "\n";
                let head = line(self.columns.iter().map(|c| quote(c)).collect());
                self.rows.iter().fold(head, |text, row| text + &line(row.iter().map(field).collect()))
            }
            Format::Table => self.table(),
        }
    }

    fn table(&self) -> String {
        let shown = |(cell, measure): (&Value, &Measure)| match (measure, cell.as_f64()) {
            (Measure::Bytes, Some(n)) => bytes(n as u64),
            (Measure::Seconds, Some(n)) => duration(n),
            (Measure::Time, Some(n)) => time(n),
            _ => show(cell),
        };
        let cells: Vec<Vec<String>> =
            self.rows.iter().map(|r| r.iter().zip(&self.measures).map(shown).collect()).collect();
        let width = |i: usize| cells.iter().map(|r| chars(&r[i])).chain([chars(self.columns[i])]).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let right = |i: usize| {
            self.measures[i] == Measure::Plain
                && self.rows.iter().any(|r| r[i].is_number())
                && self.rows.iter().all(|r| r[i].is_number() || r[i].is_null())
        };
        let line = |row: &[String]| {
            let mut text = String::new();
            for (i, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[i] - chars(cell));
                text += &if right(i) { format!("{pad}{cell}  ") } else { format!("{cell}{pad}  ") };
            }
            text.trim_end().to_owned() + "\n"
        };
        let head = line(&self.columns.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>());
        cells.iter().fold(head, |text, row| text + &line(row))
    }
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => s.clone(),
        Value::Number(n) if n.is_f64() => {
            format!("{:.4}", n.as_f64().unwrap_or(0.0)).trim_end_matches('0').trim_end_matches('.').to_owned()
        }
        other => other.to_string(),
    }
}

/// A field of CSV: null is nothing, an empty text is `""`, a number is written in full.
fn field(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => quote(text),
        other => quote(&other.to_string()),
    }
}

fn quote(cell: &str) -> String {
    match cell.is_empty() || cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    }
}

/// `4.1 MB`
pub(crate) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if n < 1000 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1.2 s`, `5 min 12 s`, `3 h 20 min`
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 9.95 => format!("{s:.1} s"),
        s if s < 59.5 => format!("{s:.0} s"),
        s if s < 3570.0 => format!("{} min {:02} s", (s.round() as u64) / 60, (s.round() as u64) % 60),
        s => format!("{} h {:02} min", (s / 60.0).round() as u64 / 60, (s / 60.0).round() as u64 % 60),
    }
}

/// `61,000`
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let parts: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    parts.join(",")
}

/// `2026-11-23 22:14:05`, UTC.
pub(crate) fn time(seconds: f64) -> String {
    let (days, rest) = ((seconds as i64).div_euclid(86_400), (seconds as i64).rem_euclid(86_400));
    // Civil date from days since 1970 (Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_listing_has_three_forms() {
        let mut listing = Listing::new(&[("job", Measure::Plain), ("rows", Measure::Plain), ("size", Measure::Bytes)]);
        listing.row(vec![json!("clean"), json!(548), json!(4100)]);
        listing.row(vec![json!("a,b"), json!(7), Value::Null]);
        assert_eq!(listing.text(Format::Table), "job    rows  size\nclean   548  4.1 kB\na,b       7\n");
        assert_eq!(listing.text(Format::Csv), "job,rows,size\nclean,548,4100\n\"a,b\",7,\n");
        let fields = [json!(""), json!(null), json!(0.123456), json!("a\"b")].map(|value| field(&value));
        assert_eq!(fields, ["\"\"", "", "0.123456", "\"a\"\"b\""]);
        let json = listing.text(Format::Json);
        assert!(json.contains("\"rows\": 548") && json.contains("\"size\": 4100"), "{json}");
    }

    #[test]
    fn numbers_carry_units() {
        assert_eq!([bytes(999), bytes(4_100_000), bytes(999_999)], ["999 B", "4.1 MB", "1.0 MB"]);
        assert_eq!([duration(1.2), duration(312.0), duration(12_000.0)], ["1.2 s", "5 min 12 s", "3 h 20 min"]);
        assert_eq!([thousands(7), thousands(61_000), thousands(1_234_567)], ["7", "61,000", "1,234,567"]);
        assert_eq!(time(1_795_472_045.0), "2026-11-23 22:14:05");
        assert_eq!(time(951_782_400.0), "2000-02-29 00:00:00");
    }
}
