//! The problems of benchmarks, whatever kind of artifact holds them.

use smelt_stage::kinds::{DocumentText, Documents, Message, Preferences, Prompts};
use smelt_stage::{Artifact, Error};

use crate::Inputs;

/// A text of a problem.
#[derive(Clone, Debug)]
pub struct Field {
    /// As in `hits`.
    pub name: &'static str,
    pub text: String,
    /// Whether it is sought as a whole when it is shorter than an n-gram; short answers stand in every document.
    pub is_question: bool,
}

/// What is sought of a benchmark.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Number of its benchmark.
    pub benchmark: usize,
    pub id: String,
    pub fields: Vec<Field>,
}

/// All benchmarks of a job: prompts first, then preferences, then documents.
#[derive(Debug)]
pub(crate) struct Benchmarks<'a> {
    inputs: &'a Inputs,
    names: Vec<String>,
}

impl<'a> Benchmarks<'a> {
    /// `names`: what they are called; empty takes the name of the input, numbered where it has several.
    pub(crate) fn new(inputs: &'a Inputs, names: &[String]) -> Self {
        let counts = [
            ("prompts", inputs.prompts.len()),
            ("preferences", inputs.preferences.len()),
            ("texts", inputs.texts.len()),
        ];
        let name = |port: &str, i: usize, n: usize| if n == 1 { port.to_owned() } else { format!("{port}[{i}]") };
        let own = counts.into_iter().flat_map(|(port, n)| (0..n).map(move |i| name(port, i, n)));
        Self { inputs, names: if names.is_empty() { own.collect() } else { names.to_vec() } }
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Gives every problem to `each`.
    pub(crate) fn read(&self, each: &mut Each) -> Result<(), Error> {
        let Inputs { prompts, preferences, texts, .. } = self.inputs;
        let mut number = 0..;
        let mut next = || number.next().unwrap_or_default();
        for artifact in prompts {
            of_prompts(next(), artifact, each)?;
        }
        for artifact in preferences {
            of_preferences(next(), artifact, each)?;
        }
        for artifact in texts {
            of_texts(next(), artifact, each)?;
        }
        Ok(())
    }
}

/// Takes a problem.
pub type Each<'a> = dyn FnMut(Problem) -> Result<(), Error> + 'a;

fn of_prompts(benchmark: usize, artifact: &Artifact<Prompts>, each: &mut Each) -> Result<(), Error> {
    artifact.read_all().try_for_each(|prompt| {
        let prompt = prompt?;
        each(Problem {
            benchmark,
            id: prompt.id,
            fields: vec![question(&prompt.messages), other("answer", prompt.answer)],
        })
    })
}

fn of_preferences(benchmark: usize, artifact: &Artifact<Preferences>, each: &mut Each) -> Result<(), Error> {
    artifact.read_all().try_for_each(|pair| {
        let pair = pair?;
        let answers = [other("chosen", pair.chosen), other("rejected", pair.rejected)];
        each(Problem {
            benchmark,
            id: pair.id,
            fields: [question(&pair.messages)].into_iter().chain(answers).collect(),
        })
    })
}

fn of_texts(benchmark: usize, artifact: &Artifact<Documents>, each: &mut Each) -> Result<(), Error> {
    artifact.view_all().try_for_each(|document| {
        let document: DocumentText = document?;
        let field = Field { name: "text", text: document.text, is_question: true };
        each(Problem { benchmark, id: document.id, fields: vec![field] })
    })
}

/// What is asked. A system message says how to answer, not what.
fn question(messages: &[Message]) -> Field {
    let asked: Vec<&str> = messages.iter().filter(|m| m.role != "system").map(|m| m.content.as_str()).collect();
    Field { name: "question", text: asked.join("\n"), is_question: true }
}

fn other(name: &'static str, text: String) -> Field {
    Field { name, text, is_question: false }
}
