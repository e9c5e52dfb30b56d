//! A model's answers to the problems, and what the verifiers say.

use crate::{Config, Form};
use smelt_checkpoint::{Loaded, fault, with_system};
use smelt_generate::{Completion, Drafts, Finish, Generator, Request, Sampling};
use smelt_kernels::{Backend, random};
use smelt_stage::Error;
use smelt_stage::kinds::{Prompt, Sample};
use smelt_text::Tokenizer;
use smelt_verify::{Score, Verifier};
use std::collections::BTreeMap;

/// One value per problem and metric, in the order of the problems: what paired differences are made of.
pub struct Judged {
    pub per_problem: BTreeMap<String, Vec<f64>>,
    /// The greedy answers as sample 0, the drawn ones after them.
    pub samples: Vec<Sample>,
    pub drafts: Drafts,
}

pub fn judge(
    config: &Config,
    form: Form,
    loaded: &Loaded,
    prompts: &[Prompt],
    backend: &dyn Backend,
) -> Result<Judged, Error> {
    let asker = Asker::new(config, form, loaded)?;
    // every answer is the same however many are drawn at once; a guess pays where few are
    let generator = Generator {
        tokenizer: Some(&asker.tokenizer),
        speculates: config.speculate,
        ..Generator::new(&loaded.model, &loaded.params, backend, if config.speculate { 1 } else { 128 })
    };
    let mut judged = Judged { per_problem: BTreeMap::new(), samples: Vec::new(), drafts: Drafts::default() };

    let greedy: Vec<Request> = prompts.iter().map(|row| asker.request(row, 0.0, 0)).collect::<Result<_, _>>()?;
    let completions = judged.run(&generator, &greedy)?;
    for (row, completion) in prompts.iter().zip(completions) {
        let length = completion.tokens.len() as f64;
        let score = asker.score(row, completion, 0, &mut judged.samples)?;
        judged.push("exact_match", flag(score.right));
        judged.push("tokens_per_answer", length);
    }

    let k = config.samples;
    if k == 0 {
        return Ok(judged);
    }
    let count = if config.sampled_prompts == 0 { prompts.len() } else { config.sampled_prompts.min(prompts.len()) };
    let mut requests = Vec::with_capacity(count * k);
    for (i, row) in prompts[..count].iter().enumerate() {
        // the same seeds for every model: what differs is the model
        let seed = |sample: usize| random::bits(config.seed, i as u64, sample as u64);
        requests.extend(
            (0..k).map(|sample| asker.request(row, config.temperature, seed(sample))).collect::<Result<Vec<_>, _>>()?,
        );
    }
    let completions = judged.run(&generator, &requests)?;
    for (row, completions) in prompts.iter().zip(completions.chunks(k)) {
        let (mut right, mut steps) = (0.0, 0.0);
        for (sample, completion) in completions.iter().enumerate() {
            let score = asker.score(row, completion.clone(), sample as u32 + 1, &mut judged.samples)?;
            right += flag(score.right);
            steps += flag(score.every_step);
        }
        judged.push(&format!("avg@{k}"), right / k as f64);
        judged.push(&format!("pass@{k}"), flag(right > 0.0));
        judged.push(&format!("every_step@{k}"), steps / k as f64);
    }
    Ok(judged)
}

impl Judged {
    fn run(&mut self, generator: &Generator, requests: &[Request]) -> Result<Vec<Completion>, Error> {
        let mut completions = vec![None; requests.len()];
        let drafts = generator.run_with(requests, |i, completion| completions[i] = Some(completion)).map_err(fault)?;
        self.drafts.offered += drafts.offered;
        self.drafts.accepted += drafts.accepted;
        Ok(completions.into_iter().map(|completion| completion.expect("every request ends")).collect())
    }

    fn push(&mut self, metric: &str, value: f64) {
        self.per_problem.entry(metric.into()).or_default().push(value);
    }
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// How one model is asked and heard.
struct Asker<'a> {
    config: &'a Config,
    form: Form,
    chat: Option<smelt_text::Chat>,
    tokenizer: Tokenizer,
    stop: Vec<u32>,
    stop_strings: Vec<String>,
}

impl<'a> Asker<'a> {
    fn new(config: &'a Config, form: Form, loaded: &Loaded) -> Result<Self, Error> {
        let tokenizer = loaded.text.tokenizer()?;
        let mut stop_strings = config.stop.clone();
        if form == Form::Plain {
            stop_strings.push("\n".into());
        }
        let chat = if form == Form::Plain { None } else { Some(loaded.chat()?) };
        let mut stop = vec![tokenizer.eos().map_err(fault)?];
        if let Some(chat) = &chat {
            stop.push(chat.stop().map_err(fault)?);
        }
        Ok(Self { config, form, chat, tokenizer, stop, stop_strings })
    }

    fn request(&self, row: &Prompt, temperature: f64, seed: u64) -> Result<Request, Error> {
        let prompt = match &self.chat {
            Some(chat) => {
                let system = (self.form == Form::System).then_some(self.config.system.as_str());
                chat.prompt(&with_system(&row.messages, system)).map_err(fault)?
            }
            None => {
                let user = row.messages.iter().filter(|message| message.role == "user");
                let text: String = user.map(|message| format!("{};", message.content)).collect();
                let bos = self.tokenizer.bos().map_err(fault)?;
                [vec![bos], self.tokenizer.encode(&text).map_err(fault)?].concat()
            }
        };
        let sampling = Sampling {
            temperature,
            max_tokens: self.config.max_tokens,
            stop: self.stop.clone(),
            stop_strings: self.stop_strings.clone(),
            ..Sampling::default()
        };
        Ok(Request { prompt, seed, sampling })
    }

    /// An answer that was cut off is not right, whatever stands at its end.
    fn score(&self, row: &Prompt, answer: Completion, place: u32, samples: &mut Vec<Sample>) -> Result<Score, Error> {
        let text = answer.text(&self.tokenizer).map_err(fault)?;
        let verifier: Verifier = row.verifier.parse().map_err(fault)?;
        let score = verifier.score(&row.answer, text.trim_end()).ok_or_else(|| {
            Error::data(format!("prompt `{}` cannot be scored: its answer is `{}`", row.id, row.answer))
        })?;
        let is_whole = answer.finish == Finish::Stop;
        let score = Score { right: score.right && is_whole, every_step: score.every_step && is_whole, ..score };
        samples.push(Sample {
            prompt: row.id.clone(),
            sample: place,
            completion: text,
            ids: answer.tokens,
            logp: answer.logp.iter().map(|&x| x as f32).collect(),
            reward: Some(flag(score.right)),
            finish: if is_whole { "stop" } else { "length" }.into(),
        });
        Ok(score)
    }
}
