//! Where pairs come from.

use crate::Config;
use smelt_answer::{Answer, Asker, Prompting, Question, Unusable, spoil};
use smelt_checkpoint::Loaded;
use smelt_kernels::{Backend, random};
use smelt_stage::Error;
use smelt_stage::kinds::{Preference, Prompt};
use std::collections::BTreeMap;

/// Answers drawn per prompt in search of a right and a wrong one.
const DRAWS: usize = 6;
/// Prompts asked at once.
const ASKED: usize = 64;

/// Pairs to learn from and pairs that are held out, before it is known which of them can be scored.
pub(crate) struct Made {
    pub train: Vec<Preference>,
    pub validation: Vec<Preference>,
    /// Prompts that cannot be asked.
    pub unusable: Vec<Unusable>,
}

impl Made {
    /// Prompts are used in order, each once: held-out pairs have problems of their own.
    pub(crate) fn make(
        config: &Config,
        prompts: &[Prompt],
        sampler: Option<&Loaded>,
        backend: &dyn Backend,
    ) -> Result<Self, Error> {
        let mut made = Self { train: Vec::new(), validation: Vec::new(), unusable: Vec::new() };
        if config.pairs + config.sampled == 0 {
            return Ok(made);
        }
        let mut left = prompts.iter().enumerate();
        made.validation = made.spoilt(config, config.held_out, "held-out pairs", &mut left)?;
        made.train = made.spoilt(config, config.pairs, "pairs", &mut left)?;
        if let Some(sampler) = sampler.filter(|_| config.sampled > 0) {
            let mut asker = Asker::new(sampler, backend, Prompting::Chat { system: None }, config.max_tokens, &[])?;
            asker.concurrency = 256;
            for pairs in [&mut made.validation, &mut made.train] {
                let wanted = pairs.len() + config.sampled;
                while pairs.len() < wanted {
                    let mut rows = Vec::with_capacity(ASKED);
                    while rows.len() < ASKED {
                        let Some((place, row)) = left.next() else { break };
                        match asker.objection(row)? {
                            None => rows.push((place, row)),
                            Some(objection) => made.unusable.push(objection),
                        }
                    }
                    if rows.is_empty() {
                        let wanted = prompts.len() + ASKED;
                        return Err(too_few(prompts.len(), &made.unusable, wanted));
                    }
                    pairs.extend(sampled(config, &rows, &asker, sampler)?);
                }
                pairs.truncate(wanted);
            }
        }
        Ok(made)
    }

    fn spoilt<'p>(
        &mut self,
        config: &Config,
        count: usize,
        stream: &str,
        left: &mut impl Iterator<Item = (usize, &'p Prompt)>,
    ) -> Result<Vec<Preference>, Error> {
        let (mut pairs, mut last) = (Vec::new(), 0);
        while pairs.len() < count {
            let Some((place, row)) = left.next() else {
                return Err(too_few(last, &self.unusable, config.pairs + config.held_out));
            };
            last = place + 1;
            match spoil(row, pairs.len(), config.seed, stream, place as u64)? {
                Ok(pair) => pairs.extend(pair),
                Err(unusable) => self.unusable.push(unusable),
            }
        }
        Ok(pairs)
    }

    /// Adds pairs that are given, and those that are given to be held out. Where none are, and none are made,
    /// `held_out` of the given ones are: all pairs of a prompt or none, so that no prompt is on both sides. Returns how
    /// many were given and how many had been made.
    pub(crate) fn add(
        &mut self,
        config: &Config,
        given: Vec<Preference>,
        validation: Option<Vec<Preference>>,
    ) -> (u64, u64) {
        let made = (self.train.len() + self.validation.len()) as u64;
        let count = (given.len() + validation.as_ref().map_or(0, Vec::len)) as u64;
        match validation {
            Some(validation) => {
                self.validation.extend(validation);
                self.train.extend(given);
            }
            None if self.validation.is_empty() => {
                // at least half is left to learn from
                let mut wanted = config.held_out.min(given.len() / 2);
                let prompt = |row: &Preference| -> Vec<(String, String)> {
                    row.messages.iter().map(|m| (m.role.clone(), m.content.clone())).collect()
                };
                let mut by_prompt: BTreeMap<Vec<(String, String)>, Vec<Preference>> = BTreeMap::new();
                given.into_iter().for_each(|row| by_prompt.entry(prompt(&row)).or_default().push(row));
                let mut groups: Vec<(u64, Vec<Preference>)> = by_prompt
                    .into_values()
                    .enumerate()
                    .map(|(i, rows)| (random::bits(config.seed, 0x4e1d, i as u64), rows))
                    .collect();
                groups.sort_by_key(|(place, _)| *place);
                for (_, rows) in groups {
                    let is_held_out = rows.len() <= wanted;
                    wanted -= if is_held_out { rows.len() } else { 0 };
                    (if is_held_out { &mut self.validation } else { &mut self.train }).extend(rows);
                }
            }
            None => self.train.extend(given),
        }
        (count, made)
    }
}

fn too_few(found: usize, unusable: &[Unusable], wanted: usize) -> Error {
    let dropped = match unusable {
        [] => String::new(),
        [first, ..] => {
            let (count, id, rule, detail) = (unusable.len(), &first.id, first.rule, &first.detail);
            format!("; {count} of them cannot be used, the first, `{id}`, as {rule}: {detail}")
        }
    };
    Error::data(format!("{found} prompts are too few for these pairs, about {wanted} are needed{dropped}"))
        .hint("ask `problems` for more prompts, or this job for fewer pairs")
}

/// Of each prompt the first answer that is right throughout and the first wrong one, when it has both.
fn sampled(
    config: &Config,
    rows: &[(usize, &Prompt)],
    asker: &Asker,
    sampler: &Loaded,
) -> Result<Vec<Preference>, Error> {
    let question = |place: usize, prompt, draw| {
        let seed = random::bits(config.seed, 0x9a1, (place * DRAWS + draw) as u64);
        Question { prompt, sample: draw as u32, seed, temperature: 1.0 }
    };
    let questions: Vec<Question> =
        rows.iter().flat_map(|&(place, row)| (0..DRAWS).map(move |draw| question(place, row, draw))).collect();
    let (answers, _) = asker.ask(&sampler.params, &questions, 0.0)?;
    Ok(rows.iter().zip(answers.chunks(DRAWS)).filter_map(|((_, row), answers)| pair(row, answers)).collect())
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
    fn given_pairs_are_held_out_by_their_prompts() {
        let pair = |i: usize| Preference {
            id: format!("{i}"),
            messages: vec![smelt_stage::kinds::Message::new("user", format!("p{}", i / 2))],
            chosen: "a".into(),
            rejected: "b".into(),
            margin: None,
            fault: None,
        };
        let mut made = Made { train: vec![], validation: vec![], unusable: vec![] };
        let config = Config { held_out: 5, ..Config::default() };
        assert_eq!(made.add(&config, (0..20).map(pair).collect(), None), (20, 0));
        assert_eq!((made.train.len(), made.validation.len()), (16, 4));
        let learnt: Vec<_> = made.train.iter().map(|row| &row.messages).collect();
        assert!(made.validation.iter().all(|row| !learnt.contains(&&row.messages)));
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
