//! The fingerprint of a recipe: what a job would make, before it is made.

use crate::digest::Digest;
use crate::invocation::InputRef;
use crate::stage::Source;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// JSON with sorted keys and no white space: equal values have equal text. A number that is whole is written
/// without a fraction, so `1.0` and `1` are one recipe.
pub fn canonical_json(value: &Value) -> String {
    fn order(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let sorted: BTreeMap<_, _> = map.iter().map(|(k, v)| (k.clone(), order(v))).collect();
                Value::Object(Map::from_iter(sorted))
            }
            Value::Array(items) => Value::Array(items.iter().map(order).collect()),
            Value::Number(n) => match n.as_f64() {
                Some(x) if n.is_f64() && x.fract() == 0.0 && x.abs() < 9e15 => json!(x as i64),
                _ => value.clone(),
            },
            _ => value.clone(),
        }
    }
    order(value).to_string()
}

/// What a fingerprint is taken of, as one JSON value. Of an input only the digest counts, not the job that made it.
fn fingerprint_fields(
    stage: &str,
    version: u32,
    config: &Value,
    inputs: &BTreeMap<String, Vec<InputRef>>,
    sources: &[Source],
) -> Value {
    let inputs: Map<String, Value> = inputs
        .iter()
        .map(|(port, refs)| (port.clone(), refs.iter().map(|r| json!(r.digest)).collect::<Vec<_>>().into()))
        .collect();
    json!({ "stage": stage, "version": version, "config": config, "inputs": inputs, "sources": sources })
}

/// The identity of a recipe: stage, version, effective config, digests of the inputs and sources. Threads, machine,
/// store and time are no part of it.
pub fn fingerprint(
    stage: &str,
    version: u32,
    config: &Value,
    inputs: &BTreeMap<String, Vec<InputRef>>,
    sources: &[Source],
) -> Digest {
    Digest::of(canonical_json(&fingerprint_fields(stage, version, config, inputs, sources)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn equal_values_have_one_canonical_text() {
        let a: Value = serde_json::from_str(r#"{"b": 1.0, "a": [1, 2.5, {"y": null, "x": true}]}"#).unwrap();
        let b: Value = serde_json::from_str(r#"{"a": [1.0, 2.5, {"x": true, "y": null}], "b": 1}"#).unwrap();
        assert_eq!(canonical_json(&a), r#"{"a":[1,2.5,{"x":true,"y":null}],"b":1}"#);
        assert_eq!(canonical_json(&a), canonical_json(&b));
    }

    /// JSON without numbers beyond what both forms hold, a few levels deep.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e300..1e300f64).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((any::<String>(), inner), 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    /// The same value with the keys of every object the other way round.
    fn reversed(value: &Value) -> Value {
        match value {
            Value::Object(map) => Value::Object(map.iter().rev().map(|(k, v)| (k.clone(), reversed(v))).collect()),
            Value::Array(items) => items.iter().map(reversed).collect(),
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn the_order_of_keys_changes_no_canonical_text_and_no_fingerprint(value in json()) {
            let none = BTreeMap::new();
            prop_assert_eq!(canonical_json(&value), canonical_json(&reversed(&value)));
            prop_assert_eq!(
                fingerprint("clean", 1, &value, &none, &[]),
                fingerprint("clean", 1, &reversed(&value), &none, &[])
            );
        }

        #[test]
        fn canonical_text_reads_back_as_a_value_of_the_same_text(value in json()) {
            let text = canonical_json(&value);
            let back: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(canonical_json(&back), text);
        }
    }

    #[test]
    fn any_part_of_a_recipe_changes_its_fingerprint() {
        let none = BTreeMap::new();
        let base = fingerprint("dedup", 1, &json!({"jaccard": 0.8}), &none, &[]);
        assert_ne!(base, fingerprint("clean", 1, &json!({"jaccard": 0.8}), &none, &[]));
        assert_ne!(base, fingerprint("dedup", 2, &json!({"jaccard": 0.8}), &none, &[]));
        assert_ne!(base, fingerprint("dedup", 1, &json!({"jaccard": 0.7}), &none, &[]));
        let source = Source { name: "a.md".into(), bytes: 3, version: "x".into() };
        assert_ne!(base, fingerprint("dedup", 1, &json!({"jaccard": 0.8}), &none, &[source]));
    }
}
