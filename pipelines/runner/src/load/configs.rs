//! The effective config of each job, as its stage resolves it.

use super::draft::{Draft, Input};
use super::shape::Schemas;
use super::typed::is_inherited;
use crate::diagnostic::{Diagnostic, Result};
use crate::programs::{Answer, Program};
use crate::yaml::Tree;
use indexmap::IndexMap;
use serde_json::{Map, Value};
use smelt_schemas::{Device, ExitCode, Pipeline, Problem, ResolveRequest, Resolved};
use smelt_store::Store;
use std::collections::{BTreeMap, HashMap};

/// A draft, by its place, and what its stage is asked.
type Asked = (usize, ResolveRequest);

/// The effective config of each draft. Jobs of one stage are asked for together, because a process for each of a
/// thousand instances takes longer than all the rest; stages are asked at the same time.
pub(super) fn resolve_configs(
    tree: &Tree,
    pipeline: &Pipeline,
    drafts: &[Draft],
    order: &[usize],
    programs: &HashMap<String, Program>,
    inputs: &[BTreeMap<String, Vec<Input>>],
    store: &Store,
) -> Result<Vec<Option<Resolved>>> {
    let mut schemas = Schemas::default();
    let mut groups: IndexMap<(&str, &[String]), Vec<Asked>> = IndexMap::new();
    for &i in order {
        let draft = &drafts[i];
        let program = &programs[&draft.text.stage];
        let mut config: Map<String, Value> = draft.text.config.clone();
        if program.description.takes_seed() && !config.contains_key("seed") {
            config.insert("seed".into(), pipeline.seed.into());
        }
        let config = Value::Object(config);
        schemas.check(tree, draft, &program.description.config, &config)?;
        check_stage(tree, draft, program)?;
        let counts = inputs[i].iter().map(|(port, list)| (port.clone(), list.len())).collect();
        let request = ResolveRequest { config, inputs: counts, store: Some(store.address().into()), vocabulary: None };
        groups.entry((&draft.text.stage, &draft.text.run.env)).or_default().push((i, request));
    }
    let mut answers: Vec<Option<Answer>> = drafts.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let asked: Vec<_> = groups
            .into_iter()
            .map(|((stage, env), group)| {
                let (places, requests): (Vec<usize>, Vec<ResolveRequest>) = group.into_iter().unzip();
                (places, scope.spawn(move || programs[stage].resolve_all(&requests, env)))
            })
            .collect();
        for (places, answer) in asked {
            let given = answer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            places.into_iter().zip(given).for_each(|(i, answer)| answers[i] = Some(answer));
        }
    });
    let mut resolved: Vec<Option<Resolved>> = drafts.iter().map(|_| None).collect();
    for &i in order {
        let answer = answers[i].take().expect("every draft was asked for");
        resolved[i] = Some(answer.map_err(|refused| refusal(tree, &drafts[i], refused))?);
    }
    Ok(resolved)
}

/// What a stage says against a config, with its place in the file.
fn refusal(tree: &Tree, draft: &Draft, refused: std::result::Result<(ExitCode, Problem), Diagnostic>) -> Diagnostic {
    match refused {
        Ok((code, problem)) => {
            let field = problem.field.unwrap_or_default();
            let dotted = field.trim_start_matches('/').replace('/', ".");
            let shown = if dotted.is_empty() { String::new() } else { format!(", `config.{dotted}`") };
            let error = Diagnostic::new(code, format!("job `{}`{shown}: {}", draft.name, problem.message))
                .at(draft.place(tree, &format!("/config{field}")));
            if let Some(hint) = problem.hint { error.hint(hint) } else { error }
        }
        Err(bug) => bug.at(tree.key_place(&format!("/jobs/{}", draft.base))),
    }
}

/// Takes away what the pipeline's `run:` says for all jobs and the stage of this one cannot do.
pub(super) fn leave_out(tree: &Tree, draft: &mut Draft, program: &Program) {
    let inherits = |option: &str| is_inherited(tree, &draft.base, option);
    let (device, gpus) = (inherits("device"), inherits("gpus"));
    let (workers, nodes) = (inherits("workers"), inherits("nodes"));
    let (about, run) = (&program.description, &mut draft.text.run);
    if !about.devices && device {
        run.device = Device::Cpu;
    }
    if !about.devices && gpus {
        run.gpus = None;
    }
    if !about.spreads && workers {
        run.workers = None;
    }
    if !about.ranks && nodes {
        run.nodes = None;
    }
}

/// What a job may not say under `run:` because of its stage.
fn check_stage(tree: &Tree, draft: &Draft, program: &Program) -> Result<()> {
    let (about, run) = (&program.description, &draft.text.run);
    let stage = &about.name;
    let refuse = |option: &str, what: String, hint: &str| {
        let place = draft.place(tree, &format!("/run/{option}"));
        Err(Diagnostic::pipeline(format!("job `{}`: {what}", draft.name)).at(place).hint(hint))
    };
    if run.device != Device::Cpu && !about.devices {
        let what = format!("`{stage}` has nothing to do on {}", run.device);
        return refuse("device", what, "only stages with a model compute on a GPU: leave `device` out here");
    }
    if run.workers.is_some_and(|workers| workers > 1) && !about.spreads {
        return refuse(
            "workers",
            format!("`{stage}` cannot be spread over several workers"),
            "leave `workers` out here: `cores` says how many cores its one process may use",
        );
    }
    if run.nodes.is_some_and(|nodes| nodes > 1) && !about.ranks {
        let what = format!("`{stage}` does not compute on several nodes together");
        return refuse(
            "nodes",
            what,
            "leave `nodes` out here; stages that can say `ranks` when they describe themselves",
        );
    }
    Ok(())
}
