//! Weights of a checkpoint in FP8, as DeepSeek-V3 is released: `F8_E4M3` with the scales of its blocks beside it, as
//! `<name>_scale_inv` F32 `[⌈out/block⌉, ⌈in/block⌉]`: what to multiply with, whatever the name says.
//!
//! Embeddings, heads, norms, routers and `eh_proj` are never quantised. A weight with a dim that is no multiple of 128
//! is not either: transformers takes rows over rows of the scale for the block's size, which is wrong there.

use crate::{Error, Part, Stored};
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use smelt_kernels::fp8::{E4m3, Operand, Quantiser, Role, TILE, Tile};
use smelt_kernels::{Backend, Cpu, DType, Tensor};

/// `quantization_config` of config.json.
#[derive(Debug, Deserialize)]
pub(crate) struct Quantisation {
    quant_method: String,
    #[serde(default)]
    fmt: Option<String>,
    /// Rows and columns that share a scale.
    #[serde(default)]
    weight_block_size: Option<[usize; 2]>,
}

impl Quantisation {
    fn block(&self) -> [usize; 2] {
        self.weight_block_size.unwrap_or([TILE; 2])
    }

    /// None when the checkpoint is not quantised.
    pub(crate) fn from_json(config: &[u8]) -> Result<Option<Self>, Error> {
        #[derive(Deserialize)]
        struct Fields {
            quantization_config: Option<Quantisation>,
        }
        let found = serde_json::from_slice::<Fields>(config)?.quantization_config;
        let Some(own) = &found else { return Ok(None) };
        let (fmt, [rows, cols]) = (own.fmt.as_deref().unwrap_or("e4m3"), own.block());
        let method = &own.quant_method;
        if method != "fp8" || fmt != "e4m3" || rows == 0 || cols == 0 {
            let how = if method == "fp8" { format!(", `{fmt}`, in blocks of [{rows}, {cols}]") } else { String::new() };
            return Err(Error::Unsupported {
                what: format!("its weights are quantised as `{method}`{how}"),
                hint: "`fp8` in `e4m3` with a scale per block can be read; take the checkpoint in bf16, or convert it"
                    .into(),
            });
        }
        Ok(found)
    }

    /// Appends `q · scale` of `[out, in]` to `out`.
    pub(crate) fn read(
        &self,
        name: &str,
        q: &TensorView,
        scale: Option<&TensorView>,
        out: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let [rows, cols] = self.block();
        let refuse = |what: String| Error::Scale { name: name.into(), what, rows, cols };
        let &[height, width] = q.shape() else { return Err(refuse(format!("cannot be for {:?}", q.shape()))) };
        let expected = [height.div_ceil(rows), width.div_ceil(cols)];
        let scale = scale.ok_or_else(|| refuse(format!("is missing, expected F32 {expected:?}")))?;
        if scale.shape() != expected || scale.dtype() != Dtype::F32 {
            let (found, dtype) = (scale.shape(), scale.dtype());
            return Err(refuse(format!("is {dtype:?} {found:?}, expected F32 {expected:?}")));
        }
        let scale: Vec<f32> = scale.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        for (i, row) in q.data().chunks_exact(width.max(1)).enumerate() {
            let scale = &scale[i / rows * expected[1]..][..expected[1]];
            out.extend(row.iter().enumerate().map(|(j, &byte)| E4m3(byte).to_f32() * scale[j / cols]));
        }
        Ok(())
    }
}

/// Whether an FP8 checkpoint holds this tensor in FP8.
pub(crate) fn is_quantised(stored: Stored, part: &Part) -> bool {
    let is_in_block = part.name.contains(".self_attn.") || part.name.contains(".mlp.");
    stored == Stored::Linear
        && is_in_block
        && part.shape.len() == 2
        && part.shape.iter().all(|d| d.is_multiple_of(TILE))
}

/// Of the scales of a quantised weight: one per block.
pub(crate) fn scale_shape(part: &Part) -> Vec<usize> {
    part.shape.iter().map(|d| d / TILE).collect()
}

/// Bytes and scales of a weight.
pub(crate) fn quantise(part: &Part, values: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let how = Quantiser { tile: Tile::Block, role: Role::Weight, power_of_two: false };
    let w = Tensor::new(part.shape.as_slice(), values);
    let mut saturated = Tensor::zeros([1], DType::U32); // a checkpoint's values are finite
    let Operand::Fp8(scaled) = Cpu::new(1).lower(&w, Some(how), None, &mut saturated) else {
        unreachable!("it was asked for FP8")
    };
    let bytes = scaled.q.read::<E4m3>().iter().map(|q| q.0).collect();
    assert!(
        scaled.scale.shape().dims() == scale_shape(part),
        "quantise: {:?} of {:?}",
        scaled.scale.shape(),
        part.shape
    );
    (bytes, scaled.scale.read::<f32>().to_vec())
}

/// config.json with the quantisation; `plain`: linear weights that are not quantised, by name.
pub(crate) fn config_with(config: &[u8], plain: &[String]) -> Vec<u8> {
    let mut fields: Map<String, Value> = serde_json::from_slice(config).expect("a config serialised just now");
    // experts are one module to transformers 5 and vLLM: named as such, by what all their names begin with
    let module = |name: &String| match name.split_once(".experts.") {
        Some((layer, _)) => format!("{layer}.experts"),
        None => name.trim_end_matches(".weight").to_owned(),
    };
    let mut modules: Vec<String> = plain.iter().map(module).collect();
    modules.dedup();
    let quantisation = json!({
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [TILE, TILE],
        "modules_to_not_convert": modules,
    });
    fields.insert("quantization_config".into(), quantisation);
    let mut bytes = serde_json::to_vec_pretty(&fields).expect("a JSON object serialises");
    bytes.push(b'\n');
    bytes
}
