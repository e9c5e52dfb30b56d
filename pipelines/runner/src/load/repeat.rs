//! `repeat:` a job that is done several times, each time from what the time before made, as alignment in rounds is.

use super::draft::Reading;
use crate::diagnostic::{Diagnostic, Result};
use crate::yaml::Tree;
use smelt_schemas::{Inputs, Job, Pipeline};

/// The name of the iteration before, and of the last one.
pub(super) const PREVIOUS: &str = "previous";
pub(super) const LAST: &str = "last";

/// The axis, and so the column in SQL, that has the number of an iteration.
pub(super) const ITERATION: &str = "iteration";

/// More are a slip of the pen.
const MOST: usize = 1000;

/// The numbers of a job's iterations; only `None` if it is not repeated.
pub(super) fn iterations(tree: &Tree, base: &str, job: &Job) -> Result<Vec<Option<usize>>> {
    let at = |field: &str| tree.place(&format!("/jobs/{base}/{field}"));
    let Some(count) = job.repeat else {
        if job.first != Inputs::default() {
            return Err(Diagnostic::pipeline(format!("job `{base}` has `first`, and is not repeated"))
                .at(at("first"))
                .hint("add `repeat: 3`, or write under `input` what it reads"));
        }
        return Ok(vec![None]);
    };
    if !(1..=MOST).contains(&count) {
        return Err(Diagnostic::pipeline(format!("job `{base}` is repeated {count} times, expected 1 to {MOST}"))
            .at(at("repeat"))
            .hint("leave `repeat` out for a job that is done once"));
    }
    if job.each.contains_key(ITERATION) {
        return Err(Diagnostic::pipeline(format!("job `{base}` is repeated, and has an axis `{ITERATION}` as well"))
            .at(tree.key_place(&format!("/jobs/{base}/each/{ITERATION}")))
            .hint("give the axis another name: the iterations have this one"));
    }
    Ok((1..=count).map(Some).collect())
}

/// What an instance reads: its inputs, with the iterations that they mean by number.
pub(super) fn readings(
    tree: &Tree,
    pipeline: &Pipeline,
    base: &str,
    job: &Job,
    iteration: Option<usize>,
) -> Result<Vec<Reading>> {
    let reading = |port: &Option<String>, references: Vec<String>, field: &str| {
        let of_port = port.as_ref().map_or_else(String::new, |port| format!("/{port}"));
        Reading { port: port.clone(), references, pointer: format!("/{field}{of_port}") }
    };
    let reads_previous = |reading: &Reading| reading.references.iter().any(|text| is_of_previous(text));
    let inputs = job.input.0.iter();
    let given = match iteration {
        None | Some(1) => inputs.map(|(port, references)| reading(port, references.clone(), "input")).collect(),
        Some(number) => {
            let numbered = |text: &String| before(text, base, number - 1).unwrap_or_else(|| text.clone());
            let all = |(port, list): &(_, Vec<String>)| reading(port, list.iter().map(numbered).collect(), "input");
            inputs.map(all).collect::<Vec<_>>()
        }
    };
    if iteration != Some(1) {
        return Ok(given);
    }
    // A plain name in `first` comes from before the loop: of a repeated job that is the last iteration.
    let outside = |text: &String| {
        let (name, port) = text.split_once('.').map_or((text.as_str(), ""), |(name, _)| (name, &text[name.len()..]));
        let is_repeated = pipeline.jobs.get(name).is_some_and(|job| job.repeat.is_some());
        if is_repeated { format!("{name}[{LAST}]{port}") } else { text.clone() }
    };
    let (of_previous, mut readings): (Vec<Reading>, Vec<Reading>) = given.into_iter().partition(reads_previous);
    let mut missing: Vec<Option<String>> = of_previous.into_iter().map(|reading| reading.port).collect();
    for (port, references) in &job.first.0 {
        let port = match (port, missing.as_slice()) {
            (Some(_), _) => port.clone(),
            (None, [one]) => one.clone(),
            (None, ports) => {
                let error = match ports.len() {
                    0 => format!("job `{base}` has `first`, and no input of it is of a previous iteration"),
                    n => format!("job `{base}` has one `first` for {n} inputs of previous iterations"),
                };
                return Err(Diagnostic::pipeline(error)
                    .at(tree.place(&format!("/jobs/{base}/first")))
                    .hint("say for which input it is: `first: { PORT: JOB }`"));
            }
        };
        missing.retain(|of_previous| *of_previous != port);
        readings.retain(|reading| reading.port != port);
        let mut seeded = reading(&port, references.iter().map(outside).collect(), "first");
        if let [(None, _)] = job.first.0.as_slice() {
            seeded.pointer = "/first".into();
        }
        readings.push(seeded);
    }
    if let Some(port) = missing.into_iter().next() {
        let (of_port, wanted) = match &port {
            Some(port) => (format!(" for its input `{port}`"), format!("{{ {port}: JOB }}")),
            None => (String::new(), "JOB".to_owned()),
        };
        let pointer = reading(&port, Vec::new(), "input").pointer;
        return Err(Diagnostic::pipeline(format!(
            "job `{base}`: the first of its iterations has none before it{of_port}"
        ))
        .at(tree.place(&format!("/jobs/{base}{pointer}")))
        .hint(format!("add `first: {wanted}`, what it begins with")));
    }
    Ok(readings)
}

/// The conditions of an instance, each with its place in the list. The first iteration has none before it to ask.
pub(super) fn conditions(base: &str, job: &Job, iteration: Option<usize>) -> Vec<(usize, String)> {
    let all = job.when.0.iter().enumerate();
    all.filter_map(|(n, text)| match (iteration, before(text, base, 1)) {
        (Some(1), Some(_)) => None,
        (Some(number), Some(_)) => Some((n, before(text, base, number - 1)?)),
        _ => Some((n, text.clone())),
    })
    .collect()
}

/// A reference, or the start of a condition, that names a previous iteration, with its number: `previous.model` of job
/// `policy` is `policy[2].model`, and `judge[previous]` is `judge[2]`. `None` if it names none.
fn before(text: &str, base: &str, number: usize) -> Option<String> {
    if let Some(rest) = text.trim_start().strip_prefix(PREVIOUS)
        && (rest.is_empty() || rest.starts_with('.'))
    {
        return Some(format!("{base}[{number}]{rest}"));
    }
    let (head, rest) = text.split_once('[')?;
    let (inside, rest) = rest.split_once(']')?;
    let axes = inside.strip_suffix(PREVIOUS).filter(|axes| axes.is_empty() || axes.ends_with(','))?;
    Some(format!("{head}[{axes}{number}]{rest}"))
}

/// Whether a reference names a previous iteration.
pub(super) fn is_of_previous(text: &str) -> bool {
    before(text, "", 1).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_to_the_iteration_before_gets_its_number() {
        let of = |text: &str| before(text, "policy", 2);
        assert_eq!(of("previous"), Some("policy[2]".into()));
        assert_eq!(of("previous.model"), Some("policy[2].model".into()));
        assert_eq!(of("previous.reward > 0.5"), Some("policy[2].reward > 0.5".into()));
        assert_eq!(of("judge[previous].drops"), Some("judge[2].drops".into()));
        assert_eq!(of("judge[seed=1,previous]"), Some("judge[seed=1,2]".into()));
        for other in ["previously", "policy", "policy[1]", "policy[last]", "judge[x=previous]", "a.previous", "tag:x"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
