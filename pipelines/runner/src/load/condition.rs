//! `when:` a gate of a job: what an earlier job measured, compared with a number.

use super::draft::Draft;
use super::inputs::choose;
use crate::diagnostic::{Diagnostic, Result, nearest};
use smelt_schemas::Manifest;
use std::fmt;

/// `base.loss < 2.5`
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Condition {
    text: String,
    /// Places in `Plan::jobs`; it must hold of each.
    pub jobs: Vec<usize>,
    metric: String,
    comparison: Comparison,
    value: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    Unequal,
}

/// Two-character signs first: `<=` begins like `<`.
const SIGNS: [(&str, Comparison); 6] = [
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("==", Comparison::Equal),
    ("!=", Comparison::Unequal),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

impl Comparison {
    fn holds(self, a: f64, b: f64) -> bool {
        match self {
            Self::Less => a < b,
            Self::LessOrEqual => a <= b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
            Self::Equal => a == b,
            Self::Unequal => a != b,
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Condition {
    pub(super) fn parse(text: &str, draft: &Draft, drafts: &[Draft]) -> Result<Self> {
        let bad = || {
            Diagnostic::pipeline(format!("job `{}`: `{text}` is no condition", draft.name))
                .hint("write `JOB.METRIC < NUMBER`, such as `base.loss < 2.5`; also <=, >, >=, == and !=")
        };
        let (base, axes, metric, comparison, value) = split(text).ok_or_else(bad)?;
        let jobs = choose(base, axes, draft, drafts)?;
        if jobs.iter().any(|&job| drafts[job].name == draft.name) {
            let hint = match draft.iteration {
                Some(_) => "name an earlier job, or `previous`, the iteration before",
                None => "name an earlier job",
            };
            return Err(
                Diagnostic::pipeline(format!("job `{}` waits for what it measures itself", draft.name)).hint(hint)
            );
        }
        Ok(Self { text: text.trim().into(), jobs, metric: metric.into(), comparison, value })
    }

    /// Why the gate is closed, by what job `name` measured; nothing if it is open.
    pub(crate) fn closed_by(&self, name: &str, manifest: &Manifest) -> Result<Option<String>> {
        let found = measured(manifest, &self.metric).ok_or_else(|| {
            let known: Vec<&str> = manifest.metrics.keys().map(String::as_str).chain(["read", "written"]).collect();
            let error = Diagnostic::pipeline(format!("`when: {self}`: job `{name}` measured no `{}`", self.metric));
            match nearest(&self.metric, known.iter().copied()) {
                Some(near) => error.hint(format!("is `{near}` meant?")),
                None => error.hint(format!("it measured {}", known.join(", "))),
            }
        })?;
        let shown = format!("{found:.4}");
        let shown = shown.trim_end_matches('0').trim_end_matches('.');
        let of = if self.jobs.len() > 1 { format!(" in {name}") } else { String::new() };
        Ok((!self.comparison.holds(found, self.value)).then(|| format!("when {self}: it is {shown}{of}")))
    }
}

/// A metric that the job noted last, or rows of its books.
fn measured(manifest: &Manifest, metric: &str) -> Option<f64> {
    let books = &manifest.books;
    manifest.metrics.get(metric).copied().or_else(|| match metric {
        "read" => Some(books.read as f64),
        "written" => Some(books.written as f64),
        "dropped" => Some(books.dropped_total() as f64),
        _ => None,
    })
}

type Parts<'a> = (&'a str, Option<&'a str>, &'a str, Comparison, f64);

fn split(text: &str) -> Option<Parts<'_>> {
    // Axes may hold a `=`: the comparison stands after them.
    let after_axes = text.find(']').map_or(0, |end| end + 1);
    let at = after_axes + text[after_axes..].find(['<', '>', '=', '!'])?;
    let (sign, comparison) = SIGNS.iter().find(|(sign, _)| text[at..].starts_with(sign))?;
    let value: f64 = text[at + sign.len()..].trim().parse().ok().filter(|v: &f64| v.is_finite())?;
    let (base, axes, rest) = match text[..at].split_once('[') {
        Some((base, rest)) => {
            let (axes, rest) = rest.split_once(']')?;
            (base, Some(axes), rest.strip_prefix('.')?)
        }
        None => {
            let (base, rest) = text[..at].split_once('.')?;
            (base, None, rest)
        }
    };
    let (base, metric) = (base.trim(), rest.trim());
    (!base.is_empty() && !metric.is_empty()).then_some((base, axes, metric, *comparison, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_a_job_a_metric_a_comparison_and_a_number() {
        assert_eq!(split("base.loss < 2.5"), Some(("base", None, "loss", Comparison::Less, 2.5)));
        assert_eq!(split("base.loss<=-1e3"), Some(("base", None, "loss", Comparison::LessOrEqual, -1000.0)));
        let of_instance = split("base[seed=1,lr=2].share.web != 0");
        assert_eq!(of_instance, Some(("base", Some("seed=1,lr=2"), "share.web", Comparison::Unequal, 0.0)));
        assert_eq!(split("base[*].loss == 1"), Some(("base", Some("*"), "loss", Comparison::Equal, 1.0)));
        for bad in ["", "base", "base.loss", "base < 3", "base.loss < x", "base.loss < NaN", ".loss < 1", "base. > 1"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_comparison_with_equals_is_not_the_one_without() {
        let holds = |a: f64| SIGNS.map(|(_, comparison)| comparison.holds(a, 1.0));
        assert_eq!(holds(0.0), [true, false, false, true, true, false]);
        assert_eq!(holds(1.0), [true, true, true, false, false, false]);
        assert_eq!(holds(2.0), [false, true, false, true, false, true]);
        assert_eq!(holds(f64::NAN), [false, false, false, true, false, false], "what is not known opens no gate");
    }
}
