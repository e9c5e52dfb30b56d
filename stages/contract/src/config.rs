//! Configs of stages: what is given over what is not, and the bounds that a schema states.
//!
//! A nested config such as `optimizer` has a type that several stages share, with other defaults in each. Its type's
//! own defaults would fill what a user leaves out of it; here the stage's do, whether one field is given or none.

use crate::error::Error;
use serde_json::{Map, Value};

/// `given` over `defaults`: nested objects field by field, everything else as a whole.
pub(crate) fn over(defaults: &Value, given: &Value) -> Value {
    let (Value::Object(defaults), Value::Object(given)) = (defaults, given) else { return given.clone() };
    let fields = given.iter().map(|(name, value)| {
        let value = defaults.get(name).map_or_else(|| value.clone(), |default| nested(default, value));
        (name.clone(), value)
    });
    Value::Object(fields.collect())
}

/// The same for a nested object, which is filled up with its defaults.
fn nested(default: &Value, given: &Value) -> Value {
    let (Value::Object(defaults), Value::Object(fields)) = (default, given) else { return given.clone() };
    let mut all: Map<String, Value> = defaults.clone();
    for (name, value) in fields {
        let value = defaults.get(name).map_or_else(|| value.clone(), |default| nested(default, value));
        all.insert(name.clone(), value);
    }
    Value::Object(all)
}

/// A schema in which every field of a nested object says the default that it has in this stage.
pub(crate) fn with_own_defaults(schema: &Value) -> Value {
    let mut own = schema.clone();
    let Some(fields) = own.get_mut("properties").and_then(Value::as_object_mut) else { return own };
    for field in fields.values_mut() {
        if let Some(filled) = filled(schema, field) {
            *field = filled;
        }
    }
    own
}

/// A field whose default is an object, with the fields of its type written out; None for any other.
fn filled(root: &Value, field: &Value) -> Option<Value> {
    let default = field.get("default")?.as_object()?;
    let target = field.get("$ref").and_then(Value::as_str).and_then(|at| root.pointer(at.trim_start_matches('#')))?;
    let mut all = target.as_object()?.clone();
    let fields = all.get_mut("properties")?.as_object_mut()?;
    for (name, inner) in fields {
        if let (Some(value), Some(inner)) = (default.get(name), inner.as_object_mut()) {
            inner.insert("default".into(), value.clone());
        }
        if let Some(filled) = filled(root, inner) {
            *inner = filled;
        }
    }
    all.extend(field.as_object()?.iter().filter(|(name, _)| *name != "$ref").map(|(n, v)| (n.clone(), v.clone())));
    Some(Value::Object(all))
}

/// Refuses the first number outside the bounds that its schema states; the error names field, value and bounds.
pub(crate) fn check_bounds(schema: &Value, config: &Value) -> Result<(), Error> {
    check(schema, schema, config, "")
}

fn check(root: &Value, schema: &Value, value: &Value, path: &str) -> Result<(), Error> {
    if let Some(at) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(at.trim_start_matches('#')).unwrap_or(&Value::Null);
        check(root, target, value, path)?;
    }
    match value {
        Value::Number(number) => {
            let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
            let found = number.as_f64().unwrap_or(f64::NAN);
            let (least, most) = (bound("minimum"), bound("maximum"));
            let (above, below) = (bound("exclusiveMinimum"), bound("exclusiveMaximum"));
            let is_inside = least.is_none_or(|least| found >= least)
                && most.is_none_or(|most| found <= most)
                && above.is_none_or(|above| found > above)
                && below.is_none_or(|below| found < below);
            if is_inside {
                return Ok(());
            }
            let least = least.map(|least| format!("at least {least}"));
            let above = above.map(|above| format!("more than {above}"));
            let most = most.map(|most| format!("at most {most}"));
            let below = below.map(|below| format!("less than {below}"));
            let wanted: Vec<String> = [least.or(above), most.or(below)].into_iter().flatten().collect();
            let name = path.rsplit('/').find(|part| part.parse::<usize>().is_err()).unwrap_or_default();
            Err(Error::config(path, format!("`{name}` is {number}, expected {}", wanted.join(" and "))))
        }
        Value::Object(fields) => {
            let known = schema.get("properties").and_then(Value::as_object);
            fields.iter().try_for_each(|(name, value)| match known.and_then(|known| known.get(name)) {
                Some(inner) => check(root, inner, value, &format!("{path}/{name}")),
                None => branches(schema)
                    .filter(|branch| branch.pointer(&format!("/properties/{name}")).is_some())
                    .try_for_each(|branch| check(root, branch, &Value::Object(fields.clone()), path)),
            })?;
            // an optional object: the branch that is no null
            branches(schema)
                .filter(|branch| branch.get("$ref").is_some())
                .try_for_each(|branch| check(root, branch, value, path))
        }
        Value::Array(items) => match schema.get("items") {
            Some(inner) => (0..items.len()).try_for_each(|i| check(root, inner, &items[i], &format!("{path}/{i}"))),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn branches(schema: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf"].into_iter().filter_map(|name| schema.get(name)?.as_array()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(default)]
    struct Shared {
        #[schemars(range(min = 0.0, max = 1.0))]
        beta: f64,
        #[schemars(extend("exclusiveMinimum" = 0.0))]
        eps: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        extra: Option<u32>,
    }

    impl Default for Shared {
        fn default() -> Self {
            Self { beta: 0.9, eps: 1e-8, extra: None }
        }
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(default)]
    struct Own {
        optimizer: Shared,
        guard: Option<Shared>,
        weights: Vec<Weight>,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Weight {
        #[schemars(range(min = 1))]
        of: u32,
    }

    impl Default for Own {
        fn default() -> Self {
            Self { optimizer: Shared { beta: 0.5, ..Shared::default() }, guard: None, weights: Vec::new() }
        }
    }

    #[test]
    fn one_field_given_leaves_the_others_the_stages_own() {
        let defaults = serde_json::to_value(Own::default()).unwrap();
        let read = |given: Value| serde_json::from_value::<Own>(over(&defaults, &given)).unwrap();
        let own = read(json!({ "optimizer": { "eps": 1e-6 }, "guard": { "eps": 1.0 } }));
        assert_eq!((own.optimizer.beta, own.optimizer.eps), (0.5, 1e-6));
        assert_eq!(own.guard.map(|guard| guard.beta), Some(0.9), "what is off by default has its type's defaults");
        assert_eq!(read(json!({})).optimizer.beta, 0.5);
        assert_eq!(over(&defaults, &json!({ "optimizer": 3 })), json!({ "optimizer": 3 }), "a wrong type stays wrong");
    }

    #[test]
    fn a_schema_says_the_stages_own_defaults() {
        let schema = with_own_defaults(&schemars::schema_for!(Own).to_value());
        assert_eq!(schema.pointer("/properties/optimizer/properties/beta/default"), Some(&json!(0.5)));
        assert_eq!(schema.pointer("/properties/optimizer/properties/beta/maximum"), Some(&json!(1.0)));
        assert_eq!(schema.pointer("/properties/optimizer/properties/eps/default"), Some(&json!(1e-8)));
    }

    #[test]
    fn numbers_out_of_bounds_are_refused_with_their_place() {
        let schema = with_own_defaults(&schemars::schema_for!(Own).to_value());
        let refused = |config: Value| {
            let error = check_bounds(&schema, &config).unwrap_err();
            format!("{}: {error}", error.problem().field.as_deref().unwrap())
        };
        let beta = |beta: f64| json!({ "optimizer": { "beta": beta } });
        assert_eq!(refused(beta(-0.1)), "/optimizer/beta: `beta` is -0.1, expected at least 0 and at most 1");
        assert_eq!(
            refused(json!({ "optimizer": { "eps": 0.0 } })),
            "/optimizer/eps: `eps` is 0.0, expected more than 0"
        );
        assert_eq!(
            refused(json!({ "guard": { "beta": 2 } })),
            "/guard/beta: `beta` is 2, expected at least 0 and at most 1"
        );
        assert_eq!(
            refused(json!({ "weights": [{ "of": 1 }, { "of": 0 }] })),
            "/weights/1/of: `of` is 0, expected at least 1"
        );
        for config in [beta(0.0), beta(1.0), json!({}), json!({ "guard": null, "unknown": -1 })] {
            check_bounds(&schema, &config).unwrap();
        }
    }
}
