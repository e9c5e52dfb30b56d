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
    Bf16(Library),
    /// Both sides quantised to E4M3, sums in f32.
    Fp8(Fp8),
}

/// Whose kernels multiply dense matrices of bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Library {
    /// smelt's: a row has the same bits in any company.
    #[default]
    Own,
    /// NVIDIA's cuBLASLt, on its GPUs alone: its sums have another order with other numbers of rows.
    Cublaslt,
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

/// In a config: `fp32`, `bf16`, `fp8`, `bf16: { … }` or `fp8: { … }`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Precision")]
#[serde(
    untagged,
    expecting = "expected `fp32`, `bf16`, `fp8`, `bf16: { library }` or `fp8: { scaling, gradients, power_of_two }`"
)]
enum Written {
    Name(Name),
    By(By),
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
#[schemars(rename = "PrecisionBf16")]
#[serde(deny_unknown_fields)]
struct By {
    bf16: Bf16,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Bf16")]
#[serde(deny_unknown_fields, default)]
struct Bf16 {
    library: Library,
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
            Written::Name(Name::Bf16) => Precision::BF16,
            Written::By(By { bf16: Bf16 { library } }) => Precision::Bf16(library),
            Written::Name(Name::Fp8) => Precision::Fp8(Fp8::default()),
            Written::Scaled(Scaled { fp8 }) => Precision::Fp8(fp8),
        }
    }
}

impl From<Precision> for Written {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Written::Name(Name::Fp32),
            Precision::BF16 => Written::Name(Name::Bf16),
            Precision::Bf16(library) => Written::By(By { bf16: Bf16 { library } }),
            Precision::Fp8(fp8) if fp8 == Fp8::default() => Written::Name(Name::Fp8),
            Precision::Fp8(fp8) => Written::Scaled(Scaled { fp8 }),
        }
    }
}

impl Precision {
    /// bf16 by smelt's own kernels.
    pub const BF16: Self = Precision::Bf16(Library::Own);

    /// The setting by which a row of a product has other bits beside other rows, if there is one.
    pub fn by_company(self) -> Option<&'static str> {
        match self {
            Precision::Fp8(Fp8 { scaling: Scaling::Tensor, .. }) => Some("scaling: tensor"),
            Precision::Bf16(Library::Cublaslt) => Some("library: cublaslt"),
            _ => None,
        }
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
            (json!("bf16"), Precision::BF16),
            (json!({"bf16": {"library": "cublaslt"}}), Precision::Bf16(Library::Cublaslt)),
            (json!("fp8"), Precision::Fp8(Fp8::default())),
            (json!({"fp8": {"scaling": "tile", "gradients": "block", "power_of_two": true}}), Precision::Fp8(blocks)),
        ] {
            assert_eq!(read(written.clone()).unwrap(), precision);
            assert_eq!(serde_json::to_value(precision).unwrap(), written);
        }
        assert_eq!(read(json!({"fp8": {}})).unwrap(), Precision::Fp8(Fp8::default()));
        assert_eq!(read(json!({"bf16": {}})).unwrap(), Precision::BF16);
        let text = read(json!("fp16")).unwrap_err().to_string();
        assert!(text.contains("expected `fp32`, `bf16`, `fp8`, `bf16: {"), "{text}");
    }
}
