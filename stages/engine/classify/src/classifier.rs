//! A trained classifier, and how an artifact holds it.

use serde::{Deserialize, Serialize};
use smelt_kernels::math::sigmoid;
use smelt_stage::kinds;
use smelt_stage::{Artifact, Error, Port, Unit};

use crate::features::features;

const ABOUT: &str = "classifier.json";
const WEIGHTS: &str = "weights.f32";
/// Of features and files.
const FORMAT: u32 = 1;

/// Weights of buckets, and what makes a probability of their sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Classifier {
    /// Of a bucket's number.
    pub bits: u32,
    /// One for each bucket: `[2^bits]`.
    pub weights: Vec<f32>,
    pub bias: f64,
    /// Calibration: the probability is σ(slope · margin + offset) (Platt 1999).
    pub slope: f64,
    pub offset: f64,
}

#[derive(Serialize, Deserialize)]
struct About {
    format: u32,
    bits: u32,
    bias: f64,
    slope: f64,
    offset: f64,
}

impl Classifier {
    /// Bias plus the weights of the features, by value: positive for texts like the positive ones.
    pub fn margin(&self, features: &[(u32, f32)]) -> f64 {
        let product = |&(bucket, value): &(u32, f32)| f64::from(self.weights[bucket as usize]) * f64::from(value);
        features.iter().map(product).sum::<f64>() + self.bias
    }

    /// The calibrated probability that a text is like the positive ones, where both kinds are as frequent.
    pub fn score(&self, text: &str) -> f64 {
        self.score_of(&features(text, self.bits))
    }

    pub fn score_of(&self, features: &[(u32, f32)]) -> f64 {
        sigmoid(self.slope * self.margin(features) + self.offset)
    }

    /// Writes the files of an artifact.
    pub fn write(&self, port: &Port<kinds::Classifier>, unit: &mut Unit) -> Result<(), Error> {
        let &Self { bits, bias, slope, offset, .. } = self;
        let about = About { format: FORMAT, bits, bias, slope, offset };
        let about = serde_json::to_vec_pretty(&about).map_err(|e| Error::bug(format!("{ABOUT}: {e}")))?;
        unit.put(port, ABOUT, &about)?;
        let weights: Vec<u8> = self.weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        unit.put(port, WEIGHTS, &weights)
    }

    /// Reads the files of an artifact.
    pub fn read(artifact: &Artifact<kinds::Classifier>) -> Result<Self, Error> {
        Self::of_bytes(&artifact.bytes_of(ABOUT)?, &artifact.map(WEIGHTS)?)
            .map_err(|what| Error::data(format!("{}: {what}", artifact.label())))
    }

    fn of_bytes(about: &[u8], weights: &[u8]) -> Result<Self, String> {
        let about: About = serde_json::from_slice(about).map_err(|e| format!("{ABOUT} is not readable: {e}"))?;
        let About { format, bits, bias, slope, offset } = about;
        if format != FORMAT {
            return Err(format!("{ABOUT} has format {format}, this build reads {FORMAT}"));
        }
        if bits > 30 || weights.len() as u64 != 4 << bits {
            return Err(format!("{WEIGHTS} has {} bytes, which are not 4 for each of 2^{bits} buckets", weights.len()));
        }
        let weights = weights.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        Ok(Self { bits, weights, bias, slope, offset })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_sigmoid_of_the_calibrated_sum() {
        let bits = 4;
        let weights: Vec<f32> = (0..16).map(|i| (i as f32 - 8.0) / 4.0).collect();
        let classifier = Classifier { bits, weights: weights.clone(), bias: 0.25, slope: 1.5, offset: -0.5 };
        let text = "some words of a text";
        let sum: f64 = features(text, bits).iter().map(|&(b, v)| f64::from(weights[b as usize]) * f64::from(v)).sum();
        let expected = 1.0 / (1.0 + (-(1.5 * (sum + 0.25) - 0.5)).exp());
        assert!((classifier.score(text) - expected).abs() < 1e-14);
        assert!(
            (classifier.score("") - 1.0 / (1.0 + 0.125f64.exp())).abs() < 1e-14,
            "a text without words has the bias"
        );
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let about = |format, bits| format!(r#"{{"format":{format},"bits":{bits},"bias":0,"slope":1,"offset":0}}"#);
        let read = |about: String, weights: &[u8]| Classifier::of_bytes(about.as_bytes(), weights);
        assert_eq!(read(about(1, 1), &[0; 8]).unwrap().weights, [0.0, 0.0]);
        assert_eq!(read(about(2, 1), &[0; 8]).unwrap_err(), "classifier.json has format 2, this build reads 1");
        let wrong = "weights.f32 has 9 bytes, which are not 4 for each of 2^1 buckets";
        assert_eq!(read(about(1, 1), &[0; 9]).unwrap_err(), wrong);
        assert!(read(about(1, 40), &[]).is_err());
        assert!(read("{".into(), &[]).unwrap_err().starts_with("classifier.json is not readable: "));
    }
}
