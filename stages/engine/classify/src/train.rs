//! Logistic regression by AdaGrad (Duchi et al. 2011), one example after the other.

use smelt_kernels::math::sigmoid;

use crate::classifier::Classifier;
use crate::features::Features;

/// What keeps the first step of a weight finite.
const EPS: f64 = 1e-10;

/// A document to learn from.
#[derive(Clone, Debug)]
pub struct Example {
    pub features: Features,
    pub is_positive: bool,
}

/// How a classifier is trained.
#[derive(Clone, Debug)]
pub struct Training {
    /// Of a bucket's number.
    pub bits: u32,
    /// Times that each example is seen.
    pub epochs: usize,
    pub lr: f64,
    /// Weight of half the squared length of the weights, in each example's loss.
    pub l2: f64,
}

/// The derivative of an example's logistic loss by its margin. The derivative by a weight is this times the feature.
pub fn error(margin: f64, is_positive: bool) -> f64 {
    sigmoid(margin) - f64::from(u8::from(is_positive))
}

/// A classifier of examples, uncalibrated. Both kinds of examples weigh the same in sum, whatever their numbers.
///
/// `order`: which example comes at which place of an epoch, `order(epoch)` being a permutation of their numbers. Only
/// weights of an example's own features decay with it.
pub fn train(training: &Training, examples: &[Example], order: impl Fn(usize) -> Vec<usize>) -> Classifier {
    let buckets = 1usize << training.bits;
    let positives = examples.iter().filter(|example| example.is_positive).count();
    let weight_of = |is_positive: bool| {
        let of_kind = if is_positive { positives } else { examples.len() - positives };
        examples.len() as f64 / (2.0 * of_kind as f64)
    };
    let kind_weights = [weight_of(false), weight_of(true)];
    let (mut weights, mut squares) = (vec![0.0f64; buckets], vec![EPS; buckets]);
    let (mut bias, mut bias_squares) = (0.0, EPS);
    for epoch in 0..training.epochs {
        for i in order(epoch) {
            let Example { features, is_positive } = &examples[i];
            let product = |&(bucket, value): &(u32, f32)| weights[bucket as usize] * f64::from(value);
            let margin = features.iter().map(product).sum::<f64>() + bias;
            let g = error(margin, *is_positive) * kind_weights[usize::from(*is_positive)];
            for &(bucket, value) in features {
                let (weight, square) = (&mut weights[bucket as usize], &mut squares[bucket as usize]);
                let dw = g * f64::from(value) + training.l2 * *weight;
                *square += dw * dw;
                *weight -= training.lr * dw / square.sqrt();
            }
            bias_squares += g * g;
            bias -= training.lr * g / bias_squares.sqrt();
        }
    }
    let weights = weights.into_iter().map(|weight| weight as f32).collect();
    Classifier { bits: training.bits, weights, bias, slope: 1.0, offset: 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::features;

    fn loss(margin: f64, is_positive: bool) -> f64 {
        if is_positive { (-margin).exp().ln_1p() } else { margin.exp().ln_1p() }
    }

    #[test]
    fn the_gradient_is_that_of_central_differences() {
        for margin in [-5.0, -0.3, 0.0, 1.7, 9.0] {
            for is_positive in [false, true] {
                let h = 1e-5;
                let numeric = (loss(margin + h, is_positive) - loss(margin - h, is_positive)) / (2.0 * h);
                assert!((error(margin, is_positive) - numeric).abs() < 1e-9, "{margin} {is_positive}");
            }
        }
    }

    fn examples() -> Vec<Example> {
        let texts = [
            ("good old prose", true),
            ("buy now", false),
            ("prose of old times", true),
            ("now or never buy", false),
            ("buy prose", false),
        ];
        texts.map(|(text, is_positive)| Example { features: features(text, 6), is_positive }).to_vec()
    }

    /// The same steps over dense vectors, with the loss's gradient written out.
    #[test]
    fn the_steps_are_those_of_plain_adagrad() {
        let training = Training { bits: 6, epochs: 3, lr: 0.3, l2: 0.01 };
        let order = |epoch: usize| (0..5).map(|i| (2 * i + epoch) % 5).collect::<Vec<_>>();
        let found = train(&training, &examples(), order);
        let (mut w, mut g2) = (vec![0.0f64; 65], vec![1e-10; 65]); // the last one is the bias
        for epoch in 0..3 {
            for i in order(epoch) {
                let example = &examples()[i];
                let mut x = vec![0.0; 65];
                example.features.iter().for_each(|&(bucket, value)| x[bucket as usize] = f64::from(value));
                x[64] = 1.0;
                let margin: f64 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
                let y = if example.is_positive { 1.0 } else { 0.0 };
                let class = if example.is_positive { 5.0 / 4.0 } else { 5.0 / 6.0 };
                for j in (0..65).filter(|&j| x[j] != 0.0) {
                    let decay = if j < 64 { 0.01 * w[j] } else { 0.0 };
                    let g = (1.0 / (1.0 + (-margin).exp()) - y) * class * x[j] + decay;
                    g2[j] += g * g;
                    w[j] -= 0.3 * g / g2[j].sqrt();
                }
            }
        }
        assert!((found.bias - w[64]).abs() < 1e-12);
        assert!(
            found.weights.iter().zip(&w).all(|(found, w)| (f64::from(*found) - w).abs() < 1e-7),
            "{:?}",
            found.weights
        );
        assert!(found.margin(&features("old prose", 6)) > found.margin(&features("buy now", 6)));
    }
}
