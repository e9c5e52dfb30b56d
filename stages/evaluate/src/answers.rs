//! A model's answers to the problems, and what the verifiers say.

use crate::{Config, Form};
use smelt_answer::{Answer, Asker, Drafts, Prompting, Question};
use smelt_checkpoint::Loaded;
use smelt_kernels::{Backend, random};
use smelt_stage::Error;
use smelt_stage::kinds::{Prompt, Sample};
use std::collections::BTreeMap;

/// One value per problem and metric, in the order of the problems: what paired differences are made of.
#[derive(Default)]
pub(crate) struct Judged {
    pub per_problem: BTreeMap<String, Vec<f64>>,
    /// The greedy answers as sample 0, the drawn ones after them; rewarded 1 when right, else 0.
    pub samples: Vec<Sample>,
    pub drafts: Drafts,
}

/// How model `i` is asked.
pub(crate) fn prompting(config: &Config, i: usize) -> Prompting<'_> {
    match config.forms.get(i).copied().unwrap_or(Form::Chat) {
        Form::Plain => Prompting::Plain,
        Form::Chat => Prompting::Chat { system: None },
        Form::System => Prompting::Chat { system: Some(&config.system) },
    }
}

pub(crate) fn judge(
    config: &Config,
    form: Prompting,
    loaded: &Loaded,
    prompts: &[Prompt],
    backend: &dyn Backend,
) -> Result<Judged, Error> {
    let mut asker = Asker::new(loaded, backend, form, config.max_tokens, &config.stop)?;
    if config.speculate {
        (asker.speculates, asker.concurrency) = (true, 1); // a draft pays where few answers are drawn at once
    }
    let mut judged = Judged::default();

    let greedy = |prompt| Question { prompt, sample: 0, seed: 0, temperature: 0.0 };
    let questions: Vec<Question> = prompts.iter().map(greedy).collect();
    for (row, answer) in prompts.iter().zip(judged.ask(&asker, loaded, &questions)?) {
        judged.push("exact_match", flag(answer.judged(row)?.is_right));
        judged.push("tokens_per_answer", answer.ids.len() as f64);
        judged.samples.push(answer.into_sample());
    }

    let k = config.samples;
    if k == 0 {
        return Ok(judged);
    }
    let count = if config.sampled_prompts == 0 { prompts.len() } else { config.sampled_prompts.min(prompts.len()) };
    let question = |(i, prompt), sample| {
        // the same seeds for every model: what differs is the model
        let seed = random::bits(config.seed, i as u64, sample as u64);
        Question { prompt, sample: sample as u32 + 1, seed, temperature: config.temperature }
    };
    let rows = prompts[..count].iter().enumerate();
    let questions: Vec<Question> = rows.flat_map(|row| (0..k).map(move |sample| question(row, sample))).collect();
    let mut answers = judged.ask(&asker, loaded, &questions)?.into_iter();
    for row in &prompts[..count] {
        let (mut right, mut steps) = (0.0, 0.0);
        for answer in answers.by_ref().take(k) {
            let verdict = answer.judged(row)?;
            right += flag(verdict.is_right);
            steps += flag(verdict.is_right_throughout);
            judged.samples.push(answer.into_sample());
        }
        judged.push(&format!("avg@{k}"), right / k as f64);
        judged.push(&format!("pass@{k}"), flag(right > 0.0));
        judged.push(&format!("every_step@{k}"), steps / k as f64);
    }
    Ok(judged)
}

impl Judged {
    fn ask(&mut self, asker: &Asker, loaded: &Loaded, questions: &[Question]) -> Result<Vec<Answer>, Error> {
        let (answers, drafts) = asker.ask(&loaded.params, questions, 0.0)?;
        self.drafts.offered += drafts.offered;
        self.drafts.accepted += drafts.accepted;
        Ok(answers)
    }

    fn push(&mut self, metric: &str, value: f64) {
        self.per_problem.entry(metric.into()).or_default().push(value);
    }
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}
