//! Continuous batching: a request joins as soon as another ends. A step computes one row per running request, and the
//! whole prompt of one that joins.
//!
//! With [`Generator::speculates`], the first MTP module guesses the token after the next (DeepSeek-V3, §5.4.3). The
//! model then reads both in one step, and a right guess saves the next. Every draw is a function of seed and place, and
//! the guess is drawn with the randomness of its place, so that speculation changes no token at any temperature: it
//! only costs or saves time.

use crate::Sampling;
use smelt_kernels::{Backend, Draw, Tensor};
use smelt_model::{Cache, CacheRows, Error, Model, Params};
use smelt_text::Tokenizer;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;

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
    /// The stop token, or the tokens of the stop string, included.
    pub tokens: Vec<u32>,
    /// Of each token under the model itself (temperature 1, no truncation).
    pub logp: Vec<f64>,
    pub finish: Finish,
    /// Bytes of the text before the stop string, when one ended it.
    pub cut: Option<usize>,
}

impl Completion {
    fn new() -> Self {
        Self { tokens: Vec::new(), logp: Vec::new(), finish: Finish::Length, cut: None }
    }

    /// The text without special tokens, up to the stop string.
    pub fn text(&self, tokenizer: &Tokenizer) -> Result<String, smelt_text::Error> {
        let mut text = tokenizer.decode(&self.tokens)?;
        text.truncate(self.cut.unwrap_or(text.len()));
        Ok(text)
    }
}

/// How speculation went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drafts {
    pub offered: u64,
    pub accepted: u64,
}

impl Drafts {
    /// Share of the guesses that were right; None when there were none.
    pub fn acceptance(&self) -> Option<f64> {
        (self.offered > 0).then(|| self.accepted as f64 / self.offered as f64)
    }
}

/// How completions are made.
#[derive(Clone, Copy)]
pub struct Generator<'a> {
    pub model: &'a Model,
    pub params: &'a Params,
    pub backend: &'a dyn Backend,
    /// Requests that run at once.
    pub concurrency: usize,
    /// For requests with stop strings.
    pub tokenizer: Option<&'a Tokenizer>,
    /// Let the first MTP module guess, where the model has one. Pays for few requests at once.
    pub speculates: bool,
}

struct Running {
    ticket: Ticket,
    request: Request,
    cache: Cache,
    /// Tokens the next step reads.
    next: Vec<u32>,
    /// The last of `next` is a guess.
    has_guess: bool,
    /// Positions in the cache.
    length: usize,
    done: Completion,
}

/// Rows one step takes when prompts join: bounds memory, changes no bit.
const ROWS: usize = 2048;

/// Names a request of a [`Batcher`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// Requests that come and go while others run.
pub struct Batcher<'a> {
    generator: Generator<'a>,
    waiting: VecDeque<(Ticket, Request)>,
    running: Vec<Running>,
    next: u64,
    drafts: Drafts,
}

impl fmt::Debug for Generator<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { concurrency, speculates, .. } = self;
        f.debug_struct("Generator")
            .field("concurrency", concurrency)
            .field("speculates", speculates)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Batcher<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (waiting, running) = (self.waiting.len(), self.running.len());
        f.debug_struct("Batcher").field("waiting", &waiting).field("running", &running).finish_non_exhaustive()
    }
}

impl<'a> Generator<'a> {
    /// Without stop strings and speculation.
    pub fn new(model: &'a Model, params: &'a Params, backend: &'a dyn Backend, concurrency: usize) -> Self {
        Self { model, params, backend, concurrency, tokenizer: None, speculates: false }
    }

    /// One completion per request, in order.
    ///
    /// # Panics
    /// As [`Batcher::add`].
    pub fn run(&self, requests: &[Request]) -> Result<Vec<Completion>, Error> {
        Ok(self.run_counting(requests)?.0)
    }

    /// The same, and how speculation went.
    pub fn run_counting(&self, requests: &[Request]) -> Result<(Vec<Completion>, Drafts), Error> {
        let mut batcher = Batcher::new(*self);
        let tickets = requests.iter().map(|request| batcher.add(request.clone()));
        let tickets: Vec<Ticket> = tickets.collect::<Result<_, _>>()?;
        let mut completions = HashMap::with_capacity(tickets.len());
        while !batcher.is_idle() {
            completions.extend(batcher.step());
        }
        let completion = |ticket| completions.remove(ticket).expect("every request ends");
        Ok((tickets.iter().map(completion).collect(), batcher.drafts()))
    }
}

impl<'a> Batcher<'a> {
    pub fn new(generator: Generator<'a>) -> Self {
        generator.params.prepare(generator.backend);
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Self { generator, waiting, running, next: 0, drafts: Drafts::default() }
    }

    /// Takes a request, which joins as soon as there is room.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or the prompt leaves no position for an answer.
    ///
    /// # Panics
    /// On an empty prompt, and on stop strings without a tokenizer.
    pub fn add(&mut self, request: Request) -> Result<Ticket, Error> {
        self.generator.model.check(&request.prompt, request.prompt.len() + 1)?;
        assert!(!request.prompt.is_empty(), "generate: an empty prompt has nothing to go on from");
        let has_text = request.sampling.stop_strings.is_empty() || self.generator.tokenizer.is_some();
        assert!(has_text, "generate: stop strings need a tokenizer");
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.push_back((ticket, request));
        Ok(ticket)
    }

    /// Ends a request before its time and returns what it has so far; None when it has ended, or never was.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<Completion> {
        if let Some(at) = self.waiting.iter().position(|(waiting, _)| *waiting == ticket) {
            self.waiting.remove(at);
            return Some(Completion::new());
        }
        let at = self.running.iter().position(|r| r.ticket == ticket)?;
        Some(self.running.remove(at).done)
    }

    /// What a running request has so far.
    pub fn so_far(&self, ticket: Ticket) -> Option<&Completion> {
        self.running.iter().find(|r| r.ticket == ticket).map(|r| &r.done)
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// How speculation went so far.
    pub fn drafts(&self) -> Drafts {
        self.drafts
    }

    /// One step of all running requests, after those that wait and fit have joined. Returns the completions that ended.
    pub fn step(&mut self) -> Vec<(Ticket, Completion)> {
        let mut ended = Vec::new();
        // followers have the same prompt as one that joins now: they share its cache instead of reading it again
        let (mut leaders, mut followers) = (HashMap::<Vec<u32>, usize>::new(), Vec::new());
        let mut rows: usize = self.running.len();
        while let Some((ticket, request)) = self.waiting.front()
            && self.running.len() + followers.len() < self.generator.concurrency.max(1)
        {
            let leader = leaders.get(&request.prompt).copied();
            if leader.is_none() && rows > 0 && rows + request.prompt.len() > ROWS && request.sampling.max_tokens > 0 {
                break;
            }
            let ticket = *ticket;
            let (_, request) = self.waiting.pop_front().expect("it was at the front");
            if request.sampling.max_tokens == 0 {
                ended.push((ticket, Completion::new()));
            } else if let Some(leader) = leader {
                followers.push((leader, ticket, request));
            } else {
                leaders.insert(request.prompt.clone(), self.running.len());
                rows += request.prompt.len();
                self.running.push(Running::new(ticket, request, self.generator.model.new_cache()));
            }
        }
        if !self.running.is_empty() {
            self.generator.step(&mut self.running, followers, &mut self.drafts);
        }
        for r in self.running.extract_if(.., |r| r.next.is_empty()) {
            ended.push((r.ticket, r.done));
        }
        ended
    }
}

impl Generator<'_> {
    /// One forward pass: draws a token for every running request and for the followers, which join, and a second token
    /// after a right guess.
    fn step(&self, running: &mut Vec<Running>, followers: Vec<(usize, Ticket, Request)>, drafts: &mut Drafts) {
        let (mut ids, mut positions, mut spans, mut asked) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for r in running.iter_mut() {
            let start = ids.len();
            ids.extend_from_slice(&r.next);
            positions.extend(r.length as u32..(r.length + r.next.len()) as u32);
            spans.push(start..ids.len());
            asked.extend((ids.len() - 1 - usize::from(r.has_guess)) as u32..ids.len() as u32);
        }
        let caches =
            running.iter_mut().zip(&spans).map(|(r, rows)| CacheRows { rows: rows.clone(), cache: &mut r.cache });
        let hidden = self.model.decode(self.backend, self.params, &ids, &positions, &mut caches.collect::<Vec<_>>());
        let last = if asked.len() == ids.len() {
            hidden.clone()
        } else {
            self.backend.gather(&hidden, &self.backend.ids(&asked))
        };
        let leaders = running.len();
        let mut first = vec![0; leaders]; // row of `last` of each one's certain token
        for at in 1..leaders {
            first[at] = first[at - 1] + 1 + usize::from(running[at - 1].has_guess);
        }
        // A request with a guess draws two tokens: the certain one, and the one behind the guess, which counts if the
        // guess was right.
        let mut draws = Vec::new();
        for (r, &row) in running.iter().zip(&first) {
            let (s, seed, place) = (&r.request.sampling, r.request.seed, r.done.tokens.len());
            draws.push(s.draw(row, seed, place));
            draws.extend(r.has_guess.then(|| s.draw(row + 1, seed, place + 1)));
        }
        let of_followers = draws.len();
        let draw =
            |(leader, _, request): &(usize, Ticket, Request)| request.sampling.draw(first[*leader], request.seed, 0);
        draws.extend(followers.iter().map(draw));
        let drawn = Drawn::new(self, &last, &draws);

        for (i, (leader, ticket, request)) in followers.into_iter().enumerate() {
            let mut r = Running::new(ticket, request, running[leader].cache.clone());
            r.length = spans[leader].len();
            self.take(&mut r, &drawn, of_followers + i);
            spans.push(spans[leader].clone());
            running.push(r);
        }
        let mut next = 0;
        for (r, span) in running[..leaders].iter_mut().zip(&mut spans) {
            let guess = if std::mem::take(&mut r.has_guess) { r.next.pop() } else { None };
            r.length += r.next.len();
            self.take(r, &drawn, next);
            next += 1 + usize::from(guess.is_some());
            let Some(guess) = guess else { continue };
            let is_right = r.done.tokens.last() == Some(&guess);
            drafts.offered += 1;
            drafts.accepted += u64::from(is_right);
            if is_right && !r.next.is_empty() {
                r.length += 1;
                self.take(r, &drawn, next - 1);
            } else {
                r.cache.forget(0..self.model.layers(), 1);
                span.end -= 1;
            }
        }
        let drafting = running.iter().zip(spans).enumerate().filter(|(_, (r, _))| self.can_guess(r));
        let drafting: Vec<(usize, Range<usize>)> = drafting.map(|(at, (_, rows))| (at, rows)).collect();
        if !drafting.is_empty() {
            self.guess(running, &hidden, &ids, &drafting);
        }
    }

    /// Takes the token of draw `draw`; it is read next, unless it ends the completion.
    fn take(&self, r: &mut Running, drawn: &Drawn, draw: usize) {
        let (s, id) = (&r.request.sampling, drawn.tokens[draw]);
        r.done.tokens.push(id);
        r.done.logp.push(drawn.logp[draw]);
        r.next.clear();
        if s.stop.contains(&id) {
            r.done.finish = Finish::Stop;
        } else if let Some(cut) = self.tokenizer.and_then(|tokenizer| stop_string(tokenizer, s, &r.done.tokens)) {
            (r.done.finish, r.done.cut) = (Finish::Stop, Some(cut));
        } else if r.done.tokens.len() < s.max_tokens && r.length < self.model.config().max_position_embeddings {
            r.next.push(id);
        }
    }

    /// Whether a guess behind the next token could be of use, and there is an MTP module to make it. Once false, it
    /// stays so for a request.
    fn can_guess(&self, r: &Running) -> bool {
        self.speculates
            && self.model.config().num_nextn_predict_layers() > 0
            && !r.next.is_empty()
            && r.done.tokens.len() + 1 < r.request.sampling.max_tokens
            && r.length + 1 < self.model.config().max_position_embeddings
    }

    /// Appends a guess to what each of `drafting` (who, rows of this step that stand) reads next.
    fn guess(&self, running: &mut [Running], hidden: &Tensor, ids: &[u32], drafting: &[(usize, Range<usize>)]) {
        let (mut rows, mut next, mut positions, mut spans) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (at, span) in drafting {
            let (r, start) = (&running[*at], rows.len());
            rows.extend(span.start as u32..span.end as u32);
            next.extend(&ids[span.start + 1..span.end]);
            next.extend(&r.next);
            positions.extend((r.length - span.len()) as u32..r.length as u32);
            spans.push(start..rows.len());
        }
        let hidden = self.backend.gather(hidden, &self.backend.ids(&rows));
        let (mut caches, mut wanted) = (Vec::with_capacity(drafting.len()), spans.iter().zip(drafting).peekable());
        for (at, r) in running.iter_mut().enumerate() {
            if let Some((rows, _)) = wanted.next_if(|(_, (wanted, _))| *wanted == at) {
                caches.push(CacheRows { rows: rows.clone(), cache: &mut r.cache });
            }
        }
        let read = self.model.decode_mtp(self.backend, self.params, &hidden, &next, &positions, &mut caches);
        let ends: Vec<u32> = spans.iter().map(|rows| rows.end as u32 - 1).collect();
        // with the randomness of its place: the likelier the two distributions agree, the likelier do the draws
        let draw = |(row, (at, _)): (usize, &(usize, Range<usize>))| {
            let r = &running[*at];
            r.request.sampling.draw(row, r.request.seed, r.done.tokens.len())
        };
        let draws: Vec<Draw> = drafting.iter().enumerate().map(draw).collect();
        let drawn = Drawn::new(self, &self.backend.gather(&read, &self.backend.ids(&ends)), &draws);
        for (token, (at, _)) in drawn.tokens.iter().zip(drafting) {
            running[*at].next.push(*token);
            running[*at].has_guess = true;
        }
    }
}

impl Running {
    fn new(ticket: Ticket, request: Request, cache: Cache) -> Self {
        let next = request.prompt.clone();
        Self { ticket, request, cache, next, has_guess: false, length: 0, done: Completion::new() }
    }
}

/// Tokens that were drawn, in the order of the draws, and their log-probabilities: what a step tells the host.
struct Drawn {
    tokens: Vec<u32>,
    logp: Vec<f64>,
}

impl Drawn {
    /// From what the head reads; waits for the device once.
    fn new(generator: &Generator, read: &Tensor, draws: &[Draw]) -> Self {
        let backend = generator.backend;
        let logits = generator.model.logits(backend, generator.params, read);
        let (tokens, logp) = backend.draw(&logits, draws);
        let all = backend.download(&backend.collect(&[&tokens, &logp])).to_f64();
        let (tokens, logp) = all.split_at(draws.len());
        Self { tokens: tokens.iter().map(|&token| token as u32).collect(), logp: logp.to_vec() }
    }
}

/// Where in the text of `tokens` the stop string begins that its last token completes.
fn stop_string(tokenizer: &Tokenizer, s: &Sampling, tokens: &[u32]) -> Option<usize> {
    let stops = || s.stop_strings.iter().filter(|stop| !stop.is_empty());
    let longest = stops().map(String::len).max()?;
    // a token has a byte at least, so a string that ends in the last one begins in one of these
    let tail = tokenizer.decode(&tokens[tokens.len().saturating_sub(longest)..]).ok()?;
    if !stops().any(|stop| tail.contains(stop.as_str())) {
        return None;
    }
    let text = tokenizer.decode(tokens).ok()?;
    stops().filter_map(|stop| text.find(stop.as_str())).min()
}
