//! How a model is asked and heard.

use crate::{Unusable, Verdict};
use smelt_checkpoint::{Loaded, TextFiles, fault, with_system};
use smelt_generate::{Drafts, Finish, Generator, Request, Sampling};
use smelt_kernels::Backend;
use smelt_model::{Model, Params, Precision};
use smelt_stage::Error;
use smelt_stage::kinds::{Extra, Prompt, Sample};
use smelt_text::{Chat, Tokenizer};
use std::fmt;

/// How a problem is put to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompting<'a> {
    /// `problem;` as text that goes on to the end of its line: for models without a chat template.
    Plain,
    /// By the chat template, with this system prompt or none.
    Chat { system: Option<&'a str> },
}

/// One model with its own words, and how it is asked.
pub struct Asker<'a> {
    model: &'a Model,
    backend: &'a dyn Backend,
    form: Prompting<'a>,
    chat: Option<Chat>,
    tokenizer: Tokenizer,
    sampling: Sampling,
    /// Questions that are answered at once; no answer depends on it.
    pub concurrency: usize,
    /// Let the MTP module draft tokens: the answers are the same.
    pub speculates: bool,
}

/// The `precision` of a stage that asks: an answer is a function of its own question alone.
pub fn expect_by_row(precision: Precision) -> Result<(), Error> {
    let Some(setting) = precision.by_company() else { return Ok(()) };
    let what = format!("with `{setting}` an answer depends on the others that are computed beside it");
    Err(Error::config("/precision", what).hint("leave that setting out: this stage asks a model"))
}

/// One answer that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub prompt: &'a Prompt,
    /// Counts the answers to one prompt.
    pub sample: u32,
    /// The answer is a function of model, prompt, temperature and this.
    pub seed: u64,
    /// 0 takes the most probable token.
    pub temperature: f64,
}

/// What a model answered, judged.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Id of the prompt.
    pub prompt: String,
    pub sample: u32,
    /// What the model read.
    pub prompt_ids: Vec<u32>,
    /// What it wrote, its end included.
    pub ids: Vec<u32>,
    /// Of each id, by the model that wrote it, at the temperature that it was drawn at.
    pub logp: Vec<f64>,
    /// Without special tokens, up to the stop string.
    pub text: String,
    /// It ended by itself, not by `max_tokens` or the model's last position.
    pub is_whole: bool,
    /// None where the problem cannot be scored.
    pub verdict: Option<Verdict>,
    /// None where the problem cannot be scored.
    pub reward: Option<f64>,
}

impl fmt::Debug for Asker<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { form, sampling, .. } = self;
        f.debug_struct("Asker").field("form", form).field("sampling", sampling).finish_non_exhaustive()
    }
}

impl<'a> Asker<'a> {
    /// `stop`: texts that end an answer besides the model's own end; no part of it.
    pub fn new(
        loaded: &'a Loaded,
        backend: &'a dyn Backend,
        form: Prompting<'a>,
        max_tokens: usize,
        stop: &[String],
    ) -> Result<Self, Error> {
        Self::of(&loaded.model, &loaded.text, backend, form, max_tokens, stop)
    }

    /// The same for a model whose parameters move, which [`ask`](Self::ask) is given each time.
    pub fn of(
        model: &'a Model,
        text: &TextFiles,
        backend: &'a dyn Backend,
        form: Prompting<'a>,
        max_tokens: usize,
        stop: &[String],
    ) -> Result<Self, Error> {
        let tokenizer = text.tokenizer()?;
        let chat = if form == Prompting::Plain { None } else { Some(text.chat()?) };
        let mut ends = text.ends(model.config())?;
        if ends.is_empty() {
            ends.push(tokenizer.eos().map_err(fault)?); // its error says that there is none
        }
        let mut stop_strings = stop.to_vec();
        match &chat {
            Some(chat) => ends.push(chat.stop().map_err(fault)?),
            None => stop_strings.push("\n".into()),
        }
        let sampling = Sampling { max_tokens, stop: ends, stop_strings, ..Sampling::default() };
        Ok(Self { model, backend, form, chat, tokenizer, sampling, concurrency: 128, speculates: false })
    }

    fn prompt_ids(&self, row: &Prompt) -> Result<Vec<u32>, smelt_text::Error> {
        if let (Some(chat), Prompting::Chat { system }) = (&self.chat, self.form) {
            return chat.prompt(&with_system(&row.messages, system));
        }
        let user = row.messages.iter().filter(|message| message.role == "user");
        let text: String = user.map(|message| format!("{};", message.content)).collect();
        let bos = self.tokenizer.bos()?;
        Ok([vec![bos], self.tokenizer.encode(&text)?].concat())
    }

    /// Why a prompt cannot be asked and judged; None when it can.
    pub fn objection(&self, row: &Prompt) -> Result<Option<Unusable>, Error> {
        let positions = self.model.config().max_position_embeddings;
        Ok(match self.prompt_ids(row) {
            Err(error) => Some(Unusable::of_chat(&row.id, error)?),
            // an answer needs a position of its own
            Ok(ids) if ids.len() >= positions => Some(Unusable::too_long(&row.id, ids.len(), positions)),
            Ok(_) => Verdict::objection(row),
        })
    }

    /// The prompts that can be asked and judged, in order, and the others.
    pub fn usable(
        &self,
        prompts: impl IntoIterator<Item = Result<Prompt, Error>>,
    ) -> Result<(Vec<Prompt>, Vec<Unusable>), Error> {
        let (mut usable, mut unusable) = (Vec::new(), Vec::new());
        for row in prompts {
            let row = row?;
            match self.objection(&row)? {
                None => usable.push(row),
                Some(objection) => unusable.push(objection),
            }
        }
        Ok((usable, unusable))
    }

    /// Tokens of the longest prompt and the longest answer to it, at most as many as the model has positions.
    pub fn longest(&self, prompts: &[Prompt]) -> Result<usize, Error> {
        let lengths = prompts.iter().map(|row| self.prompt_ids(row).map(|ids| ids.len()));
        let longest = lengths.reduce(|a, b| Ok(a?.max(b?))).transpose().map_err(fault)?.unwrap_or(0);
        Ok((longest + self.sampling.max_tokens).min(self.model.config().max_position_embeddings))
    }

    /// Stop strings that no answer of this model can hold, each with the reason.
    pub fn idle_stop_strings(&self) -> Vec<String> {
        let told = |stop: &String| {
            let why = if let Some(token) = self.tokenizer.spelled(stop) {
                format!("it spells the special token `{token}`, and special tokens are no part of an answer's text")
            } else if self.tokenizer.encode(stop).is_ok_and(|ids| ids.is_empty()) {
                "it is empty".to_owned()
            } else if self.tokenizer.encode(stop).and_then(|ids| self.tokenizer.decode(&ids)).is_ok_and(|t| t != *stop)
            {
                "the tokenizer cannot write it".to_owned()
            } else {
                return None;
            };
            Some(format!("the stop string `{stop}` can never match: {why}"))
        };
        self.sampling.stop_strings.iter().filter_map(told).collect()
    }

    /// Answers in the order of the questions, and how speculation went. `partial_credit` as in [`Verdict::reward`].
    pub fn ask(
        &self,
        params: &Params,
        questions: &[Question],
        partial_credit: f64,
    ) -> Result<(Vec<Answer>, Drafts), Error> {
        let mut requests: Vec<Request> = Vec::with_capacity(questions.len());
        for (i, question) in questions.iter().enumerate() {
            let prompt =
                match i.checked_sub(1).filter(|&before| std::ptr::eq(questions[before].prompt, question.prompt)) {
                    Some(before) => requests[before].prompt.clone(),
                    None => self.prompt_ids(question.prompt).map_err(fault)?,
                };
            let sampling = Sampling { temperature: question.temperature, ..self.sampling.clone() };
            requests.push(Request { prompt, seed: question.seed, sampling });
        }
        let generator = Generator {
            tokenizer: Some(&self.tokenizer),
            speculates: self.speculates,
            ..Generator::new(self.model, params, self.backend, self.concurrency)
        };
        let (completions, drafts) = generator.run_counting(&requests).map_err(fault)?;
        let mut answers = Vec::with_capacity(requests.len());
        for ((question, request), completion) in questions.iter().zip(requests).zip(completions) {
            let text = completion.text(&self.tokenizer).map_err(fault)?;
            let is_whole = completion.finish == Finish::Stop;
            let verdict = Verdict::of(question.prompt, &text, is_whole)?;
            answers.push(Answer {
                prompt: question.prompt.id.clone(),
                sample: question.sample,
                prompt_ids: request.prompt,
                ids: completion.tokens,
                logp: completion.logp,
                text,
                is_whole,
                verdict,
                reward: verdict.map(|verdict| verdict.reward(partial_credit)),
            });
        }
        Ok((answers, drafts))
    }
}

impl Answer {
    /// The verdict of an answer to `row`, for a stage that has no use for problems that cannot be scored.
    pub fn judged(&self, row: &Prompt) -> Result<Verdict, Error> {
        self.verdict
            .ok_or_else(|| Error::data(format!("prompt `{}` cannot be scored: its answer is `{}`", row.id, row.answer)))
    }

    /// The answer as a row of `samples`.
    pub fn into_sample(self) -> Sample {
        Sample {
            prompt: self.prompt,
            sample: self.sample,
            completion: self.text,
            ids: self.ids,
            logp: self.logp.iter().map(|&x| x as f32).collect(),
            reward: self.reward,
            finish: if self.is_whole { "stop" } else { "length" }.into(),
            extra: Extra::default(),
        }
    }
}
