//! Where pairs come from.

use crate::Config;
use smelt_answer::{Answer, Asker, Prompting, Question, can_be_spoilt, spoil};
use smelt_checkpoint::Loaded;
use smelt_kernels::{Backend, random};
use smelt_stage::Error;
use smelt_stage::kinds::{Preference, Prompt};

/// Answers drawn per prompt in search of a right and a wrong one.
const DRAWS: usize = 6;
/// Prompts asked at once.
const ASKED: usize = 64;

pub(crate) struct Pairs {
    pub train: Vec<Preference>,
    pub validation: Vec<Preference>,
}

impl Pairs {
    /// Prompts are used in order, each once: held-out pairs have problems of their own.
    pub(crate) fn make(
        config: &Config,
        prompts: &[Prompt],
        sampler: Option<&Loaded>,
        backend: &dyn Backend,
    ) -> Result<Self, Error> {
        let mut next = 0;
        let mut spoilt = |count: usize, name: &str| -> Result<Vec<Preference>, Error> {
            let mut pairs = Vec::with_capacity(count);
            while pairs.len() < count {
                let row = prompts.get(next).ok_or_else(|| too_few(prompts.len(), config.pairs + config.held_out))?;
                if !can_be_spoilt(row)? {
                    let what = format!("prompt `{}` is of a family whose solutions cannot be spoilt", row.id);
                    return Err(Error::data(what).hint("set `pairs: 0` and `held_out: 0`, and take sampled pairs"));
                }
                pairs.extend(spoil(row, pairs.len(), config.seed, name, next as u64)?);
                next += 1;
            }
            Ok(pairs)
        };
        let mut validation = spoilt(config.held_out, "held-out pairs")?;
        let mut train = spoilt(config.pairs, "pairs")?;
        if let Some(sampler) = sampler {
            let mut asker = Asker::new(sampler, backend, Prompting::Chat { system: None }, config.max_tokens, &[])?;
            asker.concurrency = 256;
            for pairs in [&mut validation, &mut train] {
                let wanted = pairs.len() + config.sampled;
                while pairs.len() < wanted {
                    let rows = &prompts[next.min(prompts.len())..prompts.len().min(next + ASKED)];
                    if rows.is_empty() {
                        return Err(too_few(prompts.len(), next + ASKED));
                    }
                    pairs.extend(sampled(config, rows, next, &asker, sampler)?);
                    next += rows.len();
                }
                pairs.truncate(wanted);
            }
        }
        Ok(Self { train, validation })
    }
}

fn too_few(found: usize, wanted: usize) -> Error {
    Error::data(format!("{found} prompts are too few for these pairs, about {wanted} are needed"))
        .hint("ask `problems` for more prompts, or this job for fewer pairs")
}

/// Of each prompt the first answer that is right throughout and the first wrong one, when it has both.
fn sampled(
    config: &Config,
    rows: &[Prompt],
    first: usize,
    asker: &Asker,
    sampler: &Loaded,
) -> Result<Vec<Preference>, Error> {
    let question = |(i, prompt), draw| {
        let seed = random::bits(config.seed, 0x9a1, ((first + i) * DRAWS + draw) as u64);
        Question { prompt, sample: draw as u32, seed, temperature: 1.0 }
    };
    let questions: Vec<Question> =
        rows.iter().enumerate().flat_map(|row| (0..DRAWS).map(move |draw| question(row, draw))).collect();
    let (answers, _) = asker.ask(&sampler.params, &questions, 0.0)?;
    Ok(rows.iter().zip(answers.chunks(DRAWS)).filter_map(|(row, answers)| pair(row, answers)).collect())
}

/// An answer that was cut off is neither chosen nor rejected: what it would have become is not known.
fn pair(row: &Prompt, answers: &[Answer]) -> Option<Preference> {
    let whole = || answers.iter().filter(|answer| answer.is_whole);
    let judged = || whole().filter_map(|answer| Some((answer, answer.verdict?)));
    let (right, _) = judged().find(|(_, verdict)| verdict.is_right_throughout)?;
    let (wrong, _) = judged().find(|(_, verdict)| !verdict.is_right)?;
    Some(Preference {
        id: format!("{}/sampled", row.id),
        messages: row.messages.clone(),
        chosen: right.text.clone(),
        rejected: wrong.text.clone(),
        margin: None,
        fault: Some("sampled".into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use smelt_answer::Verdict;

    fn answer(text: &str, is_whole: bool, is_right: bool) -> Answer {
        let verdict = Verdict { is_right, is_right_throughout: is_right, leading_steps: 0.0 };
        Answer {
            prompt: "p".into(),
            sample: 0,
            prompt_ids: vec![0],
            ids: vec![1],
            logp: vec![-1.0],
            text: text.into(),
            is_whole,
            verdict: Some(verdict),
            reward: None,
        }
    }

    #[test]
    fn a_pair_is_the_first_right_and_the_first_wrong_of_the_whole_answers() {
        let row = Prompt { id: "p".into(), messages: vec![], answer: "7".into(), verifier: String::new() };
        let (cut, wrong) = (answer("cut", false, false), answer("wrong", true, false));
        let (right, later) = (answer("right", true, true), answer("later", true, true));
        assert_eq!(pair(&row, &[cut.clone(), right.clone()]), None, "an answer that was cut off is not rejected");
        assert_eq!(pair(&row, &[right.clone(), later.clone()]), None);
        let found = pair(&row, &[cut, wrong, right, later]).unwrap();
        assert_eq!((found.chosen.as_str(), found.rejected.as_str()), ("right", "wrong"));
        assert_eq!((found.id.as_str(), found.fault.as_deref()), ("p/sampled", Some("sampled")));
    }
}
