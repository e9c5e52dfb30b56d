//! `problems`: problems whose answers can be checked, as questions, conversations and text.
//!
//! Reads nothing. Writes `prompts` (the problem, its answer, what judges an answer), `conversations` (the problem with
//! its plain answer or its worked solution) and `documents` (text to mix into pretraining). Test problems are a fixed
//! share of all problems, chosen by a hash of the problem itself. So no dataset of training problems, with any seed,
//! holds a test problem, and none of its solutions leads through one (after one step `3+4*2-1` leaves `7*2-1`, which is
//! itself a problem). The limit: answers of another model may still contain test problems, because a wrong step can
//! lead anywhere.

pub mod family;
pub mod make;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{Conversation, Conversations, Document, Documents, Message, Prompt, Prompts};
use smelt_stage::{Context, Error, Source, Stage, Unit};

use crate::family::{Exercise, Family};
use crate::make::Draw;

/// What the system prompt of worked solutions says.
pub const SYSTEM: &str = "Think step by step.";

/// Which problems, how many, and how they are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub seed: u64,
    /// Another number gives other problems under the same seed: use a different one in each job of a pipeline.
    pub stream: u64,
    pub family: Family,
    /// Sizes; one that is listed twice is drawn twice as often: operations of a chain, most digits of an addition,
    /// changes of an account.
    pub sizes: Vec<usize>,
    /// Largest number in accounts, at least 2.
    #[schemars(range(min = 2, max = 1_000_000))]
    pub largest: u64,
    /// Whether training problems or test problems are drawn.
    pub split: Split,
    /// Share of all problems that are test problems, in [0, 1); the same in every job of a pipeline, or they overlap.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub test_share: f64,
    /// Different problems written as `prompts`.
    #[schemars(range(max = 1_000_000_000))]
    pub prompts: usize,
    /// Different problems written as `conversations`.
    #[schemars(range(max = 1_000_000_000))]
    pub conversations: usize,
    /// What the assistant says in `conversations`.
    pub answers: Answers,
    /// Share of prompts and conversations that begin with the system prompt, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub system: f64,
    /// Share of the results in worked solutions of `conversations` that are replaced by random ones, in [0, 1]; the
    /// solution continues from the replaced result.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub wrong: f64,
    /// Characters written as `documents`.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub characters: usize,
    /// Minimum characters of one document, at least 1.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub document_characters: usize,
    /// Share of the characters of documents in single facts such as `3+4=7`, in [0, 1].
    #[schemars(range(min = 0.0, max = 1.0))]
    pub facts: f64,
    /// As `wrong`, in the worked solutions of documents.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub documents_wrong: f64,
}

/// Which side of the split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Test,
}

/// What the assistant says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answers {
    /// The plain answer: `3`.
    Short,
    /// The worked solution: `3+4=7*2;7*2=4`.
    Long,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            seed: 0,
            stream: 0,
            family: Family::Chain,
            sizes: vec![2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 6],
            largest: 20,
            split: Split::Train,
            test_share: 0.05,
            prompts: 0,
            conversations: 0,
            answers: Answers::Short,
            system: 0.0,
            wrong: 0.0,
            characters: 0,
            document_characters: 2000,
            facts: 0.35,
            documents_wrong: 0.1,
        }
    }
}

smelt_stage::inputs! { pub struct Inputs {} }
smelt_stage::outputs! {
    pub struct Outputs { prompts: Port<Prompts>, conversations: Port<Conversations>, documents: Port<Documents> }
}

#[derive(Debug)]
pub struct Problems;

impl Stage for Problems {
    const NAME: &'static str = "problems";
    const VERSION: u32 = 2; // training problems no longer lead through test problems
    const ABOUT: &'static str = "Makes problems whose answers can be checked";
    const ROWS: &'static str = "rows";
    type Config = Config;
    type Inputs = Inputs;
    type Outputs = Outputs;

    fn resolve(config: &mut Config, _inputs: &BTreeMap<String, usize>) -> Result<Vec<Source>, Error> {
        let largest_size = config.family.largest_size();
        if let Some(size) = config.sizes.iter().find(|size| !(1..=largest_size).contains(size)) {
            let what = format!("{size} is no size of `{}`, expected 1 to {largest_size}", config.family.name());
            return Err(Error::config("/sizes", what));
        }
        if config.sizes.is_empty() {
            return Err(Error::config("/sizes", "no sizes are given"));
        }
        if config.prompts == 0 && config.conversations == 0 && config.characters == 0 {
            return Err(
                Error::config("", "nothing is asked for").hint("set `prompts`, `conversations` or `characters`")
            );
        }
        let (all_facts, no_tests) = (config.facts == 1.0, config.test_share == 0.0);
        if config.split == Split::Test && no_tests
            || config.split == Split::Train && config.test_share == 1.0 && !all_facts
        {
            return Err(Error::config("/test_share", "no problem is on the side that `split` asks for"));
        }
        Ok(Vec::new())
    }

    fn run(config: Config, _inputs: Inputs, out: Outputs, cx: &Context) -> Result<(), Error> {
        cx.single(|unit| {
            write_prompts(&config, &out, unit)?;
            write_conversations(&config, &out, unit)?;
            write_documents(&config, &out, unit)
        })
    }
}

impl Config {
    fn draw(&self) -> Draw<'_> {
        Draw {
            family: self.family,
            sizes: &self.sizes,
            largest: self.largest,
            seed: self.seed,
            stream: self.stream,
            test_share: self.test_share,
            is_test: self.split == Split::Test,
        }
    }

    /// The start of every id and source: which problems these are.
    fn source(&self) -> String {
        let split = if self.split == Split::Test { "test" } else { "train" };
        format!("problems/{}/{split}", self.family.name())
    }

    fn distinct(&self, count: usize, field: &str) -> Result<Vec<Exercise>, Error> {
        self.draw().distinct(count).map_err(|e| Error::of(&e).field(&format!("/{field}")))
    }
}

fn messages(problem: &Exercise, with_system: bool) -> Vec<Message> {
    let system = with_system.then(|| Message::new("system", SYSTEM));
    system.into_iter().chain([Message::new("user", problem.text())]).collect()
}

fn write_prompts(config: &Config, out: &Outputs, unit: &mut Unit) -> Result<(), Error> {
    let mut rng = config.draw().side("prompts");
    for (i, problem) in config.distinct(config.prompts, "prompts")?.into_iter().enumerate() {
        unit.count_derived(1);
        let prompt = Prompt {
            id: format!("{}/{}/{}/{i}", config.source(), config.seed, config.stream),
            messages: messages(&problem, rng.chance(config.system)),
            answer: problem.answer(),
            verifier: problem.verifier().to_string(),
        };
        unit.keep(&out.prompts, prompt)?;
    }
    Ok(())
}

fn write_conversations(config: &Config, out: &Outputs, unit: &mut Unit) -> Result<(), Error> {
    let draw = config.draw();
    let mut rng = draw.side("conversations");
    for (i, problem) in config.distinct(config.conversations, "conversations")?.into_iter().enumerate() {
        unit.count_derived(1);
        let mut messages = messages(&problem, rng.chance(config.system));
        let (kind, answer) = match config.answers {
            Answers::Short => ("short", problem.answer()),
            Answers::Long => ("long", draw.solution(&problem, &mut rng, config.wrong)),
        };
        messages.push(Message::new("assistant", answer));
        let source = format!("{}/{kind}", config.source());
        let id = format!("{source}/{}/{}/{i}", config.seed, config.stream);
        unit.keep(&out.conversations, Conversation { id, messages, source, checkpoint: None })?;
    }
    Ok(())
}

fn write_documents(config: &Config, out: &Outputs, unit: &mut Unit) -> Result<(), Error> {
    if config.characters == 0 {
        return Ok(());
    }
    let draw = config.draw();
    let texts = draw.text(config.characters, config.document_characters.max(1), config.facts, config.documents_wrong);
    let texts = texts.map_err(|e| Error::of(&e).field("/characters"))?;
    let source = format!("{}/text", config.source());
    for (i, text) in texts.into_iter().enumerate() {
        unit.count_derived(1);
        let id = format!("{source}/{}/{}/{i}", config.seed, config.stream);
        unit.keep(&out.documents, Document::new(id, text, source.clone()))?;
    }
    Ok(())
}
