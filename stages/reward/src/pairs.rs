//! Where pairs come from.

use crate::Config;
use smelt_checkpoint::{Loaded, fault, with_system};
use smelt_generate::{Completion, Finish, Generator, Request, Sampling};
use smelt_kernels::{Backend, random};
use smelt_stage::Error;
use smelt_stage::kinds::{Preference, Prompt};
use smelt_text::Chat;
use smelt_train::Example;
use smelt_verify::chain::Chain;
use smelt_verify::corrupt::{Corruption, corrupt};
use smelt_verify::{Rng, Verifier};

/// Answers drawn per prompt in search of a right and a wrong one.
const DRAWS: usize = 6;
/// Prompts asked at once.
const ASKED: usize = 64;

pub struct Pairs {
    pub train: Vec<Preference>,
    pub validation: Vec<Preference>,
}

impl Pairs {
    /// Prompts are used in order, each once: held-out pairs have problems of their own.
    pub fn make(
        config: &Config,
        prompts: &[Prompt],
        chat: &Chat,
        sampler: Option<&Loaded>,
        backend: &dyn Backend,
    ) -> Result<Self, Error> {
        let mut next = 0;
        let mut spoilt = |count: usize, name: &str| -> Result<Vec<Preference>, Error> {
            let mut pairs = Vec::with_capacity(count);
            while pairs.len() < count {
                let row = prompts.get(next).ok_or_else(|| too_few(prompts.len(), config.pairs + config.held_out))?;
                let kind = Corruption::MIX[pairs.len() % Corruption::MIX.len()];
                let mut rng = Rng::of(config.seed, name, next as u64);
                next += 1;
                pairs.extend(spoil(row, kind, &mut rng)?);
            }
            Ok(pairs)
        };
        let mut validation = spoilt(config.held_out, "held-out pairs")?;
        let mut train = spoilt(config.pairs, "pairs")?;
        if let Some(sampler) = sampler {
            for pairs in [&mut validation, &mut train] {
                let wanted = pairs.len() + config.sampled;
                while pairs.len() < wanted {
                    let rows = &prompts[next.min(prompts.len())..prompts.len().min(next + ASKED)];
                    if rows.is_empty() {
                        return Err(too_few(prompts.len(), next + ASKED));
                    }
                    pairs.extend(sampled(config, rows, next, chat, sampler, backend)?);
                    next += rows.len();
                }
                pairs.truncate(wanted);
            }
        }
        Ok(Self { train, validation })
    }

    /// Chosen and rejected by turns, as the scorer reads them.
    pub fn examples<'a>(
        &self,
        chat: &Chat,
        system: &str,
        pairs: impl Iterator<Item = &'a Preference>,
    ) -> Result<Vec<Example>, Error> {
        let (mut examples, stop) = (Vec::new(), chat.stop().map_err(fault)?);
        for row in pairs {
            let prompt = chat.prompt(&with_system(&row.messages, Some(system))).map_err(fault)?;
            for answer in [&row.chosen, &row.rejected] {
                let mut answer = chat.tokenizer.encode(answer).map_err(fault)?;
                answer.push(stop);
                examples.push(Example::new(&prompt, &answer));
            }
        }
        Ok(examples)
    }
}

fn too_few(found: usize, wanted: usize) -> Error {
    Error::data(format!("{found} prompts are too few for these pairs, about {wanted} are needed"))
        .hint("ask `problems` for more prompts, or this job for fewer pairs")
}

/// None when the problem cannot be spoilt in this way.
fn spoil(row: &Prompt, kind: Corruption, rng: &mut Rng) -> Result<Option<Preference>, Error> {
    let verifier: Verifier = row.verifier.parse().map_err(fault)?;
    let Verifier::Chain { problem } = &verifier else {
        return Err(Error::data(format!("prompt `{}` is of a family whose solutions cannot be spoilt", row.id))
            .hint("set `pairs: 0` and `held_out: 0`, and take sampled pairs"));
    };
    let Some(chain) = Chain::parse(problem) else {
        return Err(Error::data(format!("prompt `{}` holds no chain: `{problem}`", row.id)));
    };
    Ok(corrupt(&chain, kind, rng).map(|rejected| Preference {
        id: format!("{}/{}", row.id, kind.name()),
        messages: row.messages.clone(),
        chosen: chain.solution(),
        rejected,
        margin: None,
        fault: Some(kind.name().into()),
    }))
}

/// Of each prompt the first right and the first wrong answer, when it has both.
fn sampled(
    config: &Config,
    rows: &[Prompt],
    first: usize,
    chat: &Chat,
    sampler: &Loaded,
    backend: &dyn Backend,
) -> Result<Vec<Preference>, Error> {
    let stop = chat.stop().map_err(fault)?;
    let mut requests = Vec::new();
    for (i, row) in rows.iter().enumerate() {
        let prompt = chat.prompt(&with_system(&row.messages, None)).map_err(fault)?;
        requests.extend((0..DRAWS).map(|draw| Request {
            prompt: prompt.clone(),
            seed: random::bits(config.seed, 0x9a1, ((first + i) * DRAWS + draw) as u64),
            sampling: Sampling { max_tokens: config.max_tokens, stop: vec![stop], ..Sampling::default() },
        }));
    }
    let generator = Generator::new(&sampler.model, &sampler.params, backend, 256);
    let completions = generator.run(&requests).map_err(fault)?;
    let mut pairs = Vec::new();
    for (row, completions) in rows.iter().zip(completions.chunks(DRAWS)) {
        let verifier: Verifier = row.verifier.parse().map_err(fault)?;
        let (mut right, mut wrong) = (None, None);
        for Completion { tokens, finish, .. } in completions {
            let text = chat.tokenizer.decode(tokens).map_err(fault)?;
            match verifier.score(&row.answer, &text) {
                Some(score) if score.every_step && *finish == Finish::Stop => right = right.or(Some(text)),
                Some(score) if !score.right => wrong = wrong.or(Some(text)),
                _ => {}
            }
        }
        if let (Some(chosen), Some(rejected)) = (right, wrong) {
            pairs.push(Preference {
                id: format!("{}/sampled", row.id),
                messages: row.messages.clone(),
                chosen,
                rejected,
                margin: None,
                fault: Some("sampled".into()),
            });
        }
    }
    Ok(pairs)
}
