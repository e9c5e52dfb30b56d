//! Log-probabilities of given sequences, in training's form: for references, rewards and perplexity.

use smelt_kernels::{Backend, DocumentBounds};
use smelt_model::{Batch, Error, IGNORE, Model, Params};

/// Sequences with the place of the first token to score (at least 1); about `limit` tokens at a time. Returns the
/// log-probability of every token from there on, of a sampler at `temperature`.
pub fn logprobs(
    model: &Model,
    params: &Params,
    backend: &dyn Backend,
    sequences: &[(&[u32], usize)],
    limit: usize,
    temperature: f64,
) -> Result<Vec<Vec<f64>>, Error> {
    let (mut scores, mut next) = (Vec::with_capacity(sequences.len()), 0);
    while next < sequences.len() {
        let (mut batch, mut lengths, start) = (Batch { temperature, ..Batch::default() }, Vec::new(), next);
        while next < sequences.len() && (next == start || batch.ids.len() + sequences[next].0.len() <= limit) {
            let (ids, first) = sequences[next];
            let length = ids.len().saturating_sub(1);
            batch.ids.extend(&ids[..length]);
            batch.targets.extend((1..ids.len()).map(|i| if i >= first { ids[i] } else { IGNORE }));
            lengths.extend((length > 0).then_some(length));
            next += 1;
        }
        batch.documents = DocumentBounds::of_lengths(&lengths);
        model.check(&batch.ids, batch.documents.longest())?;
        model.check(&batch.targets, 0)?;
        let mut logp = model.score(backend, params, &batch).on_host(backend).logp.into_iter();
        for (ids, first) in &sequences[start..next] {
            let count = ids.len().saturating_sub((*first).max(1));
            scores.push(logp.by_ref().take(count).collect());
        }
    }
    Ok(scores)
}
