//! Benchmarks for tests: stages that write what their config says.

#![allow(dead_code, reason = "every test takes what it needs")]

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_stage::kinds::{Documents, Message, Preference, Preferences, Prompt, Prompts};
use smelt_stage::{Context, Error, Stage};

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct FeedConfig {
    /// Id, question, answer.
    #[serde(default)]
    prompts: Vec<[String; 3]>,
    /// Id, question, chosen, rejected.
    #[serde(default)]
    preferences: Vec<[String; 4]>,
}

smelt_stage::inputs! { pub(crate) struct NoInputs {} }
smelt_stage::outputs! { pub(crate) struct Fed { prompts: Port<Prompts>, preferences: Port<Preferences> } }

/// Writes the problems of its config, each behind the same system message.
pub(crate) struct Feed;

fn asked(question: &str) -> Vec<Message> {
    let system = "You know the harbour and all that belongs to it; think step by step before you answer a question.";
    vec![Message::new("system", system), Message::new("user", question)]
}

impl Stage for Feed {
    const NAME: &'static str = "feed_problems";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Writes the problems of its config";
    type Config = FeedConfig;
    type Inputs = NoInputs;
    type Outputs = Fed;

    fn run(config: FeedConfig, _inputs: NoInputs, out: Fed, cx: &Context) -> Result<(), Error> {
        cx.single(|unit| {
            for [id, question, answer] in &config.prompts {
                unit.count_derived(1);
                let (id, answer) = (id.clone(), answer.clone());
                unit.keep(&out.prompts, Prompt { id, messages: asked(question), answer, verifier: "{}".into() })?;
            }
            for [id, question, chosen, rejected] in &config.preferences {
                unit.count_derived(1);
                let (id, chosen, rejected) = (id.clone(), chosen.clone(), rejected.clone());
                let messages = asked(question);
                unit.keep(&out.preferences, Preference { id, messages, chosen, rejected, margin: None, fault: None })?;
            }
            Ok(())
        })
    }
}

smelt_stage::outputs! { pub(crate) struct RawOut { documents: Port<Documents> } }

#[derive(Serialize, Deserialize, JsonSchema)]
pub(crate) struct Nothing {}

/// Writes documents that have no text.
pub(crate) struct Raw;

impl Stage for Raw {
    const NAME: &'static str = "raw";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Writes documents that have no text";
    type Config = Nothing;
    type Inputs = NoInputs;
    type Outputs = RawOut;

    fn run(_config: Nothing, _inputs: NoInputs, out: RawOut, cx: &Context) -> Result<(), Error> {
        use arrow::array::{ArrayRef, RecordBatch, StringArray};
        use parquet::arrow::ArrowWriter;
        let ids = std::sync::Arc::new(StringArray::from(vec!["a"])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("id", ids)]).map_err(Error::from)?;
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None)?;
        writer.write(&batch)?;
        let bytes = writer.into_inner()?;
        cx.single(|unit| unit.put(&out.documents, "00000.parquet", &bytes))
    }
}
