//! From drafts to jobs: what each input means, and an order in which every job comes after its inputs.

use super::condition::Condition;
use super::configs::{leave_out, resolve_configs};
use super::draft::{Draft, Input, Reading};
use super::inputs::{main_port, resolve_reference, unknown_port};
use super::repeat::{ITERATION, PREVIOUS};
use super::units::seconds;
use super::{Instance, Limits};
use crate::diagnostic::{Diagnostic, Result};
use crate::programs::Program;
use crate::yaml::Tree;
use smelt_schemas::{Arity, Pipeline, parse_bytes};
use smelt_store::Store;
use std::collections::{BTreeMap, HashMap};

/// Below this, buffers of files take more than what is sorted.
const LEAST_MEMORY: (&str, u64) = ("64MiB", 64 << 20);

pub(super) fn connect(
    tree: &Tree,
    pipeline: &Pipeline,
    mut drafts: Vec<Draft>,
    programs: &HashMap<String, Program>,
    store: &Store,
) -> Result<Vec<Instance>> {
    for draft in &mut drafts {
        let program = &programs[&draft.text.stage];
        leave_out(tree, draft, program);
    }
    // 1. What each reference means: other drafts, or committed artifacts.
    let mut all_inputs: Vec<BTreeMap<String, Vec<Input>>> = Vec::new();
    for draft in &drafts {
        let program = &programs[&draft.text.stage];
        let mut inputs: BTreeMap<String, Vec<Input>> = BTreeMap::new();
        for Reading { port, references, pointer } in &draft.inputs {
            let at = |e: Diagnostic| e.at(draft.place(tree, pointer));
            let spec = match port {
                Some(name) => {
                    program.description.input(name).ok_or_else(|| unknown_port(draft, program, name)).map_err(at)?
                }
                None => main_port(draft, program).map_err(at)?,
            };
            for reference in references {
                let found = resolve_reference(reference, draft, spec, &drafts, programs, store).map_err(at)?;
                inputs.entry(spec.name.clone()).or_default().extend(found);
            }
            let n = inputs.get(&spec.name).map_or(0, Vec::len);
            if n > 1 && matches!(spec.arity, Arity::One | Arity::Optional) {
                return Err(at(Diagnostic::pipeline(format!(
                    "job `{}`: input `{}` takes one artifact, {n} are given",
                    draft.name, spec.name
                ))));
            }
        }
        for spec in &program.description.inputs {
            if matches!(spec.arity, Arity::One | Arity::List) && !inputs.contains_key(&spec.name) {
                let error = Diagnostic::pipeline(format!(
                    "job `{}` has no input `{}`; stage `{}` needs {} there",
                    draft.name, spec.name, draft.text.stage, spec.kind
                ));
                return Err(error
                    .at(tree.key_place(&format!("/jobs/{}", draft.base)))
                    .hint(format!("add `input: {{ {}: … }}`", spec.name)));
            }
        }
        all_inputs.push(inputs);
    }
    let mut conditions = Vec::new();
    for draft in &drafts {
        let read = draft.when.iter().map(|(n, text)| {
            let at = |e: Diagnostic| e.at(draft.place(tree, &format!("/when/{n}")));
            Condition::parse(text, draft, &drafts).map_err(at)
        });
        conditions.push(read.collect::<Result<Vec<_>>>()?);
    }
    // 2. An order in which every job comes after its inputs; ties keep the file's order.
    let order = sort(tree, &drafts, &all_inputs, &conditions)?;
    let place_of: HashMap<usize, usize> = order.iter().enumerate().map(|(new, &old)| (old, new)).collect();
    // 3. Configs: checked by the schema first, because its errors name the field, then by the stage.
    let mut resolved = resolve_configs(tree, pipeline, &drafts, &order, programs, &all_inputs, store)?;
    let mut drafts: Vec<Option<Draft>> = drafts.into_iter().map(Some).collect();
    let mut jobs = Vec::new();
    for &old in &order {
        let draft = drafts[old].take().expect("each draft is taken once");
        let program = programs[&draft.text.stage].clone();
        let resolved = resolved[old].take().expect("each config is resolved once");
        let mut inputs = std::mem::take(&mut all_inputs[old]);
        for input in inputs.values_mut().flatten() {
            if let Input::Job { job, .. } = input {
                *job = place_of[job];
            }
        }
        let iteration = draft.iteration.map(|number| (ITERATION.to_owned(), number.into()));
        let mut when = std::mem::take(&mut conditions[old]);
        when.iter_mut().flat_map(|condition| &mut condition.jobs).for_each(|job| *job = place_of[job]);
        jobs.push(Instance {
            place: tree.key_place(&format!("/jobs/{}", draft.base)),
            limits: limits(tree, &draft)?,
            name: draft.name,
            base: draft.base,
            axes: draft.axes.into_iter().chain(iteration).collect(),
            program,
            inputs,
            when,
            resolved,
            run: draft.text.run,
        });
    }
    Ok(jobs)
}

/// The times and amounts of `run:`.
fn limits(tree: &Tree, draft: &Draft) -> Result<Limits> {
    let run = &draft.text.run;
    let refused = |what: String, field: &str, hint: &str| {
        Diagnostic::pipeline(what).at(draft.place(tree, &format!("/run/{field}"))).hint(hint)
    };
    let time = |field: &str, given: &Option<String>| {
        let read = |text: &String| {
            seconds(text).ok_or_else(|| refused(format!("`{text}` is no time"), field, "write `90s`, `30m` or `2h`"))
        };
        given.as_ref().map(read).transpose()
    };
    let memory = run.memory.as_deref().map(|m| {
        let what = || format!("`{m}` is no memory to work in, expected {} or more", LEAST_MEMORY.0);
        let least = |bytes: &u64| *bytes >= LEAST_MEMORY.1;
        parse_bytes(m).filter(least).ok_or_else(|| refused(what(), "memory", "write `512MiB` or `4GiB`"))
    });
    Ok(Limits {
        timeout: time("timeout", &run.timeout)?,
        stretch: time("time", &run.time)?,
        grace: time("grace", &run.grace)?,
        memory: memory.transpose()?,
    })
}

fn sort(
    tree: &Tree,
    drafts: &[Draft],
    inputs: &[BTreeMap<String, Vec<Input>>],
    conditions: &[Vec<Condition>],
) -> Result<Vec<usize>> {
    let needs = |i: usize| {
        let read =
            inputs[i].values().flatten().filter_map(|x| if let Input::Job { job, .. } = x { Some(*job) } else { None });
        read.chain(conditions[i].iter().flat_map(|condition| condition.jobs.iter().copied()))
    };
    let (mut done, mut order) = (vec![false; drafts.len()], Vec::new());
    while order.len() < drafts.len() {
        let Some(next) = (0..drafts.len()).find(|&i| !done[i] && needs(i).all(|n| done[n])) else {
            // Every open job has an open input: following them closes a circle.
            let mut path = vec![(0..drafts.len()).find(|&i| !done[i]).expect("some job is open")];
            loop {
                let next = needs(path[path.len() - 1]).find(|&n| !done[n]).expect("an open job has an open input");
                if let Some(start) = path.iter().position(|&p| p == next) {
                    let mut names: Vec<&str> = path[start..].iter().map(|&i| drafts[i].name.as_str()).collect();
                    names.push(names[0]);
                    names.reverse();
                    let place = drafts[next].place(tree, "/input");
                    let repeated = path[start..].iter().map(|&i| &drafts[i]).find(|draft| draft.iteration.is_some());
                    let hint = match repeated {
                        Some(Draft { base, .. }) => format!("`{base}[{PREVIOUS}]` is the iteration before"),
                        None => "let one of them read something else".into(),
                    };
                    return Err(Diagnostic::pipeline(format!("jobs wait for each other: {}", names.join(" -> ")))
                        .at(place)
                        .hint(hint));
                }
                path.push(next);
            }
        };
        done[next] = true;
        order.push(next);
    }
    Ok(order)
}
