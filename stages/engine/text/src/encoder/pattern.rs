//! Which pre-tokenizers of a `tokenizer.json` are written out in `pieces.rs`.

use super::pieces::Pattern;
use serde_json::{Value, json};

const CL100K: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
];

fn byte_level(use_regex: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex })
}

fn split(expression: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": expression }, "behavior": "Isolated", "invert": false })
}

impl Pattern {
    const ALL: [Self; 5] = [Self::Gpt2, Self::Gpt2Digits, Self::Cl100k, Self::Qwen2, Self::DeepseekV3];

    /// The field `pre_tokenizer` of a `tokenizer.json`.
    pub fn pre_tokenizer(self) -> Value {
        let parts: Vec<Value> = match self {
            Self::Gpt2 => return byte_level(true),
            Self::Gpt2Digits => vec![split(r"\d"), byte_level(true)],
            Self::Cl100k => vec![split(CL100K), byte_level(false)],
            Self::Qwen2 => vec![split(QWEN2), byte_level(false)],
            Self::DeepseekV3 => {
                DEEPSEEK_V3.iter().map(|expression| split(expression)).chain([byte_level(false)]).collect()
            }
        };
        json!({ "type": "Sequence", "pretokenizers": parts })
    }

    /// The pattern of a pre-tokenizer as the library writes it, if it is written out here.
    pub(super) fn of(pre_tokenizer: &Value) -> Option<Self> {
        let plain = simplified(pre_tokenizer)?;
        Self::ALL.into_iter().find(|pattern| simplified(&pattern.pre_tokenizer()).as_ref() == Some(&plain))
    }
}

/// A pre-tokenizer as a list, without what does not decide over pieces: `trim_offsets`, and that an expression which
/// matches everything may be turned around (`Removed` and `invert`, as some conversions of tiktoken's have it).
fn simplified(pre_tokenizer: &Value) -> Option<Vec<Value>> {
    let mut parts = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.clone(),
        _ => vec![pre_tokenizer.clone()],
    };
    for part in &mut parts {
        let covers_all = [CL100K, QWEN2].map(Some).contains(&part["pattern"]["Regex"].as_str());
        if covers_all && part["behavior"] == "Removed" && part["invert"] == true {
            part["behavior"] = "Isolated".into();
            part["invert"] = false.into();
        }
        if let Some(fields) = part.as_object_mut().filter(|fields| fields["type"] == "ByteLevel") {
            fields.shift_remove("trim_offsets");
        }
    }
    Some(parts)
}
