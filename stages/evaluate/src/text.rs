//! Bits per byte of held-out text, comparable between tokenizers, and perplexity per token.

use crate::Config;
use serde::{Deserialize, Serialize};
use smelt_answer::logprobs;
use smelt_checkpoint::{Loaded, fault};
use smelt_kernels::{Backend, math};
use smelt_stage::Error;
use smelt_stage::kinds::TokenRow;
use std::f64::consts::LN_2;

/// What a model makes of held-out text: values with their standard errors over documents.
pub(crate) struct TextScores {
    pub bits_per_byte: (f64, f64),
    /// exp of the mean loss per token.
    pub perplexity: (f64, f64),
    pub documents: DocumentCosts,
}

/// What each document costs a model; all models read the same ones, in the same order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DocumentCosts {
    pub nats: Vec<f64>,
    pub bytes: Vec<f64>,
}

impl DocumentCosts {
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    fn bits_per_byte(&self) -> (f64, f64) {
        let (value, error) = ratio(&self.nats, &self.bytes);
        (value / LN_2, error / LN_2)
    }

    /// Bits per byte of this model minus those of `before`, document by document: what is hard for both cancels in the
    /// standard error.
    pub(crate) fn minus(&self, before: &Self) -> (f64, f64) {
        assert_eq!(self.bytes, before.bytes, "minus: both models read the same documents");
        let nats = self.nats.iter().zip(&before.nats).map(|(after, before)| after - before).collect();
        Self { nats, bytes: self.bytes.clone() }.bits_per_byte()
    }
}

/// Every token is predicted once, from what stands before it in its document within half of the model's positions.
pub(crate) fn text_scores(
    config: &Config,
    loaded: &Loaded,
    rows: &[TokenRow],
    backend: &dyn Backend,
) -> Result<TextScores, Error> {
    let bos = loaded.text.tokenizer()?.bos().map_err(fault)?;
    let context = (loaded.model.config().max_position_embeddings / 2).max(1);
    let (mut documents, mut tokens) = (Vec::new(), 0);
    for row in rows.iter().filter(|row| !row.ids.is_empty() && row.bytes > 0) {
        if config.text_tokens > 0 && tokens >= config.text_tokens {
            break;
        }
        tokens += row.ids.len();
        documents.push(([&[bos], row.ids.as_slice()].concat(), row.bytes as f64));
    }
    if documents.is_empty() {
        return Err(Error::data("the held-out text is empty").hint("raise `validation` in `tokenize`"));
    }
    let mut pieces: Vec<(&[u32], usize)> = Vec::new();
    let mut counts = Vec::new();
    for (ids, _) in &documents {
        let starts = (0..ids.len() - 1).step_by(context);
        counts.push(starts.len());
        pieces.extend(starts.map(|start| (&ids[start..ids.len().min(start + context + 1)], 1)));
    }
    let logp = logprobs(&loaded.model, &loaded.params, backend, &pieces, 4096, 1.0)?;
    let mut of_piece = logp.iter().map(|logp| -logp.iter().sum::<f64>());
    let nats: Vec<f64> = counts.iter().map(|&count| of_piece.by_ref().take(count).sum()).collect();
    let bytes: Vec<f64> = documents.iter().map(|(_, bytes)| *bytes).collect();
    let tokens: Vec<f64> = documents.iter().map(|(ids, _)| (ids.len() - 1) as f64).collect();
    let (per_token, token_error) = ratio(&nats, &tokens);
    let (perplexity, documents) = (math::exp(per_token), DocumentCosts { nats, bytes });
    Ok(TextScores {
        bits_per_byte: documents.bits_per_byte(),
        perplexity: (perplexity, perplexity * token_error), // the error of exp(x) is exp(x) times that of x
        documents,
    })
}

/// Σa/Σb, and its standard error when pairs are drawn independently (the ratio estimator; Cochran 1977, §6.4).
fn ratio(a: &[f64], b: &[f64]) -> (f64, f64) {
    let (sum_a, sum_b) = (a.iter().sum::<f64>(), b.iter().sum::<f64>());
    let value = sum_a / sum_b;
    let n = a.len() as f64;
    let squares: f64 = a.iter().zip(b).map(|(a, b)| (a - value * b) * (a - value * b)).sum();
    let error = if n > 1.0 { (squares * n / (n - 1.0)).sqrt() / sum_b } else { 0.0 };
    (value, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_weighs_documents_by_their_bytes() {
        let (value, error) = ratio(&[10.0, 40.0], &[10.0, 20.0]);
        assert_eq!(value, 50.0 / 30.0);
        // residuals −20/3 and 20/3
        assert!((error - (2.0 * (400.0 / 9.0) * 2.0f64).sqrt() / 30.0).abs() < 1e-12);
    }

    /// Two models that differ by the same share of a bit on every byte differ without doubt, however uneven the
    /// documents are.
    #[test]
    fn a_difference_is_taken_document_by_document() {
        let bytes = vec![100.0, 900.0, 50.0];
        let before = DocumentCosts { nats: vec![400.0, 90.0, 333.0], bytes: bytes.clone() };
        let worse = before.nats.iter().zip(&bytes).map(|(nats, bytes)| nats + 0.25 * LN_2 * bytes).collect();
        let after = DocumentCosts { nats: worse, bytes: bytes.clone() };
        let (difference, error) = after.minus(&before);
        assert!((difference - 0.25).abs() < 1e-12 && error < 1e-12, "{difference} ± {error}");
        assert!(before.bits_per_byte().1 > 0.1, "each alone is uncertain");

        // by hand: d = (10, -30, 0) nats, Σd/Σb = -20/1050; residuals d - r·b
        let after = DocumentCosts { nats: vec![410.0, 60.0, 333.0], bytes: bytes.clone() };
        let (difference, error) = after.minus(&before);
        let r = -20.0f64 / 1050.0;
        let squares: f64 = [10.0, -30.0, 0.0].iter().zip(&bytes).map(|(d, b)| (d - r * b) * (d - r * b)).sum();
        assert!((difference - r / LN_2).abs() < 1e-15);
        assert!((error - (squares * 3.0 / 2.0).sqrt() / 1050.0 / LN_2).abs() < 1e-15);
    }
}
