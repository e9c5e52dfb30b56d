//! Batched generation: requests join as others end, one row per running request and step, a whole prompt when one joins.

use crate::Sampling;
use crate::sampler::draw;
use smelt_kernels::Backend;
use smelt_model::{Cache, CacheRows, Error, Model, Params};
use std::collections::HashMap;

#[derive(Clone, Debug)]
pub struct Request {
    pub prompt: Vec<u32>,
    /// Draws are functions of this and the place in the completion.
    pub seed: u64,
    pub sampling: Sampling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Stop,
    /// `max_tokens`, or the model's last position.
    Length,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The stop token included.
    pub tokens: Vec<u32>,
    /// Of each token under the model itself (temperature 1, no truncation).
    pub logp: Vec<f64>,
    pub finish: Finish,
}

pub struct Generator<'a> {
    pub model: &'a Model,
    pub params: &'a Params,
    pub backend: &'a dyn Backend,
    /// Requests that run at once.
    pub concurrency: usize,
}

struct Running<'a> {
    index: usize,
    request: &'a Request,
    cache: Cache,
    /// Tokens the next step reads.
    next: Vec<u32>,
    /// Positions in the cache.
    length: usize,
    done: Completion,
}

/// Rows one step takes when prompts join: bounds memory, changes no bit.
const ROWS: usize = 2048;

impl Generator<'_> {
    /// One completion per request, in order.
    pub fn run(&self, requests: &[Request]) -> Result<Vec<Completion>, Error> {
        let mut completions: Vec<Option<Completion>> = vec![None; requests.len()];
        self.run_with(requests, |index, completion| completions[index] = Some(completion))?;
        Ok(completions.into_iter().map(|c| c.expect("every request ends")).collect())
    }

    /// Hands over each completion when it ends.
    pub fn run_with(&self, requests: &[Request], mut done: impl FnMut(usize, Completion)) -> Result<(), Error> {
        for request in requests {
            self.model.check(&request.prompt, request.prompt.len() + 1)?;
            assert!(!request.prompt.is_empty(), "generate: an empty prompt has nothing to go on from");
        }
        self.params.prepare(self.backend);
        let mut running: Vec<Running> = Vec::new();
        let mut waiting = requests.iter().enumerate();
        let mut rest = waiting.next();
        while rest.is_some() || !running.is_empty() {
            // followers have the same prompt as one that joins now: they take over its cache instead of reading it again
            let (mut leaders, mut followers) = (HashMap::new(), Vec::new());
            let mut rows: usize = running.len();
            while let Some((index, request)) =
                rest.filter(|_| running.len() + followers.len() < self.concurrency.max(1))
            {
                if request.sampling.max_tokens == 0 {
                    done(index, Completion { tokens: Vec::new(), logp: Vec::new(), finish: Finish::Length });
                } else if let Some(&leader) = leaders.get(&request.prompt) {
                    followers.push((leader, index, request));
                } else if rows > 0 && rows + request.prompt.len() > ROWS {
                    break;
                } else {
                    leaders.insert(&request.prompt, running.len());
                    rows += request.prompt.len();
                    running.push(Running::new(index, request, self.model.new_cache()));
                }
                rest = waiting.next();
            }
            if running.is_empty() {
                continue;
            }
            self.step(&mut running, &followers);
            running.retain_mut(|r| {
                let is_done = r.next.is_empty();
                if is_done {
                    let empty = Completion { tokens: Vec::new(), logp: Vec::new(), finish: Finish::Length };
                    done(r.index, std::mem::replace(&mut r.done, empty));
                }
                !is_done
            });
        }
        Ok(())
    }

    /// Reads what each has to read, and draws one token for each and for the followers, which join.
    fn step<'a>(&self, running: &mut Vec<Running<'a>>, followers: &[(usize, usize, &'a Request)]) {
        let (mut ids, mut positions, mut ends, mut spans) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for r in running.iter_mut() {
            let start = ids.len();
            ids.append(&mut r.next);
            let count = ids.len() - start;
            positions.extend(r.length as u32..(r.length + count) as u32);
            r.length += count;
            spans.push(start..ids.len());
            ends.push(ids.len() as u32 - 1);
        }
        let caches = running.iter_mut().zip(spans).map(|(r, rows)| CacheRows { rows, cache: &mut r.cache });
        let hidden = self.model.decode(self.backend, self.params, &ids, &positions, &mut caches.collect::<Vec<_>>());
        let last = if ends.len() == ids.len() { hidden } else { self.backend.gather(&hidden, &ends) };
        let logits = self.model.logits(self.backend, self.params, &last);
        let mut e = logits.copy();
        let (max, sum) = self.backend.softmax(&mut e);
        let (logits, e, vocabulary) = (logits.read::<f32>(), e.read::<f32>(), self.model.config().vocab_size);
        let limit = self.model.config().max_position_embeddings;
        let take = |r: &mut Running, row: usize| {
            let s = &r.request.sampling;
            let id = draw(s, &e[row * vocabulary..][..vocabulary], r.request.seed, r.done.tokens.len() as u64);
            r.done.tokens.push(id as u32);
            r.done.logp.push(f64::from(logits[row * vocabulary + id]) - max[row] - smelt_kernels::math::ln(sum[row]));
            if s.stop.contains(&(id as u32)) {
                r.done.finish = Finish::Stop;
            } else if r.done.tokens.len() < s.max_tokens && r.length < limit {
                r.next.push(id as u32);
            }
        };
        for &(leader, index, request) in followers {
            let mut r = Running::new(index, request, running[leader].cache.clone());
            (r.length, r.next) = (running[leader].length, Vec::new());
            take(&mut r, leader);
            running.push(r);
        }
        let leaders = running.len() - followers.len();
        running[..leaders].iter_mut().enumerate().for_each(|(row, r)| take(r, row));
    }
}

impl<'a> Running<'a> {
    fn new(index: usize, request: &'a Request, cache: Cache) -> Self {
        let done = Completion { tokens: Vec::new(), logp: Vec::new(), finish: Finish::Length };
        Self { index, request, cache, next: request.prompt.clone(), length: 0, done }
    }
}
