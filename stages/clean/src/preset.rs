//! Whose rules count where a config says nothing.

use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use smelt_stage::Error;

use crate::pii::Pii;
use crate::rules::Rules;

/// Published rules. Each decides as datatrove does with its defaults for English.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// FineWeb's chain: Gopher's rules, C4's but for the end mark, and its own.
    Fineweb,
    /// Gopher's rules of repetition and quality.
    Gopher,
    /// C4's rules.
    C4,
}

impl Preset {
    pub fn rules(self) -> Rules {
        match self {
            Preset::Fineweb => Rules::fineweb(),
            Preset::Gopher => Rules::gopher(),
            Preset::C4 => Rules::c4(),
        }
    }

    pub fn pii(self) -> Pii {
        Pii::published()
    }
}

/// True or false, or what the preset says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switch(Option<bool>);

impl Switch {
    pub(crate) fn or(self, default: bool) -> bool {
        self.0.unwrap_or(default)
    }
}

impl From<bool> for Switch {
    fn from(is_on: bool) -> Self {
        Switch(Some(is_on))
    }
}

/// What is left open is written as it is without a preset.
impl Serialize for Switch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(self.or(true))
    }
}

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bool::deserialize(deserializer).map(Switch::from)
    }
}

impl JsonSchema for Switch {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        bool::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        bool::json_schema(generator)
    }
}

/// Those fields of a `T` that a config gives; the preset says the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Given<T>(Map<String, Value>, PhantomData<fn() -> T>);

impl<T> Default for Given<T> {
    fn default() -> Self {
        Given(Map::new(), PhantomData)
    }
}

impl<T: Serialize + DeserializeOwned> Given<T> {
    /// Every field of `value`.
    pub fn all(value: &T) -> Self {
        Given(fields(value), PhantomData)
    }

    /// The given fields over those of `base`. An error names the field, which stands below `place`.
    pub fn over(&self, base: &T, place: &str) -> Result<T, Error> {
        let mut all = fields(base);
        for (name, value) in &self.0 {
            lay(all.entry(name.clone()).or_insert(Value::Null), value);
        }
        serde_path_to_error::deserialize(Value::Object(all)).map_err(|e| {
            let field: String = e.path().iter().filter_map(segment).collect();
            Error::config(&format!("{place}{field}"), e.inner().to_string())
        })
    }
}

/// An object over an object field by field, anything else as a whole.
fn lay(base: &mut Value, given: &Value) {
    match (base, given) {
        (Value::Object(base), Value::Object(given)) => {
            for (name, value) in given {
                lay(base.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (base, given) => *base = given.clone(),
    }
}

fn fields<T: Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value).expect("a config is plain data") {
        Value::Object(fields) => fields,
        other => panic!("a config is an object, found {other}"),
    }
}

fn segment(segment: &serde_path_to_error::Segment) -> Option<String> {
    match segment {
        serde_path_to_error::Segment::Map { key } => Some(format!("/{key}")),
        serde_path_to_error::Segment::Seq { index } => Some(format!("/{index}")),
        _ => None,
    }
}

impl<T> Serialize for Given<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Given<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Map::deserialize(deserializer).map(|fields| Given(fields, PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for Given<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}
