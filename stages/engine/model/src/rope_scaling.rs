//! How rotary frequencies change for contexts longer than those of pretraining.

use crate::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use smelt_kernels::{Rope, math};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    Yarn(Yarn),
    Llama3(Llama3),
}

/// Peng et al. 2023; the one scaling DeepSeek-V3 uses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Yarn {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
    #[serde(default = "thirty_two")]
    pub beta_fast: f64,
    #[serde(default = "one")]
    pub beta_slow: f64,
    #[serde(default)]
    pub mscale: Option<f64>,
    #[serde(default)]
    pub mscale_all_dim: Option<f64>,
    #[serde(default)]
    pub attention_factor: Option<f64>,
}

/// Three bands (Llama 3.1): wavelengths that fit `high_freq_factor` times into the original context keep their
/// frequency, those that do not fit `low_freq_factor` times are stretched, the rest blends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Llama3 {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: usize,
}

fn one() -> f64 {
    1.0
}
fn thirty_two() -> f64 {
    32.0
}

impl RopeScaling {
    /// `rope_type` and the fields, as config.json has them.
    pub(crate) fn fields(&self) -> (&'static str, Map<String, Value>) {
        let (kind, fields) = match self {
            RopeScaling::Yarn(yarn) => ("yarn", serde_json::to_value(yarn)),
            RopeScaling::Llama3(bands) => ("llama3", serde_json::to_value(bands)),
        };
        let Ok(Value::Object(mut fields)) = fields else { unreachable!("numbers only") };
        fields.retain(|_, value| !value.is_null());
        (kind, fields)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let (factor, original) = match self {
            RopeScaling::Yarn(yarn) => (yarn.factor, yarn.original_max_position_embeddings),
            RopeScaling::Llama3(bands) => {
                let (low, high) = (bands.low_freq_factor, bands.high_freq_factor);
                if !(low > 0.0 && high > low) {
                    return Err(Error::Config {
                        what: format!("`low_freq_factor` is {low}, `high_freq_factor` {high}"),
                        hint: "both are positive, and the high one is larger",
                    });
                }
                (bands.factor, bands.original_max_position_embeddings)
            }
        };
        if !(factor > 0.0 && factor.is_finite()) || original == 0 {
            return Err(Error::Config {
                what: format!("the rotary `factor` is {factor}, `original_max_position_embeddings` {original}"),
                hint: "both are positive",
            });
        }
        Ok(())
    }

    /// By how much the softmax scale of latent attention grows.
    pub(crate) fn softmax_factor(&self) -> f64 {
        match self {
            RopeScaling::Yarn(Yarn { factor, mscale_all_dim: Some(all), .. }) => {
                let m = mscale(*factor, *all);
                m * m
            }
            _ => 1.0,
        }
    }
}

impl Yarn {
    /// Dims that turn often keep their frequency, those that never turn once are stretched, a ramp between.
    fn frequency(&self, dim: usize, theta: f64, j: usize) -> f64 {
        let d = dim as f64;
        let dim_of = |turns: f64| {
            let length = self.original_max_position_embeddings as f64;
            d * math::ln(length / (turns * 2.0 * math::PI)) / (2.0 * math::ln(theta))
        };
        let low = dim_of(self.beta_fast).floor().max(0.0);
        let high = dim_of(self.beta_slow).ceil().min(d - 1.0);
        let high = if low == high { high + 0.001 } else { high };
        let (plain, ramp) = (plain(dim, theta, j), ((j as f64 - low) / (high - low)).clamp(0.0, 1.0));
        plain / self.factor * ramp + plain * (1.0 - ramp)
    }

    /// Of cos and sin.
    fn factor_of_angles(&self) -> f64 {
        self.attention_factor.unwrap_or_else(|| match (self.mscale, self.mscale_all_dim) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(self.factor, m) / mscale(self.factor, all),
            _ => mscale(self.factor, 1.0),
        })
    }
}

impl Llama3 {
    fn frequency(&self, dim: usize, theta: f64, j: usize) -> f64 {
        let plain = plain(dim, theta, j);
        let turns = self.original_max_position_embeddings as f64 * plain / (2.0 * math::PI);
        let share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        let share = share.clamp(0.0, 1.0);
        plain / self.factor * (1.0 - share) + plain * share
    }
}

fn plain(dim: usize, theta: f64, j: usize) -> f64 {
    math::pow(theta, -(2.0 * j as f64) / dim as f64)
}

fn mscale(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * math::ln(factor) + 1.0 }
}

/// Tables of `dim` rotated elements for `positions` positions.
pub(crate) fn tables(
    scaling: Option<&RopeScaling>,
    dim: usize,
    theta: f64,
    is_interleaved: bool,
    positions: usize,
) -> Rope {
    let (frequency, factor): (&dyn Fn(usize) -> f64, f64) = match scaling {
        None => (&|j| plain(dim, theta, j), 1.0),
        Some(RopeScaling::Yarn(yarn)) => (&|j| yarn.frequency(dim, theta, j), yarn.factor_of_angles()),
        Some(RopeScaling::Llama3(bands)) => (&|j| bands.frequency(dim, theta, j), 1.0),
    };
    let frequencies: Vec<f32> = (0..dim / 2).map(|j| frequency(j) as f32).collect();
    Rope::new(&frequencies, positions, factor, is_interleaved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_bands_keep_stretch_and_blend() {
        let bands =
            Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_position_embeddings: 64 };
        let relative = |j| bands.frequency(16, 10_000.0, j) / plain(16, 10_000.0, j);
        // 64 positions turn 10.2, 3.2 and 1.02 times, then less than once
        assert_eq!(relative(0), 1.0);
        assert!(
            (relative(1) - (0.125 + 0.875 * (64.0 * 0.1f64.sqrt() / std::f64::consts::TAU - 1.0) / 3.0)).abs() < 1e-12
        );
        assert!(relative(2) > 0.125 && relative(2) < 0.135);
        (3..8).for_each(|j| assert_eq!(relative(j), 0.125));
    }
}
