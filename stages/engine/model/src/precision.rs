//! The number format of a training's matrix products.
//!
//! It concerns the linear layers of attention and feed-forward, those of the experts and of the MTP modules included.
//! Embeddings, norms, routers, the attention operator and the heads stay in f32, as DeepSeek-V3 keeps them higher
//! (§3.3.1); so do master weights, gradients and moments. Only F32 can be lowered: gradient checks, which run in f64,
//! ask for full precision.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smelt_kernels::fp8::{Quantiser, Role, Tile};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "Written", into = "Written")]
#[schemars(with = "Written")]
pub enum Precision {
    #[default]
    Fp32,
    /// Both sides of a product rounded to bf16, sums in f32.
    Bf16,
    /// Both sides quantised to E4M3, sums in f32.
    Fp8(Fp8),
}

/// How FP8 is scaled; the default is DeepSeek-V3's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fp8 {
    pub scaling: Scaling,
    pub gradients: GradientTiles,
    /// Scales are rounded up to powers of two.
    pub power_of_two: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// One scale per 1×128 of activations and gradients, per 128×128 of weights.
    #[default]
    Tile,
    /// One scale per tensor, as FP8-LM has it (Peng et al. 2023): for comparison.
    Tensor,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GradientTiles {
    /// 1×128, along the dim that is summed.
    #[default]
    Tile,
    /// 128×128: the report found that this makes a training diverge (§B.2).
    Block,
}

/// In a config: `fp32`, `bf16`, `fp8`, or `fp8: { … }`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Precision")]
#[serde(untagged, expecting = "expected `fp32`, `bf16`, `fp8` or `fp8: { scaling, gradients, power_of_two }`")]
enum Written {
    Name(Name),
    Scaled(Scaled),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PrecisionName")]
#[serde(rename_all = "snake_case")]
enum Name {
    Fp32,
    Bf16,
    Fp8,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PrecisionFp8")]
#[serde(deny_unknown_fields)]
struct Scaled {
    fp8: Fp8,
}

impl From<Written> for Precision {
    fn from(written: Written) -> Self {
        match written {
            Written::Name(Name::Fp32) => Precision::Fp32,
            Written::Name(Name::Bf16) => Precision::Bf16,
            Written::Name(Name::Fp8) => Precision::Fp8(Fp8::default()),
            Written::Scaled(Scaled { fp8 }) => Precision::Fp8(fp8),
        }
    }
}

impl From<Precision> for Written {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Written::Name(Name::Fp32),
            Precision::Bf16 => Written::Name(Name::Bf16),
            Precision::Fp8(fp8) if fp8 == Fp8::default() => Written::Name(Name::Fp8),
            Precision::Fp8(fp8) => Written::Scaled(Scaled { fp8 }),
        }
    }
}

impl Precision {
    /// Whether a row of a product has the same bits whatever rows are computed beside it.
    pub fn is_by_row(self) -> bool {
        !matches!(self, Precision::Fp8(Fp8 { scaling: Scaling::Tensor, .. }))
    }
}

impl Fp8 {
    /// Of activations: `Tile::Row` for forward, `Tile::Column` for the weight's gradient.
    pub(crate) fn activations(self, along: Tile) -> Quantiser {
        self.quantiser(along, Role::Activation)
    }

    /// Of gradients: `Tile::Row` for the input's gradient, `Tile::Column` for the weight's.
    pub(crate) fn gradients(self, along: Tile) -> Quantiser {
        let tile = if self.gradients == GradientTiles::Block { Tile::Block } else { along };
        self.quantiser(tile, Role::Gradient)
    }

    fn quantiser(self, tile: Tile, role: Role) -> Quantiser {
        let tile = if self.scaling == Scaling::Tensor { Tile::Tensor } else { tile };
        Quantiser { tile, role, power_of_two: self.power_of_two }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_precision_is_a_name_or_fp8_with_its_scales() {
        let read = |value| serde_json::from_value::<Precision>(value);
        let blocks = Fp8 { gradients: GradientTiles::Block, power_of_two: true, ..Fp8::default() };
        for (written, precision) in [
            (json!("fp32"), Precision::Fp32),
            (json!("bf16"), Precision::Bf16),
            (json!("fp8"), Precision::Fp8(Fp8::default())),
            (json!({"fp8": {"scaling": "tile", "gradients": "block", "power_of_two": true}}), Precision::Fp8(blocks)),
        ] {
            assert_eq!(read(written.clone()).unwrap(), precision);
            assert_eq!(serde_json::to_value(precision).unwrap(), written);
        }
        assert_eq!(read(json!({"fp8": {}})).unwrap(), Precision::Fp8(Fp8::default()));
        let text = read(json!("fp16")).unwrap_err().to_string();
        assert!(text.contains("expected `fp32`, `bf16`, `fp8` or `fp8: {"), "{text}");
    }
}
