//! Bits per byte of held-out text, comparable between tokenizers, and perplexity per token.

use crate::Config;
use smelt_checkpoint::{Loaded, fault};
use smelt_generate::logprobs;
use smelt_kernels::{Backend, math};
use smelt_stage::Error;
use smelt_stage::kinds::TokenRow;

/// What a model makes of held-out text: values with their standard errors over documents.
pub struct TextScores {
    pub bits_per_byte: (f64, f64),
    /// exp of the mean loss per token.
    pub perplexity: (f64, f64),
    pub documents: usize,
}

/// Every token is predicted once, from what stands before it in its document within half of the model's positions.
pub fn text_scores(
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
    let logp = logprobs(&loaded.model, &loaded.params, backend, &pieces, 4096).map_err(fault)?;
    let mut of_piece = logp.iter().map(|logp| -logp.iter().sum::<f64>());
    let nats: Vec<f64> = counts.iter().map(|&count| of_piece.by_ref().take(count).sum()).collect();
    let bytes: Vec<f64> = documents.iter().map(|(_, bytes)| *bytes).collect();
    let tokens: Vec<f64> = documents.iter().map(|(ids, _)| (ids.len() - 1) as f64).collect();
    let ((per_byte, byte_error), (per_token, token_error)) = (ratio(&nats, &bytes), ratio(&nats, &tokens));
    let (bit, perplexity) = (std::f64::consts::LN_2, math::exp(per_token));
    Ok(TextScores {
        bits_per_byte: (per_byte / bit, byte_error / bit),
        perplexity: (perplexity, perplexity * token_error), // the error of exp(x) is exp(x) times that of x
        documents: documents.len(),
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
}
